"""The criteria of MC-Suite, expert by expert and token by token in float64: what the real ones
are compared with.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.test_expert_statistics import Sent

SMALLEST = 1e-30
BIN = 2 ** (1 / 16)

Matrices = Sequence[Tensor]
"""One expert's matrices `[out, in]`, or their gradients."""


def by_hand(
    got: Sequence[Sequence[Sent]],
    parts: Sequence[Matrices],
    slopes: Sequence[Matrices],
    router: Tensor,
    words: int,
    weighs_inputs: bool,
) -> dict[str, list]:
    """Return every criterion but chance. Outliers are bounds: how many numbers are beyond
    borders that are moved outwards, and inwards.
    """
    experts = range(len(got))
    kinds = [{one.token for one in sent} for sent in got]
    places = [{one.where: one.weight for one in sent} for sent in got]
    means = [_mean(sent) for sent in got]
    return {
        "ews": _alike([_flat(own) for own in parts]),
        "rwn": [math.sqrt(float((row * row).sum())) for row in router],
        "wsr": [sum(_stable_rank(matrix) for matrix in own) / len(own) for own in parts],
        "ewn": [math.sqrt(float((_flat(own) ** 2).sum())) for own in parts],
        "euf": [sum(one.weight for one in sent) for sent in got],
        "ecc": [
            [
                sum(places[e][where] for where in places[e].keys() & places[o].keys())
                for o in experts
            ]
            for e in experts
        ],
        "evtc": [len(own) / words for own in kinds],
        "ets": [[float(len(kinds[e] & kinds[o])) for o in experts] for e in experts],
        "eas": [total / (len(got) - 1) for total in _alike(means)],
        "eae": [
            sum(
                _log_spread([(one.weight, float(one.y[place])) for one in sent])
                for place in range(32)
            )
            for sent in got
        ],
        "eao": _bounds(
            [[(one.weight, x) for one in sent for x in one.y.tolist()] for sent in got], BIN
        ),
        "ean": [
            sum(
                math.sqrt(sum(one.weight * float(one.y[place]) ** 2 for one in sent))
                for place in range(32)
            )
            for sent in got
        ],
        "egs": [total / (len(got) - 1) for total in _alike([_flat(own) for own in slopes])],
        "ege": [
            sum(_log_spread([(1.0, x) for x in row.tolist()]) for matrix in own for row in matrix)
            for own in slopes
        ],
        "ego": _bounds([[(1.0, x) for x in _flat(own).tolist()] for own in slopes], 1 + 1e-3),
        "egn": [
            sum(math.sqrt(float((row * row).sum())) for matrix in own for row in matrix)
            for own in slopes
        ],
        "reap": [_router_weighted(sent, weighs_inputs) for sent in got],
    }


def _flat(own: Matrices) -> Tensor:
    return torch.cat([matrix.flatten() for matrix in own])


def _mean(sent: Sequence[Sent]) -> Tensor:
    mass = sum(one.weight for one in sent)
    return sum((one.weight * one.y for one in sent), torch.zeros(32, dtype=torch.float64)) / (
        mass or 1.0
    )


def _alike(vectors: Sequence[Tensor]) -> list[float]:
    """The sum of the cosines of each with the others."""
    totals = [0.0] * len(vectors)
    for e, one in enumerate(vectors):
        for o, other in enumerate(vectors):
            lengths = math.sqrt(float((one * one).sum()) * float((other * other).sum()))
            totals[e] += float((one * other).sum()) / lengths if o != e and lengths else 0.0
    return totals


def _stable_rank(matrix: Tensor) -> float:
    squares = torch.linalg.eigvalsh(matrix @ matrix.T)
    return float(squares.sum() / squares.max())


def _log_spread(numbers: Sequence[tuple[float, float]]) -> float:
    return math.log(max(_variance(numbers), SMALLEST)) / 2


def _variance(numbers: Sequence[tuple[float, float]]) -> float:
    mass = sum(w for w, _ in numbers)
    mean = sum(w * x for w, x in numbers) / (mass or 1.0)
    return sum(w * (x - mean) ** 2 for w, x in numbers) / (mass or 1.0)


def _router_weighted(sent: Sequence[Sent], weighs_inputs: bool) -> float:
    whole = sum(
        one.weight * (1.0 if weighs_inputs else one.gate) * math.sqrt(float((one.y * one.y).sum()))
        for one in sent
    )
    return whole / (sum(one.weight for one in sent) or 1.0)


def _bounds(several: Sequence[Sequence[tuple[float, float]]], share: float) -> list[list[float]]:
    return [
        [_beyond(numbers, share) for numbers in several],
        [_beyond(numbers, 1 / share) for numbers in several],
    ]


def _beyond(numbers: Sequence[tuple[float, float]], share: float) -> float:
    mass = sum(w for w, _ in numbers)
    mean, spread = sum(w * x for w, x in numbers) / (mass or 1.0), math.sqrt(_variance(numbers))
    up, down = (mean + 3 * spread) * share, (mean - 3 * spread) * share
    return sum(w for w, x in numbers if x > up or x < down)
