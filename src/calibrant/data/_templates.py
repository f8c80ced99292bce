"""Puts conversations into a tokenizer's chat template.

A template is a program that came with the model, and may be broken in any way. jinja2's sandbox
keeps it from the machine, but not from running on: three nested loops are ten to the fifteenth
steps, and a product of a text and a number fills the memory. So each template first writes a short
conversation with its steps counted.

Many a template writes today's date. Here it is always the same day, or a set would have other
tokens tomorrow.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any, Final, cast, final

from jinja2 import TemplateError, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from calibrant.data._limits import LONGEST_MADE, TEMPLATE_STEPS
from calibrant.data._messages import Conversation, FunctionCall, Message
from calibrant.errors import DataError
from calibrant.spec.foreign import visible

FAULTS: Final = (
    ArithmeticError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a template's own arithmetic, look-ups and recursion raise, beside the errors that jinja2
has for it.
"""
_LETTERS_PER_STEP: Final = 100
"""How many letters that a template makes count as one step."""
_LARGE_NUMBER: Final = re.compile(r"\d{7}")
"""Seven digits in a row, as in `%9999999d`: a width above `LONGEST_MADE`."""
_FILTERS_WITH_SIZES: Final = (
    "center",
    "indent",
    "wordwrap",
    "format",
    "truncate",
    "batch",
    "slice",
)
"""Filters whose argument may say how long their result is to be."""
_TRIED: Final = (
    Conversation((Message("user", "a"), Message("assistant", "b"))),
    Conversation((Message("user", "a"),)),
    Conversation((Message("system", "a"), Message("user", "b"), Message("assistant", "c"))),
    Conversation(
        (
            Message("system", "a"),
            Message("user", "b"),
            Message("assistant", calls=(FunctionCall("c", '{"d": "e"}', "123456789"),)),
            Message("tool", "f", call_id="123456789", name="c"),
            Message("assistant", "g", reasoning="h"),
        ),
        ('{"type": "function", "function": {"name": "c", "description": "i", "parameters": {}}}',),
    ),
)
"""What a template writes to show that it comes to an end."""
TOLD_DATE: Final = datetime(2024, 7, 26)
"""What templates are told that today is. Those of Llama 3 and 4 name this day where they are told
none.
"""
_ASKS_THE_DATE: Final = "strftime_now"
"""The function by which templates ask for the date."""
_DATE_FIXED: Final = "{# The date is fixed. #}\n"
"""What makes a template another one for transformers, and writes nothing."""
_LONGEST_REASON: Final = 200
_BROKEN: Final = "use qa, or a tokenizer whose template works"
_REFUSED: Final = "leave such rows out, or calls of functions with chat(tools=none), or use qa"


@final
class EndlessError(TemplateError):
    """A template that goes on too long, or makes something too large."""


class RefusedError(DataError):
    """A conversation that a template doesn't write; `reason` is what the template says."""

    def __init__(self, message: str, *, subject: str, reason: str) -> None:
        super().__init__(message, subject=subject)
        self.reason = reason


def templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    subject: str = "chat",
    tools: Sequence[dict[str, Any]] | None = None,
    **options: Any,
) -> str:
    """Return the messages as the tokenizer's template writes them; `options` are the template's.

    Raises `RefusedError` if it refuses them or is broken, `DataError` if it goes on without end.
    """
    offered: list[Any] | None = None
    if tools is not None:
        offered = list(tools)
    try:
        special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
        template = str(tokenizer.get_chat_template(tools=offered))
        _check_halts(template, tuple(sorted(special.items())), tuple(sorted(options.items())))
        return str(
            tokenizer.apply_chat_template(
                list(messages),
                tools=offered,
                chat_template=with_fixed_date(template),
                tokenize=False,
                **options,
            )
        )
    except EndlessError as error:
        message = f"the model's chat template {error}; {_BROKEN}"
        raise DataError(message, subject=subject) from error
    except TemplateError as error:
        reason = _line(error)
        message = f"the model's chat template refuses a row: {reason}; {_REFUSED}"
        raise RefusedError(message, subject=subject, reason=reason) from error
    except FAULTS as error:
        reason = _line(error)
        message = f"the model's chat template is broken ({reason}); {_BROKEN}"
        raise RefusedError(message, subject=subject, reason=reason) from error


def with_fixed_date(template: str) -> str:
    """Return the template under a name of its own, under which it is told that today is
    `TOLD_DATE`; one that doesn't ask for the date as it is.
    """
    if _ASKS_THE_DATE not in template:
        return template
    marked = _DATE_FIXED + template
    # transformers takes no function among a template's variables, but compiles each template once:
    # this one is ours, and whoever uses the tokenizer's own is told the day that it is.
    compiled = cast(Any, chat_template_utils)._compile_jinja_template(marked)
    compiled.globals[_ASKS_THE_DATE] = TOLD_DATE.strftime
    return marked


def told_date(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the date that a tokenizer's template is told, such as `2024-07-26`; nothing for one
    that doesn't ask.
    """
    if _ASKS_THE_DATE not in str(tokenizer.chat_template):
        return ""
    return TOLD_DATE.date().isoformat()


def begins_with(tokenizer: PreTrainedTokenizerBase, start: str) -> bool:
    """Return whether what the tokenizer's template writes begins with its start token, `start`.

    Raises `DataError` if it goes on without end.
    """
    for conversation in _TRIED:
        record = conversation.record()
        try:
            text = templated(tokenizer, record["messages"], tools=record.get("tools"))
        except RefusedError:
            continue
        return text.startswith(start)
    # It may refuse all that is made up, and take what is meant for it.
    template = str(tokenizer.chat_template)
    return "bos_token" in template or start in template


def _line(error: Exception) -> str:
    """Return what an error says in one short line that can be printed: a template may repeat in it
    what a row holds.
    """
    line = " ".join(visible(str(error)[: 2 * _LONGEST_REASON]).split())
    if len(line) > _LONGEST_REASON:
        return line[:_LONGEST_REASON] + "…"
    return line or type(error).__name__


@lru_cache(maxsize=64)
def _check_halts(
    template: str, special: tuple[tuple[str, str], ...], options: tuple[tuple[str, Any], ...]
) -> None:
    """Raise `EndlessError` for a template that takes too many steps for a few short messages, with
    the options with which it is used.

    Whatever else is wrong with it, its use will show.
    """
    variables = {
        "add_generation_prompt": False,
        _ASKS_THE_DATE: TOLD_DATE.strftime,
        **dict(special),
        **dict(options),
    }
    for conversation in _TRIED:
        _check_writes(template, variables, conversation)


def _check_writes(template: str, variables: Mapping[str, Any], conversation: Conversation) -> None:
    record = conversation.record()
    meter = _Meter()
    environment = meter.environment()
    try:
        syntax_tree = environment.parse(template)
        for loop in syntax_tree.find_all(nodes.For):
            # Every round of a loop goes through the meter.
            loop.iter = nodes.Filter(loop.iter, "counted_rounds", [], [], None, None)
        code = environment.compile(_with_texts_counted(syntax_tree))
        template_globals = environment.make_globals(None)
        writer = environment.template_class.from_code(environment, code, template_globals)
        pieces = writer.generate(
            messages=record["messages"],
            tools=record.get("tools"),
            documents=None,
            **variables,
        )
        for piece in pieces:
            meter.text(piece)
    except EndlessError:
        raise
    except (TemplateError, *FAULTS):
        return


def _with_texts_counted(node: Any) -> Any:
    """Return the tree with every `~`, which joins texts, counted; what is no tree as it is."""
    if not isinstance(node, nodes.Node):
        return node
    for name, value in list(node.iter_fields()):
        if isinstance(value, list):
            setattr(node, name, [_with_texts_counted(child) for child in value])
        else:
            setattr(node, name, _with_texts_counted(value))
    if isinstance(node, nodes.Concat):
        return nodes.Filter(node, "counted_text", [], [], None, None)
    return node


@final
class _Meter:
    """Counts what a template uses up."""

    def __init__(self) -> None:
        self._steps_left = TEMPLATE_STEPS

    def environment(self) -> Any:
        """Return transformers' own environment for templates, with loops, calls and products
        counted.
        """
        # Not public; to build one like it would miss what a later version adds to its sandbox.
        usual = cast(Any, chat_template_utils)._compile_jinja_template("").environment
        environment = usual.overlay()
        environment.filters = dict(usual.filters)
        for name in _FILTERS_WITH_SIZES:
            environment.filters[name] = self._counted(usual.filters[name])
        environment.filters["counted_rounds"] = self._rounds
        environment.filters["counted_text"] = self.text

        def counted_operation(context: Any, operator: str, left: Any, right: Any) -> Any:
            self._count_operation(operator, left, right)
            return usual.call_binop(context, operator, left, right)

        environment.intercepted_binops = frozenset(("*", "**", "+", "%"))
        environment.call_binop = counted_operation
        environment.call = self._counted(usual.call)
        return environment

    def text(self, text: str) -> str:
        """Count a text that was made, and return it."""
        self._spend(len(text) // _LETTERS_PER_STEP)
        return text

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise EndlessError("goes on too long")

    def _rounds(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._spend(1)
            yield item

    def _counted(self, function: Any) -> Any:
        @wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            self._spend(1)
            for argument in (*arguments, *named.values()):
                if _is_too_large(_text_behind(argument)):
                    raise EndlessError("makes something too large")
            result = function(*arguments, **named)
            if isinstance(result, str):
                self.text(result)
            return result

        return counted

    def _count_operation(self, operator: str, left: Any, right: Any) -> None:
        """Count what `*`, `**`, `+` or `%` makes, before it is made."""
        left_size = _size(left)
        right_size = _size(right)
        if operator == "*" and left_size * right_size > LONGEST_MADE**2:
            raise EndlessError("makes something too large")
        if operator == "**" and max(left_size, right_size) > LONGEST_MADE:
            raise EndlessError("makes something too large")
        if isinstance(left, _SEQUENCES) or isinstance(right, _SEQUENCES):
            letters = left_size + right_size
            if operator == "*":
                letters = left_size * right_size
            self._spend(letters // _LETTERS_PER_STEP)
        # `"%9999999d" % 1` has the length that its format says.
        if operator == "%" and isinstance(left, _SEQUENCES) and _LARGE_NUMBER.search(str(left)):
            raise EndlessError("makes something too large")


_SEQUENCES: Final = (str, list, tuple)


def _size(value: Any) -> int:
    if isinstance(value, _SEQUENCES):
        return len(value)
    if isinstance(value, int):
        return abs(value)
    return 0


def _is_too_large(value: Any) -> bool:
    """Return whether a number, or a short text with one, asks for a result that is too long."""
    if isinstance(value, int):
        return value > LONGEST_MADE
    if isinstance(value, str) and len(value) < LONGEST_MADE:
        return _LARGE_NUMBER.search(value) is not None
    return False


def _text_behind(value: Any) -> Any:
    """Return the text whose method a value is, such as a `format` that is called; else the value
    itself.
    """
    if not callable(value):
        return value
    owner = getattr(getattr(value, "__wrapped__", value), "__self__", None)
    if isinstance(owner, str):
        return owner
    return value
