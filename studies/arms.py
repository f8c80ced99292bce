"""What studies share whose arms differ in more than one study can ask, such as the number of
tokens: each arm has a store of its own.
"""

import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from calibrant import Study
from calibrant.lab.stats import Contrast, Draws, Estimate, compare, contrast, draws
from calibrant.results import Store

Measured = Mapping[str, Draws]
"""What the draws of one set gave, by what was measured."""


def run(studies: Mapping[str, Study], here: Path, tables: Callable[[], Iterable[str]]) -> None:
    """Compute what the stores in `here`, one for each name, lack, unless `--tables` is asked for
    alone; print the tables.
    """
    for name, study in () if "--tables" in sys.argv[1:] else studies.items():
        finished = study.run(
            here / name, lambda what, done, total: print(f"{what} {done}/{total}", file=sys.stderr)
        )
        print(
            f"{name}: {finished.computed} computed, {finished.found} found, "
            f"{len(finished.failures)} failed\n",
            flush=True,
        )
    print("\n\n".join(tables()))


def arm(folder: Path, **labels: str) -> Measured:
    """What the draws with these labels gave in one of the stores, by what was measured."""
    with Store(folder, create=False) as store:
        return draws(store, **labels)


def complete(store: Store, **labels: str) -> Measured:
    """What the draws with these labels gave, by what was measured; nothing while some of it is
    missing.
    """
    cells = [
        cell
        for cell in store.cells()
        if all(getattr(cell, name) == value for name, value in labels.items())
    ]
    if not cells:
        return {}
    asked = {text for cell in cells for text in cell.measures}
    measured = draws(store, **labels)
    return measured if len(measured) == len(asked) else {}


def worse(a: Measured, b: Measured, names: Iterable[str]) -> Estimate:
    """How much worse `a` did than `b` on average over what has one of the names."""
    chosen = named(a, names)
    return contrast({m: a[m] for m in chosen}, {m: b[m] for m in chosen})


def named(of: Mapping[str, object], names: Iterable[str]) -> list[str]:
    """What was measured on each of `names`, in their order."""
    by_source = {re.split(r"[ :(]", measured)[0]: measured for measured in of}
    return [by_source[name] for name in names]


def span(of: Measured, names: Iterable[str]) -> float:
    """How far the best and the worst draw of a set lie apart."""
    draws_of = zip(*(of[measured] for measured in named(of, names)), strict=True)
    means = [statistics.mean(m.score.value for m in draw) for draw in draws_of]
    return max(means) - min(means)


def row(head: str, a: Measured, b: Measured, names: Iterable[str], comparisons: int) -> str:
    """A row of Markdown: how much worse `a` is than `b` on each measured set; `comparisons` as
    in `markdown_row`.
    """
    return markdown_row(head, [contrast({n: a[n]}, {n: b[n]}) for n in names], comparisons)


def markdown_row(head: str, estimates: Iterable[Estimate], comparisons: int) -> str:
    """A row of Markdown, bold where an interval over items and draws leaves out zero at 95 %,
    jointly over `comparisons`, the rows of its table.
    """
    cells: list[str] = []
    for estimate in estimates:
        is_bold = estimate.over_draws and estimate.significant(comparisons=comparisons)
        cells.append(f"**{estimate:+.3f}**" if is_bold else f"{estimate:+.3f}")
    return f"| {head} | {' | '.join(cells)} |"


def with_range(values: list[float]) -> str:
    """The mean of the draws, and half of what they lie apart."""
    return f"{statistics.mean(values):.3f}" + (
        f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    )


def with_interval(estimate: Estimate, significant: bool | None = None, comparisons: int = 1) -> str:
    """An estimate with its interval of 95 %, jointly over so many: bold if it is `significant`,
    by default where the interval leaves out zero.
    """
    if (interval := estimate.interval(comparisons=comparisons)) is None:
        return f"{estimate.value:+.3f}"
    text = f"{estimate.value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})"
    return (
        f"**{text}**"
        if (estimate.significant(comparisons=comparisons) if significant is None else significant)
        else text
    )


def planned(folder: Path) -> Iterator[str]:
    """Rows: the contrasts between sets that the study's file names, by model and method, corrected
    for their number (Holm).

    With the least true difference that four such studies in five find, each by itself at 5 %.
    """
    with Store(folder, create=False) as store:
        every = compare(store).contrasts
    tested = [one for one in every if one.difference is not None and one.p_holm is not None]
    several_models = len({one.model for one in tested}) > 1
    asked = {(one.name, one.model, one.method) for one in tested}
    # A question of one method at several targets needs the target beside it.
    several_targets = len(tested) > len(asked)
    heads = ["question", "method", "better by", "4 in 5 see", "p (Holm)"]
    marks = ["---", "---", "---:", "---:", "---:"]
    if several_models:
        heads.insert(1, "model")
        marks.insert(1, "---")
    yield f"| {' | '.join(heads)} |"
    yield f"| {' | '.join(marks)} |"
    for one in tested:
        yield f"| {' | '.join(_answer(one, several_models, several_targets))} |"


def _answer(one: Contrast, several_models: bool, several_targets: bool) -> Iterator[str]:
    """The cells of a row of `planned`."""
    assert one.difference is not None
    assert one.p_holm is not None
    yield one.name
    if several_models:
        yield one.model
    yield f"`{one.method}`, {one.target}" if several_targets else f"`{one.method}`"
    better_by = replace(one.difference, value=-one.difference.value)
    yield with_interval(better_by, one.p_holm < 0.05)
    yield "" if one.detectable is None else f"{one.detectable:.3f}"
    yield f"{one.p_holm:.1g}"
