"""Bad input: exit 2, one sentence that holds what was given, no traceback, and nothing left behind."""

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from calibrant.testing import tiny_folder, tiny_gguf

from tests.cli.conftest import SMALL, Answer, Ask


def refused(answer: Answer, *said: str) -> None:
    assert answer.code == 2, answer
    assert answer.out == ""
    assert answer.err.endswith("\n")
    assert answer.err.count("\n") == 1, answer.err
    assert "Traceback" not in answer.err
    for words in said:
        assert words in answer.err, answer.err


@pytest.fixture
def unchanged(tmp_path: Path):
    """Nothing is left behind: what was there before, and nothing else, is there afterwards. Call it once all is prepared."""
    before: list[dict[Path, bytes]] = []

    def listing() -> dict[Path, bytes]:
        return {p: p.read_bytes() if p.is_file() else b"" for p in tmp_path.rglob("*")}

    yield lambda: before.append(listing())
    assert before, "the test never said when all was prepared"
    assert listing() == before[0]


WRONG_WORDS = [
    ("--data", "wikitxt", ["'wikitxt'", "did you mean 'wikitext'?"]),
    ("--data", "gsm8k:cott", ["'cott'", "did you mean 'cot'?"]),
    ("--data", "python_docs@mny", ["'mny'", "did you mean 'many'?"]),
    ("--data", "python_docs:cot", ["python_docs", "cot", "rationale"]),
    ("--data", "", ["''"]),
    ("--data", "0*python_docs", ["0*python_docs"]),
    ("--data", "missing.jsonl", ["missing.jsonl"]),
    ("--method", "wnada", ["'wnada'", "did you mean 'wanda'?"]),
    ("--method", "sparsegpt(dampp=0.1)", ["'dampp'", "did you mean 'damp'?"]),
    ("--method", "sparsegpt(damp='much')", ["damp", "'much'"]),
    ("--method", "wanda(x=__import__('os'))", ["__import__"]),
    ("--method", "wanda(", ["'wanda('"]),
    ("--sparsity", "1.2", ["1.2"]),
    ("--sparsity", "1", ["1"]),
    ("--sparsity=-0.1", None, ["-0.1"]),
    ("--sparsity", "50", ["50", "0.5"]),
    ("--sparsity", "5:4", ["5:4"]),
    ("--sparsity", "nan", ["nan"]),
    ("--sparsity", "much", ["'much'"]),
    ("--sparsity", "2:5", ["2:5", "model.layers.0"]),
    ("--target", "w4g64", ["w4g64 is no target for calibrant prune", "use calibrant quantize"]),
    ("--method", "rtn", ["rtn is no method for calibrant prune", "use calibrant quantize"]),
    ("--propagate", "dnese", ["dnese", "dense"]),
    ("--dtype", "float7", ["float7", "bfloat16"]),
    ("--device", "gpu", ["gpu", "cuda"]),
    ("--samples", "0", ["samples is 0"]),
    ("--length", "0", ["length is 0"]),
    ("--tokens", "0", ["tokens is 0"]),
    ("--seed", "-1", ["seed is -1"]),
    ("--data-dir", "nowhere", ["nowhere"]),
    ("--samples", "100000", ["python_docs"]),
]


@pytest.mark.parametrize(("option", "value", "said"), WRONG_WORDS, ids=[f"{o} {v}" for o, v, _ in WRONG_WORDS])
def test_words(ask: Ask, unchanged, model: Path, option: str, value: str | None, said: list[str]):
    unchanged()
    words = [option] if value is None else [option, value]
    refused(ask("prune", model, "--out", "pruned", *SMALL, *words), *said)


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "Missing"), (("--samples", "few"), "'few' is no whole number"), (("--no-such", "1"), "--no-such")],
    ids=["missing", "no number", "unknown option"],
)
def test_usage(ask: Ask, unchanged, model: Path, words: tuple[str, ...], said: str):
    unchanged()
    answer = ask("prune", model, *words, *(("--out", "pruned") if words else ()))
    assert answer.code == 2
    assert said in answer.err


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        ("smolm2", ["'smolm2'", "did you mean 'smollm2'?"]),
        ("nobody/nothing", ["'nobody/nothing'"]),
        ("./nothing", ["'./nothing'"]),
        ("nothing.gguf", ["'nothing.gguf'"]),
    ],
)
def test_models_that_are_not_there(ask: Ask, unchanged, ref: str, said: list[str]):
    unchanged()
    refused(ask("prune", ref, "--out", "pruned", *SMALL), *said)
    refused(ask("evaluate", ref, "--task", "loss(source='python_docs')"), *said)
    refused(ask("inspect", "python_docs", "--model", ref), *said)


@pytest.mark.parametrize(("against", "said"), [("gsm9k", "'gsm9k', did you mean 'gsm8k'?"), ("full_stops", "'full_stops' is a control")])
def test_what_a_set_cannot_be_compared_with(ask: Ask, unchanged, model: Path, against: str, said: str):
    unchanged()
    refused(ask("inspect", "python_docs", "--model", model, "--against", against), said)


FILES = {
    "empty.jsonl": ("", ["empty.jsonl"]),
    "broken.jsonl": ('{"text": "all is well"}\n{"text": \n', ["broken.jsonl:2", "no JSON"]),
    "columns.jsonl": ('{"words": "no text", "title": "x"}\n', ["columns.jsonl", "words", "title", "text"]),
    "short.txt": ("a few words", ["short.txt", "64"]),
    "empty.csv": ("", ["empty.csv"]),
    "broken.parquet": ("PAR1 no parquet", ["broken.parquet"]),
    "picture.png": ("no text", ["picture.png", ".jsonl"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_the_user(ask: Ask, unchanged, model: Path, tmp_path: Path, name: str):
    content, said = FILES[name]
    (tmp_path / name).write_text(content)
    unchanged()
    refused(ask("prune", model, "--out", "pruned", *SMALL, "--data", name), *said)


def test_texts_too_short_for_a_crop(ask: Ask, unchanged, model: Path, tmp_path: Path):
    (tmp_path / "short.jsonl").write_text("\n".join(json.dumps({"text": f"text number {n}"}) for n in range(50)))
    unchanged()
    refused(ask("prune", model, "--out", "pruned", *SMALL, "--data", "short.jsonl@crop"), "short.jsonl", "64")


def test_a_truncated_gguf(ask: Ask, unchanged, tmp_path: Path):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-5000])
    unchanged()
    refused(ask("prune", path, "--out", "pruned", *SMALL), "tiny.gguf")


def test_a_file_that_is_no_gguf(ask: Ask, unchanged, tmp_path: Path):
    (tmp_path / "tiny.gguf").write_bytes(b"nothing of the kind")
    unchanged()
    refused(ask("prune", "tiny.gguf", "--out", "pruned", *SMALL), "tiny.gguf")


def test_a_corrupt_safetensors(ask: Ask, unchanged, tmp_path: Path):
    folder = tiny_folder(tmp_path / "tiny")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    unchanged()
    refused(ask("prune", folder, "--out", "pruned", *SMALL), "model.safetensors")


def test_a_pickle(ask: Ask, unchanged, tmp_path: Path):
    folder = tiny_folder(tmp_path / "tiny")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    unchanged()
    refused(ask("prune", folder, "--out", "pruned", *SMALL), "pytorch_model.bin", "pickle", "run code", "safetensors")
    refused(ask("prune", folder / "pytorch_model.bin", "--out", "pruned", *SMALL), "pytorch_model.bin", "pickle")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(ask: Ask, unchanged, tmp_path: Path, bad: float):
    folder = tiny_folder(tmp_path / "tiny")
    _poison(folder / "model.safetensors", "model.layers.1.mlp.up_proj.weight", bad)
    unchanged()
    refused(ask("prune", folder, "--out", "pruned", *SMALL), "model.layers.1.mlp.up_proj")


def test_activations_that_are_no_numbers(ask: Ask, unchanged, tmp_path: Path):
    folder = tiny_folder(tmp_path / "tiny")
    _poison(folder / "model.safetensors", "model.layers.0.input_layernorm.weight", 3e38)
    _poison(folder / "model.safetensors", "model.embed_tokens.weight", 1e3)
    unchanged()
    refused(ask("prune", folder, "--out", "pruned", *SMALL), "model.layers.0.self_attn.q_proj")


def _poison(path: Path, name: str, bad: float) -> None:
    tensors = load_file(path)
    tensors[name].view(-1)[0] = bad
    save_file(tensors, path, metadata={"format": "pt"})


def test_an_output_that_is_not_ours(ask: Ask, unchanged, model: Path, tmp_path: Path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    unchanged()
    refused(ask("prune", model, "--out", "taken", *SMALL), "taken", "isn't ours")
    refused(ask("prune", model, "--out", "file", *SMALL), "file")
    refused(ask("evaluate", model, "--task", "loss(source='python_docs')", "--out", "nowhere/scores.json"), "nowhere/scores.json")
    refused(ask("evaluate", model, "--task", "loss(source='python_docs')", "--out", "taken"), "'taken'")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--target", "0.5"), ["0.5 is no target for calibrant quantize", "a grid of 2 to 8 bits", "use calibrant prune"]),
        (("--target", "w9"), ["w9 has codes of 9 bits"]),
        (("--target", "w4g24"), ["q_proj has 32 inputs, which groups of 24 don't divide", "w4g16"]),
        (("--target", "four bits"), ["'four bits' is no target"]),
        (("--method", "wanda"), ["wanda is no method for calibrant quantize, which has ", "gptq, ", ", rtn", "use calibrant prune"]),
        (("--method", "rnt"), ["'rnt', did you mean 'rtn'?"]),
        (("--data", "wikitxt"), ["'wikitxt', did you mean 'wikitext'?"]),
    ],
)
def test_what_cannot_be_quantized(ask: Ask, unchanged, model: Path, words: tuple[str, ...], said: list[str]):
    unchanged()
    refused(ask("quantize", model, "--out", "out", *words), *said)


def test_an_output_of_ours_that_holds_something_else(ask: Ask, unchanged, model: Path):
    assert ask("prune", model, "--out", "pruned", *SMALL).code == 0
    unchanged()
    refused(ask("prune", model, "--out", "pruned", *SMALL, "--sparsity", "0.6"), "pruned", "0.5")


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """A limit on the size of files stands for the disk: the system refuses to write at the same places."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [10_000, 60_000], ids=["no room for a block", "no room for the model"])
def test_a_disk_that_takes_no_more(ask: Ask, model: Path, tmp_path: Path, size: int):
    with files_no_larger_than(size):
        answer = ask("prune", model, "--out", "pruned", *SMALL)
    refused(answer, "pruned")
    left = {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    assert all(p.match(".pruned.calibrant-partial/edits-*.safetensors") for p in left), "only finished blocks stay, to go on from"
    assert size > 10_000 or not list(tmp_path.iterdir())
    assert ask("prune", model, "--out", "pruned", *SMALL).code == 0
    assert [p.name for p in tmp_path.iterdir()] == ["pruned"]


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("los(source='python_docs')", ["'los'", "did you mean 'loss'?"]),
        ("loss(source='wikitxt')", ["'wikitxt'", "did you mean 'wikitext'?"]),
        ("loss(source='python_docs', format='cot')", ["python_docs", "rationale"]),
        ("loss(tokens=0)", ["tokens=0"]),
        ("loss(length=1)", ["length=1"]),
        ("loss(source='empty.txt')", ["empty.txt"]),
        ("loss(source=[1])", ["source"]),
        ("7", ["7"]),
    ],
)
def test_tasks(ask: Ask, unchanged, model: Path, tmp_path: Path, task: str, said: list[str]):
    (tmp_path / "empty.txt").write_text("")
    unchanged()
    refused(ask("evaluate", model, "--task", task), *said)


def test_a_model_that_overflows_has_no_loss(ask: Ask, unchanged, tmp_path: Path):
    folder = tiny_folder(tmp_path / "tiny")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = torch.from_numpy(np.full(tensors["lm_head.weight"].shape, np.nan, dtype=np.float32))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    unchanged()
    refused(ask("evaluate", folder, "--task", "loss(source='python_docs', tokens=64, length=32)"), "python_docs")


def test_a_kind_that_cannot_be_listed(ask: Ask):
    refused(ask("list", "methdos"), "'methdos'", "did you mean 'methods'?")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--samples", "9" * 5000), "is no whole number of at most 1,000,000,000,000,000"),
        (("--samples", "٣"), "'٣' is no whole number"),
        (("--samples", "1_000"), "'1_000' is no whole number"),
        (("--samples", "0x10"), "'0x10' is no whole number"),
        (("--samples", "1" + "0" * 15), "samples is 1000000000000000; it must be at most 1,000,000,000"),
        (("--seed", "1000000"), "seed is 1000000; it must be at most 10,000"),
        (("--against", "c4\udcff"), "which is half a character; write the text in UTF-8"),
    ],
    ids=range(7),
)
def test_numbers_and_texts_of_the_command_line_that_cant_be_are_refused(ask: Ask, words: tuple[str, ...], said: str):
    answer = ask("inspect", "random_tokens", *words)
    assert answer.code == 2
    assert said in " ".join(answer.err.replace("│", " ").split())
    assert len(answer.err) < 3000
