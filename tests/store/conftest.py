"""A run, its record and what was measured on it, to keep and to spoil."""

import math
from pathlib import Path

from calibrant.store import Measurement, Outcome, Record, Run, Score, Store

RUN = Run(
    model="sha256:m",
    model_name="tiny",
    data="wikitext",
    tokens="sha256:t",
    method={"spec": "wanda", "revision": 1},
    target="0.5",
    allocation={"spec": "uniform", "revision": 1},
    propagate="dense",
    dtype="float32",
    seed=3,
)
RECORD = Record(
    RUN, 0.5, ({"name": "a", "shape": [2, 4], "sparsity": 0.5, "notes": {}},), ({"name": "head", "reason": "tied"},), {"tokens": 9}, {"seconds": 1.5}
)
SCORE = Score("wikitext:text", "loss", (40.1 + (0.1 + 0.2)) / 30, 0.1, 2, "nats/token", "lower", facts={"tokens": 30, "perplexity": math.inf})
MEASURED = Measurement(SCORE, (Outcome("sha256:b", 40.1, 10.0), Outcome("sha256:a", 0.1 + 0.2, 20.0)), {"seconds": 2.0})
LOSS = {"spec": "loss", "revision": 1, "source": "wikitext"}


def filled(folder: Path) -> Store:
    """A store with the run and what was measured on it."""
    with Store(folder) as store:
        store.add_record(RECORD, {"mask.npz": b"\x00\xff"})
        store.add_measurement(RUN.id, LOSS, MEASURED)
    return Store(folder, create=False)


def visible(folder: Path) -> dict[str, bytes]:
    """Every file of a store that isn't unfinished work."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and ".unfinished" not in p.parts}


def results(folder: Path) -> dict[str, bytes]:
    """What is visible, provenance aside."""
    return {name: content for name, content in visible(folder).items() if Path(name).name != "provenance.json"}
