"""What do tokens, damping and mixing buy against a SparseGPT that is fitted too closely to its
calibration set?

    CALIBRANT_DATA=… python -m studies.levers.run  # `--tables` only prints what is there

SmolLM2-135M-Instruct (dequantized from Q4_1), SparseGPT at 60 % in `arrival`, three disjoint draws
an arm, held-out loss of the six domains of `studies/choosing`, which has what 8,192 tokens of each
set and the paper's damping of 0.01 times the mean diagonal do. Here are

- C4 and GSM8K with worked solutions at 2,048 and 32,768 tokens;
- the damping at 0.1 and 1, for the same two at 8,192 tokens, and at 0.1 for a mix of five sets.

Killed and run again, it goes on.
"""

from collections.abc import Iterator
from pathlib import Path

from studies.arms import Measured, arm, run

from calibrant import Study
from calibrant.lab.stats import contrast
from calibrant.lab.study import read_study

HERE = Path(__file__).parent
CHOOSING = HERE.parent / "choosing"
C4, GSM8K = "c4", "gsm8k:cot"
MIX = "mix(c4=c4, pile=pile, redpajama=redpajama, wikipedia=wikipedia, gsm8k=gsm8k:cot)"
SPARSEGPT, DAMPED, DROWNED = "sparsegpt", "sparsegpt(damp=0.1)", "sparsegpt(damp=1.0)"
SHARED = {
    "models": "smollm2",
    "targets": [0.6],
    "seeds": [0, 1, 2],
    "evaluate": read_study(CHOOSING / "study.yaml").evaluate,
    "length": 512,
    "dtype": "float32",
    "masks": False,
}
STUDIES = {
    "damping": Study(
        data=[C4, GSM8K],
        methods=[DAMPED, DROWNED],
        tokens=8192,
        groups={"sets": {}, "mix": {"data": MIX, "method": DAMPED}},
        **SHARED,
    ),
    "tokens-32768": Study(data=[C4, GSM8K], methods=[SPARSEGPT], tokens=32768, **SHARED),
    "tokens-2048": Study(data=[C4, GSM8K], methods=[SPARSEGPT], tokens=2048, **SHARED),
}
ARMS = {
    "8,192 tokens, damping 0.01": (CHOOSING / "results", SPARSEGPT, [C4, GSM8K, MIX]),
    "2,048 tokens": (HERE / "tokens-2048", SPARSEGPT, [C4, GSM8K]),
    "32,768 tokens": (HERE / "tokens-32768", SPARSEGPT, [C4, GSM8K]),
    "damping 0.1": (HERE / "damping", DAMPED, [C4, GSM8K, MIX]),
    "damping 1": (HERE / "damping", DROWNED, [C4, GSM8K]),
}
"""Where each was measured, the method there and the sets; the first is what the others are held
against.
"""


def tables() -> Iterator[str]:
    """For each set, Markdown: the damage of each arm on text like the set and over all six, and
    how much worse that is than the first arm.
    """
    dense = arm(CHOOSING / "results", data="")
    for data, own in ((C4, "c4:text"), (GSM8K, "gsm8k:cot"), (MIX, None)):
        found: dict[str, Measured] = {}
        for name, (folder, method, sets) in ARMS.items():
            if data in sets:
                found[name] = arm(folder, method=method, data=data)
        usual, *_ = found.values()
        asked = {"all six": list(dense)}
        if own:
            asked = {"its own text": [own], **asked}
        heads = [f"{name} | against the first" for name in asked]
        lines = [
            f"| `{data}` | {' | '.join(heads)} |",
            f"| --- |{' ---: |' * 2 * len(asked)}",
        ]
        for name, measured in found.items():
            cells: list[str] = []
            for texts in asked.values():
                here = {text: measured[text] for text in texts}
                for base in (dense, usual):
                    rise = contrast(here, {text: base[text] for text in texts})
                    cells.append(f"{rise:+.3f}")
            lines.append(f"| {name} | {' | '.join(cells)} |")
        yield "\n".join(lines)


if __name__ == "__main__":
    run(STUDIES, HERE, tables)
