"""AWQ: rounding to nearest, after columns with large inputs were made larger (Lin et al. 2023,
arXiv 2306.00978).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calibrant.activations import FeatureSizes, Gram, Seen, Statistic
from calibrant.edits import Edit, Fold, Replace
from calibrant.errors import SpecError
from calibrant.job import Job
from calibrant.methods._base import Compressed, MatrixMethod, StandIn, finite, grid, observed
from calibrant.methods.quantization._rounding import absmax
from calibrant.methods.quantization._scaling import (
    best_strength,
    clipped,
    linear,
    module_output,
    sizes_of,
)
from calibrant.methods.quantization._sites import Site, Sites
from calibrant.methods.quantization._stand_ins import ScaledAlone
from calibrant.models import ModelView, Stream, Weight
from calibrant.spec import check_most
from calibrant.system.clock import spent_on
from calibrant.targets import Grid, Target
from calibrant.walk import Propagation
from calibrant.walk.attention import BlockCall
from calibrant.walk.statistics import by_block

Sample = tuple[Callable[[TorchFunctionMode], None], Tensor]
"""A way to run a block on a micro-batch, and which of its tokens are real."""

MOST_STRENGTHS: Final = 10_000
"""That are tried for each place: finer ones round alike."""


@dataclass(frozen=True, repr=False)
class AWQ(MatrixMethod):
    """Multiplies columns by s = m^α, m the mean |x| of their inputs, folds 1/s into what makes
    these inputs, clips, and rounds to nearest.

    Per site α is the best of 0, 1/`steps` … (`steps - 1`)/`steps`; scales go into the norm before
    matrices, into values before an output (where every head has its own), and into the rows that
    hidden units are proportional to, so the stored model is an ordinary one. The error is that of
    the attention's or feed-forward network's output on one micro-batch where these are understood
    (objective `module`), and Σ tr(ΔW G ΔWᵀ) of the matrices' own outputs elsewhere, for several
    ranks, and where the output is the matrix's own (objective `linear`); each fold's notes say
    which. `clip` then lets the grid of each group reach 1, 0.95 … 0.55 of its largest weight,
    whichever errs least in the group's outputs; not that of queries and keys. Inputs are those of
    the dense model: scales are folded into what makes them, so only `dense` is possible.

    Differs from the paper's code in: grids are those of the target, symmetric ones too; clipping
    uses all tokens; inputs that were always zero aren't scaled; the last matrices of experts aren't
    scaled, only clipped.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Grid,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (FeatureSizes, Gram)
    propagate: ClassVar[Propagation] = "dense"
    propagations: ClassVar[tuple[Propagation, ...]] = ("dense",)

    steps: int = 20
    clip: bool = True

    def __post_init__(self) -> None:
        check_most(self, steps=MOST_STRENGTHS)
        if self.steps < 1:
            raise SpecError(
                f"awq(steps={self.steps}): at least 1 strength is tried, 0; 20 is the paper's",
                subject="steps",
            )

    def stand_in(self, target: Target) -> StandIn:
        differs = "every matrix has scales of its own, by the root mean square of its inputs, and is judged by its own outputs"
        return StandIn(ScaledAlone(self.steps, self.clip), target, differs)

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        Stream.of(view)

    def compress(self, weight: Float[Tensor, "out in"], seen: Seen, target: Target) -> Compressed:
        """Clip and round: what is done to a matrix whose columns are scaled already. Raises as
        `gptq` does.
        """
        return self._rounded(weight, observed(seen, Gram), grid(target), self.clip)

    def edits(self, job: Job) -> Iterator[Edit]:
        sites, samples = Sites.of(job.view), dict[int, Sample]()

        def keep(call: BlockCall) -> None:
            if job.ranks.size == 1 and call.block.index not in samples:
                samples[call.block.index] = call.kept(), call.real

        for block, seen in by_block(job.view.blocks[job.start :], job.walk(self.observes, keep)):
            sample, scaled = samples.pop(block.index, None), dict(seen)
            for site in sites.by_block[block.index]:
                with spent_on("method"):
                    fold = self._fold(site, scaled, job, sample)
                if fold is not None:
                    yield fold
            for weight, statistics in scaled.items():
                with spent_on("method"):
                    clip = self.clip and weight.name in sites.clippable
                    compressed = self._rounded(
                        weight.get(),
                        observed(statistics, Gram),
                        grid(job.targets[weight.name]),
                        clip,
                    )
                yield Replace(weight, compressed, statistics)

    def _fold(
        self, site: Site, seen: dict[Weight, Seen], job: Job, sample: Sample | None
    ) -> Fold | None:
        """The best scales of a site; what its readers see becomes, in `seen`, what they will
        see. None where 1 is best, or no token came.
        """
        readers = {
            weight: grid(job.targets[weight.name]) for weight in site.readers if weight in seen
        }
        if not readers or self.steps == 1:
            return None
        sizes = sizes_of([seen[weight] for weight in readers])
        module = site.writer is not None and sample is not None
        judge = (
            module_output(site.writer, *sample)
            if site.writer is not None and sample is not None
            else linear(seen)
        )
        alpha, s, errors = best_strength(readers, sizes, self.steps, judge)
        if alpha == 0:
            return None
        shared: dict[int, Seen] = {}
        for weight in readers:
            before = seen[weight]
            seen[weight] = shared.setdefault(id(before), _divided(before, s))
        notes = {
            "site": site.name,
            "alpha": alpha,
            "objective": "module" if module else "linear",
            "error": float(f"{errors[1] / errors[0]:.6g}"),
        }
        return Fold(site.block, site.scalings(s.float().cpu()), notes)

    def _rounded(self, weight: Tensor, gram: Gram, target: Grid, clip: bool) -> Compressed:
        target.check((weight.shape[0], weight.shape[1]), "the matrix")
        sound = finite(weight, "the weight")
        finite(gram.norms(), "the squared norms of the inputs")
        packed = (clipped(sound, target, gram) if clip else absmax(sound, target)).nearest(sound)
        return Compressed(packed.dense(), packed=packed)


def _divided(seen: Seen, s: Tensor) -> Seen:
    """What matrices see of inputs that are divided by `s`."""
    sizes, gram = seen[FeatureSizes], seen[Gram]
    factors = s.to(gram.matrix.dtype)
    return Seen(
        {
            FeatureSizes: FeatureSizes(
                sizes.sums / s, sizes.squares / s.square(), sizes.tokens, sizes.mass
            ),
            Gram: Gram(gram.matrix / torch.outer(factors, factors), gram.tokens, gram.mass),
        }
    )
