"""What studies share whose arms differ in more than one study can ask, such as the number of tokens: each arm has a store of its own."""

import sys
from collections.abc import Mapping
from pathlib import Path

from calibrant import Study
from calibrant.compare import Draws, draws
from calibrant.store import Store


def run(studies: Mapping[str, Study], here: Path) -> None:
    """Compute what the stores in `here`, one for each name, lack."""
    for name, study in studies.items():
        finished = study.run(here / name, lambda what, done, total: print(f"{what} {done}/{total}", file=sys.stderr))
        print(f"{name}: {finished.computed} computed, {finished.found} found, {len(finished.failures)} failed", flush=True)


def arm(folder: Path, **labels: str) -> dict[str, Draws]:
    """What the draws with these labels gave in one of the stores, by what was measured."""
    with Store(folder, create=False) as store:
        return draws(store, **labels)
