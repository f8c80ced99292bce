"""The contrasts that a study named before it ran: each tested, with Holm's correction over all
of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from calibrant.lab.stats.crossed import combination
from calibrant.lab.stats.estimate import LEVEL, Estimate, detectable, needs, smallest_p
from calibrant.lab.stats.results import GroupResults, Results, Setting, grouped, label_of, missing
from calibrant.results import Cell
from calibrant.results.outcomes import Score

Verdict = Literal["better", "worse", "not significant", "one draw only", "not computed"]

AXES: Final = {
    "model": "model",
    "method": "method",
    "sparsity": "target",
    "target": "target",
    "propagate": "propagate",
}
"""What an entry of `primary` may be restricted by, and the name that a cell has for it."""


@dataclass(frozen=True)
class Contrast:
    """One primary contrast: how much *worse* `compare` is than `against` (a set, a pool or the
    dense model) on the measured sets `on`, averaged.

    `p` is two-sided, `p_holm` the same after Holm's correction over all of a study's primary
    contrasts, those that can't be computed counted too. `draws` are those of each side (the fewest
    of a pool's sets; 0 where a side has none to draw). `smallest_p` is the least that a test over
    so many draws alone could give, `smallest_p_of` says which (the t that gave `p` has no such
    floor); `detectable` the smallest true difference that would be found four times in five at 5 %,
    this one alone. `needs` says in a sentence what it would take to detect what was seen; `reason`
    why there is no verdict.
    """

    name: str
    compare: str
    against: str
    on: tuple[str, ...]
    model: str
    method: str
    target: str
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    draws: tuple[int, int] = (0, 0)
    smallest_p: float | None = None
    detectable: float | None = None
    needs: str = ""
    reason: str = ""
    unit: str = ""
    propagate: str = ""
    level: float = LEVEL
    smallest_p_of: str = ""

    @property
    def verdict(self) -> Verdict:
        """What may be said of it, jointly with the other primary contrasts."""
        if self.difference is None:
            return "not computed"
        if self.p_holm is None:
            return "one draw only" if 1 in self.draws else "not computed"
        if self.p_holm > 1 - self.level:
            return "not significant"
        return "worse" if self.difference.value > 0 else "better"


def contrasts(results: Results, level: float = LEVEL) -> list[Contrast]:
    """Return every primary contrast of the study: one for each model, method, target and
    propagation that it names and that has all of its sets.

    One that can't be computed is there with its reason. Raises `DataError` for results that can't
    be paired.
    """
    groups = grouped(results.cells)
    every: list[Contrast] = []
    for request in (_Request.of(entry, results) for entry in results.study.get("primary", ())):
        own: list[Contrast] = []
        for setting, cells in groups.items():
            matches = all(
                getattr(setting, axis) in allowed for axis, allowed in request.where.items()
            )
            if matches and set(request.weights) <= set(map(label_of, cells)):
                own.append(
                    _contrast(
                        request,
                        setting,
                        [cell for cell in cells if label_of(cell) in request.weights],
                        results,
                        level,
                    )
                )
        every += own or [_nowhere(request, level)]
    return holm(every)


def holm(family: Sequence[Contrast]) -> list[Contrast]:
    """Return the contrasts with Holm's step-down correction over all of them, those without a p
    counted too.

    The smallest p is multiplied by the number of contrasts, the next by one less, and none becomes
    smaller than the one before.
    """
    # A contrast that can't be computed was planned all the same, so it counts among those that the
    # others are corrected for.
    order = sorted(
        (i for i, c in enumerate(family) if c.p is not None), key=lambda i: family[i].p or 0.0
    )
    adjusted, most = dict[int, float](), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, (family[i].p or 0.0) * (len(family) - place)))
        adjusted[i] = most
    return [replace(c, p_holm=adjusted.get(i)) for i, c in enumerate(family)]


@dataclass(frozen=True)
class _Request:
    """One entry of `primary`: the weight of each set (the sides' sum to one and minus one), and
    where it is to be computed.
    """

    name: str
    compare: str
    against: str
    weights: Mapping[str, float]
    first: frozenset[str]
    on: tuple[str, ...]
    where: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(entry: Mapping[str, Any], results: Results) -> "_Request":
        pools = results.study.get("pools") or {}
        compare, against = (
            str(entry["compare"]),
            str(entry.get("with") or results.study.get("baseline") or "dense"),
        )
        weights: dict[str, float] = {}
        for sign, side in ((1.0, compare), (-1.0, against)):
            sets = pools.get(side, [side])
            for label in sets:
                weights[label] = weights.get(label, 0.0) + sign / len(sets)

        def several(value: Any) -> tuple[str, ...]:
            return tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)

        return _Request(
            name=str(entry.get("name") or f"{compare} against {against}"),
            compare=compare,
            against=against,
            weights={
                k: w for k, w in weights.items() if abs(w) > 1e-12
            },  # a set in both pools may cancel
            first=frozenset(pools.get(compare, [compare])),
            on=several(entry.get("on") or ()),
            where={
                axis: several(entry[key])
                for key, axis in AXES.items()
                if entry.get(key) not in (None, "", [])
            },
        )


def _nowhere(request: _Request, level: float) -> Contrast:
    model, method, target = (
        ", ".join(request.where.get(axis, ())) for axis in ("model", "method", "target")
    )
    reason = (
        f"No part of the grid has all of {', '.join(request.weights) or request.compare} together."
    )
    return Contrast(
        request.name,
        request.compare,
        request.against,
        request.on,
        model,
        method,
        target,
        level=level,
        reason=reason,
    )


def _contrast(
    request: _Request, setting: Setting, cells: Sequence[Cell], results: Results, level: float
) -> Contrast:
    """Return the contrast in one group of the grid, whose `cells` are those of its sets; without
    a difference where there is none, and why.
    """
    scores = _evaluators(cells, results, request.on)
    bare = Contrast(
        request.name,
        request.compare,
        request.against,
        tuple(scores) or request.on,
        **setting._asdict(),
        level=level,
    )
    if not request.weights:
        return replace(bare, reason="Both sides hold the same sets.")
    unmeasured = [text for text, score in scores.items() if score is None]
    if not scores or unmeasured:
        return replace(
            bare,
            reason=f"Nothing was measured by {', '.join(unmeasured or request.on) or 'any evaluator'}.",
        )
    scales = dict.fromkeys(f"{score.metric} in {score.unit}" for score in scores.values() if score)
    if len(scales) > 1:
        return replace(
            bare, reason=f"What it is to be compared on can't be averaged: {', '.join(scales)}."
        )
    group = GroupResults.of(cells, results, tuple(scores))
    if absent := [label for label in request.weights if label not in group.sides]:
        why = list(
            missing([cell for cell in cells if label_of(cell) in absent], results, tuple(scores))
        )
        return replace(
            bare,
            reason=f"Not everything is here: {'; '.join(why[:3])}{f'; and {len(why) - 3} more' if len(why) > 3 else ''}.",
        )

    # Each measured set counts the same, each set by its weight, and more is worse whichever way its
    # score points.
    names, unit = list(group.names.values()), next(score for score in scores.values() if score).unit
    turn = {
        name: group.sides[next(iter(request.weights))][name].worse / len(names) for name in names
    }
    difference = combination(
        [
            (group.sides[label], {name: weight * turn[name] for name in names})
            for label, weight in request.weights.items()
        ]
    )
    counts = [
        [
            group.draws(k)
            for k in request.weights
            if (k in request.first) is first and group.draws(k)
        ]
        for first in (True, False)
    ]
    draws = (min(counts[0], default=0), min(counts[1], default=0))
    least = smallest_p(sum(counts[0]), sum(counts[1]))
    reason = _doubt(request, group) or (
        "A single item leaves no error to test with." if difference.stderr is None else ""
    )
    return replace(
        bare,
        on=tuple(names),
        difference=difference,
        p=None if reason else difference.p_value(),
        draws=draws,
        smallest_p=least[0] if least else None,
        detectable=None if reason else detectable(difference, level),
        needs=""
        if reason
        else needs(difference, min((n for n in draws if n), default=0), unit, level),
        reason=reason,
        unit=unit,
        smallest_p_of=least[1] if least else "",
    )


def _doubt(request: _Request, group: GroupResults) -> str:
    """Why the sets of a contrast allow no test over draws, in a sentence; nothing if they do."""
    if once := [label for label in request.weights if group.draws(label) == 1]:
        sets = f"{', '.join(once)} {'was' if len(once) == 1 else 'were'}"
        return f"How much another draw would change it isn't known, since {sets} drawn once; the interval covers other items only."
    if shared := [label for label in request.weights if label in group.overlapping]:
        most = max(group.overlapping[label] for label in shared)
        return f"Draws of {', '.join(shared)} have up to {most:.0%} of their rows in common, so nothing is tested; the interval covers items only."
    return ""


def _evaluators(
    cells: Sequence[Cell], results: Results, on: Sequence[str]
) -> dict[str, Score | None]:
    """Return the evaluators that a contrast is about, with what says their scale (None where
    nothing was measured so far).

    Unless they are named (by their text, or by what they measured), they are those that share
    metric and unit with the first; one of which nothing is known yet may be one of them.
    """
    scores: dict[str, Score | None] = {}
    for cell in cells:
        for text, measure_id in cell.measures.items():
            measurement = results.scores.get(cell.run, {}).get(measure_id)
            scores[text] = scores.get(text) or (measurement.score if measurement else None)
    if on:
        by_name = {
            name: {
                text: s for text, s in scores.items() if name == text or (s and name == s.measured)
            }
            for name in on
        }
        unknown: dict[str, Score | None] = {name: None for name, of in by_name.items() if not of}
        return unknown | {text: score for of in by_name.values() for text, score in of.items()}
    first = next((score for score in scores.values() if score), None)
    return {
        text: s
        for text, s in scores.items()
        if not (first and s) or (s.metric, s.unit) == (first.metric, first.unit)
    }
