"""A model whose blocks are on disk is the model in memory: the same numbers while a block is
held, the same files when it is saved.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from calibrant.errors import NumericsError
from calibrant.models import check_finite, open_model, outline_of, save, view
from calibrant.models.on_disk import write_shards
from calibrant.testing import FAMILIES, tiny_folder

from tests.models.refused import refusal_of
from tests.usual import usually

FEW = ("llama", "gpt2", "mixtral")


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("dtype", usually(["bfloat16", "float32"], {"bfloat16"}))
@pytest.mark.parametrize("family", usually(FAMILIES, FEW))
def test_a_held_block_has_the_numbers_that_it_has_in_memory(
    family: str, dtype: str, tmp_path: Path
) -> None:
    folder = str(tiny_folder(tmp_path / "model", family))
    whole, parted = open_model(folder, dtype), open_model(folder, dtype, on_disk=True)
    here, there = view(whole.model), view(parted.model, parted.residence)
    assert [weight.name for weight in there.weights] == [weight.name for weight in here.weights]
    assert there.dense == here.dense
    assert there.tied == here.tied
    assert parted.digest == whole.digest
    for block, same in zip(there.blocks, here.blocks, strict=True):
        assert all(parameter.is_meta for parameter in block.module.parameters())
        with there.held(block):
            alike(block.module, same.module)
        assert all(parameter.is_meta for parameter in block.module.parameters())
    outside = {name: p for name, p in parted.model.named_parameters() if not p.is_meta}
    assert outside
    assert all(
        torch.equal(p, whole.model.get_parameter(name))
        and p.dtype == whole.model.get_parameter(name).dtype
        for name, p in outside.items()
    )
    for (name, buffer), (other, same) in zip(
        parted.model.named_buffers(), whole.model.named_buffers(), strict=True
    ):
        assert name == other
        assert buffer.dtype == same.dtype
        assert torch.equal(buffer, same)


def alike(module: nn.Module, other: nn.Module) -> None:
    for (name, parameter), (same_name, same) in zip(
        module.named_parameters(), other.named_parameters(), strict=True
    ):
        assert name == same_name
        assert parameter.dtype == same.dtype
        assert torch.equal(parameter, same)


@pytest.mark.parametrize("family", usually(FAMILIES, FEW))
def test_saved_it_is_the_same_bytes(family: str, tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "model", family))
    save(open_model(folder, "bfloat16"), tmp_path / "whole", {})
    save(open_model(folder, "bfloat16", on_disk=True), tmp_path / "parted", {})
    assert folder_bytes(tmp_path / "parted") == folder_bytes(tmp_path / "whole")


@pytest.mark.parametrize("family", usually(["llama", "mixtral"], {"mixtral"}))
def test_several_shards_are_the_same_bytes(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "model", family)
    small = tmp_path / "sharded"
    open_model(str(folder), "float32").model.save_pretrained(small, max_shard_size="60KB")
    assert len(list(small.glob("*.safetensors"))) > 2
    for beside in ("tokenizer.json", "tokenizer_config.json"):
        (small / beside).write_bytes((folder / beside).read_bytes())
    parted = open_model(str(small), "float32", on_disk=True)
    assert view(parted.model, parted.residence).blocks
    own = PreTrainedModel.save_pretrained

    def smaller(
        self: Any, save_directory: Any, max_shard_size: str = "60KB", **kwargs: Any
    ) -> None:
        own(self, save_directory, max_shard_size=max_shard_size, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", smaller)
    write_shards(parted.model, parted.residence, tmp_path / "out")
    assert folder_bytes(tmp_path / "out") == {
        name: content
        for name, content in folder_bytes(small).items()
        if not name.startswith("tokenizer")
    }


def test_what_a_block_lacks_is_named(folder: Path) -> None:
    path, name, odd = (
        folder / "model.safetensors",
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.9.odd",
    )
    state = load_file(path)
    for held, subject in (
        ({key: tensor for key, tensor in state.items() if key != name}, name),
        ({**state, name: state[name][:5]}, name),
        ({**state, odd: state[name].clone()}, odd),
    ):
        save_file(held, path, metadata={"format": "pt"})
        assert refusal_of(open_model, str(folder), "float32", on_disk=True).subject == subject


def test_numbers_that_are_not_finite_and_files_that_are_gone_are_found_when_a_block_is_read(
    folder: Path,
) -> None:
    state = load_file(folder / "model.safetensors")
    state["model.layers.2.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    opened = open_model(str(folder), "float32", on_disk=True)
    seen_by = view(opened.model, opened.residence)
    assert (
        refusal_of(check_finite, seen_by, kind=NumericsError).subject
        == "model.layers.2.mlp.up_proj"
    )
    (folder / "model.safetensors").unlink()
    assert refusal_of(seen_by.held(seen_by.blocks[0]).__enter__).subject == str(folder)
    assert all(parameter.is_meta for parameter in seen_by.blocks[0].module.parameters())


def test_what_cannot_be_left_on_disk_is_refused(gguf_file: Path, sound: Path) -> None:
    assert refusal_of(open_model, str(gguf_file), "float32", on_disk=True).subject == str(gguf_file)
    outline = outline_of(str(gguf_file))
    assert outline is not None
    assert not outline.divisible
    opened = open_model(str(sound), "float32", on_disk=True)
    assert refusal_of(view, opened.model).subject == "model.layers.0.self_attn.q_proj.weight", (
        "nobody would read its numbers"
    )


def test_an_outline_has_shapes_and_no_numbers(sound: Path) -> None:
    outline = outline_of(str(sound), "float32")
    assert outline is not None
    assert outline.dtype is torch.float32
    opened = open_model(str(sound), "float32")
    shapes = [(matrix.outputs, matrix.inputs) for matrix in outline.shape.matrices]
    assert shapes == [weight.shape for weight in view(opened.model).weights]
