"""The question sets: as the hub lays them out, as the mirror has them, and equations worked out."""

import importlib
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import pytest
from studies.large.recommended import TEXTS, Trial

from calibrant.data import PARTS, CalibrationSet, HubDataset, Row, formats, mirror, sources
from calibrant.data.expression import parse_source
from calibrant.data.sources import _equation, _published
from calibrant.errors import DataError, SpecError
from calibrant.testing.sources import check_source

Record = dict[str, Any]
NOWHERE = HubDataset("nobody/nothing")


def text(row: Row) -> str:
    return formats.build("qa").render(row)


def right(row: Row) -> int:
    """The number of the right choice, as an evaluator finds it."""
    return row.labels.index(row.answer or "") if row.labels else row.choices.index(row.answer or "")


def kept(name: str) -> list[Row]:
    """The rows of train, wherever they went."""
    source = sources.build(name)
    return [row for part in ("calibrate", "exemplars") for row in source.rows(part)]


@dataclass(frozen=True)
class Published:
    """A small data set with the hub's configuration, splits and fields; the texts of its rows,
    and the rationales of train with their steps.
    """

    config: str | None
    splits: Mapping[str, Sequence[Record]]
    calibrated: Sequence[str]
    measured: Sequence[str]
    classes: Sequence[str] = ()
    explained: Sequence[tuple[str | None, int]] = ()
    noted: bool = False


SPLITS = ("train", "validation", "test")
NLI = ["entailment", "neutral", "contradiction"]


def anli(number: int) -> Published:
    def pair(uid: str, label: int, reason: str) -> Record:
        return {
            "uid": uid,
            "premise": f"Premise {uid}. ",
            "hypothesis": f"Hypothesis {uid}.",
            "label": label,
            "reason": reason,
        }

    rounds = {}
    for n in (number, 1 + number % 3):
        for split, reason in (("train", "Because. So!"), ("dev", ""), ("test", "")):
            rounds[f"{split}_r{n}"] = [pair(f"{split}{n}", n - 1, reason)]
    shown = [
        f"Premise: Premise {split}{number}.\nHypothesis: Hypothesis {split}{number}.\nLabel: "
        f"{NLI[number - 1]}"
        for split in ("train", "test")
    ]
    return Published("plain_text", rounds, shown[:1], shown[1:], NLI, [("Because. So!", 2)])


def multiple(question: str, choices: Sequence[str], labels: str, key: str, **more: Any) -> Record:
    return {
        "id": question,
        "question": question,
        "choices": {"text": list(choices), "label": list(labels)},
        "answerKey": key,
        **more,
    }


def sum_of(body: str, question: str, equation: str, answer: str) -> Record:
    return {
        "ID": "chal-1",
        "Body": body,
        "Question": question,
        "Equation": equation,
        "Answer": answer,
        "Type": "Addition",
    }


def swag(
    context: str, label: str, endings: Sequence[str] = ("one.", "two.", "three.", "four.")
) -> Record:
    more = {
        "ind": 1,
        "ctx_a": context,
        "ctx_b": "",
        "source_id": "activitynet~v_-x",
        "split": "train",
        "split_type": "indomain",
    }
    return {
        "activity_label": "Rafting",
        "ctx": context,
        "endings": list(endings),
        "label": label,
        **more,
    }


HUB = {
    "svamp": Published(
        None,
        {
            "train": [
                sum_of("Jo has 8 pens", "How many in 2 boxes?", "( 8.0 / 2.0 )", "4.0"),
                sum_of("Jo has 8 pens.", "How many?", "( 8.0 + 2.0 )", "4.5"),
            ],
            "test": [sum_of("Al has 3.", "And 2?", "( 3.0 + 2.0 )", "5.0")],
        },
        [
            "Question: Jo has 8 pens How many in 2 boxes?\nAnswer: 4",
            "Question: Jo has 8 pens. How many?\nAnswer: 4.5",
        ],
        ["Question: Al has 3. And 2?\nAnswer: 5"],
        explained=[("8 / 2 = 4", 1), (None, 0)],
        noted=True,
    ),
    "mawps": Published(
        "default",
        {
            split: [
                {
                    "question": f"A {split} had 22 , lost 14 . 4 each ?",
                    "result_float": 2.0,
                    "expression": "((22-14)/4)",
                }
            ]
            for split in SPLITS
        },
        ["Question: A train had 22 , lost 14 . 4 each ?\nAnswer: 2"],
        ["Question: A test had 22 , lost 14 . 4 each ?\nAnswer: 2"],
        explained=[("22 - 14 = 8\n8 / 4 = 2", 2)],
    ),
    "esnli": Published(
        None,
        {
            split: [
                {
                    "premise": f"A {split}.",
                    "hypothesis": "A man.",
                    "label": 2,
                    "explanation_1": " A train is no man. ",
                    "explanation_2": "",
                },
                {
                    "premise": "No label.",
                    "hypothesis": "A man.",
                    "label": -1,
                    "explanation_1": "Why?",
                    "explanation_2": "",
                },
                {
                    "premise": "No reason.",
                    "hypothesis": "A man.",
                    "label": 0,
                    "explanation_1": "",
                    "explanation_2": "",
                },
            ]
            for split in SPLITS
        },
        ["Premise: A train.\nHypothesis: A man.\nLabel: contradiction"],
        ["Premise: A test.\nHypothesis: A man.\nLabel: contradiction"],
        NLI,
        [("A train is no man.", 1)],
        noted=True,
    ),
    "anli_r1": anli(1),
    "anli_r2": anli(2),
    "anli_r3": anli(3),
    "rte": Published(
        "rte",
        {
            "train": [{"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0, "idx": 0}],
            "validation": [
                {"sentence1": "It rains.", "sentence2": "It is dry.", "label": 1, "idx": 0}
            ],
        },
        ["Premise: It rains.\nHypothesis: It is wet.\nLabel: entailment"],
        ["Premise: It rains.\nHypothesis: It is dry.\nLabel: not_entailment"],
        ["entailment", "not_entailment"],
    ),
    "commonsense_qa": Published(
        None,
        {
            "train": [
                multiple(
                    "Where do birds sleep?",
                    ["sea", "tree", "car", "book", "moon"],
                    "ABCDE",
                    "B",
                    question_concept="bird",
                )
            ],
            "validation": [
                multiple(
                    "Where is milk?",
                    ["sun", "sand", "fridge", "desk", "road"],
                    "ABCDE",
                    "C",
                    question_concept="milk",
                )
            ],
        },
        ["Question: Where do birds sleep?\nA. sea\nB. tree\nC. car\nD. book\nE. moon\nAnswer: B"],
        ["Question: Where is milk?\nA. sun\nB. sand\nC. fridge\nD. desk\nE. road\nAnswer: C"],
    ),
    "race": Published(
        "all",
        {
            split: [
                {
                    "example_id": "high1.txt",
                    "article": f"A {split}. ",
                    "answer": "D",
                    "question": "It is  _  .",
                    "options": ["a", "b", "c", "d"],
                }
            ]
            for split in SPLITS
        },
        ["Article: A train.\n\nQuestion: It is  _  .\nA. a\nB. b\nC. c\nD. d\nAnswer: D"],
        ["Article: A test.\n\nQuestion: It is  _  .\nA. a\nB. b\nC. c\nD. d\nAnswer: D"],
    ),
    "winogrande": Published(
        "winogrande_xl",
        {
            "train": [
                {
                    "sentence": "Ian ate it because _ liked it.",
                    "option1": "Ian",
                    "option2": "Dennis",
                    "answer": "1",
                },
                {
                    "sentence": "Ian saw it because _ looked.",
                    "option1": "Ian",
                    "option2": "Dennis",
                    "answer": "",
                },
            ],
            "validation": [
                {
                    "sentence": "The cup fell since the _ was wet.",
                    "option1": "cup",
                    "option2": "hand",
                    "answer": "2",
                }
            ],
        },
        ["Sentence: Ian ate it because _ liked it.\n1. Ian\n2. Dennis\nAnswer: 1"],
        ["Sentence: The cup fell since the _ was wet.\n1. cup\n2. hand\nAnswer: 2"],
        noted=True,
    ),
    "boolq": Published(
        None,
        {
            "train": [
                {"question": "is water wet", "answer": True, "passage": "Water -- It is wet."}
            ],
            "validation": [
                {"question": "is fire cold", "answer": False, "passage": "Fire -- It is hot."}
            ],
        },
        ["Passage: Water -- It is wet.\nQuestion: is water wet?\nAnswer: yes"],
        ["Passage: Fire -- It is hot.\nQuestion: is fire cold?\nAnswer: no"],
    ),
    "hellaswag": Published(
        None,
        {
            "train": [
                swag("A man sits. he", "3"),
                swag(
                    "[header] How to row [title] Find [a] boat . [step] Look.",
                    "0",
                    ["[title] Pay it. ", "b", "c", "d"],
                ),
            ],
            "validation": [swag("A dog runs. it", "1")],
        },
        [
            "Context: Rafting: A man sits. he\nContinuation: four.",
            "Context: Rafting: How to row. Find [a] boat . Look.\nContinuation: Pay it.",
        ],
        ["Context: Rafting: A dog runs. it\nContinuation: two."],
    ),
    "piqa": Published(
        None,
        {
            "train": [
                {
                    "goal": "Boil butter",
                    "sol1": "Pour it onto a plate",
                    "sol2": "Pour it into a jar",
                    "label": 1,
                }
            ],
            "validation": [
                {"goal": "Open a tin", "sol1": "Use an opener", "sol2": "Use a spoon", "label": 0}
            ],
        },
        ["Question: Boil butter\nAnswer: Pour it into a jar"],
        ["Question: Open a tin\nAnswer: Use an opener"],
    ),
    "openbookqa": Published(
        "main",
        {
            split: [
                {
                    "question_stem": f"The {split} goes",
                    "choices": {"text": ["up", "on", "in", "by"], "label": list("ABCD")},
                    "answerKey": "B",
                }
            ]
            for split in SPLITS
        },
        ["Question: The train goes\nAnswer: on"],
        ["Question: The test goes\nAnswer: on"],
    ),
    "arc_easy": Published(
        "ARC-Easy",
        {
            "train": [multiple("What is hot?", ["ice", "fire", "rain"], "ABC", "B")],
            "validation": [multiple("What is red?", ["sky", "sea", "rose"], "ABC", "C")],
            "test": [multiple("What is cold?", ["ice", "fire", "sun", "tea"], "1234", "1")],
        },
        ["Question: What is hot?\nAnswer: fire"],
        ["Question: What is cold?\nAnswer: ice"],
    ),
}


def lay_out(folder: Path, published: Published) -> Path:
    """Parquet files and a card that names configuration and splits, as on the hub; labels are
    classes where the hub has them so.
    """
    lines = ["---", "configs:", f"- config_name: {published.config or 'default'}", "  data_files:"]
    for split, records in published.splits.items():
        table = datasets.Dataset.from_list(list(records))
        if published.classes:
            table = table.cast_column("label", datasets.ClassLabel(names=list(published.classes)))
        path = folder / (published.config or "data") / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_parquet(path)
        lines += [f"  - split: {split}", f"    path: {path.relative_to(folder)}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))
    return folder


@pytest.fixture
def as_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> Callable[..., Path]:
    """Put a small data set where a source looks for it on the hub; rationales of other sets are
    nowhere unless a test puts them somewhere.
    """
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def put(name: str, published: Published, constant: str = "HUB") -> Path:
        module = importlib.import_module(f"calibrant.data.sources.{name}")
        folder = lay_out(tmp_path / name / constant, published)
        for other in {"ECQA", "COS_E"} & set(vars(module)) if constant == "HUB" else ():
            monkeypatch.setattr(module, other, NOWHERE)
        monkeypatch.setattr(
            module, constant, HubDataset(str(folder), getattr(module, constant).config)
        )
        return folder

    return put


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_own_layout(name: str, as_on_the_hub: Callable[..., Path]):
    published = HUB[name]
    folder = as_on_the_hub(name, published)
    spec = "commonsense_qa(rationales=none)" if name == "commonsense_qa" else name
    rows = kept(spec)
    assert sorted(map(text, rows)) == sorted(published.calibrated)
    held = sources.build(spec).part("measure")
    assert [text(row) for row in held.rows] == list(published.measured)
    assert held.origin.startswith(f"hub: {folder}@unpinned")
    assert bool(held.note) == published.noted
    if published.explained:
        assert {(row.rationale, row.steps) for row in rows} == set(published.explained)
    for row in [*held.rows, *rows]:
        assert not row.choices or 0 <= right(row) < len(row.choices)
        assert set(sources.build(spec).fields) <= set(row.present)


def test_a_record_with_other_fields_is_named(as_on_the_hub: Callable[..., Path]):
    folder = as_on_the_hub(
        "boolq",
        Published(
            None,
            {"train": [{"query": "a", "label": 1}], "validation": [{"query": "b", "label": 1}]},
            [],
            [],
        ),
    )
    with pytest.raises(DataError, match="'passage'") as caught:
        sources.build("boolq").rows("measure")
    assert caught.value.subject == f"hub: {folder}@unpinned"


LABELS = [
    (0, 0),
    (2, 2),
    ("1", 1),
    ("contradiction", 2),
    (-1, None),
    ("-1", None),
    ("", None),
    (None, None),
]


def test_a_label_is_a_name_or_its_number():
    for label, expected in LABELS:
        assert _published.gold(label, NLI) == expected
    assert _published.gold(True, ["False", "True"]) == 1
    assert _published.gold("1", ["1", "2"]) == 0
    for label in (3, "maybe", "F", 0.5, "²"):
        with pytest.raises(DataError) as caught:
            _published.gold(label, NLI)
        assert caught.value.subject == str(label)


def steps_of_rafting(count: int) -> list[Record]:
    return [swag(f"How to do {i // 4}. Step {i % 4}. Do it", str(i % 4)) for i in range(count)] + [
        {**swag(f"A man does {i}. he", "0"), "activity_label": f"Sport {i // 5}"}
        for i in range(count)
    ]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.usefixtures("forgetful")
def test_hellaswag_without_train_is_divided_by_what_rows_are_about(
    jsonl: Callable[..., Path], train: bool
):
    mirror(jsonl(steps_of_rafting(400), "hellaswag/validation.jsonl").parent.parent)
    if train:
        jsonl([swag(f"A {i}", "2") for i in range(30)], "hellaswag/train.jsonl")
    source = sources.build("hellaswag")
    held = {part: source.part(part) for part in PARTS}
    if train:
        assert [len(kept("hellaswag")), len(held["measure"].rows)] == [30, 800]
        return
    home: dict[str, str] = {}
    for part in PARTS:
        for row in held[part].rows:
            thing = re.search(r"How to do \d+|Sport \d+", row.question or "")
            assert home.setdefault(thing[0] if thing else "", part) == part
    assert len(home) == 100 + 80
    shares = [list(home.values()).count(part) / len(home) for part in PARTS]
    assert shares == pytest.approx([0.7, 0.25, 0.05], abs=0.1)


CHOICES = ["sea", "tree", "car", "book", "moon"]


def question(i: int, key: str = "B") -> Record:
    return multiple(
        f"Question {i}?",
        [f"{choice} {i}" for choice in CHOICES],
        "ABCDE",
        key,
        question_concept="x",
    )


def explanation(i: int, split: str = "train") -> Record:
    choices = [f"{choice} {i} " for choice in CHOICES]
    return {
        "question": f"question  {i}? ",
        "choices": choices,
        "answer": choices[1],
        "explanation": f"Why {i}. So.",
        "csqa_split": split,
    }


@pytest.fixture
def commonsense(
    jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, forgetful: None
) -> Callable[..., Path]:
    module = importlib.import_module("calibrant.data.sources.commonsense_qa")
    for hub in ("HUB", "ECQA", "COS_E"):
        monkeypatch.setattr(module, hub, NOWHERE)
    root = jsonl([question(i) for i in range(100)], "commonsense_qa/train.jsonl").parent.parent
    jsonl([question(i, "C") for i in range(100, 120)], "commonsense_qa/validation.jsonl")
    mirror(root)
    return jsonl


def test_ecqa_explains_questions_of_the_train_split_only(commonsense: Callable[..., Path]):
    # ECQA's own train has questions of both splits of CommonsenseQA; and one that claims to be of
    # validation, though train has it too.
    commonsense(
        [explanation(i) for i in range(30)]
        + [explanation(i, "validation") for i in (40, 100, 101)],
        "ecqa/train.jsonl",
    )
    commonsense([explanation(102, "validation"), explanation(50)], "ecqa/validation.jsonl")
    commonsense([explanation(103), explanation(60)], "ecqa/test.jsonl")
    rows = kept("commonsense_qa")
    assert len(rows) == 100
    expected = {f"Question {i}?": f"Why {i}. So." for i in [*range(30), 50, 60]}
    assert {row.question: row.rationale for row in rows if row.rationale} == expected
    assert {row.steps for row in rows} == {0, 2}
    held = sources.build("commonsense_qa").part("measure")
    assert len(held.rows) == 20
    assert not any(row.rationale for row in held.rows)
    assert "32 of 100" in held.note
    assert all(f"mirror: ecqa/{split}" in held.origin for split in SPLITS)
    assert {row.question for row in kept("commonsense_qa(explained=True)")} == set(expected)


def test_explanations_from_the_hub(
    commonsense: Callable[..., Path], as_on_the_hub: Callable[..., Path]
):
    options = {f"q_op{n}": f"{choice} 7" for n, choice in enumerate(CHOICES, 1)}
    ecqa = {"q_text": "Question 7?", "q_ans": "tree 7", "taskB": "It is 7.", **options}
    as_on_the_hub(
        "commonsense_qa", Published(None, {split: [ecqa] for split in SPLITS}, [], []), "ECQA"
    )
    found = {
        "id": "Question 9?",
        "question": "?",
        "choices": ["a"],
        "answer": "a",
        "abstractive_explanation": "It is 9.",
    }
    as_on_the_hub(
        "commonsense_qa",
        Published(
            "v1.11", {"train": [found], "validation": [{**found, "id": "Question 100?"}]}, [], []
        ),
        "COS_E",
    )
    exemplars = set()
    for name, explained in (
        ("ecqa", {"Question 7?": "It is 7."}),
        ("cos_e", {"Question 9?": "It is 9."}),
        ("none", {}),
    ):
        spec = f"commonsense_qa(rationales={name})"
        assert {row.question: row.rationale for row in kept(spec) if row.rationale} == explained
        exemplars.add(
            tuple(sorted(row.question or "" for row in sources.build(spec).rows("exemplars")))
        )
    assert len(exemplars) == 1, "exemplars depend on the rationales"


def test_without_explanations_there_are_no_rationales_and_the_note_says_so(
    commonsense: Callable[..., Path],
):
    assert not any(row.rationale for row in kept("commonsense_qa"))
    assert "ecqa/train" in sources.build("commonsense_qa").part("calibrate").note
    with pytest.raises(DataError, match=r"ecqa/train\.jsonl"):
        kept("commonsense_qa(explained=True)")
    commonsense([explanation(1)], "ecqa/train.jsonl")
    assert len(kept("commonsense_qa(explained=True)")) == 1
    commonsense([{"id": "1", "why": "?"}], "cos_e/train.jsonl")
    with pytest.raises(DataError) as caught:
        kept("commonsense_qa(rationales='cos_e')")
    assert caught.value.subject == "mirror: cos_e/train"


@pytest.mark.parametrize(
    ("given", "subject"),
    [("rationales='ecq'", "rationales"), ("rationales=none, explained=true", "explained")],
)
def test_choices_of_commonsense_qa_are_checked(given: str, subject: str):
    with pytest.raises(SpecError) as caught:
        sources.build(f"commonsense_qa({given})")
    assert caught.value.subject == subject


@pytest.mark.parametrize("written", ["none", "'none'", "None"])
def test_none_may_be_written_as_a_word(written: str):
    source = sources.build(f"commonsense_qa(rationales={written})")
    assert source == sources.build(str(source))
    assert str(source) == "commonsense_qa(rationales=None)"
    assert source.sometimes == ()
    assert sources.build("commonsense_qa").sometimes == ("rationale",)
    with pytest.raises(DataError) as caught:
        CalibrationSet(f"{source}:cot")
    assert caught.value.subject == str(source)
    assert (
        str(CalibrationSet("commonsense_qa(rationales=cos_e, explained=true):cot"))
        == "commonsense_qa(rationales='cos_e', explained=True):cot"
    )


def invented(dice: random.Random, depth: int) -> tuple[str, Fraction, int, int]:
    """A random expression with its value and number of operations, both found while it is made;
    and how tightly its last operation binds.
    """
    if depth == 0 or dice.random() < 0.2:
        value = Fraction(dice.randrange(1, 2000), dice.choice([1, 1, 1, 10, 100]))
        return (
            (f"{float(value)}" if dice.random() < 0.5 or value.denominator > 1 else str(value)),
            value,
            0,
            3,
        )
    (left, a, n, binds), (right, b, m, holds) = invented(dice, depth - 1), invented(dice, depth - 1)
    sign = dice.choice("+-*/")
    if sign == "/" and b == 0:
        sign = "+"
    own = 2 if sign in "*/" else 1
    left = f"({left})" if binds < own or dice.random() < 0.3 else left
    right = f"( {right} )" if holds <= own or dice.random() < 0.3 else right
    value = a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b
    space = dice.choice(["", " "])
    return f"{left}{space}{sign}{space}{right}", value, n + m + 1, own


def test_equations_come_to_what_fractions_say():
    dice = random.Random(0)
    seen = Counter[int]()
    for _ in range(300):
        equation, value, operations, _ = invented(dice, dice.randrange(1, 4))
        steps = _equation.solve(equation)
        assert steps is not None, equation
        assert len(steps) == operations, equation
        assert (steps[-1][3] if steps else value) == value, equation
        seen[operations] += 1
        lines = _equation.worked(f"X={equation}", _equation.written(value))
        assert len(lines) == operations, equation
        for line in lines:
            left, sign, right, result = re.fullmatch(
                r"(\S+) ([-+*/]) \(?([-\d.]+)\)? = (\S+)", line
            ).groups()
            a, b = float(left), float(right)
            assert float(result) == pytest.approx(
                a + b if sign == "+" else a - b if sign == "-" else a * b if sign == "*" else a / b,
                rel=1e-6,
            )
    assert min(seen[n] for n in range(1, 7)) > 3


NO_EQUATIONS = [
    "",
    " ",
    "1+",
    "+1",
    "(1+2",
    "1+2)",
    ")(",
    "()",
    "1 2",
    "1//2",
    "2**3",
    "-(3)",
    "(7*x)+4",
    "X-6=52",
    "1/0",
    "3/(2-2)",
    "nan+1",
]
HOSTILE = [
    "__import__('os').getcwd()",
    "1;2",
    "1_0+1",
    "1,000+1",
    "1e5+1",
    "１+２",
    "+".join("1" * 150),
    "(" * 5000 + "1" + ")" * 5000,
    "9" * 5000,
]


@pytest.mark.parametrize("equation", [*NO_EQUATIONS, *HOSTILE])
def test_anything_else_is_no_equation(equation: str):
    assert _equation.solve(equation) is None
    assert _equation.worked(equation, "0") == ()


NUMBERS = {
    145.0: "145",
    "12": "12",
    "1,234.50": "1234.5",
    -6.0: "-6",
    "0.0000001": "0.0000001",
    1e16: "10000000000000000",
}


def test_numbers_are_written_plainly_and_what_is_none_is_refused():
    for number, expected in NUMBERS.items():
        assert _equation.written(number) == expected
    for number in ("twelve", "", None, "inf", float("nan"), "1/2"):
        with pytest.raises(DataError) as caught:
            _equation.written(number)
        assert caught.value.subject == str(number)


MIRRORED = [
    *HUB,
    "commonsense_qa(rationales='cos_e')",
    "commonsense_qa(rationales=none)",
    "commonsense_qa(explained=True)",
]
PLAIN_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d*[1-9])?")


@pytest.mark.parametrize("name", MIRRORED)
def test_the_real_mirror(name: str, real_mirror: Path):
    source = sources.build(name)
    check_source(source)
    held = {part: source.part(part) for part in PARTS}
    train = [*held["calibrate"].rows, *held["exemplars"].rows]
    assert 0.02 < len(held["exemplars"].rows) / len(train) < 0.08
    for row in [*train, *held["measure"].rows]:
        assert (row.steps > 0) == (row.rationale is not None)
        assert set(source.fields) <= set(row.present) <= {*source.fields, *source.sometimes}
        assert row.choices or PLAIN_NUMBER.fullmatch(row.answer or "")
        if row.choices:
            assert all(choice.strip() == choice != "" for choice in row.choices)
            assert 0 <= right(row) < len(row.choices)
    for row in held["measure"].rows[:50]:
        assert text(row).strip() == text(row)
        assert text(row).endswith(f" {row.answer}")


@pytest.mark.parametrize("text", TEXTS)
def test_a_trial_of_recommend_has_the_same_rows_as_its_source(
    tmp_path: Path, text: str, real_mirror: Path
):
    trial = Trial(tmp_path, "a model", text, "wanda", "0.6", minutes=1.0)
    trial.write_own_text()
    own = parse_source(str(trial.own_text))
    source, _ = trial.measure.held_out()
    calibrating = {row.key: row for row in source.rows("calibrate")}
    own_rows = [row for part in PARTS for row in own.rows(part)]
    # A few are nearly those that are measured, and left out.
    assert 0.9 * len(calibrating) < len(own_rows) <= len(calibrating)
    for row in own_rows:
        assert row == calibrating[row.key]
        assert row.labels == calibrating[row.key].labels
