"""What the command line answers to the mistakes that a user most likely makes. The library's
sentences stand in each folder's test_wording.py.
"""

import shlex
from pathlib import Path

import pytest

from tests.cli.conftest import Ask

SAID = [
    (
        "prune MODEL --out out --data wikitxt",
        "there is no source called 'wikitxt', perhaps you mean 'wikitext'",
    ),
    ("prune MODEL --out out --data missing.jsonl", "there is no file 'missing.jsonl'"),
    (
        "prune MODEL --out out --data full_stops --method wnada",
        "there is no method called 'wnada', perhaps you mean 'wanda'",
    ),
    (
        "prune MODEL --out out --data full_stops --target 60",
        "60.0 is no sparsity, perhaps you mean 0.6",
    ),
    ("prune MODEL --out out --data full_stops --target w4g64", "use calibrant quantize"),
    ("prune MODEL --out out --samples few", "'few' is no whole number"),
    ("prune MODEL --out MODEL --data full_stops", "exists, isn't empty and isn't ours"),
    ("prune smolm2 --out out --data full_stops", "perhaps you mean 'smollm2'"),
    ("quantize MODEL --out out --target 0.5", "use calibrant prune"),
    (
        "quantize MODEL --out out --target w4g24",
        "has 32 inputs, which groups of 24 don't divide; choose w4g16",
    ),
    (
        "evaluate MODEL --task 'loss(source=mine.jsonl)'",
        "'mine.jsonl' isn't in quotes; a path or an expression in brackets stands in quotes, as in "
        "source='my/file.jsonl'",
    ),
    (
        "prune MODEL --data c4 --memory 4GB --out out",
        "'4GB' is no number; write one without a unit, such as 8",
    ),
    (
        "evaluate MODEL --task 'task(name=arithmetic)' --tokens 40",
        "use --limit for the number of items",
    ),
    ("export MODEL --to spare --out out", "perhaps you mean 'sparse'"),
    ("export MODEL --to compressed-tensors --out out", "perhaps you mean 'compressed_tensors'"),
    ("evaluate MODEL --task chat-form", "perhaps you mean 'chat_form'"),
    ("quantize MODEL --out out --target 4", "; 4 bits are written w4g64"),
    ("list methdos", "perhaps you mean 'methods'"),
    ("list --jsonn", "'calibrant list --help' shows what it takes"),
    ("list --quiet", "--quiet stands before the command, as in 'calibrant --quiet …'"),
    (
        "prune MODEL --out out --trust-remote-code",
        "--trust-remote-code stands before the command",
    ),
    ("evaluate MODEL --measure loss", "--measure is called --task now"),
    ("inspect c4 --measure loss", "No such option: --measure"),
    ("prune MODEL --sparsities 0.5", "No such option: --sparsities"),
    ("evaluate MODEL --task loss --out /proc/x.json", "'/proc/x.json' can't be written"),
    ("mix MODEL --sources c4", "a mixture needs two sources or more"),
    ("study gone.yaml --out out --quick", "--quick is for a plan; add --plan"),
    ("report . --dark", "--dark is for plots; give --plots DIR"),
    ("report . --json --format csv", "--json and --format csv are two formats; leave one out"),
    ("report .", "holds no results of calibrant"),
    (
        "study gone.yaml --out out",
        "the file can't be read (No such file or directory); name the YAML file of a study",
    ),
]


@pytest.mark.parametrize(("command", "sentence"), SAID)
def test_a_mistake_is_answered_with_what_to_do(
    ask_main: Ask, model: Path, command: str, sentence: str
):
    answer = ask_main(*shlex.split(command.replace("MODEL", str(model))))
    assert answer.code == 2
    assert sentence in answer.err
