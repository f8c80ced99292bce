"""The tables of docs/findings/sensitivity.md, made of the stores beside this file: python -m studies.sensitivity.tables [--write]

With `--write` the README's picture is drawn too; picture.json has its numbers. Divergences are nats per token, KL(dense ‖ compressed), on rows
that no draw calibrates on.
"""

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from studies.arms import named, with_interval
from studies.pages import draw, write_or_print

from calibrant.compare import MEAN, Estimate, Results, Sensitivity, compare, contrast, detectable, draws, read, t_quantile
from calibrant.compare.contrasts import Contrast, holm
from calibrant.compare.crossed import ItemValues
from calibrant.report.plots import Plot
from calibrant.report.plots.sensitivity import worth
from calibrant.store import Cell, Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/sensitivity.md"
PICTURE: Final = HERE / "picture.json"
STORE: Final = HERE / "smollm2"
MODELS: Final = {"smollm2": "SmolLM2", "gemma3-270m": "Gemma"}
DOMAINS: Final = {"web": "c4", "encyclopedia": "wikipedia", "collection": "pile", "code": "python_code", "arithmetic": "gsm8k", "passages": "race"}
"""Each domain that is measured, and the source it is made of."""
MIXTURE: Final = "0.25*c4 + 0.25*wikipedia + 0.25*gsm8k:icl + 0.25*python_code"
SETS: Final = {
    "c4": "C4",
    "pile": "Pile",
    "wikipedia": "encyclopedia",
    "gsm8k:icl": "arithmetic",
    "python_code": "code",
    "selfgen": "its own words",
    MIXTURE: "mixture",
    "random_tokens": "random tokens",
    "": "nothing",
}
STRONG: Final = {
    "wanda": "0.5",
    "sparsegpt": "0.5",
    "refined": "0.6",
    "rtn(scales='importance')": "w3g64",
    "gptq": "w3g64",
    "gptq(scales='importance')": "w3g64",
    "awq": "w3g64",
    "rsq": "w3g64",
    "llama_cpp": "Q2_K",
    "short_gpt": "blocks 0.2",
}
"""The methods of the primary questions, at their stronger strength."""
FITTED: Final = ("sparsegpt", "refined", "gptq", "gptq(scales='importance')", "rsq")
WEIGHING: Final = ("wanda", "rtn(scales='importance')", "awq", "llama_cpp")
MIXED: Final = ("wanda", "sparsegpt", "gptq(scales='importance')", "awq")
LONGER: Final = ("wanda", "sparsegpt", "gptq(scales='importance')")
PLANNED: Final = 18
"""How many primary questions there are, also those that can't be answered yet."""


Label = tuple[str, str, str]
"""A model, a method and its target."""


def label_of(of: Sensitivity | Cell) -> Label:
    """Its model, method and target."""
    return of.model, of.method, of.target


def on_domains(results: Results, chosen: Callable[[Cell], bool]) -> Results:
    """The results of these cells on the domains, without tasks."""
    cells = [replace(c, measures={t: i for t, i in c.measures.items() if t.startswith("agreement")}) for c in results.cells if chosen(c)]
    return replace(results, cells=tuple(cells))


def sensitivity_table(found: Sequence[Sensitivity], seen: Mapping[Label, float]) -> Iterator[str]:
    """Rows: what the choice of set is worth by method and target, the most of the divergence first; and what could be `seen`.

    By domain, each with its own best and worst set, and where one set must serve all domains. Several models or targets stand together by method.
    """
    several = len({s.model for s in found}) > 1
    heads = ["method", *(["model"] if several else []), "target"]
    numbers = ["mean", "by domain", "by chance at most", "of the mean", "one set for all", "of the mean", "4 in 5 see", "between sets / draws", "p"]
    yield f"| {' | '.join([*heads, *numbers])} |"
    yield f"|{' --- |' * len(heads)}{' ---: |' * len(numbers)}"
    most = {s.method: max(of.share or 0.0 for of in found if of.method == s.method) for s in found}
    for s in sorted(found, key=lambda s: (-most[s.method], list(MODELS).index(s.model))):
        ratio = "" if s.ratio is None or s.ratio_interval is None else f"{s.ratio:.1f} ({s.ratio_interval[0]:.1f} to {s.ratio_interval[1]:.1f})"
        least = f"{seen[label_of(s)]:.3f}" if label_of(s) in seen else ""
        one, mean = s.gaps[MEAN], s.increase or math.nan
        cells = [f"`{s.method}`", *([MODELS[s.model]] if several else []), s.target, f"{mean:.3f}"]
        cells += [_worth(s.worth, s.worth_interval), f"{s.floor:.3f}", f"{100 * s.worth / mean:.0f}%"]
        cells += [_worth(one.value, one.interval), f"{100 * one.value / mean:.0f}%", least, ratio, "" if s.p is None else f"{s.p:.1g}"]
        yield f"| {' | '.join(cells)} |"


def _worth(value: float, interval: tuple[float, float]) -> str:
    """With its interval, bold where that leaves out zero."""
    told = f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"**{told}**" if interval[0] > 0 else told


def otherwise_table(ways: Mapping[str, Sequence[Sensitivity]]) -> Iterator[str]:
    """Rows: worst less best set by method and strength, in the losses of `ways`; bold where two sets differ significantly."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for way, found in ways.items():
        for s in found:
            rows.setdefault((s.method, s.target), {})[way] = f"{_worth(s.worth, s.worth_interval)}; {s.floor:.3f}"
    yield f"| method | target | {' | '.join(ways)} |"
    yield f"| --- | --- |{' ---: |' * len(ways)}"
    for (method, target), told in rows.items():
        yield f"| `{method}` | {target} | {' | '.join(told.get(way, '') for way in ways)} |"


def sets_table(results: Results) -> Iterator[str]:
    """Rows: the mean divergence with each set, by method, where all draws are measured on all domains; bold the least of several.

    Several models stand together by method.
    """
    cells = [cell for cell in results.cells if cell.method != "none"]
    labels, several = [data for data in SETS if any(cell.data == data for cell in cells)], len({cell.model for cell in cells}) > 1
    yield f"| method |{' model |' if several else ''} target | {' | '.join(SETS[data] for data in labels)} |"
    yield f"| --- |{' --- |' if several else ''} --- |{' ---: |' * len(labels)}"
    order = [cell.method for cell in cells]
    for label in sorted(dict.fromkeys(map(label_of, cells)), key=lambda label: order.index(label[1]) if several else 0):
        means = {data: statistics.mean(of.values()) for data, of in divergences(results, label).items()}
        known = [value for data, value in means.items() if not math.isnan(value) and data != "random_tokens"]
        if known:
            least = min(known) if len(known) > 1 else None
            told = {data: f"**{value:.3f}**" if value == least else f"{value:.3f}" for data, value in means.items() if not math.isnan(value)}
            shown = [told.get(data, "") for data in labels]
            model, method, target = label
            yield f"| {' | '.join([f'`{method}`', *([MODELS[model]] if several else []), target, *shown])} |"


def divergences(results: Results, label: Label) -> Mapping[str, Mapping[str, float]]:
    """The mean divergence of the draws by set and by the domain's source; not a number where something wasn't measured."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in results.cells:
        for text, measure in cell.measures.items() if label_of(cell) == label else ():
            of = [source for source in DOMAINS.values() if text.startswith("agreement") and f"source='{source}'" in text]
            measured = results.scores.get(cell.run, {}).get(measure)
            for source in of:
                found.setdefault(cell.data, {}).setdefault(source, []).append(measured.score.value if measured else math.nan)
    return {data: {source: statistics.mean(values) for source, values in of.items()} for data, of in found.items()}


def by_domain(of: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> Float[np.ndarray, "domain set"]:
    """The divergences of these sets."""
    return np.array([[of[data][domain] for data in names] for domain in DOMAINS.values()])


def alike(one: Float[np.ndarray, "domain set"], other: Float[np.ndarray, "domain set"]) -> str:
    """Two cells: how the ranks of sets on all domains correlate, each domain's ranks by themselves; on how many the same set is best."""
    first, second = (np.argsort(np.argsort(of, 1), 1).ravel() for of in (one, other))
    same = int((one.argmin(1) == other.argmin(1)).sum())
    return f"{np.corrcoef(first, second)[0, 1]:+.2f} | {same} of {len(one)}"


def smallest_seen(folder: Path, found: Iterable[Sensitivity]) -> Mapping[Label, float]:
    """By model, method and target, what true difference between C4 and another set four such studies in five find.

    On the mean of the domains; the median over sets.
    """
    least: dict[Label, float] = {}
    with Store(folder, create=False) as store:
        for s in found:
            sides = {data: side for data in s.sets if (side := _side(store, s.method, s.target, data)) is not None}
            each = [detectable(contrast(side, sides["c4"])) for data, side in sides.items() if data != "c4" and "c4" in sides]
            known = [value for value in each if value is not None]
            if known:
                least[label_of(s)] = statistics.median(known)
    return least


def domains_table(found: Iterable[Sensitivity], strong: Mapping[str, str]) -> Iterator[str]:
    """Rows: the best and the worst set on each domain, with what lies between them, at the stronger strength of each method.

    Bold where any two sets differ significantly on the domain.
    """
    yield f"| method | {' | '.join(DOMAINS)} |"
    yield f"| --- |{' --- |' * len(DOMAINS)}"
    for s in found:
        if strong.get(s.method) == s.target:
            chosen = [s.gaps[name] for name in named(s.gaps, DOMAINS.values())]
            cells = [f"{SETS[c.best]}, {SETS[c.worst]}: {f'**{c.value:.3f}**' if c.significant else f'{c.value:.3f}'}" for c in chosen]
            yield f"| `{s.method}` | {' | '.join(cells)} |"


def of_text(folder: Path, results: Results) -> Results:
    """The same results with the loss of the text in the place of its divergence; it stands beside that for each document."""
    items: dict[str, dict[str, ItemValues]] = {}
    with Store(folder, create=False) as store:
        for run, measured in results.items.items():
            for measure, values in measured.items():
                beside = next((score for score in values.beside if score.metric == "loss"), None)
                if beside is None:
                    continue
                measurement = store.measurement(run, measure)
                assert measurement is not None
                own = replace(measurement, score=beside, outcomes=tuple(replace(o, value=o.facts["nats"]) for o in measurement.outcomes))
                items.setdefault(run, {})[measure] = ItemValues.of(own)
    return replace(on_domains(results, lambda _: True), items=items)


def planned(found: Sequence[Sensitivity], strong: Mapping[str, str], folder: Path, longer: Path | None = None) -> Iterator[str]:
    """Rows: the primary questions, corrected together (Holm), those that have no answer yet counted too.

    `strong` are the methods and their stronger strength, `longer` the store with more tokens, if a study asks about that.
    """
    by = {(s.method, s.target): s for s in found}
    asked: list[tuple[str, str, float | None]] = []
    for method, target in strong.items():
        s = by.get((method, target))
        told = "not computed" if s is None else "draws don't vary"
        if s is not None and s.ratio is not None and s.ratio_interval is not None:
            told = f"{s.ratio:.1f} ({s.ratio_interval[0]:.1f} to {s.ratio_interval[1]:.1f})"
        asked.append((f"another set changes more than another draw: `{method}`, {target}", told, None if s is None else s.p))
    asked.append(("the choice is worth more where weights are fitted than where they are weighed", *fitted_or_weighed(by, strong)))
    with Store(folder, create=False) as store:
        sides = {method: tuple(_side(store, method, strong[method], data) for data in (MIXTURE, "c4")) for method in MIXED}
    for method in MIXED:
        asked.append((f"the mixture is better than C4: `{method}`", *_better(*sides[method])))
    if longer is not None:
        with Store(longer, create=False) as store:
            more = {method: _side(store, method, strong[method], "c4") for method in LONGER}
        for method in LONGER:
            asked.append((f"32,768 tokens of C4 are better than 8,192 of the mixture: `{method}`", *_better(more[method], sides[method][0])))
    family = [Contrast("", "", "", (), "", "", "", p=p) for _, _, p in asked]
    yield "| question | found | p (Holm) |"
    yield "| --- | ---: | ---: |"
    for (question, told, _), corrected in zip(asked, holm(family), strict=True):
        p = corrected.p_holm
        yield f"| {question} | {f'**{told}**' if p is not None and p < 0.05 else told} | {'' if p is None else f'{p:.1g}'} |"


def _side(store: Store, method: str, target: str, data: str) -> Mapping[str, Any] | None:
    """What the draws of a set gave on the domains with a method; None where some is missing."""
    if not any((c.method, c.target, c.data) == (method, target, data) and c.run for c in store.cells()):
        return None
    every = draws(store, method=method, target=target, data=data)
    there = {name: of for name, of in every.items() if of[0].score.metric == "kl"}
    return there if len(there) == len(DOMAINS) else None


def _better(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> tuple[str, float | None]:
    """By how much less the first diverges than the second, and p."""
    if one is None or other is None:
        return "not computed", None
    found = contrast(other, one)
    return with_interval(found, False), found.p_value()


def fitted_or_weighed(by: Mapping[tuple[str, str], Sensitivity], strong: Mapping[str, str]) -> tuple[str, float | None]:
    """By how much the share is larger where weights are fitted, mean of the domains, each of which is an item.

    The domains share sets and draws, and the largest of differences is large by chance too, more so where draws vary more: the page says both.
    """
    kinds = [[by.get((method, strong[method])) for method in methods if method in strong] for methods in (FITTED, WEIGHING)]
    if any(s is None for kind in kinds for s in kind):
        return "not computed", None
    shares = [[[_share(s, name) for name in named(s.gaps, DOMAINS.values())] for s in kind if s] for kind in kinds]
    apart = [statistics.mean(a) - statistics.mean(b) for a, b in zip(*(list(zip(*kind, strict=True)) for kind in shares), strict=True)]
    found = Estimate(statistics.mean(apart), statistics.stdev(apart) / len(apart) ** 0.5, float(len(apart) - 1), len(apart))
    half = t_quantile(0.975, found.df) * (found.stderr or 0)
    return f"{100 * found.value:.0f}% ({100 * (found.value - half):.0f}% to {100 * (found.value + half):.0f}%)", found.p_value()


def _share(s: Sensitivity, name: str) -> float:
    """Worst less best set on a domain, as a share of the method's mean divergence."""
    return s.gaps[name].value / (s.increase or 1.0)


def picture() -> Plot:
    """What the choice of set is worth, by method at its stronger strength."""
    with Store(STORE, create=False) as store:
        found = compare(read(store), measures=["agreement"]).sensitivities
    drawn = worth([s for s in found if STRONG.get(s.method) == s.target])
    assert drawn is not None
    return drawn


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    with Store(STORE, create=False) as store:
        every = read(store)
    results = replace(every, cells=tuple(c for c in every.cells if not c.data or STRONG.get(c.method) == c.target))
    found = compare(results, measures=["agreement"]).sensitivities
    tasks = {"two tasks, among the offered answers": ["commonsense_qa", "openbookqa"], "arc_easy, among the offered answers": ["arc_easy"]}
    ways = {"loss of the same text": compare(of_text(STORE, results)).sensitivities}
    ways |= {name: compare(results, measures=of).sensitivities for name, of in tasks.items()}
    asked = list(planned(found, STRONG, STORE, HERE / "more_tokens"))
    assert len(asked) == 2 + PLANNED
    made = {
        "sensitivity": sensitivity_table(found, smallest_seen(STORE, found)),
        "planned": asked,
        "sets": sets_table(results),
        "domains": domains_table(found, STRONG),
        "otherwise": otherwise_table(ways),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
    if "--write" in sys.argv[1:]:
        draw(picture(), "sensitivity", PICTURE)
