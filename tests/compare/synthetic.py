"""A store of made-up records, written as quickly as a disk allows: for tests of speed and of what a report says of a large study.

Documents, draws and sets have effects of known size; the study names primary contrasts and a pool. The folder's layout is the store's own.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from calibrant.store import MARKER

MATRICES = 30
"""Matrices that a record lists, as a small model has them."""


@dataclass(frozen=True)
class Synthetic:
    """The shape of a study: a cell for each model, method, target, set and draw, and one dense model and magnitude at each target for each model."""

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
    """Whether records say of their matrices, and beside them of their words, what a page is made of."""

    @property
    def records(self) -> int:
        """How many runs it has."""
        return self.models * (self.methods * self.targets * self.sets * self.draws + self.targets + 1)

    def write(self, folder: Path) -> Path:
        """Write it into a new folder."""
        rng = np.random.default_rng(0)
        folder.mkdir(parents=True)
        _json(folder / MARKER, {"format": 1, "what": "made up"})
        lengths = [rng.integers(50, 500, self.items).astype(float) for _ in range(self.measures)]
        hard = [rng.normal(0, 0.5, self.items) for _ in range(self.measures)]
        cells = []
        for model, data, method, target, seed, loss in self._runs(rng):
            run = _id(model, data, method, target, seed)
            _record(folder / "runs" / run, model, data, method, target, seed, rng if self.facts else None)
            measures = {}
            for m in range(self.measures):
                text = f"loss(source='text{m}')"
                nats = lengths[m] * (loss + hard[m] + rng.normal(0, self.over_items if method != "none" else 0.0, self.items))
                measure = _id(run, text)
                _measurement(folder / "runs" / run / "measures" / measure, f"text{m}", nats, lengths[m])
                measures[text] = f"sha256:{measure}"
            told = {"model": model, "data": data, "method": method, "target": target, "seed": seed, "propagate": "dense" if data else ""}
            cells.append({**told, "run": f"sha256:{run}", "measures": measures})
        study = {
            "baseline": "set0",
            "pools": {"odd": [f"set{i}" for i in range(1, self.sets, 2)], "even": [f"set{i}" for i in range(0, self.sets, 2)]},
            "primary": [{"name": "odd or even", "compare": "odd", "with": "even"}, {"compare": "set1", "with": "set0"}],
        }
        _json(folder / "index.json", {"cells": cells, "study": study, "revisions": {"method wanda": 1}})
        return folder

    def _runs(self, rng: np.random.Generator) -> Iterator[tuple[str, str, str, str, int, float]]:
        for model in (f"model{i}" for i in range(self.models)):
            yield model, "", "none", "0.0", 0, 3.0
            for target in (f"0.{i + 1:02}" for i in range(self.targets)):
                yield model, "", "magnitude", target, 0, 4.0
                for method in (f"method{i}" for i in range(self.methods)):
                    for i in range(self.sets):
                        for seed in range(self.draws):
                            yield model, f"set{i}", method, target, seed, 3.3 + self.effect * i + rng.normal(0, self.over_draws)


def _id(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1), "utf-8")


def _record(folder: Path, model: str, data: str, method: str, target: str, seed: int, rng: np.random.Generator | None = None) -> None:
    folder.mkdir(parents=True)
    run = {"model": f"sha256:{model}", "model_name": model, "data": data, "tokens": f"sha256:{data}{seed}" if data else ""}
    run |= {"method": {"spec": method}, "target": target, "allocation": {"spec": "uniform"}, "propagate": "dense" if data else ""}
    run |= {"dtype": "float32", "seed": seed}
    facts = {"data": data, "draw": seed, "overlap": 0.0, "tokens": 8192, "windows": 16} if data else {}
    if rng is not None and data:
        parts = [
            {"data": data, "rows": 40, "rows_held": 900, "row_lengths": [9, 80, 120, 200, 900], "licence": "MIT", "share": 1.0, "origin": "made up"}
        ]
        facts |= {"length": 512, "parts": parts}
        _json(folder / "profile.json", _profile(data, rng))
    weights = (
        _matrices(rng)
        if rng is not None and data
        else [{"name": f"matrix {i}", "shape": [64, 64], "zeros": 2048, "sparsity": 0.5, "bits": "0" * 64, "notes": {}} for i in range(MATRICES)]
    )
    kept = {"data_facts": facts, "dense": [], "id": f"sha256:{folder.name}", "run": run, "sparsity": 0.5, "weights": weights}
    _json(folder / "record.json", kept)
    _json(folder / "provenance.json", {"seconds": {"compress": 1.0}, "device": "cpu", "threads": 1, "peak_memory_bytes": 10**9})


def _matrices(rng: np.random.Generator) -> list[dict[str, Any]]:
    """Seven matrices in each of thirty blocks, as a small model has them."""
    names = [f"model.layers.{block}.{part}" for block in range(MATRICES) for part in ("q", "k", "v", "o", "gate", "up", "down")]
    bits, inputs = rng.integers(0, 256, (len(names), 32), dtype=np.uint8), rng.normal(0, 1, (len(names), 32)).astype("<f2")
    errors = rng.uniform(0.01, 0.1, len(names))
    told = zip(names, bits, inputs, errors, strict=True)
    usual = {"shape": [64, 64], "zeros": 2048, "sparsity": 0.5, "notes": {}, "error_from": "norms"}
    return [{"name": n, **usual, "error": float(e), "bits": b.tobytes().hex(), "inputs": i.tobytes().hex()} for n, b, i, e in told]


def _profile(data: str, rng: np.random.Generator) -> dict[str, Any]:
    words = {f"word{i}": int(n) for i, n in zip(rng.choice(4000, 1500, replace=False), rng.integers(2, 60, 1500), strict=True)} | {data: 9}
    shares = {"characters": {"letters": 0.8, "spaces": 0.2}, "scripts": {"Latin": 1.0}}
    told = {"counted": sum(words.values()), "distinct": 1800, "even": 400.0, "numbers": 3.0, "word_length": 4.7, "windows": 16, "revision": 1}
    return {"words": words, **shares, **told, "examples": [{"part": data, "licence": "MIT", "text": f"{data}: some words\n" * 9}] * 2, "unquoted": {}}


def _measurement(folder: Path, measured: str, nats: np.ndarray, tokens: np.ndarray) -> None:
    folder.mkdir(parents=True)
    score = {"measured": measured, "metric": "loss", "value": float(nats.sum() / tokens.sum()), "unit": "nats/token", "better": "lower"}
    score |= {"facts": {"length": 512}, "stderr": 0.05, "n": len(nats), "chance": None}
    evaluator = {"spec": "loss", "source": measured, "revision": 1}
    _json(folder / "score.json", {"data": "", "evaluator": evaluator, "id": f"sha256:{folder.name}", "run": "", "score": score})
    _json(folder / "provenance.json", {"seconds": 0.5})
    items = pa.array([hashlib.sha256(f"{measured} {i}".encode()).hexdigest() for i in range(len(nats))])
    buffer = io.BytesIO()
    pq.write_table(pa.table({"item": items, "value": pa.array(nats), "weight": pa.array(tokens)}), buffer, compression="zstd")
    (folder / "items.parquet").write_bytes(buffer.getvalue())
