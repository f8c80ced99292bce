import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from calibrant.lab.stats import Contrast, Estimate, compare
from calibrant.lab.stats.contrasts import _with_needs, holm

from tests.stats.stores import DRAWN, measured, measured_too, results_of, with_cells


def contrasted(
    *primary: Mapping[str, Any],
    losses: Mapping[str, Sequence[Sequence[float]]] = DRAWN,
    **more: Any,
) -> tuple[Contrast, ...]:
    study = {
        "baseline": "c4",
        "pools": {"arithmetic": ["gsm8k:icl", "svamp:icl"]},
        "primary": list(primary),
    }
    return compare(results_of(losses, study=study, **more)).contrasts


def only(primary: Mapping[str, Any], **more: Any) -> Contrast:
    (found,) = contrasted(primary, **more)
    return found


def test_a_contrast_says_what_is_really_worse_and_the_other_way_round_better():
    found, back, dense = contrasted(
        {"compare": "gsm8k:icl", "with": "c4"},
        {"compare": "c4", "with": "gsm8k:icl"},
        {"compare": "c4", "with": "dense"},
    )
    assert (found.model, found.method, found.target, found.unit) == (
        "tiny",
        "wanda",
        "0.5",
        "nats/token",
    )
    assert found.on == ("docs:text", "code:text")
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.355, abs=0.01)
    assert found.difference.over_draws
    assert found.p == pytest.approx(found.difference.p_value())
    assert (found.verdict, found.draws, found.reason) == ("worse", (3, 3), "")
    assert found.smallest_p == pytest.approx(2 / 20)
    assert 0 < (found.detectable or 0.0) < found.difference.value
    assert found.needs
    assert back.difference is not None
    assert back.difference.value == pytest.approx(-found.difference.value)
    assert (back.verdict, back.p) == ("better", pytest.approx(found.p))
    assert (dense.draws, dense.smallest_p, dense.verdict) == ((3, 0), 0.25, "worse")


def test_what_it_would_take_is_told_for_all_contrasts_together():
    seen = Estimate(0.1, 0.03, 199.0, 200)
    alone = Contrast("a", "a", "b", ("x",), "m", "wanda", "0.5", seen, seen.p_value(), draws=(3, 3))
    assert "suffices" in _with_needs(alone, 1).needs
    # Among a hundred it isn't significant: the quantiles 3.54 and 0.84 of t are 1.3 times too much.
    assert "it would take 342 items" in _with_needs(alone, 100).needs
    assert _with_needs(replace(alone, p=None), 1).needs == ""


def test_a_pool_is_the_mean_of_its_sets_and_is_compared_with_the_baseline():
    pool, *each = contrasted(
        {"compare": "arithmetic", "with": "c4"}, {"compare": "gsm8k:icl"}, {"compare": "svamp:icl"}
    )
    assert [c.against for c in each] == ["c4", "c4"]
    parts = [c.difference.value for c in each if c.difference]
    assert pool.difference is not None
    assert pool.difference.value == pytest.approx(sum(parts) / 2)
    assert pool.draws == (3, 3)
    assert pool.smallest_p == pytest.approx(1 / math.comb(9, 3))


def test_identical_sets_are_never_called_different():
    results = results_of(DRAWN, study={"primary": [{"compare": "twin", "with": "c4"}]})
    found = compare(
        with_cells(
            results, *(replace(cell, data="twin") for cell in results.cells if cell.data == "c4")
        )
    )
    (twin,) = found.contrasts
    assert (twin.p, twin.verdict) == (1.0, "not significant")
    entries = {e.name: e for e in found.rankings[0].entries}
    assert entries["twin"].letters == entries["c4"].letters
    assert entries["twin"].ranks == (1, 2)


@pytest.mark.parametrize(
    ("losses", "draws"),
    [
        ({**DRAWN, "svamp:icl": [[3.8, 2.9]], "c4": [[3.5, 2.6]]}, (1, 1)),
        ({**DRAWN, "c4": DRAWN["c4"][:1]}, (3, 1)),
    ],
)
def test_one_draw_on_either_side_cannot_say(losses: Mapping[str, Any], draws: tuple[int, int]):
    found = only({"compare": "svamp:icl", "with": "c4"}, losses=losses)
    assert found.verdict == "one draw only"
    assert found.p is found.p_holm is None
    assert found.draws == draws
    assert found.difference is not None
    assert not found.difference.over_draws
    assert "c4" in found.reason
    assert ("svamp:icl" in found.reason) == (draws[0] == 1)


def test_draws_that_overlap_much_are_not_tested():
    found = only({"compare": "svamp:icl"}, overlap={"c4": 0.23})
    assert found.verdict == "not tested"
    assert "c4" in found.reason
    assert "23%" in found.reason
    assert found.difference is not None
    assert not found.difference.over_draws
    assert only({"compare": "svamp:icl"}, overlap={"c4": 0.1}).verdict == "worse"


def test_what_is_missing_is_said():
    found, elsewhere = contrasted(
        {"compare": "svamp:icl"},
        {"compare": "svamp:icl", "on": "docs:text"},
        missing=["svamp:icl/code"],
    )
    assert found.verdict == "not computed"
    assert found.difference is None
    assert "svamp:icl (draw 0) on loss(source='code')" in found.reason
    assert elsewhere.verdict == "worse", "it lacks other measures only"


@pytest.mark.parametrize(
    ("primary", "reason"),
    [
        ({"compare": "pile"}, "pile"),
        ({"compare": "svamp:icl", "method": ["sparsegpt"]}, "svamp:icl"),
        ({"compare": "svamp:icl", "on": "loss(source='wiki')"}, "wiki"),
        ({"compare": "c4", "with": "c4"}, "same sets"),
    ],
)
def test_what_cannot_be_computed_is_kept_with_its_reason(primary: Mapping[str, Any], reason: str):
    found = only(primary)
    assert found.verdict == "not computed"
    assert found.p is None
    assert reason in found.reason


def test_what_is_measured_differently_is_not_averaged():
    primary = [{"compare": "svamp:icl", "on": ["docs:text", "quiz"]}, {"compare": "svamp:icl"}]
    right = measured([1, 0, 1, 1], [1] * 4, "quiz", metric="acc", unit="share", better="higher")
    asked, default = compare(
        measured_too(
            results_of(DRAWN, study={"baseline": "c4", "primary": primary}), "task", lambda _: right
        )
    ).contrasts
    assert asked.verdict == "not computed"
    assert "nats/token" in asked.reason
    assert "share" in asked.reason
    assert default.on == ("docs:text", "code:text")


def test_each_method_and_target_that_has_the_sets_is_a_contrast():
    results = results_of(
        DRAWN,
        study={
            "primary": [
                {"compare": "svamp:icl", "with": "c4"},
                {"compare": "svamp:icl", "with": "c4", "sparsity": "2:4"},
            ]
        },
    )
    more = [replace(c, target="2:4") for c in results.cells if c.data]
    fewer = [replace(c, method="sparsegpt") for c in results.cells if c.data == "c4"]
    found = compare(with_cells(results, *more, *fewer)).contrasts
    assert [(c.method, c.target) for c in found] == [
        ("wanda", "0.5"),
        ("wanda", "2:4"),
        ("wanda", "2:4"),
    ]
    assert compare(results_of(DRAWN)).contrasts == (), "a store without a study has none"


def test_a_report_on_fewer_measures_leaves_primary_contrasts_alone():
    results = results_of(DRAWN, study={"primary": [{"compare": "svamp:icl", "with": "c4"}]})
    fewer, whole = compare(results, ["docs"]), compare(results)
    assert fewer.rankings[0].measured == ("docs:text",)
    assert fewer.contrasts == whole.contrasts
    assert fewer.contrasts[0].on == ("docs:text", "code:text")


# Holm


def closed(p: Sequence[float], level: float) -> list[bool]:
    """Holm's procedure is the closed test of all intersections by Bonferroni: one is rejected if
    every group that holds it is.
    """
    groups = [
        g for size in range(1, len(p) + 1) for g in itertools.combinations(range(len(p)), size)
    ]
    rejected = {g: min(p[i] for i in g) * len(g) <= level for g in groups}
    return [all(ok for g, ok in rejected.items() if i in g) for i in range(len(p))]


def corrected(*p: float | None) -> list[Contrast]:
    """Contrasts of which the first side is worse, with these p, after Holm."""
    made = Contrast(
        "c", "a", "b", ("x",), "m", "wanda", "0.5", difference=Estimate(1.0, 0.1, 9.0, 10)
    )
    return holm([replace(made, p=one) for one in p])


def test_holm_is_the_closed_test_by_bonferroni():
    rng = np.random.default_rng(0)
    for _ in range(200):
        p = (rng.random(5) ** 3).tolist()
        found = corrected(*p)
        for level in (0.01, 0.05, 0.3):
            assert [(c.p_holm or 0.0) <= level for c in found] == closed(p, level)


def test_a_verdict_is_joint_and_counts_contrasts_that_cannot_be_computed():
    one, none = corrected(0.02, None)
    assert one.p_holm == pytest.approx(0.04)
    assert none.p_holm is None
    assert [c.verdict for c in corrected(0.03)] == ["worse"]
    assert [c.verdict for c in corrected(0.03, 0.03)] == ["not significant", "not significant"]
