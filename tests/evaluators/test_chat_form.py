"""Whether answers in the model's own template are well formed: each condition over answers written
by hand, and both models compared.
"""

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import Chat, held_out
from calibrant.errors import DataError, SpecError
from calibrant.evaluators import Subject, evaluators
from calibrant.evaluators._turns import AssistantTurn
from calibrant.evaluators.chat_form import CONDITIONS, ChatForm, answer_facts, is_loop
from calibrant.models import Opened
from calibrant.results.items import from_bytes, outcomes_of, table_of, to_bytes
from calibrant.results.outcomes import Journal
from calibrant.testing import tiny_model, tiny_tokenizer

from tests.data.chat_templates import FAMILIES
from tests.databases import forget_last
from tests.evaluators.answering import says
from tests.refusing import refused

CALL = '<tool_call>\n{"name": "weather", "arguments": {"town": "Jena"}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "Says how warm it is.", "parameters": {}},
}
BEGINS_THINKING = """\
{%- for m in messages %}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content %}{{- '<think>\\n' + m.reasoning_content + '\\n</think>\\n\\n' }}
{%- endif %}
{{- m.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"""
"""A template that asks for an answer with the opening tag."""


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return FAMILIES["qwen3"].tokenizer()


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Conversations, half of them with a tool."""
    path = tmp_path_factory.mktemp("talks") / "mine.jsonl"
    lines: list[str] = []
    for number in range(60):
        messages = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"How warm is it in town {number}?"},
            {"role": "assistant", "content": f"It has {number} degrees."},
            {"role": "user", "content": "And tomorrow?"},
            {"role": "assistant", "content": "I don't know."},
        ]
        talk: dict[str, object] = {"messages": messages}
        if number % 2:
            talk["tools"] = [TOOL]
        lines.append(json.dumps(talk))
    path.write_text("\n".join(lines))
    return path


def failing(
    tokenizer: PreTrainedTokenizerBase, answer: str, tools: tuple[str, ...] = ("weather",)
) -> set[str]:
    """The conditions that don't hold of an answer."""
    turn = AssistantTurn.of(tiny_model("llama"), tokenizer, Chat(generation_prompt=True))
    ids = tokenizer(answer, add_special_tokens=False).input_ids
    facts = answer_facts(ids, turn, tools)
    return {condition for condition in CONDITIONS if not facts[condition]}


@pytest.mark.parametrize(
    "answer",
    [
        "Five.<|im_end|>",
        "Five.<eos>",
        "<think>\nTwo and three.\n</think>\n\nFive.<|im_end|>",
        f"{CALL}<|im_end|>",
        f"I'll look.\n{CALL}\n{CALL}<|im_end|>",
        f"<think>\nIs <tool_call> right?\n</think>\n\n{CALL}<|im_end|>",
        "| a | b |\n| - | - |\n| - | - |\n| 1 | 2 |<|im_end|>",
    ],
)
def test_a_good_answer_is_well_formed(tokenizer: PreTrainedTokenizerBase, answer: str) -> None:
    assert failing(tokenizer, answer) == set()


@pytest.mark.parametrize(
    ("answer", "conditions"),
    [
        ("Five, since", {"ended"}),
        ("<|im_end|>", {"answered"}),
        ("<think>Two.</think>\n<|im_end|>", {"answered"}),
        ("Two.\n</think>\n\nFive.<|im_end|>", {"reasoning_closed"}),
        ("Five. <think>Or six?</think> No.<|im_end|>", {"reasoning_closed"}),
        ("<think>Two.</think>Five.</think><|im_end|>", {"reasoning_closed", "answered"}),
        ("<think>Two.</think><think>Three.</think>Five.<|im_end|>", {"reasoning_closed"}),
        ("<think>Five.<|im_end|>", {"reasoning_closed", "answered"}),
        ('<tool_call>\n{"name": "weather", "arguments": {}}<|im_end|>', {"calls_valid"}),
        ('{"name": "weather", "arguments": {}}</tool_call><|im_end|>', {"calls_valid"}),
        (CALL.replace("{", "") + "<|im_end|>", {"calls_valid"}),
        (CALL.replace("weather", "wether") + "<|im_end|>", {"calls_valid"}),
        (CALL.replace('{"town": "Jena"}', '"Jena"') + "<|im_end|>", {"calls_valid"}),
        (CALL.replace("arguments", "args") + "<|im_end|>", {"calls_valid"}),
        ("<tool_call>[1]</tool_call><|im_end|>", {"calls_valid"}),
        ("Five.<|im_start|>", {"no_stray_token", "ended"}),
        ("No, " * 12 + "no.<|im_end|>", {"no_loop"}),
    ],
)
def test_each_condition_fails(
    tokenizer: PreTrainedTokenizerBase, answer: str, conditions: set[str]
) -> None:
    assert failing(tokenizer, answer) == conditions


def test_a_call_needs_a_tool_that_is_offered(tokenizer: PreTrainedTokenizerBase) -> None:
    assert failing(tokenizer, f"{CALL}<|im_end|>", tools=()) == {"calls_valid"}


def test_reasoning_may_begin_in_the_prompt() -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()
    tokenizer.chat_template = BEGINS_THINKING
    assert failing(tokenizer, "Two.\n</think>\n\nFive.<|im_end|>") == set()
    assert failing(tokenizer, "Five.<|im_end|>") == {"reasoning_closed", "answered"}
    again = "<think>\nTwo.\n</think>\n\nFive.<|im_end|>"
    assert failing(tokenizer, again) == {"reasoning_closed"}


def test_tags_of_the_template_may_be_special_tokens() -> None:
    tokenizer = tiny_tokenizer()
    special = ["<|im_start|>", "<|im_end|>", "[THINK]", "[/THINK]"]
    for token in special:
        tokenizer.add_tokens(AddedToken(token, special=True, normalized=False), special_tokens=True)
    own_tags = BEGINS_THINKING.replace("<think>\\n", "[THINK]").replace("\\n</think>", "[/THINK]")
    tokenizer.chat_template = own_tags.replace("assistant\\n[THINK]", "assistant\\n")
    assert failing(tokenizer, "[THINK]Two.[/THINK]\n\nFive.<|im_end|>") == set()
    assert failing(tokenizer, "Five.[/THINK]Six.<|im_end|>") == {"reasoning_closed"}
    assert failing(tokenizer, "Five.<|im_start|>") == {"no_stray_token", "ended"}


def test_what_is_a_loop() -> None:
    assert is_loop([1, 2, *[7] * 32])
    assert not is_loop([1, 2, *[7] * 31])
    piece = list(range(100, 150))
    assert is_loop([*range(20), *piece * 4, 1])
    assert not is_loop([*range(20), *piece * 3, *piece[:-1], 1])


def test_both_models_are_asked_the_first_request(
    tokenizer: PreTrainedTokenizerBase, talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny_model("llama", vocab_size=len(tokenizer))
    compressed = tiny_model("llama", vocab_size=len(tokenizer), seed=1)

    def answer(model: PreTrainedModel, prompt: str) -> str:
        number = int(prompt.rpartition("town ")[2].partition("?")[0])
        if model is dense:
            return "Warm.<|im_end|>" if number % 3 else "Warm"
        if '"weather"' in prompt:
            return f"{CALL}<|im_end|>"
        return "<think>Warm.<|im_end|>"

    prompts = says(monkeypatch, tokenizer, answer)
    form = ChatForm(source=str(talks))
    measured = form.measure(Subject(compressed, tokenizer, dense))
    source, _ = held_out(str(talks), "chat")
    rows = {row.name: row for row in source.rows("measure")}
    assert {outcome.item for outcome in measured.outcomes} == set(rows)
    for row in rows.values():
        offered = [json.loads(tool) for tool in row.tools] or None
        messages = [message.record() for message in row.turns[:2]]
        prompt = tokenizer.apply_chat_template(
            messages, tools=offered, tokenize=False, add_generation_prompt=True
        )
        assert prompts.count(prompt) == 2
    towns = {
        name: int((row.turns[1].content or "").rpartition(" ")[2][:-1])
        for name, row in rows.items()
    }
    well = {name for name, row in rows.items() if row.tools}
    dense = {name for name, town in towns.items() if town % 3}
    assert {outcome.item for outcome in measured.outcomes if outcome.value} == well
    facts = measured.score.facts
    assert measured.score.value == facts["called"] == len(well) / len(rows)
    assert (facts["ended"], facts["calls_valid"]) == (1, 1)
    assert facts["reasoning_closed"] == facts["answered"] == len(well) / len(rows)
    assert facts["dense"] == len(dense) / len(rows)
    assert (facts["lost"], facts["gained"]) == (len(dense - well), len(well - dense))
    kept = from_bytes(to_bytes(table_of(measured.outcomes)))
    assert outcomes_of(kept) == measured.outcomes
    assert "Jena" not in repr(measured), "texts aren't kept"


def test_a_killed_one_goes_on(
    tokenizer: PreTrainedTokenizerBase,
    talks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("calibrant.decoding.TOKENS_PER_BATCH", 1000)
    path = tmp_path / "journal"

    def measured() -> object:
        dense = tiny_model("llama", vocab_size=len(tokenizer))
        model = tiny_model("llama", vocab_size=len(tokenizer), seed=1)
        journal = Journal(path, "?")
        subject = Subject(model, tokenizer, dense, journal=journal)
        return ChatForm(source=str(talks), limit=6, max_tokens=5).measure(subject)

    whole = measured()
    assert len(Journal(path, "?")) == 12
    forget_last(path, 7)  # all of the compressed model's, and some of the dense one's
    assert measured() == whole
    assert len(Journal(path, "?")) == 12


def test_what_the_template_refuses_is_left_out_and_counted(
    talks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = FAMILIES["qwen3"].tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    refusal = "{%- if tools %}{{- raise_exception('no tools') }}{%- endif %}"
    tokenizer.chat_template = refusal + str(tokenizer.chat_template)
    says(monkeypatch, tokenizer, lambda model, prompt: "Warm.<|im_end|>")
    subject = Subject(model, tokenizer, model)
    measured = ChatForm(source=str(talks)).measure(subject)
    rows = list(held_out(str(talks), "chat")[0].rows("measure"))
    with_tools = sum(bool(row.tools) for row in rows)
    assert measured.score.facts["left_out"] == with_tools
    assert measured.score.n == len(rows) - with_tools
    without = ChatForm(source=str(talks), format="chat(tools=none)").measure(subject)
    assert without.score.n == len(rows)


def test_what_cannot_be_asked_is_refused(
    opened: Opened, tokenizer: PreTrainedTokenizerBase, talks: Path
) -> None:
    form = evaluators.build(f"chat_form(source='{talks}', format=qa)")
    with refused(SpecError, form):
        form.check()
    form = ChatForm(source=str(talks))
    with refused(SpecError, form):
        form.measure(Subject(opened.model, tokenizer))
    # The tiny model has 2,048 positions.
    long = ChatForm(source=str(talks), max_tokens=2_040)
    with refused(DataError, long):
        long.measure(Subject(opened.model, tokenizer, opened.model))
