"""How far the records of one model, or of one target, say which set to take for another: against
numbers that are counted by hand.
"""

from typing import Any

import pytest
from studies.sensitivity import second
from studies.sensitivity.tables import DOMAINS, MIXTURE, Label

SETS = ("c4", "wikipedia", "gsm8k:icl", "python_code", MIXTURE)
FIRST = dict(zip(SETS, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))
"""C4 is the best and the mixture the worst, on every domain alike."""
TURNED = dict(zip(SETS, reversed(FIRST.values()), strict=True))


def row(monkeypatch: pytest.MonkeyPatch, other: dict[str, float]) -> list[str]:
    """The cells behind the method's name, for a second model with these divergences on every
    domain.
    """

    def told(_: Any, label: Label) -> dict[str, dict[str, float]]:
        return {
            data: dict.fromkeys(DOMAINS.values(), value)
            for data, value in (FIRST if label[0] == "smollm2" else other).items()
        }

    monkeypatch.setattr(second, "STRONG", {"wanda": "0.5"})
    monkeypatch.setattr(second, "divergences", told)
    *_, last = second.carried(None)  # pyright: ignore[reportArgumentType]  # what it is given is only handed on
    return [cell.strip() for cell in last.strip("|").split("|")][1:]


def test_a_model_that_answers_alike_loses_nothing_and_the_other_way_round_most(
    monkeypatch: pytest.MonkeyPatch,
):
    # Text of its kind: C4 three times (0), then 1, 3 and 2 above it; any set: 0, 1, 2, 3 and 4.
    alike = ["+1.00", "6 of 6", "0.000", "1.000", "0.000", "0.000", "4.000", "2.000"]
    assert row(monkeypatch, FIRST) == alike
    assert row(monkeypatch, dict(reversed(FIRST.items()))) == alike, (
        "the order of sets in a store decides nothing"
    )
    assert row(monkeypatch, TURNED) == [
        "-1.00",
        "0 of 6",
        "4.000",
        "3.000",
        "4.000",
        "4.000",
        "0.000",
        "2.000",
    ]
