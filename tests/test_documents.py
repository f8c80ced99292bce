"""What the README and the docs say is so."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import calibrant
from calibrant.cli import app
from calibrant.testing import tiny_folder

PROJECT = Path(__file__).parents[1]
ROOT = Path(calibrant.__file__).parent
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [content for named, content in found if named == language]


def test_every_module_says_what_it_is_for():
    """The first line of its docstring; the page of modules is made of them."""
    texts = {path.relative_to(ROOT): path.read_text() for path in ROOT.rglob("*.py")}
    silent = [path for path, text in texts.items() if text.strip() and not ast.get_docstring(ast.parse(text))]
    assert not silent


def test_the_floors_that_are_told_are_those_that_are_checked():
    from tests.test_floors import FLOORS

    rows = re.findall(r"^\| (\d) \| (.*?) \|", (PROJECT / "docs/architecture.md").read_text(), flags=re.MULTILINE)
    told = {int(number): set(re.findall(r"`(\w+)/?`", rooms)) for number, rooms in rows}
    assert told == {number: set(rooms) for number, rooms in enumerate(FLOORS)}


def test_commands_exist_with_these_options():
    for page in PAGES:
        lines = [line.removeprefix("$ ") for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ calibrant")]
        for line in lines:
            answer = CliRunner().invoke(app, [*shlex.split(line, comments=True)[1:], "--help"])
            assert answer.exit_code == 0, f"{page.name}: {line}: {answer.output}"


def test_make_targets_exist():
    makefile = (PROJECT / "Makefile").read_text()
    for page in PAGES:
        for target in re.findall(r"make (\w+)`", page.read_text()):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


SMALLER = {'"smollm2"': '"tiny"', 'out="pruned"': 'out="pruned", samples=4, length=64', "')\"": "', tokens=256, length=64)\""}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda p: p.name)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In order, in one folder; on a tiny model and little data, so that it takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    tiny_folder("tiny")
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        if block.startswith("for weight, seen in walk("):  # the loop as a reader of the architecture sees it, without what stands before it
            continue
        for full, small in SMALLER.items():
            block = block.replace(full, small)
        exec(compile(block, page.name, "exec"), names)
    if "opened" in names:
        matrix = calibrant.view(names["opened"].model).weights[0].get()  # pyright: ignore[reportAttributeAccessIssue]
        assert (matrix == 0).double().mean() == 0.5
