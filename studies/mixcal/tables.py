"""The tables of docs/findings/mixing.md, made of the store beside this file: python -m studies.mixcal.tables [--write]

Losses are nats per token, on rows that no draw calibrates on.
"""

import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from studies.arms import Measured, named, planned, with_interval, with_range
from studies.pages import write_or_print

from calibrant.compare import contrast, draws
from calibrant.store import Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/mixing.md"
STORE: Final = HERE / "sweep"
MODELS: Final = {"smollm2": "SmolLM2", "gemma3-270m": "Gemma"}
PAIRS: Final = {"arithmetic": ("gsm8k:cot", "c4"), "code": ("python_code", "wikipedia")}
"""The domain's set and the general one of each pair."""
POOLED: Final = "half of each as samples"


class Way(NamedTuple):
    """What the draws of one way to mix a pair gave."""

    model: str
    method: str
    pair: str
    share: str
    measured: Measured

    @property
    def texts(self) -> list[str]:
        """What was measured on the domain and on the general text."""
        return named(self.measured, [re.split(r"[ :(]", data)[0] for data in PAIRS[self.pair]])

    @property
    def losses(self) -> list[list[float]]:
        """What the draws gave over both texts, on the domain and on the general text."""
        each = [[m.score.value for m in self.measured[name]] for name in self.texts]
        return [[statistics.mean(of) for of in zip(*each, strict=True)], *each]


def ways() -> list[Way]:
    """Every way of which all draws are there, from the general set alone to the domain's alone."""
    found: list[Way] = []
    with Store(STORE, create=False) as store:
        cells = [cell for cell in store.cells() if cell.method != "none"]
        for model, method, data in dict.fromkeys((c.model, c.method, c.data) for c in cells):
            if all(c.run for c in cells if (c.model, c.method, c.data) == (model, method, data)):
                measured = draws(store, model=model, method=method, data=data)
                found += [Way(model, method, pair, share, measured) for pair in PAIRS if (share := _share(data, *PAIRS[pair]))]
    return sorted(found, key=lambda way: (list(MODELS).index(way.model), way.method == "sparsegpt", way.share == POOLED))


def _share(data: str, domain: str, general: str) -> str:
    """The domain's share of the statistics; "" for a set that isn't of this pair."""
    if data in (domain, general):
        return "1" if data == domain else "0"
    if domain not in data or general not in data:
        return ""
    weight = re.search(r"weight=([\d.]+)", data)
    return weight[1] if weight else POOLED


def curves(every: Iterable[Way], pair: str) -> Iterator[str]:
    """Rows: the losses on the domain and the general text by share; bold the least of a column with a method, pooled samples left out."""
    yield "| model | method | the domain's share | both | domain | general |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    chosen = sorted((way for way in every if way.pair == pair), key=lambda way: (list(MODELS).index(way.model), way.method != "wanda"))
    for model, method in dict.fromkeys((way.model, way.method) for way in chosen):
        rows = {way.share: way.losses for way in chosen if (way.model, way.method) == (model, method)}
        means = {share: list(map(statistics.mean, of)) for share, of in rows.items()}
        for share in sorted(rows, key=lambda share: (share == POOLED, share)):
            least = [min(of[at] for other, of in means.items() if other != POOLED) for at in range(3)]
            cells = [
                f"**{with_range(of)}**" if mean == low and share != POOLED else with_range(of)
                for of, mean, low in zip(rows[share], means[share], least, strict=True)
            ]
            yield f"| {MODELS[model]} | `{method}` | {share} | {' | '.join(cells)} |"


def inside(every: Sequence[Way]) -> Iterator[str]:
    """Rows: how much better each mix is over both texts than its ends, and whether significantly better than both; unplanned but for 0.5."""
    yield "| model | method | pair | the domain's share | better than none | better than all | better than both |"
    yield "| --- | --- | --- | ---: | ---: | ---: | --- |"
    by = {(way.model, way.method, way.pair, way.share): way for way in every}
    for way in (way for way in every if way.share not in ("0", "1", POOLED)):
        ends = [by.get((way.model, way.method, way.pair, share)) for share in "01"]
        if ends[0] is None or ends[1] is None:
            continue
        found = [contrast({t: end.measured[t] for t in way.texts}, {t: way.measured[t] for t in way.texts}) for end in ends if end is not None]
        better = (
            "yes"
            if all(e.value > 0 and e.significant(comparisons=2) for e in found)
            else "no"
            if any(e.value <= 0 for e in found)
            else "not significantly"
        )
        yield f"| {MODELS[way.model]} | `{way.method}` | {way.pair} | {way.share} | {' | '.join(map(with_interval, found))} | {better} |"


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name, of the store if it is there."""
    if not STORE.is_dir():
        return {}
    every = ways()
    made: dict[str, Iterable[str]] = {"planned": planned(STORE), "inside": inside(every)}
    made |= {pair: curves(every, pair) for pair in PAIRS}
    return {name: "\n".join(rows) for name, rows in made.items()}


if __name__ == "__main__":
    write_or_print(PAGE, tables())
