"""The tables of docs/findings/quantization.md, made of the stores beside this file: python -m
studies.grids.tables [--write]

Divergences are nats per token from the untouched model, on text that no draw calibrates on. What
was drawn once has no spread, and its intervals cover other documents only.
"""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from studies.arms import Measured, named, with_interval
from studies.pages import write_or_print

from calibrant.lab.stats import contrast, draws
from calibrant.results import Store, stored_bits

HERE: Final = Path(__file__).parent
PAGE: Final = HERE.parents[1] / "docs/findings/quantization.md"
STORES: Final = {"smollm2": HERE / "smollm2", "gemma3-270m": HERE / "gemma3-270m"}
ROTATED: Final = HERE / "rotated"
KINDS: Final = {"prose": "c4", "code": "python_code", "arithmetic": "gsm8k:cot"}
"""Each kind of text that is measured, and the calibration set that is made of it."""
SOURCES: Final = ("c4", "python_code", "gsm8k")
WITHOUT: Final = (
    "rtn",
    "rtn(scales='mse')",
    "ggml(importance=False)",
    "llama_cpp(importance=False)",
)
"""Methods that look at no data."""
ORDER: Final = (
    ("rtn(scales='importance')", "rtn"),
    ("gptq", "rtn"),
    ("gptq(scales='importance')", "rtn(scales='importance')"),
    ("gptq(scales='importance')", "gptq"),
    ("awq", "rtn"),
    ("rsq", "gptq"),
    ("ggml", "ggml(importance=False)"),
    ("llama_cpp", "llama_cpp(importance=False)"),
)
"""Of each pair the first should be better where it was calibrated on the kind of text that is
measured.
"""


class Results:
    """What one model's store has: by target, method and calibration set (none: `""`) the draws
    of each measure, and the bits a weight takes.
    """

    def __init__(self, folder: Path) -> None:
        self.of: dict[tuple[str, str], dict[str, Measured]] = {}
        self.bits: dict[tuple[str, str], float] = {}
        with Store(folder, create=False) as store:
            for target, method, data in dict.fromkeys(
                (c.target, c.method, c.data) for c in store.cells() if c.method != "none"
            ):
                found = draws(store, target=target, method=method, data=data)
                if len(found) < len(KINDS) and data:  # of a set whose second draw lacks, the first
                    found = draws(store, target=target, method=method, data=data, seed=0)
                if len(found) == len(KINDS):
                    self.of.setdefault((target, method), {})["" if method in WITHOUT else data] = (
                        found
                    )
                    run = next(
                        c.run
                        for c in store.cells()
                        if (c.target, c.method, c.data) == (target, method, data)
                    )
                    self.bits[target, method] = stored_bits(store.record(run).weights) or 16.0

    def matched(self, target: str, method: str) -> Measured | None:
        """Each measure with the set that is made of its kind of text; a method without data has
        but one.
        """
        sets = self.of.get((target, method), {})
        if "" in sets:
            return sets[""]
        if not set(KINDS.values()) <= sets.keys():
            return None
        return {
            name: sets[data][name]
            for source, data in zip(SOURCES, KINDS.values(), strict=True)
            for name in named(sets[data], [source])
        }


def divergence(measured: Measured, source: str) -> tuple[float, float | None]:
    """The mean of the draws, and half of their range; None for one draw."""
    values = [m.score.value for m in measured[named(measured, [source])[0]]]
    return statistics.mean(values), (max(values) - min(values)) / 2 if len(values) > 1 else None


def by_set(results: Results) -> Iterator[str]:
    """Rows: what each method leaves between the model and itself, by the text it was calibrated
    on.
    """
    yield f"| target | method | bits | calibrated on | {' | '.join(KINDS)} |"
    yield f"| --- | --- | ---: | --- |{' ---: |' * len(KINDS)}"
    for (target, method), sets in results.of.items():
        for data, measured in sets.items():
            cells = []
            for source, own in zip(SOURCES, KINDS.values(), strict=True):
                mean, half = divergence(measured, source)
                text = f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"
                cells.append(f"**{text}**" if own == data else text)
            yield f"| {target} | `{method}` | {results.bits[target, method]:.2f} | {data or 'nothing'} | {' | '.join(cells)} |"


def by_order(results: Results) -> Iterator[str]:
    """Rows: by how much the first of a pair is better on the text it was calibrated on, with an
    interval over documents and draws.
    """
    yield f"| target | better | than | {' | '.join(KINDS)} |"
    yield f"| --- | --- | --- |{' ---: |' * len(KINDS)}"
    for target in dict.fromkeys(target for target, _ in results.of):
        for first, second in ORDER:
            sides = results.matched(target, first), results.matched(target, second)
            if sides[0] is not None and sides[1] is not None:
                yield f"| {target} | `{first}` | `{second}` | {' | '.join(_difference(*sides, source) for source in SOURCES)} |"


def _difference(first: Measured, second: Measured, source: str) -> str:
    """How much less the first diverges: bold where an interval of 95 % leaves out zero."""
    (name,) = named(first, [source])
    return with_interval(contrast({name: second[name]}, {name: first[name]}))


def by_choice(results: Results) -> Iterator[str]:
    """Rows: what the choice of the calibration text is worth to a method, relative to the
    divergence with the matching text.
    """
    yield "| target | method | matching text | other text | other over matching | least and most of six pairs | worst over best set | draws apart |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for (target, method), sets in results.of.items():
        if set(KINDS.values()) <= sets.keys():
            table = {
                data: [divergence(sets[data], source)[0] for source in SOURCES]
                for data in KINDS.values()
            }
            own = statistics.mean(table[data][i] for i, data in enumerate(table))
            other = statistics.mean(
                v for i, data in enumerate(table) for j, v in enumerate(table[data]) if i != j
            )
            # Each other text on each measure, over the matching text there.
            ratios: list[float] = []
            for column, matching in enumerate(KINDS.values()):
                for data in table:
                    if data != matching:
                        ratios.append(table[data][column] / table[matching][column])
            spread = statistics.mean(
                max(column) / min(column) for column in zip(*table.values(), strict=True)
            )
            spans = [
                2 * half / mean
                for data in table
                for mean, half in (divergence(sets[data], source) for source in SOURCES)
                if half is not None
            ]
            apart = f"{statistics.mean(spans):.1%}" if spans else "one draw"
            pairs = f"{min(ratios):.2f} to {max(ratios):.2f}"
            losses = f"{own:.3f} | {other:.3f} | {other / own:.2f}"
            yield f"| {target} | `{method}` | {losses} | {pairs} | {spread:.2f} | {apart} |"


def by_rotation() -> Iterator[str]:
    """Rows: the first draw of smollm2 with and without rotation, on the text that each was
    calibrated on, and by how much rotation is better.
    """
    yield f"| target | method | {' | '.join(f'{kind}: before, rotated' for kind in KINDS)} | {' | '.join(f'{kind}: better by' for kind in KINDS)} |"
    yield f"| --- | --- |{' ---: |' * 2 * len(KINDS)}"
    with Store(STORES["smollm2"], create=False) as plain, Store(ROTATED, create=False) as rotated:
        for target, method in dict.fromkeys(
            (c.target, c.method) for c in rotated.cells() if c.method != "none"
        ):
            values, differences = list[str](), list[str]()
            for source, data in zip(SOURCES, KINDS.values(), strict=True):
                labels = {
                    "target": target,
                    "method": method,
                    "data": "" if method in WITHOUT else data,
                    "seed": 0,
                }
                before, after = draws(plain, **labels), draws(rotated, **labels)
                values.append(
                    ", ".join(f"{divergence(of, source)[0]:.3f}" for of in (before, after))
                )
                differences.append(_difference(after, before, source))
            yield f"| {target} | `{method}` | {' | '.join(values)} | {' | '.join(differences)} |"


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by model and name; of the models whose stores are there."""
    made: dict[str, str] = {}
    for model, folder in STORES.items():
        if folder.is_dir():
            results = Results(folder)
            for name, rows in (("order", by_order), ("choice", by_choice), ("sets", by_set)):
                made[f"{model} {name}"] = "\n".join(rows(results))
    made["rotated order"], made["rotated choice"] = (
        "\n".join(by_rotation()),
        "\n".join(by_choice(Results(ROTATED))),
    )
    return made


if __name__ == "__main__":
    write_or_print(PAGE, tables())
