"""A GGUF file measured as llama.cpp runs it: near what torch makes of the same numbers, and what
can't be is refused by name.
"""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.errors import ModelError, SpecError
from calibrant.evaluators import evaluate
from calibrant.models import open_model
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_gguf

from tests.refusing import refused

LOSS = "loss(source=python_docs, tokens=128, length=32)"


def test_a_loss_and_an_agreement_are_measured_there(bare: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    file, plain = str(bare["F32"]), str(tiny_gguf(tmp_path / "plain.gguf", "F32"))
    (ours,) = evaluate(plain, tasks=LOSS, dtype="float32")
    (theirs,) = evaluate(file, tasks=LOSS, engine="llama_cpp")
    assert theirs.score.value == pytest.approx(ours.score.value, abs=1e-3)
    assert theirs.score.n == ours.score.n
    assert "llama-cpp-py-sync" in str(theirs.provenance["note"])
    (agreed,) = evaluate(
        file,
        tasks="agreement(source=python_docs, tokens=64, length=16)",
        reference=plain,
        engine="llama_cpp",
    )
    assert 0 <= agreed.score.value < 1e-3


def test_what_cannot_be_measured_there_is_refused_by_name(
    bare: dict[str, Path], tmp_path: Path
) -> None:
    file, folder = str(bare["F32"]), str(tiny_folder(tmp_path / "folder"))
    with refused(SpecError, "llama.cpp"):
        evaluate(file, tasks=LOSS, engine="llama.cpp")
    with pytest.raises(SpecError, match="generation"):
        evaluate(file, tasks="generation", engine="llama_cpp")
    with refused(ModelError, folder):
        evaluate(folder, tasks=LOSS, engine="llama_cpp")
    for engine in ("llama_cpp", "vllm"):
        with refused(SpecError, engine):
            evaluate(open_model(folder), tasks=LOSS, engine=engine)
    # Its numbers may be others than those of the file that it came from.
    plain = open_model(str(tiny_gguf(tmp_path / "plain.gguf", "F32")))
    with pytest.raises(SpecError, match="open already, and llama_cpp doesn't run it"):
        evaluate(plain.model, plain.tokenizer, tasks=LOSS, engine="llama_cpp")
    with pytest.raises(SpecError, match="heeds no dtype"):
        evaluate(file, tasks=LOSS, engine="llama_cpp", dtype="float64")
    with pytest.raises(SpecError, match="heeds no tokenizer"):
        evaluate(file, plain.tokenizer, tasks=LOSS, engine="llama_cpp")
    found = CliRunner().invoke(app, ["evaluate", folder, "--task", LOSS, "--engine", "llama_cpp"])
    assert (found.exit_code, folder in found.stderr.replace("\n", "")) == (2, True)
