"""The table of what methods leave of matrices' outputs: its arithmetic, and that the page says what the record holds."""

import json

import pytest
import torch
from studies.pages import filled
from studies.pruning import layers


def found(**ratios: tuple[float, ...]) -> dict[str, dict[str, object]]:
    """Errors of three matrices, SparseGPT's times these, at two targets."""
    base = {"a": 0.02, "b": 0.04, "c": 0.05}
    each = {"sparsegpt": (1.0, 1.0, 1.0), **ratios}
    return {
        f"{name} {target}": {
            "errors": {m: dict.fromkeys(layers.SEEN, base[m] * times) for m, times in zip(base, of, strict=False)},
        }
        for target in ("0.6", "2:4")
        for name, of in each.items()
    }


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_rows_have_the_median_of_ratios_and_the_largest_of_the_matrices_that_were_given():
    given = found(refined=(0.9, 0.5, 0.7), wanda=(1.5, 1.0, 2.0), **{layers.PEER: (0.8, 0.6)})
    _, _, wanda, base, refined, peer = layers.table({"found": given})
    assert cells(wanda)[:5] == ["`wanda`", *["1.500 (2.00)"] * 4]
    assert cells(base)[:5] == ["`sparsegpt`", *["1"] * 4]
    assert cells(refined)[:5] == ["`refined`", *["0.700 (0.90)"] * 4]
    assert cells(peer)[1:5] == ["0.700 (0.80)"] * 4


def test_an_error_is_that_of_the_outputs():
    weight, x = torch.randn(6, 8).double(), torch.randn(40, 8).double()
    pruned = weight * (torch.rand(6, 8) > 0.5)
    one = {"weight": weight, **dict.fromkeys(layers.SEEN, (x.T @ x, 40, 40.0))}
    expected = float((x @ (weight - pruned).T).square().sum() / (x @ weight.T).square().sum())
    assert layers.errors(one, pruned) == dict.fromkeys(layers.SEEN, pytest.approx(expected, rel=1e-5))


def test_the_page_says_what_the_record_holds():
    text = layers.PAGE.read_text("utf-8")
    assert filled(text, {"layers": "\n".join(layers.table(json.loads(layers.RECORD.read_text("utf-8"))))}) == text


MEDIANS = ("alps", "refined(start=sparsegpt, swaps=25)", "refined", "sparsegpt", "wanda")


@pytest.mark.parametrize("target", ["0.6", "2:4"])
def test_in_the_median_matrix_alps_and_refined_leave_less_than_sparsegpt_and_that_less_than_wanda(target: str):
    """Of the record: alps is a little below refined, not above it."""
    record = json.loads(layers.RECORD.read_text("utf-8"))["found"]
    medians = [float(layers.ratio(record, name, target, "calibrated").split(" ")[0]) for name in MEDIANS]
    assert medians == sorted(medians)
    assert medians[1] < 0.8
