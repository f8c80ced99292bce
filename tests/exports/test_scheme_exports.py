"""What compressed-tensors makes of an exported scheme is what was measured: in float32 transformers
with that library gives the same logits, to the last bit.
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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from calibrant.compress import quantize
from calibrant.models import open_model
from calibrant.models.rounded_inputs import INPUTS, rounding_modules
from calibrant.targets.scheme import SCHEMES
from calibrant.testing import tiny_folder

from tests.models.refused import refusal_of

NAME = "compressed_tensors"
IDS = torch.arange(3, 35).reshape(2, 16)


def logits_of(folder: Path) -> Tensor:
    """The logits that a folder gives in float32."""
    with torch.no_grad():
        return open_model(str(folder), "float32", "cpu").model(IDS).logits


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Folders that are made once and only read."""

    @cache
    def make(target: str, dtype: str) -> Path:
        place = tmp_path_factory.mktemp("made")
        sizes = {"hidden_size": 128, "intermediate_size": 256}
        folder = tiny_folder(place / "model", "llama", tie_word_embeddings=False, **sizes)
        quantize(
            str(folder),
            data="python_docs",
            samples=4,
            length=64,
            target=target,
            out=place / "out",
            dtype=dtype,
            export=NAME,
        )
        return place / "out"

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", SCHEMES)
def test_their_reader_rounds_inputs_as_we_do(
    made: Callable[[str, str], Path], target: str, dtype: str
):
    """Both compute in float32, with the numbers of the model's type: in bfloat16 the library rounds
    the scales of inputs to that type, which is coarser than what is served.
    """
    pytest.importorskip(
        "compressed_tensors", reason="the reader library compressed-tensors isn't installed"
    )
    if target in ("NVFP4", "MXFP4") and dtype == "float32":
        pytest.skip("their weights open in bfloat16")
    out = made(target, dtype)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        opened: Any = AutoModelForCausalLM.from_pretrained(
            out / NAME, dtype=getattr(torch, dtype), output_loading_info=True
        )
        theirs, loaded = opened
        theirs.eval()(IDS)  # unpacks at the first forward
        # transformers' own `float` refuses quantized models.
        logits = nn.Module.float(theirs)(IDS).logits
    assert not loaded["missing_keys"]
    assert not loaded["unexpected_keys"]
    measured = logits_of(out)
    assert torch.equal(logits, measured)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", SCHEMES)
def test_it_opens_here_with_the_same_logits(
    made: Callable[[str, str], Path], target: str, dtype: str
):
    if target in ("NVFP4", "MXFP4") and dtype == "float32":
        pytest.skip("their weights open in bfloat16")
    out = made(target, dtype)
    packed = open_model(str(out / NAME), dtype, "cpu")
    assert len(rounding_modules(packed.model)) == 21
    with torch.no_grad():
        assert torch.equal(
            packed.model(IDS).logits, open_model(str(out), dtype, "cpu").model(IDS).logits
        )


@pytest.mark.parametrize("target", SCHEMES)
def test_static_scales_are_stored_and_only_those(made: Callable[[str, str], Path], target: str):
    out = made(target, "bfloat16")
    stored = load_file(out / NAME / "model.safetensors")
    rounding = rounding_modules(open_model(str(out)).model)
    assert len(rounding) == 21
    part = {"FP8": "input_scale", "NVFP4": "input_global_scale"}.get(target)
    found = {name: tensor for name, tensor in stored.items() if "proj.input_" in name}
    assert len(found) == (21 if part else 0)
    for name, tensor in found.items():
        module, _, last = name.rpartition(".")
        assert last == part
        assert tensor.tolist() == [rounding[module].static_scale]
    config = json.loads((out / NAME / "config.json").read_text("utf-8"))
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["input_activations"]["dynamic"] in ({"NVFP4": "local"}.get(target), part is None)
    assert not (out / NAME / INPUTS).exists()


def test_inputs_that_are_declared_otherwise_are_refused(
    made: Callable[[str, str], Path], tmp_path: Path
):
    shutil.copytree(made("FP8", "bfloat16") / NAME, tmp_path / "folder")
    config = json.loads((tmp_path / "folder" / "config.json").read_text("utf-8"))
    tensors = load_file(tmp_path / "folder" / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.input_scale"
    for broken in (torch.tensor([-1.0]), torch.tensor([1.0, 2.0]), None):
        others = {other: tensor for other, tensor in tensors.items() if other != name}
        if broken is not None:
            others[name] = broken
        save_file(others, tmp_path / "folder" / "model.safetensors", metadata={"format": "pt"})
        subject = refusal_of(open_model, str(tmp_path / "folder")).subject
        assert subject == name.removesuffix(".input_scale")
    (group,) = config["quantization_config"]["config_groups"].values()
    group["input_activations"]["num_bits"] = 6
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config), "utf-8")
    assert refusal_of(open_model, str(tmp_path / "folder")).subject == str(tmp_path / "folder")


@pytest.mark.parametrize("targets", [["re:.*proj"], ["LlamaMLP"], ["model.layers.9.up_proj"], None])
def test_inputs_of_what_is_not_named_are_refused(
    made: Callable[[str, str], Path], tmp_path: Path, targets: list[str] | None
):
    folder = tmp_path / "folder"
    shutil.copytree(made("W8A8", "bfloat16") / NAME, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["quantization_config"]["config_groups"]["group_0"]["targets"] = targets
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    refused = refusal_of(open_model, str(folder))
    assert refused.subject == str(folder)
    assert str((targets or [None])[0]) in str(refused)


def test_a_named_matrix_keeps_its_inputs_where_its_own_group_says_so(
    made: Callable[[str, str], Path], tmp_path: Path
):
    folder = tmp_path / "folder"
    shutil.copytree(made("W8A8", "bfloat16") / NAME, folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    groups = config["quantization_config"]["config_groups"]
    name = "model.layers.1.mlp.up_proj"
    groups["group_1"] = {**groups["group_0"], "targets": [name], "input_activations": None}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    rounding = rounding_modules(open_model(str(folder)).model)
    assert len(rounding) == 20
    assert name not in rounding
