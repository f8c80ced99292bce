"""Stores of older formats are converted: same ids, same values to the bit.

`old.zip` holds what earlier versions wrote of the samples: `first` in format 1, `loose` in format
2, `packed` in format 3 with a newer run in a folder beside the tables.
"""

import shutil
from pathlib import Path

import pytest
from tools.convert_store import convert

from calibrant.errors import OutputError
from calibrant.results import Store, pack, verify

from tests.refusing import refused
from tests.results.conftest import files, told, varied

OLD = Path(__file__).parent / "old.zip"


@pytest.fixture(params=["first", "loose", "packed"])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    shutil.unpack_archive(OLD, tmp_path / "old")
    return tmp_path / "old" / request.param


def test_an_older_store_is_converted_to_the_bit(old: Path, tmp_path: Path):
    before = files(old)
    expected = told(varied(tmp_path / "expected"))
    assert convert(old, tmp_path / "new") == (2, 6)
    assert told(tmp_path / "new") == expected
    assert verify(tmp_path / "new") == []
    assert files(old) == before
    with Store(tmp_path / "new", create=False) as store:
        assert store.study_text() == "models: [tiny]\n"
    pack(tmp_path / "new", tmp_path / "packed")
    assert told(tmp_path / "packed") == expected


def test_an_older_store_is_refused_until_then(old: Path):
    before = files(old)
    for create in (False, True):
        with refused(OutputError, old):
            Store(old, create)
    assert files(old) == before
