"""A study of a tiny model that takes a second, what a reader sees of its store, and processes to
run it in that may be killed.
"""

import json
import os
import random
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from calibrant.lab.report import report
from calibrant.lab.study import Study, driver
from calibrant.results import STUDY, Store, is_store
from calibrant.results.items import to_bytes
from calibrant.results.live import DATABASE, LiveResults
from calibrant.results.stored import StoredMeasurement, StoredRun
from calibrant.testing import tiny_folder

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "that",
    "it",
    "was",
    "flat",
    "so",
    "they",
    "had",
    "tea",
    "at",
    "eight",
]
RUNS = 8
"""The dense model, magnitude, and two methods on each of three sets."""


def texts(folder: Path) -> dict[str, str]:
    """Two files of rows and the folder of a model with two blocks."""
    folder.mkdir(exist_ok=True)
    for name in ("prose", "verse"):
        rows = [
            {"text": " ".join(random.Random(f"{name} {i}").choices(WORDS, k=40)) + f" {i}"}
            for i in range(60)
        ]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "model": str(tiny_folder(folder / "tiny", num_hidden_layers=2)),
        **{n: str(folder / f"{n}.jsonl") for n in ("prose", "verse")},
    }


def asked(given: dict[str, str], **changes: Any) -> Study:
    """A study of all of it: 8 runs, 16 measurements."""
    usual: dict[str, Any] = {
        "models": given["model"],
        "data": [given["prose"], "random_tokens", "full_stops"],
        "methods": ["wanda", "sparsegpt", "magnitude"],
        "evaluate": [
            f"loss(source={given[name]!r}, tokens=200, length=64)" for name in ("verse", "prose")
        ],
        "samples": 4,
        "length": 32,
        "dtype": "float32",
    }
    return Study(**{**usual, **changes})


def results(folder: Path) -> dict[str, Any]:
    """All that a reader of the results sees, provenance aside: each run and each measurement by
    its kind and id.
    """
    with Store(folder, create=False) as store:
        seen: dict[str, Any] = {
            STUDY: store.study_text(),
            "grid": store.index().plain(),
            "failures": store.failures(),
        }
        for run in store.ids():
            place = store.results(run)
            files = {name: place.file(run, name) for name in place.digests(run)}
            seen[f"run {run}"] = place.record(run), place.weights(run), files
            for measurement in sorted(store.measured(run)):
                place = store.results(run, measurement)
                items = to_bytes(place.items(run, measurement))
                seen[f"measured {measurement}"] = place.score(run, measurement), items
    return seen


def kept_files(folder: Path, name: str) -> dict[str, Path]:
    """Where the file of this name lies that is kept with each run; of those that are there."""
    found = dict[str, Path]()
    with Store(folder, create=False) as store:
        for run in store.ids():
            digest = store.results(run).digests(run).get(name)
            if digest is not None and store.blobs.path(digest).is_file():
                found[run] = store.blobs.path(digest)
    return found


def tables(folder: Path) -> tuple[str, str]:
    """The report as Markdown and as JSON, without what tells times and places."""
    found = report(folder)
    told = found.to_json()
    return str(found), json.dumps(
        {name: told[name] for name in sorted(told) if name not in ("machine", "seconds")}
    )


def forked(act: Callable[[], object], said: Path | None = None) -> int:
    """Do something in a copy of this process, which has imported everything, and give its
    number. What it says goes to the file `said`.
    """
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        out = os.open(said or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        act()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(number: int) -> int:
    """Wait for a process and give its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


class Logged:
    """Writes down, for this process and its children, which runs are compressed, what is
    measured, and what is kept, by their ids.
    """

    def __init__(self, log: Path, monkeypatch: Any) -> None:
        self._log = log
        compress, timed = driver.compress, driver.timed

        def compressing(opened: Any, seen_by: Any, batch: Any, what: Any, **told: Any) -> Any:
            self._write("compress", what.run(opened, batch, told["data"], told["seed"]).id)
            return compress(opened, seen_by, batch, what, **told)

        def measuring(task: Any, opened: Any, progress: Any, reference: Any, journal: Any) -> Any:
            self._write("measure", journal.question)
            return timed(task, opened, progress, reference, journal)

        monkeypatch.setattr(driver, "compress", compressing)
        monkeypatch.setattr(driver, "timed", measuring)
        for name in ("add_run", "add_measurement"):
            monkeypatch.setattr(LiveResults, name, self._keeping(getattr(LiveResults, name)))

    def _keeping(self, add: Callable[..., None]) -> Callable[..., None]:
        """What adds a result, and writes down that it is kept when that is said."""

        def keeping(place: LiveResults, row: StoredRun | StoredMeasurement) -> None:
            add(place, row)
            self._write("keep", row.id)

        return keeping

    def _write(self, what: str, name: str) -> None:
        with self._log.open("a") as file:
            file.write(f"{what} {name}\n")

    def __call__(self) -> list[tuple[str, str]]:
        """What was done, in order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return [(what, name) for what, _, name in (line.partition(" ") for line in lines)]


def finished(folder: Path) -> set[str]:
    """The ids of what a store need never compute again: measurements, and runs of which both are
    there.
    """
    found = set[str]()
    if not is_store(folder):
        return found
    with Store(folder, create=False) as store:
        for run in store.ids():
            measured = store.measured(run)
            found |= measured
            if len(measured) == 2:
                found.add(run)
    return found


def written(folder: Path) -> dict[str, str]:
    """The provenance of every run and measurement in a store: one that was computed again took
    other seconds.
    """
    found = dict[str, str]()
    if not is_store(folder):
        return found
    with Store(folder, create=False) as store:
        for run in store.ids():
            found[run] = json.dumps(store.provenance(run))
            for measurement in store.measured(run):
                found[measurement] = json.dumps(store.provenance(run, measurement))
    return found


def answers(folder: Path) -> set[tuple[str, str]]:
    """The runs and measurements that a store's grid tells of."""
    found = set[tuple[str, str]]()
    with Store(folder, create=False) as store:
        for cell in store.index().cells:
            found.update((cell.run, measurement) for measurement in cell.measures.values())
    return found


def claims(folder: Path) -> list[str]:
    """What processes that live, or were killed, are at work on in a store."""
    return names_in(folder, "SELECT name FROM claims")


def journals(folder: Path) -> list[str]:
    """The ids of what a store has an unfinished journal of."""
    return names_in(folder, "SELECT DISTINCT question FROM journal")


def names_in(folder: Path, query: str) -> list[str]:
    """What a query finds in a store's database."""
    if not is_store(folder):
        return []
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        return [name for (name,) in database.execute(query)]
