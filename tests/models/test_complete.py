"""Tensors that the model has no place for, and numbers that are no floats, are refused by name; what old files carry along is passed over."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibrant.errors import ModelError
from calibrant.models import open_model
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import FAMILIES

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("gpt2") / "model", "gpt2")


def changed(sound: Path, place: Path, change: Callable[[Tensors], object]) -> Path:
    folder = Path(shutil.copytree(sound, place / "copy"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def integers(name: str, kind: torch.dtype) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensors[name].mul(100).to(kind)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(stranger=torch.zeros(3)), "holds 'stranger', which a model of this configuration has no place for"),
        (lambda t: t.update({"model.layers.3.mlp.up_proj.weight": torch.zeros(64, 32)}), "holds 'model.layers.3.mlp.up_proj.weight', which a model"),
        (integers("model.layers.1.mlp.up_proj.weight", torch.int8), "holds 'model.layers.1.mlp.up_proj.weight' as I8, and weights are F64, F32"),
        (integers("model.norm.weight", torch.int64), "holds 'model.norm.weight' as I64"),
        (integers("lm_head.weight", torch.bool), "holds 'lm_head.weight' as BOOL"),
        (integers("lm_head.weight", torch.float8_e4m3fn), "holds 'lm_head.weight' as F8_E4M3"),
    ],
)
def test_what_does_not_belong_is_named(sound: Path, tmp_path: Path, change: Callable[[Tensors], object], said: str):
    folder = changed(sound, tmp_path, change)
    with pytest.raises(ModelError, match=said):
        open_model(str(folder), "float32", "cpu")


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.float32])
def test_the_causal_masks_of_old_files_are_passed_over(gpt2: Path, tmp_path: Path, kind: torch.dtype):
    folder = changed(gpt2, tmp_path, lambda t: t.update({"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).tril().to(kind)}))
    assert open_model(str(folder), "float32", "cpu").model.config.model_type == "gpt2"


def test_the_angles_of_old_files_are_passed_over(sound: Path, tmp_path: Path):
    folder = changed(sound, tmp_path, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    assert len(open_model(str(folder), "float32", "cpu").model.model.layers) == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_its_own_files(family: str, tmp_path: Path):
    tiny_folder(tmp_path / "model", family)
    assert open_model(str(tmp_path / "model"), "float32", "cpu").model.num_parameters() > 0
