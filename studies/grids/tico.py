"""How much of what GPTQ loses does rotation save, under another tool's setting?

    CALIBRANT_DATA=... python -m studies.grids.tico           # `--tables` prints what is there

TICO (Samsung/TICO, pull request 761) reports on SmolLM2-135M-Instruct, on the whole test set of
WikiText-2, cut every 2,048 tokens: perplexity 17.38, with GPTQ 22.39, and 19.70 with rotation.
Rotation saves 54 % of the rise there. Here it is repeated with our `gptq` and our rotation.

As there: four bits, a scale and a zero point for each row, ranges by least error, the largest
inputs first, windows of 2,048 tokens of the training set. Not as there: the model is dequantized
from Q4_1; 128 windows in place of 256; bfloat16 in place of float32; and the head, the embedding
and inputs aren't rounded. There the head has four bits, the embedding eight, and inputs sixteen.
One draw. Inputs in their natural order, our default, stand beside it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from studies.arms import arm, run, table_head, table_row

from calibrant import Study

HERE: Final = Path(__file__).parent / "tico"
METHOD: Final = "gptq(order='activation', scales='mse')"
NATURAL: Final = "gptq(scales='mse')"
MEASURED: Final = "perplexity(source=wikitext, length=2048, tokens=400000)"
"""More tokens than the test set has: all of it."""
SHARED: Final[dict[str, Any]] = {
    "models": "smollm2",
    "data": "wikitext",
    "targets": "w4a",
    "samples": 128,
    "length": 2048,
    "evaluate": MEASURED,
    "dtype": "bfloat16",
    "masks": False,
    "edits_gb": 0,
}
STUDIES: Final = {
    "plain": Study(methods=[METHOD, NATURAL], **SHARED),
    "rotated": Study(methods=METHOD, transform="rotate", **SHARED),
}
THEIRS: Final = {"dense": 17.38, "plain": 22.39, "rotated": 19.70}
"""TICO's perplexities."""


def perplexity(folder: str, method: str) -> float:
    """The perplexity of one run."""
    (draws,) = arm(HERE / folder, method=method).values()
    (measurement,) = draws
    return measurement.score.facts["perplexity"]


def perplexities() -> dict[str, float]:
    """The perplexity of the dense model, and of both rounded ones."""
    return {
        "dense": perplexity("plain", "none"),
        "plain": perplexity("plain", METHOD),
        "rotated": perplexity("rotated", METHOD),
    }


def saved(found: dict[str, float]) -> float:
    """The share of the rise that rotation saves."""
    rise = found["plain"] - found["dense"]
    return (found["plain"] - found["rotated"]) / rise


def rows() -> Iterator[str]:
    """Both settings in Markdown."""
    yield from table_head(["setting"], ["dense", "GPTQ", "rotation, GPTQ", "of the rise saved"])
    for name, found in (("TICO", THEIRS), ("here", perplexities())):
        cells = [f"{found[column]:.2f}" for column in ("dense", "plain", "rotated")]
        yield table_row([name, *cells, f"{saved(found):.0%}"])
    natural = f"{perplexity('plain', NATURAL):.2f}"
    yield table_row(["here, inputs in their natural order", "", natural, "", ""])


def tables() -> Iterator[str]:
    """The table that the page has."""
    yield "\n".join(rows())


if __name__ == "__main__":
    run(STUDIES, HERE, tables)
