"""Experts with few tokens: who they are, what each way calibrates them on, and what a record and
an id say of it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from calibrant.activations import FeatureNorms, Gram, Seen
from calibrant.allocations.evolved import Evolved
from calibrant.compress import Recipe, compress, prune
from calibrant.compress.checkpoint import Checkpoint
from calibrant.data import TokenBatch
from calibrant.errors import ModelError, SpecError
from calibrant.job import Job
from calibrant.methods import Method
from calibrant.models import Opened, Weight, expert_layers, view
from calibrant.results import Record
from calibrant.spec import identity
from calibrant.targets import Target
from calibrant.testing import tiny_folder
from calibrant.walk import walk
from calibrant.walk.starving import fed, starving

from tests.models.mixtures_of_experts import tiny_mixture
from tests.models.test_experts import LENGTHS, inputs_of_routers, literal, padded_batch
from tests.usual import usually

KINDS = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v3", "granitemoe", "phimoe")
USUAL = ("mixtral", "deepseek_v3", "granitemoe")


def opened_of(kind: str) -> Opened:
    return Opened(tiny_mixture(kind), None, kind, f"sha256:{kind}", "", torch.float32)


def six_times(batch: TokenBatch) -> TokenBatch:
    return replace(
        batch,
        ids=batch.ids.repeat(6, 1),
        mask=batch.mask.repeat(6, 1),
        weights=batch.weights.repeat(6, 1),
    )


def first_five(batch: TokenBatch) -> TokenBatch:
    """Five tokens of the first sequence."""
    return replace(
        batch, ids=batch.ids[:1, :5], mask=batch.mask[:1, :5], weights=batch.weights[:1, :5]
    )


def compressed(
    kind: str,
    starved: str,
    method: str = "wanda",
    propagate: str | None = None,
    batch: TokenBatch | None = None,
) -> tuple[Record, Opened]:
    opened = opened_of(kind)
    recipe = Recipe.parse(method, 0.5, propagate, starved=starved)
    return compress(opened, view(opened.model), batch or padded_batch(False), recipe), opened


def counts_by_hand(kind: str, batch: TokenBatch) -> dict[int, list[float]]:
    """How many tokens each expert gets, by its weight."""
    model = tiny_mixture(kind)
    layers = expert_layers(view(model))
    counts = {layer.block: [0.0] * 8 for layer in layers}
    lengths = batch.mask.sum(1).tolist()
    for ids, weights, length in zip(batch.ids, batch.weights, lengths, strict=True):
        came = inputs_of_routers(model, layers, ids[None, :length])
        for layer in layers:
            for chosen, weight in zip(
                literal(kind, layer.router, came[layer.name])[0].tolist(),
                weights.tolist(),
                strict=False,
            ):
                for expert in chosen:
                    counts[layer.block][expert] += weight
    return counts


def expert_matrices(model: Opened) -> Mapping[str, tuple[int, int, int]]:
    """Block, expert, and place among the expert's matrices, by name."""
    layers = expert_layers(view(model.model))
    return {
        w.name: (layer.block, e, at)
        for layer in layers
        for e, own in enumerate(layer.experts)
        for at, w in enumerate(own)
    }


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", usually(KINDS, USUAL))
def test_starved_are_those_that_get_fewer_tokens_than_they_have_inputs(
    kind: str, weighted: bool
) -> None:
    opened, batch = opened_of(kind), padded_batch(weighted)
    many = six_times(batch)
    found, names = starving(opened, view(opened.model), many), expert_matrices(opened)
    counts = counts_by_hand(kind, batch)
    want = {
        name: 6 * counts[block][expert]
        for name, (block, expert, _) in names.items()
        if 6 * counts[block][expert] < 32
    }
    assert found == pytest.approx(want, abs=1e-3)
    assert 0 < len(found) < len(names), "some are, and some are not"


@pytest.mark.parametrize("kind", usually(KINDS, USUAL))
def test_all_tokens_are_all_that_come_to_the_layer_and_the_model_computes_what_it_did(
    kind: str,
) -> None:
    opened, batch = opened_of(kind), padded_batch(False)
    seen_by, names = view(opened.model), expert_matrices(opened)
    few = starving(opened, seen_by, batch)
    hungry = {name: count for name, count in few.items() if names[name][1] in (0, 3)}
    plain = {w.name: seen for w, seen in walk(seen_by, batch, (FeatureNorms,), "dense")}
    with torch.no_grad():
        found = {
            w.name: seen
            for w, seen in fed(
                seen_by,
                lambda: walk(seen_by, batch, (FeatureNorms,), "dense"),
                "all_tokens",
                hungry,
            )
        }
    rows: dict[int, list[Tensor]] = {layer.block: [] for layer in expert_layers(seen_by)}
    for ids, length in zip(batch.ids, LENGTHS, strict=True):
        came = inputs_of_routers(opened.model, expert_layers(seen_by), ids[None, :length])
        for layer in expert_layers(seen_by):
            rows[layer.block].append(came[layer.name].double())
    # Products of more rows may be rounded otherwise, which reaches what comes behind them.
    fed_first = min(names[name][0] for name in hungry)
    for name, seen in found.items():
        if name not in hungry:
            got, usual = seen[FeatureNorms].norms(), plain[name][FeatureNorms].norms()
            before = next(w.block for w in seen_by.weights if w.name == name) <= fed_first
            apart = 0 if before else 1e-6 * usual.max()  # some ten roundings of float32
            assert (got - usual).abs().max() <= apart, f"{name} gets what it got"
    assert set(hungry) <= set(found), "also those that got nothing"
    for name in hungry:
        block, expert, at = names[name]
        x = torch.cat(rows[block])
        if at == 1:
            first = (
                expert_layers(seen_by)[
                    [layer.block for layer in expert_layers(seen_by)].index(block)
                ]
                .experts[expert][0]
                .get()
                .double()
            )
            gates, ups = (x @ first.T).chunk(2, dim=1)
            x = gates * torch.sigmoid(gates) * ups
        assert found[name].tokens == sum(LENGTHS)
        assert torch.allclose(
            found[name][FeatureNorms].norms(), x.square().sum(0), rtol=1e-4, atol=1e-7
        )
    assert not any(module._forward_pre_hooks for module in opened.model.modules())


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
def test_with_all_tokens_no_expert_stays_dense(propagate: str) -> None:
    few = first_five(padded_batch(False))
    seen, fed_all = (
        compressed("mixtral", how, "sparsegpt", propagate, few)[0]
        for how in ("as_seen", "all_tokens")
    )
    assert any("no calibration token" in matrix["reason"] for matrix in seen.dense)
    assert not any("routed" in matrix["reason"] for matrix in fed_all.dense)
    assert {matrix["tokens"] for matrix in fed_all.weights if "experts" in matrix["name"]} == {5}, (
        "all are starved by five tokens"
    )


def test_dense_leaves_the_starved_as_they_are_and_says_why() -> None:
    batch = six_times(padded_batch(False))
    record, opened = compressed("mixtral", "dense", batch=batch)
    untouched = {w.name: w.get() for w in view(tiny_mixture("mixtral")).weights}
    reasons = {matrix["name"]: matrix["reason"] for matrix in record.dense}
    counts = counts_by_hand("mixtral", batch)
    starved, others = 0, 0
    for name, (block, expert, _) in expert_matrices(opened).items():
        same = torch.equal(view(opened.model).named[name].get(), untouched[name])
        if counts[block][expert] < 32:
            starved += 1
            assert same
            assert name in reasons
        else:
            others += 1
            assert not same
            assert name not in reasons
    assert starved
    assert others


def test_what_an_allocation_tries_treats_starved_experts_as_the_job_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[tuple[str, set[str]]] = []

    def targets(
        self: Evolved, matrices: Mapping[Weight, Seen], job: Job, method: Method
    ) -> Mapping[str, Target]:
        tried.append((job.starved, set(job.starving)))
        return self.share(matrices, job.target)

    monkeypatch.setattr(Evolved, "targets", targets)
    batch = six_times(padded_batch(False))
    opened = opened_of("mixtral")
    recipe = Recipe.parse("wanda", 0.5, allocation="evolved", starved="dense")
    compress(opened, view(opened.model), batch, recipe)
    ((starved, names),) = tried
    assert starved == "dense"
    assert names == set(starving(opened_of("mixtral"), view(tiny_mixture("mixtral")), batch))


def test_a_starved_expert_without_a_token_is_told_from_one_with_few() -> None:
    batch = first_five(padded_batch(False))
    record, _ = compressed("mixtral", "dense", batch=batch)
    reasons = {matrix["name"]: matrix["reason"] for matrix in record.dense}
    counts = counts_by_hand("mixtral", batch)
    told: set[bool] = set()
    for name, (block, expert, _) in expert_matrices(opened_of("mixtral")).items():
        without = counts[block][expert] == 0
        assert ("no calibration token" in reasons[name]) == without
        told.add(without)
    assert told == {True, False}


def test_shared_is_the_sum_of_what_all_experts_of_the_layer_saw() -> None:
    opened, batch = opened_of("mixtral"), padded_batch(False)
    seen_by, names = view(opened.model), expert_matrices(opened)
    hungry = {name: 0.0 for name, (_, expert, _) in names.items() if expert in (2, 5)}
    plain = {w.name: seen for w, seen in walk(seen_by, batch, (Gram,), "dense")}
    found = {
        w.name: seen
        for w, seen in fed(
            seen_by, lambda: walk(seen_by, batch, (Gram,), "dense"), "shared", hungry
        )
    }
    for name, (block, _, at) in names.items():
        same = [
            plain[other][Gram].matrix
            for other, (b, _, place) in names.items()
            if (b, place) == (block, at) and other in plain
        ]
        want = sum(same) if name in hungry else plain[name][Gram].matrix if name in plain else None
        assert (name in found) == (want is not None)
        if want is not None:
            assert torch.allclose(found[name][Gram].matrix, want, rtol=1e-5)
    assert found.keys() - names.keys() == plain.keys() - names.keys()


def test_as_seen_is_what_it_was_and_a_choice_is_part_of_the_id_and_of_the_record() -> None:
    batch = first_five(padded_batch(False))
    records = {
        how: compressed("mixtral", how, propagate="dense", batch=batch)[0]
        for how in ("as_seen", "dense", "all_tokens", "shared")
    }
    run = records["as_seen"].run
    before = ("model", "tokens", "method", "target", "allocation", "propagate", "dtype")
    assert run.id == identity({name: getattr(run, name) for name in before}), (
        "ids of what was released stay"
    )
    assert len({record.run.id for record in records.values()}) == 4
    for how, record in records.items():
        plain = record.plain()
        assert plain["run"].get("starved") == (None if how == "as_seen" else how)
        assert Record.read(plain) == record
    saw = {m["name"]: m.get("tokens") for m in records["as_seen"].weights}
    counts = counts_by_hand("mixtral", batch)
    for name, (block, expert, _) in expert_matrices(opened_of("mixtral")).items():
        assert saw.get(name) == (counts[block][expert] or None)
    assert all(tokens is None for name, tokens in saw.items() if "experts" not in name)


@pytest.mark.parametrize("how", ["all_tokens", "dense"])
def test_one_that_was_killed_goes_on_with_those_that_were_starved_before(
    how: str, tmp_path: Path
) -> None:
    def killed(what: str, done: int, total: int) -> None:
        if what.startswith("sparsegpt"):
            raise KeyboardInterrupt

    batch, recipe, kept = (
        padded_batch(False),
        Recipe.parse("sparsegpt", 0.5, starved=how),
        Checkpoint(tmp_path / "out", "sha256:killed"),
    )
    opened, again = opened_of("mixtral"), opened_of("mixtral")
    with pytest.raises(KeyboardInterrupt):
        compress(opened, view(opened.model), batch, recipe, checkpoint=kept, progress=killed)
    assert len(kept.load()) == 1
    whole, _ = compressed("mixtral", how, "sparsegpt")
    assert compress(again, view(again.model), batch, recipe, checkpoint=kept) == whole


@pytest.mark.parametrize("kind", ["gpt_oss", "llama4_text"])
def test_experts_that_take_no_other_tokens_are_named(kind: str) -> None:
    with pytest.raises(ModelError) as refused:
        compressed(kind, "all_tokens")
    assert refused.value.subject in {
        layer.name for layer in expert_layers(view(tiny_mixture(kind)))
    }


def test_a_model_without_experts_has_none_to_feed(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    small = {"samples": 2, "length": 16, "dtype": "float32"}
    plain, fed_all = (
        prune(str(folder), data="python_docs", starved=how, **small)
        for how in ("as_seen", "all_tokens")
    )
    assert plain.record.weights == fed_all.record.weights


def test_what_can_not_be_asked_for_is_refused() -> None:
    for how, method, propagate, told in (
        ("hungry", "wanda", None, "'hungry'"),
        ("dense", "magnitude", None, "magnitude"),
        ("dense", "short_gpt", None, "short_gpt"),
        ("shared", "wanda", None, "--propagate dense"),
        ("shared", "wanda", "reference", "--propagate dense"),
    ):
        with pytest.raises(SpecError) as refused:
            Recipe.parse(method, 0.5, propagate, starved=how)
        assert told in str(refused.value)
