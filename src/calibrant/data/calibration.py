"""Calibration sets: what a model is shown while it is compressed."""

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Part, PerDraw, Row, Source, family_of
from calibrant.data._draw import Deck, PartDraw, Quota, TooFew, draw
from calibrant.data._encoding import KINDS, Encoder, IdEncoder, KindEncoder
from calibrant.data.expression import Term, term_of, text_of_source, written
from calibrant.data.packings._base import PAD, Frame
from calibrant.errors import DataError
from calibrant.spec.foreign import brief
from calibrant.spec.grammar import Mix, SetLabel, Sum, read_set, written_mix
from calibrant.system.notebook import card, listing

__all__ = ["KINDS", "CalibrationSet", "TokenBatch", "fingerprint"]


MOST_TOKENS: Final = 10**9
"""Of a draw: as ids and their mask, tens of gigabytes."""
LONGEST_WINDOW: Final = 10**7
LAST_DRAW: Final = 10_000
"""Draw k costs as much as k draws, because the rows of all that are before it are dealt first."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Sequences of tokens, one a row: a window, or each text of a window whose texts can't see each
    other.

    `mask` is true on real tokens; elsewhere ids and weights are 0. `weights` are 1 on real tokens,
    unless the parts of a weighted sum would not have exactly their shares otherwise. `fingerprint`
    is the tagged SHA-256 of all three. `facts` are plain data about where the tokens come from: a
    list `parts` with rows, tokens, overlap, digest, licence, … `examples` are the `Row.example` of
    all rows, sorted, and `rows` the rows themselves. Where the original study's packing makes pads
    count, `pads` is true on them, and so is `mask`.

    Of a mix these are the sequences of both its sets, with weights that make one walk see what the
    mix says. `mixed` are the two batches themselves, each with the factor its statistics are to be
    multiplied with before they are added; the fingerprint covers theirs and the weight.
    """

    ids: Int[Tensor, "sample position"]
    mask: Bool[Tensor, "sample position"]
    weights: Float[Tensor, "sample position"]
    fingerprint: str
    facts: dict[str, Any]
    examples: tuple[str, ...] = ()
    pads: Bool[Tensor, "sample position"] | None = None
    mixed: tuple[tuple[float, "TokenBatch"], ...] = ()
    rows: tuple[Row, ...] = field(default=(), repr=False)


@dataclass(frozen=True, init=False, repr=False)
class CalibrationSet:
    """Source, format and packing, or a weighted sum of them, or a mix of such; a budget; a draw.

    >>> data = CalibrationSet("0.3*gsm8k:cot + 0.7*wikitext", samples=128, length=2048, seed=0)
    >>> [str(part) for part in data.parts]
    ['gsm8k:cot', 'wikitext']

    These are 128 windows of 2,048 tokens; `tokens=N` stands for exactly N real tokens instead, the
    last window partly filled. `seed` is the number of the draw: draws of the same budget share no
    row until the source is used up, after which `overlap` in the facts says how much they share.
    The same rows and tokenizer give the same fingerprint anywhere.

    `CalibrationSet("mix(gsm8k:cot=0.5, c4=0.5)")` is of two sets or more, in `mixed`, each of the
    whole budget and drawn as it is drawn alone. What the model's matrices see of each, divided by
    its own tokens, is added with the weights in `shares`, as if all tokens were one set (MixCal,
    Williams et al. 2025, arXiv 2502.18424). `names` are what the sets are called, `parts` those of
    all. A mix with all the weight on one set is that set.

    A source of your own stands where an expression does: `CalibrationSet(MySource(path="notes"))`.
    From then on its text can be part of expressions.

    `part` is `calibrate`, but for what `held_out` gives. Where a part is a selector, `supplied`
    puts in its place what it chose.

    Raises `SpecError` for an expression that can't be read or names what doesn't exist, `DataError`
    for parts that don't fit together or a budget below 1; both when the set is built. No model is
    needed.
    """

    expr: str
    samples: int
    length: int
    budget: int | None
    seed: int
    parts: tuple[Term, ...]
    mixed: tuple["CalibrationSet", ...]
    names: tuple[str, ...]
    shares: tuple[Fraction, ...]
    part: Part

    def __init__(
        self,
        expr: str | Source,
        samples: int = 128,
        length: int = 2048,
        tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        check_budget(samples, length, tokens, seed)
        read = read_set(text_of_source(expr) if isinstance(expr, Source) else expr)
        self._fill(samples=samples, length=length, budget=tokens, seed=seed, part="calibrate")
        if isinstance(read, Mix):
            sets = tuple(self._of_sum(parts) for parts in read.sets)
            text = written_mix(read.names, list(map(str, sets)), read.shares)
            parts = _weighed(read.shares, sets)
            self._fill(expr=text, parts=parts, mixed=sets, names=read.names, shares=read.shares)
        else:
            self._fill(**vars(self._of_sum(read)))

    @classmethod
    def parse(
        cls,
        expr: str,
        samples: int = 128,
        length: int = 2048,
        tokens: int | None = None,
        seed: int = 0,
    ) -> "CalibrationSet":
        """Return the same as the constructor, for those who look for the verb."""
        return cls(expr, samples, length, tokens, seed)

    def __str__(self) -> str:
        """Return the canonical expression, which says what the set is made of and not how much
        of it there is.
        """
        return self.expr

    def __repr__(self) -> str:
        budget = f"samples={self.samples}" if self.budget is None else f"tokens={self.budget}"
        part = "" if self.part == "calibrate" else f", part={self.part!r}"
        return (
            f"CalibrationSet({self.expr!r}, {budget}, length={self.length}, seed={self.seed}{part})"
        )

    def _repr_html_(self) -> str:
        budget = (
            f"{self.samples} windows" if self.budget is None else f"{self.budget:,} real tokens"
        )
        lines = [
            (str(term), f"{float(term.share):.4g}", term.source.kind, term.source.licence)
            for term in self.parts
        ]
        facts = {"budget": f"{budget} of {self.length:,} tokens", "draw": self.seed}
        return card(
            f"Calibration set {self.expr}",
            facts,
            inside=listing(("part", "share", "kind", "licence"), lines),
        )

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
        """Return the set as tokens. `DataError` if a source can't be read or holds too little
        for the first draw.
        """
        if self.mixed:
            return self._mixture([part.tokens(tokenizer) for part in self.mixed])
        decks = self._decks(self.seed)
        drawn = self._deal_all(decks, IdEncoder(tokenizer))
        ids, mask = self._laid_out(drawn)
        pads = mask & (ids == PAD)
        ids[pads] = next(
            (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(i, int)), 0
        )
        total = sum(part.tokens for part in drawn)
        # Parts of whole windows miss their shares by a little; a weight on each of their tokens
        # makes the shares exact.
        each = [
            float(term.share * total / part.tokens)
            for term, part in zip(self.parts, drawn, strict=True)
        ]
        facts = [
            _facts(term, part, decks[term.source], weight)
            for term, part, weight in zip(self.parts, drawn, each, strict=True)
        ]
        weights = (
            np.repeat(np.array(each, dtype=np.float32), [fact["sequences"] for fact in facts])[
                :, None
            ]
            * mask
        )
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
        digest = fingerprint(ids, mask, weights)
        examples = tuple(sorted({row.example for row in rows}))
        tensors = torch.from_numpy(ids).long(), torch.from_numpy(mask), torch.from_numpy(weights)
        return TokenBatch(
            *tensors,
            digest,
            whole,
            examples,
            torch.from_numpy(pads) if pads.any() else None,
            rows=tuple(rows),
        )

    @property
    def label(self) -> SetLabel:
        """The canonical expression in its parts, with the family of what it is made of."""
        return (
            self.parts[0].label
            if len(self.parts) == 1
            else SetLabel(self.expr, self.expr, family="mixed")
        )

    @property
    def per_draw(self) -> bool:
        """Whether a part of it is supplied per draw, so that it has no tokens before that."""
        return any(isinstance(term.source, PerDraw) for term in self.parts)

    def held_out(self) -> "CalibrationSet":
        """Return the same set of what the sources measure on, to measure with it on other rows.
        Nothing is to be calibrated on it.

        `DataError` where a part has none.
        """
        whole = tuple(
            replace(t, source=t.source.measured()) if isinstance(t.source, PerDraw) else t
            for t in self.parts
        )
        return self._with(
            part="measure", parts=whole, mixed=tuple(part.held_out() for part in self.mixed)
        )

    def supplied(self, supply: Callable[[PerDraw, int], Source]) -> "CalibrationSet":
        """Return the same with `supply(source, tokens)` in the place of each source that is
        supplied per draw; `tokens` are to be drawn of it.
        """
        if self.mixed:
            mixed = tuple(part.supplied(supply) for part in self.mixed)
            return self._with(mixed=mixed, parts=_weighed(self.shares, mixed))
        budgets = [
            self.samples * self.length if quota.tokens is None else quota.tokens
            for quota in self._quotas()
        ]
        parts = zip(self.parts, budgets, strict=True)
        return self._with(
            parts=tuple(
                replace(t, source=supply(t.source, n)) if isinstance(t.source, PerDraw) else t
                for t, n in parts
            )
        )

    def redrawn(self, seed: int) -> "CalibrationSet":
        """Return the same set's draw `seed`. `DataError` for one that can't be had."""
        check_budget(self.samples, self.length, self.budget, seed)
        return self._with(seed=seed, mixed=tuple(part.redrawn(seed) for part in self.mixed))

    def _of_sum(self, read: Sum) -> "CalibrationSet":
        """Return the sum of these parts, with the budget and the draw of this set."""
        terms = tuple(map(term_of, read))
        return self._with(expr=written(terms), parts=terms, mixed=(), names=(), shares=())

    def _with(self, **fields: Any) -> "CalibrationSet":
        """Return a copy in which these fields are others; its text stays."""
        changed = copy.copy(self)
        changed._fill(**fields)
        return changed

    def _fill(self, **fields: Any) -> None:
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> list[list[Row]]:
        """Return the rows of each part of this draw, in the order in which they were used."""
        if self.mixed:
            return [rows for part in self.mixed for rows in part.rows(tokenizer)]
        decks = self._decks(self.seed)
        return [part.rows for part in self._deal_all(decks, IdEncoder(tokenizer))]

    def kinds(self, tokenizer: PreTrainedTokenizerBase) -> Int8[Tensor, "sample position"]:
        """Return what each token of `tokens(tokenizer).ids` is, as an index into `KINDS`; 0
        where there is none.
        """
        if self.mixed:
            return torch.cat([part.kinds(tokenizer) for part in self.mixed])
        decks = self._decks(self.seed)
        ids, mask = self._laid_out(self._deal_all(decks, KindEncoder(tokenizer)))
        return torch.from_numpy(np.where(mask, np.maximum(ids, 0), 0).astype(np.int8))

    def most_tokens(self, tokenizer: PreTrainedTokenizerBase, most: int) -> int:
        """Return the largest budget in real tokens, up to `most`, for which the sources hold one
        draw; 0 if they hold nothing.

        >>> from calibrant.testing import tiny_tokenizer
        >>> CalibrationSet("python_docs", length=64).most_tokens(tiny_tokenizer(), most=5_000)
        5000
        """
        if self.mixed:
            return min(part.most_tokens(tokenizer, most) for part in self.mixed)
        # What a part lacks lowers the others' share too, and rounding may cost a token or two: so
        # it is tried again.
        while most > 0:
            try:
                self._with(budget=most, seed=0)._deal(0, self._decks(0), IdEncoder(tokenizer))
            except TooFew as error:
                most = min(most - 1, error.tokens)
            else:
                break
        return most

    def disjoint_draws(self, tokenizer: PreTrainedTokenizerBase, most: int = 64) -> int | None:
        """How many draws of this budget share no row: `most` if there are that many or more,
        none if the set is all controls, which have no end.
        """
        if self.mixed:
            return min(
                (
                    n
                    for part in self.mixed
                    if (n := part.disjoint_draws(tokenizer, most)) is not None
                ),
                default=None,
            )
        encoder = IdEncoder(tokenizer)
        ends = [
            end
            for term in self.parts
            if isinstance(term.source, PerDraw) and (end := term.source.disjoint()) is not None
        ]
        most = min([most, *ends])
        if all(
            term.source.kind == "control" or isinstance(term.source, PerDraw) for term in self.parts
        ):
            return most if ends else None
        decks = self._decks(-1)  # what has rows of its own for each draw isn't dealt
        for number in range(most):
            parts = self._deal(number, decks, encoder)
            if any(
                decks[term.source].overlap(part.rows)
                for term, part in zip(self.parts, parts, strict=True)
            ):
                return number
        return most

    def _decks(self, draw: int) -> dict[Source, Deck]:
        return {term.source: Deck(term.source, draw, self.part) for term in self.parts}

    def _deal_all(self, decks: Mapping[Source, Deck], encoder: Encoder) -> list[PartDraw]:
        # Earlier draws are dealt again, because which rows they took is what this draw may not
        # take.
        for number in range(self.seed):
            self._deal(number, decks, encoder)
        return self._deal(self.seed, decks, encoder)

    def _deal(self, number: int, decks: Mapping[Source, Deck], encoder: Encoder) -> list[PartDraw]:
        """Draw `number` of every part; a control deals only in the draw that it was opened for."""
        frame = Frame(self.length, encoder.text, number)
        if any(
            self.length <= sum(map(len, encoder.starts(term.packing, term.format)))
            for term in self.parts
        ):
            raise DataError(
                f"length is {self.length}: the start token leaves no room for text; raise --length",
                subject="length",
            )
        for deck in decks.values():
            deck.begin(number)
        return [
            draw(term, quota, decks[term.source], encoder, frame)
            if decks[term.source].deals(number)
            else PartDraw()
            for term, quota in zip(self.parts, self._quotas(), strict=True)
        ]

    def _quotas(self) -> list[Quota]:
        """Return how much of each part is drawn: its share of the real tokens; where windows
        aren't filled, its share of the windows.
        """
        shares = [term.share for term in self.parts]
        tokens = _divide(self.samples * self.length if self.budget is None else self.budget, shares)
        windows = _divide(self.samples, shares)
        for term, count in zip(self.parts, tokens, strict=True):
            if count < 1:
                raise DataError(
                    f"{term} gets none of {sum(tokens)} tokens in {self.expr!r}; raise --tokens or its weight",
                    subject=str(term),
                )
        by_window = [self.budget is None and not term.packing.fills for term in self.parts]
        flags = "--samples or --length" if self.budget is None else "--tokens or --length"
        return [
            Quota(windows=max(1, w), flags=flags, share=share)
            if by
            else Quota(tokens=t, flags=flags, share=share)
            for by, t, w, share in zip(by_window, tokens, windows, shares, strict=True)
        ]

    def _laid_out(self, drawn: Sequence[PartDraw]) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask [sample, position] of all sequences; `PAD` in the ids where a pad counts
        as a token.
        """
        sequences = [
            sequence for part in drawn for window in part.windows for sequence in window.sequences()
        ]
        if len(sequences) * self.length > MOST_TOKENS:
            much = f"{len(sequences):,} sequences in windows of {self.length:,} tokens, most of them empty"
            raise DataError(
                f"{self.expr!r} gives {much}: more than there is room for; lower --length",
                subject=self.expr,
            )
        ids, mask = (
            np.zeros((len(sequences), self.length), dtype=np.int32),
            np.zeros((len(sequences), self.length), dtype=np.bool_),
        )
        for at, sequence in enumerate(sequences):
            ids[at, : len(sequence)], mask[at, : len(sequence)] = sequence, True
        return ids, mask

    def _mixture(self, batches: Sequence[TokenBatch]) -> TokenBatch:
        """Return all batches as one whose mass is that of all together: with shares like their
        tokens' it is the pooled set.
        """
        # Statistics are divided by their set's own mass and multiplied by its share of the mass of
        # all: one walk then sees what the mix says.
        masses = [float(batch.weights.double().sum()) for batch in batches]
        factors = [
            float(share) * sum(masses) / mass
            for share, mass in zip(self.shares, masses, strict=True)
        ]
        weights = torch.cat(
            [batch.weights * factor for batch, factor in zip(batches, factors, strict=True)]
        )
        parts = [
            {**fact, "share": float(share) * fact["share"], "weight": factor * fact["weight"]}
            for batch, share, factor in zip(batches, self.shares, factors, strict=True)
            for fact in batch.facts["parts"]
        ]
        whole = {
            "data": self.expr,
            "draw": self.seed,
            "windows": sum(batch.facts["windows"] for batch in batches),
            "length": self.length,
            "tokens": sum(batch.facts["tokens"] for batch in batches),
            "pads": sum(batch.facts["pads"] for batch in batches),
            "overlap": sum(part["overlap"] * part["rows"] for part in parts)
            / sum(part["rows"] for part in parts),
            "parts": parts,
            "mix": [
                {
                    "name": name,
                    "weight": float(share),
                    "mass": mass,
                    "fingerprint": batch.fingerprint,
                    **{key: batch.facts[key] for key in ("data", "windows", "tokens", "overlap")},
                }
                for name, share, mass, batch in zip(
                    self.names, self.shares, masses, batches, strict=True
                )
            ],
        }
        digest = hashlib.sha256(
            "".join(
                [
                    "mix\n",
                    *(f"{s} {b.fingerprint}\n" for s, b in zip(self.shares, batches, strict=True)),
                ]
            ).encode()
        )
        examples = tuple(sorted({example for batch in batches for example in batch.examples}))
        pads = (
            torch.cat([torch.zeros_like(b.mask) if b.pads is None else b.pads for b in batches])
            if whole["pads"]
            else None
        )
        tensors = (
            torch.cat([batch.ids for batch in batches]),
            torch.cat([batch.mask for batch in batches]),
            weights,
        )
        rows = tuple(row for batch in batches for row in batch.rows)
        return TokenBatch(
            *tensors,
            "sha256:" + digest.hexdigest(),
            whole,
            examples,
            pads,
            tuple(zip(factors, batches, strict=True)),
            rows,
        )


def check_budget(samples: int, length: int, tokens: int | None, seed: int) -> None:
    """Raise `DataError` for a budget or a draw that can't be had, before anything is read or
    reserved for it.
    """
    limits = {
        "samples": (samples, 1, MOST_TOKENS),
        "length": (length, 1, LONGEST_WINDOW),
        "tokens": (tokens, 1, MOST_TOKENS),
    }
    for name, (value, least, most) in {**limits, "seed": (seed, 0, LAST_DRAW)}.items():
        if value is not None and not least <= value <= most:
            allowed = f"at least {least}" if value < least else f"at most {most:,}"
            raise DataError(f"{name} is {brief(value)}; it must be {allowed}", subject=name)
    if tokens is None and samples * length > MOST_TOKENS:
        much = f"{samples:,} samples of {length:,} tokens are {samples * length:,}"
        raise DataError(
            f"{much}, and {MOST_TOKENS:,} are the most that a draw may have; lower one of them",
            subject="samples",
        )


def fingerprint(ids: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> str:
    """Return the tagged SHA-256 of a batch: shape, ids as little-endian int32, mask as bits,
    weights as little-endian float32.
    """
    digest = hashlib.sha256(f"{ids.shape[0]} {ids.shape[1]}\n".encode())
    for part in (ids.astype("<i4"), np.packbits(mask), weights.astype("<f4")):
        digest.update(part.tobytes())
    return "sha256:" + digest.hexdigest()


def _weighed(shares: Sequence[Fraction], mixed: Sequence[CalibrationSet]) -> tuple[Term, ...]:
    """Return the terms of all sets, each with its share of the whole."""
    terms: list[Term] = []
    for share, part in zip(shares, mixed, strict=True):
        terms += [replace(term, share=share * term.share) for term in part.parts]
    return tuple(terms)


def _divide(whole: int, shares: Sequence[Fraction]) -> list[int]:
    """Return `whole` in integer parts as near to `shares` as can be: rounded down, then one more
    for the largest remainders, earlier parts first.
    """
    parts = [int(whole * share) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda i: (parts[i] - whole * shares[i], i))
    for i in remainders[: whole - sum(parts)]:
        parts[i] += 1
    return parts


def _facts(term: Term, part: PartDraw, deck: Deck, weight: float) -> dict[str, Any]:
    return {
        "data": str(term),
        "family": family_of(term.source),
        "share": float(term.share),
        "weight": weight,
        "windows": len(part.windows),
        "sequences": sum(len(window.sequences()) for window in part.windows),
        "tokens": part.tokens,
        "rows": len(part.rows),
        "passed_over": part.passed_over,
        "truncated": sum(window.broken for window in part.windows),
        "bos": term.packing.bos,
        "rows_held": None if deck.endless else len(deck.content.rows),
        "overlap": deck.overlap(part.rows),
        "duplicates_dropped": deck.content.duplicates,
        "overlapping_dropped": deck.content.overlapping,
        "row_lengths": [
            int(n) for n in np.quantile(part.lengths, [0, 0.25, 0.5, 0.75, 1], method="lower")
        ],
        "digest": deck.digest(part.rows),
        "origin": deck.content.origin,
        "note": deck.content.note,
        "hub": asdict(term.source.hub) if term.source.hub else None,
        "licence": term.source.licence,
    }
