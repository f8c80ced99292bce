"""What do tokens, damping and mixing buy against a SparseGPT that is fitted too closely to its calibration set?

    CALIBRANT_DATA=… python studies/levers/run.py              # `--tables` only prints what is there

SmolLM2-135M-Instruct (dequantized from Q4_1), SparseGPT at 60 % in `arrival`, three disjoint draws an arm, held-out loss of the six domains of
`studies/choosing`, which has what 8,192 tokens of each set and the paper's damping of 0.01 times the mean diagonal do. Here are

- C4 and GSM8K with worked solutions at 2,048 and 32,768 tokens;
- the damping at 0.1 and 1, for the same two at 8,192 tokens, and at 0.1 for a mix of five sets.

Killed and run again, it goes on.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from calibrant import Study
from calibrant.compare import Draws, Estimate, contrast
from calibrant.store import Store
from calibrant.study import read_study

HERE = Path(__file__).parent
CHOOSING = HERE.parent / "choosing"
C4, GSM8K = "c4", "gsm8k:cot"
MIX = "mix(c4=c4, pile=pile, redpajama=redpajama, wikipedia=wikipedia, gsm8k=gsm8k:cot)"
SPARSEGPT, DAMPED, DROWNED = "sparsegpt", "sparsegpt(damp=0.1)", "sparsegpt(damp=1.0)"
SHARED = {
    "models": "smollm2",
    "sparsities": [0.6],
    "seeds": [0, 1, 2],
    "evaluate": read_study(CHOOSING / "study.yaml").evaluate,
    "length": 512,
    "dtype": "float32",
    "masks": False,
}
STUDIES = {
    "damping": Study(data=[C4, GSM8K], methods=[DAMPED, DROWNED], tokens=8192, groups={"sets": {}, "mix": {"data": MIX, "method": DAMPED}}, **SHARED),
    "tokens-32768": Study(data=[C4, GSM8K], methods=[SPARSEGPT], tokens=32768, **SHARED),
    "tokens-2048": Study(data=[C4, GSM8K], methods=[SPARSEGPT], tokens=2048, **SHARED),
}
ARMS = {
    "8,192 tokens, damping 0.01": (CHOOSING / "results", SPARSEGPT),
    "2,048 tokens": (HERE / "tokens-2048", SPARSEGPT),
    "32,768 tokens": (HERE / "tokens-32768", SPARSEGPT),
    "damping 0.1": (HERE / "damping", DAMPED),
    "damping 1": (HERE / "damping", DROWNED),
}
"""Where each was measured, and the method there; the first is what the others are held against."""


def draws(folder: Path, method: str, data: str) -> dict[str, Draws]:
    """The measurements of one calibration set, or of the dense model, by what was measured: one for each draw."""
    with Store(folder, create=False) as store:
        cells = [cell for cell in store.cells() if (cell.method, cell.data) == (method, data)]
        found = [[m for cell in cells if (m := store.measurement(cell.run, cell.measures[task]))] for task in (cells[0].measures if cells else ())]
    return {kept[0].score.measured: kept for kept in found if len(kept) == len(cells)}


def tables() -> Iterator[str]:
    """For each set, Markdown: the damage of each arm on text like the set and over all six, and how much worse that is than the first arm."""
    dense = draws(CHOOSING / "results", "none", "")
    for data, own in ((C4, ["c4:text"]), (GSM8K, ["gsm8k:cot"]), (MIX, [])):
        found = {name: of for name, where in ARMS.items() if (of := draws(*where, data))}
        usual = next(iter(found.values()))
        asked = ({"its own text": own} if own else {}) | {"all six": list(dense)}
        lines = [f"| `{data}` | {' | '.join(f'{name} | against the first' for name in asked)} |", f"| --- |{' ---: |' * 2 * len(asked)}"]
        for name, of in found.items():
            rises = [(rise(of, dense, names), rise(of, usual, names)) for names in asked.values()]
            lines.append(f"| {name} | {' | '.join(told(r) for pair in rises for r in pair)} |")
        yield "\n".join(lines)


def rise(of: dict[str, Draws], above: dict[str, Draws], names: list[str]) -> Estimate:
    """How much larger the mean loss over `names` is."""
    return contrast({name: of[name] for name in names}, {name: above[name] for name in names})


def told(estimate: Estimate) -> str:
    """The difference with its standard error over items and draws."""
    return f"{estimate.value:+.3f}" + ("" if estimate.stderr is None else f" ± {estimate.stderr:.3f}")


def main() -> None:
    """Run what is lacking; print the tables."""
    if "--tables" not in sys.argv[1:]:
        for name, study in STUDIES.items():
            finished = study.run(HERE / name, lambda what, done, total: print(f"{what} {done}/{total}", file=sys.stderr))
            print(f"{name}: {finished.computed} computed, {finished.found} found, {len(finished.failures)} failed\n", flush=True)
    print("\n\n".join(tables()))


if __name__ == "__main__":
    main()
