"""The spot check of a study says that records hold where they do, and that they don't where they
don't.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies.spot_check import again, chosen, equal, narrowed

from calibrant.compress import costs
from calibrant.lab.study import Study
from calibrant.results import Store

from tests.stats.stores import DRAWN, store_of


def bits(text: str) -> dict[str, Any]:
    return {label: [{"name": "a", "bits": text * 64}] for label in DRAWN if label != "dense"}


HERE = dict.fromkeys(DRAWN, costs.processor())


def kept(
    folder: Path, shift: float = 0.0, text: str = "f", processors: dict[str, str] = HERE
) -> Store:
    losses = {
        label: [[value + shift * (label == "c4") for value in draw] for draw in drawn]
        for label, drawn in DRAWN.items()
    }
    return store_of(folder, losses, weights=bits(text), processors=processors)


def test_the_same_numbers_hold(tmp_path: Path):
    one, other = kept(tmp_path / "one"), kept(tmp_path / "other")
    cells = chosen(one, 4, seed=0)
    assert len({(c.data, c.seed) for c in cells}) == 4
    assert all(c.data for c in cells)
    assert [found.farthest for found in again(one, other, cells)] == [0.0] * 4
    assert all(found.same for found in again(one, other, cells))


def test_a_loss_or_a_mask_that_moved_does_not(tmp_path: Path):
    one, moved, masked = (
        kept(tmp_path / "one"),
        kept(tmp_path / "moved", shift=0.01),
        kept(tmp_path / "masked", text="e"),
    )
    cells = chosen(one, 100, seed=0)
    assert len(cells) == 9
    assert {found.cell.data for found in again(one, moved, cells) if not found.same} == {"c4"}
    assert [round(found.equal, 2) for found in again(one, masked, cells)] == [0.75] * 9
    assert not any(found.same for found in again(one, masked, cells))


def test_without_a_mask_errors_of_matrices_are_compared_and_without_matrices_the_blocks_that_went(
    tmp_path: Path,
):
    store = kept(tmp_path)
    record = store.record(next(c.run for c in store.cells() if c.data))
    assert record is not None
    rounded, other = (
        replace(record, weights=({"name": "a", "error": 0.5}, {"name": "b", "error": error}))
        for error in (0.2, 0.2 * 1.0011)
    )
    assert (equal(rounded, rounded), equal(rounded, other)) == (1.0, 0.5)
    dropped, others = (
        replace(record, weights=(), edits=({"edit": "drop", "blocks": blocks},))
        for blocks in ([1, 2], [1, 3])
    )
    assert (equal(dropped, dropped), equal(dropped, others)) == (1.0, 0.0)


@pytest.mark.parametrize(("processor", "here"), [("an abacus", 6), ("", 9)])
def test_what_was_computed_on_another_processor_is_chosen_only_where_that_is_asked(
    processor: str, here: int, tmp_path: Path
):
    """What doesn't tell its processor may be of any."""
    store = kept(tmp_path, processors=HERE | {"c4": processor})
    assert len(chosen(store, 100, seed=0)) == here
    assert [c.data for c in chosen(store, 100, seed=0, elsewhere=True)] == ["c4"] * 3


def test_what_is_computed_again_is_those_runs_alone(tmp_path: Path):
    study = Study(
        "smollm2",
        data=["random_tokens", "full_stops"],
        methods=["wanda"],
        seeds=[0, 1],
        baseline="random_tokens",
    )
    store = kept(tmp_path)
    (cell,) = [c for c in store.cells() if (c.data, c.seed) == ("c4", 1)]
    found = narrowed(study, [replace(cell, data="full_stops", propagate="dense")])
    assert [(q.cell.data, q.cell.seed, q.cell.target) for q in found.requests()] == [
        ("", 0, "0.0"),
        ("full_stops", 1, "0.5"),
    ]
