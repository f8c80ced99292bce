"""Language-specific neurons: which of them still answer to their language after a model was
compressed.

`lape(sources=['flores(language=en)', 'flores(language=de)'])` finds the neurons of the untouched
model that are specific to each language, on held-out text of each, and again those of the
compressed one. The score is the share of the first that are among the second, over all languages;
each language is an item. Calibration in one language is suspected of harming the neurons of others
(Kurz et al. 2024, arXiv 2408.14398).

LAPE, the language activation probability entropy, is of Tang et al. 2024 (arXiv 2402.16438). The
function `lape` finds such neurons for any sets: where a model knows one language only, prose, code
and arithmetic may stand for languages.

Of few tokens the activation shares are coarse, and some of what changes is chance: a model that is
measured on other windows doesn't give the same neurons again. So compare compressed models with one
another, on the same windows, and not with 1.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, Row, TokenBatch, micro_batches, padded
from calibrant.data.select import resolved
from calibrant.errors import DataError, ModelError, SpecError
from calibrant.evaluators._base import LONGEST_WINDOW, MOST_TOKENS, Evaluator, Subject, mean_of
from calibrant.evaluators._dense import found_once
from calibrant.evaluators.loss import Loss
from calibrant.models import Block, ModelOutline, ModelView, Opened, view
from calibrant.models.readable import check_windows
from calibrant.numerics import not_finite
from calibrant.results.outcomes import Journal, Measurement, Outcome, Score
from calibrant.spec import check_most, identity
from calibrant.system.notebook import card, listing
from calibrant.system.products import exact, exact_type
from calibrant.system.progress import Progress, silent

TOKENS_PER_PASS: Final = 2_048
"""Tokens that go through the model at once."""
SHARES: Final = 8
"""Tables of shares that are there at once, `[language, neuron]`: of both models, of each language
and of all, and as lists of Python, which are four times as large.
"""
SHARES_KEPT: Final = 2
"""Those that stay of the dense model, with what follows from them."""

ACTIVATIONS: Final = ("transformers.activations", "torch.nn.modules.activation")
"""Modules of Python that define the activation of a feed-forward."""


@dataclass(frozen=True, repr=False)
class LanguageNeurons(Evaluator):
    """How many of the untouched model's language-specific neurons still are specific to their
    language, over all languages.
    """

    sources: tuple[str, ...] = ("flores(language=en)", "flores(language=de)", "flores(language=es)")
    tokens: int = 4_096
    length: int = 256
    lowest: float = 0.01
    quantile: float = 0.95

    compares = True
    looks_inside = True

    def __post_init__(self) -> None:
        check_most(self, tokens=MOST_TOKENS, length=LONGEST_WINDOW)
        object.__setattr__(self, "sources", tuple(self.sources))
        if len(self.sources) < 2 or len(set(self.sources)) < len(self.sources):
            raise SpecError(
                f"lape(sources={list(self.sources)}): name two languages or more, each once",
                subject="sources",
            )
        for name, share in (("lowest", self.lowest), ("quantile", self.quantile)):
            if not 0 < share < 1:
                raise SpecError(
                    f"lape({name}={share:g}): {name} is a share between 0 and 1", subject=name
                )
        # Builds the losses, so that a length or number of tokens that they refuse is refused now.
        _ = self._texts

    @property
    def _texts(self) -> Mapping[str, Loss]:
        """Of each language the text that is read: the windows of `loss`."""
        texts: dict[str, Loss] = {}
        for source in self.sources:
            texts[source] = Loss(source=source, tokens=self.tokens, length=self.length)
        return texts

    def rows(self) -> Iterator[Row]:
        """Return the rows of all measured parts."""
        for text in self._texts.values():
            yield from text.rows()

    def check(self) -> None:
        for text in self._texts.values():
            text.check()

    def digest(self) -> str:
        """Return that of the measured files, of which there are any."""
        digests = [text.digest() for text in self._texts.values()]
        if not any(digests):
            return ""
        return identity(digests)

    def limited(self, limit: int) -> "LanguageNeurons":
        """Return the same with a budget of `limit` tokens a language."""
        return replace(self, tokens=limit)

    def work_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        dense = outlines[-1]
        number = exact_type(dense.device).itemsize
        # Which neurons of a block are above zero, as bytes and as numbers to be summed.
        tokens = max(TOKENS_PER_PASS, self.length)
        active = tokens * max(dense.shape.neurons) * (1 + number)
        return active + SHARES * self._shares_bytes(dense)

    def kept_bytes(self, outlines: Sequence[ModelOutline]) -> int:
        return SHARES_KEPT * self._shares_bytes(outlines[-1])

    def _shares_bytes(self, outline: ModelOutline) -> int:
        return len(self.sources) * sum(outline.shape.neurons) * torch.float64.itemsize

    def measure(self, subject: Subject) -> Measurement:
        """Return the share that stays, with one outcome a language: `value` is how many stay,
        `weight` how many there are in the untouched model.

        Raises `SpecError` without a reference, `DataError` where no neuron of the untouched model
        is specific or the two aren't of one shape, and the `ModelError` of a model whose neurons
        can't be read.
        """
        reference = subject.untouched(self)
        tokenizer = subject.tokenizer
        batches = {source: _batch(text, tokenizer) for source, text in self._texts.items()}

        def progress(doing: str, done: int, total: int) -> None:
            subject.progress(f"{doing} for {self}", done, total)

        def find(model: PreTrainedModel, journal: Journal) -> Lape:
            return read_languages(model, "", batches, self.lowest, self.quantile, progress, journal)

        fingerprints = [batch.fingerprint for batch in batches.values()]
        dense = found_once(reference, self, fingerprints, partial(find, reference, Journal()))
        ours = find(subject.model, subject.journal)
        outcomes = self._outcomes(dense, ours)
        if not outcomes:
            raise DataError(
                f"{self}: no neuron is specific to any of these languages; read more tokens",
                subject=str(self),
            )
        return Measurement(self._score(outcomes, sum(dense.sizes)), tuple(outcomes))

    def _outcomes(self, dense: "Lape", ours: "Lape") -> list[Outcome]:
        """Return one outcome for each language that has neurons in the dense model."""
        staying = dense.staying(ours)
        counts_before = dense.specific.sum(1).tolist()
        counts_now = ours.specific.sum(1).tolist()
        outcomes: list[Outcome] = []
        counts = zip(self.sources, counts_before, counts_now, strict=True)
        for source, count_before, count_now in counts:
            if count_before:
                kept = float(round(staying[source] * count_before))
                outcomes.append(Outcome(source, kept, float(count_before), {"now": count_now}))
        return outcomes

    def _score(self, outcomes: Sequence[Outcome], neuron_count: int) -> Score:
        languages = {
            "language": [outcome.item for outcome in outcomes],
            "count": [int(outcome.weight) for outcome in outcomes],
            "kept": [outcome.value / outcome.weight for outcome in outcomes],
        }
        facts = {
            "tokens": self.tokens,
            "length": self.length,
            "neurons": neuron_count,
            "languages": languages,
        }
        staying_share, error = mean_of(outcomes)
        return Score(
            measured="language-specific neurons",
            metric="staying",
            value=staying_share,
            stderr=error,
            n=len(outcomes),
            unit="share",
            better="higher",
            facts=facts,
        )


def _batch(text: Loss, tokenizer: PreTrainedTokenizerBase) -> TokenBatch:
    """Return the windows of a language as one batch, whose start tokens don't count: they are the
    same in every language.
    """
    windows = text.windows(tokenizer)
    ids = padded([window.ids for window in windows])["input_ids"]
    mask = torch.zeros_like(ids, dtype=torch.bool)
    weights = torch.zeros_like(ids, dtype=torch.float32)
    for row, window in enumerate(windows):
        size = len(window.ids)
        mask[row, :size] = True
        weights[row, window.unscored : size] = 1.0
    shown = identity([[window.name, *window.ids] for window in windows])
    return TokenBatch(ids, mask, weights, shown, {})


@dataclass(frozen=True, eq=False, repr=False)
class Lape:
    """How often each neuron is active in each language, and which are specific to which.

    The neurons of all blocks stand one after another; `sizes` says how many each block has.
    `probability` p(j, l) is the share of language l's real tokens at which neuron j is above zero.
    `tokens` are the real ones by language, and `lowest` and `quantile` the arguments.
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
        """In nats, the entropy of p(j, ·) divided by its sum over languages: 0 for a neuron of one
        language, log L for one that makes no difference, or is never active.
        """
        highest = math.log(len(self.languages))
        total = self.probability.sum(0)
        tiny = torch.finfo(total.dtype).tiny
        # The clamp only keeps 0/0 away, which `where` answers below.
        shares = self.probability / total.clamp(min=tiny)
        entropies = -torch.special.xlogy(shares, shares).sum(0)
        return torch.where(total > 0, entropies.clamp(0.0, highest), highest)

    @cached_property
    def threshold(self) -> float:
        """The quantile of all p(j, l), as the authors' code takes it: one of them, without
        interpolation.
        """
        values = self.probability.flatten()
        rank = max(1, round(len(values) * self.quantile))
        return float(values.kthvalue(rank).values)

    @cached_property
    def specific(self) -> Bool[Tensor, "language neuron"]:
        """The neurons of low entropy, each marked with the languages in which it is more often
        active than `threshold`; of equal entropies the earlier one.
        """
        above = self.probability > self.threshold
        candidates = self.entropy.masked_fill(~above.any(0), math.inf)
        # The share is of all neurons, also of those that no language activates often.
        count = round(self.lowest * len(candidates))
        chosen = candidates.argsort(stable=True)[:count]
        marked = torch.zeros_like(above)
        marked[:, chosen] = above[:, chosen]
        return marked

    @property
    def counts(self) -> Int[Tensor, "language block"]:
        """How many neurons of each block are specific to each language; one may be to several."""
        blocks = self.specific.split(list(self.sizes), dim=1)
        by_block = [block.sum(1) for block in blocks]
        return torch.stack(by_block, dim=1)

    def neurons(self, language: str) -> list[tuple[int, int]]:
        """Return the neurons that are specific to `language`, as block and number in it.
        `DataError` for another language.
        """
        if language not in self.languages:
            raise DataError(
                f"nothing was read in {language!r}; the languages are {', '.join(self.languages)}",
                subject=language,
            )
        marked = self.specific[self.languages.index(language)]
        places: list[tuple[int, int]] = []
        for block, part in enumerate(marked.split(list(self.sizes))):
            places += [(block, neuron) for neuron in part.nonzero().flatten().tolist()]
        return places

    def staying(self, other: "Lape") -> dict[str, float]:
        """Return for each language the share of its specific neurons that still are specific in
        `other`, say of the model once it is pruned.

        NaN for a language that has none here. `DataError` if the two are of other languages or of
        models of another shape.
        """
        if (self.languages, self.sizes) != (other.languages, other.sizes):
            raise DataError(
                f"neurons for {self._shape()} can't be found among those for {other._shape()}; "
                f"compare the same model and the same languages",
                subject=other.model,
            )
        shares = (self.specific & other.specific).sum(1).double() / self.specific.sum(1)
        return dict(zip(self.languages, shares.tolist(), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return plain data: what was asked and read, the threshold, and for each language its
        specific neurons and their number by block.
        """
        languages: dict[str, Any] = {}
        by_block = self.counts.tolist()
        for name, tokens, counts in zip(self.languages, self.tokens, by_block, strict=True):
            languages[name] = {
                "tokens": tokens,
                "specific": sum(counts),
                "by_block": counts,
                "neurons": [list(place) for place in self.neurons(name)],
            }
        return {
            "model": self.model,
            "sizes": list(self.sizes),
            "lowest": self.lowest,
            "quantile": self.quantile,
            "threshold": self.threshold,
            "entropy": {"mean": float(self.entropy.mean()), "least": float(self.entropy.min())},
            "languages": languages,
        }

    def __repr__(self) -> str:
        counts: list[str] = []
        for name, count in zip(self.languages, self.specific.sum(1).tolist(), strict=True):
            counts.append(f"{name}: {count}")
        return f"Lape({self.model}, {sum(self.sizes)} neurons, specific {', '.join(counts)})"

    def _repr_html_(self) -> str:
        blocks = [f"block {block}" for block in range(len(self.sizes))]
        lines: list[tuple[Any, ...]] = []
        by_block = self.counts.tolist()
        for name, tokens, counts in zip(self.languages, self.tokens, by_block, strict=True):
            lines.append((name, f"{tokens:,}", sum(counts), *counts))
        facts = {
            "neurons": f"{sum(self.sizes):,}",
            "lowest entropies": f"{self.lowest:.3g}",
            "active on more than": f"{100 * self.threshold:.1f} % of tokens",
        }
        table = listing(("language", "tokens", "specific", *blocks), lines)
        return card(f"Language-specific neurons of {self.model}", facts, inside=table)

    def _shape(self) -> str:
        languages = ", ".join(self.languages)
        return f"{languages} in {len(self.sizes)} blocks of {sum(self.sizes)} neurons"


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
    Only neurons that some language activates more often than the `quantile` of all p(j, l) can be
    specific. Of those the `lowest` share of all neurons by entropy are, each to every such
    language.

    The formulas and the quantile are those of the authors' code
    (RUCAIBox/Language-Specific-Neurons), which was read. Its committed run has `lowest=0.05`; that
    the paper takes 1 % is remembered, not verified. What exactly Kurz et al. count isn't known
    here. Unlike the code, fewer neurons than `lowest` are chosen where too few pass, and a set's
    weights count. They read up to 100 million tokens of each: with few, p is coarse.

    Raises `SpecError` for shares outside (0, 1) and fewer than two languages. Raises `ModelError`
    for a model whose feed-forward can't be seen as neurons that every token reaches: routed
    experts, or no activation module in a block, or several.
    """
    for name, value, usual in (("lowest", lowest, 0.01), ("quantile", quantile, 0.95)):
        if not 0 < value < 1:
            raise SpecError(
                f"{name}={value:g} is no share; give a number between 0 and 1, as {name}={usual}",
                subject=name,
            )
    # An expression in a list is its own name.
    requested: dict[str, CalibrationSet | str] = {name: name for name in sets}
    if isinstance(sets, Mapping):
        requested = dict(sets)
    if len(requested) < 2:
        raise SpecError(
            f"a neuron is specific to one language among several, and these are {list(requested)}; "
            f"name two or more",
            subject="sets",
        )
    batches: dict[str, TokenBatch] = {}
    for name, data in requested.items():
        if not isinstance(data, CalibrationSet):
            data = CalibrationSet(data, tokens=tokens, length=length, seed=seed)
        batch = resolved(data, opened, progress).tokens(opened.tokenizer)
        if batch.pads is not None:
            # Pads don't count, also where the packing counts them.
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
    model_view = view(model)
    # Shares go through a journal as lists, so that a language that was read is as it was.
    shares_journal = Journal() if journal is None else journal
    modules = [_activation(block) for block in model_view.blocks]
    sizes: tuple[int, ...] = ()
    probabilities: list[Tensor] = []
    for language, batch in batches.items():
        if language not in shares_journal:
            progress_of_language = partial(progress, f"neurons for {language}")
            shares = _active_shares(model_view, modules, batch, progress_of_language)
            shares_journal.add({language: [share.tolist() for share in shares]})
        by_block: list[list[float]] = shares_journal[language]
        sizes = tuple(map(len, by_block))
        shares_of_language = list(itertools.chain.from_iterable(by_block))
        probabilities.append(torch.tensor(shares_of_language, dtype=torch.float64))
    counts = [int((batch.weights > 0).sum()) for batch in batches.values()]
    probability = torch.stack(probabilities)
    return Lape(name, tuple(batches), tuple(counts), sizes, probability, lowest, quantile)


def _activation(block: Block) -> nn.Module:
    """Return the module whose outputs are the block's neurons."""
    if any(weight.expert is not None for weight in block.weights):
        raise ModelError(
            f"the feed-forward of {block.name} is of routed experts, whose neurons only the tokens "
            f"see that are sent there; lape reads models without experts",
            subject=block.name,
        )
    modules: dict[str, nn.Module] = {}
    for name, module in block.module.named_modules():
        if type(module).__module__ in ACTIVATIONS and not any(module.parameters()):
            modules[name] = module
    if len(modules) != 1:
        found_text = "no activation module"
        if modules:
            found_text = f"{len(modules)} activation modules ({', '.join(modules)})"
        raise ModelError(
            f"{block.name} has {found_text}, so its neurons can't be counted; "
            f"lape reads blocks with exactly one",
            subject=block.name,
        )
    (module,) = modules.values()
    return module


@torch.no_grad()
def _active_shares(
    model_view: ModelView,
    modules: Sequence[nn.Module],
    batch: TokenBatch,
    progress: Callable[[int, int], None],
) -> list[Float[Tensor, " neuron"]]:
    """Return for each block the share of the batch's weight at which each of its neurons is
    above zero, in float64.
    """
    check_windows(model_view.model, batch.ids, batch.mask)
    sums: dict[int, Tensor] = {}
    total = 0.0
    done = 0
    device = model_view.model.device
    for ids, mask, weights in micro_batches(batch, TOKENS_PER_PASS):
        padding: dict[str, Tensor] = {}
        if not bool(mask.all()):
            padding["attention_mask"] = mask.to(device).long()
        # In float64: shares of many tokens are sums of many small weights.
        counted = weights.to(device, exact_type(device)).flatten()
        with _summed(modules, counted, sums):
            model_view.base(input_ids=ids.to(device), use_cache=False, **padding)
        total += float(weights.double().sum())
        done += int(mask.sum())
        progress(done, int(batch.mask.sum()))
    return [sums[number].cpu().double() / total for number in range(len(modules))]


@contextmanager
def _summed(
    modules: Sequence[nn.Module], weights: Float[Tensor, " row"], sums: dict[int, Tensor]
) -> Iterator[None]:
    """Add up, while it lasts, the weights of the tokens at which a neuron is above zero, by
    block.
    """
    called: set[int] = set()

    def add(number: int, module: nn.Module, args: Any, output: Any) -> None:
        rows = output.reshape(-1, output.shape[-1])
        if number in called or len(rows) != len(weights):
            again = "a second time " if number in called else ""
            raise ModelError(
                f"the activation of block {number} is asked {again}about {len(rows)} tokens where "
                f"the forward has {len(weights)}, so its neurons can't be counted; "
                f"lape reads feed-forwards that every token goes through once",
                subject=f"block {number}",
            )
        if not bool(rows.isfinite().all()):
            raise not_finite(f"the neurons of block {number}", f"block {number}")
        called.add(number)
        sums[number] = sums.get(number, 0.0) + weights @ exact(rows > 0)

    with ExitStack() as hooks:
        for number, module in enumerate(modules):
            hooks.enter_context(module.register_forward_hook(partial(add, number)))
        yield
