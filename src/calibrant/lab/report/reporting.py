"""From a store to a report."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar, cast, runtime_checkable

from calibrant.errors import OutputError, SpecError
from calibrant.lab.report.facts import StudyFacts, facts_of, notes_of, shortfalls_of
from calibrant.lab.report.tables.data import csv, report_data
from calibrant.lab.report.tables.latex import latex
from calibrant.lab.report.tables.markdown import markdown
from calibrant.lab.report.tables.sections import Section, in_short, sections
from calibrant.lab.report.tables.table import WAYS, As
from calibrant.lab.stats import (
    Comparison,
    Contrast,
    Layers,
    Ranking,
    Results,
    Sensitivity,
    SetSummary,
    Similarity,
    UncountedRun,
    compare,
    comparisons_in,
    kept_experts,
    layers,
    narrowed,
    read,
    similarity,
    summaries,
    tidy,
)
from calibrant.results import Cell, Store
from calibrant.results.records import UNTOUCHED
from calibrant.spec.foreign import visible_json
from calibrant.spec.grammar import SetLabel
from calibrant.system.durable import put, reason, text_of_json
from calibrant.system.extras import needed_for

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from calibrant.lab.report.page import Contents
    from calibrant.lab.report.plots import Plot

FORMATS: Final = ("table", "markdown", "csv", "latex", "json")

Compared = TypeVar("Compared", Ranking, Sensitivity, Contrast)


@runtime_checkable
class InFolder(Protocol):
    """Anything that knows its folder of results: a finished study, a store."""

    @property
    def folder(self) -> Path: ...


@dataclass(frozen=True)
class Report:
    """What a study found, ready to be shown. `str` is Markdown.

    `reading` holds its scores, `notes` what must be said of each model, `way` what the figures of
    its tables are.
    """

    folder: Path
    comparison: Comparison
    reading: Results
    notes: Mapping[str, str]
    way: As = "increase"

    @cached_property
    def facts(self) -> StudyFacts:
        """What there is to know beside the comparison; read when it is first used, since it is
        in thousands of small files.
        """
        return facts_of(Store(self.folder, create=False), self.reading, self.shortfalls)

    @cached_property
    def shortfalls(self) -> tuple[str, ...]:
        """A sentence for each target that wasn't reached."""
        return shortfalls_of(self.folder, self.reading)

    @cached_property
    def summaries(self) -> tuple[SetSummary, ...]:
        """The calibration sets as the store knows them."""
        return tuple(summaries(Store(self.folder, create=False), self.reading))

    @cached_property
    def layers(self) -> tuple[Layers, ...]:
        """Each group of runs, block by block; every record is read whole for it."""
        return tuple(layers(Store(self.folder, create=False), self.reading))

    @cached_property
    def similarity(self) -> Similarity:
        """How alike the calibration sets are."""
        return similarity(self.summaries, self.layers)

    @property
    def rankings(self) -> tuple[Ranking, ...]:
        """A ranking for each model, method and target."""
        return self.comparison.rankings

    def __str__(self) -> str:
        return markdown(self._sections())

    def to_latex(self) -> str:
        """Return the tables in LaTeX (booktabs), with what else there is to say in comments."""
        return latex(self._sections())

    def to_csv(self) -> str:
        """Return the scores, one line each, as RFC 4180 says."""
        return csv(tidy(self.reading))

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data; what is not a number, or has no end, is None."""
        return report_data(self.comparison, self.facts)

    def text(self, format: str) -> str:
        """Return the report in one of `FORMATS`. Raises `SpecError` for another."""
        check_format(format)
        if format == "json":
            return visible_json(text_of_json(self.to_json(), ordered=True))
        if format == "csv":
            return self.to_csv()
        if format == "latex":
            return self.to_latex()
        return str(self) if format == "markdown" else self.table()

    def lines(self, width: int = 120, whole: bool = True) -> "Iterator[RenderableType]":
        """Yield what a terminal of `width` columns shows (rich).

        A study of several rankings is shown in a screen's length, unless the `whole` is asked for.
        """
        from calibrant.lab.report.tables import terminal

        if whole or len(self.comparison.of_sets) < 2:
            return terminal.lines(self._sections(), width)
        short = in_short(self.comparison, self.reading.study, self.way, self.notes, self.shortfalls)
        return terminal.summary(list(short), width)

    def table(self, width: int = 120) -> str:
        """Return all that a terminal of `width` columns can show, as text without colours."""
        from rich.console import Console

        text = StringIO()
        console = Console(
            file=text,
            width=width,
            color_system=None,
            highlight=False,
            markup=False,
            # A set may be called `a:key:b`.
            emoji=False,
        )
        self.show(console)
        return text.getvalue()

    def show(self, console: "Console") -> None:
        """Print the tables with what was found (rich)."""
        for line in self.lines(console.width):
            console.print(line)

    @needed_for("the page")
    def html(self) -> str:
        """Return the page, as one self-contained text. Raises `MissingPackageError` without the
        extra `report`.
        """
        from calibrant.lab.report.page import page

        return page(self._contents())

    @needed_for("a report in a notebook")
    def _repr_html_(self) -> str:
        from calibrant.lab.report.page import Contents, fragment

        return fragment(Contents(self.comparison, self.facts, self.reading), f"report-{id(self)}")

    @needed_for("a plot")
    def plots(self) -> "list[Plot]":
        """Return every plot that the study has material for. Raises `MissingPackageError`
        without the extra `report`.
        """
        from calibrant.lab.report.plots import plots

        return plots(
            self.comparison, self.layers, self._contents().tokens, tuple(kept_experts(self.reading))
        )

    @needed_for("a plot")
    def write_plots(self, folder: str | Path, dark: bool = False) -> list[Path]:
        """Write every plot as SVG, PNG and PDF, and return where they are. Raises `OutputError`
        if `folder` can't be written.
        """
        from calibrant.lab.report.plots import write

        return write(self.plots(), Path(folder), dark)

    def write_html(self, file: str | Path | None = None) -> Path:
        """Write the page, whole or not at all, into the store's folder or to `file`, and return
        where it is. Raises `OutputError` if it can't be.
        """
        if file is None:
            with Store(self.folder) as store:
                return store.write_text("report.html", self.html())
        page, path = self.html(), Path(file)
        try:
            return put(path, page.encode())
        except OSError as error:
            raise OutputError(
                f"{str(path)!r} can't be written: {reason(error)}", subject=str(path)
            ) from error

    def _contents(self) -> "Contents":
        from calibrant.lab.report.page import Contents

        return Contents(
            self.comparison, self.facts, self.reading, self.summaries, self.layers, self.similarity
        )

    def _sections(self) -> list[Section]:
        study = self.reading.study
        return list(sections(self.comparison, self.way, self.notes, study, self.shortfalls))


@needed_for("a report")
def report(
    study: str | Path | InFolder,
    tasks: str | Sequence[str] = (),
    way: str = "increase",
    baseline: str = "",
    methods: str | Sequence[str] = (),
) -> Report:
    """Read what a study's folder holds and compare it.

    `tasks` narrows it to measured sets or evaluators whose name begins so, `methods` to methods
    whose name, or name and target, begins so (`gptq`, `gptq w3g64`); a single text stands for a
    list of one. `way` is what the figures are:
    `increase` over the dense model, the `loss` itself, or the share of the dense model's
    performance `kept`. `baseline` is the set that others are compared with; see `compare`.

    Raises `OutputError` for a folder that holds no results, `DataError` for results that can't be
    compared with one another, `SpecError` for another `way`, and for a method or baseline that
    isn't there.

    >>> report("results", way="median")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    calibrant.errors.SpecError: the figures can't be shown as 'median'; choose among increase, ...
    """
    if way not in WAYS:
        message = f"the figures can't be shown as {way!r}; choose among {', '.join(WAYS)}"
        raise SpecError(message, subject=way)
    if isinstance(methods, str):
        methods = [methods]
    folder = Path(study) if isinstance(study, str | Path) else study.folder
    store = Store(folder, create=False)
    reading = in_short_names(read(store))
    comparison = of_methods(compare(reading, tasks, baseline=baseline), methods)
    # The outcomes of single items are nine tenths of it, and have been compared by then.
    scores = replace(cells_of_methods(narrowed(reading, tasks), methods), items={})
    notes = notes_of(store, scores)
    return Report(store.folder, comparison, scores, notes, cast("As", way))


def in_short_names(reading: Results) -> Results:
    """Return results in which sets are called as the study's file names them (`name: mixture`)."""
    names: Mapping[str, str] = reading.study.get("names") or {}
    if not names:
        return reading

    def named(data: str) -> str:
        return names.get(data, data)

    sets: dict[str, SetLabel] = {}
    for data in {cell.data for cell in reading.cells if cell.data}:
        sets[named(data)] = replace(reading.label(data), text=named(data))
    cells = [replace(cell, data=named(cell.data)) for cell in reading.cells]
    uncounted: list[UncountedRun] = []
    for run in reading.uncounted:
        cell = replace(run.cell, data=named(run.cell.data))
        uncounted.append(replace(run, cell=cell))
    failures = dict(reading.failures)
    for failed_id, failure in reading.failures.items():
        if "cell" in failure:
            model, data, *others = failure["cell"]
            failures[failed_id] = {**failure, "cell": [model, named(data), *others]}
    return replace(
        reading,
        cells=tuple(cells),
        failures=failures,
        sets=sets,
        study=_study_in_short_names(reading.study, named),
        uncounted=tuple(uncounted),
    )


def _study_in_short_names(
    study: Mapping[str, Any], named: Callable[[str], str]
) -> Mapping[str, Any]:
    """Return a study whose baseline, pools and contrasts call sets by their short names."""
    pools = study.get("pools") or {}
    primary: list[dict[str, Any]] = []
    for contrast in study.get("primary") or ():
        sides = {side: named(contrast[side]) for side in ("compare", "with")}
        title = contrast.get("name")
        if title == f"{contrast['compare']} against {contrast['with']}":
            title = f"{sides['compare']} against {sides['with']}"
        primary.append({**contrast, **sides, "name": title})
    in_short = {
        **study,
        "pools": {pool: list(map(named, sets)) for pool, sets in pools.items()},
        "primary": primary,
    }
    if study.get("baseline"):
        in_short["baseline"] = named(study["baseline"])
    return in_short


def of_methods(comparison: Comparison, methods: Sequence[str]) -> Comparison:
    """Return what a comparison says of methods whose name, or name and target, begins so; all of
    it without any. Raises `SpecError` for one that isn't there.
    """
    if not methods:
        return comparison
    every = (*comparison.rankings, *comparison.unranked)
    for method in methods:
        if not any(_is_of(ranking, [method]) for ranking in every):
            known = ", ".join(dict.fromkeys(ranking.method for ranking in every))
            message = f"no method here begins with {method!r} (there are: {known or 'none'})"
            raise SpecError(f"{message}; name one of these", subject=method)
    rankings = _those_of(methods, comparison.rankings)
    unranked = _those_of(methods, comparison.unranked)
    missing: dict[str, None] = {}
    for ranking in (*rankings, *unranked):
        missing |= dict.fromkeys(ranking.missing)
    uncounted = [run for run in comparison.uncounted if _concerns(run.cell, methods)]
    return replace(
        comparison,
        rankings=rankings,
        unranked=unranked,
        comparisons=sum(map(comparisons_in, rankings)),
        sensitivities=_those_of(methods, comparison.sensitivities),
        contrasts=_those_of(methods, comparison.contrasts),
        missing=tuple(missing),
        agreements=(),
        uncounted=tuple(uncounted),
    )


def cells_of_methods(reading: Results, methods: Sequence[str]) -> Results:
    """Return results with the cells of such methods, and of the dense model that they are compared
    with; all of them without any.
    """
    if not methods:
        return reading
    cells = [cell for cell in reading.cells if _concerns(cell, methods)]
    return replace(reading, cells=tuple(cells))


def _those_of(methods: Sequence[str], compared: Iterable[Compared]) -> tuple[Compared, ...]:
    return tuple(found for found in compared if _is_of(found, methods))


def _concerns(cell: Cell, methods: Sequence[str]) -> bool:
    """Say whether a cell is of such methods, or of the dense model that they are compared with."""
    return cell.method == UNTOUCHED or _is_of(cell, methods)


def _is_of(found: Ranking | Sensitivity | Contrast | Cell, methods: Sequence[str]) -> bool:
    return f"{found.method} {found.target}".startswith(tuple(methods))


def check_format(format: str) -> None:
    """Raise `SpecError` for a format that a report doesn't come in.

    >>> check_format("xml")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    calibrant.errors.SpecError: a report doesn't come in the format 'xml'; choose among table, ...
    """
    if format not in FORMATS:
        known = ", ".join(FORMATS)
        message = f"a report doesn't come in the format {format!r}; choose among {known}"
        raise SpecError(message, subject=format)
