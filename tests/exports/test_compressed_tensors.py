"""What compressed-tensors' own reader makes of the folder is what was measured, to the last bit;
and so is what we make of it.
"""

import json
import shutil
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from calibrant.compress import prune, quantize
from calibrant.errors import OutputError
from calibrant.models import open_model
from calibrant.models.packed_folder import pack_codes, unpack_codes
from calibrant.testing import tiny_folder, tiny_tokenizer

from tests.models.refused import refusal_of
from tests.usual import usually

IDS = torch.arange(3, 35).reshape(2, 16)
NAME = "compressed_tensors"


@given(some.integers(2, 8), some.integers(1, 5), some.integers(1, 70), some.randoms())
def test_packed_words_by_hand_and_back(bits: int, rows: int, columns: int, random) -> None:
    codes = torch.tensor(
        [
            [random.randrange(-(2 ** (bits - 1)), 2 ** (bits - 1)) for _ in range(columns)]
            for _ in range(rows)
        ],
        dtype=torch.int8,
    )
    words = pack_codes(codes, bits)
    for row, packed in zip(codes.tolist(), words.tolist(), strict=True):
        whole = sum((word % 2**32) << (32 * at) for at, word in enumerate(packed))
        assert whole == sum((code + 2 ** (bits - 1)) << (bits * at) for at, code in enumerate(row))
    assert words.shape == (rows, -(-columns * bits // 32))
    assert torch.equal(unpack_codes(words, bits, columns), codes)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders that are made once and only read."""

    @cache
    def make(target: str, dtype: str = "float32", tied: bool = False) -> Path:
        place = tmp_path_factory.mktemp("made")
        folder = tiny_folder(place / "model", "llama", tie_word_embeddings=tied)
        quantize(str(folder), target=target, out=place / "out", dtype=dtype, export=NAME)
        return place / "out"

    return make


FEW = ("w4g16 tied", "w8", "w3g16")


@pytest.mark.parametrize(
    "target", usually(["w4g16", "w4g16 tied", "w8", "w2g16", "w3g16", "w5g16", "w6g16"], FEW)
)
def test_it_opens_here_with_the_same_logits(made: Callable[..., Path], target: str) -> None:
    out = made(target.removesuffix(" tied"), tied="tied" in target)
    dense, packed = (
        open_model(str(out), "float32", "cpu"),
        open_model(str(out / NAME), "float32", "cpu"),
    )
    assert torch.equal(dense.model(IDS).logits, packed.model(IDS).logits)
    assert packed.tokenizer("abc").input_ids == dense.tokenizer("abc").input_ids
    stored = load_file(out / NAME / "model.safetensors")
    assert sum(name.endswith("weight_packed") for name in stored) == 21
    assert sum(name.endswith("_proj.weight") for name in stored) == 0


@pytest.mark.parametrize(
    ("target", "tied", "dtype"),
    [("w4g16", True, "float32"), ("w8", False, "float32"), ("w4g16", False, "bfloat16")],
)
def test_their_reader_gives_the_same_logits_and_knows_every_tensor(
    made: Callable[..., Path], target: str, tied: bool, dtype: str
) -> None:
    pytest.importorskip(
        "compressed_tensors", reason="the reader library compressed-tensors isn't installed"
    )
    out = made(target, dtype, tied)
    kind = getattr(torch, dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs, loaded = AutoModelForCausalLM.from_pretrained(
            out / NAME, dtype=kind, output_loading_info=True
        )
        theirs.eval()
        logits = theirs(IDS).logits  # unpacks at the first forward
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    ours = AutoModelForCausalLM.from_pretrained(out, dtype=kind).eval()
    assert (logits - ours(IDS).logits).abs().max() == 0.0


def test_several_grids_in_one_folder_open_as_the_model_that_was_measured(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "llama", tie_word_embeddings=False)
    asked: dict[str, Any] = {"data": "python_docs", "samples": 4, "length": 32, "export": NAME}
    asked |= {"allocation": "least_error(reach=2)", "target": "w4g16", "dtype": "float32"}
    done = quantize(str(folder), method="gptq", out=tmp_path / "out", **asked)
    place = tmp_path / "out" / NAME
    settings = json.loads((place / "config.json").read_text())["quantization_config"]
    bits = {group["weights"]["num_bits"] for group in settings["config_groups"].values()}
    assert len(bits) > 1
    with torch.no_grad():
        measured = done.opened.model(IDS).logits
        assert torch.equal(open_model(str(place), "float32", "cpu").model(IDS).logits, measured)
    pytest.importorskip(
        "compressed_tensors", reason="the reader library compressed-tensors isn't installed"
    )
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
        assert torch.equal(theirs(IDS).logits, measured)


def test_a_model_whose_files_have_other_names_is_refused_before_any_work(tmp_path: Path) -> None:
    text = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = AutoConfig.for_model(
        "gemma3", text_config=text, vision_config=vision, mm_tokens_per_image=4
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    job = {"target": "w4g16", "dtype": "float32", "out": tmp_path / "out", "export": NAME}
    said = refusal_of(quantize, str(tmp_path / "model"), kind=OutputError, **job)
    assert said.subject == "model.language_model.layers.0.self_attn.q_proj"
    assert not (tmp_path / "out").exists()


def test_what_it_cannot_hold_is_refused_before_any_work(tmp_path: Path) -> None:
    folder, moe = str(tiny_folder(tmp_path / "model")), str(tiny_folder(tmp_path / "moe", "olmoe"))
    options: dict[str, Any] = {
        "kind": OutputError,
        "dtype": "float32",
        "export": NAME,
        "out": tmp_path / "out",
    }
    assert refusal_of(quantize, folder, target="w4g16a", **options).subject == "w4g16a"
    assert refusal_of(quantize, folder, method="none", target="w4g16", **options).subject == "none"
    assert (
        refusal_of(
            prune, folder, data="python_docs", method="magnitude", target=0.5, **options
        ).subject
        == NAME
    )
    assert (
        refusal_of(quantize, moe, target="w4g16", **options).subject
        == "model.layers.0.mlp.experts.gate_up_proj[0]"
    )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def folder(made: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a packed folder, to be damaged."""
    return Path(shutil.copytree(made("w4g16", tied=True) / NAME, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("change", "subject", "value"),
    [
        (lambda s: s.update(format="sparse-24-bitmask"), "", "sparse-24-bitmask"),
        (
            lambda s: s.update(sparsity_config={"format": "sparse-24-bitmask"}),
            "",
            "sparse-24-bitmask",
        ),
        (
            lambda s: s["config_groups"]["group_0"]["weights"].update(symmetric=False),
            "",
            "'num_bits': 4",
        ),
        (
            lambda s: s["config_groups"]["group_0"]["weights"].update(num_bits=5),
            "model.layers.0.mlp.down_proj",
            "5 bits",
        ),
        (
            lambda s: s["config_groups"]["group_0"].update(targets=["re:none"]),
            "model.layers.0.mlp.down_proj",
            "",
        ),
    ],
)
def test_what_would_be_random_elsewhere_is_refused_by_name(
    folder: Path, change: Callable[[dict], object], subject: str, value: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    said = refusal_of(open_model, str(folder), "float32", "cpu")
    assert said.subject == (subject or str(folder))
    assert value in str(said)


def test_a_part_that_is_missing_is_named(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    stored.pop("model.layers.1.mlp.up_proj.weight_scale")
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    assert (
        refusal_of(open_model, str(folder), "float32", "cpu").subject
        == "model.layers.1.mlp.up_proj"
    )
