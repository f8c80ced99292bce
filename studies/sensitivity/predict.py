"""What `recommend` would predict for the sets of smollm2.yaml, from the untouched model alone: python -m studies.sensitivity.predict

For each method, draw and set the mean relative error of matrices under what each target holds out, tr((W−Ŵ)G(W−Ŵ)ᵀ) / tr(WGWᵀ), by the method's own
stand-in: what `recommend` ranks candidates by. The targets are the study's six domains, and three that it hasn't (targets.yaml). Their text is the
second draw of what is held out; the first is what is measured. Killed and run again, it goes on. Needs a mirror of the data sets (CALIBRANT_DATA).
"""

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Final

from studies.sensitivity.tables import STRONG

from calibrant.data import CalibrationSet
from calibrant.durable import put
from calibrant.errors import DataError
from calibrant.methods import methods
from calibrant.mixtures import Errors, Sample, gather_statistics
from calibrant.models import open_model, view
from calibrant.select import resolved
from calibrant.study import read_study
from calibrant.targets import parse_target

HERE: Final = Path(__file__).parent
OUT: Final = HERE / "predicted.json"
TARGETS: Final = ("c4", "wikipedia", "pile", "python_code", "gsm8k:cot", "race", "piqa", "esnli", "flores(language=fr)")
SAMPLE: Final = Sample(blocks=10, rows=64)
"""The blocks and rows that are compared, as in studies/choosing."""


def main(statistics: Path) -> None:
    """Predict what isn't in the record yet, and write it down draw by draw."""
    study = read_study(HERE / "smollm2.yaml")
    asked = {"sample": {"blocks": SAMPLE.blocks, "rows": SAMPLE.rows}, "targets": list(TARGETS), "strengths": dict(STRONG)}
    record = json.loads(OUT.read_text("utf-8")) if OUT.is_file() else {**asked, "errors": {}}
    if {name: record.get(name) for name in asked} != asked:
        raise DataError(f"{OUT.name} was predicted for other targets, strengths or samples; delete it first", subject=OUT.name)
    opened = open_model("smollm2", dtype=study.dtype)
    seen_by, budget = view(opened.model), {"tokens": study.tokens, "length": study.length}
    judges = [(text, CalibrationSet(text, seed=1, **budget).held_out().tokens(opened.tokenizer)) for text in TARGETS]
    names = [str(CalibrationSet(text)) for text in study.data]
    for seed in study.seeds:
        drawn = [(text, resolved(CalibrationSet(text, seed=seed, **budget), opened).tokens(opened.tokenizer)) for text in names]
        for name, aim in STRONG.items():
            errors, standing = record["errors"].setdefault(name, {}), methods.build(name).stand_in(parse_target(aim))
            if standing is None or str(seed) in errors:
                continue
            kept = gather_statistics(opened, seen_by, standing.method, drawn, judges, statistics, Sample(0, 0), told)
            alone = [tuple(Fraction(int(text == other)) for other in names) for text in names]
            found = Errors(kept.inputs(SAMPLE), standing.method, standing.target, kept.masses)(alone)
            errors[str(seed)] = {text: dict(zip(TARGETS, map(float, row), strict=True)) for text, row in zip(names, found, strict=True)}
            put(OUT, (json.dumps(record, indent=1) + "\n").encode())
            print(f"{name}, draw {seed}: {len(names)} sets under {len(TARGETS)} targets", flush=True)


def told(what: str, done: int, total: int) -> None:
    """Say what is finished."""
    if done == total:
        print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE / "statistics")
