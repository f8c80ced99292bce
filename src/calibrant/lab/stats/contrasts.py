"""The contrasts that a study named before it ran: each tested, with Holm's correction over all
of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from calibrant.lab.stats.crossed import WeightedSides, combination
from calibrant.lab.stats.estimate import LEVEL, Estimate, detectable, needs, smallest_p
from calibrant.lab.stats.results import GroupResults, Results, Setting, grouped, label_of, missing
from calibrant.results import Cell
from calibrant.results.outcomes import Score

Verdict = Literal[
    "better", "worse", "not significant", "one draw only", "not tested", "not computed"
]

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
    this one alone. `needs` says in a sentence what it would take to detect what was seen,
    jointly with the other contrasts; `reason` why there is no verdict.
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
            return "one draw only" if 1 in self.draws else "not tested"
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
    for entry in results.study.get("primary", ()):
        request = _Request.of(entry, results)
        found: list[Contrast] = []
        for setting, cells in groups.items():
            compared = [cell for cell in cells if label_of(cell) in request.weights]
            complete = request.weights.keys() == {label_of(cell) for cell in compared}
            if complete and request.names(setting):
                found.append(_contrast(request, setting, compared, results, level))
        every += found or [_nowhere(request, level)]
    corrected = holm(every)
    return [_with_needs(contrast, len(every)) for contrast in corrected]


def _with_needs(contrast: Contrast, comparisons: int) -> Contrast:
    """Return the contrast with what it would take to detect what was seen."""
    if contrast.difference is None or contrast.p is None:
        return contrast
    # Jointly with the other contrasts, as its verdict is.
    level = 1 - (1 - contrast.level) / comparisons
    fewest = min((count for count in contrast.draws if count), default=0)
    sentence = needs(contrast.difference, fewest, contrast.unit, level)
    return replace(contrast, needs=sentence)


def holm(family: Sequence[Contrast]) -> list[Contrast]:
    """Return the contrasts with Holm's step-down correction over all of them, those without a p
    counted too.

    The smallest p is multiplied by the number of contrasts, the next by one less, and none becomes
    smaller than the one before.
    """
    # A contrast that can't be computed was planned all the same, so it counts among those that the
    # others are corrected for.
    ps: dict[int, float] = {}
    for place, contrast in enumerate(family):
        if contrast.p is not None:
            ps[place] = contrast.p
    adjusted: dict[int, float] = {}
    largest = 0.0
    for smaller, place in enumerate(sorted(ps, key=ps.__getitem__)):
        multiplied = min(1.0, ps[place] * (len(family) - smaller))
        largest = max(largest, multiplied)
        adjusted[place] = largest
    corrected: list[Contrast] = []
    for place, contrast in enumerate(family):
        corrected.append(replace(contrast, p_holm=adjusted.get(place)))
    return corrected


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
        compare = str(entry["compare"])
        against = str(entry.get("with") or results.study.get("baseline") or "dense")
        pools = results.study.get("pools") or {}
        first = pools.get(compare, [compare])
        second = pools.get(against, [against])
        where: dict[str, tuple[str, ...]] = {}
        for key, axis in AXES.items():
            if entry.get(key) not in (None, "", []):
                where[axis] = _several(entry[key])
        return _Request(
            name=str(entry.get("name") or f"{compare} against {against}"),
            compare=compare,
            against=against,
            weights=_weights(first, second),
            first=frozenset(first),
            on=_several(entry.get("on") or ()),
            where=where,
        )

    def names(self, setting: Setting) -> bool:
        """Say whether the contrast is to be computed there."""
        return all(getattr(setting, axis) in allowed for axis, allowed in self.where.items())

    def draws(self, group: GroupResults, first: bool) -> list[int]:
        """Return how many draws the sets of a side have, without those that take none."""
        counts: list[int] = []
        for label in self.weights:
            is_first = label in self.first
            count = group.draws(label)
            if is_first == first and count:
                counts.append(count)
        return counts


def _weights(first: Sequence[str], second: Sequence[str]) -> dict[str, float]:
    """Return what each set counts in the mean over `first` less the mean over `second`."""
    weights: dict[str, float] = {}
    for label in first:
        weights[label] = weights.get(label, 0.0) + 1 / len(first)
    for label in second:
        weights[label] = weights.get(label, 0.0) - 1 / len(second)
    # A set in both pools may cancel, but for rounding.
    return {label: weight for label, weight in weights.items() if abs(weight) > 1e-12}


def _several(value: Any) -> tuple[str, ...]:
    """Return one name or several as several."""
    if isinstance(value, list | tuple):
        return tuple(map(str, value))
    return (str(value),)


def _nowhere(request: _Request, level: float) -> Contrast:
    sets = ", ".join(request.weights) or request.compare
    return Contrast(
        request.name,
        request.compare,
        request.against,
        request.on,
        model=", ".join(request.where.get("model", ())),
        method=", ".join(request.where.get("method", ())),
        target=", ".join(request.where.get("target", ())),
        level=level,
        reason=f"No part of the grid has all of {sets} together.",
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
    reason = _obstacle(request, scores)
    if reason:
        return replace(bare, reason=reason)
    group = GroupResults.of(cells, results, tuple(scores))
    absent = [cell for cell in cells if label_of(cell) not in group.sides]
    if absent:
        holes = list(missing(absent, results, tuple(scores)))
        named = "; ".join(holes[:3])
        if len(holes) > 3:
            named = f"{named}; and {len(holes) - 3} more"
        return replace(bare, reason=f"Not everything is here: {named}.")
    return _tested(bare, request, group)


def _tested(bare: Contrast, request: _Request, group: GroupResults) -> Contrast:
    """Return the contrast with its difference, and with its p where there is one; else with why
    not.
    """
    difference = _difference(request, group)
    names = tuple(group.names.values())
    any_set, *_ = request.weights
    unit = group.sides[any_set][names[0]].score.unit
    first = request.draws(group, first=True)
    second = request.draws(group, first=False)
    found = replace(
        bare,
        on=names,
        difference=difference,
        draws=(min(first, default=0), min(second, default=0)),
        unit=unit,
    )
    least = smallest_p(sum(first), sum(second))
    if least is not None:
        p, test = least
        found = replace(found, smallest_p=p, smallest_p_of=test)
    reason = _doubt(request, group)
    if not reason and difference.stderr is None:
        reason = "A single item leaves no error to test with."
    if reason:
        return replace(found, reason=reason)
    return replace(found, p=difference.p_value(), detectable=detectable(difference, bare.level))


def _difference(request: _Request, group: GroupResults) -> Estimate:
    """Return how much worse the first side is than the second: each measured set counts the same,
    each set by its weight.
    """
    names = list(group.names.values())
    # More is worse, or better, on a measured set whatever the calibration set.
    any_set, *_ = request.weights
    any_sides = group.sides[any_set]
    coefs = {name: any_sides[name].worse / len(names) for name in names}
    terms: list[WeightedSides] = []
    for label, weight in request.weights.items():
        weighted = {name: weight * coef for name, coef in coefs.items()}
        terms.append((group.sides[label], weighted))
    return combination(terms)


def _obstacle(request: _Request, scores: Mapping[str, Score | None]) -> str:
    """Return why there can be no difference, in a sentence; nothing if there can."""
    if not request.weights:
        return "Both sides hold the same sets."
    unmeasured = [text for text, score in scores.items() if score is None]
    if not scores or unmeasured:
        evaluators = ", ".join(unmeasured or request.on) or "any evaluator"
        return f"Nothing was measured by {evaluators}."
    scales: dict[str, None] = {}
    for score in scores.values():
        if score is not None:
            scales[f"{score.metric} in {score.unit}"] = None
    if len(scales) > 1:
        return f"What it is to be compared on can't be averaged: {', '.join(scales)}."
    return ""


def _doubt(request: _Request, group: GroupResults) -> str:
    """Return why the sets of a contrast allow no test over draws, in a sentence; nothing if they
    do.
    """
    once = [label for label in request.weights if group.draws(label) == 1]
    if once:
        verb = "was" if len(once) == 1 else "were"
        return (
            f"How much another draw would change it isn't known, since {', '.join(once)} {verb} "
            "drawn once; the interval covers other items only."
        )
    shared = [label for label in request.weights if label in group.overlapping]
    if shared:
        most = max(group.overlapping[label] for label in shared)
        return (
            f"Draws of {', '.join(shared)} have up to {most:.0%} of their rows in common, "
            "so nothing is tested; the interval covers items only."
        )
    return ""


def _evaluators(
    cells: Sequence[Cell], results: Results, on: Sequence[str]
) -> dict[str, Score | None]:
    """Return the evaluators that a contrast is about, each with a score that has its scale; None
    where nothing was measured so far.

    Unless they are named (by their text, or by what they measured), they are those that share
    metric and unit with the first; one of which nothing is known yet may be one of them.
    """
    scores: dict[str, Score | None] = {}
    for cell in cells:
        for text, measure_id in cell.measures.items():
            measurement = results.scores.get(cell.run, {}).get(measure_id)
            scores.setdefault(text, None)
            if measurement and scores[text] is None:
                scores[text] = measurement.score
    if on:
        return _named_evaluators(scores, on)
    known = [score for score in scores.values() if score is not None]
    if not known:
        return scores
    first = known[0]
    alike: dict[str, Score | None] = {}
    for text, score in scores.items():
        if score is None or (score.metric, score.unit) == (first.metric, first.unit):
            alike[text] = score
    return alike


def _named_evaluators(
    scores: Mapping[str, Score | None], on: Sequence[str]
) -> dict[str, Score | None]:
    """Return the evaluators that have one of the names `on`.

    Names that none has come first, without a score, and stop the contrast.
    """
    found: dict[str, Score | None] = {}
    unknown: dict[str, Score | None] = {}
    for name in on:
        matching: dict[str, Score | None] = {}
        for text, score in scores.items():
            if name == text or (score and name == score.measured):
                matching[text] = score
        found |= matching
        if not matching:
            unknown[name] = None
    return unknown | found
