"""Shares of blocks that evolve: EvoPress' search for how much each block gives (Sieberling et
al. 2024, arXiv 2410.14649).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from random import Random
from typing import ClassVar, Final, final

import psutil
import torch
from torch import Tensor, nn

from calibrant.activations import Seen
from calibrant.allocations._base import Allocation
from calibrant.allocations._sharing import size_of
from calibrant.data import divided
from calibrant.errors import SpecError, TargetError
from calibrant.job import Job
from calibrant.methods import MatrixMethod, Method, ModelMethod
from calibrant.methods._arrivals import arrivals
from calibrant.methods._base import MOST_CANDIDATES
from calibrant.methods._searching import Choice, Space, Trials, climb
from calibrant.models import Block, Weight
from calibrant.numerics import six_digits
from calibrant.spec import MOST_STEPS, check_most
from calibrant.spec.foreign import brief
from calibrant.targets import Grid, Sparsity, Target
from calibrant.targets.grid import FEWEST, MOST
from calibrant.walk.variants import AS_IT_IS, Variant, Variants

MOST_LEVELS: Final = 100
"""The most levels to either side: each is a copy of all blocks."""


@dataclass(frozen=True, repr=False)
class Evolved(Allocation):
    """Shares a sparsity, or bits, among blocks such that the predictions stay nearest to the
    untouched model's: (1+λ) with selection in stages.

    A block gives what was asked for, or up to `levels` times `step` more or less; of a grid the
    step is one bit. Blocks of the same size exchange steps, so that the mean is what was asked for.
    Each block is compressed to each level once, by the method, for the inputs that it gets in the
    untouched model; put together, these are the candidates. They are kept in memory, one copy of
    the blocks for each level: a `SpecError` where there is no room. `tokens` are as for the method
    `evopress`: on the last number of them it is decided.

    Differs from EvoPress' code in: a step is taken by whole blocks, not by single matrices, and all
    candidates are judged on the same tokens. What the method does in the end for inputs that come
    from compressed blocks (`arrival`) isn't what was searched on.
    """

    revision: ClassVar[int] = 2
    tries: ClassVar[bool] = True

    levels: int = 2
    step: float = 0.05
    tokens: tuple[int, ...] | int = (512, 2048)
    offspring: int = 16
    survivors: int = 2
    generations: int = 40
    patience: int = 8
    seed: int = 0

    @property
    def _stages(self) -> tuple[int, ...]:
        """The numbers of tokens, also where one was given by itself."""
        if isinstance(self.tokens, list | tuple):
            return tuple(self.tokens)
        return (self.tokens,)

    def __post_init__(self) -> None:
        check_most(self, levels=MOST_LEVELS, offspring=MOST_CANDIDATES, survivors=MOST_CANDIDATES)
        check_most(self, generations=MOST_STEPS, patience=MOST_STEPS)
        for name in ("levels", "offspring", "survivors", "generations", "patience"):
            value = getattr(self, name)
            if value < 1:
                raise SpecError(f"evolved({name}={value}): {name} must be at least 1", subject=name)
        if not 0 < self.step < 1:
            raise SpecError(
                f"evolved(step={self.step:g}): "
                f"a step is a share of the weights, above 0 and below 1",
                subject="step",
            )
        tokens = self._stages
        object.__setattr__(self, "tokens", tokens)
        whole = all(type(number) is int for number in tokens)
        growing = whole and list(tokens) == sorted(set(tokens))
        if not tokens or not growing or tokens[0] < 2:
            raise SpecError(
                f"evolved(tokens={brief(list(tokens))}): "
                f"write numbers of tokens that grow, as in tokens=[512, 2048]",
                subject="tokens",
            )

    def share(self, matrices: Mapping[Weight, Seen], target: Target) -> Mapping[str, Target]:
        """Return where the search begins: every matrix gives what was asked for."""
        return {weight.name: target for weight in matrices}

    def targets(
        self, matrices: Mapping[Weight, Seen], job: Job, method: Method
    ) -> Mapping[str, Target]:
        if not isinstance(method, MatrixMethod):
            raise TargetError(
                f"{self} shares a target among matrices, and {method} doesn't go matrix by matrix; "
                f"leave the allocation out",
                subject=str(self),
            )
        # Its single matrices aren't the model that comes of it.
        if isinstance(method, ModelMethod):
            raise TargetError(
                f"{self} compresses matrices one by one to find shares, and {method} changes more "
                f"of a model than that; leave the allocation out",
                subject=str(self),
            )
        menu = self.menu(job.target)
        # Where the target stands in the menu: fewer levels may lie below it than above.
        middle = menu.index(job.target)
        blocks = job.view.blocks
        space = _space(blocks, middle, len(menu) - 1)
        candidates = _Candidates(job, method, menu)
        trials = Trials(space, candidates.measure, self._stages, job.journal, candidates.tell)
        best = climb(
            trials,
            [(middle,) * len(blocks)],
            Random(self.seed),
            drawn=0,
            offspring=self.offspring,
            survivors=self.survivors,
            generations=self.generations,
            patience=self.patience,
        )
        course = [six_digits(divergence) for divergence in trials.course]
        job.notes.update(
            by="divergence",
            best=course[-1],
            course=course,
            measured=trials.count,
            tokens=list(self._stages),
        )
        targets: dict[str, Target] = {}
        for block in blocks:
            for weight in block.weights:
                targets[weight.name] = menu[best[block.index]]
        return targets

    def tried(self, blocks: int, target: Target) -> int:
        first, *others = self._stages
        offspring = self.offspring * self.generations
        survivors = self.survivors * self.generations + 1
        return offspring * first + survivors * sum(others)

    def judges_by(self, method: Method, target: Target) -> tuple[Method, int]:
        return method, 2 * self.levels + 1

    def menu(self, target: Target) -> list[Target]:
        """Return the targets that a block may have, in order; `levels` to either side of `target`
        at most. Raises `TargetError` for a target that is neither a sparsity nor a grid.
        """
        steps = range(-self.levels, self.levels + 1)
        if isinstance(target, Sparsity):
            # In fractions, so that 0.6 + 0.05 is the same number as 0.65 written by a user.
            fraction = Fraction(str(target.fraction))
            step = Fraction(str(self.step))
            shares = [fraction + number * step for number in steps]
            return [Sparsity(float(share)) for share in shares if 0 <= share < 1]
        if isinstance(target, Grid):
            widths = [target.bits + number for number in steps]
            return [replace(target, bits=bits) for bits in widths if FEWEST <= bits <= MOST]
        raise TargetError(
            f"{self} can't share {target}: it takes a sparsity, such as 0.5, "
            f"or a grid, such as w4g64",
            subject=str(target),
        )


def _space(blocks: Sequence[Block], middle: int, highest: int) -> Space:
    """Return what can be searched: each block has a level from 0 to `highest`, on average `middle`.

    Only blocks of the same size exchange steps, so that the mean over all weights stays.
    """
    group_of_size: dict[int, int] = {}
    groups: list[int] = []
    for block in blocks:
        group = group_of_size.setdefault(size_of(block.weights), len(group_of_size))
        groups.append(group)
    sums = [middle * groups.count(group) for group in group_of_size.values()]
    return Space(tuple(groups), tuple(sums), highest)


@final
class _Candidates:
    """Measures models whose blocks are compressed to different levels. The compressed blocks are
    made when the first candidate is measured: after an interruption the journal may know them all.
    """

    def __init__(self, job: Job, method: MatrixMethod, menu: Sequence[Target]) -> None:
        self._job = job
        self._method = method
        self._menu = menu

    def measure(self, choices: Sequence[Choice], tokens: int) -> Sequence[float]:
        """Return how far each candidate's predictions are from the untouched model's."""
        batch, _ = divided(self._job.tokens(), tokens)
        # Variant 0 is the untouched block, so level 0 is variant 1.
        variants: list[tuple[int, ...]] = []
        for choice in choices:
            variants.append(tuple(level + 1 for level in choice))
        return self._variants.losses(variants, batch, divergence=True, ranks=self._job.ranks)

    def tell(self, best: float, done: int, total: int) -> None:
        """Report progress, with the best so far."""
        self._job.progress(f"sharing {self._job.target}; best {best:.4f}", done, total)

    @cached_property
    def _variants(self) -> Variants:
        """Every block, untouched and compressed to each level. Raises `SpecError` where memory has
        no room for them.
        """
        blocks = self._job.view.blocks
        menu = self._menu
        size = 0
        for block in blocks:
            size += sum(weight.stored.nbytes for weight in block.weights)
        needed = len(menu) * size
        free = psutil.virtual_memory().available
        if needed > free:
            raise SpecError(
                f"blocks compressed to {len(menu)} levels take {needed / 1e9:.1f} GB, "
                f"and {free / 1e9:.1f} GB are free; lower evolved(levels=…)",
                subject="levels",
            )
        # For each block and level, the compressed copies of the block's parameters.
        copies: list[list[_Copies]] = []
        for _ in blocks:
            copies.append([_Copies() for _ in menu])
        memory = None
        if self._job.view.residence.elsewhere:
            # Of all blocks they may be more than the device has room for.
            memory = torch.device("cpu")
        for weight, seen in arrivals(self._method, self._job):
            for level_copies, target in zip(copies[weight.block], menu, strict=True):
                compressed = self._method.compress(weight.get(), seen, target)
                _write_into(level_copies, weight, compressed.weight, memory)
            self._job.progress("compressing to each level", weight.block + 1, len(blocks))
        variants: list[tuple[Variant, ...]] = []
        for by_level in copies:
            variants.append((AS_IT_IS, *map(_variant, by_level)))
        return Variants(self._job.view, variants)


def _variant(copies: "_Copies") -> Variant:
    """The variant of a block whose parameters have these numbers."""
    numbers: list[tuple[nn.Parameter, Tensor]] = []
    for (owner, key), copy in copies.items():
        numbers.append((owner.get_parameter(key), copy))
    return Variant(numbers=tuple(numbers))


_Copies = dict[tuple[nn.Module, str], Tensor]
"""Copies of parameters, by the module that they are in and their key there: a held block may have
other parameters than one that isn't.
"""


def _write_into(
    copies: _Copies, weight: Weight, matrix: Tensor, memory: torch.device | None
) -> None:
    """Write `matrix` into the copy of the parameter that holds this weight, and make the copy
    first if there is none: in the `memory` where blocks stay.
    """
    place = weight.owner, weight.key
    if place not in copies:
        parameter = weight.owner.get_parameter(weight.key).detach()
        copies[place] = parameter.to(memory or parameter.device, copy=True)
    # A view into the copy: all experts of a layer may be in one parameter.
    stored = copies[place]
    if weight.expert is not None:
        stored = stored[weight.expert]
    if weight.transposed:
        stored = stored.T
    stored.copy_(matrix)
