"""Control: nothing but full stops."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

from calibrant.data._base import Part, Row, Source, check_part


@dataclass(frozen=True, repr=False)
class FullStops(Source):
    """One full stop a row, without end: packed, the same token again and again, whatever the draw.

    Rows are tokenised one by one, so that a vocabulary with tokens for `...` doesn't merge them.
    """

    kind = "control"
    licence = "none needed"
    homepage = "https://en.wikipedia.org/wiki/Full_stop"
    fields = ("text",)

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        check_part(part)
        return repeat(Row(text="."))
