"""How many disjoint draws a study's calibration sets have, and how long one takes."""

import time
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from calibrant.data import CalibrationSet, Many, PerDraw
from calibrant.data.expression import Term
from calibrant.errors import DataError

ROWS: Final = 64
"""Rows that are tokenized to estimate how long the others are."""


@dataclass(frozen=True)
class Supply:
    """How far a set lasts: it has rows for about `held` disjoint draws, of the `draws` of a study (None: without end, or not known: see `why`).

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


def supply_of(calibration: CalibrationSet, draws: int, tokenizer: Any, exact: bool) -> Supply:
    """Return how far a set lasts for its first `draws` draws: all of them drawn if `exact`, else estimated from some of its rows."""
    if calibration.mixed:
        return _of_mix(calibration, [supply_of(part, draws, tokenizer, exact) for part in calibration.mixed])
    try:
        parts = [_estimate(term, calibration, tokenizer) for term in calibration.parts]
        disjoint = min((part.held for part in parts if part.held is not None), default=None)
        if exact and disjoint is not None:
            disjoint = float(calibration.disjoint_draws(tokenizer, draws) or 0)
        return Supply(str(calibration), draws, disjoint, sum(part.tokens for part in parts), sum(part.seconds for part in parts), exact)
    except DataError as error:
        hubs = {term.source.hub.id for term in calibration.parts if term.source.hub is not None}
        remote = f"it isn't in a mirror here and would be fetched from the hub ({error.subject}), so it isn't looked at"
        local = error.subject not in hubs
        return Supply(str(calibration), draws, 0.0 if local else None, budget_of(calibration), why=str(error) if local else remote)


def budget_of(calibration: CalibrationSet) -> int:
    """Return the most real tokens that a draw can have."""
    return calibration.samples * calibration.length if calibration.budget is None else calibration.budget


def _estimate(term: Term, calibration: CalibrationSet, tokenizer: Any) -> Supply:
    """Return the supply of one part of a set, estimated from the lengths of some of its rows."""
    budget = round(budget_of(calibration) * term.share)
    if term.source.kind == "control":
        return Supply(str(term), 0, None, budget)
    if isinstance(term.source, PerDraw):
        disjoint = term.source.disjoint()
        return Supply(str(term), 0, None if disjoint is None else float(disjoint), budget)
    rows = [row for row in term.source.rows("calibrate") if term.format.takes(row)]
    sample = rows[:: max(1, len(rows) // ROWS)]
    began = time.perf_counter()
    lengths = [len(tokenizer(term.format.render(row, tokenizer), add_special_tokens=False)["input_ids"]) for row in sample]
    each = (time.perf_counter() - began) / max(1, len(sample))
    # In a row of texts each is used up; elsewhere a window takes one, and of it no more than fits.
    used = np.array(lengths if isinstance(term.packing, Many) else [min(n, calibration.length) for n in lengths], dtype=float)
    mean = max(1.0, used.mean()) if len(sample) else 1.0
    if calibration.budget is None and not term.packing.fills:
        needed = max(1.0, calibration.samples * term.share)
        return Supply(str(term), 0, len(rows) / float(needed), round(needed * mean), float(needed) * each)
    # The rest of a draw's last text is left, and it is rather a long one: of a text that holds a given token, half is left on average.
    needed = budget / mean + float(np.square(used).mean() if len(sample) else 0) / (2 * mean**2)
    return Supply(str(term), 0, len(rows) / needed, budget, needed * each)


def _of_mix(calibration: CalibrationSet, parts: list[Supply]) -> Supply:
    """Return the supply of a mix, which lasts as long as the part that lasts shortest."""
    counts = [part.held for part in parts if part.held is not None]
    why = "; ".join(part.why for part in parts if part.why)
    seconds, tokens = sum(part.seconds for part in parts), sum(part.tokens for part in parts)
    return Supply(str(calibration), parts[0].draws, min(counts, default=None), tokens, seconds, all(part.exact for part in parts), why)
