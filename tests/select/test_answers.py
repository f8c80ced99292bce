"""The model answers prompts in its own template, and what is kept is what it wrote."""

import json
import random
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, parse_source
from calibrant.data.select import Context, resolved
from calibrant.data.select._generating import Batches
from calibrant.data.select.answers import Answers
from calibrant.decoding import Generated
from calibrant.errors import DataError, SpecError
from calibrant.models import Opened
from calibrant.testing.tiny import VOCABULARY

from tests.data.chat_templates import FAMILIES
from tests.data.conversations import TOOLS
from tests.select.contexts import opened
from tests.trained import trained_model

SHORT = Answers(source="arithmetic", max_tokens=40, candidates=12, batch=6)


@cache
def chatting(family: str = "qwen2") -> Opened:
    """The trained model with the tokens of a template, none of which it knows; some letters end an
    answer.
    """
    tokenizer = FAMILIES[family].tokenizer()
    model = trained_model()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ends = tokenizer(".,gw", add_special_tokens=False)["input_ids"]
    model.generation_config.eos_token_id = ends
    return Opened(model, tokenizer, "trained", f"sha256:chatting {family}", "", torch.float32)


def given(model: Opened | None = None, tokens: int = 1500, draw: int = 0) -> Context:
    model = model or chatting()
    return Context(model.tokenizer, model, draw, tokens, length=700)


def kept_answers(cache_folder: Path) -> list[list[Any]]:
    """All that was written: tokens, and whether the limit ended it."""
    paths = sorted((cache_folder / "calibrant" / "generated").rglob("batch-*.json"))
    return [text for path in paths for text in json.loads(path.read_text())["texts"]]


def templated(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any
) -> list[int]:
    return tokenizer.apply_chat_template(messages, **options)["input_ids"]


@pytest.mark.parametrize("family", ["qwen2", "llama3"])
def test_a_row_is_in_the_template_what_the_model_wrote(own_cache: Path, family: str) -> None:
    model = chatting(family)
    found = SHORT.select(given(model))
    contents = [ids[:-1] for ids, cut in kept_answers(own_cache) if not cut]
    assert len(found.rows) >= 4
    others = 0
    for row in found.rows:
        messages = [message.record() for message in row.turns]
        asked = templated(model.tokenizer, messages[:-1], add_generation_prompt=True)
        assert messages[-2] == {"role": "user", "content": row.question}
        assert row.turns[-1].content == row.answer
        whole = templated(model.tokenizer, messages)
        # The answer, up to the special token behind it.
        said = list(takewhile(lambda token: token < VOCABULARY, whole[len(asked) :]))
        exact = whole[: len(asked)] == asked and said in contents
        others += not exact
    assert len(found.rows) > others
    assert ("other tokens" in found.note) == (others > 0)
    assert not others or f"{others} that the template" in found.note
    # This template leaves the space before and behind an answer out.
    assert (others > 0) == (family == "llama3")


def test_without_chance_it_writes_what_transformers_generates(own_cache: Path) -> None:
    model = chatting()
    replace(SHORT, temperature=0.0).select(given(tokens=200))
    drafts = [ids for ids, _ in kept_answers(own_cache)]
    assert len(drafts) > 3
    rows = parse_source("arithmetic").rows("calibrate")
    for row, draft in zip(rows, drafts, strict=False):
        messages = [{"role": "user", "content": row.question}]
        asked = torch.tensor([templated(model.tokenizer, messages, add_generation_prompt=True)])
        written = model.model.generate(
            asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=40
        )
        assert written[0, asked.shape[1] :].tolist() == draft


def test_the_same_draw_has_the_same_answers_and_another_has_other_prompts(own_cache: Path) -> None:
    one = SHORT.select(given())
    first = kept_answers(own_cache)
    again = SHORT.select(given())
    assert again == one
    assert kept_answers(own_cache) == first
    other = SHORT.select(given(draw=1))
    assert not {row.question for row in one.rows} & {row.question for row in other.rows}
    more = SHORT.select(given(tokens=6000))
    assert len(more.rows) > len({row.question for row in more.rows}), "other chance, other answer"
    assert len({row.key for row in more.rows}) == len(more.rows)


def test_killed_and_asked_again_it_writes_what_it_would_have(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = SHORT.select(given(tokens=4000))
    drafts = kept_answers(own_cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(own_cache / "elsewhere"))

    def killed(what: str, done: int, total: int) -> None:
        if done > 2500:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SHORT.select(replace(given(tokens=4000), progress=killed))
    left = kept_answers(own_cache / "elsewhere")
    assert 0 < len(left) < len(drafts)
    assert left == drafts[: len(left)]
    assert SHORT.select(given(tokens=4000)) == whole
    assert kept_answers(own_cache / "elsewhere") == drafts


class Scripted:
    """Writes texts that are given, one after the other, round and round; one that ends with an
    ellipsis is cut.
    """

    def __init__(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        self.texts = texts
        self.tokenizer = tokenizer
        self.written = 0

    def decoder(self, *arguments: Any) -> "Scripted":
        return self

    def run(self, batch: Sequence[int]) -> list[Generated]:
        return [self._next() for _ in batch]

    def _next(self) -> Generated:
        text = self.texts[self.written % len(self.texts)]
        self.written += 1
        ids = self.tokenizer(text.removesuffix("…"), add_special_tokens=False)["input_ids"]
        if text.endswith("…"):
            return Generated(tuple(ids), cut=True)
        return Generated((*ids, self.tokenizer.eos_token_id), cut=False)


Script = Callable[..., None]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Has the model write the texts that are given."""

    def put(*texts: str, family: str = "qwen2") -> None:
        scripted = Scripted(texts, chatting(family).tokenizer)
        monkeypatch.setattr("calibrant.data.select.answers.Decoder", scripted.decoder)

    return put


def file_of(folder: Path, rows: Sequence[dict[str, Any]]) -> str:
    path = folder / "asked.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


@pytest.fixture
def sums(tmp_path: Path) -> str:
    """Questions whose right answer is 7."""
    rows = [{"question": f"What is {i}+{7 - i}?", "answer": "7"} for i in range(40)]
    return file_of(tmp_path, rows)


RIGHT = "The answer is 7."
LONG = "That is easy to say, so I say it: the answer is 7."
WRONG = "The answer is 8."


def test_what_is_left_out_is_counted(script: Script, sums: str) -> None:
    long = "".join(random.Random(0).choices(string.ascii_lowercase, k=900))
    script(RIGHT, " \n", "ha " * 30, "I think that…", long, WRONG, RIGHT, LONG)
    asked = Answers(source=sums, n=8, batch=8, candidates=4)
    found = asked.select(given(tokens=100))
    assert [row.answer for row in found.rows[:3]] == [RIGHT, WRONG, LONG]
    for fault in ("1 empty", "1 loops", "1 unfinished", "1 too long for a window", "1 copies"):
        assert fault in found.note
    right = replace(asked, keep="right").select(given(tokens=100))
    assert {row.answer for row in right.rows} == {RIGHT, LONG}
    assert "wrong" in right.note
    # The wrong answer and the right one are as short; the right one is taken where it is known.
    shortest = replace(asked, keep="shortest").select(given(tokens=100))
    assert {row.answer for row in shortest.rows} == {RIGHT}
    assert len({row.question for row in shortest.rows}) == len(shortest.rows)


@pytest.mark.parametrize("keep", ["right", "shortest"])
def test_the_right_answer_of_a_conversation_is_that_to_its_last_question(
    script: Script, tmp_path: Path, keep: str
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(20):
        turns = [
            {"role": "user", "content": f"How many legs has hen {number}?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "And a cow?"},
            {"role": "assistant", "content": "4"},
        ]
        rows.append({"messages": turns})
    script("The answer is 2.", "The answer is 4.")
    asked = Answers(source=file_of(tmp_path, rows), keep=keep, n=2, candidates=6)
    found = asked.select(given(tokens=200))
    assert {row.answer for row in found.rows} == {"The answer is 4."}
    assert {row.question for row in found.rows} == {"And a cow?"}
    assert "wrong" in found.note


def test_without_chance_all_answers_may_be_just_enough(script: Script, sums: str) -> None:
    script(RIGHT)
    asked = Answers(source=sums, temperature=0.0, candidates=3, max_tokens=20)
    tokenizer = chatting().tokenizer
    rows = asked.select(given(tokens=200)).rows
    written = 0
    for row in rows:
        written += len(templated(tokenizer, [message.record() for message in row.turns]))
    assert len(rows) == 3
    assert asked.select(given(tokens=written)).rows == rows
    with pytest.raises(DataError):
        asked.select(given(tokens=written + 1))


def test_reasoning_that_does_not_end_is_no_answer(script: Script, sums: str) -> None:
    script("<think>\nThat is easy to say.", "<think>\nI think that…", RIGHT)
    found = Answers(source=sums, candidates=12, batch=6).select(given(tokens=100))
    assert {row.answer for row in found.rows} == {RIGHT}
    for fault in ("nothing but reasoning", "unfinished"):
        assert fault in found.note


def test_prompts_need_no_answers(script: Script, tmp_path: Path) -> None:
    prompts = file_of(tmp_path, [{"prompt": f"Is {i} a number?"} for i in range(40)])
    script(RIGHT)
    asked = Answers(source=prompts, candidates=20)
    assert CalibrationSet(str(asked)).parts[0].source == asked
    assert {row.answer for row in asked.select(given(tokens=200)).rows} == {RIGHT}
    with pytest.raises(SpecError, match="know no answers"):
        Answers(source=prompts, keep="right")
    for text in (f"'{prompts}':chat", f"'{prompts}'@whole", "gsm8k + race"):
        with pytest.raises(SpecError, match="name a source alone"):
            Answers(source=text)


def test_a_kept_batch_is_taken_only_behind_as_many_texts(own_cache: Path) -> None:
    def written(*counts: int) -> list[list[Any]]:
        batches = Batches({"question": "the same"})
        asked: list[list[Any]] = []
        for place, count in enumerate(counts):
            begin = sum(counts[:place])
            texts = [[number] for number in range(begin, begin + count)]
            asked += batches.batch(count, lambda seed, texts=texts: texts)
        return asked

    assert written(3, 2) == [[0], [1], [2], [3], [4]]
    # The right answers are others now, say, so that more were asked before the second batch.
    assert written(4, 2) == [[0], [1], [2], [3], [4], [5]]


def test_reasoning_and_calls_stand_apart_and_read_as_they_were_written(
    script: Script, tmp_path: Path
) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(20):
        turns = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"How warm is it on day {number}?"},
            {"role": "assistant", "content": "Where?"},
            {"role": "user", "content": "In Jena."},
            {"role": "assistant", "content": "I don't know."},
        ]
        rows.append({"messages": turns, "tools": TOOLS})
    asked = Answers(source=file_of(tmp_path, rows))
    call = '<tool_call>\n{"name": "weather", "arguments": {"town": "Jena"}}\n</tool_call>'
    script(f"<think>\nI look it up.\n</think>\n\n\n{call}", family="qwen3")
    found = asked.select(given(chatting("qwen3"), tokens=600))
    assert "other tokens" not in found.note
    for row in found.rows:
        said = row.turns[-1]
        assert said.reasoning == "I look it up."
        assert [(used.name, used.arguments) for used in said.calls] == [
            ("weather", '{"town": "Jena"}')
        ]
        roles = [message.role for message in row.turns]
        assert roles == ["system", "user", "assistant", "user", "assistant"]
        assert said.content is None
        assert len(row.tools) == len(TOOLS)
    script("It is warm.", family="qwen3")
    brief = replace(asked, system="Say one word.", thinking="strip")
    found = brief.select(given(chatting("qwen3"), tokens=600))
    contents = [message.content for message in found.rows[0].turns]
    assert contents[0] == "Say one word."
    assert contents[2:] == ["Where?", "In Jena.", "It is warm."]
    assert "other tokens" not in found.note


def test_it_stands_where_a_source_stands_and_is_rendered_as_it_was_asked() -> None:
    asked = CalibrationSet(
        "0.5*answers(source=arithmetic, max_tokens=40, candidates=12, thinking=strip) "
        "+ 0.5*python_code",
        tokens=1000,
        length=500,
    )
    model = chatting("qwen3")
    batch = resolved(asked, model).tokens(model.tokenizer)
    part = batch.facts["parts"][0]
    assert part["tokens"] == 500
    assert part["note"].startswith("wrote ")
    assert str(asked.parts[0].format) == "chat(thinking='strip')"
    assert str(CalibrationSet(str(asked))) == str(asked)
    assert [str(source) for source in asked.parts[0].source.origins] == ["arithmetic"]
    assert "<think>\n\n</think>" in model.tokenizer.decode(batch.ids[0])


def test_it_says_what_it_can_not_do(script: Script, sums: str, tmp_path: Path) -> None:
    silent = FAMILIES["qwen2"].tokenizer()
    silent.chat_template = None
    bare = replace(opened(), tokenizer=silent)
    with pytest.raises(DataError, match="chat template") as caught:
        SHORT.select(given(bare))
    assert caught.value.subject == str(SHORT)
    with pytest.raises(DataError, match="too long") as caught:
        SHORT.select(replace(given(), length=20))
    assert caught.value.subject == "arithmetic"
    script(RIGHT)
    greedy = Answers(source=sums, temperature=0.0, candidates=3)
    with pytest.raises(DataError, match="raise candidates"):
        greedy.select(given())
    script(WRONG)
    with pytest.raises(DataError, match="wrong"):
        Answers(source=sums, keep="right", candidates=3).select(given())
    words = [{"question": f"Who is number {i}?", "answer": "Nobody, I think."} for i in range(20)]
    with pytest.raises(DataError, match=r"without an answer .*take keep='all'"):
        Answers(source=file_of(tmp_path, words), keep="right").select(given())
