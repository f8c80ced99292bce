"""Losses of a model without some of its blocks are those of the model from which they were
dropped, to the bit, however they are measured.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibrant.data import TokenBatch, divided
from calibrant.data.calibration import factors_of
from calibrant.errors import DataError, ModelError
from calibrant.models import ModelView, view
from calibrant.testing import FAMILIES, tiny_model
from calibrant.walk.variants import AS_IT_IS, SKIPPED, Variant, Variants, loss

from tests.usual import usually

LENGTHS = (40, 17, 40, 33, 3, 29)


def batch_of(padded: bool = True, weighted: bool = False, seed: int = 0) -> TokenBatch:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(LENGTHS if padded else (40,) * len(LENGTHS))
    ids = torch.randint(3, 100, (len(lengths), 40), generator=generator)
    mask = torch.arange(40)[None] < lengths[:, None]
    weights = torch.rand(ids.shape, generator=generator) if weighted else torch.ones(ids.shape)
    return TokenBatch(ids * mask, mask, weights * mask, f"sha256:{seed}", {})


def skipping(seen: ModelView) -> Variants:
    return Variants(seen, [(AS_IT_IS, SKIPPED)] * len(seen.blocks))


def really_dropped(model: PreTrainedModel, choice: tuple[int, ...], batch: TokenBatch) -> float:
    smaller = copy.deepcopy(model)
    seen = view(smaller)
    seen.drop_blocks([index for index, dropped in enumerate(choice) if dropped])
    return loss(seen, batch)


@pytest.mark.parametrize("family", usually(FAMILIES, ("llama", "gemma3", "qwen3_moe")))
@pytest.mark.parametrize("padded", [True, False])
def test_a_skipped_block_is_a_dropped_one_to_the_bit(family: str, padded: bool) -> None:
    model, batch = tiny_model(family), batch_of(padded)
    seen = view(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    choices = [choice for choice in product((0, 1), repeat=3) if sum(choice) < 3]
    Random(0).shuffle(choices)
    assert skipping(seen).losses(choices, batch) == [
        really_dropped(model, choice, batch) for choice in choices
    ]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules()), (
        "every block's forward is its own again"
    )
    assert loss(seen, batch) == really_dropped(model, (0, 0, 0), batch)


def test_going_on_where_two_choices_differ_changes_no_bit_and_runs_less(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many random choices together, against each alone, which has nothing to go on from."""
    model, batch = tiny_model("llama", num_hidden_layers=8), batch_of(weighted=True)
    variants, chance = skipping(view(model)), Random(1)
    choices = [tuple(chance.randint(0, 1) for _ in range(8)) for _ in range(40)]
    runs = {"together": 0, "alone": 0}
    now = "together"
    block = type(model.model.layers[0])
    forward = block.forward

    def counting(*args: Any, **kwargs: Any) -> Any:
        runs[now] += 1
        return forward(*args, **kwargs)

    monkeypatch.setattr(block, "forward", counting)
    together = variants.losses(choices, batch)
    now = "alone"
    assert together == [variants.losses([choice], batch)[0] for choice in choices]
    assert runs["alone"] == sum(8 - sum(choice) for choice in choices)
    assert runs["together"] < 0.7 * runs["alone"]


def test_the_divergence_is_that_of_plain_distributions() -> None:
    """Window by window in float64, from a plain forward of two models."""
    model, batch = tiny_model("llama", num_hidden_layers=4), batch_of(weighted=True)
    choice = (0, 1, 0, 1)
    smaller = copy.deepcopy(model)
    view(smaller).drop_blocks([1, 3])
    nats = mass = 0.0
    for ids, mask, weights in zip(batch.ids, batch.mask, batch.weights, strict=True):
        real, counts = ids[mask][None], weights[mask]
        with torch.no_grad():
            old, new = (
                one.double()(real).logits[0].softmax(-1)
                for one in (copy.deepcopy(model), copy.deepcopy(smaller))
            )
        for place, weight in enumerate(counts[1:].tolist()):
            nats += weight * float(
                sum(p * (p / q).log() for p, q in zip(old[place], new[place], strict=True))
            )
            mass += weight
    variants = skipping(view(model))
    found = variants.losses([choice, (0, 0, 0, 0)], batch, divergence=True)
    assert found[0] == pytest.approx(nats / mass, rel=1e-4)
    assert found[1] == 0


def test_a_block_may_have_other_numbers() -> None:
    model, batch = tiny_model("llama"), batch_of()
    seen = view(model)
    weight = seen.blocks[1].weights[-1]
    parameter: nn.Parameter = getattr(weight.owner, weight.key)
    own, other = parameter.data_ptr(), torch.randn(parameter.shape)
    variants = Variants(
        seen,
        [
            (AS_IT_IS,),
            (AS_IT_IS, Variant(numbers=((parameter, other),)), SKIPPED),
            (AS_IT_IS, SKIPPED),
        ],
    )
    found = variants.losses([(0, 1, 0), (0, 0, 0), (0, 1, 1), (0, 2, 0)], batch)
    assert parameter.data_ptr() == own
    expected = [loss(seen, batch)]
    weight.set(other)
    assert [found[1], found[0]] == [*expected, loss(seen, batch)]
    assert found[2] == really_dropped(model, (0, 0, 1), batch)


def test_a_part_of_a_block_may_be_another_and_what_the_last_block_gives_moves() -> None:
    """Against a copy of the model with that part, run text by text, and a distance that is
    written out.
    """
    model, batch = tiny_model("llama"), batch_of(weighted=True)
    seen, other = view(model), copy.deepcopy(model.model.layers[1].mlp)
    torch.nn.init.normal_(
        other.down_proj.weight, std=0.2, generator=torch.Generator().manual_seed(0)
    )
    changed = copy.deepcopy(model)
    changed.model.layers[1].mlp = other
    ways = [
        (AS_IT_IS,),
        (AS_IT_IS, Variant(parts=((model.model.layers[1].mlp, other),))),
        (AS_IT_IS, SKIPPED),
    ]

    def last(of: PreTrainedModel, ids: Tensor, block: int) -> Tensor:
        given: list[Tensor] = []
        handle = of.model.layers[block].register_forward_hook(
            lambda _, __, output: given.append(output[0])
        )
        with torch.no_grad():
            of(ids[None])
        handle.remove()
        return given[0]

    far, farther, mass = 0.0, 0.0, 0.0
    for ids, mask, weights in zip(batch.ids, batch.mask, batch.weights, strict=True):
        untouched = last(model, ids[mask], 2)
        far += float(
            ((last(changed, ids[mask], 2) - untouched).abs().sum(-1) * weights[mask]).sum()
        )
        farther += float(
            ((last(changed, ids[mask], 1) - untouched).abs().sum(-1) * weights[mask]).sum()
        )
        mass += float(weights[mask].sum())
    found = Variants(seen, ways).moved(
        [(0, 1, 0), (0, 0, 0), (0, 1, 1)], batch, lambda one, two: (one - two).abs().sum(-1)
    )
    assert found[1] == 0
    assert found[0] == pytest.approx(far / mass, rel=1e-4)
    assert found[2] == pytest.approx(farther / mass, rel=1e-4)
    assert Variants(seen, ways).losses([(0, 1, 0)], batch) == [loss(view(changed), batch)]
    assert not any("forward" in vars(module) for module in model.modules())


def mix_of(share: float) -> TokenBatch:
    """A mix of two batches, of which the second has a quarter of the first one's mass."""
    one, other = batch_of(seed=1), batch_of(seed=2)
    other = replace(other, weights=other.weights / 4)
    factors = factors_of((share, 1 - share), (one, other))
    ids, mask, weights = (
        torch.cat([getattr(one, name), getattr(other, name)]) for name in ("ids", "mask", "weights")
    )
    mixed = tuple(zip(factors, (one, other), strict=True))
    return TokenBatch(ids, mask, weights, "sha256:m", {}, mixed=mixed)


def test_of_a_mix_each_part_counts_by_its_share() -> None:
    mix, variants = mix_of(0.25), skipping(view(tiny_model("llama")))
    whole, apart, too = (
        variants.losses([(0, 1, 0)], part)[0] for part in (mix, *(part for _, part in mix.mixed))
    )
    assert whole == pytest.approx(0.25 * apart + 0.75 * too, rel=1e-12)


def test_a_mix_in_which_no_token_counts_is_refused() -> None:
    mix, variants = mix_of(0.25), skipping(view(tiny_model("llama")))
    parts = [replace(part, weights=torch.zeros_like(part.weights)) for _, part in mix.mixed]
    mix = replace(mix, mixed=tuple((1.0, part) for part in parts))
    assert [share for share, _ in mix.sets] == [0, 0]
    with pytest.raises(DataError, match="weights above 0"):
        variants.losses([(0, 1, 0)], mix)


def hidden_channel(layers: Any) -> None:
    kept: list[Tensor] = []
    first, last = layers[0].forward, layers[2].forward
    layers[0].forward = lambda hidden, *args, **kwargs: (
        kept.append(hidden),
        first(hidden, *args, **kwargs),
    )[1]
    layers[2].forward = lambda hidden, *args, **kwargs: last(hidden + kept.pop(), *args, **kwargs)


def by_its_place(layers: Any) -> None:
    last = layers[2].forward
    layers[2].forward = lambda hidden, *args, **kwargs: (
        last(hidden, *args, **kwargs) * (1 + layers[2].self_attn.layer_idx)
    )


def unlike(layers: Any) -> None:
    layers[1].mlp.gate_proj.register_parameter("extra", nn.Parameter(torch.ones(1)))


@pytest.mark.parametrize("changed", [hidden_channel, by_its_place, unlike])
def test_a_model_whose_blocks_are_more_than_a_chain_is_refused(
    changed: Callable[[Any], None],
) -> None:
    model = tiny_model("llama")
    changed(list(model.model.layers))
    seen = view(model)
    with pytest.raises(ModelError) as refused:
        skipping(seen)
    assert refused.value.subject == "LlamaForCausalLM"
    assert len(seen.blocks) == 3


def test_part_of_a_batch_is_whole_sequences_at_equal_distances_and_of_a_mix_a_part_of_each() -> (
    None
):
    batch = batch_of()
    few, rest = divided(batch, 80)
    assert rest is not None
    assert torch.equal(few.ids, batch.ids[[0, 2, 4]]), "three of six, for half of the 162 tokens"
    assert torch.equal(rest.ids, batch.ids[[1, 3, 5]])
    everything, nothing = divided(batch, 10_000)
    assert torch.equal(everything.ids, batch.ids)
    assert nothing is None
    cut, _ = divided(batch_of(padded=False), 16)
    assert cut.ids.shape == (1, 16)
    few, rest = divided(mix_of(0.25), 160)
    assert rest is not None
    assert [len(part.ids) for _, part in few.sets] == [3, 3]
    assert [share for share, _ in few.sets] == pytest.approx([0.25, 0.75])
    assert few.mass == pytest.approx(sum(part.mass for _, part in few.sets))
    assert torch.equal(few.ids, torch.cat([part.ids for _, part in few.mixed]))
    assert [len(part.ids) for _, part in rest.mixed] == [3, 3]


def test_of_a_mix_no_token_is_lost_where_one_part_is_cut() -> None:
    """Full windows of one set are cut to the tokens that are wanted, padded ones of another aren't.
    Only answers count, which stand at the end of each sequence.
    """
    full, padded = batch_of(padded=False, seed=1), batch_of(seed=2)
    # The first sequence is the one that is chosen: of 29 tokens.
    padded = replace(
        padded,
        ids=padded.ids.flip(0),
        mask=padded.mask.flip(0),
        weights=padded.weights.flip(0),
    )
    full = replace(full, weights=full.weights * (torch.arange(40) >= 10))
    padded = replace(padded, weights=padded.weights * (torch.arange(40) >= 24))
    factors = factors_of((0.25, 0.75), (full, padded))
    mix = TokenBatch(
        torch.cat([full.ids, padded.ids]),
        torch.cat([full.mask, padded.mask]),
        torch.cat([full.weights * factors[0], padded.weights * factors[1]]),
        "sha256:m",
        {},
        mixed=((factors[0], full), (factors[1], padded)),
    )
    few, _ = divided(mix, 32)
    of_full, of_padded = (part for _, part in few.mixed)
    assert (of_full.ids.shape, of_padded.ids.shape) == ((1, 16), (1, 40))
    assert torch.equal(few.ids[few.mask], torch.cat([full.ids[0, :16], padded.ids[0, :29]]))
    assert few.weights[0].double().sum() / few.mass == pytest.approx(0.25, rel=1e-7)
    # In float64: each set's own mean, times its share.
    model = tiny_model("llama")
    expected = 0.0
    for share, ids, weights in (
        (0.25, full.ids[:1, :16], full.weights[0, 1:16]),
        (0.75, padded.ids[:1, :29], padded.weights[0, 1:29]),
    ):
        with torch.no_grad():
            log_p = model.double()(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        nats = -log_p.gather(1, ids[0, 1:, None])[:, 0]
        expected += share * float((nats * weights.double()).sum() / weights.double().sum())
    model.float()
    assert loss(view(model), few) == pytest.approx(expected, rel=1e-6)
    assert loss(view(model), replace(few, mixed=())) == pytest.approx(expected, rel=1e-6), (
        "one walk sees what the mix says"
    )
