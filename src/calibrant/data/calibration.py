"""Calibration sets: what a model is shown while it is compressed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Row, Source
from calibrant.data._draw import Deck, Drawn, Quota, draw
from calibrant.data._encoding import KINDS, Encoder, IdEncoder, KindEncoder
from calibrant.data.expression import Term, parse_expression, written
from calibrant.data.packing import PAD, Frame
from calibrant.errors import DataError

__all__ = ["KINDS", "CalibrationSet", "TokenBatch", "fingerprint"]


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Sequences of tokens, one a row: a window, or each text of a window whose texts can't see each other.

    `mask` is true on real tokens; elsewhere ids and weights are 0. `weights` are 1 on real tokens, unless the parts of a weighted sum would not have
    exactly their shares otherwise. `fingerprint` is the tagged SHA-256 of all three. `facts` are plain data about where the tokens come from: a
    list `parts` with rows, tokens, overlap, digest, licence, … `examples` are the `Row.example` of all rows, sorted. Where the original study's
    packing makes pads count, `pads` is true on them, and so is `mask`.
    """

    ids: Int[Tensor, "sample position"]
    mask: Bool[Tensor, "sample position"]
    weights: Float[Tensor, "sample position"]
    fingerprint: str
    facts: dict[str, Any]
    examples: tuple[str, ...] = ()
    pads: Bool[Tensor, "sample position"] | None = None


@dataclass(frozen=True, init=False, repr=False)
class CalibrationSet:
    """Source, format and packing, or a weighted sum of them; a budget; a draw.

    `CalibrationSet("0.3*gsm8k:cot + 0.7*wikitext", samples=128, length=2048, seed=0)`: 128 windows of 2048 tokens. `tokens=N` asks for exactly N real
    tokens instead, the last window partly filled. `seed` is the number of the draw: draws of the same budget share no row until the source is used
    up, after which `overlap` in the facts says how much they share. The same rows and tokenizer give the same fingerprint anywhere.

    Raises `SpecError` for an expression that can't be read or names what doesn't exist, `DataError` for parts that don't fit together or a budget
    below 1; both when the set is built. No model is needed.
    """

    expr: str
    samples: int
    length: int
    budget: int | None
    seed: int
    parts: tuple[Term, ...]

    def __init__(self, expr: str, samples: int = 128, length: int = 2048, tokens: int | None = None, seed: int = 0) -> None:
        for name, value, least in (("samples", samples, 1), ("length", length, 1), ("tokens", tokens, 1), ("seed", seed, 0)):
            if value is not None and value < least:
                raise DataError(f"{name} is {value}; it must be at least {least}", subject=name)
        parts = parse_expression(expr)
        for name, value in (("expr", written(parts)), ("samples", samples), ("length", length), ("budget", tokens), ("seed", seed), ("parts", parts)):
            object.__setattr__(self, name, value)

    @classmethod
    def parse(cls, expr: str, samples: int = 128, length: int = 2048, tokens: int | None = None, seed: int = 0) -> "CalibrationSet":
        """The same as the constructor, for those who look for the verb."""
        return cls(expr, samples, length, tokens, seed)

    def __str__(self) -> str:
        """The canonical expression, which says what the set is made of and not how much of it there is."""
        return self.expr

    def __repr__(self) -> str:
        budget = f"samples={self.samples}" if self.budget is None else f"tokens={self.budget}"
        return f"CalibrationSet({self.expr!r}, {budget}, length={self.length}, seed={self.seed})"

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
        """The set as tokens. `DataError` if a source can't be read or holds too little for the first draw."""
        decks = self._decks(self.seed)
        return self._batch(self._drawn(decks, IdEncoder(tokenizer)), decks, tokenizer)

    def drawn(self, tokenizer: PreTrainedTokenizerBase) -> list[list[Row]]:
        """The rows of each part of this draw, in the order in which they were used."""
        decks = self._decks(self.seed)
        return [part.rows for part in self._drawn(decks, IdEncoder(tokenizer))]

    def kinds(self, tokenizer: PreTrainedTokenizerBase) -> Int8[Tensor, "sample position"]:
        """What each token of `tokens(tokenizer).ids` is, as an index into `KINDS`; 0 where there is none."""
        decks = self._decks(self.seed)
        ids, mask = self._laid_out(self._drawn(decks, KindEncoder(tokenizer)))
        return torch.from_numpy(np.where(mask, np.maximum(ids, 0), 0).astype(np.int8))

    def disjoint_draws(self, tokenizer: PreTrainedTokenizerBase, most: int = 64) -> int | None:
        """How many draws of this budget share no row: `most` if there are that many or more, none if the set is all controls, which have no end."""
        encoder = IdEncoder(tokenizer)
        if all(term.source.kind == "control" for term in self.parts):
            return None
        decks = self._decks(0)
        for number in range(most):
            drawn = self._deal(number, decks, encoder)
            if any(decks[term.source].overlap(part.rows) for term, part in zip(self.parts, drawn, strict=True)):
                return number
        return most

    def _decks(self, draw: int) -> dict[Source, Deck]:
        return {term.source: Deck(term.source, draw) for term in self.parts}

    def _drawn(self, decks: Mapping[Source, Deck], encoder: Encoder) -> list[Drawn]:
        # Earlier draws are dealt again, because which rows they took is what this draw may not take.
        for number in range(self.seed):
            self._deal(number, decks, encoder)
        return self._deal(self.seed, decks, encoder)

    def _deal(self, number: int, decks: Mapping[Source, Deck], encoder: Encoder) -> list[Drawn]:
        """Draw `number` of every part; a control deals only in the draw that it was opened for."""
        frame = Frame(self.length, encoder.text, number)
        if any(self.length <= sum(map(len, encoder.starts(term.packing, term.format))) for term in self.parts):
            raise DataError(f"length is {self.length}: the start token leaves no room for text; raise --length", subject="length")
        for deck in decks.values():
            deck.begin(number)
        return [
            draw(term, quota, decks[term.source], encoder, frame) if decks[term.source].deals(number) else Drawn()
            for term, quota in zip(self.parts, self._quotas(), strict=True)
        ]

    def _quotas(self) -> list[Quota]:
        """What each part is to give: its share of the real tokens; where windows aren't filled, its share of the windows."""
        shares = [term.share for term in self.parts]
        tokens = _divide(self.samples * self.length if self.budget is None else self.budget, shares)
        windows = _divide(self.samples, shares)
        for term, count in zip(self.parts, tokens, strict=True):
            if count < 1:
                raise DataError(f"{term} gets none of {sum(tokens)} tokens in {self.expr!r}; raise --tokens or its weight", subject=str(term))
        by_window = [self.budget is None and not term.packing.fills for term in self.parts]
        flags = "--samples or --length" if self.budget is None else "--tokens or --length"
        return [
            Quota(windows=max(1, w), flags=flags) if by else Quota(tokens=t, flags=flags) for by, t, w in zip(by_window, tokens, windows, strict=True)
        ]

    def _laid_out(self, drawn: Sequence[Drawn]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask [sample, position] of all sequences; `PAD` in the ids where a pad counts as a token."""
        sequences = [sequence for part in drawn for window in part.windows for sequence in window.sequences()]
        ids, mask = np.zeros((len(sequences), self.length), dtype=np.int32), np.zeros((len(sequences), self.length), dtype=np.bool_)
        for at, sequence in enumerate(sequences):
            ids[at, : len(sequence)], mask[at, : len(sequence)] = sequence, True
        return ids, mask

    def _batch(self, drawn: list[Drawn], decks: Mapping[Source, Deck], tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
        ids, mask = self._laid_out(drawn)
        pads = mask & (ids == PAD)
        ids[pads] = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0)
        total = sum(part.tokens for part in drawn)
        each = [float(term.share * total / part.tokens) for term, part in zip(self.parts, drawn, strict=True)]
        facts = [_facts(term, part, decks[term.source], weight) for term, part, weight in zip(self.parts, drawn, each, strict=True)]
        weights = np.repeat(np.array(each, dtype=np.float32), [fact["sequences"] for fact in facts])[:, None] * mask
        rows = [row for part in drawn for row in part.rows]
        whole = {
            "data": self.expr,
            "draw": self.seed,
            "windows": sum(len(part.windows) for part in drawn),
            "length": self.length,
            "tokens": total,
            "pads": int(pads.sum()),
            "overlap": sum(fact["overlap"] * fact["rows"] for fact in facts) / len(rows),
            "parts": facts,
        }
        made = fingerprint(ids, mask, weights)
        examples = tuple(sorted({row.example for row in rows}))
        tensors = torch.from_numpy(ids).long(), torch.from_numpy(mask), torch.from_numpy(weights)
        return TokenBatch(*tensors, made, whole, examples, torch.from_numpy(pads) if pads.any() else None)


def fingerprint(ids: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> str:
    """The tagged SHA-256 of a batch: shape, ids as little-endian int32, mask as bits, weights as little-endian float32."""
    found = hashlib.sha256(f"{ids.shape[0]} {ids.shape[1]}\n".encode())
    for part in (ids.astype("<i4"), np.packbits(mask), weights.astype("<f4")):
        found.update(part.tobytes())
    return "sha256:" + found.hexdigest()


def _divide(whole: int, shares: Sequence[Fraction]) -> list[int]:
    """`whole` in integer parts as near to `shares` as can be: rounded down, then one more for the largest remainders, earlier parts first."""
    parts = [int(whole * share) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda i: (parts[i] - whole * shares[i], i))
    for i in remainders[: whole - sum(parts)]:
        parts[i] += 1
    return parts


def _facts(term: Term, part: Drawn, deck: Deck, weight: float) -> dict[str, Any]:
    return {
        "data": str(term),
        "share": float(term.share),
        "weight": weight,
        "windows": len(part.windows),
        "sequences": sum(len(window.sequences()) for window in part.windows),
        "tokens": part.tokens,
        "rows": len(part.rows),
        "passed_over": part.passed_over,
        "truncated": sum(window.broken for window in part.windows),
        "bos": term.packing.bos,
        "rows_held": None if deck.endless else len(deck.held.rows),
        "overlap": deck.overlap(part.rows),
        "duplicates_dropped": deck.held.duplicates,
        "overlapping_dropped": deck.held.overlapping,
        "row_lengths": [int(n) for n in np.quantile(part.lengths, [0, 0.25, 0.5, 0.75, 1], method="lower")],
        "digest": deck.digest(part.rows),
        "origin": deck.held.origin,
        "note": deck.held.note,
        "hub": asdict(term.source.hub) if term.source.hub else None,
        "licence": term.source.licence,
    }
