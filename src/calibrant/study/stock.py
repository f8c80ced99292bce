"""How far a study's calibration sets last: how many disjoint draws each holds, and how long one takes."""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from calibrant.data import CalibrationSet, Many, PerDraw
from calibrant.data.expression import Term
from calibrant.errors import DataError

ROWS: Final = 64
"""Rows that are read to tell how long the others are."""


@dataclass(frozen=True)
class Stock:
    """A set: `draws` are asked for and about `held` disjoint ones are there (None: without end, or not known, and then `why` says so).

    Where it can't be drawn at all, `held` is 0 and `why` is the reason. `exact` says whether draws were counted. `tokens` are those of a draw,
    `seconds` what one takes.
    """

    data: str
    draws: int
    held: float | None
    tokens: int
    seconds: float = 0.0
    exact: bool = False
    why: str = ""

    @property
    def lasts(self) -> bool:
        """Whether the draws are disjoint as far as is known."""
        return self.held is None or self.held >= self.draws


def look(asked: CalibrationSet, draws: int, tokenizer: Any, exact: bool) -> Stock:
    """How far `asked` lasts for its first `draws` draws: all of them drawn if `exact`, else told from a small one."""
    if asked.mixed:
        return _together(asked, [look(part, draws, tokenizer, exact) for part in asked.mixed])
    try:
        parts = [_told(term, asked, tokenizer) for term in asked.parts]
        held = min((part.held for part in parts if part.held is not None), default=None)
        if exact and held is not None:
            held = float(asked.disjoint_draws(tokenizer, draws) or 0)
        return Stock(str(asked), draws, held, sum(part.tokens for part in parts), sum(part.seconds for part in parts), exact)
    except DataError as error:
        hubs = {term.source.hub.id for term in asked.parts if term.source.hub is not None}
        fetched = f"it isn't in a mirror here and would be fetched from the hub ({error.subject}), so it isn't looked at"
        known = error.subject not in hubs
        return Stock(str(asked), draws, 0.0 if known else None, budget_of(asked), why=str(error) if known else fetched)


def budget_of(asked: CalibrationSet) -> int:
    """The most real tokens that a draw can have."""
    return asked.samples * asked.length if asked.budget is None else asked.budget


def _told(term: Term, asked: CalibrationSet, tokenizer: Any) -> Stock:
    """One part of a set, told from the lengths of some of its rows."""
    budget = round(budget_of(asked) * term.share)
    if term.source.kind == "control":
        return Stock(str(term), 0, None, budget)
    if isinstance(term.source, PerDraw):
        held = term.source.disjoint()
        return Stock(str(term), 0, None if held is None else float(held), budget)
    rows = [row for row in term.source.rows("calibrate") if term.format.takes(row)]
    some = rows[:: max(1, len(rows) // ROWS)]
    began = time.perf_counter()
    lengths = [len(tokenizer(term.format.render(row, tokenizer), add_special_tokens=False)["input_ids"]) for row in some]
    each = (time.perf_counter() - began) / max(1, len(some))
    # In a row of texts each is used up; elsewhere a window takes one, and of it no more than fits.
    used = np.array(lengths if isinstance(term.packing, Many) else [min(n, asked.length) for n in lengths], dtype=float)
    mean = max(1.0, used.mean()) if len(some) else 1.0
    if asked.budget is None and not term.packing.fills:
        needed = max(1.0, asked.samples * term.share)
        return Stock(str(term), 0, len(rows) / float(needed), round(needed * mean), float(needed) * each)
    # The rest of a draw's last text is left, and it is rather a long one: of a text that holds a given token, half is left on average.
    needed = budget / mean + float(np.square(used).mean() if len(some) else 0) / (2 * mean**2)
    return Stock(str(term), 0, len(rows) / needed, budget, needed * each)


def _together(asked: CalibrationSet, parts: list[Stock]) -> Stock:
    """A mix lasts as long as the part that lasts shortest."""
    held = [part.held for part in parts if part.held is not None]
    why = "; ".join(part.why for part in parts if part.why)
    seconds, tokens = sum(part.seconds for part in parts), sum(part.tokens for part in parts)
    return Stock(str(asked), parts[0].draws, min(held, default=None), tokens, seconds, all(part.exact for part in parts), why)
