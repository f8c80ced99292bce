"""Does the cross-source error predict the damage? predicted.json against the store that study.yaml
filled: python studies/choosing/compare.py

The damages (rise of the held-out loss); then, for each method, Spearman's correlation, over the
sets, of predicted error and measured damage in each domain, on the mean over domains and on the
worst one, averaged over draws. Intervals are the middle 95 % of 4,000 resamples of the sets.
"""

import json
from collections.abc import Mapping, Sequence
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
    known = {
        run: {m.score.measured: m.score.value for m in scores.values()}
        for run, scores in reading.scores.items()
    }
    (dense,) = [cell for cell in reading.cells if cell.method == "none"]
    cells = [cell for cell in reading.cells if cell.data]
    found: dict[str, dict[int, dict[str, dict[str, float]]]] = {}
    for cell in cells:
        rises = {
            name: value - known[dense.run][name] for name, value in known.get(cell.run, {}).items()
        }
        if cell.measures and len(rises) >= len(cell.measures):
            found.setdefault(cell.method, {}).setdefault(cell.seed, {})[cell.data] = rises
    sets = {cell.data for cell in cells}
    return {
        method: {draw: of for draw, of in draws.items() if of.keys() == sets}
        for method, draws in found.items()
    }


def table(
    of: Mapping[str, Mapping[str, float]], sets: Sequence[str], columns: Sequence[str]
) -> np.ndarray:
    """[set, domain]."""
    return np.array([[of[name][column] for column in columns] for name in sets])


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
    a, b = (rankdata(values, axis=-2) for values in (predicted, measured))
    a, b = a - a.mean(-2, keepdims=True), b - b.mean(-2, keepdims=True)
    with np.errstate(invalid="ignore"):
        return ((a * b).sum(-2) / np.sqrt((a**2).sum(-2) * (b**2).sum(-2))).mean(0)


def interval(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """The middle 95 % over resamples of the sets, [bound, quantity]; resamples of fewer than
    four different sets say nothing.
    """
    chance, chosen = np.random.default_rng(0), list[np.ndarray]()
    while len(chosen) < RESAMPLES:
        resample = chance.integers(predicted.shape[1], size=predicted.shape[1])
        if len(set(resample)) >= 4:
            chosen.append(resample)
    drawn = np.array(chosen)
    return np.nanquantile(
        correlations(predicted[:, drawn], measured[:, drawn]), [0.025, 0.975], axis=0
    )


def found() -> dict[str, Any]:
    """By method: of each set its damage, [mean, error] over draws; where it was predicted, that
    too, and the correlations with their intervals.
    """
    record, said = json.loads((HERE / "predicted.json").read_text()), dict[str, Any]()
    domains = list(next(iter(record["errors"]["wanda"]["0"].values())))
    for method, by_draw in damages().items():
        predictions, sets, draws = (
            record["errors"].get(method, {}),
            list(by_draw[0]),
            sorted(by_draw),
        )
        rises = np.stack([table(by_draw[d], sets, list(map(measured_as, domains))) for d in draws])
        said[method] = {
            "draws": len(draws),
            "damage": {s: _summed(rises[:, i]) for i, s in enumerate(sets)},
        }
        if known := [d for d in draws if str(d) in predictions]:
            predicted = summaries(
                np.stack([table(predictions[str(d)], sets, domains) for d in known])
            )
            there = summaries(rises[[draws.index(d) for d in known]])
            values, bounds = correlations(predicted, there), interval(predicted, there)
            named = zip([*domains, "mean", "worst"], values, bounds.T, strict=True)
            said[method] |= {
                "predicted": len(known),
                "correlation": {n: [float(x) for x in (v, *b)] for n, v, b in named},
            }
            said[method]["errors"] = {
                s: float(predicted[:, i, : len(domains)].mean()) for i, s in enumerate(sets)
            }
    return said


def tables(said: Mapping[str, Any]) -> list[str]:
    """Two tables in Markdown: the damages of both methods, and the correlations of what was
    predicted.
    """
    sets = sorted(
        said["wanda"]["damage"], key=lambda name: said["wanda"]["damage"][name]["mean"][0]
    )
    heads = [
        f"{method}: {column}"
        for method in said
        for column in (
            "mean",
            "worst of five",
            *(["predicted"] if "errors" in said[method] else []),
        )
    ]
    first = [f"| calibrated on | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for name in sets:
        first.append(
            f"| `{name}` | {' | '.join(cell for of in said.values() for cell in _cells(of, name))} "
            "|"
        )
    told = {method: of for method, of in said.items() if "correlation" in of}
    second = [
        f"| correlation over sets | {' | '.join(_heads(told))} |",
        f"| --- |{' --- |' * len(told)}",
    ]
    for name in next(iter(told.values()))["correlation"]:
        each = [of["correlation"][name] for of in told.values()]
        second.append(
            f"| {name} | "
            f"{' | '.join(f'{v:+.2f} ({low:+.2f} to {high:+.2f})' for v, low, high in each)} |"
        )
    return ["\n".join(first), "\n".join(second)]


def _cells(of: Mapping[str, Any], name: str) -> list[str]:
    """What stands of a set below one method."""
    found: list[str] = []
    for key in ("mean", "worst own"):
        value, error = of["damage"][name][key]
        mark = "**" if value == min(row[key][0] for row in of["damage"].values()) else ""
        found.append(f"{mark}{value:.3f}{mark} ± {error:.3f}")
    return found + ([f"{of['errors'][name]:.4f}"] if "errors" in of else [])


def _heads(said: Mapping[str, Any]) -> list[str]:
    return [
        f"{method}, {of['predicted']} draw{'s' if of['predicted'] > 1 else ''}"
        for method, of in said.items()
    ]


def _mean(values: np.ndarray) -> list[float]:
    """The mean over draws and its standard error."""
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


def _summed(rises: np.ndarray) -> dict[str, list[float]]:
    """Over all domains, and the worst of those that are sources."""
    return {"mean": _mean(rises.mean(1)), "worst own": _mean(rises[:, :OWN].max(1))}


if __name__ == "__main__":
    print("\n\n".join(tables(found())))
