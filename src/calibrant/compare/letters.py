"""Compact letter displays: what shares a letter can't be told apart."""

import string
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool

ALPHABET: Final = string.ascii_lowercase + string.ascii_uppercase


def compact_letters(apart: Bool[np.ndarray, "n n"]) -> list[str]:
    """For things in order, the best first, their letters: two share one if and only if they can't be told `apart`, even where that isn't
    transitive (a like b, b like c, a unlike c).

    A letter stands for a group that is alike in every two; groups grow from the first pair that none covers yet, and a group whose every pair
    others cover is dropped, as in Piepho's display (2004). Growing them, unlike inserting and absorbing, takes no exponential time (Gramm et
    al. 2006). After fifty-two letters come numbers in brackets.
    """
    count = len(apart)
    alike = [sum(1 << j for j in range(count) if j != i and not apart[i, j]) for i in range(count)]
    groups = _needed(_groups(alike), alike)
    letters = [""] * count
    for name, group in zip(_names(len(groups)), sorted(groups, key=_members), strict=True):
        for i in _members(group):
            letters[i] += name
    return letters


def _groups(alike: Sequence[int]) -> list[int]:
    """Maximal groups, as sets of bits, that together hold every pair which is alike, and everything that is alike to nothing."""
    left, found = list(alike), [1 << i for i, others in enumerate(alike) if not others]
    for i in range(len(alike)):
        while left[i]:
            group, fitting = 1 << i, alike[i]
            # Pairs that no group holds yet come first, then whatever else fits.
            for wanted in (left[i], alike[i]):
                while chosen := fitting & wanted:
                    j = (chosen & -chosen).bit_length() - 1
                    group, fitting = group | 1 << j, fitting & alike[j]
            found.append(group)
            for j in _members(group):
                left[j] &= ~group
    return found


def _needed(groups: Sequence[int], alike: Sequence[int]) -> list[int]:
    """Without the groups whose every pair is in others as well."""
    kept = list(groups)
    for group in sorted((g for g in groups if g.bit_count() > 1), key=int.bit_count):
        others = [g for g in kept if g != group]
        if not any(group & alike[i] & ~_united(g for g in others if g >> i & 1) for i in _members(group)):
            kept = others
    return kept


def _united(groups: Iterator[int]) -> int:
    found = 0
    for group in groups:
        found |= group
    return found


def _members(group: int) -> list[int]:
    return [i for i in range(group.bit_length()) if group >> i & 1]


def _names(count: int) -> list[str]:
    return [ALPHABET[i] if i < len(ALPHABET) else f"[{i + 1}]" for i in range(count)]
