"""Language-specific neurons: which neurons of a model answer to one language and not to the others,
before and after it is pruned.

LAPE, the language activation probability entropy, is of Tang et al. 2024 (arXiv 2402.16438); Kurz
et al. (2408.14398) use it to ask what calibration in one language does to the neurons of others.
`lape` tells the neurons of any sets: where a model knows one language only, prose, code and
arithmetic may stand for languages.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from calibrant.data import CalibrationSet, TokenBatch, micro_batches
from calibrant.data.select import resolved
from calibrant.errors import DataError, ModelError, SpecError
from calibrant.models import Block, ModelView, Opened, view
from calibrant.numerics import not_finite
from calibrant.results.outcomes import Journal
from calibrant.system.notebook import card, listing
from calibrant.system.progress import Progress, silent

TOKENS_PER_PASS: Final = 2_048
"""Tokens that go through the model at once."""

ACTIVATIONS: Final = ("transformers.activations", "torch.nn.modules.activation")
"""Where modules come from that are a feed-forward's activation."""


@dataclass(frozen=True, eq=False, repr=False)
class Lape:
    """How often each neuron is active in each language, and which are specific to which.

    The neurons of all blocks stand one after another; `sizes` says how many each block has.
    `probability` p(j, l) is the share of language l's real tokens at which neuron j is above zero.
    `entropy`, in nats, is that of p(j, ·) divided by its sum over languages: 0 for a neuron of one
    language, log L for one that makes no difference (or is never active). `specific` marks those of
    low entropy with the languages in which they are more often active than `threshold`. `tokens`
    are the real ones by language, and `lowest` and `quantile` the arguments.
    """

    model: str
    languages: tuple[str, ...]
    tokens: tuple[int, ...]
    sizes: tuple[int, ...]
    probability: Float[Tensor, "language neuron"] = field(repr=False)
    lowest: float
    quantile: float

    @cached_property
    def entropy(self) -> Float[Tensor, " neuron"]:
        """In nats, by neuron."""
        # What a neuron does is read as a distribution over languages; the clamp only keeps 0/0
        # away, which `where` answers below.
        total = self.probability.sum(0)
        shares = self.probability / total.clamp(min=torch.finfo(self.probability.dtype).tiny)
        entropies = -torch.special.xlogy(shares, shares).sum(0)
        return torch.where(
            total > 0,
            entropies.clamp(0.0, math.log(len(self.languages))),
            math.log(len(self.languages)),
        )

    @cached_property
    def threshold(self) -> float:
        """The quantile of all p(j, l), as the authors' code takes it: one of them, without
        interpolation.
        """
        values = self.probability.flatten()
        return float(values.kthvalue(max(1, round(len(values) * self.quantile))).values)

    @cached_property
    def specific(self) -> Bool[Tensor, "language neuron"]:
        """The neurons that are specific, each with its languages; of equal entropies the earlier
        one.
        """
        above = self.probability > self.threshold
        candidates = self.entropy.masked_fill(~above.any(0), math.inf)
        chosen = candidates.argsort(stable=True)[: round(self.lowest * len(candidates))]
        marked = torch.zeros_like(above)
        marked[:, chosen] = above[:, chosen]
        return marked

    @property
    def counts(self) -> Int[Tensor, "language block"]:
        """How many neurons of each block are specific to each language; one may be to several."""
        return torch.stack(
            [part.sum(1) for part in self.specific.split(list(self.sizes), dim=1)], dim=1
        )

    def neurons(self, language: str) -> list[tuple[int, int]]:
        """Return the neurons that are specific to `language`, as block and number in it.
        `DataError` for another language.
        """
        if language not in self.languages:
            raise DataError(
                f"nothing was read in {language!r}; the languages are {', '.join(self.languages)}",
                subject=language,
            )
        return [
            self._place(int(at))
            for at in self.specific[self.languages.index(language)].nonzero()[:, 0]
        ]

    def staying(self, other: "Lape") -> dict[str, float]:
        """Return for each language the share of its specific neurons that still are specific in
        `other`, say of the model once it is pruned.

        NaN for a language that has none here. `DataError` if the two are of other languages or of
        models of another shape.
        """
        if (self.languages, self.sizes) != (other.languages, other.sizes):
            what = f"{', '.join(other.languages)} in {len(other.sizes)} blocks of {sum(other.sizes)} neurons"
            raise DataError(
                f"neurons for {', '.join(self.languages)} in {len(self.sizes)} blocks of {sum(self.sizes)} neurons can't be found among those for "
                f"{what}; compare the same model and the same languages",
                subject=other.model,
            )
        both = (self.specific & other.specific).sum(1).double() / self.specific.sum(1)
        return dict(zip(self.languages, both.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return plain data: what was asked and read, the threshold, and for each language its
        specific neurons and their number by block.
        """
        counts = self.counts.tolist()
        each = {
            name: {
                "tokens": tokens,
                "specific": sum(by_block),
                "by_block": by_block,
                "neurons": [list(at) for at in self.neurons(name)],
            }
            for name, tokens, by_block in zip(self.languages, self.tokens, counts, strict=True)
        }
        facts = {
            "model": self.model,
            "sizes": list(self.sizes),
            "lowest": self.lowest,
            "quantile": self.quantile,
            "threshold": self.threshold,
        }
        return {
            **facts,
            "entropy": {"mean": float(self.entropy.mean()), "least": float(self.entropy.min())},
            "languages": each,
        }

    def __repr__(self) -> str:
        counts = ", ".join(
            f"{name}: {int(count)}"
            for name, count in zip(self.languages, self.specific.sum(1), strict=True)
        )
        return f"Lape({self.model}, {sum(self.sizes)} neurons, specific {counts})"

    def _repr_html_(self) -> str:
        heads = ("language", "tokens", "specific", *(f"block {i}" for i in range(len(self.sizes))))
        counts = self.counts.tolist()
        lines = [
            (name, f"{n:,}", sum(row), *row)
            for name, n, row in zip(self.languages, self.tokens, counts, strict=True)
        ]
        facts = {
            "neurons": f"{sum(self.sizes):,}",
            "lowest entropies": f"{self.lowest:.3g}",
            "active more often than": f"{self.threshold:.3g}",
        }
        return card(
            f"Language-specific neurons of {self.model}", facts, inside=listing(heads, lines)
        )

    def _place(self, at: int) -> tuple[int, int]:
        for block, size in enumerate(self.sizes):
            if at < size:
                return block, at
            at -= size
        raise AssertionError("a neuron lies in some block")


def lape(
    opened: Opened,
    sets: Mapping[str, CalibrationSet | str] | Sequence[str],
    *,
    tokens: int = 65_536,
    length: int = 512,
    seed: int = 0,
    lowest: float = 0.01,
    quantile: float = 0.95,
    progress: Progress = silent,
) -> Lape:
    """Read each language's set with the model, and find the neurons of the feed-forwards that are
    specific to it (Tang et al. 2024).

    `sets` are by the language's name, or expressions that name themselves; an expression is drawn
    as draw `seed` of `tokens` tokens in windows of `length`. A neuron is an output of the block's
    activation function: of the gate where there is one. Padding never counts, a set's weights do.
    Specific are the `lowest` share of all neurons by entropy, among those that some language
    activates more often than the `quantile` of all p(j, l), each to every such language.

    The formulas and the quantile are those of the authors' code
    (RUCAIBox/Language-Specific-Neurons), which was read; its committed run has `lowest=0.05`, and
    that the paper takes 1 % is remembered, not verified. What exactly Kurz et al. count isn't known
    here. Unlike the code, fewer neurons than `lowest` are chosen where too few pass, and a set's
    weights count. They read up to 100 million tokens of each: with few, p is coarse.

    Raises `SpecError` for shares outside (0, 1) and fewer than two languages, `ModelError` for a
    model whose feed-forward can't be seen as neurons that every token reaches: routed experts, or
    no activation module in a block, or several.
    """
    for name, value, usual in (("lowest", lowest, 0.01), ("quantile", quantile, 0.95)):
        if not 0 < value < 1:
            raise SpecError(
                f"{name}={value:g} is no share; give a number between 0 and 1, as {name}={usual}",
                subject=name,
            )
    requested = dict(sets) if isinstance(sets, Mapping) else {name: name for name in sets}
    if len(requested) < 2:
        raise SpecError(
            f"a neuron is specific to one language among several, and these are {list(requested)}; name two or more",
            subject="sets",
        )
    batches: dict[str, TokenBatch] = {}
    for name, data in requested.items():
        calibration = (
            data
            if isinstance(data, CalibrationSet)
            else CalibrationSet(data, tokens=tokens, length=length, seed=seed)
        )
        batch = resolved(calibration, opened, progress).tokens(opened.tokenizer)
        if batch.pads is not None:  # nor do pads count where the packing counts them
            batch = replace(batch, weights=batch.weights * ~batch.pads)
        batches[name] = batch
    return read_languages(opened.model, opened.name, batches, lowest, quantile, progress)


def read_languages(
    model: PreTrainedModel,
    name: str,
    batches: Mapping[str, TokenBatch],
    lowest: float,
    quantile: float,
    progress: Progress = silent,
    journal: Journal | None = None,
) -> Lape:
    """Return what `lape` does for the tokens of each language; a language that is in the
    `journal` isn't read again. Raises its `ModelError`.
    """
    seen_by, known = view(model), Journal() if journal is None else journal
    modules = [_activation(block) for block in seen_by.blocks]
    shares: list[Tensor] = []
    for language, batch in batches.items():
        if language not in known:
            found = _active(
                seen_by,
                modules,
                batch,
                lambda done, of, language=language: progress(f"neurons for {language}", done, of),
            )
            known.add({language: [share.tolist() for share in found]})
        shares.append(torch.tensor(list(itertools.chain(*known[language])), dtype=torch.float64))
    sizes = tuple(map(len, known[next(iter(batches))]))
    counts = tuple(int((batch.weights > 0).sum()) for batch in batches.values())
    return Lape(name, tuple(batches), counts, sizes, torch.stack(shares), lowest, quantile)


def _activation(block: Block) -> nn.Module:
    """Return the module whose outputs are the block's neurons."""
    if any(weight.expert is not None for weight in block.weights):
        raise ModelError(
            f"the feed-forward of {block.name} is of routed experts, whose neurons only the tokens see that are sent there; "
            "lape reads models without experts",
            subject=block.name,
        )
    modules = {
        name: module
        for name, module in block.module.named_modules()
        if type(module).__module__ in ACTIVATIONS and not any(module.parameters())
    }
    if len(modules) != 1:
        what = (
            f"has {len(modules)} activation modules ({', '.join(modules)})"
            if modules
            else "has no activation module"
        )
        raise ModelError(
            f"{block.name} {what}, so its neurons can't be counted; lape reads blocks with exactly one",
            subject=block.name,
        )
    return next(iter(modules.values()))


@torch.no_grad()
def _active(
    seen_by: ModelView, modules: Sequence[nn.Module], batch: TokenBatch, on_batch: Any
) -> list[Float[Tensor, " neuron"]]:
    """Return for each block the share of the batch's weight at which each of its neurons is
    above zero, in float64.
    """
    sums: dict[int, Tensor] = {}
    total, done = 0.0, 0
    where = seen_by.model.device
    for ids, mask, weights in micro_batches(batch, TOKENS_PER_PASS):
        padding = {} if bool(mask.all()) else {"attention_mask": mask.to(where).long()}
        with _summed(modules, weights.double().flatten(), sums):
            seen_by.base(input_ids=ids.to(where), use_cache=False, **padding)
        total, done = total + float(weights.double().sum()), done + int(mask.sum())
        on_batch(done, int(batch.mask.sum()))
    return [sums[number] / total for number in range(len(modules))]


@contextmanager
def _summed(
    modules: Sequence[nn.Module], weights: Float[Tensor, " row"], sums: dict[int, Tensor]
) -> Iterator[None]:
    """While it lasts, the weights of the tokens at which a neuron is above zero are added up, by
    block.
    """
    heard: set[int] = set()

    def add(number: int, output: Any) -> None:
        rows = output.reshape(-1, output.shape[-1])
        if number in heard or len(rows) != len(weights):
            again = "a second time " if number in heard else ""
            raise ModelError(
                f"the activation of block {number} is asked {again}about {len(rows)} tokens where the forward has {len(weights)}, so its neurons "
                "can't be counted; lape reads feed-forwards that every token goes through once",
                subject=f"block {number}",
            )
        if not bool(rows.isfinite().all()):
            raise not_finite(f"the neurons of block {number}", f"block {number}")
        heard.add(number)
        sums[number] = sums.get(number, 0.0) + weights @ (rows > 0).double().cpu()

    handles = [
        module.register_forward_hook(lambda _, __, output, number=at: add(number, output))
        for at, module in enumerate(modules)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
