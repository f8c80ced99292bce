"""What torchrun tells a process, and what it would never tell: one sentence and exit code 2,
before any work.
"""

import sys
from pathlib import Path

import pytest

from calibrant.cli import main
from calibrant.errors import InputError
from calibrant.system.launch import Launch, launched
from calibrant.walk.ranks import ALONE, joined

from tests.refusing import refused

TOLD = {
    "TORCHELASTIC_RUN_ID": "1",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
WRONG = [
    ({"WORLD_SIZE": "y"}, "WORLD_SIZE"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE"),
    ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE"),
    ({"WORLD_SIZE": "²"}, "WORLD_SIZE"),
    ({"WORLD_SIZE": None}, "WORLD_SIZE"),
    ({"RANK": "-1"}, "RANK"),
    ({"RANK": "2"}, "RANK"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK"),
    ({"MASTER_ADDR": None}, "MASTER_ADDR"),
    ({"MASTER_PORT": "70000"}, "MASTER_PORT"),
]


def tell(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]) -> None:
    for name, value in (TOLD | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("changes", "variable"), WRONG)
def test_what_torchrun_would_never_tell_is_refused_before_any_work(
    changes: dict[str, str | None],
    variable: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    tell(monkeypatch, changes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["calibrant", "prune", "a-model", "--data", "c4", "--out", "out"]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert len(err) < 300
    assert not list(tmp_path.iterdir())
    with refused(InputError, variable), joined():
        pass


def test_what_torchrun_tells_is_read(monkeypatch: pytest.MonkeyPatch):
    tell(monkeypatch, {})
    assert launched() == Launch(rank=1, size=2, local_rank=1)
    tell(monkeypatch, {"TORCHELASTIC_RUN_ID": None, "WORLD_SIZE": "y", "RANK": "-1"})
    assert launched() is None, "other launchers have variables of these names too"
    with joined() as ranks:
        assert ranks is ALONE
