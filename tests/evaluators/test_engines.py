"""A GGUF file measured as llama.cpp runs it: near what torch makes of the same numbers, and what can't be is one sentence."""

from pathlib import Path

import gguf
import pytest
import torch
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.errors import ModelError, SpecError
from calibrant.evaluators import evaluate
from calibrant.models import open_model
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_gguf, tiny_tokenizer

LOSS = "loss(source=python_docs, tokens=128, length=32)"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "plain.gguf", "F32")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same without a tokenizer: llama.cpp reads none that has no merges, and the tests' has none. It comes from elsewhere then."""
    add = gguf.GGUFWriter.add_tokenizer_model
    with monkeypatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, "add_tokenizer_model", lambda writer, name: add(writer, "none"))
        path = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    monkeypatch.setattr("calibrant.evaluators._engines.gguf_tokenizer", lambda path: tiny_tokenizer())
    return path


@pytest.fixture
def _llama_cpp() -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")


@pytest.mark.usefixtures("_llama_cpp")
def test_the_same_numbers_give_nearly_the_same_logits(file: Path, plain: Path) -> None:
    from calibrant.llama_cpp import LlamaModel

    ids = list(range(3, 35))
    with LlamaModel(file, 64, exact=True) as theirs, torch.no_grad():
        logits = torch.from_numpy(theirs.logits(ids))
        again = torch.from_numpy(theirs.logits(ids[:10]))
    ours = open_model(str(plain), "float32", "cpu").model(torch.tensor([ids])).logits[0].detach()
    assert float((logits - ours).abs().max()) < 2e-3
    assert float((again - ours[:10]).abs().max()) < 2e-3
    logs, other = ours.log_softmax(-1), logits.log_softmax(-1)
    assert float((logs.exp() * (logs - other)).sum(-1).max()) < 1e-6


@pytest.mark.usefixtures("_llama_cpp")
def test_a_loss_and_an_agreement_are_measured_there(file: Path, plain: Path) -> None:
    ours, theirs = evaluate(str(plain), LOSS, dtype="float32")[0], evaluate(str(file), LOSS, engine="llama_cpp")[0]
    assert theirs.score.value == pytest.approx(ours.score.value, abs=1e-3)
    assert theirs.score.n == ours.score.n
    assert str(theirs.provenance["note"]).startswith("as llama.cpp, llama-cpp-py-sync ")
    agreed = evaluate(str(file), "agreement(source=python_docs, tokens=64, length=16)", reference=str(plain), engine="llama_cpp")[0]
    assert 0 <= agreed.score.value < 1e-3


def test_what_cannot_be_measured_there_is_one_sentence(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"there is no engine 'llama.cpp', did you mean 'llama_cpp'\?; choose one of torch, llama_cpp"):
        evaluate(str(file), LOSS, engine="llama.cpp")
    with pytest.raises(SpecError, match=r"generation.* can't be measured with llama_cpp, which measures loss and agreement"):
        evaluate(str(file), "generation", engine="llama_cpp")
    folder = tiny_folder(tmp_path / "folder")
    with pytest.raises(ModelError, match=r"folder is no GGUF file, and llama.cpp runs nothing else"):
        evaluate(str(folder), LOSS, engine="llama_cpp")
    found = CliRunner().invoke(app, ["evaluate", str(folder), "--task", LOSS, "--engine", "llama_cpp"])
    assert (found.exit_code, "is no GGUF file" in found.stderr) == (2, True)
