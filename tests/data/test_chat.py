"""Conversations in chat templates of many families: the tokens are those of the tokenizer's own
`apply_chat_template`, and each is known by who writes it.

The reference asks the tokenizer with the messages as they were given. Whose a letter is, its script
says.
"""

import json
import random
import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2 import TemplateError
from torch import Tensor, nn
from transformers.utils import chat_template_utils

from calibrant.activations import Gram
from calibrant.data import (
    ROLES,
    CalibrationSet,
    Chat,
    Message,
    Row,
    as_source,
    micro_batches,
)
from calibrant.data._templates import RefusedError
from calibrant.errors import DataError, SpecError
from calibrant.models import view
from calibrant.testing import tiny_model
from calibrant.walk.walking import walk

from tests.data.chat_templates import FAMILIES
from tests.data.conversations import (
    SCRIPTS,
    Conversation,
    Speaker,
    conversations,
    exchange,
    reasoning_before_a_call,
    reasoning_in_turns,
)
from tests.effort import quick

CONVERSATIONS = conversations()
TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
LENGTH = 4096
ROLE_OF_LETTER = {letter: role for role, letters in SCRIPTS.items() for letter in letters}
OPTIONS = {
    "": {},
    "generation_prompt=true": {"add_generation_prompt": True},
    "tools=none": {},
    "thinking=strip": {"enable_thinking": False, "thinking": False},
    "system='しさ'": {},
}


def row_of(conversation: Conversation) -> Row:
    return next(iter(as_source([conversation]).rows("calibrate")))


ROWS = {row_of(conversation).key: conversation for conversation in CONVERSATIONS}


def drawn(form: str) -> CalibrationSet:
    """All conversations, one a window, without start tokens."""
    source = as_source(CONVERSATIONS)
    return CalibrationSet(f"{source}:chat({form})@one(bos='none')", length=LENGTH)


def asked_for(conversation: Conversation, form: str) -> tuple[list[Any], list[Any] | None]:
    """What the template is to be given, from what an option is said to do."""
    messages = [dict(message) for message in conversation["messages"]]
    tools = conversation.get("tools")
    if form.startswith("tools"):
        tools = None
        messages = [message for message in messages if message["role"] != "tool"]
        for message in messages:
            message.pop("tool_calls", None)
        messages = [m for m in messages if m["content"] or m.get("reasoning_content")]
    if form.startswith("system"):
        messages = [message for message in messages if message["role"] != "system"]
        messages.insert(0, {"role": "system", "content": "しさ"})
    if form.startswith("thinking"):
        for message in messages:
            message.pop("reasoning_content", None)
            if "</think>" in (message["content"] or ""):
                message["content"] = message["content"].split("</think>")[1].strip()
    return messages, tools


@pytest.mark.parametrize("form", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_the_tokenizers_own_template(family: str, form: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    wanted: dict[str, list[int]] = {}
    refused: list[str] = []
    for key, conversation in ROWS.items():
        messages, tools = asked_for(conversation, form)
        try:
            encoded = tokenizer.apply_chat_template(messages, tools=tools, **OPTIONS[form])
        except (TemplateError, TypeError):
            refused.append(key)
            continue
        ids = encoded["input_ids"]
        if ids[0] == tokenizer.bos_token_id:
            ids = ids[1:]
        wanted[key] = ids
    if not wanted:
        with pytest.raises(DataError):
            drawn(form).tokens(tokenizer)
        return
    batch = drawn(form).tokens(tokenizer)
    found: dict[str, list[int]] = {}
    for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=True):
        found[row.key] = ids[mask].tolist()
    assert found == wanted
    # None is lost without a word. Rows come in the order of their keys, up to the last one used.
    (facts,) = batch.facts["parts"]
    assert sum(facts["refused"].values()) == sum(key < max(wanted) for key in refused)
    assert len(wanted) + len(refused) == len(CONVERSATIONS)
    assert sum(facts["roles"].values()) == int(batch.mask.sum())
    assert facts["unclear"] == 0


@pytest.mark.parametrize("family", ["hermes", "smollm2"])
def test_windows_hold_whole_conversations_as_the_tokenizer_writes_them(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    # SmolLM2 has the token that opens a turn as its start token too.
    if family == "smollm2":
        tokenizer.bos_token = "<|im_start|>"
    batch = CalibrationSet(f"{as_source(CONVERSATIONS)}:chat@whole", length=2048).tokens(tokenizer)
    own: list[int] = []
    for row in batch.rows:
        conversation = ROWS[row.key]
        tools = conversation.get("tools")
        own += tokenizer.apply_chat_template(conversation["messages"], tools=tools)["input_ids"]
    assert batch.ids[batch.mask].tolist() == own
    assert batch.facts["parts"][0]["truncated"] == 0


@pytest.mark.parametrize("thinking", ["template", "keep"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_letter_is_known_by_who_writes_it(family: str, thinking: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    taken = 0
    for key, conversation in ROWS.items():
        row = row_of(conversation)
        try:
            result = Chat(thinking=thinking).written(row, tokenizer)
        except RefusedError:
            continue
        taken += 1
        assert row.key == key
        for begin, end, role in result.stretches:
            for letter in result.text[begin:end]:
                assert ROLE_OF_LETTER.get(letter, role) == role, result.text
        # What the template left out is named.
        kept = [role for role in ("question", "answer", "reasoning") if role in result.unwritten]
        for role in ("question", "answer", "reasoning"):
            letters = SCRIPTS[role]
            left_out = letters_in(repr(conversation), letters) > letters_in(result.text, letters)
            assert left_out == (role in kept)
        if thinking == "keep":
            assert "reasoning" not in result.unwritten
    assert taken > len(ROWS) / 2


def letters_in(text: str, letters: str) -> int:
    return sum(letter in letters for letter in text)


KEPT = {
    "qwen3": "<|im_start|>assistant\n<think>\n{}\n</think>\n\n{}<|im_end|>",
    "deepseek": "<|Assistant|><think>\n{}\n</think>\n\n{}<|end|>",
    "llama3": "assistant<|end_header_id|>\n\n<think>\n{}\n</think>\n\n{}<|eot_id|>",
}


@pytest.mark.parametrize("family", KEPT)
def test_reasoning_that_a_template_drops_can_be_kept(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    apart = reasoning_in_turns(Speaker(random.Random(1)))
    inside = {"messages": [dict(message) for message in apart["messages"]]}
    for message in inside["messages"]:
        if message["role"] == "assistant":
            thought = message.pop("reasoning_content")
            message["content"] = f"<think>{thought}</think>{message['content']}"
    for conversation in (apart, inside):
        text = Chat(thinking="keep").render(row_of(conversation), tokenizer)
        for message in apart["messages"][1::2]:
            assert KEPT[family].format(message["reasoning_content"], message["content"]) in text


KEPT_BEFORE_A_CALL = {
    "qwen2": "<|im_start|>assistant\n<think>\n{}\n</think>\n\n<tool_call>\n",
    "qwen3": "<|im_start|>assistant\n<think>\n{}\n</think>\n\n\n<tool_call>\n",
    "smollm3": "<|im_start|>assistant\n<think>\n{}\n</think>\n\n<tool_call>weather",
    "llama3": 'assistant<|end_header_id|>\n\n<think>\n{}\n</think>\n\n{{"name": "weather"',
    "granite": "assistant<|end_of_role|><think>\n{}\n</think>\n\n<|tool_call|>[",
    "glm4": "<|assistant|><think>\n{}\n</think>\n\nweather\n",
}


@pytest.mark.parametrize("family", KEPT_BEFORE_A_CALL)
def test_reasoning_that_is_kept_stands_before_a_call_and_not_in_it(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    conversation = reasoning_before_a_call(Speaker(random.Random(1)))
    calling = conversation["messages"][1]
    text = Chat(thinking="keep").render(row_of(conversation), tokenizer)
    assert KEPT_BEFORE_A_CALL[family].format(calling["reasoning_content"]) in text


def test_reasoning_is_not_kept_where_the_turn_of_its_call_is_not_found() -> None:
    # This template asks for an answer with the opening tag, which a call hasn't.
    tokenizer = FAMILIES["deepseek"].tokenizer()
    row = row_of(reasoning_before_a_call(Speaker(random.Random(1))))
    Chat().render(row, tokenizer)
    with pytest.raises(RefusedError, match="thinking=keep"):
        Chat(thinking="keep").render(row, tokenizer)


SPOKEN = re.compile(r"<\|im_start\|>assistant\n((?!<\|im_end\|>).*?<\|im_end\|>)", re.DOTALL)
"""What the assistant writes in templates of this kind, with the token that ends its turn."""


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "smollm2", "smollm3", "hermes"])
def test_only_what_the_assistant_writes_counts_where_that_is_asked(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    batch = drawn("weigh=assistant").tokens(tokenizer)
    shares = drawn("weigh=answer, others=0.25").tokens(tokenizer)
    assert len(batch.rows) > len(ROWS) / 2
    for row, ids, mask, weights, share in zip(
        batch.rows, batch.ids, batch.mask, batch.weights, shares.weights, strict=True
    ):
        text = Chat().render(row, tokenizer).removeprefix(str(tokenizer.bos_token))
        wanted: list[float] = []
        if family == "smollm3":
            conversation = ROWS[row.key]
            wanted = tokenizer.apply_chat_template(
                conversation["messages"],
                tools=conversation.get("tools"),
                return_assistant_tokens_mask=True,
                return_dict=True,
            )["assistant_masks"]
        else:
            spoken = [found.span(1) for found in SPOKEN.finditer(text)]
            offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
            for begin, end in offsets:
                inside = any(first <= begin and end <= last for first, last in spoken)
                wanted.append(float(inside))
        assert weights[mask].tolist() == wanted
        assert not weights[~mask].any()
        assert set(share[mask].tolist()) <= {0.25, 1.0}
        answered = tokenizer.decode(ids[share == 1.0])
        assert letters_in(answered, SCRIPTS["answer"]) == letters_in(text, SCRIPTS["answer"])


def test_a_set_in_which_nothing_counts_is_refused() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    with pytest.raises(DataError):
        CalibrationSet(f"{as_source(CONVERSATIONS)}:chat(weigh='answer')@one", length=8).tokens(
            tokenizer
        )
    for wrong in ("weigh=user", "others=2.0", "tools=all", "thinking=much"):
        with pytest.raises(SpecError):
            drawn(wrong)


def test_a_question_can_be_answered_with_the_way_to_it() -> None:
    row = Row(question="How many legs have 3 hens?", rationale="3 * 2 is 6", answer="6")
    form = Chat(worked=True)
    messages = form.conversation(row).messages
    assert messages[1].content == "3 * 2 is 6. The answer is 6."
    assert not form.takes(replace(row, rationale=None))
    turns = (Message("user", "Hello"), Message("assistant", "Good day."))
    assert form.takes(Row(turns=turns))
    assert form.conversation(Row(turns=turns)).messages == turns


def test_roles_stand_where_the_tokens_do() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    data = CalibrationSet(f"{as_source(CONVERSATIONS)}:chat@many", tokens=9000, length=256)
    batch = data.tokens(tokenizer)
    roles = data.roles(tokenizer)
    assert roles.shape == batch.ids.shape
    (facts,) = batch.facts["parts"]
    for number, role in enumerate(ROLES):
        assert int(((roles == number) & batch.mask).sum()) == facts["roles"][role]
    # Two bytes a letter: Cyrillic begins with one of these.
    cyrillic = tokenizer("а").input_ids[0]
    found = roles[batch.ids == cyrillic]
    assert len(found) > 100
    assert set(found.tolist()) == {ROLES.index("answer")}


def test_a_tokenizer_that_does_not_tell_where_its_tokens_stand_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    data = CalibrationSet(f"{as_source(CONVERSATIONS)}:chat@many", tokens=500, length=100)
    assert "roles" not in data.tokens(tokenizer).facts["parts"][0]
    for ask in (data.roles, data.kinds):
        with pytest.raises(DataError) as caught:
            ask(tokenizer)
        assert caught.value.subject == type(tokenizer).__name__


def test_windows_that_end_within_reasoning_are_counted() -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()
    thoughts = [
        [
            {"role": "user", "content": f"{number}"},
            {"role": "assistant", "content": "да" * 20, "reasoning_content": "ա" * number},
        ]
        for number in range(1, 100)
    ]
    data = CalibrationSet(f"{as_source(thoughts)}:chat@one(bos='none')", samples=60, length=150)
    batch = data.tokens(tokenizer)
    wanted = 0
    for row, mask in zip(batch.rows, batch.mask, strict=True):
        text = Chat().render(row, tokenizer).removeprefix(str(tokenizer.bos_token))
        offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        begin, _ = offsets[int(mask.sum()) - 1]
        wanted += text[begin] == "ա"
    assert batch.facts["parts"][0]["cut_reasoning"] == wanted
    assert 5 < wanted < 60


def test_a_template_that_refuses_everything_says_why() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    tokenizer.chat_template = "{{ raise_exception('nobody may speak') }}"
    for data in (f"{as_source(CONVERSATIONS)}:chat", "random_letters:chat"):
        with quick(), pytest.raises(DataError) as caught:
            CalibrationSet(data, samples=2, length=64).tokens(tokenizer)
        assert "nobody may speak" in str(caught.value)


def test_what_a_template_says_of_a_row_is_short_and_can_be_printed() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role != 'user' %}"
        "{{ raise_exception('no ' + messages[0].role + 'x' * 1000) }}{% endif %}a"
    )
    source = as_source([{"messages": [{"role": "\x1b[2J", "content": "a"}, *TALK]}])
    with pytest.raises(RefusedError) as caught:
        CalibrationSet(f"{source}:chat", length=64).tokens(tokenizer)
    assert caught.value.reason.startswith("no \\x1b[2Jx")
    assert len(caught.value.reason) < 300
    assert "tools=none" in str(caught.value)


def test_a_template_that_has_no_end_only_with_an_option_is_stopped() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    tokenizer.chat_template = (
        "{% if add_generation_prompt %}{% for a in range(99999) %}{% for b in range(99999) %}"
        "{% endfor %}{% endfor %}{% endif %}a"
    )
    source = as_source([{"messages": TALK}])
    with pytest.raises(DataError) as caught:
        CalibrationSet(f"{source}:chat(generation_prompt=true)", length=64).tokens(tokenizer)
    assert "too long" in str(caught.value)


def test_a_text_that_looks_like_a_mark_is_none() -> None:
    call = {"function": {"name": "f", "arguments": {"zqx99xqz": 1}}}
    messages = [TALK[0], {"role": "assistant", "content": "\n", "tool_calls": [call]}, TALK[1]]
    source = as_source([{"messages": messages}])
    tokenizer = FAMILIES["qwen2"].tokenizer()
    batch = CalibrationSet(f"{source}:chat", length=256).tokens(tokenizer)
    assert batch.facts["parts"][0]["unclear"] == 1
    # Of a message that only calls, nothing is left.
    (row,) = batch.rows
    assert [turn.role for turn in Chat(tools=None).conversation(row).messages] == [
        "user",
        "assistant",
    ]


def test_tools_of_a_chat_are_no_column_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n")
    (term,) = CalibrationSet(f"{path}:chat(tools=none)@whole", length=64).parts
    assert term.format == Chat(tools=None)
    with pytest.raises(SpecError) as caught:
        CalibrationSet(f"{path}:chat(tools='none')@whole", length=64)
    assert "without quotes" in str(caught.value)


def test_a_template_that_changes_texts_is_told_and_not_weighed() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    plain = as_source([exchange(Speaker(random.Random(3)))])
    batch = CalibrationSet(f"{plain}:chat", length=256).tokens(tokenizer)
    assert batch.facts["parts"][0]["unclear"] == 1
    with pytest.raises(DataError):
        CalibrationSet(f"{plain}:chat(weigh='answer')", length=256).tokens(tokenizer)


def test_a_token_of_weight_zero_is_as_if_it_were_not_counted() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=2048)
    # So short that of some conversations no answer is read.
    source = as_source(CONVERSATIONS[:8])
    data = CalibrationSet(f"{source}:chat(weigh='answer')@one", length=140)
    batch = data.tokens(tokenizer)
    counted = batch.weights > 0
    assert {True, False} == set(counted.any(1).tolist())
    walked: dict[str, Gram] = {}
    for weight, seen in walk(view(model), batch, (Gram,), "dense", tokens_per_pass=140):
        walked[weight.name] = seen[Gram]
    for weight in view(model).weights:
        wanted: list[Gram] = []
        for ids, mask, weights in micro_batches(batch, 140):
            inputs = inputs_of(model, weight.name, ids, mask)
            wanted.append(Gram.of(inputs[weights > 0]))
        found = walked[weight.name]
        whole = wanted[0]
        for part in wanted[1:]:
            whole = whole + part
        assert found.tokens == found.mass == int(counted.sum())
        assert torch.equal(found.matrix, whole.matrix), weight.name


def inputs_of(model: nn.Module, name: str, ids: Tensor, mask: Tensor) -> Tensor:
    """What a matrix is multiplied with, [sample, position, in]."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0])

    hook = model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(keep)
    given = {"input_ids": ids}
    if not bool(mask.all()):
        given["attention_mask"] = mask
    with torch.no_grad():
        model(**given, use_cache=False)
    hook.remove()
    return inputs[0]


DATED = """\
{%- if strftime_now is defined %}{%- set today = strftime_now("%d %b %Y") %}
{%- else %}{%- set today = "26 Jul 2024" %}{%- endif %}
{{- "Today is " + today + ".\\n" }}
"""


class LaterDay(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "LaterDay":
        return cls(2031, 12, 24, 8, 30, tzinfo=tz)


@pytest.mark.parametrize("form", ["", "weigh=assistant", "generation_prompt=true"])
def test_a_template_that_writes_the_date_gives_the_same_tokens_every_day(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    undated = tokenizer.chat_template
    tokenizer.chat_template = DATED + undated
    batch = drawn(form).tokens(tokenizer)
    monkeypatch.setattr(chat_template_utils, "datetime", LaterDay)
    assert drawn(form).tokens(tokenizer).fingerprint == batch.fingerprint
    # Whoever asks the tokenizer itself is told the day that it is, before and after.
    assert "24 Dec 2031" in tokenizer.apply_chat_template(TALK, tokenize=False)
    # All else is as in a template in which the date is written out.
    tokenizer.chat_template = 'Today is 26 Jul 2024.\n{{- "\\n" }}' + undated
    assert drawn(form).tokens(tokenizer).fingerprint == batch.fingerprint
