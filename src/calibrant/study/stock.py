"""How far a study's calibration sets last: how many disjoint draws each holds, and how long one takes."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from calibrant.data import CalibrationSet
from calibrant.errors import DataError

WINDOWS: Final = 8
TOKENS: Final = 8_192
"""A small draw, from which a whole one is told."""


@dataclass(frozen=True)
class Stock:
    """A set: `draws` are asked for and about `held` disjoint ones are there (None: without end, or not known, and then `why` says so).

    `exact` says whether they were counted. `tokens` are those of a draw, `seconds` what one takes.
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
    budget = budget_of(asked)
    try:
        rows, ratio, small = _small(asked, tokenizer)
        held = min((part["rows_held"] / max(1, part["rows"] * ratio) for part in rows if part["rows_held"] is not None), default=None)
        if exact and held is not None:
            held = float(asked.disjoint_draws(tokenizer, draws) or 0)
        return Stock(str(asked), draws, held, min(budget, round(small["tokens"] * ratio)), small["seconds"] * ratio, exact)
    except DataError as error:
        hubs = {term.source.hub.id for term in asked.parts if term.source.hub is not None}
        fetched = f"it isn't in a mirror here and would be fetched from the hub ({error.subject}), so it isn't looked at"
        return Stock(str(asked), draws, None, budget, why=fetched if error.subject in hubs else str(error))


def budget_of(asked: CalibrationSet) -> int:
    """The most real tokens that a draw can have."""
    return asked.samples * asked.length if asked.budget is None else asked.budget


def _small(asked: CalibrationSet, tokenizer: Any) -> tuple[list[Mapping[str, Any]], float, dict[str, Any]]:
    """The parts of a small draw, how many times it goes into a whole one, its tokens, and the seconds it takes once the rows are read."""
    if asked.budget is None:
        samples, tokens = min(asked.samples, WINDOWS), None
        ratio = asked.samples / samples
    else:
        samples, tokens = asked.samples, min(asked.budget, TOKENS)
        ratio = asked.budget / tokens
    CalibrationSet(str(asked), samples=1, length=asked.length).tokens(tokenizer)  # its rows are read
    small = CalibrationSet(str(asked), samples=samples, length=asked.length, tokens=tokens)
    began = time.perf_counter()
    facts = small.tokens(tokenizer).facts
    return facts["parts"], ratio, {"tokens": facts["tokens"], "seconds": time.perf_counter() - began}


def _together(asked: CalibrationSet, parts: list[Stock]) -> Stock:
    """A mix lasts as long as the part that lasts shortest."""
    held = [part.held for part in parts if part.held is not None]
    why = "; ".join(part.why for part in parts if part.why)
    seconds, tokens = sum(part.seconds for part in parts), sum(part.tokens for part in parts)
    return Stock(str(asked), parts[0].draws, min(held, default=None), tokens, seconds, all(part.exact for part in parts), why)
