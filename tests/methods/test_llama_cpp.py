"""llama-quantize by a recipe: the file that is written holds what llama.cpp made, byte for byte, and the model holds the numbers of that."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from calibrant.compress import quantize
from calibrant.errors import TargetError
from calibrant.importance import imatrix
from calibrant.models import open_model
from calibrant.targets import GgufRecipe, parse_target
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_gguf

SMALL = {"samples": 2, "length": 16, "dtype": "float32"}


def test_a_recipe_is_read_and_a_kind_is_not_one() -> None:
    assert parse_target("q4_k_m") == GgufRecipe("Q4_K_M")
    assert GgufRecipe.read("q4_0") is None
    with pytest.raises(TargetError, match=r"'Q9_X' is no recipe of llama.cpp; write one of Q4_0, "):
        GgufRecipe("Q9_X")


@pytest.mark.parametrize("recipe", ["Q4_K_M", "q8_0"])
def test_the_file_is_the_one_that_llama_quantize_makes(tmp_path: Path, recipe: str) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    from calibrant.llama_cpp import quantize_file

    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    done = quantize(str(template), "python_docs", "llama_cpp", recipe, tmp_path / "out", export="gguf", **SMALL)
    means = {name: entry.importance.ravel() for name, entry in imatrix(str(template), "python_docs", **SMALL).entries.items()}
    quantize_file(template, tmp_path / "theirs.gguf", recipe.upper(), means)
    ours, theirs = ({str(t.name): t for t in gguf.GGUFReader(path).tensors} for path in (tmp_path / "out" / "model.gguf", tmp_path / "theirs.gguf"))
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].tensor_type == tensor.tensor_type, name
        np.testing.assert_array_equal(ours[name].data, tensor.data, err_msg=name)
    ids = torch.arange(3, 35).reshape(2, 16)
    assert torch.equal(*(open_model(str(place), "float32", "cpu").model(ids).logits for place in (tmp_path / "out", tmp_path / "out" / "model.gguf")))
    assert done.record.edits[0]["edit"] == "replace_parameters"
    assert "model.embed_tokens.weight" in done.record.edits[0]["parameters"]


def test_a_folder_needs_a_file_of_the_same_model(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    folder = str(tiny_folder(tmp_path / "folder"))
    with pytest.raises(TargetError, match=r"folder is no GGUF file, whose metadata llama_cpp needs; name one of the same model, llama_cpp\(like="):
        quantize(folder, "python_docs", "llama_cpp", "Q4_K_M", tmp_path / "out", **SMALL)
