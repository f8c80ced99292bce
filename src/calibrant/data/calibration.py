"""Draws calibration sets, which a model is shown while it is compressed."""

import copy
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from itertools import chain
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any, Final, SupportsIndex

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Part, PerDraw, Row, Source, family_of, joined
from calibrant.data._draw import Deck, PartDraw, Quota, TooFew, draw_part
from calibrant.data._encoding import KINDS, Encoder, IdEncoder, KindEncoder, RoleEncoder
from calibrant.data._files import known_suffix
from calibrant.data._limits import LAST_DRAW, LONGEST_WINDOW, MOST_TOKENS
from calibrant.data._marks import ROLES, Role
from calibrant.data.expression import Term, refuse_unquoted, term_of, text_of_source, written
from calibrant.data.formats.chat import Chat, unused_messages, weighs
from calibrant.data.given import Given, OwnData, as_source
from calibrant.data.packings._base import PAD, Frame, Window
from calibrant.data.packings.one import One
from calibrant.errors import DataError, InputError
from calibrant.spec.foreign import LONGEST_TEXT, brief
from calibrant.spec.grammar import Mix, SetLabel, Sum, read_set, written_mix
from calibrant.system.notebook import card, listing

__all__ = ["KINDS", "CalibrationSet", "TokenBatch", "fingerprint"]

WINDOWS: Final = 128
"""Windows of a set for which no budget is given."""
_WORDS: Final = re.compile(r"[^\W\d_]{2,}\s+[^\W\d_]{2,}")
"""Two words beside each other, as no expression has them outside quotes."""
_QUOTED: Final = re.compile(r"(?<!\w)('[^']*'|\"[^\"]*\")")
_SIGNS: Final = re.compile(r"[*=]|\w\(")
"""What an expression has and hardly a text: a share, an argument, a call."""


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Sequences of tokens, one a row: a whole window, or one text of a window whose texts can't see
    each other.

    `mask` is true on real tokens; elsewhere ids and weights are 0. `weights` are 1 on real tokens,
    unless the parts of a weighted sum would not have exactly their shares otherwise, or a chat
    weighs the roles. A token of weight 0 is read, and is as if it weren't counted. `fingerprint` is
    the tagged SHA-256 of all three. `facts` are plain data about where the tokens come from: a list
    `parts` with rows, tokens, overlap, digest, licence, … `examples` are the `Row.example` of
    all rows, sorted, and `rows` the rows themselves. Where the original study's packing makes pads
    count, `pads` is true on them, and so is `mask`.

    Of a mix these are the sequences of all its sets, with weights that make one walk see what the
    mix says. `mixed` are the batches of the sets, as each set is drawn alone. With each comes a
    factor: its statistics are multiplied with it before they are added. The fingerprint is that of
    the sets' fingerprints and shares.
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

    @property
    def mass(self) -> float:
        """The sum of all weights."""
        # In float64, because a batch has more tokens than float32 can count one by one.
        return float(self.weights.double().sum())

    @property
    def sets(self) -> tuple[tuple[float, "TokenBatch"], ...]:
        """The sets of a mix, each with its share of the mass, which is 0 where all weights are 0. A
        batch that is no mix is its own only set, with the share 1.
        """
        if not self.mixed:
            return ((1.0, self),)
        masses = [factor * batch.mass for factor, batch in self.mixed]
        whole = sum(masses)
        sets: list[tuple[float, TokenBatch]] = []
        for (_, batch), mass in zip(self.mixed, masses, strict=True):
            share = mass / whole if whole else 0.0
            sets.append((share, batch))
        return tuple(sets)


def factors_of(shares: Iterable[float], batches: Sequence[TokenBatch]) -> list[float]:
    """Return what the weights of each batch are multiplied with, so that it has its share of the
    mass of all: 1 where it has that already. A batch without mass has the factor 0.
    """
    masses = [batch.mass for batch in batches]
    whole = sum(masses)
    factors: list[float] = []
    for share, mass in zip(shares, masses, strict=True):
        factor = 0.0
        if mass:
            factor = share * whole / mass
        factors.append(factor)
    return factors


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

    **Objects** stand where an expression does. Their text in an expression is that of `as_source`.

    - Texts: a list of them, or another iterable. A text alone is an expression; `[text]` is data.
    - Conversations: a list of lists of `{"role": …, "content": …}`. They are rendered with the
      model's own chat template.
    - Rows: a `datasets.Dataset`, an `IterableDataset`, the train split of a `DatasetDict`, a table
      of pandas or polars, or any iterable of mappings. Their columns are found as those of a
      user's file are.
    - Token ids: a list of lists, a tensor or an array of one or two dimensions, or rows with
      `input_ids`, without what their `attention_mask` leaves out. They are used as they are given:
      each sequence is a window, none is cut, and no start token is added. One that is longer than
      `length` is refused; where all is ids, windows are as long as the longest.
    - A path, or a source of your own: `CalibrationSet(MySource(path="notes"))`.

    >>> CalibrationSet(["a text", "another text"])
    CalibrationSet("given(digest='f761fd90c77815cb')", length=2048, seed=0)

    All of an object is calibrated on, and nothing is held out; so it is with a file of token ids.
    Without `samples` and `tokens`, all that there is is used, 128 windows at most (`at_most`). With
    one of them the budget is exact, and too little is an error; both together are refused. Of what
    has no length, such as a stream, the first 20,000 rows are read.

    `part` says which rows of the sources are drawn: `calibrate`, or `measure` in what `held_out`
    gives. Where a part is a selector, `supplied` puts in its place what it chose.

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
    at_most: bool

    def __init__(
        self,
        data: "str | PathLike[str] | Source | Iterable[Any]",
        samples: int | None = None,
        length: int = 2048,
        tokens: int | None = None,
        seed: int = 0,
    ) -> None:
        at_most = samples is None and tokens is None
        check_one_budget(samples, tokens)
        if samples is None:
            samples = WINDOWS
        samples, length, tokens, seed = check_budget(samples, length, tokens, seed)
        # A set is its text, also where it was given as an object: that is what a record keeps.
        if not isinstance(data, str):
            data = text_of_source(as_source(data))
        self._set_fields(samples=samples, length=length, budget=tokens, seed=seed)
        self._set_fields(part="calibrate", at_most=at_most)
        try:
            self._read(data)
        except InputError as error:
            refuse_unquoted(data, error)
            if not _is_text(data):
                raise
            raise DataError(
                f"{brief(data)} is a text and no expression; to calibrate on it, give a list, "
                "data=[text], or name a file that it is in",
                subject=error.subject,
            ) from error

    def _read(self, expr: str) -> None:
        """Set the fields that an expression says."""
        parsed = read_set(expr)
        if isinstance(parsed, Mix):
            sets = tuple(self._sum(parts) for parts in parsed.sets)
            self._set_fields(
                at_most=any(member.at_most for member in sets),
                expr=written_mix(parsed.names, list(map(str, sets)), parsed.shares),
                parts=_weighted_terms(parsed.shares, sets),
                mixed=sets,
                names=parsed.names,
                shares=parsed.shares,
            )
        else:
            # What isn't a mix is its sum: every field is taken over.
            self._set_fields(**vars(self._sum(parsed)))
            longest = self._longest_sequence
            if longest is not None:
                self._set_fields(length=longest)

    def __str__(self) -> str:
        """Return the canonical expression, which says what the set is made of and not how much
        of it there is.
        """
        return self.expr

    def __repr__(self) -> str:
        budget = f", samples={self.samples}"
        if self.budget is not None:
            budget = f", tokens={self.budget}"
        if self.at_most:
            budget = ""
        part = ""
        if self.part != "calibrate":
            part = f", part={self.part!r}"
        return (
            f"CalibrationSet({self.expr!r}{budget}, length={self.length}, seed={self.seed}{part})"
        )

    def _repr_html_(self) -> str:
        budget = f"{self.samples} windows"
        if self.budget is not None:
            budget = f"{self.budget:,} real tokens"
        if self.at_most:
            budget = f"at most {budget}"
        lines: list[tuple[str, str, str, str]] = []
        for term in self.parts:
            share = f"{float(term.share):.4g}"
            lines.append((str(term), share, term.source.kind, term.source.licence))
        facts = {"budget": f"{budget} of {self.length:,} tokens", "draw": self.seed}
        parts = listing(("part", "share", "kind", "licence"), lines)
        return card(f"Calibration set {self.expr}", facts, inside=parts)

    @property
    def label(self) -> SetLabel:
        """The canonical expression in its parts, with the family of what it is made of."""
        if len(self.parts) == 1:
            return self.parts[0].label
        return SetLabel(self.expr, self.expr, family="mixed")

    @property
    def content_key(self) -> Hashable:
        """What the set reads and how, whatever its paths are called: of two sets with the same, one
        is the other again.
        """
        if self.mixed:
            return self.shares, tuple(member.content_key for member in self.mixed)
        return tuple(term.content_key for term in self.parts)

    @property
    def per_draw(self) -> bool:
        """Whether a part of it is supplied per draw, so that it has no tokens before that."""
        return any(isinstance(term.source, PerDraw) for term in self.parts)

    def held_out(self) -> "CalibrationSet":
        """Return the same set of what the sources measure on, to measure with it on other rows.
        Nothing is to be calibrated on it.

        `DataError` where a part has none.
        """
        parts: list[Term] = []
        for term in self.parts:
            if isinstance(term.source, PerDraw):
                term = replace(term, source=term.source.measured())
            parts.append(term)
        mixed = tuple(member.held_out() for member in self.mixed)
        return self._with(part="measure", parts=tuple(parts), mixed=mixed)

    def supplied(self, supply: Callable[[PerDraw, int], Source]) -> "CalibrationSet":
        """Return the same with `supply(source, tokens)` in the place of each source that is
        supplied per draw; `tokens` are to be drawn of it.
        """
        if self.mixed:
            mixed = tuple(member.supplied(supply) for member in self.mixed)
            return self._with(mixed=mixed, parts=_weighted_terms(self.shares, mixed))
        parts: list[Term] = []
        for term, quota in zip(self.parts, self._quotas(), strict=True):
            if isinstance(term.source, PerDraw):
                tokens = quota.tokens
                # Windows that texts don't fill hold an unknown number of tokens: at most these.
                if tokens is None:
                    tokens = self.samples * self.length
                term = replace(term, source=supply(term.source, tokens))
            parts.append(term)
        return self._with(parts=tuple(parts))

    def redrawn(self, seed: int) -> "CalibrationSet":
        """Return the same set's draw `seed`. `DataError` for one that can't be had."""
        *_, seed = check_budget(self.samples, self.length, self.budget, seed)
        return self._with(seed=seed, mixed=tuple(member.redrawn(seed) for member in self.mixed))

    def _sum(self, parsed: Sum) -> "CalibrationSet":
        """Return the sum of these parts, with the budget and the draw of this set."""
        terms = tuple(map(term_of, parsed))
        uses_all = False
        for term in terms:
            if isinstance(term.source, Given) or _longest_of(term.source):
                uses_all = True
                _check_sequences(term, self.length)
        return self._with(
            expr=written(terms),
            parts=terms,
            mixed=(),
            names=(),
            shares=(),
            at_most=self.at_most and uses_all,
        )

    @property
    def _longest_sequence(self) -> int | None:
        """How many tokens the longest window has where all of them are token ids of the user's."""
        longest = 0
        for term in self.parts:
            if not _longest_of(term.source):
                return None
            if not isinstance(term.packing, One) or term.packing.bos != "none":
                return None
            longest = max(longest, _longest_of(term.source))
        return longest

    def _with(self, **fields: Any) -> "CalibrationSet":
        """Return a copy in which these fields are others; its text stays."""
        changed = copy.copy(self)
        changed._set_fields(**fields)
        return changed

    def _set_fields(self, **fields: Any) -> None:
        # The class is frozen for its users; a frozen dataclass has no other way to set a field.
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def tokens(self, tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
        """Return the set as tokens.

        Raises `DataError` if a source can't be read or holds too little for the first draw.
        """
        if self.mixed:
            return self._mixture([member.tokens(tokenizer) for member in self.mixed])
        decks, drawn = self._own_draw(IdEncoder(tokenizer))
        ids, mask = self._ids_and_mask(drawn)
        pads = mask & (ids == PAD)
        # Only now: as an id a pad couldn't be told from the same token in a text.
        ids[pads] = _pad_of(tokenizer)
        total = sum(part_draw.tokens for part_draw in drawn)
        part_facts: list[dict[str, Any]] = []
        rows: list[Row] = []
        for term, part_draw in zip(self.parts, drawn, strict=True):
            # Parts of whole windows miss their shares by a little; a weight on each of their tokens
            # makes the shares exact.
            weight = float(term.share * total / part_draw.tokens)
            part_facts.append(_facts(term, part_draw, decks[term.source], weight))
            rows += part_draw.rows
        weights = _weights(part_facts, mask)
        if any(isinstance(term.format, Chat) for term in self.parts):
            self._weigh_roles(tokenizer, part_facts, mask, weights)
        counted_pads = None
        if pads.any():
            counted_pads = torch.from_numpy(pads)
        windows = sum(len(part_draw.windows) for part_draw in drawn)
        return TokenBatch(
            torch.from_numpy(ids).long(),
            torch.from_numpy(mask),
            torch.from_numpy(weights),
            fingerprint(ids, mask, weights),
            self._batch_facts(windows, total, int(pads.sum()), part_facts),
            examples=tuple(sorted({row.example for row in rows})),
            pads=counted_pads,
            rows=tuple(rows),
        )

    def _batch_facts(
        self, windows: int, tokens: int, pads: int, part_facts: Sequence[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "data": self.expr,
            "draw": self.seed,
            "windows": windows,
            "length": self.length,
            "tokens": tokens,
            "pads": pads,
            "overlap": _mean_overlap(part_facts),
            "parts": part_facts,
        }

    def rows(self, tokenizer: PreTrainedTokenizerBase) -> list[list[Row]]:
        """Return the rows of each part of this draw, in the order in which they were used."""
        if self.mixed:
            return list(chain.from_iterable(member.rows(tokenizer) for member in self.mixed))
        _, drawn = self._own_draw(IdEncoder(tokenizer))
        return [part_draw.rows for part_draw in drawn]

    def kinds(self, tokenizer: PreTrainedTokenizerBase) -> Int8[Tensor, "sample position"]:
        """Return what each token of `tokens(tokenizer).ids` is, as an index into `KINDS`; 0
        where there is none.
        """
        if self.mixed:
            return torch.cat([member.kinds(tokenizer) for member in self.mixed])
        return torch.from_numpy(self._labels(KindEncoder(tokenizer))[0])

    def roles(self, tokenizer: PreTrainedTokenizerBase) -> Int8[Tensor, "sample position"]:
        """Return what each token of `tokens(tokenizer).ids` is of, as an index into `ROLES`; 0
        where there is none, and for texts that are no conversation.

        Raises `DataError` for conversations where the tokenizer isn't fast: it doesn't tell where
        in a text its tokens stand.
        """
        if self.mixed:
            return torch.cat([member.roles(tokenizer) for member in self.mixed])
        return torch.from_numpy(self._labels(RoleEncoder(tokenizer))[0])

    def _labels(self, encoder: Encoder) -> tuple[np.ndarray, list[PartDraw]]:
        """Return what an encoder gives in place of each token's id, 0 where there is none, and what
        every part gave.
        """
        # Dealt again: cuts and places are the same whatever stands for an id.
        _, drawn = self._own_draw(encoder)
        labels, mask = self._ids_and_mask(drawn)
        labels = np.maximum(labels, 0)  # a pad that counts is `PAD`, which is below 0
        return np.where(mask, labels, 0).astype(np.int8), drawn

    def _weigh_roles(
        self,
        tokenizer: PreTrainedTokenizerBase,
        part_facts: Sequence[dict[str, Any]],
        mask: np.ndarray,
        weights: np.ndarray,
    ) -> None:
        """Weigh the tokens of each chat in place, and add to its facts how many there are of each
        role, and what the model's template didn't write.
        """
        if not tokenizer.is_fast:
            self._check_weighs_nothing()
            return
        encoder = RoleEncoder(tokenizer)
        roles, drawn = self._labels(encoder)
        end = 0
        for term, part_draw, facts in zip(self.parts, drawn, part_facts, strict=True):
            begin = end
            end = begin + facts["sequences"]
            if not isinstance(term.format, Chat):
                continue
            counts = np.bincount(roles[begin:end][mask[begin:end]], minlength=len(ROLES))
            facts |= _chat_facts(part_draw.rows, term.format, encoder)
            facts["roles"] = dict(zip(ROLES, counts.tolist(), strict=True))
            facts["cut_reasoning"] = _cut_within("reasoning", part_draw.windows)
            if weighs(term.format):
                weights[begin:end] *= term.format.weights()[roles[begin:end]]
                if not weights[begin:end].any():
                    raise DataError(
                        f"none of the {part_draw.tokens:,} tokens of {term} is of what it weighs; "
                        "raise length, so that the answers fit, or give others=0.1",
                        subject=str(term),
                    )

    def _check_weighs_nothing(self) -> None:
        """Raise `DataError` for a part that weighs tokens by their role."""
        for term in self.parts:
            if weighs(term.format):
                raise DataError(
                    f"{term} weighs tokens by who says them, and this model's tokenizer doesn't "
                    "tell where in a text they stand; leave out weigh",
                    subject=str(term),
                )

    def most_tokens(self, tokenizer: PreTrainedTokenizerBase, most: int) -> int:
        """Return the largest budget in real tokens, up to `most`, for which the sources hold one
        draw; 0 if they hold nothing.

        >>> from calibrant.testing import tiny_tokenizer
        >>> CalibrationSet("python_docs", length=64).most_tokens(tiny_tokenizer(), most=5_000)
        5000
        """
        if self.mixed:
            return min(member.most_tokens(tokenizer, most) for member in self.mixed)
        # What a part lacks lowers the others' share too, and rounding may cost a token or two: so
        # it is tried again.
        while most > 0:
            attempt = self._with(budget=most, seed=0)
            try:
                attempt._deal_draw(0, self._decks(0), IdEncoder(tokenizer))
            except TooFew as error:
                most = min(most - 1, error.tokens)
            else:
                break
        return most

    def fitted(self, tokenizer: PreTrainedTokenizerBase) -> "CalibrationSet":
        """Return the same set with a budget that its sources hold: its own, or all that there is
        where that is less.

        Raises `DataError` if they hold nothing.
        """
        if self.mixed:
            mixed = tuple(member.fitted(tokenizer) for member in self.mixed)
            return self._with(mixed=mixed, at_most=False)
        exact = self._with(at_most=False)
        try:
            exact._deal_draw(0, exact._decks(0), IdEncoder(tokenizer))
        except TooFew as error:
            tokens = exact.most_tokens(tokenizer, error.tokens)
            if not tokens:
                raise
            return exact._with(budget=tokens)
        return exact

    def disjoint_draws(
        self,
        tokenizer: PreTrainedTokenizerBase,
        most: int = 64,
        encoder: IdEncoder | None = None,
    ) -> int | None:
        """Return how many draws of this budget share no row: `most` if there are that many or
        more, None if the set is all controls, which have no end.

        An `encoder` of the same tokenizer remembers rows, for who asks about several budgets.
        """
        if encoder is None:
            encoder = IdEncoder(tokenizer)
        if self.at_most:
            return self.fitted(tokenizer).disjoint_draws(tokenizer, most, encoder)
        if self.mixed:
            counts = [member.disjoint_draws(tokenizer, most, encoder) for member in self.mixed]
            return min((count for count in counts if count is not None), default=None)
        limits: list[int] = []
        are_dealt = False
        for term in self.parts:
            if isinstance(term.source, PerDraw):
                limit = term.source.disjoint()
                if limit is not None:
                    limits.append(limit)
            elif term.source.kind != "control":
                are_dealt = True
        if are_dealt:
            return self._draws_before_overlap(min([most, *limits]), encoder)
        if limits:
            return min([most, *limits])
        return None

    def _draws_before_overlap(self, most: int, encoder: Encoder) -> int:
        """Return after how many draws a row comes again; `most` where none does in so many."""
        # Decks of a draw that there isn't: what has rows of its own for each draw isn't dealt.
        decks = self._decks(-1)
        for number in range(most):
            drawn = self._deal_draw(number, decks, encoder)
            for term, part_draw in zip(self.parts, drawn, strict=True):
                if decks[term.source].overlap(part_draw):
                    return number
        return most

    def _decks(self, draw: int) -> dict[Source, Deck]:
        # By source: two parts of one source take turns at the same rows.
        return {term.source: Deck(term.source, draw, self.part) for term in self.parts}

    def _own_draw(self, encoder: Encoder) -> tuple[dict[Source, Deck], list[PartDraw]]:
        """Return the decks of this set, and what its own draw gives of every part."""
        decks = self._decks(self.seed)
        try:
            # Earlier draws are dealt again, because which rows they took is what this draw may not
            # take.
            for number in range(self.seed):
                self._deal_draw(number, decks, encoder)
            return decks, self._deal_draw(self.seed, decks, encoder)
        except TooFew:
            if not self.at_most:
                raise
            return self.fitted(encoder.tokenizer)._own_draw(encoder)

    def _deal_draw(
        self, number: int, decks: Mapping[Source, Deck], encoder: Encoder
    ) -> list[PartDraw]:
        """Return what draw `number` gives of every part.

        What has rows of its own for each draw deals only in the draw that its deck is for; in
        others it gives an empty `PartDraw`.
        """
        quotas = self._quotas()
        for term, quota in zip(self.parts, quotas, strict=True):
            text_start, window_start = encoder.starts(term.packing, term.format)
            if self.length <= len(text_start) + len(window_start):
                raise DataError(
                    f"length is {self.length}: the start token leaves no room for text; raise "
                    "length",
                    subject="length",
                )
            if quota.tokens is not None and quota.tokens <= len(window_start):
                raise DataError(
                    f"{term} gets {quota.tokens} token of {self.expr!r}, which is its start token "
                    "alone; raise tokens or its weight",
                    subject=str(term),
                )
        for deck in decks.values():
            deck.begin(number)
        frame = Frame(self.length, encoder.text, number)
        drawn: list[PartDraw] = []
        for term, quota in zip(self.parts, quotas, strict=True):
            deck = decks[term.source]
            part_draw = PartDraw()
            if deck.deals(number):
                part_draw = draw_part(term, quota, deck, encoder, frame)
            drawn.append(part_draw)
        return drawn

    def _quotas(self) -> list[Quota]:
        """Return how much of each part is drawn: its share of the real tokens; where windows
        aren't filled, its share of the windows.
        """
        shares = [term.share for term in self.parts]
        total = self.budget
        setting = "tokens"
        if total is None:
            total = self.samples * self.length
            setting = "samples"
        tokens = _divide(total, shares)
        windows = _divide(self.samples, shares)
        quotas: list[Quota] = []
        for place, term in enumerate(self.parts):
            if tokens[place] < 1:
                raise DataError(
                    f"{term} gets none of {total} tokens in {self.expr!r}; raise tokens or its "
                    "weight",
                    subject=str(term),
                )
            quota = Quota(tokens=tokens[place], setting=setting, share=term.share)
            # A window that isn't filled has an unknown number of tokens, so windows are counted:
            # at least one, however small the share.
            if self.budget is None and not term.packing.fills:
                quota = replace(quota, tokens=None, windows=max(1, windows[place]))
            quotas.append(quota)
        return quotas

    def _ids_and_mask(self, drawn: Sequence[PartDraw]) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and mask [sample, position] of all sequences; `PAD` in the ids where a pad
        counts as a token.
        """
        sequences: list[np.ndarray] = []
        for part_draw in drawn:
            for window in part_draw.windows:
                sequences += window.sequences()
        if len(sequences) * self.length > MOST_TOKENS:
            raise DataError(
                f"{self.expr!r} gives {len(sequences):,} sequences in windows of {self.length:,} "
                "tokens, most of them empty: more than there is room for; lower length",
                subject=self.expr,
            )
        ids = np.zeros((len(sequences), self.length), dtype=np.int32)
        mask = np.zeros((len(sequences), self.length), dtype=np.bool_)
        for place, sequence in enumerate(sequences):
            ids[place, : len(sequence)] = sequence
            mask[place, : len(sequence)] = True
        return ids, mask

    def _mixture(self, batches: Sequence[TokenBatch]) -> TokenBatch:
        """Return all batches as one, weighted by the mix's shares.

        The mass of the mix is the sum of all masses.
        """
        factors = factors_of(map(float, self.shares), batches)
        mixed = tuple(zip(factors, batches, strict=True))
        part_facts: list[dict[str, Any]] = []
        set_facts: list[dict[str, Any]] = []
        for name, share, (factor, batch) in zip(self.names, self.shares, mixed, strict=True):
            for fact in batch.facts["parts"]:
                in_mix = {"share": float(share) * fact["share"], "weight": factor * fact["weight"]}
                part_facts.append(fact | in_mix)
            set_facts.append(_set_facts(name, share, batch))
        windows = sum(batch.facts["windows"] for batch in batches)
        tokens = sum(batch.facts["tokens"] for batch in batches)
        pads = sum(batch.facts["pads"] for batch in batches)
        mix_facts = {**self._batch_facts(windows, tokens, pads, part_facts), "mix": set_facts}
        examples = set(chain.from_iterable(batch.examples for batch in batches))
        return TokenBatch(
            torch.cat([batch.ids for batch in batches]),
            torch.cat([batch.mask for batch in batches]),
            # One walk then sees what the mix says.
            torch.cat([batch.weights * factor for factor, batch in mixed]),
            _mixed_fingerprint(self.shares, batches),
            mix_facts,
            examples=tuple(sorted(examples)),
            pads=_joined_pads(batches),
            mixed=mixed,
            rows=tuple(chain.from_iterable(batch.rows for batch in batches)),
        )


def _is_text(data: str) -> bool:
    """Return whether what can't be read as an expression is plainly a text, and no path."""
    if "\n" in data.strip() or len(data) > LONGEST_TEXT:
        return True
    outside = _QUOTED.sub("", data)
    if "/" in data or known_suffix(Path(data)) or _SIGNS.search(outside):
        return False
    return bool(_WORDS.search(outside))


def _longest_of(source: Source) -> int:
    """Return how many tokens the longest sequence of a user's token ids has; 0 for other data."""
    if isinstance(source, OwnData):
        return source.longest
    return 0


def _check_sequences(term: Term, length: int) -> None:
    """Raise `DataError` for token ids that would be cut."""
    longest = _longest_of(term.source)
    if longest > length and isinstance(term.packing, One):
        raise DataError(
            f"{term.source} has a sequence of {longest:,} token ids, and windows have {length:,}; "
            f"give a length of {longest}, or cut it yourself",
            subject=str(term.source),
        )


def check_one_budget(samples: object, tokens: object) -> None:
    """Raise `DataError` where both are given: windows would be counted nowhere."""
    if samples is None or tokens is None:
        return
    raise DataError(
        f"samples is {brief(samples)} and tokens is {brief(tokens)}, and a budget is a number of "
        "windows or of real tokens; leave one out",
        subject="samples",
    )


def check_budget(
    samples: SupportsIndex,
    length: SupportsIndex,
    tokens: SupportsIndex | None,
    seed: SupportsIndex,
) -> tuple[int, int, int | None, int]:
    """Return a budget and a draw as Python's own numbers, which a record can hold. Raises
    `DataError` for what can't be had, before anything is read or reserved for it.
    """
    samples = _whole_between("samples", samples, 1, MOST_TOKENS)
    length = _whole_between("length", length, 1, LONGEST_WINDOW)
    if tokens is not None:
        tokens = _whole_between("tokens", tokens, 1, MOST_TOKENS)
    seed = _whole_between("seed", seed, 0, LAST_DRAW)
    if tokens is None and samples * length > MOST_TOKENS:
        raise DataError(
            f"{samples:,} samples of {length:,} tokens are {samples * length:,}, and "
            f"{MOST_TOKENS:,} are the most that a draw may have; lower one of them",
            subject="samples",
        )
    return samples, length, tokens, seed


def _whole_between(name: str, value: SupportsIndex, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise DataError(f"{name} is {brief(value)}; it must be a whole number", subject=name)
    whole = int(value)
    if least <= whole <= most:
        return whole
    allowed = f"at most {most:,}"
    if whole < least:
        allowed = f"at least {least}"
    raise DataError(f"{name} is {brief(whole)}; it must be {allowed}", subject=name)


def fingerprint(ids: np.ndarray, mask: np.ndarray, weights: np.ndarray) -> str:
    """Return the tagged SHA-256 of a batch: shape, ids as little-endian int32, mask as bits,
    weights as little-endian float32.
    """
    digest = hashlib.sha256(f"{ids.shape[0]} {ids.shape[1]}\n".encode())
    digest.update(ids.astype("<i4").tobytes())
    digest.update(np.packbits(mask).tobytes())
    digest.update(weights.astype("<f4").tobytes())
    return "sha256:" + digest.hexdigest()


def _mixed_fingerprint(shares: Sequence[Fraction], batches: Sequence[TokenBatch]) -> str:
    """Return the tagged SHA-256 of a mix: of each set's share and fingerprint."""
    text = "mix\n"
    for share, batch in zip(shares, batches, strict=True):
        text += f"{share} {batch.fingerprint}\n"
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _pad_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id that stands for a pad: the pad token's, else the end token's, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def _joined_pads(batches: Sequence[TokenBatch]) -> Tensor | None:
    """Return the pads of all batches, None where no batch has any."""
    if all(batch.pads is None for batch in batches):
        return None
    pads: list[Tensor] = []
    for batch in batches:
        if batch.pads is None:
            pads.append(torch.zeros_like(batch.mask))
        else:
            pads.append(batch.pads)
    return torch.cat(pads)


def _weights(part_facts: Sequence[Mapping[str, Any]], mask: np.ndarray) -> np.ndarray:
    """Return the weight of each token, which is that of its part."""
    # In float32, as the fingerprint has them.
    by_part = np.array([facts["weight"] for facts in part_facts], dtype=np.float32)
    by_sequence = np.repeat(by_part, [facts["sequences"] for facts in part_facts])
    return by_sequence[:, None] * mask


def _set_facts(name: str, share: Fraction, batch: TokenBatch) -> dict[str, Any]:
    """Return what a record keeps about one set of a mix."""
    return {
        "name": name,
        "weight": float(share),
        "mass": batch.mass,
        "fingerprint": batch.fingerprint,
        "data": batch.facts["data"],
        "windows": batch.facts["windows"],
        "tokens": batch.facts["tokens"],
        "overlap": batch.facts["overlap"],
    }


def _mean_overlap(parts: Sequence[dict[str, Any]]) -> float:
    """Return the share of all rows that earlier draws used too."""
    rows = sum(part["rows"] for part in parts)
    return sum(part["overlap"] * part["rows"] for part in parts) / rows


def _weighted_terms(
    shares: Sequence[Fraction], mixed: Sequence[CalibrationSet]
) -> tuple[Term, ...]:
    """Return the terms of all sets, each with its share of the whole."""
    terms: list[Term] = []
    for share, member in zip(shares, mixed, strict=True):
        terms += [replace(term, share=share * term.share) for term in member.parts]
    return tuple(terms)


def _divide(whole: int, shares: Sequence[Fraction]) -> list[int]:
    """Return `whole` in integer parts as near to `shares` as can be.

    Each is rounded down; then those with the largest remainders get one more, earlier parts first.
    """
    # Shares are fractions: with floats the remainders of equal shares could differ.
    parts = [int(whole * share) for share in shares]
    # At most 0: the remainder with its sign turned, so that the largest sorts first.
    excess = [part - whole * share for part, share in zip(parts, shares, strict=True)]
    by_remainder = sorted(range(len(shares)), key=lambda place: (excess[place], place))
    for place in by_remainder[: whole - sum(parts)]:
        parts[place] += 1
    return parts


def _facts(term: Term, part_draw: PartDraw, deck: Deck, weight: float) -> dict[str, Any]:
    """Return what a record keeps about one part of a draw."""
    # The lower of two lengths, so that each is one that a row has.
    quartiles = np.quantile(part_draw.lengths, [0, 0.25, 0.5, 0.75, 1], method="lower")
    rows_held = None if deck.endless else len(deck.content.rows)
    hub = asdict(term.source.hub) if term.source.hub else None
    sequences = 0
    truncated = 0
    for window in part_draw.windows:
        sequences += len(window.sequences())
        if window.broken:
            truncated += 1
    unused = unused_messages(part_draw.rows, term.format)
    facts: dict[str, Any] = {
        "data": str(term),
        "family": family_of(term.source),
        "share": float(term.share),
        "weight": weight,
        "windows": len(part_draw.windows),
        "sequences": sequences,
        "tokens": part_draw.tokens,
        "rows": len(part_draw.rows),
        "passed_over": part_draw.passed_over,
        "refused": dict(part_draw.refused),
        "too_short": len(part_draw.too_short),
        "truncated": truncated,
        "bos": term.packing.bos,
        "rows_held": rows_held,
        "overlap": deck.overlap(part_draw),
        "duplicates_dropped": deck.content.duplicates,
        "overlapping_dropped": deck.content.overlapping,
        "row_lengths": [int(length) for length in quartiles],
        "digest": deck.digest(part_draw.rows),
        "origin": deck.content.origin,
        "note": joined(deck.content.note, unused),
        "hub": hub,
        "licence": term.source.licence,
    }
    lost = joined(deck.content.lost, unused)
    if lost:
        facts["lost"] = f"{term}: {lost}"
    return facts


def _cut_within(role: Role, windows: Sequence[Window]) -> int:
    """Return how many windows cut a text within what is of this role. In place of ids they hold
    roles.
    """
    count = 0
    for window in windows:
        if window.broken and window.ids[-1] == ROLES.index(role):
            count += 1
    return count


def _chat_facts(rows: Sequence[Row], form: Chat, encoder: RoleEncoder) -> dict[str, Any]:
    """Return what a record keeps about the conversations of a part: how many texts of each role the
    template left out, and in how many rows it isn't known who says what.
    """
    unwritten = Counter[str]()
    unclear = 0
    for row in rows:
        result = encoder.written(row, form)
        unwritten.update(result.unwritten)
        unclear += not result.stretches
    return {"unwritten": dict(unwritten), "unclear": unclear}
