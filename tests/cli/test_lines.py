"""Long work speaks without a terminal: every command that can last says lines on standard error, and nothing with --quiet."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from calibrant.progress import LASTING, ProgressLines
from calibrant.study import Study

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


COMMANDS = {
    "--quiet prune MODEL --out pruned --data python_docs --samples 4 --length 64 --dtype float32": "",
    "prune MODEL --out pruned --data python_docs --samples 4 --length 64 --dtype float32": "wanda 0.5 1/",
    "quantize MODEL --out rounded --target w4 --dtype float32": "rtn w4 1/",
    "evaluate MODEL --task loss(source=python_docs,tokens=4000,length=32) --dtype float32": "measuring loss(source='python_docs'",
    "inspect random_tokens --samples 4 --length 64 --model MODEL --dtype float32": "energy ",
    "survey python_docs random_tokens --model MODEL --tokens 64 --length 32": "survey 0/2",
    "mix MODEL --sources random_tokens --sources full_stops --tokens 256 --length 32 --dtype float32": "statistics ",
}


def lines_of(err: str) -> list[str]:
    lines = [line for line in err.splitlines() if line.startswith("[")]
    assert all("\x1b" not in line and "\r" not in line for line in lines)
    return lines


@pytest.mark.parametrize("command", COMMANDS)
def test_every_long_command_speaks_but_where_it_shall_be_quiet(ask: Ask, slow, model: Path, command: str):
    answer = ask(*(model if word == "MODEL" else word for word in command.split()))
    assert answer.code == 0, answer
    if command.startswith("--quiet"):
        assert answer.err == ""
    else:
        assert any(COMMANDS[command] in line for line in lines_of(answer.err)), answer.err


def test_a_study_speaks_and_so_does_what_is_done_to_its_store(ask: Ask, slow, model: Path, tmp_path: Path):
    loss = "loss(source='python_docs', tokens=100, length=32)"
    study = Study(model=str(model), data="random_tokens", samples=4, length=32, dtype="float32", evaluate=loss)
    (tmp_path / "study.yaml").write_text(study.as_yaml())
    for command, said in {
        "study study.yaml --out results": "study ",
        "store verify results": "verifying ",
        "store merge others results": "merging results ",
        "store pack results --out packed": "packing ",
        "store unpack packed --out again": "unpacking ",
    }.items():
        answer = ask(*command.split())
        assert answer.code == 0, answer
        assert any(said in line for line in lines_of(answer.err)), (command, answer.err)
