"""Every run with what was asked, what came of it, and the exact command that repeats it; and the facts about the study as a whole."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Final

from calibrant.compare import bits_of, describe_target, is_grid, target_noun
from calibrant.report.facts import PHASES, StudyFacts
from calibrant.report.page.contents import Contents
from calibrant.report.page.tags import Cell, Head, Row, bar, link, name, paragraph, table, text
from calibrant.report.sentences import short
from calibrant.report.tables.table import HOLE
from calibrant.spec import written_form
from calibrant.store import Cell as GridCell
from calibrant.store import Record

BUDGET: Final = {"samples": 128, "length": 2048, "tokens": None}
"""What a study asks for unless it says otherwise."""


def runs(contents: Contents) -> Iterator[str]:
    """The table of runs, to be searched and sorted."""
    cells = [cell for cell in contents.reading.cells if cell.run in contents.reading.records]
    if not cells:
        return
    measured = list(dict.fromkeys(t for cell in cells for t in cell.measures))
    names = {t: _measured(contents, t) for t in measured}
    kind = target_noun(cell.target for cell in cells if cell.method != "none")
    heads = [Head("calibrated on", words=True), Head("draw"), Head("method", words=True), Head(kind), Head("model", words=True)]
    heads += [Head(short(names[t], list(names.values()))) for t in measured] + [Head("run", words=True, sorts=False)]
    yield '<section id="runs"><h2>Every run</h2>'
    search = '<input type="search" class="filter" data-filters="run-table">'
    yield f'<p class="choice"><label>Search the runs {search}</label> <output class="filter-count"></output></p>'
    asked = budget(contents.facts)
    caption = "What was measured on each run, as it was measured. Open a run for its identity and the command that repeats it."
    yield from table("Every run", caption, heads, (_run(contents, cell, measured, asked) for cell in cells), key="run-table", sortable=True)
    yield "</section>"


def _measured(contents: Contents, evaluator: str) -> str:
    """What an evaluator measured on, or its text where nothing is known."""
    for cell in contents.reading.cells:
        found = contents.reading.scores.get(cell.run, {}).get(cell.measures.get(evaluator, ""))
        if found is not None:
            return found.score.measured
    return evaluator


def _run(contents: Contents, cell: GridCell, measured: list[str], asked: Mapping[str, Any]) -> Row:
    record = contents.reading.records[cell.run]
    scores = contents.reading.scores.get(cell.run, {})
    found = [scores.get(cell.measures.get(t, "")) for t in measured]
    values = [Cell(HOLE) if m is None else Cell(f"{m.score.value:.3f}", m.score.value) for m in found]
    stale = '<span class="tag">stale</span>' if cell.run in contents.reading.stale else ""
    inside = f'<p class="note"><code>{text(cell.run)}</code></p><pre tabindex="0"><code>{text(command(cell, record, asked))}</code></pre>'
    folded = f"<details><summary><code>{text(cell.run.rpartition(':')[2][:10])}</code>{stale}</summary>{inside}</details>"
    head = link(contents.ids, cell.data) if cell.data else "<em>no data</em>"
    target = Cell(HOLE) if cell.method == "none" else _target(cell.target, record)
    way = f"<small>{text(cell.propagate)}</small>" if cell.propagate else ""
    method = "the dense model" if cell.method == "none" else text(cell.method)
    draw = Cell(str(cell.seed), cell.seed) if cell.data else Cell(HOLE)
    return Row(head, [draw, Cell(method + way, words=True), target, Cell(name(cell.model), words=True), *values, Cell(folded, words=True)])


def _target(target: str, record: Record) -> Cell:
    """A target, sorted by what it takes away: sparsities by what they achieved, then grids, those of the fewest bits last."""
    bits = bits_of(target)
    return Cell(text(describe_target(target).removesuffix(" sparsity")), record.sparsity) if bits is None else Cell(text(target), 2 - bits / 16)


def budget(facts: StudyFacts) -> dict[str, Any]:
    """What the study asked of a draw, read from its own text, in which each line is a key and a JSON value; nothing without that text."""
    found = dict(BUDGET) if facts.study else dict[str, Any]()
    for line in facts.study.splitlines():
        key, _, value = line.partition(": ")
        if key in found:
            try:
                found[key] = json.loads(value)
            except ValueError:
                continue
    return found


def command(cell: GridCell, record: Record, asked: Mapping[str, Any]) -> str:
    """What makes this model again and measures it: two commands, or one for the untouched model."""
    run = record.run
    tasks = [word for evaluator in cell.measures for word in ("--task", evaluator)]
    if cell.method == "none":
        return shlex.join(["calibrant", "evaluate", cell.model, "--dtype", run.dtype, *tasks])
    # Where nobody kept what was asked, what was drawn says it, unless it was a number of tokens.
    samples, length = (asked.get(key) or record.data_facts.get(fact, BUDGET[key]) for key, fact in (("samples", "windows"), ("length", "length")))
    amount = ["--samples", str(samples)] if asked.get("tokens") is None else ["--tokens", str(asked["tokens"])]
    # A method that looks at no data is given some all the same, because prune asks for it; quantize doesn't.
    verb, out = ("quantize", "quantized") if is_grid(cell.target) else ("prune", "pruned")
    asks = "--sparsity" if target_noun([cell.target]) == "sparsity" else "--target"
    data = ["--data", cell.data or "full_stops"] if cell.data or verb == "prune" else []
    given = ["calibrant", verb, cell.model, *data, "--method", cell.method, asks, cell.target]
    if cell.data:
        given += [*amount, "--length", str(length), "--seed", str(cell.seed)]
    elif data:
        given += ["--samples", "1", "--length", "16"]
    given += ["--allocation", written_form(run.allocation)] if run.allocation.get("spec") != "uniform" else []
    given += [word for transform in run.transforms for word in ("--transform", written_form(transform))]
    given += [*(["--propagate", run.propagate] if run.propagate else []), "--dtype", run.dtype, "--out", out]
    return shlex.join(given) + "\n" + shlex.join(["calibrant", "evaluate", out, "--dtype", run.dtype, *tasks])


def about(contents: Contents) -> Iterator[str]:
    """What was measured, where the time went, what failed, and how to repeat the whole."""
    facts = contents.facts
    yield '<section id="about">'
    yield from _measurements(facts)
    yield from _time(facts)
    if facts.failures:
        yield "<h2>What failed</h2><ul>"
        yield from (f"<li>{text(f.get('what'))}: {text(f.get('error'))}</li>" for f in facts.failures)
        yield "</ul>"
    yield "<h2>How to repeat it</h2>"
    if facts.study:
        yield paragraph("The study as asked: save it as study.yaml. In the same folder, asking again computes only what is missing.")
        yield '<p><button type="button" class="copy" data-copies="study-text">Copy</button></p>'
        yield f'<pre tabindex="0"><code id="study-text">{text(facts.study)}</code></pre>'
        yield f'<pre tabindex="0"><code>{text("calibrant study study.yaml --out results")}</code></pre>'
    yield "</section>"


def _measurements(facts: StudyFacts) -> Iterator[str]:
    if not facts.dense:
        return
    heads = ("documents", "tokens", "context length", "dense loss", "dense perplexity", "bits per byte")
    yield "<h2>What was measured</h2>"
    rows = []
    for score in facts.dense:
        facts = score.facts
        numbers = [score.n, facts.get("tokens"), facts.get("length"), score.value, facts.get("perplexity"), facts.get("bits_per_byte")]
        rows.append(Row(name(score.measured), [Cell(plain(n)) for n in numbers]))
    yield from table(
        "What was measured", "Held-out parts, which no calibration set can hold", [Head("measured on", words=True), *map(Head, heads)], rows
    )


def plain(number: object) -> str:
    """A number as people write it."""
    if isinstance(number, float):
        return f"{number:,.3f}"
    return f"{number:,}" if isinstance(number, int) else text(number) if number is not None else ""


def _time(facts: StudyFacts) -> Iterator[str]:
    total = sum(facts.seconds.values())
    if not total:
        return
    yield "<h2>Where the time went</h2>"
    spent = sorted(facts.seconds.items(), key=lambda item: -item[1])
    rows = [Row(text(PHASES.get(phase, phase)), [Cell(f"{seconds:.1f}"), bar(seconds / total)]) for phase, seconds in spent]
    heads = [Head("phase", words=True), Head("seconds"), Head("share", words=True)]
    yield from table("Where the time went", f"{total:.0f} seconds over everything in this store", heads, rows)
    told = [f"{k}: {v}" for k, v in {**facts.settings, **facts.machine}.items() if v and k != "versions"]
    yield paragraph(" · ".join(told), "note")
