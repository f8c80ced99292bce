"""The tables of docs/findings/second-model.md, made of the stores beside this file: python -m
studies.sensitivity.second [--write]

As in tables.py. Where both models stand beside each other, SmolLM2 has only the methods and sets
that Gemma has.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from studies.arms import table_head, table_row
from studies.pages import write_or_print
from studies.sensitivity import tables as first
from studies.sensitivity.tables import (
    DOMAINS,
    HERE,
    MIXTURE,
    MODELS,
    Label,
    alike,
    by_domain,
    by_share,
    divergences,
    domains_table,
    fitted_or_weighed,
    in_per_cent,
    on_domains,
    otherwise_table,
    planned,
    sensitivity_table,
    sets_table,
    shares_table,
    smallest_seen,
)

from calibrant.lab.stats import Results, Sensitivity, compare, read
from calibrant.results import Cell, Store

PAGE: Final = first.PAGE.with_name("second-model.md")
STORES: Final = {model: HERE / model for model in MODELS}
METHODS: Final = (
    "sparsegpt",
    "gptq(scales='importance')",
    "wanda",
    "rtn(scales='importance')",
    "awq",
    "llama_cpp",
)
STRONG: Final = {method: first.STRONG[method] for method in METHODS}
PLANNED: Final = 11
"""How many primary questions the second model's file asks."""
OWN: Final = {
    "web": "c4",
    "encyclopedia": "wikipedia",
    "collection": "c4",
    "code": "python_code",
    "arithmetic": "gsm8k:icl",
    "passages": "c4",
}
"""Of each domain the set of its kind; C4 where there is none."""


def both() -> Results:
    """What both studies found, with the methods, targets and sets that both have; what else a
    store says is the first one's.
    """
    each: dict[str, Results] = {}
    for model, folder in STORES.items():
        with Store(folder, create=False) as store:
            each[model] = read(store)
    one, other = each.values()
    common = {cell.data for cell in one.cells} & {cell.data for cell in other.cells}
    targets = {(cell.method, cell.target) for cell in other.cells}
    together = replace(
        one,
        cells=(*one.cells, *other.cells),
        records={**one.records, **other.records},
        scores={**one.scores, **other.scores},
        items={**one.items, **other.items},
    )

    def is_in_both(cell: Cell) -> bool:
        return cell.data in common and (cell.method, cell.target) in targets

    return on_domains(together, is_in_both)


def kinds(found: Mapping[str, Sequence[Sensitivity]]) -> Iterator[str]:
    """Rows: by how much the share by domain is larger with the methods that fit weights than
    with those that weigh, by model.
    """
    yield from table_head(["model"], ["larger by"])
    for model, sensitivities in found.items():
        by_method = {(one.method, one.target): one for one in sensitivities}
        more = fitted_or_weighed(by_method, STRONG)
        yield table_row([MODELS[model], in_per_cent(more)])


def carried(results: Results) -> Iterator[str]:
    """Rows: by method, how far the first model's records say which set to take for the second.

    The rank correlation is of all sets on all domains, each domain's ranks by themselves; behind it
    on how many domains the same set is best. What follows is how much higher the second model's
    divergence is than with its own best set, mean of the domains: with the set that is best on the
    domain for the first model, with text of the domain's kind (`OWN`), with the set that is best
    for the first model on the mean of the domains, with C4, with the mixture, and with the mean of
    all sets.
    """
    yield from table_head(
        ["method"],
        [
            "rank correlation",
            "same set is best",
            "SmolLM2's best by domain",
            "text of its kind",
            "SmolLM2's best of all",
            "always C4",
            "always the mixture",
            "any of them",
        ],
    )
    for method, target in STRONG.items():
        one, other = (divergences(results, (model, method, target)) for model in MODELS)
        sets = list(one)
        known, asked = by_domain(one, sets), by_domain(other, sets)
        domains = np.arange(len(asked))
        of_its_kind = [sets.index(OWN[domain]) for domain in DOMAINS]
        chosen = [
            asked[domains, known.argmin(1)],
            asked[domains, of_its_kind],
            asked[:, known.mean(0).argmin()],
            asked[:, sets.index("c4")],
            asked[:, sets.index(MIXTURE)],
            asked.mean(1),
        ]
        least = asked.min(1)
        lost = [f"{float((divergence - least).mean()):.3f}" for divergence in chosen]
        yield table_row([f"`{method}`", alike(known, asked), *lost])


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    results = both()
    by_model: dict[str, Results] = {}
    found: dict[str, Sequence[Sensitivity]] = {}
    together: list[Sensitivity] = []
    seen: dict[Label, float] = {}
    for model in MODELS:
        cells = [cell for cell in results.cells if cell.model == model]
        by_model[model] = replace(results, cells=tuple(cells))
        found[model] = compare(by_model[model]).sensitivities
        together += found[model]
        seen |= smallest_seen(by_model[model], found[model])
    *_, second = MODELS
    asked = list(planned(found[second], STRONG, by_model[second]))
    assert len(asked) == 2 + PLANNED
    labels: list[Label] = []
    for sensitivity in by_share(found[second]):
        labels += [(model, sensitivity.method, sensitivity.target) for model in MODELS]
    made: dict[str, Iterable[str]] = {
        "shares": shares_table(results, labels, ("c4", "wikipedia")),
        "both": sensitivity_table(together, seen),
        "planned": asked,
        "kinds": kinds(found),
        "sets": sets_table(results),
        "carried": carried(results),
        "domains": domains_table(found[second], STRONG),
        "otherwise": otherwise_table(STORES[second], by_model[second]),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
