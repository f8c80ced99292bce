"""What studies predict of their sets before any of them compresses a model: the mean relative
error of matrices, as `recommend` does.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.select import resolved
from calibrant.errors import DataError
from calibrant.lab.mixtures import NO_METER, Errors, Sample, gather_statistics
from calibrant.lab.study import Study
from calibrant.methods import StandIn
from calibrant.models import open_model, view
from calibrant.system.durable import put


class Predicted(NamedTuple):
    """What predicts a method, and the sample of blocks, and rows of each of their matrices, that
    is compared.
    """

    by: StandIn
    sample: Sample

    def __str__(self) -> str:
        return (
            f"{self.by.method}, {self.by.target}, {self.sample.rows} rows of {self.sample.blocks} "
            "blocks"
        )


def predict(
    out: Path,
    study: Study,
    sets: Sequence[str],
    targets: Mapping[str, int],
    methods: Mapping[str, Predicted],
    statistics: Path,
) -> None:
    """Write into `out` the error of every set under what every target holds out, by method and
    draw: tr((W−Ŵ)G(W−Ŵ)ᵀ) / tr(WGWᵀ).

    Each set is walked through once in the untouched model, and so is each target's text: the draw
    of what it holds out that `targets` names. What `out` has already isn't predicted again, so it
    goes on after it was killed. A mix of statistics, `mix(…)`, is made of those of its sources.
    Raises `DataError` where `out` was predicted for other sets, targets or methods. The study has
    one model.
    """
    names = [str(CalibrationSet(text)) for text in sets]
    asked = {
        "sets": names,
        "targets": dict(targets),
        "by": {name: str(predicted) for name, predicted in methods.items()},
    }
    record: dict[str, Any] = {**asked, "errors": {}}
    if out.is_file():
        record = json.loads(out.read_text("utf-8"))
    if {name: record.get(name) for name in asked} != asked:
        raise DataError(
            f"{out.name} was predicted for other sets, targets or methods; delete it first",
            subject=out.name,
        )
    sources = _sources(names)
    mixtures = [_shares(text, sources, study.length) for text in names]
    (model,) = study.models
    opened = open_model(model, dtype=study.dtype)
    budget = {"tokens": study.tokens, "length": study.length}
    judges: list[tuple[str, TokenBatch]] = []
    for text, draw in targets.items():
        held_out = CalibrationSet(text, seed=draw, **budget).held_out()
        judges.append((text, held_out.tokens(opened.tokenizer)))
    for seed in study.seeds:
        missing: dict[str, Predicted] = {}
        for name, predicted in methods.items():
            if str(seed) not in record["errors"].get(name, {}):
                missing[name] = predicted
        if not missing:  # own text takes minutes to generate
            continue
        drawn: list[tuple[str, TokenBatch]] = []
        for text in sources:
            of_source = resolved(CalibrationSet(text, seed=seed, **budget), opened)
            drawn.append((text, of_source.tokens(opened.tokenizer)))
        for name, (standing, sample) in missing.items():
            kept = gather_statistics(
                opened,
                view(opened.model),
                standing.method,
                drawn,
                judges,
                statistics,
                NO_METER,
                _told,
            )
            inputs = kept.inputs(sample, standing.target)
            found = Errors(inputs, standing.method, kept.masses)(mixtures)
            of_draw: dict[str, dict[str, float]] = {}
            for text, row in zip(names, found, strict=True):
                of_draw[text] = dict(zip(targets, map(float, row), strict=True))
            record["errors"].setdefault(name, {})[str(seed)] = of_draw
            put(out, (json.dumps(record, indent=1) + "\n").encode())
            print(
                f"{name}, draw {seed}: {len(names)} sets under {len(targets)} targets", flush=True
            )


def _sources(names: Sequence[str]) -> list[str]:
    """Every set that is no mix, and every part of one that is."""
    found: dict[str, None] = {}
    for name in names:
        one = CalibrationSet(name)
        for part in one.mixed or (one,):
            found[str(part)] = None
    return list(found)


def _shares(text: str, sources: Sequence[str], length: int) -> tuple[Fraction, ...]:
    """How much each source weighs in a set: a mix is of several."""
    found = CalibrationSet(text, length=length)
    parts = {str(found): Fraction(1)}
    if found.mixed:
        parts = dict(zip(map(str, found.mixed), found.shares, strict=True))
    return tuple(parts.get(source, Fraction(0)) for source in sources)


def _told(what: str, done: int, total: int) -> None:
    """Say what is finished."""
    if done == total:
        print(what, file=sys.stderr, flush=True)
