"""The methods that search for blocks, against all choices that there are, measured by plain
models.
"""

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant.compress import Recipe, compress, prune
from calibrant.compress.checkpoint import Checkpoint
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import ModelError, NumericsError
from calibrant.methods._searching import Choice, Trials
from calibrant.methods.blocks._blocks import _HalfBlocks
from calibrant.models import Opened, open_model, view
from calibrant.results import Record
from calibrant.testing import tiny_folder, tiny_model

from tests.killed import killed_after, tried
from tests.usual import usually

BLOCKS = 8
SMALL = {"samples": 12, "length": 24, "dtype": "float32"}
FEW = "tokens=[48, 144]"
SEARCHES = (f"evop({FEW})", f"greedy({FEW})", f"evopress({FEW}, drawn=8, offspring=8)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("given") / "model", num_hidden_layers=BLOCKS)


@pytest.fixture(scope="module")
def opened(folder: Path) -> Opened:
    return open_model(str(folder), "float32")


@pytest.fixture(scope="module")
def batch(opened: Opened) -> TokenBatch:
    return CalibrationSet("python_docs", samples=12, length=24).tokens(opened.tokenizer)


def searched(folder: Path, method: str, target: float | str, batch: TokenBatch) -> Record:
    opened = open_model(str(folder), "float32")
    return compress(opened, view(opened.model), batch, Recipe.parse(method, target))


def logits(opened: Opened, batch: TokenBatch, dropped: tuple[int, ...] = ()) -> torch.Tensor:
    """Of the model without some of its layers, in float64, by nothing but transformers."""
    model = copy.deepcopy(opened.model).double()
    model.model.layers = torch.nn.ModuleList(
        layer for index, layer in enumerate(model.model.layers) if index not in dropped
    )
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    model.config.num_hidden_layers = len(model.model.layers)
    with torch.no_grad():
        return model(batch.ids, use_cache=False).logits


def lost(opened: Opened, batch: TokenBatch, dropped: tuple[int, ...]) -> float:
    words = logits(opened, batch, dropped)[:, :-1].log_softmax(-1)
    return -float(words.gather(-1, batch.ids[:, 1:, None]).mean())


def diverged(opened: Opened, batch: TokenBatch, dropped: tuple[int, ...]) -> float:
    before, after = (logits(opened, batch, some)[:, :-1].log_softmax(-1) for some in ((), dropped))
    return float((before.exp() * (before - after)).sum(-1).mean())


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_search_finds_the_best_of_all_masks(
    folder: Path, opened: Opened, batch: TokenBatch, count: int
) -> None:
    every = list(combinations(range(BLOCKS), count))
    for method, measure in (
        ("evop(tokens=288, generations=8, patience=8, greedy=false)", lost),
        ("evopress(tokens=288, drawn=8, offspring=16, generations=12)", diverged),
    ):
        record = searched(folder, method, count / BLOCKS, batch)
        (edit,) = record.edits
        losses = {dropped: measure(opened, batch, dropped) for dropped in every}
        assert tuple(edit["blocks"]) == min(every, key=losses.__getitem__), method
        assert edit["notes"]["best"] == pytest.approx(min(losses.values()), rel=1e-4)
        assert edit["notes"]["loss"] == pytest.approx(
            lost(opened, batch, tuple(edit["blocks"])), rel=1e-4
        )
        assert all(later <= earlier for earlier, later in pairwise(edit["notes"]["course"])), (
            "the best so far never gets worse"
        )


def test_greedy_drops_what_a_loop_over_plain_models_drops_and_evolution_loses_no_more(
    folder: Path, opened: Opened, batch: TokenBatch
) -> None:
    gone: tuple[int, ...] = ()
    for _ in range(2):
        left = [index for index in range(BLOCKS) if index not in gone]
        gone = min(
            (tuple(sorted((*gone, index))) for index in left),
            key=lambda dropped: lost(opened, batch, dropped),
        )
    names = ("greedy(tokens=288)", "evop(tokens=288)", "short_gpt")
    greedy, evolved, alike = (
        tuple(searched(folder, name, 2 / BLOCKS, batch).edits[0]["blocks"]) for name in names
    )
    assert greedy == gone
    assert (
        lost(opened, batch, evolved)
        <= min(lost(opened, batch, greedy), lost(opened, batch, alike)) + 1e-6
    )


@pytest.mark.parametrize("method", usually(SEARCHES, SEARCHES[2:]))
def test_killed_after_any_measurement_it_comes_to_the_same_model(
    folder: Path, tmp_path: Path, method: str
) -> None:
    whole = prune(
        str(folder), data="python_docs", method=method, target=0.25, out=tmp_path / "whole", **SMALL
    )
    kept = 0
    for at in (1, 2, 4, 8, 16, 32, 64, 128):
        out = tmp_path / f"killed-{at}"
        try:
            with killed_after(at):
                prune(str(folder), data="python_docs", method=method, target=0.25, out=out, **SMALL)
        except KeyboardInterrupt:
            kept += 1
        else:
            break
        assert tried(out) > 0
        again = prune(str(folder), data="python_docs", method=method, target=0.25, out=out, **SMALL)
        assert again.record.edits == whole.record.edits
        assert (out / "model.safetensors").read_bytes() == (
            tmp_path / "whole/model.safetensors"
        ).read_bytes()
        assert not list(tmp_path.glob(".killed*")), "nothing is left of the search"
    assert kept > 2


@pytest.mark.parametrize("finite", [True, False])
def test_what_a_search_tried_stays_where_numbers_overflow(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finite: bool
) -> None:
    def overflows(trials: Trials, best: Choice, *_: object) -> None:
        trials.losses([best])
        raise NumericsError("the best loss is inf", subject="choices")

    def infinite(search: object, choices: Sequence[Choice], tokens: int) -> list[float]:
        return [math.inf for _ in choices]

    with monkeypatch.context() as within:
        if finite:
            within.setattr(Trials, "settle", overflows)
        else:
            within.setattr("calibrant.methods.blocks._blocks._Search.measure", infinite)
        with pytest.raises(NumericsError) as caught:
            prune(
                str(folder),
                data="python_docs",
                method=SEARCHES[1],
                target=0.25,
                out=tmp_path / "out",
                **SMALL,
            )
    assert ("the same command goes on" in str(caught.value)) == finite
    left = [path.name for path in tmp_path.iterdir()]
    assert left == ([".out.calibrant-partial"] if finite else [])
    prune(
        str(folder),
        data="python_docs",
        method=SEARCHES[1],
        target=0.25,
        out=tmp_path / "out",
        **SMALL,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_model_that_is_no_chain_of_blocks_is_searched_block_by_block(
    folder: Path, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = searched(folder, f"greedy({FEW})", 0.25, batch).edits[0]

    def refused(*_: object) -> None:
        raise ModelError("its blocks look at each other", subject="blocks")

    monkeypatch.setattr("calibrant.methods.blocks._blocks.Variants", refused)
    found = searched(folder, f"greedy({FEW})", 0.25, batch).edits[0]
    assert found["blocks"] == expected["blocks"]
    assert found["notes"] == {**expected["notes"], "one_by_one": "its blocks look at each other"}
    with pytest.raises(ModelError) as caught:
        searched(folder, f"evopress({FEW})", 0.25, batch)
    assert caught.value.subject == "blocks"


def test_what_is_wrong_with_the_untouched_model_is_said(
    folder: Path, opened: Opened, batch: TokenBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise ModelError("it reads pictures", subject="pictures")

    monkeypatch.setattr("calibrant.methods.blocks._blocks.Variants", refused)
    for error, subject, loss in (
        (ModelError, "pictures", refused),
        (NumericsError, opened.name, lambda *_: math.nan),
    ):
        monkeypatch.setattr("calibrant.methods.blocks._blocks.loss", loss)
        with pytest.raises(error) as caught:
            searched(folder, f"greedy({FEW})", 0.25, batch)
        assert caught.value.subject == subject


def zeroed(opened: Opened, halves: tuple[tuple[int, str], ...], batch: TokenBatch) -> float:
    model = copy.deepcopy(opened.model).double()
    for index, part in halves:
        torch.nn.init.zeros_(
            (
                model.model.layers[index].self_attn.o_proj
                if part == "attention"
                else model.model.layers[index].mlp.down_proj
            ).weight
        )
    with torch.no_grad():
        words = model(batch.ids, use_cache=False).logits[:, :-1].log_softmax(-1)
    return -float(words.gather(-1, batch.ids[:, 1:, None]).mean())


def test_apart_attention_and_networks_go_as_zeros(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    opened = open_model(str(folder), "float32")
    batch = CalibrationSet("python_docs", samples=12, length=24).tokens(opened.tokenizer)
    done = prune(
        str(folder),
        data="python_docs",
        method="evop(tokens=288, apart=true, generations=8, patience=8)",
        target=0.34,
        out=tmp_path / "out",
        **SMALL,
    )
    every = list(
        combinations(
            [(index, part) for index in range(3) for part in ("attention", "feed_forward")], 2
        )
    )
    best = min(every, key=lambda halves: zeroed(opened, halves, batch))
    names = {matrix["name"]: matrix for matrix in done.record.weights}
    gone = {(int(name.split(".")[2]), matrix["notes"]["part"]) for name, matrix in names.items()}
    gone |= {
        (index, part)
        for index in done.record.edits[0]["blocks"]
        for part in ("attention", "feed_forward")
    }
    assert gone == set(best)
    assert all(matrix["sparsity"] == 1 for matrix in names.values())
    assert done.record.edits[0]["notes"]["loss"] == pytest.approx(
        zeroed(opened, best, batch), rel=1e-4
    )
    sizes = {
        (w.block, "feed_forward" if "mlp" in w.name else "attention"): 0
        for w in view(opened.model).weights
    }
    for w in view(opened.model).weights:
        sizes[w.block, "feed_forward" if "mlp" in w.name else "attention"] += (
            w.shape[0] * w.shape[1]
        )
    assert done.record.sparsity == pytest.approx(
        sum(sizes[half] for half in best) / sum(sizes.values())
    )


def test_of_which_both_halves_go_that_block_is_dropped_whole(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    done = prune(
        str(folder),
        data="python_docs",
        method="greedy(tokens=288, apart=true)",
        target=0.9,
        out=tmp_path / "out",
        **SMALL,
    )
    (edit,) = done.record.edits
    assert len(edit["blocks"]) == 2, "of six halves five go, so of two blocks both"
    assert len({matrix["notes"]["part"] for matrix in done.record.weights}) == 1
    assert done.opened.model.config.num_hidden_layers == 1
    again = prune(
        str(folder),
        data="python_docs",
        method="greedy(tokens=288, apart=true)",
        target=0.9,
        out=tmp_path / "out",
        **SMALL,
    )
    assert again.already_done


def test_apart_experts_that_share_a_tensor_have_it_zeroed_once() -> None:
    seen = view(tiny_model("mixtral"))
    for block, variants in zip(seen.blocks, _HalfBlocks(seen).variants, strict=True):
        _, without_network, without_attention, _ = variants
        (zeroed_experts,) = without_network.numbers
        (zeroed_output,) = without_attention.numbers
        of_block = dict(block.module.named_parameters())
        assert zeroed_experts[0] is of_block["mlp.experts.down_proj"]
        assert zeroed_output[0] is of_block["self_attn.o_proj.weight"]
        for parameter, zeros in (zeroed_experts, zeroed_output):
            assert torch.equal(zeros, torch.zeros_like(parameter))


@pytest.mark.parametrize("kill", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_apart_killed_between_two_edits_it_comes_to_the_same_model(
    tmp_path: Path, kill: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, method = (
        tiny_folder(tmp_path / "model", num_hidden_layers=4),
        "greedy(tokens=144, apart=true)",
    )
    prune(
        str(folder), data="python_docs", method=method, target=0.6, out=tmp_path / "whole", **SMALL
    )
    add, count = Checkpoint.add, 0

    def deadly(*given: Any) -> None:
        nonlocal count
        add(*given)
        count += 1
        if count == kill:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "add", deadly)
        with suppress(KeyboardInterrupt):
            prune(
                str(folder),
                data="python_docs",
                method=method,
                target=0.6,
                out=tmp_path / "out",
                **SMALL,
            )
    assert count == kill
    prune(str(folder), data="python_docs", method=method, target=0.6, out=tmp_path / "out", **SMALL)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()
