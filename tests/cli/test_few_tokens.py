"""A calibration set with fewer tokens than the model has inputs is named: on standard error, in
the record, and once for each set of a study.
"""

import shlex
from pathlib import Path

import pytest

from calibrant.models import read_manifest
from calibrant.results import Store

from tests.cli.conftest import Ask

FEW = shlex.split("--data python_docs --samples 1 --length 4 --tokens 1 --dtype float32")
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
