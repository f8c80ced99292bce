"""The ids of all runs and measurements of every committed store."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from studies.made import files_in

from calibrant.results import Store, measurement_id

PROJECT: Final = Path(__file__).parents[2]
DIGITS: Final = 16
"""Of an id that are kept beside the hash of all: 64 bits say which one is missing."""


def committed() -> list[Path]:
    """List the folders of the committed stores."""
    files = files_in(PROJECT / "studies")
    return sorted(path.parent for path in files if path.name == "packed.json")


def name_of(folder: Path) -> str:
    """Return what a store is called here: its path in the project."""
    return folder.relative_to(PROJECT).as_posix()


def ids_of(folder: Path) -> tuple[list[str], list[str]]:
    """Return the ids of a store's runs, and of the measurements on all of them, each in order."""
    measurements = list[str]()
    with Store(folder, create=False) as store:
        runs = store.ids()
        for run in runs:
            measurements += store.measured(run)
    return runs, sorted(measurements)


def sums() -> Iterator[tuple[str, Any]]:
    """Yield of each store how many ids it has, and a hash over all of them."""
    for folder in committed():
        runs, measurements = ids_of(folder)
        every = "\n".join(sorted([*runs, *measurements]))
        digest = hashlib.sha256(every.encode()).hexdigest()
        counts = {"runs": len(runs), "measurements": len(measurements)}
        yield name_of(folder), {**counts, "sha256": digest}


def digits() -> Iterator[tuple[str, Any]]:
    """Yield the first digits of each store's ids: those of the runs, then those of the
    measurements, each joined to one text."""
    for folder in committed():
        yield name_of(folder), [_shortened(ids) for ids in ids_of(folder)]


def _shortened(ids: list[str]) -> str:
    return "".join(found.removeprefix("sha256:")[:DIGITS] for found in ids)


def wrong_ids(folder: Path, every: int = 1) -> list[str]:
    """Return the ids of a store that aren't those of their content; of the runs and measurements
    only one of `every` so many is computed again."""
    wrong, place = list[str](), 0
    with Store(folder, create=False) as store:
        for run in store.ids():
            place += 1
            record = None if place % every else store.record(run, whole=False)
            if record is not None and record.run.id != run:
                wrong.append(run)
            for measure in sorted(store.measured(run)):
                place += 1
                if place % every:
                    continue
                fields = store.results(run, measure).score(run, measure)
                if measurement_id(run, fields["evaluator"], fields.get("data", "")) != measure:
                    wrong.append(measure)
    return wrong
