"""Which kind of blocks each tensor of a GGUF file gets, so that all of them stay within a budget of
bytes and their costs together are least.
"""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final, NamedTuple

import gguf
import numpy as np
import torch
from jaxtyping import Float, Shaped

from calibrant.errors import TargetError
from calibrant.llama_cpp import decode_blocks, quantize_matrix
from calibrant.methods.quantization._gguf_file import NUMBERS, DenseFile
from calibrant.methods.quantization._knapsack import Alternative, cheapest_within
from calibrant.models.gguf_writing import EXPERTS
from calibrant.numerics import finite_number, six_digits
from calibrant.system.progress import Progress
from calibrant.targets import GgufBudget
from calibrant.targets.gguf_budget import MEASURED_ROWS, in_megabytes, kinds_that_fit

RECIPE: Final = "Q8_0"
"""The recipe that is asked for where each tensor's kind is given. It is also the quickest to show
which tensors llama.cpp quantizes at all.
"""
PLAIN_BYTES: Final = 4
"""Bytes that a plain number counts: as many as it takes at most in the exported file."""

Members = Mapping[str, Shaped[np.ndarray, "..."]]
"""The numbers of tensors that get one kind together, by the tensors' names."""


class KindCosts(NamedTuple):
    """Tensors that get one kind together: gate and up of experts, or one alone. For each of the
    `kinds` that fit them, how many bytes they take and what the errors of their outputs are, as
    shares of the outputs.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    errors: tuple[float, ...]

    @property
    def smallest(self) -> int:
        """The place of the kind that takes the fewest bytes; of equals the one of least error."""
        by_size = list(zip(self.sizes, self.errors, strict=True))
        return by_size.index(min(by_size))


class ChosenKinds(NamedTuple):
    """The kinds of a file's tensors by name, and what the record says of them."""

    kinds: Mapping[str, str]
    notes: Mapping[str, Any]


def costs_of_kinds(
    target: GgufBudget, file: DenseFile, progress: Progress
) -> tuple[list[KindCosts], int]:
    """Return what each tensor costs in every kind that fits it, and the bytes of all tensors that
    stay plain numbers.

    An error is tr((W - Ŵ)D(W - Ŵ)ᵀ) / tr(WDWᵀ), where D has the mean squares of the inputs, and 1
    where none are known. So inputs count as if they didn't go together.

    Raises `TargetError`, before anything is measured, for a budget that no choice meets.
    """
    tensors = {str(tensor.name): tensor.data for tensor in gguf.GGUFReader(file.path).tensors}
    plain_bytes = 0
    names: list[str] = []
    for name, kind in file.types(RECIPE).items():
        if kind in NUMBERS:
            plain_bytes += PLAIN_BYTES * tensors[name].size
        else:
            names.append(name)
    groups: list[Members] = []
    for together in _together(names):
        groups.append({name: tensors[name] for name in together})
    _check_enough(target, groups, plain_bytes)
    costs: list[KindCosts] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for members in groups:
            costs.append(_costs_of(members, file.importance, pool))
            progress("costs of kinds", len(costs), len(groups))
    return costs, plain_bytes


def chosen_within(
    target: GgufBudget, costs: Sequence[KindCosts], nats: Sequence[float] | None, plain_bytes: int
) -> ChosenKinds:
    """Return the kinds that cost least within the budget, which is enough for the smallest ones;
    `plain_bytes` are taken already.

    What a kind costs is its error. `nats` say what the model loses by the smallest kind of each
    group alone. With them a cost is in nats: it grows with the error, and the smallest kind costs
    what was measured.
    """
    items: list[list[Alternative]] = []
    for number, group in enumerate(costs):
        scale = 1.0 if nats is None else _nats_of_error(group, nats[number])
        priced = [scale * error for error in group.errors]
        items.append(list(map(Alternative, group.sizes, priced)))
    choice = cheapest_within(items, target.bytes - plain_bytes)
    kinds: dict[str, str] = {}
    notes_by_tensor: dict[str, dict[str, Any]] = {}
    for group, options, pick in zip(costs, items, choice.picks, strict=True):
        kind = group.kinds[pick]
        kinds |= dict.fromkeys(group.names, kind)
        cost = six_digits(options[pick].cost)
        notes_by_tensor[group.names[0]] = {"kind": kind, "cost": cost}
    notes = {
        "budget": target.bytes,
        "bytes": plain_bytes + choice.size,
        "cost": six_digits(choice.cost),
        "bound": six_digits(choice.bound),
        "tensors": notes_by_tensor,
    }
    return ChosenKinds(kinds, notes)


def _nats_of_error(group: KindCosts, nats: float) -> float:
    """How many nats an error of 1 costs, where the smallest kind costs so many."""
    error = group.errors[group.smallest]
    return nats / error if error > 0 else 0.0


def smallest_kinds(costs: Iterable[KindCosts]) -> dict[str, str]:
    """Return the kind of each tensor that takes the fewest bytes, by the tensor's name."""
    kinds: dict[str, str] = {}
    for group in costs:
        kinds |= dict.fromkeys(group.names, group.kinds[group.smallest])
    return kinds


def _check_enough(
    target: GgufBudget,
    groups: Iterable[Members],
    plain_bytes: int,
) -> None:
    """Raise `TargetError` for a budget that the smallest kinds of all tensors don't meet."""
    least = plain_bytes
    for members in groups:
        _, sizes = _kinds_and_sizes(members)
        least += min(sizes)
    if least > target.bytes:
        raise TargetError(
            f"{target} is too little: with every tensor as small as it can be, the tensors "
            f"together take {in_megabytes(least)}; ask for at least that",
            subject=str(target),
        )


def _together(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Group the tensors that are one matrix in transformers, and so get one kind."""
    first_of: dict[str, str] = {}
    for parts in EXPERTS.values():
        first_of |= dict.fromkeys(parts, parts[0])
    groups: dict[str, list[str]] = {}
    for name in names:
        part = name.removesuffix(".weight").rpartition(".")[2]
        key = name.replace(part, first_of.get(part, part))
        groups.setdefault(key, []).append(name)
    return list(map(tuple, groups.values()))


def _costs_of(
    members: Members,
    importance: Mapping[str, Float[np.ndarray, "column"]],
    pool: ThreadPoolExecutor,
) -> KindCosts:
    kinds, sizes = _kinds_and_sizes(members)
    errors = np.zeros(len(kinds))
    for name, member in members.items():
        matrices = member.reshape(-1, *member.shape[-2:])
        columns = importance.get(name)
        if columns is not None:
            columns = columns.reshape(len(matrices), member.shape[-1])
        error = partial(_relative_error, _some_rows(matrices), columns)
        errors += list(pool.map(error, kinds))
        finite_number(float(errors.sum()), f"the error of {name}", name)
    return KindCosts(tuple(members), kinds, sizes, tuple(errors.tolist()))


def _kinds_and_sizes(
    members: Members,
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The kinds that fit tensors of a group, and how many bytes all of them take in each."""
    numbers = sum(member.size for member in members.values())
    first = next(iter(members.values()))
    # All tensors of a group have as many inputs.
    inputs = first.shape[-1]
    fitting = kinds_that_fit(inputs)
    kinds = tuple(kind.name for kind in fitting)
    sizes = tuple(int(numbers * kind.amount) // 8 for kind in fitting)
    return kinds, sizes


def _some_rows(
    matrices: Float[np.ndarray, "matrix row column"],
) -> Float[np.ndarray, "matrix some column"]:
    """At most `MEASURED_ROWS` rows of all matrices together, but at least one of each."""
    rows = matrices.shape[1]
    count = min(rows, max(1, MEASURED_ROWS // len(matrices)))
    return matrices[:, np.arange(count) * rows // count]


def _relative_error(
    matrices: Float[np.ndarray, "matrix row column"],
    importance: Float[np.ndarray, "matrix column"] | None,
    kind: str,
) -> float:
    """The error of matrices in blocks of a kind, as a share of their outputs."""
    lost = 0.0
    whole = 0.0
    for number, matrix in enumerate(matrices):
        columns = None if importance is None else importance[number]
        blocks = quantize_matrix(matrix, kind, columns)
        back = np.empty(matrix.size, dtype=np.float32)
        decode_blocks(blocks.reshape(-1), kind, back)
        dense = matrix.astype(np.float64)
        change = dense - back.reshape(matrix.shape)
        weights = np.ones(matrix.shape[1]) if columns is None else columns.astype(np.float64)
        lost += float((change**2 @ weights).sum())
        whole += float((dense**2 @ weights).sum())
    return lost / whole if whole > 0 else 0.0
