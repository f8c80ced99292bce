"""How commands end: quickly, interrupted, killed, or by a fault of ours."""

import json
import os
import shutil
import signal
import sys
import tomllib
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import typer

from calibrant.cli import main
from calibrant.compress.checkpoint import Checkpoint
from calibrant.errors import WalkError, WorkerError

from tests.cli.conftest import SMALL, Ask
from tests.study.small import ended, forked

PARTIAL = ".pruned.calibrant-partial"


def test_help_comes_without_torch(ask_outside: Ask):
    watched = (
        "import atexit\natexit.register(lambda: print(sorted({'torch', 'transformers', 'datasets', "
        "'numba', 'numpy'} & sys.modules.keys())))"
    )
    answer = ask_outside("--help", before=watched)
    assert answer.code == 0
    assert "evaluate" in answer.out
    assert answer.out.splitlines()[-1] == "[]"


def killed_after_two_blocks(words: Sequence[object]) -> int:
    """Run a command in a copy of this process, which is killed as soon as the second block is
    kept.
    """
    add = Checkpoint.add

    def add_and_die(self: Checkpoint, index: int, *rest: Any) -> None:
        add(self, index, *rest)
        if index == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    def command() -> None:
        Checkpoint.add = add_and_die
        sys.argv = ["calibrant", *map(str, words)]
        main()

    return ended(forked(command))


@pytest.mark.parametrize(
    "propagate",
    [
        "arrival",
        pytest.param("reference", marks=pytest.mark.slow),
        pytest.param("dense", marks=pytest.mark.slow),
    ],
)
def test_a_killed_prune_goes_on_and_ends_with_the_same_bytes(
    ask: Ask, model: Path, tmp_path: Path, propagate: str
):
    words = (
        "prune",
        model,
        "--out",
        "pruned",
        "--propagate",
        propagate,
        "--method",
        "sparsegpt",
        *SMALL,
    )
    assert killed_after_two_blocks(words) == -signal.SIGKILL
    assert sorted(p.name for p in tmp_path.iterdir()) == [PARTIAL], (
        "the folder that was asked for isn't there yet"
    )
    shutil.copytree(tmp_path / PARTIAL, tmp_path / ".other.calibrant-partial")

    again = ask(*words)
    assert again.code == 0, again.err
    assert "block 2" in again.out.partition("\n")[0]
    assert not (tmp_path / PARTIAL).exists(), "what an interruption leaves is cleared away"

    whole = ask(*("whole" if word == "pruned" else word for word in words))
    assert whole.code == 0, whole.err
    assert (tmp_path / "pruned/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()
    kept = [
        json.loads((tmp_path / name / "calibrant.json").read_text())["record"]
        for name in ("pruned", "whole")
    ]
    assert kept[0] | {"provenance": 0} == kept[1] | {"provenance": 0}

    other = ask(
        *("other" if word == "pruned" else word for word in words), "--target", "0.75", "--json"
    )
    assert other.code == 0, other.err
    assert (other.json["continued_from"], other.json["sparsity"]) == (0, pytest.approx(0.75)), (
        "another question starts anew"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "pruned", "whole"]


def test_an_interrupted_prune_says_how_to_go_on(
    ask: Ask, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "add", interrupt)
    answer = ask("prune", model, "--out", "pruned", *SMALL)
    assert (answer.code, answer.err) == (
        130,
        "interrupted; run the same command again to continue\n",
    )
    assert not (tmp_path / "pruned").exists()


def test_an_interruption_before_a_command_runs_is_no_fault_of_ours(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(typer.main, "get_command", interrupt)
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err) == (
        130,
        "interrupted; run the same command again to continue\n",
    )


class Interrupted(MetaPathFinder):
    """The user presses Ctrl-C while the command line is imported."""

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname == "calibrant.cli":
            raise KeyboardInterrupt


def test_an_interruption_while_commands_are_imported_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    entry = EntryPoint("calibrant", project["project"]["scripts"]["calibrant"], "console_scripts")
    monkeypatch.delitem(sys.modules, "calibrant.cli")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        entry.load()()
    assert (ended.value.code, capsys.readouterr().err) == (
        130,
        "interrupted; run the same command again to continue\n",
    )


def test_workers_that_all_died_are_no_fault_of_ours(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    def die(*_: object) -> None:
        raise WorkerError("process 7 died; give workers more memory", subject="process 7")

    monkeypatch.setattr("calibrant.names.catalogue", die)
    answer = ask("list", "methods")
    assert (answer.code, answer.err) == (1, "process 7 died; give workers more memory\n")


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrant.names.catalogue", lambda kind: kind / 2)


def test_a_fault_of_ours_is_one_line_and_exit_1_and_debug_shows_the_traceback(
    ask_main: Ask, faulty
):
    answer = ask_main("list", "methods")
    assert answer.code == 1
    assert answer.err.startswith("TypeError: ")
    assert "CALIBRANT_DEBUG=1" in answer.err
    assert answer.err.count("\n") == 1
    assert ask_main("list", "methods", CALIBRANT_DEBUG="0") == answer
    for debugged in (
        ask_main("list", "methods", CALIBRANT_DEBUG="1"),
        ask_main("--debug", "list", "methods"),
    ):
        assert debugged.code == 1
        assert debugged.err.startswith("Traceback")


def test_debug_shows_where_input_was_refused(ask_main: Ask):
    answer = ask_main("--debug", "list", "methdos")
    assert (answer.code, answer.err.split()[0]) == (2, "Traceback")
    assert "'methdos'" in answer.err.splitlines()[-1]


def test_trust_is_a_variable_so_that_every_process_has_it(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(
        "CALIBRANT_TRUST_REMOTE_CODE", ""
    )  # set first, so that whatever the command sets goes with the test
    monkeypatch.delenv("CALIBRANT_TRUST_REMOTE_CODE")
    seen: list[str | None] = []
    monkeypatch.setattr(
        "calibrant.names.catalogue",
        lambda _: seen.append(os.environ.get("CALIBRANT_TRUST_REMOTE_CODE")) or [],
    )
    ask("list", "methods")
    ask("--trust-remote-code", "list", "methods")
    monkeypatch.setenv("CALIBRANT_TRUST_REMOTE_CODE", "true")
    ask("list", "methods")
    assert seen == [None, "1", "1"]


def test_a_forward_that_cannot_be_followed_is_our_fault(
    ask_main: Ask, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def refuse(*_: object, **__: object) -> None:
        raise WalkError("block 3 can't be followed", subject="block 3")

    monkeypatch.setattr("calibrant.walk.walking.rehearse", refuse)
    answer = ask_main("prune", model, "--out", "pruned", *SMALL)
    assert answer.code == 1
    assert "WalkError: block 3" in answer.err
    assert not list(tmp_path.iterdir())
