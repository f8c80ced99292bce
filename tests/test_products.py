"""Products are seen as what they are, however they are written."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from calibrant.errors import ModelError
from calibrant.models import Weight
from calibrant.walk.products import Product, Watch, inputs_of

MATRIX = nn.Linear(5, 3, bias=False)
X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
WAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": lambda w: nn.functional.linear(X, w),
    "linear, by name": lambda w: nn.functional.linear(input=X, weight=w),
    "matmul": lambda w: torch.matmul(X, w.T),
    "operator": lambda w: X @ w.T,
    "mm": lambda w: torch.mm(X.reshape(-1, 5), w.t()),
    "addmm": lambda w: torch.addmm(torch.zeros(3), X.reshape(-1, 5), w.T),
    "on the left": lambda w: w @ X.transpose(1, 2),
}


def seen(run: Callable[[], object], weights: list[Weight], positions: int = 8) -> list[Product]:
    found: list[Product] = []
    with torch.no_grad(), Watch(weights, found.append, positions):
        run()
    return found


def test_every_way_to_multiply_is_seen_and_other_products_are_not() -> None:
    weight = Weight("w", 0, (3, 5), False, None, MATRIX, "weight")
    for way, run in WAYS.items():
        (product,) = seen(lambda run=run: run(MATRIX.weight), [weight])
        assert product.weight is weight, way
        assert torch.equal(product.x.reshape(-1, 5), X.reshape(-1, 5)), way
    assert not seen(
        lambda: (X @ X.mT, nn.functional.linear(X, MATRIX.weight[:2]), MATRIX.weight * 2), [weight]
    )


def test_one_product_over_all_experts_is_one_of_each_with_the_rows_that_it_was_sent() -> None:
    owner = nn.Module()
    owner.stack = nn.Parameter(torch.randn(2, 5, 3))
    weights = [Weight(f"w[{e}]", 0, (3, 5), True, e, owner, "stack") for e in range(2)]
    rows = torch.randn(2, 8, 5)
    rows[1, [0, 2, 5]] = 0
    first, second = seen(lambda: torch.bmm(rows, owner.stack), weights)
    assert (first.weight, second.weight) == tuple(weights)
    assert torch.equal(first.x, rows[0])
    assert second.tokens is not None
    assert second.tokens.tolist() == [1, 3, 4, 6, 7]
    assert torch.equal(second.x, rows[1, second.tokens])


def test_a_mask_is_given_only_to_who_takes_it() -> None:
    ids, mask = torch.ones(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.bool)

    class Bare(nn.Module):
        def forward(self, input_ids: Tensor) -> Tensor:
            return input_ids

    class Wrapper(nn.Module):
        def forward(self, *args: object, **kwargs: object) -> object:
            return kwargs

    assert list(inputs_of(Bare(), ids)) == ["input_ids"]
    assert list(inputs_of(Wrapper(), ids, mask)) == ["input_ids", "use_cache", "attention_mask"]
    with pytest.raises(ModelError) as refused:
        inputs_of(Bare(), ids, mask)
    assert refused.value.subject == "Bare"
