"""What predicts the methods that fit weights: themselves where they read one Gram, else the
method that they build on, and what differs is said.
"""

import pytest

from calibrant.lab.mixtures import aim_of, stand_in_of


@pytest.mark.parametrize(
    "method",
    [
        "wanda",
        "ria",
        "sparsegpt",
        "sparsegpt(order=loss)",
        "admm",
        "alps",
        "refined",
        "refined(swaps=5)",
    ],
)
def test_what_reads_one_statistic_predicts_itself(method: str) -> None:
    built, target = aim_of(method, 0.6)
    assert stand_in_of(built, target) == (built, target, "")


@pytest.mark.parametrize(
    ("method", "by", "named"),
    [
        ("refined(start=dsnot)", "refined", ("wanda", "dsnot")),
        ("robust", "refined(steps=20)", ("refined",)),
        (
            "robust(start=dsnot, swaps=9)",
            "refined(swaps=9, steps=20)",
            ("refined", "wanda", "dsnot"),
        ),
        ("held_out", "sparsegpt", ("sparsegpt", "damping")),
        ("held_out(method=alps)", "alps", ("alps", "damping")),
        ("reconstructed(method=sparsegpt)", "sparsegpt", ("sparsegpt", "fitting")),
        ("dsnot", "wanda", ("wanda", "swaps")),
        ("dsnot(start=ria)", "ria", ("ria", "swaps")),
    ],
)
def test_what_reads_more_is_predicted_by_what_it_builds_on(
    method: str, by: str, named: tuple[str, ...]
) -> None:
    for target in ("0.6", "2:4"):
        found = stand_in_of(*aim_of(method, target))
        assert (str(found.method), str(found.target)) == (by, target)
        assert all(word in found.differs for word in named)
