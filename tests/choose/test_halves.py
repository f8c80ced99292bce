"""A file divided by template, and what a set is on the half that it wasn't calibrated on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from studies.siblings.targets import TEMPLATES, rows

from calibrant.data import CalibrationSet
from calibrant.data.expression import parse_source
from calibrant.data.objects import record
from calibrant.data.user_file import UserFile
from calibrant.lab.choose.halves import Halves, crossed, divide, halves_of, in_common
from calibrant.lab.stats.crossed import ItemValues
from calibrant.results.outcomes import Score

Written = Callable[..., UserFile]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Write rows into a file of the current folder, and return it as a source."""
    monkeypatch.chdir(tmp_path)

    def write(content: list[dict[str, object]], name: str = "mine.jsonl") -> UserFile:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in content))
        source = parse_source(name)
        assert isinstance(source, UserFile)
        return source

    return write


@pytest.mark.parametrize(
    ("target", "family"), [(target, number % 2) for number, target in enumerate(TEMPLATES)]
)
def test_no_template_is_in_both_halves(target: str, family: int) -> None:
    content = rows(target, family)
    sides = divide([f"{row['question']}\n{row['answer']}" for row in content])
    # Rows of one template were made in turn, five templates to a round; which it is shows in the
    # fixed words around the slots.
    fixed = [
        [word for word in template[0].split() if "{" not in word]
        for template in TEMPLATES[target][family]
    ]
    of = [
        next(n for n, words in enumerate(fixed) if set(words) <= {*row["question"].split()})
        for row in content
    ]
    for template in set(of):
        here = [side for side, number in zip(sides, of, strict=True) if number == template]
        assert min(here.count(0), here.count(1)) == 0, template
    assert 0.2 < np.mean(sides) < 0.8


def test_rows_read_back_the_same_and_each_is_in_one_half(written: Written) -> None:
    source = written([{**row} for row in rows("problems", 0)])
    halves = halves_of(source, Path("halves"))
    assert isinstance(halves, Halves)
    both = [parse_source(folder) for folder in halves.folders]
    parts = [
        {row.key for part in ("calibrate", "exemplars") for row in half.rows(part)} for half in both
    ]
    assert not parts[0] & parts[1]
    assert parts[0] | parts[1] == {row.key for row in source.rows("calibrate")}
    assert halves.items[0] | halves.items[1] == {row.name for row in source.rows("measure")}
    assert not halves.items[0] & halves.items[1]
    assert halves.across < 0.05
    assert halves.inside > 0.8
    assert in_common(source) == pytest.approx(halves.inside, abs=0.1), (
        "without division, templates are in common"
    )


def test_conversations_and_choices_read_back_too(written: Written) -> None:
    turns = [
        {
            "turns": [
                {"role": "user", "content": f"Is {i} odd?"},
                {"role": "assistant", "content": "It depends."},
            ]
        }
        for i in range(3)
    ]
    choices = [
        {"question": f"Is {i} even?", "choices": ["yes", "no"], "answer": "no"} for i in range(3)
    ]
    for content in (turns, choices):
        source = written(content)
        before = [
            row for part in ("calibrate", "measure", "exemplars") for row in source.rows(part)
        ]
        again = written([record(row) for row in before], "again.jsonl")
        assert {
            row.key for part in ("calibrate", "measure", "exemplars") for row in again.rows(part)
        } == {row.key for row in before}


def test_a_half_stands_wherever_the_file_stands(written: Written) -> None:
    halves = halves_of(written([{**row} for row in rows("support", 0)]), Path("halves"))
    assert isinstance(halves, Halves)
    assert halves.replaced_in("mine.jsonl:icl", 0) == "halves/half-1:icl"
    assert (
        halves.replaced_in("0.25*mine.jsonl:single + 0.75*python_docs", 1)
        == "0.25*halves/half-2:single + 0.75*python_docs"
    )
    mixed = halves.replaced_in("mix(own=mine.jsonl, docs=python_docs, weight=0.98)", 0)
    assert mixed == str(CalibrationSet("mix(own=halves/half-1:icl, docs=python_docs, weight=0.98)"))
    assert halves.replaced_in("python_docs", 1) == "python_docs"
    # What a selector draws from is an expression too.
    picked = halves.replaced_in("longest(source='mine.jsonl:icl + c4')@crop", 1)
    assert picked == str(CalibrationSet("longest(source='0.5*halves/half-2:icl + 0.5*c4')@crop"))
    plain = "longest(source='python_docs + c4')@crop"
    assert halves.replaced_in(plain, 1) == str(CalibrationSet(plain))
    reason = halves_of(
        written([{**row} for row in rows("support", 0, count=30)], "few.jsonl"), Path("halves")
    )
    assert isinstance(reason, str), "a file with few rows isn't divided, and it is said why"
    assert "few.jsonl" in reason


def test_each_row_is_judged_by_the_run_that_did_not_see_its_half() -> None:
    score = Score("mine", "loss", 0.0, None, 3, "nats/token", "lower")
    first, second = (
        ItemValues(score, ("a", "b", "c"), np.array(values), np.ones(3))
        for values in ([1.0, 2.0, 3.0], [10.0, 20.0, 30.0])
    )
    held_out = crossed(first, second, [frozenset("a"), frozenset("b")])
    assert held_out.values.tolist() == [10.0, 2.0, 16.5]
