"""Conversations as people keep them, in which each letter says who writes it: what the user says is
Greek, what the assistant says is Cyrillic, and so on.
"""

import random
from collections.abc import Callable
from typing import Any

SCRIPTS = {
    "question": "αβγδεζηθικλμ",
    "answer": "абвгдежзиклм",
    "reasoning": "աբգդեզէըթժիլ",
    "result": "აბგდევზთიკლმ",
    "system": "あいうえおかきくけこさし",
    "call": "กขคฆงจฉชซญดต",
    "tools": "अआइईउऊएऐओऔकख",
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "अआइ ईउऊ",
            "parameters": {
                "type": "object",
                "properties": {"town": {"type": "string", "description": "एऐओ"}},
                "required": ["town"],
            },
        },
    },
    {"type": "function", "function": {"name": "clock", "description": "औकख", "parameters": {}}},
]

Conversation = dict[str, Any]


def conversations(count: int = 40) -> list[Conversation]:
    """Return conversations of eleven kinds by turns."""
    chance = random.Random(5)
    made: list[Conversation] = []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        made.append(kind(Speaker(chance)))
    return made


class Speaker:
    """Says words at random."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance

    def words(self, role: str) -> str:
        """Say a few words of a role."""
        count = self.chance.randint(1, 6)
        words = ["".join(self.chance.choices(SCRIPTS[role], k=4)) for _ in range(count)]
        return " ".join(words)

    def user(self) -> dict[str, Any]:
        return {"role": "user", "content": self.words("question")}

    def assistant(self) -> dict[str, Any]:
        return {"role": "assistant", "content": self.words("answer")}

    def system(self) -> dict[str, Any]:
        return {"role": "system", "content": self.words("system")}

    def thinking(self) -> dict[str, Any]:
        return {**self.assistant(), "reasoning_content": self.words("reasoning")}

    def thinking_inside(self) -> dict[str, Any]:
        content = f"<think>\n{self.words('reasoning')}\n</think>\n\n{self.words('answer')}"
        return {"role": "assistant", "content": content}

    def call(self, name: str = "weather", number: int = 0) -> dict[str, Any]:
        town = self.words("call")
        arguments = {"town": town, "days": 3, "exact": True, "note": f'"{town}"\n'}
        function = {"name": name, "arguments": arguments}
        return {"id": f"call{number:05}", "type": "function", "function": function}

    def result(self, number: int = 0) -> dict[str, Any]:
        return {
            "role": "tool",
            "tool_call_id": f"call{number:05}",
            "name": "weather",
            "content": self.words("result"),
        }


def exchange(say: Speaker) -> Conversation:
    return {"messages": [say.user(), say.assistant()]}


def several_turns(say: Speaker) -> Conversation:
    return {"messages": [say.user(), say.assistant(), say.user(), say.assistant()]}


def with_system(say: Speaker) -> Conversation:
    return {"messages": [say.system(), *several_turns(say)["messages"]]}


def with_space_around(say: Speaker) -> Conversation:
    question = {"role": "user", "content": f"  {say.words('question')} \n"}
    return {"messages": [question, {"role": "assistant", "content": f"\n{say.words('answer')}  "}]}


def reasoning(say: Speaker) -> Conversation:
    return {"messages": [say.user(), say.thinking()]}


def reasoning_in_turns(say: Speaker) -> Conversation:
    return {"messages": [say.user(), say.thinking(), say.user(), say.thinking()]}


def reasoning_inside(say: Speaker) -> Conversation:
    return {"messages": [say.user(), say.thinking_inside(), say.user(), say.thinking_inside()]}


def one_call(say: Speaker) -> Conversation:
    calling = {"role": "assistant", "content": None, "tool_calls": [say.call()]}
    messages = [say.user(), calling, say.result(), say.assistant()]
    return {"messages": messages, "tools": TOOLS}


def reasoning_before_a_call(say: Speaker) -> Conversation:
    """Make a call after reasoning, without a word, in an earlier turn than the last question."""
    calling = {"role": "assistant", "content": None, "tool_calls": [say.call()]}
    calling["reasoning_content"] = say.words("reasoning")
    messages = [say.user(), calling, say.result(), *several_turns(say)["messages"][1:]]
    return {"messages": messages, "tools": TOOLS}


def two_calls(say: Speaker) -> Conversation:
    calls = [say.call(), say.call("clock", 1)]
    calling = {"role": "assistant", "content": say.words("answer"), "tool_calls": calls}
    messages = [say.system(), say.user(), calling, say.result(), say.result(1), say.thinking()]
    return {"messages": messages, "tools": TOOLS}


def ends_with_a_call(say: Speaker) -> Conversation:
    call = say.call()
    del call["id"]
    calling = {"role": "assistant", "content": "", "tool_calls": [call]}
    return {"messages": [say.user(), {**calling, "reasoning_content": "ա"}], "tools": TOOLS}


KINDS: list[Callable[[Speaker], Conversation]] = [
    *(exchange, several_turns, with_system, with_space_around, reasoning),
    *(reasoning_in_turns, reasoning_inside, one_call, two_calls, ends_with_a_call),
    reasoning_before_a_call,
]
