"""Fits what wanda leaves of a block to what the block gave before, by gradients of its own
forward; slow (after arXiv 2510.14444).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from calibrant.activations import FeatureNorms, Gram, Seen, Statistic
from calibrant.edits import Edit, Replace
from calibrant.errors import CalibrantError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods._base import Compressed, MatrixMethod, Method, StandIn, standing_in
from calibrant.methods.pruning._refitting import BlockSample, refit
from calibrant.methods.pruning.wanda import Wanda
from calibrant.models import ModelView, Stream, Weight
from calibrant.spec import MOST_STEPS, check_most
from calibrant.system.clock import spent_on
from calibrant.targets import Removal, Target
from calibrant.walk import Propagation
from calibrant.walk.attention import BlockCall
from calibrant.walk.rehearsal import rehearse


@dataclass(frozen=True, repr=False)
class Reconstructed(Method):
    """Prunes a block with `method`, and then takes `steps` of Adam so that attention and
    feed-forward network give what they gave before.

    The error is that of what each matrix that writes to the residual stream gives, relative to what
    it gave in the block as it was, on the inputs that come with everything before it already
    compressed; its gradients go through the block's own forward. The first step is `rate` times the
    root mean square of a matrix's weights, the last near 0, and each sees one micro-batch. What was
    removed stays zero. Where the error over all micro-batches didn't fall, the block stays as
    `method` left it. A block's inputs are kept in memory while it is worked on.

    Errors of matrices in the record are those that `method` left; those of blocks stand in its
    edits. Differs from the paper's code in: sizes of steps are relative, attention and feed-forward
    network are fitted together, and the targets belong to the inputs that arrive.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Removal,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    updates: ClassVar[bool] = True
    propagate: ClassVar[Propagation] = "reference"
    propagations: ClassVar[tuple[Propagation, ...]] = ("reference",)

    method: Any = Wanda()  # noqa: RUF009  # frozen; a MatrixMethod, anything else is refused in a sentence
    steps: int = 32
    rate: float = 0.01

    def __post_init__(self) -> None:
        check_most(self, steps=MOST_STEPS)
        if not (
            isinstance(self.method, MatrixMethod)
            and {FeatureNorms, Gram} >= set(self.method.observes)
        ):
            message = f"reconstructed(method={self.method}): it needs a method that looks at feature norms or a Gram at most, such as wanda"
            raise SpecError(message, subject=str(self.method))
        if self.steps < 1:
            raise SpecError(
                f"reconstructed(steps={self.steps}): at least 1 step is taken; 32 are usual",
                subject="steps",
            )
        if not 0 < self.rate <= 1:
            raise SpecError(
                f"reconstructed(rate={self.rate}): a step is above 0 and at most 1 times the size of a weight, such as 0.01",
                subject="rate",
            )

    def check(self, target: Target) -> None:
        super().check(target)
        self.method.check(target)

    def stand_in(self, target: Target) -> StandIn | None:
        return standing_in(self.method, target, f"{self.method}, without the fitting afterwards")

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        self.method.check_model(view, target, targets)
        if expert := next(
            (weight.name for weight in view.weights if weight.expert is not None), ""
        ):
            raise TargetError(
                f"{self.spec_name()} follows blocks without experts, and {expert} is one; use the method alone",
                subject=expert,
            )
        Stream.of(view)

    def edits(self, job: Job) -> Iterator[Edit]:
        if job.ranks.size > 1:
            raise SpecError(
                "reconstructed works in one process; start it without torchrun", subject=str(self)
            )
        left = rehearse(job.view).left(job.propagate)
        followed = {
            block.index: [weight for weight in block.weights if weight.name not in left]
            for block in job.view.blocks
        }
        writers = [writer.weight for writer in Stream.of(job.view).writers]
        samples, done = list[BlockSample](), list[Weight]()

        def keep(call: BlockCall) -> None:
            samples.append(
                BlockSample.of(
                    call, [writer for writer in writers if writer.block == call.block.index]
                )
            )

        for weight, seen in job.walk(self.observes, keep):
            yield Replace(weight, self._compressed(weight, seen, job), seen)
            done.append(weight)
            # Before the walk is asked for more: then the block runs with what was made of it.
            if len(done) == len(followed[weight.block]):
                with spent_on("method"):
                    edit = refit(
                        weight.block,
                        done,
                        [w for w in writers if w.block == weight.block],
                        samples,
                        self.steps,
                        self.rate,
                    )
                if edit is not None:
                    yield edit
                samples.clear()
                done.clear()

    def _compressed(self, weight: Weight, seen: Seen, job: Job) -> Compressed:
        try:
            with spent_on("method"):
                return self.method.compress(
                    weight.get(), Seen.of_gram(seen[Gram]), job.targets[weight.name]
                )
        except CalibrantError as error:
            raise type(error)(
                f"{self.spec_name()} failed at {weight.name}: {error}", subject=weight.name
            ) from error
