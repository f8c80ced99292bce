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
from typing import Final, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int
from studies.arms import (
    bold_if,
    named,
    number_or_nothing,
    source_of,
    table_head,
    table_row,
    with_interval,
)
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
T = TypeVar("T")


def label_of(found: Sensitivity | Cell) -> Label:
    """Its model, method and target."""
    return found.model, found.method, found.target


def label_heads(several_models: bool) -> list[str]:
    """The heads of the first columns of a table."""
    return ["method", "model", "target"] if several_models else ["method", "target"]


def label_cells(label: Label, several_models: bool) -> list[str]:
    """The first cells of a row, below `label_heads`."""
    model, method, target = label
    return [f"`{method}`", MODELS[model], target] if several_models else [f"`{method}`", target]


def on_domains(results: Results, chosen: Callable[[Cell], bool]) -> Results:
    """The results of these cells on the domains, without tasks."""
    cells: list[Cell] = []
    for cell in results.cells:
        if chosen(cell):
            measures = {
                text: measure
                for text, measure in cell.measures.items()
                if text.startswith("agreement")
            }
            cells.append(replace(cell, measures=measures))
    return replace(results, cells=tuple(cells))


def sensitivity_table(found: Sequence[Sensitivity], seen: Mapping[Label, float]) -> Iterator[str]:
    """Rows: what the choice of set is worth by method and target, the most of the divergence first;
    and what could be `seen`.

    By domain, each with its own best and worst set, and where one set must serve all domains.
    Several models or targets stand together by method.
    """
    several_models = len({sensitivity.model for sensitivity in found}) > 1
    yield from table_head(
        label_heads(several_models),
        [
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
        ],
    )

    def place(sensitivity: Sensitivity) -> tuple[float, int]:
        of_method = [other for other in found if other.method == sensitivity.method]
        most = max(other.share or 0.0 for other in of_method)
        return -most, list(MODELS).index(sensitivity.model)

    for sensitivity in sorted(found, key=place):
        label = label_of(sensitivity)
        mean = sensitivity.increase or math.nan
        one = sensitivity.gaps[MEAN]
        yield table_row(
            [
                *label_cells(label, several_models),
                f"{mean:.3f}",
                _worth_by_domain(sensitivity),
                f"{sensitivity.cross_fitted:.3f}",
                f"{sensitivity.by_chance:.3f}",
                f"{100 * sensitivity.worth / mean:.0f}%",
                _worth(one.value, one.interval, one.significant),
                f"{100 * one.value / mean:.0f}%",
                number_or_nothing(seen.get(label), ".3f"),
                _ratio(sensitivity),
                number_or_nothing(sensitivity.p, ".1g"),
            ]
        )


def _worth_by_domain(sensitivity: Sensitivity) -> str:
    return _worth(sensitivity.worth, sensitivity.worth_interval, sensitivity.beyond_chance)


def _worth(value: float, interval: tuple[float, float], bold: bool) -> str:
    """With its interval, bold where it is more than chance makes of it."""
    low, high = interval
    return bold_if(bold, f"{value:.3f} ({low:.3f} to {high:.3f})")


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
    several_models = len({model for model, *_ in labels}) > 1
    yield from table_head(
        label_heads(several_models),
        [
            "all sets",
            "without the code set",
            "without code, set and domain",
            "general sets on general domains",
            "C4 costs",
            "of the mean",
        ],
    )
    domains = list(DOMAINS.values())
    texts = [source for source in domains if source != CODE]
    for label in labels:
        found = real_sets(divergences(results, label))
        without = [data for data in found if data != CODE]
        general = [data for data in sets if data in found]
        every = by_source(found, list(found), domains)
        of_c4 = by_source(found, ["c4"], domains)[:, 0]
        cost = float((of_c4 - every.min(1)).mean())
        yield table_row(
            [
                *label_cells(label, several_models),
                share_at_stake(every),
                share_at_stake(by_source(found, without, domains)),
                share_at_stake(by_source(found, without, texts)),
                share_at_stake(by_source(found, general, GENERAL_DOMAINS)),
                f"{cost:.3f}",
                f"{100 * cost / every.mean():.0f}%",
            ]
        )


def real_sets(found: Mapping[str, T]) -> Mapping[str, T]:
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
    yield from table_head(
        label_heads(several_models=False),
        [
            "share of KL",
            "top-1 disagreement",
            "worst less best set",
            "share of it",
            "accuracy, least to most",
            "p",
        ],
    )
    domains = list(DOMAINS.values())
    for label in labels:
        divergence = real_sets(divergences(results, label))
        flips = real_sets(disagreements(results, label))
        table = by_source(flips, list(flips), domains)
        apart = (table.max(1) - table.min(1)).mean()
        by_set = real_sets(accuracies(results, label))
        drawn = [np.array(of_draws)[:, None] for of_draws in by_set.values()]
        means = [float(of_draws.mean()) for of_draws in drawn]
        *_, p = variance_ratio(drawn)
        yield table_row(
            [
                *label_cells(label, several_models=False),
                share_at_stake(by_source(divergence, list(divergence), domains)),
                f"{100 * table.mean():.1f}%",
                f"{100 * apart:.1f} points",
                share_at_stake(table),
                f"{min(means):.3f} to {max(means):.3f}",
                number_or_nothing(p, ".1g"),
            ]
        )


def disagreements(results: Results, label: Label) -> Mapping[str, Mapping[str, float]]:
    """The share of tokens whose most likely one isn't the dense model's, by set and source: mean
    of the draws.
    """

    def disagreement(cell: Cell, measure: str) -> float:
        return 1 - beside(results, cell, measure, "top1_agreement")

    return means_by_domain(results, label, disagreement)


def accuracies(results: Results, label: Label) -> Mapping[str, list[float]]:
    """The accuracy of each draw by set, mean of the tasks: plain where a task is scored by the
    offered answers, with the answers' own probability taken off where it is scored so.
    """
    found: dict[str, list[float]] = {}
    for cell in results.cells:
        if label_of(cell) != label:
            continue
        of_tasks: list[float] = []
        for text, measure in cell.measures.items():
            if text.startswith("task"):
                metric = "acc_prior" if "offered_prior" in text else "acc"
                of_tasks.append(beside(results, cell, measure, metric))
        if of_tasks:
            found.setdefault(cell.data, []).append(statistics.mean(of_tasks))
    return found


def beside(results: Results, cell: Cell, measure: str, metric: str) -> float:
    """A score that stands beside a measurement."""
    scores = results.scores[cell.run][measure].beside
    (found,) = [score.value for score in scores if score.metric == metric]
    return found


def otherwise_table(folder: Path, results: Results) -> Iterator[str]:
    """Rows: worst less best set by method and strength, in the loss of the text and of tasks' right
    answers among those that are offered; behind it what chance makes of alike sets, at most.

    Bold where it is more than that.
    """
    ways = {"loss of the same text": compare(of_text(folder, results)).sensitivities}
    sources: set[str] = set()
    for cell in results.cells:
        scores = results.scores.get(cell.run, {})
        sources.update(source_of(measured.score.measured) for measured in scores.values())
    for name, tasks in TASKS.items():
        if sources.issuperset(tasks):
            way = f"{name}, among the offered answers"
            ways[way] = compare(results, measures=tasks).sensitivities
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for way, found in ways.items():
        for sensitivity in found:
            cells = rows.setdefault((sensitivity.method, sensitivity.target), {})
            cells[way] = f"{_worth_by_domain(sensitivity)}; {sensitivity.by_chance:.3f}"
    yield from table_head(["method", "target"], list(ways))
    for (method, target), cells in rows.items():
        yield table_row([f"`{method}`", target, *(cells.get(way, "") for way in ways)])


def sets_table(results: Results, longer: Results | None = None) -> Iterator[str]:
    """Rows: the mean divergence with each set, by method, where all draws are measured on all
    domains; bold the least of several.

    Several models stand together by method. Where random tokens are among the sets, behind these by
    how much more the model diverges with them than with the best set, with an interval that holds
    jointly over the sets that may be the best; bold where it leaves out zero. Last the sets with
    more tokens, if a study has some (`longer`).
    """
    cells = [cell for cell in results.cells if cell.method != "none"]
    there = {cell.data for cell in cells}
    sets = [data for data in SETS if data in there]
    has_control = CONTROL in there
    several_models = len({cell.model for cell in cells}) > 1
    heads = [SETS[data] for data in sets]
    if has_control:
        heads.append("random tokens less the best")
    if longer is not None:
        heads += MORE.values()
    yield from table_head(label_heads(several_models), heads)
    labels = list(dict.fromkeys(map(label_of, cells)))
    if several_models:
        methods = [cell.method for cell in cells]
        labels.sort(key=lambda label: methods.index(label[1]))
    for label in labels:
        means = known_means(divergences(results, label))
        of_sets = [mean for data, mean in means.items() if data != CONTROL]
        if not of_sets:
            continue
        least = min(of_sets) if len(of_sets) > 1 else None
        best = {data for data, mean in means.items() if mean == least}
        shown = [bold_if(data in best, number_or_nothing(means.get(data), ".3f")) for data in sets]
        if has_control:
            shown.append(_control(results, label, means))
        if longer is not None:
            with_more = known_means(divergences(longer, label))
            shown += [number_or_nothing(with_more.get(data), ".3f") for data in MORE]
        yield table_row([*label_cells(label, several_models), *shown])


def known_means(found: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The mean over the domains by set, where all of them are measured."""
    means = {data: statistics.mean(values.values()) for data, values in found.items()}
    return {data: mean for data, mean in means.items() if not math.isnan(mean)}


def _control(results: Results, label: Label, means: Mapping[str, float]) -> str:
    """By how much more the model diverges with random tokens than with the best set; nothing
    where it wasn't calibrated on them.
    """
    sets = real_sets(means)
    if not sets:
        return ""
    best = min(sets, key=lambda data: sets[data])
    of_control, of_best = side(results, label, CONTROL), side(results, label, best)
    if not of_control or not of_best:
        return ""
    return with_interval(contrast(of_control, of_best), comparisons=len(sets))


def divergences(results: Results, label: Label) -> Mapping[str, Mapping[str, float]]:
    """The mean divergence of the draws by set and by the domain's source; not a number where
    something wasn't measured.
    """

    def divergence(cell: Cell, measure: str) -> float:
        measured = results.scores.get(cell.run, {}).get(measure)
        return math.nan if measured is None else measured.score.value

    return means_by_domain(results, label, divergence)


def means_by_domain(
    results: Results, label: Label, value: Callable[[Cell, str], float]
) -> Mapping[str, Mapping[str, float]]:
    """The mean of the draws by set and by the domain's source; `value` says what a cell's
    measurement gave.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for cell in results.cells:
        if label_of(cell) != label:
            continue
        for text, measure in cell.measures.items():
            source = domain_source(text)
            if source is not None:
                of_source = found.setdefault(cell.data, {}).setdefault(source, [])
                of_source.append(value(cell, measure))
    means: dict[str, dict[str, float]] = {}
    for data, of_set in found.items():
        means[data] = {source: statistics.mean(values) for source, values in of_set.items()}
    return means


def domain_source(evaluator: str) -> str | None:
    """The source of the domain whose divergence this measures; None for anything else."""
    if evaluator.startswith("agreement"):
        for source in DOMAINS.values():
            if f"source='{source}'" in evaluator:
                return source
    return None


def by_domain(
    found: Mapping[str, Mapping[str, float]], sets: Sequence[str]
) -> Float[np.ndarray, "domain set"]:
    """The divergences of these sets."""
    return by_source(found, sets, list(DOMAINS.values()))


def alike(one: Float[np.ndarray, "domain set"], other: Float[np.ndarray, "domain set"]) -> str:
    """Two cells: how the ranks of sets on all domains correlate, each domain's ranks by
    themselves; on how many the same set is best.
    """
    first, second = _ranks(one).ravel(), _ranks(other).ravel()
    correlation = np.corrcoef(first, second)[0, 1]
    same = int((one.argmin(1) == other.argmin(1)).sum())
    return f"{correlation:+.2f} | {same} of {len(one)}"


def _ranks(table: Float[np.ndarray, "domain set"]) -> Int[np.ndarray, "domain set"]:
    """The rank of each set on each domain."""
    return np.argsort(np.argsort(table, 1), 1)


def smallest_seen(results: Results, found: Iterable[Sensitivity]) -> Mapping[Label, float]:
    """By model, method and target, what true difference between C4 and another set four such
    studies in five find.

    On the mean of the domains; the median over sets.
    """
    least: dict[Label, float] = {}
    for sensitivity in found:
        label = label_of(sensitivity)
        sides = {data: side(results, label, data) for data in sensitivity.sets}
        usual = sides.pop("c4", {})
        if not usual:
            continue
        others = [of_set for of_set in sides.values() if of_set]
        differences = [detectable(contrast(of_set, usual)) for of_set in others]
        known = [difference for difference in differences if difference is not None]
        if known:
            least[label] = statistics.median(known)
    return least


def domains_table(found: Iterable[Sensitivity], strong: Mapping[str, str]) -> Iterator[str]:
    """Rows: the best and the worst set on each domain, with what lies between them, at the stronger
    strength of each method.

    Bold where any two sets differ significantly on the domain.
    """
    yield from table_head(["method", *DOMAINS], [])
    for sensitivity in found:
        if strong.get(sensitivity.method) != sensitivity.target:
            continue
        cells: list[str] = []
        for name in named(sensitivity.gaps, DOMAINS.values()):
            gap = sensitivity.gaps[name]
            value = bold_if(gap.significant, f"{gap.value:.3f}")
            cells.append(f"{SETS[gap.best]}, {SETS[gap.worst]}: {value}")
        yield table_row([f"`{sensitivity.method}`", *cells])


def of_text(folder: Path, results: Results) -> Results:
    """The same results with the loss of the text in the place of its divergence; it stands
    beside that for each document.
    """
    runs = dict.fromkeys(cell.run for cell in results.cells if cell.run in results.items)
    items: dict[str, dict[str, ItemValues]] = {}
    with Store(folder, create=False) as store:
        for run in runs:
            for measure, values in results.items[run].items():
                losses = [score for score in values.beside if score.metric == "loss"]
                if not losses:
                    continue
                measurement = store.measurement(run, measure)
                assert measurement is not None
                outcomes = [
                    replace(outcome, value=outcome.facts["nats"])
                    for outcome in measurement.outcomes
                ]
                of_loss = replace(measurement, score=losses[0], outcomes=tuple(outcomes))
                items.setdefault(run, {})[measure] = ItemValues.of(of_loss)
    return replace(on_domains(results, lambda _: True), items=items)


class Question(NamedTuple):
    """What was asked, what was found, what true difference four such studies in five find at 5 %
    (empty for a ratio of variances), and p.
    """

    asked: str
    found: str
    seen: str
    p: float | None


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
    by_method = {(sensitivity.method, sensitivity.target): sensitivity for sensitivity in found}
    questions: list[Question] = []
    for method, target in strong.items():
        known = by_method[method, target]
        asked = f"sets vary beyond draws: `{method}`, {target}"
        questions.append(Question(asked, _ratio(known), "", known.p))
    # Without a p: methods are no sample of methods, and several are variants of one another. It
    # counts among the questions that the others are corrected for.
    asked = "the choice is worth more where weights are fitted than where they are weighed"
    larger = in_per_cent(fitted_or_weighed(by_method, strong))
    questions.append(Question(asked, larger, "", None))
    for method in MIXED:
        label = (model, method, strong[method])
        mixture, usual = side(results, label, MIXTURE), side(results, label, "c4")
        asked = f"the mixture is better than C4: `{method}`"
        questions.append(_better(asked, mixture, usual))
    if longer is not None:
        for method in LONGER:
            label = (model, method, strong[method])
            more_tokens, mixture = side(longer, label, "c4"), side(results, label, MIXTURE)
            asked = f"32,768 tokens of C4 are better than 8,192 of the mixture: `{method}`"
            questions.append(_better(asked, more_tokens, mixture))
    yield from table_head(["question"], ["found", "4 in 5 see", "p (Holm)"])
    together = corrected([question.p for question in questions])
    for question, p in zip(questions, together, strict=True):
        told = bold_if(p is not None and p < 0.05, question.found)
        yield table_row([question.asked, told, question.seen, number_or_nothing(p, ".1g")])


def corrected(values: Sequence[float | None]) -> list[float | None]:
    """Each p, corrected for all of them together (Holm)."""
    family = [Contrast("", "", "", (), "", "", "", p=p) for p in values]
    return [question.p_holm for question in holm(family)]


def _ratio(sensitivity: Sensitivity) -> str:
    """The variance between sets over that between draws, with its interval; nothing where draws
    don't vary.
    """
    if sensitivity.ratio is None or sensitivity.ratio_interval is None:
        return ""
    low, high = sensitivity.ratio_interval
    return f"{sensitivity.ratio:.1f} ({low:.1f} to {high:.1f})"


def side(results: Results, label: Label, data: str) -> Mapping[str, Sequence[ItemValues]]:
    """What the draws of a set gave on each of the domains with a method, by what was measured;
    nothing where some of it is missing.
    """
    cells = sorted(
        (cell for cell in results.cells if label_of(cell) == label and cell.data == data),
        key=lambda cell: cell.seed,
    )
    assert len({cell.propagate for cell in cells}) <= 1, "draws of two ways to go through the model"
    drawn: list[dict[str, ItemValues]] = []
    for cell in cells:
        by_measured: dict[str, ItemValues] = {}
        for measure in cell.measures.values():
            values = results.items.get(cell.run, {}).get(measure)
            if values is not None and values.score.metric == "kl":
                by_measured[values.score.measured] = values
        if len(by_measured) != len(DOMAINS):
            return {}
        drawn.append(by_measured)
    if not drawn:
        return {}
    return {name: [draw[name] for draw in drawn] for name in drawn[0]}


def _better(
    asked: str,
    one: Mapping[str, Sequence[ItemValues]],
    other: Mapping[str, Sequence[ItemValues]],
) -> Question:
    """By how much less the first diverges than the second."""
    found = contrast(other, one)
    seen = detectable(found) or math.nan
    return Question(asked, with_interval(found, False), f"{seen:.3f}", found.p_value())


def fitted_or_weighed(
    by_method: Mapping[tuple[str, str], Sensitivity], strong: Mapping[str, str]
) -> Sequence[float]:
    """By how much the share is larger where weights are fitted than where they are weighed, on
    each domain: means over methods.

    A description: the methods are no sample, several are variants of one, and the domains share
    sets and draws.
    """
    fitted = [by_method[method, strong[method]] for method in FITTED if method in strong]
    weighing = [by_method[method, strong[method]] for method in WEIGHING if method in strong]
    apart: list[float] = []
    for name in named(fitted[0].gaps, DOMAINS.values()):
        larger = statistics.mean(_share(sensitivity, name) for sensitivity in fitted)
        smaller = statistics.mean(_share(sensitivity, name) for sensitivity in weighing)
        apart.append(larger - smaller)
    return apart


def in_per_cent(apart: Sequence[float]) -> str:
    """The mean of differences of shares, with the least and the largest."""
    mean = 100 * statistics.mean(apart)
    least, most = 100 * min(apart), 100 * max(apart)
    return f"{mean:.0f}% ({least:.0f}% to {most:.0f}% by domain)"


def _share(sensitivity: Sensitivity, name: str) -> float:
    """Worst less best set on a domain, as a share of the method's mean divergence."""
    return sensitivity.gaps[name].value / (sensitivity.increase or 1.0)


def picture() -> Plot:
    """What the choice of set is worth, by method at its stronger strength."""
    with Store(STORE, create=False) as store:
        found = compare(read(store), measures=["agreement"]).sensitivities
    strong = [one for one in found if STRONG.get(one.method) == one.target]
    drawn = worth(strong)
    assert drawn is not None
    return drawn


def by_share(found: Iterable[Sensitivity]) -> list[Sensitivity]:
    """Those with the largest share first."""
    return sorted(found, key=lambda sensitivity: -(sensitivity.share or 0.0))


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    with Store(STORE, create=False) as store:
        every = read(store)
    cells = [
        cell for cell in every.cells if not cell.data or STRONG.get(cell.method) == cell.target
    ]
    results = replace(every, cells=tuple(cells))
    found = compare(results, measures=["agreement"]).sensitivities
    with Store(HERE / "more_tokens", create=False) as store:
        longer = read(store)
    asked = list(planned(found, STRONG, results, longer))
    assert len(asked) == 2 + PLANNED
    labels = [label_of(sensitivity) for sensitivity in by_share(found)]
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
