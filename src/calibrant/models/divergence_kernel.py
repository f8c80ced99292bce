"""The divergence of one distribution over words from another, compiled. Importing this imports
numba.

In torch each of a dozen steps writes a number for every word of the vocabulary; here a row stays in
the cache from its logits to its sum. Sums are of float32 numbers within a run of words, and of
float64 ones over the runs.
"""

from typing import Any, Final

import numpy as np

from calibrant.system.compiling import compiled, inlined

RUN: Final = 1024
ANY_ORDER: Final = {"reassoc", "contract", "nsz"}
"""What the compiler may do with floats: take sums in any order, so that loops become vector
instructions. NaN and infinity keep their meaning.
"""


@inlined
def _exp(x: Any) -> Any:
    """Return e^x of a float32 of at most 0: 2^n·e^r, r within ±log(2)/2 (Cephes' polynomial).
    Below -87 it is that of -87, about 1e-38.
    """
    x = max(x, np.float32(-87.0))
    # n = round(x / log 2).
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    # log 2 in two parts, of which n times the first is exact.
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + np.float32(1)
    # The bits of a float32 whose exponent is n are those of 2^n.
    return y * np.int32((n + np.float32(127)) * np.float32(2**23)).view(np.float32)


@inlined
def _beyond(d: Any) -> Any:
    """Return e^d - 1 - d of a float32 of at most 1, by its series: that subtracts no nearly equal
    numbers.
    """
    y = np.float32(1 / 479001600)
    y = y * d + np.float32(1 / 39916800)
    y = y * d + np.float32(1 / 3628800)
    y = y * d + np.float32(1 / 362880)
    y = y * d + np.float32(1 / 40320)
    y = y * d + np.float32(1 / 5040)
    y = y * d + np.float32(1 / 720)
    y = y * d + np.float32(1 / 120)
    y = y * d + np.float32(1 / 24)
    y = y * d + np.float32(1 / 6)
    y = y * d + np.float32(0.5)
    return y * d * d


def _log_sum(row: Any, largest: Any) -> Any:
    """Return the logarithm of Σ e^(x - largest)."""
    total = 0.0
    for start in range(0, len(row), RUN):
        part = np.float32(0)
        for word in range(start, min(start + RUN, len(row))):
            part += _exp(row[word] - largest)
        total += part
    return np.float32(np.log(total))


def nats(old: Any, new: Any, largest: Any, out: Any) -> None:
    """Write into `out` KL(old ‖ new) of each row of float32 logits; `largest` has the largest of
    each row of both.
    """
    for row in range(len(old)):
        old_row = old[row]
        new_row = new[row]
        largest_old = largest[row, 0]
        largest_new = largest[row, 1]
        log_old = _log_sum(old_row, largest_old)
        log_new = _log_sum(new_row, largest_new)
        total = 0.0
        for start in range(0, len(old_row), RUN):
            part = np.float32(0)
            for word in range(start, min(start + RUN, len(old_row))):
                before = (old_row[word] - largest_old) - log_old
                after = (new_row[word] - largest_new) - log_new
                p = _exp(before)
                d = after - before
                near = p * _beyond(d)
                far = (_exp(after) - p) - p * d
                part += near if abs(d) < np.float32(1) else far
            total += part
        out[row] = total


_log_sum = compiled(_log_sum, fastmath=ANY_ORDER)
nats = compiled(nats, fastmath=ANY_ORDER)
