"""ZipCal: the texts that together hold the most kinds of tokens (2026, arXiv 2603.16105)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Int
from transformers import PreTrainedTokenizerBase

from calibrant.data.select._base import MOST, Context, Picking, check_between
from calibrant.data.select._reading import beginnings

Types = Int[np.ndarray, " _"]
"""The token types of one text, as sorted numbers."""


@dataclass(frozen=True, repr=False)
class ZipCal(Picking):
    """Greedy maximum coverage of token types: next is always the text that adds the most types to
    those that are there already.

    A type is a token without its case and the mark of its place in a word. At each step `pool`
    candidates are looked at, drawn by chance (seeded by the draw) from those that add something;
    among equals the one with more types in all wins, then the one that comes first. The first
    `length` tokens of a text count, as many as a window holds. No model is needed. `SpecError` for
    a `pool` below 1.

    Inferred, because what the paper's code does then isn't known to us: when every type is there,
    the count begins anew with the texts that are left, and candidates that add nothing don't stand
    in the pool. The code's other scorer, by inverse word frequency, is not here.
    """

    after = "ZipCal 2026"
    source: str
    candidates: int = 1000
    pool: int = 2000

    needs_model: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_between(self, pool=(1, MOST))

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        types = types_of(texts, context.tokenizer, context.length)
        chosen, first_round = covering(types, self.pool, np.random.default_rng(context.draw))
        if not first_round:
            return chosen, ""
        count = len(np.unique(np.concatenate(types)))
        return chosen, f"the first {first_round} of them hold all {count} token types"


def types_of(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int) -> list[Types]:
    """Return the distinct token types of each text, as sorted numbers."""
    sequences = [np.array(ids, dtype=np.int64) for ids in beginnings(texts, tokenizer, length)]
    if not sequences:
        return []
    used_tokens = np.unique(np.concatenate(sequences))
    spelt = tokenizer.batch_decode(used_tokens[:, None].tolist())
    tokens = tokenizer.convert_ids_to_tokens(used_tokens.tolist())
    names = list(map(normalised, spelt, tokens))
    # A token that is nothing but spaces has no type: -1.
    number_of_name = {"": -1}
    for number, name in enumerate(sorted(set(names) - {""})):
        number_of_name[name] = number
    type_of_used = np.array([number_of_name[name] for name in names], dtype=np.int64)
    types: list[Types] = []
    for ids in sequences:
        places = np.searchsorted(used_tokens, ids)
        text_types = np.unique(type_of_used[places])
        types.append(text_types[text_types >= 0])
    return types


def normalised(spelt: str, token: str) -> str:
    """Return a token's type: what it spells, case-folded, without spaces and WordPiece's mark.

    Part of a letter spells nothing, and stays as it is.
    """
    if "\ufffd" in spelt:
        return token
    plain = spelt.strip()
    if plain.startswith("##") and plain[2:].isalnum():
        plain = plain[2:]
    return plain.casefold()


def covering(
    types: Sequence[Types], pool: int, chance: np.random.Generator
) -> tuple[list[int], int]:
    """Return every text in the order in which the greedy search takes it, and how many it took
    until every type was there for the first time. Texts of no type come last.

    What each text would add is kept up to date: when a type is covered, each text that holds it
    would add one less. So a step costs what it covers, not what there is.
    """
    totals = np.array([len(text_types) for text_types in types], dtype=np.int64)
    holders = _holders(types)
    gains = totals.copy()
    covered = np.zeros(len(holders), dtype=np.bool_)
    remaining = totals > 0
    chosen: list[int] = []
    first_round = 0
    while remaining.any():
        useful = np.flatnonzero(gains > 0)
        if not len(useful):
            # Every type is there: the count begins anew with the texts that are left.
            first_round = first_round or len(chosen)
            covered[:] = False
            gains = np.where(remaining, totals, 0)
            continue
        if len(useful) > pool:
            useful = np.sort(chance.choice(useful, pool, replace=False))
        # Among equal gains the one with more types in all wins: one number holds both, since no
        # total reaches the factor.
        ranks = gains[useful] * (totals.max() + 1) + totals[useful]
        best = int(useful[np.argmax(ranks)])
        chosen.append(best)
        remaining[best] = False
        best_types = types[best]
        new_types = best_types[~covered[best_types]]
        for new_type in new_types:
            gains[holders[new_type]] -= 1
        covered[best_types] = True
        gains[best] = 0
    empty = np.flatnonzero(totals == 0).tolist()
    return [*chosen, *empty], first_round or len(chosen)


def _holders(types: Sequence[Types]) -> list[Int[np.ndarray, " _"]]:
    """Return for each type the texts that hold it."""
    sizes = [len(text_types) for text_types in types]
    if not any(sizes):
        return []
    types_of_all = np.concatenate(list(types))
    texts = np.repeat(np.arange(len(types)), sizes)
    # Sorted by type, the texts of one type stand together, as many as it has holders.
    order = np.argsort(types_of_all, kind="stable")
    ends = np.cumsum(np.bincount(types_of_all))
    return np.split(texts[order], ends[:-1])
