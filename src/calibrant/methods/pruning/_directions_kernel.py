"""What surrounds the product of a step of alternating directions, compiled: one pass instead of
five. Importing this imports numba.
"""

from typing import Any

from calibrant.system.compiling import compiled


@compiled
def prepare(
    pulled: Any, dense: Any, keep: Any, rest: Any, sparse: Any, halves: Any, first: int, last: int
) -> None:
    """With S = W̃ + Z + U, set `rest` to S - Z and `sparse` to Z - S/2 in rows `first` to `last`;
    `halves` holds 0 and 1/2.

    They are numbers of an array because others would be float64, and make the sums so.
    """
    zero, half = halves[0], halves[1]
    for r in range(first, last):
        for j in range(pulled.shape[1]):
            stays = pulled[r, j] if keep[r, j] else zero
            total = pulled[r, j] + dense[r, j]
            rest[r, j] = total - stays
            sparse[r, j] = stays - total * half
