"""The targets next to one that was asked for, by how many steps they lie above it."""

from collections.abc import Mapping
from dataclasses import replace

from calibrant.errors import TargetError
from calibrant.targets import Grid, NofM, Sparsity, Target
from calibrant.targets.grid import FEWEST, MOST


def menu(target: Target, step: float, reach: int) -> Mapping[int, Target]:
    """Return `target` and those up to `reach` steps to either side of it, as far as there are any;
    the sums of steps are those of amounts.

    A step is `step` for a sparsity, one weight of every M more for N:M, and one bit more for a
    grid. Raises `TargetError` for other targets.

    >>> {steps: str(target) for steps, target in menu(Sparsity(0.9), 0.05, 2).items()}
    {-2: '0.8', -1: '0.85', 0: '0.9', 1: '0.95'}
    >>> [str(target) for target in menu(NofM(2, 4), 0.05, 3).values()]
    ['3:4', '2:4', '1:4']
    """
    either = range(-reach, reach + 1)
    match target:
        case Sparsity(fraction=fraction):
            # Ten digits: sums of decimals stay decimals.
            shares = {steps: round(fraction + steps * step, 10) for steps in either}
            return {
                steps: target if steps == 0 else Sparsity(share)
                for steps, share in shares.items()
                if 0 <= share < 1
            }
        case NofM(n=n, m=m):
            return {steps: NofM(n - steps, m) for steps in either if 1 <= n - steps < m}
        case Grid(bits=bits):
            return {
                steps: replace(target, bits=bits + steps)
                for steps in either
                if FEWEST <= bits + steps <= MOST
            }
        case _:
            message = f"{target} has no targets next to it that could be shared out; ask for a sparsity, N:M or a grid, or leave the allocation out"
            raise TargetError(message, subject=str(target))
