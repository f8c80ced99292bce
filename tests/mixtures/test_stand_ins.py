"""What predicts the methods that fit weights: themselves where they read one Gram, else the method that they build on, and what differs is said."""

import pytest

from calibrant.errors import SpecError
from calibrant.mixtures import aim_of, stand_in_of


@pytest.mark.parametrize("method", ["wanda", "ria", "sparsegpt", "sparsegpt(order=loss)", "admm", "alps", "refined", "refined(swaps=5)"])
def test_what_reads_one_statistic_predicts_itself(method: str) -> None:
    built, target = aim_of(method, 0.6)
    assert stand_in_of(built, target) == (built, target, "")


@pytest.mark.parametrize(
    ("method", "by", "said"),
    [
        ("refined(start=dsnot)", "refined", "it starts from the mask of wanda, not of dsnot"),
        ("robust", "refined(steps=20)", "refined on the sum of what all sources gave"),
        (
            "robust(start=dsnot, swaps=9)",
            "refined(swaps=9, steps=20)",
            "refined on the sum of what all sources gave; it starts from the mask of wanda, not of dsnot",
        ),
        ("held_out", "sparsegpt", "sparsegpt with its own damping, not one that is chosen on a half of the data"),
        ("held_out(method=alps)", "alps", "alps with its own damping, not one that is chosen on a half of the data"),
        ("reconstructed", "wanda", "wanda, without the fitting afterwards"),
        ("reconstructed(method=sparsegpt)", "sparsegpt", "sparsegpt, without the fitting afterwards"),
        ("dsnot", "wanda", "wanda, without the swaps"),
        ("dsnot(start=ria)", "ria", "ria, without the swaps"),
    ],
)
@pytest.mark.parametrize("target", ["0.6", "2:4"])
def test_what_reads_more_is_predicted_by_what_it_builds_on(method: str, by: str, said: str, target: str) -> None:
    built, aimed = aim_of(method, target)
    found = stand_in_of(built, aimed)
    assert (str(found.method), str(found.target), found.differs) == (by, target, said)


def test_what_builds_on_a_method_that_reads_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match=r"^what dsnot\(start=magnitude\) does with 0.6 can't be predicted .*; choose wanda or sparsegpt$"):
        stand_in_of(*aim_of("dsnot(start=magnitude)", 0.6))
