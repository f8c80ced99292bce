"""The tables of docs/findings/blocks.md, made of the stores beside this file: python -m
studies.blocks.tables [--write]

Losses are nats per token, on rows that no draw calibrates on.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from studies.arms import Measured, named, planned, with_interval, with_range, worse
from studies.overlaps import against, between, part_of_the_set, within
from studies.pages import write_or_print

from calibrant.lab.stats import draws
from calibrant.results import Cell, Record, Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/blocks.md"
DOMAINS: Final = {
    "web": "c4",
    "encyclopedia": "wikipedia",
    "code": "python_code",
    "arithmetic": "gsm8k",
    "passages": "race",
}
"""Each domain that is measured, and the source it is made of; the study of factors has no code."""
SETS: Final = {
    "c4": "C4",
    "gsm8k:cot": "arithmetic",
    "cluster": "clusters of both",
    "random_tokens": "random tokens",
    "": "nothing",
}
BLOCKS: Final = 30
"""Of SmolLM2."""


class Arm(NamedTuple):
    """What the draws of one method, target and set gave."""

    method: str
    target: str
    data: str
    measured: Measured
    records: list[Record]

    @property
    def name(self) -> str:
        """The method without its parameters, which are the same in all of a study's runs."""
        return self.method.partition("(")[0]

    @property
    def dropped(self) -> list[frozenset[int]]:
        """The blocks that went in each draw."""
        return [frozenset(record.edits[0]["blocks"]) for record in self.records]

    @property
    def notes(self) -> list[Mapping[str, Any]]:
        """What each draw's record says of its search."""
        return [record.edits[0]["notes"] for record in self.records]


def arms(folder: Path) -> tuple[list[Arm], Measured]:
    """Every method, target and set of a store, in the order of its study, and the untouched
    model.
    """
    found: list[Arm] = []
    with Store(folder, create=False) as store:
        by_label: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in sorted(store.cells(), key=lambda cell: cell.target):
            if cell.run and cell.method != "none":
                by_label.setdefault((cell.method, cell.target, cell.data), []).append(cell)
        for (method, target, data), cells in by_label.items():
            measured = draws(store, method=method, target=target, data=data)
            if measured:
                name = data.partition("(")[0]
                records = [store.record(cell.run) for cell in cells]
                known = [record for record in records if record is not None]
                found.append(Arm(method, target, name, measured, known))
        return found, draws(store, method="none")


def losses(every: Iterable[Arm], dense: Measured, columns: Mapping[str, str]) -> Iterator[str]:
    """Rows: the losses on every domain and on average, by set and method."""
    yield f"| target | calibrated on | method | draws | mean | {' | '.join(columns)} |"
    yield f"| --- | --- | --- | ---: | ---: |{' ---: |' * len(columns)}"
    untouched = Arm("none", "untouched", "", dense, [])
    rows = sorted(every, key=lambda arm: (arm.target, list(SETS).index(arm.data)))
    for arm in [untouched, *rows]:
        by_domain: list[list[float]] = []
        for name in named(arm.measured, columns.values()):
            by_domain.append([measurement.score.value for measurement in arm.measured[name]])
        means = [statistics.mean(draw) for draw in zip(*by_domain, strict=True)]
        cells = " | ".join(map(with_range, [means, *by_domain]))
        yield f"| {arm.target} | {SETS[arm.data]} | `{arm.method}` | {len(means)} | {cells} |"


def searches(every: Iterable[Arm]) -> Iterator[str]:
    """Rows: what the best choice loses on the tokens that were searched on and on others of the
    same set, as an increase over the untouched model.
    """
    yield (
        "| target | searched on | method | increase there | increase on others of the set "
        "| choices measured |"
    )
    yield "| --- | --- | --- | ---: | ---: | ---: |"
    for arm in every:
        if arm.name == "short_gpt":
            continue  # it searches nothing
        there = statistics.mean(map(_increase, arm.notes))
        others = statistics.mean(_increase(note["held_out"]) for note in arm.notes)
        measured = statistics.mean(note["measured"] for note in arm.notes)
        searched = f"| {arm.target} | {SETS[arm.data]} | `{arm.name}` |"
        yield f"{searched} {there:.3f} | {others:.3f} | {measured:.0f} |"


def _increase(note: Mapping[str, Any]) -> float:
    return note["loss"] - note["untouched_loss"]


def gone(every: Iterable[Arm]) -> Iterator[str]:
    """Rows: which blocks go, and in how many of the draws if not in all."""
    yield "| target | calibrated on | method | blocks that go (draws, if not all) |"
    yield "| --- | --- | --- | --- |"
    for arm in every:
        counts = Counter(itertools.chain.from_iterable(arm.dropped))
        blocks: list[str] = []
        for block, count in sorted(counts.items()):
            blocks.append(f"{block}" if count == len(arm.dropped) else f"{block} ({count})")
        yield f"| {arm.target} | {SETS[arm.data]} | `{arm.name}` | {', '.join(blocks)} |"


def overlaps(every: list[Arm]) -> Iterator[str]:
    """Rows: which share of the dropped blocks two draws of a set have in common, and two draws
    of different sets, for each method.
    """
    yield (
        "| target | method | two draws of a set | two sets | C4 and arithmetic "
        "| a set and random tokens | by chance | the set's part |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    by_label: dict[tuple[str, str], dict[str, list[frozenset[int]]]] = {}
    for arm in every:
        by_label.setdefault((arm.target, arm.name), {})[arm.data] = arm.dropped
    for (target, name), dropped in by_label.items():
        fewest = min(map(len, dropped.values()))
        if fewest < 2 or not {"c4", "gsm8k:cot", "random_tokens"} <= dropped.keys():
            continue  # a part of the study isn't there
        texts = {data: drawn for data, drawn in dropped.items() if data != "random_tokens"}
        shares = [
            within(texts, _common),
            between(texts, _common),
            against([dropped["c4"]], dropped["gsm8k:cot"], _common),
            against(list(texts.values()), dropped["random_tokens"], _common),
            len(dropped["c4"][0]) / BLOCKS,
        ]
        cells = [*(f"{share:.2f}" for share in shares), part_of_the_set(texts, _common)]
        yield f"| {target} | `{name}` | {' | '.join(cells)} |"


def _common(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one)


def better(
    every: list[Arm], pairs: Iterable[tuple[str, str]], columns: Mapping[str, str]
) -> Iterator[str]:
    """Rows: how much less the first method of a pair loses than the second, by set; intervals
    over documents and draws, bold without zero.
    """
    yield f"| target | calibrated on | better | than | mean | {' | '.join(columns)} |"
    yield f"| --- | --- | --- | --- | ---: |{' ---: |' * len(columns)}"
    by = {(arm.target, arm.data, arm.method): arm.measured for arm in every}
    for target, data in dict.fromkeys((arm.target, arm.data) for arm in every):
        for first, second in pairs:
            less = by.get((target, data, first))
            more = by.get((target, data, second))
            if less and more:
                cells = " | ".join(_differences(more, less, columns))
                yield f"| {target} | {SETS[data]} | `{first}` | `{second}` | {cells} |"


def sets(every: list[Arm], columns: Mapping[str, str]) -> Iterator[str]:
    """Rows: how much less each set loses than C4, by method; intervals over documents and draws,
    bold without zero.
    """
    yield f"| target | method | better | than | mean | {' | '.join(columns)} |"
    yield f"| --- | --- | --- | --- | ---: |{' ---: |' * len(columns)}"
    base = {(arm.target, arm.method): arm.measured for arm in every if arm.data == "c4"}
    for arm in every:
        with_c4 = base.get((arm.target, arm.method))
        if with_c4 is None or arm.data in ("", "c4"):
            continue
        cells = " | ".join(_differences(with_c4, arm.measured, columns))
        yield f"| {arm.target} | `{arm.method}` | {SETS[arm.data]} | C4 | {cells} |"


def _differences(more: Measured, less: Measured, columns: Mapping[str, str]) -> Iterator[str]:
    """How much more one loses than the other, on average and on each domain."""
    yield with_interval(worse(more, less, columns.values()))
    for source in columns.values():
        yield with_interval(worse(more, less, [source]))


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name, of the stores that are there."""
    made: dict[str, Iterable[str]] = {}
    if (HERE / "smollm2").is_dir():
        every, dense = arms(HERE / "smollm2")
        greedy, evop = "greedy", "evop(generations=8)"
        pairs = [(evop, "short_gpt"), (evop, greedy), (greedy, "short_gpt")]
        made |= {
            "blocks planned": planned(HERE / "smollm2"),
            "gone": gone(every),
            "overlaps": overlaps(every),
            "searches": searches(every),
            "blocks better": better(every, pairs, DOMAINS),
            "blocks sets": sets(every, DOMAINS),
            "blocks losses": losses(every, dense, DOMAINS),
        }
    if (HERE / "factors").is_dir():
        every, dense = arms(HERE / "factors")
        columns = {name: source for name, source in DOMAINS.items() if name != "code"}
        pairs = [
            ("fips", "svd"),
            ("svd", "basis_sharing"),
            ("fips", "fips(indices=True)"),
            ("fips", "fips(distant=True)"),
        ]
        made |= {
            "factors planned": planned(HERE / "factors"),
            "factors better": better(every, pairs, columns),
            "factors sets": sets(every, columns),
            "factors losses": losses(every, dense, columns),
        }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
