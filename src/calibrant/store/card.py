"""The card of a packed store: with it the folder is a data set of the Hugging Face hub as it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from calibrant.store.packed import ITEMS_TABLE, RUNS_TABLE, SCORES_TABLE

CARD: Final = "README.md"
_SIGNATURE: Final = "<!-- written by calibrant store pack -->"

_CARD: Final = """---
pretty_name: Results of calibrant
tags:
- calibrant
- model-compression
configs:
- config_name: scores
  data_files: {scores}
  default: true
- config_name: runs
  data_files: {runs}
- config_name: items
  data_files: {items}
---
{signature}

# Results of calibrant

{counts}, packed by `calibrant store pack`. `calibrant report FOLDER` shows what they say, `calibrant store verify FOLDER` derives every hash
again, and `calibrant store unpack FOLDER` gives each result a folder of its own, as it was before.

- `{runs}` has a row for each run: which model was compressed, with which calibration set, method and target. `record` is its record in JSON,
  `weights` what was done to each matrix, `profile` what the calibration set says, `provenance` on what machine and in what time, `sums` the
  SHA-256 sums of these as files.
- `{scores}` has a row for each measurement of a run: what was measured, and the score with its standard error. `score` is all of it in JSON.
- `{items}` has a row for each item of each measurement: its name, value and weight (value / weight is its own score, Σvalue / Σweight the
  measurement's), and what else is known of it. A column that says the same as `value` for a measurement is empty there.

```python
from datasets import load_dataset

scores = load_dataset("FOLDER", "scores", split="train")
```

The models: {models}.
"""


def card_of(runs: int, measurements: int, items: int, models: Sequence[str]) -> str:
    """Return the card of a packed store with so many of each, of models by their names."""
    counts = f"{runs:,} runs with {measurements:,} measurements of {items:,} items"
    names = ", ".join(f"`{name}`" for name in models) or "none"
    return _CARD.format(signature=_SIGNATURE, counts=counts, models=names, runs=RUNS_TABLE, scores=SCORES_TABLE, items=ITEMS_TABLE)


def is_ours(path: Path) -> bool:
    """Return whether the file is a card that `pack` wrote, and no page of the user's."""
    return path.is_file() and _SIGNATURE in path.read_text(encoding="utf-8", errors="replace")
