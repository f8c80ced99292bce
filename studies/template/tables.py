"""The tables and the picture of docs/findings/template.md, made of the two stores beside this file:
python -m studies.template.tables [--write]

Divergences are nats per token from the untouched model, on rows that no draw calibrates on. A cell
is the mean of the draws of which every set is there, with half of their range; of one draw alone it
is the value.
"""

import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from scipy.stats import spearmanr
from studies.arms import (
    measured_whole,
    planned,
    table_head,
    table_row,
    value_of,
    with_interval,
    with_range,
)
from studies.pages import draw, write_or_print
from studies.spot_check import again

from calibrant.evaluators.agreement import Agreement
from calibrant.lab.report.plots import Plot
from calibrant.lab.report.plots.panels import Mark, Panel, PanelRow, Panels, span_of
from calibrant.lab.report.plots.picture import plotted
from calibrant.lab.report.plots.theme import FAMILIES
from calibrant.lab.stats import contrast
from calibrant.lab.study.file import read_study
from calibrant.results import Cell, Measurement, Store

HERE: Final = Path(__file__).parent
STORE: Final = HERE / "qwen"
ANSWERS: Final = HERE / "answers"
"""Some of the same runs, computed again on another processor, with answers that the model wrote."""
FILE: Final = HERE / "qwen.yaml"
PAGE: Final = HERE.parents[1] / "docs/findings/template.md"
PICTURE: Final = HERE / "picture.json"

SETS: Final[Mapping[str, str]] = {
    "gsm8k:chat": "problems in the template",
    "0.5*gsm8k:chat + 0.5*c4": "half of them, half C4",
    "commonsense_qa:chat": "everyday questions in the template",
    "gsm8k:icl": "the same problems without it",
    "random_letters:chat": "random letters in the template",
    "python_code": "code",
    "c4": "C4",
}
"""The calibration sets, from the nearest to the measured problems to the farthest; `gsm8k:icl` is
what a cell calls `gsm8k:qa`.
"""
IN_PICTURE: Final[Mapping[str, str]] = {
    **SETS,
    "commonsense_qa:chat": "everyday in the template",
    "gsm8k:icl": "problems without it",
    "random_letters:chat": "letters in the template",
}
"""The same in as few letters as a picture has room for."""
FAMILY: Final[Mapping[str, str]] = {
    "gsm8k:chat": "arithmetic",
    "0.5*gsm8k:chat + 0.5*c4": "mixed",
    "commonsense_qa:chat": "commonsense",
    "gsm8k:icl": "arithmetic",
    "random_letters:chat": "control",
    "python_code": "code",
    "c4": "corpus",
}
ROLES: Final = ("template", "question", "answer")
PROBLEMS: Final = "gsm8k:chat"
EVERYDAY: Final = "commonsense_qa:chat"
"""The two texts that are measured by role: rows in the template that no set holds."""
TEXTS: Final[Mapping[str, str]] = {
    PROBLEMS: "problems in the template",
    "gsm8k:qa": "without it",
    EVERYDAY: "everyday questions in it",
    "wikitext:text": "prose",
    "python_code:text": "code",
}
DRAWS: Final = 3
"""How many draws of each set the study's file names."""
HEADLINE: Final = ("sparsegpt", "0.5")
"""The method and target of the picture."""
SHIPPED: Final = ("gptq", "w4g128")
"""The method and target whose damage people accept."""
SOLVED: Final = "gsm8k, 0-shot, in the template"
"""What answers that the model wrote are called."""
WORKED: Final = "gsm8k:chat(worked=True)"
ANSWERED_SETS: Final[Mapping[str, str]] = {**SETS, WORKED: "the same with the way to the answer"}
"""The sets of the runs whose answers were read, in their order."""
SOLVED_AGAINST: Final = ("gsm8k:icl", "c4", WORKED)
"""The sets that problems in the template are compared with by problems solved."""
SOLVED_IN: Final[Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "`sparsegpt` 0.5, draw 2": ("sparsegpt", (2,)),
    "`gptq` w4g128, draw 2": ("gptq", (2,)),
    "`gptq` w4g128, draws 0 and 1": ("gptq", (0, 1)),
}
"""The method and the draws of each comparison of problems solved."""
IN_ORDERS: Final[Mapping[str, tuple[str, str]]] = {
    "problems in the template": (PROBLEMS, "kl"),
    "their questions": (PROBLEMS, "kl_question"),
    "their answers": (PROBLEMS, "kl_answer"),
    "everyday questions in it": (EVERYDAY, "kl"),
    "prose": ("wikitext:text", "kl"),
    "code": ("python_code:text", "kl"),
}
"""The divergences that sets are put in order by: what is measured, and its metric."""


class Way(NamedTuple):
    """A method with its target."""

    method: str
    target: str


Scores = Mapping[str, Measurement]
"""What one run gave, by what was measured."""


class Results:
    """The study's runs that were measured whole, by method, target and calibration set.

    A draw of a method counts once all sets are there, so that sets are compared over the same
    draws. `runs` counts the others too.
    """

    def __init__(self, folder: Path) -> None:
        self.of: dict[Way, dict[str, list[Scores]]] = {}
        self.runs = Counter[Way]()
        self.dense: Scores = {}
        draws: dict[tuple[Way, int], dict[str, Scores]] = {}
        with Store(folder, create=False) as store:
            for cell in store.cells():
                found = measured_whole(store, cell)
                if found is None:
                    continue
                if cell.method == "none":
                    self.dense = found
                    continue
                way = Way(cell.method, cell.target)
                self.runs[way] += 1
                draws.setdefault((way, cell.seed), {})[cell.data] = found
        for (way, _), by_set in draws.items():
            if len(by_set) < len(SETS):
                continue
            sets = self.of.setdefault(way, {})
            for data, found in by_set.items():
                sets.setdefault(data, []).append(found)

    def rows(self) -> Iterator[tuple[Way, str, list[Scores]]]:
        """Yield what there is of each method and set, in the order of `SETS`."""
        for way, sets in self.of.items():
            for data in SETS:
                yield way, data, sets[data]


def cell_of(runs: list[Scores], measured: str, metric: str) -> str:
    """A score in a table's cell: the mean of the draws with half of their range."""
    return with_range([value_of(run[measured], metric) for run in runs])


def head(columns: list[str]) -> Iterator[str]:
    """The two lines above the rows of a table whose first three columns name a run."""
    return table_head(["method", "target", "calibrated on"], columns)


def row(way: Way, data: str, cells: list[str]) -> str:
    """A row of a table whose first three columns name a run."""
    return table_row([f"`{way.method}`", way.target, SETS[data], *cells])


def by_role(results: Results, text: str) -> Iterator[str]:
    """Rows: the divergence on a text in the template, by the role of a token."""
    columns = ["the template's own tokens", "questions", "answers", "top token kept in answers"]
    yield from head(columns)
    for way, data, runs in results.rows():
        cells = [cell_of(runs, text, f"kl_{role}") for role in ROLES]
        kept = [value_of(run[text], "top1_agreement_answer") for run in runs]
        cells.append(f"{statistics.mean(kept):.0%}")
        yield row(way, data, cells)


def by_question(results: Results) -> Iterator[str]:
    """Rows: for each question of the study's file, the divergences of the two sets by method."""
    ways = list(results.of)
    study = read_study(FILE)
    evaluators = study.evaluators()
    yield from table_head(["asked"], [f"`{way.method}` {way.target}" for way in ways])
    for question in study.for_reading()["primary"]:
        (asked_of,) = question["on"]
        agreement = evaluators[asked_of]
        assert isinstance(agreement, Agreement)
        text = agreement.measured
        cells: list[str] = []
        for way in ways:
            sets = results.of[way]
            first = cell_of(sets[question["compare"]], text, "kl")
            second = cell_of(sets[question["with"]], text, "kl")
            cells.append(f"{first} against {second}")
        yield table_row([question["name"], *cells])


def by_text(results: Results) -> Iterator[str]:
    """Rows: the divergence on each text, over all of its tokens."""
    yield from head(list(TEXTS.values()))
    for way, data, runs in results.rows():
        yield row(way, data, [cell_of(runs, text, "kl") for text in TEXTS])


def orders(results: Results) -> Iterator[str]:
    """Rows: how alike the order of the sets is to that with `SHIPPED`, as a rank correlation.

    The two orders are always of different draws, since the same draw shares its text; the mean of
    all such pairs. So the row of `SHIPPED` itself says how much another draw leaves of an order.
    """
    yield from table_head(["method", "target"], list(IN_ORDERS))
    shipped = results.of[Way(*SHIPPED)]
    for way, sets in results.of.items():
        cells: list[str] = []
        for measured, metric in IN_ORDERS.values():
            known = by_draw(sets, measured, metric)
            asked = by_draw(shipped, measured, metric)
            cells.append(f"{alike_in_other_draws(known, asked):.2f}")
        yield table_row([f"`{way.method}`", way.target, *cells])


def by_draw(sets: Mapping[str, list[Scores]], measured: str, metric: str) -> list[list[float]]:
    """A metric of each set, in the order of `SETS`, for each draw."""
    runs_by_draw = zip(*(sets[data] for data in SETS), strict=True)
    return [[value_of(run[measured], metric) for run in runs] for runs in runs_by_draw]


def alike_in_other_draws(known: list[list[float]], asked: list[list[float]]) -> float:
    """The mean rank correlation of each draw with each other one of what is asked."""
    found: list[float] = []
    for number, values in enumerate(known):
        for other, other_values in enumerate(asked):
            if other != number:
                found.append(float(spearmanr(values, other_values).statistic))
    return statistics.mean(found)


def by_loss(results: Results) -> Iterator[str]:
    """Rows: the loss beside the divergence on the same tokens, of labelled answers and of the
    template's own tokens.
    """
    columns = [
        "divergence on answers",
        "loss of the labelled answers",
        "divergence on the template's own tokens",
        "their loss",
    ]
    roles = ("answer", "template")
    yield from head(columns)
    for way, data, runs in results.rows():
        cells: list[str] = []
        for role in roles:
            cells.append(cell_of(runs, PROBLEMS, f"kl_{role}"))
            cells.append(cell_of(runs, PROBLEMS, f"loss_{role}"))
        yield row(way, data, cells)
    untouched: list[str] = []
    for role in roles:
        untouched += ["0", f"{value_of(results.dense[PROBLEMS], f'loss_{role}'):.3f}"]
    yield f"| none | | | {' | '.join(untouched)} |"


def there(results: Results) -> Iterator[str]:
    """Rows: how many runs there are of those that the study's file names, by method and target."""
    runs_of_file: Counter[Way] = Counter()
    for labels in read_study(FILE).labels():
        if labels.data:
            runs_of_file[Way(labels.method, labels.target)] += 1
    yield from table_head(["method", "target"], ["whole draws", "runs there", "runs of the file"])
    for way, runs in runs_of_file.items():
        whole = 0
        if way in results.of:
            whole = len(results.of[way][PROBLEMS])
        numbers = [str(number) for number in (whole, results.runs[way], runs)]
        yield table_row([f"`{way.method}`", way.target, *numbers])


def answered() -> list[tuple[Cell, Scores]]:
    """The runs whose answers were read, in the order of the page; the untouched model is last."""
    found: list[tuple[Cell, Scores]] = []
    with Store(ANSWERS, create=False) as store:
        for cell in store.cells():
            scores = measured_whole(store, cell)
            assert scores is not None, f"{cell.run} isn't measured whole"
            found.append((cell, scores))
    ways = [HEADLINE, SHIPPED]

    def place(run: tuple[Cell, Scores]) -> tuple[int, int, int]:
        cell, _ = run
        if cell.method == "none":
            return len(ways), 0, 0
        way = ways.index((cell.method, cell.target))
        return way, list(ANSWERED_SETS).index(cell.data), cell.seed

    return sorted(found, key=place)


def solved() -> Iterator[str]:
    """Rows: how many problems each run solved, and how long its answers were, beside the
    divergence.
    """
    texts = ["method", "target", "calibrated on", "draw"]
    numbers = ["solved", "answers cut", "tokens of an answer", "divergence on answers"]
    yield from table_head(texts, numbers)
    for cell, scores in answered():
        answers = scores[SOLVED].outcomes
        cut = sum(bool(answer.facts["cut"]) for answer in answers)
        tokens = statistics.mean(answer.facts["tokens"] for answer in answers)
        solved_here = sum(answer.value for answer in answers)
        divergence = value_of(scores[PROBLEMS], "kl_answer")
        cells = [f"{solved_here:.0f} of {len(answers)}", str(cut), f"{tokens:.0f}"]
        if cell.method == "none":
            yield table_row(["none", "", "", "", *cells, "0"])
        else:
            run = [f"`{cell.method}`", cell.target, ANSWERED_SETS[cell.data], str(cell.seed)]
            yield table_row([*run, *cells, f"{divergence:.3f}"])


def solved_against() -> Iterator[str]:
    """Rows: how much larger the share of problems solved is with problems in the template than
    with another set, with an interval over problems, and over draws where there are several.
    """
    runs = {(cell.method, cell.data, cell.seed): scores for cell, scores in answered()}
    yield from table_head(["problems in the template against"], list(SOLVED_IN))
    for other in SOLVED_AGAINST:
        cells: list[str] = []
        for method, draws in SOLVED_IN.values():
            if (method, other, draws[0]) not in runs:
                cells.append("")
                continue
            first = [runs[method, PROBLEMS, draw][SOLVED] for draw in draws]
            second = [runs[method, other, draw][SOLVED] for draw in draws]
            # A contrast says how much worse its first side is.
            better = contrast({SOLVED: second}, {SOLVED: first})
            cells.append(with_interval(better, significant=False))
        yield table_row([ANSWERED_SETS[other], *cells])


def on_another_processor() -> Iterator[str]:
    """Rows: what a run gave on one processor and on another; with how much of what was done to the
    model is the same, as `spot_check` counts it.
    """
    texts = ["method", "target", "calibrated on", "draw"]
    numbers = ["problems in the template", "on the other", "answers", "on the other", "alike"]
    yield from table_head(texts, numbers)
    with Store(STORE, create=False) as kept, Store(ANSWERS, create=False) as fresh:
        there = {cell.labels: cell for cell in kept.cells() if cell.data}
        runs = [(cell, scores) for cell, scores in answered() if cell.labels in there]
        labels = [cell.labels for cell, _ in runs]
        compared = list(again(kept, fresh, [there[label] for label in labels]))
        for (cell, now), one in zip(runs, compared, strict=True):
            before = measured_whole(kept, one.cell)
            assert before is not None
            cells = [f"`{cell.method}`", cell.target, SETS[cell.data], str(cell.seed)]
            for metric in ("kl", "kl_answer"):
                for scores in (before, now):
                    cells.append(f"{value_of(scores[PROBLEMS], metric):.3f}")
            yield table_row([*cells, f"{one.equal:.1%}"])


def picture() -> Plot:
    """The divergence by role of the headline's method, by calibration set."""
    results = Results(STORE)
    sets = results.of[Way(*HEADLINE)]
    panels: list[Panel] = []
    for role in ROLES:
        marks: dict[int, Mark] = {}
        for place, data in enumerate(SETS):
            values = [value_of(run[PROBLEMS], f"kl_{role}") for run in sets[data]]
            reach = (min(values), max(values))
            marks[place] = Mark(statistics.mean(values), reach, FAMILY[data])
        panels.append(Panel(role, marks, span_of(list(marks.values()))))
    families = {FAMILY[data] for data in SETS}
    styles = {family: style for family, style in FAMILIES.items() if family in families}
    rows = tuple(PanelRow(IN_PICTURE[data]) for data in SETS)
    about = "divergence from the untouched model, nats/token; less is better"
    drawn = Panels(rows, tuple(panels), styles, about)
    title = "What the template is worth: Qwen2.5-Coder-1.5B-Instruct, SparseGPT at 50 %"
    return plotted(
        ("template",),
        title,
        f"{title}. The numbers are those of the table.",
        drawn.chart,
        drawn.data,
        CAPTION if any(len(runs) > 1 for runs in sets.values()) else CAPTION_OF_ONE_DRAW,
        families,
    )


CAPTION_OF_ONE_DRAW: Final = (
    "Each mark: how far the compressed model is from the untouched one on tokens of one role, mean "
    "of the draws, when it is calibrated on the set at the left",
    "The axes differ",
)
CAPTION: Final = (*CAPTION_OF_ONE_DRAW, "Lines: from the least to the most of the draws")


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    results = Results(STORE)
    made = {
        "by role": by_role(results, PROBLEMS),
        "by role, everyday questions": by_role(results, EVERYDAY),
        "by question": by_question(results),
        "by text": by_text(results),
        "orders": orders(results),
        "by loss": by_loss(results),
        "there": there(results),
        "solved": solved(),
        "solved against": solved_against(),
        "on another processor": on_another_processor(),
    }
    # Nothing is tested before all draws of a method are there.
    finished = {way for way, sets in results.of.items() if len(sets[PROBLEMS]) == DRAWS}
    if finished:
        made["planned"] = planned(STORE, finished)
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
    if "--write" in sys.argv[1:]:
        draw(picture(), "template", PICTURE)
