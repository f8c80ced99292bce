"""How long the parts of a job take: rates of a machine, which are measured, and how much of each a
job needs.
"""

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, final

import torch

from calibrant.activations import Gram
from calibrant.compress.costs import ROWS, peak
from calibrant.compress.room import looks_at_grams
from calibrant.methods import MatrixMethod, Method
from calibrant.models import ModelOutline, ModelShape
from calibrant.models.devices import wait_for
from calibrant.targets import GgufBudget, GgufRecipe, Target
from calibrant.targets.gguf_budget import MEASURED_ROWS, kinds_that_fit


@final
@dataclass(frozen=True)
class Rates:
    """What a device does in a second: operations of `products` in the model's type, of `exact` ones
    in float32 and of `grams`, and `passes` over single numbers. Beside a processor each small
    operation takes `launch` seconds to begin.
    """

    products: float
    exact: float
    grams: float
    passes: float
    launch: float = 0.0


SIDE: Final = 1024
"""Outputs and inputs of the matrix whose products are timed."""
NUMBERS: Final = 2**20
"""How many numbers one timed pass goes over: few enough that they stay in the cache."""
LAUNCHES: Final = 100
"""Small operations that are timed together."""
TIMED: Final = 0.05
"""Seconds in which a rate is timed again and again. The fastest time counts, since another process
may have slowed the others.
"""


@functools.cache
def rates_of(dtype: torch.dtype, device: torch.device) -> Rates:
    """Return the rates of a device, which are measured once, in about a fifth of a second."""
    shape = (SIDE, SIDE)
    exact = peak(shape, torch.float32, device, TIMED)
    products = exact
    if dtype != torch.float32:
        products = peak(shape, dtype, device, TIMED)
    inputs = torch.ones(ROWS, SIDE, dtype=dtype, device=device)
    numbers = torch.ones(NUMBERS, dtype=dtype, device=device)
    small = numbers[:1]

    def gram() -> None:
        Gram.of(inputs)

    def one_pass() -> None:
        # What a feed-forward network does to each of its numbers.
        torch.nn.functional.silu(numbers)

    def launches() -> None:
        for _ in range(LAUNCHES):
            small.add_(1)

    launch = 0.0
    if device.type != "cpu":
        launch = _fastest(launches, device) / LAUNCHES
    return Rates(
        products=products,
        exact=exact,
        grams=gram_operations(SIDE, ROWS) / _fastest(gram, device),
        passes=NUMBERS / _fastest(one_pass, device),
        launch=launch,
    )


def _fastest(work: Callable[[], None], device: torch.device) -> float:
    """The fewest seconds of all the times that `work` is done while it is timed."""
    # Not timed: the first time may compile, or load kernels.
    work()
    fastest = float("inf")
    ends = time.perf_counter() + TIMED
    while time.perf_counter() < ends:
        began = time.perf_counter()
        work()
        wait_for(device)
        fastest = min(fastest, time.perf_counter() - began)
    return fastest


def gram_operations(width: int, tokens: int) -> float:
    """Return how many operations a Gram is: those of its upper triangle."""
    return float(tokens) * width**2


@final
@dataclass(frozen=True)
class MethodWork:
    """What a method does to a matrix of `out` × `in`, and its record to say what the matrix lost:
    `passes` over each weight, and operations in float32, as a multiple `products` of out · in² and
    `cubes` of in³. The cubes are those of factoring a Gram, which is done once for all matrices
    that share an input. `again` tokens go through each block again. A device other than the
    processor does `steps` small operations for each column.
    """

    passes: float
    products: float = 0.0
    cubes: float = 0.0
    again: int = 0
    steps: int = 0


WORK: Final[Mapping[str, MethodWork]] = {
    "none": MethodWork(21.0),
    "rtn": MethodWork(34.0),
    "wanda": MethodWork(24.0),
    "sparsegpt": MethodWork(180.0, 1.15, 0.3, steps=7),
    "gptq": MethodWork(170.0, 1.0, 0.3, steps=16),
    "awq": MethodWork(583.0, 5.0, again=45_000),
    "refined": MethodWork(524.0, 31.0),
    "alps": MethodWork(168.0, 59.0, 15.0),
    "autoround": MethodWork(60.0),
}
"""What methods do. These factors, and those below, were fitted to the runs of real and random
models in benchmarks/records/plans.json (`benchmarks/plans.py --fit`); those of `awq` and `refined`
to earlier runs of the two smallest (docs/log/2026-11-29.md). `alps` follows
from an older fit of `refined` by the ratio of both (docs/log/2026-11-27.md). That of
`autoround` is an estimate: no run is kept that it could be held to.
"""
FORWARD_PASSES: Final = 11.0
"""Passes over each number of a token in a block, beside the products: norms, angles, gates."""
ATTENTION_SHARE: Final = 0.24
"""The share of the products' rate that attention gets."""
SUM_PASSES: Final = 1.8
"""Passes over each input of a matrix for a sum of squares."""
GRAM_SHARE: Final = 1.0
"""The share of a Gram's time, at the width that is timed, that grows with the square of the width;
the rest are passes.
"""
GRAM_PASSES: Final = 2.5
"""Passes over each input of a matrix for a Gram."""
SCORE_PASSES: Final = 65.0
"""Passes over each logit to score a token."""
DISK: Final = 1.9e9
"""Bytes a second that a model is opened with, where the system has its files in memory: read,
hashed and converted.
"""
WRITTEN: Final = 0.5e9
"""Bytes a second that are written and flushed."""
STARTING: Final = 0.1
"""Seconds until a model's files are found, and its modules are made."""
TOKENIZER_SECONDS: Final = 11e-6
"""Seconds that an entry of the vocabulary takes while a tokenizer is opened."""
TOKENIZING: Final = 10e-6
"""Seconds that a token of calibration data takes to be read and tokenized."""
DEQUANTIZING: Final = 3e-9
"""Seconds that a number of a GGUF file takes to be dequantized by llama.cpp."""
MAKING: Final = 90e-9
"""Seconds that llama.cpp takes on one thread of the processor to round a number: the mean of the
kinds that a budget chooses from.
"""


def work_of(method: Method) -> MethodWork:
    """Return what a method does to a matrix; of one that wasn't measured, what its like does."""
    known = WORK.get(method.spec_name())
    if known is not None:
        return known
    within = getattr(method, "method", None)
    if isinstance(within, MatrixMethod):
        return work_of(within)
    if looks_at_grams(method):
        return WORK["sparsegpt"]
    return WORK["wanda"] if method.observes else WORK["rtn"]


def forward_seconds(shape: ModelShape, tokens: int, length: int, rates: Rates) -> float:
    """Return the seconds of one forward of so many tokens through all blocks, in windows of
    `length`; without the head.
    """
    used = sum(matrix.numbers * matrix.used for matrix in shape.matrices)
    attention = 2.0 * length * shape.hidden * len(shape.blocks) / ATTENTION_SHARE
    products = 2.0 * tokens * (used + attention)
    passes = FORWARD_PASSES * tokens * shape.numbers_per_token * len(shape.blocks)
    return products / rates.products + passes / rates.passes


def head_seconds(shape: ModelShape, tokens: int, rates: Rates) -> float:
    """Return the seconds that the head takes for so many tokens, and the scores of its logits."""
    logits = float(tokens) * shape.vocabulary
    return 2.0 * logits * shape.hidden / rates.products + SCORE_PASSES * logits / rates.passes


def statistics_seconds(shape: ModelShape, tokens: int, method: Method, rates: Rates) -> float:
    """Return the seconds in which the statistics are summed that a method observes."""
    if not method.observes:
        return 0.0
    numbers = float(tokens) * sum(shape.input_widths)
    if not looks_at_grams(method):
        return SUM_PASSES * numbers / rates.passes
    products = sum(gram_operations(width, tokens) for width in shape.input_widths)
    return GRAM_SHARE * products / rates.grams + GRAM_PASSES * numbers / rates.passes


def method_seconds(
    shape: ModelShape, tokens: int, length: int, method: Method, rates: Rates
) -> float:
    """Return the seconds in which a method compresses all matrices, and the record says what they
    lost; of what runs again, in windows of `length`. It is shown so many `tokens`.
    """
    work = work_of(method)
    passes = 0.0
    exact = 0.0
    columns = 0
    for matrix in shape.matrices:
        passes += work.passes * matrix.numbers
        exact += work.products * matrix.numbers * matrix.inputs
        columns += matrix.inputs
    exact += work.cubes * sum(width**3 for width in shape.input_widths)
    if isinstance(method, MatrixMethod):
        passes *= method.compressions
        exact *= method.compressions
        columns *= method.compressions
    seconds = passes / rates.passes + exact / rates.exact
    seconds += work.steps * columns * rates.launch
    again = work.again + method.tokens_again(tokens, length)
    return seconds + forward_seconds(shape, again, length, rates)


def file_seconds(shape: ModelShape, target: Target, tries: bool) -> float:
    """Return the seconds in which llama.cpp makes a whole file for this target, 0 for a target of
    single matrices. With `tries` the smallest file is made too.
    """
    files = 0
    if isinstance(target, GgufRecipe | GgufBudget):
        files = 2 if tries else 1
    return MAKING * files * shape.numbers / torch.get_num_threads()


def kinds_seconds(shape: ModelShape) -> float:
    """Return the seconds in which some rows of each tensor are rounded to every kind that a budget
    of bytes chooses from.
    """
    made = min(MEASURED_ROWS, shape.vocabulary) * shape.hidden * len(kinds_that_fit(shape.hidden))
    for block in shape.blocks:
        experts = {matrix.part for matrix in block.matrices if matrix.used < 1}
        for matrix in block.matrices:
            rows = MEASURED_ROWS
            # All experts are one tensor.
            if matrix.part in experts:
                rows = max(1, MEASURED_ROWS // len(experts))
            kinds = len(kinds_that_fit(matrix.inputs))
            made += min(rows, matrix.outputs) * matrix.inputs * kinds
    return MAKING * made / torch.get_num_threads()


def opening_seconds(outline: ModelOutline) -> float:
    """Return the seconds until a model is open. What has to be downloaded isn't counted."""
    if outline.storage in ("memory", "copied"):
        return 0.0
    shape = outline.shape
    seconds = STARTING + TOKENIZER_SECONDS * shape.vocabulary
    if outline.storage == "gguf":
        return seconds + DEQUANTIZING * shape.numbers
    return seconds + shape.numbers * outline.dtype.itemsize / DISK
