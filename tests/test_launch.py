"""What torchrun tells a process, and what it would never tell: one sentence and exit code 2, before any work."""

import sys
from pathlib import Path

import pytest

from calibrant.cli import main
from calibrant.errors import InputError
from calibrant.launch import Launch, launched
from calibrant.walk.ranks import ALONE, _Together, joined

TOLD = {
    "TORCHELASTIC_RUN_ID": "1",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
WRONG = [
    ({"WORLD_SIZE": "y"}, "WORLD_SIZE is 'y', and must be a whole number from 1 to 1048576; torchrun sets it"),
    ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
    ({"WORLD_SIZE": "9" * 5000}, "WORLD_SIZE is '999"),
    ({"WORLD_SIZE": "²"}, "WORLD_SIZE is '²'"),
    ({"WORLD_SIZE": None}, "WORLD_SIZE isn't set; torchrun sets it"),
    ({"RANK": "-1"}, "RANK is '-1', and must be a whole number from 0 to 1;"),
    ({"RANK": "2"}, "RANK is '2', and must be a whole number from 0 to 1;"),
    ({"RANK": None}, "RANK isn't set"),
    ({"LOCAL_RANK": "x"}, "LOCAL_RANK is 'x'"),
    ({"LOCAL_RANK": ""}, "LOCAL_RANK is ''"),
    ({"LOCAL_RANK": None}, "LOCAL_RANK isn't set"),
    ({"MASTER_ADDR": None}, "MASTER_ADDR isn't set"),
    ({"MASTER_PORT": "http"}, "MASTER_PORT is 'http'"),
    ({"MASTER_PORT": "70000"}, "MASTER_PORT is '70000'"),
    (dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")), "WORLD_SIZE isn't set"),
]


def tell(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str | None]) -> None:
    for name, value in (TOLD | changes).items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[said[:28] for _, said in WRONG])
def test_what_torchrun_would_never_tell_is_a_sentence(
    changes: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    tell(monkeypatch, changes)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["calibrant", "prune", "a-model", "--data", "c4", "--out", "out"])
    with pytest.raises(SystemExit, match="2"):
        main()
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[: len(said)]) == ("", 1, said)
    assert len(err) < 300
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError) as caught, joined():
        pass
    assert f"{caught.value}\n" == err


def test_what_torchrun_tells_is_read(monkeypatch: pytest.MonkeyPatch):
    tell(monkeypatch, {})
    assert launched() == Launch(rank=1, size=2, local_rank=1)
    tell(monkeypatch, {"TORCHELASTIC_RUN_ID": None, "WORLD_SIZE": "y", "RANK": "-1"})
    assert launched() is None, "other launchers have variables of these names too"
    with joined() as ranks:
        assert ranks is ALONE


def test_a_place_on_the_machine_is_a_number(monkeypatch: pytest.MonkeyPatch):
    """A process group may be the user's own, with no torchrun."""
    one = object.__new__(_Together)
    one.rank = 3
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert one.device("cuda") == "cuda:3"
    monkeypatch.setenv("LOCAL_RANK", "x")
    with pytest.raises(InputError, match="LOCAL_RANK is 'x'"):
        one.device("cuda")
