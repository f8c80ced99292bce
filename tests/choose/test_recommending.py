"""From candidates to advice, on a small trained model: predicted, raced, left out, continued."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.data import CalibrationSet
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError, SpecError
from calibrant.handover import as_sum
from calibrant.lab.choose import Recommendation, recommend
from calibrant.lab.choose.goal import parse_goal
from calibrant.lab.choose.racing import ROUNDS, RaceResult, Standing, common_unit
from calibrant.lab.choose.recommending import advice
from calibrant.lab.mixtures import Effort
from calibrant.lab.stats import Estimate
from calibrant.models import open_tokenizer
from calibrant.results.outcomes import Score

from tests.trained import trained_folder

SOURCES = ("python_docs", "arithmetic:cot", "random_tokens")
GOAL = "loss(source=python_docs, tokens=1024, length=128)"


@pytest.fixture(scope="module")
def asked(
    tmp_path_factory: pytest.TempPathFactory, effort: Effort
) -> tuple[Recommendation, Recommendation]:
    """Recipe with no time but for a first round, and again with enough."""
    folder = tmp_path_factory.mktemp("recommendation")
    told = {
        "method": "wanda",
        "target": 0.6,
        "tokens": 1024,
        "length": 128,
        "folder": folder,
        "dtype": "float32",
        "device": "cpu",
    }
    model = str(trained_folder())
    return recommend(model, goal=GOAL, sources=SOURCES, minutes=1e-6, **told), recommend(
        model, goal=GOAL, sources=SOURCES, minutes=10.0, tool="gptqmodel", **told
    )


def test_the_recommended_data_is_written_for_a_tool(
    asked: tuple[Recommendation, Recommendation],
) -> None:
    without, advised = asked
    assert without.written is None
    written = advised.written
    assert written is not None
    assert written.script is not None
    assert written.script.is_file()
    data = CalibrationSet(advised.expr)
    # No tool weighs the sets of a mix.
    expression = as_sum(data) if data.mixed else advised.expr
    calibration = CalibrationSet(expression, tokens=advised.tokens, length=advised.length)
    tokenizer = open_tokenizer(advised.model)[0]
    assert written.fingerprint == calibration.tokens(tokenizer).fingerprint
    assert advised.to_json()["written"]["out"] == str(written.out)


def test_without_time_there_is_one_round_and_it_says_so(
    asked: tuple[Recommendation, Recommendation],
) -> None:
    first, _ = asked
    assert (first.why, first.rounds) == ("time", 1)
    assert "1 of 5 rounds" in first.text
    assert all(one.draws == 1 for one in first.candidates if one.status != "not raced")
    assert not any(one.status == "behind" for one in first.candidates)


def test_a_model_object_is_raced_from_a_folder(tmp_path: Path, effort: Effort) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained_folder())
    tokenizer = AutoTokenizer.from_pretrained(trained_folder())
    said: list[str] = []

    def found(folder: Path) -> Recommendation:
        return recommend(
            model,
            tokenizer,
            goal=GOAL,
            sources=SOURCES[:2],
            minutes=1e-6,
            tokens=512,
            length=128,
            folder=folder,
            say=said.append,
        )

    # As it was loaded, it is raced from where it came from.
    assert found(tmp_path / "dense").model == str(trained_folder())
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    changed = found(tmp_path / "changed")
    found(tmp_path / "changed")
    # It is written once, and that is said.
    (place,) = (tmp_path / "changed/models").iterdir()
    assert sum(str(place) in sentence for sentence in said) == 1
    assert str(place) in changed.command
    # Sentences call it by its own name.
    assert changed.model == str(trained_folder())
    assert str(place) not in changed.text


def test_what_is_clearly_behind_is_left_out_and_the_best_is_said(
    asked: tuple[Recommendation, Recommendation],
) -> None:
    _, found = asked
    by_data = {one.data: one for one in found.candidates}
    assert found.candidates[0].status == "best"
    assert found.expr == found.candidates[0].data
    assert by_data["random_tokens"].status in ("behind", "not raced")
    assert found.why in ("clear", "alike", "draws")
    assert found.rounds >= 2
    assert CalibrationSet(found.expr, tokens=1024, length=128)
    assert found.baseline == "python_docs"
    # What is left out is what differs significantly from the best.
    for other in found.candidates:
        if other.status == "not significant":
            assert other.against_best is not None
            assert not (other.against_best["over_draws"] and other.against_best["significant"])
    best = by_data[found.expr]
    assert best.draws >= 2
    assert best.increase is not None
    assert best.increase["over_draws"]
    assert f"calibrate on {found.expr}, with 1,024 tokens" in found.text


def test_candidates_are_predicted_and_the_mixtures_are_among_them(
    asked: tuple[Recommendation, Recommendation],
) -> None:
    _, found = asked
    predicted = {one.data: one.predicted for one in found.candidates}
    assert {*SOURCES} <= {*predicted}
    assert all(value is not None and 0 < value < 1 for value in predicted.values())
    assert predicted["random_tokens"] == max(
        value for value in predicted.values() if value is not None
    )
    assert found.mixture.expr in predicted
    # Whether the tokens are enough isn't asked, so nothing is gathered for it.
    assert found.mixture.enough == ()
    assert list(Path(found.folder).rglob("*-piece-*")) == []


def test_what_cannot_be_raced_is_refused() -> None:
    loss, hits = (
        Score("a", "loss", 1.0, 0.1, 10, "nats/token", "lower"),
        Score("b", "acc", 0.5, 0.1, 10, "share", "higher"),
    )
    assert common_unit([loss, replace(loss, measured="c")]) == "nats/token"
    with pytest.raises(DataError, match="acc in share"):
        common_unit([loss, hits])


@pytest.mark.parametrize("minutes", [0.0, -1.0])
def test_no_time_at_all_is_refused(minutes: float) -> None:
    with pytest.raises(SpecError) as caught:
        recommend("there is no such model", goal="python_docs", minutes=minutes)
    assert caught.value.subject == "budget"


def runner(data: str, value: float, left: int | None = None, over_draws: bool = True) -> Standing:
    estimate = Estimate(value, 0.01, 20.0, 50, over_draws)
    return Standing(
        data,
        estimate,
        None if data == "c4" else replace(estimate, value=value - 0.5),
        None,
        3,
        left,
    )


@pytest.mark.parametrize(
    ("runners", "said"),
    [
        ([runner("pile", 0.4), runner("c4", 0.5)], "-0.100 (-0.121 to -0.079): significant at 95%"),
        ([runner("pile", 0.499), runner("c4", 0.5)], ": not significant."),
        # Of several sets, whichever is best is compared.
        ([runner("pile", 0.477), runner("c4", 0.5)], "(-0.044 to -0.002): significant at 95%"),
        (
            [runner("pile", 0.477), runner("oscar", 0.48), runner("c4", 0.5)],
            "(-0.047 to +0.001): not significant.",
        ),
        ([runner("c4", 0.5), runner("pile", 0.6, left=2)], "Clearly behind: pile."),
        ([runner("pile", 0.4, over_draws=False), runner("c4", 0.5)], "by one draw"),
        (
            [runner("mix(a=pile, b=c4, weight=0.5)", 0.4), runner("c4", 0.5)],
            "1,024 tokens of each part",
        ),
    ],
)
def test_the_advice_says_no_more_than_is_known(
    asked: tuple[Recommendation, Recommendation], runners: list[Standing], said: str
) -> None:
    goal = parse_goal(["python_docs"], 1000, 20, 64)
    told = advice(
        asked[1].mixture, goal, "c4", RaceResult("draws", tuple(runners), ROUNDS, "nats/token")
    )
    assert said in told


def test_the_figure_of_a_set_that_was_chosen_by_it_is_called_too_good(
    asked: tuple[Recommendation, Recommendation],
) -> None:
    goal = parse_goal(["python_docs"], 1000, 20, 64)
    best = runner("c4", 0.5)
    for standings in ((best,), (best, runner("pile", 0.6))):
        race = RaceResult("draws", standings, ROUNDS, "nats/token")
        told = advice(asked[1].mixture, goal, "c4", race)
        assert ("since the set was chosen by it" in told) == (len(standings) > 1)


def test_the_advice_names_the_sets_that_could_not_be_measured(
    asked: tuple[Recommendation, Recommendation],
) -> None:
    goal = parse_goal(["python_docs"], 1000, 20, 64)
    race = RaceResult("alone", (runner("c4", 0.5),), 2, "nats/token", unmeasured=("pile", "oscar"))
    told = advice(asked[1].mixture, goal, "c4", race)
    assert "Could not be measured, so nothing is known of them: pile, oscar." in told
    assert "No other set is left in the race (2 of 5 rounds)." in told
    assert "behind" not in told


def test_a_goal_and_sources_that_come_as_objects_are_files_of_the_folder(
    tmp_path: Path, effort: Effort
) -> None:
    rows = [
        {"text": f"{number} and {number} make {2 * number}, as you know."} for number in range(300)
    ]
    told = {"minutes": 1e-6, "tokens": 512, "length": 64, "dtype": "float32", "device": "cpu"}
    found = recommend(
        str(trained_folder()),
        goal=rows,
        sources=[rows, "python_docs"],
        method="wanda",
        target=0.6,
        folder=tmp_path,
        **told,
    )
    (file,) = (tmp_path / "given").iterdir()
    assert found.goal == "your data"
    assert str(file) not in found.text
    assert "your data" in {candidate.name for candidate in found.candidates}
    assert {candidate.data for candidate in found.candidates} >= {str(file), "python_docs"}
    # The file is divided, so that what is measured isn't calibrated on.
    assert 0 < len(UserFile(str(file)).part("measure").rows) < 300


def test_a_folder_in_ones_home_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places: list[object] = []

    def stopped(options: Any, budget: object) -> None:
        places.append(options.folder)
        raise KeyboardInterrupt

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("calibrant.lab.choose.recommending.asked", stopped)
    with pytest.raises(KeyboardInterrupt):
        recommend("smollm2", goal="python_docs", folder="~/advice")
    assert places == [tmp_path / "advice"]
