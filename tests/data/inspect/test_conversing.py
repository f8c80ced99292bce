"""What is told of conversations, counted once more from how they were written."""

from collections import Counter
from typing import Any

import pytest

from calibrant.data import ROLES, CalibrationSet, as_source
from calibrant.data.inspect import inspect_tokens

from tests.data.chat_templates import FAMILIES
from tests.data.conversations import SCRIPTS, conversations

CONVERSATIONS = conversations()


def drawn(form: str, **budget: int) -> CalibrationSet:
    return CalibrationSet(f"{as_source(CONVERSATIONS)}:chat({form})@one(bos='none')", **budget)


def has(conversation: dict[str, Any], role: str) -> bool:
    """Whether a conversation has letters of the script of a role."""
    return any(letter in repr(conversation) for letter in SCRIPTS[role])


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_what_conversations_hold_is_counted(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    data = drawn("", samples=40, length=4096)
    inspection = inspect_tokens(data, tokenizer)
    (part,) = inspection.parts
    found = part["conversations"]
    lengths = sorted(len(conversation["messages"]) for conversation in CONVERSATIONS)
    assert found["count"] == 40
    assert found["turns"] == [lengths[int(share * 39)] for share in (0, 0.25, 0.5, 0.75, 1)]
    for name, role in (("tools", "tools"), ("calls", "call"), ("reasoning", "reasoning")):
        assert found[name] == sum(has(conversation, role) for conversation in CONVERSATIONS)
    counts = Counter(ROLES[role] for role in data.roles(tokenizer)[data.tokens(tokenizer).mask])
    assert found["roles"] == {role: counts[role] / counts.total() for role in ROLES if counts[role]}
    assert sum(found["roles"].values()) == pytest.approx(1)


def test_advice_on_reasoning_keeps_its_word() -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()
    inspection = inspect_tokens(drawn("", samples=40, length=4096), tokenizer)
    found = inspection.parts[0]["conversations"]
    count = found["left_out"]["reasoning"]
    assert 0 < count < found["reasoning"]
    assert f"{count} of 40" in inspection.verdict[0]
    assert found["with_reasoning"] in inspection.verdict[0]
    kept = CalibrationSet(found["with_reasoning"], samples=40, length=4096)
    again = inspect_tokens(kept, tokenizer)
    assert "reasoning" not in again.parts[0]["conversations"]["left_out"]
    assert not any("leaves out reasoning" in sentence for sentence in again.verdict)


def test_advice_on_windows_that_cut_reasoning_keeps_its_word() -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()
    thoughtful: list[dict[str, Any]] = []
    for number in range(40):
        question = {"role": "user", "content": f"{number}"}
        answer = {"role": "assistant", "content": "да", "reasoning_content": "ա " * 60}
        thoughtful.append({"messages": [question, answer]})
    expression = f"{as_source(thoughtful)}:chat(thinking=keep)@many(separator='')"
    inspection = inspect_tokens(CalibrationSet(expression, samples=12, length=200), tokenizer)
    part = inspection.parts[0]
    assert part["conversations"]["cut_reasoning"] > 2
    (said,) = [sentence for sentence in inspection.verdict if "end within reasoning" in sentence]
    assert part["conversations"]["uncut"] in said
    length = int(said.rsplit(" ", 1)[1])
    uncut = CalibrationSet(part["conversations"]["uncut"], samples=4, length=length)
    again = inspect_tokens(uncut, tokenizer)
    assert not any("end within reasoning" in sentence for sentence in again.verdict)


def test_reasoning_that_is_never_closed_is_reasoning() -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()
    thoughtful: list[dict[str, Any]] = []
    for number in range(30):
        tags = "<think>{}" if number % 3 else "<think>{}</think>да"
        question = {"role": "user", "content": f"{number}"}
        answer = {"role": "assistant", "content": tags.format("ա" * 20)}
        thoughtful.append({"messages": [question, answer]})
    source = as_source(thoughtful)
    data = CalibrationSet(f"{source}:chat@one(bos='none')", samples=30, length=300)
    found = inspect_tokens(data, tokenizer).parts[0]["conversations"]
    assert (found["open_reasoning"], found["reasoning"]) == (20, 30)
    batch = data.tokens(tokenizer)
    roles = data.roles(tokenizer)[batch.mask]
    tokens = batch.ids[batch.mask]
    thoughts = tokenizer.decode(tokens[roles == ROLES.index("reasoning")])
    assert thoughts == "ա" * 20 * 30
    without = CalibrationSet(
        f"{source}:chat(thinking=strip)@one(bos='none')", samples=30, length=300
    ).tokens(tokenizer)
    assert "ա" not in tokenizer.decode(without.ids[without.mask])


def test_a_template_without_words_for_functions_is_named() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content or '' }}{% endfor %}"
    )
    inspection = inspect_tokens(drawn("", samples=40, length=4096), tokenizer)
    found = inspection.parts[0]["conversations"]
    assert found["left_out"]["call"] == found["calls"]
    (said,) = [sentence for sentence in inspection.verdict if "functions, calls" in sentence]
    assert found["without_tools"] in said
    tools = CalibrationSet(found["without_tools"], samples=30, length=4096)
    again = inspect_tokens(tools, tokenizer).parts[0]["conversations"]
    assert (again["tools"], again["calls"]) == (0, 0)
    assert not {"call", "tools", "result"} & again["left_out"].keys()


def test_a_template_that_asks_for_the_date_is_told_apart() -> None:
    tokenizer = FAMILIES["qwen2"].tokenizer()
    data = drawn("", samples=4, length=4096)
    assert inspect_tokens(data, tokenizer).parts[0]["conversations"]["date"] == ""
    tokenizer.chat_template = "{{ strftime_now('%d.%m.%y') }}" + tokenizer.chat_template
    (part,) = inspect_tokens(data, tokenizer).parts
    assert part["conversations"]["date"] == "2024-07-26"
    assert all(text.startswith("26.07.24") for text in part["texts"])


def test_a_set_without_conversations_says_nothing_of_them() -> None:
    data = f"0.5*python_docs + 0.5*{as_source(CONVERSATIONS)}:chat"
    tokenizer = FAMILIES["qwen2"].tokenizer()
    mixed = inspect_tokens(CalibrationSet(data, samples=4, length=64), tokenizer)
    plain, told = mixed.to_json()["parts"]
    assert plain["conversations"] is None
    assert sum(told["conversations"]["roles"].values()) == pytest.approx(1)
