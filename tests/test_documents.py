"""What the README and the docs say is so, and so are the examples in docstrings."""

import ast
import doctest
import importlib
import re
import shlex
from pathlib import Path

import datasets
import pytest
from tools import imports
from typer.core import TyperGroup
from typer.main import get_command

import calibrant
from calibrant.cli import app
from calibrant.testing import tiny_folder

PROJECT = Path(__file__).parents[1]
ROOT = Path(calibrant.__file__).parent
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
PAGES = [PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md"))]
HISTORY = {PROJECT / "docs/log", PROJECT / "docs/findings"}
"""Folders of pages that say how things were when something was measured."""


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [content for named, content in found if named == language]


def test_commands_exist_with_these_options():
    lines = set[str]()
    for page in PAGES:
        whole_lines = page.read_text().replace("\\\n", " ")
        lines.update(re.findall(r"^\$ calibrant.*$", whole_lines, re.MULTILINE))
    assert lines
    for line in sorted(lines):
        command, words = get_command(app), shlex.split(line, comments=True)[2:]
        while isinstance(command, TyperGroup):
            _, found, words = command.resolve_command(command.context_class(command), words)
            assert found is not None, line
            command = found
        command.make_parser(command.context_class(command)).parse_args(
            words
        )  # which raises for an option that there isn't


def test_files_that_pages_name_exist():
    for page in PAGES:
        if page.parent in HISTORY:
            continue
        for name in re.findall(r"`(?:src/)?(calibrant/[\w/]+\.py)`", page.read_text()):
            assert (ROOT.parent / name).is_file(), f"{page.name} names {name}"


def test_each_row_of_where_do_i_change_names_one_file_that_exists():
    rows = re.findall(
        r"^\| (.*?) \| (.*?) \|", (PROJECT / "docs/where.md").read_text(), re.MULTILINE
    )
    places = {what: place for what, place in rows if "`" in place}
    assert len(places) >= 15
    for what, place in places.items():
        assert (PROJECT / place.strip("`")).is_file(), f"{what}: {place}"


def test_the_picture_of_imports_shows_every_room_and_no_line_that_follows_from_others():
    drawn = imports.picture()
    for name in imports.rooms_and_imports():
        assert f">{name.removeprefix('lab.')}</text>" in drawn
    graph = {"top": {"middle", "ground"}, "middle": {"ground"}, "ground": set[str]()}
    assert imports.without_shortcuts(graph) == {
        "top": {"middle"},
        "middle": {"ground"},
        "ground": set(),
    }


SMALLER = {
    r'"(smollm2|my-model)"': '"tiny"',
    r'^name = "[^"]+"': 'name = "tiny"',
    r"w4g128": "w4g16",
    r'out="pruned"': 'out="pruned", samples=4, length=64',
    r'data="(c4|pile|gsm8k:chat)"': 'data="python_docs", samples=4, length=64',
    r"data=rows": r"data=rows, length=64",
    r"tokens=8192": "tokens=512, length=64",
    r"'\)\"": "', tokens=256, length=64)\"",
}
"""Patterns, and what takes seconds in the place of what they match."""


def small_data_set(name: str, **_: object) -> datasets.Dataset:
    """Stands for `datasets.load_dataset`: texts, or the conversations of UltraChat."""
    texts = [f"On day {day} of the year it rained for an hour." for day in range(365)]
    if "ultrachat" not in name:
        return datasets.Dataset.from_dict({"text": texts})
    question = {"role": "user", "content": "How was the weather?"}
    conversations = [[question, {"role": "assistant", "content": text}] for text in texts]
    return datasets.Dataset.from_dict({"messages": conversations})


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page, "python")], ids=lambda p: p.name
)
def test_examples_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In order, in one folder; on a tiny model and little data, so that it takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    tiny_folder("tiny")
    small_data_set("notes").to_json("notes.jsonl")
    monkeypatch.setattr("datasets.load_dataset", small_data_set)
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        if block.startswith(
            "for weight, seen in walk("
        ):  # the loop as a reader of the architecture sees it, without what stands before it
            continue
        for full, small in SMALLER.items():
            block = re.sub(full, small, block, flags=re.MULTILINE)
        exec(compile(block, page.name, "exec"), names)
    if "opened" in names:
        matrix = calibrant.view(names["opened"].model).weights[0].get()  # pyright: ignore[reportAttributeAccessIssue]
        assert (matrix == 0).double().mean() == 0.5


def test_no_quickstart_is_longer_than_the_other_tool_has_it():
    page = PROJECT / "docs/from_other_tools.md"
    table = re.findall(r"^\| ([\w-]+) \| (\d+) \| (\d+) \|$", page.read_text(), re.MULTILINE)
    theirs, ours = blocks(page, "py"), blocks(page, "python")
    assert len(table) == 4
    for (tool, lines, lines_here), other, own in zip(table, theirs, ours, strict=True):
        assert int(lines) == lines_of_code(other), tool
        assert int(lines_here) == lines_of_code(own), tool
        assert int(lines_here) <= int(lines), tool
        ast.parse(other)
        used = set(re.findall(r"calibrant\.(\w+)", own))
        assert used, tool
        assert used <= set(calibrant.__all__), tool


def lines_of_code(block: str) -> int:
    return len([line for line in block.splitlines() if line.strip()])


def test_examples_in_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    finder, runner = (
        doctest.DocTestFinder(exclude_empty=True),
        doctest.DocTestRunner(verbose=False, optionflags=OPTIONS),
    )
    wrong: list[str] = []
    for path in sorted(path for path in ROOT.rglob("*.py") if ">>> " in path.read_text()):
        name = ".".join(["calibrant", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(
            ".__init__"
        )
        for test in finder.find(importlib.import_module(name), name):
            runner.run(test, out=wrong.append, clear_globs=True)
    assert runner.tries
    assert not wrong, "".join(wrong)
