"""How much of "in-context examples make better calibration data" is the number of tokens, and how
much are the pads?

    CALIBRANT_DATA=… python -m studies.packing.run

The original study compares 128 windows that hold one question each, padded, with 128 windows full
of questions. This puts the same questions into windows in five ways, for GSM8K and e-SNLI, three
draws each, Wanda at 60 % in SmolLM2-135M-Instruct:

- `equal`: `qa@one` and `qa@many` at the same 8,192 real tokens, no pad counted;
- `windows`: the same 16 windows of 512 for `qa@one` (a few real tokens, no pad counted), for the
  original's padded windows (`legacy(of='one')`: pads attended to, and counted in the statistics)
  and for the original's full ones (`legacy`).

Killed and run again, it goes on. Needs a mirror that holds gsm8k, esnli and WikiText.
"""

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from studies.arms import Measured, arm, row, run

from calibrant import Study

HERE = Path(__file__).parent
SOURCES = ("gsm8k", "esnli")
SHARED = {
    "models": "smollm2",
    "methods": ["wanda"],
    "targets": [0.6],
    "seeds": [0, 1, 2],
    "evaluate": [
        f"loss(source='{source}', tokens=8192, length=512)"
        for source in ("gsm8k", "esnli", "wikitext")
    ],
    "length": 512,
    "dtype": "bfloat16",
    "propagate": "dense",
    "masks": False,
}
STUDIES = {
    "equal": Study(
        data=[f"{source}:qa@{packing}" for source in SOURCES for packing in ("one", "many")],
        tokens=8192,
        **SHARED,
    ),
    "windows": Study(
        data=[
            f"{source}:qa@{packing}"
            for source in SOURCES
            for packing in ("one", "legacy(of='one')", "legacy")
        ],
        samples=16,
        **SHARED,
    ),
}


ARMS = {
    "single, 8,192 tokens": ("equal", "{}:single"),
    "icl, 8,192 tokens": ("equal", "{}:icl"),
    "single, 16 windows": ("windows", "{}:single"),
    "legacy single, 16 windows": ("windows", "{}:qa@legacy(of='one')"),
    "legacy icl, 16 windows": ("windows", "{}:qa@legacy"),
}
STEPS = {
    "as published: legacy single - legacy icl": (
        "legacy single, 16 windows",
        "legacy icl, 16 windows",
    ),
    "the pads: legacy single - single, same windows": (
        "legacy single, 16 windows",
        "single, 16 windows",
    ),
    "the tokens: single, 16 windows - single, 8,192 tokens": (
        "single, 16 windows",
        "single, 8,192 tokens",
    ),
    "the packing: single - icl, both 8,192 tokens": ("single, 8,192 tokens", "icl, 8,192 tokens"),
    "the rest: icl - legacy icl": ("icl, 8,192 tokens", "legacy icl, 16 windows"),
}


def tables() -> Iterator[str]:
    """In Markdown: of each source's arms, how much worse than the dense model they are; then the
    steps.
    """
    dense = arm(HERE / "equal", data="")
    for source in SOURCES:
        arms = arms_of(source)
        rows = [row(name, found, dense, dense, len(arms)) for name, found in arms.items()]
        yield table(f"calibrated on {source}", rows, dense)
    yield from steps()


def steps() -> Iterator[str]:
    """For each source in Markdown, the steps from the published comparison to an equal one; bold
    as in `markdown_row`.
    """
    for source in SOURCES:
        arms = arms_of(source)
        texts = list(arms["single, 8,192 tokens"])
        rows: list[str] = []
        for step, (first, second) in STEPS.items():
            rows.append(row(step, arms[first], arms[second], texts, len(STEPS)))
        yield table(f"step ({source})", rows, texts)


def arms_of(source: str) -> dict[str, Measured]:
    """What each arm of a source gave."""
    found: dict[str, Measured] = {}
    for name, (folder, data) in ARMS.items():
        found[name] = arm(HERE / folder, data=data.format(source))
    return found


def table(head: str, rows: Iterable[str], texts: Collection[str]) -> str:
    """A table of Markdown with a column for each text."""
    heads = f"| {head} | {' | '.join(texts)} |"
    return "\n".join([heads, f"| --- |{' ---: |' * len(texts)}", *rows])


if __name__ == "__main__":
    run(STUDIES, HERE, tables)
