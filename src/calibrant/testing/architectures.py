"""Does the view of a model tell the truth? Compared with what a real forward multiplies with
what.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models import ModelView, Weight, view
from calibrant.walk.rehearsal import rehearse

PRODUCTS: Final = {
    "linear": (0, 1, False),
    "addmm": (1, 2, True),
    **dict.fromkeys(("mm", "matmul", "__matmul__", "bmm"), (0, 1, True)),
}
"""Name of a product: the places of its input and of its matrix among the arguments, and whether the
matrix is given as `[in, out]`.
"""


def check_architecture(model: PreTrainedModel, ids: Tensor | None = None) -> list[str]:
    """Check that `view(model)` accounts for every parameter once, shows matrices as a forward uses
    them, and sets what it is told to.

    `ids` `[sample, position]` are the tokens of the forward; by default random ones. Returns the
    names of experts that no token reached, so that their orientation wasn't seen. Matrices that a
    walk leaves as they are, for a reason that it gives, needn't be used. Raises `ModelError`,
    naming the matrix, for the first thing that is wrong. The model is left as it was.
    """
    model_view = view(model)
    _check_accounting(model_view)
    if ids is None:
        ids = _random_ids(model)
    with _Products() as products, torch.no_grad():
        model_view.base(input_ids=ids, use_cache=False)
    left_alone = rehearse(model_view).left("arrival")
    unreached: list[str] = []
    for weight in model_view.weights:
        if not _check_orientation(weight, products, weight.name in left_alone):
            unreached.append(weight.name)
    for weight in model_view.weights:
        _check_round_trip(weight)
    return unreached


def _random_ids(model: PreTrainedModel) -> Tensor:
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    # Drawn on the CPU, so that they are the same for every device.
    return torch.randint(vocabulary, (4, 64), generator=generator).to(model.device)


def _check_accounting(model_view: ModelView) -> None:
    """Every parameter is dense, or is covered by matrices of exactly its size; nothing twice."""
    dense = [parameter.name for parameter in model_view.dense]
    names = Counter([weight.name for weight in model_view.weights] + dense)
    for name, count in names.items():
        if count > 1:
            raise ModelError(f"{name} is listed {count} times", subject=name)
    # By address, since several matrices may lie in one parameter, such as those of experts.
    covered: Counter[int] = Counter()
    for weight in model_view.weights:
        parameter = getattr(weight.owner, weight.key)
        covered[parameter.data_ptr()] += weight.shape[0] * weight.shape[1]
    for name, parameter in model_view.model.named_parameters(remove_duplicate=False):
        size = parameter.numel()
        in_matrices = covered[parameter.data_ptr()]
        is_dense = name in dense
        if in_matrices != (0 if is_dense else size):
            listed = "listed as dense" if is_dense else "not listed as dense"
            raise ModelError(
                f"{name}: {in_matrices} of its {size} numbers are in matrices; it is {listed}",
                subject=name,
            )


def _check_orientation(weight: Weight, products: "_Products", left_alone: bool) -> bool:
    """Whether a product with this matrix was seen, or needn't be, since a walk leaves it alone.

    Raises `ModelError` for a product that disagrees with the view.
    """
    outputs, inputs = weight.shape
    found: list[SeenProduct] = []
    for product in products.seen.get(weight.address, []):
        # What begins at the address of a matrix that is left alone may be a larger tensor.
        if not left_alone or product.matrix.numel() == outputs * inputs:
            found.append(product)
    for product in found:
        shape = list(product.matrix.shape)
        if shape != [outputs, inputs] or not torch.equal(product.matrix, weight.get()):
            raise ModelError(
                f"{weight.name}: {product.name} multiplies with {shape}, the view shows "
                f"{list(weight.shape)}",
                subject=weight.name,
            )
        features = product.inputs.shape[-1]
        results = product.result.shape[-1]
        if features != inputs or results != outputs:
            raise ModelError(
                f"{weight.name}: {product.name} takes {features} features to {results}, the "
                f"view says {list(weight.shape)}",
                subject=weight.name,
            )
    if not found and weight.expert is None and not left_alone:
        raise ModelError(
            f"{weight.name} is shown as a matrix, but no product of a forward uses it",
            subject=weight.name,
        )
    return bool(found) or left_alone


def _check_round_trip(weight: Weight) -> None:
    """Check that a matrix gives back what it is set to, and then its own numbers again."""
    before = weight.get().clone()
    numbers = torch.arange(before.numel(), dtype=torch.float32, device=before.device)
    changed = numbers.reshape(weight.shape).to(before.dtype)
    weight.set(changed)
    arrived = torch.equal(weight.get(), changed)
    weight.set(before)
    if not arrived or not torch.equal(weight.get(), before):
        raise ModelError(f"{weight.name} doesn't give back what it was set to", subject=weight.name)


class SeenProduct(NamedTuple):
    """One product of a forward: its name, what was multiplied `[..., in]`, the matrix as
    `[out, in]`, and the result `[..., out]`.
    """

    name: str
    inputs: Tensor
    matrix: Tensor
    result: Tensor


class _Products(TorchFunctionMode):
    """Keeps what each matrix is multiplied with, by the matrix's address in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[SeenProduct]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in PRODUCTS:
            input_place, matrix_place, transposed = PRODUCTS[name]
            inputs = args[input_place]
            matrix = args[matrix_place]
            if inputs.dim() == 3 and matrix.dim() == 3:
                # Several products at once, such as those of experts, each with its own matrix.
                for parts in zip(inputs, matrix, result, strict=True):
                    self._add(name, *parts, transposed)
            else:
                self._add(name, inputs, matrix, result, transposed)
            if transposed and inputs.dim() == 2 and matrix.dim() > 1:
                # The left side may be the matrix too: W x is (xᵀ Wᵀ)ᵀ.
                self._add(name, matrix.mT, inputs, result.mT, False)
        return result

    def _add(
        self, name: str, inputs: Tensor, matrix: Tensor, result: Tensor, transposed: bool
    ) -> None:
        shown = matrix.T if transposed and matrix.dim() == 2 else matrix
        product = SeenProduct(name, inputs, shown, result)
        self.seen.setdefault(matrix.data_ptr(), []).append(product)
