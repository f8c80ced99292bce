"""A permuted model computes what it did, and N:M keeps more of it."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Seen
from calibrant.compress import Recipe, prune
from calibrant.edits.sites import Sites
from calibrant.errors import ModelError, SpecError, TargetError
from calibrant.models import Heads, ModelView, Snapshot, view
from calibrant.targets import NofM
from calibrant.testing.tiny import tiny_folder, tiny_model
from calibrant.transforms import transforms
from calibrant.transforms.permute import assigned, best_order, dealt, kept

from tests.models.families import small_model
from tests.transforms.test_rotate import logits, uneven
from tests.usual import usually


def seen_by(model: ModelView) -> Mapping[str, Seen]:
    """What the matrices see of inputs of very different sizes."""
    return {
        w.name: Seen(
            {
                FeatureNorms: FeatureNorms.of(
                    torch.randn(20, w.shape[1]) * torch.rand(w.shape[1]) ** 4
                )
            }
        )
        for w in model.weights
    }


def kept_by_loops(scores: Tensor, order: list[int], n: int, m: int) -> float:
    rows = [[row[i] for i in order] for row in scores.tolist()]
    return sum(
        sum(sorted(row[at : at + m])[m - n :]) for row in rows for at in range(0, len(row), m)
    )


@pytest.mark.parametrize(("n", "m"), [(2, 4), (3, 4), (4, 8)])
def test_what_is_kept_is_what_the_target_keeps_and_no_order_that_is_found_keeps_less(
    n: int, m: int
):
    scores, order = torch.rand(6, 32, dtype=torch.float64) * torch.rand(32) ** 3, torch.randperm(32)
    mask = NofM(n, m).keep(scores[:, order])
    assert kept(scores, order, n, m) == pytest.approx(float(scores[:, order][mask].sum()))
    assert kept(scores, order, n, m) == pytest.approx(kept_by_loops(scores, order.tolist(), n, m))
    first = dealt(scores, m)
    assert kept(scores, assigned(scores, first, n, m), n, m) >= kept(scores, first, n, m) - 1e-6
    assert kept(scores, best_order(scores, n, m), n, m) >= kept(scores, torch.arange(32), n, m)


def test_inputs_that_matter_and_stand_together_are_spread():
    scores = torch.ones(3, 16)
    scores[:, :8] = 10
    assert kept(scores, torch.arange(16), 2, 4) == 3 * (4 * 10 + 4)
    assert kept(scores, best_order(scores, 2, 4), 2, 4) == 3 * 8 * 10


FAMILIES = {
    "llama": (3, 6),
    "qwen2": (3, 6),
    "phi3": (3, 6),
    "gpt2": (3, 12),
    "gpt_neox": (3, 12),
    "mixtral": (96, 6),
}
"""How many networks (of experts each is one) and groups of heads a tiny model of the family has."""


@pytest.mark.parametrize("family", usually(sorted(FAMILIES), {"llama", "gpt2", "mixtral"}))
def test_logits_stay_what_they_were(family: str):
    model, seen = uneven(family)
    before, matrices = logits(model), {weight.name: weight.get().clone() for weight in seen.weights}
    notes = transforms.build("permute").apply(seen, seen_by(seen))
    assert (logits(model) - before).abs().max() < 1e-5  # norms compute in float32
    assert (notes["networks"], notes["heads"]) == FAMILIES[family]
    assert 0.5 < notes["before"] < notes["after"] < 1
    moved = [name for name, old in matrices.items() if not torch.equal(seen.named[name].get(), old)]
    assert len(moved) >= 2 * 3


def test_without_heads_only_networks_are_permuted_and_a_snapshot_brings_the_model_back():
    model, seen = uneven("llama")
    snapshot, before, statistics = Snapshot.of(seen), logits(model), seen_by(seen)
    outputs = [w.get().clone() for w in seen.weights if "o_proj" in w.name]
    notes = transforms.build("permute(heads=false)").apply(seen, statistics)
    assert (notes["networks"], notes["heads"]) == (3, 0)
    assert all(
        torch.equal(w.get(), old)
        for w, old in zip((w for w in seen.weights if "o_proj" in w.name), outputs, strict=True)
    )
    first = [w.get().clone() for w in seen.weights]
    snapshot.restore()
    assert torch.equal(logits(model), before)
    transforms.build("permute(heads=false)").apply(seen, statistics)
    assert all(torch.equal(w.get(), old) for w, old in zip(seen.weights, first, strict=True))


@pytest.mark.parametrize("family", ["gemma4_unified", "gemma4_unified_text"])
def test_of_layers_whose_heads_differ_in_width_only_networks_are_permuted(family: str):
    model = small_model(family)
    seen = view(model)
    before = logits(model)
    notes = transforms.build("permute").apply(seen, seen_by(seen))
    assert (notes["networks"], notes["heads"]) == (3, 0)
    assert (logits(model) - before).abs().max() < 1e-5
    assert Sites.of(seen).by_block


def test_heads_that_cannot_be_looked_for_leave_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
):
    _, seen = uneven("llama")
    before = [weight.get().clone() for weight in seen.weights]

    def refuse(_view: ModelView) -> None:
        raise ModelError("no token can be run")

    monkeypatch.setattr(Heads, "of", refuse)
    with pytest.raises(ModelError, match="no token can be run"):
        transforms.build("permute").apply(seen, seen_by(seen))
    for weight, old in zip(seen.weights, before, strict=True):
        assert torch.equal(weight.get(), old)


def test_a_matrix_that_no_token_reached_is_left():
    model, seen = uneven("llama")
    before = logits(model)
    statistics = {name: one for name, one in seen_by(seen).items() if "layers.1." not in name}
    assert transforms.build("permute").apply(seen, statistics)["networks"] == 2
    assert (logits(model) - before).abs().max() < 1e-5


def test_where_nothing_can_be_permuted_and_where_n_is_no_less_than_m_it_is_refused():
    seen = view(tiny_model("llama"))
    with pytest.raises(ModelError, match="groups of 5"):
        transforms.build("permute(n=2, m=5)").apply(seen, seen_by(seen))
    for n in (0, 4):
        with pytest.raises(SpecError) as refused:
            transforms.build(f"permute(n={n}, m=4)")
        assert refused.value.subject == "n"


@pytest.mark.parametrize(
    ("transform", "target", "advice"),
    [
        ("permute", "4:8", r"write permute\(n=4, m=8\)"),
        ("permute(n=4, m=8)", "2:4+w4g16", r"write permute\(n=2, m=4\)"),
        ("permute", 0.5, "leave the transform out"),
    ],
)
def test_another_target_than_its_own_is_refused(transform: str, target: str | float, advice: str):
    with pytest.raises(TargetError, match=advice) as refused:
        Recipe.parse("sparsegpt", target, transform=transform)
    assert refused.value.subject == str(target)
    assert Recipe.parse("sparsegpt", "2:4+w4g16", transform="permute")


def test_it_goes_with_a_method_through_the_front_door(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model"))
    done = prune(
        folder,
        data="python_docs",
        method="wanda",
        target="2:4",
        transform=("permute",),
        samples=4,
        length=32,
        dtype="float32",
    )
    assert done.record.sparsity == 0.5
