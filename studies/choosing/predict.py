"""What the cross-source error says of the sets of study.yaml before any of them is used to prune.

    CALIBRANT_DATA=… python studies/choosing/predict.py        # then: calibrant study studies/choosing/study.yaml --out studies/choosing/results

For each draw, each set is walked through once in the untouched model, and so is what each of the six domains holds out. `predicted.json` gets the
mean relative error of matrices, tr((W−Ŵ)G(W−Ŵ)ᵀ) / tr(WGWᵀ), of every set under every domain, for Wanda and SparseGPT at 60 %. The statistics are
dense, also for SparseGPT, which the study prunes by arrival; those that the study has kept are read. Killed and run again, it goes on. `compare.py`
holds it against what was measured.
"""

import json
import sys
from fractions import Fraction
from pathlib import Path

from calibrant.data import CalibrationSet
from calibrant.durable import put
from calibrant.methods.sparsegpt import SparseGPT
from calibrant.methods.wanda import Wanda
from calibrant.mixtures import Errors, Sample, gather_statistics
from calibrant.models import open_model, view
from calibrant.select import resolved
from calibrant.study import read_study
from calibrant.targets import parse_target

HERE = Path(__file__).parent
OUT = HERE / "predicted.json"
DOMAINS = ["c4", "pile", "redpajama", "wikipedia", "gsm8k:cot", "flores(language=fr)"]
SAMPLE = Sample(blocks=10, rows=64)
DRAWS = range(3)
METHODS = {"wanda": Wanda(), "sparsegpt": SparseGPT()}


def shares(text: str, sources: list[str], study_length: int) -> tuple[Fraction, ...]:
    """How much each source weighs in a set: a mix is of several."""
    found = CalibrationSet(text, length=study_length)
    parts = dict(zip(map(str, found.mixed), found.mix.shares, strict=True)) if found.mix else {str(found): Fraction(1)}
    return tuple(parts.get(source, Fraction(0)) for source in sources)


def main() -> None:
    """Predict what isn't in the record yet, and write it down draw by draw."""
    study = read_study(HERE / "study.yaml")
    record = json.loads(OUT.read_text()) if OUT.is_file() else {"sample": {"blocks": SAMPLE.blocks, "rows": SAMPLE.rows}, "errors": {}}
    names = [str(CalibrationSet(text)) for text in study.data]
    sources = list(dict.fromkeys(str(part) for text in names for part in (CalibrationSet(text).mixed or (CalibrationSet(text),))))
    opened = open_model("smollm2", dtype=study.dtype)
    seen_by, target = view(opened.model), parse_target(0.6)
    budget = {"tokens": study.tokens, "length": study.length}
    # The second draw of what is held out: the first is what the study's losses are measured on.
    judges = [(text, CalibrationSet(text, seed=1, **budget).held_out().tokens(opened.tokenizer)) for text in DOMAINS]
    for method, built in METHODS.items():
        for seed in DRAWS:
            errors = record["errors"].setdefault(method, {})
            if str(seed) in errors:
                continue
            drawn = [(text, resolved(CalibrationSet(text, seed=seed, **budget), opened).tokens(opened.tokenizer)) for text in sources]
            kept = gather_statistics(opened, seen_by, built, drawn, judges, HERE / "results" / "statistics", Sample(0, 0), told)
            asked = [shares(text, sources, study.length) for text in names]
            found = Errors(kept.inputs(SAMPLE), built, target, kept.masses)(asked)
            errors[str(seed)] = {text: dict(zip(DOMAINS, map(float, row), strict=True)) for text, row in zip(names, found, strict=True)}
            put(OUT, (json.dumps(record, indent=1) + "\n").encode())
            print(f"{method}, draw {seed}: {len(names)} sets under {len(DOMAINS)} domains", flush=True)


def told(what: str, done: int, total: int) -> None:
    """Say what is finished."""
    if done == total:
        print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
