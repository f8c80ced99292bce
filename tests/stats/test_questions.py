"""The study's questions, on stores where the answer is known."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from calibrant.errors import SpecError
from calibrant.lab.stats import MEAN, PaperQuestion, compare, contrast

from tests.stats.stores import results_of

DENSE = {"dense": [[3.0, 2.0]]}


def draws(*losses: float, noise: float = 0.005) -> list[list[float]]:
    rng = np.random.default_rng(round(1000 * sum(losses)))
    return [[loss + float(rng.normal(0, noise)) for loss in losses] for _ in range(4)]


def asked(
    losses: Mapping[str, Sequence[Sequence[float]]], measures: Sequence[str] = ("wikitext", "gsm8k")
) -> dict[str, PaperQuestion]:
    return {
        q.name: q for q in compare(results_of({**DENSE, **losses}, measures=measures)).questions
    }


def test_a_baseline_that_is_beaten_is_not_the_best():
    found = asked(
        {
            "c4": draws(3.6, 2.6),
            "pile": draws(3.3, 2.4),
            "wikitext": draws(3.6, 2.6),
            "random_tokens": draws(3.1, 2.1),
        }
    )
    best = found["baseline"]
    assert best.answer == "no"
    assert "pile" in best.explanation
    assert "random_tokens" not in best.explanation, "a control is no rival"
    assert [e.label for e in best.evidence] == ["c4 against pile", "c4 against wikitext"]
    assert best.evidence[0].difference.value == pytest.approx(0.25, abs=0.02)
    assert best.evidence[0].verdict == "worse"
    low, high = best.evidence[0].interval or (0, 0)
    assert low < best.evidence[0].difference.value < high
    assert best.over_draws
    once = asked({"c4": [[3.6, 2.6]], "pile": [[3.3, 2.4]]})["baseline"]
    assert (once.answer, once.over_draws) == ("no", False), "one draw speaks for itself alone"


def test_a_baseline_that_beats_all_is_the_best_and_a_tie_is_open():
    assert (
        asked({"c4": draws(3.2, 2.2), "pile": draws(3.6, 2.6), "full_stops": draws(9, 9)})[
            "baseline"
        ].answer
        == "yes"
    )
    tied = asked(
        {"c4": draws(3.2, 2.2), "pile": draws(3.2, 2.2, noise=0.02), "oscar": draws(3.9, 2.9)}
    )["baseline"]
    assert tied.answer == "undecided"
    assert ("pile" in tied.explanation, "oscar" in tied.explanation) == (True, False)


def test_the_intervals_behind_one_answer_hold_together():
    losses = {"c4": draws(3.6, 2.6), "pile": draws(3.3, 2.4), "oscar": draws(3.5, 2.5)}
    results = results_of({**DENSE, **losses}, measures=("wikitext", "gsm8k"))
    (best,) = [q for q in compare(results).questions if q.name == "baseline"]
    sides = {label: {m: [] for m in ("wikitext", "gsm8k")} for label in losses}
    for cell in results.cells:
        for text, i in cell.measures.items() if cell.data else ():
            sides[cell.data][text[13:-2]].append(results.scores[cell.run][i])
    for evidence in best.evidence:
        expected = contrast(sides["c4"], sides[evidence.label.removeprefix("c4 against ")])
        assert evidence.difference.value == pytest.approx(expected.value)
        assert evidence.interval == pytest.approx(expected.interval(0.95, 2))


def test_arithmetic_is_compared_with_all_corpora_together():
    losses = {
        "c4": draws(3.6, 2.6),
        "pile": draws(3.8, 2.8),
        "gsm8k:cot": draws(3.2, 2.2),
        "svamp:icl": draws(3.4, 2.4),
        "race:icl": draws(3.0, 2.0),
    }
    question = asked(losses)["arithmetic"]
    assert question.answer == "yes"
    (evidence,) = question.evidence
    assert evidence.difference.value == pytest.approx(-0.4, abs=0.02)
    assert evidence.on == MEAN
    assert asked({"c4": draws(3.2, 2.2), "gsm8k:cot": draws(3.6, 2.6)})["arithmetic"].answer == "no"
    many = {
        name: draws(3.4, 2.4) for name in ("gsm8k:icl", "svamp:icl", "mawps:icl", "gsm8k:cot", "c4")
    }
    assert [e.label for e in asked(many)["arithmetic"].evidence] == ["4 arithmetic sets against c4"]


def test_own_data_is_looked_for_by_source():
    losses = {
        "wikitext": draws(3.2, 2.8),
        "gsm8k:icl": draws(3.5, 2.6),
        "gsm8k:cot": draws(3.5, 2.2),
        "random_tokens": draws(9, 9),
    }
    question = asked(losses)["own"]
    assert question.answer == "yes"
    assert {(e.on, round(e.difference.value, 1)) for e in question.evidence} == {
        ("wikitext:text", -0.3),
        ("gsm8k:text", -0.4),
    }
    mixed = asked({"wikitext": draws(3.9, 2.2), "gsm8k:icl": draws(3.5, 2.0)})["own"]
    assert mixed.answer == "it depends"
    assert sorted(e.verdict for e in mixed.evidence) == ["better", "worse"]


def test_formats_are_compared_within_a_source_and_in_one_packing():
    losses = {
        "gsm8k:zero": draws(3.6, 2.6),
        "gsm8k:icl": draws(3.4, 2.4),
        "gsm8k:cot": draws(3.4, 2.41, noise=0.03),
    }
    found = asked(
        {
            **losses,
            "gsm8k:icl@crop": draws(3.1, 2.1),
            "svamp:cot": draws(3, 2),
            "svamp:icl@crop": draws(3, 2),
        }
    )
    assert found["icl"].answer == "yes"
    assert [e.label for e in found["icl"].evidence] == ["gsm8k:icl against gsm8k:zero"]
    assert found["cot"].answer == "undecided"
    assert [e.label for e in found["cot"].evidence] == ["gsm8k:cot against gsm8k:icl"]


def test_what_cannot_be_asked_says_so():
    found = asked({"c4": draws(3.2, 2.2)}, measures=("docs", "code"))
    assert {name: q.answer for name, q in found.items()} == dict.fromkeys(
        ("baseline", "arithmetic", "own", "icl", "cot"), "not covered"
    )
    assert all(q.explanation for q in found.values())


LOSSES = {
    "oscar": draws(3.5, 2.5),
    "c4": draws(3.6, 2.6),
    "pile": draws(3.3, 2.4),
    "magnitude": [[5.0, 4.0]],
}


@pytest.mark.parametrize(
    ("given", "study", "expected"),
    [
        ("", None, "c4"),
        ("pile", None, "pile"),
        ("", {"baseline": "oscar"}, "oscar"),
        ("pile", {"baseline": "oscar"}, "pile"),
    ],
)
def test_the_baseline_is_the_one_asked_for_the_studys_or_c4(
    given: str, study: Mapping[str, str] | None, expected: str
):
    (ranking,) = compare(results_of({**DENSE, **LOSSES}, study=study), baseline=given).rankings
    assert ranking.baseline == expected
    by_name = {e.name: e for e in (*ranking.entries, *ranking.baselines)}
    assert by_name[expected].to_baseline == {}
    for name, entry in by_name.items():
        if name != expected:
            assert set(entry.to_baseline) == {"docs:text", "code:text", MEAN}
            assert entry.to_baseline[MEAN].value == pytest.approx(
                entry.mean.value - by_name[expected].mean.value
            )
    assert ranking.baseline_comparisons == 3


def test_a_baseline_that_is_not_there_is_refused_and_without_c4_it_is_the_first_set():
    with pytest.raises(SpecError) as raised:
        compare(results_of({**DENSE, **LOSSES}), baseline="redpajama")
    assert raised.value.subject == "redpajama"
    (ranking,) = compare(
        results_of({**DENSE, "pile": draws(3.3, 2.4), "oscar": draws(3.5, 2.5)})
    ).rankings
    assert ranking.baseline == "pile"
