"""RSQ: tokens count by the attention they get, which the model's own attention maps say; without
that it is GPTQ.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from calibrant.activations import Gram
from calibrant.compress.matrices import edits_of
from calibrant.data import TokenBatch
from calibrant.errors import ModelError
from calibrant.job import Job
from calibrant.methods import methods
from calibrant.methods._arrivals import turned
from calibrant.methods.quantization.rsq import spread
from calibrant.models import ModelView, Opened, view
from calibrant.targets import parse_target
from calibrant.testing.tiny import tiny_model
from calibrant.walk import walk
from calibrant.walk.attention import BlockCall, attention_received

from tests.usual import usually


def batch_of(samples: int = 3, length: int = 24, padded: bool = False) -> TokenBatch:
    ids = torch.randint(3, 259, (samples, length), generator=torch.Generator().manual_seed(7))
    mask = torch.ones(samples, length, dtype=torch.bool)
    if padded:
        mask[1, 15:] = False
        mask[2, :5] = False
    return TokenBatch(ids * mask, mask, mask.float(), "sha256:0", {})


def job_of(
    model: PreTrainedModel, batch: TokenBatch, propagate: str = "arrival", target: str = "w3g16"
) -> Job:
    seen, aim = view(model), parse_target(target)
    opened = Opened(model, None, "tiny", "sha256:0", "", torch.float32)
    return Job(opened, seen, batch, aim, dict.fromkeys(seen.named, aim), propagate)  # pyright: ignore[reportArgumentType]


def codes(
    method: str, batch: TokenBatch, propagate: str = "arrival", family: str = "llama"
) -> list[Tensor]:
    """What a method makes of each matrix of a tiny model."""
    job, found = job_of(tiny_model(family), batch, propagate), list[Tensor]()
    for edit in edits_of(methods.build(method), job):
        edit.apply(job.view)
        found.append(edit.compressed.packed.codes)
    assert found
    return found


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def maps(model: PreTrainedModel, ids: Tensor, mask: Tensor, block: int) -> Tensor:
    """What the model itself says of a block's attention, [sample, head, query, key]."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(
                input_ids=ids, attention_mask=mask.long(), output_attentions=True, use_cache=False
            ).attentions[block]
    finally:
        model.set_attn_implementation(before)


@pytest.mark.parametrize(
    ("attention", "padded"), [("sdpa", True), ("eager", True), ("eager", False)]
)
@pytest.mark.parametrize(
    "family",
    usually(
        ["llama", "gpt2", "gemma3", "phi3", "mixtral", "gpt_neox"],
        {"llama", "gpt2", "gemma3", "gpt_neox"},
    ),
)
def test_attention_is_what_the_model_says_it_is(family: str, attention: str, padded: bool):
    model, batch, seen = (
        tiny_model(family),
        batch_of(padded=padded),
        dict[int, tuple[Tensor, Tensor]](),
    )
    model.set_attn_implementation(attention)

    def weigh(call: BlockCall) -> Tensor:
        seen[call.block.index] = attention_received(call), call.real
        return call.real.float()

    for _ in walk(view(model), batch, (Gram,), "dense", weigh=weigh):
        pass
    front = (
        (~batch.mask).long().argsort(dim=1, stable=True)
    )  # as the walk has them: real tokens first, the longest sequence first
    order = sorted(range(3), key=lambda i: -int(batch.mask[i].sum()))
    ids, mask = batch.ids.gather(1, front)[order], batch.mask.gather(1, front)[order]
    assert sorted(seen) == [0, 1, 2]
    for block, (received, real) in seen.items():
        expected = (maps(model, ids, mask, block) * mask[:, None, :, None]).sum((1, 2))
        assert torch.equal(real, mask)
        torch.testing.assert_close(received * mask, expected * mask, rtol=1e-4, atol=1e-5)


def test_weights_reach_from_the_least_to_one_and_are_one_on_average():
    received, real = torch.rand(4, 9), torch.ones(4, 9, dtype=torch.bool)
    real[1, 6:] = False
    found = spread(received, real, 0.25)
    for row, (numbers, there) in enumerate(zip(received, real, strict=True)):
        low, high = float(numbers[there].min()), float(numbers[there].max())
        by_hand = [0.25 + (float(n) - low) / (high - low) * 0.75 for n in numbers[there]]
        assert found[row][there].tolist() == pytest.approx(
            [w * len(by_hand) / sum(by_hand) for w in by_hand], rel=1e-5
        )
    assert (found[~real] == 0).all()
    assert torch.equal(spread(received, real, 1.0), real.float())
    torch.testing.assert_close(spread(received * 7, real, 0.25), found)
    assert torch.equal(
        spread(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool), 0.1), torch.ones(1, 3)
    )


@pytest.mark.parametrize(
    ("family", "propagate"),
    [
        ("llama", "arrival"),
        ("llama", "reference"),
        *(
            pytest.param(*more, marks=pytest.mark.slow)
            for more in (("llama", "dense"), ("mixtral", "arrival"))
        ),
    ],
)
def test_when_all_tokens_count_alike_it_is_gptq(family: str, propagate: str):
    batch = batch_of(padded=True)
    plain = codes("gptq", batch, propagate, family)
    assert same(codes("rsq(importance=equal)", batch, propagate, family), plain)
    assert same(codes("rsq(least=1.0)", batch, propagate, family), plain)
    assert not same(codes("rsq", batch, propagate, family), plain)


def test_a_weight_of_ones_own_is_multiplied():
    batch, own = batch_of(1), torch.rand(1, 24, generator=torch.Generator().manual_seed(3)) + 0.5
    own[0, 4] = 0
    by_block, found = (
        torch.rand(1, 24, generator=torch.Generator().manual_seed(4)),
        dict[str, Gram](),
    )
    model = tiny_model("llama")
    for weight, seen in walk(
        view(model), replace(batch, weights=own), (Gram,), "dense", weigh=lambda _: by_block
    ):
        found[weight.name] = seen[Gram]
    x: dict[str, Tensor] = {}
    model.get_submodule("model.layers.1.mlp.down_proj").register_forward_hook(
        lambda _, args, __: x.__setitem__("x", args[0][0])
    )
    with torch.no_grad():
        model(input_ids=batch.ids)
    weights = (own * by_block)[0]
    torch.testing.assert_close(
        found["model.layers.1.mlp.down_proj"].matrix,
        x["x"].T @ (x["x"] * weights[:, None]),
        rtol=1e-4,
        atol=1e-5,
    )
    assert found["model.layers.1.mlp.down_proj"].mass == pytest.approx(
        float(weights.sum()), rel=1e-6
    )


@pytest.mark.parametrize("propagate", ["arrival", "reference"])
def test_attention_is_that_of_a_block_that_is_still_whole_behind_rounded_ones(
    propagate: str, monkeypatch: pytest.MonkeyPatch
):
    batch, given, checked = batch_of(2), list[Tensor](), list[int]()

    def noted(received: Tensor, real: Tensor, least: float) -> Tensor:
        given.append(received)
        return spread(received, real, least)

    monkeypatch.setattr("calibrant.methods.quantization.rsq.spread", noted)
    job = job_of(tiny_model("llama"), batch, propagate)
    for edit in edits_of(methods.build("rsq"), job):
        if edit.block is not None and edit.block not in checked:
            checked.append(edit.block)
            expected = maps(job.view.model, batch.ids, batch.mask, edit.block).sum((1, 2))
            torch.testing.assert_close(given[-1], expected, rtol=1e-4, atol=1e-5)
        edit.apply(job.view)
    assert checked == [0, 1, 2]


def test_every_part_of_a_sequence_comes_first_once():
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3, [False] * 2 + [True] * 6])
    ids = torch.arange(1, 25).reshape(3, 8) * mask
    batch = turned(TokenBatch(ids, mask, mask * torch.arange(1.0, 9.0), "sha256:0", {}), 4)
    assert batch.ids.shape == (12, 8)
    assert batch.ids[[0, 3, 6, 9]].tolist() == [
        [1, 2, 3, 4, 5, 6, 7, 8],
        [7, 8, 1, 2, 3, 4, 5, 6],
        [5, 6, 7, 8, 1, 2, 3, 4],
        [3, 4, 5, 6, 7, 8, 1, 2],
    ]
    assert batch.ids[4].tolist() == [13, 9, 10, 11, 12, 0, 0, 0]
    assert batch.ids[2].tolist() == [19, 20, 21, 22, 23, 24, 0, 0]
    assert (batch.mask.sum(1).reshape(4, 3) == mask.sum(1)).all()
    assert (batch.weights[batch.ids == 13] == 5).all()


def test_turns_are_shown_to_the_model():
    batch, propagate = batch_of(2, 16), "arrival"
    assert same(
        codes("rsq(importance=equal, expand=1)", batch, propagate), codes("gptq", batch, propagate)
    )
    assert same(
        codes("rsq(importance=equal, expand=4)", batch, propagate),
        codes("gptq", turned(batch, 4), propagate),
    )
    assert not same(
        codes("rsq(importance=equal, expand=4)", batch, propagate), codes("gptq", batch, propagate)
    )


def test_a_block_without_attention_is_refused():
    model = tiny_model("llama")
    seen: ModelView = view(model)
    model.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(ModelError) as refused:
        for _ in walk(seen, batch_of(), (Gram,), "dense", weigh=attention_received):
            pass
    assert refused.value.subject == "model.layers.1"
