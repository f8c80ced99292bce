"""Local reconstruction: what a block's attention and feed-forward network give comes nearer to
what they gave; what was removed stays zero.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from calibrant.compress import Recipe, compress, prune
from calibrant.data import TokenBatch
from calibrant.models import open_model, view
from calibrant.results import Record
from calibrant.targets import Sparsity
from calibrant.testing import tiny_folder

from tests.usual import usually

WRITERS = ("self_attn.o_proj", "mlp.down_proj")


def batch(rows: int = 4, length: int = 32) -> TokenBatch:
    ids = (torch.arange(rows * length).reshape(rows, length) * 37 + 11) % 200 + 3
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[-1, length // 2 :] = False
    return TokenBatch(ids * mask, mask, mask.float(), "tokens", {})


def compressed(
    folder: Path, method: str, sparsity: float = 0.6, tokens: TokenBatch | None = None
) -> tuple[Any, Record]:
    opened = open_model(str(folder), "float32")
    recipe = Recipe.parse(method, Sparsity(sparsity), "reference")
    return opened.model, compress(opened, view(opened.model), tokens or batch(), recipe)


def outputs(model: Any, block: int = 0) -> dict[str, Tensor]:
    """What the writers of a block give of the real tokens, by hooks."""
    tokens, layer, found = batch(), model.model.layers[block], dict[str, Tensor]()
    hooks = [
        layer.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: found.update({name: out})
        )
        for name in WRITERS
    ]
    with torch.no_grad():
        model(input_ids=tokens.ids, attention_mask=tokens.mask.long(), use_cache=False)
    for hook in hooks:
        hook.remove()
    return {name: out[tokens.mask].double() for name, out in found.items()}


def error(model: Any, dense: Any, weights: Tensor | None = None) -> float:
    """The sum of relative errors of the first block, whose inputs are the dense model's; tokens
    count by their weights.
    """
    ours, theirs = outputs(model), outputs(dense)
    mask = batch().mask
    by_token = (mask if weights is None else weights)[mask].double()[:, None]
    total = 0.0
    for name in WRITERS:
        errors = (ours[name] - theirs[name]).square() * by_token
        total += float(errors.sum() / (theirs[name].square() * by_token).sum())
    return total


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("given") / "model")


@pytest.mark.parametrize(
    "method", usually(["wanda", "sparsegpt", "magnitude"], {"sparsegpt", "magnitude"})
)
def test_the_errors_that_it_tells_are_those_of_the_model_and_fall(folder: Path, method: str):
    dense = open_model(str(folder), "float32").model
    pruned, before = compressed(folder, method)
    fitted, after = compressed(folder, f"reconstructed(method={method})")
    edits = {edit["block"]: edit["notes"] for edit in after.edits}
    assert edits[0]["before"] == pytest.approx(error(pruned, dense), rel=1e-4)
    assert edits[0]["after"] == pytest.approx(error(fitted, dense), rel=1e-4)
    assert len(edits) == 3
    assert all(notes["after"] < 0.8 * notes["before"] for notes in edits.values())
    assert after.sparsity == before.sparsity
    first = [weight.name for weight in view(dense).weights if weight.block == 0]
    for name in first:
        assert torch.equal(
            pruned.get_submodule(name).weight == 0, fitted.get_submodule(name).weight == 0
        )
    compressible = {f"{weight.name}.weight" for weight in view(dense).weights}
    for (name, one), (_, other) in zip(
        dense.named_parameters(), fitted.named_parameters(), strict=True
    ):
        assert torch.equal(one, other) == (name not in compressible)
        assert other.grad is None


def test_tokens_count_by_their_weights(folder: Path):
    tokens = batch()
    weights = tokens.mask.float()
    weights[0] = 9.0
    tokens = replace(tokens, weights=weights)
    dense = open_model(str(folder), "float32").model
    pruned, _ = compressed(folder, "wanda", tokens=tokens)
    fitted, record = compressed(folder, "reconstructed", tokens=tokens)
    notes = record.edits[0]["notes"]
    assert notes["before"] == pytest.approx(error(pruned, dense, weights), rel=1e-4)
    assert notes["after"] == pytest.approx(error(fitted, dense, weights), rel=1e-4)


def test_one_step_is_that_of_autograd_through_the_block(folder: Path):
    """One micro-batch, one step: Adam's first step is the rate against the sign of the gradient,
    which a functional call gives.
    """
    dense, (pruned, _) = open_model(str(folder), "float32").model, compressed(folder, "wanda")
    fitted, record = compressed(folder, "reconstructed(steps=1, rate=0.0001)")
    assert next(edit["block"] for edit in record.edits) == 0
    layer, tokens, called = dense.model.layers[0], batch(), list[Any]()
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: called.append((args, kwargs)), with_kwargs=True
    )
    whole = outputs(dense)
    hook.remove()
    start = {
        name: one.detach().clone().requires_grad_()
        for name, one in pruned.model.layers[0].named_parameters()
        if one.dim() == 2
    }
    found = dict[str, Tensor]()
    hooks = [
        layer.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: found.update({name: out})
        )
        for name in WRITERS
    ]
    args, kwargs = called[0]
    functional_call(layer, start, args, kwargs)
    for one in hooks:
        one.remove()
    errors = [
        (found[name][tokens.mask].double() - whole[name]).square().sum()
        / whole[name].square().sum()
        for name in WRITERS
    ]
    gradients = torch.autograd.grad(torch.stack(errors).sum(), list(start.values()))
    for (name, before), gradient in zip(start.items(), gradients, strict=True):
        kept = before != 0
        step = 0.0001 * before.detach()[kept].square().mean().sqrt()
        sure = kept & (gradient.abs() > 1e-4 * gradient.abs().max())
        expected = before - step * gradient.sign()
        ours = fitted.model.layers[0].get_parameter(name)
        assert torch.allclose(ours[sure], expected[sure], rtol=1e-5, atol=float(step) * 1e-2)
        assert bool((ours[~kept] == 0).all())


def test_where_it_does_not_help_a_block_stays_as_the_method_left_it(folder: Path):
    fitted, record = compressed(folder, "reconstructed(rate=1.0, steps=2)")
    pruned, plain = compressed(folder, "wanda")
    assert record.edits == plain.edits == ()
    for one, other in zip(fitted.parameters(), pruned.parameters(), strict=True):
        assert torch.equal(one, other)


def test_matrices_kept_the_other_way_round_are_fitted_too(tmp_path: Path):
    model, record = compressed(tiny_folder(tmp_path / "gpt2", "gpt2"), "reconstructed")
    assert len(record.edits) == 3
    assert all(edit["notes"]["after"] < edit["notes"]["before"] for edit in record.edits)
    assert 0.55 < float((model.transformer.h[0].mlp.c_fc.weight == 0).double().mean()) < 0.65


def test_killed_and_asked_again_it_continues(folder: Path, tmp_path: Path):
    asked = {
        "method": "reconstructed(steps=4)",
        "target": 0.5,
        "samples": 4,
        "length": 16,
        "dtype": "float32",
    }
    whole = prune(str(folder), data="python_docs", out=tmp_path / "whole", **asked)

    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(str(folder), data="python_docs", out=tmp_path / "again", progress=killed, **asked)
    again = prune(str(folder), data="python_docs", out=tmp_path / "again", **asked)
    assert again.continued_from == 2
    assert again.record == whole.record
    assert (tmp_path / "again/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()
