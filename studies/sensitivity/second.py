"""The tables of docs/findings/second-model.md, made of the stores beside this file: python -m studies.sensitivity.second [--write]

As in tables.py. Where both models stand beside each other, SmolLM2 has only the methods and sets that Gemma has.
"""

import statistics
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
    domains_table,
    fitted_or_weighed,
    planned,
    sensitivity_table,
    sets_table,
    smallest_seen,
)

from calibrant.compare import Results, Sensitivity, compare, read
from calibrant.store import Store

PAGE: Final = first.PAGE.with_name("second-model.md")
STORES: Final = {model: HERE / model for model in MODELS}
STRONG: Final = {m: first.STRONG[m] for m in ("sparsegpt", "gptq(scales='importance')", "wanda", "rtn(scales='importance')", "awq", "llama_cpp")}
PLANNED: Final = 11
"""How many primary questions the second model's file asks."""
OWN: Final = {"web": "c4", "encyclopedia": "wikipedia", "collection": "c4", "code": "python_code", "arithmetic": "gsm8k:icl", "passages": "c4"}
"""Of each domain the set of its kind; C4 where there is none."""


def both() -> Results:
    """What both studies found, with the methods, targets and sets that both have; what else a store says is the first one's."""
    each: dict[str, Results] = {}
    for model, folder in STORES.items():
        with Store(folder, create=False) as store:
            each[model] = read(store)
    one, other = each.values()
    common = {cell.data for cell in one.cells} & {cell.data for cell in other.cells}
    targets = {(cell.method, cell.target) for cell in other.cells}
    cells = [cell for cell in (*one.cells, *other.cells) if cell.data in common and (cell.method, cell.target) in targets]
    return replace(
        one,
        cells=tuple(replace(c, measures={t: i for t, i in c.measures.items() if t.startswith("agreement")}) for c in cells),
        records={**one.records, **other.records},
        scores={**one.scores, **other.scores},
        items={**one.items, **other.items},
    )


def kinds(found: Mapping[str, Sequence[Sensitivity]]) -> Iterator[str]:
    """Rows: by how much the share by domain is larger with the methods that fit weights than with those that weigh, by model."""
    yield "| model | larger by | p, not corrected |"
    yield "| --- | ---: | ---: |"
    for model, of in found.items():
        told, p = fitted_or_weighed({(s.method, s.target): s for s in of}, STRONG)
        yield f"| {MODELS[model]} | {told} | {'' if p is None else f'{p:.1g}'} |"


def carried(results: Results) -> Iterator[str]:
    """Rows: by method, how far the first model's records say which set to take for the second.

    The rank correlation is of all sets on all domains, each domain's ranks by themselves; behind it on how many domains the same set is best.
    What follows is how much higher the second model's divergence is than with its own best set, mean of the domains: with the set that is best on the
    domain for the first model, with text of the domain's kind (`OWN`), with the set that is best for the first model on the mean of the domains, with
    C4, with the mixture, and with the mean of all sets.
    """
    heads = ["rank correlation", "same set is best", "SmolLM2's best by domain", "text of its kind", "SmolLM2's best of all"]
    heads += ["always C4", "always the mixture", "any of them"]
    yield f"| method | {' | '.join(heads)} |"
    yield f"| --- |{' ---: |' * len(heads)}"
    for method in STRONG:
        one, other = (divergences(results, model, method) for model in MODELS)
        names = list(one)
        a, b = (np.array([[of[data][domain] for data in names] for domain in DOMAINS.values()]) for of in (one, other))
        rows, own = np.arange(len(a)), [names.index(OWN[name]) for name in DOMAINS]
        ranks = [np.argsort(np.argsort(of, 1), 1).ravel() for of in (a, b)]
        same = int((a.argmin(1) == b.argmin(1)).sum())
        chosen = [b[rows, a.argmin(1)], b[rows, own], b[:, a.mean(0).argmin()], b[:, names.index("c4")], b[:, names.index(MIXTURE)], b.mean(1)]
        lost = [f"{float((of - b.min(1)).mean()):.3f}" for of in chosen]
        yield f"| `{method}` | {np.corrcoef(*ranks)[0, 1]:+.2f} | {same} of {len(a)} | {' | '.join(lost)} |"


def divergences(results: Results, model: str, method: str) -> Mapping[str, Mapping[str, float]]:
    """The mean divergence of a method's draws by set and by the domain's source."""
    found: dict[str, dict[str, list[float]]] = {}
    for cell in results.cells:
        for text, measurement in cell.measures.items() if (cell.model, cell.method) == (model, method) else ():
            (source,) = (source for source in DOMAINS.values() if f"source='{source}'" in text)
            found.setdefault(cell.data, {}).setdefault(source, []).append(results.scores[cell.run][measurement].score.value)
    return {data: {source: statistics.mean(values) for source, values in of.items()} for data, of in found.items()}


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name."""
    results = both()
    by_model = {model: replace(results, cells=tuple(c for c in results.cells if c.model == model)) for model in MODELS}
    found = {model: compare(of).sensitivities for model, of in by_model.items()}
    seen = {label: least for model, of in found.items() for label, least in smallest_seen(STORES[model], of).items()}
    second = list(MODELS)[-1]
    asked = list(planned(found[second], STRONG, STORES[second]))
    assert len(asked) == 2 + PLANNED
    made: dict[str, Iterable[str]] = {
        "both": sensitivity_table([s for of in found.values() for s in of], seen),
        "planned": asked,
        "kinds": kinds(found),
        "sets": sets_table(results),
        "carried": carried(results),
        "domains": domains_table(found[second], STRONG),
    }
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
