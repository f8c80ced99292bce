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
from studies.arms import Measured, markdown_row, named, span, worse
from studies.made import note_hashes
from studies.packing import run as packing
from studies.pages import draw, filled
from studies.spot_check import again, equal, markdown, record_of

from calibrant.lab.report import report
from calibrant.lab.report.plots import Plot
from calibrant.lab.report.plots.panels import Mark, Panel, PanelRow, Panels, span_of
from calibrant.lab.report.plots.picture import plotted
from calibrant.lab.report.plots.theme import FAMILIES
from calibrant.lab.stats import Draws, detectable, draws, label_set
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
TASKS = tuple(name for kind in list(KINDS)[:3] for name in KINDS[kind])
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


def groups(store: Store) -> Mapping[tuple[str, str, str], Sets]:
    """By method, target and propagation: every set that was measured whole, and what its draws
    gave. The dense model's is `none`.
    """
    asked = dict.fromkeys((c.method, c.target, c.propagate, c.data) for c in store.cells())
    found: dict[tuple[str, str, str], dict[str, Measured]] = {}
    for method, target, propagate, data in asked:
        of = draws(store, method=method, target=target, propagate=propagate, data=data)
        if len(of) == MEASURED:
            found.setdefault((method, target, propagate), {})[data] = of
    return found


def tables() -> dict[str, str]:
    """Each table in Markdown, by the name that the page marks its place with."""
    with Store(STORE, create=False) as store:
        found = groups(store)
    made = {
        "detectable": detectable_differences(found),
        "sets": sets(found),
        "choices": choices(found),
        "accuracies": accuracies(found),
    }
    made |= {
        "formats": formats(found),
        "words": words(found),
        "methods": methods(found),
        "costs": costs(),
    }
    made |= {"choices of methods": choices_of_methods(found), "ways": ways(found)}
    whole = {
        "contrasts": contrasts(),
        "packing": "\n\n".join(packing.steps()),
        "amounts": "\n\n".join(ablations.tables()),
    }
    whole |= {"runs": runs(), "again": recomputed(), "elsewhere": elsewhere()}
    return {name: "\n".join(lines) for name, lines in made.items()} | whole


def detectable_differences(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """What differences the headline can show: two sets of three draws, on each kind of what was
    measured.
    """
    usual = found[HEADLINE][BASELINE]
    others = [
        of
        for name, of in found[HEADLINE].items()
        if name != BASELINE and not label_set(name).control
    ]
    yield "| measured on | found by 4 such studies in 5: median (least to most) | variance between draws | draws of c4 lie apart | of pile |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for kind, names in COLUMNS.items():
        pairs = [worse(of, usual, names) for of in others]
        least = sorted(d for pair in pairs if (d := detectable(pair)) is not None)
        share = statistics.median(pair.draws_share for pair in pairs)
        spans = " | ".join(
            f"{span(found[HEADLINE][name], names):.3f}" for name in (BASELINE, "pile")
        )
        yield f"| {kind} | {statistics.median(least):.3f} ({least[0]:.3f} to {least[-1]:.3f}) | {share:.0%} | {spans} |"


def sets(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """How much worse than C4 corpora, tasks' texts in rows, and controls are, at the headline's
    method and sparsity; C4 against the dense model.

    Bold differs significantly from C4 at 95 %, jointly over the sets of a column.
    """
    here = {name: of for name, of in found[HEADLINE].items() if form(name) in ("", "icl")}
    yield from compared({"": here}, found, "calibrated on")


def formats(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """How much worse than its `icl` each other format of a source is; bold as in `sets`."""
    here = found[HEADLINE]
    pairs = [
        (name, of, here[icl])
        for name, of in here.items()
        if form(name) not in ("", "icl") and (icl := f"{label_set(name).source}:icl") in here
    ]
    yield f"| against the same source's `icl` | {' | '.join(['its own task', *COLUMNS])} |"
    yield f"| --- |{' ---: |' * (len(COLUMNS) + 1)}"
    for name, of, icl in sorted(
        pairs,
        key=lambda pair: (FORMATS.index(form(pair[0])), TASKS.index(label_set(pair[0]).source)),
    ):
        yield markdown_row(
            f"`{name}`",
            [worse(of, icl, names) for names in ((label_set(name).source,), *COLUMNS.values())],
            len(pairs),
        )


def words(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """The formats' difference from `icl` over the nine tasks, mean over the sources that have
    both: of the loss, and among the offered answers.
    """
    here = found[HEADLINE]
    yield "| against `icl`, mean over sources | sources | loss of the right answer | among the answers offered |"
    yield "| --- | ---: | ---: | ---: |"
    for name in FORMATS:
        pairs = [
            (here[f"{source}:{name}"], here[f"{source}:icl"])
            for source in TASKS
            if f"{source}:{name}" in here
        ]
        if pairs:
            plain = statistics.mean(worse(a, b, TASKS).value for a, b in pairs)
            among = statistics.mean(worse(offered(a), offered(b), TASKS).value for a, b in pairs)
            yield f"| `{name}` | {len(pairs)} | {plain:+.3f} | {among:+.3f} |"


def methods(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """The same as `sets` for every other method, sparsity and propagation."""
    yield from compared(others(found), found, "method, sparsity and set")


def others(found: Mapping[tuple[str, str, str], Sets]) -> dict[str, Sets]:
    """All but the headline, by what a row calls them."""
    left = [(key, of) for key, of in found.items() if key[0] != "none" and key != HEADLINE]
    return {
        f"{method} {target}{f', {way}' if way == 'reference' else ''}": of
        for (method, target, way), of in left
    }


def ways(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """How much worse `reference` is than the way a method goes unless asked otherwise, draw by
    draw on the same tokens; bold as in `markdown_row`.
    """
    default = {
        (method, target): of for (method, target, way), of in found.items() if way != "reference"
    }
    asked = [
        (method, name, of, default[method, target][name])
        for (method, target, way), here in found.items()
        if way == "reference"
        for name, of in here.items()
    ]
    yield f"| `reference` against the default | {' | '.join(COLUMNS)} | nine tasks, of the offered |"
    yield f"| --- |{' ---: |' * (len(COLUMNS) + 1)}"
    for method, name, of, usual in asked:
        plain = [worse(of, usual, names) for names in COLUMNS.values()]
        yield markdown_row(
            f"{method}: `{name}`", [*plain, worse(offered(of), offered(usual), TASKS)], len(asked)
        )


def compared(
    several: Mapping[str, Sets],
    found: Mapping[tuple[str, str, str], Sets],
    head: str,
    columns: Mapping[str, tuple[str, ...]] = COLUMNS,
) -> Iterator[str]:
    """A table of what is worse than C4 by how much, in each of several groups; one that lacks C4
    is compared with the dense model alone.
    """
    (dense,) = found["none", "0.0", ""].values()
    yield f"| {head} | draws | {' | '.join(columns)} |"
    yield f"| --- | ---: |{' ---: |' * len(columns)}"
    for group, here in several.items():
        lead = f"{group}: " if group else ""
        usual = here.get(BASELINE)
        for name, of in here.items() if usual is None else [(BASELINE, usual)]:
            rises = [f"{worse(of, dense, names):+.3f}" for names in columns.values()]
            yield f"| {lead}{f'`{name}`, ' if name else ''}above dense | {count(of)} | {' | '.join(rises)} |"
        others = {
            name: [worse(of, usual, names) for names in columns.values()]
            for name, of in here.items()
            if usual and name != BASELINE
        }
        for name in sorted(others, key=lambda name: others[name][0].value):
            yield markdown_row(
                f"{lead}`{SHORT.get(name, name)}` | {count(here[name])}", others[name], len(others)
            )


def choices(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """The table of `sets` for the tasks, had the model to choose among the answers that are
    offered: what is lost on their words is no loss.
    """
    only = {
        key: {name: offered(of) for name, of in here.items() if form(name) in ("", "icl")}
        for key, here in found.items()
    }
    yield from compared({"": only[HEADLINE]}, only, "calibrated on", ON_TASKS)


def choices_of_methods(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """That of `methods` in the same way."""
    only = {key: {name: offered(of) for name, of in here.items()} for key, here in found.items()}
    yield from compared(others(only), only, "method, sparsity and set", ON_TASKS)


def offered(of: Measured) -> dict[str, Draws]:
    """The same with, for each item, the nats of the right answer among those offered: −log of
    its share of their probability.
    """
    return {
        measured: [replace(m, outcomes=tuple(map(_offered, m.outcomes))) for m in of[measured]]
        for measured in named(of, TASKS)
    }


def _offered(item: Outcome) -> Outcome:
    nats = item.facts["choices"]
    return Outcome(
        item.item, nats[item.facts["gold"]] + math.log(math.fsum(math.exp(-n) for n in nats))
    )


def accuracies(found: Mapping[tuple[str, str, str], Sets]) -> Iterator[str]:
    """The share of right answers on each task, in per cent, mean of the draws, and what guessing
    gets.
    """
    (dense,) = found["none", "0.0", ""].values()
    rows = {"dense": dense} | {
        f"`{SHORT.get(name, name)}`": found[HEADLINE][name]
        for name in (BASELINE, *SHOWN)
        if name in found[HEADLINE]
    }
    yield f"| | {' | '.join(TASKS)} |"
    yield f"| --- |{' ---: |' * len(TASKS)}"
    for name, of in rows.items():
        right = [
            statistics.mean(accuracy(m).value for m in measured)
            for measured in map(of.get, named(of, TASKS))
            if measured
        ]
        yield f"| {name} | {' | '.join(f'{100 * share:.1f}' for share in right)} |"
    chance = [accuracy(dense[measured][0]).chance or 0.0 for measured in named(dense, TASKS)]
    yield f"| guessing | {' | '.join(f'{100 * share:.1f}' for share in chance)} |"


def accuracy(measured: Measurement) -> Score:
    """The plain accuracy beside a loss."""
    return next(score for score in measured.beside if score.metric == "acc")


def contrasts() -> str:
    """The primary contrasts, as the report tells them, by their names: model, method and
    sparsity are the same for all.
    """
    table = next(
        part for part in re.split(r"\n\s*\n", str(report(STORE))) if part.startswith("| contrast")
    )
    return re.sub(r"^\| ([^|]*?) \([^|]* on [^|]*\) \|", r"| \1 |", table, flags=re.MULTILINE)


def runs() -> str:
    """What was run and what it took, by the records: each worker had one thread, and two worked
    at a time.
    """
    about = report(STORE)
    spent, reading = about.facts.seconds, about.reading
    measured = sum(map(len, reading.scores.values()))
    hours = {name: spent.get(name, 0.0) / 3600 for name in ("compress", "measure")}
    took = f"{hours['compress']:.1f} hours of pruning and {hours['measure']:.1f} of measuring"
    done, asked = len(reading.records), len(reading.cells)
    return (
        f"{done}{'' if done == asked else f' of {asked}'} runs with {measured:,} measurements: "
        f"{took}, of one thread each."
    )


def costs() -> Iterator[str]:
    """What one run takes, by the processor and the method: medians over the runs that are
    measured whole.
    """
    spent: dict[tuple[str, str], list[tuple[float, float]]] = {}
    with Store(STORE, create=False) as store:
        for cell in {cell.run: cell for cell in store.cells() if cell.method != "none"}.values():
            of = store.provenance(cell.run)
            each = [
                store.provenance(cell.run, measure).get("seconds")
                for measure in cell.measures.values()
            ]
            if len(each) == MEASURED and None not in each:
                spent.setdefault((of.get("processor", "not recorded"), cell.method), []).append(
                    (of["seconds"]["compress"], sum(each))
                )
    yield "| processor | method | runs | seconds of pruning | minutes of measuring |"
    yield "| --- | --- | ---: | ---: | ---: |"
    for (processor, method), of in sorted(spent.items()):
        pruning, measuring = (statistics.median(times) for times in zip(*of, strict=True))
        yield f"| {processor} | {method} | {len(of)} | {pruning:.1f} | {measuring / 60:.1f} |"


def recomputed() -> str:
    """The spot check, made of both stores."""
    with Store(STORE, create=False) as kept, Store(AGAIN, create=False) as fresh:
        there = {cell.labels for cell in fresh.cells() if cell.data}
        return markdown(again(kept, fresh, [cell for cell in kept.cells() if cell.labels in there]))


def elsewhere() -> str:
    """What a change of processor did to each cell that was computed on two."""
    sentences: list[str] = []
    with Store(STORE, create=False) as kept, Store(ELSEWHERE, create=False) as fresh:
        before = {cell.labels: cell for cell in kept.cells()}
        for cell in fresh.cells():
            first, again = kept.scores(before[cell.labels].run), fresh.scores(cell.run)
            moved = {
                text: again[i].score.value - first[before[cell.labels].measures[text]].score.value
                for text, i in cell.measures.items()
            }
            sizes, tasks = (
                [abs(value) for value in moved.values()],
                [value for text, value in moved.items() if text.startswith("task")],
            )
            what = f"`{cell.data}`, draw {cell.seed}" if cell.data else "The dense model"
            alike = (
                equal(record_of(kept, before[cell.labels].run), record_of(fresh, cell.run))
                if cell.data
                else 1.0
            )
            masks = f", {alike:.2%} of the kept mask bits equal" if cell.data else ""
            about = (
                f"{len(sizes)} losses, {statistics.median(sizes):.3f} apart in the median and "
                f"{max(sizes):.3f} at most"
            )
            sentences.append(
                f"{what}: {about}, {statistics.mean(tasks):+.3f} over the nine tasks{masks}."
            )
    return " ".join(sentences)


def form(name: str) -> str:
    """`icl` of `gsm8k:icl`; nothing of a corpus or a control."""
    return label_set(name).format


def count(of: Measured) -> int:
    """How many draws."""
    return len(next(iter(of.values())))


def picture() -> Plot:
    """How much worse than C4 each set of `sets` is, a panel for each kind."""
    with Store(STORE, create=False) as store:
        found = groups(store)[HEADLINE]
    usual = found[BASELINE]
    here = {name: of for name, of in found.items() if form(name) in ("", "icl") and count(of) > 1}
    order = sorted(here, key=lambda name: worse(here[name], usual, TASKS).value)
    comparisons = len(order) - 1
    marks: dict[str, dict[int, Mark]] = {}
    for kind, names in COLUMNS.items():
        points = marks.setdefault(kind, {})
        for row, name in enumerate(order):
            e = worse(here[name], usual, names)
            family = label_set(name).family
            points[row] = (
                Mark(
                    e.value,
                    e.interval(comparisons=comparisons),
                    family,
                    not e.significant(comparisons=comparisons),
                )
                if name != BASELINE
                else Mark(0.0, None, family)
            )
    axes = (("nine tasks", "inference"), ("arithmetic", "commonsense"), ("text",))
    spans = {
        kind: span_of([mark for other in kinds for mark in marks[other].values()])
        for kinds in axes
        for kind in kinds
    }
    panels = tuple(Panel(kind, marks[kind], spans[kind]) for kind in COLUMNS)
    families = {mark.kind for points in marks.values() for mark in points.values()}
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
