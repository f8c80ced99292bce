"""What `export` makes of a finished model, wherever it runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError

from calibrant.compress import export
from calibrant.errors import ModelError
from calibrant.models import devices, load, open_model
from calibrant.testing import tiny_folder, tiny_model
from calibrant.testing.tiny import tiny_gguf


def test_a_gguf_file_keeps_its_numbers_where_bfloat16_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_native_bfloat16", lambda device: True)
    file = tiny_gguf(tmp_path / "tiny.gguf")
    export(file, tmp_path / "plain")
    expected = open_model(str(file), "float32", "cpu").model.state_dict()
    found = load(tmp_path / "plain", "cpu").state_dict()
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert torch.equal(found[name], numbers), name


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tiny_folder(tmp_path / "model")
    done = export(folder, "~/small", "sparse")
    assert done.out == tmp_path / "small"
    assert (tmp_path / "small" / "calibrant.json").is_file()


def test_an_open_model_is_refused_in_words(tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    with pytest.raises((ModelError, TypeCheckError)) as caught:
        export(model, tmp_path / "out")
    if isinstance(caught.value, ModelError):
        assert caught.value.subject == "LlamaForCausalLM"
