"""What a user of other command lines expects: help with examples, versions, completion, plain text, quiet, and narrow windows."""

import re
import shlex

import pytest

from calibrant import __version__
from calibrant.cli import app

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


def test_completion(ask_main: Ask):
    """The shell asks for the words that may follow; `--show-completion` prints what makes it ask."""
    answer = ask_main(_CALIBRANT_COMPLETE="complete_bash", COMP_WORDS="calibrant pr", COMP_CWORD="1")
    assert (answer.code, answer.out.split()) == (0, ["prune"])
    options = ask_main(_CALIBRANT_COMPLETE="complete_bash", COMP_WORDS="calibrant prune --sp", COMP_CWORD="2")
    assert options.out.split() == ["--sparsity"]


def test_nothing_is_coloured_against_the_will(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    coloured = re.compile(r"\x1b\[[0-9;]*\b[349][0-7]\b")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    for words in (["list", "sources"], ["inspect", "random_tokens", "--samples", "2", "--length", "32"], ["--help"]):
        assert not coloured.search(ask(*words).out), words


def test_quiet_shows_results_and_errors_only(ask: Ask, model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # bars are drawn on terminals only, and this says that it is one
    loud, quiet = (ask(*before, "inspect", "random_tokens", "--model", model, *SMALL[2:]) for before in ((), ("-q",)))
    assert loud.err
    assert (quiet.code, quiet.err, quiet.out) == (0, "", loud.out)
    assert "'methdos'" in ask("--quiet", "list", "methdos").err
