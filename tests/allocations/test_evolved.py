"""Shares that evolve, against all shares that there are, each compressed and measured by plain
torch.
"""

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant.allocations import allocations
from calibrant.allocations.evolved import _Candidates
from calibrant.compress import Recipe, UntouchedModel, prune, quantize
from calibrant.compress.loop import allocated
from calibrant.compress.matrices import edits_of
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.edits import Replace
from calibrant.errors import SpecError
from calibrant.methods import methods
from calibrant.models import Opened, open_model, view
from calibrant.results.outcomes import Journal
from calibrant.targets import parse_target
from calibrant.testing import tiny_folder

from tests.killed import killed_after

BLOCKS = 4
SMALL: dict[str, Any] = {"samples": 8, "length": 24, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("given") / "model", num_hidden_layers=BLOCKS)


@pytest.fixture(scope="module")
def opened(folder: Path) -> Opened:
    return open_model(str(folder), "float32")


@pytest.fixture(scope="module")
def batch(opened: Opened) -> TokenBatch:
    return CalibrationSet("python_docs", samples=8, length=24).tokens(opened.tokenizer)


def distributions(model: Any, batch: TokenBatch) -> torch.Tensor:
    with torch.no_grad():
        return model(batch.ids, use_cache=False).logits[:, :-1].log_softmax(-1)


def diverged(opened: Opened, batch: TokenBatch, shares: Sequence[float]) -> float:
    """KL to the untouched model once the smallest weights of each matrix are zero, so large a
    share of them block by block.
    """
    model = copy.deepcopy(opened.model).double()
    before = distributions(model, batch)
    for layer, share in zip(model.model.layers, shares, strict=True):
        for matrix in (m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)):
            flat = matrix.data.flatten()
            flat[flat.abs().argsort(stable=True)[: int(round(share * 10) * len(flat) // 10)]] = 0
            matrix.data = flat.reshape(matrix.shape)
    after = distributions(model, batch)
    weights = batch.weights[:, 1:].double()
    divergences = (before.exp() * (before - after)).sum(-1)
    return float((divergences * weights).sum() / weights.sum())


def test_the_best_of_all_shares_is_found(folder: Path, opened: Opened, batch: TokenBatch) -> None:
    done = prune(
        str(folder),
        data="python_docs",
        method="magnitude",
        target=0.5,
        allocation="evolved(levels=1, step=0.2, tokens=[192], generations=20, patience=20)",
        **SMALL,
    )
    every = [
        shares
        for shares in product((0.3, 0.5, 0.7), repeat=BLOCKS)
        if sum(shares) == pytest.approx(2.0)
    ]
    assert len(every) == 19
    best = min(every, key=lambda shares: diverged(opened, batch, shares))
    assert all(
        round(matrix["sparsity"], 1) == best[int(matrix["name"].split(".")[2])]
        for matrix in done.record.weights
    )
    assert done.record.sparsity == pytest.approx(0.5, abs=2e-3)


@pytest.mark.parametrize(("method", "target"), [("sparsegpt", "0.5"), ("rtn", "w4g16")])
def test_the_mean_is_what_was_asked_for_and_the_course_is_told_and_noted(
    folder: Path, opened: Opened, method: str, target: str
) -> None:
    said: list[str] = []
    how = {
        "allocation": "evolved(step=0.1, tokens=[48, 192])",
        "progress": lambda what, *_: said.append(what),
        **SMALL,
    }
    done = (quantize if method == "rtn" else prune)(
        str(folder), data="python_docs", method=method, target=target, **how
    )
    sizes = {
        weight.name: weight.shape[0] * weight.shape[1] for weight in view(opened.model).weights
    }
    if method == "rtn":
        bits = sum(
            sizes[matrix["name"]] * matrix["bits_a_weight"] for matrix in done.record.weights
        )
        assert bits / sum(sizes.values()) == pytest.approx(4 + 32 / 16, rel=1e-5), (
            "4 bits a code, and a scale of float32 for 16 of them"
        )
    else:
        assert float(target) - 1 / 32 < done.record.sparsity <= float(target), (
            "of a row of 32 a whole number goes, rounded down"
        )
    courses = [float(what.partition("best ")[2]) for what in said if "best " in what]
    assert courses == sorted(courses, reverse=True), "never worse than uniform, where it begins"
    (edit,) = done.record.edits
    assert (edit["edit"], edit["allocation"]) == (
        "allocation",
        "evolved(step=0.1, tokens=[48, 192])",
    )
    notes = edit["notes"]
    assert notes["course"] == pytest.approx(courses[: len(notes["course"])], abs=1e-4), (
        "what was told while it searched"
    )
    assert (notes["best"], notes["by"], notes["tokens"]) == (
        notes["course"][-1],
        "divergence",
        [48, 192],
    )
    assert notes["measured"] > len(notes["course"])


def test_a_token_of_weight_0_has_no_say(opened: Opened, batch: TokenBatch) -> None:
    answers = batch.weights * (torch.arange(24) >= 16)
    weighed = replace(batch, weights=answers)
    recipe = Recipe.parse(
        "magnitude", 0.5, allocation="evolved(levels=1, step=0.2, tokens=[192], generations=2)"
    )
    notes: dict[str, Any] = {}
    seen = view(opened.model)
    targets = allocated(UntouchedModel(opened, seen, weighed), recipe, Journal(), notes)
    shares = [float(targets[block.weights[0].name].amount or 0) for block in seen.blocks]
    assert notes["best"] == pytest.approx(diverged(opened, weighed, shares), rel=1e-4)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("rsq", "w4g16"),
        ("rsq(importance=equal, expand=2)", "w4g16"),
        ("robust(rounds=2, swaps=4, steps=2)", "0.5"),
    ],
)
def test_a_level_is_what_the_method_makes_of_tokens_shown_as_it_wants_them(
    opened: Opened, method: str, target: str
) -> None:
    both = CalibrationSet("0.5*python_docs + 0.5*random_tokens", samples=4, length=24)
    untouched = UntouchedModel(opened, view(opened.model), both.tokens(opened.tokenizer))
    level = parse_target(target)
    job = untouched.job(level, Journal(), {})
    built = methods.build(method)
    made = _Candidates(job, built, [level])._variants
    copies: dict[int, torch.Tensor] = {}
    for _, compressed in made._ways:
        for parameter, numbers in compressed.numbers:
            copies[id(parameter)] = numbers
    count = 0
    for edit in edits_of(built, job):
        assert isinstance(edit, Replace)
        parameter = edit.weight.owner.get_parameter(edit.weight.key)
        assert torch.equal(copies[id(parameter)], edit.compressed.weight)
        count += 1
    assert count == len(copies) == len(job.view.weights)


def test_killed_while_it_searches_it_comes_to_the_same_model(folder: Path, tmp_path: Path) -> None:
    how = {"allocation": "evolved(step=0.1, tokens=[48, 192], generations=4)", **SMALL}
    prune(
        str(folder), data="python_docs", method="wanda", target=0.5, out=tmp_path / "whole", **how
    )
    with killed_after(2, 5, 7):
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                prune(
                    str(folder),
                    data="python_docs",
                    method="wanda",
                    target=0.5,
                    out=tmp_path / "out",
                    **how,
                )
    prune(str(folder), data="python_docs", method="wanda", target=0.5, out=tmp_path / "out", **how)
    assert (tmp_path / "out/model.safetensors").read_bytes() == (
        tmp_path / "whole/model.safetensors"
    ).read_bytes()
    edits = [
        json.loads((tmp_path / name / "calibrant.json").read_text())["record"]["edits"]
        for name in ("out", "whole")
    ]
    assert edits[0] == edits[1] != []


def test_the_untouched_model_is_what_it_was(opened: Opened, batch: TokenBatch) -> None:
    before = {name: tensor.clone() for name, tensor in opened.model.state_dict().items()}
    recipe = Recipe.parse("wanda", 0.5, allocation="evolved(tokens=[192], generations=2)")
    allocated(UntouchedModel(opened, view(opened.model), batch), recipe, Journal())
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in opened.model.state_dict().items()
    )


def test_where_there_is_no_room_for_the_levels_it_says_how_much_they_take(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        available = 1000

    monkeypatch.setattr("calibrant.allocations.evolved.psutil.virtual_memory", Full)
    with pytest.raises(SpecError) as refused:
        prune(
            str(folder),
            data="python_docs",
            method="magnitude",
            target=0.5,
            allocation="evolved",
            **SMALL,
        )
    assert refused.value.subject == "levels"


def test_levels_that_no_matrix_can_have_are_left_out() -> None:
    evolved = allocations.build("evolved(step=0.2)")
    assert [str(target) for target in evolved.menu(parse_target(0.7))] == [
        "0.3",
        "0.5",
        "0.7",
        "0.9",
    ]
    assert [str(target) for target in evolved.menu(parse_target("w3g64a"))] == [
        "w2g64a",
        "w3g64a",
        "w4g64a",
        "w5g64a",
    ]


def test_the_tokens_are_part_of_what_is_asked(opened: Opened, batch: TokenBatch) -> None:
    """Also where the method itself looks at no data."""
    ids = {
        Recipe.parse("magnitude", 0.5, allocation=name).run(opened, batch).tokens
        for name in ("evolved", "uniform")
    }
    assert ids == {batch.fingerprint, ""}
