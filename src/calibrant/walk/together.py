"""Several walks through one model at once, each on a batch of its own: what a matrix saw of each
of them, before anything is done to it.
"""

from collections.abc import Iterator, Sequence

from calibrant.activations import Seen
from calibrant.models import ModelView, Weight
from calibrant.walk.products import Order
from calibrant.walk.rehearsal import rehearse


def together(
    view: ModelView, walks: Sequence[Iterator[tuple[Weight, Seen]]]
) -> Iterator[tuple[Weight, list[Seen | None]]]:
    """Yield each matrix once, with what each of the walks saw at it; None for one whose tokens
    didn't reach it, as may be with experts.

    The walks go through the same model in `arrival`: none goes on before the loop has set the
    matrix, so all see the one that was made of it.
    """
    rehearsal = rehearse(view)
    heads = [next(walk, None) for walk in walks]
    while any(heads):
        block = min(head[0].block for head in heads if head)
        order = Order(view.blocks[block], rehearsal.by_use, rehearsal.apart)
        while waiting := [head[0].name for head in heads if head and head[0].block == block]:
            weight = order.next(waiting)
            there = [head is not None and head[0].name == weight.name for head in heads]
            yield (
                weight,
                [head[1] if head and one else None for head, one in zip(heads, there, strict=True)],
            )
            heads = [
                next(walk, None) if one else head
                for walk, head, one in zip(walks, heads, there, strict=True)
            ]
