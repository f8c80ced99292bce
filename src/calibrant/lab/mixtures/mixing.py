"""From sources to the mixture of them that does least damage; the whole job."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch

from calibrant.compress import check_model
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.objects import as_expression
from calibrant.data.select import resolved
from calibrant.errors import DataError, OutputError, SpecError
from calibrant.lab.mixtures.aims import aim_of, fitted_to, stand_in_of
from calibrant.lab.mixtures.algebra import (
    NO_METER,
    Effort,
    Errors,
    SharedInput,
    Shares,
    effort_of,
    only,
    typical,
    uniform,
    without,
)
from calibrant.lab.mixtures.enough import TokenCurve, TokenMeter
from calibrant.lab.mixtures.imatrix import imatrix_of
from calibrant.lab.mixtures.mixture import BEST, UNIFORM, ErrorRow, Influence, Mixture, expression
from calibrant.lab.mixtures.search import Objective, Search, parse_objective
from calibrant.lab.mixtures.statistics import MixtureStatistics, gather_statistics, rows_in_common
from calibrant.methods import Method, StandIn
from calibrant.models import Opened, only_looks, opened_of, view
from calibrant.models.cache import CACHE, cache_folder
from calibrant.models.gguf_writing import tensor_names
from calibrant.models.imatrix import check_imatrix_path
from calibrant.models.readable import check_windows
from calibrant.numerics import type_name
from calibrant.options import MixCommand, declaration, with_fields_of
from calibrant.results import STATISTICS
from calibrant.system.clock import Clock
from calibrant.system.durable import takes_files
from calibrant.system.process import freed_memory_kept
from calibrant.system.progress import Progress
from calibrant.targets import Removal, Target

FINALISTS: Final = 4
"""Mixtures of the search that are judged once more on the larger sample."""

_NARROW: Final = 2048
"""Columns of a matrix up to which one thread does the work."""


@final
@declaration
class MixOptions(MixCommand):
    """The options of `mix`."""

    _: KW_ONLY
    folder: Path | None = None
    effort: Effort | None = None
    alone: bool = False
    judge_tokens: int | None = None


@with_fields_of(MixOptions)
@only_looks
@freed_memory_kept()
def mix(options: MixOptions) -> Mixture:
    """Find the mixture of `sources` that does least damage, by the error of matrices on texts held
    out of each source.

    `sources` are calibration sets as `--data` takes them, two or more, each drawn with `tokens`
    tokens and, to judge with, as many of the part that is measured on. `target` is
    what matrices are to become: a share that goes (0.6, unless the method is for something else),
    `"2:4"`, or a grid, kind, recipe or budget (`"w4g64"`, `"q4_k"`, `"Q4_K_M"`, `"gguf 90MB"`).
    Without `method` it is the usual one that looks at data: Wanda, for grids GPTQ with scales by
    importance, for whatever is of llama.cpp its own quantizers. A method that reads more than sums
    of statistics is predicted by one that comes near; the result's `notes` say so.

    `objective` is `mean` or `worst` over the sources as judges, or `target=EXPR`: a source, or a
    file of the user's own. The model is walked through once for each set and part; what its
    matrices see is stored in `folder/statistics` (by default in the user's cache), where a second
    call, for another method of the same kind, target or objective, finds it; a call that was killed
    goes on. A judge's Grams take 2·in² bytes for each distinct input of the model (200 MB of
    SmolLM2-135M), and so does a source's where the method reads a Gram.

    `effort` says what the search may look at; what is left out depends on the method's price
    (`SCORING`, `FITTING`), and the result says it. A target that judges `alone` saves the walks
    over what each source holds out: the table has its column and no other, and mean and worst are
    its own. `judge_tokens` stands for `tokens` where it is judged, for a target that holds out less
    than a source gives. `imatrix` names a file (`.gguf` or `.dat`) for the mixture's importance
    matrix.

    It is chosen by the errors under the judges' texts, so its own figures are a little too good.
    Those texts are the draw after this one: a `loss(…)` that is to confirm the choice reads the
    same part in the same order, and measures other texts as long as its budget is no larger than a
    draw and the part lasts.

    The mixture is never worse, by its own measure, than the best source alone and the uniform
    mixture. Raises an `InputError` for anything that can't be used.

    >>> from calibrant.testing import tiny_folder
    >>> sources = ["python_docs", "python_code"]
    >>> settings = {"tokens": 512, "length": 64, "folder": Path("mixing")}
    >>> found = mix(str(tiny_folder("tiny")), sources=sources, **settings)
    >>> sorted(found.weights), len(found.rows)
    (['python_code', 'python_docs'], 4)
    """
    method, target = aim_of(options.method, options.target)
    stand_in = stand_in_of(method, target)
    objective = parse_objective(options.objective)
    effort = options.effort or effort_of(stand_in.method)
    if not isinstance(stand_in.target, Removal):
        # The meter compares which weights go, and here none do.
        effort = replace(effort, meter=NO_METER)
    if options.imatrix is not None:
        check_imatrix_path(options.imatrix)
    clock = Clock()
    place = options.folder or cache_folder()
    if options.folder is None and not takes_files(place):
        raise OutputError(
            f"a mixture's statistics are kept in {str(place)!r}, which can't be written; set "
            f"{CACHE} to a folder that can be (in Python also folder=)",
            subject=str(place),
        )
    sets: list[CalibrationSet] = []
    for source in options.sources:
        sets.append(_set_of(options, as_expression(source, place / "given")))
    _check_sources(sets)
    objective, judges = _judges(options, objective, sets)
    with clock.phase("open"):
        opened = opened_of(options.model, options.tokenizer, options.dtype, options.device)
        model_view = view(opened.model)
        check_model(method, model_view, target, dict.fromkeys(model_view.named, target))
        stand_in = fitted_to(stand_in, opened.model.num_parameters())
        names = {} if options.imatrix is None else tensor_names(model_view)
    with clock.phase("tokenize"):
        batches = [_tokenized(data, opened, options.progress) for data in sets]
        held_out = [_held_out(options, judge) for judge in judges]
        judging = [_tokenized(data, opened, options.progress) for data in held_out]
    with clock.phase("statistics"):
        statistics = gather_statistics(
            opened,
            model_view,
            stand_in.method,
            batches,
            judging,
            place / STATISTICS,
            effort.meter,
            options.progress,
        )
    widest = max(weight.shape[1] for weight in model_view.weights)
    with _threads(widest):
        search = _MixtureSearch(
            statistics, method, target, stand_in, objective, effort, clock, options.progress
        )
        mixture, shares = search.mixture(opened, options.tokens, options.length, options.seed)
    if options.imatrix is not None:
        imatrix_of(statistics, shares, names, options.length).write(options.imatrix)
    return mixture


def _set_of(options: MixOptions, text: str) -> CalibrationSet:
    """The calibration set of an expression, with the size and seed that are asked for."""
    return CalibrationSet(text, length=options.length, tokens=options.tokens, seed=options.seed)


def _held_out(options: MixOptions, judge: str) -> CalibrationSet:
    """What a judge judges by: the next draw, so that a loss that confirms the choice measures other
    texts.
    """
    tokens = options.judge_tokens or options.tokens
    data = CalibrationSet(judge, length=options.length, tokens=tokens, seed=options.seed + 1)
    return data.held_out()


def _judges(
    options: MixOptions, objective: Objective, sets: Sequence[CalibrationSet]
) -> tuple[Objective, list[str]]:
    """Return the objective with its target as sets are written, and who judges: the sources, and a
    target beside them or alone.

    Raises `SpecError` for a target that is a mix, and where one is to judge alone that isn't there.
    """
    sources = [str(data) for data in sets]
    if not objective.target:
        if options.alone:
            message = (
                f"alone=True is for a target; with the objective {objective} the sources judge"
            )
            raise SpecError(f"{message}, leave it out", subject="alone")
        return objective, sources
    target_set = _set_of(options, objective.target)
    target = str(target_set)
    if target_set.mixed:
        message = f"the target {target!r} is a mix; give one source or one file to be good at"
        raise SpecError(message, subject=target)
    judges = [target] if options.alone else list(dict.fromkeys([*sources, target]))
    return Objective("target", target), judges


def _tokenized(data: CalibrationSet, opened: Opened, progress: Progress) -> tuple[str, TokenBatch]:
    batch = resolved(data, opened, progress).tokens(opened.tokenizer)
    check_windows(opened.model, batch.ids, batch.mask)
    return str(data), batch


def _check_sources(sets: Sequence[CalibrationSet]) -> None:
    """Raise an `InputError` for fewer than two sources, for a mix, and for one that is given
    twice.
    """
    names = [str(data) for data in sets]
    if len(sets) < 2:
        given = ", ".join(names) or "none"
        message = f"a mixture needs two sources or more, and was given {len(sets)} ({given})"
        raise SpecError(message, subject=", ".join(names))
    keys = [data.content_key for data in sets]
    for data, name in zip(sets, names, strict=True):
        if data.mixed:
            message = f"{name!r} is a mix already and can't be a source"
            raise SpecError(f"{message}; give each of its parts as a source", subject=name)
        if keys.count(data.content_key) > 1:
            message = (
                f"the source {name!r} is given twice; give it once, its weight is searched for"
            )
            raise DataError(message, subject=name)


@final
@dataclass(frozen=True)
class _MixtureSearch:
    """A search whose statistics are gathered."""

    statistics: MixtureStatistics
    method: Method
    target: Target
    stand_in: StandIn
    objective: Objective
    effort: Effort
    clock: Clock
    progress: Progress

    @property
    def names(self) -> list[str]:
        """The sources."""
        return [source.data for source in self.statistics.sources]

    @property
    def judges(self) -> list[str]:
        """The sources first, unless a target judges alone."""
        return [judge.data for judge in self.statistics.judges]

    def values(self, errors: Any) -> Any:
        """Return what is to be small, of each mixture."""
        return self.objective.values(errors, len(self.names), self.judges)

    def value(self, errors: Any) -> float:
        """Return what is to be small, of one mixture with these errors."""
        return float(self.values(errors[None])[0])

    def mixture(
        self, opened: Opened, tokens: int, length: int, seed: int
    ) -> tuple[Mixture, Shares]:
        """Search, judge the best on the larger sample, and put together what is known of it.

        Beside it are the exact shares of the sources.
        """
        with self.clock.phase("search"):
            sampled = self.statistics.inputs(
                self.effort.search, self.stand_in.target, self.progress, "reading statistics"
            )
            search_errors = self._errors(list(sampled))
            search = self.search(search_errors)
        with self.clock.phase("figures"):
            chosen, rows = self.figures(search.ranked)
        with self.clock.phase("influence"):
            influence = self.influence(search_errors, chosen)
        with self.clock.phase("tokens"):
            enough = self.enough(chosen)
        best_row = rows[-1]
        best_errors = np.array([best_row.errors[judge] for judge in self.judges])
        gathered = (*self.statistics.sources, *self.statistics.judges)
        notes = self._notes()
        count = len(self.statistics.view.blocks)
        samples = {
            "search": self.effort.search.to_json(count),
            "final": self.effort.final.to_json(count),
            "meter": self.effort.meter.to_json(count),
        }
        found = Mixture(
            expr=expression(self.names, chosen),
            weights=dict(zip(self.names, map(float, chosen), strict=True)),
            objective=str(self.objective),
            value=self.value(best_errors),
            model=opened.name,
            note=opened.note,
            method=str(self.method),
            target=str(self.target),
            tokens=tokens,
            length=length,
            seed=seed,
            dtype=type_name(opened.dtype),
            judges=tuple(self.judges),
            rows=rows,
            influence=influence,
            enough=tuple(enough),
            evaluations=len(search.known),
            samples=samples,
            seconds=dict(self.clock.seconds),
            folder=str(self.statistics.root),
            gathered=len(gathered),
            reused=sum(statistics.ready for statistics in gathered),
            notes=tuple(notes),
        )
        return found, chosen

    def _notes(self) -> list[str]:
        """That a stand-in predicts the method, and which rows judges and sources have in common."""
        notes = list(rows_in_common(self.statistics))
        if self.stand_in.differs:
            stand_in_note = (
                f"{self.method} is predicted by what comes near: {self.stand_in.differs}"
            )
            notes.insert(0, stand_in_note)
        return notes

    def _errors(self, inputs: Iterable[SharedInput]) -> Errors:
        return Errors(inputs, self.stand_in.method, self.statistics.masses)

    def search(self, errors: Errors) -> Search:
        """Search among all mixtures, on the small sample."""
        most = self.effort.evaluations

        def judged(mixtures: Sequence[Shares]) -> Any:
            self.progress("mixtures", min(len(search.known), most), most)
            return errors(mixtures)

        search = Search(judged, self.values, len(self.names), most)
        search.begin()
        if self.objective.kind != "target":
            sizes = typical(errors.inputs)[: len(self.names)]
            search.play(sizes, moves=self.objective.kind == "worst")
        search.descend()
        self.progress("mixtures", most, most)
        return search

    def figures(self, ranked: Sequence[Shares]) -> tuple[Shares, tuple[ErrorRow, ...]]:
        """Return the best mixture on the larger sample, and the table of errors.

        The search's sample is small and was searched on, so the finalists are judged again, beside
        the sources and the uniform mixture.
        """
        count = len(self.names)
        # Each source alone, and all of them alike: what a mixture must not be worse than.
        alone = [only(place, count) for place in range(count)]
        simple = [*alone, uniform(count)]
        candidates = list(dict.fromkeys([*simple, *ranked[:FINALISTS]]))
        inputs = self.statistics.inputs(
            self.effort.final, self.stand_in.target, self.progress, "figures"
        )
        judged = self._errors(inputs)
        errors = judged(candidates)
        best_place = int(np.argmin(self.values(errors)))
        chosen = candidates[best_place]
        names = [*self.names, UNIFORM, BEST]
        shown = [*simple, chosen]
        rows: list[ErrorRow] = []
        for name, shares in zip(names, shown, strict=True):
            row = errors[candidates.index(shares)]
            by_judge = dict(zip(self.judges, map(float, row), strict=True))
            source_errors = row[:count]
            mean = float(source_errors.mean())
            worst = float(source_errors.max())
            rows.append(ErrorRow(name, by_judge, mean, worst))
        return chosen, tuple(rows)

    def influence(self, errors: Errors, chosen: Shares) -> tuple[Influence, ...]:
        """Return what leaving out each part does, on the small sample.

        The parts are those of the mixture, or of the uniform one where one source alone is best.
        """
        count = len(self.names)
        name = BEST
        shares = chosen
        if max(chosen) == 1:
            name = UNIFORM
            shares = uniform(count)
        places = [place for place, share in enumerate(shares) if share]
        reduced = [without(place, shares) for place in places]
        whole_row, *reduced_rows = errors([shares, *reduced])
        whole = whole_row[:count]
        changes: list[Influence] = []
        for place, reduced_row in zip(places, reduced_rows, strict=True):
            less = reduced_row[:count]
            mean = float(less.mean() - whole.mean())
            worst = float(less.max() - whole.max())
            value = self.value(reduced_row) - self.value(whole_row)
            changes.append(Influence(name, self.names[place], mean, worst, value))
        return tuple(changes)

    def enough(self, chosen: Shares) -> list[TokenCurve]:
        """Return the curve of each source and of the mixture; none where nobody asks for it, or no
        weights go.
        """
        stand_in = self.stand_in
        if self.effort.meter == NO_METER:
            return []
        count = len(self.names)
        sets: list[tuple[str, Sequence[float]]] = []
        for place, name in enumerate(self.names):
            alone = [float(share) for share in only(place, count)]
            sets.append((name, alone))
        if max(chosen) < 1:
            mixed = [float(share) for share in chosen]
            sets.append((BEST, mixed))
        meter = TokenMeter(stand_in.method, stand_in.target, self.effort.meter, sets)
        for block, pieces in self.statistics.pieces():
            meter.add(block, pieces)
        return meter.curves()


@contextmanager
def _threads(width: int) -> Iterator[None]:
    """One thread where the widest matrix has few columns: products of some rows with it are over
    before threads have found together.

    Measured on two busy cores, ten sources, 576 and 1536 columns: 39 s with one thread, 190 s with
    two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if width <= _NARROW else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
