"""The tables of docs/findings/words.md, made of the store beside this file: python -m
studies.words.tables [--write]

What the damage of words has to do with the loss; whether a set that holds a word more often keeps
more of it; and what both sets keep of two groups named beforehand. Ranges are over draws. Intervals
are over documents or words (a bootstrap, seeded), and say so.
"""

import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.stats import rankdata
from studies.pages import write_or_print

from calibrant.lab.stats import KeptWords, Results, kept_words_in, read, summaries
from calibrant.results import Store
from calibrant.results.outcomes import Measurement

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/words.md"
A, B = "gsm8k:cot", "c4"
"""The sets whose difference is taken, the first less the second."""
SETS: Final = {A: "arithmetic", B: "C4"}
QUANTITIES: Final = (
    "one two three four five six seven eight nine ten first second half total number many more "
    "most less much each per times all both other same "
    "average percent cost money paid sold bought worth hundred thousand million year years day "
    "days week month hours minutes"
)
PLACES: Final = (
    "city town village county state states country nation national world area region district "
    "north south east west northern southern eastern "
    "western river lake sea island coast mountain road street park house building church school "
    "university station located"
)
GROUPS: Final[Mapping[str, frozenset[str]]] = {
    "quantities": frozenset(QUANTITIES.split()),
    "places": frozenset(PLACES.split()),
}
"""Two groups of words, named before any run: arithmetic is rich in the first, the web in the
second.
"""
RESAMPLES: Final = 2000
RELATIONS: Final = ("rank_next", "rank_documents")
Shares = Mapping[str, Mapping[str, float]]
"""By calibration set, how often each word stands in its windows, for a million words; at `""`
that of a word which isn't listed.
"""


def shares_in(store: Store, results: Results) -> Shares:
    """How often each word stands in each set's calibration windows; a word that one window has
    at most counts as half a time.
    """
    found: dict[str, dict[str, float]] = {}
    for summary in summaries(store, results):
        profile = summary.profile or {"words": {}, "counted": 1}
        counted = profile["counted"]
        shares = {word: 1e6 * count / counted for word, count in profile["words"].items()}
        shares[""] = 0.5e6 / counted
        found[summary.name] = shares
    return found


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The rank correlation."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def interval(statistic: Callable[..., Any], *columns: np.ndarray) -> tuple[float, float]:
    """A 95 % interval over words."""
    chance = np.random.default_rng(0)
    words = len(columns[0])
    values: list[float] = []
    for _ in range(RESAMPLES):
        pick = chance.integers(0, words, words)
        values.append(float(statistic(*(column[pick] for column in columns))))
    return float(np.nanquantile(values, 0.025)), float(np.nanquantile(values, 0.975))


def ranged(values: Sequence[float], form: str = "{:+.2f}") -> str:
    """The mean of the draws, and the least and the most of them."""
    mean, least, most = map(form.format, (statistics.mean(values), min(values), max(values)))
    return f"{mean} ({least} to {most})"


def relations(results: Results) -> Iterator[str]:
    """Rows: what is kept, and how a word's damage goes with the loss; means of the draws, with
    their range, and how many draws are beyond chance.
    """
    heads = (
        "calibrated on | method | removed | kept | loss raised | next token | ± | beyond chance | "
        "at equal frequency | documents | ± | beyond chance"
    )
    yield f"| {heads} |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    by_label: dict[tuple[str, str, str], list[Measurement]] = {}
    for cell in results.cells:
        if cell.data:
            of_label = by_label.setdefault((cell.data, cell.method, cell.target), [])
            of_label.extend(results.scores.get(cell.run, {}).values())
    for (data, method, target), drawn in by_label.items():
        cells = [
            ranged([one.score.value for one in drawn], "{:.3f}"),
            ranged([one.beside[0].value for one in drawn]),
        ]
        facts = [one.score.facts for one in drawn]
        for name in RELATIONS:
            halves: list[float] = []
            beyond_chance = 0
            for fact in facts:
                low, high = fact[f"{name}_low"], fact[f"{name}_high"]
                halves.append((high - low) / 2)
                if low > 0 or high < 0:
                    beyond_chance += 1
            cells += [
                ranged([fact[name] for fact in facts]),
                f"{statistics.mean(halves):.2f}",
                f"{beyond_chance} of {len(facts)}",
            ]
            if name == "rank_next":
                cells.append(ranged([fact[f"{name}_at_equal_frequency"] for fact in facts]))
        yield f"| {SETS[data]} | `{method}` | {target} | {' | '.join(cells)} |"


def differences(of: KeptWords) -> tuple[list[str], np.ndarray]:
    """The words that both sets have, and what the first kept more of each."""
    rows = dict(zip(of.sets, of.kept, strict=True))
    difference = np.array(rows[A]) - np.array(rows[B])
    known = np.isfinite(difference)
    words = [word for word, is_known in zip(of.words, known, strict=True) if is_known]
    return words, difference[known]


def by_draw(results: Results, of: KeptWords) -> list[KeptWords]:
    """The same table of each draw by itself."""
    found: list[KeptWords] = []
    for seed in dict.fromkeys(cell.seed for cell in results.cells if cell.data):
        cells = tuple(cell for cell in results.cells if cell.seed == seed)
        for one in kept_words_in(replace(results, cells=cells)):
            if (one.method, one.target) == (of.method, of.target):
                found.append(one)
    return found


def survival(results: Results, shares: Shares) -> Iterator[str]:
    """Rows: whether what a set holds more often is kept better with it: all words, by Spearman,
    over words and over draws.
    """
    yield (
        "| method | removed | words | share and what is kept: Spearman | 95 % over words | draws |"
    )
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"

    def correlated(one: KeptWords) -> tuple[np.ndarray, np.ndarray]:
        words, difference = differences(one)
        ratios = [share(shares[A], word) / share(shares[B], word) for word in words]
        return np.array([np.log(ratio) for ratio in ratios]), difference

    for of in kept_words_in(results):
        often, difference = correlated(of)
        correlation = spearman(often, difference)
        low, high = interval(spearman, often, difference)
        draws = [spearman(*correlated(one)) for one in by_draw(results, of)]
        told = f"{low:+.2f} to {high:+.2f} | {min(draws):+.2f} to {max(draws):+.2f}"
        yield f"| `{of.method}` | {of.target} | {len(difference)} | {correlation:+.2f} | {told} |"


def share(of: Mapping[str, float], word: str) -> float:
    """The share of a word in a set."""
    return of.get(word, of[""])


def groups(results: Results, shares: Shares) -> Iterator[str]:
    """Rows: what arithmetic kept more than C4 did of the two groups named beforehand, and of all
    words.
    """
    yield (
        "| method | removed | group | words | how much more often arithmetic has them "
        "| arithmetic kept more by | 95 % over words | draws |"
    )
    yield "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    for of in kept_words_in(results):
        words, difference = differences(of)
        for name, group in {**GROUPS, "all": frozenset(words)}.items():
            own = difference[[word in group for word in words]]
            low, high = interval(np.mean, own)
            draws: list[float] = []
            for one in by_draw(results, of):
                words_of_draw, difference_of_draw = differences(one)
                is_in_group = [word in group for word in words_of_draw]
                draws.append(float(difference_of_draw[is_in_group].mean()))
            in_group = [word for word in words if word in group]
            often = sum(share(shares[A], word) for word in in_group)
            often_in_c4 = sum(share(shares[B], word) for word in in_group)
            cells = [
                f"{len(own)}",
                f"{often / often_in_c4:.2f} times",
                f"{own.mean():+.3f}",
                f"{low:+.3f} to {high:+.3f}",
                f"{min(draws):+.3f} to {max(draws):+.3f}",
            ]
            yield f"| `{of.method}` | {of.target} | {name} | {' | '.join(cells)} |"


def most(results: Results) -> Iterator[str]:
    """Rows: the ten words of which least is kept, in each setting, and the ten of which most is."""
    yield "| method | removed | least kept | most kept |"
    yield "| --- | ---: | --- | --- |"
    for of in kept_words_in(results):
        told: list[str] = []
        for word, mean in zip(of.words, of.means, strict=True):
            if re.fullmatch(r"\w+", word):
                told.append(f"{word} {mean:.2f}")
        least, most = ", ".join(told[:10]), ", ".join(reversed(told[-10:]))
        yield f"| `{of.method}` | {of.target} | {least} | {most} |"


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    with Store(HERE / "smollm2", create=False) as store:
        results = read(store, items=False)
        shares = shares_in(store, results)
    made = {
        "relations": relations(results),
        "survival": survival(results, shares),
        "groups": groups(results, shares),
        "most": most(results),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
