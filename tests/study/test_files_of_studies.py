"""The files of the project's own studies: each can be run as it stands, and asks what it says."""

from pathlib import Path

import pytest

from calibrant.lab.study import read_study

STUDIES = Path(__file__).parents[2] / "studies"
OURS = [path for path in STUDIES.rglob("*.yaml") if path.name != "study.yaml"]
FILES = sorted(path.relative_to(STUDIES).as_posix() for path in OURS)


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_read_without_a_mistake(name: str) -> None:
    assert read_study(STUDIES / name).requests()
