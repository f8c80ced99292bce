"""A tiny model with a compressed twin, and texts to measure them on. Nobody changes them: what a
test changes it makes itself.
"""

import json
from pathlib import Path

import gguf
import pytest
import torch

from calibrant.models import Opened, open_model
from calibrant.testing import tiny_folder, tiny_model
from calibrant.testing.tiny import tiny_gguf, tiny_tokenizer


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tiny_folder(tmp_path_factory.mktemp("model") / "llama", "llama")
    return open_model(str(folder), "float64")


@pytest.fixture(scope="session")
def pruned(opened: Opened) -> Opened:
    """The same model with a few weights gone."""
    model = tiny_model("llama", torch.float64)
    with torch.no_grad():
        weight = model.model.layers[1].mlp.down_proj.weight
        weight[weight.abs() < weight.abs().median()] = 0
    return Opened(model, opened.tokenizer, "pruned", "sha256:0", "", torch.float64)


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "mine.jsonl"
    lines = [
        json.dumps({"text": f"Document {i}: " + "é and more. " * (1 + i % 3)}) for i in range(24)
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def files_without_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Files by their type: llama.cpp reads no tokenizer that has no merges, and the tests' has
    none.
    """
    folder, add = tmp_path_factory.mktemp("gguf"), gguf.GGUFWriter.add_tokenizer_model
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            gguf.GGUFWriter, "add_tokenizer_model", lambda writer, name: add(writer, "none")
        )
        return {kind: tiny_gguf(folder / f"{kind}.gguf", kind) for kind in ("F32", "Q8_0", "Q4_0")}


@pytest.fixture
def bare(
    files_without_tokenizer: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """The same files, whose tokenizer comes from elsewhere."""
    for module in ("evaluators._engines", "models.gguf_file"):
        monkeypatch.setattr(f"calibrant.{module}.gguf_tokenizer", lambda path: tiny_tokenizer())
    return files_without_tokenizer
