"""Files that commands write and read again are harmed, four hundred cases from one seed: what
comes out is the same, or is refused in a sentence.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.attack.harmed import Ended, Scene, candidates, case, commands, scenes

CASES: Final = 445
QUICK: Final = 16
"""So many cases are tried every time, and the others in `make slow`."""
PARTS: Final = 8
_listening: list[list[str]] = []
"""The lists to which paths are added that are opened: an audit hook can't be taken off again."""


def _heard(event: str, given: tuple[Any, ...]) -> None:
    if event == "open" and _listening and isinstance(given[0], str):
        for paths in _listening:
            paths.append(given[0])


sys.addaudithook(_heard)


@contextmanager
def opened() -> Iterator[list[str]]:
    """Yield a list to which every path is added that Python opens meanwhile."""
    paths: list[str] = []
    _listening.append(paths)
    try:
        yield paths
    finally:
        _listening.remove(paths)


class Ground:
    """All scenes, those of another seed, and what comes of the former when nothing is harmed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.every = scenes(folder / "one")
        self.others = scenes(folder / "other", seed=1)
        self.whole: dict[str, Any] = {}
        self.said: dict[str, str] = {}
        self.opened: dict[str, set[Path]] = {}
        for scene in self.every.values():
            ended = self._whole(scene)
            self.whole[scene.name], self.said[scene.name] = ended.result, ended.said

    def _whole(self, scene: Scene) -> Ended:
        here = self.folder / f"whole-{scene.name}"
        shutil.copytree(scene.folder, here, symlinks=True)
        with opened() as paths:
            ended = commands(here, scene.again, scene.result)
        assert ended.code == 0, (scene.name, ended)
        self.opened[scene.name] = {(here / path).resolve() for path in paths}
        return ended

    def broken(self, numbers: range) -> list[str]:
        """What is wrong with these cases."""
        found = (
            case(number, self.every, self.others, self.whole, self.folder) for number in numbers
        )
        return [what for what in found if what]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("CALIBRANT_DATA", raising=False)
        patched.setattr("calibrant.data.hub._chosen", [])
        yield Ground(tmp_path_factory.mktemp("ground"))


@pytest.mark.filterwarnings("ignore")
def test_a_harmed_file_gives_no_other_result(ground: Ground):
    assert ground.broken(range(QUICK)) == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.filterwarnings("ignore")
def test_four_hundred_harmed_files_give_no_other_result(ground: Ground, part: int):
    numbers = range(QUICK + part, CASES, PARTS)
    assert ground.broken(numbers) == []


def test_what_commands_open_is_among_what_is_harmed(ground: Ground):
    """Every file in a scene's folder may be harmed; here it is seen that commands read nothing
    of ours elsewhere.
    """
    read_here = 0
    for name, paths in ground.opened.items():
        strange = {
            path
            for path in paths
            if path.is_file() and not path.is_relative_to(ground.folder) and _ours(path)
        }
        assert strange == set(), name
        inside = ground.folder / f"whole-{name}"
        read_here += len(paths & {inside / path for path in candidates(ground.every[name])})
    assert read_here > 100, "the hook hears what is opened"


def _ours(path: Path) -> bool:
    """Whether a command may have written it: it is in a temporary folder, or in a cache of
    Calibrant's, and is no part of what is installed.
    """
    installed = (Path(sys.prefix).resolve(), Path(__file__).resolve().parents[2])
    if any(path.is_relative_to(place) for place in installed):
        return False
    cache = Path.home() / ".cache" / "calibrant"
    return path.is_relative_to(Path(tempfile.gettempdir()).resolve()) or path.is_relative_to(cache)


def test_nothing_is_said_to_be_damaged_that_is_not(ground: Ground):
    assert [name for name, said in ground.said.items() if "made again" in said] == []
