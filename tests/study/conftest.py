"""What the tests of studies share and don't change: a model with two files of texts, and a study
of them that nothing interrupted.
"""

from pathlib import Path

import pytest

from tests.study.small import asked, texts


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The paths of a model and of two files of texts."""
    return texts(tmp_path_factory.mktemp("given") / "texts")


@pytest.fixture(scope="session")
def whole(given: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the study, computed without interruption."""
    folder = tmp_path_factory.mktemp("whole") / "store"
    finished = asked(given).run(folder)
    assert (finished.computed, finished.found, finished.failures) == (8 + 16, 0, {})
    return folder
