"""A rounded KV cache as compressed-tensors and vLLM have it: what stands in the folder, and what it
opens as.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibrant.activations import Seen
from calibrant.compress import quantize
from calibrant.errors import OutputError
from calibrant.methods import MatrixMethod, methods
from calibrant.models import open_model
from calibrant.models.rounded_cache import rounded_caches
from calibrant.packed import Compressed
from calibrant.targets import Grid, Target
from calibrant.testing import tiny_folder

from tests.models.refused import refusal_of

NAME = "compressed_tensors"
IDS = torch.arange(3, 35).reshape(2, 16)
TARGETS = ["w4g32+kv_fp8", "W8A8+kv_fp8(per=head)", "FP8+kv_int8", "kv_fp8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders that are made once and only read."""

    @cache
    def make(target: str) -> Path:
        place = tmp_path_factory.mktemp("made")
        folder = tiny_folder(place / "model", "llama", tie_word_embeddings=False)
        quantize(
            str(folder),
            data="python_docs",
            samples=4,
            length=64,
            target=target,
            out=place / "out",
            dtype="bfloat16",
            export=NAME,
        )
        return place / "out"

    return make


@pytest.mark.parametrize("target", TARGETS)
def test_scales_stand_beside_each_attention(made: Callable[[str], Path], target: str):
    out = made(target)
    config = json.loads((out / NAME / "config.json").read_text("utf-8"))
    per_head = "per=head" in target
    assert config["quantization_config"]["kv_cache_scheme"] == {
        "num_bits": 8,
        "type": "int" if "int8" in target else "float",
        "symmetric": True,
        "strategy": "attn_head" if per_head else "tensor",
        "dynamic": False,
    }
    stored = load_file(out / NAME / "model.safetensors")
    caches = rounded_caches(open_model(str(out)).model)
    assert len(caches) == 3
    for name, rounding in caches.items():
        for part, scales in (("k_scale", rounding.keys), ("v_scale", rounding.values)):
            tensor = stored[f"{name}.{part}"]
            assert tuple(tensor.shape) == ((2, 1, 1) if per_head else (1,))
            assert tensor.flatten().tolist() == list(scales)


@pytest.mark.parametrize("target", TARGETS)
def test_it_opens_here_with_the_same_logits(made: Callable[[str], Path], target: str):
    out = made(target)
    packed = open_model(str(out / NAME), "bfloat16", "cpu")
    assert rounded_caches(packed.model) == rounded_caches(open_model(str(out)).model)
    with torch.no_grad():
        expected = open_model(str(out), "bfloat16", "cpu").model(IDS).logits
        assert torch.equal(packed.model(IDS).logits, expected)


def test_a_cache_that_is_declared_otherwise_is_refused(made: Callable[[str], Path], tmp_path: Path):
    folder = tmp_path / "folder"
    shutil.copytree(made("w4g32+kv_fp8") / NAME, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    tensors = load_file(folder / "model.safetensors")
    attention = "model.layers.1.self_attn"
    name = f"{attention}.k_scale"
    for broken in (torch.tensor([-1.0]), torch.tensor([1.0, 2.0]), None):
        others = {other: tensor for other, tensor in tensors.items() if other != name}
        if broken is not None:
            others[name] = broken
        save_file(others, folder / "model.safetensors", metadata={"format": "pt"})
        assert refusal_of(open_model, str(folder)).subject == attention
    # Neither of its scales.
    both = (name, f"{attention}.v_scale")
    others = {other: tensor for other, tensor in tensors.items() if other not in both}
    save_file(others, folder / "model.safetensors", metadata={"format": "pt"})
    assert refusal_of(open_model, str(folder)).subject == attention
    config["quantization_config"]["kv_cache_scheme"]["num_bits"] = 4
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    assert refusal_of(open_model, str(folder)).subject == str(folder)


def test_scales_stay_what_they_are_in_another_type(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model", "llama"))
    first, second = tmp_path / "first", tmp_path / "second"
    data: dict[str, Any] = {"data": "python_docs", "samples": 4, "length": 32}
    quantize(folder, target="kv_int8", out=first, dtype="float32", **data)
    quantize(str(first), target="w8", out=second, dtype="bfloat16", export=NAME)
    expected = rounded_caches(open_model(str(first)).model)
    assert rounded_caches(open_model(str(second / NAME)).model) == expected


def test_inputs_that_are_rounded_beside_plain_weights_are_refused(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model", "llama"))
    rounded = tmp_path / "rounded"
    quantize(folder, target="W8A8", out=rounded, dtype="float32")
    job: dict[str, Any] = {"data": "python_docs", "samples": 4, "length": 32, "export": NAME}
    out = tmp_path / "out"
    refused = refusal_of(quantize, str(rounded), target="kv_fp8", out=out, **job, kind=OutputError)
    assert refused.subject == "kv_fp8"
    assert not out.exists()
    done = quantize(str(rounded), target="w8+kv_fp8", out=out, dtype="float32", **job)
    with torch.no_grad():
        expected = done.model(IDS).logits
        assert torch.equal(open_model(str(out / NAME), "float32").model(IDS).logits, expected)


@dataclass(frozen=True, repr=False)
class Uncoded(MatrixMethod):
    """Rounds weights as `rtn` does, and gives no codes."""

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid,)

    def compress(self, weight: Tensor, seen: Seen, target: Target) -> Compressed:
        rounded: Compressed = methods.build("rtn").compress(weight, seen, target)
        return Compressed(rounded.weight)


@pytest.mark.parametrize("before", ["", "kv_int8"])
def test_weights_without_codes_are_refused_beside_a_rounded_cache(before: str, tmp_path: Path):
    """Also where the model had that cache before, and the target says nothing of it."""
    folder = str(tiny_folder(tmp_path / "model", "llama"))
    data: dict[str, Any] = {"data": "python_docs", "samples": 4, "length": 32, "dtype": "float32"}
    target = "w8+kv_fp8"
    if before:
        target = "w8"
        quantize(folder, target=before, out=tmp_path / "before", **data)
        folder = str(tmp_path / "before")
    out = tmp_path / "out"
    job: dict[str, Any] = {"method": Uncoded(), "out": out, "export": NAME, **data}
    refused = refusal_of(quantize, folder, target=target, **job, kind=OutputError)
    assert refused.subject == NAME
    assert f"no codes in what {target} made" in str(refused)
    assert not out.exists()
