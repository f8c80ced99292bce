"""The tables of docs/findings/pruning.md, made of the store beside this file: python -m
studies.pruning.tables [--write]

Losses are nats per token, on rows that no draw calibrates on.
"""

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from studies.arms import Measured, named, planned, with_interval, with_range
from studies.pages import write_or_print

from calibrant.lab.stats import Estimate, contrast, draws
from calibrant.results import Store

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
        cells = [c for c in store.cells() if c.run and c.method != "none"]
        for method, target, data in dict.fromkeys((c.method, c.target, c.data) for c in cells):
            measured = draws(store, method=method, target=target, data=data)
            records = [
                store.record(c.run)
                for c in cells
                if (c.method, c.target, c.data) == (method, target, data)
            ]
            if len(measured) == len(DOMAINS):
                seconds = [
                    record.provenance["seconds"]["compress"]
                    for record in records
                    if record is not None
                ]
                found.append(
                    Arm(method, target, data, measured, len(seconds), statistics.median(seconds))
                )
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
    rows = sorted(
        (arm for arm in every if arm.target == target), key=lambda arm: list(SETS).index(arm.data)
    )
    for arm in [Arm("none", "", "", untouched(), 1, 0.0), *rows]:
        columns = [
            [m.score.value for m in arm.measured[name]]
            for name in named(arm.measured, DOMAINS.values())
        ]
        columns = [[statistics.mean(of) for of in zip(*columns, strict=True)], *columns]
        yield f"| {SETS[arm.data]} | `{arm.method}` | {arm.draws} | {' | '.join(map(with_range, columns))} |"
    if target == "0.6" and PEER.is_file():
        yield peer(json.loads(PEER.read_text("utf-8")))


def at_stake(every: list[Arm]) -> Iterator[str]:
    """Rows: worst less best of three sets by domain, as a share of the mean rise over the untouched
    model, by method and target; nothing where a set wasn't run.
    """
    yield f"| method | {' | '.join(TARGETS)} |"
    yield f"| --- |{' ---: |' * len(TARGETS)}"
    whole = untouched()
    names = named(whole, DOMAINS.values())
    dense = [whole[name][0].score.value for name in names]
    for method in ("wanda", "sparsegpt", "refined", "alps"):
        cells: list[str] = []
        for target in TARGETS:
            rises: list[list[float]] = []
            for arm in every:
                if (arm.method, arm.target) == (method, target):
                    means = [statistics.mean(m.score.value for m in arm.measured[n]) for n in names]
                    rises.append([mean - loss for mean, loss in zip(means, dense, strict=True)])
            columns = list(zip(*rises, strict=True))
            apart = statistics.mean(max(column) - min(column) for column in columns or [(0.0,)])
            mean_rise = statistics.mean(map(statistics.mean, rises)) if rises else 1.0
            cells.append(f"{100 * apart / mean_rise:.0f}%" if len(rises) == 3 else "")
        yield f"| `{method}` | {' | '.join(cells)} |"


def peer(record: Mapping[str, Any]) -> str:
    """The row of llm-compressor's SparseGPT, from the same tokens of C4."""
    drawn = [draw["losses"] for draw in record["draws"].values()]
    columns = [
        [losses[name]["value"] for losses in drawn] for name in named(drawn[0], DOMAINS.values())
    ]
    columns = [[statistics.mean(of) for of in zip(*columns, strict=True)], *columns]
    return (
        f"| {SETS[C4]} | llm-compressor's SparseGPT | {len(drawn)} | "
        f"{' | '.join(map(with_range, columns))} |"
    )


def by_draw() -> Iterator[str]:
    """Rows: the mean of the domains in each draw, with C4 at 60 %, of what refined may start
    from and of what it is compared with.
    """
    yield "| method | first draw | second | third |"
    yield "| --- | ---: | ---: | ---: |"
    with Store(HERE / "smollm2", create=False) as store:
        there = {(c.method, c.seed) for c in store.cells() if (c.target, c.data) == ("0.6", C4)}
        for method in ("sparsegpt", "alps", "refined", *STARTS):
            found = [
                draws(store, method=method, target="0.6", data=C4, seed=seed)
                if (method, seed) in there
                else {}
                for seed in range(3)
            ]
            means = [
                statistics.mean(of[name][0].score.value for name in named(of, DOMAINS.values()))
                if of
                else None
                for of in found
            ]
            yield f"| `{method}` | {' | '.join('–' if mean is None else f'{mean:.3f}' for mean in means)} |"


def prices(every: list[Arm]) -> Iterator[str]:
    """Rows: what a method takes at 60 % with C4: seconds of compressing, its walk through the
    model too, on one thread; the median of the draws.
    """
    yield "| method | seconds | over sparsegpt's |"
    yield "| --- | ---: | ---: |"
    rows = [
        arm
        for arm in every
        if (arm.target == "0.6" and arm.data in (C4, "")) or arm.method == "robust"
    ]
    base = next(arm.seconds for arm in rows if arm.method == "sparsegpt")
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
            ratios = [one[method][name] / one["sparsegpt"][name] for one in rounds]
            cells.append(
                f"{statistics.median(one[method][name] for one in rounds) / unit:,.{digits}f}"
            )
            cells.append(
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
                if method != "sparsegpt"
                else "1"
            )
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
    by = {(arm.method, arm.target, arm.data): arm.measured for arm in every}
    if first not in by or second not in by:
        return None
    chosen = named(by[first], [DOMAINS[domain] for domain in domains])
    return contrast(
        {name: by[second][name] for name in chosen}, {name: by[first][name] for name in chosen}
    )


def questions(every: list[Arm]) -> Iterator[str]:
    """Rows: the questions that the study's file asks, each with its answer, corrected for their
    number (Holm).
    """
    yield "| question | at | with | on | better by | p (Holm) |"
    yield "| --- | --- | --- | --- | ---: | ---: |"
    asked = list[tuple[str, str, str, str, Estimate]]()
    every_domain, others = tuple(DOMAINS), tuple(name for name in DOMAINS if name != "web")
    pairs = [("refined", "sparsegpt", "0.6", C4, every_domain)]
    pairs += [("refined", "sparsegpt", "0.6", C4, (domain,)) for domain in DOMAINS]
    pairs += [
        ("alps", "refined", "0.6", C4, every_domain),
        ("refined", "sparsegpt", "2:4", C4, every_domain),
    ]
    pairs += [("robust", "refined", "0.6", MIXTURE, (worst(every),))]
    pairs += [("held_out", "sparsegpt", "0.6", C4, others)]
    for first, second, target, data, domains in pairs:
        estimate = better(every, (first, target, data), (second, target, data), domains)
        on = (
            domains[0]
            if len(domains) == 1
            else f"the mean of {'all' if domains == every_domain else 'the other five'}"
        )
        if estimate is not None:
            asked.append((f"`{first}` better than `{second}`?", target, SETS[data], on, estimate))
    found = [estimate.p_value() for *_, estimate in asked]
    corrected = holm([1.0 if p is None else p for p in found], len(pairs))
    for (question, target, data, on, estimate), p in zip(asked, corrected, strict=True):
        yield f"| {question} | {target} | {data} | {on} | {with_interval(estimate, p < 0.05)} | {p:.1g} |"


def worst(every: list[Arm]) -> str:
    """The domain on which refined with the mixture increases the loss most."""
    arm = next(
        arm for arm in every if (arm.method, arm.target, arm.data) == ("refined", "0.6", MIXTURE)
    )
    dense = untouched()
    return max(
        DOMAINS,
        key=lambda domain: float(
            contrast(
                *[{"": side[named(side, [DOMAINS[domain]])[0]]} for side in (arm.measured, dense)]
            ).value
        ),
    )


def compared(every: list[Arm]) -> Iterator[str]:
    """Rows: for each target and set, how much better one method is than the next, on the mean of
    the six domains; each stands for itself.
    """
    yield f"| removed | calibrated on | {' | '.join(f'`{first}` better than `{second}` by' for first, second in STEPS)} |"
    yield f"| --- | --- |{' ---: |' * len(STEPS)}"
    for target in TARGETS:
        for data in (C4, ARITHMETIC, MIXTURE):
            found = [
                better(every, (first, target, data), (second, target, data), tuple(DOMAINS))
                for first, second in STEPS
            ]
            if any(found):
                yield f"| {target} | {SETS[data]} | {' | '.join('–' if one is None else with_interval(one, one.significant()) for one in found)} |"


def worst_domains(every: list[Arm]) -> Iterator[str]:
    """Rows: by how much the loss rises at 60 % on the domain where it rises most: of all six,
    and of the three that the mixture is made of.
    """
    yield "| calibrated on | method | worst of the six | by | worst of the mixture's own | by |"
    yield "| --- | --- | --- | ---: | --- | ---: |"
    dense = {
        domain: one[0].score.value
        for domain, one in zip(DOMAINS, _by_domain(untouched()), strict=True)
    }
    rows = [
        arm
        for arm in every
        if arm.target == "0.6" and arm.method in ("sparsegpt", "refined", "alps", "robust")
    ]
    for arm in sorted(rows, key=lambda arm: list(SETS).index(arm.data)):
        raised = {
            domain: [m.score.value - dense[domain] for m in one]
            for domain, one in zip(DOMAINS, _by_domain(arm.measured), strict=True)
        }
        cells: list[str] = []
        for domains in (tuple(DOMAINS), ("web", "code", "arithmetic")):
            most = max(domains, key=lambda domain: statistics.mean(raised[domain]))
            cells += [most, with_range(raised[most])]
        yield f"| {SETS[arm.data]} | `{arm.method}` | {' | '.join(cells)} |"


def _by_domain(measured: Measured) -> list[Any]:
    return [measured[name] for name in named(measured, DOMAINS.values())]


def holm(found: list[float], planned: int) -> list[float]:
    """Holm's step-down correction for so many planned questions, those that can't be answered
    counted too.
    """
    corrected, most = dict[int, float](), 0.0
    for place, i in enumerate(sorted(range(len(found)), key=found.__getitem__)):
        most = max(most, min(1.0, found[i] * (planned - place)))
        corrected[i] = most
    return [corrected[i] for i in range(len(found))]


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    every = arms()
    made = {
        "questions": "\n".join(questions(every)),
        "prices": "\n".join(prices(every)),
        "at stake": "\n".join(at_stake(every)),
        "starts": "\n".join(by_draw()),
        "sets": "\n".join(planned(HERE / "smollm2")),
    }
    made |= {"compared": "\n".join(compared(every)), "worst": "\n".join(worst_domains(every))}
    made |= (
        {"effort": "\n".join(effort(json.loads(EFFORT.read_text("utf-8"))))}
        if EFFORT.is_file()
        else {}
    )
    return made | {
        target: "\n".join(losses(every, target))
        for target in dict.fromkeys(arm.target for arm in every)
    }


if __name__ == "__main__":
    write_or_print(PAGE, tables())
