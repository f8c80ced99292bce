"""Which texts a model can read: how long they may be, and which tokens it knows."""

import re
from itertools import chain
from typing import Any, Final

from jaxtyping import Bool, Int
from torch import Tensor
from transformers import PreTrainedModel

from calibrant.errors import DataError

_TABLE: Final = re.compile(r"(?:^|[._])(wpe|pos\w*(\.embedding)?)(\.weight)?$")
_OTHER_SENSES: Final = re.compile(r"vision|visual|image|audio")
"""Towers whose positions are those of pictures and sounds."""
_ROWS_BEFORE_FIRST: Final = 2
"""Rows with which the tables of some families begin, and which stand for no position."""
_GROWING: Final = ("dynamic", "longrope")
_NAMES: Final = ("max_position_embeddings", "max_target_positions", "max_seq_len")
"""What configurations call the number of positions."""


def positions_of(model: PreTrainedModel) -> int | None:
    """Return how many positions a model's configuration names; None where it names none, or says
    that there is no end.
    """
    config = model.config.get_text_config()
    for name in _NAMES:
        positions = getattr(config, name, None)
        # XLNet says -1.
        if isinstance(positions, int) and positions >= 1:
            return positions
    return None


def longest_window(model: PreTrainedModel) -> int | None:
    """Return how many tokens a model can read at once; None where positions go on without end, as
    rotary ones do.
    """
    positions = positions_of(model)
    # MPT has no table, but makes the distances (ALiBi) of so many tokens and of no more.
    if positions is None or model.config.model_type == "mpt":
        return positions
    for name, numbers in chain(model.named_parameters(), model.named_buffers()):
        # A sinusoidal table that a model makes longer where it must is called `weights` (XGLM).
        if numbers.dim() != 2 or _TABLE.search(name) is None or _OTHER_SENSES.search(name):
            continue
        # Models of pictures and sounds have tables of other lengths.
        if positions <= len(numbers) <= positions + _ROWS_BEFORE_FIRST:
            return positions - positions_before_first(model)
    return None


def longest_text(model: PreTrainedModel) -> int | None:
    """Return how many tokens of a text a model sees: those of its table of positions, and without
    one as many as its configuration names. None where there is no end.
    """
    return longest_window(model) or positions_of(model)


def positions_before_first(model: PreTrainedModel) -> int:
    """Return which position a text's first token has: in RoBERTa and its kin it is the one behind
    the number of the padding token, in all others 0.
    """
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):
            parts: Any = module
            return parts.padding_idx + 1
    return 0


def rope_alike_up_to(model: PreTrainedModel) -> int | None:
    """Return how long a text may be for rotary positions to turn as they do in any shorter one;
    None where they turn alike in all.
    """
    return min((length for _, length in _growing_ropes(model)), default=None)


def rope_alike_beyond(model: PreTrainedModel) -> int | None:
    """Return the length beyond which rotary positions turn alike in all texts; None where they
    turn alike in all, and where they turn otherwise in each.
    """
    ropes = _growing_ropes(model)
    if any(kind == "dynamic" for kind, _ in ropes):
        return None
    return max((length for _, length in ropes), default=None)


def _growing_ropes(model: PreTrainedModel) -> list[tuple[str, int]]:
    """Return the kinds of rotary positions that turn otherwise in longer texts, each with the
    length from which on they do.
    """
    config: Any = model.config.get_text_config()
    rope: Any = getattr(config, "rope_parameters", None) or {}
    # One dict, or one by the kind of layer.
    by_layer_kind = [value for value in rope.values() if isinstance(value, dict)]
    growing: list[tuple[str, int]] = []
    for settings in (rope, *by_layer_kind):
        kind = settings.get("rope_type")
        if kind not in _GROWING:
            continue
        length = settings.get("original_max_position_embeddings")
        if not length:
            length = getattr(config, "original_max_position_embeddings", None)
        if not length:
            length = positions_of(model)
        if length is not None:
            growing.append((kind, length))
    return growing


def check_windows(
    model: PreTrainedModel, ids: Int[Tensor, "*window"], mask: Bool[Tensor, "*window"]
) -> None:
    """Raise `DataError` for windows `[sample, position]` that a model can't read: ones with more
    tokens than it has positions, or with a token that it has no numbers for.
    """
    check_length(model, int(mask.sum(-1).max()))
    check_tokens(model, int(ids[mask].max()))


def check_length(model: PreTrainedModel, length: int) -> None:
    """Raise `DataError` for windows of more tokens than a model has a table of positions for."""
    longest = longest_window(model)
    if longest is not None and length > longest:
        raise DataError(
            f"windows of {length:,} tokens don't fit into the model's {longest:,} positions; give "
            f"a length of at most {longest}",
            subject=str(length),
        )


def check_tokens(model: PreTrainedModel, largest: int) -> None:
    """Raise `DataError` where the largest id of a text's tokens has no row in the embedding."""
    # What another engine runs has no numbers here.
    if next(model.parameters(), None) is None:
        return
    embedding: Any = model.get_input_embeddings()
    rows = len(embedding.weight)
    if largest >= rows:
        raise DataError(
            f"a text holds the token with the id {largest}, and the model's embedding has {rows} "
            f"rows, so the model doesn't know it; take that token out of the texts",
            subject=str(largest),
        )
