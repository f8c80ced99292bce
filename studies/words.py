"""The questions of studies/words.yaml, asked of its store: python -m studies.words studies/words

Prints Markdown: what the damage of words has to do with the loss, run by run; whether a set that holds a word more often keeps more of it; and what
both sets keep of two groups named beforehand. Intervals are over documents in the first table, over words in the others (a bootstrap, seeded): the
draws are few, so they speak for other words and not for other draws.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from calibrant.compare import KeptWords, kept_words, read, summaries
from calibrant.store import Store

A, B = "gsm8k:cot", "c4"
"""The sets whose difference is taken, the first less the second."""
QUANTITIES = (
    "one two three four five six seven eight nine ten first second half total number many more most less much each per times all both other same "
    "average percent cost money paid sold bought worth hundred thousand million year years day days week month hours minutes"
)
PLACES = (
    "city town village county state states country nation national world area region district north south east west northern southern eastern "
    "western river lake sea island coast mountain road street park house building church school university station located"
)
RESAMPLES = 2000


def share_by_word(store: Store) -> dict[str, Mapping[str, float]]:
    """How often each word stands in each set's calibration windows, for a million words; a word that one window has at most counts as half a time."""
    found: dict[str, Mapping[str, float]] = {}
    for summary in summaries(store, read(store, items=False)):
        profile = summary.profile or {"words": {}, "counted": 1}
        found[summary.name] = {word: 1e6 * n / profile["counted"] for word, n in profile["words"].items()} | {"": 0.5e6 / profile["counted"]}
    return found


def share(of: Mapping[str, float], word: str) -> float:
    """The share of a word in a set."""
    return of.get(word, of[""])


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The rank correlation."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def interval(statistic: object, *columns: np.ndarray) -> tuple[float, float]:
    """A 95 % interval over words."""
    chance = np.random.default_rng(0)
    picks = (chance.integers(0, len(columns[0]), len(columns[0])) for _ in range(RESAMPLES))
    values = [statistic(*(column[pick] for column in columns)) for pick in picks]  # type: ignore[operator]
    return float(np.nanquantile(values, 0.025)), float(np.nanquantile(values, 0.975))


def said(value: float, low: float | None, high: float | None) -> str:
    """A number with its interval."""
    return f"{value:+.2f}" if low is None or high is None else f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def relations(store: Store) -> Iterator[str]:
    """What damage has to do with the loss, a row a run."""
    yield "| set | draw | method | target | kept | loss raised | next token | at equal frequency | documents | at equal frequency |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    results = read(store, items=False)
    for cell in results.cells:
        for measure_id in cell.measures.values():
            measurement = results.scores.get(cell.run, {}).get(measure_id)
            if measurement is None or not cell.data:
                continue
            facts, score = measurement.score.facts, measurement.score
            numbers = [
                text
                for name in ("rank_next", "rank_documents")
                for text in (
                    said(facts[name], facts[f"{name}_low"], facts[f"{name}_high"]),
                    f"{facts[f'{name}_at_equal_frequency']:+.2f}",
                )
            ]
            head = f"| {cell.data} | {cell.seed} | {cell.method} | {cell.target} | {score.value:.3f} ± {score.stderr or 0:.3f}"
            yield f"{head} | {measurement.beside[0].value:+.3f} | {' | '.join(numbers)} |"


def differences(of: KeptWords) -> tuple[list[str], np.ndarray]:
    """The words that both sets have, and what the first kept more of each."""
    rows = dict(zip(of.sets, of.kept, strict=True))
    difference = np.array(rows[A]) - np.array(rows[B])
    known = np.isfinite(difference)
    return [word for word, there in zip(of.words, known, strict=True) if there], difference[known]


def survival(tables: Sequence[KeptWords], shares: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Whether what a set holds more often is kept better with it, and the groups named beforehand; a row a setting."""
    yield f"| method | target | words | share and what is kept: Spearman | quantities: {A} less {B} | places: {A} less {B} | all words |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for of in tables:
        if not {A, B} <= set(of.sets):
            continue
        words, difference = differences(of)
        ratio = np.array([np.log(share(shares[A], word) / share(shares[B], word)) for word in words])
        columns = [said(spearman(ratio, difference), *interval(spearman, ratio, difference))]
        for group in (QUANTITIES.split(), PLACES.split(), words):
            own = difference[[word in set(group) for word in words]]
            columns.append(f"{said3(own)}, {len(own)} words" if len(own) > 1 else "too few words")
        yield f"| {of.method} | {of.target} | {len(words)} | {' | '.join(columns)} |"


def said3(values: np.ndarray) -> str:
    """A mean with its interval, to three digits."""
    low, high = interval(np.mean, values)
    return f"{values.mean():+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    with Store(sys.argv[1], create=False) as opened:
        print("\n".join([*relations(opened), "", *survival(kept_words(opened), share_by_word(opened))]))
