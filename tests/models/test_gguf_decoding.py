"""Tensors of GGUF files: the bits that gguf's own decoder gives, by whatever decoder and in
however many pieces, and where transformers puts them.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, modeling_gguf_pytorch_utils

from calibrant.llama_cpp import can_decode, decode_blocks
from calibrant.models import gguf_decoding, gguf_file
from calibrant.testing.tiny import tiny_model

KINDS = [kind for kind in gguf.GGMLQuantizationType if gguf.GGML_QUANT_SIZES[kind][0] > 1]
LEGACY: Any = modeling_gguf_pytorch_utils


def random_blocks(kind: gguf.GGMLQuantizationType, count: int) -> np.ndarray:
    """Any bytes are blocks of any kind."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    numbers = np.random.default_rng(int(kind))
    return numbers.integers(0, 256, count // block * size, dtype=np.uint8)


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether all bits are equal, but for those of what is no number."""
    unordered = np.isnan(one) & np.isnan(other)
    return bool(np.all(unordered | (one.view(np.uint32) == other.view(np.uint32))))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_llama_cpp_gives_the_bits_that_gguf_gives(kind: gguf.GGMLQuantizationType) -> None:
    if not can_decode(kind.name):
        pytest.skip("llama.cpp isn't here, or has no decoder for it")
    blocks = random_blocks(kind, 2**16)
    numbers = np.empty(2**16, dtype=np.float32)
    decode_blocks(blocks, kind.name, numbers)
    with np.errstate(all="ignore"):
        assert same_bits(numbers, gguf.dequantize(blocks, kind))
    with pytest.raises(ValueError, match="bytes"):
        decode_blocks(blocks[:-1], kind.name, numbers)


def file_of(folder: Path, architecture: str, tensors: dict[str, tuple[np.ndarray, str]]) -> Path:
    """A GGUF file of these tensors, each of a kind."""
    path = folder / "some.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("some")
    writer.add_block_count(3)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(64)
    for name, (numbers, kind) in tensors.items():
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(numbers, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_threads_decode_a_tensor_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    numbers = np.random.default_rng(0).normal(size=(300, 512)).astype(np.float32)
    kinds = ("F32", "F16", "BF16", "Q8_0", "Q5_1")
    path = file_of(tmp_path, "llama", {kind: (numbers, kind) for kind in kinds})
    if not native:
        monkeypatch.setattr(gguf_decoding, "can_decode", lambda kind: False)
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda count=threads: count)
        for tensor in gguf.GGUFReader(path).tensors:
            expected = gguf.dequantize(np.array(tensor.data), tensor.tensor_type)
            found = gguf_decoding.decoded(path, tensor, dtype)
            assert torch.equal(found, torch.from_numpy(expected).to(dtype)), tensor.name


def test_a_file_that_ends_too_soon_is_noticed(tmp_path: Path) -> None:
    numbers = np.ones((300, 512), dtype=np.float32)
    path = file_of(tmp_path, "llama", {"some": (numbers, "Q8_0")})
    tensor = gguf.GGUFReader(path).tensors[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="some"):
        gguf_decoding.decoded(path, tensor, torch.bfloat16)


def a_model(architecture: str) -> Any:
    if architecture != "mamba":
        return tiny_model({"qwen3moe": "qwen3_moe"}.get(architecture, architecture))
    config = AutoConfig.for_model(
        "mamba", vocab_size=64, hidden_size=32, state_size=64, num_hidden_layers=3
    )
    return AutoModelForCausalLM.from_config(config)


def tensors_for(model: Any, architecture: str) -> dict[str, tuple[np.ndarray, str]]:
    """For each of the model's parameters a tensor under its name in GGUF files; matrices are
    packed, and stay negative, since of some a logarithm is taken.
    """
    chance = np.random.default_rng(0)
    processor = LEGACY.TENSOR_PROCESSORS.get(architecture, LEGACY.TensorProcessor)({})
    parameters = model.state_dict()
    tensors: dict[str, tuple[np.ndarray, str]] = {}
    for name, place in LEGACY.get_gguf_hf_weights_map(model, processor).items():
        shape = tuple(parameters[place].shape)
        kind = "F32"
        if len(shape) > 1:
            shape = (*shape[:-1], 64)
            kind = "Q8_0"
        if not name.endswith((".weight", ".bias")) and "exps" in name:
            name = f"{name}.weight"
        tensors[name] = (-chance.uniform(0.1, 1, shape).astype(np.float32), kind)
    return tensors


def loaded(path: Path, model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    return LEGACY.load_gguf_checkpoint(str(path), True, model, dtype)["tensors"]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gpt2", "mamba", "qwen3moe"])
def test_tensors_get_the_names_and_the_order_that_transformers_gives_them(
    tmp_path: Path, architecture: str
) -> None:
    model = a_model(architecture)
    path = file_of(tmp_path, architecture, tensors_for(model, architecture))
    for dtype in (torch.float32, torch.bfloat16):
        expected = loaded(path, model, dtype)
        with gguf_file._read_quickly():
            found = loaded(path, model, dtype)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name].to(dtype), tensor.to(dtype)), name
            assert found[name].stride() == tensor.stride(), name
