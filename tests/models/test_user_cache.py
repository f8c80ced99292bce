"""Where the user's cache is, and whether anything can be kept there."""

import os
from pathlib import Path

import pytest

from calibrant.models.cache import takes_files


def test_a_folder_takes_files_where_it_is_or_can_be_made(tmp_path: Path):
    assert takes_files(tmp_path)
    assert takes_files(tmp_path / "not" / "there")
    file = tmp_path / "file"
    file.touch()
    assert not takes_files(file)
    assert not takes_files(file / "below")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone")
    assert not takes_files(link), "a link to nowhere is no folder, and none can be made there"
    assert not takes_files(link / "below")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look everywhere")
def test_a_link_into_a_folder_that_may_not_be_looked_into_takes_none(tmp_path: Path):
    closed = tmp_path / "closed"
    (closed / "cache").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(closed / "cache")
    closed.chmod(0)
    assert not takes_files(link)
    closed.chmod(0o700)
