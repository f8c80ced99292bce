"""Calibration sets as a store knows them: their draws, their texts and the words that set them
apart; and how similar they are to one another.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from calibrant.errors import DataError
from calibrant.lab.stats.masks import Layers
from calibrant.lab.stats.results import Results
from calibrant.results import PROFILE, Run, Store
from calibrant.results.records import read_profile
from calibrant.spec.families import Family

TERMS: Final = 12
"""Key terms of a set at most."""


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
        known = [int(d.facts["tokens"]) for d in self.draws if "tokens" in d.facts]
        return round(sum(known) / len(known)) if known else None


def summaries(store: Store, results: Results) -> list[SetSummary]:
    """Return every calibration set that a run was made with, in the order of the grid.
    `DataError` for a profile that can't be read.
    """
    by_seed: dict[str, dict[int, Draw]] = {}
    for cell in results.cells:
        record = results.records.get(cell.run)
        if cell.data and record is not None:
            by_seed.setdefault(cell.data, {}).setdefault(
                cell.seed, Draw(record.run, record.data_facts)
            )
    draws = {name: tuple(of[seed] for seed in sorted(of)) for name, of in by_seed.items()}
    profiles = {
        name: [p for draw in of if (p := _profile(store, results, draw)) is not None]
        for name, of in draws.items()
    }
    together = {name: _together(of) for name, of in profiles.items() if of}
    terms = key_terms(together)
    return [
        SetSummary(
            name=name,
            family=results.label(name).family,
            draws=of,
            profile=together.get(name),
            terms=terms.get(name, ()),
            examples=tuple(profiles[name][0]["examples"]) if profiles[name] else (),
        )
        for name, of in draws.items()
    ]


def medians(summaries: Sequence[SetSummary]) -> dict[str, float]:
    """Return the median of each number of the sets' profiles, and of each share of characters;
    nothing where no set has a profile.
    """
    known = [summary.profile for summary in summaries if summary.profile is not None]
    if not known:
        return {}
    kinds = dict.fromkeys(kind for profile in known for kind in profile["characters"])
    numbers = {
        key: float(np.median([profile[key] for profile in known]))
        for key in ("numbers", "word_length", "distinct", "even")
    }
    return {
        **numbers,
        **{
            kind: float(np.median([profile["characters"].get(kind, 0.0) for profile in known]))
            for kind in kinds
        },
    }


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
    # Sublinear: a word that stands ten times isn't ten times as telling.
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(vectorizer.fit_transform(counts))
    return list(vectorizer.get_feature_names_out()), np.asarray(weights.todense())


def key_terms(
    profiles: Mapping[str, Mapping[str, Any]], most: int = TERMS
) -> dict[str, tuple[tuple[str, float], ...]]:
    """Return for each set the words whose TF-IDF weight is furthest above its mean over the
    other sets; of a single set the heaviest words.
    """
    words, weights = weights_of_words(profiles)
    terms: dict[str, tuple[tuple[str, float], ...]] = {}
    for row, name in enumerate(profiles):
        others = np.delete(weights, row, axis=0)
        # How far a word's weight is above its mean elsewhere: what all sets say tells none of them
        # from the others.
        ahead = weights[row] - (others.mean(0) if len(others) else 0.0)
        order = sorted(range(len(words)), key=lambda i: (-ahead[i], words[i]))[:most]
        terms[name] = tuple((words[i], float(ahead[i])) for i in order if ahead[i] > 0)
    return terms


def _profile(store: Store, results: Results, draw: Draw) -> Mapping[str, Any] | None:
    """The profile of any run of the same tokens that has one: merged stores may hold both kinds."""
    same = (
        run
        for run, r in results.records.items()
        if r.run.tokens == draw.run.tokens and r.run.model == draw.run.model
    )
    content = next(
        (content for run in same if (content := store.file(run, PROFILE)) is not None), None
    )
    if content is None:
        return None
    try:
        return read_profile(content)
    except ValueError as error:
        name = draw.run.data
        raise DataError(
            f"the profile of the calibration set {name!r} can't be read ({error}); restore it from a copy",
            subject=name,
        ) from error


def _together(profiles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several draws as one: counts are added, numbers and shares averaged with the windows for
    weights.
    """
    words: Counter[str] = Counter()
    for profile in profiles:
        words.update(profile["words"])
    windows = [profile["windows"] for profile in profiles]
    averaged: dict[str, Any] = {
        key: float(np.average([p[key] for p in profiles], weights=windows))
        for key in ("numbers", "word_length", "distinct", "even")
    }
    for key in ("characters", "scripts"):
        names = {name for profile in profiles for name in profile[key]}
        shares = {
            name: float(np.average([p[key].get(name, 0.0) for p in profiles], weights=windows))
            for name in names
        }
        averaged[key] = dict(sorted(shares.items(), key=lambda share: (-share[1], share[0])))
    summed = {key: sum(p[key] for p in profiles) for key in ("windows", "counted")}
    return {
        "words": dict(words),
        **averaged,
        **summed,
        "unquoted": {k: v for p in profiles for k, v in p["unquoted"].items()},
    }


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
        row = self.by[measure][self.sets.index(name)]
        known = [
            (other, float(value))
            for other, value in zip(self.sets, row, strict=True)
            if other != name and np.isfinite(value)
        ]
        return sorted(known, key=lambda pair: (-pair[1], self.sets.index(pair[0])))[:most]


def similarity(summaries: Sequence[SetSummary], groups: Sequence[Layers]) -> Similarity:
    """Return all three tables of a study's sets."""
    sets = tuple(summary.name for summary in summaries)
    words = np.full((len(sets), len(sets)), np.nan)
    if known := {
        i: s.profile
        for i, s in enumerate(summaries)
        if s.profile is not None and s.profile["words"]
    }:
        _, weights = weights_of_words({str(i): profile for i, profile in known.items()})
        words[np.ix_(list(known), list(known))] = weights @ weights.T
    by = {
        "words": words,
        "statistics": _over_groups(
            sets, groups, [np.exp(-np.sqrt((of.statistics**2).mean(-1))) for of in groups]
        ),
        "masks": _over_groups(sets, groups, [of.masks.mean(-1) for of in groups]),
    }
    for table in by.values():
        np.fill_diagonal(table, 1.0)
    return Similarity(sets, by)


def _over_groups(
    sets: Sequence[str], groups: Sequence[Layers], tables: Sequence[Float[np.ndarray, "n n"]]
) -> Float[np.ndarray, "set set"]:
    """The mean of the groups' tables, over those that have a number."""
    total, count = np.zeros((len(sets), len(sets))), np.zeros((len(sets), len(sets)))
    for of, table in zip(groups, tables, strict=True):
        at = np.ix_([sets.index(name) for name in of.sets], [sets.index(name) for name in of.sets])
        known = np.isfinite(table)
        total[at] += np.where(known, table, 0.0)
        count[at] += known
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
