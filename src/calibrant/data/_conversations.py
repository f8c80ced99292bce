"""Reads conversations in the forms that are in use: OpenAI's messages, ShareGPT's, and those of
sets for function calling.
"""

import ast
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from calibrant.data._files import short
from calibrant.data._messages import Conversation, FunctionCall, Message, read_object

_FORM: Final = "a list of turns such as {'role': 'user', 'content': …}"
_CALL_FORM: Final = "calls such as {'name': 'weather', 'arguments': {'town': 'Jena'}}"
_ROLES: Final[Mapping[str, str]] = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""What speakers are called elsewhere, and their role here."""
_CALLERS: Final = ("function_call", "tool_call")
"""Speakers of ShareGPT whose text is a call."""
_REASONING: Final = ("reasoning_content", "reasoning", "thinking")
_TEXT_PARTS: Final = ("text", "input_text", "output_text")
_MEDIA: Final[Mapping[str, str]] = {
    "image": "an image",
    "image_url": "an image",
    "input_image": "an image",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
    "video": "a video",
    "video_url": "a video",
}
"""Parts of a message that are no text, and columns beside messages."""
_LISTED: Final = re.compile(r"<tools>(.*?)</tools>", re.DOTALL)
_CALLED: Final = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ANSWERED: Final = re.compile(r"\s*<tool_response>(.*)</tool_response>\s*", re.DOTALL)
_BETWEEN_RESULTS: Final = re.compile(r"</tool_response>\s*<tool_response>")
_LONGEST_LITERAL: Final = 200_000
"""Letters of functions or calls in Python's notation: its reader takes some hundred times as much
memory.
"""


def is_conversation(value: Any) -> bool:
    """Return whether this is a list of messages, each of a speaker, whatever they hold."""
    if not isinstance(value, list) or not value:
        return False
    for turn in value:
        if not isinstance(turn, Mapping) or not {"role", "from"} & turn.keys():
            return False
    return True


def read_messages(value: Any) -> tuple[Message, ...] | None:
    """Return a list of messages; None if one of them says nothing.

    A message of the system or the developer without a word is left out, and the empty result of a
    tool is a result.
    `ValueError` says what the list must be.
    """
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        raise ValueError(_FORM)
    messages: list[Message] = []
    for turn in value:
        message = _message(turn)
        if message.said.strip():
            messages.append(message)
        elif message.role == "tool":
            messages.append(replace(message, content=message.content or ""))
        elif message.role not in ("system", "developer"):
            return None
    return tuple(messages)


def read_exchanges(value: Any) -> tuple[Message, ...]:
    """Return earlier exchanges, each a list of what is said and what is answered, as messages.
    `ValueError` says what they must be.
    """
    form = "a list of exchanges such as ['How warm is it?', 'It has 20 degrees.']"
    messages: list[Message] = []
    for exchange in _listed(value, form):
        if not isinstance(exchange, list) or len(exchange) != 2:
            raise ValueError(form)
        for role, said in zip(("user", "assistant"), exchange, strict=True):
            if not isinstance(said, str):
                raise ValueError(form)
            messages.append(Message(role, encodable(said)))
    return tuple(messages)


def read_tools(value: Any) -> tuple[str, ...]:
    """Return the functions that are offered, each as the text of an object; of a list, or of the
    text of one. `ValueError` says what it must be.
    """
    tools: list[str] = []
    for tool in _listed(value, "a list of functions with a name"):
        if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
            described = dict(tool)
        elif isinstance(tool, Mapping) and isinstance(tool.get("name"), str):
            described = {"type": "function", "function": _with_schema(tool)}
        else:
            raise ValueError(f"a list of functions with a name, and holds {short(tool)}")
        tools.append(_json(described))
    return tuple(tools)


def read_calls(value: Any) -> tuple[FunctionCall, ...]:
    """Return the calls of a list, of one alone, or of the text of either. `ValueError` says what it
    must be.
    """
    if isinstance(value, Mapping):
        value = [value]
    calls: list[FunctionCall] = []
    for entry in _listed(value, _CALL_FORM):
        if not isinstance(entry, Mapping):
            raise ValueError(f"{_CALL_FORM}, and holds {short(entry)}")
        calls.append(_call(entry))
    return tuple(calls)


def _call(entry: Mapping[str, Any]) -> FunctionCall:
    function = entry.get("function")
    if not isinstance(function, Mapping):
        function = entry
    name = function.get("name")
    arguments = function.get("arguments", function.get("parameters"))
    if not isinstance(name, str) or not isinstance(arguments, Mapping | str | None):
        raise ValueError(f"{_CALL_FORM}, and holds {short(entry)}")
    call_id = entry.get("id")
    if not isinstance(call_id, str):
        call_id = ""
    # A text that is no object in JSON stays as it is.
    if isinstance(arguments, str):
        arguments = read_object(arguments)
    if isinstance(arguments, str):
        arguments_text = encodable(arguments)
    else:
        arguments_text = _json(dict(arguments or {}))
    return FunctionCall(encodable(name), arguments_text, call_id)


def calls_text(calls: Iterable[FunctionCall]) -> str:
    """Return calls as the text of a list, for formats that show an answer as text."""
    return _json([call.record()["function"] for call in calls])


def conversation_of(
    messages: Sequence[Message], tools: Sequence[str] = (), system: str = ""
) -> Conversation:
    """Return messages with what stands beside them in a record.

    Where the system's message lists the functions as Hermes does, they become tools, and that
    message goes, since the template writes its own. Calls and results in tags become what they are.
    """
    offered = tuple(tools)
    if messages and messages[0].role == "system":
        listed = _functions_listed(messages[0].content or "")
        if listed:
            offered = offered or listed
            messages = _untagged(messages[1:])
    elif system:
        messages = [Message("system", system), *messages]
    return Conversation(tuple(messages), offered)


def check_words_alone(record: Mapping[str, Any]) -> None:
    """Raise `ValueError` where images or sound stand in columns beside the messages."""
    for column, value in record.items():
        kind = column.casefold().removesuffix("s")
        # A set of texts with a column for images has no image in most rows.
        if kind in _MEDIA and value is not None and value not in ([], ""):
            raise ValueError(_no_media(_MEDIA[kind], column))


def first_exchange(messages: Iterable[Message]) -> tuple[str | None, str | None]:
    """Return the first thing that a user says and what the assistant answers, a call as its
    text.
    """
    question = None
    for message in messages:
        if message.role == "user" and question is None:
            question = message.content
        elif message.role == "assistant" and question is not None:
            if message.content:
                return question, message.content
            if message.calls:
                return question, calls_text(message.calls)
    return question, None


def encodable(text: str) -> str:
    """Return the text, unless half of a surrogate pair is in it, which stands for no character
    and which no tokenizer takes.
    """
    try:
        if not text.isascii():
            text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"text without half surrogates such as {text[error.start]!r}") from error
    return text


def _message(turn: Mapping[str, Any]) -> Message:
    speaker = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    reasoning = ""
    if isinstance(content, list):
        content, reasoning = _joined_parts(content)
    if not isinstance(speaker, str) or not isinstance(content, str | None):
        raise ValueError(f"{_FORM}, and holds {short(dict(turn))}")
    role = _ROLES.get(speaker.casefold(), encodable(speaker))
    calls = _calls_of(turn)
    if content is not None:
        content = encodable(content)
        if speaker.casefold() in _CALLERS:
            calls = _calls_in(content)
            if calls:
                content = None
    return Message(
        role,
        content,
        reasoning=_reasoning_of(turn) or reasoning,
        calls=calls,
        call_id=_text_in(turn, "tool_call_id"),
        name=_text_in(turn, "name"),
    )


def _joined_parts(parts: list[Any]) -> tuple[str, str]:
    """Return the texts of a message of several parts, and its reasoning."""
    texts: list[str] = []
    thoughts: list[str] = []
    for part in parts:
        kind = None
        if isinstance(part, Mapping):
            kind = part.get("type")
        if kind in _TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "thinking" and isinstance(part.get("thinking"), str):
            thoughts.append(encodable(part["thinking"]))
        elif kind in _MEDIA:
            raise ValueError(_no_media(_MEDIA[str(kind)], str(kind)))
        else:
            raise ValueError(f"{_FORM}, and holds {short(part)}")
    return "\n".join(texts), "\n".join(thoughts)


def _no_media(kind: str, name: str) -> str:
    return (
        f"words alone, and holds {kind} ({name!r}), which isn't read: leave such rows out, or give "
        "a text in its place"
    )


def _reasoning_of(turn: Mapping[str, Any]) -> str:
    for name in _REASONING:
        reasoning = _text_in(turn, name)
        if reasoning.strip():
            return reasoning
    return ""


def _calls_of(turn: Mapping[str, Any]) -> tuple[FunctionCall, ...]:
    # A table gives every message every column, most of them empty. OpenAI's first form has one call
    # in `function_call`.
    for name in ("tool_calls", "function_call"):
        if turn.get(name):
            return read_calls(turn[name])
    return ()


def _calls_in(text: str) -> tuple[FunctionCall, ...]:
    """Return the calls that a text is; nothing where it is none."""
    try:
        return read_calls(text)
    except ValueError:
        return ()


def _functions_listed(text: str) -> tuple[str, ...]:
    """Return the functions between the tags of a system's message; nothing where they can't be
    read.
    """
    found = _LISTED.search(text)
    # Hermes explains its tags in the same message, with an empty pair.
    while found and not found[1].strip():
        found = _LISTED.search(text, found.end())
    if not found:
        return ()
    listed = found[1].strip()
    if not listed.startswith("["):
        # One function a line.
        listed = f"[{','.join(listed.splitlines())}]"
    try:
        return read_tools(listed)
    except ValueError:
        return ()


def _untagged(messages: Iterable[Message]) -> list[Message]:
    """Return messages with what stands in tags as what it is: calls, and a message a result."""
    untagged: list[Message] = []
    for message in messages:
        if message.role == "tool":
            untagged += _results_apart(message)
        else:
            untagged.append(without_tags(message))
    return untagged


def _results_apart(message: Message) -> list[Message]:
    """Return a message for each result that stands in tags; the message itself where more is in it.

    Hermes answers several calls in one message, and templates take one for each.
    """
    found = _ANSWERED.fullmatch(message.content or "")
    if not found:
        return [message]
    results = _BETWEEN_RESULTS.split(found[1])
    return [replace(message, content=result.strip()) for result in results]


def without_tags(message: Message) -> Message:
    """Return an assistant's message with the calls that stand in tags taken out of its text."""
    if message.role != "assistant" or message.calls:
        return message
    content = message.content or ""
    calls: list[FunctionCall] = []
    for written in _CALLED.findall(content):
        read = _calls_in(written.strip())
        # A call that can't be read stays as it is written, with all others.
        if not read:
            return message
        calls += read
    if not calls:
        return message
    rest = _CALLED.sub("", content).strip()
    return replace(message, content=rest or None, calls=tuple(calls))


def _with_schema(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function whose parameters are a schema, as templates expect: xLAM has the bare
    properties.
    """
    function = dict(tool)
    parameters = function.get("parameters")
    if isinstance(parameters, Mapping) and not _is_schema(parameters):
        function["parameters"] = {"type": "object", "properties": dict(parameters)}
    return function


def _is_schema(parameters: Mapping[str, Any]) -> bool:
    """Return whether these are a schema and not bare properties, one of which may be called `type`
    or `properties`.
    """
    kind = parameters.get("type")
    properties = parameters.get("properties")
    if isinstance(kind, str | list):
        return True
    if isinstance(kind, Mapping) or not isinstance(properties, Mapping):
        return False
    # What describes one parameter has texts in it; the properties of a schema are schemas.
    return all(isinstance(entry, Mapping | bool) for entry in properties.values())


def _listed(value: Any, form: str) -> list[Any]:
    """Return a list, or that which a text is."""
    if isinstance(value, str):
        try:
            value = _value_of(value)
        except ValueError as error:
            raise ValueError(f"{form}, in {error}") from error
        if isinstance(value, Mapping):
            value = [value]
    if not isinstance(value, list):
        raise ValueError(form)
    return value


def _value_of(text: str) -> Any:
    """Return what a text in JSON says, or one in Python's notation, which sets for function calling
    have too: `{'name': 'weather'}`. `ValueError` says which notation it must have.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if len(text) > _LONGEST_LITERAL:
            most = f"{_LONGEST_LITERAL:,} letters"
            raise ValueError(f"JSON where it has more than {most}") from None
    try:
        with warnings.catch_warnings():
            # Python warns of escapes that it doesn't know, such as "\\d".
            warnings.simplefilter("ignore")
            # This reads numbers, texts, lists and the like, and runs nothing.
            return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError("JSON") from error


def _json(value: Any) -> str:
    """Return the text of an object; `ValueError` for what JSON doesn't have, such as a date."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("what JSON has: texts, numbers, lists and objects") from error
    return encodable(text)


def _text_in(turn: Mapping[str, Any], name: str) -> str:
    value = turn.get(name)
    if not isinstance(value, str):
        return ""
    return encodable(value)
