"""Where time goes is counted, phase by phase."""

import time

import pytest

from calibrant.clock import Clock, spent_on


def test_a_part_is_counted_by_the_clock_that_runs():
    clock = Clock()
    with clock.phase("work"):
        with spent_on("digging"):
            time.sleep(0.02)
        time.sleep(0.02)
    assert clock.seconds["work"] >= clock.parts["digging"] + 0.02
    assert clock.parts["digging"] >= 0.02


def test_parts_add_up_over_phases_and_failures():
    clock = Clock()

    def fail() -> None:
        with clock.phase("work"), spent_on("digging"):
            time.sleep(0.01)
            raise ValueError("a stone")

    for _ in range(2):
        with pytest.raises(ValueError, match="a stone"):
            fail()
    assert list(clock.seconds) == ["work"]
    assert clock.parts["digging"] >= 0.02


def test_without_a_clock_nothing_is_counted():
    clock = Clock()
    with clock.phase("work"):
        pass
    with spent_on("digging"):
        pass
    assert clock.parts == {}


def test_of_two_clocks_the_inner_one_counts():
    outer, inner = Clock(), Clock()
    with outer.phase("all"), inner.phase("work"), spent_on("digging"):
        pass
    assert outer.parts == {}
    assert list(inner.parts) == ["digging"]
