"""Edits are undone and kept to the bit; a job measures what it says, and reads from the disk
only what is of the untouched model.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from calibrant.activations import BlockChange, Routing
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.edits import (
    DropBlocks,
    DropExperts,
    Replace,
    StoredEdit,
    as_tensors,
    from_tensors,
    read_edit,
)
from calibrant.edits.file import from_bytes, to_bytes
from calibrant.errors import DataError, SpecError
from calibrant.job import Job
from calibrant.lab.study import Study
from calibrant.models import ModelView, Opened, open_model, view
from calibrant.numerics import type_name
from calibrant.packed import Codes, Compressed
from calibrant.results import EDITS
from calibrant.targets import Sparsity
from calibrant.testing import tiny_folder
from calibrant.walk import walk_blocks
from calibrant.walk.statistics import Statistics, statistics_id

from tests.refusing import refused
from tests.study.small import asked, kept_files, texts


def job_of(opened: Opened, batch: TokenBatch | None, **how: Any) -> Job:
    seen_by = view(opened.model)
    return Job(
        opened,
        seen_by,
        batch,
        Sparsity(0.5),
        dict.fromkeys(seen_by.named, Sparsity(0.5)),
        "arrival",
        **how,
    )


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return open_model(
        str(tiny_folder(tmp_path / "model", "mixtral", num_local_experts=8)), "float32"
    )


@pytest.fixture
def batch(opened: Opened, tmp_path: Path) -> TokenBatch:
    """Lone texts of different lengths with padding behind them."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"text": "so they had tea at eight " * n + str(n)}) for n in range(1, 40)
        )
    )
    return CalibrationSet(f"{str(rows)!r}:text@one", samples=5, length=400).tokens(opened.tokenizer)


TENSORS: Mapping[str, Tensor] = {
    "sparse": torch.tensor([[0.0, -0.0, 3.5, 0.0] * 8]),
    "full": torch.randn(3, 5, generator=torch.Generator().manual_seed(0)),
    "half": torch.tensor([0.0, 1.0, float("nan"), -0.0] * 5, dtype=torch.bfloat16),
    "codes": torch.tensor([[0, -3, 0, 0, 0, 0, 0, 0] * 4], dtype=torch.int8),
    "wide": torch.zeros(4, 4, dtype=torch.float64),
    "empty": torch.zeros(0, 3),
}


def test_what_is_written_comes_back_to_the_bit_and_zeros_take_no_room() -> None:
    edits = [
        StoredEdit("replace", {"name": "ü", "notes": {"rank": 3}}, TENSORS),
        StoredEdit("drop_blocks", {"blocks": [1]}),
    ]
    found = from_bytes(to_bytes(edits))
    assert [(kept.kind, kept.facts) for kept in found] == [
        (kept.kind, kept.facts) for kept in edits
    ]
    for name, tensor in TENSORS.items():
        back = found[0].tensors[name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape)
        assert back.contiguous().view(torch.uint8).equal(tensor.contiguous().view(torch.uint8)), (
            name
        )
    weight = torch.randn(256, 256)
    half = weight.masked_fill(torch.rand(256, 256) > 0.5, 0)
    assert (
        len(to_bytes([StoredEdit("a", {}, {"w": half})]))
        < 0.55 * len(to_bytes([StoredEdit("a", {}, {"w": weight})])) + 2000
    )


def test_a_tensor_that_edits_share_is_there_once() -> None:
    shared, other = torch.randn(64, 64), torch.randn(64, 64)
    edits = [
        StoredEdit("a", {}, {"u": shared, "v": other}),
        StoredEdit("b", {}, {"u": shared}),
        StoredEdit("c", {}, {"u": shared.T}),
    ]
    assert len(to_bytes(edits)) < 3 * shared.numel() * 4 + 2000
    tensors, entries = as_tensors(edits)
    assert list(tensors) == ["0.u", "0.v", "2.u"]
    assert json.loads(json.dumps(entries)) == entries
    for found in (from_bytes(to_bytes(edits)), from_tensors(tensors, entries)):
        assert [(one.kind, list(one.tensors)) for one in found] == [
            ("a", ["u", "v"]),
            ("b", ["u"]),
            ("c", ["u"]),
        ]
        for edit, again in zip(edits, found, strict=True):
            assert all(
                torch.equal(tensor, again.tensors[name]) for name, tensor in edit.tensors.items()
            )
    before = [
        {"kind": "a", "facts": {}, "tensors": ["w"]},
        {"kind": "b", "facts": {}, "tensors": ["w"]},
    ]
    first, second = from_tensors(
        {"0.w": torch.zeros(1), "1.w": torch.ones(1)}, before
    )  # what was kept before edits shared tensors
    assert (float(first.tensors["w"]), float(second.tensors["w"])) == (0.0, 1.0)


@pytest.mark.parametrize(
    "content", [b"", b"PK", b"\x00" * 100, to_bytes([StoredEdit("replace", {"name": "x"})])[:-3]]
)
def test_what_is_no_such_file_is_refused(content: bytes) -> None:
    with pytest.raises(DataError) as caught:
        from_bytes(content)
    assert EDITS in str(caught.value)


@pytest.mark.parametrize("values", [1, 2])
def test_a_file_with_too_few_values_for_its_places_is_refused(values: int) -> None:
    sparse = torch.zeros(8, 8)
    sparse[0, :3] = torch.tensor([1.0, 2.0, 3.0])
    tensors = load(to_bytes([StoredEdit("a", {}, {"w": sparse})]))
    tensors["0.w.values"] = tensors["0.w.values"][:values]
    with pytest.raises(DataError) as caught:
        from_bytes(save(tensors))
    assert EDITS in str(caught.value)


def test_edits_of_another_model_or_of_nobody_are_refused(opened: Opened) -> None:
    for edit in (
        StoredEdit("unheard_of", {}),
        StoredEdit("replace", {"name": "nothing", "notes": {}}, {}),
    ):
        with refused(DataError, edit.kind):
            read_edit(edit, view(opened.model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_what_only_removes_a_mask_is_enough_to_the_bit(tmp_path: Path, dtype: torch.dtype):
    opened = open_model(str(tiny_folder(tmp_path / "model", "gpt2")), type_name(dtype))
    seen_by = view(opened.model)
    # Stored as [in, out], with zeros of both signs.
    weight = seen_by.weights[0]
    assert weight.transposed
    numbers = weight.get().clone()
    numbers[0, :2] = torch.tensor([0.0, -0.0])
    weight.set(numbers)
    keep = torch.rand(weight.shape) < 0.5
    keep[0, :2] = torch.tensor([True, False])
    pruned = numbers.masked_fill(~keep, 0)
    edit = Replace(weight, Compressed(pruned, only_removes=True))
    stored = edit.stored_briefly()
    assert sum(tensor.nbytes for tensor in stored.tensors.values()) == -(-numbers.numel() // 8)
    again = read_edit(stored, seen_by)
    assert isinstance(again, Replace)
    for found in (again, read_edit(again.stored_briefly(), seen_by)):
        assert isinstance(found, Replace)
        as_integers = found.compressed.weight.contiguous().view(torch.uint8)
        assert torch.equal(as_integers, pruned.contiguous().view(torch.uint8))
    other = {name: tensor[1:] for name, tensor in stored.tensors.items()}
    with refused(DataError, "replace"):
        read_edit(replace(stored, tensors=other), seen_by)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_removed_negative_number_stays_removed_if_its_zero_is_negative(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """As multiplying by a mask makes it."""
    seen_by = view(open_model(str(tiny_folder(tmp_path / "model")), type_name(dtype)).model)
    weight = seen_by.weights[0]
    pruned = weight.get() * (torch.rand(weight.shape) < 0.5)
    assert bool(pruned[pruned == 0].signbit().any())
    again = read_edit(
        Replace(weight, Compressed(pruned, only_removes=True)).stored_briefly(), seen_by
    )
    assert isinstance(again, Replace)
    assert torch.equal(again.compressed.weight.signbit(), pruned.signbit())
    assert torch.equal(again.compressed.weight, pruned)


def test_a_kind_stays_with_the_class_that_has_it(opened: Opened) -> None:
    class Heir(Replace):
        """Has no kind of its own."""

    seen_by = view(opened.model)
    edit = Heir(seen_by.weights[0], Compressed(seen_by.weights[0].get()))
    assert type(read_edit(edit.stored(), seen_by)) is Replace
    with refused(SpecError, "replace"):
        type("Usurper", (Replace,), {"kind": "replace"})
    with refused(SpecError, "codes"):
        type("Usurper", (Codes,), {"form": "codes"})


class FailingHalfWay(Replace):
    """Changes its matrix, and fails."""

    def apply(self, view: ModelView) -> None:
        super().apply(view)
        raise ZeroDivisionError


def test_an_edit_that_fails_half_way_is_undone(opened: Opened, batch: TokenBatch) -> None:
    job = job_of(opened, batch)
    weight = job.view.weights[0]
    before = weight.get().clone()
    edit = FailingHalfWay(weight, Compressed(torch.zeros(weight.shape)))
    with pytest.raises(ZeroDivisionError), job.trying(edit):
        pass
    assert torch.equal(weight.get(), before)


@pytest.mark.parametrize("kind", ["replace", "drop_blocks", "drop_experts"])
def test_an_edit_that_is_tried_leaves_nothing_behind(
    kind: str, opened: Opened, batch: TokenBatch
) -> None:
    job = job_of(opened, batch)
    weight = job.view.weights[0]
    edit = {
        "replace": Replace(weight, Compressed(torch.zeros(weight.shape))),
        "drop_blocks": DropBlocks((1,)),
        "drop_experts": DropExperts({block.index: (0, 3) for block in job.view.blocks}),
    }[kind]
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    loss, config = job.loss(), opened.model.config.to_dict()
    with pytest.raises(ZeroDivisionError, match="tried: True"), job.trying(edit):
        raise ZeroDivisionError(f"tried: {job.loss() != loss}")
    after = opened.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert opened.model.config.to_dict() == config
    assert job.loss() == loss


def test_the_loss_is_the_mean_over_real_tokens(opened: Opened, batch: TokenBatch) -> None:
    """Window by window and token by token, in float64, from the model without a batch."""
    assert not bool(batch.mask.all()), "there is padding"
    view(opened.model)  # experts one by one, which float64 needs
    model, nats, mass = opened.model.double(), 0.0, 0.0
    for ids, mask, weights in zip(batch.ids, batch.mask, batch.weights, strict=True):
        real = ids[mask]
        with torch.no_grad():
            chances = model(real[None]).logits[0].log_softmax(-1)
        for place, weight in enumerate(weights[mask][1:].tolist()):
            nats -= weight * float(chances[place, real[place + 1]])
            mass += weight
    model.float()
    assert job_of(opened, batch).loss() == pytest.approx(nats / mass, rel=1e-5)
    with refused(SpecError, "data"):
        job_of(opened, None).loss()


def test_the_loss_of_a_mix_is_that_of_its_parts_by_their_shares(opened: Opened) -> None:
    sets = [
        CalibrationSet(text, samples=3, length=24).tokens(opened.tokenizer)
        for text in ("python_docs", "random_tokens")
    ]
    mix = CalibrationSet(
        "mix(a=python_docs, b=random_tokens, weight=0.25)", samples=3, length=24
    ).tokens(opened.tokenizer)
    one, other = (job_of(opened, part).loss() for part in sets)
    assert job_of(opened, mix).loss() == pytest.approx(0.25 * one + 0.75 * other, rel=1e-9)


def test_what_blocks_did_is_kept_and_read_while_the_model_is_untouched(
    opened: Opened, tmp_path: Path
) -> None:
    batch = CalibrationSet("python_docs", samples=3, length=24).tokens(opened.tokenizer)
    walked = [seen for _, seen in walk_blocks(view(opened.model), batch, (BlockChange, Routing))]
    job = job_of(opened, batch, statistics=tmp_path)
    with pytest.MonkeyPatch.context() as patched:
        first = [seen for _, seen in job.blocks((BlockChange, Routing))]
        patched.setattr(
            "calibrant.walk.statistics.walk_blocks", lambda *_, **__: pytest.fail("walked again")
        )
        again = [seen for _, seen in job.blocks((BlockChange, Routing))]
    for one, other, third in zip(walked, first, again, strict=True):
        assert one[BlockChange].total == other[BlockChange].total == third[BlockChange].total
        assert torch.equal(one[Routing].together, other[Routing].together)
        assert torch.equal(one[Routing].gates, third[Routing].gates)
    assert (
        Statistics(tmp_path, statistics_id(opened, batch)).stored_blocks(Routing, job.view.blocks)
        == 3
    )
    DropBlocks((0,)).apply(job.view)
    job.applied_kinds.append(DropBlocks.kind)
    now = [seen[BlockChange].total for _, seen in job.blocks((BlockChange,))]
    assert now == [
        seen[BlockChange].total for _, seen in walk_blocks(job.view, batch, (BlockChange,))
    ]
    assert len(now) == 2


@pytest.mark.parametrize(("room", "kept"), [(8.0, True), (1e-6, False)])
def test_a_study_keeps_edits_as_long_as_there_is_room(
    room: float, kept: bool, tmp_path: Path
) -> None:
    given = texts(tmp_path / "texts")
    study: Study = asked(given, methods=["sparsegpt"], data=["random_tokens"], edits_gb=room)
    finished = study.run(tmp_path / "store")
    assert not finished.failures
    assert bool(kept_files(tmp_path / "store", EDITS)) is kept
