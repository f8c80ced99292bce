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
"""Sums may be taken in any order, so that the loops become vector instructions. NaN and infinity
keep their meaning.
"""


@inlined
def _exp(x: Any) -> Any:
    """Return e^x of a float32 of at most 0: 2^n·e^r, r within ±log(2)/2 (Cephes' polynomial).
    Below -87 it is that of -87, about 1e-38.
    """
    x = max(x, np.float32(-87.0))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = (x - n * np.float32(0.693359375)) + n * np.float32(2.12194440e-4)
    y = np.float32(1.9875691500e-4)
    y = y * r + np.float32(1.3981999507e-3)
    y = y * r + np.float32(8.3334519073e-3)
    y = y * r + np.float32(4.1665795894e-2)
    y = y * r + np.float32(1.6666665459e-1)
    y = y * r + np.float32(5.0000001201e-1)
    y = y * r * r + r + np.float32(1)
    return y * np.int32((n + np.float32(127)) * np.float32(2**23)).view(np.float32)


@inlined
def _beyond(d: Any) -> Any:
    """Return e^d - 1 - d of a float32 of at most 1: its series, which has no difference of
    nearly equal numbers.
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


def _log_sum(row: Any, most: Any) -> Any:
    """Return the logarithm of Σ e^(x - most)."""
    total = 0.0
    for start in range(0, len(row), RUN):
        part = np.float32(0)
        for word in range(start, min(start + RUN, len(row))):
            part += _exp(row[word] - most)
        total += part
    return np.float32(np.log(total))


def nats(old: Any, new: Any, most: Any, out: Any) -> None:
    """Write into `out` KL(old ‖ new) of each row of float32 logits; `most` has the largest of
    each row of both.
    """
    for row in range(len(old)):
        a = old[row]
        b = new[row]
        most_a = most[row, 0]
        most_b = most[row, 1]
        log_a = _log_sum(a, most_a)
        log_b = _log_sum(b, most_b)
        total = 0.0
        for start in range(0, len(a), RUN):
            part = np.float32(0)
            for word in range(start, min(start + RUN, len(a))):
                before = (a[word] - most_a) - log_a
                after = (b[word] - most_b) - log_b
                p = _exp(before)
                d = after - before
                near = p * _beyond(d)
                far = (_exp(after) - p) - p * d
                part += near if abs(d) < np.float32(1) else far
            total += part
        out[row] = total


_log_sum = compiled(_log_sum, fastmath=ANY_ORDER)
nats = compiled(nats, fastmath=ANY_ORDER)
