"""What each command does when all is well."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from calibrant.names import KINDS, names
from calibrant.results import Score

from tests.cli.conftest import SMALL, Ask, assert_refused


def zeros_of(weights: Mapping[str, torch.Tensor], found: Any) -> list[int]:
    """How many zeros there are in each matrix that a record tells of."""
    return [
        int((weights[reported["name"] + ".weight"] == 0).sum()) for reported in found["weights"]
    ]


def test_prune_inspect_and_evaluate(ask: Ask, model: Path, tmp_path: Path):
    words = ("prune", model, "--out", "pruned", "--target", "2:4", *SMALL)
    printed = ask(*words)
    assert (printed.code, printed.err) == (0, "")
    for said in ("2:4", "python_docs", "256", "50.0000%", "float32"):
        assert said in printed.out, said
    before = (tmp_path / "pruned/model.safetensors").stat().st_mtime_ns

    again = ask(*words)
    assert again.code == 0
    assert again.out.startswith("pruned already holds exactly this")
    found = ask(*words, "--json").json
    assert (found["already_done"], found["run"]["data"], found["sparsity"]) == (
        True,
        "python_docs",
        pytest.approx(0.5),
    )
    assert (tmp_path / "pruned/model.safetensors").stat().st_mtime_ns == before

    told = [reported["zeros"] for reported in found["weights"]]
    assert zeros_of(load_file(tmp_path / "pruned/model.safetensors"), found) == told
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert zeros_of(dict(opened.named_parameters()), found) == told

    inspected = ask(
        "inspect", "python_docs", "--model", model, "--samples", 4, "--length", 64, "--json"
    ).json
    assert inspected["fingerprint"] == found["run"]["tokens"], (
        "what inspect shows is what prune uses"
    )
    assert inspected["tokens"] == 256

    task = "loss(source='python_docs', tokens=256, length=64)"
    first, second = ask(
        "evaluate",
        "pruned",
        "--task",
        task,
        "--task",
        "loss(source='arithmetic', tokens=64, length=32)",
        "--json",
    ).json
    assert first["measured"].startswith("python_docs")
    assert second["measured"].startswith("arithmetic")
    assert (
        Score(**{k: v for k, v in first.items() if k not in ("beside", "provenance")}).facts[
            "length"
        ]
        == 64
    )


def test_forms_and_their_bytes_are_said(ask: Ask, model: Path, tmp_path: Path):
    words = ["prune", model, "--out", "pruned", "--target", "2:4", "--export", "sparse", *SMALL]
    said = ask(*words)
    dense, sparse = (
        sum(p.stat().st_size for p in (tmp_path / place).iterdir() if p.is_file())
        for place in ("pruned", "pruned/sparse")
    )
    dense -= sum(
        (tmp_path / "pruned" / name).stat().st_size
        for name in ("calibrant.json", "README.md", "calibrant.runs.npy")
    )
    assert all(f"{size / 1e6:.1f} MB" in said.out for size in (dense, sparse))
    again = ask(*words, "--json").json
    assert (again["already_done"], again["sizes"]) == (True, {"hf": dense, "sparse": sparse})

    plain = ask("export", "pruned/sparse", "--out", "plain")
    assert (plain.code, plain.err) == (0, "")
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (
        tmp_path / "pruned/model.safetensors"
    ).read_bytes()
    small = ask("export", "plain", "--to", "sparse", "--out", "small", "--json").json
    assert (small["form"], small["out"]) == ("sparse", "small")
    assert small["after"] < small["before"]
    task = "loss(source='python_docs', tokens=256, length=64)"
    found = [
        ask("evaluate", place, "--task", task, "--dtype", "float32", "--json").json[0]
        for place in ("pruned", "small")
    ]
    assert found[0]["value"] == found[1]["value"]


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (("nothing", "--out", "there"), "'nothing'"),
        (("{model}", "--to", "spare", "--out", "there"), "'spare'"),
        (("{model}", "--to", "gguf", "--out", "there"), "gguf"),
        (("{model}", "--out", "{model}"), "tiny"),
    ],
)
def test_what_cannot_be_exported(
    ask: Ask, model: Path, tmp_path: Path, words: tuple[str, ...], given: str
):
    assert_refused(ask("export", *(word.format(model=model) for word in words)), given)
    assert not (tmp_path / "there").exists()


def test_methods_that_need_no_data(ask: Ask, model: Path):
    found = ask(
        "prune",
        model,
        "--out",
        "pruned",
        "--method",
        "magnitude",
        "--target",
        "2:4",
        "--data",
        "python_docs",
        "--json",
    ).json["run"]
    assert (found["data"], found["tokens"], found["propagate"], found["target"]) == (
        "",
        "",
        "",
        "2:4",
    )
    assert (
        ask(
            "prune",
            model,
            "--out",
            "again",
            "--method",
            "magnitude",
            "--target",
            "2:4",
            "--data",
            "c4",
            "--json",
        ).json["run"]
        == found
    )
    kept = ask(
        "prune", model, "--out", "kept", "--method", "none", "--data", "full_stops", "--json"
    ).json
    assert (kept["run"]["method"]["spec"], kept["sparsity"]) == ("none", pytest.approx(0, abs=0.01))


def test_quantize(ask: Ask, model: Path):
    words = ("quantize", model, "--out", "small", "--target", "w4g16", "--dtype", "bfloat16")
    answer = ask(*words)
    assert (answer.code, answer.err) == (0, "")
    for said in ("w4g16", "bfloat16", "5.000", "17,280", "27,648"):
        assert said in answer.out, said
    found = ask(*words, "--json").json
    assert found["already_done"]
    assert {weight["bits_a_weight"] for weight in found["weights"]} == {5.0}
    task = "loss(source='python_docs', tokens=256, length=64)"
    small, whole = (
        ask("evaluate", of, "--task", task, "--dtype", "bfloat16", "--json").json[0]["value"]
        for of in ("small", model)
    )
    assert small != whole
    assert small == pytest.approx(whole, abs=0.5)


def test_evaluate_prints_what_a_loss_needs_to_be_compared_and_writes_every_outcome(
    ask: Ask, model: Path, tmp_path: Path
):
    words = ("evaluate", model, "--task", "loss(source='python_docs', length=64)", "--tokens", 256)
    answer = ask(*words, "--out", "scores.json")
    found = ask(*words, "--json").json[0]
    assert (answer.code, answer.err) == (0, "")
    facts = found["facts"]
    for said in (
        f"{found['value']:.4f} ± {found['stderr']:.4f}",
        f"{facts['perplexity']:.3f}",
        f"{facts['bits_per_byte']:.4f}",
    ):
        assert said in answer.out, said
    for said in (facts["tokens"], facts["documents"], 64):
        assert str(said) in answer.out, said
    (measured,) = json.loads((tmp_path / "scores.json").read_text())
    nats, tokens = (
        sum(outcome[key] for outcome in measured["outcomes"]) for key in ("value", "weight")
    )
    assert nats / tokens == pytest.approx(measured["score"]["value"])
    assert tokens < 256 + 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.json"]


def test_list(ask: Ask):
    told = ask("list", "--json").json
    assert told == {kind: names(kind) for kind in KINDS}
    shown = ask("list")
    assert shown.code == 0
    assert "sparsegpt" in shown.out
    for kind in KINDS:
        entries = ask("list", kind, "--json").json
        assert len(entries) == len(told[kind])
        assert all(entry["name"] and entry["summary"] for entry in entries)


def test_list_shows_parameters_as_they_are_typed_and_what_methods_accept_and_look_at(ask: Ask):
    assert "\nsparsegpt(damp=0.01, block=128" in ask("list", "methods", "--long").out
    rows = {line.split()[0]: line for line in ask("list", "methods").out.splitlines()}
    assert "feature norms" in rows["wanda"]
    facts = {entry["name"]: entry["facts"] for entry in ask("list", "methods", "--json").json}
    assert facts["sparsegpt"] == {"accepts": "0.5, 2:4 or 2:4+w4g64", "looks_at": "gram"}
    assert facts["rtn"] == {"accepts": "w4g64, FP8A16 or w4g64+kv_fp8", "looks_at": "no data"}


def test_inspect_shows_texts_counts_and_licences(ask: Ask, model: Path):
    answer = ask(
        "inspect",
        "0.5*python_docs + 0.5*full_stops",
        "--model",
        model,
        "--samples",
        4,
        "--length",
        32,
    )
    assert (answer.code, answer.err) == (0, "")
    for said in ("4 × 32", "128", "PSF-2.0", "50.0%", "........", "124"):
        assert said in answer.out, said


def test_a_mirror_is_looked_at_first(ask: Ask, model: Path, tmp_path: Path):
    folder = tmp_path / "mirror/gsm8k"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [
            {"question": f"What is {n} and {split}?", "answer": f"Just {n}.\n#### {n}"}
            for n in range(40)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answer = ask(
        "inspect",
        "gsm8k:cot",
        "--model",
        model,
        "--samples",
        2,
        "--length",
        32,
        "--data-dir",
        "mirror",
    )
    assert (answer.code, answer.err) == (0, "")
    assert "and train?" in answer.out
