"""The tables of docs/findings/second-model.md, made of the stores beside this file: python -m
studies.sensitivity.second [--write]

As in tables.py. Where both models stand beside each other, SmolLM2 has only the methods and sets
that Gemma has.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from studies.pages import write_or_print
from studies.sensitivity import tables as first
from studies.sensitivity.tables import (
    DOMAINS,
    HERE,
    MIXTURE,
    MODELS,
    alike,
    by_domain,
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
from calibrant.results import Store

PAGE: Final = first.PAGE.with_name("second-model.md")
STORES: Final = {model: HERE / model for model in MODELS}
STRONG: Final = {
    m: first.STRONG[m]
    for m in (
        "sparsegpt",
        "gptq(scales='importance')",
        "wanda",
        "rtn(scales='importance')",
        "awq",
        "llama_cpp",
    )
}
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
    return on_domains(
        together, lambda cell: cell.data in common and (cell.method, cell.target) in targets
    )


def kinds(found: Mapping[str, Sequence[Sensitivity]]) -> Iterator[str]:
    """Rows: by how much the share by domain is larger with the methods that fit weights than
    with those that weigh, by model.
    """
    yield "| model | larger by |"
    yield "| --- | ---: |"
    for model, of in found.items():
        more = fitted_or_weighed({(s.method, s.target): s for s in of}, STRONG)
        yield f"| {MODELS[model]} | {in_per_cent(more)} |"


def carried(results: Results) -> Iterator[str]:
    """Rows: by method, how far the first model's records say which set to take for the second.

    The rank correlation is of all sets on all domains, each domain's ranks by themselves; behind it
    on how many domains the same set is best. What follows is how much higher the second model's
    divergence is than with its own best set, mean of the domains: with the set that is best on the
    domain for the first model, with text of the domain's kind (`OWN`), with the set that is best
    for the first model on the mean of the domains, with C4, with the mixture, and with the mean of
    all sets.
    """
    heads = [
        "rank correlation",
        "same set is best",
        "SmolLM2's best by domain",
        "text of its kind",
        "SmolLM2's best of all",
    ]
    heads += ["always C4", "always the mixture", "any of them"]
    yield f"| method | {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * len(heads)}"
    for method, target in STRONG.items():
        one, other = (divergences(results, (model, method, target)) for model in MODELS)
        names = list(one)
        a, b = by_domain(one, names), by_domain(other, names)
        rows, own = np.arange(len(a)), [names.index(OWN[name]) for name in DOMAINS]
        chosen = [
            b[rows, a.argmin(1)],
            b[rows, own],
            b[:, a.mean(0).argmin()],
            b[:, names.index("c4")],
            b[:, names.index(MIXTURE)],
            b.mean(1),
        ]
        lost = [f"{float((of - b.min(1)).mean()):.3f}" for of in chosen]
        yield f"| `{method}` | {alike(a, b)} | {' | '.join(lost)} |"


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    results = both()
    by_model = {
        model: replace(results, cells=tuple(c for c in results.cells if c.model == model))
        for model in MODELS
    }
    found = {model: compare(of).sensitivities for model, of in by_model.items()}
    seen = {
        label: least
        for model, of in found.items()
        for label, least in smallest_seen(by_model[model], of).items()
    }
    second = list(MODELS)[-1]
    asked = list(planned(found[second], STRONG, by_model[second]))
    assert len(asked) == 2 + PLANNED
    order = sorted(found[second], key=lambda s: -(s.share or 0.0))
    made: dict[str, Iterable[str]] = {
        "shares": shares_table(
            results,
            [(model, s.method, s.target) for s in order for model in MODELS],
            ("c4", "wikipedia"),
        ),
        "both": sensitivity_table([s for of in found.values() for s in of], seen),
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
