"""What compressed-tensors' own reader makes of the folder is what was measured, to the last bit; and so is what we make of it."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibrant.compress import prune, quantize
from calibrant.errors import ModelError, OutputError
from calibrant.evaluators import evaluate
from calibrant.models import open_model
from calibrant.models.packed_folder import pack_codes, unpack_codes
from calibrant.testing import tiny_folder

IDS = torch.arange(3, 35).reshape(2, 16)


@given(some.integers(2, 8), some.integers(1, 5), some.integers(1, 70), some.randoms())
def test_packed_words_by_hand_and_back(bits: int, rows: int, columns: int, random) -> None:
    codes = torch.tensor([[random.randrange(-(2 ** (bits - 1)), 2 ** (bits - 1)) for _ in range(columns)] for _ in range(rows)], dtype=torch.int8)
    words = pack_codes(codes, bits)
    for row, packed in zip(codes.tolist(), words.tolist(), strict=True):
        whole = sum((word % 2**32) << (32 * at) for at, word in enumerate(packed))
        assert whole == sum((code + 2 ** (bits - 1)) << (bits * at) for at, code in enumerate(row))
    assert words.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(unpack_codes(words, bits, columns), codes)


def made(tmp_path: Path, target: str, dtype: str = "float32", family: str = "llama", **overrides: object) -> Path:
    folder = tiny_folder(tmp_path / "model", family, **overrides)
    quantize(str(folder), target=target, out=tmp_path / "out", dtype=dtype, export="compressed_tensors")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("target", "tied"),
    [("w4g16", False), ("w4g16", True), ("w8", False), ("w8g32", False), ("w2g16", False), ("w3", False), ("w5g16", False), ("w6g16", False)],
)
def test_it_opens_here_with_the_same_logits(tmp_path: Path, target: str, tied: bool) -> None:
    out = made(tmp_path, target, tie_word_embeddings=tied)
    dense, packed = open_model(str(out), "float32", "cpu"), open_model(str(out / "compressed_tensors"), "float32", "cpu")
    assert torch.equal(dense.model(IDS).logits, packed.model(IDS).logits)
    assert packed.tokenizer("abc").input_ids == dense.tokenizer("abc").input_ids
    stored = load_file(out / "compressed_tensors" / "model.safetensors")
    assert sum(name.endswith("weight_packed") for name in stored) == 21
    assert sum(name.endswith("_proj.weight") for name in stored) == 0


@pytest.mark.parametrize(
    ("target", "tied", "dtype"), [("w4g16", False, "float32"), ("w8", True, "float32"), ("w3g16", False, "float32"), ("w4g16", False, "bfloat16")]
)
def test_their_reader_gives_the_same_logits_and_knows_every_tensor(tmp_path: Path, target: str, tied: bool, dtype: str) -> None:
    pytest.importorskip("compressed_tensors", reason="the reader library compressed-tensors isn't installed")
    out = made(tmp_path, target, dtype, tie_word_embeddings=tied)
    kind = getattr(torch, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, loaded = AutoModelForCausalLM.from_pretrained(out / "compressed_tensors", dtype=kind, output_loading_info=True)
        theirs.eval()
        logits = theirs(IDS).logits  # unpacks at the first forward
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=kind).eval()
    assert (logits - ours(IDS).logits).abs().max() == 0.0


def test_the_configuration_lists_what_is_dense(tmp_path: Path) -> None:
    settings = json.loads((made(tmp_path, "w4g16") / "compressed_tensors" / "config.json").read_text())["quantization_config"]
    assert (settings["quant_method"], settings["format"], settings["ignore"]) == ("compressed-tensors", "pack-quantized", ["lm_head"])
    (group,) = settings["config_groups"].values()
    assert group["targets"] == ["Linear"]
    scheme = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16, "dynamic": False}
    assert group["weights"] == scheme


def test_what_it_cannot_hold_is_one_sentence_before_any_work(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "model"))
    with pytest.raises(OutputError, match=r"holds symmetric codes, .* and w4g16a has zero points; quantize to w4g16"):
        quantize(folder, target="w4g16a", out=tmp_path / "out", dtype="float32", export="compressed_tensors")
    with pytest.raises(OutputError, match=r"holds codes of a grid, and 0.5 is none"):
        prune(folder, "python_docs", "magnitude", 0.5, tmp_path / "out", dtype="float32", export="compressed_tensors")
    moe = str(tiny_folder(tmp_path / "moe", "olmoe"))
    with pytest.raises(OutputError, match=r"holds linear layers, and model.layers.0.mlp.experts.gate_up_proj\[0\] is in a OlmoeExperts"):
        quantize(moe, target="w4g16", out=tmp_path / "out", dtype="float32", export="compressed_tensors")
    assert not (tmp_path / "out").exists()


def test_what_is_measured_on_it_knows_what_it_was_made_from(tmp_path: Path) -> None:
    out = made(tmp_path, "w4g16")
    dense, packed = (
        evaluate(str(place), "agreement(source=python_docs, tokens=64, length=16)")[0].score for place in (out, out / "compressed_tensors")
    )
    assert dense.value == packed.value > 0


def edited(folder: Path, change) -> str:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.update(format="sparse-24-bitmask"), r"stored as sparse-24-bitmask, which transformers would fill with random numbers"),
        (
            lambda s: s.update(sparsity_config={"format": "sparse-24-bitmask"}),
            r"stored as sparse-24-bitmask, .*give the model before its compression",
        ),
        (lambda s: s.update(format="marlin-24"), r"quantized already \(compressed-tensors, marlin-24\)"),
        (
            lambda s: s["config_groups"]["group_0"]["weights"].update(symmetric=False),
            r"a kind that isn't read .*; symmetric integers of 2 to 8 bits are",
        ),
        (
            lambda s: s["config_groups"]["group_0"]["weights"].update(num_bits=5),
            r"\[32, 64\] numbers of 5 bits, packed as \[32, 8\] with scales \[32, 4\], which don't fit",
        ),
        (lambda s: s["config_groups"]["group_0"].update(targets=["re:none"]), r"doesn't say how many bits the weights of model.layers.0"),
    ],
)
def test_what_would_be_random_elsewhere_is_refused_by_name(tmp_path: Path, change, said: str) -> None:
    folder = edited(made(tmp_path, "w4g16") / "compressed_tensors", change)
    with pytest.raises(ModelError, match=said):
        open_model(folder, "float32", "cpu")


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    folder = made(tmp_path, "w4g16") / "compressed_tensors"
    stored = load_file(folder / "model.safetensors")
    stored.pop("model.layers.1.mlp.up_proj.weight_scale")
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model.layers.1.mlp.up_proj lacks a part of its packed weight"):
        open_model(str(folder), "float32", "cpu")


def test_a_method_that_makes_no_codes_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    with pytest.raises(OutputError) as refused:
        quantize(str(folder), None, "none", "w4g16", tmp_path / "out", dtype="float32", export="compressed_tensors")
    assert refused.value.subject == "none"
    assert list(tmp_path.iterdir()) == [folder]
