"""Which folders a store may be made in."""

from pathlib import Path

import pytest

from calibrant.errors import OutputError
from calibrant.store import Store


def test_a_folder_of_statistics_alone_is_ours(tmp_path: Path):
    for name in ("a" * 64, "b" * 64 + "-piece-03"):
        (tmp_path / "statistics" / name).mkdir(parents=True)
    assert Store(tmp_path).cells() == []


@pytest.mark.parametrize("name", ["report.csv", "a" * 63, "a" * 64 + ".txt"])
def test_a_user_s_own_folder_called_statistics_is_not(tmp_path: Path, name: str):
    (tmp_path / "statistics" / name).mkdir(parents=True)
    with pytest.raises(OutputError, match="isn't empty and isn't ours"):
        Store(tmp_path)
