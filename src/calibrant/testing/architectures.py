"""Does the view of a model tell the truth? Compared with what a real forward multiplies with
what.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

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
"""Name of a product: which argument is its input, which its matrix, and whether that is given as
`[in, out]`.
"""


def check_architecture(model: PreTrainedModel, ids: Tensor | None = None) -> list[str]:
    """Check that `view(model)` accounts for every parameter once, shows matrices as a forward uses
    them, and sets what it is told to.

    `ids` `[sample, position]` are the tokens of the forward; by default random ones. Gives the
    names of experts that no token reached, whose orientation so wasn't seen. Matrices that a walk
    leaves as they are, for a reason that it gives, needn't be used. Raises `ModelError`, naming the
    matrix, for the first thing that is wrong. The model is left as it was.
    """
    seen = view(model)
    _check_accounting(seen)
    with _Products() as products, torch.no_grad():
        seen.base(input_ids=_ids(model) if ids is None else ids, use_cache=False)
    left = rehearse(seen).left("arrival")
    unreached = [
        w.name for w in seen.weights if not _check_orientation(w, products, w.name in left)
    ]
    for weight in seen.weights:
        _check_round_trip(weight)
    return unreached


def _ids(model: PreTrainedModel) -> Tensor:
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (4, 64), generator=torch.Generator().manual_seed(0)).to(
        model.device
    )


def _check_accounting(seen: ModelView) -> None:
    """Every parameter is dense, or is covered by matrices of exactly its size; nothing twice."""
    names = Counter([w.name for w in seen.weights] + [d.name for d in seen.dense])
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise ModelError(f"{twice[0]} is listed {names[twice[0]]} times", subject=twice[0])
    covered: Counter[int] = Counter()
    for weight in seen.weights:
        covered[getattr(weight.owner, weight.key).data_ptr()] += weight.shape[0] * weight.shape[1]
    dense = {d.name for d in seen.dense}
    for name, parameter in seen.model.named_parameters(remove_duplicate=False):
        handed_out = covered[parameter.data_ptr()]
        if (name in dense) == bool(handed_out) or (handed_out and handed_out != parameter.numel()):
            raise ModelError(
                f"{name}: {handed_out} of its {parameter.numel()} numbers are in matrices; it is "
                f"{'' if name in dense else 'not '}listed as dense",
                subject=name,
            )


def _check_orientation(weight: Weight, products: "_Products", left: bool) -> bool:
    """Whether a product with this matrix was seen, or needn't be; one that disagrees with the
    view is an error.
    """
    products_seen = products.seen.get(weight.address, [])
    if left:
        products_seen = [
            product
            for product in products_seen
            if product[2].numel() == weight.shape[0] * weight.shape[1]
        ]
    for name, x, matrix, result in products_seen:
        if tuple(matrix.shape) != weight.shape or not torch.equal(matrix, weight.get()):
            raise ModelError(
                f"{weight.name}: {name} multiplies with {list(matrix.shape)}, the view shows "
                f"{list(weight.shape)}",
                subject=weight.name,
            )
        if x.shape[-1] != weight.shape[1] or result.shape[-1] != weight.shape[0]:
            raise ModelError(
                f"{weight.name}: {name} takes {x.shape[-1]} features to {result.shape[-1]}, the "
                f"view says {list(weight.shape)}",
                subject=weight.name,
            )
    if not products_seen and weight.expert is None and not left:
        raise ModelError(
            f"{weight.name} is shown as a matrix, but no product of a forward uses it",
            subject=weight.name,
        )
    return bool(products_seen) or left


def _check_round_trip(weight: Weight) -> None:
    before = weight.get().clone()
    changed = (
        torch.arange(before.numel(), dtype=torch.float32, device=before.device)
        .reshape(weight.shape)
        .to(before.dtype)
    )
    weight.set(changed)
    arrived = torch.equal(weight.get(), changed)
    weight.set(before)
    if not arrived or not torch.equal(weight.get(), before):
        raise ModelError(f"{weight.name} doesn't give back what it was set to", subject=weight.name)


class _Products(TorchFunctionMode):
    """Keeps what each matrix in memory is multiplied with: by address, the product's name,
    input, matrix as `[out, in]`, and result.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, list[tuple[str, Tensor, Tensor, Tensor]]] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in PRODUCTS:
            at_x, at_matrix, flipped = PRODUCTS[name]
            x, matrix = args[at_x], args[at_matrix]
            for one in (
                zip(x, matrix, result, strict=True)
                if matrix.dim() == 3 and x.dim() == 3
                else [(x, matrix, result)]
            ):
                self._add(name, *one, flipped)
            if flipped and x.dim() == 2 and matrix.dim() > 1:
                self._add(name, matrix.mT, x, result.mT, False)
        return result

    def _add(self, name: str, x: Tensor, matrix: Tensor, result: Tensor, flipped: bool) -> None:
        self.seen.setdefault(matrix.data_ptr(), []).append(
            (name, x, matrix.T if flipped and matrix.dim() == 2 else matrix, result)
        )
