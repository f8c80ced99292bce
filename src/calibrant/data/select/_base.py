"""Says what a selector is: rows that are chosen or made with the help of a model stand where a
source's name stands.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from transformers import PreTrainedTokenizerBase

from calibrant.data import (
    CalibrationSet,
    Part,
    PartRows,
    PerDraw,
    Row,
    Source,
    StoredSource,
)
from calibrant.data._base import Format, joined
from calibrant.data._templates import RefusedError
from calibrant.data.expression import Term, parse_expression
from calibrant.data.given import OwnData, own_behind
from calibrant.errors import DataError, SpecError
from calibrant.models import Opened
from calibrant.models.cache import cache_folder
from calibrant.models.reading import reading_digest
from calibrant.numerics import type_name
from calibrant.spec import canonical, check_most, identity
from calibrant.system.durable import put, read_json, sealed, short, text_of_json
from calibrant.system.progress import Progress, silent
from calibrant.system.seals import Purpose, tell_made_again

MOST: Final = 1_000_000
"""The upper bound of all that a selector counts: candidates, steps, texts in a batch."""

REVISION: Final = 1
"""Raised when the same texts are put into another order than before by something that all
selectors share.
"""


@dataclass(frozen=True)
class Context:
    """What a selector may use. `opened` is the untouched model, None where only a tokenizer is at
    hand.

    `draw` is the number of the draw, `tokens` how many real tokens are to come of it, `length`
    those of a window.
    """

    tokenizer: PreTrainedTokenizerBase
    opened: Opened | None
    draw: int
    tokens: int
    length: int
    progress: Progress = silent

    def model(self, selector: "Selector") -> Opened:
        """Return the untouched model. `DataError` where there is none."""
        if self.opened is None:
            raise DataError(
                f"{selector} needs the model, and there is only a tokenizer here; name one with "
                "--model",
                subject=str(selector),
            )
        return self.opened


@dataclass(frozen=True)
class Selection:
    """What was chosen, the best first: a budget takes from the top. `note` says in a sentence
    how it went.
    """

    rows: tuple[Row, ...]
    note: str = ""


class Selector(PerDraw, ABC):
    """Chooses or makes rows for one draw.

    `needs_model` says that a tokenizer alone doesn't suffice; `after` names the paper whose choice
    it is.

    It is pure: the same context gives the same rows. A selector has no rows by itself; `supplied`
    returns one that has.
    """

    needs_model: ClassVar[bool] = True
    after: ClassVar[str] = ""
    _rows_of_draw: Callable[[int], PartRows] | None = None

    @abstractmethod
    def select(self, context: Context) -> Selection:
        """Return the rows of a draw."""

    def supplied(self, context: Context) -> "Selector":
        """Return an equal selector that has rows: those that it chooses in this context, for any
        draw.
        """

        @cache
        def rows_of_draw(draw: int) -> PartRows:
            selection = self.select(replace(context, draw=draw))
            origin = f"chosen by {self}"
            return PartRows(
                selection.rows, origin=origin, note=selection.note, lost=_lost_behind(self)
            )

        # No field, so that the copy is equal: the rows are no part of what the selector is.
        copied = copy.copy(self)
        object.__setattr__(copied, "_rows_of_draw", rows_of_draw)
        return copied

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        if part == "calibrate":
            return iter(self.for_draw(seed).rows)
        return self.measured().rows(part, seed)

    def for_draw(self, draw: int) -> PartRows:
        if self._rows_of_draw is None:
            raise DataError(
                f"{self} has chosen no rows yet; give the set and a model to "
                "calibrant.data.select.resolved first",
                subject=str(self),
            )
        return self._rows_of_draw(draw)


def resolved(
    calibration: CalibrationSet,
    model: Opened | PreTrainedTokenizerBase,
    progress: Progress = silent,
) -> CalibrationSet:
    """Return the set with selectors that have rows. They choose when tokens are asked for, so until
    then the model must stay untouched.

    `model` may be a tokenizer alone. Then to ask for the tokens of a set whose selectors need a
    model is a `DataError`.
    """
    if not calibration.per_draw:
        return calibration
    opened = model if isinstance(model, Opened) else None
    tokenizer = model.tokenizer if isinstance(model, Opened) else model

    def supply(source: PerDraw, tokens: int) -> Source:
        if not isinstance(source, Selector):
            return source
        draw = calibration.seed
        context = Context(tokenizer, opened, draw, tokens, calibration.length, progress)
        return source.supplied(context)

    return calibration.supplied(supply)


def _lost_behind(selector: Selector) -> str:
    """Return what is lost of the files that a selector's rows are chosen from, by their names."""
    notes: dict[OwnData, str] = {}
    for source in own_behind(selector):
        lost = source.part("calibrate").lost
        if lost:
            notes[source] = f"{source}: {lost}"
    return joined(*notes.values())


class Picking(Selector, ABC):
    """Picks from the rows of `source`: the next `candidates` rows of its calibrate part are those
    of a draw, round and round.

    `source` is the name of a source, whose rows keep their fields and are rendered by the format
    outside, or an expression such as `c4 + gsm8k:cot`, of which each candidate is rendered by its
    own format and becomes a text; weights say how many candidates each part gives.
    """

    source: str
    candidates: int

    def __post_init__(self) -> None:
        check_between(self, candidates=(1, MOST))
        if any(term.source.kind == "control" for term in self._terms):
            raise SpecError(
                f"{self.spec_name()}(source={self.source!r}): a control has nothing to choose",
                subject=self.source,
            )
        # These are facts of a class for other sources; here they are those of the sources within.
        licences = dict.fromkeys(term.source.licence for term in self._terms)
        self._set("licence", "; ".join(licences))
        self._set("homepage", self._terms[0].source.homepage)
        self._set("shown", all(term.source.shown for term in self._terms))
        if self._lone_term is None:
            self._set("kind", "corpus")
            self._set("fields", ("text",))
            return
        for name in ("kind", "fields", "sometimes", "default", "hub"):
            self._set(name, getattr(self._lone_term.source, name))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    @abstractmethod
    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        """Return which of `texts` to take, as indices, the best first and each at most once; and
        a sentence about it.
        """

    def beside(self, context: Context) -> Sequence[str]:
        """Return the texts beside the candidates on which the order depends, such as a target's.

        They are part of the name under which the order is kept in the cache.
        """
        del context
        return ()

    @property
    def origins(self) -> tuple[Source, ...]:
        """The sources within."""
        return tuple(term.source for term in self._terms)

    def disjoint(self) -> int | None:
        """Return how many draws have candidates of their own; the smallest source decides."""
        draws: list[int] = []
        for term, count in zip(self._terms, self._counts, strict=True):
            if not isinstance(term.source, PerDraw):
                draws.append(max(1, len(calibrate_rows(term.source)) // count))
                continue
            inner = term.source.disjoint()
            if inner is not None:
                draws.append(inner)
        return min(draws, default=None)

    def measured(self) -> Source:
        """Return the source within, if it is one."""
        if self._lone_term is None:
            raise DataError(
                f"{self} picks from several sources, of which none measures what it would; name "
                "one of them",
                subject=str(self),
            )
        inner = self._lone_term.source
        if isinstance(inner, PerDraw):
            return inner.measured()
        return inner

    def select(self, context: Context) -> Selection:
        candidates, refused = self._pool(context)
        rows = [row for row, _ in candidates]
        texts = [text for _, text in candidates]
        if self.needs_model:
            order, note = self._cached_order(texts, context)
        else:
            order, note = self.order(texts, context)
        distinct = set(order)
        if len(distinct) < len(order) or not distinct.issubset(range(len(rows))):
            raise DataError(
                f"{self} gave an order that names a candidate twice, or one that there isn't",
                subject=str(self),
            )
        chosen = tuple(rows[place] for place in order)
        refusals = ""
        if refused:
            refusals = f"{refused} refused by the model's chat template"
        return Selection(chosen, joined(f"{len(rows)} candidates", refusals, note))

    def _cached_order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        """Return the order from the user's cache, or make it: reading candidates with a model
        takes its time.
        """
        opened = context.model(self)
        candidate_keys = [Row(text=text).key for text in texts]
        keys_beside = [Row(text=text).key for text in self.beside(context)]
        # All that the order depends on, texts by their hashes: where any of it is another, so is
        # the file.
        request = [
            REVISION,
            canonical(self),
            opened.digest,
            type_name(opened.dtype),
            context.draw,
            context.length,
            candidate_keys,
            keys_beside,
            reading_digest(opened),
        ]
        digits = identity(request).removeprefix("sha256:")
        path = cache_folder() / "selected" / f"{digits}.json"
        purpose: Purpose = {"kind": "order of candidates", "of": digits}
        stored = read_cached(path, purpose, "an order of candidates")
        if stored is not None:
            return stored["order"], stored["note"]
        order, note = self.order(texts, context)
        write_cached(path, purpose, {"order": list(map(int, order)), "note": note})
        return order, note

    def _pool(self, context: Context) -> tuple[list[tuple[Row, str]], int]:
        """Return the candidates of a draw, each as the row that it would be and the text that it is
        chosen by, and how many the chat template refuses; what a format passes over is left out.
        """
        candidates: dict[str, tuple[Row, str]] = {}
        refused = 0
        for term, count in zip(self._terms, self._counts, strict=True):
            rows = self._candidates_of(term, count, context)
            rendered = rendered_rows(rows, term.format, context.tokenizer)
            refused += rendered.refused
            for row, text in rendered.rows:
                if self._lone_term is None:
                    row = Row(text=text)
                candidates[row.key] = (row, text)
        return list(candidates.values()), refused

    def _candidates_of(self, term: Term, count: int, context: Context) -> Sequence[Row]:
        if not isinstance(term.source, Selector):
            return dealt_rows(term.source, context.draw, count)
        # Tokens for as many texts as candidates, each at most as long as a window.
        inner = replace(context, tokens=count * context.length)
        return term.source.supplied(inner).for_draw(context.draw).rows[:count]

    @property
    def _terms(self) -> tuple[Term, ...]:
        return parsed_terms(self.source)

    @property
    def _counts(self) -> list[int]:
        return [max(1, round(term.share * self.candidates)) for term in self._terms]

    @property
    def _lone_term(self) -> Term | None:
        """The one part of `source`, if that names a source and no format: its rows keep their
        fields. None for any other expression, whose rows become texts.
        """
        terms = self._terms
        if len(terms) == 1 and self.source.strip() == str(terms[0].source):
            return terms[0]
        return None


class RenderedRows(NamedTuple):
    """Rows with their texts, and how many others the chat template refuses."""

    rows: list[tuple[Row, str]]
    refused: int


def rendered_rows(
    rows: Iterable[Row], form: Format, tokenizer: PreTrainedTokenizerBase
) -> RenderedRows:
    """Return the rows that a format takes with their texts. Raises `RefusedError` where the chat
    template refuses them all.
    """
    rendered: list[tuple[Row, str]] = []
    refusals: list[RefusedError] = []
    for row in filter(form.takes, rows):
        try:
            rendered.append((row, form.render(row, tokenizer)))
        except RefusedError as error:
            refusals.append(error)
    if refusals and not rendered:
        raise refusals[0]
    return RenderedRows(rendered, len(refusals))


parsed_terms: Final = lru_cache(maxsize=64)(parse_expression)
"""Expressions that selectors hold are read again and again, so they are remembered."""


def calibrate_rows(source: Source) -> tuple[Row, ...]:
    """Return the rows that may be chosen from, in their fixed order."""
    if isinstance(source, StoredSource):
        return source.part("calibrate").rows
    return tuple(source.rows("calibrate"))


def dealt_rows(source: Source, draw: int, count: int) -> list[Row]:
    """Return the next `count` rows of a source for a draw, round and round; all where it has
    fewer.
    """
    rows = calibrate_rows(source)
    begin = draw * count
    end = begin + min(count, len(rows))
    return [rows[place % len(rows)] for place in range(begin, end)]


def check_between(selector: Selector, **bounds: tuple[int | float, int | float]) -> None:
    """Raise `SpecError` for a field of the selector that isn't within its bounds, of which both
    are allowed.
    """
    for name, (least, most) in bounds.items():
        check_most(selector, **{name: most})
        value = getattr(selector, name)
        if value is not None and value < least:
            raise SpecError(
                f"{selector.spec_name()}({name}={value}): {name} must be at least {least:g}",
                subject=name,
            )


def read_cached(path: Path, purpose: Purpose, noun: str) -> dict[str, Any] | None:
    """Return what a file of the user's cache holds; None if it isn't there, or damaged, which is
    then told as `noun`.
    """
    if not path.is_file():
        return None
    try:
        return read_json(path, purpose, required=True)
    except DataError:
        tell_made_again(noun, short(path))
        return None


def write_cached(path: Path, purpose: Purpose, content: Mapping[str, Any]) -> None:
    """Write a file of the user's cache; where that can't be done, it is made again next time."""
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        put(path, text_of_json(sealed(content, purpose)).encode())
