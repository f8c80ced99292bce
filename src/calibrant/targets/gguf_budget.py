"""A budget of bytes for the tensors of a GGUF file, such as `gguf 90MB`: each tensor gets a kind of
blocks of its own.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Final

from calibrant.errors import TargetError
from calibrant.spec import later
from calibrant.spec.foreign import brief
from calibrant.spec.grammar import read_target
from calibrant.targets._base import Target
from calibrant.targets.ggml_kind import GgmlKind

CHOICES: Final = (
    "q2_k",
    "q3_k",
    "iq4_xs",
    "iq4_nl",
    "q4_0",
    "q4_k",
    "q4_1",
    "q5_0",
    "q5_k",
    "q5_1",
    "q6_k",
    "q8_0",
)
"""The kinds that are chosen from. The i-quants of less than four bits aren't among them: making
them takes up to a hundred times as long, and each tensor is made in every kind.
"""
MEASURED_ROWS: Final = 512
"""Rows of a tensor, at equal distances, that its errors in every kind are measured on."""
PLAIN_BITS: Final = 16
"""Bits at least of a plain number, in rows that no kind fits."""
MOST_BITS: Final = max(GgmlKind(name).amount for name in CHOICES)
"""Bits of a number in the largest kind. A larger budget isn't filled."""
_MEGABYTE: Final = 1_000_000


@dataclass(frozen=True)
class GgufBudget(Target):
    """The tensors of a GGUF file may take so many `bytes` together, embedding and head too. What
    else is in the file, such as its vocabulary, comes on top.

    `numbers` is how many the model has, where its matrices are looked at one by one. It is no part
    of how the budget is written.

    >>> str(GgufBudget.read("gguf 1.5GB")), GgufBudget(85_196_800).bytes
    ('gguf 1500MB', 85196800)
    """

    written: ClassVar[str] = "a budget of bytes for a GGUF file"
    example: ClassVar[str] = "gguf 90MB"

    bytes: int
    numbers: int | None = later(None)

    def __post_init__(self) -> None:
        # Not `isinstance`: True is an int, too.
        if type(self.bytes) is not int or self.bytes < 1:
            raise _no_budget(self.bytes)

    @classmethod
    def read(cls, value: str | float | int) -> "GgufBudget | None":
        if not isinstance(value, str) or value.strip().partition(" ")[0].lower() != "gguf":
            return None
        # With a part behind it, it is read as that other kind of target, which refuses it.
        if "+" in value:
            return None
        budget = read_target(value).budget
        if not budget:
            raise _no_budget(value)
        return cls(budget)

    def __str__(self) -> str:
        return f"gguf {in_megabytes(self.bytes)}"

    def kind_alone(self, inputs: int) -> GgmlKind | None:
        """Return the kind of a matrix with rows of so many inputs, if all the model's numbers got
        equally many bits: the largest that stays within the budget, else the smallest of all; None
        where no kind fits the rows.

        >>> GgufBudget(90, numbers=144).kind_alone(256), GgufBudget(90, numbers=144).kind_alone(32)
        (GgmlKind(name='q4_1'), GgmlKind(name='q4_1'))
        """
        if self.numbers is None:
            raise ValueError("how many numbers the model has isn't known")
        by_size = sorted(kinds_that_fit(inputs), key=_bits_of)
        within = [kind for kind in by_size if kind.amount * self.numbers <= 8 * self.bytes]
        if within:
            return within[-1]
        return by_size[0] if by_size else None

    def too_little_for(self, shapes: Iterable[tuple[int, int]]) -> str:
        """Return a sentence that says how much matrices of these shapes (out, in) take at least, if
        that alone is more than the budget; else an empty one.
        """
        least = 0
        for outputs, inputs in shapes:
            bits = [kind.amount for kind in kinds_that_fit(inputs)]
            least += int(outputs * inputs * min(bits, default=PLAIN_BITS)) // 8
        if least <= self.bytes:
            return ""
        return (
            f"{self} is too little: the matrices of the blocks alone take {in_megabytes(least)}; "
            "ask for more"
        )


def _bits_of(kind: GgmlKind) -> float:
    return kind.amount


def in_megabytes(count: int) -> str:
    """Return a number of bytes in megabytes, exactly, as a budget is written.

    >>> in_megabytes(90_000_000), in_megabytes(85_196_801)
    ('90MB', '85.196801MB')
    """
    digits = f"{Decimal(count) / _MEGABYTE:f}"
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits}MB"


def kinds_that_fit(inputs: int) -> tuple[GgmlKind, ...]:
    """Return the kinds that a matrix with rows of so many inputs can be made in, of `CHOICES`.

    >>> [kind.name for kind in kinds_that_fit(96)]
    ['iq4_nl', 'q4_0', 'q4_1', 'q5_0', 'q5_1', 'q8_0']
    """
    fitting: list[GgmlKind] = []
    for name in CHOICES:
        kind = GgmlKind(name)
        if kind.fitting(inputs) == kind:
            fitting.append(kind)
    return tuple(fitting)


def _no_budget(given: object) -> TargetError:
    advice = "write gguf, a number above 0, and MB, GB, MiB or GiB, as in gguf 90MB"
    return TargetError(f"{brief(given)} is no budget of bytes; {advice}", subject=str(given))
