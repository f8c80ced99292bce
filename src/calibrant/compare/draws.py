"""What the draws of one calibration set gave, out of a store: the sides of a `contrast`, for whoever compares by hand. No torch here."""

from dataclasses import fields
from typing import Final

from calibrant.compare.crossed import Draws
from calibrant.errors import DataError, SpecError
from calibrant.store import Cell, Store

LABELS: Final = tuple(f.name for f in fields(Cell) if f.name not in ("run", "measures"))


def draws(store: Store, **labels: str | int) -> dict[str, Draws]:
    """The measurements of the cells with these labels, by what was measured: one a draw, in the order of their seeds.

    `labels` are those of a cell as the study asked for it: `data`, which is empty for the dense model, `method`, `target`, `propagate`, `model`,
    `seed`. What lacks in one of the draws is left out. Raises `SpecError` for another label, and `DataError` where the labels fit no cell, cells
    of more than one set, method or sparsity, or two evaluators that say the same of what they measured.
    """
    if unknown := labels.keys() - set(LABELS):
        raise SpecError(f"a cell has no label {sorted(unknown)[0]!r}; its labels are {', '.join(LABELS)}", subject=sorted(unknown)[0])
    cells = sorted((c for c in store.cells() if all(getattr(c, name) == value for name, value in labels.items())), key=lambda c: c.seed)
    said = ", ".join(f"{name} {value!r}" for name, value in labels.items()) or "no label"
    several = [name for name in LABELS if name != "seed" and len({getattr(c, name) for c in cells}) > 1]
    if not cells or several:
        problem = f"fits cells that differ in {' and '.join(several)}; say which" if several else "fits no cell of the store"
        raise DataError(f"{said} {problem}", subject=said)
    found: dict[str, Draws] = {}
    for text in cells[0].measures:
        kept = [m for c in cells if text in c.measures and (m := store.measurement(c.run, c.measures[text]))]
        if len(kept) == len(cells) and kept[0].score.measured in found:
            raise DataError(f"two evaluators call what they measured {kept[0].score.measured!r}; compare them one by one", subject=text)
        found |= {kept[0].score.measured: kept} if len(kept) == len(cells) else {}
    return found
