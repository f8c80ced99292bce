"""The command line in this process, and a tiny model to give it."""

import json
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


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Run a command in an empty folder, as `ask("prune", model, "--out", "here")`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    monkeypatch.setattr("calibrant.data._mirror._chosen", [])  # --data-dir is remembered for a whole process, which is many commands here

    def run(*words: object) -> Answer:
        found = CliRunner().invoke(app, [str(word) for word in words])
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return Answer(found.exit_code, found.stdout, found.stderr)

    return run


@pytest.fixture
def ask_outside(tmp_path: Path) -> Ask:
    """Run a command in a process of its own, after some code that may break something there on purpose."""

    def run(*words: object, before: str = "", **environment: str) -> Answer:
        code = f"import sys\n{before}\nfrom calibrant.cli import main\nsys.argv = ['calibrant', *{[str(word) for word in words]!r}]\nmain()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=_environment(environment),
            capture_output=True,
            encoding="utf-8",
            errors="backslashreplace",
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


def _environment(changes: dict[str, str]) -> dict[str, str]:
    import os

    kept = {k: v for k, v in os.environ.items() if not k.startswith("CALIBRANT")}
    return {**kept, "OMP_NUM_THREADS": "1", **changes}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama as a folder."""
    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


SMALL = shlex.split("--data python_docs --samples 4 --length 64 --dtype float32")
"""A calibration that takes no time."""
