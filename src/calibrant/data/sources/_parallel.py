"""Texts that are translations of each other: a passage is in the same part in every language.

The hash of a row differs from language to language, so these are divided by where a passage comes
from. Otherwise a model could be calibrated on the German of what it is measured on in English.
"""

from collections.abc import Iterable
from hashlib import sha256

from calibrant.data._base import PARTS, Part, Row, fraction, part_of


def divide_by_place(passages: Iterable[tuple[str, Row]]) -> dict[Part, list[Row]]:
    """(Place, row) pairs of one split, 70 % to calibrate on, 25 % to measure on, 5 % exemplars;
    all of a place in one part.
    """
    parts: dict[Part, list[Row]] = {part: [] for part in PARTS}
    for place, row in passages:
        parts[part_of(_hash(place))].append(row)
    return parts


def train_and_test_by_place(
    train: Iterable[tuple[str, Row]], test: Iterable[tuple[str, Row]]
) -> dict[Part, list[Row]]:
    """(Place, row) pairs that come divided: 5 % of the places of train are exemplars."""
    parts: dict[Part, list[Row]] = {
        "calibrate": [],
        "measure": [row for _, row in test],
        "exemplars": [],
    }
    for place, row in train:
        parts["exemplars" if fraction(_hash(place)) >= 0.95 else "calibrate"].append(row)
    return parts


def _hash(place: str) -> str:
    return sha256(place.encode()).hexdigest()
