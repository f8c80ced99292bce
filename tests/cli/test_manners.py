"""What a user of other command lines expects: help with examples, versions, completion, plain
text, and quiet.
"""

import shlex

import pytest

from calibrant import __version__

from tests.cli.conftest import SMALL, Ask, assert_refused

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
        answer = ask_main(*command.split(), "--help")
        assert answer.code == 0
        examples = answer.out.partition("\n  Examples:\n")[2]
        assert examples, f"{command} --help has no example"
        for words in (shlex.split(line) for line in examples.splitlines() if line):
            assert words[0] == "calibrant"
            options = [word for word in words if word.startswith("--")]
            assert all(option.partition("=")[0] in answer.out for option in options), words
    listed = ask_main("-h", COLUMNS="60").out
    assert all(f"\n  {command.split()[0]} " in listed for command in COMMANDS)
    assert max(map(len, listed.splitlines())) <= 60


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("pr", ["prune"]),
        ("prune m --tar", ["--target"]),
        ("list pack", ["packings"]),
        ("prune m --method sparse", ["sparsegpt"]),
        ("prune m --data 0.5*c4+0.5*gsm8k:co", ["0.5*c4+0.5*gsm8k:cot"]),
        ("prune m --dtype bf", ["bfloat16"]),
    ],
)
def test_names_are_completed(ask_main: Ask, words: str, offered: list[str]):
    answer = ask_main(
        _CALIBRANT_COMPLETE="complete_bash",
        COMP_WORDS=f"calibrant {words}",
        COMP_CWORD=str(len(words.split())),
    )
    assert (answer.code, answer.out.split(), answer.err) == (0, offered, "")


def test_with_no_color_nothing_is_written_but_characters(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    commands = (["list", "packings", "--long"], ["--help"])
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1m" in ask(*commands[0]).out
    monkeypatch.setenv("NO_COLOR", "1")
    for words in commands:
        assert "\x1b" not in ask(*words).out, words


def test_quiet_shows_results_and_errors_only(ask: Ask, model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(
        "FORCE_COLOR", "1"
    )  # bars are drawn on terminals only, and this says that it is one
    loud, quiet = (
        ask(*before, "inspect", "random_tokens", "--model", model, *SMALL[2:])
        for before in ((), ("-q",))
    )
    assert loud.err
    assert (quiet.code, quiet.err, quiet.out) == (0, "", loud.out)
    assert_refused(ask("--quiet", "list", "methdos"), "'methdos'")
