"""Would `recommend` have taken the right set? Its prediction against the records: python -m
studies.sensitivity.recommended [--write]

Every target is left out in turn: nothing that was measured on it says which set to take, but what a
rule itself would measure. A rule sees one draw of every set on half of the target's documents, and
is judged by the other draws on the other half; of three draws and two halves that makes six ways.
Where it measures it decides by the loss, as `recommend` does; it is judged by KL(untouched ‖
compressed). *Regret* is by how many per cent the model diverges more than with the set that is best
where it is judged. Nobody knows that one beforehand, and it is the best partly by chance: so every
rule has some regret, and what counts is the difference between rules.
"""

import itertools
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Final, TypeVar

from scipy.stats import rankdata
from studies.pages import write_or_print
from studies.sensitivity.predict import OUT, TARGETS
from studies.sensitivity.tables import CONTROL, FITTED, MIXTURE, SETS, STRONG

from calibrant.data import CalibrationSet
from calibrant.lab.stats import Draws, Estimate, contrast, detectable, draws, t_quantile
from calibrant.lab.stats.contrasts import Contrast, holm
from calibrant.results import Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/choosing.md"
STORES: Final = ("smollm2", "targets", "own")
DRAWS: Final = 3
RACED: Final = 3
"""How many sets are measured beside C4."""
NEAR: Final = 0.02
"""Within so large a share of the best set's divergence a choice counts as good; fixed before
anything was predicted.
"""
FAILED: Final = 0.05
"""A larger regret is listed as a failure."""
BINS: Final = (0.0, 0.01, 0.03, 0.1, math.inf)
COMMON: Final = tuple(data for data in SETS if data not in ("", CONTROL))
"""The sets that each target has, beside its own text."""
IN_MIXTURE: Final = ("c4", "wikipedia", "python_code", "gsm8k:cot")
"""The targets whose own source is a part of the mixture."""

T = TypeVar("T")
Way = tuple[int, int]
"""The draw and the half of the documents that a rule may look at."""
WAYS: Final[Sequence[Way]] = tuple(itertools.product(range(DRAWS), range(2)))


@dataclass(frozen=True, eq=False)
class Case:
    """One method and target: what the draws of each set gave, and its predicted error by draw;
    the common sets and the target's own text.
    """

    method: str
    target: str
    measured: Mapping[str, Draws]
    predicted: Mapping[str, Sequence[float]]

    @property
    def own(self) -> str:
        """The target's own text."""
        return str(CalibrationSet(self.target))

    @cached_property
    def sums(self) -> Mapping[tuple[str, int, int], tuple[float, float, float]]:
        """By set, draw and half of the documents: the nats of its loss, those of its divergence,
        and its tokens.
        """
        halves = {
            (data, draw, half): sorted(drawn.outcomes, key=lambda outcome: outcome.item)[half::2]
            for data, of in self.measured.items()
            for draw, drawn in enumerate(of)
            for half in range(2)
        }
        return {
            key: (
                sum(o.facts["nats"] for o in of),
                sum(o.value for o in of),
                sum(o.weight for o in of),
            )
            for key, of in halves.items()
        }

    def loss(self, data: str, way: Way) -> float:
        """The loss with a set, by the draw and the documents that a rule may look at."""
        nats, _, tokens = self.sums[(data, *way)]
        return nats / tokens

    def judged(self, data: str, way: Way) -> float:
        """The divergence with a set, by the draws and the documents that the rule hasn't seen."""
        seen = [self.sums[data, draw, 1 - way[1]] for draw in range(DRAWS) if draw != way[0]]
        return sum(nats for _, nats, _ in seen) / sum(tokens for *_, tokens in seen)

    def regret(self, data: str, way: Way) -> float:
        """By how many per cent the model diverges more than with the best set, where the rule
        hasn't looked.
        """
        return 100 * (
            self.judged(data, way) / min(self.judged(other, way) for other in self.measured) - 1
        )

    def whole(self, data: str) -> float:
        """The mean divergence over all draws."""
        return statistics.mean(m.score.value for m in self.measured[data])

    @cached_property
    def best(self) -> str:
        """The set with the least divergence over all draws."""
        return min(self.measured, key=self.whole)

    @cached_property
    def worse(self) -> Mapping[str, tuple[Estimate, bool]]:
        """By how much more the model diverges than with the best set, by all that was measured,
        and whether that is sure, jointly over all sets.
        """
        found = {
            data: contrast({"": of}, {"": self.measured[self.best]})
            for data, of in self.measured.items()
        }
        return {
            data: (e, data != self.best and e.significant(comparisons=len(found) - 1))
            for data, e in found.items()
        }


Rule = Callable[[Case, Way], Sequence[str]]
"""The sets that a rule takes, all alike, of a case and what it may look at."""


def _least_loss(case: Case, sets: Iterable[str], way: Way) -> str:
    return min(sets, key=lambda data: case.loss(data, way))


def raced(case: Case, way: Way) -> Sequence[str]:
    """Of the sets with the least predicted errors, and C4, the one with the least loss: one
    round of what `recommend` does with these sets.
    """
    ranked = sorted(
        (data for data in case.predicted if data != "c4"),
        key=lambda data: case.predicted[data][way[0]],
    )
    return [_least_loss(case, [*ranked[:RACED], "c4"], way)]


def by_chance(case: Case, way: Way) -> Sequence[str]:
    """The same with sets by chance in the place of those with the least predicted errors: every
    choice of them once.
    """
    others = [data for data in case.measured if data != "c4"]
    return [
        _least_loss(case, [*chosen, "c4"], way) for chosen in itertools.combinations(others, RACED)
    ]


def elsewhere(case: Case, way: Way) -> Sequence[str]:
    """The set that is best on the method's other targets, by the draw that may be looked at:
    mean of divergences, each as a share of C4's.
    """
    others = [
        other for other in cases() if other.method == case.method and other.target != case.target
    ]

    def share(data: str) -> float:
        return statistics.mean(
            other.measured[data][way[0]].score.value / other.measured["c4"][way[0]].score.value
            for other in others
        )

    return [min(COMMON, key=share)] if others else []


FIRST: Final = "three best predicted and C4, measured once"
RULES: Final[Mapping[str, Rule]] = {
    FIRST: raced,
    "three by chance and C4, measured once": by_chance,
    "all measured once": lambda case, way: [_least_loss(case, case.measured, way)],
    "best predicted": lambda case, way: [
        min(case.predicted, key=lambda data: case.predicted[data][way[0]])
    ],
    "own text": lambda case, _: [case.own],
    "best on the other texts": elsewhere,
    "always the mixture": lambda case, _: [MIXTURE],
    "always C4": lambda case, _: ["c4"],
    "any set": lambda case, _: list(case.measured),
}
RIVALS: Final = ("own text", "always the mixture", "always C4")
"""What the first rule is held against: three questions, corrected together (Holm)."""


@cache
def cases() -> tuple[Case, ...]:
    """Each method and target of which all sets are both predicted and measured."""
    errors = json.loads(OUT.read_text("utf-8"))["errors"]
    found = (
        _case(method, target, errors[method])
        for method in errors
        if len(errors[method]) == DRAWS
        for target in TARGETS
    )
    return tuple(case for case in found if case is not None)


def _case(
    method: str, target: str, errors: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> Case | None:
    there = {
        data: _drawn().get((method, data), {}).get(_source(target))
        for data in dict.fromkeys((*COMMON, str(CalibrationSet(target))))
    }
    measured = {data: found for data, found in there.items() if found}
    if len(measured) < len(there):
        return None
    return Case(
        method,
        target,
        measured,
        {data: [errors[str(draw)][data][target] for draw in range(DRAWS)] for data in measured},
    )


@cache
def _drawn() -> Mapping[tuple[str, str], Mapping[str, Draws]]:
    """By method and set what was measured in any of the stores, by the source that it was
    measured on, where all draws are there.
    """
    found: dict[tuple[str, str], dict[str, Draws]] = defaultdict(dict)
    for folder in (HERE / name for name in STORES if (HERE / name).is_dir()):
        with Store(folder, create=False) as store:
            for method, data in dict.fromkeys(
                (c.method, c.data)
                for c in store.cells()
                if c.run and STRONG.get(c.method) == c.target
            ):
                sides = draws(store, method=method, target=STRONG[method], data=data)
                new = {
                    re.split(r"[ :(]", name)[0]: of
                    for name, of in sides.items()
                    if of[0].score.metric == "kl" and len(of) == DRAWS
                }
                twice = found[method, data].keys() & new.keys()
                assert not twice, f"{data} was measured on {twice} in two stores"
                found[method, data] |= new
    return dict(found)


def _by_target(asked: Iterable[Case], rule: Rule) -> Mapping[str, float]:
    """The regret on each target, mean over methods, ways and choices."""
    found: dict[str, list[float]] = {}
    for case in asked:
        found.setdefault(case.target, []).extend(_regrets(case, rule))
    return {target: statistics.mean(values) for target, values in found.items() if values}


def _regrets(case: Case, rule: Rule) -> Sequence[float]:
    """The regret of each way, mean over what the rule may choose."""
    chosen = [(way, rule(case, way)) for way in WAYS]
    return [
        statistics.mean(case.regret(data, way) for data in sets) for way, sets in chosen if sets
    ]


def _over(values: Iterable[float]) -> Estimate | None:
    """The mean, with targets as the items; None with fewer than two."""
    known = list(values)
    count = len(known)
    return (
        Estimate(
            statistics.mean(known),
            statistics.stdev(known) / math.sqrt(count),
            float(count - 1),
            count,
        )
        if count > 1
        else None
    )


def _told(estimate: Estimate | None, bold: bool = False) -> str:
    if estimate is None:
        return ""
    half = t_quantile(0.975, estimate.df) * (estimate.stderr or 0)
    text = f"{estimate.value:+.1f} ({estimate.value - half:+.1f} to {estimate.value + half:+.1f})"
    return f"**{text}**" if bold else text


def rules_table() -> Iterator[str]:
    """Rows: the rules, over the methods that have all targets. Regret and what it is more than the
    first rule's: mean, interval over targets.

    Beside the share of ways that are near the best the regret of the others; last what true
    difference four such studies in five find.
    """
    asked = _whole()
    regrets = {name: _by_target(asked, rule) for name, rule in RULES.items()}
    apart = {
        name: _over(of[target] - regrets[FIRST][target] for target in of)
        for name, of in regrets.items()
        if name != FIRST
    }
    family = [
        Contrast("", "", "", (), "", "", "", p=found.p_value() if (found := apart[name]) else None)
        for name in RIVALS
    ]
    corrected = {name: c.p_holm for name, c in zip(RIVALS, holm(family), strict=True)}
    heads = [
        f"within {100 * NEAR:.0f} % of the best",
        "regret of the other ways, %",
        "not significantly worse",
        "regret, %",
        "more than the first rule's",
    ]
    yield f"| rule | {' | '.join(heads)} | 4 in 5 see | p (Holm) |"
    yield f"| --- |{' ---: |' * (len(heads) + 2)}"
    for name, rule in RULES.items():
        near = _mean_of(asked, rule, _is_near)
        others = _mean_of(
            asked,
            rule,
            lambda case, way, data: case.regret(data, way) * (case.regret(data, way) > 100 * NEAR),
        )
        far = f"{others / (1 - near):.1f}" if near < 1 else ""
        fine = _mean_of(asked, rule, lambda case, _, data: not case.worse[data][1])
        p = corrected.get(name)
        more = "" if name == FIRST else _told(apart[name], bold=p is not None and p < 0.05)
        seen = detectable(estimate) if name in RIVALS and (estimate := apart[name]) else None
        cells = [
            name,
            f"{100 * near:.0f}%",
            far,
            f"{100 * fine:.0f}%",
            _told(_over(regrets[name].values())),
            more,
        ]
        yield f"| {' | '.join(cells)} | {'' if seen is None else f'{seen:.1f}'} | {'' if p is None else f'{p:.1g}'} |"


GENERAL: Final = ("c4", "wikipedia", "pile")
"""The targets of general text; the six others are narrow."""


def kinds_table() -> Iterator[str]:
    """Rows: the rules, over the methods that have all targets: the share of ways that are near the
    best, and the regret, on the narrow texts, the general ones and all.
    """
    narrow = [case for case in _whole() if case.target not in GENERAL]
    general = [case for case in _whole() if case.target in GENERAL]
    heads = [f"{kind} texts: within 2 % | regret, %" for kind in ("six narrow", "three general")]
    yield f"| rule | {' | '.join([*heads, 'all nine: within 2 % | regret, %'])} |"
    yield f"| --- |{' ---: | ---: |' * 3}"
    for name, rule in RULES.items():
        cells: list[str] = []
        for asked in (narrow, general, _whole()):
            if not asked:
                cells.append(" | ")
                continue
            near = _mean_of(asked, rule, _is_near)
            regret = statistics.mean(_by_target(asked, rule).values())
            cells.append(f"{100 * near:.0f}% | {regret:.1f}")
        yield f"| {name} | {' | '.join(cells)} |"


def _is_near(case: Case, way: Way, data: str) -> bool:
    return case.regret(data, way) <= 100 * NEAR


def _mean_of(asked: Iterable[Case], rule: Rule, of: Callable[[Case, Way, str], float]) -> float:
    """The mean over cases and ways of the mean over what the rule may choose."""
    taken = [(case, way, rule(case, way)) for case in asked for way in WAYS]
    return statistics.mean(
        statistics.mean(of(case, way, data) for data in sets) for case, way, sets in taken if sets
    )


def _whole() -> Sequence[Case]:
    """The cases of the methods that have all targets."""
    return [
        case
        for case in cases()
        if sum(other.method == case.method for other in cases()) == len(TARGETS)
    ]


def targets_table() -> Iterator[str]:
    """Columns: the targets, over the methods that have all of them; each rule's regret in per
    cent. `*` where the mixture holds the source.
    """
    regrets = {name: _by_target(_whole(), rule) for name, rule in RULES.items()}
    targets = list(regrets[FIRST])
    yield f"| rule | {' | '.join(f'{target} *' if target in IN_MIXTURE else target for target in targets)} |"
    yield f"| --- |{' ---: |' * len(targets)}"
    for name, of in regrets.items():
        yield f"| {name} | {' | '.join(f'{of[target]:.1f}' for target in targets)} |"


def others_table() -> Iterator[str]:
    """Rows: the rules where no text of the target's source can be taken, over the targets that
    allow it; not planned.

    What predicts is still the target's own text. Regret is against the best of the sets that are
    left.
    """
    sources = {_source(data) for data in COMMON}
    asked = [
        replace(c, measured=_common(c.measured), predicted=_common(c.predicted))
        for c in _whole()
        if _source(c.target) not in sources
    ]
    regrets = {
        name: _by_target(asked, rule)
        for name, rule in RULES.items()
        if name not in ("own text", "best on the other texts")
    }
    yield f"| rule | {' | '.join(regrets['best predicted'])} | regret, % | more than the best predicted |"
    yield f"| --- |{' ---: |' * len(regrets['best predicted'])} ---: | ---: |"
    for name, of in regrets.items():
        apart = (
            ""
            if name == "best predicted"
            else _told(_over(of[target] - regrets["best predicted"][target] for target in of))
        )
        cells = [name, *(f"{value:.1f}" for value in of.values()), _told(_over(of.values()))]
        yield f"| {' | '.join(cells)} | {apart} |"


def _source(data: str) -> str:
    return re.split(r"[:(]", data)[0]


def _common(of: Mapping[str, T]) -> Mapping[str, T]:
    return {data: found for data, found in of.items() if data in COMMON}


def methods_table() -> Iterator[str]:
    """Columns: the methods, over their targets; the regret of each rule in per cent."""
    of_method = {
        method: [case for case in cases() if case.method == method]
        for method in dict.fromkeys(case.method for case in cases())
    }
    yield f"| rule | {' | '.join(f'`{method}`' for method in of_method)} |"
    yield f"| --- |{' ---: |' * len(of_method)}"
    yield f"| (texts) | {' | '.join(str(len(own)) for own in of_method.values())} |"
    for name, rule in RULES.items():
        regrets = [_by_target(own, rule).values() for own in of_method.values()]
        yield f"| {name} | {' | '.join(f'{statistics.mean(of):.1f}' if of else '' for of in regrets)} |"


def ranks_table() -> Iterator[str]:
    """Rows: methods. Spearman's, over sets, of what one draw predicts and what the others give;
    and of what one draw gives and what the others do.
    """
    yield "| method | texts | predicted | least | measured once |"
    yield "| --- | ---: | ---: | --- | ---: |"
    for method in dict.fromkeys(case.method for case in cases()):
        own = [case for case in cases() if case.method == method]
        predicted = {
            case.target: _correlation(case, lambda case, data, way: case.predicted[data][way[0]])
            for case in own
        }
        measured = [_correlation(case, Case.loss) for case in own]
        least = min(predicted, key=lambda target: predicted[target])
        told = (
            f"{statistics.mean(predicted.values()):+.2f} | {predicted[least]:+.2f} ({least}) | "
            f"{statistics.mean(measured):+.2f}"
        )
        yield f"| `{method}` | {len(own)} | {told} |"


def _correlation(case: Case, by: Callable[[Case, str, Way], float]) -> float:
    """Spearman's, over sets, of what a rule sees and what it is judged by; mean over the ways."""
    ranks = [
        (
            rankdata([by(case, data, way) for data in case.measured]),
            rankdata([case.judged(data, way) for data in case.measured]),
        )
        for way in WAYS
    ]
    return statistics.mean(statistics.correlation(*pair) for pair in ranks)


def calibration_table() -> Iterator[str]:
    """Rows: any two sets of a case by how far apart they are predicted to be; how often the
    better one is named, and how far apart they are.
    """
    kinds = {"weights fitted": True, "weighed or scored": False}
    gaps = {
        name: [gap for case in cases() if (case.method in FITTED) == fitted for gap in _gaps(case)]
        for name, fitted in kinds.items()
    }
    yield f"| predicted errors differ by | {' | '.join(f'{name}: pairs (mean of ways) | the better one named | apart' for name in kinds)} |"
    yield f"| --- |{' ---: | ---: | ---: |' * len(kinds)}"
    for low, high in itertools.pairwise(BINS):
        told = (
            f"{100 * low:.0f} to {100 * high:.0f} %"
            if math.isfinite(high)
            else f"more than {100 * low:.0f} %"
        )
        cells: list[str] = []
        for of in gaps.values():
            found = [more for apart, more in of if low <= apart < high]
            right = f"{100 * statistics.mean(more > 0 for more in found):.0f}%" if found else ""
            cells += [
                f"{len(found) // len(WAYS)}",
                right,
                f"{100 * statistics.mean(found):+.1f}%" if found else "",
            ]
        yield f"| {told} | {' | '.join(cells)} |"


def _gaps(case: Case) -> Iterator[tuple[float, float]]:
    """By how large a share two sets are predicted to be apart, and by how much more the model
    diverges with the one that is predicted to be worse.
    """
    for way, (one, other) in itertools.product(WAYS, itertools.combinations(case.measured, 2)):
        better, worse = sorted((one, other), key=lambda data: case.predicted[data][way[0]])
        yield (
            case.predicted[worse][way[0]] / case.predicted[better][way[0]] - 1,
            math.log(case.judged(worse, way) / case.judged(better, way)),
        )


def failures_table() -> Iterator[str]:
    """Rows: where the first rule's mean regret is large or it took what is surely worse; by how
    much more the model diverges than with the best set.

    Nats a token over all draws and documents, with an interval that holds jointly over the sets;
    bold where it leaves out zero.
    """
    yield "| method | text | regret, % | best | taken, how often: diverges more by |"
    yield "| --- | --- | ---: | --- | --- |"
    regrets = {case: statistics.mean(_regrets(case, raced)) for case in cases()}
    for case in sorted(regrets, key=lambda case: -regrets[case]):
        taken = [data for way in WAYS for data in raced(case, way)]
        if regrets[case] <= 100 * FAILED and not any(case.worse[data][1] for data in taken):
            continue
        told = [
            f"{_name(case, data)}, {taken.count(data)} of {len(WAYS)}: {_behind(case, data)}"
            for data in dict.fromkeys(taken)
            if data != case.best
        ]
        yield f"| `{case.method}` | {case.target} | {regrets[case]:.1f} | {_name(case, case.best)} | {'; '.join(told)} |"


def _name(case: Case, data: str) -> str:
    return (
        "own text"
        if data == case.own
        else "what the model writes"
        if data == "selfgen"
        else SETS[data]
    )


def _behind(case: Case, data: str) -> str:
    more, sure = case.worse[data]
    low, high = more.interval(comparisons=len(case.measured) - 1) or (math.nan, math.nan)
    told = f"{more.value:.3f} ({low:.3f} to {high:.3f})"
    return f"**{told}**" if sure else told


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    made = {
        "kinds of text": kinds_table(),
        "rules": rules_table(),
        "rules by target": targets_table(),
        "rules by method": methods_table(),
    }
    made |= {
        "ranks": ranks_table(),
        "calibration": calibration_table(),
        "failures": failures_table(),
        "without own text": others_table(),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
