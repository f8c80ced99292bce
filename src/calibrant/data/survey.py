"""Which sources can be had here, and in which formats: each tried on real rows."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Source, Stored
from calibrant.data.calibration import CalibrationSet
from calibrant.data.expression import PAIRS, parse_source
from calibrant.data.formats import formats
from calibrant.data.sources import sources
from calibrant.errors import DataError
from calibrant.progress import Progress, silent

_PAIRED: Final = {"text", *(form for form, _ in PAIRS.values())}
FORMATS: Final = ("text", *PAIRS, *(name for name in formats.names() if name not in _PAIRED))
MANY: Final = 100_000
"""A budget that is large for calibration: how long it takes to draw is told too."""


@dataclass(frozen=True)
class Surveyed:
    """One source in one format.

    `verdict`: it works; it is refused, for the `reason`; or there is no copy of the source here. `seconds` is for the first draw of `tokens` real
    tokens from rows that are read already, `seconds_many` for one of 100,000 (None if the source holds less); `draws` how many draws of `tokens`
    share no row, counted up to 64, None where there is no end.
    """

    source: str
    format: str
    verdict: Literal["works", "refused", "not here"]
    reason: str = ""
    rows: int = 0
    tokens: int = 0
    draws: int | None = None
    seconds: float = 0.0
    seconds_many: float | None = None
    fingerprint: str = ""
    origin: str = ""

    def to_json(self) -> dict[str, Any]:
        """The same as a dictionary."""
        return asdict(self)


def survey(
    tokenizer: PreTrainedTokenizerBase, names: Sequence[str] = (), tokens: int = 8192, length: int = 512, progress: Progress = silent
) -> Iterator[Surveyed]:
    """Try `names` (all sources if there are none) in every format, `tokens` real tokens in windows of `length`."""
    chosen = [parse_source(name) for name in names or sources.names()]
    for number, source in enumerate(chosen):
        progress("survey", number, len(chosen))
        missing = _missing(source)
        for form in FORMATS:
            yield (
                Surveyed(str(source), form, "not here", missing)
                if missing
                else _tried(f"{source}:{form}", str(source), form, tokens, length, tokenizer)
            )
    progress("survey", len(chosen), len(chosen))


def _missing(source: Source) -> str:
    """Why the source can't be read here, if it can't."""
    try:
        if isinstance(source, Stored):
            source.holding("calibrate")
    except DataError as error:
        return str(error)
    return ""


def _tried(expression: str, source: str, form: str, tokens: int, length: int, tokenizer: PreTrainedTokenizerBase) -> Surveyed:
    try:
        asked = CalibrationSet(expression, tokens=tokens, length=length)
        began = time.perf_counter()
        batch = asked.tokens(tokenizer)
        seconds = time.perf_counter() - began
    except DataError as error:
        return Surveyed(source, form, "refused", str(error))
    facts = batch.facts["parts"][0]
    many = _seconds(CalibrationSet(expression, tokens=MANY, length=length), tokenizer)
    draws = asked.disjoint_draws(tokenizer)
    return Surveyed(source, form, "works", "", facts["rows"], batch.facts["tokens"], draws, seconds, many, batch.fingerprint, facts["origin"])


def _seconds(asked: CalibrationSet, tokenizer: PreTrainedTokenizerBase) -> float | None:
    began = time.perf_counter()
    try:
        asked.tokens(tokenizer)
    except DataError:
        return None
    return time.perf_counter() - began


def as_markdown(found: Sequence[Mapping[str, Any]]) -> str:
    """The survey as a Markdown table, a source a line and a format a column: disjoint draws, or why there are none."""
    by_source: dict[str, dict[str, Mapping[str, Any]]] = {}
    for one in found:
        by_source.setdefault(one["source"], {})[one["format"]] = one
    lines = ["| source | " + " | ".join(FORMATS) + " | rows a draw | 100,000 tokens |", "| --- |" + " ---: |" * (len(FORMATS) + 2)]
    for source, forms in by_source.items():
        cells = [_cell(forms[form]) for form in FORMATS]
        working = [one for one in forms.values() if one["verdict"] == "works"]
        rows = " – ".join(dict.fromkeys(f"{edge(one['rows'] for one in working):,}" for edge in (min, max))) if working else ""
        times = [one["seconds_many"] for one in working if one["seconds_many"] is not None]
        slowest = f"{max(times):.1f} s" if times else "holds less" if working else ""
        lines.append(f"| `{source}` | " + " | ".join(cells) + f" | {rows} | {slowest} |")
    return "\n".join(lines) + "\n"


def _cell(one: Mapping[str, Any]) -> str:
    if one["verdict"] != "works":
        return {"refused": "–", "not here": "not here"}[one["verdict"]]
    return "∞" if one["draws"] is None else f"{one['draws']}{'+' if one['draws'] >= 64 else ''}"
