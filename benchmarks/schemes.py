"""Whether scales, codes and losses of schemes are llm-compressor's: python benchmarks/schemes.py
[--peer PYTHON] [--draws 3] [CASE ...]

Both get the same saved folder of SmolLM2 in float32 and the same tokens, and write folders of
compressed-tensors. Their tensors are compared one by one. Held-out loss of both folders is measured
by one evaluator in float32, with inputs rounded as the folders say.

llm-compressor uses the inputs of a block before any of its matrices is rounded, so ours propagates
by `reference` here. `--peer` is the Python of an environment with llm-compressor; without it
.venv-peer is made. Runs that `--out` holds already aren't repeated.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine, peers

CASES: Final = {
    "rtn W8A8": ("rtn", "W8A8"),
    "gptq W8A8": ("gptq", "W8A8"),
    "rtn NVFP4": ("rtn", "NVFP4"),
    "gptq NVFP4": ("gptq", "NVFP4"),
}
KINDS: Final = (
    "weight_scale",
    "weight_global_scale",
    "input_global_scale",
    "weight_packed",
    "weight",
)
"""Tensors that a rounded matrix may have in a folder."""
FIRST: Final = "model.layers.0."
"""What the names of tensors in the first block begin with."""
DENSE_INPUTS: Final = tuple(f"{FIRST}self_attn.{matrix}_proj" for matrix in "qkv")
"""Matrices whose inputs are the dense model's."""
ASKED: Final = ("model", "data", "samples", "length", "measured", "dtype")
"""Options that a record has. With other options, or on another machine, it is begun anew."""

Tensors = Mapping[str, Any]
"""The tensors of a folder, by name."""


def parsed() -> argparse.Namespace:
    """Return the command line, with what `peers.prepare` asks for besides."""
    parser = peers.usual_options(__doc__)
    parser.add_argument("cases", nargs="*", help="such as 'gptq NVFP4'; all without any")
    parser.add_argument("--peer")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=machine.DTYPES)
    parser.set_defaults(samples=16, loss_dtype="float32", peer_batch=1, keep_freed=False)
    asked = parser.parse_args()
    asked.saved_dtype = asked.dtype
    return asked


def write_ours(setting: peers.Setting, case: str, seed: int, out: Path) -> Path:
    """Write our folder of a case, and return where it is."""
    import calibrant

    method, target = CASES[case]
    asked = setting.asked
    data = calibrant.CalibrationSet(
        asked.data, samples=asked.samples, length=asked.length, seed=seed
    )
    # Rounding to nearest to eight bits looks at no data.
    looks = case != "rtn W8A8"
    done = calibrant.quantize(
        str(setting.folder / "model"),
        data=data if looks else None,
        method=method,
        target=target,
        propagate="reference" if looks else None,
        dtype=asked.dtype,
        device="cpu",
        out=out,
        export="compressed_tensors",
    )
    if looks:
        assert done.record.run.tokens == setting.fingerprints[seed]
    return out / "compressed_tensors"


def write_theirs(setting: peers.Setting, case: str, seed: int, out: Path) -> dict[str, Any]:
    """Let llm-compressor write its folder of a case, and return what its process says."""
    method, target = CASES[case]
    return peers.child(
        setting,
        "llmcompressor",
        method=method,
        target=target,
        dtype=setting.asked.dtype,
        tokens=str(setting.folder / f"tokens-{seed}.json"),
        out=str(out),
    )


def stored(folder: Path) -> dict[str, Any]:
    """Return the tensors of a folder, by name."""
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
    return tensors


def alike(ours: Tensors, theirs: Tensors) -> dict[str, dict[str, float]]:
    """Return the shares of equal numbers by kind of tensor: of all blocks, and of the first one.

    Of scales also how far they lie apart at most, as a share of theirs: of all, and of queries,
    keys and values of the first block, whose inputs nothing has rounded.
    """
    found: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        names = [name for name in ours if name.endswith(f"proj.{kind}")]
        if not names:
            continue
        shares = {"all": _equal(ours, theirs, names)}
        shares["first"] = _equal(ours, theirs, [name for name in names if name.startswith(FIRST)])
        if kind.endswith("_scale"):
            shares["apart"] = _apart(ours, theirs, names)
            of_dense_inputs = [name for name in names if name.startswith(DENSE_INPUTS)]
            shares["apart_of_dense_inputs"] = _apart(ours, theirs, of_dense_inputs)
        found[kind] = shares
    return found


def _apart(ours: Tensors, theirs: Tensors, names: list[str]) -> float:
    """How far numbers lie apart at most, as a share of theirs."""
    largest = 0.0
    for name in names:
        our_numbers = ours[name].double()
        ratio = our_numbers / theirs[name].double().reshape(our_numbers.shape)
        largest = max(largest, float((ratio - 1).abs().max()))
    return largest


def _equal(ours: Tensors, theirs: Tensors, names: list[str]) -> float:
    """The share of numbers that are equal in both."""
    equal = 0
    count = 0
    for name in names:
        our_numbers = ours[name].double()
        same = our_numbers == theirs[name].double().reshape(our_numbers.shape)
        equal += int(same.sum())
        count += same.numel()
    return equal / count


def compared(setting: peers.Setting, case: str, seed: int) -> dict[str, Any]:
    """Return what both tools made of one draw: equal tensors, and losses."""
    our_folder = setting.folder / "ours"
    their_folder = setting.folder / "theirs"
    for folder in (our_folder, their_folder):
        shutil.rmtree(folder, ignore_errors=True)
    export = write_ours(setting, case, seed, our_folder)
    said = write_theirs(setting, case, seed, their_folder)
    found = {
        "alike": alike(stored(export), stored(their_folder)),
        "ours": peers.loss(export, setting.asked),
        "theirs": peers.loss(their_folder, setting.asked),
        "versions": said["versions"],
    }
    print(f"  {case}, draw {seed}: {found}", file=sys.stderr, flush=True)
    return found


def main() -> None:
    """Run what the record lacks, and print a line for each case."""
    asked = parsed()
    record = machine.started(asked.out, machine.question_of(asked, ASKED), "cases")
    with tempfile.TemporaryDirectory() as folder:
        setting = peers.prepare(Path(folder), asked, peers.interpreter(asked.peer))
        record["dense"] = setting.loss
        for seed in range(asked.draws):
            for case in asked.cases or CASES:
                draws = record["cases"].setdefault(case, [])
                # Draws are run in their order.
                if len(draws) <= seed:
                    draws.append(compared(setting, case, seed))
                    machine.keep(asked.out, record)
    for case, draws in record["cases"].items():
        our_losses = [draw["ours"] for draw in draws]
        mean, error = peers.difference(our_losses, [draw["theirs"] for draw in draws])
        spread = "" if error is None else f" ± {error:.4f}"
        print(f"{case}: ours less theirs {mean:+.4f}{spread}; {draws[0]['alike']}", flush=True)


if __name__ == "__main__":
    main()
