"""The neurons of a model's feed-forward networks, and what they do at the words of a text.

A neuron is an input of the matrix that a feed-forward network ends with, its down projection:
behind the activation function, and behind the product with the other branch where there is one.
Which matrix that is follows from a trace of the model, not from names (`models.stream`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from calibrant.errors import ModelError, NumericsError
from calibrant.evaluators._windows import predictions, wide
from calibrant.evaluators._word_groups import WindowWords
from calibrant.models import Weight, view
from calibrant.models.stream import Stream

Heard = Callable[[int, Float[Tensor, "word neuron"]], None]
"""Is given the number of a block and what each of its neurons is at each word of a window, less
its mean over the window's words.
"""


def neurons_of(model: PreTrainedModel) -> tuple[Weight, ...]:
    """Return the matrix of each block whose inputs are its neurons, `[hidden, neuron]`.

    Raises `ModelError`, by name, for a model whose feed-forward networks can't be read: experts,
    whose neurons only some tokens reach; a block with none or with several; one that isn't
    understood.
    """
    seen = view(model)
    hidden = Stream.of(seen).hidden
    found: list[Weight] = []
    for block in seen.blocks:
        own = [one.down for one in hidden if one.block == block.index]
        if any(one.expert is not None for one in own):
            raise ModelError(
                f"the feed-forward network of {block.name} is of routed experts, whose neurons only the tokens reach that are sent there; "
                f"words reads models without experts",
                subject=block.name,
            )
        if len(own) != 1:
            what = (
                f"{len(own)} feed-forward networks ({', '.join(one.name for one in own)})"
                if own
                else "no feed-forward network that can be read"
            )
            raise ModelError(
                f"{block.name} of a {type(model).__name__} has {what}; words reads blocks with exactly one",
                subject=block.name,
            )
        found += own
    return tuple(found)


def check_alike(ours: Sequence[int], theirs: Sequence[int]) -> None:
    """`ModelError` for a model whose blocks have other numbers of neurons than the dense one's:
    then they can't be compared one by one.
    """
    if list(ours) != list(theirs):
        raise ModelError(
            f"the model has {sum(ours):,} neurons in {len(ours)} blocks and the dense one {sum(theirs):,} in {len(theirs)}, so they can't be "
            f"compared one by one; measure it with agreement, and with words models that kept all blocks and neurons",
            subject="neurons",
        )


@torch.no_grad()
def read(
    model: PreTrainedModel,
    neurons: Sequence[Weight],
    window: WindowWords,
    heard: Heard,
    measured: str,
) -> Float[Tensor, " scored"]:
    """Run a window once: `heard` is told of each block's neurons at its words. Return the nats of
    each scored token, in float64, on the CPU.

    Raises `ModelError` where the neurons can't be matched with tokens, `NumericsError` for outputs
    that aren't finite.
    """
    places = torch.tensor(window.places, dtype=torch.long)
    with _listening(neurons, places, len(window.window.ids), heard):
        (logits,) = predictions(model, [window.window])
    targets = torch.tensor(window.window.ids[window.window.unscored :], device=logits.device)
    nats = torch.nn.functional.cross_entropy(wide(logits), targets, reduction="none").double().cpu()
    if not bool(nats.isfinite().all()):
        raise NumericsError(
            f"the words of {measured} can't be measured: the model's outputs aren't finite",
            subject=measured,
        )
    return nats


@contextmanager
def _listening(
    neurons: Sequence[Weight], places: Int[Tensor, " _"], tokens: int, heard: Heard
) -> Iterator[None]:
    """While it lasts, `heard` is told of what arrives at each of the matrices."""
    called: set[int] = set()

    def hear(number: int, module: Any, args: tuple[Any, ...]) -> None:
        x: Tensor = args[0]
        if number in called or x.shape[:-1].numel() != tokens:
            again = "a second time " if number in called else ""
            raise ModelError(
                f"{neurons[number].name} is called {again}with {x.shape[:-1].numel()} rows where the forward has {tokens} tokens, so its neurons "
                f"can't be matched with words",
                subject=neurons[number].name,
            )
        called.add(number)
        rows = x.reshape(tokens, -1)[places.to(x.device)]
        rows = rows.to(torch.float32 if x.device.type == "mps" else torch.float64)
        heard(number, rows - rows.mean(0, keepdim=True) if len(rows) else rows)

    handles = [
        weight.owner.register_forward_pre_hook(partial(hear, number))
        for number, weight in enumerate(neurons)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    if missed := [weight.name for number, weight in enumerate(neurons) if number not in called]:
        raise ModelError(
            f"{missed[0]} isn't called as a module, so its neurons can't be read; words reads models whose matrices are",
            subject=missed[0],
        )


@final
@dataclass
class GroupSums:
    """What each block's neurons summed up to over the words of each group, `[group, neuron]`,
    and their squares over all words.
    """

    sums: list[Float[Tensor, "group _"]]
    squares: list[Float[Tensor, " _"]]

    @classmethod
    def of(cls, groups: int, neurons: Sequence[Weight]) -> "GroupSums":
        """Return sums of nothing."""
        kinds = [
            (
                w.shape[1],
                w.stored.device,
                torch.float32 if w.stored.device.type == "mps" else torch.float64,
            )
            for w in neurons
        ]
        return cls(
            [torch.zeros(groups, size, device=device, dtype=kind) for size, device, kind in kinds],
            [torch.zeros(size, device=device, dtype=kind) for size, device, kind in kinds],
        )

    def add(
        self, block: int, rows: Float[Tensor, "word neuron"], labels: Int[Tensor, " _"]
    ) -> None:
        """Add the rows of a window's words, those of words in no group to the squares alone."""
        chosen = (labels >= 0).nonzero().flatten()
        self.sums[block].index_add_(0, labels[chosen].to(rows.device), rows[chosen.to(rows.device)])
        self.squares[block] += rows.square().sum(0)
