"""How a model reads and ends text, which what is measured of it depends on beside its weights."""

import json
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.models.saving import Opened
from calibrant.spec import identity


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end a text: the tokenizer's end token, and those that the model's
    own settings for generation name.
    """
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    if not isinstance(ends, list):
        ends = [ends]
    ends = [*ends, tokenizer.eos_token_id]
    return frozenset(token for token in ends if isinstance(token, int))


def reading_digest(opened: Opened) -> str:
    """Return a hash of all that decides which tokens a text becomes and where an answer ends: the
    tokenizer, its chat template, and the tokens at which texts end.
    """
    tokenizer = opened.tokenizer
    special = getattr(tokenizer, "special_tokens_map", {})
    known = {
        "rules": _rules(tokenizer),
        # Any object with a vocabulary may be a tokenizer.
        "template": getattr(tokenizer, "chat_template", None),
        "special": {name: str(token) for name, token in special.items()},
        "ends": sorted(end_tokens(opened.model, tokenizer)),
    }
    return identity(known)


def _rules(tokenizer: Any) -> dict[str, Any]:
    """The vocabulary of a tokenizer, and how it divides text where that can be told."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return tokenizer.get_vocab()
    rules = json.loads(backend.to_str())
    # Every call of a tokenizer sets these two.
    rules.pop("truncation", None)
    rules.pop("padding", None)
    return rules
