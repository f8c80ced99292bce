"""The table of what methods leave of matrices' outputs: its arithmetic, and that the page says
what the record holds.
"""

import json

import pytest
import torch
from studies.pages import filled
from studies.pruning import layers


def test_a_ratio_is_the_median_over_matrices_and_the_largest():
    each = {"sparsegpt": (0.02, 0.04, 0.05), "wanda": (0.03, 0.04, 0.1), "refined": (0.018, 0.02)}
    found = {
        f"{name} 0.6": {
            "errors": {m: {"again": error} for m, error in zip("abc", errors, strict=False)}
        }
        for name, errors in each.items()
    }
    assert layers.ratio(found, "wanda", "0.6", "again") == "1.500 (2.00)"
    assert layers.ratio(found, "refined", "0.6", "again") == "0.700 (0.90)", (
        "on the matrices that it was given"
    )


def test_an_error_is_that_of_the_outputs():
    weight, x = torch.randn(6, 8).double(), torch.randn(40, 8).double()
    pruned = weight * (torch.rand(6, 8) > 0.5)
    one = {"weight": weight, **dict.fromkeys(layers.SEEN, (x.T @ x, 40, 40.0))}
    expected = float((x @ (weight - pruned).T).square().sum() / (x @ weight.T).square().sum())
    assert layers.errors(one, pruned) == dict.fromkeys(
        layers.SEEN, pytest.approx(expected, rel=1e-5)
    )


def test_the_page_says_what_the_record_holds():
    text = layers.PAGE.read_text("utf-8")
    assert (
        filled(
            text, {"layers": "\n".join(layers.table(json.loads(layers.RECORD.read_text("utf-8"))))}
        )
        == text
    )


MEDIANS = ("alps", "refined(start=sparsegpt, swaps=25)", "refined", "sparsegpt", "wanda")


@pytest.mark.parametrize("target", ["0.6", "2:4"])
def test_in_the_median_matrix_alps_and_refined_leave_less_than_sparsegpt_and_that_less_than_wanda(
    target: str,
):
    """Of the record: alps is a little below refined, not above it."""
    record = json.loads(layers.RECORD.read_text("utf-8"))["found"]
    medians = [
        float(layers.ratio(record, name, target, "calibrated").split(" ")[0]) for name in MEDIANS
    ]
    assert medians == sorted(medians)
    assert medians[1] < 0.8
