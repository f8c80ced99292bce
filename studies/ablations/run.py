"""Is it the kind of text, or how many tokens there are and how long its documents?

    CALIBRANT_DATA=… python -m studies.ablations.run  # `--tables` only prints what is there

SmolLM2-135M-Instruct (dequantized from Q4_1), Wanda at 60 %, bfloat16, three disjoint draws an arm,
held against what `studies/smollm2` has of C4 and of GSM8K at 8,192 tokens, with some of its
measures:

- tokens: both sets at 2,048, 32,768 and 65,536;
- long documents: C4 at 8,192 tokens from documents of more than a window of 512 alone, cropped at
  random, as the original study's code takes it.

Pads, and equal samples against equal tokens, are in `studies/packing`. Killed and run again, it
goes on.
"""

from collections.abc import Iterator
from pathlib import Path

from studies.arms import Measured, arm, markdown_row, run, span, worse

from calibrant import Study
from calibrant.lab.study import read_study

HERE = Path(__file__).parent
MAIN = HERE.parent / "smollm2"
C4, GSM8K, LONG = "c4", "gsm8k:icl", "c4@crop"
TASKS = ("gsm8k", "esnli", "commonsense_qa")
ASKED = read_study(HERE.parent / "smollm2.yaml").evaluate
STARTS = ("loss", *(f"task(name={task}," for task in TASKS))
SHARED = {
    "models": "smollm2",
    "methods": ["wanda"],
    "targets": [0.6],
    "seeds": [0, 1, 2],
    "evaluate": [text for text in ASKED if text.startswith(STARTS)],
    "length": 512,
    "dtype": "bfloat16",
    "masks": False,
    "quotes": False,
}
STUDIES = {
    "long": Study(data=[LONG], tokens=8192, **SHARED),
    "tokens-2048": Study(data=[C4, GSM8K], tokens=2048, **SHARED),
    "tokens-32768": Study(data=[C4, GSM8K], tokens=32768, **SHARED),
    "tokens-65536": Study(data=[C4, GSM8K], tokens=65536, **SHARED),
}
ARMS = {
    C4: {
        "8,192 tokens": (MAIN, C4),
        "2,048 tokens": (HERE / "tokens-2048", C4),
        "32,768 tokens": (HERE / "tokens-32768", C4),
        "65,536 tokens": (HERE / "tokens-65536", C4),
        "8,192 tokens of long documents": (HERE / "long", LONG),
    },
    GSM8K: {
        "8,192 tokens": (MAIN, GSM8K),
        "2,048 tokens": (HERE / "tokens-2048", GSM8K),
        "32,768 tokens": (HERE / "tokens-32768", GSM8K),
        "65,536 tokens": (HERE / "tokens-65536", GSM8K),
    },
}
"""For each set where each arm is, and what it is called there; the first is what the others are
held against.
"""
COLUMNS = {task: (task,) for task in TASKS} | {"text": ("c4", "pile", "redpajama", "wikipedia")}
HEADLINE = {"method": "wanda", "target": "0.6", "propagate": "dense"}


def tables() -> Iterator[str]:
    """In Markdown, in nats a token: how much worse each arm is than the first of its set, and
    how far its draws lie apart.
    """
    for head, lines in (("calibrated on", rows()), ("its draws lie apart", spans())):
        heads = f"| {head} | {' | '.join(COLUMNS)} |"
        yield "\n".join([heads, f"| --- |{' ---: |' * len(COLUMNS)}", *lines])


def rows() -> Iterator[str]:
    """The arms of each set but its first, against that; bold as in `markdown_row`."""
    comparisons = sum(len(arms) - 1 for arms in ARMS.values())
    for data in ARMS:
        (_, usual), *others = measured(data)
        for name, of in others:
            estimates = [worse(of, usual, sources) for sources in COLUMNS.values()]
            yield markdown_row(f"`{data}`, {name}", estimates, comparisons)


def spans() -> Iterator[str]:
    """All arms of each set."""
    for data in ARMS:
        for name, of in measured(data):
            cells = [f"{span(of, sources):.3f}" for sources in COLUMNS.values()]
            yield f"| `{data}`, {name} | {' | '.join(cells)} |"


def measured(data: str) -> list[tuple[str, Measured]]:
    """What each arm of a set gave, by its name."""
    return [(name, arm(folder, data=of, **HEADLINE)) for name, (folder, of) in ARMS[data].items()]


if __name__ == "__main__":
    run(STUDIES, HERE, tables)
