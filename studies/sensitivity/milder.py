"""The tables of docs/findings/milder.md, made of the store beside this file: python -m
studies.sensitivity.milder [--write]

As in tables.py: the milder targets of the same study beside the stronger ones, and `alps` and EvoP,
which have only four of the sets.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from studies.arms import bold_if, table_head, table_row
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
    by_share,
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
    yield from table_head(
        ["method"],
        ["rank correlation", "same set is best", "lost by the stronger target's best"],
    )
    for method, target in MILDER.items():
        strong = divergences(results, ("smollm2", method, STRONG[method]))
        mild = divergences(results, ("smollm2", method, target))
        sets = [data for data in strong if data != CONTROL]
        known, asked = by_domain(strong, sets), by_domain(mild, sets)
        domains = np.arange(len(asked))
        lost = asked[domains, known.argmin(1)] - asked.min(1)
        yield table_row([f"`{method}`", alike(known, asked), f"{float(lost.mean()):.3f}"])


def of_its_kind(results: Results) -> Iterator[str]:
    """Rows: the mean divergence on each domain at four bits, calibrated on text of its kind
    (`KINDRED`), with the methods of `NARROW`.

    Last what the mixture gives the one that asks least of its text; bold the lowest.
    """
    by_method = {
        method: divergences(results, ("smollm2", method, MILDER[method])) for method in NARROW
    }
    least_asking = NARROW[-1]
    methods = [f"`{method}`" for method in NARROW]
    yield from table_head(["domain", "calibrated on"], [*methods, f"`{least_asking}`, mixture"])
    for domain, source in DOMAINS.items():
        kindred = KINDRED[domain]
        values = [found[kindred][source] for found in by_method.values()]
        values.append(by_method[least_asking][MIXTURE][source])
        least = min(values)
        told = [bold_if(value == least, f"{value:.3f}") for value in values]
        yield table_row([domain, SETS[kindred], *told])


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    with Store(STORE, create=False) as store:
        results = read(store)
    sets_of_slow = {cell.data for cell in results.cells if at(SLOW)(cell)}

    def is_dense_or_milder(cell: Cell) -> bool:
        return cell.method == "none" or at(MILDER)(cell)

    def is_of_two_targets(cell: Cell) -> bool:
        return is_dense_or_milder(cell) or at(STRONG)(cell)

    def is_beside_slow(cell: Cell) -> bool:
        if cell.method == "none":
            return True
        return cell.data in sets_of_slow and (at(SLOW)(cell) or at(BESIDE)(cell))

    def is_new(cell: Cell) -> bool:
        without_data = not cell.data and cell.target in WITHOUT
        return at(MILDER)(cell) or without_data

    two = on_domains(results, is_of_two_targets)
    slow = on_domains(results, is_beside_slow)
    new = on_domains(results, is_new)
    milder = tuple(cell for cell in results.cells if is_dense_or_milder(cell))
    found, of_slow = compare(two).sensitivities, compare(slow).sensitivities
    labels = [label_of(one) for one in by_share(found) if at(MILDER)(one)]
    made = {
        "shares": shares_table(two, labels),
        "both": sensitivity_table(found, smallest_seen(two, found)),
        "slow": sensitivity_table(of_slow, smallest_seen(slow, of_slow)),
        "own": of_its_kind(two),
        "ranks": ranks(two),
        "slow domains": domains_table(of_slow, {**SLOW, **BESIDE}),
        "slow sets": sets_table(slow),
        "sets": sets_table(new),
        "domains": domains_table(found, MILDER),
        "otherwise": otherwise_table(STORE, replace(results, cells=milder)),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
