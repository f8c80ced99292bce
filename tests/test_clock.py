"""Where time goes is counted, phase by phase."""

import pytest

from calibrant.clock import Clock, spent_on


@pytest.fixture(autouse=True)
def _every_look_a_second_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at the time comes a second after the one before."""
    times = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(times)))


def test_phases_and_their_parts_add_up_also_over_failures():
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


def test_the_clock_that_runs_counts_and_of_two_the_inner_one():
    outer, inner = Clock(), Clock()
    with outer.phase("all"), inner.phase("work"), spent_on("digging"):
        pass
    with spent_on("digging"):
        pass
    assert outer.parts == {}
    assert inner.parts == {"digging": 1.0}
