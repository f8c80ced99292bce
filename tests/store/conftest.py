"""A run, its record and what was measured on it, to keep and to spoil."""

import hashlib
import math
from pathlib import Path

from calibrant.durable import read_json, read_packed, text_of_json
from calibrant.store import MARKER, Measurement, Outcome, Record, Run, Score, Store

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


def as_format_1(store: Store) -> None:
    """Let a store be what the first version would have written: the weights of a record stood in its own file."""
    (store.folder / MARKER).write_text(text_of_json({"format": 1, "what": "results"}))
    for path in store.folder.glob("runs/*/weights.json.gz"):
        record = path.parent / "record.json"
        record.write_text(text_of_json({**read_json(record), "weights": read_packed(path)}))
        path.unlink()
        told = read_json(path.parent / "sums.json")
        del told[path.name]
        told[record.name] = hashlib.sha256(record.read_bytes()).hexdigest()
        (path.parent / "sums.json").write_text(text_of_json(told))
