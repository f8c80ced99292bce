"""The tables of docs/findings/milder.md, made of the store beside this file: python -m
studies.sensitivity.milder [--write]

As in tables.py: the milder targets of the same study beside the stronger ones, and `alps` and EvoP,
which have only four of the sets.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from studies.pages import write_or_print
from studies.sensitivity import tables as first
from studies.sensitivity.second import OWN
from studies.sensitivity.tables import (
    CONTROL,
    DOMAINS,
    MIXTURE,
    SETS,
    STORE,
    STRONG,
    alike,
    by_domain,
    divergences,
    domains_table,
    label_of,
    on_domains,
    otherwise_table,
    sensitivity_table,
    sets_table,
    shares_table,
    smallest_seen,
)

from calibrant.lab.stats import Results, Sensitivity, compare, read
from calibrant.results import Cell, Store

PAGE: Final = first.PAGE.with_name("milder.md")
MILDER: Final = {
    "wanda": "0.4",
    "sparsegpt": "0.4",
    "rtn(scales='importance')": "w4g64",
    "gptq(scales='importance')": "w4g64",
    "gptq": "w4g64",
    "awq": "w4g64",
    "rsq": "w4g64",
    "llama_cpp": "Q3_K_M",
    "refined": "0.4",
    "short_gpt": "blocks 0.1",
}
"""The milder target of each method of the primary questions."""
NARROW: Final = ("gptq(scales='importance')", "rtn(scales='importance')", "awq")
"""Those of four bits that are held against one another where the use is narrow."""
KINDRED: Final = {**OWN, "collection": "pile"}
"""By domain the set of its kind: the Pile, which the second model lacks, is one here."""
SLOW: Final = {"alps": "0.6", "evop(generations=8)": "blocks 0.2"}
"""What takes minutes, and ran with four sets."""
BESIDE: Final = {method: STRONG[method] for method in ("sparsegpt", "refined", "short_gpt")}
"""What that is held against."""
WITHOUT: Final = ("0.4", "w4g64", "Q3_K_M")
"""At which of these targets something was compressed without data."""


def at(targets: Mapping[str, str]) -> Callable[[Cell | Sensitivity], bool]:
    """Whether something is of one of these methods at its target."""
    return lambda found: targets.get(found.method) == found.target


def ranks(results: Results) -> Iterator[str]:
    """Rows: how far a method's stronger target says which set is best at the milder one.

    The rank correlation is of all sets on all domains, each domain's ranks by themselves; then on
    how many domains the same set is best; and how much higher the divergence at the milder target
    is than with its best set, with the set that is best at the stronger one: mean of the domains.
    """
    yield "| method | rank correlation | same set is best | lost by the stronger target's best |"
    yield "| --- | ---: | ---: | ---: |"
    for method, target in MILDER.items():
        strong, mild = (
            divergences(results, ("smollm2", method, of)) for of in (STRONG[method], target)
        )
        names = [name for name in strong if name != CONTROL]
        a, b = by_domain(strong, names), by_domain(mild, names)
        lost = b[np.arange(len(b)), a.argmin(1)] - b.min(1)
        yield f"| `{method}` | {alike(a, b)} | {float(lost.mean()):.3f} |"


def of_its_kind(results: Results) -> Iterator[str]:
    """Rows: the mean divergence on each domain at four bits, calibrated on text of its kind
    (`KINDRED`), with the methods of `NARROW`.

    Last what the mixture gives the one that asks least of its text; bold the lowest.
    """
    each = {method: divergences(results, ("smollm2", method, MILDER[method])) for method in NARROW}
    yield f"| domain | calibrated on | {' | '.join(f'`{method}`' for method in NARROW)} | `{NARROW[-1]}`, mixture |"
    yield f"| --- | --- |{' ---: |' * (len(NARROW) + 1)}"
    for name, source in DOMAINS.items():
        values = [
            *(of[KINDRED[name]][source] for of in each.values()),
            each[NARROW[-1]][MIXTURE][source],
        ]
        yield f"| {name} | {SETS[KINDRED[name]]} | {' | '.join(f'**{of:.3f}**' if of == min(values) else f'{of:.3f}' for of in values)} |"


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    with Store(STORE, create=False) as store:
        results = read(store)
    four = {cell.data for cell in results.cells if at(SLOW)(cell)}
    two = on_domains(
        results, lambda cell: cell.method == "none" or at(MILDER)(cell) or at(STRONG)(cell)
    )
    slow = on_domains(
        results,
        lambda cell: (
            cell.method == "none" or (cell.data in four and (at(SLOW)(cell) or at(BESIDE)(cell)))
        ),
    )
    new = on_domains(
        results, lambda cell: at(MILDER)(cell) or (not cell.data and cell.target in WITHOUT)
    )
    found, of_slow = compare(two).sensitivities, compare(slow).sensitivities
    mild = sorted((s for s in found if at(MILDER)(s)), key=lambda s: -(s.share or 0.0))
    made = {
        "shares": shares_table(two, [label_of(s) for s in mild]),
        "both": sensitivity_table(found, smallest_seen(two, found)),
        "slow": sensitivity_table(of_slow, smallest_seen(slow, of_slow)),
        "own": of_its_kind(two),
        "ranks": ranks(two),
        "slow domains": domains_table(of_slow, {**SLOW, **BESIDE}),
        "slow sets": sets_table(slow),
        "sets": sets_table(new),
        "domains": domains_table(found, MILDER),
        "otherwise": otherwise_table(
            STORE,
            replace(
                results,
                cells=tuple(c for c in results.cells if c.method == "none" or at(MILDER)(c)),
            ),
        ),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
