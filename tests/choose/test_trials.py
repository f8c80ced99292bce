"""`studies.large.recommended` on a small trained model: asked once, all candidates judged."""

from pathlib import Path

import pytest
from studies.large import recommended
from studies.large.recommended import TEXTS, Trial, table, trials

from calibrant.lab.choose.budget import ROUNDS
from calibrant.lab.mixtures import Effort
from calibrant.results import Store

from tests.trained import trained_folder


@pytest.mark.slow
def test_every_candidate_is_judged_and_recommend_is_asked_once(
    tmp_path: Path, effort: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    trial = Trial(
        tmp_path,
        str(trained_folder()),
        "a code base",
        "wanda",
        "0.6",
        minutes=1e-6,
        tokens=1024,
        length=128,
    )
    assert trial.row() is None
    trial.run()
    candidates = trial.answer()["candidates"]
    divergences = trial.divergences()
    assert len(divergences) == len(candidates) >= 3
    # No draw that the race chose by judges what it chose.
    raced = _draws(tmp_path / "recommend" / "race")
    judged = _draws(trial.judged_store)
    assert raced
    assert len(judged) == 1
    assert min(judged) > max(raced)
    best = min(divergences.values())
    taken = divergences[trial.answer()["expr"]]
    (own_set,) = trial.own_sets()
    _, _, *rows = table([trial])
    assert [row.split(" | ")[3:7] for row in rows] == [
        [
            f"{len(candidates)} of {len(candidates)}",
            f"{100 * (taken / best - 1):.1f}",
            "",  # C4 can't be read here
            f"{100 * (divergences[own_set] / best - 1):.1f}",
        ]
    ]

    def ask_again(*_: object, **__: object) -> None:
        pytest.fail("recommend was asked a second time")

    monkeypatch.setattr(recommended, "recommend", ask_again)
    trial.run()


def _draws(folder: Path) -> set[int]:
    """The draws of calibration sets in a store."""
    with Store(folder, create=False) as store:
        return {cell.seed for cell in store.cells() if cell.data and cell.seed is not None}


def test_the_draw_that_judges_is_one_that_no_race_can_have_had() -> None:
    # The first draw of a race is 0.
    assert recommended.FRESH_DRAW >= ROUNDS


def test_trials_are_in_the_order_that_was_fixed(tmp_path: Path) -> None:
    every = list(trials(tmp_path, "model", 1.0, None))
    assert [trial.text for trial in every] == 2 * list(TEXTS)
    assert len({trial.folder for trial in every}) == 16
    (first, second) = trials(tmp_path, "model", 1.0, "French")
    assert (first.target, second.target) == ("w4g128", "0.5")
    assert all(trial.measure.tokens == 8192 for trial in every)
