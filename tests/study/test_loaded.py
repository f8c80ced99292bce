"""What the state of a compressed model is read as."""

import struct
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from calibrant.edits.file import to_bytes
from calibrant.lab.study.loaded import LoadedModel, room
from calibrant.models import open_model
from calibrant.testing import tiny_folder, tiny_model


def test_edits_whose_header_is_as_long_as_a_zip_file_says_are_no_mask(tmp_path: Path):
    loaded = LoadedModel(open_model(str(tiny_folder(tmp_path / "model")), "float32"))
    content = to_bytes([])
    (length,) = struct.unpack("<Q", content[:8])
    longer = int.from_bytes(b"PK", "little")
    header = content[8 : 8 + length].ljust(longer)
    edits = struct.pack("<Q", longer) + header + content[8 + length :]
    assert edits.startswith(b"PK")
    loaded.apply(edits)


def test_activations_may_fill_half_of_the_machine_or_of_what_models_leave_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
):
    model = tiny_model("llama")
    assert room(model) == int(psutil.virtual_memory().total / 2)
    held = sum(parameter.nbytes for parameter in model.parameters())
    card = SimpleNamespace(total_memory=3 * held + 1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    assert room(model) == 500
