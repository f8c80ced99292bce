"""The arithmetic of the benchmarks, and that the page about speed says what their records say."""

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks import growth, in_vllm, machine, peers, plans, schemes, sizes, table

from calibrant import view
from calibrant.compress import rates
from calibrant.compress.planning import Machine
from calibrant.models import ModelShape
from calibrant.targets import CacheGrid
from calibrant.testing import tiny_model


def test_the_pages_about_speed_are_made_of_the_records():
    texts = [path.read_text() for path in table.PAGES]
    for name in table.TABLES:
        assert "".join(texts).count(f"<!-- {name} -->") == 1, name
    for text in texts:
        assert table.page(text) == text


def test_a_record_goes_on_where_the_same_was_asked_and_else_begins_anew(tmp_path: Path):
    out = tmp_path / "record.json"
    asked = argparse.Namespace(samples=16, dtype="float32", draws=3)
    question = machine.question_of(asked, ("samples", "dtype"))
    machine.keep(out, {**machine.started(out, question, "cases"), "cases": {"gptq W8A8": [1]}})
    asked.draws = 5
    more_draws = machine.question_of(asked, ("samples", "dtype"))
    assert machine.started(out, more_draws, "cases")["cases"] == {"gptq W8A8": [1]}
    asked.samples = 32
    more_samples = machine.question_of(asked, ("samples", "dtype"))
    assert machine.started(out, more_samples, "cases")["cases"] == {}


def test_a_difference_has_an_error_where_there_are_draws():
    assert peers.difference([1.0], [3.0]) == (-2.0, None)
    mean, error = peers.difference([1.0, 2.0, 6.0], [0.0, 0.0, 0.0])
    assert (mean, error) == (3.0, pytest.approx(math.sqrt(7) / math.sqrt(3)))


def test_keys_are_cut_as_vllm_was_seen_to_store_them_and_are_rounded_again_afterwards():
    numbers = torch.tensor([1.09375, -1.21875, 440.0, 0.0015, 1.125, 1000.0])[None, None, None]
    with in_vllm.cache_cut_towards_zero():
        cut = CacheGrid("e4m3").rounded(numbers, (1.0,))
    assert cut.flatten().tolist() == [1.0, -1.125, 416.0, 0.0, 1.125, 448.0]
    nearest = CacheGrid("e4m3").rounded(numbers, (1.0,))
    assert nearest.flatten().tolist() == [1.125, -1.25, 448.0, 2**-9, 1.125, 448.0]


def test_tensors_of_two_folders_are_compared_by_kind_and_block():
    one = {
        "model.layers.0.self_attn.q_proj.weight_scale": torch.tensor([[1.0], [2.0]]),
        "model.layers.1.up_proj.weight_scale": torch.tensor([[4.0], [8.0]]),
        "model.norm.weight": torch.tensor([1.0]),
    }
    other = {**one, "model.layers.1.up_proj.weight_scale": torch.tensor([4.0, 10.0])}
    assert schemes.alike(one, other) == {
        "weight_scale": {
            "all": 0.75,
            "first": 1.0,
            "apart": pytest.approx(0.2),
            "apart_of_dense_inputs": 0.0,
        }
    }


def rounds() -> list[dict[str, Any]]:
    """Two pairs, of which bfloat16 has the lower floor."""
    products = {dtype: [[2, 3, 1e9], [3, 2, 2e9]] for dtype in machine.DTYPES}
    shared = {"peak": 100.0, "peak_in_all": 120.0, "dtype": "float32", "propagate": "arrival"}
    return [
        {
            "calibrant": {**shared, "seconds": 2.0 * n, "whole": 4.0},
            "llmcompressor": {**shared, "seconds": 8.0, "whole": 12.0, "peak": 100.0 * n},
            "floor": {"float32": 2.0, "bfloat16": 1.0 * n},
            "products": products,
        }
        for n in (1, 2)
    ]


def test_ratios_are_those_of_pairs():
    found = peers.summary(rounds(), ("llmcompressor", "calibrant"))
    assert found["ratios"] == {"llmcompressor": [4.0, 2.0]}
    assert found["whole_ratios"] == {"llmcompressor": [3.0, 3.0]}
    assert found["peaks"] == {"llmcompressor": 200.0, "calibrant": 100.0}
    assert (found["floor_dtype"], found["of_floor"]) == ("bfloat16", [2.0, 2.0])


def test_of_repeated_points_the_least_stands_and_a_line_says_how_far_its_worst_point_is_off():
    rounds = [
        [{"tokens": 1, "seconds": 3.0}, {"tokens": 2, "seconds": 4.0}],
        [{"tokens": 1, "seconds": 2.0}, {"tokens": 2, "seconds": 9.0}],
    ]
    assert growth.least(rounds) == [
        {"tokens": 1, "seconds": 2.0, "taken": [3.0, 2.0]},
        {"tokens": 2, "seconds": 4.0, "taken": [4.0, 9.0]},
    ]
    line = growth.straight([0, 1, 2], [1.0, 2.0, 6.0])
    assert line == {
        "start": pytest.approx(0.5),
        "slope": pytest.approx(2.5),
        "worst": pytest.approx(0.5),
    }


def test_the_shape_of_a_configuration_is_that_of_the_open_model():
    model = tiny_model("llama", tie_word_embeddings=False)
    config = {name: getattr(model.config, name) for name in sizes.MODELS["Qwen2.5-7B"]}
    described = sizes.shape_of(config)
    shape = ModelShape.of(view(model))
    assert (described.numbers, described.outside) == (shape.numbers, shape.outside)
    assert described.input_widths == shape.input_widths
    sides = [[(each.outputs, each.inputs) for each in one.matrices] for one in (described, shape)]
    assert sides[0] == sides[1]


def test_models_have_as_many_numbers_as_their_names_say():
    billions = [sizes.shape_of(config).numbers / 1e9 for config in sizes.MODELS.values()]
    assert billions == pytest.approx([7.62, 32.8, 70.6], rel=0.01)


def test_blocks_of_a_model_that_a_gpu_has_no_room_for_stay_beside_it():
    device = sizes.DEVICES["80 GB"]
    machine = Machine(device.rates, sizes.PROCESS, sizes.PLENTY, device.room, sizes.PLENTY)
    numbers = sizes.shape_of(sizes.MODELS["Qwen2.5-7B"]).numbers
    whole = sizes.planned("Qwen2.5-7B", "wanda", "cuda", machine)
    parted = sizes.planned("Qwen2.5-7B", "wanda", "cuda", replace(machine, room=15 * 10**9))
    assert whole.fits
    assert whole.memory > 2 * numbers
    assert parted.fits
    assert parted.memory <= parted.room < 2 * numbers < parted.host
    assert parted.seconds["compress"] > whole.seconds["compress"]
    assert not sizes.planned("Qwen2.5-7B", "wanda", "cuda", replace(machine, room=10**9)).fits
    assert not sizes.planned("Qwen2.5-7B", "wanda", "cuda", replace(machine, memory=10**9)).fits


@pytest.mark.parametrize("method", plans.METHODS)
def test_factors_say_what_a_plan_says(method: str):
    device = sizes.DEVICES["24 GB"]
    speed = replace(device.rates, launch=0.0)
    machine = sizes.machine_of(speed)
    planned = sizes.planned("Qwen2.5-7B", method, "cpu", machine)
    shape = sizes.shape_of(sizes.MODELS["Qwen2.5-7B"])
    units = plans.units(shape, "folder", planned.tokens, sizes.LENGTH, speed)
    parts = plans.expected(f"Qwen2.5-7B, {method} 0.5", {"units": units})
    assert planned.seconds["open"] == pytest.approx(parts.pop("open"))
    assert planned.parts == pytest.approx(parts)


def test_factors_are_fitted_to_what_jobs_took():
    """Jobs of several shapes took what other factors than today's say."""
    true = {"passes": 90.0, "products": 3.0, "cubes": 1.0}
    speed = rates.Rates(products=9e11, exact=4e11, grams=3e11, passes=3e9)
    cases: dict[str, Any] = {}
    for name, config in sizes.MODELS.items():
        for width in (1, 2, 4):
            shape = sizes.shape_of({**config, "intermediate_size": width * 4096})
            units = plans.units(shape, "folder", 4096, 512, speed)
            method = sum(units["method and record"][key] * factor for key, factor in true.items())
            sums = units["statistics"]
            parts = {
                "forward": sum(units["forward"].values()),
                "statistics": 0.9 * sums["grams"] + 3 * sums["passes"],
                "method": 0.7 * method,
                "record": 0.3 * method,
            }
            seconds = {"open": 1.0}
            case = {"units": units, "taken": {"parts": parts, "seconds": seconds}}
            cases[f"{name} {width}, sparsegpt 0.5"] = case
    found = plans.fitted(cases)
    assert found["sparsegpt"] == pytest.approx(true, rel=0.1)
    assert found["Gram"] == pytest.approx({"grams": 0.9, "passes": 3.0}, rel=0.1)
