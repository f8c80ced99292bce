"""Measurements and stores that tests of comparisons are made from: known losses, documents that differ a little."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from calibrant.store import PROFILE, Cell, Measurement, Outcome, Record, Run, Score, Store

RNG = np.random.default_rng(0)


def measured(values: Sequence[float], weights: Sequence[float], name: str = "wikitext:text", **score: object) -> Measurement:
    outcomes = tuple(Outcome(f"item {i:03}", float(v), float(w)) for i, (v, w) in enumerate(zip(values, weights, strict=True)))
    facts = {"length": 512}
    plain = Score(name, "loss", float(sum(values) / (sum(weights) or 1)), None, len(outcomes), "nats/token", "lower", facts=facts)
    return Measurement(replace(plain, **score), outcomes)  # pyright: ignore[reportArgumentType]


def documents(n: int, rng: np.random.Generator = RNG) -> tuple[np.ndarray, np.ndarray]:
    """Document lengths, and losses per token that depend on the length: what makes a ratio differ from a mean of ratios."""
    lengths = rng.integers(50, 500, n).astype(float)
    return lengths, 2.5 + 0.001 * lengths + rng.normal(0, 0.4, n)


LOSSES = {"dense": [[3.0, 2.0]], "magnitude": [[5.0, 4.0]], "c4": [[3.5, 2.6]], "gsm8k:cot": [[3.9, 2.1]], "full_stops": [[6.0, 6.0]]}
DRAWN = {
    "dense": [[3.0, 2.0]],
    "c4": [[3.50, 2.60], [3.51, 2.59], [3.49, 2.61]],
    "gsm8k:icl": [[3.90, 2.90], [3.91, 2.91], [3.89, 2.92]],
    "svamp:icl": [[3.80, 2.90], [3.81, 2.91], [3.79, 2.92]],
}
"""Three draws of three sets, of which c4 is surely the best."""


def store_of(
    folder: Path,
    losses: Mapping[str, Sequence[Sequence[float]]],
    measures: Sequence[str] = ("docs", "code"),
    missing: Sequence[str] = (),
    study: Mapping[str, Any] | None = None,
    overlap: Mapping[str, float] | None = None,
    noise: float = 0.01,
    weights: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    profiles: Mapping[str, Mapping[str, Any]] | None = None,
    processors: Mapping[str, str] | None = None,
) -> Store:
    """A store whose labels ("dense", "magnitude" or a set) have, a draw each, one loss per measured set.

    `missing` are measurements (`c4/docs`) that aren't there; `overlap` what the later draws of a set share with earlier ones.
    `weights` are what the records of a label, or of one of its draws (`c4/1`), say of their matrices, `profiles` what is kept beside them.
    `processors` are what the runs of a label were computed on.
    """
    store, rng, cells = Store(folder), np.random.default_rng(5), []
    lengths = {m: rng.integers(100, 300, 12).astype(float) for m in measures}
    hard = {m: rng.normal(0, 0.5, 12) for m in measures}
    for label, draws in losses.items():
        for seed, values in enumerate(draws):
            baseline = {"dense": "none", "magnitude": "magnitude"}.get(label)
            data, method, target = "" if baseline else label, baseline or "wanda", "0.0" if label == "dense" else "0.5"
            run = Run("sha256:m", "tiny", data, f"{label}{seed}", {"spec": method, "revision": 1}, target, {}, "", "float32", seed)
            matrices = (weights or {}).get(f"{label}/{seed}", (weights or {}).get(label, ()))
            kept = (profiles or {}).get(f"{label}/{seed}", (profiles or {}).get(label))
            facts = {"overlap": (overlap or {}).get(label, 0.0) if seed else 0.0, "tokens": 4096 + seed}
            files = {} if kept is None else {PROFILE: json.dumps(kept).encode()}
            about = {"processor": processors[label]} if processors else {}
            store.add_record(Record(run, 0.5, tuple(matrices), data_facts=facts, provenance=about), files)
            ids = {}
            for m, value in zip(measures, values, strict=True):
                text = f"loss(source={m!r})"
                ids[text] = "sha256:none"
                if f"{label}/{m}" not in missing:
                    chance = rng.normal(0, noise, 12)
                    nats = lengths[m] * (value + hard[m] + chance - chance.mean())
                    ids[text] = store.add_measurement(run.id, {"spec": "loss", "source": m, "revision": 1}, measured(nats, lengths[m], f"{m}:text"))
            cells.append(Cell("tiny", run.data, str(run.method["spec"]), run.target, seed, run.id, ids))
    store.write_cells(cells, study)
    return store
