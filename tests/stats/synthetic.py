"""A store of made-up records, written quickly: for tests of speed and of what a report says of a
large study.

Documents, draws and sets have effects of known size; the study names primary contrasts and a pool.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calibrant.results import PROFILE, Cell, Measurement, Outcome, Record, Run, Score, Store

MATRICES = 30
"""Matrices that a record lists, as a small model has them."""


@dataclass(frozen=True)
class Synthetic:
    """The shape of a study: a cell for each model, method, target, set and draw, and one dense
    model and magnitude at each target for each model.
    """

    models: int = 1
    methods: int = 2
    targets: int = 2
    sets: int = 5
    draws: int = 3
    measures: int = 2
    items: int = 40
    effect: float = 0.05
    over_draws: float = 0.02
    over_items: float = 0.2
    facts: bool = False
    """Whether records say of their matrices, and beside them of their words, what a page is made
    of.
    """

    @property
    def records(self) -> int:
        """How many runs it has."""
        return self.models * (
            self.methods * self.targets * self.sets * self.draws + self.targets + 1
        )

    def write(self, folder: Path) -> Path:
        """Write it into a new folder."""
        rng = np.random.default_rng(0)
        lengths = [rng.integers(50, 500, self.items).astype(float) for _ in range(self.measures)]
        hard = [rng.normal(0, 0.5, self.items) for _ in range(self.measures)]
        cells: list[Cell] = []
        with Store(folder) as store:
            # Nothing is lost that matters, if power is.
            store.live.database.rows("PRAGMA synchronous = OFF")
            for model, data, method, target, seed, loss in self._runs(rng):
                run = _run(model, data, method, target, seed)
                _add(store, run, rng if self.facts and data else None)
                chance = self.over_items if method != "none" else 0.0
                measures: dict[str, str] = {}
                for number in range(self.measures):
                    each = loss + hard[number] + rng.normal(0, chance, self.items)
                    name = f"text{number}"
                    measured = _measured(name, lengths[number] * each, lengths[number])
                    form = {"spec": "loss", "source": name, "revision": 1}
                    measures[f"loss(source={name!r})"] = store.add_measurement(
                        run.id, form, measured
                    )
                cells.append(
                    Cell(model, data, method, target, seed, run.id, measures, run.propagate)
                )
            store.write_cells(cells, self._study(), {"method wanda": 1})
        return folder

    def _study(self) -> dict[str, Any]:
        """What a reader of the results needs to know of the study."""
        odd = [f"set{number}" for number in range(1, self.sets, 2)]
        even = [f"set{number}" for number in range(0, self.sets, 2)]
        of_pools = {"name": "odd or even", "compare": "odd", "with": "even"}
        of_sets = {"compare": "set1", "with": "set0"}
        return {
            "baseline": "set0",
            "pools": {"odd": odd, "even": even},
            "primary": [of_pools, of_sets],
        }

    def _runs(self, rng: np.random.Generator) -> Iterator[tuple[str, str, str, str, int, float]]:
        for model in (f"model{i}" for i in range(self.models)):
            yield model, "", "none", "0.0", 0, 3.0
            for target in (f"0.{i + 1:02}" for i in range(self.targets)):
                yield model, "", "magnitude", target, 0, 4.0
                for method in (f"method{i}" for i in range(self.methods)):
                    for i in range(self.sets):
                        for seed in range(self.draws):
                            yield (
                                model,
                                f"set{i}",
                                method,
                                target,
                                seed,
                                3.3 + self.effect * i + rng.normal(0, self.over_draws),
                            )


def _run(model: str, data: str, method: str, target: str, seed: int) -> Run:
    return Run(
        model=f"sha256:{model}",
        model_name=model,
        data=data,
        tokens=f"sha256:{data}{seed}" if data else "",
        method={"spec": method},
        target=target,
        allocation={"spec": "uniform"},
        propagate="dense" if data else "",
        dtype="float32",
        seed=seed,
    )


def _add(store: Store, run: Run, rng: np.random.Generator | None) -> None:
    """Add a record; one that looks at data has facts of it, and with a generator all that a page
    is made of.
    """
    data, facts, files = run.data, dict[str, Any](), dict[str, bytes]()
    usual = {"shape": [64, 64], "zeros": 2048, "sparsity": 0.5, "bits": "0" * 64, "notes": {}}
    weights: list[dict[str, Any]] = [
        {"name": f"matrix {number}", **usual} for number in range(MATRICES)
    ]
    if data:
        facts = {"data": data, "draw": run.seed, "overlap": 0.0, "tokens": 8192, "windows": 16}
    if rng is not None:
        part = {"data": data, "rows": 40, "rows_held": 900, "row_lengths": [9, 80, 120, 200, 900]}
        part |= {"licence": "MIT", "share": 1.0, "origin": "made up"}
        facts |= {"length": 512, "parts": [part]}
        files = {PROFILE: json.dumps(_profile(data, rng)).encode()}
        weights = _matrices(rng)
    about = {
        "seconds": {"compress": 1.0},
        "device": "cpu",
        "threads": 1,
        "peak_memory_bytes": 10**9,
    }
    store.add_record(Record(run, 0.5, tuple(weights), data_facts=facts, provenance=about), files)


def _matrices(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Seven matrices in each of thirty blocks, as a small model has them."""
    names = [
        f"model.layers.{block}.{part}"
        for block in range(MATRICES)
        for part in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    bits, inputs = (
        rng.integers(0, 256, (len(names), 32), dtype=np.uint8),
        rng.normal(0, 1, (len(names), 32)).astype("<f2"),
    )
    errors = rng.uniform(0.01, 0.1, len(names))
    told = zip(names, bits, inputs, errors, strict=True)
    usual = {"shape": [64, 64], "zeros": 2048, "sparsity": 0.5, "notes": {}, "error_from": "norms"}
    return [
        {
            "name": n,
            **usual,
            "error": float(e),
            "bits": b.tobytes().hex(),
            "inputs": i.tobytes().hex(),
        }
        for n, b, i, e in told
    ]


def _profile(data: str, rng: np.random.Generator) -> dict[str, Any]:
    words = {
        f"word{i}": int(n)
        for i, n in zip(
            rng.choice(4000, 1500, replace=False), rng.integers(2, 60, 1500), strict=True
        )
    } | {data: 9}
    shares = {"characters": {"letters": 0.8, "spaces": 0.2}, "scripts": {"Latin": 1.0}}
    told = {
        "counted": sum(words.values()),
        "distinct": 1800,
        "even": 400.0,
        "numbers": 3.0,
        "word_length": 4.7,
        "windows": 16,
        "revision": 1,
    }
    return {
        "words": words,
        **shares,
        **told,
        "examples": [{"part": data, "licence": "MIT", "text": f"{data}: some words\n" * 9}] * 2,
        "unquoted": {},
    }


def _measured(name: str, nats: np.ndarray, tokens: np.ndarray) -> Measurement:
    value = float(nats.sum() / tokens.sum())
    score = Score(
        name, "loss", value, 0.05, len(nats), "nats/token", "lower", facts={"length": 512}
    )
    outcomes: list[Outcome] = []
    for number in range(len(nats)):
        key = hashlib.sha256(f"{name} {number}".encode()).hexdigest()[:16]
        outcomes.append(Outcome(key, float(nats[number]), float(tokens[number])))
    return Measurement(score, tuple(outcomes), {"seconds": 0.5})
