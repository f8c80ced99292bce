"""A conversation put into a tokenizer's chat template: a program that came with the model, and may be broken in any way."""

from collections.abc import Sequence
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from calibrant.errors import DataError

FAULTS: Final = (ArithmeticError, AttributeError, ImportError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What a template's own arithmetic, look-ups and recursion raise, beside the errors that jinja2 has for it."""


def templated(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]], subject: str = "chat", **options: Any) -> str:
    """Return the messages as the tokenizer's template writes them. Raises `DataError` if it refuses them or is broken."""
    try:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
    except TemplateError as error:
        raise DataError(f"the model's chat template refuses a row: {error}", subject=subject) from error
    except FAULTS as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"the model's chat template is broken ({what}); use qa, or a tokenizer whose template works", subject=subject) from error
