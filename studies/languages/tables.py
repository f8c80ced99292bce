"""The tables of docs/findings/languages.md, made of the store beside this file: python -m studies.languages.tables [--write]

Losses are nats per token, of passages that no draw calibrates on. Masks are compared by the 256 bits of each matrix that a record holds.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from studies.arms import Measured, planned, with_interval, with_range
from studies.overlaps import against, between, part_of_the_set, within
from studies.pages import write_or_print

from calibrant.compare import contrast, draws
from calibrant.data import CalibrationSet
from calibrant.evaluators import evaluators
from calibrant.store import Record, Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/languages.md"
STORE: Final = HERE / "gemma3-270m"
CODES: Final = {"English": "en", "German": "de", "Spanish": "es", "Russian": "ru", "Swahili": "sw", "Chinese": "zh", "Arabic": "ar"}
SETS: Final = {str(CalibrationSet(f"flores(language={code})")): name for name, code in CODES.items()}
"""By calibration set, its language."""
ALL: Final = "equal shares"
OTHER_TEXT: Final = ("de", "zh")
"""Languages that are also measured on another text."""
NEURONS: Final = "language-specific neurons"


class Arm(NamedTuple):
    """What the draws of one method and set gave."""

    method: str
    target: str
    data: str
    measured: Measured
    records: list[Record]

    @property
    def kept(self) -> list[np.ndarray]:
        """The bits of the mask of each draw that its record holds."""
        return [np.concatenate([_bits(weight) for weight in record.weights]) for record in self.records]


def _bits(weight: Mapping[str, Any]) -> np.ndarray:
    return np.unpackbits(np.frombuffer(bytes.fromhex(weight["bits"]), np.uint8)) if "bits" in weight else np.zeros(0, np.uint8)


def arms(folder: Path) -> tuple[list[Arm], Measured]:
    """Every method and language of which all draws are there, in the order of the study, and the dense model."""
    found: list[Arm] = []
    with Store(folder, create=False) as store:
        cells = [cell for cell in store.cells() if cell.method != "none"]
        for method, target, data in dict.fromkeys((c.method, c.target, c.data) for c in cells):
            runs = [c.run for c in cells if (c.method, c.target, c.data) == (method, target, data)]
            records = [record for run in runs if run and (record := store.record(run)) is not None]
            if len(records) == len(runs):
                found.append(Arm(method, target, SETS.get(data, ALL), draws(store, method=method, target=target, data=data), records))
        return found, draws(store, method="none")


def columns(source: str, codes: Iterable[str]) -> Mapping[str, str]:
    """By language, the name of what was measured on its text of a source."""
    names = {code: name for name, code in CODES.items()}
    return {names[code]: evaluators.build(f"loss(source='{source}(language={code})')").measured for code in codes}


def losses(every: Iterable[Arm], dense: Measured, asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: the loss on every language and on average, by method and calibration language; bold the least of a column with a method."""
    yield f"| method | calibrated on | mean | {' | '.join(asked)} |"
    yield f"| --- | --- | ---: |{' ---: |' * len(asked)}"
    untouched = Arm("none", "", "dense", dense, [])
    rows = {(arm.method, arm.data): _values(arm, asked) for arm in (untouched, *every)}
    for (method, data), values in rows.items():
        best = [min(statistics.mean(of) for (other, _), each in rows.items() if other == method for of in [each[at]]) for at in range(len(values))]
        cells = [with_range(of) for of in values]
        told = [
            f"**{cell}**" if statistics.mean(of) == least and method != "none" else cell for cell, of, least in zip(cells, values, best, strict=True)
        ]
        yield f"| `{method}` | {data} | {' | '.join(told)} |"


def _values(arm: Arm, asked: Mapping[str, str]) -> list[list[float]]:
    """What the draws gave, on average and on each language."""
    each = [[m.score.value for m in arm.measured[name]] for name in asked.values()]
    return [[statistics.mean(of) for of in zip(*each, strict=True)], *each]


def regrets(every: list[Arm], asked: Mapping[str, str]) -> Iterator[str]:
    """Rows: how much worse each set is than the language's own, by language; intervals over passages and draws, bold without zero."""
    yield f"| method | calibrated on | the worst | {' | '.join(asked)} |"
    yield f"| --- | --- | --- |{' ---: |' * len(asked)}"
    by = {(arm.method, arm.data): arm.measured for arm in every}
    for arm in every:
        own = {name: by.get((arm.method, name)) for name in asked}
        apart = {
            name: contrast({asked[name]: arm.measured[asked[name]]}, {asked[name]: of[asked[name]]})
            for name, of in own.items()
            if of is not None and name != arm.data
        }
        worst = max(apart, key=lambda name: apart[name].value, default="")
        cells = ["" if name not in apart else with_interval(apart[name]) for name in asked]
        yield f"| `{arm.method}` | {arm.data} | {worst} | {' | '.join(cells)} |"


def overlaps(every: list[Arm]) -> Iterator[str]:
    """Rows: the share of what both masks keep among what either keeps, of two draws of a language, of two languages, and with equal shares."""
    yield "| method | two draws of a language | two languages | least alike | a language and equal shares | by chance | the language's part |"
    yield "| --- | ---: | ---: | --- | ---: | ---: | ---: |"
    for method in dict.fromkeys(arm.method for arm in every):
        kept = {arm.data: arm.kept for arm in every if arm.method == method}
        if min(map(len, kept.values())) < 2 or len(kept) < len(CODES) + 1 or not len(kept[ALL][0]):
            continue  # a part of the study isn't there, or the method leaves no mask
        languages = {data: of for data, of in kept.items() if data != ALL}
        pairs = {(a, b): against([languages[a]], languages[b], _common) for a in languages for b in languages if a < b}
        (a, b), least = min(pairs.items(), key=lambda pair: pair[1])
        share = statistics.mean(float(of.mean()) for draws_of in languages.values() for of in draws_of)
        cells = [f"{within(languages, _common):.3f}", f"{between(languages, _common):.3f}", f"{a} and {b}: {least:.3f}"]
        cells += [f"{against(list(languages.values()), kept[ALL], _common):.3f}", f"{share / (2 - share):.3f}"]
        yield f"| `{method}` | {' | '.join(cells)} | {part_of_the_set(languages, _common)} |"


def _common(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def neurons(every: Iterable[Arm]) -> Iterator[str]:
    """Rows: the share of the neurons specific to a language that still are, mean of draws; own and others with the interval of what is between."""
    yield f"| method | calibrated on | all | {' | '.join(CODES)} |"
    yield f"| --- | --- | ---: |{' ---: |' * len(CODES)}"
    for arm in every:
        cells = [[_staying(m, name) for m in arm.measured[NEURONS]] for name in CODES]
        whole = [m.score.value for m in arm.measured[NEURONS]]
        yield f"| `{arm.method}` | {arm.data} | {' | '.join(f'{statistics.mean(of):.2f}' for of in [whole, *cells])} |"


def _staying(measurement: Any, name: str) -> float:
    (found,) = [o for o in measurement.outcomes if str(CalibrationSet(o.item)) == str(CalibrationSet(f"flores(language={CODES[name]})"))]
    return found.value / found.weight


def own_neurons(every: list[Arm]) -> Iterator[str]:
    """Rows: by method, the share of a language's neurons that stay with its own text less that with another language's; an item is a language."""
    yield "| method | own language | another | equal shares | own less another, by language |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for method in dict.fromkeys(arm.method for arm in every):
        by = {arm.data: arm.measured[NEURONS] for arm in every if arm.method == method}
        if len(by) < len(CODES) + 1:
            continue
        staying = {data: {name: statistics.mean(_staying(m, name) for m in of) for name in CODES} for data, of in by.items()}
        own = {name: staying[name][name] for name in CODES}
        others = {name: statistics.mean(staying[data][name] for data in CODES if data != name) for name in CODES}
        mixed = statistics.mean(staying[ALL].values())
        told = ", ".join(f"{name} {own[name] - others[name]:+.2f}" for name in CODES)
        yield f"| `{method}` | {statistics.mean(own.values()):.2f} | {statistics.mean(others.values()):.2f} | {mixed:.2f} | {told} |"


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name, of the store if it is there."""
    if not STORE.is_dir():
        return {}
    every, dense = arms(STORE)
    asked = columns("flores", CODES.values())
    made: dict[str, Iterable[str]] = {"planned": planned(STORE), "regrets": regrets(every, asked), "losses": losses(every, dense, asked)}
    made |= {"other text": losses(every, dense, columns("xquad", OTHER_TEXT)), "overlaps": overlaps(every)}
    made |= {"neurons": neurons(every), "own neurons": own_neurons(every)}
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
