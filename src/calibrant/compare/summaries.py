"""Calibration sets as the store knows them: what was drawn, what its windows say, and the words that tell it from the others."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from calibrant.compare.results import Results
from calibrant.errors import DataError
from calibrant.families import Family
from calibrant.store import PROFILE, Run, Store
from calibrant.store.reading import read_profile

TERMS: Final = 12
"""Key terms of a set at most."""


@dataclass(frozen=True)
class Draw:
    """One draw of a set: the run that it first went into, and the facts of its tokens as that record has them."""

    run: Run
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class SetSummary:
    """A calibration set with its draws in order.

    `profile` is what the windows of all draws say together, as `calibrant.inspection.profile` tells it: counts are added, shares weighed by windows.
    None in a store that was made before profiles were kept. `terms` are the words that stand out against the other sets, with their weights.
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


def summaries(store: Store, reading: Results) -> list[SetSummary]:
    """Every calibration set that a run was made with, in the order of the grid. `DataError` for a profile that can't be read."""
    drawn: dict[str, dict[int, Draw]] = {}
    for cell in reading.cells:
        record = reading.records.get(cell.run)
        if cell.data and record is not None:
            drawn.setdefault(cell.data, {}).setdefault(cell.seed, Draw(record.run, record.data_facts))
    found = {name: tuple(draws[seed] for seed in sorted(draws)) for name, draws in drawn.items()}
    profiles = {name: [p for draw in draws if (p := _profile(store, reading, draw)) is not None] for name, draws in found.items()}
    together = {name: _together(each) for name, each in profiles.items() if each}
    terms = key_terms(together)
    return [
        SetSummary(name, reading.label(name).family, draws, together.get(name), terms.get(name, ()), tuple(_examples(profiles[name])))
        for name, draws in found.items()
    ]


def medians(summaries: Sequence[SetSummary]) -> dict[str, float]:
    """What is usual among the sets that have a profile: the median of each of its numbers and of each share of characters."""
    known = [summary.profile for summary in summaries if summary.profile is not None]
    if not known:
        return {}
    kinds = dict.fromkeys(kind for profile in known for kind in profile["characters"])
    numbers = {key: float(np.median([profile[key] for profile in known])) for key in ("numbers", "word_length", "distinct", "even")}
    return {**numbers, **{kind: float(np.median([profile["characters"].get(kind, 0.0) for profile in known])) for kind in kinds}}


def weights_of_words(profiles: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], Float[np.ndarray, "set word"]]:
    """The words of all sets and their TF-IDF weights, a row a set of length one (or zero, for a set without words).

    Term frequencies count as 1 + ln tf and sets are the documents, smoothed, as scikit-learn does it.
    """
    from sklearn.feature_extraction import DictVectorizer
    from sklearn.feature_extraction.text import TfidfTransformer

    counts = [dict(profile["words"]) for profile in profiles.values()]
    if not any(counts):
        return [], np.zeros((len(counts), 0))
    vectorizer = DictVectorizer(dtype=np.float64)
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(vectorizer.fit_transform(counts))
    return list(vectorizer.get_feature_names_out()), np.asarray(weights.todense())


def key_terms(profiles: Mapping[str, Mapping[str, Any]], most: int = TERMS) -> dict[str, tuple[tuple[str, float], ...]]:
    """For each set the words whose TF-IDF weight is furthest above its mean over the other sets; of a single set the heaviest words."""
    words, weights = weights_of_words(profiles)
    found: dict[str, tuple[tuple[str, float], ...]] = {}
    for row, name in enumerate(profiles):
        others = np.delete(weights, row, axis=0)
        ahead = weights[row] - (others.mean(0) if len(others) else 0.0)
        order = sorted(range(len(words)), key=lambda i: (-ahead[i], words[i]))[:most]
        found[name] = tuple((words[i], float(ahead[i])) for i in order if ahead[i] > 0)
    return found


def _profile(store: Store, reading: Results, draw: Draw) -> Mapping[str, Any] | None:
    """Of any run of the same tokens that has one: merged stores may hold both kinds."""
    same = (run for run, r in reading.records.items() if r.run.tokens == draw.run.tokens and r.run.model == draw.run.model)
    kept = next((content for run in same if (content := store.file(run, PROFILE)) is not None), None)
    return None if kept is None else _read(kept, draw.run.data)


def _read(content: bytes, name: str) -> Mapping[str, Any]:
    try:
        return read_profile(content)
    except ValueError as error:
        raise DataError(f"what is kept of the calibration set {name!r} can't be read ({error}); restore it from a copy", subject=name) from error


def _together(profiles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Several draws as one."""
    words: Counter[str] = Counter()
    for profile in profiles:
        words.update(profile["words"])
    windows = [profile["windows"] for profile in profiles]
    averaged = {key: float(np.average([p[key] for p in profiles], weights=windows)) for key in ("numbers", "word_length", "distinct", "even")}
    shares = {key: _averaged([p[key] for p in profiles], windows) for key in ("characters", "scripts")}
    summed = {key: sum(p[key] for p in profiles) for key in ("windows", "counted")}
    return {"words": dict(words), **averaged, **shares, **summed, "unquoted": {k: v for p in profiles for k, v in p["unquoted"].items()}}


def _averaged(shares: Sequence[Mapping[str, float]], windows: Sequence[int]) -> dict[str, float]:
    names = {name for share in shares for name in share}
    found = {name: float(np.average([share.get(name, 0.0) for share in shares], weights=windows)) for name in names}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _examples(profiles: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, str]]:
    """Those of the first draw."""
    for profile in profiles[:1]:
        yield from profile["examples"]
