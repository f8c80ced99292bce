"""Calibration sets as a store knows them: their draws, texts and words; what they do to a model's
matrices, block by block; and how similar they are to one another.

What they do to matrices comes from what records hold of every one: 256 bits of its mask, the sizes
of 32 of its input features, the error of its outputs. Features and bits are chosen by the matrix's
name, so those of two runs of one model are of the same weights. What the masks of two sets share
says little by itself: two draws of one set don't share everything either, and that is what to
compare it with (`overlaps`).
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from operator import itemgetter
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from calibrant.errors import DataError
from calibrant.lab.stats.results import Results, Setting, grouped
from calibrant.results import PROFILE, Cell, Record, Run, Store
from calibrant.results.records import MEASURED, read_profile
from calibrant.spec.families import Family

TERMS: Final = 12
"""Key terms of a set at most."""

NUMBERS: Final = ("numbers", "word_length", "distinct", "even")
"""What a profile has as one number each."""


@dataclass(frozen=True)
class Draw:
    """One draw of a set: the run that it first went into, and the facts of its tokens as that
    record has them.
    """

    run: Run
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class SetSummary:
    """A calibration set with its draws in order.

    `profile` is what the windows of all draws say together, as `calibrant.data.inspect.profile`
    counts it: counts are added, shares weighed by windows. None in a store that was made before
    there were profiles. `terms` are the words that stand out against the other sets, with their
    weights.
    """

    name: str
    family: Family
    draws: tuple[Draw, ...]
    profile: Mapping[str, Any] | None = None
    terms: tuple[tuple[str, float], ...] = ()
    examples: tuple[Mapping[str, str], ...] = ()

    @property
    def tokens(self) -> int | None:
        """Real tokens of a draw, on average; None where no record says it."""
        known = [int(draw.facts["tokens"]) for draw in self.draws if "tokens" in draw.facts]
        if not known:
            return None
        return round(sum(known) / len(known))


def summaries(store: Store, results: Results) -> list[SetSummary]:
    """Return every calibration set that a run was made with, in the order of the grid.
    `DataError` for a profile that can't be read.
    """
    every: list[SetSummary] = []
    merged: dict[str, Mapping[str, Any]] = {}
    for name, draws in _draws(results).items():
        profiles: list[Mapping[str, Any]] = []
        for draw in draws:
            profile = _profile(store, results, draw)
            if profile is not None:
                profiles.append(profile)
        summary = SetSummary(name, results.label(name).family, tuple(draws))
        if profiles:
            merged[name] = _merged(profiles)
            examples = tuple(profiles[0]["examples"])
            summary = replace(summary, profile=merged[name], examples=examples)
        every.append(summary)
    # What stands out in a set is known when all have been read.
    terms = key_terms(merged)
    return [replace(summary, terms=terms.get(summary.name, ())) for summary in every]


def _draws(results: Results) -> dict[str, list[Draw]]:
    """Return the draws of every calibration set, by their numbers."""
    found: dict[str, dict[int, Draw]] = {}
    for cell in results.cells:
        record = results.records.get(cell.run)
        if cell.data and cell.method != MEASURED and record is not None:
            draws_by_seed = found.setdefault(cell.data, {})
            draws_by_seed.setdefault(cell.seed, Draw(record.run, record.data_facts))
    in_order: dict[str, list[Draw]] = {}
    for name, draws_by_seed in found.items():
        in_order[name] = [draws_by_seed[seed] for seed in sorted(draws_by_seed)]
    return in_order


def medians(summaries: Sequence[SetSummary]) -> dict[str, float]:
    """Return the median of each number of the sets' profiles, and of each share of characters;
    nothing where no set has a profile.
    """
    known = [summary.profile for summary in summaries if summary.profile is not None]
    if not known:
        return {}
    found: dict[str, float] = {}
    for key in NUMBERS:
        found[key] = float(np.median([profile[key] for profile in known]))
    for kind in _kinds(known, "characters"):
        shares = [profile["characters"].get(kind, 0.0) for profile in known]
        found[kind] = float(np.median(shares))
    return found


def _kinds(profiles: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    """Return every kind, as of characters, of which some profile has a share."""
    kinds: dict[str, None] = {}
    for profile in profiles:
        kinds |= dict.fromkeys(profile[key])
    return list(kinds)


def weights_of_words(
    profiles: Mapping[str, Mapping[str, Any]],
) -> tuple[list[str], Float[np.ndarray, "set word"]]:
    """Return the words of all sets and their TF-IDF weights, a row a set of length one (or zero,
    for a set without words).

    Term frequencies count as 1 + ln tf and sets are the documents, smoothed, as scikit-learn does
    it.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = [dict(profile["words"]) for profile in profiles.values()]
    if not any(counts):
        return [], np.zeros((len(counts), 0))
    vectorizer = DictVectorizer(dtype=np.float64)
    frequencies = vectorizer.fit_transform(counts)
    # Sublinear: a word that stands ten times isn't ten times as telling.
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(frequencies)
    words = list(vectorizer.get_feature_names_out())
    return words, np.asarray(weights.todense())


def key_terms(
    profiles: Mapping[str, Mapping[str, Any]],
) -> dict[str, tuple[tuple[str, float], ...]]:
    """Return for each set the words whose TF-IDF weight is furthest above its mean over the
    other sets; of a single set the telling words.
    """
    words, weights = weights_of_words(profiles)
    terms: dict[str, tuple[tuple[str, float], ...]] = {}
    for row, name in enumerate(profiles):
        # How far a word's weight is above its mean elsewhere: what all sets say tells none of them
        # from the others.
        ahead = weights[row]
        if len(profiles) > 1:
            ahead = ahead - np.delete(weights, row, axis=0).mean(0)
        by_weight = _largest_first(zip(words, ahead.tolist(), strict=True))
        telling: list[tuple[str, float]] = []
        for word, lead in by_weight[:TERMS]:
            if lead > 0:
                telling.append((word, lead))
        terms[name] = tuple(telling)
    return terms


def _largest_first(numbers: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return named numbers, the largest first, and equal ones in the order of their names."""

    def order(named: tuple[str, float]) -> tuple[float, str]:
        name, number = named
        return -number, name

    return sorted(numbers, key=order)


def _profile(store: Store, results: Results, draw: Draw) -> Mapping[str, Any] | None:
    """Return the profile of any run of the same tokens that has one: merged stores may hold runs
    with and without.
    """
    content: bytes | None = None
    for run, record in results.records.items():
        same_tokens = record.run.tokens == draw.run.tokens
        if same_tokens and record.run.model == draw.run.model:
            content = store.file(run, PROFILE)
            if content is not None:
                break
    if content is None:
        return None
    try:
        return read_profile(content)
    except ValueError as error:
        name = draw.run.data
        raise DataError(
            f"the profile of the calibration set {name!r} can't be read ({error}); "
            "restore it from a copy",
            subject=name,
        ) from error


def _merged(profiles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return several draws as one: counts are added, numbers and shares averaged with the windows
    for weights.
    """
    windows = [profile["windows"] for profile in profiles]
    words: Counter[str] = Counter()
    unquoted: dict[str, Any] = {}
    for profile in profiles:
        words.update(profile["words"])
        unquoted |= profile["unquoted"]
    merged: dict[str, Any] = {"words": dict(words)}
    for key in NUMBERS:
        by_draw = [profile[key] for profile in profiles]
        merged[key] = float(np.average(by_draw, weights=windows))
    for key in ("characters", "scripts"):
        shares: dict[str, float] = {}
        for kind in _kinds(profiles, key):
            by_draw = [profile[key].get(kind, 0.0) for profile in profiles]
            shares[kind] = float(np.average(by_draw, weights=windows))
        merged[key] = dict(_largest_first(shares.items()))
    for key in ("windows", "counted"):
        merged[key] = sum(profile[key] for profile in profiles)
    merged["unquoted"] = unquoted
    return merged


@dataclass(frozen=True)
class Layers:
    """One group of runs, block by block. Several draws of a set are averaged; of two sets, draws of
    the same number are compared.

    `masks` is the share of the sampled mask bits that agree, 1 for the same masks. `statistics` is
    the standard deviation, over sampled input features of the block's matrices, of the difference
    of ln √(mean x²): 0 for the same activations, and for such as differ by one factor a matrix,
    which no method that compares within a matrix sees. `error` is the mean relative error of the
    outputs of the block's matrices. NaN is unknown. `families` say what kind of data each set is.
    """

    model: str
    method: str
    target: str
    propagate: str
    sets: tuple[str, ...]
    blocks: tuple[str, ...]
    masks: Float[np.ndarray, "set set block"]
    statistics: Float[np.ndarray, "set set block"]
    error: Float[np.ndarray, "set block"]
    families: Mapping[str, Family] = field(default_factory=dict[str, Family])

    @cached_property
    def error_range(self) -> Float[np.ndarray, "3 block"]:
        """The smallest, the middle and the largest error of the sets in each block; NaN where
        none is known.
        """
        found = np.full((3, len(self.blocks)), np.nan)
        for column, errors in enumerate(self.error.T):
            known = errors[np.isfinite(errors)]
            if len(known):
                found[:, column] = known.min(), np.median(known), known.max()
        return found

    def among(self, sets: Sequence[str]) -> "Layers":
        """Return the same of some sets only, in this order."""
        places = [self.sets.index(name) for name in sets]
        grid = np.ix_(places, places)
        return replace(
            self,
            sets=tuple(sets),
            masks=self.masks[grid],
            statistics=self.statistics[grid],
            error=self.error[places],
        )


@dataclass(frozen=True)
class _Matrices:
    """What a record holds of its matrices, by block.

    `signs` of mask bits are 1 for a kept weight and -1 for a removed one, and `sizes` of input
    features are less their matrix's mean: both then by the matrix's name. `errors` are the mean of
    the block's matrices.
    """

    signs: Mapping[str, Mapping[str, Float[np.ndarray, " bit"]]]
    sizes: Mapping[str, Mapping[str, Float[np.ndarray, " feature"]]]
    errors: Mapping[str, float]
    blocks: tuple[str, ...]

    @staticmethod
    def of(weights: Sequence[Mapping[str, Any]]) -> "_Matrices":
        by_block: dict[str, list[Mapping[str, Any]]] = {}
        for weight in weights:
            block = block_of(str(weight["name"]))
            by_block.setdefault(block, []).append(weight)
        signs: dict[str, dict[str, np.ndarray]] = {}
        sizes: dict[str, dict[str, np.ndarray]] = {}
        errors: dict[str, float] = {}
        for block, matrices in by_block.items():
            names = [matrix["name"] for matrix in matrices]
            # A block at a time: a study has a hundred thousand matrices.
            if all("bits" in matrix for matrix in matrices):
                bits = mask_bits(matrices).reshape(len(matrices), -1)
                bit_signs = bits * 2 - 1
                signs[block] = dict(zip(names, bit_signs, strict=True))
            if all("inputs" in matrix for matrix in matrices):
                about_means = _about_means([matrix["inputs"] for matrix in matrices])
                sizes[block] = dict(zip(names, about_means, strict=True))
            known = [matrix["error"] for matrix in matrices if "error" in matrix]
            if known:
                errors[block] = float(np.mean(known))
        return _Matrices(signs, sizes, errors, tuple(by_block))


_NO_MATRICES: Final = _Matrices({}, {}, {}, ())

_Runs = Mapping[str, Mapping[int, _Matrices]]
"""The matrices of a group's runs, by set and by the number of the draw."""


def _about_means(inputs: Sequence[str]) -> Float[np.ndarray, "matrix feature"]:
    """Return the stored sizes of matrices' input features, in double precision, less the mean of
    their matrix.
    """
    digits = "".join(inputs)
    stored = np.frombuffer(bytes.fromhex(digits), "<f2")
    features = stored.astype(np.float64).reshape(len(inputs), -1)
    return features - features.mean(1, keepdims=True)


_BLOCK: Final = re.compile(r"(.*?\.\d+)(?:\.|$)")


def block_of(matrix: str) -> str:
    """Return the block of a matrix's name; the name itself where no part of it is a number.

    >>> block_of("model.layers.3.mlp.up_proj")
    'model.layers.3'
    """
    match = _BLOCK.match(matrix)
    return match[1] if match else matrix


def layers(store: Store, results: Results) -> Iterator[Layers]:
    """Yield every group of the grid, in the order of its rankings, that has a record with
    matrices. `DataError` for a record that can't be read.
    """
    for setting, cells in grouped(results.cells).items():
        runs: dict[str, dict[int, _Matrices]] = {}
        for cell, record in _records(store, results, cells):
            if record.weights:
                draws = runs.setdefault(cell.data, {})
                draws[cell.seed] = _Matrices.of(record.weights)
        if runs:
            families: dict[str, Family] = {}
            for data in runs:
                families[data] = results.label(data).family
            yield _layers(setting, runs, families)


def _layers(setting: Setting, runs: _Runs, families: Mapping[str, Family]) -> Layers:
    """Return the runs of one group, block by block."""
    blocks: dict[str, None] = {}
    for draws in runs.values():
        for draw in draws.values():
            blocks |= dict.fromkeys(draw.blocks)
    masks = np.full((len(runs), len(runs), len(blocks)), np.nan)
    statistics = np.full_like(masks, np.nan)
    error = np.full((len(runs), len(blocks)), np.nan)
    for column, block in enumerate(blocks):
        masks[:, :, column] = _mean(_agreements(runs, block))
        statistics[:, :, column] = _mean(_distances(runs, block))
        for row, draws in enumerate(runs.values()):
            errors = [np.array(draw.errors.get(block, np.nan)) for draw in draws.values()]
            error[row, column] = _mean(errors)
    return Layers(
        **setting._asdict(),
        sets=tuple(runs),
        blocks=tuple(blocks),
        masks=masks,
        statistics=statistics,
        error=error,
        families=families,
    )


def _records(
    store: Store, results: Results, cells: Sequence[Cell]
) -> Iterator[tuple[Cell, Record]]:
    """Yield the cells of calibration sets that have a record, with all that it holds of its
    matrices.
    """
    for cell in cells:
        if cell.data and cell.run in results.records:
            record = store.record(cell.run)
            if record is not None:
                yield cell, record


def _agreements(runs: _Runs, block: str) -> list[Float[np.ndarray, "set set"]]:
    """Return for each draw which share of the block's mask bits every two sets have in common."""
    found: list[Float[np.ndarray, "set set"]] = []
    for draws in _side_by_side(runs):
        signs = _table([draw.signs.get(block, {}) for draw in draws])
        mean_products = signs @ signs.T / signs.shape[1]
        # From −1 to 1, as a share.
        found.append((mean_products + 1) / 2)
    return found


def _distances(runs: _Runs, block: str) -> list[Float[np.ndarray, "set set"]]:
    """Return for each draw how far the block's input features of every two sets lie apart."""
    found: list[Float[np.ndarray, "set set"]] = []
    for draws in _side_by_side(runs):
        sizes = _table([draw.sizes.get(block, {}) for draw in draws])
        rows: list[Float[np.ndarray, " set"]] = []
        # A row at a time: the difference of large squares would leave something between a set and
        # itself.
        for row in sizes:
            mean_squares = ((sizes - row) ** 2).mean(1)
            rows.append(np.sqrt(mean_squares))
        found.append(np.stack(rows))
    return found


def _side_by_side(runs: _Runs) -> Iterator[list[_Matrices]]:
    """Yield the draws of the same number of all sets; no matrices for a set that lacks it."""
    seeds: set[int] = set()
    for draws in runs.values():
        seeds.update(draws)
    for seed in sorted(seeds):
        yield [draws.get(seed, _NO_MATRICES) for draws in runs.values()]


def _table(sets: Sequence[Mapping[str, np.ndarray]]) -> Float[np.ndarray, "set n"]:
    """Return a row for each set, of the matrices that all of them have.

    An expert that no token of one set reached is compared with nothing. A row that is missing, or
    of another model's size, is NaN; where all are missing, so is everything.
    """
    present = [matrices for matrices in sets if matrices]
    shared: list[str] = []
    if present:
        in_all = set(present[0]).intersection(*present)
        shared = [name for name in present[0] if name in in_all]
    rows: dict[int, np.ndarray] = {}
    for place, matrices in enumerate(sets):
        if matrices and shared:
            rows[place] = np.concatenate([matrices[name] for name in shared])
    width = max(map(len, rows.values()), default=1)
    # What is not a number spreads through products and sums, so a set without a row has no figure
    # with any other.
    blank = np.full(width, np.nan)
    table: list[np.ndarray] = []
    for place in range(len(sets)):
        row = rows.get(place, blank)
        if len(row) != width:
            row = blank
        table.append(row)
    # Stacked, and not filled in, so that rows without a hole stay in their own precision.
    return np.stack(table)


def _mean(tables: Sequence[Float[np.ndarray, "..."]]) -> Float[np.ndarray, "..."]:
    """Return the mean over those that are numbers; where none is, not a number."""
    stacked = np.stack(tables)
    known = np.isfinite(stacked)
    count = known.sum(0)
    total = np.where(known, stacked, 0.0).sum(0)
    mean = total / np.maximum(count, 1)
    return np.where(count > 0, mean, np.nan)


@dataclass(frozen=True)
class MaskOverlap:
    """One group of runs. `jaccard` is the share of the weights that both masks keep among those
    that either keeps, of 256 sampled bits a matrix.

    It is averaged over all pairs of draws of the two sets, never a draw with itself: the diagonal
    is between draws of one set, and NaN for a set that was drawn once. `draws` says how many a set
    has. Two masks that keep a share k each at random would have k / (2 − k).
    """

    model: str
    method: str
    target: str
    propagate: str
    sets: tuple[str, ...]
    draws: tuple[int, ...]
    jaccard: Float[np.ndarray, "set set"]

    @property
    def within(self) -> Float[np.ndarray, " set"]:
        """Between draws of each set."""
        return self.jaccard.diagonal()

    @property
    def across(self) -> Float[np.ndarray, " set"]:
        """Between each set and the others, on average; NaN for a set alone."""
        others = self.jaccard.copy()
        np.fill_diagonal(others, np.nan)
        return _mean(list(others.T))

    def to_json(self) -> dict[str, Any]:
        """Return plain data; None where a number isn't known."""
        table: list[list[float | None]] = self.jaccard.tolist()
        for row, column in np.argwhere(np.isnan(self.jaccard)).tolist():
            table[row][column] = None
        return {
            "model": self.model,
            "method": self.method,
            "target": self.target,
            "propagate": self.propagate,
            "draws": dict(zip(self.sets, self.draws, strict=True)),
            "jaccard": table,
        }


def overlaps(store: Store, results: Results) -> Iterator[MaskOverlap]:
    """Yield every group of the grid whose records hold mask bits, in the order of its rankings.
    `DataError` for a record that can't be read.
    """
    for setting, cells in grouped(results.cells).items():
        # By run: one that answers several cells of a set is one draw of it.
        masks: dict[str, dict[str, Float[np.ndarray, " bit"]]] = {}
        for cell, record in _records(store, results, cells):
            if record.weights and all("bits" in weight for weight in record.weights):
                # By name: runs on other machines may list matrices in another order.
                weights = sorted(record.weights, key=lambda weight: str(weight["name"]))
                bits_by_run = masks.setdefault(cell.data, {})
                bits_by_run[cell.run] = mask_bits(weights)
        if masks:
            yield MaskOverlap(
                **setting._asdict(),
                sets=tuple(masks),
                draws=tuple(map(len, masks.values())),
                jaccard=_jaccard(masks),
            )


def mask_bits(weights: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, " bit"]:
    """Return the sampled mask bits of a record's matrices, one after another."""
    digits = "".join(str(weight["bits"]) for weight in weights)
    packed = np.frombuffer(bytes.fromhex(digits), np.uint8)
    return np.unpackbits(packed).astype(np.float32)


def _jaccard(
    masks: Mapping[str, Mapping[str, Float[np.ndarray, " bit"]]],
) -> Float[np.ndarray, "set set"]:
    """Return the mean overlap of the draws of every two sets. Masks of another model's size can't
    be compared: only those of the size that most have are.
    """
    size = _commonest_size(masks)
    rows: list[Float[np.ndarray, " bit"]] = []
    places: list[range] = []
    for draws in masks.values():
        begin = len(rows)
        rows += [bits for bits in draws.values() if len(bits) == size]
        places.append(range(begin, len(rows)))
    share = _shares_in_common(np.stack(rows))
    np.fill_diagonal(share, np.nan)  # a draw with itself
    jaccard = np.full((len(masks), len(masks)), np.nan)
    for row, first in enumerate(places):
        for column, second in enumerate(places):
            known = share[np.ix_(first, second)]
            if np.isfinite(known).any():
                jaccard[row, column] = float(np.nanmean(known))
    return jaccard


def _commonest_size(masks: Mapping[str, Mapping[str, Float[np.ndarray, " bit"]]]) -> int:
    """Return the size that most masks have; of sizes that equally many have, the largest."""
    sizes: Counter[int] = Counter()
    for draws in masks.values():
        sizes.update(len(bits) for bits in draws.values())
    most = max(sizes.values())
    return max(size for size, count in sizes.items() if count == most)


def _shares_in_common(masks: Float[np.ndarray, "draw bit"]) -> Float[np.ndarray, "draw draw"]:
    """Return which share of the weights that either of two masks keeps both keep."""
    # Of bits, the product counts where both are 1; the sum of both counts less that is where either
    # is.
    both = (masks @ masks.T).astype(np.float64)
    kept = masks.sum(1, dtype=np.float64)
    either = kept[:, None] + kept - both
    return np.where(either > 0, both / np.maximum(either, 1.0), 1.0)


MEASURES: Final = {
    "words": "their words",
    "statistics": "the statistics that the model gets",
    "masks": "the masks that they lead to",
}


@dataclass(frozen=True)
class Similarity:
    """Tables of similarity by measure, `sets` × `sets`: 1 on the diagonal, larger is more alike,
    NaN where it isn't known.

    `words` is the cosine of two sets' TF-IDF weights. `statistics` is e to the minus distance of
    the activations (see `Layers.statistics`), over all blocks, and `masks` the share of sampled
    mask bits that agree; both are averaged over the groups of runs that have the two sets.
    """

    sets: tuple[str, ...]
    by: Mapping[str, Float[np.ndarray, "set set"]]

    def nearest(self, name: str, measure: str, most: int = 5) -> list[tuple[str, float]]:
        """Return the sets that are most like `name` by one measure, the most alike first."""
        table = self.by[measure]
        row = table[self.sets.index(name)]
        known: list[tuple[str, float]] = []
        for other, share in zip(self.sets, row.tolist(), strict=True):
            if other != name and math.isfinite(share):
                known.append((other, share))
        # Sorting keeps the order of the sets among those that are as much alike.
        known.sort(key=itemgetter(1), reverse=True)
        return known[:most]


def similarity(summaries: Sequence[SetSummary], groups: Sequence[Layers]) -> Similarity:
    """Return all three tables of a study's sets."""
    sets = tuple(summary.name for summary in summaries)
    statistics: list[Float[np.ndarray, "n n"]] = []
    for group in groups:
        distances = np.sqrt((group.statistics**2).mean(-1))
        statistics.append(np.exp(-distances))
    masks = [group.masks.mean(-1) for group in groups]
    tables = {
        "words": _words_in_common(summaries),
        "statistics": _over_groups(sets, groups, statistics),
        "masks": _over_groups(sets, groups, masks),
    }
    for table in tables.values():
        np.fill_diagonal(table, 1.0)
    return Similarity(sets, tables)


def _words_in_common(summaries: Sequence[SetSummary]) -> Float[np.ndarray, "set set"]:
    """Return the cosine of every two sets' weights of words; NaN where a set has none."""
    places: list[int] = []
    known: dict[str, Mapping[str, Any]] = {}
    for place, summary in enumerate(summaries):
        if summary.profile is not None and summary.profile["words"]:
            places.append(place)
            known[summary.name] = summary.profile
    cosines = np.full((len(summaries), len(summaries)), np.nan)
    if known:
        _, weights = weights_of_words(known)
        cosines[np.ix_(places, places)] = weights @ weights.T
    return cosines


def _over_groups(
    sets: Sequence[str], groups: Sequence[Layers], tables: Sequence[Float[np.ndarray, "n n"]]
) -> Float[np.ndarray, "set set"]:
    """Return the mean of the groups' tables, over those that have a number."""
    if not groups:
        return np.full((len(sets), len(sets)), np.nan)
    every: list[Float[np.ndarray, "set set"]] = []
    for group, table in zip(groups, tables, strict=True):
        places = [sets.index(name) for name in group.sets]
        whole = np.full((len(sets), len(sets)), np.nan)
        whole[np.ix_(places, places)] = table
        every.append(whole)
    return _mean(every)
