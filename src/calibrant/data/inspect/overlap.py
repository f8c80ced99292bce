"""Finds rows that stand where they shouldn't: in what is measured too, or twice in one set.

Texts that are nearly the same are found by MinHash, then compared exactly. A text is the set of its
runs of five words, and two texts are as alike as the share of all their runs that both have
(Jaccard). To compare every pair takes too long; so each text gets a short signature in which alike
texts agree in many places, texts that agree in one of several bands of it are compared in full, and
only what that bears out is reported. The signature is made from hashes, never from a random state:
any process finds the same.
"""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from calibrant.data._base import Format, Row, Source, StoredSource
from calibrant.data._words import Numbers, number_of, numbered, runs, words
from calibrant.data.expression import Term, parse_expression
from calibrant.data.given import Given
from calibrant.data.inspect.leaks import Leak, find_leaks, serious
from calibrant.errors import DataError

MOST_ROWS: Final = 5_000
"""A measured part with more rows than this is compared only where it is named."""

_NEAR_ROWS: Final = 10_000
"""How many rows of a set are compared with each other."""

_NEAR_LETTERS: Final = 50_000
"""How much of a row is compared: a book's first pages tell it from any other."""

_QUOTED: Final = 100

SHINGLE: Final = 5
"""How many words make a run."""

SIGNATURE: Final = 128
"""How many places a signature has."""

NEIGHBOURS: Final = 20
"""How many texts before it, in a group of alike ones, a text is compared with; and always with
the first of the group.
"""

_MIXER: Final = np.uint64(number_of("mixer") | 1)

_RUNS_AT_ONCE: Final = 4_000_000
"""How many runs are compared at a time."""

Indices = Int64[np.ndarray, " _"]
Signatures = UInt64[np.ndarray, "text place"]


def row_content(row: Row, form: Format) -> str:
    """Return what a format shows of the row itself, without its own words."""
    if form.spec_name() == "chat" and row.turns:
        return "\n".join(row.said)
    fields = [getattr(row, name) for name in form.needs]
    texts = [text for text in fields if isinstance(text, str)]
    if row.labels and "question" in form.needs:
        texts += row.choices
    return "\n".join(texts)


def quoted_row(row: Row, form: Format) -> str:
    """Return the beginning of a row's content in one line."""
    text = " ".join(row_content(row, form).split())
    if len(text) > _QUOTED:
        text = text[:_QUOTED] + "…"
    return text


def measurable(against: Sequence[str]) -> list[Source]:
    """Return the sources that these texts, each `source[:format]` or a sum of such, name.

    Raises `DataError` for a control, or for one that can't be read.
    """
    measured: list[Source] = []
    for text in against:
        for term in parse_expression(text):
            if term.source.kind == "control":
                raise DataError(
                    f"{text!r} is a control: nothing is measured on it; compare with a corpus or "
                    "a question set",
                    subject=text,
                )
            # One row is read, so that a source that isn't there is an error now.
            list(islice(term.source.rows("measure"), 1))
            measured.append(term.source)
    return measured


def overlaps(
    terms: Sequence[Term], drawn: Sequence[Sequence[Row]], against: Sequence[Source] = ()
) -> Iterator[dict[str, Any]]:
    """Compare each part with what its own source measures on, and with what each source in
    `against` does; a control is never in two places.
    """
    for term, rows in zip(terms, drawn, strict=True):
        if term.source.kind == "control":
            continue
        compared = list(against)
        # Of what came as an object, and of token ids, nothing is measured.
        all_calibrates = isinstance(term.source, Given) or "ids" in term.source.fields
        if isinstance(term.source, StoredSource) and not all_calibrates:
            compared.insert(0, term.source)
        for source in dict.fromkeys(compared):
            yield _compared(term, rows, source, requested=source in against)


class _DrawnRow(NamedTuple):
    """A row, the part of the set that it is in, and its number there."""

    term: Term
    number: int
    row: Row


def repeats(terms: Sequence[Term], drawn: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Find rows of the whole set that are nearly alike: how many have one before them, and the
    pairs, each row as its part and number in it.
    """
    examined: list[_DrawnRow] = []
    for term, rows in zip(terms, drawn, strict=True):
        if term.source.kind == "control":
            continue
        # A row that is dealt twice is no near-duplicate; `overlap` and `repeated_windows` tell it.
        distinct: dict[str, _DrawnRow] = {}
        for number, row in enumerate(rows, 1):
            distinct.setdefault(row.key, _DrawnRow(term, number, row))
        examined += islice(distinct.values(), _NEAR_ROWS // len(terms))
    texts: list[str] = []
    for term, _, row in examined:
        texts.append(row_content(row, term.format)[:_NEAR_LETTERS])
    pairs: list[dict[str, Any]] = []
    repeated: set[int] = set()
    for first_place, second_place, share in near_duplicates(texts):
        first = examined[first_place]
        second = examined[second_place]
        quote = ""
        if first.term.source.shown and second.term.source.shown:
            quote = quoted_row(first.row, first.term.format)
        pairs.append(
            {
                "parts": [str(first.term), str(second.term)],
                "numbers": [first.number, second.number],
                "share": share,
                "quote": quote,
            }
        )
        repeated.add(second_place)
    return {"examined": len(examined), "rows": len(repeated), "pairs": pairs}


def _compared(term: Term, rows: Sequence[Row], source: Source, requested: bool) -> dict[str, Any]:
    """Return how much of a part's rows `source` measures too."""
    names = {"part": str(term), "against": str(source)}
    row_limit = None if requested else MOST_ROWS + 1
    measured = list(islice(source.rows("measure"), row_limit))
    if len(measured) > MOST_ROWS and not requested:
        unchecked = (
            f"it measures on more than {MOST_ROWS:,} rows; --against {source} compares them "
            "all the same"
        )
        return {**names, "unchecked": unchecked}
    numbers: dict[str, int] = {}
    for number, row in enumerate(rows, 1):
        numbers.setdefault(row.example, number)

    def order(leak: Leak) -> tuple[bool, float, int, str]:
        return not serious(leak), -leak.share, numbers[leak.row], leak.measured

    leaks = sorted(find_leaks(rows, measured), key=order)
    same = {leak.row for leak in leaks if leak.kind == "same example"}
    half_seen = {leak.row for leak in leaks if serious(leak)} - same
    slight = {leak.row for leak in leaks} - half_seen - same
    given_away = {leak.measured for leak in leaks if serious(leak)}
    shown = term.source.shown and source.shown  # what both have in common is a quotation of both
    entries: list[dict[str, Any]] = []
    for leak in leaks:
        number = numbers[leak.row]
        quote = quoted_row(rows[number - 1], term.format) if shown else ""
        entries.append(_leak_entry(leak, number, quote))
    size = len(measured)
    if isinstance(source, StoredSource):
        size = source.size()
    return {
        **names,
        "measured_rows": len(measured),
        "rows_of": size,
        "same": len(same),
        "half": len(half_seen),
        "slight": len(slight),
        "given_away": len(given_away),
        "leaks": entries,
    }


def _leak_entry(leak: Leak, number: int, quote: str) -> dict[str, Any]:
    return {
        "number": number,
        "row": leak.row,
        "measured": leak.measured,
        "kind": leak.kind,
        "share": leak.share,
        "serious": serious(leak),
        "quote": quote,
    }


def near_duplicates(texts: Sequence[str], threshold: float = 0.8) -> list[tuple[int, int, float]]:
    """Return the pairs (i, j, likeness) of texts with i < j that are at least `threshold` alike, in
    order. Likeness is exact; 1 says the same words.

    Few pairs are missed: at the threshold itself one in a hundred, above it hardly any. Of a text
    that recurs hundreds of times not all pairs are reported, which would be millions, but those
    with the first and with the 20 before it: each text that has a duplicate is in a pair.
    `DataError` for a threshold that isn't above 0 and at most 1.

    >>> river = "A river runs to the sea."
    >>> near_duplicates(["Peel an onion and cut it.", river, "peel an onion and cut it"])
    [(0, 2, 1.0)]
    """
    if not 0 < threshold <= 1:
        raise DataError(
            f"the threshold of likeness is {threshold}; it must be above 0 and at most 1",
            subject="threshold",
        )
    shingles = [_shingles(text) for text in texts]
    if len(shingles) < 2:
        return []
    first, second = _candidates(_signatures(shingles), _band_size(threshold))
    likeness = _likeness(shingles, first, second, threshold)
    alike = likeness >= threshold
    columns = (first[alike].tolist(), second[alike].tolist(), likeness[alike].tolist())
    return list(zip(*columns, strict=True))


def _shingles(text: str) -> Numbers:
    """Return the distinct runs of a text, sorted; a text under five words is one run, and one
    without words stands for itself.
    """
    numbers = numbered(words(text))
    if not len(numbers):
        return np.array([number_of(" ".join(text.split()))], dtype=np.uint64)
    return np.unique(runs(numbers, min(SHINGLE, len(numbers))))


def _signatures(shingles: Sequence[Numbers]) -> Signatures:
    """Return the least hash of each text's runs, for each of 128 ways to hash.

    The share of places in which two texts agree is about their likeness.
    """
    runs_of_all = np.concatenate(shingles)
    sizes = [len(text_runs) for text_runs in shingles]
    begins = np.cumsum([0, *sizes[:-1]])
    signatures = np.empty((len(shingles), SIGNATURE), dtype=np.uint64)
    # The least hash of a set is equally likely to be that of any of its runs, so two sets agree in
    # it with the chance that a run is in both.
    for place in range(SIGNATURE):
        factor = np.uint64(number_of(f"factor {place}") | 1)
        shift = np.uint64(number_of(f"shift {place}"))
        hashed = (runs_of_all ^ shift) * factor
        # The last bits of a product know only the last bits of what went in: the first are brought
        # down to them and stirred in again.
        hashed ^= hashed >> np.uint64(32)
        hashed *= factor
        signatures[:, place] = np.minimum.reduceat(hashed, begins)
    return signatures


def _band_size(threshold: float) -> int:
    """Return how many places of the signature make a band: as many as can be if 99 of 100 pairs
    at the threshold are to agree in some band.
    """
    # Two texts of likeness t agree in a band of r places with chance t^r, and in at least one of b
    # bands with 1 - (1 - t^r)^b.
    for size in range(SIGNATURE, 1, -1):
        band_count = SIGNATURE // size
        in_no_band = (1 - threshold**size) ** band_count
        if 1 - in_no_band >= 0.99:
            return size
    return 1


def _candidates(signatures: Signatures, size: int) -> tuple[Indices, Indices]:
    """Return the pairs of texts that agree in some band, each once and in order."""
    count = len(signatures)
    pairs = np.zeros(0, dtype=np.int64)
    for begin in range(0, SIGNATURE - size + 1, size):
        # One number for all places of a band: equal bands have equal keys.
        keys = np.zeros(count, dtype=np.uint64)
        for place in range(begin, begin + size):
            keys = (keys ^ signatures[:, place]) * _MIXER
        # Band by band, so that pairs that many bands have don't fill the memory.
        together = np.sort(np.concatenate([pairs, *_neighbours(keys, count)]))
        pairs = together[np.diff(together, prepend=-1) != 0]
    first, second = np.divmod(pairs, count)
    return first, second


def _neighbours(keys: Numbers, count: int) -> Iterator[Indices]:
    """Yield pairs `first * count + second` of texts with equal keys: each with the first of its
    group and with up to 20 before it.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    # Texts with one key stand together in `order`, the earlier first.
    is_first = np.ones(count, dtype=np.bool_)
    is_first[1:] = ordered[1:] != ordered[:-1]
    begins = np.flatnonzero(is_first)
    sizes = np.diff(begins, append=count)
    group_firsts = np.repeat(order[begins], sizes)
    with_first = group_firsts * count + order
    yield with_first[group_firsts != order]
    farthest = min(NEIGHBOURS, int(sizes.max()) - 1)
    for distance in range(1, farthest + 1):
        alike = ordered[distance:] == ordered[:-distance]
        earlier = order[:-distance][alike]
        later = order[distance:][alike]
        yield earlier * count + later


def _likeness(
    shingles: Sequence[Numbers], first: Indices, second: Indices, threshold: float
) -> Float64[np.ndarray, " pair"]:
    """Return how alike each pair is, exactly; 0 for pairs that can't reach the threshold because
    one is so much longer.
    """
    sizes = np.array([len(text_runs) for text_runs in shingles], dtype=np.int64)
    # Equal texts are settled by their hashes: they are the most frequent pairs by far.
    number_of_digest: dict[bytes, int] = {}
    text_numbers = np.zeros(len(shingles), dtype=np.int64)
    for place, text_runs in enumerate(shingles):
        digest = blake2b(text_runs.tobytes(), digest_size=16).digest()
        text_numbers[place] = number_of_digest.setdefault(digest, len(number_of_digest))
    likeness = (text_numbers[first] == text_numbers[second]).astype(np.float64)
    smaller = np.minimum(sizes[first], sizes[second])
    larger = np.maximum(sizes[first], sizes[second])
    unsettled = np.flatnonzero((likeness == 0) & (smaller / larger >= threshold))
    if not len(unsettled):
        return likeness
    # A pair's number is put before each run's; beside a hash of 64 bits there'd be no room for it.
    distinct_runs, run_numbers = np.unique(np.concatenate(shingles), return_inverse=True)
    runs_of_texts = np.split(run_numbers, np.cumsum(sizes)[:-1])
    ends = np.cumsum(smaller[unsettled] + larger[unsettled])
    limits = range(_RUNS_AT_ONCE, int(ends[-1]), _RUNS_AT_ONCE)
    for group in np.split(unsettled, np.searchsorted(ends, limits)):
        if not len(group):  # the pair before it is larger than a group
            continue
        lefts = [runs_of_texts[place] for place in first[group]]
        rights = [runs_of_texts[place] for place in second[group]]
        shared = _shared_counts(lefts, rights, len(distinct_runs))
        in_either = sizes[first[group]] + sizes[second[group]] - shared
        likeness[group] = shared / in_either
    return likeness


def _shared_counts(lefts: Sequence[Indices], rights: Sequence[Indices], run_count: int) -> Indices:
    """Return how many runs, which are numbers below `run_count`, both texts of each pair have.

    Either text has a run but once, so one that comes twice in a pair is shared.
    """
    lengths: list[int] = []
    pair_runs: list[Indices] = []
    for left, right in zip(lefts, rights, strict=True):
        lengths.append(len(left) + len(right))
        pair_runs += [left, right]
    pairs = np.repeat(np.arange(len(lengths), dtype=np.int64), lengths)
    together = np.sort(pairs * run_count + np.concatenate(pair_runs))
    later = together[1:]
    shared = later[later == together[:-1]]
    return np.bincount(shared // run_count, minlength=len(lengths))
