"""What each command does when all is well."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from calibrant.store import Score

from tests.cli.conftest import SMALL, Ask


def test_prune_says_what_it_did(ask: Ask, model: Path):
    answer = ask("prune", model, "--out", "pruned", "--sparsity", "2:4", *SMALL)
    assert (answer.code, answer.err) == (0, "")
    for said in (
        "2:4",
        "python_docs",
        "256 real tokens in 4 × 64",
        "sha256:",
        "50.0000%",
        "21 matrices",
        "lm_head",
        "embedding",
        "peak memory",
        "arrival",
        "float32",
    ):
        assert said in answer.out, said
    assert answer.out.splitlines()[-1].endswith("pruned")


def test_forms_and_their_bytes_are_said(ask: Ask, model: Path, tmp_path: Path):
    words = ["prune", model, "--out", "pruned", "--sparsity", "2:4", "--export", "sparse", *SMALL]
    said = ask(*words)
    dense, sparse = (sum(p.stat().st_size for p in (tmp_path / place).iterdir() if p.is_file()) for place in ("pruned", "pruned/sparse"))
    dense -= sum((tmp_path / "pruned" / name).stat().st_size for name in ("calibrant.json", "README.md", "calibrant.runs.npy"))
    line = next(line for line in said.out.splitlines() if line.startswith("files"))
    assert line.split() == ["files", "hf", f"{dense / 1e6:.1f}", "MB,", "sparse", f"{sparse / 1e6:.1f}", "MB", f"({sparse / dense:.0%}", "of", "it)"]
    again = ask(*words, "--json").json
    assert (again["already_done"], again["sizes"]) == (True, {"hf": dense, "sparse": sparse})

    plain = ask("export", "pruned/sparse", "--out", "plain")
    assert (plain.code, plain.err) == (0, "")
    assert "form           hf\n" in plain.out
    assert plain.out.splitlines()[-1].endswith("plain")
    assert (tmp_path / "plain/model.safetensors").read_bytes() == (tmp_path / "pruned/model.safetensors").read_bytes()
    small = ask("export", "plain", "--to", "sparse", "--out", "small", "--json").json
    assert (small["form"], small["out"]) == ("sparse", "small")
    assert small["after"] < small["before"]
    task = "loss(source='python_docs', tokens=256, length=64)"
    found = [ask("evaluate", place, "--task", task, "--dtype", "float32", "--json").json[0] for place in ("pruned", "small")]
    assert found[0]["value"] == found[1]["value"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("nothing", "--out", "there"), "there is no file or folder 'nothing'"),
        (("{model}", "--to", "spare", "--out", "there"), "did you mean 'sparse'?"),
        (("{model}", "--to", "gguf", "--out", "there"), "gguf is made of what compressing a model leaves behind"),
        (("{model}", "--out", "{model}"), "exists, isn't empty and isn't ours"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(ask: Ask, model: Path, tmp_path: Path, words: tuple[str, ...], said: str):
    answer = ask("export", *(word.format(model=model) for word in words))
    assert (answer.code, answer.out, len(answer.err.splitlines())) == (2, "", 1)
    assert said in answer.err
    assert not (tmp_path / "there").exists()


def test_pruned_evaluated_inspected_as_json(ask: Ask, model: Path, tmp_path: Path):
    pruned = ask("prune", model, "--out", "pruned", "--json", *SMALL).json
    assert pruned["sparsity"] == pytest.approx(0.5)
    assert pruned["run"]["data"] == "python_docs"
    weights = load_file(tmp_path / "pruned/model.safetensors")
    for reported in pruned["weights"]:
        assert int((weights[reported["name"] + ".weight"] == 0).sum()) == reported["zeros"]

    inspected = ask("inspect", "python_docs", "--model", model, "--samples", 4, "--length", 64, "--json").json
    assert inspected["fingerprint"] == pruned["run"]["tokens"], "what inspect shows is what prune uses"
    assert inspected["tokens"] == 256

    task = "loss(source='python_docs', tokens=256, length=64)"
    first, second = ask("evaluate", "pruned", "--task", task, "--task", "loss(source='arithmetic', tokens=64, length=32)", "--json").json
    assert first["measured"].startswith("python_docs")
    assert second["measured"].startswith("arithmetic")
    assert Score(**{k: v for k, v in first.items() if k not in ("beside", "provenance")}).facts["length"] == 64


def test_pruning_again_does_nothing_and_says_so(ask: Ask, model: Path, tmp_path: Path):
    ask("prune", model, "--out", "pruned", *SMALL)
    before = (tmp_path / "pruned/model.safetensors").stat().st_mtime_ns
    answer = ask("prune", model, "--out", "pruned", *SMALL)
    assert (answer.code, answer.out.partition("\n")[0]) == (0, "pruned already holds exactly this; nothing was done.")
    assert (tmp_path / "pruned/model.safetensors").stat().st_mtime_ns == before


def test_magnitude_needs_no_data(ask: Ask, model: Path):
    found = ask("prune", model, "--out", "pruned", "--method", "magnitude", "--data", "python_docs", "--json").json
    assert (found["run"]["data"], found["run"]["tokens"], found["run"]["propagate"]) == ("", "", "")


def test_none_is_a_method(ask: Ask, model: Path):
    found = ask("prune", model, "--out", "kept", "--method", "none", "--data", "full_stops", "--json").json
    assert (found["run"]["method"]["spec"], found["sparsity"]) == ("none", pytest.approx(0, abs=0.01))


def test_quantize_says_what_it_did(ask: Ask, model: Path):
    answer = ask("quantize", model, "--out", "small", "--target", "w4g16", "--dtype", "bfloat16")
    assert (answer.code, answer.err) == (0, "")
    for said in (
        "rtn to w4g16, bfloat16",
        "stored",
        "5.000 bits a weight, scales and all: 17,280 bytes for 27,648 weights in 21 matrices",
        "lm_head",
    ):
        assert said in answer.out, said
    assert "sparsity" not in answer.out
    assert "calibrated on" not in answer.out
    found = ask("quantize", model, "--out", "small", "--target", "w4g16", "--dtype", "bfloat16", "--json").json
    assert found["already_done"]
    assert {weight["bits_a_weight"] for weight in found["weights"]} == {5.0}
    task = "loss(source='python_docs', tokens=256, length=64)"
    small, whole = (ask("evaluate", of, "--task", task, "--dtype", "bfloat16", "--json").json[0]["value"] for of in ("small", model))
    assert small != whole
    assert small == pytest.approx(whole, abs=0.5)


def test_a_target_is_given_by_either_name(ask: Ask, model: Path):
    found = [ask("prune", model, "--out", name, f"--{name}", "2:4", "--json", *SMALL).json["run"] for name in ("target", "sparsity")]
    assert found[0] == found[1]
    assert found[0]["target"] == "2:4"


def test_evaluate_prints_what_a_loss_needs_to_be_compared(ask: Ask, model: Path):
    answer = ask("evaluate", model, "--task", "loss(source='python_docs', tokens=256, length=64)")
    found = ask("evaluate", model, "--task", "loss(source='python_docs', tokens=256, length=64)", "--json").json[0]
    assert (answer.code, answer.err) == (0, "")
    facts = found["facts"]
    for said in (
        f"{found['value']:.4f} ± {found['stderr']:.4f}",
        f"{facts['perplexity']:.3f}",
        f"{facts['bits_per_byte']:.4f}",
        str(facts["tokens"]),
        str(facts["documents"]),
        "64",
    ):
        assert said in answer.out, said


def test_evaluate_writes_every_outcome(ask: Ask, model: Path, tmp_path: Path):
    import json

    assert ask("evaluate", model, "--task", "loss(source='python_docs', length=64)", "--tokens", 256, "--out", "scores.json").code == 0
    (measured,) = json.loads((tmp_path / "scores.json").read_text())
    nats, tokens = (sum(o[key] for o in measured["outcomes"]) for key in ("value", "weight"))
    assert nats / tokens == pytest.approx(measured["score"]["value"])
    assert tokens < 256 + 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scores.json"]


def test_a_note_on_the_model_is_always_shown(ask: Ask, tmp_path: Path):
    from calibrant.testing import tiny_gguf

    tiny_gguf(tmp_path / "tiny.gguf")
    assert "dequantized from Q8_0" in ask("prune", "tiny.gguf", "--out", "pruned", *SMALL).out
    assert "dequantized from Q8_0" in ask("evaluate", "pruned", "--task", "loss(source='python_docs', tokens=64, length=64)").out


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("models", "smollm2"),
        ("sources", "gsm8k"),
        ("formats", "cot"),
        ("packings", "crop"),
        ("methods", "sparsegpt"),
        ("targets", "w4g64"),
        ("allocations", "uniform"),
        ("selectors", "zipcal"),
        ("tasks", "loss"),
    ],
)
def test_list(ask: Ask, kind: str, name: str):
    plain, entries = ask("list", kind), ask("list", kind, "--json").json
    assert plain.code == 0
    assert name in plain.out
    assert name in [entry["name"] for entry in entries]
    assert all(entry["summary"] for entry in entries)


def test_list_without_a_kind_names_all_there_is(ask: Ask):
    from calibrant.names import KINDS, names

    told = ask("list", "--json").json
    assert told == {kind: names(kind) for kind in KINDS}
    assert "sparsegpt" in told["methods"]
    shown = ask("list")
    assert shown.code == 0
    assert "sparsegpt" in shown.out
    assert all(any(line.startswith(kind) for line in shown.out.splitlines()) for kind in KINDS)


def test_list_shows_parameters_as_they_are_typed(ask: Ask):
    assert "\nsparsegpt(damp=0.01, block=128" in ask("list", "methods", "--long").out


def test_list_says_what_methods_accept_and_look_at(ask: Ask):
    rows = {line.split()[0]: [cell.strip() for cell in line.split("  ") if cell.strip()] for line in ask("list", "methods").out.splitlines()}
    assert rows["wanda"][1:3] == ["0.5 or 2:4", "feature norms"]
    assert rows["rtn"][1:3] == ["w4g64", "no data"]
    assert "    accepts: 0.5 or 2:4\n    looks at: feature norms\n" in ask("list", "methods", "--long").out
    facts = {entry["name"]: entry["facts"] for entry in ask("list", "methods", "--json").json}
    assert facts["sparsegpt"] == {"accepts": "0.5, 2:4 or 2:4+w4g64", "looks_at": "gram"}
    assert facts["rtn"] == {"accepts": "w4g64", "looks_at": "no data"}
    assert facts["none"]["accepts"] == "0.5, 2:4, q4_k, w4g64, Q4_K_M, 2:4+w4g64 or blocks 0.25"


def test_inspect_shows_texts_counts_and_licences(ask: Ask, model: Path):
    answer = ask("inspect", "0.5*python_docs + 0.5*gsm8k.jsonl", "--model", model)
    assert answer.code == 2, "a file that isn't there"
    answer = ask("inspect", "0.5*python_docs + 0.5*full_stops", "--model", model, "--samples", 4, "--length", 32)
    assert (answer.code, answer.err) == (0, "")
    for said in ("4 × 32", "128", "PSF-2.0", "share 50.0%", "........", "nats/token over 124 tokens", "what to fix"):
        assert said in answer.out, said


def test_inspect_without_a_model_opens_a_tokenizer_only(ask: Ask, monkeypatch: pytest.MonkeyPatch):
    from calibrant.inspection import inspecting
    from calibrant.testing import tiny_tokenizer

    monkeypatch.setattr(inspecting, "open_tokenizer", lambda name: (tiny_tokenizer(), name))
    monkeypatch.setattr(inspecting, "open_model", lambda *_: pytest.fail("a model was opened"))
    answer = ask("inspect", "random_tokens", "--samples", 4, "--length", 32)
    assert (answer.code, answer.err) == (0, "")
    assert "read by        the tokenizer of smollm2\n" in answer.out
    assert answer.out.endswith("what to fix\n  • nothing to fix\n")
    assert "nats/token" not in answer.out


def test_inspect_says_what_to_type(ask: Ask, model: Path, tmp_path: Path):
    import json

    rows = [{"question": f"{n} and {n * n}?", "answer": str(n + n * n)} for n in range(60)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked = ("inspect", "mine.jsonl:zero", "--model", model, "--samples", 20, "--length", 256)
    found = ask(*asked, "--json").json
    (padded,) = [sentence for sentence in found["verdict"] if "padding" in sentence]
    (drawn,) = [sentence for sentence in found["verdict"] if "disjoint" in sentence]
    assert padded.endswith("use mine.jsonl:icl, or --tokens for a budget in real tokens")
    assert f"  • {padded}\n" in ask(*asked).out

    better = ask("inspect", "mine.jsonl:icl", "--model", model, "--samples", 1, "--length", 256, "--json").json
    assert not [sentence for sentence in better["verdict"] if "padding" in sentence]
    assert drawn.startswith("only 2 disjoint draws of 20 windows")
    fewer = ask("inspect", "mine.jsonl:zero", "--model", model, "--samples", found["enough"], "--length", 256, "--json").json
    assert fewer["disjoint_draws"] >= 5


def test_inspect_compares_with_what_is_measured(ask: Ask, model: Path, tmp_path: Path):
    import json

    texts = [" ".join(f"word{n * m}" for m in range(1, 20)) for n in range(1, 90)]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    (tmp_path / "theirs.jsonl").write_text("\n".join(json.dumps({"text": text.upper()}) for text in texts))
    asked = ("inspect", "mine.jsonl@one", "--model", model, "--samples", 30, "--length", 256)
    found = ask(*asked, "--against", "theirs.jsonl", "--against", "arithmetic", "--json").json
    assert [check["against"] for check in found["overlap_checks"]] == ["mine.jsonl", "theirs.jsonl", "arithmetic"]
    assert [check["same"] > 0 for check in found["overlap_checks"]] == [False, True, False]
    said = ask(*asked, "--against", "theirs.jsonl").out
    assert "same example: “word" in said
    assert "or don't measure on theirs.jsonl" in said


def test_a_mirror_is_looked_at_first(ask: Ask, model: Path, tmp_path: Path):
    import json

    folder = tmp_path / "mirror/gsm8k"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"question": f"What is {n} and {split}?", "answer": f"Just {n}.\n#### {n}"} for n in range(40)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    answer = ask("inspect", "gsm8k:cot", "--model", model, "--samples", 2, "--length", 32, "--data-dir", "mirror")
    assert (answer.code, answer.err) == (0, "")
    assert "and train?" in answer.out


def test_saved_zeros_survive_plain_transformers(ask: Ask, model: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    found = ask("prune", model, "--out", "pruned", "--json", *SMALL).json
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    by_name = dict(opened.named_parameters())
    for reported in found["weights"]:
        assert torch.count_nonzero(by_name[reported["name"] + ".weight"]) == by_name[reported["name"] + ".weight"].numel() - reported["zeros"]
