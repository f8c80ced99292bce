"""The files of the project's own studies: each can be run as it stands, and asks what it says."""

from pathlib import Path

import pytest

from calibrant.evaluators.agreement import Agreement
from calibrant.study import read_study

STUDIES = Path(__file__).parents[2] / "studies"
OURS = [path for path in STUDIES.rglob("*.yaml") if path.name != "study.yaml"]
FILES = sorted(path.relative_to(STUDIES).as_posix() for path in OURS)


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_read_without_a_mistake(name: str) -> None:
    assert read_study(STUDIES / name).requests()


def test_the_study_of_the_template_computes_each_cell_in_one_group() -> None:
    study = read_study(STUDIES / "template/qwen.yaml")
    compressed = [request for request in study.requests() if request.cell.data]
    assert len(compressed) == 7 * 6 * 3
    assert len(study.groups) == 5 * 3
    begun = [entry["seeds"] for entry in study.groups.values()]
    assert begun[:6] == [0, 0, 1, 1, 2, 2]
    measured = [one for one in study.evaluators().values() if isinstance(one, Agreement)]
    assert len(measured) == 5
    assert all(one.roles == (one.format == "chat") for one in measured)
    assert len(study.primary) == 5
