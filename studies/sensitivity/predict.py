"""What `recommend` would predict for the sets of smollm2.yaml and own.yaml, from the untouched
model: python -m studies.sensitivity.predict [FOLDER]

For the methods of STRONG that have a stand-in, under the study's six domains and the three targets
that it hasn't (targets.yaml), on the sample of blocks and rows that `recommend` takes for the
method. FOLDER takes the statistics, some 15 GB. Killed and run again, it goes on. Needs a mirror of
the data sets (CALIBRANT_DATA).
"""

import sys
from pathlib import Path
from typing import Final

from studies.predictions import Predicted, predict
from studies.sensitivity.tables import STRONG

from calibrant.lab.mixtures.algebra import effort_of
from calibrant.lab.study import read_study
from calibrant.methods import methods
from calibrant.targets import parse_target

HERE: Final = Path(__file__).parent
OUT: Final = HERE / "predicted.json"
TARGETS: Final = {
    "c4": 1,
    "wikipedia": 1,
    "pile": 1,
    "python_code": 2,
    "gsm8k:cot": 1,
    "race": 1,
    "piqa": 1,
    "esnli": 1,
    "flores(language=fr)": 1,
}
"""Each target, and the draw of what it holds out that predicts: the first with no document that
is measured. The encyclopedia holds out five articles and all of them are measured, so its
prediction has seen them.
"""


def main(statistics: Path) -> None:
    """Predict what isn't in the record yet, and write it down draw by draw."""
    study = read_study(HERE / "smollm2.yaml")
    predicted_by: dict[str, Predicted] = {}
    for method, target in STRONG.items():
        stand_in = methods.build(method).stand_in(parse_target(target))
        if stand_in:
            predicted_by[method] = Predicted(stand_in, effort_of(stand_in.method).final)
    sets = [*study.data, *read_study(HERE / "own.yaml").data]
    predict(OUT, study, sets, TARGETS, predicted_by, statistics)


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else HERE / "statistics"
    main(folder)
