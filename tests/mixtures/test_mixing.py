"""The whole job on a model that has learnt something: what it gives back, what it keeps, what it
refuses.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant import CalibrationSet
from calibrant.activations import Gram
from calibrant.compress import Recipe, compress
from calibrant.errors import DataError, OutputError, SpecError
from calibrant.lab.mixtures import (
    Effort,
    Mixture,
    Sample,
    blended,
    expression,
    gather_statistics,
    mix,
    rounded,
)
from calibrant.lab.mixtures.statistics import statistic_of
from calibrant.methods import methods
from calibrant.models import open_model, open_tokenizer, view
from calibrant.targets import parse_target
from calibrant.walk.statistics import Statistics, statistics_id

from tests.trained import trained_folder

SOURCES = ("python_docs", "python_code", "arithmetic")
EFFORT = Effort(Sample(2, 16), 24, Sample(4, 32), Sample(2, 16))
SMALL: dict[str, Any] = {"tokens": 2048, "length": 128, "dtype": "float32", "effort": EFFORT}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the statistics are kept that several tests share."""
    return tmp_path_factory.mktemp("kept")


def found_in(place: Path, **asked: Any) -> Mixture:
    return mix(str(trained_folder()), sources=SOURCES, folder=place, **{**SMALL, **asked})


@pytest.fixture(scope="module")
def usual(place: Path) -> Mixture:
    """What is found for the mean of all sources."""
    return found_in(place)


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("wanda", "mean"),
        pytest.param("wanda", "worst", marks=pytest.mark.slow),
        pytest.param("wanda", "target=python_code", marks=pytest.mark.slow),
        ("sparsegpt", "target=0.5*python_docs + 0.5*python_code"),
    ],
)
def test_the_mixture_is_no_worse_than_the_best_source_and_the_uniform_one(
    place: Path, method: str, objective: str
) -> None:
    found = found_in(place, method=method, objective=objective)
    target = found.objective.removeprefix("target=")
    value = {
        row.calibrated_on: {"mean": row.mean, "worst": row.worst, **row.errors}[target]
        for row in found.rows
    }
    assert list(value) == ["python_docs", "python_code", "arithmetic:icl", "uniform", "mixture"]
    assert found.value == value["mixture"] == min(value.values())
    for row in found.rows:
        own = [row.errors[judge] for judge in found.judges[:3]]
        assert (row.mean, row.worst) == (pytest.approx(sum(own) / 3), max(own))
    assert sum(found.weights.values()) == pytest.approx(1)
    assert list(found.weights) == ["python_docs", "python_code", "arithmetic:icl"]
    assert [one.data for one in found.enough][:3] == list(found.weights)
    assert {one.without for one in found.influence} == {
        source
        for source, weight in found.weights.items()
        if weight or max(found.weights.values()) == 1
    }
    # What is written is what --data takes.
    chosen = CalibrationSet(found.expr, tokens=256, length=128)
    assert str(chosen) == found.expr
    shares = [float(share) for share in chosen.shares] or [1.0]
    assert shares == pytest.approx([weight for weight in found.weights.values() if weight])


def test_each_source_is_least_hurt_by_its_own_set_and_the_figures_are_disjoint_from_what_was_fitted(
    usual: Mixture,
) -> None:
    opened = open_model(str(trained_folder()), "float32")
    for judge in usual.judges:
        assert min(usual.rows[:3], key=lambda row: row.errors[judge]).calibrated_on == judge
        fitted = CalibrationSet(judge, tokens=2048, length=128)
        held_out = CalibrationSet(judge, tokens=2048, length=128, seed=1).held_out()
        kept = Statistics(usual.folder, statistics_id(opened, held_out.tokens(opened.tokenizer)))
        assert kept.folder.is_dir(), "it is judged by what the source holds out"
        assert not {row.key for row in fitted.rows(opened.tokenizer)[0]} & {
            row.key for row in held_out.rows(opened.tokenizer)[0]
        }


def test_a_second_call_walks_through_nothing_and_says_so(
    place: Path, usual: Mixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("walk.statistics", "lab.mixtures.statistics"):
        monkeypatch.setattr(
            f"calibrant.{module}.walk", lambda *_, **__: pytest.fail("another forward")
        )
    found = found_in(place, objective="worst", target="2:4")
    assert (found.gathered, found.reused, found.target) == (6, 6, "2:4")
    assert found.folder == usual.folder == str(place / "statistics")


def test_a_call_that_was_killed_goes_on(tmp_path: Path, usual: Mixture) -> None:
    def killed(what: str, done: int, total: int) -> None:
        if what == "statistics of arithmetic:icl" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        found_in(tmp_path, progress=killed)
    told: list[tuple[str, int]] = []
    found = found_in(tmp_path, progress=lambda what, done, _: told.append((what, done)))
    assert found.reused == 2
    gathered = [
        (what, done)
        for what, done in told
        if what.startswith("statistics of") and "held out" not in what
    ]
    assert gathered == [("statistics of arithmetic:icl", 3), ("statistics of arithmetic:icl", 4)]
    assert (found.expr, found.rows) == (usual.expr, usual.rows)


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("wanda", [50, 30, 20]),
        pytest.param("wanda", [0, 0, 100], marks=pytest.mark.slow),
        ("sparsegpt", [0, 30, 70]),
    ],
)
def test_masks_are_those_of_pruning_with_the_expression_to_the_bit(
    place: Path, method: str, weights: list[int]
) -> None:
    opened = open_model(str(trained_folder()), "float32")
    asked, shares = (
        Recipe.parse(method, 0.6, "dense"),
        rounded(torch.tensor(weights, dtype=torch.float64).numpy()),
    )
    sets = [CalibrationSet(source, tokens=2048, length=128) for source in SOURCES]
    drawn = [(str(one), one.tokens(opened.tokenizer)) for one in sets]
    seen_by = view(opened.model)
    kept = gather_statistics(
        opened, seen_by, methods.build(method), drawn, drawn[:1], place / "statistics", Sample(4, 8)
    )
    expected: dict[str, torch.Tensor] = {}
    for block in seen_by.blocks:
        several = [source.stored.read([kept.kind], block)[1] for source in kept.sources]
        for weight in block.weights:
            mixed = blended([seen[weight] for seen in several], shares, kept.masses)
            assert mixed is not None
            expected[weight.name] = (
                methods.build(method).compress(weight.get(), mixed, parse_target("0.6")).weight
            )
    chosen = CalibrationSet(expression([str(one) for one in sets], shares), tokens=2048, length=128)
    compress(opened, seen_by, chosen.tokens(opened.tokenizer), asked)
    if method == "wanda":
        assert all(torch.equal(weight.get(), expected[weight.name]) for weight in seen_by.weights)
    else:
        # What is read from the disk has one triangle, mirrored; a walk's Gram may differ from it in
        # the last bit.
        for weight in seen_by.weights:
            assert (
                float(((weight.get() != 0) == (expected[weight.name] != 0)).double().mean())
                > 0.9995
            )


def test_it_shows_itself(usual: Mixture) -> None:
    plain = json.loads(json.dumps(usual.to_json()))
    assert (plain["expr"], plain["rows"][0]["calibrated_on"]) == (usual.expr, "python_docs")
    assert plain["enough"][0]["points"][0]["tokens"] == 512
    assert plain["samples"]["final"] == {"blocks": 4, "of": 4, "rows": 32}
    assert usual.expr in usual._repr_html_().replace("&#x27;", "'")
    assert usual.expr in repr(usual)


def test_a_cache_that_cannot_be_written_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CALIBRANT_CACHE", os.devnull)
    with pytest.raises(OutputError, match="set CALIBRANT_CACHE to a folder that can be"):
        mix("no model of this name", sources=["python_docs", "python_code"], tokens=512)


def test_a_method_that_looks_at_two_statistics_can_t_be_mixed_for() -> None:
    class Both(type(methods.build("wanda"))):
        observes = (*methods.build("wanda").observes, Gram)

    with pytest.raises(SpecError, match="FeatureNorms, Gram"):
        statistic_of(Both())


def test_objects_are_mixed_as_files_of_the_same_rows(tmp_path: Path) -> None:
    """They are divided as files are: a mixture is judged by what its sources hold out."""
    rows = [{"text": f"{number} times {number} is {number * number}."} for number in range(400)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {**SMALL, "tokens": 256, "length": 64, "method": "wanda", "folder": tmp_path}
    model = str(trained_folder())
    found = mix(model, sources=[rows, "python_docs"], **settings)
    expected = mix(model, sources=[str(file), "python_docs"], **settings)
    assert list(found.weights.values()) == list(expected.weights.values())
    first, *_ = found.weights
    assert CalibrationSet(first, tokens=256).tokens(open_tokenizer(model)[0])
    with pytest.raises(DataError, match="token ids"):
        mix(model, sources=[[[5, 6, 7]], "python_docs"], **settings)
