"""What a selector is: rows that are chosen or made with the help of a model stand where a
source's name stands.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import ClassVar, Final, Literal

from transformers import PreTrainedTokenizerBase

from calibrant.data import (
    CalibrationSet,
    HubDataset,
    Part,
    PartRows,
    PerDraw,
    Row,
    Source,
    StoredSource,
)
from calibrant.data.expression import Term, parse_expression
from calibrant.errors import DataError, SpecError
from calibrant.models import Opened
from calibrant.models.cache import cache_folder
from calibrant.spec import canonical, identity
from calibrant.system.durable import put, read_json, sealed, short, text_of_json
from calibrant.system.progress import Progress, silent
from calibrant.system.seals import Purpose, tell_made_again

Kind = Literal["corpus", "questions", "control"]

MOST: Final = 1_000_000
"""Of whatever a selector counts: candidates, steps, texts in a batch."""

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
    """Chooses or makes rows for one draw. `needs_model` says whether a tokenizer alone doesn't
    suffice, `after` names the paper whose choice it is.

    It is pure: the same context gives the same rows. `supplied` is the same selector with rows to
    deal; before that it has none.
    """

    needs_model: ClassVar[bool] = True
    after: ClassVar[str] = ""
    _supply: Callable[[int], PartRows] | None = None

    @abstractmethod
    def select(self, context: Context) -> Selection:
        """Return the rows of a draw."""

    def supplied(self, context: Context) -> "Selector":
        """Return the same, and equal to it, with the rows that it chooses in this context, and
        for other draws in one like it.
        """

        @cache
        def supply(draw: int) -> PartRows:
            selection = self.select(replace(context, draw=draw))
            return PartRows(selection.rows, origin=f"chosen by {self}", note=selection.note)

        ready = copy.copy(self)
        object.__setattr__(ready, "_supply", supply)
        return ready

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        return (
            iter(self.for_draw(seed).rows)
            if part == "calibrate"
            else self.measured().rows(part, seed)
        )

    def for_draw(self, draw: int) -> PartRows:
        if self._supply is None:
            raise DataError(
                f"{self} has chosen no rows yet; calibrant.data.select.resolved(set, model) lets "
                "it",
                subject=str(self),
            )
        return self._supply(draw)


def resolved(
    calibration: CalibrationSet,
    model: Opened | PreTrainedTokenizerBase,
    progress: Progress = silent,
) -> CalibrationSet:
    """Return the set with all its selectors ready to deal; they choose when tokens are asked for,
    so until then the model must stay untouched.

    With a tokenizer alone in the place of the model, tokens of a set whose selectors need one are a
    `DataError`.
    """
    opened, tokenizer = (model, model.tokenizer) if isinstance(model, Opened) else (None, model)

    def supply(source: PerDraw, tokens: int) -> Source:
        return (
            source.supplied(
                Context(tokenizer, opened, calibration.seed, tokens, calibration.length, progress)
            )
            if isinstance(source, Selector)
            else source
        )

    return calibration.supplied(supply) if calibration.per_draw else calibration


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
        if self.candidates < 1:
            raise SpecError(
                f"{self.spec_name()}(candidates={self.candidates}): it must have at least 1 to "
                "choose from",
                subject="candidates",
            )
        if self.candidates > MOST:
            raise SpecError(
                f"{self.spec_name()}(candidates={self.candidates}): it may have {MOST:,} to "
                "choose from",
                subject="candidates",
            )
        if any(term.source.kind == "control" for term in self._terms):
            raise SpecError(
                f"{self.spec_name()}(source={self.source!r}): a control has nothing to choose",
                subject=self.source,
            )

    @abstractmethod
    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        """Return which of `texts` to take, as indices, the best first and each at most once; and
        a sentence about it.
        """

    def beside(self, context: Context) -> Sequence[str]:
        """Return texts other than the candidates on which the order depends: they belong to what
        the cache knows it by.
        """
        del context
        return ()

    @property
    def kind(self) -> Kind:  # pyright: ignore[reportIncompatibleVariableOverride]  # here it depends on the source within
        """The source's; texts are a corpus."""
        return self._whole.source.kind if self._whole else "corpus"

    @property
    def fields(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The source's; texts have only themselves."""
        return self._whole.source.fields if self._whole else ("text",)

    @property
    def sometimes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The source's."""
        return self._whole.source.sometimes if self._whole else ()

    @property
    def default(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The source's format."""
        return self._whole.source.default if self._whole else ""

    @property
    def shown(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether every licence lets rows be quoted."""
        return all(term.source.shown for term in self._terms)

    @property
    def licence(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Those of all sources within."""
        return "; ".join(dict.fromkeys(term.source.licence for term in self._terms))

    @property
    def homepage(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the first source within."""
        return self._terms[0].source.homepage

    @property
    def hub(self) -> HubDataset | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """That of the source within, if it is one."""
        return self._whole.source.hub if self._whole else None

    @property
    def origins(self) -> tuple[Source, ...]:
        """The sources within."""
        return tuple(term.source for term in self._terms)

    def disjoint(self) -> int | None:
        """Return how often the rows of the source that has the fewest suffice for as many
        candidates.
        """
        several = [
            (term.source, count) for term, count in zip(self._terms, self._counts, strict=True)
        ]
        inner = [source.disjoint() for source, _ in several if isinstance(source, PerDraw)]
        whole = [
            max(1, len(_calibrate(source)) // count)
            for source, count in several
            if not isinstance(source, PerDraw)
        ]
        return min((end for end in (*inner, *whole) if end is not None), default=None)

    def measured(self) -> Source:
        """Return the source within, if it is one."""
        if self._whole is None:
            raise DataError(
                f"{self} picks from several sources, of which none measures what it would; name "
                "one of them",
                subject=str(self),
            )
        inner = self._whole.source
        return inner.measured() if isinstance(inner, PerDraw) else inner

    def select(self, context: Context) -> Selection:
        pool = self._pool(context)
        rows, texts = [row for row, _ in pool], [text for _, text in pool]
        order, note = (
            self._cached_order(rows, texts, context)
            if self.needs_model
            else self.order(texts, context)
        )
        if not set(order) <= set(range(len(rows))) or len(set(order)) < len(order):
            raise DataError(
                f"{self} gave an order that names a candidate twice, or one that there isn't",
                subject=str(self),
            )
        return Selection(
            tuple(rows[at] for at in order),
            "; ".join(filter(None, [f"{len(rows)} candidates", note])),
        )

    def _cached_order(
        self, rows: Sequence[Row], texts: Sequence[str], context: Context
    ) -> tuple[Sequence[int], str]:
        """Return the order from the user's cache, or make it: reading candidates with a model
        takes its time.
        """
        opened = context.model(self)
        dtype = str(opened.dtype).removeprefix("torch.")
        read = [row.key for row in rows], list(self.beside(context))
        request = [
            REVISION,
            canonical(self),
            opened.digest,
            dtype,
            context.draw,
            context.length,
            *read,
        ]
        digits = identity(request).removeprefix("sha256:")
        path = cache_folder() / "selected" / f"{digits}.json"
        purpose: Purpose = {"kind": "order of candidates", "of": digits}
        if path.is_file():
            try:
                kept = read_json(path, purpose, required=True)
                return kept["order"], kept["note"]
            except DataError:
                tell_made_again("an order of candidates", short(path))
        order, note = self.order(texts, context)
        with suppress(OSError):  # where nothing can be written the order is made again
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = {"order": list(map(int, order)), "note": note}
            put(path, text_of_json(sealed(kept, purpose)).encode())
        return order, note

    def _pool(self, context: Context) -> list[tuple[Row, str]]:
        """The candidates of a draw, each as the row that it would be and the text that it is
        chosen by; what a format passes over is left out.
        """
        pool: list[tuple[Row, str]] = []
        for term, count in zip(self._terms, self._counts, strict=True):
            if isinstance(term.source, Selector):
                inner = replace(
                    context, tokens=count * context.length
                )  # as many texts as candidates, as far as can be told
                begin, rows = 0, term.source.supplied(inner).for_draw(context.draw).rows
            else:
                begin, rows = context.draw * count, _calibrate(term.source)
            dealt = [rows[at % len(rows)] for at in range(begin, begin + min(count, len(rows)))]
            texts = [
                (row, term.format.render(row, context.tokenizer))
                for row in dealt
                if term.format.takes(row)
            ]
            pool += texts if self._whole else [(Row(text=text), text) for _, text in texts]
        distinct = {row.key: (row, text) for row, text in pool}
        return list(distinct.values())

    @property
    def _terms(self) -> tuple[Term, ...]:
        return _parsed(self.source)

    @property
    def _counts(self) -> list[int]:
        return [max(1, round(term.share * self.candidates)) for term in self._terms]

    @property
    def _whole(self) -> Term | None:
        """The one source whose rows keep their fields: the text names no format."""
        terms = self._terms
        return terms[0] if len(terms) == 1 and self.source.strip() == str(terms[0].source) else None


_parsed: Final = lru_cache(maxsize=64)(parse_expression)


def _calibrate(source: Source) -> tuple[Row, ...]:
    """Return the rows that may be chosen from, in their fixed order."""
    return (
        source.part("calibrate").rows
        if isinstance(source, StoredSource)
        else tuple(source.rows("calibrate"))
    )
