"""Does the cross-source error predict the damage? predicted.json against the store that study.yaml
filled: python studies/choosing/compare.py

The damages (rise of the held-out loss); then, for each method, Spearman's correlation, over the
sets, of predicted error and measured damage in each domain, on the mean over domains and on the
worst one, averaged over draws. Intervals are the middle 95 % of 4,000 resamples of the sets.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from calibrant.data import CalibrationSet
from calibrant.lab.stats import read
from calibrant.results import Store

HERE = Path(__file__).parent
RESAMPLES = 4000
OWN = 5
"""The first domains are those of the sources; the others none of the sets holds."""


def damages() -> dict[str, dict[int, dict[str, dict[str, float]]]]:
    """By method, draw, set and what was measured: nats a token above the dense model. A draw
    that isn't whole is left out.
    """
    reading = read(Store(HERE / "results", create=False), items=False)
    (dense_cell,) = [cell for cell in reading.cells if cell.method == "none"]
    dense: dict[str, float] = {}
    for measurement in reading.scores[dense_cell.run].values():
        dense[measurement.score.measured] = measurement.score.value
    cells = [cell for cell in reading.cells if cell.data]
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for cell in cells:
        rises: dict[str, float] = {}
        for measurement in reading.scores.get(cell.run, {}).values():
            score = measurement.score
            rises[score.measured] = score.value - dense[score.measured]
        if cell.measures and len(rises) >= len(cell.measures):
            found.setdefault(cell.method, {}).setdefault(cell.seed, {})[cell.data] = rises
    sets = {cell.data for cell in cells}
    whole: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for method, by_draw in found.items():
        whole[method] = {draw: of for draw, of in by_draw.items() if of.keys() == sets}
    return whole


def table(
    of: Mapping[str, Mapping[str, float]], sets: Sequence[str], columns: Sequence[str]
) -> np.ndarray:
    """[set, domain]."""
    rows: list[list[float]] = []
    for name in sets:
        rows.append([of[name][column] for column in columns])
    return np.array(rows)


def measured_as(domain: str) -> str:
    """What the score of a domain's loss calls it."""
    (term,) = CalibrationSet(domain).parts
    return f"{term.source}:{term.format}"


def summaries(errors: np.ndarray) -> np.ndarray:
    """[draw, set, domain] with the mean over domains and the worst one behind them."""
    return np.concatenate(
        [errors, errors.mean(2, keepdims=True), errors.max(2, keepdims=True)], axis=2
    )


def correlations(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Spearman's over the last axis but one, averaged over draws: of [draw, …, set, quantity].
    NaN where all sets are the same one.
    """
    a = rankdata(predicted, axis=-2)
    b = rankdata(measured, axis=-2)
    a = a - a.mean(-2, keepdims=True)
    b = b - b.mean(-2, keepdims=True)
    with np.errstate(invalid="ignore"):
        by_draw = (a * b).sum(-2) / np.sqrt((a**2).sum(-2) * (b**2).sum(-2))
        return by_draw.mean(0)


def interval(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """The middle 95 % over resamples of the sets, [bound, quantity]; resamples of fewer than
    four different sets say nothing.
    """
    chance = np.random.default_rng(0)
    sets = predicted.shape[1]
    chosen: list[np.ndarray] = []
    while len(chosen) < RESAMPLES:
        resample = chance.integers(sets, size=sets)
        if len(set(resample)) >= 4:
            chosen.append(resample)
    drawn = np.array(chosen)
    resampled = correlations(predicted[:, drawn], measured[:, drawn])
    return np.nanquantile(resampled, [0.025, 0.975], axis=0)


def found() -> dict[str, Any]:
    """By method: of each set its damage, [mean, error] over draws; where it was predicted, that
    too, and the correlations with their intervals.
    """
    record = json.loads((HERE / "predicted.json").read_text())
    domains = list(record["targets"])
    columns = list(map(measured_as, domains))
    said: dict[str, Any] = {}
    for method, by_draw in damages().items():
        sets = list(by_draw[0])
        draws = sorted(by_draw)
        rises = np.stack([table(by_draw[draw], sets, columns) for draw in draws])
        damage = {name: _summed(rises[:, place]) for place, name in enumerate(sets)}
        said[method] = {"draws": len(draws), "damage": damage}
        predictions = record["errors"].get(method, {})
        known = [draw for draw in draws if str(draw) in predictions]
        if not known:
            continue
        errors = np.stack([table(predictions[str(draw)], sets, domains) for draw in known])
        predicted = summaries(errors)
        measured = summaries(rises[[draws.index(draw) for draw in known]])
        values = correlations(predicted, measured)
        lows, highs = interval(predicted, measured)
        correlation: dict[str, list[float]] = {}
        for place, name in enumerate([*domains, "mean", "worst"]):
            correlation[name] = [float(values[place]), float(lows[place]), float(highs[place])]
        mean_errors = {name: float(errors[:, place].mean()) for place, name in enumerate(sets)}
        said[method] |= {
            "predicted": len(known),
            "correlation": correlation,
            "errors": mean_errors,
        }
    return said


def tables(said: Mapping[str, Any]) -> list[str]:
    """Two tables in Markdown: the damages of both methods, and the correlations of what was
    predicted.
    """
    heads: list[str] = []
    for method, of in said.items():
        heads += [f"{method}: mean", f"{method}: worst of five"]
        if "errors" in of:
            heads.append(f"{method}: predicted")
    first = [f"| calibrated on | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    damage = said["wanda"]["damage"]
    for name in sorted(damage, key=lambda name: damage[name]["mean"][0]):
        cells: list[str] = []
        for of in said.values():
            cells += _cells(of, name)
        first.append(f"| `{name}` | {' | '.join(cells)} |")
    told = {method: of for method, of in said.items() if "correlation" in of}
    second = [
        f"| correlation over sets | {' | '.join(_heads(told))} |",
        f"| --- |{' --- |' * len(told)}",
    ]
    any_method, *_ = told.values()
    for name in any_method["correlation"]:
        cells = []
        for of in told.values():
            value, low, high = of["correlation"][name]
            cells.append(f"{value:+.2f} ({low:+.2f} to {high:+.2f})")
        second.append(f"| {name} | {' | '.join(cells)} |")
    return ["\n".join(first), "\n".join(second)]


def _cells(of: Mapping[str, Any], name: str) -> list[str]:
    """What stands of a set below one method."""
    found: list[str] = []
    for key in ("mean", "worst own"):
        value, error = of["damage"][name][key]
        least = min(row[key][0] for row in of["damage"].values())
        mark = "**" if value == least else ""
        found.append(f"{mark}{value:.3f}{mark} ± {error:.3f}")
    if "errors" in of:
        found.append(f"{of['errors'][name]:.4f}")
    return found


def _heads(said: Mapping[str, Any]) -> Iterator[str]:
    for method, of in said.items():
        draws = of["predicted"]
        yield f"{method}, {draws} draws" if draws > 1 else f"{method}, {draws} draw"


def _mean(values: np.ndarray) -> list[float]:
    """The mean over draws and its standard error."""
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


def _summed(rises: np.ndarray) -> dict[str, list[float]]:
    """Over all domains, and the worst of those that are sources."""
    return {"mean": _mean(rises.mean(1)), "worst own": _mean(rises[:, :OWN].max(1))}


if __name__ == "__main__":
    print("\n\n".join(tables(found())))
