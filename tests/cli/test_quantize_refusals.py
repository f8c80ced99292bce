"""What quantizing and imatrices can't use is one sentence that says what to do, exit code 2, and nothing half-written."""

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.importance import Imatrix, ImatrixEntry
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_gguf

SMALL = ["--samples", "2", "--length", "16", "--dtype", "float32"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, GGUF files of it, of another vocabulary and cut short, and importance matrices."""
    folder = tmp_path_factory.mktemp("place")
    tiny_folder(folder / "model")
    tiny_gguf(folder / "model.gguf", "F32")
    (folder / "cut.gguf").write_bytes((folder / "model.gguf").read_bytes()[:5000])
    (folder / "text.gguf").write_text("no model at all")
    add: Callable[..., None] = gguf.GGUFWriter.add_token_list
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, "add_token_list", lambda writer, tokens: add(writer, [*tokens[:3], *reversed(tokens[3:])]))
        tiny_gguf(folder / "foreign.gguf", "F32")
    for name, tensor, columns in (("a", "attn_q", 32), ("wide", "attn_q", 64), ("other", "ssm_in", 32)):
        entry = ImatrixEntry(np.ones((1, columns), dtype=np.float32), np.array([7]))
        Imatrix({f"blk.0.{tensor}.weight": entry}, ("text",), 1, 7).write(folder / f"{name}.imatrix.gguf")
    (folder / "cut.imatrix.gguf").write_bytes((folder / "a.imatrix.gguf").read_bytes()[:200])
    return folder


def quantize(*words: str) -> list[str]:
    return ["quantize", "{0}/model", "--out", "{0}/out", *SMALL, *words]


DATA = ("--data", "python_docs")
CASES = {
    "a target of the other command": (quantize("--target", "0.5"), "0.5"),
    "a method of the other command": (quantize("--method", "wanda"), "wanda"),
    "a grid that the shape can't hold": (quantize("--target", "w4g24"), "w4g16"),
    "a kind of blocks that the shape can't hold": (quantize("--method", "ggml", "--target", "q4_k", *DATA), "q5_0"),
    "a kind that needs an imatrix, without data": (quantize("--method", "ggml(importance=false)", "--target", "iq2_xs"), "iq2_xs"),
    "a method that needs data, without": (quantize("--method", "ggml", "--target", "q4_0"), "--data"),
    "a recipe that there isn't": (quantize("--method", "llama_cpp", "--target", "Q4_K_X", *DATA), "'Q4_K_X'"),
    "asymmetric codes where none can be": (quantize("--target", "w4g16a", "--export", "compressed_tensors"), "w4g16a"),
    "blocks where codes are wanted": (quantize("--method", "ggml", "--target", "q4_0", "--export", "compressed_tensors", *DATA), "q4_0"),
    "a file of another vocabulary to be like": (quantize("--target", "w4g32", "--export", "gguf(like='{0}/foreign.gguf')"), "vocabulary"),
    "a truncated file to be like": (quantize("--target", "w4g32", "--export", "gguf(like='{0}/cut.gguf')"), "cut.gguf"),
    "the same for a recipe, truncated": (quantize("--method", "llama_cpp(like='{0}/cut.gguf')", "--target", "Q4_0", *DATA), "cut.gguf"),
    "an importance matrix where none was used": (quantize("--target", "w4g16", "--export", "imatrix"), "imatrix"),
    "an imatrix of another model, by its names": (
        ["inspect", "{0}/a.imatrix.gguf", "--against", "{0}/other.imatrix.gguf"],
        "blk.0.ssm_in.weight",
    ),
    "an imatrix of another model, by its sizes": (["inspect", "{0}/a.imatrix.gguf", "--against", "{0}/wide.imatrix.gguf"], "64"),
    "a truncated imatrix": (["inspect", "{0}/cut.imatrix.gguf"], "cut.imatrix.gguf"),
    "a model as an imatrix": (["inspect", "{0}/a.imatrix.gguf", "--against", "{0}/model.gguf"], "model.gguf"),
    "a file that llama.cpp can't run": (["evaluate", "{0}/cut.gguf", "--task", "loss(source=python_docs)", "--engine", "llama_cpp"], "cut.gguf"),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_one_sentence_and_nothing_is_written(place: Path, name: str) -> None:
    words, given = CASES[name]
    if any(word in " ".join(words) for word in ("ggml", "llama_cpp")):
        pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    before = sorted(place.iterdir())
    found = CliRunner().invoke(app, [word.format(place) for word in words])
    assert found.exit_code == 2, (found.stdout, found.stderr, found.exception)
    assert "Traceback" not in found.stderr
    assert len([line for line in found.stderr.splitlines() if given in line]) == 1
    assert sorted(place.iterdir()) == before
