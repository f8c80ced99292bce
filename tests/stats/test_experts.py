"""Which experts sets keep, from made-up edits, against counting by hand."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from calibrant.lab.stats import Results, kept_experts
from calibrant.lab.stats.kept import overlap_by_chance

from tests.stats.stores import results_of

LOSSES = {"dense": [[3.0, 2.0]], "c4": [[3.5, 2.6], [3.6, 2.6]], "gsm8k:cot": [[3.9, 2.1]]}


def dropped(experts: Mapping[int, Sequence[int]], of: int = 4) -> dict[str, Any]:
    return {
        "edit": "drop_experts",
        "experts": {str(block): list(gone) for block, gone in experts.items()},
        "of": of,
        "removed": 0,
        "notes": {},
    }


EDITS = {
    ("c4", 0): [dropped({0: [0, 1], 2: [0, 3]})],
    ("c4", 1): [
        dropped({0: [0], 2: [0]}),
        dropped({0: [0], 2: [0]}, of=3),
    ],  # in two rounds: 0 and 1 of both blocks
    ("gsm8k:cot", 0): [dropped({0: [2, 3], 2: [0, 3]})],
}


def edited(edits: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]) -> Results:
    """Results whose records have these edits, by set and draw."""
    made = results_of(LOSSES)
    of = {cell.run: edits.get((cell.data, cell.seed), ()) for cell in made.cells}
    return replace(
        made,
        records={
            run: replace(record, edits=tuple(of[run])) for run, record in made.records.items()
        },
    )


def test_shares_and_overlaps_are_those_counted_by_hand():
    (found,) = kept_experts(edited(EDITS))
    assert (found.sets, found.draws, found.blocks) == (("c4", "gsm8k:cot"), (2, 1), (0, 2))
    assert found.kept.tolist() == [[[0, 0, 1, 1], [0, 0.5, 1, 0.5]], [[1, 1, 0, 0], [0, 1, 1, 0]]]
    # Draws of c4: block 0 alike, block 2 {1, 2} and {2, 3}. c4 with gsm8k: block 0 nothing in
    # common; block 2 all, then one of three.
    assert found.jaccard[0, 0] == pytest.approx((1 + 1 / 3) / 2)
    assert (
        found.jaccard[0, 1]
        == found.jaccard[1, 0]
        == pytest.approx(((0 + 1) / 2 + (0 + 1 / 3) / 2) / 2)
    )
    assert np.isnan(found.jaccard[1, 1]), "drawn once"


def test_by_chance_is_the_mean_over_all_pairs_of_sets():
    for experts, kept in ((5, 2), (6, 3), (6, 4)):
        every = [set(one) for one in combinations(range(experts), kept)]
        want = np.mean([len(one & other) / len(one | other) for one in every for other in every])
        assert overlap_by_chance(experts, kept) == pytest.approx(want)
    (found,) = kept_experts(edited(EDITS))
    assert found.chance == pytest.approx(overlap_by_chance(4, 2))


def test_runs_that_drop_no_experts_are_left_out_and_one_that_answers_two_cells_is_one_draw():
    assert list(kept_experts(edited({}))) == []
    (found,) = kept_experts(edited({**EDITS, ("c4", 1): [dropped({0: [0, 1]}, of=8)]}))
    assert found.draws == (1, 1), "one of another model"
    made = edited(EDITS)
    (first, *_) = [cell.run for cell in made.cells if cell.data == "c4"]
    same = replace(
        made,
        cells=tuple(replace(cell, run=first) if cell.data == "c4" else cell for cell in made.cells),
    )
    (found,) = kept_experts(same)
    assert found.draws == (1, 1)
    assert np.isnan(found.jaccard[0, 0]), "never a draw with itself"
