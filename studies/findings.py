"""The tables and the picture of docs/findings/c4.md, made of the records: python -m
studies.findings [--write]

Without `--write` the tables are printed; with it they are put between the page's marks, what
`calibrant report` tells goes into smollm2/report.md and smollm2/report.json.gz beside the records,
and the picture is drawn; smollm2/picture.json has its numbers.
"""

import gzip
import math
import re
import statistics
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from studies.ablations import run as ablations
from studies.arms import (
    Measured,
    markdown_row,
    named,
    span,
    table_head,
    table_row,
    worse,
)
from studies.made import note_hashes
from studies.packing import run as packing
from studies.pages import draw, filled
from studies.spot_check import again, equal, markdown, record_of

from calibrant.lab.report import report
from calibrant.lab.report.plots import Plot
from calibrant.lab.report.plots.panels import Mark, Panel, PanelRow, Panels, span_of
from calibrant.lab.report.plots.picture import plotted
from calibrant.lab.report.plots.theme import FAMILIES
from calibrant.lab.stats import Draws, Estimate, detectable, draws, label_set
from calibrant.results import Measurement, Outcome, Score, Store

HERE = Path(__file__).parent
STORE = HERE / "smollm2"
AGAIN = HERE / "again"
"""Ten runs of it, chosen by chance, computed again by `spot_check`."""
ELSEWHERE = HERE / "elsewhere"
"""A run of it and the dense model, computed again by `spot_check --elsewhere`."""
PAGE = HERE.parent / "docs/findings/c4.md"
PICTURE = STORE / "picture.json"
"""What the picture shows."""
KINDS = {
    "arithmetic": ("gsm8k", "svamp", "mawps"),
    "inference": ("esnli", "anli_r1", "anli_r3"),
    "commonsense": ("commonsense_qa", "race", "winogrande"),
    "text": ("c4", "pile", "redpajama", "wikipedia"),
}
"""What was measured, by kind; the first three are the nine tasks."""
TASKS = (*KINDS["arithmetic"], *KINDS["inference"], *KINDS["commonsense"])
COLUMNS = {"nine tasks": TASKS, **KINDS}
ON_TASKS = {kind: names for kind, names in COLUMNS.items() if kind != "text"}
MEASURED = len(TASKS) + len(KINDS["text"])

BASELINE = "c4"
HEADLINE = ("wanda", "0.6", "dense")
LONG = (
    "redpajama(subsets=['common_crawl', 'github', 'wikipedia', 'arxiv', 'stackexchange', 'book'])"
)
SHORT = {LONG: "redpajama without its C4"}
FORMATS = ("zero", "single", "cot")
SHOWN = ("pile", "gsm8k:icl", "esnli:icl", "commonsense_qa:icl", "random_tokens")
"""Sets whose accuracies are shown beside those of C4."""

Sets = Mapping[str, Measured]
Group = tuple[str, str, str]
"""A method, a target and a propagation."""


def groups(store: Store) -> Mapping[Group, Sets]:
    """By method, target and propagation: every set that was measured whole, and what its draws
    gave. The dense model's is `none`.
    """
    asked = dict.fromkeys(
        (cell.method, cell.target, cell.propagate, cell.data) for cell in store.cells()
    )
    found: dict[Group, dict[str, Measured]] = {}
    for method, target, propagate, data in asked:
        measured = draws(store, method=method, target=target, propagate=propagate, data=data)
        if len(measured) == MEASURED:
            sets_of_group = found.setdefault((method, target, propagate), {})
            sets_of_group[data] = measured
    return found


def tables() -> dict[str, str]:
    """Each table in Markdown, by the name that the page marks its place with."""
    with Store(STORE, create=False) as store:
        found = groups(store)
    rows = {
        "detectable": detectable_differences(found),
        "sets": sets(found),
        "choices": choices(found),
        "accuracies": accuracies(found),
        "formats": formats(found),
        "words": words(found),
        "methods": methods(found),
        "costs": costs(),
        "choices of methods": choices_of_methods(found),
        "ways": ways(found),
    }
    made = {name: "\n".join(lines) for name, lines in rows.items()}
    made["contrasts"] = contrasts()
    made["packing"] = "\n\n".join(packing.steps())
    made["amounts"] = "\n\n".join(ablations.tables())
    made["runs"] = runs()
    made["again"] = recomputed()
    made["elsewhere"] = elsewhere()
    return made


def detectable_differences(found: Mapping[Group, Sets]) -> Iterator[str]:
    """What differences the headline can show: two sets of three draws, on each kind of what was
    measured.
    """
    here = found[HEADLINE]
    usual = here[BASELINE]
    others = [
        measured
        for name, measured in here.items()
        if name != BASELINE and not label_set(name).control
    ]
    yield from table_head(
        ["measured on"],
        [
            "found by 4 such studies in 5: median (least to most)",
            "variance between draws",
            "draws of c4 lie apart",
            "of pile",
        ],
    )
    for kind, names in COLUMNS.items():
        estimates = [worse(measured, usual, names) for measured in others]
        differences = [detectable(estimate) for estimate in estimates]
        least = sorted(difference for difference in differences if difference is not None)
        share = statistics.median(estimate.draws_share for estimate in estimates)
        yield table_row(
            [
                kind,
                f"{statistics.median(least):.3f} ({least[0]:.3f} to {least[-1]:.3f})",
                f"{share:.0%}",
                f"{span(usual, names):.3f}",
                f"{span(here['pile'], names):.3f}",
            ]
        )


def sets(found: Mapping[Group, Sets]) -> Iterator[str]:
    """How much worse than C4 corpora, tasks' texts in rows, and controls are, at the headline's
    method and sparsity; C4 against the dense model.

    Bold differs significantly from C4 at 95 %, jointly over the sets of a column.
    """
    yield from compared({"": plain(found[HEADLINE])}, found, "calibrated on")


def plain(here: Sets) -> dict[str, Measured]:
    """Of these sets the corpora, the tasks' texts in rows, and the controls."""
    return {name: measured for name, measured in here.items() if form(name) in ("", "icl")}


def formats(found: Mapping[Group, Sets]) -> Iterator[str]:
    """How much worse than its `icl` each other format of a source is; bold as in `sets`."""
    here = found[HEADLINE]
    asked: list[str] = []
    for name in here:
        if form(name) not in ("", "icl") and icl_of(name) in here:
            asked.append(name)
    asked.sort(key=lambda name: (FORMATS.index(form(name)), TASKS.index(label_set(name).source)))
    yield from table_head(["against the same source's `icl`"], ["its own task", *COLUMNS])
    for name in asked:
        columns = [(label_set(name).source,), *COLUMNS.values()]
        estimates = [worse(here[name], here[icl_of(name)], names) for names in columns]
        yield markdown_row(f"`{name}`", estimates, len(asked))


def icl_of(name: str) -> str:
    """The set of the same source in the format `icl`."""
    return f"{label_set(name).source}:icl"


def words(found: Mapping[Group, Sets]) -> Iterator[str]:
    """The formats' difference from `icl` over the nine tasks, mean over the sources that have
    both: of the loss, and among the offered answers.
    """
    here = found[HEADLINE]
    yield from table_head(
        ["against `icl`, mean over sources"],
        ["sources", "loss of the right answer", "among the answers offered"],
    )
    for name in FORMATS:
        sources = [source for source in TASKS if f"{source}:{name}" in here]
        if not sources:
            continue
        loss: list[float] = []
        among_offered: list[float] = []
        for source in sources:
            asked, icl = here[f"{source}:{name}"], here[f"{source}:icl"]
            loss.append(worse(asked, icl, TASKS).value)
            among_offered.append(worse(offered(asked), offered(icl), TASKS).value)
        means = [f"{statistics.mean(values):+.3f}" for values in (loss, among_offered)]
        yield table_row([f"`{name}`", f"{len(sources)}", *means])


def methods(found: Mapping[Group, Sets]) -> Iterator[str]:
    """The same as `sets` for every other method, sparsity and propagation."""
    yield from compared(others(found), found, "method, sparsity and set")


def others(found: Mapping[Group, Sets]) -> dict[str, Sets]:
    """All but the headline, by what a row calls them."""
    left: dict[str, Sets] = {}
    for group, here in found.items():
        method, target, way = group
        if method == "none" or group == HEADLINE:
            continue
        name = f"{method} {target}"
        if way == "reference":
            name += ", reference"
        left[name] = here
    return left


def ways(found: Mapping[Group, Sets]) -> Iterator[str]:
    """How much worse `reference` is than the way a method goes unless asked otherwise, draw by
    draw on the same tokens; bold as in `markdown_row`.
    """
    default: dict[tuple[str, str], Sets] = {}
    asked: list[tuple[str, str, str]] = []
    for (method, target, way), here in found.items():
        if way == "reference":
            asked.extend((method, target, name) for name in here)
        else:
            default[method, target] = here
    yield from table_head(
        ["`reference` against the default"], [*COLUMNS, "nine tasks, of the offered"]
    )
    for method, target, name in asked:
        reference = found[method, target, "reference"][name]
        usual = default[method, target][name]
        estimates = [worse(reference, usual, names) for names in COLUMNS.values()]
        estimates.append(worse(offered(reference), offered(usual), TASKS))
        yield markdown_row(f"{method}: `{name}`", estimates, len(asked))


def compared(
    several: Mapping[str, Sets],
    found: Mapping[Group, Sets],
    head: str,
    columns: Mapping[str, tuple[str, ...]] = COLUMNS,
) -> Iterator[str]:
    """A table of what is worse than C4 by how much, in each of several groups; one that lacks C4
    is compared with the dense model alone.
    """
    (dense,) = found["none", "0.0", ""].values()
    yield from table_head([head], ["draws", *columns])
    for group, here in several.items():
        lead = f"{group}: " if group else ""
        usual = here.get(BASELINE)
        above_dense = here if usual is None else {BASELINE: usual}
        for name, measured in above_dense.items():
            shown = f"`{name}`, " if name else ""
            rises = [f"{worse(measured, dense, names):+.3f}" for names in columns.values()]
            yield table_row([f"{lead}{shown}above dense", f"{count(measured)}", *rises])
        if usual is None:
            continue
        estimates: dict[str, list[Estimate]] = {}
        for name, measured in here.items():
            if name != BASELINE:
                estimates[name] = [worse(measured, usual, names) for names in columns.values()]
        for name in sorted(estimates, key=lambda name: estimates[name][0].value):
            shown = f"{lead}`{SHORT.get(name, name)}` | {count(here[name])}"
            yield markdown_row(shown, estimates[name], len(estimates))


def choices(found: Mapping[Group, Sets]) -> Iterator[str]:
    """The table of `sets` for the tasks, had the model to choose among the answers that are
    offered: what is lost on their words is no loss.
    """
    only = {group: all_offered(plain(here)) for group, here in found.items()}
    yield from compared({"": only[HEADLINE]}, only, "calibrated on", ON_TASKS)


def choices_of_methods(found: Mapping[Group, Sets]) -> Iterator[str]:
    """That of `methods` in the same way."""
    only = {group: all_offered(here) for group, here in found.items()}
    yield from compared(others(only), only, "method, sparsity and set", ON_TASKS)


def all_offered(here: Sets) -> Sets:
    """These sets with what `offered` makes of each."""
    return {name: offered(measured) for name, measured in here.items()}


def offered(measured: Measured) -> dict[str, Draws]:
    """The same with, for each item, the nats of the right answer among those offered: −log of
    its share of their probability.
    """
    found: dict[str, Draws] = {}
    for task in named(measured, TASKS):
        found[task] = [
            replace(draw, outcomes=tuple(map(_offered, draw.outcomes))) for draw in measured[task]
        ]
    return found


def _offered(item: Outcome) -> Outcome:
    nats = item.facts["choices"]
    of_right_answer = nats[item.facts["gold"]]
    log_of_sum = math.log(math.fsum(math.exp(-choice) for choice in nats))
    return Outcome(item.item, of_right_answer + log_of_sum)


def accuracies(found: Mapping[Group, Sets]) -> Iterator[str]:
    """The share of right answers on each task, in per cent, mean of the draws, and what guessing
    gets.
    """
    (dense,) = found["none", "0.0", ""].values()
    rows = {"dense": dense}
    for name in (BASELINE, *SHOWN):
        if name in found[HEADLINE]:
            rows[f"`{SHORT.get(name, name)}`"] = found[HEADLINE][name]
    yield f"| | {' | '.join(TASKS)} |"
    yield f"| --- |{' ---: |' * len(TASKS)}"
    for name, measured in rows.items():
        right: list[float] = []
        for task in named(measured, TASKS):
            right.append(statistics.mean(accuracy(draw).value for draw in measured[task]))
        yield table_row([name, *map(_per_cent, right)])
    chance = [accuracy(dense[task][0]).chance or 0.0 for task in named(dense, TASKS)]
    yield table_row(["guessing", *map(_per_cent, chance)])


def _per_cent(share: float) -> str:
    return f"{100 * share:.1f}"


def accuracy(measured: Measurement) -> Score:
    """The plain accuracy beside a loss."""
    (found,) = [score for score in measured.beside if score.metric == "acc"]
    return found


def contrasts() -> str:
    """The primary contrasts, as the report tells them, by their names: model, method and
    sparsity are the same for all.
    """
    parts = re.split(r"\n\s*\n", str(report(STORE)))
    tables_of_contrasts = [part for part in parts if part.startswith("| contrast")]
    question = re.compile(r"^\| ([^|]*?) \([^|]* on [^|]*\) \|", re.MULTILINE)
    return question.sub(r"| \1 |", tables_of_contrasts[0])


def runs() -> str:
    """What was run and what it took, by the records: each worker had one thread, and two worked
    at a time.
    """
    about = report(STORE)
    spent, reading = about.facts.seconds, about.reading
    measured = sum(map(len, reading.scores.values()))
    pruning = spent.get("compress", 0.0) / 3600
    measuring = spent.get("measure", 0.0) / 3600
    done, asked = len(reading.records), len(reading.cells)
    how_many = f"{done}" if done == asked else f"{done} of {asked}"
    return (
        f"{how_many} runs with {measured:,} measurements: {pruning:.1f} hours of pruning and "
        f"{measuring:.1f} of measuring, of one thread each."
    )


def costs() -> Iterator[str]:
    """What one run takes, by the processor and the method: medians over the runs that are
    measured whole.
    """
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with Store(STORE, create=False) as store:
        cells_by_run = {cell.run: cell for cell in store.cells() if cell.method != "none"}
        for cell in cells_by_run.values():
            made_by = store.provenance(cell.run)
            seconds = [
                store.provenance(cell.run, measure).get("seconds")
                for measure in cell.measures.values()
            ]
            if len(seconds) != MEASURED or None in seconds:
                continue
            key = (made_by.get("processor", "not recorded"), cell.method)
            spent.setdefault(key, []).append((made_by["seconds"]["compress"], sum(seconds)))
    yield from table_head(
        ["processor", "method"], ["runs", "seconds of pruning", "minutes of measuring"]
    )
    for (processor, method), times in sorted(spent.items()):
        pruning = statistics.median(seconds for seconds, _ in times)
        measuring = statistics.median(seconds for _, seconds in times)
        yield f"| {processor} | {method} | {len(times)} | {pruning:.1f} | {measuring / 60:.1f} |"


def recomputed() -> str:
    """The spot check, made of both stores."""
    with Store(STORE, create=False) as kept, Store(AGAIN, create=False) as fresh:
        there = {cell.labels for cell in fresh.cells() if cell.data}
        cells = [cell for cell in kept.cells() if cell.labels in there]
        return markdown(again(kept, fresh, cells))


def elsewhere() -> str:
    """What a change of processor did to each cell that was computed on two."""
    sentences: list[str] = []
    with Store(STORE, create=False) as kept, Store(ELSEWHERE, create=False) as fresh:
        before = {cell.labels: cell for cell in kept.cells()}
        for cell in fresh.cells():
            cell_before = before[cell.labels]
            first, second = kept.scores(cell_before.run), fresh.scores(cell.run)
            moved: dict[str, float] = {}
            for text, measure in cell.measures.items():
                score_before = first[cell_before.measures[text]].score
                moved[text] = second[measure].score.value - score_before.value
            sizes = [abs(value) for value in moved.values()]
            tasks = [value for text, value in moved.items() if text.startswith("task")]
            if cell.data:
                what = f"`{cell.data}`, draw {cell.seed}"
                alike = equal(record_of(kept, cell_before.run), record_of(fresh, cell.run))
                masks = f", {alike:.2%} of the kept mask bits equal"
            else:
                what = "The dense model"
                masks = ""
            sentences.append(
                f"{what}: {len(sizes)} losses, {statistics.median(sizes):.3f} apart in the median "
                f"and {max(sizes):.3f} at most, {statistics.mean(tasks):+.3f} over the nine "
                f"tasks{masks}."
            )
    return " ".join(sentences)


def form(name: str) -> str:
    """`icl` of `gsm8k:icl`; nothing of a corpus or a control."""
    return label_set(name).format


def count(measured: Measured) -> int:
    """How many draws."""
    first, *_ = measured.values()
    return len(first)


def picture() -> Plot:
    """How much worse than C4 each set of `sets` is, a panel for each kind."""
    with Store(STORE, create=False) as store:
        found = groups(store)[HEADLINE]
    usual = found[BASELINE]
    here = {name: measured for name, measured in plain(found).items() if count(measured) > 1}
    order = sorted(here, key=lambda name: worse(here[name], usual, TASKS).value)
    marks: dict[str, dict[int, Mark]] = {}
    for kind, names in COLUMNS.items():
        points = marks.setdefault(kind, {})
        for place, name in enumerate(order):
            points[place] = _mark(name, worse(here[name], usual, names), len(order) - 1)
    spans: dict[str, tuple[float, float]] = {}
    for kinds in AXES:
        together = [mark for kind in kinds for mark in marks[kind].values()]
        for kind in kinds:
            spans[kind] = span_of(together)
    panels = tuple(Panel(kind, marks[kind], spans[kind]) for kind in COLUMNS)
    families = {label_set(name).family for name in order}
    styles = {family: style for family, style in FAMILIES.items() if family in families}
    rows = tuple(PanelRow(SHORT.get(name, name)) for name in order)
    drawn = Panels(rows, panels, styles, "← better · worse than c4 →, nats/token", BASELINE)
    title = "How much worse than C4: SmolLM2-135M-Instruct, Wanda at 60 % sparsity"
    return plotted(
        ("findings",),
        title,
        f"{title}. The numbers are those of the table.",
        drawn.chart,
        drawn.data,
        CAPTION,
        families,
    )


def _mark(name: str, estimate: Estimate, comparisons: int) -> Mark:
    """The mark of a set; the baseline's is at zero."""
    family = label_set(name).family
    if name == BASELINE:
        return Mark(0.0, None, family)
    is_hollow = not estimate.significant(comparisons=comparisons)
    return Mark(estimate.value, estimate.interval(comparisons=comparisons), family, is_hollow)


AXES = (("nine tasks", "inference"), ("arithmetic", "commonsense"), ("text",))
"""Panels that have one axis."""
CAPTION = (
    "Each mark: how much worse than with c4 the pruned model is when it is calibrated on the set "
    "at the left, in nats/token",
    "Lines: 95 % intervals, jointly for all sets of a panel",
    "Hollow: not significantly different from c4",
    "Not all panels have the same axis",
)


def write_page(made: Mapping[str, str]) -> None:
    """Write the page's tables, the report and the picture, light and dark, then note what the
    page was made of.
    """
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), made), encoding="utf-8")
    about = report(STORE)
    (STORE / "report.md").write_text(about.text("markdown"), encoding="utf-8")
    (STORE / "report.json.gz").write_bytes(gzip.compress(about.text("json").encode(), mtime=0))
    draw(picture(), "findings", PICTURE)
    note_hashes(PAGE)


if __name__ == "__main__":
    made = tables()
    if "--write" in sys.argv[1:]:
        write_page(made)
    print("\n\n".join(made.values()))
