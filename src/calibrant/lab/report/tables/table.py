"""Tables before they are drawn: which figures stand in which row, rounded, with the letters of
their group and what is significantly best.

The terminal, Markdown, LaTeX and the page draw them. Nothing is computed here: every number comes
from `compare`. No torch here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from calibrant.lab.report.sentences import noun_of, row_noun, short
from calibrant.lab.stats import Estimate, Ranking, RankingEntry, describe_target, join_names
from calibrant.numerics import HOLE, decimals, percent, signed

As = Literal["increase", "loss", "kept"]
WAYS: Final[tuple[str, ...]] = get_args(As)
"""What the figures of a measured set can be: the difference to the dense model, the set's own
number, the share of dense performance kept.
"""

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
        error = f"± {self.error}" if self.error else ""
        return " ".join(part for part in (self.value, error, self.note) if part)


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
    """A table: its title, the head of the names and the columns beside them, its rows, and what a
    reader must know to read it.

    A terminal shows the first `most` rows, where there may be very many.
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
        for row in self.rows:
            for figure in row.figures:
                if figure.letters:
                    return True
        return False

    @property
    def key(self) -> str:
        """How the table is read, as a sentence."""
        text = "; ".join(self.legend)
        if not text:
            return ""
        # A Greek τ stays small.
        if text[0].isascii():
            text = text[0].upper() + text[1:]
        return f"{text}."

    def shortened(self) -> "tuple[Table, ...]":
        """Return the table, fullest first: whole, with fewer errors, without any, without what is
        extra.
        """
        bare = self.brief(errors=False)
        needed = [index for index, column in enumerate(bare.columns) if not column.extra]
        return self, self.brief(errors=True), bare, bare.only(needed)

    def brief(self, errors: bool) -> "Table":
        """Return the same with fewer words: `errors` keeps those that can't be spared. What the
        letters say isn't said again.
        """
        lettered = self.lettered
        rows: list[TableRow] = []
        for row in self.rows:
            figures: list[Figure] = []
            for figure, column in zip(row.figures, self.columns, strict=True):
                error = figure.error if errors and not column.spare else ""
                note = "" if lettered else figure.note
                figures.append(replace(figure, error=error, note=note))
            rows.append(replace(row, figures=tuple(figures)))
        legend = self.legend
        if not errors:
            legend = tuple(part for part in legend if not part.startswith("±"))
        return replace(self, rows=tuple(rows), legend=legend)

    def only(self, columns: Sequence[int]) -> "Table":
        """Return the same with some of its columns."""
        rows: list[TableRow] = []
        for row in self.rows:
            figures = tuple(row.figures[index] for index in columns)
            rows.append(replace(row, figures=figures))
        gone = [column for index, column in enumerate(self.columns) if index not in columns]
        # What explains a column goes with it.
        explained = tuple(f"{column.head}:" for column in gone)
        legend = tuple(part for part in self.legend if not part.startswith(explained))
        kept = tuple(self.columns[index] for index in columns)
        return replace(self, columns=kept, rows=tuple(rows), legend=legend)


def heading(ranking: Ranking, note: str = "") -> str:
    """Return what the table is about: `smollm2 (dequantized from Q4_1), wanda at 60 % sparsity`."""
    model = f"{ranking.model} ({note})" if note else ranking.model
    if ranking.finished:
        return f"{model}, finished models"
    parts = [model, f"{ranking.method} at {describe_target(ranking.target)}"]
    if ranking.bits is not None:
        parts.append(f"{ranking.bits:.3g} bits a weight")
    if ranking.propagate:
        parts.append(f"{ranking.propagate} propagation")
    return ", ".join(parts)


def row_head(ranking: Ranking) -> str:
    """Return what the rows of a ranking are."""
    return "model" if ranking.finished else "calibrated on"


def ranked(ranking: Ranking, way: As = "increase", note: str = "") -> Table:
    """Return the calibration sets, best first, then those with holes, then what looks at no data,
    then the dense model's own numbers.

    `way` says what the figures of the measured sets are; without a dense model they are the sets'
    own numbers whatever is asked.
    """
    drawing = _RankingRows(ranking, way, _means_are_shares([ranking], way))
    rows: list[TableRow] = []
    for entry in ranking.entries:
        kind = "control" if entry.control else ""
        rows.append(drawing.row(entry, kind, "set"))
    rows.extend(drawing.row(entry, "incomplete", "partial") for entry in ranking.partial)
    rows.extend(drawing.row(entry, "no data", "baseline") for entry in ranking.baselines)
    if ranking.dense is not None:
        rows.append(drawing.dense(ranking.dense))
    title = heading(ranking, note)
    return Table(title, row_head(ranking), drawing.columns(), tuple(rows), drawing.legend())


def unranked(rankings: Sequence[Ranking], way: As) -> Table:
    """Return a row for each target that a method was asked for which looks at no data, then the
    dense model's own numbers.
    """
    sized = any(ranking.bits is not None for ranking in rankings)
    means_are_shares = _means_are_shares(rankings, way)
    rows: list[TableRow] = []
    for ranking in rankings:
        name = f"{ranking.method} {ranking.target}"
        words = describe_target(ranking.target).removesuffix(f" ({ranking.target})")
        if words == ranking.target:
            # The name of a scheme or of a recipe, which the row has already.
            words = ""
        size = HOLE if ranking.bits is None else decimals(ranking.bits)
        drawing = _RankingRows(ranking, way, means_are_shares)
        for entry in (*ranking.baselines, *ranking.partial):
            without_letters = replace(entry, letters={})
            row = drawing.row(without_letters, words, "baseline")
            rows.append(replace(row, name=name, figures=(Figure(size), *row.figures)))
    drawing = _RankingRows(rankings[0], way, means_are_shares)
    if rankings[0].dense is not None:
        row = drawing.dense(rankings[0].dense)
        rows.append(replace(row, figures=(Figure(), *row.figures)))
    columns = (Column("bits a weight"), *drawing.columns())
    whole = Table("", "method", columns, tuple(rows), drawing.legend())
    first = 0 if sized else 1
    # The last column is the difference to the best, and here there is no best.
    last = len(columns) - 1
    return whole.only(range(first, last))


def _means_are_shares(rankings: Sequence[Ranking], way: As) -> bool:
    """Return whether the column of means says what is kept. A column has one kind of figure, so
    every row with a mean must have such a share.
    """
    if way != "kept":
        return False
    for ranking in rankings:
        for entry in (*ranking.entries, *ranking.baselines):
            if "mean" not in entry.share_kept:
                return False
    return True


class _RankingRows:
    """How the rows of one ranking are shown."""

    def __init__(self, ranking: Ranking, way: As, means_are_shares: bool) -> None:
        self._ranking = ranking
        self._means_are_shares = means_are_shares
        self._way: As = "loss" if ranking.dense is None else way
        self._averaged = len(ranking.averaged) > 1
        self._ranks = any(entry.ranks != (0, 0) for entry in ranking.entries)
        units = set(ranking.units.values())
        directions = set(ranking.better.values())
        self._mixed = len(units) > 1 or len(directions) > 1

    def columns(self) -> tuple[Column, ...]:
        """Return rank, mean, each measured set, the difference to the best: what there is."""
        ranking = self._ranking
        columns: list[Column] = []
        if self._ranks:
            columns.append(Column("rank"))
        if self._averaged:
            columns.append(Column(self._mean_head()))
        for measured in ranking.measured:
            name = short(measured, ranking.measured)
            if self._mixed:
                arrow = "↑" if self._higher(measured) else "↓"
                name = f"{name} {arrow}"
            columns.append(Column(name, spare=True))
        columns.append(Column("worse than the best", extra=True))
        return tuple(columns)

    def _mean_head(self) -> str:
        """`mean` where it is of the same kind as the figures beside it."""
        ranking = self._ranking
        if self._way == "increase" or ranking.dense is None:
            return "mean"
        return "mean" if self._means_are_shares else "mean increase"

    def _higher(self, measured: str) -> bool:
        """Whether more is better."""
        return self._ranking.better.get(measured) == "higher"

    def row(self, entry: RankingEntry, note: str, part: Part) -> TableRow:
        """Return a set or baseline; what it lacks is a hole."""
        figures: list[Figure] = []
        if self._ranks:
            figures.append(Figure(_places(entry.ranks)))
        if self._averaged:
            figures.append(self._mean(entry))
        figures.extend(self._figure(entry, measured) for measured in self._ranking.measured)
        figures.append(_gap(entry, part))
        return TableRow(entry.name, tuple(figures), note, part, "mean" in entry.best_on)

    def dense(self, entry: RankingEntry) -> TableRow:
        """Return the dense model: always its own numbers."""
        figures: list[Figure] = []
        if self._ranks:
            figures.append(Figure())
        if self._averaged:
            figures.append(Figure())
        for measured in self._ranking.measured:
            figures.append(Figure(decimals(entry.losses[measured].value)))
        figures.append(Figure())
        note = f"its own {noun_of(self._ranking)}"
        return TableRow("dense", tuple(figures), note, "dense")

    def _mean(self, entry: RankingEntry) -> Figure:
        if self._means_are_shares and "mean" in entry.share_kept:
            figure = _share(entry.share_kept["mean"])
        elif math.isnan(entry.mean.value):
            return Figure(HOLE)
        elif self._ranking.dense is None:
            figure = _number(entry.mean)
        else:
            figure = _change(entry.mean, self._higher(self._ranking.averaged[0]))
        return _marked(figure, entry, "mean")

    def _figure(self, entry: RankingEntry, measured: str) -> Figure:
        by_way = {"increase": entry.increases, "loss": entry.losses, "kept": entry.share_kept}
        estimate = by_way[self._way].get(measured)
        if estimate is None:
            return Figure(HOLE)
        if self._way == "kept":
            figure = _share(estimate)
        elif self._way == "loss":
            figure = _number(estimate)
        else:
            figure = _change(estimate, self._higher(measured))
        return _marked(figure, entry, measured)

    def legend(self) -> tuple[str, ...]:
        """Return how the table is read."""
        ranking = self._ranking
        higher = bool(ranking.averaged) and self._higher(ranking.averaged[0])
        if self._way == "loss":
            meaning = f"each {row_noun(ranking)}'s own number"
        elif self._way == "kept":
            meaning = "share of the dense model's performance that is kept"
        elif higher or self._mixed:
            meaning = "difference to the dense model"
        else:
            meaning = "increase over the dense model"
        parts = [f"{meaning}{self._units()}", "± one standard error"]
        if any(entry.letters for entry in ranking.entries):
            parts.append(
                f"in a column, {row_noun(ranking)}s that share a letter cannot be distinguished "
                f"(all pairs together at {percent(ranking.level)})"
            )
        if any(entry.best_on for entry in ranking.entries):
            parts.append("bold: significantly better than every other")
        if self._ranks:
            parts.append("rank: the places that the comparisons leave open")
        if ranking.partial:
            parts.append(f"{HOLE}: not there yet, or failed")
        return tuple(parts)

    def _units(self) -> str:
        ranking = self._ranking
        if self._way == "kept":
            return ""
        if not self._mixed:
            direction = ", higher is better" if "higher" in ranking.better.values() else ""
            return f" in {ranking.unit}{direction}"
        alike: dict[str, list[str]] = {}
        for measured in ranking.measured:
            better = ranking.better.get(measured, "lower")
            unit = ranking.units.get(measured, "")
            scale = f"in {unit}, {better} is better"
            alike.setdefault(scale, []).append(short(measured, ranking.measured))
        parts = [f"{join_names(names)} {scale}" for scale, names in alike.items()]
        return f" ({'; '.join(parts)})"


def _number(estimate: Estimate) -> Figure:
    return _with_error(decimals(estimate.value), estimate, decimals)


def _change(estimate: Estimate, higher: bool) -> Figure:
    """`+0.412` with the error `0.031`. Of something that is better when higher, `compare` counts
    as a loss what is shown as a fall.
    """
    value = -estimate.value if higher else estimate.value
    return _with_error(signed(value), estimate, decimals)


def _share(estimate: Estimate) -> Figure:
    return _with_error(_in_percent(estimate.value), estimate, _in_percent)


def _in_percent(share: float) -> str:
    return f"{share:.1%}"


def _with_error(value: str, estimate: Estimate, write: Callable[[float], str]) -> Figure:
    if estimate.stderr is None:
        return Figure(value)
    return Figure(value, write(estimate.stderr))


def _marked(figure: Figure, entry: RankingEntry, measured: str) -> Figure:
    """The figure with its letters, and bold where the set is significantly the best."""
    letters = entry.letters.get(measured, "")
    return replace(figure, letters=letters, best=measured in entry.best_on)


def _gap(entry: RankingEntry, part: Part) -> Figure:
    """How much worse a row is than the best."""
    if entry.to_best is None:
        text = HOLE if part == "partial" else "the best"
        return Figure(text)
    figure = _change(entry.to_best, higher=False)
    if entry.tied and part == "set":
        return replace(figure, note="not significant")
    return figure


def _places(ranks: tuple[int, int]) -> str:
    """`1`, `2–4`, nothing for a row that has no place."""
    first, last = ranks
    if not first and not last:
        return ""
    if first == last:
        return f"{first}"
    return f"{first}–{last}"
