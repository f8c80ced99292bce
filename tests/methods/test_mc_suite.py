"""MC-Suite's criteria against slow sums in float64, truths that are planted, and models without
the experts that went.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibrant.activations import Routing
from calibrant.compress import Recipe, compress
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import ModelError
from calibrant.job import Job
from calibrant.methods import methods
from calibrant.methods.experts._expert_scores import (
    CRITERIA,
    LayerEvidence,
    expert_gradients,
    first_by_score,
    first_of_pairs,
)
from calibrant.methods.experts.mc_suite import MCSuite
from calibrant.models import Opened, expert_layers, view
from calibrant.results import Record
from calibrant.targets import parse_target
from calibrant.testing import check_edits, tiny_folder
from calibrant.testing.tiny import VOCABULARY, tiny_tokenizer
from calibrant.walk import walk_blocks
from calibrant.walk.block_statistics import ExpertOutputs, TokenKinds

from tests.methods.mc_suite_by_hand import Matrices, by_hand
from tests.models.mixtures_of_experts import tiny_mixture
from tests.models.test_experts import LENGTHS, padded_batch
from tests.test_expert_statistics import by_loop
from tests.usual import usually

FAMILIES = (
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "olmoe",
    "deepseek_v3",
    "gpt_oss",
    "granitemoe",
    "phimoe",
    "llama4_text",
)


def opened_of(model: PreTrainedModel) -> Opened:
    return Opened(model, tiny_tokenizer(), "mixture", "sha256:mixture", "", torch.float32)


def job_of(model: PreTrainedModel, batch: TokenBatch) -> Job:
    opened = opened_of(model)
    seen_by = view(model)
    target = parse_target("experts 0.25")
    return Job(opened, seen_by, batch, target, dict.fromkeys(seen_by.named, target), "dense")


def random_batch(samples: int = 8, length: int = 64) -> TokenBatch:
    ids = torch.randint(
        3, VOCABULARY, (samples, length), generator=torch.Generator().manual_seed(5)
    )
    return TokenBatch(
        ids,
        torch.ones_like(ids, dtype=torch.bool),
        torch.ones(ids.shape),
        "sha256:random",
        {"tokens": ids.numel()},
    )


def dropped(model: PreTrainedModel, batch: TokenBatch, method: str, share: float = 0.25) -> Record:
    opened = opened_of(model)
    return compress(opened, view(model), batch, Recipe.parse(method, share))


def first_gone(record: Record) -> dict[int, list[int]]:
    return {int(block): experts for block, experts in record.edits[0]["experts"].items()}


def gradients_by_hand(model: PreTrainedModel, batch: TokenBatch) -> nn.Module:
    """A copy in float64 whose parameters have the gradients of the mean loss, sequence by
    sequence.
    """
    exact = copy.deepcopy(model).double()
    exact.requires_grad_(True)
    total = sum(
        float(weights[1:length].sum())
        for weights, length in zip(batch.weights, LENGTHS, strict=True)
    )
    for ids, weights, length in zip(batch.ids, batch.weights, LENGTHS, strict=True):
        words = exact(ids[None, :length], use_cache=False).logits[0].double().log_softmax(-1)
        lost = -words[:-1].gather(1, ids[1:length, None])[:, 0]
        ((lost * weights[1:length].double()).sum() / total).backward()
    return exact


def matrices_of(kind: str, module: nn.Module, of: Callable[[Tensor], Tensor]) -> list[Matrices]:
    """For each expert both its matrices `[out, in]` in float64, or what `of` gives of their
    parameters.
    """
    both = [
        of(module.get_parameter(name)).detach().double() for name in ("gate_up_proj", "down_proj")
    ]
    return [
        [one[expert].T if kind in ("gpt_oss", "llama4_text") else one[expert] for one in both]
        for expert in range(8)
    ]


def slope(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_every_criterion_is_a_slow_sum_over_tokens_and_numbers(kind: str, weighted: bool) -> None:
    model, batch = tiny_mixture(kind), padded_batch(weighted)
    seen_by = view(model)
    layers = expert_layers(seen_by)
    got, exact = by_loop(kind, model, batch, layers), gradients_by_hand(model, batch)
    with torch.no_grad():
        seen = {
            block.index: there
            for block, there in walk_blocks(
                seen_by, batch, (Routing, TokenKinds, ExpertOutputs), tokens_per_pass=24
            )
        }
        gradients = expert_gradients(job_of(model, batch), layers)
    for layer in layers:
        evidence = LayerEvidence(layer, seen[layer.block], gradients[layer.block], VOCABULARY, 0)
        module = exact.get_submodule(f"{layer.name}.experts")
        parts, slopes = (matrices_of(kind, module, of) for of in (lambda numbers: numbers, slope))
        router = exact.get_parameter(f"{layer.matrix.name}.weight").detach()
        want = by_hand(
            got[layer.block], parts, slopes, router, VOCABULARY, weighs_inputs=kind == "llama4_text"
        )
        for name, expected in want.items():
            found = CRITERIA[name].score(evidence)
            if name in ("eao", "ego"):  # a number that lies at a border may be on either side of it
                low, high = expected
                assert all(
                    a - 1 <= f <= b + 1 for a, f, b in zip(low, found.tolist(), high, strict=True)
                ), (name, low, found.tolist(), high)
            else:
                assert torch.allclose(
                    found.double(),
                    torch.tensor(expected, dtype=torch.float64),
                    rtol=2e-3,
                    atol=1e-5,
                ), (name, found, expected)
        assert {*want, "random"} == set(CRITERIA), "each has its sum"


@pytest.mark.parametrize("kind", usually(FAMILIES, {"qwen2_moe", "gpt_oss", "llama4_text"}))
def test_those_go_whose_numbers_are_smallest_or_largest(kind: str) -> None:
    batch = padded_batch(False)
    for drop in ("min", "max"):
        model = tiny_mixture(kind)
        record = dropped(model, batch, f"mc_suite(criterion=reap, drop={drop})")
        notes = record.edits[0]["notes"]
        for block, gone in first_gone(record).items():
            scores = notes["scores"][str(block)]
            inside = [scores[e] for e in gone]
            outside = [score for e, score in enumerate(scores) if e not in gone]
            assert len(gone) == 2
            assert max(inside) <= min(outside) if drop == "min" else min(inside) >= max(outside)
            counts = notes["routing"][str(block)]["counts"]
            assert sum(counts) == pytest.approx(2 * sum(LENGTHS))
            assert notes["routing"][str(block)]["unseen"] == [
                e for e, count in enumerate(counts) if count == 0
            ]
            assert notes["routing"][str(block)]["starved"] == [
                e for e, count in enumerate(counts) if 0 < count < 32
            ]
        assert all(layer.count == 6 for layer in expert_layers(view(model)))


def test_rounds_drop_what_a_loop_of_single_jobs_drops() -> None:
    batch, whole, step = random_batch(), tiny_mixture("mixtral"), tiny_mixture("mixtral")
    record = dropped(whole, batch, "mc_suite(criterion=ean, rounds=3)", 0.625)
    assert [len(edit["experts"]["0"]) for edit in record.edits] == [1, 2, 2]
    for edit, share in zip(record.edits, (1 / 8, 2 / 7, 2 / 5), strict=True):
        once = dropped(step, batch, "mc_suite(criterion=ean)", math.ceil(1000 * share) / 1000)
        assert once.edits[0]["experts"] == edit["experts"]
        assert once.edits[0]["notes"]["scores"] == edit["notes"]["scores"]
    assert all(
        torch.equal(a, b)
        for a, b in zip(whole.state_dict().values(), step.state_dict().values(), strict=True)
    )
    numbers = sum(math.prod(weight.shape) for weight in view(tiny_mixture("mixtral")).weights)
    assert record.sparsity == pytest.approx(sum(edit["removed"] for edit in record.edits) / numbers)


def test_the_lottery_trains_after_every_round_and_says_what_it_brought() -> None:
    batch, model = random_batch(), tiny_mixture("mixtral")
    record = dropped(model, batch, "mc_suite(criterion=euf, rounds=2, steps=6, rate=0.003)", 0.5)
    assert [edit["edit"] for edit in record.edits] == ["drop_experts", "tuned"] * 2
    for edit in record.edits[1::2]:
        before, after = edit["notes"]["loss"]
        assert after < before
        assert edit["parameters"] > 0
    assert record.edits[1]["notes"]["seed"] != record.edits[3]["notes"]["seed"], (
        "each round has an order of its own"
    )
    seen_by = view(model)
    with torch.no_grad():
        words = model(batch.ids, use_cache=False).logits[:, :-1].double().log_softmax(-1)
    lost = -float(words.gather(-1, batch.ids[:, 1:, None]).mean())
    assert lost == pytest.approx(record.edits[3]["notes"]["loss"][1], rel=1e-4), (
        "what is saved is what was measured"
    )
    assert all(layer.count == 4 for layer in expert_layers(seen_by))


@pytest.mark.parametrize(
    "method",
    usually(
        ["mc_suite(rounds=2, steps=2, rate=0.001)", "mc_suite(criterion=egs)"],
        ["mc_suite(rounds=2, steps=2, rate=0.001)"],
    ),
)
def test_killed_after_any_edit_it_comes_to_the_same_model(method: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mixtral", num_local_experts=8, num_hidden_layers=2)
    check_edits(methods.build(method), parse_target("0.5"), str(folder))


def test_criteria_of_weights_and_chance_need_no_data() -> None:
    assert [name for name in CRITERIA if not MCSuite(criterion=name).looks] == [
        "ews",
        "rwn",
        "wsr",
        "ewn",
        "random",
    ]
    assert MCSuite(criterion="random", steps=1).looks
    gone = [
        first_gone(
            dropped(
                tiny_mixture("mixtral"),
                padded_batch(False),
                f"mc_suite(criterion=random, seed={seed})",
            )
        )
        for seed in (0, 1)
    ]
    assert gone[0] != gone[1]
    assert gone[0][0] != gone[0][1], "each layer has its own draw"


def test_of_pairs_the_less_used_goes_and_takes_its_pairs_along() -> None:
    pairs = torch.tensor(
        [[9.0, 5.0, 1.0, 0.0], [5.0, 9.0, 4.0, 0.0], [1.0, 4.0, 9.0, 3.0], [0.0, 0.0, 3.0, 9.0]]
    )
    used = torch.tensor([7.0, 6.0, 8.0, 1.0])
    # 0 and 1 have 5 together, 1 goes; then 2 and 3 have 3, 3 goes; then 0 and 2, 0 goes.
    assert first_of_pairs(pairs, used, 3, largest=True) == (1, 3, 0)
    # 0 and 3 have nothing together, 3 goes; then 0 and 2 have 1, 0 goes.
    assert first_of_pairs(pairs, used, 2, largest=False) == (3, 0)
    assert first_of_pairs(torch.ones(3, 3), torch.ones(3), 2, largest=True) == (1, 2), (
        "of two that are used alike the higher number goes"
    )
    assert first_by_score(torch.tensor([2.0, 1.0, 2.0, 1.0]), 3, largest=False) == (1, 3, 0)
    assert first_by_score(torch.tensor([2.0, 1.0, 2.0, 1.0]), 3, largest=True) == (0, 2, 1)


def test_gradients_of_a_mix_count_each_part_by_its_share() -> None:
    model = tiny_mixture("mixtral")
    mix = CalibrationSet(
        "mix(domain=python_docs, general=random_tokens, weight=0.25)", samples=2, length=24
    ).tokens(tiny_tokenizer())
    layers = expert_layers(view(model))
    with torch.no_grad():
        whole, *parts = (
            expert_gradients(job_of(model, batch), layers)
            for batch in (mix, *(part for _, part in mix.mixed))
        )
    shares = [share / sum(s for s, _ in mix.mixed) for share, _ in mix.mixed]
    for block, experts in whole.items():
        for number, matrices in enumerate(experts):
            for place, gradient in enumerate(matrices):
                want = sum(
                    share * part[block][number][place]
                    for share, part in zip(shares, parts, strict=True)
                )
                assert torch.allclose(gradient, want, rtol=1e-4, atol=1e-7)


def test_a_router_of_groups_that_would_be_uneven_is_named() -> None:
    model = tiny_mixture("deepseek_v3", n_group=2, topk_group=1)
    with pytest.raises(ModelError) as refused:
        dropped(model, padded_batch(False), "mc_suite(criterion=rwn)", 0.125)
    assert refused.value.subject == "model.layers.1.mlp"
