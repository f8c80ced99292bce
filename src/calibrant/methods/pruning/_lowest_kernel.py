"""Removal of the lowest scores of each row, compiled: scores, choice, pruned row and what it lost
in one pass. Importing this imports numba, which takes longer than listing methods may.

No score is negative, so the bits of scores, read as whole numbers, have the order of the scores. A
threshold is found by halving. Each step counts the scores of a row below it, many at once, and they
stay in the nearest cache. So a row is neither sorted nor moved.
"""

from typing import Any, Final

import numpy as np

from calibrant.system.compiling import compiled

GONE: Final = -1
"""Takes the place of a score whose weight goes: below all scores."""
SIZE: Final = 0x7FFFFFFF
"""All bits of a float32 but its sign."""
RANKED_UP_TO: Final = 16
"""Weights of a group, at most, that are ranked by comparing each with all others. In wider groups
halving is faster.
"""
ANY_ORDER: Final = {"reassoc"}
"""Lets the processor add up many numbers at once."""


@compiled
def score(numbers: Any, shift: int, roots: Any, sizes: Any, size_bits: Any, scores: Any) -> None:
    """Set `sizes` to a row's absolute values, and `scores` to those times the `roots`. `numbers`
    are the bits of the row; moved up by `shift` they are those of float32. `size_bits` is the
    memory of `sizes`, as integers.
    """
    for j in range(len(roots)):
        size_bits[j] = (np.int32(numbers[j]) << shift) & SIZE
    for j in range(len(roots)):
        scores[j] = sizes[j] * roots[j]


@compiled
def count_up_to(keys: Any, most: int) -> int:
    """Return how many keys are at most as large as `most`."""
    # The count has 32 bits as the keys have: then as many are counted at once as are compared.
    limit = np.int32(most)
    count = np.uint32(0)
    for j in range(len(keys)):
        count = np.uint32(count + np.uint32(keys[j] <= limit))
    return int(count)


@compiled
def remove_by_halving(keys: Any, quota: int) -> None:
    """Set the `quota` lowest keys to `GONE`; of equal ones the first goes first."""
    lowest = keys[0]
    highest = keys[0]
    for j in range(len(keys)):
        lowest = min(lowest, keys[j])
        highest = max(highest, keys[j])
    # Fewer keys than the quota are at most `low`, and at least as many at most `high`.
    low = np.int64(lowest) - 1
    high = np.int64(highest)
    removed = 0
    while removed < quota and high - low > 1:
        middle = (low + high) // 2
        count = count_up_to(keys, middle)
        if count > quota:
            high = middle
        else:
            low = middle
            removed = count
    limit = np.int32(low)
    for j in range(len(keys)):
        keys[j] = GONE if keys[j] <= limit else keys[j]
    # What is left of the quota are the first of several that equal `high`.
    j = 0
    while removed < quota:
        if keys[j] == high:
            keys[j] = GONE
            removed += 1
        j += 1


@compiled
def remove_by_rank(keys: Any, group: int, quota: int, before: Any) -> None:
    """Set the `quota` lowest keys of every `group` to `GONE`; of equal ones the first goes first.
    `before` is scratch for as many keys.
    """
    before[:] = 0
    # Of each key, how many of its group go before it.
    for late in range(1, group):
        for early in range(late):
            for start in range(0, len(keys), group):
                first = keys[start + early] <= keys[start + late]
                before[start + late] += first
                before[start + early] += not first
    for j in range(len(keys)):
        keys[j] = GONE if before[j] < quota else keys[j]


def _write(numbers: Any, sizes: Any, keys: Any, squares: Any, kept: Any, sums: Any) -> None:
    """Write the row without what is `GONE` into `kept`. Set `sums` to how many of its numbers
    are zero, and to the sums of all numbers' squares and of the removed ones', times `squares`.
    """
    zeros = 0
    size = 0.0
    lost = 0.0
    for j in range(len(keys)):
        kept[j] = 0 if keys[j] == GONE else numbers[j]
    for j in range(len(keys)):
        zeros += (keys[j] == GONE) | (sizes[j] == 0)
    for j in range(len(keys)):
        number = np.float64(sizes[j])
        square = number * number * squares[j]
        size += square
        lost += square if keys[j] == GONE else 0.0
    sums[0] = zeros
    sums[1] = size
    sums[2] = lost


write = compiled(_write, fastmath=ANY_ORDER)


@compiled
def remove(
    numbers: Any,
    shift: int,
    roots: Any,
    squares: Any,
    group: int,
    quota: int,
    kept: Any,
    sums: Any,
    first: int,
    last: int,
) -> None:
    """Remove the `quota` lowest of each `group` in rows `first` to `last` of `numbers`; `kept` gets
    the rows, and `sums` what `write` says of each.
    """
    width = numbers.shape[1]
    size_bits = np.empty(width, np.int32)
    sizes = size_bits.view(np.float32)
    keys = np.empty(width, np.int32)
    scores = keys.view(np.float32)
    before = np.empty(width, np.int32)
    for r in range(first, last):
        score(numbers[r], shift, roots, sizes, size_bits, scores)
        if group <= RANKED_UP_TO:
            remove_by_rank(keys, group, quota, before)
        else:
            for start in range(0, width, group):
                remove_by_halving(keys[start : start + group], quota)
        write(numbers[r], sizes, keys, squares, kept[r], sums[r])
