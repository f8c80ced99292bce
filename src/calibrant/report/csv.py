"""The scores behind a report as comma-separated values: one line a score, as RFC 4180 says. No torch here."""

from typing import TYPE_CHECKING, Final

from calibrant.foreign import visible

if TYPE_CHECKING:
    import polars as pl

FORMULA: Final = r"^[=+\-@\t\r]"
"""How a cell begins that a spreadsheet would run."""


def csv(scores: "pl.DataFrame") -> str:
    """`scores` under a line of heads. A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay numbers."""
    import polars as pl

    text = pl.col(pl.String)
    safe = pl.when(text.str.contains(FORMULA)).then(pl.lit("'") + text).otherwise(text).name.keep()
    return scores.with_columns(safe).with_columns(text.map_elements(visible, return_dtype=pl.String)).write_csv(line_terminator="\r\n")
