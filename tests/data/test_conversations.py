"""Conversations in the forms in which people keep them are read as the same messages, and none is
lost without a word.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import polars
import pytest

from calibrant.data import FunctionCall, Message, Row, as_source
from calibrant.data._conversations import read_calls, read_tools
from calibrant.data.objects import record
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How warm it is.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
CALL = {"name": "weather", "arguments": {"town": "Jena"}}
ASKED = Message("user", "How warm is Jena?")
CALLED = Message("assistant", calls=(FunctionCall("weather", '{"town": "Jena"}'),))
TOLD = Message("tool", '{"warm": 20}')
SAID = Message("assistant", "It has 20 degrees.")
HERMES = f"You call functions. In <tools> </tools> they are: <tools>\n{json.dumps(TOOL)}\n</tools>"

FORMS: dict[str, dict[str, Any]] = {
    "OpenAI": {
        "messages": [
            {"role": "user", "content": "How warm is Jena?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {**CALL, "arguments": '{"town":"Jena"}'}}
                ],
            },
            {"role": "tool", "content": '{"warm": 20}'},
            {"role": "assistant", "content": "It has 20 degrees.", "tool_calls": None},
        ],
        "tools": [TOOL],
    },
    "OpenAI's first": {
        "messages": [
            {"role": "user", "content": "How warm is Jena?"},
            {"role": "assistant", "content": None, "function_call": CALL},
            {"role": "function", "content": '{"warm": 20}'},
            {"role": "assistant", "content": "It has 20 degrees."},
        ],
        "functions": [TOOL["function"]],
    },
    "ShareGPT": {
        "conversations": [
            {"from": "human", "value": "How warm is Jena?"},
            {"from": "function_call", "value": json.dumps(CALL)},
            {"from": "observation", "value": '{"warm": 20}'},
            {"from": "gpt", "value": "It has 20 degrees."},
        ],
        "system": "",
        "tools": json.dumps([TOOL]),
    },
    "Hermes": {
        "conversations": [
            {"from": "system", "value": HERMES},
            {"from": "human", "value": "How warm is Jena?"},
            {"from": "gpt", "value": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>"},
            {"from": "tool", "value": '<tool_response>\n{"warm": 20}\n</tool_response>'},
            {"from": "gpt", "value": "It has 20 degrees."},
        ],
    },
    "Hermes in Python's notation": {
        "conversations": [
            {"from": "system", "value": f"<tools>\n{[TOOL]}\n</tools>"},
            {"from": "human", "value": "How warm is Jena?"},
            {"from": "gpt", "value": f"<tool_call>\n{CALL}\n</tool_call>\n"},
            {"from": "tool", "value": '<tool_response>\n{"warm": 20}\n</tool_response>\n'},
            {"from": "gpt", "value": "It has 20 degrees."},
        ],
    },
}


def read(*records: Any) -> list[Row]:
    return list(as_source(list(records)).rows("calibrate"))


def test_results_in_one_message_are_a_message_each() -> None:
    results = '<tool_response>\n{"warm": 20}\n</tool_response>'
    record = {
        "conversations": [
            {"from": "system", "value": HERMES},
            {"from": "human", "value": "How warm is Jena?"},
            {"from": "gpt", "value": f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>\n" * 2},
            {"from": "tool", "value": f"{results}\n{results}\n"},
            {"from": "gpt", "value": "It has 20 degrees."},
        ]
    }
    (row,) = read(record)
    assert row.turns == (ASKED, replace(CALLED, calls=CALLED.calls * 2), TOLD, TOLD, SAID)


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_read_as_the_same_conversation(form: str, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl"
    path.write_text(json.dumps(FORMS[form]) + "\n")
    parts = UserFile(str(path)).read().rows
    from_file = [row for part in parts.values() for row in part]
    for (row,) in (read(FORMS[form]), from_file):
        assert row.turns == (ASKED, CALLED, TOLD, SAID)
        assert [json.loads(tool) for tool in row.tools] == [TOOL]
        assert row.question == "How warm is Jena?"
        assert json.loads(row.answer or "") == [CALL]


@pytest.mark.parametrize(
    "written",
    [
        "weather(town='Jena')",
        "{'name': 'weather', 'arguments': {'town': b'Jena'}}",
        "{'name': 'weather', 'arguments': {('a', 'b'): 1}}",
        "{'name': 'weather', 'arguments': {{}: 1}}",
        "[" * 50_000,
        "-" * 50_000 + "1",
        "1" + "+1" * 50_000,
        "{'name': 'weather', 'arguments': {'town': '" + "a" * 300_000 + "'}}",
        "\x00",
        "\ud800",
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_call_in_any_notation_is_none(written: str) -> None:
    with pytest.raises(ValueError, match=r"calls such as|surrogates|what JSON has"):
        read_calls(written)


def test_it_says_how_long_calls_in_pythons_notation_may_be() -> None:
    with pytest.raises(ValueError, match="200,000"):
        read_calls(f"[{{'name': 'weather', 'arguments': {{'town': '{'a' * 200_000}'}}}}]")


def test_columns_for_function_calling_are_a_conversation() -> None:
    xlam = {
        "query": "How warm is Jena?",
        "answers": json.dumps([CALL]),
        "tools": json.dumps(
            [
                {
                    "name": "weather",
                    "description": "How warm it is.",
                    "parameters": {"town": {"type": "string"}},
                }
            ]
        ),
    }
    (row,) = read(xlam)
    assert row.turns == (ASKED, CALLED)
    assert [json.loads(tool) for tool in row.tools] == [TOOL]


TWO_FUNCTIONS = [
    {
        "messages": [
            {"role": "user", "content": f"Call {name}."},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"type": "function", "function": {"name": name, "arguments": {given: "Jena"}}}
                ],
            },
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "parameters": {"type": "object", "properties": {given: {"type": "string"}}},
                },
            }
        ],
    }
    for name, given in (("weather", "town"), ("clock", "zone"))
]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "Dataset", "IterableDataset", "polars"])
def test_a_call_has_its_own_arguments_alone_in_a_table_that_has_those_of_all(
    kind: str, tmp_path: Path
) -> None:
    table: Any = datasets.Dataset.from_list(TWO_FUNCTIONS)
    # In the table itself each call has the arguments of both functions.
    assert "'zone': None" in str(table[0])
    if kind == "parquet":
        table.to_parquet(tmp_path / "calls.parquet")
        table = tmp_path / "calls.parquet"
    elif kind == "arrow":
        table.save_to_disk(str(tmp_path / "calls"))
        table = tmp_path / "calls"
    elif kind == "IterableDataset":
        table = table.to_iterable_dataset()
    elif kind == "polars":
        table = polars.DataFrame(TWO_FUNCTIONS)
    assert rows_of(as_source(table)) == rows_of(as_source(TWO_FUNCTIONS))


def test_an_argument_that_is_null_in_json_stays() -> None:
    call = {"name": "weather", "arguments": {"town": None}}
    (row,) = read({"query": "How warm is it?", "answers": [call]})
    assert row.turns[1].calls[0].arguments == '{"town": null}'
    table = datasets.Dataset.from_list([{"query": "Is it warm?", "answers": json.dumps([call])}])
    (row,) = rows_of(as_source(table))
    assert row.turns[1].calls[0].arguments == '{"town": null}'


def rows_of(source: Any) -> set[Row]:
    """Return all stored rows of a source, in whatever part they are."""
    rows: set[Row] = set()
    for part in source.read().rows.values():
        rows.update(part)
    return rows


PARAMETERS = {
    "a parameter called type": ({"type": {"type": "str"}, "limit": {"type": "int"}}, True),
    "a parameter called properties": ({"properties": {"type": "str", "description": ""}}, True),
    "both": ({"type": {"type": "str"}, "properties": {"type": "str"}}, True),
    "a schema": ({"type": "object", "properties": {"town": {"type": "string"}}}, False),
    "of several types": ({"type": ["object", "null"]}, False),
    "without its type": ({"properties": {"type": {"type": "string"}}}, False),
    "of nothing": ({"properties": {}}, False),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters_are_a_schema_whatever_they_are_called(kind: str) -> None:
    parameters, are_bare = PARAMETERS[kind]
    (tool,) = read_tools([{"name": "search", "parameters": parameters}])
    wanted = dict(parameters)
    if are_bare:
        wanted = {"type": "object", "properties": parameters}
    assert json.loads(tool)["function"]["parameters"] == wanted


def test_what_an_instruction_is_about_is_a_part_of_the_question() -> None:
    rows = read(
        {"instruction": "Translate.", "input": "Hallo", "output": "Hello"},
        {"instruction": "Sing.", "input": "", "output": "La"},
    )
    assert {row.question for row in rows} == {"Translate.\n\nHallo", "Sing."}
    assert all(not row.turns for row in rows)


@pytest.mark.parametrize("name", ["context", "passage"])
def test_the_passage_that_a_question_is_about_is_a_part_of_it(name: str) -> None:
    rows = read(
        {"instruction": "Who sings?", name: "Ada sings.", "response": "Ada"},
        {"instruction": "Sing.", name: "", "response": "La"},
    )
    assert {row.question for row in rows} == {"Who sings?\n\nAda sings.", "Sing."}
    assert all(not row.turns for row in rows)
    squad = {"question": "Who sings?", name: "Ada sings.", "answers": {"text": ["Ada"]}}
    (row,) = read(squad)
    assert (row.question, row.answer) == ("Who sings?\n\nAda sings.", None)
    (row,) = read({name: "Ada sings.", "text": "A text."})
    assert (row.question, row.text) == (None, "A text.")


@pytest.mark.parametrize("name", ["system", "system_prompt"])
def test_a_system_prompt_beside_question_and_answer_is_the_first_turn(name: str) -> None:
    asked = Message("user", "6 * 7?")
    said = Message("assistant", "42")
    rows = read(
        {name: "Be brief.", "question": "6 * 7?", "response": 42},
        {name: "", "question": "6 * 7?", "response": 42},
        {name: "Be brief.", "question": "6 * 7?", "response": None},
    )
    assert {row.turns for row in rows} == {
        (Message("system", "Be brief."), asked, said),
        (asked, said),
    }
    assert {(row.question, row.answer) for row in rows} == {("6 * 7?", "42")}
    choices = {"question": "6 * 7?", "choices": ["41", "42"], "answer": "42"}
    (row,) = read({name: "Be brief.", **choices})
    assert (row.turns, row.answer) == ((), "B")


def test_a_history_is_the_turns_before_the_question() -> None:
    factory = {"instruction": "And 2 * 7?", "input": "", "output": "14", "system": "Be brief."}
    rows = read(
        {**factory, "history": [["6 * 7?", "42"], ["3 * 7?", "21"]]}, {**factory, "history": []}
    )
    asked = [Message("user", question) for question in ("6 * 7?", "3 * 7?", "And 2 * 7?")]
    said = [Message("assistant", answer) for answer in ("42", "21", "14")]
    system = Message("system", "Be brief.")
    assert {row.turns for row in rows} == {
        (system, asked[0], said[0], asked[1], said[1], asked[2], said[2]),
        (system, asked[2], said[2]),
    }
    assert {row.question for row in rows} == {"And 2 * 7?"}
    with pytest.raises(DataError, match="exchanges"):
        read({**factory, "history": [["6 * 7?", "42"]]}, {**factory, "history": [["alone"]]})


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_read_under_all_its_names(name: str) -> None:
    answer = {"role": "assistant", "content": "42", name: "6 times 7"}
    (row,) = read({"messages": [{"role": "user", "content": "6 * 7?"}, answer]})
    assert row.turns[1] == Message("assistant", "42", reasoning="6 times 7")
    parts = [{"type": "thinking", "thinking": "6 times 7"}, {"type": "text", "text": "42"}]
    (other,) = read(
        {
            "messages": [
                {"role": "user", "content": "6 * 7?"},
                {**answer, name: None, "content": parts},
            ]
        }
    )
    assert other == row


@pytest.mark.parametrize(
    ("content", "reasoning", "answer"),
    [
        ("<think>6 times 7", "6 times 7", ""),
        ("\n<think>\n6 times <think> 7\n", "6 times <think> 7", ""),
        ("Write <think> first.", "", "Write <think> first."),
        ("6 times 7</think>42", "6 times 7", "42"),
    ],
)
def test_reasoning_may_have_one_tag_alone(content: str, reasoning: str, answer: str) -> None:
    message = Message("assistant", content).with_reasoning_apart()
    assert (message.reasoning, message.content) == (reasoning, answer)
    assert Message("user", content).with_reasoning_apart().content == content


def test_a_system_prompt_stands_beside_the_messages_or_first_among_them() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    beside = {"system": "Be brief.", "messages": messages}
    first = {"messages": [{"role": "system", "content": "Be brief."}, *messages]}
    both = {"system": "Be long.", **first}
    assert read(beside) == read(first) == read(both)


def test_a_conversation_is_what_it_was_before_there_were_calls() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>"}]
    (row,) = read({"messages": messages})
    turns = '[["user", "Hi"], ["assistant", "<think>"]]'
    told = f'{{"answer": "<think>", "question": "Hi", "turns": {turns}}}'
    assert row.key == hashlib.sha256(told.encode()).hexdigest()


@pytest.mark.parametrize("form", FORMS)
def test_a_row_is_written_so_that_it_reads_back(form: str) -> None:
    (row,) = read(FORMS[form])
    (again,) = read(json.loads(json.dumps(record(row))))
    assert (again.key, again.turns, again.tools) == (row.key, row.turns, row.tools)
    thinking = Row(turns=(ASKED, Message("assistant", "20", "hm", name="b")), question="q")
    (again,) = read(record(thinking))
    assert again.turns == thinking.turns


def test_no_conversation_is_left_out_without_a_word() -> None:
    user = {"role": "user", "content": "Hi"}
    source = as_source(
        [
            {"messages": [user, {"role": "assistant", "content": "Hello"}]},
            {"messages": [user, {"role": "assistant", "content": " "}]},
            {"messages": [user]},
            {
                "messages": [
                    user,
                    {"role": "tool", "content": ""},
                    {"role": "assistant", "content": "a"},
                ]
            },
            {"messages": []},
        ]
    )
    assert len(list(source.rows("calibrate"))) == 2
    note = source.part("calibrate").note
    for counted in (
        "1 of 5 rows with a message that says nothing",
        "1 of 5 rows without an answer",
    ):
        assert counted in note


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "input_audio", "input_audio": {"data": ""}},
        {"type": "video", "video": "a.mp4"},
    ],
)
def test_images_and_sound_are_refused_by_name(
    part: dict[str, Any], jsonl: Callable[..., Path]
) -> None:
    content = [{"type": "text", "text": "What is this?"}, part]
    answer = {"role": "assistant", "content": "A cat."}
    talk = {"messages": [{"role": "user", "content": content}, answer]}
    with pytest.raises(DataError) as caught:
        UserFile(str(jsonl([talk])))
    assert repr(part["type"]) in str(caught.value)
    words = {"messages": [{"role": "user", "content": "<image> What?"}, answer]}
    with pytest.raises(DataError) as caught:
        as_source([{**words, "images": ["a.png"]}])
    assert "'images'" in str(caught.value)
    assert len(read({**words, "images": []}, {**words, "images": None})) == 1
    with pytest.raises(DataError, match=r"row 2 of data: .*'image': 'a.png'"):
        as_source([words, {"image": "a.png"}])


def test_arguments_with_a_number_that_is_none_are_refused_in_words() -> None:
    call = {"name": "weather", "arguments": '{"days": 1e999}'}
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(DataError, match="it must be what JSON has"):
        as_source([{"messages": talk}])
