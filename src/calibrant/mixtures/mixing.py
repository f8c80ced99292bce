"""From sources to the mixture of them that does least damage; the whole job."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import numpy as np
import torch

from calibrant.clock import Clock
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import DataError, SpecError
from calibrant.methods import MatrixMethod, Method, methods
from calibrant.mixtures.algebra import Errors, Group, Shares, only, typical, uniform, without
from calibrant.mixtures.gathering import Gathered, gathered, in_common, kind_of
from calibrant.mixtures.metering import Meter, Metered
from calibrant.mixtures.mixture import FOUND, UNIFORM, Influence, Mixture, Row, expression
from calibrant.mixtures.objective import Objective, parse_objective
from calibrant.mixtures.sampling import Effort, effort_of
from calibrant.mixtures.searching import Search
from calibrant.models import Opened, open_model, view
from calibrant.models.cache import cache_folder
from calibrant.process import freed_memory_kept
from calibrant.progress import Progress, silent
from calibrant.select import resolved
from calibrant.store import STATISTICS
from calibrant.targets import Removal, Target, parse_target

FINALISTS: Final = 4
"""Mixtures of the search that are judged once more on the larger sample."""

_NARROW: Final = 2048
"""Columns of a matrix up to which one thread does the work."""


@freed_memory_kept()
def mix(
    model: str | Opened,
    sources: Sequence[str],
    *,
    method: str | Method = "wanda",
    sparsity: float | str | Target = 0.6,
    objective: str = "mean",
    tokens: int = 8192,
    length: int = 512,
    seed: int = 0,
    folder: Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    effort: Effort | None = None,
    alone: bool = False,
    progress: Progress = silent,
) -> Mixture:
    """Find the mixture of `sources` that does least damage, by the error of matrices on texts held out of each source.

    `sources` are calibration sets as `--data` takes them, two or more, each drawn with `tokens` tokens and, to judge with, as many of the part that
    is measured on. `objective` is `mean` or `worst` over the sources as judges, or `target=EXPR`: a source, or a file of the user's own. The model
    is walked through once for each set and part; what its matrices see is kept in `folder/statistics` (by default in the user's cache), where a
    second call, for another method of the same kind, target or objective, finds it; a call that was killed goes on. A judge's Grams take
    2·in² bytes for each distinct input of the model (200 MB of SmolLM2-135M), and so does a source's where the method reads a Gram.

    `effort` says what the search may look at; what is left out depends on the method's price (`SCORING`, `FITTING`), and the result says it. A target
    that judges `alone` saves the walks over what each source holds out: the table has its column and no other, and mean and worst are its own.

    It is chosen by the errors under the judges' texts, so its own figures are a little too good. Those texts are the draw after this one: a
    `loss(…)` that is to confirm the choice reads the same part in the same order, and measures other texts as long as its budget is no larger than
    a draw and the part lasts.

    The mixture is never worse, by its own measure, than the best source alone and the uniform mixture. Raises an `InputError` for anything that
    can't be used.
    """
    job = _Asked(*_matched(method, sparsity), parse_objective(objective))
    allowed = effort or effort_of(job.method)
    clock = Clock()
    sets = [CalibrationSet(source, length=length, tokens=tokens, seed=seed) for source in sources]
    own, judging, job = _distinct(sets, job, length, tokens, seed)
    if alone:
        if not job.objective.target:
            raise SpecError(f"alone=True is for a target; with the objective {job.objective} the sources judge, leave it out", subject="alone")
        judging = [one for one in judging if str(one) == job.objective.target]
    with clock.phase("open"):
        opened = model if isinstance(model, Opened) else open_model(model, dtype, device)
        seen_by = view(opened.model)
        for weight in seen_by.weights:
            job.target.check(weight.shape, weight.name)
    with clock.phase("tokenize"):
        drawn = _drawn(own, opened, progress)
        judged = _drawn([CalibrationSet(str(one), length=length, tokens=tokens, seed=seed + 1).held_out() for one in judging], opened, progress)
    with clock.phase("statistics"):
        root = (folder or cache_folder()) / STATISTICS
        kept = gathered(opened, seen_by, job.method, drawn, judged, root, allowed.meter, progress)
    return _Weighing(kept, job, allowed, clock, progress).mixture(opened, tokens, length, seed)


def _matched(method: str | Method, sparsity: float | str | Target) -> tuple[MatrixMethod, Target]:
    """The method and the target, if statistics of a mixture can be added up for them."""
    built, target = methods.build(method), sparsity if isinstance(sparsity, Target) else parse_target(sparsity)
    built.check(target)
    kind_of(built)
    return built, target


@final
@dataclass(frozen=True)
class _Asked:
    method: MatrixMethod
    target: Target
    objective: Objective


def _distinct(
    sets: Sequence[CalibrationSet], job: _Asked, length: int, tokens: int, seed: int
) -> tuple[list[CalibrationSet], list[CalibrationSet], _Asked]:
    """The sources, the judges (the sources, and a target that is none of them), and what is asked with the target's canonical name."""
    names = [str(one) for one in sets]
    if len(sets) < 2:
        raise SpecError(f"a mixture needs two sources or more, and was given {len(sets)} ({', '.join(names) or 'none'})", subject=", ".join(names))
    for one in sets:
        if one.mix:
            raise SpecError(f"{str(one)!r} is a mix already and can't be a source; give each of its parts as a source", subject=str(one))
        if names.count(str(one)) > 1:
            raise DataError(f"the source {str(one)!r} is given twice; give it once, its weight is searched for", subject=str(one))
    if not job.objective.target:
        return list(sets), list(sets), job
    target = CalibrationSet(job.objective.target, length=length, tokens=tokens, seed=seed)
    if target.mix:
        raise SpecError(f"the target {str(target)!r} is a mix; give one source or one file to be good at", subject=str(target))
    asked = _Asked(job.method, job.target, Objective("target", str(target)))
    return list(sets), [*sets, *([target] if str(target) not in names else [])], asked


def _drawn(sets: Sequence[CalibrationSet], opened: Opened, progress: Progress) -> list[tuple[str, TokenBatch]]:
    return [(str(one), resolved(one, opened, progress).tokens(opened.tokenizer)) for one in sets]


@final
@dataclass(frozen=True)
class _Weighing:
    """A search whose statistics are there."""

    kept: Gathered
    asked: _Asked
    effort: Effort
    clock: Clock
    progress: Progress

    @property
    def names(self) -> list[str]:
        """The sources."""
        return [source.data for source in self.kept.sources]

    @property
    def judges(self) -> list[str]:
        """The sources first."""
        return [judge.data for judge in self.kept.judges]

    def values(self, errors: Any) -> Any:
        """What is to be small, of each mixture."""
        return self.asked.objective.values(errors, len(self.names), self.judges)

    def mixture(self, opened: Opened, tokens: int, length: int, seed: int) -> Mixture:
        """Search, judge the best on the larger sample, and tell what there is to tell of it."""
        with _threads(max(weight.shape[1] for weight in self.kept.seen_by.weights)):
            return self._mixture(opened, tokens, length, seed)

    def _mixture(self, opened: Opened, tokens: int, length: int, seed: int) -> Mixture:
        with self.clock.phase("search"):
            small = self.errors(list(self.kept.groups(self.effort.search, self.progress, "reading statistics")))
            found = self.search(small)
        with self.clock.phase("figures"):
            chosen, rows = self.figures(found.ranked)
        with self.clock.phase("influence"):
            influence = self.influence(small, chosen)
        with self.clock.phase("tokens"):
            enough = self.enough(chosen)
        blocks = len(self.kept.seen_by.blocks)
        everything = (*self.kept.sources, *self.kept.judges)
        return Mixture(
            expr=expression(self.names, chosen),
            weights={name: float(share) for name, share in zip(self.names, chosen, strict=True)},
            objective=str(self.asked.objective),
            value=float(self.values(np.array([[rows[-1].errors[judge] for judge in self.judges]]))[0]),
            model=opened.name,
            note=opened.note,
            method=str(self.asked.method),
            sparsity=str(self.asked.target),
            tokens=tokens,
            length=length,
            seed=seed,
            dtype=str(opened.dtype).removeprefix("torch."),
            judges=tuple(self.judges),
            rows=rows,
            influence=influence,
            enough=tuple(enough),
            evaluations=len(found.known),
            samples={name: getattr(self.effort, name).to_json(blocks) for name in ("search", "final", "meter")},
            seconds=dict(self.clock.seconds),
            folder=str(self.kept.root),
            gathered=len(everything),
            reused=sum(one.ready for one in everything),
            notes=in_common(self.kept),
        )

    def errors(self, groups: Iterable[Group]) -> Errors:
        """The judge of mixtures on these groups."""
        return Errors(groups, self.asked.method, self.asked.target, self.kept.masses)

    def search(self, errors: Errors) -> Search:
        """Among all mixtures, on the small sample."""

        def told(mixtures: Sequence[Shares]) -> Any:
            self.progress("mixtures", min(len(found.known), self.effort.evaluations), self.effort.evaluations)
            return errors(mixtures)

        found = Search(told, self.values, len(self.names), self.effort.evaluations)
        found.begin()
        if self.asked.objective.kind != "target":
            found.play(typical(errors.groups)[: len(self.names)], moves=self.asked.objective.kind == "worst")
        found.descend()
        self.progress("mixtures", self.effort.evaluations, self.effort.evaluations)
        return found

    def figures(self, ranked: Sequence[Shares]) -> tuple[Shares, tuple[Row, ...]]:
        """The best of the finalists, the sources and the uniform mixture on the larger sample; and the table."""
        plain = _plain(len(self.names))
        several = list(dict.fromkeys([*plain, *ranked[:FINALISTS]]))
        errors = self.errors(self.kept.groups(self.effort.final, self.progress, "figures"))(several)
        chosen = several[int(np.argmin(self.values(errors)))]
        told = zip([*self.names, UNIFORM, FOUND], [*plain, chosen], strict=True)
        return chosen, tuple(self.row(name, errors[several.index(shares)]) for name, shares in told)

    def influence(self, errors: Errors, chosen: Shares) -> tuple[Influence, ...]:
        """What leaving out each part does, on the small sample: to the mixture, or to the uniform one where one source alone is best."""
        name, shares = (FOUND, chosen) if max(chosen) < 1 else (UNIFORM, uniform(len(self.names)))
        places = [place for place, share in enumerate(shares) if share]
        whole, *less = errors([shares, *(without(place, shares) for place in places)])
        return tuple(Influence(name, self.names[place], *self._change(whole, left)) for place, left in zip(places, less, strict=True))

    def row(self, name: str, errors: np.ndarray) -> Row:
        """One line of the table."""
        own = errors[: len(self.names)]
        return Row(name, dict(zip(self.judges, map(float, errors), strict=True)), float(own.mean()), float(own.max()))

    def enough(self, chosen: Shares) -> list[Metered]:
        """Of each source and of the mixture; nothing for a target that leaves all weights where they are."""
        if not isinstance(self.asked.target, Removal):
            return []
        count = len(self.names)
        sets = [(name, list(map(float, only(place, count)))) for place, name in enumerate(self.names)]
        sets += [(FOUND, list(map(float, chosen)))] if max(chosen) < 1 else []
        meter = Meter(self.asked.method, self.asked.target, self.effort.meter, sets)
        for block, pieces in self.kept.pieces():
            meter.add(block, pieces)
        return meter.curves()

    def _change(self, before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
        count = len(self.names)
        value = float(self.values(after[None])[0] - self.values(before[None])[0])
        return float(after[:count].mean() - before[:count].mean()), float(after[:count].max() - before[:count].max()), value


def _plain(count: int) -> list[Shares]:
    """Each source alone, and all of them alike: what a mixture must not be worse than."""
    return [*(only(place, count) for place in range(count)), uniform(count)]


@contextmanager
def _threads(width: int) -> Iterator[None]:
    """One thread where the widest matrix has few columns: products of some rows with it are over before threads have found together.

    Measured on two busy cores, ten sources, 576 and 1536 columns: 39 s with one thread, 190 s with two.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if width <= _NARROW else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
