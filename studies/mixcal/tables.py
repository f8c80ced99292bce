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
from calibrant.lab.stats import Estimate, compare, contrast, read
from calibrant.lab.stats.contrasts import Contrast, holm
from calibrant.results import Store

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
        return named(self.measured, [re.split(r"[ :(]", data)[0] for data in PAIRS[self.pair]])

    @property
    def losses(self) -> list[list[float]]:
        """What the draws gave, mean of both texts, on the domain and on the general text."""
        each = [[m.score.value for m in self.measured[name]] for name in self.texts]
        return [[statistics.mean(of) for of in zip(*each, strict=True)], *each]

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
            if share and (measured := complete(store, model=model, method=method, data=data)):
                found[model, method][share] = Way(model, method, pair, share, measured)
    return {label: group for label, group in found.items() if group}


def _share(data: str, pair: str) -> str:
    """The domain's share; "" for a set that isn't of this pair."""
    domain, general = PAIRS[pair]
    if data in (domain, general):
        return "1" if data == domain else "0"
    if domain not in data or general not in data:
        return ""
    weight = re.search(r"weight=([\d.]+)", data)
    return weight[1] if weight else POOLED if data.count("0.5*") == 2 else ""


def curves(pair: str) -> Iterator[str]:
    """Rows: the losses on both texts by share, and which shares are better on both; bold the least
    of a column of statistics with a method.

    Also how much of what the domain's set saves on its own text, against the general set, a share
    saves; nothing where that set saves nothing.
    """
    domain, general = (NAMES[data] for data in PAIRS[pair])
    found = groups(pair)
    yield f"| {_headed(found)} | share of {domain} | mean of both | on {domain} | of the gain | on {general} | better on both |"
    yield f"|{' --- |' * len(_labels(found))} --- | ---: | ---: | ---: | ---: | --- |"
    for label, group in found.items():
        means = {share: list(map(statistics.mean, way.losses)) for share, way in group.items()}
        for share, way in sorted(group.items(), key=lambda item: item[0] == POOLED):
            least = [
                min((of[at] for other, of in means.items() if other != POOLED), default=0.0)
                for at in range(3)
            ]
            marked = zip(way.losses, means[share], least, strict=True)
            cells = [
                f"**{with_range(of)}**" if mean == low and share != POOLED else with_range(of)
                for of, mean, low in marked
            ]
            better = [
                other
                for other, of in means.items()
                if all(a < b for a, b in zip(of[1:], means[share][1:], strict=True))
            ]
            whole = means["0"][1] - means["1"][1] if {"0", "1"} <= means.keys() else 0.0
            brought = f"{(means['0'][1] - means[share][1]) / whole:.0%}" if whole > 0 else ""
            both, own, other = cells
            yield f"| {_told(label, found)} | {share} | {both} | {own} | {brought} | {other} | {', '.join(better)} |"


def untouched() -> Iterator[str]:
    """Rows: the losses of the untouched models."""
    yield f"| model | {' | '.join(NAMES.values())} |"
    yield f"| --- |{' ---: |' * len(NAMES)}"
    with Store(STORE, create=False) as store:
        for model, name in MODELS.items():
            if dense := complete(store, model=model, method="none"):
                each = named(dense, [re.split(r"[ :(]", data)[0] for data in NAMES])
                yield f"| {name} | {' | '.join(f'{dense[measured][0].score.value:.3f}' for measured in each)} |"


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
    found, corrected = groups(pair), better_than_both()
    yield f"| {_headed(found)} | {' | '.join(heads)} |"
    yield f"|{' --- |' * len(_labels(found))} --- | ---: | ---: | ---: | ---: |"
    for label, group in found.items():
        for share, way in sorted(group.items(), key=lambda item: item[0] == POOLED):
            if share in ("0", "1") or not {"0", "1"} <= group.keys():
                continue
            cost = contrast(_of(way, way.texts[1:]), _of(group["0"], way.texts[1:]))
            gains, told = _gains(group, way), _p(corrected.get((*label, pair, share)))
            cells = [
                share,
                *(with_interval(e, False) for e in gains),
                told,
                with_interval(cost, False),
            ]
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
        yield f"| {share} | {' | '.join(map(with_range, way.losses))} | {with_interval(better, False)} |"


def better_than_both() -> Mapping[tuple[str, str, str, str], float | None]:
    """By model, method, pair and share, p that a mix of statistics isn't better than both ends: the
    larger of two, corrected over all of them.

    Each is two-sided, where the question has one side. None where a set has one draw, which says
    nothing of others.
    """
    asked: dict[tuple[str, str, str, str], float | None] = {}
    for pair in PAIRS:
        for (model, method), group in groups(pair).items():
            for way in group.values() if {"0", "1"} <= group.keys() else ():
                if way.mixed:
                    each = [
                        (e.p_value() if e.over_draws else None) if e.value > 0 else 1.0
                        for e in _gains(group, way)
                    ]
                    known = [p for p in each if p is not None]
                    asked[model, method, pair, way.share] = (
                        max(known) if len(known) == len(each) else None
                    )
    family = holm([Contrast("", "", "", (), "", "", "", p=p) for p in asked.values()])
    return {label: of.p_holm for label, of in zip(asked, family, strict=True)}


def _labels(found: Mapping[tuple[str, str], Group]) -> Sequence[str]:
    """What tells the groups apart: the model only where there are several."""
    return ("model", "method") if len({model for model, _ in found}) > 1 else ("method",)


def _headed(found: Mapping[tuple[str, str], Group]) -> str:
    return " | ".join(_labels(found))


def _told(label: tuple[str, str], found: Mapping[tuple[str, str], Group]) -> str:
    model, method = label
    return " | ".join(
        {"model": MODELS[model], "method": f"`{method}`"}[name] for name in _labels(found)
    )


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
    cells = [
        cell
        for cell in results.cells
        if cell.model == "smollm2" and cell.method in ("none", "sparsegpt")
    ]
    own = replace(
        results,
        cells=tuple(
            cell
            for cell in cells
            if cell.method == "none" or _share(cell.data, "arithmetic") not in ("", POOLED)
        ),
    )
    (ranking,) = compare(own).rankings
    named_by_share = [
        replace(entry, name=SHOWN.get(share := _share(entry.name, "arithmetic"), share))
        for entry in ranking.entries
    ]
    measured = named(
        dict.fromkeys(ranking.measured),
        [re.split(r"[ :(]", data)[0] for data in PAIRS["arithmetic"]],
    )
    drawn = pareto(replace(ranking, entries=tuple(named_by_share)), *measured)
    assert drawn is not None
    return drawn


if __name__ == "__main__":
    write_or_print(PAGE, tables())
    if "--write" in sys.argv[1:] and STORE.is_dir():
        draw(picture(), "mixing", PICTURE)
