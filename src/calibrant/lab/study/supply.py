"""How many disjoint draws a study's calibration sets have, and how long one takes."""

import time
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from calibrant.data import CalibrationSet, Many, PerDraw
from calibrant.data.expression import Term
from calibrant.errors import DataError

ROWS: Final = 64
"""Rows that are tokenized to estimate how long the others are."""


@dataclass(frozen=True)
class Supply:
    """How far a set lasts: it has rows for about `held` disjoint draws, of the `draws` of a study.

    `held` is None where that is without end, or not known: see `why`. Where the set can't be drawn
    at all, it is 0 and `why` is the reason. `exact` says whether draws were counted. `tokens` are
    those of a draw, `seconds` what one takes.
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
    """Return how far a set lasts for its first `draws` draws.

    All of them are drawn if `exact`, else it is estimated from some of its rows.
    """
    if calibration.mixed:
        mixed = [supply_of(part, draws, tokenizer, exact) for part in calibration.mixed]
        all_exact = all(part.exact for part in mixed)
        why = "; ".join(part.why for part in mixed if part.why)
        return replace(_added(str(calibration), draws, mixed), exact=all_exact, why=why)
    try:
        parts = [_estimate(term, calibration, tokenizer) for term in calibration.parts]
        whole = _added(str(calibration), draws, parts)
        if exact and whole.held is not None:
            counted = calibration.disjoint_draws(tokenizer, draws) or 0
            whole = replace(whole, held=float(counted))
        return replace(whole, exact=exact)
    except DataError as error:
        unknown = Supply(str(calibration), draws, None, budget_of(calibration))
        hubs = {term.source.hub.id for term in calibration.parts if term.source.hub is not None}
        if error.subject not in hubs:
            return replace(unknown, held=0.0, why=str(error))
        hub = f"fetched from the hub ({error.subject})"
        why = f"it isn't in a mirror here and would be {hub}, so it isn't looked at"
        return replace(unknown, why=why)


def _added(name: str, draws: int, parts: list[Supply]) -> Supply:
    """The supply of all parts together, which last as long as the part that lasts shortest."""
    held = [part.held for part in parts if part.held is not None]
    return Supply(
        data=name,
        draws=draws,
        held=min(held, default=None),
        tokens=sum(part.tokens for part in parts),
        seconds=sum(part.seconds for part in parts),
    )


def budget_of(calibration: CalibrationSet) -> int:
    """Return the most real tokens that a draw can have."""
    if calibration.budget is None:
        return calibration.samples * calibration.length
    return calibration.budget


def _estimate(term: Term, calibration: CalibrationSet, tokenizer: Any) -> Supply:
    """Return the supply of one part of a set, estimated from the lengths of some of its rows."""
    budget = round(budget_of(calibration) * term.share)
    endless = Supply(str(term), 0, None, budget)
    if term.source.kind == "control":
        return endless
    if isinstance(term.source, PerDraw):
        disjoint = term.source.disjoint()
        return endless if disjoint is None else replace(endless, held=float(disjoint))
    rows = [row for row in term.source.rows("calibrate") if term.format.takes(row)]
    sample = rows[:: max(1, len(rows) // ROWS)]
    lengths: list[int] = []
    began = time.perf_counter()
    for row in sample:
        text = term.format.render(row, tokenizer)
        lengths.append(len(tokenizer(text, add_special_tokens=False)["input_ids"]))
    each = (time.perf_counter() - began) / max(1, len(sample))
    # In a row of texts each is used up; elsewhere a window takes one, and of it no more than fits.
    used = np.array(lengths, dtype=float)
    if not isinstance(term.packing, Many):
        used = np.minimum(used, calibration.length)
    mean = max(1.0, used.mean()) if sample else 1.0
    tokens = budget
    if calibration.budget is None and not term.packing.fills:
        needed = max(1.0, float(calibration.samples * term.share))
        tokens = round(needed * mean)
    else:
        # The rest of a draw's last text is left, and it is rather a long one: of a text that holds
        # a given token, half is left on average.
        mean_square = float(np.square(used).mean()) if sample else 0.0
        needed = budget / mean + mean_square / (2 * mean**2)
    return Supply(str(term), 0, len(rows) / needed, tokens, needed * each)
