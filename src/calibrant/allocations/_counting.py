"""Shares of many matrices as counts of weights, which sum to what was asked, to the last weight."""

import math
from collections.abc import Mapping

from calibrant.models import Weight
from calibrant.targets import Sparsity


def to_the_weight(wanted: Mapping[Weight, float], target: Sparsity) -> dict[str, Sparsity]:
    """Return a sparsity for each matrix, near the one that is `wanted` of it, so that of all N
    weights together exactly ⌊N·s⌋ go.

    Each is a whole number of weights of every row, so that a method that chooses within rows
    removes as many as one that chooses within the matrix. What is left then, fewer weights than the
    matrix has rows, goes from one matrix more; a method that chooses within rows leaves them. Where
    the target is wanted of every matrix, each gets it as it was written.

    The mean of `wanted`, each matrix counted by its size, must be the target's fraction, and each
    must be from 0 up to (not including) 1.
    """
    shares = wanted.values()
    if all(math.isclose(share, target.fraction, rel_tol=0, abs_tol=1e-12) for share in shares):
        return {weight.name: target for weight in wanted}
    exact = {weight: weight.shape[1] * share for weight, share in wanted.items()}
    columns: dict[Weight, int] = {}
    left = target.quota(sum(_size(weight) for weight in wanted))
    for weight, count in exact.items():
        # A count that lies just below a whole number by rounding means that number.
        columns[weight] = min(math.floor(count + 1e-9), weight.shape[1] - 1)
        left -= weight.shape[0] * columns[weight]
    # First those that rounding down took most of; equals as they came.
    order = sorted(wanted, key=lambda weight: columns[weight] - exact[weight])
    while left < 0:
        # By an error of rounding, at most.
        for weight in reversed(order):
            if columns[weight]:
                columns[weight] -= 1
                left += weight.shape[0]
                break
    was_raised = True
    while was_raised:
        was_raised = False
        for weight in order:
            if weight.shape[0] <= left and columns[weight] < weight.shape[1] - 1:
                columns[weight] += 1
                left -= weight.shape[0]
                was_raised = True
    counts = {weight: weight.shape[0] * count for weight, count in columns.items()}
    open_ones = [weight for weight in wanted if columns[weight] < weight.shape[1] - 1]
    if left and open_ones:
        # Fewer than the rows of any of these, else each row of one could give another weight.
        tallest = max(open_ones, key=lambda weight: weight.shape[0])
        counts[tallest] += left
    return {weight.name: _sparsity(counts[weight], _size(weight)) for weight in wanted}


def _sparsity(count: int, size: int) -> Sparsity:
    """The sparsity by which `count` of `size` weights go.

    It is read as the decimal that it is written as, which may lie just below the quotient.
    """
    fraction = count / size
    while Sparsity(fraction).quota(size) < count:
        fraction = math.nextafter(fraction, 1.0)
    return Sparsity(fraction)


def _size(weight: Weight) -> int:
    return weight.shape[0] * weight.shape[1]
