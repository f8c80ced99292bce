"""Jobs and searches that end in the middle, as if the process had been killed."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from calibrant.compress.checkpoint import Checkpoint
from calibrant.results.outcomes import Journal


@contextmanager
def killed_after(*counts: int) -> Iterator[None]:
    """While this is open, `KeyboardInterrupt` is raised once so many results were kept in a
    journal: right behind them, before anybody uses them.
    """
    add, kept = Journal.add, 0

    def deadly(journal: Journal, results: dict[str, Any]) -> None:
        nonlocal kept
        add(journal, results)
        kept += 1
        if kept in counts:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "add", deadly)
        yield


@contextmanager
def killed_behind(step: int) -> Iterator[None]:
    """The process ends just after a checkpoint has kept this step."""
    add = Checkpoint.add

    def deadly(self: Checkpoint, index: int, *rest: Any) -> None:
        add(self, index, *rest)
        if index == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "add", deadly)
        with pytest.raises(KeyboardInterrupt):
            yield


def tried(out: Path) -> int:
    """How much a killed search of the model that goes to `out` had kept."""
    path = out.with_name(f".{out.name}.calibrant-partial") / "tried.sqlite"
    with closing(sqlite3.connect(path)) as database:
        ((kept,),) = database.execute("SELECT count(*) FROM journal")
    return kept
