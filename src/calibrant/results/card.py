"""The card of a published store: with it the folder is a data set of the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from calibrant.results.published import CELLS, ITEMS, MATRICES, RUNS, SCORES

CARD: Final = "README.md"
_SIGNATURE: Final = "<!-- written by calibrant store pack -->"

_CARD: Final = """---
pretty_name: Results of calibrant
tags:
- calibrant
- model-compression
configs:
- config_name: scores
  data_files: {scores_table}
  default: true
- config_name: runs
  data_files: {runs_table}
- config_name: matrices
  data_files: {matrices_table}
- config_name: items
  data_files: {items_table}
- config_name: cells
  data_files: {cells_table}
---
{signature}

# Results of calibrant

{runs:,} runs with {measurements:,} measurements of {items:,} items, packed by `calibrant store pack`.
`calibrant report FOLDER` shows what they say. `calibrant store verify FOLDER` derives every hash again.

- `{runs_table}` has a row for each run: which model was compressed, with which calibration set, method
  and target. `record` is its record in JSON without the matrices, of which other columns repeat
  parts; `matrices` is how many rows it has in `{matrices_table}`, `profile` what the calibration set
  says, `provenance` on what machine and in what time.
- `{matrices_table}` has a row for each matrix of each run, in the order of the runs.
- `{scores_table}` has a row for each measurement of a run: what was measured, and the score with its
  standard error. `score` is the measurement in JSON without these two, of which other columns repeat
  parts.
- `{items_table}` has, in the same row, lists with what each item of that measurement gave: its name,
  value and weight (value / weight is its own score, Σvalue / Σweight the measurement's), and what else
  is known of it. No number is there twice: `layout` says for each column where it comes from.
- `{cells_table}` has a row for each cell of the study's grid. It names runs and scores by their rows.

```python
from datasets import load_dataset

scores = load_dataset("FOLDER", "scores", split="train")
```

The models: {models}.
"""


def card_of(runs: int, measurements: int, items: int, models: Sequence[str]) -> str:
    """Return the card of a published store with so many of each, of models by their names."""
    names = ", ".join(f"`{name}`" for name in models) or "none"
    return _CARD.format(
        signature=_SIGNATURE,
        runs=runs,
        measurements=measurements,
        items=items,
        models=names,
        runs_table=RUNS,
        matrices_table=MATRICES,
        scores_table=SCORES,
        items_table=ITEMS,
        cells_table=CELLS,
    )


def is_ours(path: Path) -> bool:
    """Return whether the file is a card that `pack` wrote, and no page of the user's."""
    return path.is_file() and _SIGNATURE in path.read_text(encoding="utf-8", errors="replace")
