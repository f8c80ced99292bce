"""The tables of docs/findings/mixing.md, made of the stores beside this file: python -m
studies.mixcal.tables [--write]

With `--write` the page's picture is drawn too; picture.json has its numbers. Losses are nats per
token, on rows that no draw calibrates on.
"""

import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from studies.arms import Measured, complete, named, planned, with_interval, with_range
from studies.pages import draw, write_or_print

from calibrant.lab.report.plots import Plot, pareto
from calibrant.lab.stats import Estimate, RankingEntry, compare, contrast, read
from calibrant.lab.stats.contrasts import Contrast, holm
from calibrant.results import Cell, Store

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/mixing.md"
STORE: Final = HERE / "sweep"
ARRIVAL: Final = HERE / "arrival"
"""Half of each and its ends, walked anew."""
PICTURE: Final = HERE / "picture.json"
MODELS: Final = {"smollm2": "SmolLM2", "gemma3-270m": "Gemma"}
METHODS: Final = ("wanda", "sparsegpt")
PAIRS: Final = {"arithmetic": ("gsm8k:cot", "c4"), "code": ("python_code", "wikipedia")}
"""The domain's set and the general one of each pair."""
NAMES: Final = {
    "gsm8k:cot": "arithmetic",
    "c4": "C4",
    "python_code": "code",
    "wikipedia": "encyclopedia",
}
POOLED: Final = "0.5 pooled"
"""Half of the tokens of each set in the place of half of the statistics of both."""
SHOWN: Final = {"0": "C4 alone", "1": "arithmetic alone"}
"""Shares that have a name of their own in the picture."""


class Way(NamedTuple):
    """What the draws of one way to mix a pair gave; `share` is the domain's."""

    model: str
    method: str
    pair: str
    share: str
    measured: Measured

    @property
    def texts(self) -> list[str]:
        """What is measured on the domain and on the general text."""
        return named(self.measured, map(_source, PAIRS[self.pair]))

    @property
    def losses(self) -> list[list[float]]:
        """What the draws gave, mean of both texts, on the domain and on the general text."""
        by_text: list[list[float]] = []
        for name in self.texts:
            by_text.append([measurement.score.value for measurement in self.measured[name]])
        means = [statistics.mean(draw) for draw in zip(*by_text, strict=True)]
        return [means, *by_text]

    @property
    def mixed(self) -> bool:
        """Whether it is of the statistics of both sets."""
        return self.share not in ("0", "1", POOLED)


Group = Mapping[str, Way]
"""The ways of a model, method and pair, by share."""


def groups(pair: str, folder: Path = STORE) -> Mapping[tuple[str, str], Group]:
    """By model and method every way to mix a pair that is measured whole in a store, from the
    general set alone to the domain's.
    """
    found: dict[tuple[str, str], dict[str, Way]] = {
        (model, method): {} for model in MODELS for method in METHODS
    }
    with Store(folder, create=False) as store:
        asked = {(c.model, c.method, c.data) for c in store.cells() if c.method != "none"}
        for model, method, data in sorted(asked, key=lambda label: _share(label[2], pair)):
            share = _share(data, pair)
            if not share:
                continue
            measured = complete(store, model=model, method=method, data=data)
            if measured:
                found[model, method][share] = Way(model, method, pair, share, measured)
    return {label: group for label, group in found.items() if group}


def _source(data: str) -> str:
    """The source that a set is made of."""
    return re.split(r"[ :(]", data)[0]


def _share(data: str, pair: str) -> str:
    """The domain's share; "" for a set that isn't of this pair."""
    domain, general = PAIRS[pair]
    if data in (domain, general):
        return "1" if data == domain else "0"
    if domain not in data or general not in data:
        return ""
    weight = re.search(r"weight=([\d.]+)", data)
    if weight:
        return weight[1]
    return POOLED if data.count("0.5*") == 2 else ""


def _pooled_last(group: Group) -> list[tuple[str, Way]]:
    return sorted(group.items(), key=lambda item: item[0] == POOLED)


def curves(pair: str) -> Iterator[str]:
    """Rows: the losses on both texts by share, and which shares are better on both; bold the least
    of a column of statistics with a method.

    Also how much of what the domain's set saves on its own text, against the general set, a share
    saves; nothing where that set saves nothing.
    """
    domain, general = (NAMES[data] for data in PAIRS[pair])
    found = groups(pair)
    yield (
        f"| {_headed(found)} | share of {domain} | mean of both | on {domain} | of the gain "
        f"| on {general} | better on both |"
    )
    yield f"|{' --- |' * len(_labels(found))} --- | ---: | ---: | ---: | ---: | --- |"
    for label, group in found.items():
        means = {share: list(map(statistics.mean, way.losses)) for share, way in group.items()}
        of_statistics = [columns for share, columns in means.items() if share != POOLED]
        on_domain = {share: columns[1] for share, columns in means.items()}
        on_general = {share: columns[2] for share, columns in means.items()}
        for share, way in _pooled_last(group):
            cells: list[str] = []
            for column, values in enumerate(way.losses):
                cell = with_range(values)
                if share != POOLED:
                    least = min(columns[column] for columns in of_statistics)
                    if means[share][column] == least:
                        cell = f"**{cell}**"
                cells.append(cell)
            better: list[str] = []
            for other in means:
                if on_domain[other] < on_domain[share] and on_general[other] < on_general[share]:
                    better.append(other)
            gain = _part_of_the_gain(on_domain, share)
            of_both, of_domain, of_general = cells
            losses = f"{of_both} | {of_domain} | {gain} | {of_general}"
            yield f"| {_told(label, found)} | {share} | {losses} | {', '.join(better)} |"


def _part_of_the_gain(on_domain: Mapping[str, float], share: str) -> str:
    """How much of what the domain's set saves on its own text a share saves; nothing where that
    set saves nothing, or an end isn't there.
    """
    if not {"0", "1"} <= on_domain.keys():
        return ""
    whole = on_domain["0"] - on_domain["1"]
    if whole <= 0:
        return ""
    return f"{(on_domain['0'] - on_domain[share]) / whole:.0%}"


def untouched() -> Iterator[str]:
    """Rows: the losses of the untouched models."""
    yield f"| model | {' | '.join(NAMES.values())} |"
    yield f"| --- |{' ---: |' * len(NAMES)}"
    with Store(STORE, create=False) as store:
        for model, name in MODELS.items():
            dense = complete(store, model=model, method="none")
            if dense:
                texts = named(dense, map(_source, NAMES))
                cells = [f"{dense[text][0].score.value:.3f}" for text in texts]
                yield f"| {name} | {' | '.join(cells)} |"


def inside(pair: str) -> Iterator[str]:
    """Rows: by how much each mix of statistics, and the pooled set, is better than its ends on both
    texts; what it costs on the general one.

    p is of the hypothesis that a mix isn't better than both ends; corrected over all mixes of all
    pairs, methods and models (Holm).
    """
    domain, general = (NAMES[data] for data in PAIRS[pair])
    heads = [
        f"share of {domain}",
        f"better than {general}",
        f"better than {domain}",
        "p (Holm)",
        f"cost on {general}",
    ]
    found = groups(pair)
    corrected = better_than_both()
    yield f"| {_headed(found)} | {' | '.join(heads)} |"
    yield f"|{' --- |' * len(_labels(found))} --- | ---: | ---: | ---: | ---: |"
    for label, group in found.items():
        if not {"0", "1"} <= group.keys():
            continue
        for share, way in _pooled_last(group):
            if share in ("0", "1"):
                continue
            gains = [with_interval(gain, False) for gain in _gains(group, way)]
            p = _p(corrected.get((*label, pair, share)))
            _, general_text = way.texts
            cost = contrast(_of(way, [general_text]), _of(group["0"], [general_text]))
            cells = [share, *gains, p, with_interval(cost, False)]
            yield f"| {_told(label, found)} | {' | '.join(cells)} |"


def walked_anew() -> Iterator[str]:
    """Rows: half of arithmetic and C4 and its ends, walked anew as the model is pruned, and how
    much better than one pass that is, on both.
    """
    yield "| share of arithmetic | mean of both | on arithmetic | on C4 | better than in one pass |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    one_pass = groups("arithmetic")["smollm2", "sparsegpt"]
    for share, way in groups("arithmetic", ARRIVAL)["smollm2", "sparsegpt"].items():
        better = contrast(_of(one_pass[share], way.texts), _of(way, way.texts))
        losses = " | ".join(map(with_range, way.losses))
        yield f"| {share} | {losses} | {with_interval(better, False)} |"


def better_than_both() -> Mapping[tuple[str, str, str, str], float | None]:
    """By model, method, pair and share, p that a mix of statistics isn't better than both ends: the
    larger of two, corrected over all of them.

    Each is two-sided, where the question has one side. None where a set has one draw, which says
    nothing of others.
    """
    asked: dict[tuple[str, str, str, str], float | None] = {}
    for pair in PAIRS:
        for (model, method), group in groups(pair).items():
            if not {"0", "1"} <= group.keys():
                continue
            for way in group.values():
                if way.mixed:
                    asked[model, method, pair, way.share] = _larger_p(_gains(group, way))
    family = holm([Contrast("", "", "", (), "", "", "", p=p) for p in asked.values()])
    return {label: of.p_holm for label, of in zip(asked, family, strict=True)}


def _larger_p(gains: Iterable[Estimate]) -> float | None:
    """The larger p of two gains, where what is no gain has 1; None where one isn't known."""
    found: list[float] = []
    for gain in gains:
        p = 1.0
        if gain.value > 0:
            p = gain.p_value() if gain.over_draws else None
        if p is None:
            return None
        found.append(p)
    return max(found)


def _labels(found: Mapping[tuple[str, str], Group]) -> Sequence[str]:
    """What tells the groups apart: the model only where there are several."""
    return ("model", "method") if len({model for model, _ in found}) > 1 else ("method",)


def _headed(found: Mapping[tuple[str, str], Group]) -> str:
    return " | ".join(_labels(found))


def _told(label: tuple[str, str], found: Mapping[tuple[str, str], Group]) -> str:
    model, method = label
    cells = {"model": MODELS[model], "method": f"`{method}`"}
    return " | ".join(cells[name] for name in _labels(found))


def _gains(group: Group, way: Way) -> list[Estimate]:
    """By how much it is better than the general set and than the domain's, on the mean of both
    texts.
    """
    return [contrast(_of(end, way.texts), _of(way, way.texts)) for end in (group["0"], group["1"])]


def _of(way: Way, texts: Sequence[str]) -> Measured:
    return {text: way.measured[text] for text in texts}


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return f"**{p:.2g}**" if p < 0.05 else f"{p:.2g}"


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by name, of the store if it is there."""
    if not STORE.is_dir():
        return {}
    made: dict[str, Iterable[str]] = {"planned": planned(STORE), "untouched": untouched()}
    for pair in PAIRS:
        made |= {pair: curves(pair), f"{pair} inside": inside(pair)}
    if ARRIVAL.is_dir():
        made |= {"walked anew": walked_anew(), "walked anew, planned": planned(ARRIVAL)}
    return {name: "\n".join(rows) for name, rows in made.items()}


def picture() -> Plot:
    """SparseGPT's loss on arithmetic against that on C4, by the domain's share: the front, and
    what is behind it. Without the pooled set.
    """
    with Store(STORE, create=False) as store:
        results = read(store)
    shown: list[Cell] = []
    for cell in results.cells:
        is_dense = cell.method == "none"
        is_share = _share(cell.data, "arithmetic") not in ("", POOLED)
        if cell.model == "smollm2" and (is_dense or (cell.method == "sparsegpt" and is_share)):
            shown.append(cell)
    (ranking,) = compare(replace(results, cells=tuple(shown))).rankings
    entries: list[RankingEntry] = []
    for entry in ranking.entries:
        share = _share(entry.name, "arithmetic")
        entries.append(replace(entry, name=SHOWN.get(share, share)))
    measured = named(dict.fromkeys(ranking.measured), map(_source, PAIRS["arithmetic"]))
    drawn = pareto(replace(ranking, entries=tuple(entries)), *measured)
    assert drawn is not None
    return drawn


if __name__ == "__main__":
    write_or_print(PAGE, tables())
    if "--write" in sys.argv[1:] and STORE.is_dir():
        draw(picture(), "mixing", PICTURE)
