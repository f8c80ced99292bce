"""Tasks against prompts written out by hand and scored one token at a time, in float64."""

import json
import math
import random
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from calibrant.data import Row
from calibrant.errors import DataError, NumericsError
from calibrant.evaluators import Subject
from calibrant.evaluators import task as module
from calibrant.evaluators._prompts import TokenizedTexts, is_number, put_for, wrong_numbers
from calibrant.evaluators._scoring import Request
from calibrant.evaluators.task import Task
from calibrant.models import Opened
from calibrant.results.outcomes import Journal, Measurement, Score
from calibrant.testing import tiny_model, tiny_tokenizer

from tests.refusing import overflowing, refused

WORDS = [
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "fjord",
    "grove",
    "heath",
    "inlet",
    "jetty",
    "knoll",
    "larch",
    "marsh",
    "north",
    "ocean",
]


def write(path: Path, records: Iterable[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def quiz(number: int, seed: int) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        offered = draw.sample(WORDS, 4)
        found.append(
            {
                "question": f"Which is {draw.randrange(10**6)}?",
                "choices": offered,
                "answer": draw.choice(offered),
            }
        )
    return found


@pytest.fixture(scope="module")
def choices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of questions with four choices: 150 to calibrate on, of which a few are
    exemplars, and 60 to measure.
    """
    folder = tmp_path_factory.mktemp("quiz")
    write(folder / "train.jsonl", quiz(150, 0))
    write(
        folder / "test.jsonl",
        [*quiz(60, 1), {"question": "Nothing fits?", "choices": ["one", "two"], "answer": "G"}],
    )
    return folder


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path / "mirror"))
    return tmp_path / "mirror"


def nats(opened: Opened, context: str, continuation: str) -> float:
    """The negative log likelihood of a text behind another: bytes are tokens, so nothing can be
    joined across the border.
    """
    shown, scored = (
        opened.tokenizer(text, add_special_tokens=False).input_ids
        for text in (context, continuation)
    )
    with torch.no_grad():
        logits = opened.model(torch.tensor([shown + scored])).logits[0].double()
    logs = logits - logits.exp().sum(-1, keepdim=True).log()
    return -sum(float(logs[len(shown) + at - 1, token]) for at, token in enumerate(scored))


def named(measured: Measurement) -> dict[str, Score]:
    return {score.metric: score for score in (measured.score, *measured.beside)}


def first(values: list[float]) -> int:
    return values.index(min(values))


def exemplars(task: Task) -> list[str]:
    return [item.name for item in task._exemplars(task._put)]


def asked(task: Task) -> list[Any]:
    """The measured rows of a task that has choices, by hand: those whose answer is one of them."""
    return [row for row in task.rows() if row.answer in row.labels or row.answer in row.choices][
        : task.limit
    ]


@pytest.mark.parametrize(
    ("shots", "style"),
    [(2, None), (0, "letters"), pytest.param(2, "letters", marks=pytest.mark.slow)],
)
def test_choices_are_ranked_as_by_hand(
    opened: Opened, choices: Path, shots: int, style: str | None
) -> None:
    task = Task(name=str(choices), shots=shots, limit=8, style=style)
    measured = task.measure(Subject(opened.model, opened.tokenizer))

    def question(row: Any) -> str:
        listed = (
            "".join(
                f"\n{label}. {choice}"
                for label, choice in zip(row.labels, row.choices, strict=True)
            )
            if style
            else ""
        )
        return f"Question: {row.question}{listed}\nAnswer:"

    def answers(row: Any) -> list[str]:
        return list(row.labels if style else row.choices)

    pool = {exemplar.right.written: exemplar for exemplar in task._exemplars(task._put)}
    exemplars = {
        f"{question(row)} {answers(row)[row.labels.index(row.answer)]}"
        for row in task._source.rows("exemplars")
    }
    assert len(pool) == shots
    assert set(pool) <= exemplars, "exemplars are written as questions are, with their answer"
    before = "".join(f"{text}\n\n" for text in pool)
    outcomes = {o.item: o for o in measured.outcomes}
    hits: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "acc_prior": []}
    blind: dict[str, list[bool]] = {"acc": [], "acc_norm": []}
    offered: dict[str, list[float]] = {"offered": [], "offered_prior": []}
    for row in asked(task):
        found = outcomes.pop(row.name)
        gold = row.labels.index(row.answer)
        given = [nats(opened, before + question(row), f" {answer}") for answer in answers(row)]
        alone = [nats(opened, "Answer:", f" {answer}") for answer in answers(row)]
        assert found.facts["choices"] == pytest.approx(given, abs=1e-9)
        assert found.facts["bare"] == pytest.approx(alone, abs=1e-9)
        assert (found.value, found.weight) == (
            pytest.approx(given[gold], abs=1e-9),
            len(f" {answers(row)[gold]}"),
        )
        assert found.facts["gold"] == gold
        hits["acc"].append(first(given) == gold)
        blind["acc"].append(first(alone) == gold)
        blind["acc_norm"].append(
            first([n / len(a) for n, a in zip(alone, answers(row), strict=True)]) == gold
        )
        hits["acc_norm"].append(
            first([n / len(a) for n, a in zip(given, answers(row), strict=True)]) == gold
        )
        hits["acc_prior"].append(first([n - a for n, a in zip(given, alone, strict=True)]) == gold)
        likelihood = [math.exp(-n) for n in given]
        offered["offered"].append(-math.log(likelihood[gold] / sum(likelihood)))
        raised = [math.exp(a - n) for n, a in zip(given, alone, strict=True)]
        offered["offered_prior"].append(-math.log(raised[gold] / sum(raised)))
        assert [found.facts[name] for name in ("hit", "hit_norm", "hit_prior")] == [
            hits[name][-1] for name in hits
        ]
    assert not outcomes
    scores = named(measured)
    for metric, kept in hits.items():
        mean = sum(kept) / 8
        assert (scores[metric].value, scores[metric].n, scores[metric].chance) == (mean, 8, 0.25)
        assert scores[metric].stderr == pytest.approx(math.sqrt(mean * (1 - mean) / 7))
    assert {m: s.facts["blind"] for m, s in scores.items() if "blind" in s.facts} == {
        m: sum(kept) / 8 for m, kept in blind.items()
    }
    for metric, values in offered.items():
        assert scores[metric].value == pytest.approx(sum(values) / 8, abs=1e-9)
        assert (scores[metric].n, scores[metric].unit, scores[metric].better) == (
            8,
            "nats/question",
            "lower",
        )
    total, weight = (
        sum(o.value for o in measured.outcomes),
        sum(o.weight for o in measured.outcomes),
    )
    assert measured.score.metric == "loss"
    assert measured.score.value == pytest.approx(total / weight)
    assert measured.score.chance is None


def test_a_metric_comes_first_if_it_is_asked_for(opened: Opened, choices: Path) -> None:
    plain = Task(name=str(choices), limit=6).measure(Subject(opened.model, opened.tokenizer))
    for metric in ("acc", "acc_norm", "acc_prior", "offered", "offered_prior"):
        measured = Task(name=str(choices), limit=6, metric=metric).measure(
            Subject(opened.model, opened.tokenizer)
        )
        assert measured.score == named(plain)[metric]
        assert {s.metric for s in measured.beside} == set(named(plain)) - {metric}
        total, weight = (
            math.fsum(o.value for o in measured.outcomes),
            sum(o.weight for o in measured.outcomes),
        )
        assert total / weight == pytest.approx(measured.score.value, rel=1e-14)
        if metric.startswith("acc"):
            assert total / weight == measured.score.value
        assert [o.facts for o in measured.outcomes] == [o.facts for o in plain.outcomes]


def test_winogrande_scores_what_follows_the_gap(opened: Opened, mirror: Path) -> None:
    sentence = "Ann gave it to Sue because _ was 'done' with it."
    record = {"sentence": sentence, "option1": "Ann", "option2": "Sue", "answer": "1"}
    train = [{**record, "sentence": f"{i} {sentence}"} for i in range(60)]
    write(mirror / "winogrande/train.jsonl", train)
    write(mirror / "winogrande/validation.jsonl", [record])
    (outcome,) = Task(name="winogrande").measure(Subject(opened.model, opened.tokenizer)).outcomes
    rest = " was 'done' with it."
    assert outcome.facts["choices"] == pytest.approx(
        [nats(opened, f"Ann gave it to Sue because {who}", rest) for who in ("Ann", "Sue")]
    )
    assert outcome.facts["bare"] == pytest.approx(
        [nats(opened, who, rest) for who in ("Ann", "Sue")]
    )
    assert (outcome.weight, outcome.facts["gold"]) == (len(rest), 0)
    shown = Task(name="winogrande", shots=1)
    (exemplar,) = shown._exemplars(shown._put)
    assert re.fullmatch(
        r"\d+ Ann gave it to Sue because Ann was 'done' with it\.", exemplar.right.written
    )
    (listed,) = (
        Task(name="winogrande", style="letters")
        .measure(Subject(opened.model, opened.tokenizer))
        .outcomes
    )
    asked = f"Sentence: {sentence}\n1. Ann\n2. Sue\nAnswer:"
    assert listed.facts["choices"] == pytest.approx(
        [nats(opened, asked, f" {label}") for label in "12"]
    )


def test_hellaswag_scores_the_ending_behind_its_context(opened: Opened, mirror: Path) -> None:
    endings = ["sit down.", "fly off.", "melt.", "sing a song."]
    records = [
        {
            "activity_label": f"Roof {i}",
            "ctx": f"{i} men are there. they",
            "endings": endings,
            "label": i % 4,
        }
        for i in range(40)
    ]
    write(mirror / "hellaswag/train.jsonl", records[:30])
    write(mirror / "hellaswag/validation.jsonl", records[30:31])
    (outcome,) = Task(name="hellaswag").measure(Subject(opened.model, opened.tokenizer)).outcomes
    assert outcome.facts["choices"] == pytest.approx(
        [nats(opened, "Roof 30: 30 men are there. they", f" {ending}") for ending in endings]
    )
    assert outcome.facts["bare"] == pytest.approx(
        [nats(opened, "Continuation:", f" {ending}") for ending in endings]
    )
    assert outcome.facts["sizes"] == [len(ending) for ending in endings]
    assert outcome.facts["gold"] == 2


def test_numbers_are_ranked_among_wrong_ones_and_solutions_are_scored(
    opened: Opened, mirror: Path
) -> None:
    answer = "He has 12 + 30 = <<12+30=42>>42 pens.\n#### 42"
    records = [
        {"question": f"Tom {i} has 12 pens and gets 30 more. How many?", "answer": answer}
        for i in range(5)
    ]
    write(mirror / "gsm8k/train.jsonl", records[1:])
    write(mirror / "gsm8k/test.jsonl", records[:1])
    measured = Task(name="gsm8k").measure(Subject(opened.model, opened.tokenizer))
    (outcome,), scores = measured.outcomes, named(measured)
    question = "Question: Tom 0 has 12 pens and gets 30 more. How many?\nAnswer:"
    worked = nats(opened, question, " He has 12 + 30 = 42 pens.")
    assert outcome.facts["solution_nats"] == pytest.approx(worked)
    assert scores["solution"].value == pytest.approx(worked / outcome.facts["solution_tokens"])
    assert outcome.value == pytest.approx(nats(opened, question, " 42"))
    assert len(outcome.facts["choices"]) == 4
    assert outcome.facts["choices"][outcome.facts["gold"]] == pytest.approx(outcome.value)
    assert [scores[m].chance for m in ("acc", "acc_norm", "acc_prior")] == [0.25] * 3
    primary = Task(name="gsm8k", metric="solution").measure(Subject(opened.model, opened.tokenizer))
    assert primary.score == scores["solution"]
    assert (primary.outcomes[0].value, primary.outcomes[0].weight) == (
        pytest.approx(worked),
        outcome.facts["solution_tokens"],
    )


def test_free_text_has_a_loss_only(opened: Opened, tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        [{"question": f"Say {i} {w}?", "answer": w} for i in range(4) for w in WORDS],
    )
    measured = Task(name=str(path), limit=3).measure(Subject(opened.model, opened.tokenizer))
    assert (measured.score.metric, measured.beside) == ("loss", ())
    assert set(measured.outcomes[0].facts) == {"nats", "tokens", "greedy"}


def test_rows_behind_the_limit_are_neither_put_nor_counted(
    opened: Opened, choices: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = list(Task(name=str(choices)).rows())
    unanswerable = next(place for place, row in enumerate(rows) if row.answer == "G")
    # One that can't be asked among the first three, and one behind the limit.
    rows = [rows[unanswerable], *rows]
    monkeypatch.setattr(Task, "rows", lambda task: iter(rows))
    put_rows: list[Row] = []

    def noting(*how: Any) -> Any:
        put = put_for(*how)

        def noted(row: Row) -> Any:
            put_rows.append(row)
            return put(row)

        return noted

    monkeypatch.setattr(module, "put_for", noting)
    subject = Subject(opened.model, opened.tokenizer)
    first_three = Task(name=str(choices), limit=3).measure(subject)
    assert len(put_rows) == 4
    assert first_three.score.facts["passed_over"] == 1
    whole = Task(name=str(choices)).measure(subject)
    assert whole.score.facts["passed_over"] == 2
    assert [outcome.item for outcome in first_three.outcomes] == [
        outcome.item for outcome in whole.outcomes[:3]
    ]


def test_exemplars_are_drawn_by_seed_and_never_measured(choices: Path) -> None:
    drawn = [exemplars(Task(name=str(choices), shots=3, seed=seed)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    task = Task(name=str(choices))
    others = {row.name for part in ("calibrate", "measure") for row in task._source.rows(part)}
    assert not {*drawn[0], *drawn[2]} & others
    assert exemplars(Task(name=str(choices), shots=5))[:3] == drawn[0], (
        "more shots go on where fewer end"
    )


def test_what_cannot_be_measured_is_refused_by_name(
    opened: Opened, choices: Path, tmp_path: Path
) -> None:
    unanswerable = write(
        tmp_path / "mine.jsonl",
        [{"question": f"Is it {i}?", "choices": ["one", "two"], "answer": "Q"} for i in range(40)],
    )
    with refused(DataError, unanswerable):
        Task(name=str(unanswerable)).measure(Subject(opened.model, opened.tokenizer))
    broken = overflowing()
    with pytest.raises(NumericsError, match="quiz"):
        Task(name=str(choices), limit=3).measure(Subject(broken.model, broken.tokenizer))


def test_a_killed_measurement_goes_on_and_ends_as_one_that_was_not(
    choices: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TOKENS_PER_PASS", 32)
    model, tokenizer, task = (
        tiny_model("llama"),
        tiny_tokenizer(),
        Task(name=str(choices), shots=1, limit=10),
    )
    told: list[tuple[int, int]] = []
    whole = task.measure(
        Subject(model, tokenizer, progress=lambda what, done, total: told.append((done, total)))
    )
    assert told[-1] == (80, 80)
    assert [done for done, _ in told] == sorted(done for done, _ in told)

    class Killed(BaseException):
        pass

    for at in (20, 50):  # among the questions, and among what is asked bare
        path = tmp_path / f"{at}.jsonl"

        def kill(what: str, done: int, total: int, at: int = at) -> None:
            if done >= at:
                raise Killed

        with pytest.raises(Killed):
            task.measure(
                Subject(model, tokenizer, progress=kill, journal=Journal(path, "question"))
            )
        half = Journal(path, "question")
        assert 0 < len(half) < 20
        assert task.measure(Subject(model, tokenizer, journal=half)) == whole, "bit for bit"
    seen: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, given: seen.append(1))
    assert task.measure(Subject(model, tokenizer, journal=half)) == whole
    assert not seen, "what is known isn't computed again"


def test_a_token_that_holds_both_ends_is_scored() -> None:
    """Where a tokenizer joins the end of a context to what follows, what is scored begins there."""
    joining = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "bc": 3}, merges=[("b", "c")]))
    tokens = TokenizedTexts(PreTrainedTokenizerFast(tokenizer_object=joining))
    assert tokens.request("a", "b") == Request((0,), (1,))
    assert tokens.request("ab", "c") == Request((0,), (3,))
    assert tokens.request("ab", "a") == Request((0, 1), (0,))


@settings(max_examples=30)
@given(
    st.one_of(st.integers(-(10**6), 10**6).map(str), st.decimals(-1000, 1000, places=2).map(str)),
    st.lists(st.integers(0, 10**4), max_size=5),
    st.text("0123456789abcdef", min_size=4, max_size=8),
)
def test_wrong_numbers_keep_their_rule(answer: str, numbers: list[int], key: str) -> None:
    question = "There are " + " and then ".join(map(str, numbers))
    wrong = wrong_numbers(question, answer, key)
    values = [Decimal(text) for text in (answer, *wrong)]
    assert wrong == wrong_numbers(question, answer, key)
    assert len(set(values)) == 4
    assert all(
        is_number(text) and len(text.partition(".")[2]) == len(answer.partition(".")[2])
        for text in wrong
    )
    if values[0] >= 0:
        assert min(values) >= 0
    if values[0] not in numbers:
        assert not set(values) & set(numbers)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("How many of 1 2 3 4 5 6 7 8 9 10 are negative?", "0"),
        ("What is 123456789012345 plus 123456789012345678?", "123580245801358023"),
        ("Which of 4111111111111111 and 5500000000000004 is the 2nd card?", "2"),
    ],
    ids=["every number near enough is in the question", "a product of 33 digits", "two cards"],
)
def test_wrong_numbers_are_found_for_odd_questions(question: str, answer: str) -> None:
    wrong = wrong_numbers(question, answer, "key")
    assert len({answer, *wrong}) == 4
    assert not set(wrong) & set(re.findall(r"\d+", question))


def test_a_question_with_an_empty_choice_is_passed_over() -> None:
    put = put_for("mine", "cloze", choices=True, numbers=False)
    assert put(Row(question="Yes?", choices=("yes", "no"), answer="yes")) is not None
    assert put(Row(question="Yes?", choices=("yes", ""), answer="yes")) is None


def test_the_right_number_stands_anywhere() -> None:
    """Its place is of another hash than the wrong ones are chosen by: those are the lowest of
    that one.
    """
    put = put_for("mine", None, choices=False, numbers=True)
    places = [
        item.gold
        for i in range(400)
        if (item := put(Row(question=f"{i} pens and 30 pens?", answer="42")))
    ]
    assert all(
        abs(places.count(place) - 100) < 4 * math.sqrt(400 * 0.25 * 0.75) for place in range(4)
    )
