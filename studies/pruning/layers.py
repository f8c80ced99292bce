"""What pruning methods leave of the outputs of SmolLM2's matrices: python -m studies.pruning.layers
[--targets 0.6 2:4] [--methods …] [--write]

The matrices of three blocks are pruned by each method, all from the same Grams of C4 in the dense
model. An error is tr(E G Eᵀ)/tr(W G Wᵀ), in float64: with the Gram of the tokens that were
calibrated on, with that of another draw of C4, and with that of worked arithmetic. Seconds are
those of the processor, on one thread, without the walk. Needs a mirror of the data sets
(CALIBRANT_DATA).

`--grams FILE` keeps weights and Grams, so that a run that was stopped goes on; the record keeps
every method and target that is done. `--fmchisel PYTHON` adds the ALPS of fmchisel, run by the
interpreter of an environment that has it, on the same weights and Grams. `--write` fills the table
of docs/prune.md from the record and computes nothing.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from benchmarks import machine
from studies.pages import filled

HERE: Final = Path(__file__).parent
RECORD: Final = HERE / "layers.json"
PAGE: Final = HERE.parents[1] / "docs/prune.md"
BLOCKS: Final = (2, 15, 26)
TOKENS: Final = 8192
SEEN: Final = {"calibrated": ("c4", 0), "again": ("c4", 1), "arithmetic": ("gsm8k:cot", 0)}
"""The calibration set and draw of each Gram; methods get the first one alone."""
TARGETS: Final = ("0.6", "2:4", "0.5", "0.7")
FIRST: Final = TARGETS[0]
"""The target at which other text is looked at too."""
METHODS: Final = {
    "wanda": "for a first look, with few tokens, or where weights that stay must stay as they are",
    "ria": "where wanda loses a whole input or output; on SmolLM2 the model lost more",
    "sparsegpt": "to compare with what others publish",
    "admm": "for as little loss with C4 as refined, at one and a half times its effort",
    "refined(start=sparsegpt, swaps=25)": (
        "not at all: less error of matrices, and more loss of the model"
    ),
    "refined": "first",
    "alps": "where time doesn't matter; with C4 it wasn't shown to lose less than refined",
}
"""Methods, and when to take each."""
PEER: Final = "fmchisel's alps"
PEER_BLOCK: Final = 15
"""The one block that it is given: it takes several times as long as all else."""
BASE: Final = "sparsegpt"


def grams(kept: Path | None) -> dict[str, Any]:
    """Each matrix of the blocks, as `weight`, with what it saw of each set: a Gram, its tokens
    and its mass.
    """
    import torch

    import calibrant
    from calibrant.activations import Gram
    from calibrant.walk import walk

    if kept is not None and kept.is_file():
        return torch.load(kept, mmap=True)
    opened = calibrant.open_model("smollm2", "float32")
    view = calibrant.view(opened.model)
    found: dict[str, Any] = {}
    for label, (data, seed) in SEEN.items():
        drawn = calibrant.CalibrationSet(data, tokens=TOKENS, length=512, seed=seed)
        batch = drawn.tokens(opened.tokenizer)
        for weight, seen in walk(view, batch, (Gram,), "dense"):
            if weight.block in BLOCKS:
                gram = seen[Gram]
                one = found.setdefault(weight.name, {"weight": weight.get().detach().clone()})
                one[label] = (gram.cached("symmetric", gram.symmetric), gram.tokens, gram.mass)
    if kept is not None:
        torch.save(found, kept)
    return found


def pruned(
    method: str, target: str, matrices: Mapping[str, Any]
) -> Iterator[tuple[str, Any, float]]:
    """Each matrix's name, what the method made of it, and in how many seconds of the processor;
    matrices that saw the same share a Gram.
    """
    from calibrant.activations import Gram, Seen
    from calibrant.methods import methods
    from calibrant.targets import parse_target

    made = methods.build(method)
    aim = parse_target(target)
    shared: dict[int, Gram] = {}
    compiled = False
    for name, one in matrices.items():
        numbers, tokens, mass = one["calibrated"]
        gram = shared.setdefault(numbers.data_ptr(), Gram(numbers.clone(), tokens, mass))
        if not compiled:  # kernels are compiled at their first use
            another = Gram(numbers.clone(), tokens, mass)
            made.compress(one["weight"][:64], Seen.of_gram(another), aim)
            compiled = True
        began = time.process_time()
        done = made.compress(one["weight"], Seen.of_gram(gram), aim)
        yield name, done.weight, time.process_time() - began


def by_peer(
    python: str, target: str, matrices: Mapping[str, Any]
) -> Iterator[tuple[str, Any, float]]:
    """The same by fmchisel, matrix by matrix, in a process of its interpreter."""
    import torch

    hessians: dict[str, Any] = {}
    for name, one in matrices.items():
        if f".{PEER_BLOCK}." in name:
            numbers, _, mass = one["calibrated"]
            hessians[name] = (one["weight"].clone(), numbers / mass)
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "given.pt"), Path(folder, "made.pt")
        torch.save(hessians, given)
        subprocess.run([python, HERE / "fmchisel_alps.py", given, made, target], check=True)
        for name, (weight, seconds) in torch.load(made).items():
            yield name, weight, seconds


def errors(one: Mapping[str, Any], weight: Any) -> dict[str, float]:
    """The matrix's error on each set."""
    dense = one["weight"].double()
    lost = dense - weight.double()
    found: dict[str, float] = {}
    for label in SEEN:
        gram = one[label][0].double()
        error = float(((lost @ gram) * lost).sum() / ((dense @ gram) * dense).sum())
        found[label] = float(f"{error:.6g}")
    return found


def table(record: Mapping[str, Any]) -> Iterator[str]:
    """Rows: of each method the median over matrices of its error over SparseGPT's, the largest,
    and advice.
    """
    found = record["found"]
    targets = [target for target in ("0.5", "0.6", "0.7", "2:4") if f"{BASE} {target}" in found]
    heads = [*targets, f"{FIRST}, other C4", f"{FIRST}, arithmetic"]
    yield f"| method | {' | '.join(heads)} | take it |"
    yield f"| --- |{' ---: |' * len(heads)} --- |"
    for name in (*METHODS, PEER):
        if not any(f"{name} {target}" in found for target in targets):
            continue
        cells = [ratio(found, name, target, "calibrated") for target in targets]
        cells += [ratio(found, name, FIRST, label) for label in ("again", "arithmetic")]
        shown = name if name == PEER else f"`{name}`"
        yield f"| {shown} | {' | '.join(cells)} | {METHODS.get(name, '')} |"


def ratio(found: Mapping[str, Any], method: str, target: str, label: str) -> str:
    """The median over matrices of the error over SparseGPT's, with the largest; a dash where it
    isn't measured.
    """
    if f"{method} {target}" not in found:
        return "–"
    if method == BASE:
        return "1"
    base = found[f"{BASE} {target}"]["errors"]
    own = found[f"{method} {target}"]["errors"]
    ratios = [own[name][label] / base[name][label] for name in own]
    return f"{statistics.median(ratios):.3f} ({max(ratios):.2f})"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    others = [name for name in METHODS if name != BASE]
    parser.add_argument("--methods", nargs="+", default=[BASE, *others])
    parser.add_argument("--grams", type=Path, help="the file that keeps weights and Grams")
    parser.add_argument("--fmchisel", help="the Python of an environment with fmchisel")
    parser.add_argument(
        "--write", action="store_true", help="fill the page's table from the record"
    )
    return parser.parse_args()


def main() -> None:
    """Measure what the record lacks, or write the page."""
    asked = parsed()
    if asked.write:
        made = "\n".join(table(json.loads(RECORD.read_text("utf-8"))))
        PAGE.write_text(filled(PAGE.read_text("utf-8"), {"layers": made}), encoding="utf-8")
        return
    import torch

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    record = machine.started(
        RECORD,
        {"asked": {"blocks": list(BLOCKS), "tokens": TOKENS}, "machine": machine.facts()},
        "found",
    )
    matrices = grams(asked.grams)
    methods = list(asked.methods)
    if asked.fmchisel:
        methods.append(PEER)
    for target in asked.targets:
        for method in methods:
            if f"{method} {target}" in record["found"]:
                continue
            if method == PEER:
                made = list(by_peer(asked.fmchisel, target, matrices))
            else:
                made = list(pruned(method, target, matrices))
            lost = {name: errors(matrices[name], weight) for name, weight, _ in made}
            record["found"][f"{method} {target}"] = {
                "errors": lost,
                "seconds": round(sum(seconds for *_, seconds in made), 3),
            }
            machine.keep(RECORD, record)
            print(method, target, ratio(record["found"], method, target, "calibrated"), flush=True)


if __name__ == "__main__":
    main()
