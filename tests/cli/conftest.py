"""The command line in this process, and a tiny model to give it."""

import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.testing import tiny_folder


@dataclass(frozen=True)
class Answer:
    """What a command said, and with which code it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Ask = Callable[..., Answer]


def assert_refused(answer: Answer, *given: object) -> None:
    """The input was at fault: exit 2 and one sentence, in which what was given stands."""
    assert (answer.code, answer.out) == (2, ""), answer
    assert answer.err.endswith("\n")
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.err
    for value in given:
        assert str(value) in answer.err, answer.err


class SetClock:
    """A clock that moves when a test says so: progress says a line only of what lasts."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    clock = SetClock()
    monkeypatch.setattr("calibrant.cli._frame.clock", clock)
    return clock


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run a command in an empty folder, as `ask("prune", model, "--out", "here")`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    monkeypatch.setattr(
        "calibrant.data.hub._chosen", []
    )  # --data-dir is remembered for a whole process, which is many commands here

    def run(*words: object) -> Answer:
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return Answer(found.exit_code, found.stdout, found.stderr)

    return run


@pytest.fixture
def ask_main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run the whole command line with all that `main` does around a command, in this process;
    the console has an encoding of its own.
    """
    from calibrant.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("calibrant.cli._frame.own_process", lambda: None)
    monkeypatch.setattr(
        sys, "excepthook", sys.excepthook
    )  # main sets it; it is put back after the test

    def run(*words: object, encoding: str = "utf-8", **environment: str) -> Answer:
        streams = [io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2)]
        with monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("CALIBRANT")]:
                patch.delenv(name)
            patch.setenv(
                "CALIBRANT_DEBUG", ""
            )  # set first, so that what --debug sets goes with the context
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["calibrant", *map(str, words)])
            patch.setattr(sys, "stdout", streams[0])
            patch.setattr(sys, "stderr", streams[1])
            try:
                main()
                code = 0
            except SystemExit as stopped:
                code = (
                    stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
                )
            except Exception as error:  # noqa: BLE001  # what Python itself does with an exception that nobody caught
                sys.excepthook(type(error), error, error.__traceback__)
                code = 1
        out, err = (
            stream.buffer.getvalue().decode(encoding, "backslashreplace") for stream in streams
        )  # pyright: ignore[reportAttributeAccessIssue]
        return Answer(code, out, err)

    return run


@pytest.fixture
def ask_outside(tmp_path: Path) -> Ask:
    """Run a command in a process of its own, after some code: to be killed there, or to see what
    is imported.
    """

    def run(*words: object, before: str = "") -> Answer:
        code = (
            f"import sys\n{before}\nfrom calibrant.cli import main\nsys.argv = ['calibrant', "
            f"*{[str(word) for word in words]!r}]\nmain()"
        )
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("CALIBRANT")
        } | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama as a folder."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


SMALL = shlex.split("--data python_docs --samples 4 --length 64 --dtype float32")
"""A calibration that takes no time."""
