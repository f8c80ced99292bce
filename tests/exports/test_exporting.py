"""What `export` makes of a finished model, wherever it runs."""

from pathlib import Path

import pytest
import torch

from calibrant.compress import export
from calibrant.models import devices, load, open_model
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
