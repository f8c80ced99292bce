"""The contrasts that a study named before it ran: each tested, with Holm's correction over all of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from calibrant.compare.answers import Answers, Setting, grouped, holes, label_of
from calibrant.compare.crossed import combination
from calibrant.compare.estimate import LEVEL, Estimate
from calibrant.compare.power import detectable, needs, smallest_p
from calibrant.compare.results import Results
from calibrant.outcomes import Score
from calibrant.store import Cell

Verdict = Literal["better", "worse", "not significant", "one draw only", "not computed"]

AXES: Final = {"model": "model", "method": "method", "sparsity": "target", "target": "target", "propagate": "propagate"}
"""What an entry of `primary` may be restricted by, and the name that a cell has for it."""


@dataclass(frozen=True)
class Contrast:
    """One primary contrast: how much *worse* `compare` is than `against` (a set, a pool or the dense model) on the measured sets `on`, averaged.

    `p` is two-sided, `p_holm` the same after Holm's correction over all of a study's primary contrasts, those that can't be computed counted
    too. `draws` are those of each side (the fewest of a pool's sets; 0 where a side has none to draw). `smallest_p` is the least that a test
    over so many draws alone could give, `smallest_p_of` says which (the t that gave `p` has no such floor); `detectable` the smallest true
    difference that would be found four times in five at 5 %, this one alone. `needs` says in a sentence what it would take to detect what was
    seen; `reason` why there is no verdict.
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


def contrasts(reading: Results, level: float = LEVEL) -> list[Contrast]:
    """Every primary contrast of the study: one for each model, method, target and propagation that is asked for and has all of its sets.

    One that can't be computed is there with its reason. Raises `DataError` for results that can't be paired.
    """
    wishes = [_Wish.of(entry, reading) for entry in reading.study.get("primary", ())]
    return _holm([found for wish in wishes for found in wish.expanded(reading, level)])


def _holm(found: Sequence[Contrast]) -> list[Contrast]:
    """Holm's step-down: the smallest p times the number of contrasts, the next times one less, and none smaller than the one before."""
    order = sorted((i for i, c in enumerate(found) if c.p is not None), key=lambda i: found[i].p or 0.0)
    adjusted, most = dict[int, float](), 0.0
    for place, i in enumerate(order):
        most = max(most, min(1.0, (found[i].p or 0.0) * (len(found) - place)))
        adjusted[i] = most
    return [replace(c, p_holm=adjusted.get(i)) for i, c in enumerate(found)]


@dataclass(frozen=True)
class _Wish:
    """One entry of `primary`: the weight of each set (the sides' sum to one and minus one), and where it is asked for."""

    name: str
    compare: str
    against: str
    weights: Mapping[str, float]
    first: frozenset[str]
    on: tuple[str, ...]
    where: Mapping[str, tuple[str, ...]]

    @staticmethod
    def of(entry: Mapping[str, Any], reading: Results) -> "_Wish":
        pools = reading.study.get("pools") or {}
        compare, against = str(entry["compare"]), str(entry.get("with") or reading.study.get("baseline") or "dense")
        weights: dict[str, float] = {}
        for sign, side in ((1.0, compare), (-1.0, against)):
            sets = pools.get(side, [side])
            for label in sets:
                weights[label] = weights.get(label, 0.0) + sign / len(sets)
        where = {axis: _several(entry[key]) for key, axis in AXES.items() if entry.get(key) not in (None, "", [])}
        name = str(entry.get("name") or f"{compare} against {against}")
        first = frozenset(pools.get(compare, [compare]))
        return _Wish(name, compare, against, {k: w for k, w in weights.items() if abs(w) > 1e-12}, first, _several(entry.get("on") or ()), where)

    def expanded(self, reading: Results, level: float) -> Iterator[Contrast]:
        """The contrast in each group of the grid that has its sets."""
        found = False
        for group, cells in grouped(reading.cells).items():
            if all(getattr(group, axis) in allowed for axis, allowed in self.where.items()) and set(self.weights) <= set(map(label_of, cells)):
                found = True
                yield self._contrasted(group, [cell for cell in cells if label_of(cell) in self.weights], reading, level)
        if not found:
            model, method, target = (", ".join(self.where.get(axis, ())) for axis in ("model", "method", "target"))
            reason = f"The grid asks nowhere for all of {', '.join(self.weights) or self.compare} together."
            yield Contrast(self.name, self.compare, self.against, self.on, model, method, target, level=level, reason=reason)

    def _contrasted(self, group: Setting, mine: Sequence[Cell], reading: Results, level: float) -> Contrast:
        texts = _chosen(mine, reading, self.on)
        bare = Contrast(self.name, self.compare, self.against, tuple(texts) or self.on, **group._asdict(), level=level)
        if not self.weights:
            return replace(bare, reason="Both sides hold the same sets.")
        lacking = [text for text, score in texts.items() if score is None]
        if not texts or lacking:
            return replace(bare, reason=f"Nothing was measured by {', '.join(lacking or self.on) or 'any evaluator'}.")
        scales = dict.fromkeys(f"{score.metric} in {score.unit}" for score in texts.values() if score)
        if len(scales) > 1:
            return replace(bare, reason=f"What it is to be compared on can't be averaged: {', '.join(scales)}.")
        answers = Answers.of(mine, reading, tuple(texts))
        if gone := [label for label in self.weights if label not in answers.sides]:
            why = list(holes([cell for cell in mine if label_of(cell) in gone], reading, tuple(texts)))
            return replace(bare, reason=f"Not everything is here: {'; '.join(why[:3])}{f'; and {len(why) - 3} more' if len(why) > 3 else ''}.")
        return self._tested(bare, answers, next(score for score in texts.values() if score).unit)

    def _tested(self, bare: Contrast, answers: Answers, unit: str) -> Contrast:
        names = list(answers.names.values())
        turned = {name: answers.sides[next(iter(self.weights))][name].worse / len(names) for name in names}
        terms = [(answers.sides[label], {name: weight * turned[name] for name in names}) for label, weight in self.weights.items()]
        difference = combination(terms)
        sides = [[answers.draws(k) for k in self.weights if (k in self.first) is here and answers.draws(k)] for here in (True, False)]
        draws = (min(sides[0], default=0), min(sides[1], default=0))
        least = smallest_p(sum(sides[0]), sum(sides[1]))
        reason = self._doubt(answers) or ("A single item leaves no error to test with." if difference.stderr is None else "")
        return replace(
            bare,
            on=tuple(names),
            difference=difference,
            p=None if reason else difference.p_value(),
            draws=draws,
            smallest_p=least[0] if least else None,
            detectable=None if reason else detectable(difference, bare.level),
            needs="" if reason else needs(difference, min((n for n in draws if n), default=0), unit, bare.level),
            reason=reason,
            unit=unit,
            smallest_p_of=least[1] if least else "",
        )

    def _doubt(self, answers: Answers) -> str:
        """Why its sets allow no test over draws, in a sentence; nothing if they do."""
        if once := [label for label in self.weights if answers.draws(label) == 1]:
            return f"How much another draw would change it isn't known, since {_listed(once)} drawn once; the interval covers other items only."
        if shared := [label for label in self.weights if label in answers.overlapping]:
            most = max(answers.overlapping[label] for label in shared)
            return (
                f"Draws of {', '.join(shared)} have up to {most:.0%} of their rows in common, so nothing is tested; the interval covers items only."
            )
        return ""


def _listed(labels: Sequence[str]) -> str:
    return f"{', '.join(labels)} {'was' if len(labels) == 1 else 'were'}"


def _several(given: Any) -> tuple[str, ...]:
    return tuple(map(str, given)) if isinstance(given, list | tuple) else (str(given),)


def _chosen(cells: Sequence[Cell], reading: Results, on: Sequence[str]) -> dict[str, Score | None]:
    """The evaluators that a contrast is about, with what says their scale (None where nothing was measured so far).

    Unless they are named (by their text, or by what they measured), they are those that share metric and unit with the first; one of which
    nothing is known yet may be one of them.
    """
    found: dict[str, Score | None] = {}
    for cell in cells:
        for text, measure_id in cell.measures.items():
            known = reading.scores.get(cell.run, {}).get(measure_id)
            found[text] = found.get(text) or (known.score if known else None)
    if on:
        return {wanted: None for wanted in on if not _named(wanted, found)} | {t: s for wanted in on for t, s in _named(wanted, found).items()}
    first = next((score for score in found.values() if score), None)
    return {text: s for text, s in found.items() if not (first and s) or (s.metric, s.unit) == (first.metric, first.unit)}


def _named(wanted: str, found: Mapping[str, Score | None]) -> dict[str, Score | None]:
    return {text: s for text, s in found.items() if wanted == text or (s and wanted == s.measured)}
