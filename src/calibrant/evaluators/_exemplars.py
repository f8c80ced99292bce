"""Which examples stand before a question: the same for every model and every calibration set."""

import hashlib
from collections.abc import Iterable

from calibrant.data import Row


def drawn(pool: Iterable[Row], seed: int) -> list[Row]:
    """All rows of a pool in an order that `seed` and their content decide: no answer a second time before every other one came as often.

    So a few examples of a set with labels show each label, and more of them go on where fewer end.
    """
    came: dict[str | None, int] = {}
    ranked: list[tuple[int, str, Row]] = []
    for place, row in sorted(((hashlib.sha256(f"{seed} {row.key}".encode()).hexdigest(), row) for row in pool), key=lambda pair: pair[0]):
        ranked.append((came.get(row.answer, 0), place, row))
        came[row.answer] = came.get(row.answer, 0) + 1
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])]
