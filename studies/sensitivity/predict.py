"""What `recommend` would predict for the sets of smollm2.yaml and own.yaml, from the untouched model: python -m studies.sensitivity.predict [FOLDER]

For the methods of STRONG that have a stand-in, under the study's six domains and the three targets that it hasn't (targets.yaml). FOLDER takes the
statistics, some 15 GB. Killed and run again, it goes on. Needs a mirror of the data sets (CALIBRANT_DATA).
"""

import sys
from pathlib import Path
from typing import Final

from studies.predictions import predict
from studies.sensitivity.tables import STRONG

from calibrant.methods import methods
from calibrant.study import read_study
from calibrant.targets import parse_target

HERE: Final = Path(__file__).parent
OUT: Final = HERE / "predicted.json"
TARGETS: Final = ("c4", "wikipedia", "pile", "python_code", "gsm8k:cot", "race", "piqa", "esnli", "flores(language=fr)")


def main(statistics: Path) -> None:
    """Predict what isn't in the record yet, and write it down draw by draw."""
    study = read_study(HERE / "smollm2.yaml")
    standing = {name: methods.build(name).stand_in(parse_target(target)) for name, target in STRONG.items()}
    sets = [*study.data, *read_study(HERE / "own.yaml").data]
    predict(OUT, study, sets, TARGETS, {name: found for name, found in standing.items() if found}, statistics)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else HERE / "statistics")
