"""Fits what wanda leaves of a block to what the block gave before, by gradients of its own
forward; slow (after arXiv 2510.14444).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calibrant.activations import FeatureNorms, Gram, Propagation, Seen, Statistic
from calibrant.edits import Edit, Replace, StoredEdit
from calibrant.errors import ModelError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods._base import StandIn, check_least, removes, standing_in
from calibrant.methods._model_method import (
    PRODUCTS,
    ModelMethod,
    check_matrices,
    check_one_process,
    failing_at,
)
from calibrant.methods.pruning.wanda import Wanda
from calibrant.models import ModelView, Stream, Weight
from calibrant.numerics import six_digits
from calibrant.spec import MOST_STEPS, check_most
from calibrant.system.clock import spent_on
from calibrant.targets import Removal, Target
from calibrant.walk.attention import BlockCall, KeptCall
from calibrant.walk.rehearsal import rehearse


@dataclass(frozen=True, repr=False)
class Reconstructed(ModelMethod):
    """Prunes a block with `method`, and then takes `steps` of Adam so that attention and
    feed-forward network give what they gave before.

    The error is that of what each matrix that writes to the residual stream gives, relative to what
    it gave in the block as it was; tokens count by their weights. Inputs are those that come when
    everything before the block is compressed; gradients go through the block's own forward. The
    first step is `rate` times the root mean square of a matrix's weights, the last near 0, and each
    sees one micro-batch. What was removed stays zero. Where the error over all micro-batches didn't
    fall, the block stays as `method` left it. A block's inputs are kept in memory while it is
    worked on.

    Errors of matrices in the record are those that `method` left; those of blocks stand in its
    edits. Differs from the paper's code in: sizes of steps are relative, attention and feed-forward
    network are fitted together, and the targets belong to the inputs that arrive.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (Removal,)
    observes: ClassVar[tuple[type[Statistic], ...]] = (Gram,)
    updates: ClassVar[bool] = True
    propagate: ClassVar[Propagation] = "reference"
    propagations: ClassVar[tuple[Propagation, ...]] = ("reference",)

    method: Any = Wanda()  # noqa: RUF009  # frozen; `__post_init__` refuses what is no MatrixMethod
    steps: int = 32
    rate: float = 0.01

    def __post_init__(self) -> None:
        check_most(self, steps=MOST_STEPS)
        method = self.method
        if not removes(method) or not {FeatureNorms, Gram} >= set(method.observes):
            needs = (
                "it needs a method that removes weights matrix by matrix and looks at feature "
                "norms or a Gram at most, such as wanda"
            )
            raise SpecError(f"reconstructed(method={method}): {needs}", subject=str(method))
        check_least(self, steps=1)
        if not 0 < self.rate <= 1:
            allowed = "a step is above 0 and at most 1 times the size of a weight, such as 0.01"
            raise SpecError(f"reconstructed(rate={self.rate}): {allowed}", subject="rate")

    def check(self, target: Target) -> None:
        super().check(target)
        self.method.check(target)

    def stand_in(self, target: Target) -> StandIn | None:
        return standing_in(self.method, target, f"{self.method}, without the fitting afterwards")

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        check_matrices(view, targets)
        for weight in view.weights:
            if weight.expert is not None:
                problem = (
                    f"{self.spec_name()} follows blocks without experts, and {weight.name} is one"
                )
                raise TargetError(f"{problem}; use the method alone", subject=weight.name)
        # Refuses a model whose stream isn't understood.
        Stream.of(view)

    def edits(self, job: Job) -> Iterator[Edit]:
        check_one_process(self, job)
        left = rehearse(job.view).left(job.propagate)
        writers: dict[int, list[Weight]] = defaultdict(list)
        for writer in Stream.of(job.view).writers:
            writers[writer.weight.block].append(writer.weight)
        samples: list[BlockSample] = []
        pruned: list[Weight] = []

        def keep(call: BlockCall) -> None:
            samples.append(BlockSample.of(call, writers[call.block.index]))

        for weight, seen in job.walk(self.observes, keep):
            with failing_at(self, weight.name), spent_on("method"):
                inputs = Seen.of_gram(seen[Gram])
                target = job.targets[weight.name]
                compressed = self.method.compress(weight.get(), inputs, target)
            yield Replace(weight, compressed, seen)
            pruned.append(weight)
            block = job.view.blocks[weight.block]
            followed = [member for member in block.weights if member.name not in left]
            # The block is fitted before the walk is asked for more: then the walk runs it again,
            # with the fitted weights.
            if len(pruned) == len(followed):
                with spent_on("method"):
                    edit = refit(
                        weight.block, pruned, writers[weight.block], samples, self.steps, self.rate
                    )
                if edit is not None:
                    yield edit
                samples.clear()
                pruned.clear()


@dataclass(frozen=True)
class Refit(Edit):
    """The weights that stay in the matrices of one block get other values. `notes` say what that
    did to the block's outputs.
    """

    kind: ClassVar[str] = "refit"

    index: int
    matrices: Mapping[Weight, Float[Tensor, "out in"]] = field(repr=False)
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def block(self) -> int | None:
        return self.index

    def apply(self, view: ModelView) -> None:
        for weight, matrix in self.matrices.items():
            weight.set(matrix)

    def undo(self, view: ModelView) -> Callable[[], None]:
        before = {weight: weight.get().clone() for weight in self.matrices}

        def put_back() -> None:
            for weight, matrix in before.items():
                weight.set(matrix)

        return put_back

    def report(self, view: ModelView) -> dict[str, Any]:
        return {
            "edit": self.kind,
            "block": self.index,
            "matrices": self._names(),
            "notes": dict(self.notes),
        }

    def applied(self) -> "Refit":
        # The model's own numbers by now, not copies.
        matrices = {weight: weight.get() for weight in self.matrices}
        return Refit(self.index, matrices, self.notes)

    def stored(self) -> StoredEdit:
        facts = {"block": self.index, "matrices": self._names(), "notes": dict(self.notes)}
        # Clones: the edits that replaced these matrices hold the model's own numbers too, and no
        # file may hold one tensor twice.
        tensors: dict[str, Tensor] = {}
        for number, matrix in enumerate(self.matrices.values()):
            tensors[str(number)] = matrix.clone()
        return StoredEdit(self.kind, facts, tensors)

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Refit":
        matrices: dict[Weight, Tensor] = {}
        for number, name in enumerate(stored.facts["matrices"]):
            weight = view.named[name]
            matrices[weight] = stored.tensors[str(number)].to(weight.stored.device)
        return cls(stored.facts["block"], matrices, stored.facts["notes"])

    def _names(self) -> list[str]:
        return [weight.name for weight in self.matrices]


@dataclass(frozen=True)
class BlockSample:
    """A micro-batch that a block reads: a way to run the block on it, which tokens are real, how
    much each of these counts (None: 1), and what the block's writers gave while it was `untouched`,
    by name.
    """

    run: KeptCall
    real: Bool[Tensor, "sample position"]
    weights: Float[Tensor, "token"] | None
    untouched: Mapping[str, Float[Tensor, "token out"]]

    @classmethod
    def of(cls, call: BlockCall, writers: Sequence[Weight]) -> "BlockSample":
        """Run the block that is about to run, as it is now, and keep what its `writers` give.
        `ModelError` for a writer whose product isn't seen.
        """
        outputs = _Outputs(writers, {})
        call.aside(outputs)
        untouched = {name: rows.detach() for name, rows in outputs.rows(call.real)}
        return cls(call.kept(), call.real, call.weights, untouched)

    def squares(self, rows: Float[Tensor, "token out"]) -> Float[Tensor, ""]:
        """Return the sum of the squares of outputs, each token by its weight."""
        squares = rows.float().square()
        if self.weights is not None:
            squares = squares * self.weights[:, None]
        return squares.sum()

    def errors(
        self, writers: Sequence[Weight], replacements: Mapping[int, Tensor], gradients: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the squared error of what each writer gives for the real tokens, each by its
        weight, by the writer's name.

        The block runs with these `replacements` in place of parameters, by their `id`.
        """
        outputs = _Outputs(writers, replacements, gradients)
        self.run(outputs)
        errors: dict[str, Tensor] = {}
        for name, rows in outputs.rows(self.real):
            errors[name] = self.squares(rows.float() - self.untouched[name].float())
        return errors


def refit(
    index: int,
    weights: Sequence[Weight],
    writers: Sequence[Weight],
    samples: Sequence[BlockSample],
    steps: int,
    rate: float,
) -> Refit | None:
    """Return the edit that brings what the block's `writers` give nearer to what they gave; None
    where no step did.

    The error is the sum over writers of the relative squared error of their outputs. Adam takes
    `steps` steps on one micro-batch each in turn; the first is `rate` times the root mean square of
    a matrix's kept weights, the last near 0. Zeros stay zero. The result is kept only if the error
    over all micro-batches is smaller than it was.
    """
    sizes: dict[str, float] = {}
    for writer in writers:
        squares = [float(sample.squares(sample.untouched[writer.name])) for sample in samples]
        # Where all outputs were zero no error is relative to them: then any counts as very large.
        sizes[writer.name] = max(sum(squares), 1e-30)
    matrices = [_FittedMatrix.of(weight) for weight in weights]

    def errors(sample: BlockSample, gradients: bool = False) -> dict[str, Tensor]:
        replacements = {matrix.parameter_id: matrix.numbers() for matrix in matrices}
        return sample.errors(writers, replacements, gradients)

    @torch.no_grad()
    def total_error() -> float:
        total = 0.0
        for sample in samples:
            squares = errors(sample)
            for name, size in sizes.items():
                total += float(squares[name]) / size
        return total

    def loss(step: int) -> Tensor:
        sample = samples[step % len(samples)]
        squares = errors(sample, gradients=True)
        relative = [squares[name] / size for name, size in sizes.items()]
        # One micro-batch stands for all of them.
        return torch.stack(relative).sum() * len(samples)

    before = total_error()
    _descend(matrices, loss, steps, rate)
    after = total_error()
    # NaN is no smaller either.
    if not after < before:
        return None
    fitted = {matrix.weight: matrix.result() for matrix in matrices}
    notes = {"steps": steps, "before": six_digits(before), "after": six_digits(after)}
    return Refit(index, fitted, notes)


@final
@dataclass(frozen=True)
class _FittedMatrix:
    """A matrix that is fitted, in the order in which the model stores its numbers.

    `variable` are its numbers in float32, which the steps change; `kept` says which of them aren't
    zero, `size` is the root mean square of those, and `parameter_id` the `id` of its parameter.
    """

    weight: Weight
    variable: Float[Tensor, "row column"]
    kept: Bool[Tensor, "row column"]
    size: float
    parameter_id: int

    @classmethod
    def of(cls, weight: Weight) -> "_FittedMatrix":
        variable = weight.stored.float().clone().requires_grad_()
        kept = weight.stored != 0
        size = 0.0
        if bool(kept.any()):
            size = float(variable.detach()[kept].square().mean().sqrt())
        return cls(weight, variable, kept, size, id(getattr(weight.owner, weight.key)))

    def numbers(self) -> Float[Tensor, "row column"]:
        """Return its numbers in the model's type; what was removed stays zero."""
        # The product keeps gradients of removed weights at zero too.
        return (self.variable * self.kept).to(self.weight.stored.dtype)

    def result(self) -> Float[Tensor, "out in"]:
        """Return its numbers as a matrix, without gradients."""
        numbers = self.numbers().detach()
        return numbers.T if self.weight.transposed else numbers


@torch.enable_grad()
def _descend(
    matrices: Sequence[_FittedMatrix], loss: Callable[[int], Tensor], steps: int, rate: float
) -> None:
    """Take the steps of Adam; `loss(number)` gives the loss of a step."""
    variables = [matrix.variable for matrix in matrices]
    groups: list[dict[str, Any]] = []
    for matrix in matrices:
        groups.append({"params": [matrix.variable], "lr": rate * matrix.size})
    optimizer = torch.optim.Adam(groups)

    def rate_factor(step: int) -> float:
        return 1 - step / steps

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor)
    for step in range(steps):
        loss_of_step = loss(step)
        optimizer.zero_grad()
        # Not `backward`, which would give the model's own parameters gradients too.
        gradients = torch.autograd.grad(loss_of_step, variables, allow_unused=True)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = gradient
        optimizer.step()
        schedule.step()


@final
class _Outputs(TorchFunctionMode):
    """Puts replacements in the place of parameters, by their `id`, and keeps what products with the
    writers give.
    """

    def __init__(
        self, writers: Sequence[Weight], replacements: Mapping[int, Tensor], gradients: bool = False
    ) -> None:
        super().__init__()
        self._names = {id(getattr(writer.owner, writer.key)): writer.name for writer in writers}
        self._replacements = replacements
        self._gradients = gradients
        self._outputs: dict[str, Tensor] = {}

    def __enter__(self) -> "_Outputs":
        super().__enter__()
        # Whoever runs a block enters this inside `no_grad`, and ends that behind it.
        torch.set_grad_enabled(self._gradients)
        return self

    def __exit__(self, *error: Any) -> None:
        torch.set_grad_enabled(False)
        super().__exit__(*error)

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # By identity: comparing tensors would compute, and call this again.
        given = [self._replacements.get(id(argument), argument) for argument in args]
        named = {
            key: self._replacements.get(id(value), value) for key, value in (kwargs or {}).items()
        }
        result = func(*given, **named)
        if getattr(func, "__name__", "") in PRODUCTS:
            for argument in args:
                # By the parameter, whatever was put in its place.
                if id(argument) in self._names:
                    self._outputs[self._names[id(argument)]] = result
        return result

    def rows(
        self, real: Bool[Tensor, "sample position"]
    ) -> Iterator[tuple[str, Float[Tensor, "token out"]]]:
        """Yield what each writer gave for the real tokens, with its name."""
        for name in self._names.values():
            output = self._outputs.get(name)
            if output is None or output.shape[:-1].numel() != real.numel():
                problem = f"what {name} gives can't be followed in its block"
                raise ModelError(f"{problem}; leave reconstructed out", subject=name)
            yield name, output.flatten(0, -2)[real.flatten()]
