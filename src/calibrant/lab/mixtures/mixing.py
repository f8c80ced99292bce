"""From sources to the mixture of them that does least damage; the whole job."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch

from calibrant.data import CalibrationSet
from calibrant.data.select import resolved
from calibrant.errors import DataError, SpecError
from calibrant.lab.mixtures.aims import aim_of, stand_in_of
from calibrant.lab.mixtures.algebra import (
    Effort,
    Errors,
    Sample,
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
from calibrant.models import Opened, open_model, view
from calibrant.models.cache import cache_folder
from calibrant.models.gguf_writing import tensor_names
from calibrant.models.imatrix import check_imatrix_path
from calibrant.options import MixCommand, declaration, one_target, with_fields_of
from calibrant.results import STATISTICS
from calibrant.system.clock import Clock
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
    sparsity: float | str | Target | None = None
    folder: Path | None = None
    effort: Effort | None = None
    alone: bool = False
    judge_tokens: int | None = None


@with_fields_of(MixOptions)
@freed_memory_kept()
def mix(options: MixOptions) -> Mixture:
    """Find the mixture of `sources` that does least damage, by the error of matrices on texts held
    out of each source.

    `sources` are calibration sets as `--data` takes them, two or more, each drawn with `tokens`
    tokens and, to judge with, as many of the part that is measured on. `target`, or `sparsity`, is
    what matrices are to become: a share that goes (0.6, unless the method is for something else),
    `"2:4"`, or a grid, kind or recipe (`"w4g64"`, `"q4_k"`, `"Q4_K_M"`). Without `method` it is the
    usual one that looks at data: Wanda, for grids GPTQ, for kinds and recipes llama.cpp's own
    quantizers. A method that reads more than sums of statistics is predicted by one that comes
    near; the result's `notes` say so.

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
    >>> found = mix(str(tiny_folder("tiny")), ["python_docs", "python_code"], tokens=512, length=64, folder=Path("mixing"))
    >>> sorted(found.weights), len(found.rows)
    (['python_code', 'python_docs'], 4)
    """
    target = one_target(options.target, options.sparsity)
    built, aimed = aim_of(options.method, target)
    standing = stand_in_of(built, aimed)
    goal = parse_objective(options.objective)
    effort = options.effort or effort_of(standing.method)
    if not isinstance(standing.target, Removal):
        effort = replace(effort, meter=Sample(0, 0))  # which weights go is what the meter compares
    if options.imatrix is not None:
        check_imatrix_path(options.imatrix)
    clock = Clock()
    tokens, length, seed = options.tokens, options.length, options.seed
    sets = [
        CalibrationSet(source, length=length, tokens=tokens, seed=seed)
        for source in options.sources
    ]
    judges, goal = _judges(sets, goal, length, tokens, seed)
    if options.alone:
        if not goal.target:
            raise SpecError(
                f"alone=True is for a target; with the objective {goal} the sources judge, leave it out",
                subject="alone",
            )
        judges = [judge for judge in judges if judge == goal.target]
    with clock.phase("open"):
        opened = options.model
        if not isinstance(opened, Opened):
            opened = open_model(opened, options.dtype, options.device)
        seen_by = view(opened.model)
        built.check_model(seen_by, aimed, dict.fromkeys(seen_by.named, aimed))
        names = {} if options.imatrix is None else tensor_names(seen_by)
    with clock.phase("tokenize"):
        held_out = [
            CalibrationSet(
                judge, length=length, tokens=options.judge_tokens or tokens, seed=seed + 1
            ).held_out()
            for judge in judges
        ]
        batches, judging = (
            [
                (str(one), resolved(one, opened, options.progress).tokens(opened.tokenizer))
                for one in of
            ]
            for of in (sets, held_out)
        )
    with clock.phase("statistics"):
        root = (options.folder or cache_folder()) / STATISTICS
        statistics = gather_statistics(
            opened, seen_by, standing.method, batches, judging, root, effort.meter, options.progress
        )
    with _threads(max(weight.shape[1] for weight in seen_by.weights)):
        search = _MixtureSearch(
            statistics, built, aimed, standing, goal, effort, clock, options.progress
        )
        found, shares = search.mixture(opened, tokens, length, seed)
    if options.imatrix is not None:
        imatrix_of(statistics, shares, names, length).write(options.imatrix)
    return found


def _judges(
    sets: Sequence[CalibrationSet], goal: Objective, length: int, tokens: int, seed: int
) -> tuple[list[str], Objective]:
    """Return the names of the judges (the sources, and a target that is none of them), and the
    objective with its target's canonical name.
    """
    names = [str(one) for one in sets]
    if len(sets) < 2:
        raise SpecError(
            f"a mixture needs two sources or more, and was given {len(sets)} ({', '.join(names) or 'none'})",
            subject=", ".join(names),
        )
    for one in sets:
        if one.mixed:
            raise SpecError(
                f"{str(one)!r} is a mix already and can't be a source; give each of its parts as a source",
                subject=str(one),
            )
        if names.count(str(one)) > 1:
            raise DataError(
                f"the source {str(one)!r} is given twice; give it once, its weight is searched for",
                subject=str(one),
            )
    if not goal.target:
        return names, goal
    target = CalibrationSet(goal.target, length=length, tokens=tokens, seed=seed)
    if target.mixed:
        raise SpecError(
            f"the target {str(target)!r} is a mix; give one source or one file to be good at",
            subject=str(target),
        )
    return list(dict.fromkeys([*names, str(target)])), Objective("target", str(target))


@final
@dataclass(frozen=True)
class _MixtureSearch:
    """A search whose statistics are gathered."""

    statistics: MixtureStatistics
    method: Method
    target: Target
    standing: StandIn
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

    def mixture(
        self, opened: Opened, tokens: int, length: int, seed: int
    ) -> tuple[Mixture, Shares]:
        """Search, judge the best on the larger sample, and put together what is known of it;
        beside it the exact shares of the sources.
        """
        with self.clock.phase("search"):
            inputs = list(
                self.statistics.inputs(self.effort.search, self.progress, "reading statistics")
            )
            small = Errors(
                inputs, self.standing.method, self.standing.target, self.statistics.masses
            )
            search = self.search(small)
        with self.clock.phase("figures"):
            chosen, rows = self.figures(search.ranked)
        with self.clock.phase("influence"):
            influence = self.influence(small, chosen)
        with self.clock.phase("tokens"):
            enough = self.enough(chosen)
        blocks = len(self.statistics.seen_by.blocks)
        everything = (*self.statistics.sources, *self.statistics.judges)
        differs = self.standing.differs
        predicted = (
            (f"{self.method} is predicted by what comes near: {differs}",) if differs else ()
        )
        found = Mixture(
            expr=expression(self.names, chosen),
            weights={name: float(share) for name, share in zip(self.names, chosen, strict=True)},
            objective=str(self.objective),
            value=float(
                self.values(np.array([[rows[-1].errors[judge] for judge in self.judges]]))[0]
            ),
            model=opened.name,
            note=opened.note,
            method=str(self.method),
            sparsity=str(self.target),
            tokens=tokens,
            length=length,
            seed=seed,
            dtype=str(opened.dtype).removeprefix("torch."),
            judges=tuple(self.judges),
            rows=rows,
            influence=influence,
            enough=tuple(enough),
            evaluations=len(search.known),
            samples={
                name: getattr(self.effort, name).to_json(blocks)
                for name in ("search", "final", "meter")
            },
            seconds=dict(self.clock.seconds),
            folder=str(self.statistics.root),
            gathered=len(everything),
            reused=sum(one.ready for one in everything),
            notes=(*predicted, *rows_in_common(self.statistics)),
        )
        return found, chosen

    def search(self, errors: Errors) -> Search:
        """Search among all mixtures, on the small sample."""

        def judged(mixtures: Sequence[Shares]) -> Any:
            self.progress(
                "mixtures", min(len(search.known), self.effort.evaluations), self.effort.evaluations
            )
            return errors(mixtures)

        search = Search(judged, self.values, len(self.names), self.effort.evaluations)
        search.begin()
        if self.objective.kind != "target":
            search.play(
                typical(errors.inputs)[: len(self.names)], moves=self.objective.kind == "worst"
            )
        search.descend()
        self.progress("mixtures", self.effort.evaluations, self.effort.evaluations)
        return search

    def figures(self, ranked: Sequence[Shares]) -> tuple[Shares, tuple[ErrorRow, ...]]:
        """Return the best of the finalists, the sources and the uniform mixture on the larger
        sample; and the table.
        """
        count = len(self.names)
        # Each source alone, and all of them alike: what a mixture must not be worse than.
        simple = [*(only(place, count) for place in range(count)), uniform(count)]
        candidates = list(dict.fromkeys([*simple, *ranked[:FINALISTS]]))
        inputs = self.statistics.inputs(self.effort.final, self.progress, "figures")
        errors = Errors(inputs, self.standing.method, self.standing.target, self.statistics.masses)(
            candidates
        )
        # The search's sample is small and was searched on, so the finalists are judged again on a
        # larger one.
        chosen = candidates[int(np.argmin(self.values(errors)))]
        rows: list[ErrorRow] = []
        for name, shares in zip([*self.names, UNIFORM, BEST], [*simple, chosen], strict=True):
            own = errors[candidates.index(shares)]
            by_judge = dict(zip(self.judges, map(float, own), strict=True))
            rows.append(
                ErrorRow(name, by_judge, float(own[:count].mean()), float(own[:count].max()))
            )
        return chosen, tuple(rows)

    def influence(self, errors: Errors, chosen: Shares) -> tuple[Influence, ...]:
        """Return what leaving out each part does, on the small sample: to the mixture, or to the
        uniform one where one source alone is best.
        """
        count = len(self.names)
        name, shares = (BEST, chosen) if max(chosen) < 1 else (UNIFORM, uniform(count))
        places = [place for place, share in enumerate(shares) if share]
        whole, *others = errors([shares, *(without(place, shares) for place in places)])
        changes: list[Influence] = []
        for place, less in zip(places, others, strict=True):
            mean, worst = (
                less[:count].mean() - whole[:count].mean(),
                less[:count].max() - whole[:count].max(),
            )
            value = self.values(less[None])[0] - self.values(whole[None])[0]
            changes.append(
                Influence(name, self.names[place], float(mean), float(worst), float(value))
            )
        return tuple(changes)

    def enough(self, chosen: Shares) -> list[TokenCurve]:
        """Return the curve of each source and of the mixture; nothing for a target that rounds,
        since no mask says how alike two results are.
        """
        if not isinstance(self.standing.target, Removal):
            return []
        count = len(self.names)
        sets = [
            (name, list(map(float, only(place, count)))) for place, name in enumerate(self.names)
        ]
        sets += [(BEST, list(map(float, chosen)))] if max(chosen) < 1 else []
        meter = TokenMeter(self.standing.method, self.standing.target, self.effort.meter, sets)
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
