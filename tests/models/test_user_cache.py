"""Where the user's cache is, and whether anything can be kept there."""

from pathlib import Path

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
