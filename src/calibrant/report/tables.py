"""A ranking as a table: for the terminal, Markdown and JSON. No torch here."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from calibrant.compare import Entry, Estimate, Ranking
from calibrant.report.findings import aimed, caveats, doubts, finding, remarks, short

if TYPE_CHECKING:
    from rich.table import Table


def heading(ranking: Ranking, note: str = "") -> str:
    """What the table is about: `smollm2 (dequantized from Q4_1), wanda at 60 % sparsity`."""
    return f"{ranking.model}{f' ({note})' if note else ''}, {ranking.method} at {aimed(ranking.target)}"


def columns(ranking: Ranking) -> list[str]:
    """Column heads: what was calibrated on, the mean, each measured set, the difference to the best."""
    rise = "increase over dense" if ranking.dense is not None else "loss"
    average = [f"mean {rise}"] if len(ranking.averaged) > 1 else []
    return ["calibrated on", *average, *(f"on {short(m, ranking.measured)}" for m in ranking.measured), "worse than the best"]


def rows(ranking: Ranking, brief: bool = False) -> list[list[str]]:
    """Table cells as text: the sets, best first, then what looks at no data; errors are standard errors, `brief` gives means alone theirs."""
    listed = [[f"{place}. {e.name}{' (control)' if e.control else ''}", *_cells(ranking, e, brief)] for place, e in enumerate(ranking.entries, 1)]
    listed += [[f"{e.name} (no data)", *_cells(ranking, e, brief)] for e in ranking.baselines]
    if ranking.dense is not None:
        blank = [""] * (len(ranking.averaged) > 1)
        listed.append(["dense: its loss", *blank, *(f"{ranking.dense.losses[m].value:.3f}" for m in ranking.measured), ""])
    return listed


def _cells(ranking: Ranking, entry: Entry, brief: bool) -> list[str]:
    each = entry.increases or entry.losses
    average = [with_error(entry.mean, ranking.dense is not None)] if len(ranking.averaged) > 1 else []
    shown = [replace(each[m], stderr=None) if brief and average else each[m] for m in ranking.measured]
    return [*average, *(with_error(e, bool(entry.increases)) for e in shown), verdict(entry)]


def with_error(estimate: Estimate, signed: bool) -> str:
    """`+0.412 ± 0.031`, the error being one standard error."""
    value = f"{estimate.value:+.3f}" if signed else f"{estimate.value:.3f}"
    return value if estimate.stderr is None else f"{value} ± {estimate.stderr:.3f}"


def verdict(entry: Entry) -> str:
    """How much worse than the best, and whether that is real."""
    if entry.to_best is None:
        return "the best"
    return with_error(entry.to_best, True) + (" can't tell" if entry.tied else "")


def table(ranking: Ranking, note: str = "", brief: bool = False) -> "Table":
    """The ranking for a terminal (rich); `brief` for a narrow one."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    heads = columns(ranking)
    about, unit = Text(heading(ranking, note), style="bold"), Text(f"{ranking.unit}; ± one standard error")
    drawn = Table(title=about, title_justify="left", caption=unit, caption_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, head in enumerate(heads):
        drawn.add_column(Text(head), justify="right" if index else "left", overflow="fold")
    for index, row in enumerate(rows(ranking, brief)):
        if index in (len(ranking.entries), len(ranking.entries) + len(ranking.baselines)):
            drawn.add_section()
        drawn.add_row(*(Text(cell) for cell in row), style="bold" if index == 0 and not _best_is_shared(ranking) else "")
    return drawn


def _best_is_shared(ranking: Ranking) -> bool:
    return any(e.tied for e in ranking.entries)


def words(ranking: Ranking) -> list[str]:
    """Everything a reader should know beside the table: doubts first, then the finding, remarks and what the intervals cover."""
    return [*(f"Doubtful: {d}" for d in doubts(ranking)), finding(ranking), *remarks(ranking), *caveats(ranking)]


def markdown(rankings: Sequence[Ranking], notes: dict[str, str] | None = None) -> str:
    """The rankings as Markdown: tables with what was found beneath."""
    parts: list[str] = []
    for ranking in rankings:
        heads = columns(ranking)
        parts += [f"## {_escaped(heading(ranking, (notes or {}).get(ranking.model, '')))}", ""]
        parts += [_line(heads), _line(["---", *["---:"] * (len(heads) - 1)]), *(_line([_escaped(c) for c in row]) for row in rows(ranking)), ""]
        parts += [f"{ranking.unit}; ± one standard error.", "", *(f"{_escaped(w)}\n" for w in words(ranking))]
    return "\n".join(parts)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Names may be anything: what Markdown or HTML would read as markup is shown as itself."""
    for mark in "\\`*_|[]<>#":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return text.replace("\n", " ")


def as_json(rankings: Sequence[Ranking]) -> list[dict[str, Any]]:
    """The rankings as plain data, with intervals and sentences."""
    return [
        {
            **asdict(ranking),
            "entries": [_entry(ranking, e) for e in ranking.entries],
            "baselines": [_entry(ranking, e) for e in ranking.baselines],
            "dense": _entry(ranking, ranking.dense) if ranking.dense else None,
            "finding": finding(ranking),
            "doubts": doubts(ranking),
            "remarks": remarks(ranking),
            "caveats": caveats(ranking),
        }
        for ranking in rankings
    ]


def _entry(ranking: Ranking, entry: Entry) -> dict[str, Any]:
    joint = entry.to_best.interval(ranking.level, ranking.looks) if entry.to_best else None
    return {**asdict(entry), "mean_interval": entry.mean.interval(ranking.level), "to_best_interval": joint}
