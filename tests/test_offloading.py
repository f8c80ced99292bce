"""Activations on disk between two blocks: the same numbers, held nowhere in memory meanwhile."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calibrant import prune
from calibrant.activations import FeatureNorms, Gram
from calibrant.compress import room
from calibrant.compress.room import Needs
from calibrant.errors import OutputError, SpecError
from calibrant.methods import methods
from calibrant.models import ModelView, outlined, view
from calibrant.testing import FAMILIES, tiny_folder, tiny_model
from calibrant.walk.attention import BlockCall
from calibrant.walk.micro_batch import MicroBatch
from calibrant.walk.offloading import Offloaded, OffloadFile
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.walking import walk, walk_blocks

from tests.test_blocks_on_disk import asked, files
from tests.test_walk import Outputs, assert_same_weights, halved, padded_batch
from tests.usual import two_hundred_lines, usually


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


class Kept(Outputs):
    """What a block gives, in memory of its own."""

    @classmethod
    def of(cls, before: Tensor, after: Tensor, weights: Tensor | None = None) -> Outputs:
        return cls._of(after.clone())


class First(TorchFunctionMode):
    """The first tensor that a forward does something with."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Tensor | None = None

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if self.found is None:
            self.found = args[0].clone()
        return func(*args, **(kwargs or {}))


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many numbers each tensor had that went to disk."""
    sizes, leave = list[int](), Offloaded._leave

    def noting(self: Offloaded, tensor: Tensor) -> None:
        sizes.append(tensor.numel())
        leave(self, tensor)

    monkeypatch.setattr(Offloaded, "_leave", noting)
    return sizes


def pruned(family: str, propagate: str, folder: Path | None) -> ModelView:
    seen_by = view(tiny_model(family))
    seen_by.offload = folder
    for weight, seen in walk(seen_by, padded_batch(), (FeatureNorms, Gram), propagate, tokens_per_pass=24):
        weight.set(halved(weight.get().clone(), seen[Gram].norms()))
    return seen_by


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
@pytest.mark.parametrize("family", usually(FAMILIES))
def test_a_model_is_the_same_to_the_bit(family: str, propagate: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = watched(monkeypatch)
    there, offloaded = pruned(family, propagate, None), pruned(family, propagate, tmp_path)
    assert_same_weights(there.model, offloaded.model)
    rehearsal = rehearse(offloaded)
    micro_batches, blocks, width = 3, len(rehearsal.calls), offloaded.model.config.hidden_size
    looks = 2 if propagate == "reference" else 1  # after it was looked at, a block's input waits once more
    assert len(sizes) == (0 if rehearsal.changes_input else micro_batches * blocks * looks)
    assert all(size % width == 0 and size > 0 for size in sizes)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_blocks_are_seen_as_they_are(family: str, tmp_path: Path) -> None:
    found: list[list[Tensor]] = []
    for folder in (None, tmp_path):
        seen_by = view(tiny_model(family))
        seen_by.offload = folder
        found.append([])
        for _, seen in walk_blocks(seen_by, padded_batch(), (Kept,), tokens_per_pass=24):
            found[-1] += seen[Kept].parts
    assert len(found[0]) == len(found[1]) > 0
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_tokens_are_weighed_by_what_blocks_do_with_them(tmp_path: Path) -> None:
    def by(call: BlockCall) -> Tensor:
        """Weights that are made of what the block is given, which a copy that was kept is given too."""
        again, one, other = call.kept(), First(), First()
        call.aside(one)
        again(other)
        assert one.found is not None
        assert other.found is not None
        assert torch.equal(one.found, other.found)
        return one.found.abs().sum(-1)

    sums: list[list[Tensor]] = []
    for folder in (None, tmp_path):
        seen_by = view(tiny_model("llama"))
        seen_by.offload = folder
        sums.append([seen[FeatureNorms].norms() for _, seen in walk(seen_by, padded_batch(), (FeatureNorms,), "dense", tokens_per_pass=24, weigh=by)])
    assert all(torch.equal(a, b) for a, b in zip(*sums, strict=True))


def test_between_two_blocks_nothing_of_a_micro_batch_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds what a block is given holds no numbers, however many hold it."""
    held: list[Any] = []
    resume = MicroBatch.resume

    def noting(self: MicroBatch) -> None:
        resume(self)
        if self.stopped is None and self._entry is not None:
            held.append(self.block_input().untyped_storage().nbytes())

    monkeypatch.setattr(MicroBatch, "resume", noting)
    pruned("llama", "dense", tmp_path)
    assert len(held) > 3
    assert set(held) == {0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_numbers_come_back_as_they_lay(dtype: torch.dtype, tmp_path: Path) -> None:
    file = OffloadFile(tmp_path)
    plain, turned = torch.randn(3, 4, 8, dtype=dtype), torch.randn(4, 3, 8, dtype=dtype).transpose(0, 1)
    for tensor in (plain, turned):
        before, strides, place = tensor.clone(), tensor.stride(), Offloaded(file)
        for _ in range(2):
            place.offload(tensor)
            assert tensor.numel() == 0
            with place.there():
                assert torch.equal(tensor, before)
            assert tensor.numel() == 0
            place.fetch()
            assert torch.equal(tensor, before)
            assert tensor.stride() == strides
    file.close()


def test_a_part_of_another_tensors_memory_stays(tmp_path: Path) -> None:
    whole = torch.randn(6, 8)
    for part in (whole[:3], whole[:, ::2], whole[0].expand(4, 8), torch.empty(0, 8)):
        before = part.clone()
        Offloaded(OffloadFile(tmp_path)).offload(part)
        assert torch.equal(part, before)
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_nothing_happens() -> None:
    tensor = torch.randn(2, 3)
    place = Offloaded(None)
    place.offload(tensor)
    with place.there():
        pass
    place.fetch()
    assert tensor.shape == (2, 3)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrant.walk.offloading.TemporaryFile", lambda **_: open("/dev/full", "r+b"))  # noqa: SIM115
    with pytest.raises(OutputError, match=r"activations can't be kept in .*: the disk is full; free some space and run the same command again"):
        pruned("llama", "dense", tmp_path)


# What decides


def test_the_promise_decides_where_activations_are(texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 0)
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=12)
    seen_by, kind = outlined(str(folder), "bfloat16", "cpu")
    assert seen_by is not None
    needs = Needs.of(seen_by, 128 * 64, kind, methods.build("wanda"))
    job = {"samples": 128, "length": 64, "dtype": "bfloat16", "device": "cpu"}
    least, enough = needs.on_disk("reference", offload=True), needs.on_disk("reference")
    assert needs.offloaded < needs.passed < needs.arrival
    assert least < enough < needs.on_disk("arrival")
    there = prune(str(folder), texts, "wanda", "0.5", tmp_path / "there", propagate="reference", memory=enough * 1.001 / 1e9, **job)
    assert "its blocks stayed on disk" in asked(there)
    assert "between two blocks" not in asked(there)
    offloaded = prune(str(folder), texts, "wanda", "0.5", tmp_path / "offloaded", memory=least * 1.001 / 1e9, **job)
    assert "went on with reference" in asked(offloaded)
    assert asked(offloaded).endswith("they were on disk between two blocks")
    assert offloaded.record.run.id == there.record.run.id
    assert files(tmp_path / "offloaded") == files(tmp_path / "there")
    with pytest.raises(SpecError, match=r"with its blocks on disk it needs about .* GB; allow so much, or calibrate on fewer tokens"):
        prune(str(folder), texts, "wanda", "0.5", tmp_path / "less", memory=least * 0.99 / 1e9, **job)
    assert {path.name for path in tmp_path.iterdir()} == {"model", "there", "offloaded"}
