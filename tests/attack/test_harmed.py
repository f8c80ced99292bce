"""Files that commands write and read again are harmed, four hundred cases from one seed: what comes out is the same, or is refused in a sentence."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.attack.harmed import Scene, case, commands, scenes

CASES = 400
QUICK = 39
PARTS = 8


class Ground:
    """All scenes, those of another seed, and what comes of the former when nothing is harmed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.every = scenes(folder / "one")
        self.others = scenes(folder / "other", seed=1)
        self.whole = {name: self._whole(scene) for name, scene in self.every.items()}

    def _whole(self, scene: Scene) -> Any:
        import shutil

        here = self.folder / f"whole-{scene.name}"
        shutil.copytree(scene.folder, here, symlinks=True)
        ended = commands(here, scene.again, scene.result)
        assert ended.code == 0, (scene.name, ended)
        return ended.result

    def broken(self, numbers: range) -> list[str]:
        """What is wrong with these cases."""
        found = (case(number, self.every, self.others, self.whole, self.folder) for number in numbers)
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
    numbers = range(QUICK + part * CASES // PARTS, QUICK + (part + 1) * CASES // PARTS)
    assert ground.broken(numbers) == []
