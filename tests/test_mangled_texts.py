"""What is too much, or no text, is refused soon and by what was given. `tests/attack` mangles
specs, expressions and studies by chance.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrant.data import CalibrationSet
from calibrant.errors import DataError, SpecError, StudyError, TargetError
from calibrant.lab.choose.goal import parse_goal
from calibrant.lab.study import Study, read_study
from calibrant.lab.study.checking import MOST_RUNS, MOST_VALUES
from calibrant.methods import methods
from calibrant.targets import parse_target

from tests.effort import quick


@pytest.mark.parametrize(
    ("read", "given", "told"),
    [
        (methods.build, "sparsegpt(damp=1e999)", "damp=1e999"),
        (methods.build, f"sparsegpt(block={'9' * 5000})", "block=999"),
        (methods.build, "sparsegpt(block=1000000000000000000)", "1000000000000000000"),
        (methods.build, "w" * 1_000_000, "1,000,000"),
        (methods.build, "wanda(x='\\ud800')", "\\ud800"),
        (methods.build, f"sparsegpt(damp={'1+' * 400}1)", "1+1"),
        (CalibrationSet, "\udcff", "\\udcff"),
        (CalibrationSet, "1e999999999*c4 + 1*pile", "1e999999999"),
        (CalibrationSet, "1e-31*c4 + 1*pile", "1e-31"),
        (CalibrationSet, "٣*c4 + 1*pile", "'٣'"),
        (CalibrationSet, f"{'9' * 100}*c4 + 1e-30*pile", "999"),
        (CalibrationSet, "mix(a=c4, b=pile, weights=[1, 1e99])", "1e99"),
        (CalibrationSet, " + ".join(["c4"] * 3000), "3,000"),
        (CalibrationSet, f"mix({', '.join(f'a{n}=c4' for n in range(3000))})", "3,000"),
        (CalibrationSet, "cluster(source=" * 80 + "c4" + ")" * 80, "12"),
        (lambda text: parse_goal([text], 64, 4, 32), "9" * 5000 + "*c4", "999"),
        (parse_target, 10**5000, "4,983"),
        (parse_target, f"2:{'9' * 5000}", "2:999"),
        (parse_target, "٢:٤", "'٢:٤'"),
        (parse_target, "0.5_0", "'0.5_0'"),
        (parse_target, "1e999", "'1e999'"),
    ],
    ids=range(21),
)
def test_what_is_too_much_is_refused_by_what_was_given(
    read: Callable[[Any], Any], given: Any, told: str
):
    with quick(20), pytest.raises(TargetError if read is parse_target else SpecError) as refused:
        read(given)
    assert told in str(refused.value)


@pytest.mark.parametrize("data", ["c4", "random_tokens"])
def test_a_budget_beyond_what_can_be_is_refused_before_anything_is_reserved(data: str):
    for budget, told in (
        ({"seed": 1_000_000}, "10,000"),
        ({"samples": 10**15}, "1,000,000,000"),
        ({"tokens": 10**15}, "1,000,000,000"),
        ({"length": 10**15}, "10,000,000"),
        ({"samples": 10**6, "length": 10**6}, "1,000,000,000,000"),
        ({"seed": 10**5000}, "digits"),
    ):
        with pytest.raises(DataError) as refused:
            CalibrationSet(data, **budget)
        assert refused.value.subject == next(iter(budget))
        assert told in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "where", "told"),
    [
        ({"seeds": range(10**12)}, "seeds", f"{MOST_VALUES:,}"),
        ({"seeds": range(5000), "targets": [n / 1000 for n in range(400)]}, "data", "2,000,001"),
        (
            {"groups": {f"g{n}": {"seeds": list(range(4000))} for n in range(40)}},
            "groups",
            "160,040",
        ),
        ({"primary": [{"compare": "c4", "with": "pile"}] * 10_001}, "primary", "10,000"),
        ({"pools": {"all": ["c4"] * 10_001}}, "pools", "10,000"),
        ({"exclude": [{"data": "c4"}] * 10_000, "seeds": range(5000)}, "exclude", "5,001"),
        ({"pools": {"p" * 1_000_000: ["c4"]}}, "pools", "100"),
        (
            {
                "data": ["c4", "pile"],
                "primary": [{"compare": "c4", "with": "pile", "name": "n" * 10**6}],
            },
            "primary",
            "200",
        ),
        ({"seeds": [10**6]}, "seeds", "1000000"),
        ({"samples": 10**15}, "samples", "1000000000000000"),
        ({"samples": 10**5000}, "samples", "digits"),
        ({"models": "\udcff"}, "model", "\\udcff"),
        ({"targets": ["9" * 400]}, "target", "999"),
    ],
    ids=range(13),
)
def test_a_study_that_is_too_large_is_counted_and_refused(
    changes: dict[str, Any], where: str, told: str
):
    with quick(30), pytest.raises(StudyError) as refused:
        Study(**{"models": "smollm2", "data": "c4", "methods": "wanda", **changes})
    assert any(
        problem.where.startswith(where) and told in problem.message
        for problem in refused.value.problems
    )
    assert len(str(refused.value)) < 3000


def test_methods_that_look_at_no_data_have_a_run_a_sparsity_whatever_the_draws():
    assert (
        len(
            Study(
                "smollm2",
                "c4",
                methods="magnitude",
                seeds=range(MOST_VALUES),
                targets=[n / 100 for n in range(1, 30)],
            ).labels()
        )
        == 30
    )
    assert MOST_VALUES * 29 > MOST_RUNS


def test_half_a_character_in_a_study_file_is_told_with_its_line(tmp_path: Path):
    (tmp_path / "study.yaml").write_text('model: smollm2\ndata: "c4 \\ud800"\n')
    with pytest.raises(StudyError) as refused:
        read_study(tmp_path / "study.yaml")
    assert {(problem.line, problem.where) for problem in refused.value.problems} == {(2, "data")}
