"""AWQ: rounding to nearest, after columns with large inputs were made larger (Lin et al. 2023,
arXiv 2306.00978).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, ClassVar, Final, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from calibrant.activations import FeatureSizes, Gram, Propagation, Seen, Statistic, wide
from calibrant.edits import Edit, Fold, Replace
from calibrant.edits.shared_scales import sharing_scales
from calibrant.edits.sites import Site, Sites
from calibrant.job import Job
from calibrant.methods._base import (
    Compressed,
    MatrixMethod,
    StandIn,
    check_least,
    finite,
    grid,
    observed,
)
from calibrant.methods._model_method import PRODUCTS, ModelMethod, check_matrices
from calibrant.methods.quantization._rounding import clipped, effective, input_scales, scales_of
from calibrant.methods.quantization._stand_ins import ScaledAlone
from calibrant.models import Block, ModelView, Stream, Weight
from calibrant.models.rounded_inputs import check_inputs_may_change
from calibrant.numerics import six_digits
from calibrant.packed import gram_energy
from calibrant.spec import check_most
from calibrant.system.clock import spent_on
from calibrant.system.products import full_speed
from calibrant.targets import FloatGrid, Grid, Target
from calibrant.walk.attention import BlockCall, KeptCall
from calibrant.walk.statistics import by_block

Judge = Callable[[Mapping[Weight, Tensor]], float]
"""Says how large the error of outputs is where matrices are replaced by these."""

MOST_STRENGTHS: Final = 10_000
"""Strengths α at most that are tried for each site; finer ones round alike."""


@dataclass(frozen=True, repr=False)
class AWQ(ModelMethod, MatrixMethod):
    """Multiplies columns by s = m^α, m the mean |x| of their inputs, folds 1/s into what makes
    these inputs, clips, and rounds to nearest.

    Per site α is the best of 0, 1/`steps` … (`steps - 1`)/`steps`. Scales go into the norm before
    matrices, into values before an output (where every head has its own), and into the rows that
    hidden units are proportional to; so the stored model is an ordinary one. The error is that of
    the attention's or feed-forward network's output on one micro-batch, where these are understood
    (objective `module`); of a mix on one of each set, by their shares. Tokens count by their
    weights. Elsewhere, for several ranks, and where the output is the matrix's own, it is
    Σ tr(ΔW G ΔWᵀ) of the matrices' own outputs (objective `linear`). The notes of each fold say
    which. `clip` then lets the grid of each group reach 1, 0.95 … 0.55 of its largest weight,
    whichever errs least in the group's outputs; grids of queries and keys aren't clipped, and
    neither are float grids such as `NVFP4A16`. There α is tried with a global scale for each
    matrix. Inputs are those of the dense model: scales are folded into what makes them, so only
    `dense` is possible.

    Two machines may choose another α. A symmetric scale is the largest |w| over half of the
    levels, so a largest weight that is negative lies halfway between two codes. There the last bits
    of float32 decide.

    Differs from the paper's code in: grids are those of the target, symmetric ones too; clipping
    uses all tokens; inputs that were always zero aren't scaled; the last matrices of experts aren't
    scaled, only clipped.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid, FloatGrid)
    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureSizes, Gram)
    propagate: ClassVar[Propagation] = "dense"
    propagations: ClassVar[tuple[Propagation, ...]] = ("dense",)

    steps: int = 20
    clip: bool = True

    def __post_init__(self) -> None:
        check_most(self, steps=MOST_STRENGTHS)
        check_least(self, steps=1)

    def stand_in(self, target: Target) -> StandIn:
        differs = (
            "every matrix has scales of its own, by the root mean square of its inputs, "
            "and is judged by its own outputs"
        )
        return StandIn(ScaledAlone(self.steps, self.clip), target, differs)

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        check_matrices(view, targets)
        check_inputs_may_change(view.model, str(self))
        Stream.of(view)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Clip and round: what is done to a matrix whose columns are scaled already. Raises as
        `gptq` does.
        """
        return self._rounded(weight, observed(seen, Gram), grid(target), self.clip)

    def edits(self, job: Job) -> Iterator[Edit]:
        sites = Sites.of(job.view)
        shares = _shares_by_first_window(job)
        windows_seen: dict[int, int] = defaultdict(int)
        samples: dict[int, list[SetSample]] = defaultdict(list)

        def keep(call: BlockCall) -> None:
            # Of several ranks each has other micro-batches, and they would disagree.
            if job.ranks.size > 1:
                return
            index = call.block.index
            share = shares.get(windows_seen[index])
            windows_seen[index] += len(call.real)
            # The first micro-batch of each set judges.
            if share is not None:
                samples[index].append(SetSample(call.kept(), call.real, call.weights, share))

        for block, seen in by_block(job.view.blocks[job.start :], job.walk(self.observes, keep)):
            of_block = samples.pop(block.index, [])
            # The walk is past this block already.
            with job.view.held(block):
                yield from self._edits_of_block(sites, block, seen, job, of_block)

    def _edits_of_block(
        self,
        sites: Sites,
        block: Block,
        seen: dict[Weight, Seen],
        job: Job,
        samples: Sequence["SetSample"],
    ) -> Iterator[Edit]:
        """Yield the folds of a block, and then its matrices, clipped and rounded. What a matrix saw
        is replaced in `seen` by what it sees after a fold.
        """
        for site in sites.by_block[block.index]:
            with spent_on("method"), full_speed():
                fold = self._fold(site, seen, job, samples)
            if fold is not None:
                yield fold
        targets = sharing_scales(block.weights, job.targets)
        for weight, statistics in seen.items():
            clip = self.clip and weight.name in sites.clippable
            target = grid(targets[weight.name])
            with spent_on("method"), full_speed():
                gram = observed(statistics, Gram)
                compressed = self._rounded(weight.get(), gram, target, clip)
            yield Replace(weight, compressed, statistics)

    def _fold(
        self, site: Site, seen: dict[Weight, Seen], job: Job, samples: Sequence["SetSample"]
    ) -> Fold | None:
        """Return the fold of a site's best scales, and replace in `seen` what its readers saw by
        what they will see. None where no scaling is best, or none of its readers saw anything.
        """
        readers: dict[Weight, Grid | FloatGrid] = {}
        for weight in site.readers:
            if weight in seen:
                readers[weight] = grid(job.targets[weight.name])
        if not readers or self.steps == 1:
            return None
        counted = _each_token_once(list(readers), job)
        sizes = sizes_of([seen[weight] for weight in counted])
        if site.writer is not None and samples:
            judge = module_output(site.writer, samples)
            objective = "module"
        else:
            judge = linear(seen)
            objective = "linear"
        alpha, column_scales, errors = best_strength(readers, sizes, self.steps, judge)
        if alpha == 0:
            return None
        # Matrices that share their inputs go on sharing them.
        before = {id(seen[weight]): seen[weight] for weight in readers}
        after = {key: _divided(statistics, column_scales) for key, statistics in before.items()}
        for weight in readers:
            seen[weight] = after[id(seen[weight])]
        notes = {
            "site": site.name,
            "alpha": alpha,
            "objective": objective,
            "error": six_digits(errors[1] / errors[0]),
        }
        return Fold(site.block, site.scalings(column_scales.float().cpu()), notes)

    def _rounded(
        self, weight: Tensor, gram: Gram, target: Grid | FloatGrid, clip: bool
    ) -> Compressed:
        target.check((weight.shape[0], weight.shape[1]), "the matrix")
        checked = finite(weight, "the weight")
        # A Gram's other numbers are at most as large as its norms, so these show what isn't finite.
        finite(gram.norms(), "the squared norms of the inputs")
        if clip and isinstance(target, Grid):
            packed = clipped(checked, target, gram).nearest(checked)
        else:
            packed = scales_of("absmax", checked, target).nearest(checked)
        return Compressed(finite(packed.dense(), "the rounded weight"), packed=packed)


def _shares_by_first_window(job: Job) -> dict[int, float]:
    """Return the share of each set, by the number of its first window in a walk that shows one set
    after the other.
    """
    shares: dict[int, float] = {}
    windows = 0
    for share, batch in job.tokens().sets:
        shares[windows] = share
        # A walk leaves out windows without a token.
        windows += int(batch.mask.any(1).sum())
    return shares


@final
@dataclass(frozen=True)
class SetSample:
    """A micro-batch of a set: a way to run a block on it, which tokens are real, how much each of
    these counts (None: 1), and the set's `share`.
    """

    kept_call: KeptCall
    real: Bool[Tensor, "sample position"]
    weights: Float[Tensor, "token"] | None
    share: float

    def output(self, writer: Weight | nn.Module) -> Float[Tensor, "token out"]:
        """Return what `writer` gives for the real tokens when the block runs."""
        if isinstance(writer, Weight):
            watch = _OutputWatch(writer.address)
        else:
            watch = _ModuleWatch(writer)
        # The forward ends by an exception, as soon as the output is there.
        with suppress(_Reached):
            self.kept_call(watch)
        assert watch.output is not None, f"{writer} was not reached"
        return watch.output.flatten(0, -2)[self.real.flatten()].to(wide(watch.output.dtype))

    def mean_square(self, rows: Float[Tensor, "token out"]) -> float:
        """Return the mean of the squares, each token by its weight."""
        squares = rows.square()
        if self.weights is None:
            return float(squares.mean())
        return float((squares.mean(1) * self.weights).sum() / self.weights.sum())


def _divided(seen: Seen, column_scales: Tensor) -> Seen:
    """Return what a matrix sees of its inputs when they are divided by `column_scales`."""
    sizes = seen[FeatureSizes]
    gram = seen[Gram]
    factors = column_scales.to(gram.matrix.dtype)
    # What the Gram is divided by, and then the quotient, in one place.
    matrix = torch.outer(factors, factors)
    torch.div(gram.matrix, matrix, out=matrix)
    squares = sizes.squares / column_scales.square()
    return Seen(
        {
            FeatureSizes: FeatureSizes(
                sizes.sums / column_scales, squares, sizes.tokens, sizes.mass
            ),
            Gram: Gram(matrix, gram.tokens, gram.mass),
        }
    )


def _each_token_once(readers: Sequence[Weight], job: Job) -> Sequence[Weight]:
    """Return readers that saw all tokens between them, each once. Where what experts saw is shared
    with starved ones, each of these has the sum over all experts, and one stands for all.
    """
    if job.starved != "shared":
        return readers
    starved = [weight for weight in readers if weight.name in job.starving]
    if not starved:
        return readers
    return [starved[0], *(weight for weight in readers if weight.expert is None)]


def sizes_of(seen: Sequence[Seen]) -> Float[Tensor, "in"]:
    """Return the mean |x| of the inputs that matrices share; of experts, over all tokens that they
    get together.
    """
    # Matrices that share an input share the statistic, which must count once.
    distinct: dict[int, FeatureSizes] = {}
    for statistics in seen:
        distinct[id(statistics[FeatureSizes])] = statistics[FeatureSizes]
    return reduce(add, distinct.values()).means()


def best_strength(
    matrices: Mapping[Weight, Grid | FloatGrid],
    sizes: Float[Tensor, "in"],
    steps: int,
    judge: Judge,
) -> tuple[float, Float[Tensor, "in"], tuple[float, float]]:
    """Return the strength α of 0, 1/`steps` … whose scales make the least error, its scales, and
    the errors without and with them.
    """
    errors: list[float] = []
    for step in range(steps):
        column_scales = input_scales(sizes, step / steps)
        candidates: dict[Weight, Tensor] = {}
        for weight, its_grid in matrices.items():
            candidates[weight] = effective(weight.get(), its_grid, column_scales)
        errors.append(judge(candidates))
    best = errors.index(min(errors))
    return best / steps, input_scales(sizes, best / steps), (errors[0], errors[best])


def linear(seen: Mapping[Weight, Seen]) -> Judge:
    """Return what judges by the matrices' own outputs: Σ tr(ΔW G ΔWᵀ)."""

    def judge(candidates: Mapping[Weight, Tensor]) -> float:
        total = 0.0
        for weight, candidate in candidates.items():
            change = candidate - weight.get().to(candidate.dtype)
            total += gram_energy(seen[weight][Gram], change.dtype)(change)
        return total

    return judge


def module_output(writer: Weight | nn.Module, samples: Sequence[SetSample]) -> Judge:
    """Return what judges by the mean square error of what `writer`, the last matrix of an attention
    or a feed-forward network or a module with experts, gives for the samples of all sets, each by
    its share.
    """
    untouched = [sample.output(writer) for sample in samples]

    def judge(candidates: Mapping[Weight, Tensor]) -> float:
        before = {weight: weight.get().clone() for weight in candidates}
        try:
            for weight, candidate in candidates.items():
                weight.set(candidate)
            error = 0.0
            for sample, rows in zip(samples, untouched, strict=True):
                error += sample.share * sample.mean_square(sample.output(writer) - rows)
            return error
        finally:
            for weight, numbers in before.items():
                weight.set(numbers)

    return judge


class _Reached(BaseException):
    """The output is there, and the rest of the block needn't run.

    No `Exception`, since a model's own code may catch those.
    """


@final
class _OutputWatch(TorchFunctionMode):
    """Takes the output of the product with the matrix at an address, and ends the forward there."""

    def __init__(self, address: int) -> None:
        super().__init__()
        self._address = address
        self.output: Tensor | None = None

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") not in PRODUCTS:
            return result
        tensors = [argument for argument in args if isinstance(argument, Tensor)]
        if any(tensor.data_ptr() == self._address for tensor in tensors):
            self.output = result.detach().clone()
            # What comes behind it in the block would be computed for nothing.
            raise _Reached
        return result


@final
class _ModuleWatch(AbstractContextManager[None]):
    """Takes the output of a module, and ends the forward there."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.output: Tensor | None = None

    def __enter__(self) -> None:
        self._handle = self._module.register_forward_hook(self._take)

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _take(self, _module: nn.Module, _args: Any, output: Any) -> None:
        # Some give what their router said besides.
        if isinstance(output, tuple):
            output = output[0]
        self.output = output.detach().clone()
        raise _Reached
