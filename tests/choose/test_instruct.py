"""Advice for a model with a chat template: what it is measured on, which sets are tried, what the
template is said to be worth, and the time in which the model writes its own answers.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from studies.siblings.targets import rows

import calibrant
from calibrant.data import Message, Row, Source
from calibrant.data.expression import parse_expression, selectors
from calibrant.data.select import Context, Selection, Selector
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError
from calibrant.evaluators.agreement import Agreement
from calibrant.lab.choose import Recommendation, instruct, recommend
from calibrant.lab.choose.asking import Prepared, asked
from calibrant.lab.choose.budget import StepCosts, TimeBudget, planned
from calibrant.lab.choose.goal import parse_goal
from calibrant.lab.choose.halves import Halves
from calibrant.lab.choose.recommending import RecommendOptions
from calibrant.lab.mixtures import Effort
from calibrant.results import Store
from calibrant.testing import tiny_folder, tiny_tokenizer

from tests.trained import trained_folder

SMALL: dict[str, Any] = {
    "tokens": 512,
    "length": 128,
    "method": "wanda",
    "target": 0.6,
    "dtype": "float32",
    "device": "cpu",
    "sibling": False,
}
REFUSES = "{{ raise_exception('nobody may speak') }}"
DROPS_QUESTIONS = (
    "{% for m in messages %}{% if m.role == 'assistant' %}[{{ m.content }}]{% endif %}{% endfor %}"
)


@dataclass(frozen=True, repr=False)
class Echo(Selector):
    """Stands for a model's own answers: each question is answered by itself. Asked for a file
    called `hard.jsonl`, it can't be done.
    """

    source: str

    needs_model = False
    kind = "questions"
    default = "chat"
    licence = "none"
    homepage = ""
    fields = ("question", "answer", "turns")

    @property
    def origins(self) -> tuple[Source, ...]:
        return (parse_expression(self.source)[0].source,)

    def measured(self) -> Source:
        return self.origins[0]

    def disjoint(self) -> int | None:
        return None

    def select(self, context: Context) -> Selection:
        if self.source.startswith("hard"):
            raise DataError("hard.jsonl can't be answered", subject=self.source)
        answered: list[Row] = []
        for row in self.origins[0].rows("calibrate"):
            question = f"{row.need('question')} ({context.draw})"
            turns = (Message("user", question), Message("assistant", question))
            answered.append(Row(question=question, answer=question, turns=turns))
        return Selection(tuple(answered))


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with questions, conversations and text, no mirror, and a selector that answers."""
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(selectors._learned, "Echo", Echo)
    monkeypatch.setattr(instruct, "ANSWERS", "Echo")
    problems = rows("problems", 0, 120)
    talks = [
        {
            "messages": [
                {"role": "user", "content": row["question"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in problems
    ]
    texts = [{"text": f"{row['question']} {row['answer']}"} for row in problems]
    for name, records in (
        ("asked", problems),
        ("hard", problems),
        ("talks", talks),
        ("told", texts),
    ):
        lines = [json.dumps(record) + "\n" for record in records]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return tmp_path


def in_template(*goals: str):
    return parse_goal(goals, tokens=1000, items=20, length=64, template=True)


def prepared(model: Path, goal: str, **options: Any) -> Prepared:
    settings = SMALL | {"minutes": 60.0, "folder": Path("advice")} | options
    return asked(RecommendOptions(str(model), goal=goal, **settings), TimeBudget(60.0))


@pytest.mark.parametrize(
    ("goals", "conversations"),
    [
        (["asked.jsonl"], ("asked.jsonl:chat",)),
        (["talks.jsonl"], ("talks.jsonl:chat",)),
        (["asked.jsonl:chat(system=x)"], ("asked.jsonl:chat(system='x')",)),
        (["0.7*asked.jsonl", "0.3*told.jsonl"], ("asked.jsonl:chat",)),
        # What is plain, or is said to be, stays so.
        (["told.jsonl"], ()),
        (["asked.jsonl:icl"], ()),
        (["asked.jsonl", "loss(source='told.jsonl')"], ()),
    ],
)
def test_conversations_and_questions_are_measured_in_the_template(
    goals: list[str], conversations: tuple[str, ...]
) -> None:
    goal = in_template(*goals)
    assert goal.conversations == conversations
    if not conversations:
        assert goal == parse_goal(goals, tokens=1000, items=20, length=64)
        return
    assert goal.sources[0] == conversations[0]
    roles: list[bool] = []
    for _, measure in goal.measures:
        assert isinstance(measure, Agreement), "all are in one unit"
        roles.append(measure.roles)
    assert roles == [True, False][: len(goals)]


def test_the_same_rows_are_tried_in_the_template_out_of_it_and_answered_by_the_model() -> None:
    found = prepared(trained_folder(), "asked.jsonl")
    own = ["asked.jsonl:chat", "asked.jsonl:icl", "Echo(source='asked.jsonl')"]
    assert list(found.candidates[:3]) == own
    assert found.spare == (own[2],)
    assert "ultrachat" not in found.candidates, "it can't be read here"
    # Who names candidates gets these and no others.
    named = prepared(trained_folder(), "asked.jsonl", sources=["told.jsonl", "asked.jsonl:icl"])
    assert named.candidates == ("told.jsonl", "asked.jsonl:icl")
    assert not named.spare
    assert named.identity != found.identity


@pytest.mark.parametrize("candidate", ["told.jsonl", "longest(source='told.jsonl', candidates=8)"])
def test_a_file_that_was_changed_is_another_question(files: Path, candidate: str) -> None:
    def question() -> str:
        return prepared(
            trained_folder(), "asked.jsonl", sources=[candidate, "python_docs"]
        ).identity

    before = question()
    assert question() == before
    with (files / "told.jsonl").open("a") as file:
        file.write(json.dumps({"text": "One more row."}) + "\n")
    assert question() != before


@pytest.mark.parametrize(
    ("conversation", "answered"),
    [
        ("asked.jsonl:chat", ["answers(source='asked.jsonl')"]),
        (
            "asked.jsonl:chat(system=x, thinking=strip)",
            ["answers(source='asked.jsonl', thinking='strip', system='x')"],
        ),
        # A selector has no rows yet that could be asked.
        ("longest(source='asked.jsonl'):chat", []),
    ],
)
def test_the_model_is_asked_as_the_goal_is_put(
    monkeypatch: pytest.MonkeyPatch, conversation: str, answered: list[str]
) -> None:
    monkeypatch.setattr(instruct, "ANSWERS", "answers")
    assert instruct.own_answers([conversation]) == answered


def test_a_baseline_is_not_left_out_where_it_is_written() -> None:
    own = "Echo(source='asked.jsonl')"
    found = prepared(trained_folder(), "asked.jsonl", baseline=own)
    assert not found.spare
    assert own in found.needed


def test_a_base_model_is_asked_what_it_was_asked(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "base")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(model)
    found = prepared(model, "asked.jsonl")
    assert found.fitted.goal.conversations == ()
    assert found.candidates[0] == "asked.jsonl:icl"
    assert not {"asked.jsonl:chat", "Echo(source='asked.jsonl')"} & set(found.candidates)


def test_a_template_that_cannot_be_measured_in_is_left_alone(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model")
    (model / "chat_template.jinja").write_text(REFUSES)
    refused = prepared(model, "asked.jsonl")
    assert refused.fitted.goal.conversations == ()
    assert "nobody may speak" in refused.no_template
    # Where it is only not known who says what, no role is told apart.
    (model / "chat_template.jinja").write_text(DROPS_QUESTIONS)
    unclear = prepared(model, "asked.jsonl")
    ((_, measure),) = unclear.fitted.goal.measures
    assert isinstance(measure, Agreement)
    assert not measure.roles
    assert not unclear.no_template


def test_a_half_of_a_file_is_all_that_a_selector_takes_from(tmp_path: Path) -> None:
    folders: list[str] = []
    for side in ("first", "second"):
        (tmp_path / side).mkdir()
        for part in ("train", "test"):
            text = (tmp_path / "asked.jsonl").read_text()
            (tmp_path / side / f"{part}.jsonl").write_text(text)
        folders.append(str(tmp_path / side))
    empty: frozenset[str] = frozenset()
    halves = Halves(
        UserFile("asked.jsonl"), (folders[0], folders[1]), (empty, empty), inside=0.5, across=0.1
    )
    swapped = halves.replaced_in("Echo(source='asked.jsonl')", 1)
    (term,) = parse_expression(swapped)
    assert isinstance(term.source, Echo)
    assert term.source.origins == (UserFile(folders[1]),)
    assert halves.replaced_in("Echo(source='hard.jsonl')", 1) == "Echo(source='hard.jsonl')"


COSTS = StepCosts(
    opened=1.0, walk=0.001, judge=0.002, search=5.0, compress=2.0, measure=6.0, write=0.05
)


@pytest.mark.parametrize("halves", [False, True])
def test_answers_are_written_where_there_is_time_for_them(halves: bool) -> None:
    question: dict[str, Any] = {"sources": 9, "least": 3, "tokens": 8192, "halves": halves}
    ample = planned(COSTS, 1e5, **question, written=1, spare=True, rounds=2)
    fewer: dict[str, Any] = question | {"sources": 8}
    without = planned(COSTS, 1e5, **fewer, rounds=2)
    assert (ample.written, ample.sources, without.sources) == (1, 9, 8)
    # One draw for the prediction and the first round, and another for the second.
    sets = 3 if halves else 1
    writing = replace(COSTS, write=0.0)
    unpaid = planned(writing, 1e5, **question, written=1, spare=True, rounds=2)
    assert ample.seconds - unpaid.seconds == pytest.approx(2 * sets * 8192 * COSTS.write)
    # Where there is none, they go before any other candidate does.
    enough = 1.16 * without.seconds
    short = planned(COSTS, enough, **question, written=1, spare=True, rounds=2)
    assert (short.written, short.sources, short.sets) == (0, 8, without.sets)
    assert short.seconds <= enough
    # What was named is never left out.
    assert planned(COSTS, enough, **question, written=1).written == 1


@pytest.fixture(scope="module")
def model() -> str:
    return str(trained_folder())


def advised(model: str, goal: str, minutes: float, folder: Path, **more: Any) -> Recommendation:
    return recommend(model, goal=goal, minutes=minutes, folder=folder, **(SMALL | more))


def test_the_template_s_worth_is_what_the_race_measured(
    model: str, files: Path, effort: Effort
) -> None:
    sets = ["asked.jsonl:chat", "asked.jsonl:icl", "random_tokens"]
    told: dict[str, Any] = {"sources": sets, "folder": files / "advice"}
    first = advised(model, "asked.jsonl", 1e-6, **told)
    by_data = {candidate.data: candidate for candidate in first.candidates}
    for data in sets[:2]:
        increase = by_data[data].increase
        assert increase is not None
        assert f"{increase['value']:+.3f}" in first.text
    assert "too little" in first.text, "one draw says nothing about the next"
    more = advised(model, "asked.jsonl", 10.0, **told)
    raced = {candidate.data for candidate in more.candidates if candidate.draws > 1}
    assert raced >= set(sets[:2])
    assert "too little" not in more.text
    # The difference is that of the two increases, and its interval is said.
    figures = {candidate.data: candidate.increase for candidate in more.candidates}
    text, template = (figures[data] for data in (sets[1], sets[0]))
    assert text is not None
    assert template is not None
    said = re.findall(r"([+-]\d\.\d{3}) \([+-]\d\.\d{3} to [+-]\d\.\d{3}\)", more.text)
    differences = [float(value) for value in said]
    wanted = text["value"] - template["value"]
    assert any(abs(value - wanted) < 0.0011 for value in differences)


def test_roles_add_up_to_what_decides(model: str, files: Path, effort: Effort) -> None:
    sets = ["asked.jsonl:chat", "told.jsonl"]
    found = advised(model, "asked.jsonl", 1e-6, files / "advice", sources=sets)
    store = Store(files / "advice" / "race", create=False)
    by_data = {candidate.data: candidate for candidate in found.candidates}
    cells = [cell for cell in store.cells() if cell.data in sets]
    assert {cell.data for cell in cells} == set(sets)
    for cell in cells:
        ((_, measurement_id),) = cell.measures.items()
        measurement = store.measurement(cell.run, measurement_id)
        assert measurement is not None
        total = 0.0
        tokens = 0
        for outcome in measurement.outcomes:
            tokens += outcome.weight
        for role, value in by_data[cell.data].by_role.items():
            total += value * sum(
                outcome.facts[f"tokens_{role}"] for outcome in measurement.outcomes
            )
        increase = by_data[cell.data].increase
        assert increase is not None
        assert total / tokens == pytest.approx(increase["value"], rel=1e-6)


def test_own_answers_are_predicted_and_raced_like_others(
    model: str, files: Path, effort: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrant.lab.choose.goal.DEFAULT", ("python_docs",))
    said: list[str] = []
    found = advised(model, "asked.jsonl", 20.0, files / "advice", say=said.append)
    by_data = {candidate.data: candidate for candidate in found.candidates}
    own = by_data["Echo(source='asked.jsonl')"]
    assert own.predicted is not None
    assert found.plan.written == 1
    assert not [sentence for sentence in said if "Echo" in sentence]
    assert not found.failures
    # Without time they are left out, and so are those that can't be written; both are said.
    said.clear()
    short = advised(model, "asked.jsonl", 1e-6, files / "short", say=said.append)
    assert short.plan.written == 0
    assert [sentence for sentence in said if own.data in sentence]
    assert own.data not in {candidate.data for candidate in short.candidates}
    said.clear()
    hard = advised(model, "hard.jsonl", 20.0, files / "hard", say=said.append)
    assert [sentence for sentence in said if "can't be answered" in sentence]
    assert "Echo(source='hard.jsonl')" not in {candidate.data for candidate in hard.candidates}
    # What the user named isn't left out silently.
    with pytest.raises(DataError):
        advised(
            model,
            "asked.jsonl",
            1.0,
            files / "n",
            sources=["told.jsonl", "Echo(source='hard.jsonl')"],
        )


def test_a_plan_says_which_sets_are_tried(model: str, files: Path) -> None:
    asking = calibrant.plan(calibrant.recommend, model, goal="asked.jsonl", folder=files / "advice")
    notes = " ".join(asking.notes)
    for data in ("asked.jsonl:chat", "asked.jsonl:icl", "Echo(source='asked.jsonl')"):
        assert data in notes
    plain = calibrant.plan(calibrant.recommend, model, goal="told.jsonl", folder=files / "advice")
    assert "Echo" not in " ".join(plain.notes)
    assert asking.memory > plain.memory, "a copy of the dense model is compared with"
    # A tokenizer beside the model takes the place of its own.
    silent = tiny_tokenizer()
    silent.chat_template = None
    bare = calibrant.plan(
        calibrant.recommend, model, goal="asked.jsonl", tokenizer=silent, folder=files / "advice"
    )
    assert "Echo" not in " ".join(bare.notes)
    assert not (files / "advice").exists()
