"""Would `recommend` have taken the right set? Its prediction against the records: python -m studies.sensitivity.recommended [--write]

Every target is left out in turn: nothing that was measured on it says which set to take, but what a rule itself would measure. Divergences are nats
per token, KL(untouched ‖ compressed), on the target's held-out text.

A rule sees one draw of every set and is judged by the other two. *Regret* is how much more the model diverges than with the set that is the best by
those two draws, which nobody knows beforehand; a choice is *as good as the best* where it can't be distinguished from it with all draws.
"""

import itertools
import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from scipy.stats import rankdata
from studies.arms import with_interval
from studies.pages import write_or_print
from studies.sensitivity.predict import OUT, TARGETS
from studies.sensitivity.tables import MIXTURE, SETS, STRONG

from calibrant.compare import Draws, Estimate, contrast, draws
from calibrant.data import CalibrationSet
from calibrant.store import Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/choosing.md"
STORES: Final = ("smollm2", "targets", "own")
OWN: Final = {"gsm8k:cot": "gsm8k:icl"}
"""The target's own text among the sets where it isn't written as the target is."""
DRAWS: Final = 3
ARMS: Final = 3
"""How many sets `recommend` measures besides C4, as with its default of 30 minutes here."""
BINS: Final = (0.01, 0.03, 0.1, math.inf)
NAMES: Final = SETS | {
    "race:icl": "passages",
    "piqa:icl": "everyday questions",
    "esnli:icl": "pairs of sentences",
    "flores(language='fra_Latn')": "French",
}


@dataclass(frozen=True)
class Case:
    """One method and target: what the draws of each set gave, and the predicted error of each set by draw; sets that have both."""

    method: str
    target: str
    measured: Mapping[str, Draws]
    predicted: Mapping[str, Sequence[float]]

    @property
    def own(self) -> str:
        """The target's own text; empty if it is no set here."""
        text = str(CalibrationSet(OWN.get(self.target, self.target)))
        return text if text in self.measured else ""

    def value(self, data: str, without: int | None = None) -> float:
        """The mean divergence with a set, over all draws but one."""
        return statistics.mean(m.score.value for draw, m in enumerate(self.measured[data]) if draw != without)

    def best(self, without: int | None = None) -> str:
        return min(self.measured, key=lambda data: self.value(data, without))

    def worse(self, data: str, other: str) -> Estimate:
        """How much more a model diverges with a set than with another, by all draws."""
        return contrast({"": self.measured[data]}, {"": self.measured[other]})

    def mean_error(self, data: str) -> float:
        return statistics.mean(self.predicted[data])


Rule = Callable[[Case, int], str]
"""Which set to take, of a case and the draw that may be looked at; empty where the rule says nothing."""


def predicted_best(case: Case, draw: int) -> str:
    """The set with the least predicted error."""
    return min(case.predicted, key=lambda data: case.predicted[data][draw])


def raced(case: Case, draw: int) -> str:
    """Of the sets with the least predicted errors, and C4, the one that diverges least in the draw: what `recommend` does with its first round."""
    ranked = sorted((data for data in case.predicted if data != "c4"), key=lambda data: case.predicted[data][draw])
    return min([*ranked[:ARMS], "c4"], key=lambda data: case.measured[data][draw].score.value)


def elsewhere(case: Case, draw: int) -> str:
    """The set that is best on the method's other targets, by the draw that may be looked at: mean of divergences, each as a share of C4's."""
    others = [other for other in cases() if other.method == case.method and other.target != case.target]
    known = [data for data in case.measured if all(data in other.measured for other in others)]
    ratios = {
        data: statistics.mean(other.measured[data][draw].score.value / other.measured["c4"][draw].score.value for other in others) for data in known
    }
    return min(ratios, key=lambda data: ratios[data])


RULES: Final[Mapping[str, Rule]] = {
    "`recommend`: three best predicted and C4, measured once": raced,
    "best predicted, nothing measured": predicted_best,
    "own text": lambda case, _: case.own,
    "best on the other targets": elsewhere,
    "always the mixture": lambda case, _: MIXTURE,
    "always C4": lambda case, _: "c4",
}


@cache
def cases() -> tuple[Case, ...]:
    """Each method and target of which sets are both predicted and measured."""
    errors = json.loads(OUT.read_text("utf-8"))["errors"]
    return tuple(case for method in errors for target in TARGETS if (case := _case(method, target, errors[method])) is not None)


def _case(method: str, target: str, errors: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Case | None:
    source = re.split(r"[:(]", target)[0]
    there = {data: _drawn(method, data).get(source) for data in errors["0"] if data != "random_tokens"}
    measured = {data: found for data, found in there.items() if found}
    if "c4" not in measured:
        return None
    return Case(method, target, measured, {data: [errors[draw][data][target] for draw in sorted(errors)] for data in measured})


@cache
def _drawn(method: str, data: str) -> Mapping[str, Draws]:
    """What was measured with a set in any of the stores, by the source that it was measured on, where all draws are there."""
    found: dict[str, Draws] = {}
    for folder in (HERE / name for name in STORES if (HERE / name).is_dir()):
        with Store(folder, create=False) as store:
            labels = {"method": method, "target": STRONG[method], "data": data}
            if any(c.run and all(getattr(c, name) == value for name, value in labels.items()) for c in store.cells()):
                sides = draws(store, **labels)
                found |= {re.split(r"[ :(]", name)[0]: of for name, of in sides.items() if of[0].score.metric == "kl" and len(of) == DRAWS}
    return found


def _full() -> list[str]:
    """The methods whose sets were measured on all targets."""
    return [method for method in STRONG if len([case for case in cases() if case.method == method]) == len(TARGETS)]


def rules_table() -> Iterator[str]:
    """Rows: the rules, the methods that have all targets; regret is the mean over methods and draws, its interval over targets."""
    asked = [case for case in cases() if case.method in _full()]
    regrets = {name: _regrets(asked, rule) for name, rule in RULES.items()}
    yield "| rule | as good as the best | regret | less than always C4 | most |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, rule in RULES.items():
        chosen = [(case, rule(case, draw)) for case in asked for draw in range(DRAWS)]
        told = [not _surely_worse(case, data) for case, data in chosen if data]
        mine, always = regrets[name], regrets["always C4"]
        less = "" if mine is always else with_interval(_over(always[target] - mine[target] for target in mine))
        yield f"| {name} | {sum(told)} of {len(told)} | {_plain(_over(mine.values()))} | {less} | {max(mine.values()):.3f} |"


def _regrets(asked: Iterable[Case], rule: Rule) -> Mapping[str, float]:
    """By target, over methods and draws: how much more the model diverges than with the best set, by the draws that the rule hasn't seen."""
    found: dict[str, list[float]] = {}
    for case in asked:
        for draw in range(DRAWS):
            if data := rule(case, draw):
                found.setdefault(case.target, []).append(case.value(data, draw) - case.value(case.best(draw), draw))
    return {target: statistics.mean(values) for target, values in found.items()}


def _over(values: Iterable[float]) -> Estimate:
    """The mean, with targets as the items."""
    known = list(values)
    return Estimate(statistics.mean(known), statistics.stdev(known) / math.sqrt(len(known)), len(known) - 1, len(known))


def _plain(estimate: Estimate) -> str:
    low, high = estimate.interval() or (math.nan, math.nan)
    return f"{estimate.value:.3f} ({max(low, 0):.3f} to {high:.3f})"


def _surely_worse(case: Case, data: str) -> bool:
    """Whether a set is significantly worse than the best one, by all draws."""
    found = case.worse(data, case.best())
    return data != case.best() and found.significant() and found.value > 0


def pairs_table() -> Iterator[str]:
    """Rows: methods. How well the prediction ranks sets, and of two sets how often the one that is predicted to be better is, by how far apart."""
    between = list(itertools.pairwise([0.0, *BINS]))
    heads = [f"{100 * low:.0f} to {100 * high:.0f} % apart" if math.isfinite(high) else f"more than {100 * low:.0f} %" for low, high in between]
    yield f"| method | targets | rank correlation | least | {' | '.join(heads)} |"
    yield f"| --- | ---: | ---: | ---: |{' ---: |' * len(heads)}"
    for method in dict.fromkeys(case.method for case in cases()):
        own = [case for case in cases() if case.method == method]
        ranks = [_correlation(case) for case in own]
        gaps = [gap for case in own for gap in _gaps(case)]
        cells = [[right for apart, right in gaps if low <= apart < high] for low, high in between]
        told = [f"{sum(cell)} of {len(cell)}" if cell else "" for cell in cells]
        yield f"| `{method}` | {len(own)} | {statistics.mean(ranks):+.2f} | {min(ranks):+.2f} | {' | '.join(told)} |"


def _correlation(case: Case) -> float:
    """Spearman's, over sets, of the mean predicted error and the mean divergence."""
    ranks = [rankdata([value(data) for data in case.measured]) for value in (case.mean_error, case.value)]
    return statistics.correlation(*ranks)


def _gaps(case: Case) -> Iterator[tuple[float, bool]]:
    """How far apart the predicted errors of any two sets are, as a share of the smaller one, and whether the model diverges less with that one."""
    for one, other in itertools.combinations(case.measured, 2):
        less, more = sorted((one, other), key=case.mean_error)
        yield case.mean_error(more) / case.mean_error(less) - 1, case.value(less) < case.value(more)


def failures_table() -> Iterator[str]:
    """Rows: where `recommend` would have taken a set that is significantly worse than the best one, the costliest first."""
    yield "| method | target | taken | by how many draws | best | more than the best |"
    yield "| --- | --- | --- | ---: | --- | ---: |"
    rows: list[tuple[float, str]] = []
    for case in cases():
        taken = [raced(case, draw) for draw in range(DRAWS)]
        for data in dict.fromkeys(data for data in taken if _surely_worse(case, data)):
            more, best = case.worse(data, case.best()), case.best()
            cells = [f"`{case.method}`", case.target, NAMES[data], f"{taken.count(data)} of {DRAWS}", NAMES[best], with_interval(more, False)]
            rows.append((more.value, f"| {' | '.join(cells)} |"))
    yield from (row for _, row in sorted(rows, reverse=True))


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    made = {"rules": rules_table(), "pairs": pairs_table(), "failures": failures_table()}
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
