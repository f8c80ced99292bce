"""Where time goes, phase by phase, and what a job cost, beside the floor."""

import platform
import time
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from calibrant.activations import FeatureNorms
from calibrant.compress import prune
from calibrant.compress.costs import ROWS, Costs, peak, processor
from calibrant.data import CalibrationSet
from calibrant.models import view
from calibrant.system.clock import Clock, seconds_of, spent_on
from calibrant.testing import tiny_folder, tiny_model, tiny_tokenizer


def test_a_peak_is_a_rate_that_a_product_reached(monkeypatch: pytest.MonkeyPatch):
    # Each look at the clock is a second later than the last, so the one product takes a second.
    monkeypatch.setattr(time, "perf_counter", partial(next, count(0.0)))
    assert peak((64, 32), torch.float32, seconds=2.5) == 2 * ROWS * 64 * 32


def test_the_floor_is_that_of_every_matrix_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("calibrant.compress.costs.peak", lambda *_: 1000.0)
    seen_by = view(tiny_model("llama"))
    clock = Clock({"open": 1.0, "compress": 5.0}, {"method": 2.0, "record": 0.5})
    costs = Costs.of(clock, seen_by, 10)
    assert costs.floor == pytest.approx(
        sum(2 * 10 * w.shape[0] * w.shape[1] for w in seen_by.weights) / 1000
    )
    assert costs.peak == pytest.approx(1000)
    assert costs.parts == {"forward": 2.5, "method": 2.0, "record": 0.5}
    assert Costs.of(clock, seen_by, 0).floor == 0


def test_prune_says_what_it_cost_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("calibrant.compress.costs.peak", lambda *_: 1e9)
    model = str(tiny_folder(tmp_path / "model", "llama"))
    data = CalibrationSet("random_tokens", samples=2, length=16)
    told = prune(model, data=data, profile=True).costs
    assert told is not None
    assert set(told.parts) == {"forward", "statistics", "method", "record"}
    assert sum(told.parts.values()) == pytest.approx(told.phases["compress"])
    assert told.tokens == 32
    assert prune(model, data=data).costs is None


def test_statistics_take_until_they_are_known_to_be_finite(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("calibrant.compress.costs.peak", lambda *_: 1e9)
    finite = FeatureNorms.finite

    def slowly(norms: FeatureNorms) -> bool:
        time.sleep(0.02)
        return finite(norms)

    monkeypatch.setattr(FeatureNorms, "finite", slowly)
    data = CalibrationSet("random_tokens", samples=2, length=16)
    model = tiny_model("llama")
    told = prune(model, tiny_tokenizer(), data=data, method="wanda", profile=True).costs
    assert told is not None
    assert told.parts["statistics"] > 0.2


def test_the_processor_has_a_name_and_what_rounds_bfloat16(monkeypatch: pytest.MonkeyPatch):
    told = (
        "processor : 0\nmodel name : A Chip @ 2 GHz\nflags : avx2 amx_bf16 "
        "avx512_bf16\n\nprocessor : 1\nmodel name : A Chip\nflags : avx2\n"
    )
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: told)
    assert processor() == "A Chip @ 2 GHz with avx512_bf16 and amx_bf16"
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert processor() == (platform.processor() or platform.machine())


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the time comes a second after the one before."""
    times = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(times)))


def test_phases_and_their_parts_add_up_also_over_failures(steady: None):
    clock = Clock()

    def fail() -> None:
        with clock.phase("work"), spent_on("digging"):
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
    with clock.phase("rest"):
        pass
    assert clock.seconds == {"work": 6.0, "rest": 1.0}
    assert clock.parts == {"digging": 2.0}


def test_the_clock_that_runs_counts_and_of_two_the_inner_one(steady: None):
    outer, inner = Clock(), Clock()
    with outer.phase("all"), inner.phase("work"), spent_on("digging"):
        pass
    with spent_on("digging"):
        pass
    assert outer.parts == {}
    assert inner.parts == {"digging": 1.0}


def test_work_is_done_once_to_say_how_long_it_takes(steady: None):
    done: list[str] = []
    assert seconds_of(lambda: done.append("work")) == 1.0
    assert done == ["work"]
