"""The tables of docs/findings/languages.md, made of the store beside this file: python -m
studies.languages.tables [--write]

Losses are nats per token, of passages that no draw calibrates on. Masks are compared by the 256
bits of each matrix that a record holds.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from studies.arms import Measured, complete, planned, with_interval, with_range
from studies.overlaps import Draws, against, between, part_of_the_set, told, within
from studies.pages import write_or_print

from calibrant.data import CalibrationSet
from calibrant.evaluators import evaluators
from calibrant.lab.stats import Estimate, contrast, t_quantile
from calibrant.lab.stats.sets import mask_bits
from calibrant.results import Cell, Record, Store
from calibrant.results.outcomes import Measurement

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/languages.md"
STORE: Final = HERE / "gemma3-270m"
CODES: Final = {
    "English": "en",
    "German": "de",
    "Spanish": "es",
    "Russian": "ru",
    "Swahili": "sw",
    "Chinese": "zh",
    "Arabic": "ar",
}
SETS: Final = {
    str(CalibrationSet(f"flores(language={code})")): name for name, code in CODES.items()
}
"""By calibration set, its language."""
ALL: Final = "equal shares"
OTHER_TEXT: Final = {"German": "de", "Chinese": "zh"}
"""Languages that are also measured on another text."""
NEURONS: Final = "language-specific neurons"


class Arm(NamedTuple):
    """What the draws of one method and set gave."""

    method: str
    data: str
    measured: Measured
    records: list[Record]

    @property
    def kept(self) -> list[np.ndarray]:
        """The bits of the mask of each draw that its record holds; none where a method leaves no
        mask.
        """
        return [
            mask_bits([weight for weight in record.weights if "bits" in weight]) > 0
            for record in self.records
        ]


def arms() -> tuple[list[Arm], Measured]:
    """What is measured with every method whose sets are all measured, by method and in the order
    of CODES; and of the dense model.
    """
    found: list[Arm] = []
    with Store(STORE, create=False) as store:
        by_label: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in store.cells():
            if cell.method != "none":
                by_label.setdefault((cell.method, cell.target, cell.data), []).append(cell)
        for (method, target, data), cells in by_label.items():
            records = [store.record(cell.run) for cell in cells if cell.run]
            known = [record for record in records if record is not None]
            measured = complete(store, method=method, target=target, data=data)
            if measured and len(known) == len(cells):
                found.append(Arm(method, SETS.get(data, ALL), measured, known))
        dense = complete(store, method="none")
    methods = [method for method, _, _ in by_label]
    order = [*CODES, ALL]
    sets_of = Counter(arm.method for arm in found)
    whole = [arm for arm in found if sets_of[arm.method] == len(order)]
    whole.sort(key=lambda arm: (methods.index(arm.method), order.index(arm.data)))
    return whole, dense


def _by_method(every: Iterable[Arm]) -> dict[str, list[Arm]]:
    found: dict[str, list[Arm]] = {}
    for arm in every:
        found.setdefault(arm.method, []).append(arm)
    return found


def columns(source: str, codes: Mapping[str, str]) -> Mapping[str, str]:
    """By language, the name of what is measured on its text of a source."""
    return {
        name: evaluators.build(f"loss(source='{source}(language={code})')").measured
        for name, code in codes.items()
    }


def losses(every: Iterable[Arm], dense: Measured, asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: the loss on every language and on average, by method and calibration language; bold
    the least of a column with a method.
    """
    yield f"| method | calibrated on | mean | {' | '.join(asked)} |"
    yield f"| --- | --- | ---: |{' ---: |' * len(asked)}"
    if dense:
        yield f"| none | dense model | {' | '.join(_cells(_values(dense, asked)))} |"
    for method, arms_of in _by_method(every).items():
        columns = {arm.data: _values(arm.measured, asked) for arm in arms_of}
        means = {data: list(map(statistics.mean, values)) for data, values in columns.items()}
        least = [min(of_sets) for of_sets in zip(*means.values(), strict=True)]
        for data, values in columns.items():
            cells = _cells(values)
            for column, mean in enumerate(means[data]):
                if mean == least[column]:
                    cells[column] = f"**{cells[column]}**"
            yield f"| `{method}` | {data} | {' | '.join(cells)} |"


def _cells(columns: list[list[float]]) -> list[str]:
    """The mean of the draws on average over the languages, with their range, and on each
    language.
    """
    mean, *by_language = columns
    return [with_range(mean), *(f"{statistics.mean(values):.3f}" for values in by_language)]


def _values(measured: Measured, asked: Mapping[str, str]) -> list[list[float]]:
    """What the draws gave, on average and on each language."""
    by_language: list[list[float]] = []
    for text in asked.values():
        by_language.append([measurement.score.value for measurement in measured[text]])
    means = [statistics.mean(draw) for draw in zip(*by_language, strict=True)]
    return [means, *by_language]


def own(every: list[Arm], asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: the language's own text against the best other language, by method and language;
    jointly over the other languages.
    """
    yield "| method | language | own text is | best other | own text is better by |"
    yield "| --- | --- | --- | --- | ---: |"
    for method, arms_of in _by_method(every).items():
        for name, text in asked.items():
            sides = {arm.data: arm.measured[text] for arm in arms_of if arm.data != ALL}
            means: dict[str, float] = {}
            for data, drawn in sides.items():
                means[data] = statistics.mean(measurement.score.value for measurement in drawn)
            ranked = sorted(means, key=means.__getitem__)
            place = ranked.index(name) + 1
            others = [data for data in ranked if data != name]
            estimate = contrast({text: sides[others[0]]}, {text: sides[name]})
            better = with_interval(estimate, comparisons=len(CODES) - 1)
            yield f"| `{method}` | {name} | {place} of {len(ranked)} | {others[0]} | {better} |"


def averages(every: list[Arm], asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: the mean loss over the languages with each set, the least first, and how much more that
    is than with equal shares and than with English.

    Each difference jointly over the other sets of a method.
    """
    yield (
        "| method | calibrated on | mean | more than with equal shares by "
        "| less than with English by |"
    )
    yield "| --- | --- | ---: | ---: | ---: |"
    for method, arms_of in _by_method(every).items():
        sides: dict[str, Measured] = {}
        means: dict[str, float] = {}
        for arm in arms_of:
            side = {text: arm.measured[text] for text in asked.values()}
            drawn = itertools.chain.from_iterable(side.values())
            sides[arm.data] = side
            means[arm.data] = statistics.mean(measurement.score.value for measurement in drawn)
        for data in sorted(means, key=means.__getitem__):
            more = less = ""
            if data != ALL:
                above_equal = contrast(sides[data], sides[ALL])
                more = with_interval(above_equal, comparisons=len(CODES))
            if data not in ("English", ALL):
                below_english = contrast(sides["English"], sides[data])
                less = with_interval(below_english, comparisons=len(CODES) - 1)
            yield f"| `{method}` | {data} | {means[data]:.3f} | {more} | {less} |"


def behind(every: list[Arm], asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: how much worse each set is than the language's own text, by its worst; bold where
    significant jointly over a method's cells.
    """
    yield f"| method | calibrated on | furthest behind on | {' | '.join(asked)} |"
    yield f"| --- | --- | ---: |{' ---: |' * len(asked)}"
    for method, arms_of in _by_method(every).items():
        by_set = {arm.data: arm.measured for arm in arms_of}
        comparisons = (len(by_set) - 1) * len(asked)
        rows: list[tuple[float, str]] = []
        for data, measured in by_set.items():
            apart: dict[str, Estimate] = {}
            for name, text in asked.items():
                if name != data:
                    apart[name] = contrast({text: measured[text]}, {text: by_set[name][text]})
            worst = max(apart, key=lambda name: apart[name].value)
            cells = [f"{worst}: {with_interval(apart[worst], comparisons=comparisons)}"]
            for name in asked:
                if name == data:
                    cells.append("")
                    continue
                cell = f"{apart[name].value:+.3f}"
                if apart[name].significant(comparisons=comparisons):
                    cell = f"**{cell}**"
                cells.append(cell)
            rows.append((apart[worst].value, f"| `{method}` | {data} | {' | '.join(cells)} |"))
        yield from (row for _, row in sorted(rows))


def overlaps(every: list[Arm]) -> Iterator[str]:
    """Rows: the share of what both masks keep among what either keeps, of two draws of a language,
    of two languages, and with equal shares.

    The draws of equal shares lie within the first draw of each language, which is left out beside
    them.
    """
    yield (
        "| method | two draws | two languages | least alike | and equal shares | random masks "
        "| the language's part |"
    )
    yield "| --- | ---: | ---: | --- | ---: | ---: | ---: |"
    for method, arms_of in _by_method(every).items():
        kept = {arm.data: arm.kept for arm in arms_of}
        if not len(kept[ALL][0]):
            continue  # the method leaves no mask
        languages = {data: masks for data, masks in kept.items() if data != ALL}
        pairs: dict[tuple[str, str], float] = {}
        for one, other in itertools.combinations(sorted(languages), 2):
            pairs[one, other] = against([languages[one]], languages[other], _common)
        least_alike = min(pairs, key=pairs.__getitem__)
        but_first = [masks[1:] for masks in languages.values()]
        every_mask = itertools.chain.from_iterable(languages.values())
        share = statistics.mean(float(mask.mean()) for mask in every_mask)
        cells = [
            f"{within(languages, _common):.3f}",
            f"{between(languages, _common):.3f}",
            f"{' and '.join(least_alike)}: {pairs[least_alike]:.3f}",
            f"{against(but_first, kept[ALL], _common):.3f}",
            f"{share / (2 - share):.3f}",
            part_of_the_set(languages, _common, digits=3),
        ]
        yield f"| `{method}` | {' | '.join(cells)} |"


def _common(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def neurons(every: list[Arm]) -> Iterator[str]:
    """Rows: the share of the neurons specific to a language that still are, mean of draws; on
    top how many there are in the dense model.
    """
    yield f"| method | calibrated on | all | {' | '.join(CODES)} |"
    yield f"| --- | --- | ---: |{' ---: |' * len(CODES)}"
    if every:
        measurement = every[0].measured[NEURONS][0]
        there = [_specific(measurement, name)[1] for name in CODES]
        cells = [f"{count:,.0f}" for count in (sum(there), *there)]
        yield f"| none | dense model, how many | {' | '.join(cells)} |"
    for arm in every:
        drawn = arm.measured[NEURONS]
        mean = statistics.mean(measurement.score.value for measurement in drawn)
        cells = [f"{mean:.2f}", *(_share(drawn, name) for name in CODES)]
        yield f"| `{arm.method}` | {arm.data} | {' | '.join(cells)} |"


def _specific(measurement: Measurement, name: str) -> tuple[float, float]:
    """How many of a language's neurons stay, and how many there are; none of none where no
    neuron is specific to it.
    """
    for outcome in measurement.outcomes:
        if outcome.item == f"flores(language={CODES[name]})":
            return outcome.value, outcome.weight
    return 0.0, 0.0


def _share(drawn: Iterable[Measurement], name: str) -> str:
    found = [_specific(measurement, name) for measurement in drawn]
    staying = sum(count for count, _ in found)
    there = sum(count for _, count in found)
    return f"{staying / there:.2f}" if there else ""


def own_neurons(every: list[Arm]) -> Iterator[str]:
    """Rows: by method, the share of a language's neurons that stay with its own text and with
    another language's; the interval is over languages.
    """
    yield "| method | own text | another language | equal shares | own less another |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for method, arms_of in _by_method(every).items():
        by_set = {arm.data: arm.measured[NEURONS] for arm in arms_of}
        own_text: list[float] = []
        another: list[float] = []
        equal_shares: list[float] = []
        for name in CODES:
            _, there = _specific(by_set[ALL][0], name)
            if there:
                own_text.append(_staying(by_set[name], name))
                another.append(_elsewhere(by_set, name))
                equal_shares.append(_staying(by_set[ALL], name))
        apart = [stay - elsewhere for stay, elsewhere in zip(own_text, another, strict=True)]
        quantile = t_quantile(0.975, float(len(apart) - 1))
        half = quantile * statistics.stdev(apart) / len(apart) ** 0.5
        cells = [f"{statistics.mean(shares):.2f}" for shares in (own_text, another, equal_shares)]
        yield f"| `{method}` | {' | '.join(cells)} | {told(statistics.mean(apart), half, 3)} |"


def _staying(drawn: Iterable[Measurement], name: str) -> float:
    """The share of a language's neurons that stay, mean of draws."""
    shares: list[float] = []
    for measurement in drawn:
        staying, there = _specific(measurement, name)
        shares.append(staying / there)
    return statistics.mean(shares)


def _elsewhere(by_set: Draws[Measurement], name: str) -> float:
    """The same with the other languages' text, mean of these."""
    return statistics.mean(_staying(by_set[data], name) for data in CODES if data != name)


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name, of the store if it is there."""
    if not STORE.is_dir():
        return {}
    every, dense = arms()
    asked = columns("flores", CODES)
    other = columns("xquad", OTHER_TEXT)
    made: dict[str, Iterable[str]] = {
        "planned": planned(STORE),
        "own": own(every, asked),
        "behind": behind(every, asked),
        "averages": averages(every, asked),
        "losses": losses(every, dense, asked),
        "other text": losses(every, dense, other),
        "own, other text": own(every, other),
        "overlaps": overlaps(every),
        "neurons": neurons(every),
        "own neurons": own_neurons(every),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
