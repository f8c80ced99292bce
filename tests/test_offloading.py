"""Activations on disk between two blocks: the same numbers, held nowhere in memory meanwhile."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from calibrant import prune
from calibrant.activations import FeatureNorms, Gram
from calibrant.compress import Recipe, compress, room
from calibrant.compress.room import Needs
from calibrant.data import CalibrationSet
from calibrant.errors import OutputError, SpecError
from calibrant.methods import methods
from calibrant.models import ModelView, open_model, outline_of, view
from calibrant.testing import FAMILIES, tiny_folder, tiny_model
from calibrant.walk.micro_batch import MicroBatch
from calibrant.walk.offloading import Alive, Offloaded, OffloadFile
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.walking import held_between_blocks, walk

from tests.test_blocks_on_disk import asked, files
from tests.test_walk import assert_same_weights, halved, padded_batch
from tests.usual import two_hundred_lines, usually

USUAL = ("llama", "gemma3")
"""The plain one, and one of windows: others go through the same doors."""


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each tensor had that went to disk."""
    sizes, leave = list[int](), Offloaded._let_go

    def noting(self: Offloaded, tensor: Tensor) -> None:
        sizes.append(tensor.numel())
        leave(self, tensor)

    monkeypatch.setattr(Offloaded, "_let_go", noting)
    return sizes


def pruned(family: str, propagate: str, folder: Path | None) -> ModelView:
    seen_by = view(tiny_model(family))
    seen_by.offload = folder
    for weight, seen in walk(
        seen_by, padded_batch(), (FeatureNorms, Gram), propagate, tokens_per_pass=24
    ):
        weight.set(halved(weight.get().clone(), seen[Gram].norms()))
    return seen_by


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
@pytest.mark.parametrize("family", usually(FAMILIES, USUAL))
def test_a_model_is_the_same_to_the_bit(
    family: str, propagate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = watched(monkeypatch)
    there, offloaded = pruned(family, propagate, None), pruned(family, propagate, tmp_path)
    assert_same_weights(there.model, offloaded.model)
    rehearsal = rehearse(offloaded)
    micro_batches, blocks, width = 3, len(rehearsal.calls), offloaded.model.config.hidden_size
    looks = (
        2 if propagate == "reference" else 1
    )  # after it was looked at, a block's input waits once more
    assert len(sizes) == (0 if rehearsal.changes_input else micro_batches * blocks * looks)
    assert all(size % width == 0 and size > 0 for size in sizes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["awq", "rsq"])
def test_methods_that_run_blocks_again_find_what_blocks_were_given(
    method: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sizes, found = tiny_folder(tmp_path / "model"), watched(monkeypatch), []
    for place in (None, tmp_path):
        opened = open_model(str(folder), "float32", "cpu")
        seen_by = view(opened.model)
        seen_by.offload = place
        batch = CalibrationSet(texts, samples=4, length=24).tokens(opened.tokenizer)
        compress(opened, seen_by, batch, Recipe.parse(method, "w4g16", "dense"))
        found.append(opened.model)
    assert sizes
    assert_same_weights(*found)


@pytest.mark.parametrize("family", usually(FAMILIES, ("llama", "gpt2")))
def test_between_two_blocks_inputs_are_in_nobodys_memory(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all memory that a forward made, what is left at a door is what was measured beforehand,
    whatever else holds the block's input.
    """
    seen_by = view(tiny_model(family))
    beside = held_between_blocks(seen_by, padded_batch(), tokens_per_pass=24)
    held, resume = list[int](), MicroBatch.resume

    def noting(self: MicroBatch) -> None:
        with alive:
            resume(self)
        if self._called > 1 and self._entry is not None:
            held.append(alive.held())

    alive = Alive()
    monkeypatch.setattr(MicroBatch, "resume", noting)
    seen_by.offload = tmp_path
    blocks = len(seen_by.blocks)
    assert (
        list(
            walk(
                seen_by, padded_batch(), (FeatureNorms,), "dense", tokens_per_pass=24, start=blocks
            )
        )
        == []
    ), "forwards alone, and no statistics"
    assert len(held) == 3 * (len(rehearse(seen_by).calls) - 1)
    assert min(held) > 0
    assert max(held) <= beside


def test_numbers_come_back_as_they_lay(tmp_path: Path) -> None:
    file = OffloadFile(tmp_path)
    turned = torch.randn(4, 3, 8, dtype=torch.float64).transpose(0, 1)
    for tensor in (
        torch.randn(3, 4, 8, dtype=torch.bfloat16),
        turned,
        torch.randn(12, 8).view(3, 4, 8),
    ):
        before, strides, place = tensor.clone(), tensor.stride(), Offloaded(file)
        for _ in range(2):
            place.offload(tensor)
            assert tensor.numel() == 0
            with place.in_memory():
                assert torch.equal(tensor, before)
            assert tensor.numel() == 0
            place.fetch()
            assert torch.equal(tensor, before)
            assert tensor.stride() == strides
    file.close()


def test_numbers_that_the_disk_does_not_give_back_are_not_made_up(tmp_path: Path) -> None:
    tensor, file = torch.randn(2, 3), OffloadFile(tmp_path)
    place = Offloaded(file)
    place.offload(tensor)
    assert file._file is not None
    file._file.truncate(5)
    with pytest.raises(OutputError) as refused:
        place.fetch()
    assert refused.value.subject == str(tmp_path)
    file.close()


def test_a_part_of_another_tensors_memory_stays_and_so_does_all_where_there_is_no_file(
    tmp_path: Path,
) -> None:
    whole = torch.randn(6, 8)
    for part in (whole[:3], whole[:, ::2], whole[0].expand(4, 8), torch.empty(0, 8)):
        before = part.clone()
        Offloaded(OffloadFile(tmp_path)).offload(part)
        assert torch.equal(part, before)
    assert list(tmp_path.iterdir()) == []
    tensor = torch.randn(2, 3)
    place = Offloaded(None)
    place.offload(tensor)
    with place.in_memory():
        pass
    place.fetch()
    assert tensor.shape == (2, 3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "calibrant.walk.offloading.TemporaryFile",
        lambda **_: open("/dev/full", "r+b"),  # noqa: SIM115
    )
    with pytest.raises(OutputError) as refused:
        pruned("llama", "dense", tmp_path)
    assert refused.value.subject == str(tmp_path)


def test_the_promise_decides_where_activations_are(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 0)
    monkeypatch.setattr(
        room, "HANDED_ALONG", 2
    )  # beside 32 numbers a token the angles of 16 are no sixteenth
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=12)
    outline = outline_of(str(folder), "bfloat16", "cpu")
    assert outline is not None
    needs, job = (
        Needs.of(outline.shape, 128 * 64, outline.dtype, methods.build("wanda")),
        {"samples": 128, "length": 64, "dtype": "bfloat16", "device": "cpu"},
    )
    least, enough = needs.on_disk("reference", offload=True), needs.on_disk("reference")
    assert least < enough < needs.on_disk("arrival")
    there = prune(
        str(folder),
        data=texts,
        method="wanda",
        target="0.5",
        out=tmp_path / "there",
        propagate="reference",
        memory=enough * 1.001 / 1e9,
        **job,
    )
    sizes = watched(monkeypatch)
    offloaded = prune(
        str(folder),
        data=texts,
        method="wanda",
        target="0.5",
        out=tmp_path / "offloaded",
        memory=least * 1.001 / 1e9,
        **job,
    )
    assert sizes
    assert offloaded.record.run.propagate == "reference"
    assert "between two blocks" in asked(offloaded)
    assert "between two blocks" not in asked(there)
    assert offloaded.record.run.id == there.record.run.id
    assert files(tmp_path / "offloaded") == files(tmp_path / "there")
    with pytest.raises(SpecError) as refused:
        prune(
            str(folder),
            data=texts,
            method="wanda",
            target="0.5",
            out=tmp_path / "less",
            memory=least * 0.99 / 1e9,
            **job,
        )
    assert refused.value.subject == str(folder)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "there", "offloaded"}


@pytest.mark.parametrize(
    "what", ["arrival", "reconstructed", "a block that writes over its input", "not possible"]
)
def test_where_nothing_can_go_to_disk_a_promise_is_refused(
    what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen_by, batch = view(tiny_model("llama")), padded_batch()
    needs = Needs.of(seen_by, int(batch.mask.sum()), torch.float32, length=12)
    propagate, method = (
        ("arrival", "wanda")
        if what == "arrival"
        else ("dense", what if what == "reconstructed" else "wanda")
    )
    left = needs.activations(propagate) - 1
    asked: Any = (left, propagate, methods.build(method), seen_by, batch, torch.float32)
    if what == "a block that writes over its input":
        assert room.offload(*asked, "memory") != ""
        monkeypatch.setattr(
            room, "rehearse", lambda view: replace(rehearse(view), changes_input=True)
        )
    with pytest.raises(SpecError) as refused:
        room.offload(*asked, None if what == "not possible" else "memory")
    assert refused.value.subject == str(methods.build(method))
