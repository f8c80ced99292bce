"""The tokenizer that comes with a model; what is wrong with it is one sentence."""

from pathlib import Path
from typing import Any, Final

from torch import nn
from transformers import AutoTokenizer

from calibrant.errors import ModelError
from calibrant.models.configuring import Room, check_code_is_here, check_raw
from calibrant.models.folder import CONFIG, check_plain, read_object
from calibrant.models.quiet import Refusal
from calibrant.spec.foreign import brief

SETTINGS: Final = "tokenizer_config.json"


def folder_tokenizer(folder: Path, ref: str, trust: bool) -> Any:
    """Return a folder's tokenizer. Raises `ModelError` if it can't be made, or its chat template
    is none.
    """
    names = check_plain(folder, ref)
    if CONFIG in names:
        check_raw(folder, ref, Room(), trust)
    if SETTINGS in names:
        check_code_is_here(read_object(folder / SETTINGS), folder / SETTINGS)
    with Refusal(
        f"{ref} has no tokenizer that can be opened",
        "; put the model's tokenizer files beside it",
        ref,
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        try_out(tokenizer)
    check_template(tokenizer, ref)
    return tokenizer


def try_out(tokenizer: Any) -> None:
    """Read and write a letter: some of what a tokenizer's files say is only looked at then."""
    ids = tokenizer("a")["input_ids"]
    tokenizer.decode(ids)
    len(tokenizer)


def check_ids(tokenizer: Any, model: nn.Module, ref: str) -> None:
    """Raise `ModelError` for a token whose id has no row in the embedding.

    Added tokens may lie beyond it, as one for pictures does in a model of text only, but not those
    that stand in every batch.
    """
    rows = model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportCallIssue]
    added = set(tokenizer.added_tokens_decoder) - {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    }
    beyond = {
        number: token
        for token, number in tokenizer.get_vocab().items()
        if number >= rows and number not in added
    }
    if beyond:
        number = min(beyond)
        token = brief(beyond[number])
        raise ModelError(
            f"{ref}: its tokenizer gives {token} the id {number}, but the embedding has {rows} rows; give the tokenizer of this model",
            subject=ref,
        )


def check_template(tokenizer: Any, ref: str) -> None:
    """Raise `ModelError` for a chat template that is no text."""
    templates = tokenizer.chat_template
    for template in templates.values() if isinstance(templates, dict) else [templates]:
        if not isinstance(template, str | None):
            raise ModelError(
                f"{ref}: its chat template is {brief(template)} and no text; check its tokenizer_config.json",
                subject="chat_template",
            )
