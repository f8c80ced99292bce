"""Tables before they are drawn: which figures stand in which row, rounded, with the letters of
their group and what is significantly best.

The terminal, Markdown, LaTeX and the page draw them. Nothing is computed here: every number comes
from `compare`. No torch here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from calibrant.lab.report.sentences import describe_target, join_names, percent, short
from calibrant.lab.stats import Estimate, Ranking, RankingEntry

As = Literal["increase", "loss", "kept"]
WAYS: Final[tuple[str, ...]] = get_args(As)
"""What the figures of a measured set can be: the difference to the dense model, the set's own
number, the share of dense performance kept.
"""

HOLE: Final = "—"
Part = Literal["set", "partial", "baseline", "dense"]


@dataclass(frozen=True)
class Figure:
    """One figure: its text, its standard error, a word to it, its letters, and whether it is
    significantly better than all others of its column.
    """

    value: str = ""
    error: str = ""
    note: str = ""
    letters: str = ""
    best: bool = False

    def __str__(self) -> str:
        return " ".join(filter(None, [self.value, self.error and f"± {self.error}", self.note]))


@dataclass(frozen=True)
class Column:
    """A column of figures. `words` are read, not compared: they stand to the left.

    Where room is short, errors that can be spared go first, then all errors, then what is `extra`.
    """

    head: str
    words: bool = False
    spare: bool = False
    extra: bool = False


@dataclass(frozen=True)
class TableRow:
    """One row: what it is about, a note to it (`control`), and a figure for each column."""

    name: str
    figures: tuple[Figure, ...]
    note: str = ""
    part: Part = "set"
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table: its title, the head of the names and the columns beside them, its lines, and what a
    reader must know to read it.

    A terminal shows the first `most` lines, where there may be very many.
    """

    title: str
    head: str
    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    legend: tuple[str, ...] = ()
    most: int | None = None

    @property
    def lettered(self) -> bool:
        """Whether any figure has letters."""
        return any(f.letters for row in self.rows for f in row.figures)

    @property
    def key(self) -> str:
        """How the table is read, as a sentence."""
        text = "; ".join(self.legend)
        return (
            f"{text[0].upper() if text[0].isascii() else text[0]}{text[1:]}." if text else ""
        )  # a Greek τ stays small

    def shortened(self) -> "tuple[Table, ...]":
        """The table, fullest first: whole, with fewer errors, without any, without what is
        extra.
        """
        bare = self.brief(errors=False)
        return (
            self,
            self.brief(errors=True),
            bare,
            bare.only([i for i, c in enumerate(bare.columns) if not c.extra]),
        )

    def brief(self, errors: bool) -> "Table":
        """The same with fewer words: `errors` keeps those that can't be spared. What the letters
        say isn't said again.
        """
        kept = [errors and not c.spare for c in self.columns]
        rows = [
            replace(
                row,
                figures=tuple(
                    replace(f, error=f.error if k else "", note="" if self.lettered else f.note)
                    for f, k in zip(row.figures, kept, strict=True)
                ),
            )
            for row in self.rows
        ]
        legend = (
            self.legend
            if errors
            else tuple(part for part in self.legend if not part.startswith("±"))
        )
        return replace(self, rows=tuple(rows), legend=legend)

    def only(self, columns: Sequence[int]) -> "Table":
        """The same with some of its columns."""
        rows = [replace(row, figures=tuple(row.figures[i] for i in columns)) for row in self.rows]
        gone = tuple(f"{c.head}:" for i, c in enumerate(self.columns) if i not in columns)
        legend = tuple(part for part in self.legend if not part.startswith(gone))
        return replace(
            self, columns=tuple(self.columns[i] for i in columns), rows=tuple(rows), legend=legend
        )


def heading(ranking: Ranking, note: str = "") -> str:
    """What the table is about: `smollm2 (dequantized from Q4_1), wanda at 60 % sparsity`."""
    way = f", {ranking.propagate} propagation" if ranking.propagate else ""
    sized = "" if ranking.bits is None else f", {ranking.bits:.3g} bits a weight"
    return f"{ranking.model}{f' ({note})' if note else ''}, {ranking.method} at {describe_target(ranking.target)}{sized}{way}"


def ranked(ranking: Ranking, way: As = "increase", note: str = "") -> Table:
    """The calibration sets, best first, then those with holes, then what looks at no data, then the
    dense model's own numbers.

    `way` says what the figures of the measured sets are; without a dense model they are the sets'
    own numbers whatever is asked.
    """
    drawing = _Drawing(ranking, way)
    sets = [drawing.row(e, "control" if e.control else "", "set") for e in ranking.entries]
    partial = [drawing.row(e, "incomplete", "partial") for e in ranking.partial]
    aside = [drawing.row(e, "no data", "baseline") for e in ranking.baselines]
    dense = [] if ranking.dense is None else [drawing.dense(ranking.dense)]
    return Table(
        heading(ranking, note),
        "calibrated on",
        drawing.columns(),
        (*sets, *partial, *aside, *dense),
        drawing.legend(),
    )


def unranked(rankings: Sequence[Ranking], way: As) -> Table:
    """A row for each target that a method was asked for which looks at no data, then the dense
    model's own numbers.
    """
    drawing, rows = _Drawing(rankings[0], way), list[TableRow]()
    for ranking in rankings:
        for entry in (*ranking.baselines, *ranking.partial):
            words = describe_target(ranking.target).removesuffix(f" ({ranking.target})")
            drawn = _Drawing(ranking, way).row(replace(entry, letters={}), words, "baseline")
            size = Figure(HOLE if ranking.bits is None else f"{ranking.bits:.3f}")
            rows.append(
                replace(
                    drawn, name=f"{ranking.method} {ranking.target}", figures=(size, *drawn.figures)
                )
            )
    dense = [] if rankings[0].dense is None else [drawing.dense(rankings[0].dense)]
    dense = [replace(row, figures=(Figure(), *row.figures)) for row in dense]
    whole = Table(
        "",
        "method",
        (Column("bits a weight"), *drawing.columns()),
        (*rows, *dense),
        drawing.legend(),
    )
    sized = any(ranking.bits is not None for ranking in rankings)
    return whole.only(
        range(0 if sized else 1, len(whole.columns) - 1)
    )  # there is no best to be worse than


class _Drawing:
    """How the figures of one ranking are shown."""

    def __init__(self, ranking: Ranking, way: As) -> None:
        self._ranking = ranking
        self._way: As = way if ranking.dense is not None else "loss"
        self._averaged = len(ranking.averaged) > 1
        self._ranks = any(any(e.ranks) for e in ranking.entries)
        self._mixed = len(set(ranking.units.values())) > 1 or len(set(ranking.better.values())) > 1

    def columns(self) -> tuple[Column, ...]:
        """Rank, mean, each measured set, the difference to the best: what of it there is."""
        kept = self._way == "kept" and any("mean" in e.share_kept for e in self._ranking.entries)
        mean = (
            "mean"
            if self._way == "increase" or self._ranking.dense is None or kept
            else "mean increase"
        )
        heads = [Column("rank")] * self._ranks + [Column(mean)] * self._averaged
        return (
            *heads,
            *(Column(self._head(m), spare=True) for m in self._ranking.measured),
            Column("worse than the best", extra=True),
        )

    def _head(self, measured: str) -> str:
        name = short(measured, self._ranking.measured)
        return (
            f"{name} {'↑' if self._better(measured) == 'higher' else '↓'}" if self._mixed else name
        )

    def _better(self, measured: str) -> str:
        return self._ranking.better.get(measured, "lower")

    def row(self, entry: RankingEntry, note: str, part: Part) -> TableRow:
        """A set or baseline; what it lacks is a hole."""
        ranks = [Figure(_range(entry.ranks) if any(entry.ranks) else "")] * self._ranks
        mean = [self._mean(entry)] * self._averaged
        each = [self._figure(entry, m) for m in self._ranking.measured]
        gap = (
            Figure(HOLE if part == "partial" else "the best")
            if entry.to_best is None
            else _gap(entry.to_best, entry.tied and part == "set")
        )
        return TableRow(
            entry.name, (*ranks, *mean, *each, gap), note, part, "mean" in entry.best_on
        )

    def dense(self, entry: RankingEntry) -> TableRow:
        """The dense model: always its own numbers."""
        blank = [Figure()] * (self._ranks + self._averaged)
        noun = "loss" if self._ranking.unit.startswith("nats") else "score"
        own = (Figure(f"{entry.losses[m].value:.3f}") for m in self._ranking.measured)
        return TableRow("dense", (*blank, *own, Figure()), f"its own {noun}", "dense")

    def _mean(self, entry: RankingEntry) -> Figure:
        marks = {"letters": entry.letters.get("mean", ""), "best": "mean" in entry.best_on}
        if self._way == "kept" and "mean" in entry.share_kept:
            return replace(_share(entry.share_kept["mean"]), **marks)
        if math.isnan(entry.mean.value):
            return Figure(HOLE)
        change = self._ranking.dense is not None
        down = change and self._better(self._ranking.averaged[0]) == "higher"
        return replace(_number(entry.mean, change, down), **marks)

    def _figure(self, entry: RankingEntry, measured: str) -> Figure:
        known = {"increase": entry.increases, "loss": entry.losses, "kept": entry.share_kept}[
            self._way
        ]
        if measured not in known:
            return Figure(HOLE)
        marks = {"letters": entry.letters.get(measured, ""), "best": measured in entry.best_on}
        if self._way == "kept":
            return replace(_share(known[measured]), **marks)
        change = self._way == "increase"
        return replace(
            _number(known[measured], change, change and self._better(measured) == "higher"), **marks
        )

    def legend(self) -> tuple[str, ...]:
        """How the table is read."""
        ranking = self._ranking
        higher = ranking.averaged and self._better(ranking.averaged[0]) == "higher"
        what = {
            "increase": "difference to the dense model"
            if higher or self._mixed
            else "increase over the dense model",
            "loss": "each set's own number",
            "kept": "share of the dense model's performance that is kept",
        }[self._way]
        parts = [f"{what}{self._units()}", "± one standard error"]
        if any(e.letters for e in ranking.entries):
            parts.append(
                f"in a column, sets that share a letter cannot be distinguished (all pairs together at {percent(ranking.level)})"
            )
        if any(e.best_on for e in ranking.entries):
            parts.append("bold: significantly better than every other")
        if self._ranks:
            parts.append("rank: the places that the comparisons leave open")
        if ranking.partial:
            parts.append(f"{HOLE}: not there yet, or failed")
        return tuple(parts)

    def _units(self) -> str:
        if self._way == "kept":
            return ""
        if not self._mixed:
            return f" in {self._ranking.unit}" + (
                ", higher is better" if "higher" in self._ranking.better.values() else ""
            )
        names: dict[tuple[str, str], list[str]] = {}
        for m in self._ranking.measured:
            names.setdefault((self._ranking.units.get(m, ""), self._better(m)), []).append(
                short(m, self._ranking.measured)
            )
        return f" ({'; '.join(f'{join_names(of)} in {unit}, {better} is better' for (unit, better), of in names.items())})"


def _number(estimate: Estimate, signed: bool, down: bool = False) -> Figure:
    """`+0.412` with the error `0.031`; `down` for a difference of something that is better when
    higher, which `compare` counts as a loss.
    """
    value = -estimate.value if down else estimate.value
    return Figure(
        f"{value:+.3f}" if signed else f"{value:.3f}",
        "" if estimate.stderr is None else f"{estimate.stderr:.3f}",
    )


def _share(estimate: Estimate) -> Figure:
    return Figure(
        f"{estimate.value:.1%}", "" if estimate.stderr is None else f"{estimate.stderr:.1%}"
    )


def _gap(to_best: Estimate, tied: bool) -> Figure:
    return replace(_number(to_best, True), note="not significant" if tied else "")


def _range(ranks: tuple[int, int]) -> str:
    return f"{ranks[0]}" if ranks[0] == ranks[1] else f"{ranks[0]}–{ranks[1]}"
