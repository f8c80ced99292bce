"""What studies share whose arms differ in more than one study can ask, such as the number of
tokens: each arm has a store of its own.
"""

import re
import statistics
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calibrant import Study
from calibrant.lab.stats import Contrast, Draws, Estimate, compare, contrast, draws
from calibrant.results import Cell, Measurement, Store

Measured = Mapping[str, Draws]
"""What the draws of one set gave, by what was measured."""


def run(studies: Mapping[str, Study], here: Path, tables: Callable[[], Iterable[str]]) -> None:
    """Compute what the stores in `here`, one for each name, lack, unless `--tables` is asked for
    alone; print the tables.
    """
    if "--tables" not in sys.argv[1:]:
        for name, study in studies.items():
            finished = study.run(here / name, _tell_progress)
            print(
                f"{name}: {finished.computed} computed, {finished.found} found, "
                f"{len(finished.failures)} failed\n",
                flush=True,
            )
    print("\n\n".join(tables()))


def _tell_progress(what: str, done: int, total: int) -> None:
    print(f"{what} {done}/{total}", file=sys.stderr)


def arm(folder: Path, **labels: str) -> Measured:
    """What the draws with these labels gave in one of the stores, by what was measured."""
    with Store(folder, create=False) as store:
        return draws(store, **labels)


def complete(store: Store, **labels: str) -> Measured:
    """What the draws with these labels gave, by what was measured; nothing while some of it is
    missing.
    """
    asked: set[str] = set()
    for cell in store.cells():
        if all(getattr(cell, name) == value for name, value in labels.items()):
            asked.update(cell.measures)
    if not asked:
        return {}
    measured = draws(store, **labels)
    if len(measured) != len(asked):
        return {}
    return measured


def measured_whole(store: Store, cell: Cell) -> Mapping[str, Measurement] | None:
    """What was measured of a run, by text; None while some or all of it is missing."""
    if not cell.measures:
        return None
    found: dict[str, Measurement] = {}
    for measure in cell.measures.values():
        measurement = store.measurement(cell.run, measure)
        if measurement is None:
            return None
        found[measurement.score.measured] = measurement
    return found


def value_of(measurement: Measurement, metric: str) -> float:
    """A score of a measurement, the first or one beside it."""
    for score in (measurement.score, *measurement.beside):
        if score.metric == metric:
            return score.value
    raise KeyError(metric)


def worse(one: Measured, other: Measured, names: Iterable[str]) -> Estimate:
    """How much worse `one` did than the `other` on average over what has one of the names."""
    chosen = named(one, names)
    return contrast({text: one[text] for text in chosen}, {text: other[text] for text in chosen})


def named(by_measured: Mapping[str, object], names: Iterable[str]) -> list[str]:
    """What was measured on each of `names`, in their order."""
    by_source = {source_of(measured): measured for measured in by_measured}
    return [by_source[name] for name in names]


def source_of(measured: str) -> str:
    """The source in the text of what was measured: `gsm8k` of `gsm8k:cot`."""
    return re.split(r"[ :(]", measured)[0]


def span(measured: Measured, names: Iterable[str]) -> float:
    """How far the best and the worst draw of a set lie apart."""
    chosen = [measured[text] for text in named(measured, names)]
    means: list[float] = []
    for measurements_of_draw in zip(*chosen, strict=True):
        means.append(statistics.mean(one.score.value for one in measurements_of_draw))
    return max(means) - min(means)


def table_head(texts: Sequence[str], numbers: Sequence[str]) -> Iterator[str]:
    """The first two rows of a table in Markdown: the heads of columns of text, then those of
    columns of numbers, which stand at the right.
    """
    yield table_row([*texts, *numbers])
    yield table_row(["---"] * len(texts) + ["---:"] * len(numbers))


def table_row(cells: Iterable[str]) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(cells)} |"


def bold_if(condition: bool, text: str) -> str:
    """The text, bold where the condition holds."""
    return f"**{text}**" if condition else text


def number_or_nothing(value: float | None, form: str) -> str:
    """A number in such a form, such as `.3f`; nothing where there is none."""
    return "" if value is None else format(value, form)


def row(head: str, one: Measured, other: Measured, names: Iterable[str], comparisons: int) -> str:
    """A row of Markdown: how much worse `one` is than the `other` on each measured set;
    `comparisons` as in `markdown_row`.
    """
    estimates = [contrast({name: one[name]}, {name: other[name]}) for name in names]
    return markdown_row(head, estimates, comparisons)


def markdown_row(head: str, estimates: Iterable[Estimate], comparisons: int) -> str:
    """A row of Markdown, bold where an interval over items and draws leaves out zero at 95 %,
    jointly over `comparisons`, the rows of its table.
    """
    cells: list[str] = []
    for estimate in estimates:
        is_bold = estimate.over_draws and estimate.significant(comparisons=comparisons)
        cells.append(bold_if(is_bold, f"{estimate:+.3f}"))
    return table_row([head, *cells])


def with_range(values: list[float]) -> str:
    """The mean of the draws, and half of what they lie apart."""
    mean = f"{statistics.mean(values):.3f}"
    if len(values) == 1:
        return mean
    half = (max(values) - min(values)) / 2
    return f"{mean} ± {half:.3f}"


def with_interval(estimate: Estimate, significant: bool | None = None, comparisons: int = 1) -> str:
    """An estimate with its interval of 95 %, jointly over so many: bold if it is `significant`,
    by default where the interval leaves out zero.
    """
    interval = estimate.interval(comparisons=comparisons)
    if interval is None:
        return f"{estimate.value:+.3f}"
    if significant is None:
        significant = estimate.significant(comparisons=comparisons)
    low, high = interval
    return bold_if(significant, f"{estimate.value:+.3f} ({low:+.3f} to {high:+.3f})")


def planned(folder: Path, ways: Container[tuple[str, str]] | None = None) -> Iterator[str]:
    """Rows: the contrasts between sets that the study's file names, by model and method, corrected
    for their number (Holm). Where `ways` are given, only of these methods and targets.

    With the least true difference that four such studies in five find, each by itself at 5 %.
    """
    with Store(folder, create=False) as store:
        every = compare(store).contrasts
    tested = [one for one in every if one.difference is not None and one.p_holm is not None]
    if ways is not None:
        tested = [one for one in tested if (one.method, one.target) in ways]
    several_models = len({one.model for one in tested}) > 1
    asked = {(one.name, one.model, one.method) for one in tested}
    # A question of one method at several targets needs the target beside it.
    several_targets = len(tested) > len(asked)
    heads = ["question", "method"]
    if several_models:
        heads.insert(1, "model")
    yield from table_head(heads, ["better by", "4 in 5 see", "p (Holm)"])
    for one in tested:
        yield table_row(_answer(one, several_models, several_targets))


def _answer(one: Contrast, several_models: bool, several_targets: bool) -> Iterator[str]:
    """The cells of a row of `planned`."""
    assert one.difference is not None
    assert one.p_holm is not None
    yield one.name
    if several_models:
        yield one.model
    if several_targets:
        yield f"`{one.method}`, {one.target}"
    else:
        yield f"`{one.method}`"
    better_by = replace(one.difference, value=-one.difference.value)
    yield with_interval(better_by, one.p_holm < 0.05)
    yield number_or_nothing(one.detectable, ".3f")
    yield f"{one.p_holm:.1g}"
