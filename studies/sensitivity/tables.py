"""The tables of docs/findings/sensitivity.md, made of the stores beside this file: python -m
studies.sensitivity.tables [--write]

With `--write` the README's picture is drawn too; picture.json has its numbers. Divergences are nats
per token, KL(dense ‖ compressed), on rows that no draw calibrates on.
"""

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float
from studies.arms import named, with_interval
from studies.pages import draw, write_or_print

from calibrant.lab.report.plots import Plot
from calibrant.lab.report.plots.sensitivity import worth
from calibrant.lab.stats import (
    MEAN,
    Results,
    Sensitivity,
    compare,
    contrast,
    detectable,
    read,
    variance_ratio,
)
from calibrant.lab.stats.contrasts import Contrast, holm
from calibrant.lab.stats.crossed import ItemValues
from calibrant.results import Cell, Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/sensitivity.md"
PICTURE: Final = HERE / "picture.json"
STORE: Final = HERE / "smollm2"
MODELS: Final = {"smollm2": "SmolLM2", "gemma3-270m": "Gemma"}
DOMAINS: Final = {
    "web": "c4",
    "encyclopedia": "wikipedia",
    "collection": "pile",
    "code": "python_code",
    "arithmetic": "gsm8k",
    "passages": "race",
}
"""Each domain that is measured, and the source it is made of."""
MIXTURE: Final = "0.25*c4 + 0.25*wikipedia + 0.25*gsm8k:icl + 0.25*python_code"
CONTROL: Final = "random_tokens"
SETS: Final = {
    "c4": "C4",
    "pile": "Pile",
    "wikipedia": "encyclopedia",
    "gsm8k:icl": "arithmetic",
    "python_code": "code",
    "selfgen": "its own words",
    MIXTURE: "mixture",
    CONTROL: "random tokens",
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
TASKS: Final = {"two tasks": ["commonsense_qa", "openbookqa"], "arc_easy": ["arc_easy"]}
"""The columns of tasks: their heads, and the tasks of each."""
MORE: Final = {"c4": "C4, 32,768", MIXTURE: "mixture, 32,768"}
"""The sets that were also drawn with four times the tokens."""
PLANNED: Final = 18
"""How many primary questions there are."""


Label = tuple[str, str, str]
"""A model, a method and its target."""


def label_of(of: Sensitivity | Cell) -> Label:
    """Its model, method and target."""
    return of.model, of.method, of.target


def on_domains(results: Results, chosen: Callable[[Cell], bool]) -> Results:
    """The results of these cells on the domains, without tasks."""
    cells = [
        replace(c, measures={t: i for t, i in c.measures.items() if t.startswith("agreement")})
        for c in results.cells
        if chosen(c)
    ]
    return replace(results, cells=tuple(cells))


def sensitivity_table(found: Sequence[Sensitivity], seen: Mapping[Label, float]) -> Iterator[str]:
    """Rows: what the choice of set is worth by method and target, the most of the divergence first;
    and what could be `seen`.

    By domain, each with its own best and worst set, and where one set must serve all domains.
    Several models or targets stand together by method.
    """
    several = len({s.model for s in found}) > 1
    heads = ["method", *(["model"] if several else []), "target"]
    numbers = [
        "mean",
        "by domain",
        "cross-fitted",
        "by chance at most",
        "of the mean",
        "one set for all",
        "of the mean",
        "4 in 5 see",
        "between sets / draws",
        "p",
    ]
    yield f"| {' | '.join([*heads, *numbers])} |"
    yield f"|{' --- |' * len(heads)}{' ---: |' * len(numbers)}"
    most = {s.method: max(of.share or 0.0 for of in found if of.method == s.method) for s in found}
    for s in sorted(found, key=lambda s: (-most[s.method], list(MODELS).index(s.model))):
        least = f"{seen[label_of(s)]:.3f}" if label_of(s) in seen else ""
        one, mean = s.gaps[MEAN], s.increase or math.nan
        cells = [f"`{s.method}`", *([MODELS[s.model]] if several else []), s.target, f"{mean:.3f}"]
        cells += [
            _worth(s.worth, s.worth_interval, s.beyond_chance),
            f"{s.cross_fitted:.3f}",
            f"{s.by_chance:.3f}",
            f"{100 * s.worth / mean:.0f}%",
        ]
        cells += [
            _worth(one.value, one.interval, one.significant),
            f"{100 * one.value / mean:.0f}%",
            least,
            _ratio(s),
            "" if s.p is None else f"{s.p:.1g}",
        ]
        yield f"| {' | '.join(cells)} |"


def _worth(value: float, interval: tuple[float, float], bold: bool) -> str:
    """With its interval, bold where it is more than chance makes of it."""
    told = f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
    return f"**{told}**" if bold else told


GENERAL_SETS: Final = ("c4", "pile", "wikipedia", "selfgen")
"""The sets of general text: no code, no arithmetic, and no mixture that holds some."""
GENERAL_DOMAINS: Final = ("c4", "wikipedia", "pile", "race")
"""The sources of the domains of general text."""
CODE: Final = "python_code"


def shares_table(
    results: Results, labels: Sequence[Label], sets: Sequence[str] = GENERAL_SETS
) -> Iterator[str]:
    """Rows: worst less best set by domain, as a share of the mean divergence of the same sets and
    domains; and what C4 costs.

    By method: all sets, without the set of code, without that set and its domain, and among `sets`
    on the domains of general text. Then how much more the model diverges with C4 than with each
    domain's best set, in nats a token and as a share of the mean divergence.
    """
    several = len({model for model, *_ in labels}) > 1
    heads = ["method", *(["model"] if several else []), "target"]
    numbers = ["all sets", "without the code set", "without code, set and domain"]
    numbers += ["general sets on general domains", "C4 costs", "of the mean"]
    yield f"| {' | '.join([*heads, *numbers])} |"
    yield f"|{' --- |' * len(heads)}{' ---: |' * len(numbers)}"
    for label in labels:
        model, method, target = label
        found = real_sets(divergences(results, label))
        every = list(found)
        without = [data for data in every if data != CODE]
        domains = list(DOMAINS.values())
        texts = [source for source in domains if source != CODE]
        general = [data for data in sets if data in found]
        mean = by_source(found, every, domains).mean()
        best = by_source(found, every, domains).min(1)
        cost = float((by_source(found, ["c4"], domains)[:, 0] - best).mean())
        cells = [f"`{method}`", *([MODELS[model]] if several else []), target]
        cells += [
            share_at_stake(by_source(found, every, domains)),
            share_at_stake(by_source(found, without, domains)),
            share_at_stake(by_source(found, without, texts)),
            share_at_stake(by_source(found, general, GENERAL_DOMAINS)),
            f"{cost:.3f}",
            f"{100 * cost / mean:.0f}%",
        ]
        yield f"| {' | '.join(cells)} |"


def real_sets(found: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
    """The sets of text, without the control and what looks at no data."""
    return {data: values for data, values in found.items() if data not in ("", CONTROL)}


def by_source(
    found: Mapping[str, Mapping[str, float]], sets: Sequence[str], sources: Sequence[str]
) -> Float[np.ndarray, "domain set"]:
    """The numbers of these sets on the domains of these sources."""
    return np.array([[found[data][source] for data in sets] for source in sources])


def share_at_stake(table: Float[np.ndarray, "domain set"]) -> str:
    """Worst less best set by domain, mean of the domains, as a share of the mean."""
    apart = table.max(1) - table.min(1)
    return f"{100 * apart.mean() / table.mean():.0f}%"


def noticed_table(results: Results, labels: Sequence[Label]) -> Iterator[str]:
    """Rows: beside the share in the divergence that in what people notice, by method.

    *Top-1 disagreement* is how often the most likely next token is another one than the dense
    model's: its mean, worst less best set by domain, and that as a share. *Accuracy* is over the
    300 questions of three tasks, by the scoring that the study chose for each: the least and the
    most of the sets, means of draws, and p that sets differ beyond draws (one-way analysis of
    variance, by method, not corrected).
    """
    heads = ["share of KL", "top-1 disagreement", "worst less best set", "share of it"]
    heads += ["accuracy, least to most", "p"]
    yield f"| method | target | {' | '.join(heads)} |"
    yield f"| --- | --- |{' ---: |' * len(heads)}"
    for label in labels:
        _, method, target = label
        divergence = real_sets(divergences(results, label))
        share = share_at_stake(by_source(divergence, list(divergence), list(DOMAINS.values())))
        flips = real_sets(disagreements(results, label))
        table = by_source(flips, list(flips), list(DOMAINS.values()))
        apart = (table.max(1) - table.min(1)).mean()
        cells = [share, f"{100 * table.mean():.1f}%", f"{100 * apart:.1f} points"]
        cells.append(share_at_stake(table))
        drawn = [np.array(of)[:, None] for of in real_sets(accuracies(results, label)).values()]
        means = [float(of.mean()) for of in drawn]
        *_, p = variance_ratio(drawn)
        cells += [f"{min(means):.3f} to {max(means):.3f}", "" if p is None else f"{p:.1g}"]
        yield f"| `{method}` | {target} | {' | '.join(cells)} |"


def disagreements(results: Results, label: Label) -> Mapping[str, Mapping[str, float]]:
    """The share of tokens whose most likely one isn't the dense model's, by set and source: mean
    of the draws.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for cell in results.cells:
        if label_of(cell) != label:
            continue
        for text, measure in cell.measures.items():
            for source in DOMAINS.values():
                if text.startswith("agreement") and f"source='{source}'" in text:
                    agreed = beside(results, cell, measure, "top1_agreement")
                    found.setdefault(cell.data, {}).setdefault(source, []).append(1 - agreed)
    return {
        data: {source: statistics.mean(values) for source, values in of.items()}
        for data, of in found.items()
    }


def accuracies(results: Results, label: Label) -> Mapping[str, list[float]]:
    """The accuracy of each draw by set, mean of the tasks: plain where a task is scored by the
    offered answers, with the answers' own probability taken off where it is scored so.
    """
    found: dict[str, list[float]] = {}
    for cell in results.cells:
        tasks = {t: i for t, i in cell.measures.items() if t.startswith("task")}
        if label_of(cell) != label or not tasks:
            continue
        each = [
            beside(results, cell, i, "acc_prior" if "offered_prior" in text else "acc")
            for text, i in tasks.items()
        ]
        found.setdefault(cell.data, []).append(statistics.mean(each))
    return found


def beside(results: Results, cell: Cell, measure: str, metric: str) -> float:
    """A score that stands beside a measurement."""
    scores = results.scores[cell.run][measure].beside
    return next(score.value for score in scores if score.metric == metric)


def otherwise_table(folder: Path, results: Results) -> Iterator[str]:
    """Rows: worst less best set by method and strength, in the loss of the text and of tasks' right
    answers among those that are offered; behind it what chance makes of alike sets, at most.

    Bold where it is more than that.
    """
    ways = {"loss of the same text": compare(of_text(folder, results)).sensitivities}
    there = {
        of.score.measured
        for cell in results.cells
        for of in results.scores.get(cell.run, {}).values()
    }
    asked = {
        name: tasks
        for name, tasks in TASKS.items()
        if all(any(of.startswith(task) for of in there) for task in tasks)
    }
    ways |= {
        f"{name}, among the offered answers": compare(results, measures=of).sensitivities
        for name, of in asked.items()
    }
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for way, found in ways.items():
        for s in found:
            rows.setdefault((s.method, s.target), {})[way] = (
                f"{_worth(s.worth, s.worth_interval, s.beyond_chance)}; {s.by_chance:.3f}"
            )
    yield f"| method | target | {' | '.join(ways)} |"
    yield f"| --- | --- |{' ---: |' * len(ways)}"
    for (method, target), told in rows.items():
        yield f"| `{method}` | {target} | {' | '.join(told.get(way, '') for way in ways)} |"


def sets_table(results: Results, longer: Results | None = None) -> Iterator[str]:
    """Rows: the mean divergence with each set, by method, where all draws are measured on all
    domains; bold the least of several.

    Several models stand together by method. Where random tokens are among the sets, behind these by
    how much more the model diverges with them than with the best set, with an interval that holds
    jointly over the sets that may be the best; bold where it leaves out zero. Last the sets with
    more tokens, if a study has some (`longer`).
    """
    cells = [cell for cell in results.cells if cell.method != "none"]
    labels, several = (
        [data for data in SETS if any(cell.data == data for cell in cells)],
        len({cell.model for cell in cells}) > 1,
    )
    heads = (
        [SETS[data] for data in labels]
        + ["random tokens less the best"] * (CONTROL in labels)
        + list(MORE.values()) * (longer is not None)
    )
    yield f"| method |{' model |' if several else ''} target | {' | '.join(heads)} |"
    yield f"| --- |{' --- |' if several else ''} --- |{' ---: |' * len(heads)}"
    order = [cell.method for cell in cells]
    for label in sorted(
        dict.fromkeys(map(label_of, cells)),
        key=lambda label: order.index(label[1]) if several else 0,
    ):
        means = {
            data: statistics.mean(of.values()) for data, of in divergences(results, label).items()
        }
        known = [
            value for data, value in means.items() if not math.isnan(value) and data != CONTROL
        ]
        if known:
            least = min(known) if len(known) > 1 else None
            told = {
                data: f"**{value:.3f}**" if value == least else f"{value:.3f}"
                for data, value in means.items()
                if not math.isnan(value)
            }
            shown = [told.get(data, "") for data in labels]
            if CONTROL in labels:
                shown.append(_control(results, label, means))
            if longer is not None:
                with_more = divergences(longer, label)
                shown += [
                    f"{statistics.mean(with_more[data].values()):.3f}" if data in with_more else ""
                    for data in MORE
                ]
            model, method, target = label
            yield f"| {' | '.join([f'`{method}`', *([MODELS[model]] if several else []), target, *shown])} |"


def _control(results: Results, label: Label, means: Mapping[str, float]) -> str:
    """By how much more the model diverges with random tokens than with the best set; nothing
    where it wasn't calibrated on them.
    """
    sets = {
        data: mean
        for data, mean in means.items()
        if data not in ("", CONTROL) and not math.isnan(mean)
    }
    control, best = (
        side(results, label, data)
        for data in (CONTROL, min(sets, key=lambda data: sets[data], default=""))
    )
    return with_interval(contrast(control, best), comparisons=len(sets)) if control and best else ""


def divergences(results: Results, label: Label) -> Mapping[str, Mapping[str, float]]:
    """The mean divergence of the draws by set and by the domain's source; not a number where
    something wasn't measured.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for cell in results.cells:
        for text, measure in cell.measures.items() if label_of(cell) == label else ():
            of = [
                source
                for source in DOMAINS.values()
                if text.startswith("agreement") and f"source='{source}'" in text
            ]
            measured = results.scores.get(cell.run, {}).get(measure)
            for source in of:
                found.setdefault(cell.data, {}).setdefault(source, []).append(
                    measured.score.value if measured else math.nan
                )
    return {
        data: {source: statistics.mean(values) for source, values in of.items()}
        for data, of in found.items()
    }


def by_domain(
    of: Mapping[str, Mapping[str, float]], names: Sequence[str]
) -> Float[np.ndarray, "domain set"]:
    """The divergences of these sets."""
    return np.array([[of[data][domain] for data in names] for domain in DOMAINS.values()])


def alike(one: Float[np.ndarray, "domain set"], other: Float[np.ndarray, "domain set"]) -> str:
    """Two cells: how the ranks of sets on all domains correlate, each domain's ranks by
    themselves; on how many the same set is best.
    """
    first, second = (np.argsort(np.argsort(of, 1), 1).ravel() for of in (one, other))
    same = int((one.argmin(1) == other.argmin(1)).sum())
    return f"{np.corrcoef(first, second)[0, 1]:+.2f} | {same} of {len(one)}"


def smallest_seen(results: Results, found: Iterable[Sensitivity]) -> Mapping[Label, float]:
    """By model, method and target, what true difference between C4 and another set four such
    studies in five find.

    On the mean of the domains; the median over sets.
    """
    least: dict[Label, float] = {}
    for s in found:
        sides = {data: of for data in s.sets if (of := side(results, label_of(s), data))}
        each = [
            detectable(contrast(of, sides["c4"]))
            for data, of in sides.items()
            if data != "c4" and "c4" in sides
        ]
        known = [value for value in each if value is not None]
        if known:
            least[label_of(s)] = statistics.median(known)
    return least


def domains_table(found: Iterable[Sensitivity], strong: Mapping[str, str]) -> Iterator[str]:
    """Rows: the best and the worst set on each domain, with what lies between them, at the stronger
    strength of each method.

    Bold where any two sets differ significantly on the domain.
    """
    yield f"| method | {' | '.join(DOMAINS)} |"
    yield f"| --- |{' --- |' * len(DOMAINS)}"
    for s in found:
        if strong.get(s.method) == s.target:
            chosen = [s.gaps[name] for name in named(s.gaps, DOMAINS.values())]
            cells = [
                f"{SETS[c.best]}, {SETS[c.worst]}: "
                f"{f'**{c.value:.3f}**' if c.significant else f'{c.value:.3f}'}"
                for c in chosen
            ]
            yield f"| `{s.method}` | {' | '.join(cells)} |"


def of_text(folder: Path, results: Results) -> Results:
    """The same results with the loss of the text in the place of its divergence; it stands
    beside that for each document.
    """
    items: dict[str, dict[str, ItemValues]] = {}
    with Store(folder, create=False) as store:
        for run in dict.fromkeys(cell.run for cell in results.cells if cell.run in results.items):
            for measure, values in results.items[run].items():
                beside = next((score for score in values.beside if score.metric == "loss"), None)
                if beside is None:
                    continue
                measurement = store.measurement(run, measure)
                assert measurement is not None
                own = replace(
                    measurement,
                    score=beside,
                    outcomes=tuple(replace(o, value=o.facts["nats"]) for o in measurement.outcomes),
                )
                items.setdefault(run, {})[measure] = ItemValues.of(own)
    return replace(on_domains(results, lambda _: True), items=items)


Question = tuple[str, str, str, float | None]
"""What was asked, what was found, what true difference four such studies in five find at 5 %
(empty for a ratio of variances), and p.
"""


def planned(
    found: Sequence[Sensitivity],
    strong: Mapping[str, str],
    results: Results,
    longer: Results | None = None,
) -> Iterator[str]:
    """Rows: the primary questions, corrected together (Holm).

    `strong` are the methods and their stronger strength, `results` those of one model that `found`
    was made of, `longer` those with more tokens, if a study asks about that.
    """
    (model,) = {cell.model for cell in results.cells}
    by = {(s.method, s.target): s for s in found}
    known = [by[of] for of in strong.items()]
    asked: list[Question] = [
        (f"sets vary beyond draws: `{s.method}`, {s.target}", _ratio(s), "", s.p) for s in known
    ]
    question = "the choice is worth more where weights are fitted than where they are weighed"
    # Without a p: methods are no sample of methods, and several are variants of one another. It
    # counts among the questions that the others are corrected for.
    asked.append((question, in_per_cent(fitted_or_weighed(by, strong)), "", None))
    sides = {
        method: [side(results, (model, method, strong[method]), data) for data in (MIXTURE, "c4")]
        for method in MIXED
    }
    asked += [
        _better(f"the mixture is better than C4: `{method}`", *both)
        for method, both in sides.items()
    ]
    if longer is not None:
        more_tokens = {
            method: side(longer, (model, method, strong[method]), "c4") for method in LONGER
        }
        asked += [
            _better(
                f"32,768 tokens of C4 are better than 8,192 of the mixture: `{m}`", of, sides[m][0]
            )
            for m, of in more_tokens.items()
        ]
    family = [Contrast("", "", "", (), "", "", "", p=p) for *_, p in asked]
    yield "| question | found | 4 in 5 see | p (Holm) |"
    yield "| --- | ---: | ---: | ---: |"
    for (question, told, seen, _), corrected in zip(asked, holm(family), strict=True):
        p = corrected.p_holm
        yield f"| {question} | {f'**{told}**' if p is not None and p < 0.05 else told} | {seen} | {'' if p is None else f'{p:.1g}'} |"


def _ratio(s: Sensitivity) -> str:
    """The variance between sets over that between draws, with its interval; nothing where draws
    don't vary.
    """
    return (
        ""
        if s.ratio is None or s.ratio_interval is None
        else f"{s.ratio:.1f} ({s.ratio_interval[0]:.1f} to {s.ratio_interval[1]:.1f})"
    )


def side(results: Results, label: Label, data: str) -> Mapping[str, Sequence[ItemValues]]:
    """What the draws of a set gave on each of the domains with a method, by what was measured;
    nothing where some of it is missing.
    """
    cells = sorted(
        (cell for cell in results.cells if label_of(cell) == label and cell.data == data),
        key=lambda cell: cell.seed,
    )
    assert len({cell.propagate for cell in cells}) <= 1, "draws of two ways to go through the model"
    each = [
        [results.items.get(cell.run, {}).get(measure) for measure in cell.measures.values()]
        for cell in cells
    ]
    drawn = [
        {of.score.measured: of for of in found if of is not None and of.score.metric == "kl"}
        for found in each
    ]
    whole = drawn and all(len(of) == len(DOMAINS) for of in drawn)
    return {name: [of[name] for of in drawn] for name in drawn[0]} if whole else {}


def _better(
    question: str,
    one: Mapping[str, Sequence[ItemValues]],
    other: Mapping[str, Sequence[ItemValues]],
) -> Question:
    """By how much less the first diverges than the second."""
    found = contrast(other, one)
    return (
        question,
        with_interval(found, False),
        f"{detectable(found) or math.nan:.3f}",
        found.p_value(),
    )


def fitted_or_weighed(
    by: Mapping[tuple[str, str], Sensitivity], strong: Mapping[str, str]
) -> Sequence[float]:
    """By how much the share is larger where weights are fitted than where they are weighed, on
    each domain: means over methods.

    A description: the methods are no sample, several are variants of one, and the domains share
    sets and draws.
    """
    fitted = [by[method, strong[method]] for method in FITTED if method in strong]
    weighing = [by[method, strong[method]] for method in WEIGHING if method in strong]
    apart: list[float] = []
    for name in named(fitted[0].gaps, DOMAINS.values()):
        larger = statistics.mean(_share(s, name) for s in fitted)
        smaller = statistics.mean(_share(s, name) for s in weighing)
        apart.append(larger - smaller)
    return apart


def in_per_cent(apart: Sequence[float]) -> str:
    """The mean of differences of shares, with the least and the largest."""
    mean, least, most = (100 * of for of in (statistics.mean(apart), min(apart), max(apart)))
    return f"{mean:.0f}% ({least:.0f}% to {most:.0f}% by domain)"


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
    results = replace(
        every, cells=tuple(c for c in every.cells if not c.data or STRONG.get(c.method) == c.target)
    )
    found = compare(results, measures=["agreement"]).sensitivities
    with Store(HERE / "more_tokens", create=False) as store:
        longer = read(store)
    asked = list(planned(found, STRONG, results, longer))
    assert len(asked) == 2 + PLANNED
    order = sorted(found, key=lambda s: -(s.share or 0.0))
    labels = [label_of(s) for s in order]
    made = {
        "shares": shares_table(results, labels),
        "noticed": noticed_table(results, labels),
        "sensitivity": sensitivity_table(found, smallest_seen(results, found)),
        "planned": asked,
        "sets": sets_table(results, longer),
        "domains": domains_table(found, STRONG),
        "otherwise": otherwise_table(STORE, results),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
    if "--write" in sys.argv[1:]:
        draw(picture(), "sensitivity", PICTURE)
