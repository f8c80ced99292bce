"""What a store says of the folders and files that a user most likely meets: the one place where its
sentences stand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.errors import CalibrantError
from calibrant.results import Store, merge, pack
from calibrant.results.live import DATABASE

from tests.databases import change, spoil
from tests.results.conftest import told


def older(store: Path) -> None:
    (store / "calibrant-store.json").write_text("{}")
    Store(store)


def newer(store: Path) -> None:
    change(store / DATABASE, "PRAGMA user_version = 99")
    Store(store)


def damaged(store: Path) -> None:
    spoil(store / DATABASE, "runs", "record")
    told(store)


def damaged_and_packed(store: Path) -> None:
    spoil(store / DATABASE, "runs", "weights")
    pack(store)


def cut(store: Path) -> None:
    (store / DATABASE).write_bytes((store / DATABASE).read_bytes()[:5000])
    told(store)


def merged_into_itself(store: Path) -> None:
    merge(store, [store])


SAID: list[tuple[Callable[[Path], object], str]] = [
    (lambda store: Store(store / "blobs"), "isn't empty and isn't ours"),
    (lambda store: Store(store / "gone", create=False), "holds no results of calibrant"),
    (older, "convert them with tools/convert_store.py of calibrant's repository"),
    (newer, "was written in format 99, this calibrant reads 4; use the version that wrote it"),
    (damaged, "restore it from a copy, or have it computed again"),
    (damaged_and_packed, "; only what is whole is packed"),
    (cut, "can't be read (database disk image is malformed); restore it from a copy"),
    (merged_into_itself, "can't be merged into itself; name another store"),
]


@pytest.mark.parametrize(("act", "said"), SAID, ids=[said for _, said in SAID])
def test_what_is_refused_is_answered_with_what_to_do(
    store: Path, act: Callable[[Path], object], said: str
):
    with pytest.raises(CalibrantError) as raised:
        act(store)
    assert said in str(raised.value)
