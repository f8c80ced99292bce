"""What studies share whose arms differ in more than one study can ask, such as the number of tokens: each arm has a store of its own."""

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from calibrant import Study
from calibrant.compare import Draws, contrast, draws
from calibrant.store import Store


def run(studies: Mapping[str, Study], here: Path, tables: Callable[[], Iterable[str]]) -> None:
    """Compute what the stores in `here`, one for each name, lack, unless `--tables` is asked for alone; print the tables."""
    for name, study in () if "--tables" in sys.argv[1:] else studies.items():
        finished = study.run(here / name, lambda what, done, total: print(f"{what} {done}/{total}", file=sys.stderr))
        print(f"{name}: {finished.computed} computed, {finished.found} found, {len(finished.failures)} failed\n", flush=True)
    print("\n\n".join(tables()))


def arm(folder: Path, **labels: str) -> dict[str, Draws]:
    """What the draws with these labels gave in one of the stores, by what was measured."""
    with Store(folder, create=False) as store:
        return draws(store, **labels)


def row(head: str, a: dict[str, Draws], b: dict[str, Draws], names: Iterable[str]) -> str:
    """A row of Markdown: how much worse `a` is than `b` on each measured set."""
    return f"| {head} | {' | '.join(f'{contrast({n: a[n]}, {n: b[n]}):+.3f}' for n in names)} |"
