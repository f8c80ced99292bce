"""Control: tokens drawn evenly from the vocabulary."""

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Final

from calibrant.data._base import Part, Row, Source, check_part

ROW_LENGTH: Final = 512


@dataclass(frozen=True, repr=False)
class RandomTokens(Source):
    """Endless rows of 512 integers that are mapped onto the ordinary tokens of whatever vocabulary
    there is, each equally often.

    What calibration data must beat to be worth choosing. The integers come from SHAKE-128 over
    part, seed and row number.
    """

    kind = "control"
    licence = "none needed"
    homepage = "https://nvlpubs.nist.gov/nistpubs/FIPS/NIST.FIPS.202.pdf"
    fields = ("integers",)

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        check_part(part)
        for number in count():
            noise = hashlib.shake_128(f"{part} {seed} {number}".encode()).digest(4 * ROW_LENGTH)
            yield Row(integers=struct.unpack(f"<{ROW_LENGTH}I", noise))
