"""Fitting the weights that stay in a block to what it gave before, by gradients of its own
forward; and the edit that is made of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.overrides import TorchFunctionMode

from calibrant.edits import Edit, StoredEdit
from calibrant.errors import ModelError
from calibrant.models import ModelView, Weight
from calibrant.walk.attention import BlockCall

_PRODUCTS = ("linear", "addmm", "mm", "matmul", "__matmul__")


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
        return Refit(
            self.index, {weight: weight.get() for weight in self.matrices}, self.notes
        )  # the model's own numbers by now, not copies

    def stored(self) -> StoredEdit:
        facts = {"block": self.index, "matrices": self._names(), "notes": dict(self.notes)}
        # Clones: the edits that replaced these matrices hold the model's own numbers too, and no
        # file may hold one tensor twice.
        return StoredEdit(
            self.kind,
            facts,
            {str(number): matrix.clone() for number, matrix in enumerate(self.matrices.values())},
        )

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Refit":
        weights = [view.named[name] for name in stored.facts["matrices"]]
        matrices = {
            weight: stored.tensors[str(number)].to(weight.stored.device)
            for number, weight in enumerate(weights)
        }
        return cls(stored.facts["block"], matrices, stored.facts["notes"])

    def _names(self) -> list[str]:
        return [weight.name for weight in self.matrices]


@dataclass(frozen=True)
class BlockSample:
    """A micro-batch at the door of a block: a way to run the block on it, which tokens are real,
    and what its `writers` gave when it was whole.
    """

    run: Callable[[TorchFunctionMode], None]
    real: Bool[Tensor, "sample position"]
    whole: Mapping[str, Float[Tensor, "token out"]]

    @classmethod
    def of(cls, call: BlockCall, writers: Sequence[Weight]) -> "BlockSample":
        """Run the block that is about to run, as it is now, and keep what comes out.
        `ModelError` for a writer whose product isn't seen.
        """
        outputs = _Outputs(writers, {})
        call.aside(outputs)
        return cls(
            call.kept(), call.real, {name: rows.detach() for name, rows in outputs.rows(call.real)}
        )

    def errors(
        self, writers: Sequence[Weight], instead: Mapping[int, Tensor], gradients: bool = False
    ) -> dict[str, Float[Tensor, ""]]:
        """Return the squared error of what each writer gives of the real tokens, with other
        numbers `instead` of parameters, by their `id`.
        """
        outputs = _Outputs(writers, instead, gradients)
        self.run(outputs)
        return {
            name: (rows.float() - self.whole[name].float()).square().sum()
            for name, rows in outputs.rows(self.real)
        }


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
    sizes = {
        writer.name: max(
            sum(float(sample.whole[writer.name].float().square().sum()) for sample in samples),
            1e-30,
        )
        for writer in writers
    }
    places = {weight.name: id(getattr(weight.owner, weight.key)) for weight in weights}
    kept = {weight.name: weight.stored != 0 for weight in weights}
    leaves = {weight.name: weight.stored.float().clone().requires_grad_() for weight in weights}
    scales = {
        name: float(leaf.detach()[kept[name]].square().mean().sqrt())
        if bool(kept[name].any())
        else 0.0
        for name, leaf in leaves.items()
    }

    def instead() -> dict[int, Tensor]:
        return {
            places[weight.name]: (leaves[weight.name] * kept[weight.name]).to(weight.stored.dtype)
            for weight in weights
        }

    def error() -> float:
        parts = [sample.errors(writers, instead()) for sample in samples]
        return sum(float(part[name]) / size for part in parts for name, size in sizes.items())

    with torch.no_grad():
        before = error()
    optimizer = torch.optim.Adam(
        [{"params": [leaf], "lr": rate * scales[name]} for name, leaf in leaves.items()]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    with torch.enable_grad():
        for step in range(steps):
            errors = samples[step % len(samples)].errors(writers, instead(), gradients=True)
            loss = torch.stack([errors[name] / size for name, size in sizes.items()]).sum() * len(
                samples
            )
            optimizer.zero_grad()
            gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            for leaf, gradient in zip(leaves.values(), gradients, strict=True):
                leaf.grad = gradient
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        after = error()
    if not after < before:
        return None
    notes = {"steps": steps, "before": float(f"{before:.6g}"), "after": float(f"{after:.6g}")}
    by_weight = {
        weight: (leaves[weight.name].detach() * kept[weight.name]).to(weight.stored.dtype)
        for weight in weights
    }
    return Refit(
        index,
        {
            weight: numbers.T if weight.transposed else numbers
            for weight, numbers in by_weight.items()
        },
        notes,
    )


@final
class _Outputs(TorchFunctionMode):
    """Puts other numbers in the place of parameters, and keeps what products with the writers
    give.
    """

    def __init__(
        self, writers: Sequence[Weight], instead: Mapping[int, Tensor], gradients: bool = False
    ) -> None:
        super().__init__()
        self._names = {id(getattr(writer.owner, writer.key)): writer.name for writer in writers}
        self._instead, self._gradients, self._outputs = instead, gradients, dict[str, Tensor]()

    def __enter__(self) -> "_Outputs":
        super().__enter__()
        torch.set_grad_enabled(self._gradients)  # blocks are run without them
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
        name = next((self._names[id(one)] for one in args if id(one) in self._names), None)
        swapped = [self._instead.get(id(one), one) for one in args]
        result = func(
            *swapped,
            **{key: self._instead.get(id(one), one) for key, one in (kwargs or {}).items()},
        )
        if name is not None and getattr(func, "__name__", "") in _PRODUCTS:
            self._outputs[name] = result
        return result

    def rows(
        self, real: Bool[Tensor, "sample position"]
    ) -> Iterator[tuple[str, Float[Tensor, "token out"]]]:
        """Yield what each writer gave of the real tokens."""
        for name in self._names.values():
            if name not in self._outputs or self._outputs[name].shape[:-1].numel() != real.numel():
                raise ModelError(
                    f"what {name} gives can't be followed in its block; leave reconstructed out",
                    subject=name,
                )
            yield name, self._outputs[name].flatten(0, -2)[real.flatten()]
