"""Exact match: prompts, stops, what is kept; decoding and reading have tests of their own."""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest

from calibrant.data import Row, parse_source
from calibrant.decoding import Decoder, Generated
from calibrant.errors import DataError, NumericsError, SpecError
from calibrant.evaluators import Subject, evaluators
from calibrant.evaluators._prompts import draw_exemplars
from calibrant.evaluators.generation import Generation
from calibrant.models import Opened
from calibrant.results.items import from_bytes, outcomes_of, table_of, to_bytes
from calibrant.results.outcomes import Journal

from tests.data.chat_templates import FAMILIES
from tests.databases import forget_last
from tests.evaluators import answering
from tests.refusing import overflowing, refused


def kept(folder: Path, split: str, records: Iterable[dict[str, object]]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, records)))


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few sets of every kind, each with rows to calibrate on and others to measure."""
    folder = tmp_path_factory.mktemp("sets")
    names = ["entailment", "neutral", "contradiction"]
    for split, numbers in (("train", range(400)), ("test", range(400, 412))):
        sums = [
            {
                "question": f"Add {i} and 1,000?",
                "answer": f"{i} + 1000 = {i + 1000}\n#### {i + 1000:,}",
            }
            for i in numbers
        ]
        kept(folder / "gsm8k", split, sums)
        other = split.replace("test", "validation")
        pairs = [
            {
                "premise": f"There are {i}.",
                "hypothesis": f"{i} there are.",
                "label": i % 3,
                "explanation_1": f"It is {names[i % 3]}",
            }
            for i in numbers
        ]
        kept(folder / "esnli", other, pairs)
        kept(
            folder / "piqa",
            other,
            [
                {"goal": f"Do {i}", "sol1": f"lift {i}", "sol2": f"push {i}", "label": i % 2}
                for i in numbers
            ],
        )
    return folder


@pytest.fixture(autouse=True)
def _mirrored(mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALIBRANT_DATA", str(mirror))


def asked(prompt: str) -> int:
    """The number in the last question of a prompt about sums."""
    return int(prompt.rpartition("Add ")[2].partition(" and")[0])


@pytest.fixture
def says(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[str], str]], list[str]]:
    """The model says what a function of the prompt gives, token by token, then a special token;
    the prompts it was given are returned.
    """

    def put(answer: Callable[[str], str]) -> list[str]:
        end = opened.tokenizer.eos_token
        return answering.says(
            monkeypatch, opened.tokenizer, lambda model, prompt: answer(prompt) + end
        )

    return put


def test_answers_are_read_as_numbers(opened: Opened, says) -> None:
    says(
        lambda prompt: (
            f" ${asked(prompt) + 1000:,}.00\n\nQuestion: what else?"
            if asked(prompt) % 2
            else " no idea"
        )
    )
    measured = Generation(shots=2, limit=12).measure(Subject(opened.model, opened.tokenizer))
    rows = {row.name: row for row in parse_source("gsm8k").rows("measure")}
    odd = {key for key, row in rows.items() if int(row.need("answer")) % 2}
    assert {o.item for o in measured.outcomes if o.value} == odd
    assert measured.score.value == len(odd) / 12
    assert measured.score.n == 12
    assert measured.score.chance == 0
    assert measured.score.stderr == pytest.approx((len(odd) / 12 * (1 - len(odd) / 12) / 11) ** 0.5)
    assert measured.score.facts["answered"] == len(odd) / 12
    assert {o.facts["extracted"] for o in measured.outcomes if o.item in odd} == {
        f"{rows[key].answer}" for key in odd
    }
    assert {o.facts["extracted"] for o in measured.outcomes if o.item not in odd} == {""}
    assert not any(o.facts["cut"] for o in measured.outcomes)
    assert sum(int(o.facts["tokens"]) for o in measured.outcomes) == measured.score.facts["tokens"]


def test_the_prompt_shows_exemplars_and_asks(opened: Opened, says) -> None:
    prompts = says(lambda prompt: f"\n\n {asked(prompt) + 1000}\n5")
    measured = Generation(shots=3, limit=4).measure(Subject(opened.model, opened.tokenizer))
    shown = {row.need("question"): row.answer for row in parse_source("gsm8k").rows("exemplars")}
    for prompt in prompts:
        *examples, question = prompt.split("\n\n")
        assert len(examples) == 3
        for example in examples:
            put, _, answer = example.removeprefix("Question: ").partition("\nAnswer: ")
            assert shown[put] == answer
        assert question.startswith("Question: Add 4")
        assert question.endswith("?\nAnswer:")
    assert len({prompt.rpartition("\n\n")[0] for prompt in prompts}) == 1
    assert (measured.score.value, measured.score.stderr) == (1, 0), (
        "the first line with anything on it counts"
    )
    says(lambda prompt: f"5\n{asked(prompt) + 1000}")
    assert Generation(limit=4).measure(Subject(opened.model, opened.tokenizer)).score.value == 0


def test_reasoning_is_shown_and_read(opened: Opened, says) -> None:
    prompts = says(
        lambda prompt: (
            f" {asked(prompt)} + 1000 = {asked(prompt) + 1000}\nThe answer is "
            f"{asked(prompt) + 1000}.\n\n7"
        )
    )
    measured = Generation(shots=1, limit=5, cot=True).measure(
        Subject(opened.model, opened.tokenizer)
    )
    assert measured.score.value == 1
    assert "The answer is" in prompts[0]
    assert measured.score.measured == "gsm8k, 1-shot, cot"
    for cot in (False, True):
        says(lambda prompt: f"\nQuestion: {asked(prompt) + 1000}")
        other = Generation(limit=3, cot=cot).measure(Subject(opened.model, opened.tokenizer))
        assert (other.score.facts["answered"], other.score.facts["cut"]) == (0, 0), (
            "another question is not read"
        )


def test_labels_are_compared_whatever_their_case(opened: Opened, says) -> None:
    names = ["entailment", "neutral", "contradiction"]
    prompts = says(
        lambda prompt: (
            f" {names[int(prompt.rpartition('are ')[2].partition('.')[0]) % 3].upper()}!\nPremise: "
            "more"
        )
    )
    measured = Generation(name="esnli", shots=3).measure(Subject(opened.model, opened.tokenizer))
    assert measured.score.value == 1
    assert measured.score.n == 12
    assert measured.score.chance == pytest.approx(1 / 3)
    assert {o.facts["extracted"] for o in measured.outcomes} == set(names)
    assert {line for line in prompts[0].splitlines() if line.startswith("Label: ")} == {
        f"Label: {name}" for name in names
    }
    assert prompts[0].endswith("\nLabel:")


def test_words_are_kept_as_a_hash(opened: Opened, says, tmp_path: Path) -> None:
    path = tmp_path / "capitals.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"question": f"Capital of {i}?", "answer": "Old Town"}) for i in range(60)
        )
    )
    says(lambda prompt: " old-town.")
    measured = Generation(name=str(path), shots=0).measure(Subject(opened.model, opened.tokenizer))
    assert measured.score.value == 1
    assert {o.facts["extracted"] for o in measured.outcomes} == {
        hashlib.sha256(b"old town").hexdigest()[:16]
    }


def test_the_limit_leaves_room_for_the_longest_answer(opened: Opened, says) -> None:
    says(lambda prompt: "x" * 500)
    measured = Generation(limit=3).measure(Subject(opened.model, opened.tokenizer))
    assert measured.score.facts["max_tokens"] == 20
    assert {(o.facts["tokens"], o.facts["cut"]) for o in measured.outcomes} == {(20, True)}
    assert measured.score.facts["cut"] == 1
    fewer = Generation(limit=3, max_tokens=5).measure(Subject(opened.model, opened.tokenizer))
    assert {o.facts["tokens"] for o in fewer.outcomes} == {5}
    nli = Generation(name="esnli", limit=3).measure(Subject(opened.model, opened.tokenizer))
    assert nli.score.facts["max_tokens"] == len(" contradiction") + 8


def test_in_the_template_the_question_is_asked_as_a_chat(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()

    def worked_out(model: object, prompt: str) -> str:
        right = asked(prompt) + 1000
        # A line break and a blank line don't end it, and what is thought isn't read.
        return f"<think>\nIt is 5.\n</think>\n\nLet's see.\n\nIt is {right}.<|im_end|>Or 7."

    prompts = answering.says(monkeypatch, tokenizer, worked_out)
    generation = Generation(shots=0, limit=5, template=True)
    measured = generation.measure(Subject(opened.model, tokenizer))
    assert measured.score.value == 1
    assert measured.score.measured == "gsm8k, 0-shot, in the template"
    assert measured.score.facts["max_tokens"] == 1024
    question = f"Add {asked(prompts[0])} and 1,000?"
    assert prompts[0] == tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    # Reasoning that goes on to the limit says nothing.
    answering.says(monkeypatch, tokenizer, lambda model, prompt: f"<think>{asked(prompt) + 1000}")
    thinking = generation.measure(Subject(opened.model, tokenizer))
    assert (thinking.score.value, thinking.score.facts["answered"]) == (0, 0)


@pytest.mark.parametrize("cot", [False, True])
def test_in_the_template_shots_are_earlier_turns(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, cot: bool
) -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()
    prompts = answering.says(monkeypatch, tokenizer, lambda model, prompt: "no<|im_end|>")
    generation = Generation(shots=2, limit=1, cot=cot, template=True, thinking="strip")
    measured = generation.measure(Subject(opened.model, tokenizer))
    assert measured.score.facts["max_tokens"] == 512
    messages: list[dict[str, str]] = []
    for row in generation.exemplars(parse_source("gsm8k")):
        answer = row.need("answer")
        if cot:
            answer = f"{row.rationale}. The answer is {answer}."
        messages.append({"role": "user", "content": row.need("question")})
        messages.append({"role": "assistant", "content": answer})
    messages.append({"role": "user", "content": f"Add {asked(prompts[0])} and 1,000?"})
    assert prompts[0] == tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )


def test_a_label_is_read_out_of_a_chat(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    answering.says(monkeypatch, tokenizer, lambda model, prompt: "**Neutral**<|im_end|>")
    generation = Generation(name="esnli", shots=0, template=True)
    measured = generation.measure(Subject(opened.model, tokenizer))
    assert measured.score.value == pytest.approx(1 / 3)
    assert measured.score.facts["max_tokens"] == 512


def test_what_the_template_cannot_be_asked(opened: Opened) -> None:
    with refused(SpecError, "thinking"):
        evaluators.build("generation(thinking=keep)")
    tokenizer = FAMILIES["qwen2"].tokenizer()
    tokenizer.chat_template = None
    with refused(DataError, "chat"):
        Generation(shots=0, limit=1, template=True).measure(Subject(opened.model, tokenizer))


def test_a_killed_one_goes_on(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrant.decoding.TOKENS_PER_BATCH", 300)
    generation = Generation(shots=2, limit=12, max_tokens=6)
    whole = generation.measure(Subject(opened.model, opened.tokenizer))
    run, batches = Decoder.run, list[int]()

    def killed(self: Decoder, batch: Sequence[int]) -> list[Generated]:
        batches.append(len(batch))
        if len(batches) == 3:
            raise KeyboardInterrupt
        return run(self, batch)

    monkeypatch.setattr(Decoder, "run", killed)
    path = tmp_path / "journal.jsonl"
    with pytest.raises(KeyboardInterrupt):
        generation.measure(Subject(opened.model, opened.tokenizer, journal=Journal(path, "q")))
    forget_last(path, 1)  # a part of a batch is known
    known = len(Journal(path, "q"))
    assert 0 < known < 12
    told: list[tuple[str, int, int]] = []
    again = generation.measure(
        Subject(
            opened.model,
            opened.tokenizer,
            journal=Journal(path, "q"),
            progress=lambda *said: told.append(said),
        )
    )
    assert again == whole
    assert sum(batches[3:]) < 12
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert told[-1][1:] == (12, 12)
    kept = from_bytes(to_bytes(table_of(whole.outcomes)))
    assert outcomes_of(kept) == whole.outcomes
    assert "Add" not in repr(whole), "texts aren't kept"


def test_seeds_draw_other_exemplars_of_distinct_answers_that_are_never_measured() -> None:
    pool = [Row(question=f"{i}", answer=["no", "yes", "maybe"][i % 3]) for i in range(60)]
    draws = {seed: tuple(draw_exemplars(pool, seed)[:7]) for seed in range(4)}
    assert len({draw[:3] for draw in draws.values()}) > 1
    for draw in draws.values():
        assert (
            {row.answer for row in draw[:3]}
            == {row.answer for row in draw[3:6]}
            == {"no", "yes", "maybe"}
        )
        assert len(set(draw)) == 7
    assert tuple(draw_exemplars(reversed(pool), 0)[:3]) == draws[0][:3]
    generation = Generation(shots=5)
    shown = {row.subject for row in generation.exemplars(parse_source("gsm8k"))}
    assert len(shown) == 5
    assert not shown & {row.subject for row in generation.rows()}


def test_what_cannot_be_measured_is_refused_by_name(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject, broken = Subject(opened.model, opened.tokenizer), overflowing()
    with refused(DataError, "esnli"):
        Generation(name="esnli", shots=390, cot=True).measure(subject)
    with refused(DataError, "piqa"):
        Generation(name="piqa", cot=True).measure(subject)
    with pytest.raises(NumericsError, match="gsm8k"):
        Generation(limit=3).measure(Subject(broken.model, broken.tokenizer))
    monkeypatch.setattr(Generation, "rows", lambda self: iter(()))
    with refused(DataError, "gsm8k"):
        Generation().measure(subject)
