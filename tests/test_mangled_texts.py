"""Whatever a text looks like, it is understood or refused in a sentence, and soon: specs, expressions, targets and studies, mangled by chance."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibrant.advice.goal import parse_goal
from calibrant.data import CalibrationSet
from calibrant.errors import DataError, InputError, SpecError, StudyError, TargetError
from calibrant.evaluators import evaluators
from calibrant.methods import methods
from calibrant.study import Study, read_study
from calibrant.study.checking import MOST_RUNS, MOST_VALUES
from calibrant.targets import parse_target

from tests.effort import quick

SPECS = ("wanda", "sparsegpt(damp=0.02, block=64)", "magnitude()", "sparsegpt(damp=1)")
EXPRESSIONS = (
    "c4",
    "0.3*gsm8k:cot + 0.7*wikitext@many(separator=' ', shots=3)",
    "mix(domain=gsm8k:cot, general=c4, weight=0.5)",
    "mix(a=c4, b=pile, c=gsm8k, weights=[0.2, 0.3, 0.5])",
    "cluster(source='c4 + gsm8k:cot', candidates=100, k=4)",
    "longest(source=wikitext)@crop",
    "'no such folder/rows.jsonl'(question=\"Q\")",
)
TARGETS = ("0.5", "2:4", "5e-1", "0")
STUDY = """model: smollm2
data: [c4, "gsm8k:cot", &three random_tokens]
method: [wanda, magnitude]
sparsity: [0.5, 2:4]
seeds: [0, 1]
samples: 16
length: 64
evaluate: "loss(source=wikitext, tokens=100)"
baseline: *three
pools: {text: [c4]}
exclude: [{data: c4, sparsity: 2:4}]
primary: [{compare: text, with: random_tokens, name: usual}]
"""
BRACKETS = ("(" * 90, "[" * 90, "cluster(source=" * 60, "-" * 3000, "1+" * 2000, "a." * 500)
ODD = (
    *("9" * 5000, "1e999999999", "1e999", "-0", "0x10", "1_000", "٣", "\ud800", "\0", "\u202e", "e\u0301", "😀", "nan", ".inf", "~", "None", "!!x "),
    *(*BRACKETS, "*&", ": ", *"'\"\\\n\t%=@+,#"),
)


def mangled(text: str, chance: random.Random) -> str:
    """A text with one to three things done to it."""
    for _ in range(chance.randint(1, 3)):
        one, other = sorted(chance.choices(range(len(text) + 1), k=2))
        match chance.randrange(5):
            case 0:
                text = text[:one] + text[other:]
            case 1:
                text = text[:other] + text[one:other] * chance.choice((1, 2, 40)) + text[other:]
            case 2:
                text = text[other:] + text[one:other] + text[:one]
            case 3:
                text = text[:one] + chance.choice(ODD) + text[other if chance.random() < 0.3 else one :]
            case _:
                text = text[:one] + chr(chance.choice((chance.randrange(128), chance.randrange(0x11000)))) + text[one:]
    return text


def is_answered(read: Callable[[str], Any], text: str) -> None:
    """It is understood, and then its text is too, or an `InputError` of lines that can be read; anything else is a failure of this test."""
    said = "understood"
    try:
        with quick():
            found = read(text)
            assert isinstance(found, Study) or str(read(str(found))) == str(found), text
    except InputError as error:
        said = str(error)
    assert 0 < max(map(len, said.split("\n"))) < 1200, text


@pytest.mark.parametrize(
    ("read", "texts", "count"),
    [
        (methods.build, SPECS, 30),
        (CalibrationSet, EXPRESSIONS, 45),
        (parse_target, TARGETS, 25),
        (evaluators.build, ("loss(source=c4, tokens=9)",), 15),
    ],
    ids=["specs", "expressions", "targets", "evaluators"],
)
def test_a_mangled_text_is_understood_or_refused(read: Callable[[str], Any], texts: tuple[str, ...], count: int):
    chance = random.Random(f"mangled {texts[0]}")
    for _ in range(count):
        is_answered(read, mangled(chance.choice(texts), chance))


def test_a_mangled_study_is_understood_or_refused(tmp_path: Path):
    chance, file = random.Random("mangled studies"), tmp_path / "study.yaml"
    for _ in range(25):
        file.write_bytes(mangled(STUDY, chance).encode("utf-8", "surrogatepass"))
        is_answered(lambda _: read_study(file), file.read_text(errors="backslashreplace"))
    file.write_text(STUDY)
    assert len(read_study(file).labels()) == 13


def nested(deep: int) -> str:
    return "cluster(source=" * deep + "c4" + ")" * deep


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
        (CalibrationSet, "c4@many(shots=1000000000)", "shots=1000000000"),
        (CalibrationSet, "igsp(source=c4, strata=1000000000)", "strata=1000000000"),
        (CalibrationSet, "longest(source=c4, candidates=1000000000)", "candidates=1000000000"),
        (evaluators.build, "loss(tokens=1000000000000000000)", "1000000000000000000"),
        (parse_target, 10**5000, "4,983"),
        (parse_target, f"2:{'9' * 5000}", "2:999"),
        (parse_target, "٢:٤", "'٢:٤'"),
        (parse_target, "0.5_0", "'0.5_0'"),
        (parse_target, "1e999", "'1e999'"),
    ],
    ids=range(24),
)
def test_what_is_too_much_is_refused_by_what_was_given(read: Callable[[Any], Any], given: Any, told: str):
    with quick(20), pytest.raises(TargetError if read is parse_target else SpecError) as refused:
        read(given)
    assert told in str(refused.value)


@pytest.mark.parametrize("data", ["c4", "random_tokens"])
def test_a_budget_beyond_what_can_be_is_refused_before_anything_is_reserved(data: str):
    for budget, told in (
        ({"seed": 1_000_000}, ("seed", "10,000")),
        ({"samples": 10**15}, ("samples", "1,000,000,000")),
        ({"tokens": 10**15}, ("tokens", "1,000,000,000")),
        ({"length": 10**15}, ("length", "10,000,000")),
        ({"samples": 10**6, "length": 10**6}, ("1,000,000,000,000",)),
        ({"seed": 10**5000}, ("seed", "digits")),
    ):
        with pytest.raises(DataError) as refused:
            CalibrationSet(data, **budget)
        assert all(part in str(refused.value) for part in told)


@pytest.mark.parametrize(
    ("changes", "where", "told"),
    [
        ({"seeds": range(10**12)}, "seeds", f"{MOST_VALUES:,}"),
        ({"seeds": range(5000), "sparsities": [n / 1000 for n in range(400)]}, "data", "2,000,001"),
        ({"groups": {f"g{n}": {"seeds": list(range(4000))} for n in range(40)}}, "groups", "160,040"),
        ({"primary": [{"compare": "c4", "with": "pile"}] * 10_001}, "primary", "10,000"),
        ({"pools": {"all": ["c4"] * 10_001}}, "pools", "10,000"),
        ({"exclude": [{"data": "c4"}] * 10_000, "seeds": range(5000)}, "exclude", "5,001"),
        ({"pools": {"p" * 1_000_000: ["c4"]}}, "pools", "100"),
        ({"data": ["c4", "pile"], "primary": [{"compare": "c4", "with": "pile", "name": "n" * 10**6}]}, "primary", "200"),
        ({"seeds": [10**6]}, "seeds", "1000000"),
        ({"samples": 10**15}, "samples", "1000000000000000"),
        ({"samples": 10**5000}, "samples", "digits"),
        ({"models": "\udcff"}, "model", "\\udcff"),
        ({"sparsities": ["9" * 400]}, "sparsit", "999"),
    ],
    ids=range(13),
)
def test_a_study_that_is_too_large_is_counted_and_refused(changes: dict[str, Any], where: str, told: str):
    with quick(30), pytest.raises(StudyError) as refused:
        Study(**{"models": "smollm2", "data": "c4", "methods": "wanda", **changes})
    assert any(problem.where.startswith(where) and told in problem.message for problem in refused.value.problems)
    assert len(str(refused.value)) < 3000


def test_methods_that_look_at_no_data_have_a_run_a_sparsity_whatever_the_draws():
    assert len(Study("smollm2", "c4", methods="magnitude", seeds=range(MOST_VALUES), sparsities=[n / 100 for n in range(1, 30)]).labels()) == 30
    assert MOST_VALUES * 29 > MOST_RUNS


def test_half_a_character_in_a_study_file_is_told_with_its_line(tmp_path: Path):
    (tmp_path / "study.yaml").write_text('model: smollm2\ndata: "c4 \\ud800"\n')
    with pytest.raises(StudyError) as refused:
        read_study(tmp_path / "study.yaml")
    assert {(problem.line, problem.where) for problem in refused.value.problems} == {(2, "data")}


@pytest.mark.parametrize("target", ["1e999*c4", "9" * 5000 + "*c4", "٣*c4", "0.5*\ud800"], ids=range(4))
def test_a_mangled_goal_is_refused(target: str):
    with pytest.raises(SpecError):
        parse_goal([target], 64, 4, 32)
