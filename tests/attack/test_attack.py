"""Malformed input of every kind, five hundred cases from one seed: each is done, or refused in a
sentence, and nothing else.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.attack.kinds import KINDS, Ground
from tests.attack.running import attack, attacked

CASES = 500
PARTS = 10
QUICK = 4
"""So many parts are tried every time, and all of them in `make slow`."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Good input, made once; `--data-dir` and `CALIBRANT_DATA` are nobody's here."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("CALIBRANT_DATA", raising=False)
        patched.setattr("calibrant.data.hub._chosen", [])
        patched.setenv("CALIBRANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield Ground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize(
    "part",
    [*range(QUICK), *(pytest.param(part, marks=pytest.mark.slow) for part in range(QUICK, PARTS))],
)
@pytest.mark.filterwarnings("ignore")
def test_malformed_input_is_read_or_refused_in_a_sentence(ground: Ground, part: int):
    seeds = range(part * CASES // PARTS, (part + 1) * CASES // PARTS)
    broken = [case for _, case in attack(seeds, ground) if case]
    assert not broken, "\n".join(f"{case.case}: {case.why}\n    {case.words}" for case in broken)


def test_the_attack_sees_what_may_not_happen(ground: Ground, monkeypatch: pytest.MonkeyPatch):
    def fault(*_: object) -> None:
        Path("left").touch()
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("calibrant.names.catalogue", fault)
    monkeypatch.setitem(KINDS, "fault", lambda *_: ("list", "methods"))
    found = attacked("fault", 0, ground)
    assert found is not None
    assert found.why == "ZeroDivisionError: a fault"

    def refusal(*_: object) -> None:
        from calibrant.errors import SpecError

        Path("left").touch()
        raise SpecError("no")

    monkeypatch.setattr("calibrant.names.catalogue", refusal)
    found = attacked("fault", 0, ground)
    assert found is not None
    assert found.why == "left behind: left"
