"""What the cross-source error says of the sets of study.yaml before any of them is used to prune.

    CALIBRANT_DATA=… python -m studies.choosing.predict
    # then:
    calibrant study studies/choosing/study.yaml --out studies/choosing/results

For each draw, each set is walked through once in the untouched model, and so is what each of the
six domains holds out. `predicted.json` gets the mean relative error of matrices, tr((W−Ŵ)G(W−Ŵ)ᵀ) /
tr(WGWᵀ), of every set under every domain, for Wanda and SparseGPT at 60 %. The statistics are
dense, also for SparseGPT, which the study prunes by arrival; those that the study has kept are
read. Killed and run again, it goes on. `compare.py` holds it against what was measured.
"""

from pathlib import Path
from typing import Final

from studies.predictions import Predicted, predict

from calibrant.lab.mixtures import Sample
from calibrant.lab.study import read_study
from calibrant.methods import StandIn
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.methods.pruning.wanda import Wanda
from calibrant.targets import parse_target

HERE: Final = Path(__file__).parent
DOMAINS: Final = ("c4", "pile", "redpajama", "wikipedia", "gsm8k:cot", "flores(language=fr)")
METHODS: Final = {"wanda": Wanda(), "sparsegpt": SparseGPT()}


def main() -> None:
    """Predict what isn't in the record yet."""
    study = read_study(HERE / "study.yaml")
    by = {
        name: Predicted(StandIn(method, parse_target(0.6)), Sample(10, 64))
        for name, method in METHODS.items()
    }
    predict(
        HERE / "predicted.json",
        study,
        study.data,
        dict.fromkeys(DOMAINS, 1),
        by,
        HERE / "results" / "statistics",
    )


if __name__ == "__main__":
    main()
