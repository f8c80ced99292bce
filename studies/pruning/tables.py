"""The tables of docs/findings/pruning.md, made of the store beside this file: python -m
studies.pruning.tables [--write]

Losses are nats per token, on rows that no draw calibrates on.
"""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from studies.arms import Measured, named, planned, with_interval, with_range, worse
from studies.pages import write_or_print

from calibrant.lab.stats import Draws, Estimate, draws
from calibrant.results import Cell, Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/pruning.md"
PEER: Final = HERE / "peer.json"
"""The record of `peer.py`."""
EFFORT: Final = HERE / "effort.json"
"""The record of `effort.py`."""
DOMAINS: Final = {
    "web": "c4",
    "encyclopedia": "wikipedia",
    "collection": "pile",
    "code": "python_code",
    "arithmetic": "gsm8k",
    "passages": "race",
}
"""Each domain that is measured, and the source it is made of."""
C4, ARITHMETIC, MIXTURE = "c4", "gsm8k:cot", "0.3333*c4 + 0.3333*gsm8k:cot + 0.3334*python_code"
SETS: Final = {C4: "C4", ARITHMETIC: "arithmetic", MIXTURE: "mixture", "": "nothing"}


TARGETS: Final = ("0.5", "0.6", "0.7", "2:4")
STEPS: Final = (("sparsegpt", "wanda"), ("refined", "sparsegpt"), ("alps", "refined"))
"""Each method, and the one that it is to be better than."""
STARTS: Final = (
    "refined(swaps=25)",
    "refined(start=sparsegpt, swaps=25)",
    "refined(start=sparsegpt, swaps=100, steps=30, rounds=4)",
)
"""Other ways to start and to go on that were tried."""


class Arm(NamedTuple):
    """What the draws of one method, target and set gave."""

    method: str
    target: str
    data: str
    measured: Measured
    draws: int
    seconds: float


def arms() -> list[Arm]:
    """Every method, target and set of the store that was measured on all domains, in the order
    of the study.
    """
    found: list[Arm] = []
    with Store(HERE / "smollm2", create=False) as store:
        by_label: dict[tuple[str, str, str], list[Cell]] = {}
        for cell in store.cells():
            if cell.run and cell.method != "none":
                by_label.setdefault((cell.method, cell.target, cell.data), []).append(cell)
        for (method, target, data), cells in by_label.items():
            measured = draws(store, method=method, target=target, data=data)
            if len(measured) != len(DOMAINS):
                continue
            seconds: list[float] = []
            for cell in cells:
                record = store.record(cell.run)
                if record is not None:
                    seconds.append(record.provenance["seconds"]["compress"])
            typical = statistics.median(seconds)
            found.append(Arm(method, target, data, measured, len(seconds), typical))
    return found


def untouched() -> Measured:
    """What the untouched model loses."""
    with Store(HERE / "smollm2", create=False) as store:
        return draws(store, method="none")


def losses(every: list[Arm], target: str) -> Iterator[str]:
    """Rows: what the model loses after each method, with each set, on each domain and on
    average.
    """
    yield f"| calibrated on | method | draws | mean | {' | '.join(DOMAINS)} |"
    yield f"| --- | --- | ---: | ---: |{' ---: |' * len(DOMAINS)}"
    rows = [arm for arm in every if arm.target == target]
    rows.sort(key=_place_of_set)
    for arm in [Arm("none", "", "", untouched(), 1, 0.0), *rows]:
        by_domain = [_values(drawn) for drawn in _by_domain(arm.measured).values()]
        yield f"| {SETS[arm.data]} | `{arm.method}` | {arm.draws} | {_with_mean(by_domain)} |"
    if target == "0.6" and PEER.is_file():
        yield peer(json.loads(PEER.read_text("utf-8")))


def _place_of_set(arm: Arm) -> int:
    return list(SETS).index(arm.data)


def _values(drawn: Draws) -> list[float]:
    return [measurement.score.value for measurement in drawn]


def _by_domain(measured: Measured) -> dict[str, Draws]:
    names = named(measured, DOMAINS.values())
    return {domain: measured[name] for domain, name in zip(DOMAINS, names, strict=True)}


def _with_mean(by_domain: list[list[float]]) -> str:
    """The cells of a row: the mean of the domains, then each domain."""
    means = [statistics.mean(draw) for draw in zip(*by_domain, strict=True)]
    return " | ".join(map(with_range, [means, *by_domain]))


def at_stake(every: list[Arm]) -> Iterator[str]:
    """Rows: worst less best of three sets by domain, as a share of the mean rise over the untouched
    model, by method and target; nothing where a set wasn't run.
    """
    yield f"| method | {' | '.join(TARGETS)} |"
    yield f"| --- |{' ---: |' * len(TARGETS)}"
    dense = _untouched_losses()
    for method in ("wanda", "sparsegpt", "refined", "alps"):
        cells: list[str] = []
        for target in TARGETS:
            rises: list[list[float]] = []
            for arm in every:
                if (arm.method, arm.target) != (method, target):
                    continue
                rises.append([])
                for domain, drawn in _by_domain(arm.measured).items():
                    rises[-1].append(statistics.mean(_values(drawn)) - dense[domain])
            if len(rises) != 3:
                cells.append("")
                continue
            by_domain = zip(*rises, strict=True)
            apart = statistics.mean(max(of_sets) - min(of_sets) for of_sets in by_domain)
            mean_rise = statistics.mean(map(statistics.mean, rises))
            cells.append(f"{100 * apart / mean_rise:.0f}%")
        yield f"| `{method}` | {' | '.join(cells)} |"


def _untouched_losses() -> dict[str, float]:
    """The untouched model's loss, by domain."""
    return {domain: drawn[0].score.value for domain, drawn in _by_domain(untouched()).items()}


def peer(record: Mapping[str, Any]) -> str:
    """The row of llm-compressor's SparseGPT, from the same tokens of C4."""
    drawn = [draw["losses"] for draw in record["draws"].values()]
    by_domain: list[list[float]] = []
    for name in named(drawn[0], DOMAINS.values()):
        by_domain.append([losses[name]["value"] for losses in drawn])
    cells = _with_mean(by_domain)
    return f"| {SETS[C4]} | llm-compressor's SparseGPT | {len(drawn)} | {cells} |"


def by_draw() -> Iterator[str]:
    """Rows: the mean of the domains in each draw, with C4 at 60 %, of what refined may start
    from and of what it is compared with.
    """
    yield "| method | first draw | second | third |"
    yield "| --- | ---: | ---: | ---: |"
    with Store(HERE / "smollm2", create=False) as store:
        there = {(c.method, c.seed) for c in store.cells() if (c.target, c.data) == ("0.6", C4)}
        for method in ("sparsegpt", "alps", "refined", *STARTS):
            cells: list[str] = []
            for seed in range(3):
                measured: Measured = {}
                if (method, seed) in there:
                    measured = draws(store, method=method, target="0.6", data=C4, seed=seed)
                if not measured:
                    cells.append("–")
                    continue
                by_domain = _by_domain(measured).values()
                mean = statistics.mean(drawn[0].score.value for drawn in by_domain)
                cells.append(f"{mean:.3f}")
            yield f"| `{method}` | {' | '.join(cells)} |"


def prices(every: list[Arm]) -> Iterator[str]:
    """Rows: what a method takes at 60 % with C4: seconds of compressing, its walk through the
    model too, on one thread; the median of the draws.
    """
    yield "| method | seconds | over sparsegpt's |"
    yield "| --- | ---: | ---: |"
    rows: list[Arm] = []
    for arm in every:
        with_c4 = arm.target == "0.6" and arm.data in (C4, "")
        if with_c4 or arm.method == "robust":  # which was run with the mixture alone
            rows.append(arm)
    (base,) = [arm.seconds for arm in rows if arm.method == "sparsegpt"]
    for arm in sorted(rows, key=lambda arm: arm.seconds):
        yield f"| `{arm.method}` | {arm.seconds:.1f} | {arm.seconds / base:.2f} |"


def effort(record: Mapping[str, Any]) -> Iterator[str]:
    """Rows: seconds and memory of each method, in a process of its own; over SparseGPT's, the
    median of a round's ratios, and their range.
    """
    yield "| method | seconds | over sparsegpt's | peak memory, MB | over sparsegpt's |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    rounds = list(record["rounds"].values())
    for method in rounds[0]:
        cells: list[str] = []
        for name, unit, digits in (("seconds", 1, 1), ("peak", 1e6, 0)):
            taken = statistics.median(one[method][name] for one in rounds)
            cells.append(f"{taken / unit:,.{digits}f}")
            if method == "sparsegpt":
                cells.append("1")
                continue
            ratios = [one[method][name] / one["sparsegpt"][name] for one in rounds]
            least, most = min(ratios), max(ratios)
            cells.append(f"{statistics.median(ratios):.2f} ({least:.2f} to {most:.2f})")
        yield f"| `{method}` | {' | '.join(cells)} |"


def better(
    every: list[Arm],
    first: tuple[str, str, str],
    second: tuple[str, str, str],
    domains: tuple[str, ...],
) -> Estimate | None:
    """How much less the first (method, target, set) loses than the second on the mean of the
    domains; None where one wasn't run.
    """
    by_label = _by_label(every)
    if first not in by_label or second not in by_label:
        return None
    return worse(by_label[second], by_label[first], [DOMAINS[domain] for domain in domains])


def _by_label(every: list[Arm]) -> dict[tuple[str, str, str], Measured]:
    """What each method, target and set gave."""
    return {(arm.method, arm.target, arm.data): arm.measured for arm in every}


def questions(every: list[Arm]) -> Iterator[str]:
    """Rows: the questions that the study's file asks, each with its answer, corrected for their
    number (Holm).
    """
    yield "| question | at | with | on | better by | p (Holm) |"
    yield "| --- | --- | --- | --- | ---: | ---: |"
    every_domain = tuple(DOMAINS)
    others = tuple(name for name in DOMAINS if name != "web")
    pairs = [("refined", "sparsegpt", "0.6", C4, every_domain)]
    pairs += [("refined", "sparsegpt", "0.6", C4, (domain,)) for domain in DOMAINS]
    pairs += [
        ("alps", "refined", "0.6", C4, every_domain),
        ("refined", "sparsegpt", "2:4", C4, every_domain),
    ]
    pairs += [("robust", "refined", "0.6", MIXTURE, (worst(every),))]
    pairs += [("held_out", "sparsegpt", "0.6", C4, others)]
    asked: list[str] = []
    estimates: list[Estimate] = []
    p_values: list[float] = []
    for first, second, target, data, domains in pairs:
        estimate = better(every, (first, target, data), (second, target, data), domains)
        if estimate is None:
            continue
        if domains == every_domain:
            on = "the mean of all"
        elif domains == others:
            on = "the mean of the other five"
        else:
            (on,) = domains
        asked.append(f"`{first}` better than `{second}`? | {target} | {SETS[data]} | {on}")
        estimates.append(estimate)
        p = estimate.p_value()
        p_values.append(1.0 if p is None else p)
    corrected = holm(p_values, len(pairs))
    for question, estimate, p in zip(asked, estimates, corrected, strict=True):
        yield f"| {question} | {with_interval(estimate, p < 0.05)} | {p:.1g} |"


def worst(every: list[Arm]) -> str:
    """The domain on which refined with the mixture increases the loss most."""
    refined = _by_label(every)["refined", "0.6", MIXTURE]
    dense = untouched()
    rises = {domain: worse(refined, dense, [source]).value for domain, source in DOMAINS.items()}
    return max(rises, key=rises.__getitem__)


def compared(every: list[Arm]) -> Iterator[str]:
    """Rows: for each target and set, how much better one method is than the next, on the mean of
    the six domains; each stands for itself.
    """
    heads = [f"`{first}` better than `{second}` by" for first, second in STEPS]
    yield f"| removed | calibrated on | {' | '.join(heads)} |"
    yield f"| --- | --- |{' ---: |' * len(STEPS)}"
    for target in TARGETS:
        for data in (C4, ARITHMETIC, MIXTURE):
            cells: list[str] = []
            for first, second in STEPS:
                estimate = better(
                    every, (first, target, data), (second, target, data), tuple(DOMAINS)
                )
                cells.append("–" if estimate is None else with_interval(estimate))
            if set(cells) != {"–"}:
                yield f"| {target} | {SETS[data]} | {' | '.join(cells)} |"


def worst_domains(every: list[Arm]) -> Iterator[str]:
    """Rows: by how much the loss rises at 60 % on the domain where it rises most: of all six,
    and of the three that the mixture is made of.
    """
    yield "| calibrated on | method | worst of the six | by | worst of the mixture's own | by |"
    yield "| --- | --- | --- | ---: | --- | ---: |"
    dense = _untouched_losses()
    methods = ("sparsegpt", "refined", "alps", "robust")
    rows = [arm for arm in every if arm.target == "0.6" and arm.method in methods]
    for arm in sorted(rows, key=_place_of_set):
        rises: dict[str, list[float]] = {}
        for domain, drawn in _by_domain(arm.measured).items():
            rises[domain] = [value - dense[domain] for value in _values(drawn)]
        mean_rises = {domain: statistics.mean(values) for domain, values in rises.items()}
        cells: list[str] = []
        for domains in (tuple(DOMAINS), ("web", "code", "arithmetic")):
            most = max(domains, key=mean_rises.__getitem__)
            cells += [most, with_range(rises[most])]
        yield f"| {SETS[arm.data]} | `{arm.method}` | {' | '.join(cells)} |"


def holm(found: list[float], planned: int) -> list[float]:
    """Holm's step-down correction for so many planned questions, those that can't be answered
    counted too.
    """
    smallest_first = sorted(range(len(found)), key=found.__getitem__)
    corrected = [0.0] * len(found)
    largest = 0.0
    for place, index in enumerate(smallest_first):
        largest = max(largest, min(1.0, found[index] * (planned - place)))
        corrected[index] = largest
    return corrected


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    every = arms()
    made = {
        "questions": questions(every),
        "prices": prices(every),
        "at stake": at_stake(every),
        "starts": by_draw(),
        "sets": planned(HERE / "smollm2"),
        "compared": compared(every),
        "worst": worst_domains(every),
    }
    if EFFORT.is_file():
        made["effort"] = effort(json.loads(EFFORT.read_text("utf-8")))
    for arm in every:
        made.setdefault(arm.target, losses(every, arm.target))
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
