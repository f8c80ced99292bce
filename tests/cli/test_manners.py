"""What a user of other command lines expects: help with examples, versions, completion, plain text, quiet, and narrow windows."""

import re
import shlex

import pytest

from calibrant import __version__
from calibrant.cli import app
from calibrant.names import KINDS, catalogue, removing

from tests.cli.conftest import SMALL, Ask

COMMANDS = [
    "demo",
    "prune",
    "quantize",
    "evaluate",
    "study",
    "report",
    "inspect",
    "survey",
    "list",
    "mix",
    "recommend",
    "store verify",
    "store merge",
]


def test_the_version(ask: Ask):
    assert {ask(word).out for word in ("--version", "-V")} == {f"calibrant {__version__}\n"}


def test_every_command_has_help_with_examples_that_it_takes(ask_main: Ask):
    for command in COMMANDS:
        short, long = (ask_main(*command.split(), word, COLUMNS="60") for word in ("-h", "--help"))
        assert (short.code, short.out) == (0, long.out)
        body, _, examples = long.out.partition("\n  Examples:\n")
        assert max(map(len, body.splitlines())) <= 60, f"{command} --help is wider than its window"
        lines = examples.split("\n")
        assert examples, f"{command} --help has no example"
        for words in (shlex.split(line) for line in lines if line):
            assert words[0] == "calibrant"
            assert ask_main(*words[1:], "--help").code == 0, words
    listed = ask_main("--help", COLUMNS="60").out
    assert all(f"\n  {command.split()[0]} " in listed for command in COMMANDS)
    assert max(map(len, listed.splitlines())) <= 60
    assert app.info.no_args_is_help


def test_the_help_of_prune_says_what_each_method_is_good_for(ask_main: Ask):
    said = ask_main("prune", "--help", COLUMNS="200").out
    listed = said.partition("Methods:\n")[2].partition("Examples:")[0]
    assert re.findall(r"^  (\w+)  +\S", listed, re.MULTILINE) == [entry.name for entry in removing()]
    assert "arXiv" not in listed


def test_completion(ask_main: Ask):
    """The shell asks for the words that may follow; `--show-completion` prints what makes it ask."""
    answer = ask_main(_CALIBRANT_COMPLETE="complete_bash", COMP_WORDS="calibrant pr", COMP_CWORD="1")
    assert (answer.code, answer.out.split()) == (0, ["prune"])
    options = ask_main(_CALIBRANT_COMPLETE="complete_bash", COMP_WORDS="calibrant prune --sp", COMP_CWORD="2")
    assert options.out.split() == ["--sparsity"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("list pack", ["packings"]),
        ("prune m --method sparse", ["sparsegpt"]),
        ("quantize m --allocation uni", ["uniform"]),
        ("prune m --data gsm", ["gsm8k"]),
        ("prune m --data 0.5*c4+0.5*gsm8k:co", ["0.5*c4+0.5*gsm8k:cot"]),
        ("prune m --data gsm8k:cot@cr", ["gsm8k:cot@crop"]),
        ("mix m --sources least", ["least_perplexity"]),
        ("inspect wikip", ["wikipedia"]),
        ("survey wikip", ["wikipedia"]),
        ("inspect c4 --against wikip", ["wikipedia"]),
        ("evaluate m --task perp", ["perplexity"]),
        ("prune m --dtype bf", ["bfloat16"]),
        ("prune m --propagate ref", ["reference"]),
        ("prune m --export h", ["hf"]),
        ("report r --format mark", ["markdown"]),
        ("report r --as inc", ["increase"]),
        ("study s --engine r", ["ray"]),
    ],
)
def test_names_are_completed(ask_main: Ask, words: str, offered: list[str]):
    answer = ask_main(_CALIBRANT_COMPLETE="complete_bash", COMP_WORDS=f"calibrant {words}", COMP_CWORD=str(len(words.split())))
    assert (answer.code, answer.out.split(), answer.err) == (0, offered, "")


def test_with_no_color_nothing_is_written_but_characters(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    commands = (["list", "sources", "--long"], ["inspect", "random_tokens", "--samples", "2", "--length", "32"], ["--help"])
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1m" in ask(*commands[0]).out
    monkeypatch.setenv("NO_COLOR", "1")
    for words in commands:
        assert "\x1b" not in ask(*words).out, words


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [60, 80])
def test_a_list_is_a_table_that_fits(ask: Ask, monkeypatch: pytest.MonkeyPatch, kind: str, columns: int):
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = ask("list", kind).out.splitlines()
    assert max(map(len, lines)) <= columns
    for entry in catalogue(kind):
        assert any(line.split("  ")[0] == entry.name for line in lines), f"{entry.name} doesn't begin a line"
    long = ask("list", kind, "--long").out
    assert max(map(len, long.splitlines())) <= columns
    assert all(f"{name}=" in long or name in long for entry in catalogue(kind) for name in entry.parameters)


def test_a_list_says_in_short_what_a_name_is_and_at_length_what_is_known(ask: Ask):
    short, long = ask("list", "sources").out, ask("list", "sources", "-l").out
    row = next(line for line in short.splitlines() if line.startswith("gsm8k")).rstrip()
    assert row.rpartition("  ")[2] == "GSM8K: grade school word problems with worked solutions."
    assert "MIT" not in row
    assert "    licence: MIT\n    homepage: https://github.com/openai/grade-school-math\n" in long
    assert "commonsense_qa(rationales='ecqa', explained=False)" in long


def test_a_pipe_has_the_width_that_is_said(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "60")
    narrow = ask("inspect", "random_tokens", "--samples", "2", "--length", "32").out
    monkeypatch.setenv("COLUMNS", "")
    wide = ask("inspect", "random_tokens", "--samples", "2", "--length", "32").out
    assert max(map(len, narrow.splitlines())) <= 60 < max(map(len, wide.splitlines()))
    assert "".join(narrow.split()) == "".join(wide.split())
    monkeypatch.setenv("COLUMNS", "0")
    assert ask("inspect", "random_tokens", "--samples", "2", "--length", "32").out == wide, "a width of 0 is none"


def test_quiet_shows_results_and_errors_only(ask: Ask, model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # bars are drawn on terminals only, and this says that it is one
    loud, quiet = (ask(*before, "inspect", "random_tokens", "--model", model, *SMALL[2:]) for before in ((), ("-q",)))
    assert loud.err
    assert (quiet.code, quiet.err, quiet.out) == (0, "", loud.out)
    assert "'methdos'" in ask("--quiet", "list", "methdos").err
