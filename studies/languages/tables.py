"""The tables of docs/findings/languages.md, made of the store beside this file: python -m
studies.languages.tables [--write]

Losses are nats per token, of passages that no draw calibrates on. Masks are compared by the 256
bits of each matrix that a record holds.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from studies.arms import Measured, complete, planned, with_interval, with_range
from studies.overlaps import Draws, against, between, part_of_the_set, told, within
from studies.pages import write_or_print

from calibrant.data import CalibrationSet
from calibrant.evaluators import evaluators
from calibrant.lab.stats import contrast, t_quantile
from calibrant.lab.stats.sets import mask_bits
from calibrant.results import Record, Store
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
        cells = [cell for cell in store.cells() if cell.method != "none"]
        for method, target, data in dict.fromkeys((c.method, c.target, c.data) for c in cells):
            own = [c for c in cells if (c.method, c.target, c.data) == (method, target, data)]
            records = [record for c in own if c.run and (record := store.record(c.run)) is not None]
            if (measured := complete(store, method=method, target=target, data=data)) and len(
                records
            ) == len(own):
                found.append(Arm(method, SETS.get(data, ALL), measured, records))
        methods, order = [cell.method for cell in cells], [*CODES, ALL]
        whole = [
            method for method in methods if sum(arm.method == method for arm in found) == len(order)
        ]
        found = [arm for arm in found if arm.method in whole]
        return sorted(
            found, key=lambda arm: (methods.index(arm.method), order.index(arm.data))
        ), complete(store, method="none")


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
    rows = {(arm.method, arm.data): _values(arm.measured, asked) for arm in every}
    if dense:
        yield f"| none | dense model | {' | '.join(_with_mean(_values(dense, asked)))} |"
    for (method, data), values in rows.items():
        least = [
            min(statistics.mean(of[at]) for (other, _), of in rows.items() if other == method)
            for at in range(len(values))
        ]
        told = zip(_with_mean(values), values, least, strict=True)
        cells = [f"**{cell}**" if statistics.mean(of) == low else cell for cell, of, low in told]
        yield f"| `{method}` | {data} | {' | '.join(cells)} |"


def _with_mean(values: list[list[float]]) -> list[str]:
    """The mean of the draws on average over the languages, with their range, and on each
    language.
    """
    return [with_range(values[0]), *(f"{statistics.mean(of):.3f}" for of in values[1:])]


def _values(measured: Measured, asked: Mapping[str, str]) -> list[list[float]]:
    """What the draws gave, on average and on each language."""
    each = [[m.score.value for m in measured[name]] for name in asked.values()]
    return [[statistics.mean(of) for of in zip(*each, strict=True)], *each]


def own(every: list[Arm], asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: the language's own text against the best other language, by method and language;
    jointly over the other languages.
    """
    yield "| method | language | own text is | best other | own text is better by |"
    yield "| --- | --- | --- | --- | ---: |"
    for method in dict.fromkeys(arm.method for arm in every):
        for name, measured in asked.items():
            sides = {
                arm.data: {measured: arm.measured[measured]}
                for arm in every
                if arm.method == method and arm.data != ALL
            }
            ranked = sorted(
                sides,
                key=lambda data: statistics.mean(m.score.value for m in sides[data][measured]),
            )
            best = next(data for data in ranked if data != name)
            better = with_interval(contrast(sides[best], sides[name]), comparisons=len(CODES) - 1)
            yield f"| `{method}` | {name} | {ranked.index(name) + 1} of {len(ranked)} | {best} | {better} |"


def averages(every: list[Arm], asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: the mean loss over the languages with each set, the least first, and how much more that
    is than with equal shares and than with English.

    Each difference jointly over the other sets of a method.
    """
    yield "| method | calibrated on | mean | more than with equal shares by | less than with English by |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for method in dict.fromkeys(arm.method for arm in every):
        sides = {
            arm.data: {name: arm.measured[name] for name in asked.values()}
            for arm in every
            if arm.method == method
        }
        mean = {
            data: statistics.mean(m.score.value for of in side.values() for m in of)
            for data, side in sides.items()
        }
        for data in sorted(sides, key=mean.__getitem__):
            more = (
                ""
                if data == ALL
                else with_interval(contrast(sides[data], sides[ALL]), comparisons=len(CODES))
            )
            less = (
                ""
                if data in ("English", ALL)
                else with_interval(
                    contrast(sides["English"], sides[data]), comparisons=len(CODES) - 1
                )
            )
            yield f"| `{method}` | {data} | {mean[data]:.3f} | {more} | {less} |"


def behind(every: list[Arm], asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: how much worse each set is than the language's own text, by its worst; bold where
    significant jointly over a method's cells.
    """
    yield f"| method | calibrated on | furthest behind on | {' | '.join(asked)} |"
    yield f"| --- | --- | ---: |{' ---: |' * len(asked)}"
    for method in dict.fromkeys(arm.method for arm in every):
        by = {arm.data: arm.measured for arm in every if arm.method == method}
        rows: list[tuple[float, str]] = []
        comparisons = (len(by) - 1) * len(asked)
        for data, of in by.items():
            apart = {
                name: contrast({m: of[m]}, {m: by[name][m]})
                for name, m in asked.items()
                if name != data
            }
            worst = max(apart, key=lambda name: apart[name].value)
            marked = {
                name: f"**{e.value:+.3f}**"
                if e.significant(comparisons=comparisons)
                else f"{e.value:+.3f}"
                for name, e in apart.items()
            }
            cells = [
                f"{worst}: {with_interval(apart[worst], comparisons=comparisons)}",
                *(marked.get(name, "") for name in asked),
            ]
            rows.append((apart[worst].value, f"| `{method}` | {data} | {' | '.join(cells)} |"))
        yield from (row for _, row in sorted(rows))


def overlaps(every: list[Arm]) -> Iterator[str]:
    """Rows: the share of what both masks keep among what either keeps, of two draws of a language,
    of two languages, and with equal shares.

    The draws of equal shares lie within the first draw of each language, which is left out beside
    them.
    """
    yield "| method | two draws | two languages | least alike | and equal shares | random masks | the language's part |"
    yield "| --- | ---: | ---: | --- | ---: | ---: | ---: |"
    for method in dict.fromkeys(arm.method for arm in every):
        kept = {arm.data: arm.kept for arm in every if arm.method == method}
        if not len(kept[ALL][0]):
            continue  # the method leaves no mask
        languages = {data: of for data, of in kept.items() if data != ALL}
        pairs = {
            (a, b): against([languages[a]], languages[b], _common)
            for a in languages
            for b in languages
            if a < b
        }
        (a, b), least = min(pairs.items(), key=lambda pair: pair[1])
        share = statistics.mean(
            float(of.mean()) for draws_of in languages.values() for of in draws_of
        )
        cells = [
            f"{within(languages, _common):.3f}",
            f"{between(languages, _common):.3f}",
            f"{a} and {b}: {least:.3f}",
        ]
        cells += [
            f"{against([of[1:] for of in languages.values()], kept[ALL], _common):.3f}",
            f"{share / (2 - share):.3f}",
        ]
        yield f"| `{method}` | {' | '.join(cells)} | {part_of_the_set(languages, _common, digits=3)} |"


def _common(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def neurons(every: list[Arm]) -> Iterator[str]:
    """Rows: the share of the neurons specific to a language that still are, mean of draws; on
    top how many there are in the dense model.
    """
    yield f"| method | calibrated on | all | {' | '.join(CODES)} |"
    yield f"| --- | --- | ---: |{' ---: |' * len(CODES)}"
    if every:
        had = {name: _specific(every[0].measured[NEURONS][0], name)[1] for name in CODES}
        yield f"| none | dense model, how many | {sum(had.values()):,.0f} | {' | '.join(f'{count:,.0f}' for count in had.values())} |"
    for arm in every:
        of = arm.measured[NEURONS]
        cells = [
            f"{statistics.mean(m.score.value for m in of):.2f}",
            *(_share(of, name) for name in CODES),
        ]
        yield f"| `{arm.method}` | {arm.data} | {' | '.join(cells)} |"


def _specific(measurement: Measurement, name: str) -> tuple[float, float]:
    """How many of a language's neurons stay, and how many there are; none of none where no
    neuron is specific to it.
    """
    found = [
        outcome
        for outcome in measurement.outcomes
        if outcome.item == f"flores(language={CODES[name]})"
    ]
    return (found[0].value, found[0].weight) if found else (0.0, 0.0)


def _share(of: Iterable[Measurement], name: str) -> str:
    staying, had = map(sum, zip(*(_specific(measurement, name) for measurement in of), strict=True))
    return f"{staying / had:.2f}" if had else ""


def own_neurons(every: list[Arm]) -> Iterator[str]:
    """Rows: by method, the share of a language's neurons that stay with its own text and with
    another language's; the interval is over languages.
    """
    yield "| method | own text | another language | equal shares | own less another |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for method in dict.fromkeys(arm.method for arm in every):
        by: Draws[Measurement] = {
            arm.data: arm.measured[NEURONS] for arm in every if arm.method == method
        }
        some = [name for name in CODES if _specific(by[ALL][0], name)[1]]
        apart = {name: _staying(by[name], name) - _elsewhere(by, name) for name in some}
        half = (
            t_quantile(0.975, float(len(apart) - 1))
            * statistics.stdev(apart.values())
            / len(apart) ** 0.5
        )
        means = [
            statistics.mean(of)
            for of in zip(
                *((_staying(by[n], n), _elsewhere(by, n), _staying(by[ALL], n)) for n in some),
                strict=True,
            )
        ]
        yield f"| `{method}` | {' | '.join(f'{mean:.2f}' for mean in means)} | {told(statistics.mean(apart.values()), half, 3)} |"


def _staying(of: Iterable[Measurement], name: str) -> float:
    """The share of a language's neurons that stay, mean of draws."""
    return statistics.mean(
        staying / had for staying, had in (_specific(measurement, name) for measurement in of)
    )


def _elsewhere(by: Draws[Measurement], name: str) -> float:
    """The same with the other languages' text, mean of these."""
    return statistics.mean(_staying(by[data], name) for data in CODES if data != name)


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name, of the store if it is there."""
    if not STORE.is_dir():
        return {}
    every, dense = arms()
    asked = columns("flores", CODES)
    made: dict[str, Iterable[str]] = {
        "planned": planned(STORE),
        "own": own(every, asked),
        "behind": behind(every, asked),
    }
    other = columns("xquad", OTHER_TEXT)
    made |= {"averages": averages(every, asked), "losses": losses(every, dense, asked)}
    made |= {"other text": losses(every, dense, other), "own, other text": own(every, other)}
    made |= {
        "overlaps": overlaps(every),
        "neurons": neurons(every),
        "own neurons": own_neurons(every),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
