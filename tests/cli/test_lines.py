"""Long work speaks without a terminal: commands that can last say lines on standard error, and
nothing with --quiet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from calibrant.system.progress import LASTING, ProgressLines

from tests.cli.conftest import Ask, SetClock


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, clock: SetClock) -> None:
    """Each report of progress comes long after the one before, and the clock is looked at then."""

    @contextmanager
    def watching(lines: ProgressLines) -> Iterator[Callable[[str, int, int], None]]:
        def update(what: str, done: int, total: int) -> None:
            clock.now += LASTING
            lines.look()
            lines.update(what, done, total)
            clock.now += LASTING
            lines.look()

        yield update

    monkeypatch.setattr(ProgressLines, "watching", watching)


PRUNE = "prune MODEL --out pruned --data python_docs --samples 4 --length 64 --dtype float32"
COMMANDS = {
    f"--quiet {PRUNE}": "",
    PRUNE: "wanda 0.5 1/",
    "survey python_docs random_tokens --model MODEL --tokens 64 --length 32": "survey 0/2",
}


def lines_of(err: str) -> list[str]:
    lines = [line for line in err.splitlines() if line.startswith("[")]
    assert all("\x1b" not in line and "\r" not in line for line in lines)
    return lines


@pytest.mark.parametrize("command", COMMANDS)
def test_long_commands_speak_but_where_they_shall_be_quiet(
    ask: Ask, slow, model: Path, command: str
):
    answer = ask(*(model if word == "MODEL" else word for word in command.split()))
    assert answer.code == 0, answer
    if command.startswith("--quiet"):
        assert answer.err == ""
    else:
        assert any(COMMANDS[command] in line for line in lines_of(answer.err)), answer.err
