"""What is wrong with calibration data is said on standard error and in the record: fewer tokens
than the model has inputs, once for each set of a study, and what of a user's file isn't used.
"""

import json
import shlex
from pathlib import Path

import pytest

from calibrant.models import read_manifest
from calibrant.results import Store

from tests.cli.conftest import Ask

FEW = shlex.split("--data python_docs --length 4 --tokens 1 --dtype float32")
JUST_ENOUGH = shlex.split("--data python_docs --samples 1 --length 64 --dtype float32")
"""A tiny llama's widest matrix has 64 inputs."""
STUDY = """
model: {model}
data: [python_docs, random_tokens]
method: [wanda, magnitude]
target: [0.5, 0.7]
seeds: [0, 1]
evaluate: loss(source=python_docs, tokens=64, length=16)
samples: 2
length: 16
dtype: float32
"""
MESSAGES = ("Be brief.", "How warm is it in Jena?", "It is warm.", "And in Rome?", "Warmer.")
ROLES = ("system", "user", "assistant", "user", "assistant")
LOST = {
    "talks.jsonl": "these conversations have 20 messages and 8 are used",
    "mixed.jsonl": "20 of 40 rows without a text left out",
}


@pytest.mark.parametrize("method", ["sparsegpt", "short_gpt"])
def test_one_token_is_named_with_what_is_needed(ask: Ask, model: Path, tmp_path: Path, method: str):
    words = ("prune", model, "--method", method, *FEW, "--out", "pruned", "--json")
    answer = ask(*words)
    assert answer.code == 0
    (line,) = answer.err.splitlines()
    assert "1 token " in line
    assert "64" in line
    assert answer.json["provenance"]["few_tokens"] in line
    again = ask(*words)
    assert (again.json["already_done"], again.err) == (True, answer.err)
    manifest = read_manifest(tmp_path / "pruned")
    assert manifest is not None
    assert manifest["record"]["provenance"]["few_tokens"] in answer.err
    assert ask("--quiet", *words).err == ""


def test_enough_tokens_or_a_method_that_looks_at_none(ask: Ask, model: Path):
    answer = ask("prune", model, *JUST_ENOUGH, "--out", "enough", "--json")
    assert (answer.err, "few_tokens" in answer.json["provenance"]) == ("", False)
    answer = ask("prune", model, "--method", "magnitude", *FEW, "--out", "blind", "--json")
    assert "few_tokens" not in answer.json["provenance"]


@pytest.mark.parametrize("method", ["prune --method magnitude", "quantize --target w4g16"])
def test_data_that_nothing_looks_at_is_named(ask: Ask, model: Path, method: str):
    verb, *words = method.split()
    answer = ask(verb, model, *words, *FEW, "--out", "blind")
    assert "looks at no data, so --data (in Python data=) changes nothing" in answer.err
    assert ask(verb, model, *words, "--out", "without").err == ""


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_study_says_it_once_for_each_set(ask: Ask, model: Path, tmp_path: Path, workers: int):
    (tmp_path / "study.yaml").write_text(STUDY.format(model=model))
    answer = ask("study", "study.yaml", "--out", "results", "--workers", workers, "--json")
    assert answer.code == 0
    told = [line.split(": ")[1] for line in answer.err.splitlines() if "32 tokens" in line]
    assert sorted(told) == ["python_docs", "random_tokens"]
    assert sorted(answer.json["few_tokens"]) == ["python_docs", "random_tokens"]
    looked = {
        record.run.data: record.provenance.get("few_tokens", "")
        for record in Store(tmp_path / "results", create=False).records()
    }
    assert [bool(looked[data]) for data in ("python_docs", "random_tokens", "")] == [
        True,
        True,
        False,
    ]


def write_rows(path: Path) -> None:
    """Write 40 conversations to a file; in `mixed.jsonl` every other row is a text."""
    lines: list[str] = []
    for number in range(40):
        said = [f"{content} ({number})" for content in MESSAGES]
        turns = [{"role": role, "content": text} for role, text in zip(ROLES, said, strict=True)]
        row: dict[str, object] = {"messages": turns}
        if path.name == "mixed.jsonl" and number % 2:
            row = {"text": f"Number {number} is a text."}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines))


@pytest.mark.parametrize("name", LOST)
def test_what_is_lost_of_a_file_is_said(ask: Ask, model: Path, tmp_path: Path, name: str):
    write_rows(tmp_path / name)
    small = ("--samples", "4", "--length", "64")
    pruned = ask("prune", model, "--data", name, *small, "--out", "pruned", "--json")
    (part,) = pruned.json["data_facts"]["parts"]
    written = ask("data", name, "--model", model, *small, "--out", "windows.jsonl")
    assert LOST[name] in part["note"]
    for answer in (pruned, written):
        assert f"warning: {part['data']}: {LOST[name]}\n" in answer.err
    inspected = ask("inspect", name, "--model", model, *small, "--json").json
    fixed = f"{part['data']}: {LOST[name]}: talks.jsonl:chat@whole shows all"
    assert (fixed in inspected["verdict"]) == (name == "talks.jsonl")
    # What is to be fixed isn't said a second time.
    assert (LOST[name] in inspected["parts"][0]["note"]) == (name == "mixed.jsonl")
    chosen = f"longest(source='{name}')"
    written = ask("data", chosen, "--model", model, *small, "--out", "chosen.jsonl")
    assert chosen in written.err
    assert f"{LOST[name]}\n" in written.err
    planned = ask("prune", model, "--data", name, *small, "--plan", "--json")
    assert (
        f"the tokens of {name} weren't counted: it may hold fewer than 256 tokens"
        in planned.json["notes"]
    )
