"""Tries which sources can be had here, and in which formats, on real rows."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Source, StoredSource
from calibrant.data.calibration import CalibrationSet
from calibrant.data.expression import NAMED_PAIRS, parse_source
from calibrant.data.formats import formats
from calibrant.data.sources import sources
from calibrant.errors import DataError
from calibrant.models import open_tokenizer
from calibrant.system.progress import Progress, silent

_PAIRED: Final = {"text", *(form for form, _ in NAMED_PAIRS.values())}
FORMATS: Final = ("text", *NAMED_PAIRS, *(name for name in formats.names() if name not in _PAIRED))
MANY_TOKENS: Final = 100_000
"""A budget that is large for calibration: how long it takes to draw is reported too."""


@dataclass(frozen=True)
class SourceCheck:
    """One source in one format.

    `verdict`: it works; it is refused, for the `reason`; or there is no copy of the source here.
    `seconds` is for the first draw of `tokens` real tokens from rows that are read already,
    `seconds_many` for one of 100,000 (None if the source holds less); `draws` how many draws of
    `tokens` share no row, counted up to 64, None where there is no end.
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
        """Return the same as a dictionary."""
        return asdict(self)


def survey(
    names: Sequence[str | Source] = (),
    model: str | PreTrainedTokenizerBase = "smollm2",
    *,
    tokens: int = 8192,
    length: int = 512,
    progress: Progress = silent,
) -> list[SourceCheck]:
    """Try the sources `names`, or all there are, in every format: `tokens` real tokens in windows
    of `length`.

    `model` names whose tokenizer reads them, or is a tokenizer itself. A source of your own stands
    as an object where a name does. Raises an `InputError` for a source or a model that isn't there.

    >>> from calibrant.testing import tiny_tokenizer
    >>> checks = survey(["full_stops"], tiny_tokenizer(), tokens=64, length=32)
    >>> [check.format for check in checks if check.verdict == "works"]
    ['text']
    """
    if isinstance(model, str):
        tokenizer, _ = open_tokenizer(model)
    else:
        tokenizer = model
    chosen = [parse_source(name) for name in names or sources.names()]
    checks: list[SourceCheck] = []
    for number, source in enumerate(chosen):
        progress("survey", number, len(chosen))
        missing = ""
        try:
            if isinstance(source, StoredSource):
                source.part("calibrate")
        except DataError as error:
            missing = str(error)
        for form in FORMATS:
            if missing:
                checks.append(SourceCheck(str(source), form, "not here", missing))
            else:
                checks.append(_check(source, form, tokens, length, tokenizer))
    progress("survey", len(chosen), len(chosen))
    return checks


def _check(
    source: Source, form: str, tokens: int, length: int, tokenizer: PreTrainedTokenizerBase
) -> SourceCheck:
    """Draw from a source in one format, and draw much of it."""
    expression = f"{source}:{form}"
    try:
        data = CalibrationSet(expression, tokens=tokens, length=length)
        start = time.perf_counter()
        batch = data.tokens(tokenizer)
        seconds = time.perf_counter() - start
    except DataError as error:
        return SourceCheck(str(source), form, "refused", str(error))
    # The rows are in memory by now, so this is the time of rendering and tokenising alone.
    start = time.perf_counter()
    try:
        CalibrationSet(expression, tokens=MANY_TOKENS, length=length).tokens(tokenizer)
        seconds_many = time.perf_counter() - start
    except DataError:
        seconds_many = None
    facts = batch.facts["parts"][0]
    return SourceCheck(
        str(source),
        form,
        "works",
        rows=facts["rows"],
        tokens=batch.facts["tokens"],
        draws=data.disjoint_draws(tokenizer),
        seconds=seconds,
        seconds_many=seconds_many,
        fingerprint=batch.fingerprint,
        origin=facts["origin"],
    )


def as_markdown(checks: Sequence[Mapping[str, Any]]) -> str:
    """Return the survey as a Markdown table, a source a line and a format a column: disjoint
    draws, or why there are none.
    """
    by_source: dict[str, dict[str, Mapping[str, Any]]] = {}
    for check in checks:
        by_source.setdefault(check["source"], {})[check["format"]] = check
    lines = [
        "| source | " + " | ".join(FORMATS) + " | rows a draw | 100,000 tokens |",
        "| --- |" + " ---: |" * (len(FORMATS) + 2),
    ]
    for source, checks_by_format in by_source.items():
        cells = [_cell(checks_by_format[form]) for form in FORMATS]
        working = [check for check in checks_by_format.values() if check["verdict"] == "works"]
        cells += [_rows_cell(working), _seconds_cell(working)]
        lines.append(f"| `{source}` | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _rows_cell(working: Sequence[Mapping[str, Any]]) -> str:
    """Return how many rows a draw took, as a range where the formats differ."""
    rows = [check["rows"] for check in working]
    if not rows:
        return ""
    if min(rows) == max(rows):
        return f"{rows[0]:,}"
    return f"{min(rows):,} – {max(rows):,}"


def _seconds_cell(working: Sequence[Mapping[str, Any]]) -> str:
    """Return how long the slowest format took for a large draw."""
    if not working:
        return ""
    seconds = [check["seconds_many"] for check in working if check["seconds_many"] is not None]
    if not seconds:
        return "holds less"
    return f"{max(seconds):.1f} s"


def _cell(check: Mapping[str, Any]) -> str:
    if check["verdict"] != "works":
        return {"refused": "–", "not here": "not here"}[check["verdict"]]
    draws = check["draws"]
    if draws is None:
        return "∞"
    if draws >= 64:
        return f"{draws}+"
    return str(draws)
