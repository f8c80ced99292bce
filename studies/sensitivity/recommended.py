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
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from scipy.stats import rankdata
from studies.arms import bold_if, number_or_nothing, source_of, table_head, table_row
from studies.pages import write_or_print
from studies.sensitivity.predict import OUT, TARGETS
from studies.sensitivity.tables import CONTROL, FITTED, MIXTURE, SETS, STRONG, corrected

from calibrant.data import CalibrationSet
from calibrant.lab.stats import Draws, Estimate, contrast, detectable, draws, pairs, t_quantile
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


class Sums(NamedTuple):
    """The nats of the loss, those of the divergence, and the tokens of some documents."""

    loss: float
    divergence: float
    tokens: float


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
    def sums(self) -> Mapping[tuple[str, int, int], Sums]:
        """By set, draw and half of the documents."""
        found: dict[tuple[str, int, int], Sums] = {}
        for data, drawn in self.measured.items():
            for draw, measurement in enumerate(drawn):
                outcomes = sorted(measurement.outcomes, key=lambda outcome: outcome.item)
                for half in range(2):
                    of_half = outcomes[half::2]
                    found[data, draw, half] = Sums(
                        sum(outcome.facts["nats"] for outcome in of_half),
                        sum(outcome.value for outcome in of_half),
                        sum(outcome.weight for outcome in of_half),
                    )
        return found

    def predicted_error(self, data: str, way: Way) -> float:
        """The predicted error with a set, by the draw that a rule may look at."""
        draw, _ = way
        return self.predicted[data][draw]

    def loss(self, data: str, way: Way) -> float:
        """The loss with a set, by the draw and the documents that a rule may look at."""
        draw, half = way
        seen = self.sums[data, draw, half]
        return seen.loss / seen.tokens

    def judged(self, data: str, way: Way) -> float:
        """The divergence with a set, by the draws and the documents that the rule hasn't seen."""
        seen_draw, seen_half = way
        other_half = 1 - seen_half
        unseen = [self.sums[data, draw, other_half] for draw in range(DRAWS) if draw != seen_draw]
        return sum(sums.divergence for sums in unseen) / sum(sums.tokens for sums in unseen)

    def regret(self, data: str, way: Way) -> float:
        """By how many per cent the model diverges more than with the best set, where the rule
        hasn't looked.
        """
        least = min(self.judged(other, way) for other in self.measured)
        return 100 * (self.judged(data, way) / least - 1)

    def whole(self, data: str) -> float:
        """The mean divergence over all draws."""
        return statistics.mean(draw.score.value for draw in self.measured[data])

    @cached_property
    def best(self) -> str:
        """The set with the least divergence over all draws."""
        return min(self.measured, key=self.whole)

    @cached_property
    def worse(self) -> Mapping[str, tuple[Estimate, bool]]:
        """By how much more the model diverges than with the best set, by all that was measured,
        and whether that is sure, jointly over all sets.
        """
        # Which set is the best was seen in the same numbers: any pair might have been compared.
        compared = pairs(len(self.measured))
        found: dict[str, tuple[Estimate, bool]] = {}
        for data, drawn in self.measured.items():
            estimate = contrast({"": drawn}, {"": self.measured[self.best]})
            is_sure = data != self.best and estimate.significant(comparisons=compared)
            found[data] = (estimate, is_sure)
        return found


Rule = Callable[[Case, Way], Sequence[str]]
"""The sets that a rule takes, all alike, of a case and what it may look at."""


def _least_loss(case: Case, sets: Iterable[str], way: Way) -> str:
    return min(sets, key=lambda data: case.loss(data, way))


def raced(case: Case, way: Way) -> Sequence[str]:
    """Of the sets with the least predicted errors, and C4, the one with the least loss: one
    round of what `recommend` does with these sets.
    """
    others = [data for data in case.predicted if data != "c4"]
    ranked = sorted(others, key=lambda data: case.predicted_error(data, way))
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
    if not others:
        return []
    draw, _ = way

    def share(data: str) -> float:
        shares: list[float] = []
        for other in others:
            usual = other.measured["c4"][draw].score.value
            shares.append(other.measured[data][draw].score.value / usual)
        return statistics.mean(shares)

    return [min(COMMON, key=share)]


def all_measured(case: Case, way: Way) -> Sequence[str]:
    """The set with the least loss."""
    return [_least_loss(case, case.measured, way)]


def best_predicted(case: Case, way: Way) -> Sequence[str]:
    """The set with the least predicted error."""
    return [min(case.predicted, key=lambda data: case.predicted_error(data, way))]


FIRST: Final = "three best predicted and C4, measured once"
RULES: Final[Mapping[str, Rule]] = {
    FIRST: raced,
    "three by chance and C4, measured once": by_chance,
    "all measured once": all_measured,
    "best predicted": best_predicted,
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
    found: list[Case] = []
    for method, errors_of_method in errors.items():
        if len(errors_of_method) != DRAWS:
            continue
        for target in TARGETS:
            case = _case(method, target, errors_of_method)
            if case is not None:
                found.append(case)
    return tuple(found)


def _case(
    method: str, target: str, errors: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> Case | None:
    measured: dict[str, Draws] = {}
    for data in dict.fromkeys((*COMMON, str(CalibrationSet(target)))):
        drawn = _drawn().get((method, data), {}).get(source_of(target))
        if not drawn:
            return None
        measured[data] = drawn
    predicted: dict[str, list[float]] = {}
    for data in measured:
        predicted[data] = [errors[str(draw)][data][target] for draw in range(DRAWS)]
    return Case(method, target, measured, predicted)


@cache
def _drawn() -> Mapping[tuple[str, str], Mapping[str, Draws]]:
    """By method and set what was measured in any of the stores, by the source that it was
    measured on, where all draws are there.
    """
    found: dict[tuple[str, str], dict[str, Draws]] = defaultdict(dict)
    for name in STORES:
        if not (HERE / name).is_dir():
            continue
        with Store(HERE / name, create=False) as store:
            asked = dict.fromkeys(
                (cell.method, cell.data)
                for cell in store.cells()
                if cell.run and STRONG.get(cell.method) == cell.target
            )
            for method, data in asked:
                new: dict[str, Draws] = {}
                by_measured = draws(store, method=method, target=STRONG[method], data=data)
                for measured, drawn in by_measured.items():
                    if drawn[0].score.metric == "kl" and len(drawn) == DRAWS:
                        new[source_of(measured)] = drawn
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
    regrets: list[float] = []
    for way in WAYS:
        sets = rule(case, way)
        if sets:
            regrets.append(statistics.mean(case.regret(data, way) for data in sets))
    return regrets


def _over(values: Iterable[float]) -> Estimate | None:
    """The mean, with targets as the items; None with fewer than two."""
    known = list(values)
    count = len(known)
    if count < 2:
        return None
    stderr = statistics.stdev(known) / math.sqrt(count)
    return Estimate(statistics.mean(known), stderr, float(count - 1), count)


def _more_than(regrets: Mapping[str, float], others: Mapping[str, float]) -> Estimate | None:
    """By how much these regrets are larger than the others on the same targets."""
    return _over(regrets[target] - others[target] for target in regrets)


def _told(estimate: Estimate | None, bold: bool = False) -> str:
    if estimate is None:
        return ""
    half = t_quantile(0.975, estimate.df) * (estimate.stderr or 0)
    low, high = estimate.value - half, estimate.value + half
    return bold_if(bold, f"{estimate.value:+.1f} ({low:+.1f} to {high:+.1f})")


def rules_table() -> Iterator[str]:
    """Rows: the rules, over the methods that have all targets. Regret and what it is more than the
    first rule's: mean, interval over targets.

    Beside the share of ways that are near the best the regret of the others; last what true
    difference four such studies in five find.
    """
    asked = _whole()
    regrets = {name: _by_target(asked, rule) for name, rule in RULES.items()}
    more = {name: _more_than(of_rule, regrets[FIRST]) for name, of_rule in regrets.items()}
    of_rivals = [more[name] for name in RIVALS]
    values = [None if estimate is None else estimate.p_value() for estimate in of_rivals]
    p_of_rivals = dict(zip(RIVALS, corrected(values), strict=True))
    yield from table_head(
        ["rule"],
        [
            f"within {100 * NEAR:.0f} % of the best",
            "regret of the other ways, %",
            "not significantly worse",
            "regret, %",
            "more than the first rule's",
            "4 in 5 see",
            "p (Holm)",
        ],
    )
    for name, rule in RULES.items():
        near = _mean_of(asked, rule, _is_near)
        of_others = _mean_of(asked, rule, _regret_of_others)
        far = f"{of_others / (1 - near):.1f}" if near < 1 else ""
        fine = _mean_of(asked, rule, lambda case, _, data: _is_fine(case, data))
        p = p_of_rivals.get(name)
        more_than_first = more[name]
        told_more = ""
        if name != FIRST:
            told_more = _told(more_than_first, bold=p is not None and p < 0.05)
        seen = None
        if name in RIVALS and more_than_first is not None:
            seen = detectable(more_than_first)
        yield table_row(
            [
                name,
                f"{100 * near:.0f}%",
                far,
                f"{100 * fine:.0f}%",
                _told(_over(regrets[name].values())),
                told_more,
                number_or_nothing(seen, ".1f"),
                number_or_nothing(p, ".1g"),
            ]
        )


GENERAL: Final = ("c4", "wikipedia", "pile")
"""The targets of general text; the six others are narrow."""


def kinds_table() -> Iterator[str]:
    """Rows: the rules, over the methods that have all targets: the share of ways that are near the
    best, and the regret, on the narrow texts, the general ones, these without C4, and all.
    """
    whole = _whole()
    general = [case for case in whole if case.target in GENERAL]
    kinds = {
        "six narrow texts": [case for case in whole if case.target not in GENERAL],
        "three general texts": general,
        "two of them, without C4": [case for case in general if case.target != "c4"],
        "all nine": whole,
    }
    heads: list[str] = []
    for kind in kinds:
        heads += [f"{kind}: within 2 %", "regret, %"]
    yield from table_head(["rule"], heads)
    for name, rule in RULES.items():
        cells: list[str] = []
        for asked in kinds.values():
            if not asked:
                cells += ["", ""]
                continue
            near = _mean_of(asked, rule, _is_near)
            regret = statistics.mean(_by_target(asked, rule).values())
            cells += [f"{100 * near:.0f}%", f"{regret:.1f}"]
        yield table_row([name, *cells])


def _is_near(case: Case, way: Way, data: str) -> bool:
    return case.regret(data, way) <= 100 * NEAR


def _regret_of_others(case: Case, way: Way, data: str) -> float:
    return 0.0 if _is_near(case, way, data) else case.regret(data, way)


def _is_fine(case: Case, data: str) -> bool:
    """Whether the set isn't surely worse than the best."""
    _, is_sure = case.worse[data]
    return not is_sure


def _mean_of(asked: Iterable[Case], rule: Rule, value: Callable[[Case, Way, str], float]) -> float:
    """The mean over cases and ways of the mean over what the rule may choose."""
    means: list[float] = []
    for case in asked:
        for way in WAYS:
            sets = rule(case, way)
            if sets:
                means.append(statistics.mean(value(case, way, data) for data in sets))
    return statistics.mean(means)


def _whole() -> Sequence[Case]:
    """The cases of the methods that have all targets."""
    targets = Counter(case.method for case in cases())
    return [case for case in cases() if targets[case.method] == len(TARGETS)]


def targets_table() -> Iterator[str]:
    """Columns: the targets, over the methods that have all of them; each rule's regret in per
    cent. `*` where the mixture holds the source.
    """
    regrets = {name: _by_target(_whole(), rule) for name, rule in RULES.items()}
    targets = list(regrets[FIRST])
    heads = [f"{target} *" if target in IN_MIXTURE else target for target in targets]
    yield from table_head(["rule"], heads)
    for name, by_target in regrets.items():
        yield table_row([name, *(f"{by_target[target]:.1f}" for target in targets)])


def others_table() -> Iterator[str]:
    """Rows: the rules where no text of the target's source can be taken, over the targets that
    allow it; not planned.

    What predicts is still the target's own text. Regret is against the best of the sets that are
    left.
    """
    sources = {source_of(data) for data in COMMON}
    asked: list[Case] = []
    for case in _whole():
        if source_of(case.target) not in sources:
            asked.append(
                replace(case, measured=_common(case.measured), predicted=_common(case.predicted))
            )
    regrets: dict[str, Mapping[str, float]] = {}
    for name, rule in RULES.items():
        if name not in ("own text", "best on the other texts"):
            regrets[name] = _by_target(asked, rule)
    predicted = regrets["best predicted"]
    yield from table_head(["rule"], [*predicted, "regret, %", "more than the best predicted"])
    for name, by_target in regrets.items():
        more = "" if name == "best predicted" else _told(_more_than(by_target, predicted))
        cells = [f"{value:.1f}" for value in by_target.values()]
        yield table_row([name, *cells, _told(_over(by_target.values())), more])


def _common(by_set: Mapping[str, T]) -> Mapping[str, T]:
    return {data: found for data, found in by_set.items() if data in COMMON}


def _by_method() -> Mapping[str, Sequence[Case]]:
    """The cases of each method."""
    found: dict[str, list[Case]] = {}
    for case in cases():
        found.setdefault(case.method, []).append(case)
    return found


def methods_table() -> Iterator[str]:
    """Columns: the methods, over their targets; the regret of each rule in per cent."""
    by_method = _by_method()
    yield from table_head(["rule"], [f"`{method}`" for method in by_method])
    yield table_row(["(texts)", *(f"{len(of_method)}" for of_method in by_method.values())])
    for name, rule in RULES.items():
        cells: list[str] = []
        for of_method in by_method.values():
            regrets = _by_target(of_method, rule).values()
            cells.append(f"{statistics.mean(regrets):.1f}" if regrets else "")
        yield table_row([name, *cells])


def ranks_table() -> Iterator[str]:
    """Rows: methods. Spearman's, over sets, of what one draw predicts and what the others give;
    and of what one draw gives and what the others do.
    """
    yield "| method | texts | predicted | least | measured once |"
    yield "| --- | ---: | ---: | --- | ---: |"
    for method, of_method in _by_method().items():
        predicted = {case.target: _correlation(case, Case.predicted_error) for case in of_method}
        measured = [_correlation(case, Case.loss) for case in of_method]
        least = min(predicted, key=lambda target: predicted[target])
        yield table_row(
            [
                f"`{method}`",
                f"{len(of_method)}",
                f"{statistics.mean(predicted.values()):+.2f}",
                f"{predicted[least]:+.2f} ({least})",
                f"{statistics.mean(measured):+.2f}",
            ]
        )


def _correlation(case: Case, seen: Callable[[Case, str, Way], float]) -> float:
    """Spearman's, over sets, of what a rule sees and what it is judged by; mean over the ways."""
    correlations: list[float] = []
    for way in WAYS:
        ranks_seen = rankdata([seen(case, data, way) for data in case.measured])
        ranks_judged = rankdata([case.judged(data, way) for data in case.measured])
        correlations.append(statistics.correlation(ranks_seen, ranks_judged))
    return statistics.mean(correlations)


def calibration_table() -> Iterator[str]:
    """Rows: any two sets of a case by how far apart they are predicted to be; how often the
    better one is named, and how far apart they are.
    """
    gaps: dict[str, list[tuple[float, float]]] = {"weights fitted": [], "weighed or scored": []}
    for case in cases():
        kind = "weights fitted" if case.method in FITTED else "weighed or scored"
        gaps[kind].extend(_gaps(case))
    heads: list[str] = []
    for kind in gaps:
        heads += [f"{kind}: pairs (mean of ways)", "the better one named", "apart"]
    yield from table_head(["predicted errors differ by"], heads)
    for low, high in itertools.pairwise(BINS):
        if math.isfinite(high):
            told = f"{100 * low:.0f} to {100 * high:.0f} %"
        else:
            told = f"more than {100 * low:.0f} %"
        cells: list[str] = []
        for of_kind in gaps.values():
            found = [more for predicted, more in of_kind if low <= predicted < high]
            cells.append(f"{len(found) // len(WAYS)}")
            if found:
                right = statistics.mean(more > 0 for more in found)
                cells += [f"{100 * right:.0f}%", f"{100 * statistics.mean(found):+.1f}%"]
            else:
                cells += ["", ""]
        yield table_row([told, *cells])


def _gaps(case: Case) -> Iterator[tuple[float, float]]:
    """By how large a share two sets are predicted to be apart, and by how much more the model
    diverges with the one that is predicted to be worse.
    """
    for way in WAYS:
        for pair in itertools.combinations(case.measured, 2):
            better, worse = sorted(pair, key=lambda data: case.predicted_error(data, way))
            predicted = case.predicted_error(worse, way) / case.predicted_error(better, way) - 1
            more = math.log(case.judged(worse, way) / case.judged(better, way))
            yield predicted, more


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
        taken = Counter(data for way in WAYS for data in raced(case, way))
        if regrets[case] <= 100 * FAILED and all(_is_fine(case, data) for data in taken):
            continue
        told: list[str] = []
        for data, times in taken.items():
            if data != case.best:
                told.append(f"{_name(case, data)}, {times} of {len(WAYS)}: {_behind(case, data)}")
        yield table_row(
            [
                f"`{case.method}`",
                case.target,
                f"{regrets[case]:.1f}",
                _name(case, case.best),
                "; ".join(told),
            ]
        )


def _name(case: Case, data: str) -> str:
    if data == case.own:
        return "own text"
    if data == "selfgen":
        return "what the model writes"
    return SETS[data]


def _behind(case: Case, data: str) -> str:
    more, is_sure = case.worse[data]
    interval = more.interval(comparisons=pairs(len(case.measured)))
    low, high = interval or (math.nan, math.nan)
    return bold_if(is_sure, f"{more.value:.3f} ({low:.3f} to {high:.3f})")


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    made = {
        "kinds of text": kinds_table(),
        "rules": rules_table(),
        "rules by target": targets_table(),
        "rules by method": methods_table(),
        "ranks": ranks_table(),
        "calibration": calibration_table(),
        "failures": failures_table(),
        "without own text": others_table(),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
