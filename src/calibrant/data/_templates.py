"""A conversation put into a tokenizer's chat template: a program that came with the model, and may
be broken in any way.

jinja2's sandbox keeps a template from the machine, but not from running on: three nested loops are
ten to the fifteenth steps, and a product of a text and a number fills the memory. So each template
first writes a short conversation with its steps counted.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache, wraps
from typing import Any, Final, cast, final

from jinja2 import TemplateError, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from calibrant.errors import DataError

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
STEPS: Final = 20_000
"""Rounds of loops, calls, and hundreds of characters that two short turns may take: published
templates take some dozens.
"""
LONGEST: Final = 1_000_000
"""The largest number that may say how long a text or a list is to be."""

_PER_STEP: Final = 100
_WIDTH: Final = re.compile(r"\d{7}")
_SIZED: Final = ("center", "indent", "wordwrap", "format", "truncate", "batch", "slice")
"""The filters that make what they are given as long as they are told."""
_TURNS: Final = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"})


@final
class EndlessError(TemplateError):
    """A template that goes on too long, or makes something too large."""


def templated(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    subject: str = "chat",
    **options: Any,
) -> str:
    """Return the messages as the tokenizer's template writes them. Raises `DataError` if it
    refuses them, is broken, or goes on without end.
    """
    try:
        _check_ends(
            str(tokenizer.get_chat_template()),
            tuple(sorted((k, str(v)) for k, v in tokenizer.special_tokens_map.items())),
        )
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except EndlessError as error:
        raise DataError(
            f"the model's chat template {error}; use qa, or a tokenizer whose template works",
            subject=subject,
        ) from error
    except TemplateError as error:
        raise DataError(
            f"the model's chat template refuses a row: {error}", subject=subject
        ) from error
    except FAULTS as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"the model's chat template is broken ({what}); use qa, or a tokenizer whose template works",
            subject=subject,
        ) from error


@lru_cache(maxsize=64)
def _check_ends(template: str, special: tuple[tuple[str, str], ...]) -> None:
    """Raise `EndlessError` for a template that doesn't end with two short turns; whatever else
    is wrong with it, its use will show.
    """
    spent = _Spent()
    environment = spent.counting()
    try:
        tree = environment.parse(template)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "counted_rounds", [], [], None, None)
        code = environment.compile(_with_texts_counted(tree))
        writer = environment.template_class.from_code(
            environment, code, environment.make_globals(None)
        )
        for piece in writer.generate(
            messages=list(_TURNS),
            tools=None,
            documents=None,
            add_generation_prompt=False,
            **dict(special),
        ):
            spent.text(piece)
    except EndlessError:
        raise
    except (TemplateError, *FAULTS):
        return


def _with_texts_counted(node: nodes.Node) -> Any:
    """Return the tree with every `~`, which joins texts, counted."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _with_texts_counted(value))
        elif isinstance(value, list):
            setattr(
                node,
                name,
                [
                    _with_texts_counted(each) if isinstance(each, nodes.Node) else each
                    for each in value
                ],
            )
    return (
        nodes.Filter(node, "counted_text", [], [], None, None)
        if isinstance(node, nodes.Concat)
        else node
    )


@final
class _Spent:
    """How much a template has used up."""

    def __init__(self) -> None:
        self._left = STEPS

    def counting(self) -> Any:
        """transformers' own environment for templates, in which loops, calls and products are
        counted.
        """
        usual = cast(Any, chat_template_utils)._compile_jinja_template("").environment
        environment = usual.overlay()
        sized = {name: self._bounded(usual.filters[name]) for name in _SIZED}
        environment.filters = {
            **usual.filters,
            **sized,
            "counted_rounds": self._rounds,
            "counted_text": self.text,
        }
        environment.intercepted_binops = frozenset(("*", "**", "+", "%"))
        environment.call_binop = lambda _, operator, left, right: self._product(
            usual, operator, left, right
        )
        environment.call = self._bounded(usual.call)
        return environment

    def text(self, text: str) -> str:
        self._take(len(text) // _PER_STEP)
        return text

    def _take(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise EndlessError("goes on too long")

    def _rounds(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self._take(1)
            yield item

    def _bounded(self, function: Any) -> Any:
        @wraps(function)
        def counted(*arguments: Any, **named: Any) -> Any:
            self._take(1)
            for value in map(_text_of, (*arguments, *named.values())):
                if (isinstance(value, int) and value > LONGEST) or (
                    isinstance(value, str) and len(value) < LONGEST and _WIDTH.search(value)
                ):
                    raise EndlessError("makes something too large")
            result = function(*arguments, **named)
            return self.text(result) if isinstance(result, str) else result

        return counted

    def _product(self, environment: Any, operator: str, left: Any, right: Any) -> Any:
        sizes = [
            len(value)
            if isinstance(value, str | list | tuple)
            else abs(value)
            if isinstance(value, int)
            else 0
            for value in (left, right)
        ]
        if (operator == "*" and sizes[0] * sizes[1] > LONGEST**2) or (
            operator == "**" and max(sizes) > LONGEST
        ):
            raise EndlessError("makes something too large")
        texts = [isinstance(value, str | list | tuple) for value in (left, right)]
        if any(texts):
            self._take(
                sizes[0] * sizes[1] // _PER_STEP if operator == "*" else sum(sizes) // _PER_STEP
            )
        if operator == "%" and texts[0] and _WIDTH.search(str(left)):
            raise EndlessError("makes something too large")
        return environment.call_binop(None, operator, left, right)


def _text_of(value: Any) -> Any:
    """Return the text whose method a value is, such as a `format` that is called; else the value
    itself.
    """
    owner = (
        getattr(getattr(value, "__wrapped__", value), "__self__", None)
        if callable(value)
        else value
    )
    return owner if isinstance(owner, str) else value
