"""The study's questions, on stores where the answer is known."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from calibrant.compare import MEAN, PaperQuestion, compare, contrast
from calibrant.errors import SpecError

from tests.compare.stores import store_of

Losses = Mapping[str, Sequence[Sequence[float]]]
DENSE = {"dense": [[3.0, 2.0]]}


def draws(*losses: float, noise: float = 0.005) -> list[list[float]]:
    rng = np.random.default_rng(round(1000 * sum(losses)))
    return [[loss + float(rng.normal(0, noise)) for loss in losses] for _ in range(4)]


def asked(folder: Path, losses: Losses, measures: Sequence[str] = ("wikitext", "gsm8k"), **of: object) -> dict[str, PaperQuestion]:
    store = store_of(folder, {**DENSE, **losses}, measures=measures)
    return {q.name: q for q in compare(store, **of).questions}  # pyright: ignore[reportArgumentType]


def test_a_baseline_that_is_beaten_is_not_the_best(tmp_path: Path):
    found = asked(tmp_path, {"c4": draws(3.6, 2.6), "pile": draws(3.3, 2.4), "wikitext": draws(3.6, 2.6), "random_tokens": draws(3.1, 2.1)})
    best = found["baseline"]
    assert (best.question, best.answer) == ("Is c4 the best calibration set?", "no")
    assert "pile did significantly better than c4" in best.explanation
    assert "random_tokens" not in best.explanation, "a control is no rival"
    assert [e.label for e in best.evidence] == ["c4 against pile", "c4 against wikitext"]
    assert best.evidence[0].difference.value == pytest.approx(0.25, abs=0.02)
    assert best.evidence[0].verdict == "worse"
    low, high = best.evidence[0].interval or (0, 0)
    assert low < best.evidence[0].difference.value < high
    assert best.over_draws


def test_a_baseline_that_beats_all_is_the_best_and_a_tie_is_open(tmp_path: Path):
    assert asked(tmp_path / "a", {"c4": draws(3.2, 2.2), "pile": draws(3.6, 2.6), "full_stops": draws(9, 9)})["baseline"].answer == "yes"
    tied = asked(tmp_path / "b", {"c4": draws(3.2, 2.2), "pile": draws(3.2, 2.2, noise=0.02), "oscar": draws(3.9, 2.9)})["baseline"]
    assert tied.answer == "undecided"
    assert "pile cannot be distinguished from it" in tied.explanation


def test_the_intervals_behind_one_answer_hold_together(tmp_path: Path):
    losses = {"c4": draws(3.6, 2.6), "pile": draws(3.3, 2.4), "oscar": draws(3.5, 2.5)}
    store = store_of(tmp_path, {**DENSE, **losses}, measures=("wikitext", "gsm8k"))
    (best,) = [q for q in compare(store).questions if q.name == "baseline"]
    sides = {label: {m: [] for m in ("wikitext", "gsm8k")} for label in losses}
    for cell in store.cells():
        for text, i in cell.measures.items() if cell.data else ():
            measured = store.measurement(cell.run, i)
            assert measured is not None
            sides[cell.data][text[13:-2]].append(measured)
    for evidence in best.evidence:
        expected = contrast(sides["c4"], sides[evidence.label.removeprefix("c4 against ")])
        assert evidence.difference.value == pytest.approx(expected.value)
        assert evidence.interval == pytest.approx(expected.interval(0.95, 2))


def test_arithmetic_is_compared_with_all_corpora_together(tmp_path: Path):
    losses = {"c4": draws(3.6, 2.6), "pile": draws(3.8, 2.8), "gsm8k:cot": draws(3.2, 2.2), "svamp:icl": draws(3.4, 2.4), "race:icl": draws(3.0, 2.0)}
    question = asked(tmp_path, losses)["arithmetic"]
    assert question.answer == "yes"
    (evidence,) = question.evidence
    assert evidence.difference.value == pytest.approx(-0.4, abs=0.02)
    assert evidence.on == MEAN
    assert asked(tmp_path / "b", {"c4": draws(3.2, 2.2), "gsm8k:cot": draws(3.6, 2.6)})["arithmetic"].answer == "no"


def test_sets_that_are_taken_together_are_named_or_counted(tmp_path: Path):
    losses = {name: draws(3.4, 2.4) for name in ("gsm8k:icl", "svamp:icl", "mawps:icl", "gsm8k:cot", "c4")}
    assert [e.label for e in asked(tmp_path, losses)["arithmetic"].evidence] == ["4 arithmetic sets against c4"]


def test_own_data_is_looked_for_by_source(tmp_path: Path):
    losses = {"wikitext": draws(3.2, 2.8), "gsm8k:icl": draws(3.5, 2.6), "gsm8k:cot": draws(3.5, 2.2), "random_tokens": draws(9, 9)}
    question = asked(tmp_path, losses)["own"]
    assert question.answer == "yes"
    assert {(e.on, round(e.difference.value, 1)) for e in question.evidence} == {("wikitext:text", -0.3), ("gsm8k:text", -0.4)}
    assert "better in 2" in question.explanation
    mixed = asked(tmp_path / "b", {"wikitext": draws(3.9, 2.2), "gsm8k:icl": draws(3.5, 2.0)})["own"]
    assert mixed.answer == "it depends"
    assert "better in 1" in mixed.explanation
    assert "worse in 1" in mixed.explanation


def test_a_task_has_the_source_that_it_is_named_after(tmp_path: Path):
    store = store_of(tmp_path, {**DENSE, "wikitext": draws(3.2, 2.8), "gsm8k:icl": draws(3.5, 2.4)}, measures=("wikitext", "gsm8k"))
    for path in store.folder.glob("runs/*/measures/*/score.json"):
        path.write_text(path.read_text().replace("gsm8k:text", "gsm8k (3-shot)"))
    (own,) = [q for q in compare(store).questions if q.name == "own"]
    assert {(e.label, e.on) for e in own.evidence} == {
        ("wikitext against the others", "wikitext:text"),
        ("gsm8k:icl against the others", "gsm8k (3-shot)"),
    }


def test_formats_are_compared_within_a_source(tmp_path: Path):
    losses = {"gsm8k:zero": draws(3.6, 2.6), "gsm8k:icl": draws(3.4, 2.4), "gsm8k:cot": draws(3.4, 2.41, noise=0.03), "svamp:cot": draws(3, 2)}
    found = asked(tmp_path, losses)
    assert found["icl"].answer == "yes"
    assert [e.label for e in found["icl"].evidence] == ["gsm8k:icl against gsm8k:zero"]
    assert found["cot"].answer == "undecided"
    assert "cannot be distinguished in the one comparison there is" in found["cot"].explanation


def test_what_cannot_be_asked_says_what_is_lacking(tmp_path: Path):
    found = asked(tmp_path, {"c4": draws(3.2, 2.2)}, measures=("docs", "code"))
    assert {name: q.answer for name, q in found.items()} == dict.fromkeys(("baseline", "arithmetic", "own", "icl", "cot"), "not covered")
    assert "It takes" in found["own"].explanation


def test_one_draw_speaks_for_itself_alone(tmp_path: Path):
    question = asked(tmp_path, {"c4": [[3.6, 2.6]], "pile": [[3.3, 2.4]]})["baseline"]
    assert question.answer == "no"
    assert not question.over_draws


LOSSES = {"oscar": draws(3.5, 2.5), "c4": draws(3.6, 2.6), "pile": draws(3.3, 2.4), "magnitude": [[5.0, 4.0]]}


@pytest.mark.parametrize(
    ("given", "study", "expected"),
    [("", None, "c4"), ("pile", None, "pile"), ("", {"baseline": "oscar"}, "oscar"), ("pile", {"baseline": "oscar"}, "pile")],
)
def test_the_baseline_is_the_one_asked_for_the_studys_or_c4(tmp_path: Path, given: str, study: Mapping[str, str] | None, expected: str):
    (ranking,) = compare(store_of(tmp_path, {**DENSE, **LOSSES}, study=study), baseline=given).rankings
    assert ranking.baseline == expected
    by_name = {e.name: e for e in (*ranking.entries, *ranking.baselines)}
    assert by_name[expected].to_baseline == {}
    for name, entry in by_name.items():
        if name != expected:
            assert set(entry.to_baseline) == {"docs:text", "code:text", MEAN}
            assert entry.to_baseline[MEAN].value == pytest.approx(entry.mean.value - by_name[expected].mean.value)
    assert ranking.baseline_comparisons == 3


def test_without_c4_the_first_set_is_the_baseline(tmp_path: Path):
    (ranking,) = compare(store_of(tmp_path, {**DENSE, "pile": draws(3.3, 2.4), "oscar": draws(3.5, 2.5)})).rankings
    assert ranking.baseline == "pile"


def test_a_baseline_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(SpecError, match=r"'redpajama'.*oscar, c4, pile"):
        compare(store_of(tmp_path, {**DENSE, **LOSSES}), baseline="redpajama")


def test_formats_are_compared_in_one_packing(tmp_path: Path):
    losses = {"gsm8k:icl": draws(3.4, 2.4), "gsm8k:cot": draws(3.2, 2.2), "gsm8k:icl@crop": draws(3.1, 2.1), "svamp:icl@crop": draws(3, 2)}
    assert [e.label for e in asked(tmp_path, losses)["cot"].evidence] == ["gsm8k:cot against gsm8k:icl"]


def test_evidence_has_the_unit_of_what_it_is_on(tmp_path: Path):
    store = store_of(tmp_path, {**DENSE, "wikitext": draws(3.2, 2.8), "gsm8k:icl": draws(3.5, 2.4)}, measures=("wikitext", "gsm8k"))
    for path in store.folder.glob("runs/*/measures/*/score.json"):
        kept = json.loads(path.read_text())
        if kept["score"]["measured"] == "gsm8k:text":
            path.write_text(json.dumps({**kept, "score": {**kept["score"], "metric": "kl", "unit": "bits"}}))
    (own,) = [q for q in compare(store).questions if q.name == "own"]
    assert {e.on: e.unit for e in own.evidence} == {"wikitext:text": "nats/token", "gsm8k:text": "bits"}
