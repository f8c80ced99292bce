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
ODD = (
    *("9" * 5000, "1e999999999", "1e999", "-0", "0x10", "1_000", "٣", "\ud800", "\0", "\u202e", "e\u0301", "😀", "nan", ".inf", "~", "None", "!!x "),
    *(
        "(" * 90,
        "[" * 90,
        "cluster(source=" * 60,
        "-" * 3000,
        "1+" * 2000,
        "a." * 500,
        "'",
        '"',
        "\\",
        "\n",
        "\t",
        "%",
        "*&",
        ": ",
        "=",
        "@",
        "+",
        ",",
        "#",
    ),
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
    ("read", "given", "error", "said"),
    [
        (methods.build, "sparsegpt(damp=1e999)", SpecError, "'sparsegpt(damp=1e999)': a number in it is infinite"),
        (methods.build, "sparsegpt(block=" + "9" * 5000 + ")", SpecError, "can't be read as a spec"),
        (methods.build, "sparsegpt(block=1" + "0" * 18 + ")", SpecError, "1000000000000000000 is too large; a whole number is at most"),
        (methods.build, "w" * 1_000_000, SpecError, "has 1,000,000 characters, and 65,536 are the most"),
        (methods.build, "wanda(x='\\ud800')", SpecError, "holds \\ud800, which is half a character"),
        (methods.build, "sparsegpt(damp=" + "1+" * 400 + "1)", SpecError, "is no literal"),
        (CalibrationSet, "\udcff", SpecError, "holds \\udcff, which is half a character"),
        (CalibrationSet, "1e999999999*c4 + 1*pile", SpecError, "the weight 1e999999999 has an exponent beyond ±30"),
        (CalibrationSet, "1e-31*c4 + 1*pile", SpecError, "the weight 1e-31 has an exponent beyond ±30"),
        (CalibrationSet, "٣*c4 + 1*pile", SpecError, "'٣' is no weight"),
        (CalibrationSet, f"{'9' * 100}*c4 + 1e-30*pile", SpecError, "its weights are of too many digits, or too far apart"),
        (CalibrationSet, "mix(a=c4, b=pile, weights=[1, 1e999])", SpecError, "the weight 1e999 has an exponent beyond ±30"),
        (CalibrationSet, "mix(a=c4, b=pile, weights=[1, 1e99])", SpecError, "the weight 1e99 has an exponent beyond ±30"),
        (CalibrationSet, " + ".join(["c4"] * 3000), SpecError, "is a sum of 3,000 parts; it may have 256"),
        (CalibrationSet, f"mix({', '.join(f'a{n}=c4' for n in range(3000))})", SpecError, "is a mix of 3,000 parts; it may have 256"),
        (CalibrationSet, nested(80), SpecError, "is nested more than 12 deep"),
        (CalibrationSet, "c4@many(shots=1000000000)", SpecError, "many(shots=1000000000): a window holds at most 10,000 texts"),
        (CalibrationSet, "igsp(source=c4, strata=1000000000)", SpecError, "igsp(strata=1000000000): there can be 10,000 levels"),
        (CalibrationSet, "longest(source=c4, candidates=1000000000)", SpecError, "longest(candidates=1000000000): it may have 1,000,000"),
        (evaluators.build, "loss(tokens=1" + "0" * 18 + ")", SpecError, "1000000000000000000 is too large"),
        (parse_target, "9" * 5000, TargetError, "is no target"),
        (parse_target, 10**5000, TargetError, "a number of about 4,983 digits is no sparsity"),
        (parse_target, "2:" + "9" * 5000, TargetError, "is no target"),
        (parse_target, "٢:٤", TargetError, "'٢:٤' is no target"),
        (parse_target, "0.5_0", TargetError, "'0.5_0' is no target"),
        (parse_target, "1e999", TargetError, "'1e999' is no target"),
    ],
    ids=range(26),
)
def test_what_is_too_much_is_refused_by_what_was_given(read: Callable[[Any], Any], given: Any, error: type[InputError], said: str):
    with quick(20), pytest.raises(error) as refused:
        read(given)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ({"seed": 1_000_000}, "seed is 1000000; it must be at most 10,000"),
        ({"samples": 10**15}, "samples is 1000000000000000; it must be at most 1,000,000,000"),
        ({"tokens": 10**15}, "tokens is 1000000000000000; it must be at most 1,000,000,000"),
        ({"length": 10**15}, "length is 1000000000000000; it must be at most 10,000,000"),
        ({"samples": 10**6, "length": 10**6}, "1,000,000 samples of 1,000,000 tokens are 1,000,000,000,000, and 1,000,000,000 are the most"),
        ({"seed": 10**5000}, "seed is a number of about"),
    ],
    ids=range(6),
)
@pytest.mark.parametrize("data", ["c4", "random_tokens"])
def test_a_budget_beyond_what_can_be_is_refused_before_anything_is_reserved(data: str, budget: dict[str, int], said: str):
    with pytest.raises(DataError) as refused:
        CalibrationSet(data, **budget)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": range(10**12)}, f"seeds: more than {MOST_VALUES:,} entries"),
        ({"seeds": range(5000), "sparsities": [n / 1000 for n in range(400)]}, "data: the study has 2,000,001 runs, and 100,000 are the most"),
        ({"groups": {f"g{n}": {"seeds": list(range(4000))} for n in range(40)}}, "groups: the study has 160,040 runs"),
        ({"primary": [{"compare": "c4", "with": "pile"}] * 10_001}, "primary: more than 10,000 entries"),
        ({"pools": {"all": ["c4"] * 10_001}}, "pools: more than 10,000 entries"),
        ({"exclude": [{"data": "c4"}] * 10_000, "seeds": range(5000)}, "exclude: 10,000 entries for 5,001 runs are too many"),
        ({"pools": {"p" * 1_000_000: ["c4"]}}, "is no name; write one of at most 100 letters"),
        (
            {"data": ["c4", "pile"], "primary": [{"compare": "c4", "with": "pile", "name": "n" * 10**6}]},
            "is no name; write a few words of at most 200",
        ),
        ({"seeds": [10**6]}, "a draw is 1000000; it must be a whole number of at most 10,000"),
        ({"samples": 10**15}, "samples: samples is 1000000000000000; it must be at most"),
        ({"samples": 10**5000}, "samples: samples is a number of about"),
        ({"models": "\udcff"}, "holds \\udcff, which is half a character"),
        ({"sparsities": ["9" * 400]}, "is no target"),
    ],
    ids=range(13),
)
def test_a_study_that_is_too_large_is_counted_and_refused(changes: dict[str, Any], said: str):
    with quick(30), pytest.raises(StudyError) as refused:
        Study(**{"models": "smollm2", "data": "c4", "methods": "wanda", **changes})
    assert said in str(refused.value)
    assert len(str(refused.value)) < 3000


def test_methods_that_look_at_no_data_have_a_run_a_sparsity_whatever_the_draws():
    assert len(Study("smollm2", "c4", methods="magnitude", seeds=range(MOST_VALUES), sparsities=[n / 100 for n in range(1, 30)]).labels()) == 30
    assert MOST_VALUES * 29 > MOST_RUNS


def test_half_a_character_in_a_study_file_is_told_with_its_line(tmp_path: Path):
    (tmp_path / "study.yaml").write_text('model: smollm2\ndata: "c4 \\ud800"\n')
    with pytest.raises(StudyError, match=r"line 2: data: .*holds \\ud800, which is half a character"):
        read_study(tmp_path / "study.yaml")


@pytest.mark.parametrize("target", ["1e999*c4", "9" * 5000 + "*c4", "٣*c4", "0.5*\ud800"], ids=range(4))
def test_a_mangled_goal_is_refused(target: str):
    with pytest.raises(SpecError):
        parse_goal([target], 64, 4, 32)
