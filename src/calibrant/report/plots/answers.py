"""What the answer to a question rests on, as a forest. Only draws. No torch here."""

from collections.abc import Mapping, Sequence
from typing import Final

from calibrant.compare import MEAN, Evidence, Question
from calibrant.report.plots.panels import Group, Panel, Panels, Point, Row, stacked
from calibrant.report.plots.picture import Plot, plotted
from calibrant.report.plots.theme import VERDICTS
from calibrant.report.plots.words import Interval, counted, cut, known, sentence, signed, spread

NAMES: Final[Mapping[str, str]] = {"own": "own-data", "cot": "chain-of-thought", "icl": "in-context"}
"""What the plot of a question is called, where not by the question's own name."""

MOST: Final = 60
"""Rows of evidence that a plot shows."""

PARTS: Final[Mapping[str, int]] = {"where": 60, "label": 40, "on": 24}
"""What tells one piece of evidence from another, and the letters that each may take."""


def evidence(question: Question) -> Plot | None:
    """What the answer to a question rests on: each difference with its joint interval, and its verdict as a word. None without a number."""
    found = [e for e in question.evidence if known(e.difference)]
    if not found:
        return None
    chosen, fewer = _few(found)
    units = list(dict.fromkeys(e.unit for e in chosen))
    blocks = [_block([e for e in chosen if e.unit == unit], unit, f"unit{i}-") for i, unit in enumerate(units)]
    data = {name: records for block in blocks for name, records in block.data.items()}
    said = "; ".join(f"{e.label}, {e.where}, on {e.on}: {_number(e)}, {e.verdict}" for e in chosen)
    told = sentence([question.asks, f"Answer: {question.answer}", question.told, fewer, said])
    return plotted((NAMES.get(question.name, question.name),), question.asks, told, lambda: stacked(blocks), data)


def _few(found: Sequence[Evidence]) -> tuple[Sequence[Evidence], str]:
    """At most `MOST` pieces of evidence, of more those on the mean, and what to say of it."""
    if len(found) <= MOST:
        return found, ""
    chosen = ([e for e in found if e.on == MEAN] or found)[:MOST]
    return chosen, f"Shown: {counted(len(chosen), 'row')} of {len(found)}, on the mean where there is one"


def _number(piece: Evidence) -> str:
    return f"{signed(piece.difference.value)}{f' {piece.unit}' if piece.unit else ''}{spread(_interval(piece))}"


def _interval(piece: Evidence) -> Interval:
    return None if piece.interval is None or any(end != end for end in piece.interval) else piece.interval


def _block(pieces: Sequence[Evidence], unit: str, key: str) -> Panels:
    """The rows of one unit. What is the same in all stands above them; where they are of several runs, each run's name stands above its own."""
    told = {part: [str(getattr(piece, part)) for piece in pieces] for part in PARTS}
    same = [part for part in PARTS if len(set(told[part])) == 1]
    parts = [part for part in PARTS if part not in same] or ["label"]
    rows: list[Row] = []
    points: dict[int, Point] = {}
    order = sorted(range(len(pieces)), key=lambda i: told["where"].index(told["where"][i]))  # one run after the other, else as they come
    headed, run = "where" in parts and len(parts) > 1, ""
    for i in order:
        if headed and told["where"][i] != run:
            run = told["where"][i]
            rows.append(Row(run, head=True))
        e = pieces[i]
        points[len(rows)] = Point(e.difference.value, _interval(e), e.verdict, e.verdict == "cannot tell", word=e.verdict)
        rows.append(Row(" · ".join(cut(told[part][i], PARTS[part]) for part in parts if not (headed and part == "where"))))
    title = " · ".join(cut(told[part][0], PARTS[part]) for part in same if part != parts[0])
    group = Group((Panel(title, points),), f"← better · worse →{f', {unit}' if unit else ''}", "no difference", "lines: joint intervals")
    return Panels(tuple(rows), (group,), VERDICTS, 66, key, legend=False)
