"""What a store says of the folders and files that a user most likely meets: the one place where its sentences stand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.errors import CalibrantError
from calibrant.store import MARKER, Store, merge, pack, unpack

from tests.store.conftest import filled


def spoil(store: Store, name: str, content: str) -> None:
    next(store.folder.glob(name)).write_text(content)


SAID: list[tuple[Callable[[Store], object], str]] = [
    (lambda store: Store(store.folder / "runs"), "isn't empty and isn't ours"),
    (lambda store: Store(store.folder / "gone", create=False), "holds no results of calibrant"),
    (lambda store: (spoil(store, MARKER, '{"format": 99}'), Store(store.folder)), "99"),
    (lambda store: (spoil(store, "index.json", "{"), store.cells()), "delete it to"),
    (lambda store: (spoil(store, "runs/*/record.json", "{"), store.records()), "delete its folder to"),
    (lambda store: merge(store.folder, [store.folder]), "can't be merged into itself; name another store"),
    (lambda store: unpack(store.folder), "isn't packed; there is nothing to unpack"),
    (lambda store: (spoil(store, "runs/*/measures/*/score.json", "{}"), pack(store.folder)), "; only what is whole is packed"),
]


@pytest.mark.parametrize(("act", "said"), SAID, ids=[said for _, said in SAID])
def test_what_is_refused_is_answered_with_what_to_do(tmp_path: Path, act: Callable[[Store], object], said: str):
    store = filled(tmp_path / "s")
    store.write_text("index.json", '{"cells": []}')
    store.close()
    with pytest.raises(CalibrantError) as raised:
        act(Store(tmp_path / "s", create=False))
    assert said in str(raised.value)
