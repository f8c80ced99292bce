"""Factors in the place of feed-forward networks, from the front door to a model that plain
transformers opens; on a model that has learnt something where it is said what they lose.
"""

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from calibrant.compress import Recipe, compress, prune
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.edits import Edit, Replace
from calibrant.edits.file import from_bytes, to_bytes
from calibrant.models import open_model, view
from calibrant.packed import Factors
from calibrant.results import Record, stored_bits
from calibrant.testing import tiny_folder

from tests.trained import trained_folder
from tests.usual import usually

SMALL = {"samples": 4, "length": 16, "dtype": "float32"}
MATRICES = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model", num_hidden_layers=4)


@cache
def text(held_out: bool = False) -> TokenBatch:
    """2,048 tokens to calibrate on, or as many that no set is calibrated on."""
    chosen = CalibrationSet("python_docs", samples=16, length=128)
    return (chosen.held_out() if held_out else chosen).tokens(
        open_model(str(trained_folder()), "float32").tokenizer
    )


def factorised(
    method: str, target: float | str, folder: Path | None = None, dtype: str = "float32"
) -> tuple[Any, Record, list[Edit]]:
    """The trained model, or another, what was written down, and what was done to it."""
    opened, edits = open_model(str(folder or trained_folder()), dtype), list[Edit]()
    recipe = Recipe.parse(method, target)
    record = compress(
        opened, view(opened.model), text() if recipe.looks else None, recipe, keep=edits.append
    )
    return opened.model, record, edits


def networks(model: Any) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if name.endswith(MATRICES)}


def seen_by(model: Any, batch: TokenBatch) -> dict[str, Tensor]:
    """What each matrix of a feed-forward network is given of every real token, by hooks, in
    float64.
    """
    found, hooks = dict[str, Tensor](), list[Any]()
    for name, module in networks(model).items():
        hooks.append(
            module.register_forward_pre_hook(
                lambda _, args, name=name: found.update({name: args[0][batch.mask].double()})
            )
        )
    with torch.no_grad():
        model(batch.ids, attention_mask=batch.mask.long(), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def losses(model: Any, batch: TokenBatch) -> dict[str, float]:
    """‖(W - Ŵ)X‖²/‖WX‖² of each matrix, for what the untouched trained model's matrices see of
    `batch`.
    """
    dense = open_model(str(trained_folder()), "float32").model
    old, new = networks(dense), networks(model)
    found: dict[str, float] = {}
    for name, x in seen_by(dense, batch).items():
        before, after = old[name].weight.detach().double(), new[name].weight.detach().double()
        found[name] = float((x @ (before - after).T).square().sum() / (x @ before.T).square().sum())
    return found


@cache
def mean_loss(method: str, target: float) -> float:
    """The mean over all matrices, on text that wasn't calibrated on."""
    model, _, _ = factorised(method, target)
    found = losses(model, text(held_out=True))
    return sum(found.values()) / len(found)


@pytest.mark.parametrize(
    "method",
    usually(
        ["fips", "fips(group=4, rank=48)", "fips(density=0.7)", "basis_sharing", "svd"],
        ["fips(density=0.7)", "svd"],
    ),
)
def test_as_many_numbers_remain_as_were_asked_for(method: str):
    model, record, edits = factorised(method, "numbers 0.3")
    forms = [edit.compressed.packed for edit in edits if isinstance(edit, Replace)]
    assert len(forms) == len(edits) == 12
    shared = {form.name: form.shared for form in forms if isinstance(form, Factors)}
    remain = sum(one.numel() for one in shared.values()) + sum(
        int(form.own.count_nonzero()) for form in forms if isinstance(form, Factors)
    )
    total, short = 12 * 64 * 192, {"fips": 40}.get(method, 12 * (64 + 192))
    assert total * 0.7 - short <= remain < total * 0.7 + len(shared), (
        "of each set as many go as the share is, rounded down"
    )
    assert record.weights[0]["notes"]["left"] == pytest.approx(0.7, abs=0.02)
    for edit in edits:
        assert isinstance(edit, Replace)
        assert isinstance(form := edit.compressed.packed, Factors)
        assert torch.equal(form.dense(), networks(model)[edit.weight.name].weight)
        assert form.sharing == sum(
            isinstance(other, Factors) and other.name == form.name for other in forms
        )
        assert torch.equal(form.shared, shared[form.name])
    bits = sum(one.numel() * 32 for one in shared.values())
    for form in forms:
        assert isinstance(form, Factors)
        bits += min(form.own.numel() * 32, int(form.own.count_nonzero()) * 32 + form.own.numel())
    assert stored_bits(record.weights) == pytest.approx(bits / total, rel=1e-4)
    with_indices = sum(weight["notes"]["left_with_indices"] for weight in record.weights) / 12
    assert with_indices == pytest.approx(bits / total / 32, rel=1e-3)


@pytest.mark.parametrize(
    "method", usually(["fips", "basis_sharing", "svd"], ["fips", "basis_sharing"])
)
def test_the_errors_that_it_tells_are_those_of_the_outputs(method: str):
    model, record, _ = factorised(method, 0.3)
    wanted = losses(model, text())
    assert {weight["name"]: weight["error"] for weight in record.weights} == pytest.approx(
        wanted, rel=1e-3
    )


def test_nothing_else_is_touched_and_nothing_at_all_where_nothing_was_asked():
    model, record, _ = factorised("fips", 0.3)
    dense = open_model(str(trained_folder()), "float32").model
    for (name, one), (_, other) in zip(
        dense.named_parameters(), model.named_parameters(), strict=True
    ):
        assert torch.equal(one, other) == (not name.removesuffix(".weight").endswith(MATRICES)), (
            name
        )
    assert {entry["name"].rpartition(".")[2] for entry in record.dense} >= {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    }
    _, untouched, edits = factorised("fips", "numbers 0")
    assert edits == []
    assert untouched.sparsity == 0


def test_it_loses_more_the_more_goes_and_a_look_at_the_inputs_pays_on_text_that_was_not_seen():
    found = [mean_loss("fips", target) for target in (0.1, 0.4, 0.7)]
    assert all(before < after for before, after in itertools.pairwise(found)), found
    assert found[1] < mean_loss("fips(aware=false)", 0.4)
    assert mean_loss("svd", 0.4) < mean_loss("svd(aware=false)", 0.4)


@pytest.mark.parametrize("dtype", usually(["bfloat16", "float32"], ["bfloat16"]))
def test_what_is_saved_is_what_was_made(folder: Path, tmp_path: Path, dtype: str):
    done = prune(
        str(folder),
        data="python_docs",
        method="fips",
        target="numbers 0.4",
        out=tmp_path / "out",
        **{**SMALL, "dtype": dtype},
    )
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype))
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(reopened(ids).logits, done.opened.model(ids).logits)
    assert prune(
        str(folder),
        data="python_docs",
        method="fips",
        target="numbers 0.4",
        out=tmp_path / "out",
        **{**SMALL, "dtype": dtype},
    ).already_done
    record = json.loads((tmp_path / "out" / "calibrant.json").read_text())["record"]
    assert record["run"]["target"] == "numbers 0.4"
    assert {weight["notes"]["shared_by"] for weight in record["weights"]} == {6}


@pytest.mark.parametrize(
    "method",
    usually(["fips", "fips(distant=true)", "basis_sharing", "svd"], ["fips(distant=true)"]),
)
def test_killed_and_asked_again_it_continues(folder: Path, tmp_path: Path, method: str):
    """Also in the middle of a group: the same factors come out."""
    whole = prune(
        str(folder), data="python_docs", method=method, target=0.4, out=tmp_path / "whole", **SMALL
    )
    for at in (1, 2, 3):
        out, told = tmp_path / f"again-{at}", list[int]()

        def killed(what: str, done: int, total: int, at: int = at, told: list[int] = told) -> None:
            if what.startswith(method.partition("(")[0]):
                told.append(done)
            if len(told) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prune(
                str(folder),
                data="python_docs",
                method=method,
                target=0.4,
                out=out,
                progress=killed,
                **SMALL,
            )
        again = prune(str(folder), data="python_docs", method=method, target=0.4, out=out, **SMALL)
        assert again.continued_from
        assert again.record == whole.record
        assert (out / "model.safetensors").read_bytes() == (
            tmp_path / "whole/model.safetensors"
        ).read_bytes()


def test_a_shared_factor_is_kept_once():
    _, _, edits = factorised("fips(group=4)", 0.4)
    content = to_bytes([edit.stored() for edit in edits])
    forms = [edit.compressed.packed for edit in edits if isinstance(edit, Replace)]
    own = sum(
        int(form.own.count_nonzero()) * 4 + form.own.numel() // 8
        for form in forms
        if isinstance(form, Factors)
    )
    norms = 12 * 8 * 192
    assert len(content) < own + 64 * 64 * 4 + norms + 20_000
    again = from_bytes(content)
    for edit, stored in zip(edits, again, strict=True):
        assert edit.stored().facts == stored.facts
        assert all(
            torch.equal(tensor, stored.tensors[name])
            for name, tensor in edit.stored().tensors.items()
        )


def test_experts_share_too_and_those_that_no_token_reached_stay(tmp_path: Path):
    done = prune(
        str(tiny_folder(tmp_path / "experts", "mixtral")),
        data="python_docs",
        method="fips(group=1)",
        target=0.4,
        samples=1,
        length=8,
        dtype="float32",
    )
    reached = {weight["name"] for weight in done.record.weights}
    left = {entry["name"] for entry in done.record.dense if "experts" in entry["name"]}
    assert reached
    assert left
    assert not reached & left
    assert len(reached) + len(left) == 3 * 32 * 2
    assert {
        weight["notes"]["shared_by"]
        for weight in done.record.weights
        if ".layers.0." in weight["name"]
    } == {sum(".layers.0." in name for name in reached)}


def test_experts_that_are_too_few_to_share_a_factor_stay(tmp_path: Path):
    folder = tiny_folder(
        tmp_path / "experts",
        "mixtral",
        hidden_size=64,
        intermediate_size=32,
        num_local_experts=8,
        num_experts_per_tok=1,
    )
    done = prune(
        str(folder),
        data="python_docs",
        method="fips(group=1)",
        target=0.4,
        samples=1,
        length=1,
        dtype="float32",
    )
    assert not done.record.weights
    reasons = {entry["reason"] for entry in done.record.dense if "experts" in entry["name"]}
    assert reasons == {"fips left it as it is"}
