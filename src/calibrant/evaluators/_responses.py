"""Which neurons respond to which groups of words, and what a compressed model's neurons still do
there.

A **neuron** is an input of the matrix that a feed-forward network ends with, its down projection:
behind the activation function, and behind the product with the other branch where there is one.
Which matrix that is follows from a trace of the model, not from names (`models.stream`).

**The response** of a neuron to a group is its mean over the group's words, each less the mean over
all words of its window: what a window is about moves all of its words alike, and falls away. It is
divided by the neuron's standard deviation within windows, so neurons can be added up.

**Which responses are real** is decided against shuffled labels: within each window the words change
places, and everything is computed once more. With z, the response over its standard deviation under
shuffling, every neuron of every group is a test. Groups that are about equally frequent are tested
together, since rare words have heavier tails. Benjamini and Hochberg's procedure (1995), with
p-values from all shuffled z of such a class, gives the class its threshold on |z|, at a false
discovery rate of `RATE`.

**What is kept** of a group is the part of the dense model's pattern over its neurons that the
compressed one still shows, Σ c·c' / Σ c², where c are the dense responses that are real and c'
those of the same neurons in the compressed model, over the same words and standard deviations. It
is 1 for the dense model, 0 where nothing of the pattern is left, and may be more than 1 or less
than 0. The damage D(g) is 1 less that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from calibrant.errors import ModelError, NumericsError
from calibrant.evaluators._windows import nats_by_token, predictions
from calibrant.evaluators._word_groups import Groups, WindowWords
from calibrant.models import ModelOutline, Weight, view
from calibrant.models.stream import Stream
from calibrant.system.products import exact_type
from calibrant.system.progress import Progress

RATE: Final = 0.05
"""The share of what is found that may be found by chance."""
STEPS: Final = 50
"""Steps of a threshold in 1 of |z|."""
HIGHEST: Final = 400
"""The highest |z| that is distinguished."""

TABLES: Final = 4
"""Tables of one block's numbers that are there at once, while a window is read or scores are
found.
"""

Reading = tuple[WindowWords, Int[Tensor, " _"]]
"""A window with the group of each of its words, -1 for one in none."""
OnNeurons = Callable[[int, Float[Tensor, "word neuron"]], None]
"""Is given the number of a block and what each of its neurons is at each word of a window, less
its mean over the window's words.
"""


@final
@dataclass(frozen=True)
class Pattern:
    """How the dense model's neurons respond to groups of words, as far as that is real.

    `responses` are in standard deviations, zero where they aren't real, by block `[group, neuron]`.
    `deviations` are those of the neurons. `tested` is how many responses were tested, and `found`
    how many of them are real. `thresholds` says from which |z| on they are, by the class of a
    group's size.
    """

    counts: Int[Tensor, " group"]
    responses: tuple[Float[Tensor, "group _"], ...]
    deviations: tuple[Float[Tensor, " _"], ...]
    thresholds: dict[int, float]
    tested: int
    found: int

    @cached_property
    def strengths(self) -> Float[Tensor, "block group"]:
        """The squares of the responses, summed over each block's neurons, in float64."""
        squares = [block.cpu().double().square().sum(1) for block in self.responses]
        return torch.stack(squares)

    @cached_property
    def sizes(self) -> Int[Tensor, "block group"]:
        """How many neurons of each block respond to each group."""
        return torch.stack([(block != 0).sum(1).cpu() for block in self.responses])

    @property
    def known(self) -> list[int]:
        """The groups to which any neuron responds."""
        return self.strengths.sum(0).nonzero().flatten().tolist()

    def scaled(
        self, block: int, sums: Float[Tensor, "group neuron"]
    ) -> Float[Tensor, "group neuron"]:
        """Return responses from sums over the words of each group, in the same standard
        deviations.
        """
        counts = self.counts.to(sums.device)
        means = sums / counts[:, None]
        deviations = self.deviations[block].to(sums.device)
        return _per(means, deviations)


@final
@dataclass(frozen=True)
class Shown:
    """What a model showed of a dense model's pattern.

    `by_block` is Σ c·c' by block and group. `by_window` is a like sum by window and group, over the
    group's words in the window and all blocks, where c' is a single word's. `nats` are those of the
    scored tokens, window by window. `responses` are those of all neurons, by block
    `[group, neuron]`, where somebody wants them.
    """

    by_block: Float[Tensor, "block group"]
    by_window: Float[Tensor, "window group"]
    nats: tuple[Float[Tensor, " _"], ...]
    responses: tuple[Float[Tensor, "group _"], ...] = ()


def projections_of(model: PreTrainedModel) -> tuple[Weight, ...]:
    """Return the matrix of each block whose inputs are its neurons, `[hidden, neuron]`.

    Raises `ModelError`, by name, for a model whose feed-forward networks can't be read: experts,
    whose neurons only some tokens reach; a block with none or with several; one that isn't
    understood.
    """
    model_view = view(model)
    hidden = Stream.of(model_view).hidden
    projections: list[Weight] = []
    for block in model_view.blocks:
        matrices = [unit.down for unit in hidden if unit.block == block.index]
        if any(matrix.expert is not None for matrix in matrices):
            raise ModelError(
                f"the feed-forward network of {block.name} is of routed experts, whose neurons "
                f"only the tokens reach that are sent there; words reads models without experts",
                subject=block.name,
            )
        if len(matrices) != 1:
            found_text = "no feed-forward network that can be read"
            if matrices:
                names = ", ".join(matrix.name for matrix in matrices)
                found_text = f"{len(matrices)} feed-forward networks ({names})"
            raise ModelError(
                f"{block.name} of a {type(model).__name__} has {found_text}; "
                f"words reads blocks with exactly one",
                subject=block.name,
            )
        projections += matrices
    return tuple(projections)


def check_alike(ours: Sequence[int], theirs: Sequence[int]) -> None:
    """Raise `ModelError` for a model whose blocks have other numbers of neurons than the dense
    one's: then they can't be compared one by one.
    """
    if list(ours) != list(theirs):
        raise ModelError(
            f"the model has {sum(ours):,} neurons in {len(ours)} blocks and the dense one "
            f"{sum(theirs):,} in {len(theirs)}, so they can't be compared one by one; measure it "
            f"with agreement, and with words models that kept all blocks and neurons",
            subject="neurons",
        )


def pattern(
    model: PreTrainedModel,
    projections: Sequence[Weight],
    readings: Sequence[Reading],
    groups: Groups,
    shuffles: int,
    seed: int,
    measured: str,
    progress: Progress,
) -> Pattern:
    """Find the responses of a dense model's neurons; `shuffles` times the words of each window
    change places, by `seed`.
    """
    size = len(groups.names)
    real = _GroupSums(size, projections)
    shuffled = [_GroupSums(size, projections) for _ in range(shuffles)]

    def on_neurons(orders: Sequence[Tensor], block: int, rows: Tensor) -> None:
        for sums, labels in zip((real, *shuffled), orders, strict=True):
            sums.add(block, rows, labels)

    generator = np.random.default_rng(seed)
    for number, (window_words, labels) in enumerate(readings, start=1):
        # The labels as they are, and a shuffle for each of the sums by chance.
        orders = [labels]
        for _ in shuffled:
            places = generator.permutation(len(labels))
            orders.append(labels[torch.from_numpy(places)])
        _read(model, projections, window_words, partial(on_neurons, orders), measured)
        progress("finding neurons", number, len(readings))
    counts, variances, freedom = _counted([labels for _, labels in readings], size)
    deviations = [(squares / freedom).sqrt() for squares in real.squares]
    # Groups of 2ⁿ⁻¹ to 2ⁿ - 1 words are a class.
    classes = [int(count).bit_length() for count in counts]
    real_scores = _scores(real, deviations, variances)
    shuffled_scores = [_scores(sums, deviations, variances) for sums in shuffled]
    thresholds, tested = _thresholds(real_scores, shuffled_scores, classes)
    least = torch.tensor([thresholds[kind] for kind in classes], dtype=torch.float64)
    responses = tuple(_real_responses(real, counts, deviations, variances, least))
    real_count = sum(int((block != 0).sum()) for block in responses)
    return Pattern(counts, responses, tuple(deviations), thresholds, tested, real_count)


def shown(
    model: PreTrainedModel,
    projections: Sequence[Weight],
    readings: Sequence[Reading],
    dense: Pattern,
    measured: str,
    progress: Progress,
    whole: bool = False,
) -> Shown:
    """Read the windows with a model, and return what it shows of a pattern; `whole` keeps the
    responses of all neurons.
    """
    sums = _GroupSums(len(dense.counts), projections)
    by_window = torch.zeros(len(readings), len(dense.counts), dtype=torch.float64)
    nats: list[Tensor] = []

    def on_neurons(labels: Tensor, matched: Tensor, block: int, rows: Tensor) -> None:
        sums.add(block, rows, labels)
        _add_matched(matched, dense, block, rows, labels)

    for number, (window_words, labels) in enumerate(readings, start=1):
        # A view: what is added to the row stands in the table.
        listener = partial(on_neurons, labels, by_window[number - 1])
        nats.append(_read(model, projections, window_words, listener, measured))
        progress("reading words", number, len(readings))
    by_block: list[Tensor] = []
    responses: list[Tensor] = []
    for block, expected in enumerate(dense.responses):
        ours = dense.scaled(block, sums.sums[block])
        products = (expected.to(ours.device) * ours).sum(1)
        by_block.append(products.cpu().double())
        if whole:
            responses.append(ours.float().cpu())
    return Shown(torch.stack(by_block), by_window, tuple(nats), tuple(responses))


def _add_matched(
    matched: Float[Tensor, " group"],
    dense: Pattern,
    block: int,
    rows: Float[Tensor, "word neuron"],
    labels: Int[Tensor, " word"],
) -> None:
    """Add to `matched` what each word of a window shows of the pattern of its group: Σ c·c' over a
    block's neurons.
    """
    device = rows.device
    inside = (labels >= 0).nonzero().flatten()
    groups = labels[inside]
    # The dense model may have been on another device.
    deviations = dense.deviations[block].to(device)
    scaled = _per(rows[inside.to(device)], deviations)
    responses = dense.responses[block]
    expected = responses[groups.to(responses.device)].to(device)
    products = (expected * scaled).sum(1)
    matched.index_add_(0, groups, products.cpu().double())


def responses_bytes(dense: ModelOutline, groups: int, shuffles: int, length: int) -> int:
    """Return how many bytes `pattern` takes at most for so many groups of words, in windows of
    `length` tokens: sums over each group's words, once by the labels as they are and once by each
    shuffle, and the pattern.
    """
    number = exact_type(dense.device).itemsize
    neurons = sum(dense.shape.neurons)
    # With sums of squares beside those of each group.
    sums = (1 + shuffles) * (groups + 1) * neurons * number
    # The words of a window, or the groups, of the widest block.
    tables = TABLES * max(groups, length) * max(dense.shape.neurons) * number
    return sums + tables + pattern_bytes(dense, groups)


def pattern_bytes(dense: ModelOutline, groups: int) -> int:
    """Return how many bytes a pattern of so many groups takes: responses in float32, and
    deviations.
    """
    deviation = exact_type(dense.device).itemsize
    return sum(dense.shape.neurons) * (groups * torch.float32.itemsize + deviation)


@torch.no_grad()
def _read(
    model: PreTrainedModel,
    projections: Sequence[Weight],
    window_words: WindowWords,
    on_neurons: OnNeurons,
    measured: str,
) -> Float[Tensor, " scored"]:
    """Run a window once, and give `on_neurons` each block's neurons at its words.

    Return the nats of each scored token, in float64, on the CPU.

    Raises `ModelError` where the neurons can't be matched with tokens, `NumericsError` for outputs
    that aren't finite.
    """
    places = torch.tensor(window_words.places, dtype=torch.long)
    with _listening(projections, places, len(window_words.window.ids), on_neurons):
        (logits,) = predictions(model, [window_words.window])
    nats = nats_by_token(torch.tensor(window_words.window.targets), logits)
    if not bool(nats.isfinite().all()):
        raise NumericsError(
            f"the words of {measured} can't be measured: the model's outputs aren't finite",
            subject=measured,
        )
    return nats


@contextmanager
def _listening(
    projections: Sequence[Weight], places: Int[Tensor, " word"], tokens: int, on_neurons: OnNeurons
) -> Iterator[None]:
    """Give `on_neurons`, while it lasts, what arrives at each of the matrices."""
    called: set[int] = set()

    def arrive(number: int, module: Any, args: tuple[Any, ...]) -> None:
        inputs: Tensor = args[0]
        count = inputs.shape[:-1].numel()
        if number in called or count != tokens:
            again = "a second time " if number in called else ""
            raise ModelError(
                f"{projections[number].name} is called {again}with {count} rows where the forward "
                f"has {tokens} tokens, so its neurons can't be matched with words",
                subject=projections[number].name,
            )
        called.add(number)
        by_token = inputs.reshape(tokens, -1)
        at_words = by_token[places.to(inputs.device)]
        rows = at_words.to(exact_type(inputs.device))
        # The mean of no rows would be NaN.
        if len(rows):
            rows = rows - rows.mean(0, keepdim=True)
        on_neurons(number, rows)

    with ExitStack() as hooks:
        for number, weight in enumerate(projections):
            hooks.enter_context(weight.owner.register_forward_pre_hook(partial(arrive, number)))
        yield
    for number, weight in enumerate(projections):
        if number not in called:
            raise ModelError(
                f"{weight.name} isn't called as a module, so its neurons can't be read; "
                f"words reads models whose matrices are",
                subject=weight.name,
            )


@final
class _GroupSums:
    """Sums of each block's neurons over the words of each group, `[group, neuron]`, and of their
    squares over all words, `[neuron]`.
    """

    def __init__(self, groups: int, projections: Sequence[Weight]) -> None:
        self.sums: list[Tensor] = []
        self.squares: list[Tensor] = []
        for weight in projections:
            size = weight.shape[1]
            device = weight.stored.device
            dtype = exact_type(device)
            self.sums.append(torch.zeros(groups, size, device=device, dtype=dtype))
            self.squares.append(torch.zeros(size, device=device, dtype=dtype))

    def add(
        self, block: int, rows: Float[Tensor, "word neuron"], labels: Int[Tensor, " word"]
    ) -> None:
        """Add the rows of a window's words, those of words in no group to the squares alone."""
        inside = (labels >= 0).nonzero().flatten()
        groups = labels[inside].to(rows.device)
        self.sums[block].index_add_(0, groups, rows[inside.to(rows.device)])
        self.squares[block] += rows.square().sum(0)


def _per(
    values: Float[Tensor, "row neuron"], deviation: Float[Tensor, " neuron"]
) -> Float[Tensor, "row neuron"]:
    """Divide by standard deviations; 0 of a neuron that never moves."""
    divisor = deviation.clamp(min=torch.finfo(deviation.dtype).tiny)
    return torch.where(deviation > 0, values / divisor, 0.0)


def _counted(
    labels: Sequence[Int[Tensor, " _"]], groups: int
) -> tuple[Int[Tensor, " group"], Float[Tensor, " group"], int]:
    """Return three things of the words' labels: how many words each group has, the variance of a
    group's sum under shuffling, and the degrees of freedom of the neurons' variances.

    The variance of a sum is that of neurons whose own variance is 1.
    """
    counts = torch.zeros(groups, dtype=torch.long)
    variances = torch.zeros(groups, dtype=torch.float64)
    freedom = 0
    for window_labels in labels:
        inside = torch.bincount(window_labels[window_labels >= 0], minlength=groups)
        counts += inside
        # A sum of k of n values that add up to 0, drawn without replacement.
        variances += inside * (1 - inside / max(1, len(window_labels)))
        # One less a window: its mean is taken off.
        freedom += max(0, len(window_labels) - 1)
    return counts, variances, max(1, freedom)


def _scores(
    sums: _GroupSums, deviations: Sequence[Float[Tensor, " _"]], variances: Float[Tensor, " group"]
) -> Iterator[Float[Tensor, "group _"]]:
    """Yield the z of each block."""
    for block_sums, deviation in zip(sums.sums, deviations, strict=True):
        tiny = torch.finfo(block_sums.dtype).tiny
        variance = variances.to(block_sums).clamp(min=tiny)
        yield _per(block_sums, deviation) / variance.sqrt()[:, None]


def _real_responses(
    sums: _GroupSums,
    counts: Int[Tensor, " group"],
    deviations: Sequence[Float[Tensor, " _"]],
    variances: Float[Tensor, " group"],
    least: Float[Tensor, " group"],
) -> Iterator[Float[Tensor, "group _"]]:
    """Yield the responses of each block, of which those are real whose |z| is at least `least`."""
    for block, scores in enumerate(_scores(sums, deviations, variances)):
        block_sums = sums.sums[block]
        means = block_sums / counts.to(block_sums)[:, None]
        # A response that isn't real counts as zero, so that a pattern can be compared as a whole.
        is_real = scores.abs() >= least.to(scores)[:, None]
        kept = _per(means, deviations[block]) * is_real
        yield kept.float()


def _thresholds(
    real: Iterator[Float[Tensor, "group _"]],
    shuffled: Sequence[Iterator[Float[Tensor, "group _"]]],
    classes: Sequence[int],
) -> tuple[dict[int, float], int]:
    """Return from which |z| on the responses of each class of groups are real, and how many were
    tested.
    """
    real_counts = _histograms(real, classes)
    by_chance = [_histograms(scores, classes) for scores in shuffled]
    thresholds: dict[int, float] = {}
    for kind, counts in real_counts.items():
        shuffled_counts = torch.stack([histograms[kind] for histograms in by_chance])
        thresholds[kind] = threshold(counts, shuffled_counts.sum(0))
    return thresholds, sum(int(counts.sum()) for counts in real_counts.values())


def _histograms(
    scores: Iterator[Float[Tensor, "group _"]], classes: Sequence[int]
) -> dict[int, Int[Tensor, " step"]]:
    """Return how many |z| of each class lie in each step."""
    kinds = torch.tensor(classes)
    last = STEPS * HIGHEST
    # Counted by steps and not sorted: all z of a large model together take too much memory.
    histograms = {kind: torch.zeros(last + 1, dtype=torch.long) for kind in set(classes)}
    for block in scores:
        steps = (block.abs() * STEPS).clamp(max=last).long().cpu()
        for kind, counts in histograms.items():
            counts += torch.bincount(steps[kinds == kind].flatten(), minlength=last + 1)
    return histograms


def threshold(found: Int[Tensor, " step"], by_chance: Int[Tensor, " step"]) -> float:
    """Return the |z| from which on at most `RATE` of what was found is expected by chance; infinity
    if there is none.

    Both are counts by step of |z|, the one of labels as they are, the other of shuffled ones. This
    is Benjamini and Hochberg's step-up procedure on p-values (1 + shuffled z as large) / (1 +
    shuffled z): the lowest step is taken at which m·p is at most `RATE` times what was found.
    """
    tested = int(found.sum())
    shuffled = int(by_chance.sum())
    above = _above(found)
    expected = tested * (1 + _above(by_chance)) / (1 + shuffled)
    sound = ((expected <= RATE * above) & (above > 0)).nonzero().flatten()
    if len(sound) == 0:
        return float("inf")
    return float(sound[0]) / STEPS


def _above(counts: Int[Tensor, " step"]) -> Float[Tensor, " step"]:
    """Return how many lie in each step or a higher one."""
    return counts.flip(0).cumsum(0).flip(0).double()
