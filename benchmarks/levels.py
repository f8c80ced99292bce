"""How often an interval of `compare` leaves out the truth, by simulation: python
benchmarks/levels.py [--times 20000]

Contrasts whose true value is zero, over every mix of how much items, draws and their interaction
vary, for a set against the dense model, two sets, and a pool of two against one, with 20 and 300
items. For 2, 3, 5 and 10 draws: the worst false positive rate over all of them, and the mean, at a
nominal 5 % and 0.5 %. Beside the form that is used: A + B with Satterthwaite's degrees of freedom
for the whole, and A + B − C without a floor, its degrees of freedom Satterthwaite's too.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

from calibrant.lab.stats.crossed import Spread

CONTRASTS = {
    "a set and the dense model": (1.0,),
    "two sets": (1.0, -1.0),
    "a pool of two and a set": (0.5, 0.5, -1.0),
}
ITEM_SDS, INNER_SDS = (0.0, 0.3, 1.0), (0.0, 0.3, 1.0)
DRAW_SDS = ((0.0, 0.0, 0.0), (0.05, 0.05, 0.05), (0.3, 0.3, 0.3), (1.0, 1.0, 1.0), (1.0, 0.1, 0.1))
LEVELS = (0.05, 0.005)


def squares(
    coefs: Sequence[float],
    sds: tuple[float, tuple[float, ...], float],
    many: int,
    draws: int,
    rng: np.random.Generator,
    times: int,
) -> Any:
    """Estimates, and A, B of each set, C: drawn as what they are, sums of squares of independent
    normals, so that 300 items cost no more than 20.
    """
    item, over, inner = sds
    n = len(coefs)
    c = np.array(coefs)
    # The items' part of a contrast is Σ c·I plus the mean interaction; the draws' part of a set is
    # D_d plus its mean interaction over items.
    per_item = np.sqrt(item**2 * (c**2).sum() + inner**2 * (c**2).sum() / draws)
    items = per_item**2 * rng.chisquare(many - 1, times) / (many - 1) / many
    each = np.array([over[k] ** 2 + inner**2 / many for k in range(n)])
    table = c**2 * each * rng.chisquare(draws - 1, (times, n)) / (draws - 1) / draws
    c_part = (
        c**2
        * inner**2
        * rng.chisquare((many - 1) * (draws - 1), (times, n))
        / ((many - 1) * (draws - 1))
        / (many * draws)
    ).sum(-1)
    true = (
        item**2 * (c**2).sum() / many
        + (c**2 * (np.array(over[:n]) ** 2 / draws + inner**2 / (many * draws))).sum()
    )
    return rng.normal(0, np.sqrt(true), times), items, table, c_part


def forms(items: Any, table: Any, inner: Any, many: int, draws: int, p: float) -> dict[str, Any]:
    """Half the length of the interval, by form."""
    dfs = np.full(table.shape, draws - 1.0)
    ours = Spread.of(items, np.full(items.shape, many - 1.0), table, dfs, inner).half(p)
    total = items + table.sum(-1)
    df = total**2 / (items**2 / (many - 1) + (table**2 / dfs).sum(-1))
    plain = np.sqrt(total) * stdtrit(df, p)
    less = np.maximum(total - inner, 1e-300)
    bare_df = np.maximum(
        less**2
        / (
            items**2 / (many - 1)
            + (table**2 / dfs).sum(-1)
            + inner**2 / ((many - 1) * (draws - 1) * table.shape[-1])
        ),
        1e-3,
    )
    return {"used": ours, "A + B": plain, "A + B - C": np.sqrt(less) * stdtrit(bare_df, p)}


def rates(draws: int, times: int) -> Iterator[dict[str, Any]]:
    """The false positive rate of every form in every mix."""
    rng = np.random.default_rng(draws)
    for (name, coefs), many, item, over, inner in itertools.product(
        CONTRASTS.items(), (20, 300), ITEM_SDS, DRAW_SDS, INNER_SDS
    ):
        if item == inner == max(over) == 0:
            continue
        values, a, b, c = squares(coefs, (item, over, inner), many, draws, rng, times)
        for alpha in LEVELS:
            for form, half in forms(a, b, c, many, draws, 1 - alpha / 2).items():
                rate = float((np.abs(values) > half).mean())
                yield {
                    "contrast": name,
                    "items": many,
                    "sds": [item, over[: len(coefs)], inner],
                    "alpha": alpha,
                    "form": form,
                    "rate": rate,
                }


def main() -> None:
    """Print a line for each form, level and number of draws, then the worst cases as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=20_000)
    asked = parser.parse_args()
    worst: list[dict[str, Any]] = []
    for draws in (2, 3, 5, 10):
        found = list(rates(draws, asked.times))
        for alpha, form in itertools.product(LEVELS, ("used", "A + B", "A + B - C")):
            mine = [f for f in found if f["alpha"] == alpha and f["form"] == form]
            most = max(mine, key=lambda f: f["rate"])
            mean = float(np.mean([f["rate"] for f in mine]))
            print(
                f"{draws:>2} draws, nominal {alpha:.1%}, {form:<9}  worst {most['rate']:.2%}  mean "
                f"{mean:.2%}"
            )
            worst.append({"draws": draws, "mean": mean, **most})
    print(json.dumps({"times": asked.times, "worst": worst}))


if __name__ == "__main__":
    main()
