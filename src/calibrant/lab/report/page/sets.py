"""What the page of a calibration set says of it. All from facts in the store. No torch here."""

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from calibrant.lab.report.sentences import rise
from calibrant.lab.stats import MEASURES, SetSummary, describe_target, join_names
from calibrant.numerics import percent
from calibrant.spec.families import WORDS

if TYPE_CHECKING:
    from calibrant.lab.report.page.contents import Contents

NUMBERS: Final = {
    "numbers": "numbers for a hundred words",
    "word_length": "letters of a word",
    "distinct": "different words of a draw",
    "even": "equally frequent words that would be as varied",
}
"""The numbers of a profile that are no shares, in words."""


def rows_of(facts: Mapping[str, Any]) -> int:
    """Return how many rows a draw has, over all its parts."""
    return sum(part.get("rows", 0) for part in facts.get("parts", ()))


def licence(summary: SetSummary) -> str:
    """Return the licences of all parts of a set."""
    parts = [part for draw in summary.draws for part in draw.facts.get("parts", ())]
    return join_names(
        list(dict.fromkeys(str(part.get("licence", "")) for part in parts if part.get("licence")))
        or [""]
    )


def in_words(contents: "Contents", summary: SetSummary) -> str:
    """Return a paragraph made of the set's facts, its first result, and its nearest neighbours."""
    facts = summary.draws[0].facts
    windows, length = facts.get("windows"), facts.get("length")
    size = (
        f"{windows:,} windows of up to {length:,} tokens, {facts.get('tokens', 0):,} of them real"
        if windows and length
        else "of unknown size"
    )
    many = len(summary.draws)
    sentences = [
        f"{summary.name} is {WORDS[summary.family]}: {size}, drawn {'once' if many == 1 else f'{many} times'}."
    ]
    if summary.terms:
        sentences.append(f"Its own words: {', '.join(word for word, _ in summary.terms[:6])}.")
    for ranking, entry in contents.places.get(summary.name, ())[:1]:
        where = f"With {ranking.method} at {describe_target(ranking.target)} it"
        if math.isnan(entry.mean.value):
            sentences.append(f"{where} lacks measurements, so it has no place.")
            continue
        low, high = entry.ranks
        place = f"is in place {low}" if low == high else f"shares places {low} to {high}"
        change = f"{entry.mean.value:+.3f} {ranking.unit}" + (
            f" {rise(ranking).removeprefix('increase ')}" if entry.increases else ""
        )
        interval = entry.mean.interval(ranking.level)
        spread = (
            ""
            if interval is None
            else f", {percent(ranking.level)} interval {interval[0]:.3f} to {interval[1]:.3f}"
        )
        sentences.append(f"{where} {place} of {len(ranking.entries)} ({change}{spread}).")
    nearest = [
        f"by {what}: {near[0][0]}"
        for m, what in MEASURES.items()
        if (near := contents.nearest(summary.name, m, 1))
    ]
    if nearest:
        sentences.append(f"Most like it {'; '.join(nearest)}.")
    return " ".join(sentences)


def origin(part: Mapping[str, Any]) -> str:
    """Return where a part of a set comes from: its origin, its address on the hub, and what
    there is to note.
    """
    hub = part.get("hub") or {}
    address = (
        f"on the hub: {hub.get('id')}{f' ({c})' if (c := hub.get('config')) else ''}, revision {hub.get('revision')}"
        if hub
        else ""
    )
    return "; ".join(
        filter(None, [str(part.get("origin") or ""), address, str(part.get("note") or "")])
    )


def scripts_of(profile: Mapping[str, Any]) -> str:
    """Return the four commonest scripts of a profile's letters with their shares."""
    return (
        ", ".join(
            f"{script} {share:.1%}"
            for script, share in list(profile["scripts"].items())[:4]
            if share >= 0.001
        )
        or "none"
    )


def profile_rows(
    profile: Mapping[str, Any], medians: Mapping[str, float]
) -> Iterator[tuple[str, str, str]]:
    """Yield what a set's text is like, in words, its number, and the median of all sets."""
    for kind, share in profile["characters"].items():
        yield f"{kind} among all characters", f"{share:.1%}", f"{medians.get(kind, 0.0):.1%}"
    for key, words in NUMBERS.items():
        yield words, f"{profile[key]:,.1f}", f"{medians.get(key, 0.0):,.1f}"


def plain(number: object) -> str:
    """Return a number as people write it, and nothing for None.

    >>> plain(8192), plain(2.5), plain(None)
    ('8,192', '2.500', '')
    """
    if isinstance(number, float):
        return f"{number:,.3f}"
    return f"{number:,}" if isinstance(number, int) else "" if number is None else str(number)
