"""The tables of docs/findings/quantization.md, made of the stores beside this file: python -m
studies.grids.tables [--write]

Divergences are nats per token from the untouched model, on text that no draw calibrates on. What
was drawn once has no spread, and its intervals cover other documents only.
"""

import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from studies.arms import Measured, named, with_interval, worse
from studies.grids import tico
from studies.pages import write_or_print

from calibrant.lab.stats import Draws, draws
from calibrant.results import Cell, Store, stored_bits

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
            by_label: dict[tuple[str, str, str], list[Cell]] = {}
            for cell in store.cells():
                if cell.method != "none":
                    by_label.setdefault((cell.target, cell.method, cell.data), []).append(cell)
            for (target, method, data), cells in by_label.items():
                found = draws(store, target=target, method=method, data=data)
                if len(found) < len(KINDS) and data:  # of a set whose second draw lacks, the first
                    found = draws(store, target=target, method=method, data=data, seed=0)
                if len(found) != len(KINDS):
                    continue
                record = store.record(cells[0].run)
                assert record is not None
                self.bits[target, method] = stored_bits(record.weights) or 16.0
                sets = self.of.setdefault((target, method), {})
                sets["" if method in WITHOUT else data] = found

    def matched(self, target: str, method: str) -> Measured | None:
        """Each measure with the set that is made of its kind of text; a method without data has
        but one.
        """
        sets = self.of.get((target, method), {})
        if "" in sets:
            return sets[""]
        if not set(KINDS.values()) <= sets.keys():
            return None
        found: dict[str, Draws] = {}
        for source, data in zip(SOURCES, KINDS.values(), strict=True):
            (name,) = named(sets[data], [source])
            found[name] = sets[data][name]
        return found


def divergence(measured: Measured, source: str) -> tuple[float, float | None]:
    """The mean of the draws, and half of their range; None for one draw."""
    (name,) = named(measured, [source])
    values = [measurement.score.value for measurement in measured[name]]
    half = None
    if len(values) > 1:
        half = (max(values) - min(values)) / 2
    return statistics.mean(values), half


def by_set(results: Results) -> Iterator[str]:
    """Rows: what each method leaves between the model and itself, by the text it was calibrated
    on.
    """
    yield f"| target | method | bits | calibrated on | {' | '.join(KINDS)} |"
    yield f"| --- | --- | ---: | --- |{' ---: |' * len(KINDS)}"
    for (target, method), sets in results.of.items():
        for data, measured in sets.items():
            cells: list[str] = []
            for source, own in zip(SOURCES, KINDS.values(), strict=True):
                mean, half = divergence(measured, source)
                cell = f"{mean:.3f}" if half is None else f"{mean:.3f} ± {half:.3f}"
                cells.append(f"**{cell}**" if own == data else cell)
            bits = results.bits[target, method]
            divergences = " | ".join(cells)
            yield f"| {target} | `{method}` | {bits:.2f} | {data or 'nothing'} | {divergences} |"


def by_order(results: Results) -> Iterator[str]:
    """Rows: by how much the first of a pair is better on the text it was calibrated on, with an
    interval over documents and draws.
    """
    yield f"| target | better | than | {' | '.join(KINDS)} |"
    yield f"| --- | --- | --- |{' ---: |' * len(KINDS)}"
    for target in dict.fromkeys(target for target, _ in results.of):
        for first, second in ORDER:
            less = results.matched(target, first)
            more = results.matched(target, second)
            if less is not None and more is not None:
                cells = [with_interval(worse(more, less, [source])) for source in SOURCES]
                yield f"| {target} | `{first}` | `{second}` | {' | '.join(cells)} |"


def by_choice(results: Results) -> Iterator[str]:
    """Rows: what the choice of the calibration text is worth to a method, relative to the
    divergence with the matching text.
    """
    yield (
        "| target | method | matching text | other text | other over matching "
        "| least and most of six pairs | worst over best set | draws apart |"
    )
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for (target, method), sets in results.of.items():
        if not set(KINDS.values()) <= sets.keys():
            continue
        matching: list[float] = []
        other: list[float] = []
        other_over_matching: list[float] = []
        worst_over_best: list[float] = []
        draws_apart: list[float] = []
        for source, own in zip(SOURCES, KINDS.values(), strict=True):
            means: dict[str, float] = {}
            for data in KINDS.values():
                mean, half = divergence(sets[data], source)
                means[data] = mean
                if half is not None:
                    draws_apart.append(2 * half / mean)
            matching.append(means[own])
            others = [mean for data, mean in means.items() if data != own]
            other += others
            other_over_matching += [mean / means[own] for mean in others]
            worst_over_best.append(max(means.values()) / min(means.values()))
        mean_matching, mean_other = statistics.mean(matching), statistics.mean(other)
        cells = [
            f"{mean_matching:.3f}",
            f"{mean_other:.3f}",
            f"{mean_other / mean_matching:.2f}",
            f"{min(other_over_matching):.2f} to {max(other_over_matching):.2f}",
            f"{statistics.mean(worst_over_best):.2f}",
            f"{statistics.mean(draws_apart):.1%}" if draws_apart else "one draw",
        ]
        yield f"| {target} | `{method}` | {' | '.join(cells)} |"


def by_rotation() -> Iterator[str]:
    """Rows: the first draw of smollm2 with and without rotation, on the text that each was
    calibrated on, and by how much rotation is better.
    """
    heads = [f"{kind}: before, rotated" for kind in KINDS]
    heads += [f"{kind}: better by" for kind in KINDS]
    yield f"| target | method | {' | '.join(heads)} |"
    yield f"| --- | --- |{' ---: |' * len(heads)}"
    with Store(STORES["smollm2"], create=False) as plain, Store(ROTATED, create=False) as rotated:
        cells = [cell for cell in rotated.cells() if cell.method != "none"]
        for target, method in dict.fromkeys((cell.target, cell.method) for cell in cells):
            values: list[str] = []
            differences: list[str] = []
            for source, own in zip(SOURCES, KINDS.values(), strict=True):
                data = "" if method in WITHOUT else own
                before = draws(plain, target=target, method=method, data=data, seed=0)
                after = draws(rotated, target=target, method=method, data=data, seed=0)
                mean_before, _ = divergence(before, source)
                mean_after, _ = divergence(after, source)
                values.append(f"{mean_before:.3f}, {mean_after:.3f}")
                differences.append(with_interval(worse(before, after, [source])))
            yield f"| {target} | `{method}` | {' | '.join(values)} | {' | '.join(differences)} |"


def tables() -> Mapping[str, str]:
    """Each table in Markdown, by model and name; of the models whose stores are there."""
    made: dict[str, str] = {}
    for model, folder in STORES.items():
        if folder.is_dir():
            results = Results(folder)
            made[f"{model} order"] = "\n".join(by_order(results))
            made[f"{model} choice"] = "\n".join(by_choice(results))
            made[f"{model} sets"] = "\n".join(by_set(results))
    made["rotated order"] = "\n".join(by_rotation())
    made["rotated choice"] = "\n".join(by_choice(Results(ROTATED)))
    made["tico"] = "\n".join(tico.rows())
    return made


if __name__ == "__main__":
    write_or_print(PAGE, tables())
