"""How long compressing takes next to llm-compressor: python benchmarks/peers.py [--peer PYTHON]
[--rounds 5] [--draws 1] [--literal] [--quick]

SmolLM2 or the model that `--model` names, the same saved folder and the same tokens (Python's help
topics, or `--data`) for every way. Each runs in a process of its own (`ways.py`); they take turns,
the first of a pair by turns too, so that a slow moment of the machine meets both. Timed is the
pruning, from the open model and its tokens to the pruned model in memory, with everything that our
record needs; no way writes what it finished to the disk meanwhile. The seconds of the whole
process, from its start to the saved folder, stand beside it. In every round a further process
measures the machine's product peak for the shapes of the model's matrices, in float32 and bfloat16:
the floor is the time of all those products, once, in the type that is faster.

Masks, or the values of weights that were rounded, are compared matrix by matrix. Ours see inputs
that come from everything upstream already pruned, and the peer's the inputs of a block before it
is; so a further run, which isn't timed, works with `reference` in float32, as the peer does.
Held-out loss is measured by the same evaluator in float32 (`--loss-dtype`) for all. `--draws K`
compresses K − 1 more draws of tokens by each, once, and gives the mean difference of the losses ±
its standard error. For a large model `--without-reference` leaves out the further run.
`--peer-dtype faster` lets the peer prune a quarter of the tokens in float32 and in bfloat16, and
takes its faster type.

llm-compressor has a virtual environment of its own, .venv-peer, which is made when there is none,
or the one whose interpreter `--peer` names. `--out FILE` keeps the record after every case; cases
that it has of the same machine and the same question stay.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine

HERE: Final = Path(__file__).resolve().parent
CASES: Final = {
    **{
        f"{method} {sparsity}": (method, sparsity)
        for method in ("wanda", "sparsegpt")
        for sparsity in ("0.5", "2:4")
    },
    "gptq w4g64": ("gptq", "w4g64"),
    "gptq w4g128": ("gptq", "w4g128"),
}
USUAL: Final = ("wanda 0.5", "sparsegpt 0.5", "sparsegpt 2:4", "gptq w4g64")
ROUNDED: Final = ("gptq",)
"""Methods after which values are compared, and not masks."""
PEERS: Final = ("llmcompressor", "auto_round")
"""Ways that take the peer's interpreter."""
LITERAL: Final = "wanda 0.5"
"""The one case that the literal loop knows."""
PEER: Final = HERE.parent / ".venv-peer"
REQUIREMENT: Final = "llmcompressor==0.14.0.1"
FASTER: Final = "faster"
"""As the peer's type: the one that is faster."""
CHOSEN: Final = (
    "model",
    "data",
    "saved_dtype",
    "loss_dtype",
    "samples",
    "length",
    "rounds",
    "draws",
    "dtype",
    "peer_dtype",
    "peer_batch",
    "measured",
    "keep_freed",
)
"""What makes a record answer another question."""


@dataclass(frozen=True)
class Setting:
    """What every case starts from: the folder of files, the model's matrices, fingerprints of
    the draws, the loss of the untouched model.
    """

    folder: Path
    matrices: tuple[str, ...]
    shapes: Mapping[machine.Shape, int]
    fingerprints: tuple[str, ...]
    loss: float
    asked: argparse.Namespace
    peer: Path


def interpreter(given: str | None) -> Path:
    """The peer's Python, its environment made if there is none. It gets the same torch as ours."""
    python = Path(given).absolute() if given else PEER / "bin" / "python"
    if not given and not (PEER / "ready").is_file():
        import torch

        print(
            f"making {PEER.name} with {REQUIREMENT}; this happens once and takes a few minutes",
            flush=True,
        )
        subprocess.run([sys.executable, "-m", "venv", "--clear", PEER], check=True)
        subprocess.run(
            [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                REQUIREMENT,
                f"torch=={torch.__version__.partition('+')[0]}",
            ],
            check=True,
        )
        (PEER / "ready").touch()
    return python


def prepare(folder: Path, asked: argparse.Namespace, peer: Path) -> Setting:
    """Save the model and every draw of tokens, and measure the untouched model."""
    import calibrant
    from calibrant.models import save

    opened = calibrant.open_model(asked.model, asked.saved_dtype)
    save(opened, folder / "model", {})
    fingerprints: list[str] = []
    for seed in range(asked.draws):
        batch = calibrant.CalibrationSet(
            asked.data, samples=asked.samples, length=asked.length, seed=seed
        ).tokens(opened.tokenizer)
        assert batch.mask.all(), "the peer is given whole windows"
        (folder / f"tokens-{seed}.json").write_text(json.dumps(batch.ids.tolist()))
        fingerprints.append(batch.fingerprint)
    matrices = tuple(f"{weight.name}.weight" for weight in calibrant.view(opened.model).weights)
    shapes = machine.shapes_of(json.loads((folder / "model" / "config.json").read_text()))
    return Setting(
        folder, matrices, shapes, tuple(fingerprints), loss(folder / "model", asked), asked, peer
    )


def loss(model: Path, asked: argparse.Namespace) -> float:
    """Held-out loss of a saved model, in nats per token, computed in one type for all."""
    import calibrant

    (measured,) = calibrant.evaluate(
        str(model),
        tasks=f"loss(source='{asked.data}', tokens={asked.measured}, length={asked.length})",
        dtype=asked.loss_dtype,
    )
    return measured.score.value


def child(setting: Setting, way: str, **told: Any) -> dict[str, Any]:
    """What a process of `ways.py` says, and its seconds from start to end."""
    asked = setting.asked
    python = setting.peer if way in PEERS else sys.executable
    budget = {
        "samples": asked.samples,
        "length": asked.length,
        "data": asked.data,
        "model": str(setting.folder / "model"),
        "batch": asked.peer_batch,
    }
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if asked.keep_freed and way != "calibrant":
        environment |= {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    command = [python, HERE / "ways.py", json.dumps({"way": way, **budget, **told})]
    began = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=setting.folder, env=environment, check=False
    )
    if done.returncode:
        raise SystemExit(f"{way}, {told}:\n{done.stderr[-4000:]}")
    return {"whole": time.perf_counter() - began, **json.loads(done.stdout.splitlines()[-1])}


def pruned(
    setting: Setting, way: str, case: str, out: Path, seed: int = 0, **other: Any
) -> dict[str, Any]:
    """One way of one case into the folder `out`. Where it drew its tokens itself, they are the
    saved ones.
    """
    method, target = CASES[case]
    dtype = setting.asked.dtype if way == "calibrant" else setting.asked.peer_dtype
    told = {
        "method": method,
        "target": target,
        "seed": seed,
        "dtype": dtype,
        "propagate": "arrival",
        **other,
    }
    shutil.rmtree(out, ignore_errors=True)
    found = child(
        setting, way, **told, tokens=str(setting.folder / f"tokens-{seed}.json"), out=str(out)
    )
    assert found.get("tokens", setting.fingerprints[seed]) == setting.fingerprints[seed], (
        f"{way} saw other tokens"
    )
    return found


def faster_type(setting: Setting) -> dict[str, float]:
    """Seconds in which the peer prunes a quarter of the windows, by type."""
    windows = json.loads((setting.folder / "tokens-0.json").read_text())
    tokens = setting.folder / "tokens-few.json"
    tokens.write_text(json.dumps(windows[: max(1, len(windows) // 4)]))
    out = setting.folder / "few"
    seconds: dict[str, float] = {}
    for dtype in machine.DTYPES:
        told = {"method": "wanda", "target": "0.5", "dtype": dtype, "tokens": str(tokens)}
        seconds[dtype] = child(setting, "llmcompressor", **told, out=str(out))["seconds"]
        shutil.rmtree(out)
        print(f"  the peer in {dtype}: {seconds[dtype]:.1f} s", file=sys.stderr, flush=True)
    return seconds


def choose_peer_type(setting: Setting, record: dict[str, Any]) -> None:
    """Put the peer's faster type in the place of `faster`, if that was asked for. What it took in
    each is kept in the record, and not measured again.
    """
    if setting.asked.peer_dtype != FASTER:
        return
    if "probe" not in record:
        record["probe"] = faster_type(setting)
    seconds: dict[str, float] = record["probe"]
    setting.asked.peer_dtype = min(seconds, key=lambda dtype: seconds[dtype])


def outcomes(folder: Path, names: Iterable[str], case: str) -> dict[str, Any]:
    """What a method decided for each weight of a saved model's matrices: whether it isn't zero,
    or to which value it was rounded, in bfloat16.
    """
    import torch
    from safetensors import safe_open

    wanted = set(names)
    found: dict[str, Any] = {}
    rounded = CASES[case][0] in ROUNDED
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            # One matrix after the other, since all of a large model are large.
            for name in wanted & set(file.keys()):
                weight = file.get_tensor(name)
                found[name] = weight.bfloat16() if rounded else weight.to(torch.bool)
    assert found.keys() == wanted, f"{folder} lacks {sorted(wanted - found.keys())[:3]}"
    return found


def agreement(
    names: Sequence[str], one: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, float]:
    """The share of weights that came out alike: its mean over all `names`, its lowest, and its
    mean over those of the first block.
    """
    shares = {name: float((one[name] == other[name]).double().mean()) for name in names}
    first = [share for name, share in shares.items() if ".0." in name]
    return {
        "mean": statistics.mean(shares.values()),
        "lowest": min(shares.values()),
        "first": statistics.mean(first),
    }


def floors(setting: Setting, products: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, float]:
    """Seconds of the blocks' products over all tokens, by type, at the peaks that a process
    measured.
    """
    tokens = setting.asked.samples * setting.asked.length
    peaks = {
        dtype: {(int(o), int(i)): rate for o, i, rate in rates} for dtype, rates in products.items()
    }
    return {dtype: machine.floor(setting.shapes, rates, tokens) for dtype, rates in peaks.items()}


def timed(setting: Setting, case: str, ways: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
    """The rounds. The pruned models of the last one stay, in folders named by their ways."""
    rounds: list[dict[str, dict[str, Any]]] = []
    for at in range(setting.asked.rounds):
        turn = at % len(ways)
        found = {
            way: pruned(setting, way, case, setting.folder / way)
            for way in (*ways[turn:], *ways[:turn])
        }
        products = child(setting, "products", shapes=list(setting.shapes))
        rates = {dtype: products[dtype] for dtype in machine.DTYPES}
        rounds.append({**found, "floor": floors(setting, rates), "products": rates})
        told = ", ".join(f"{way} {found[way]['seconds']:.1f} s" for way in ways)
        print(
            f"  {case}, round {at + 1} of {setting.asked.rounds}: {told}",
            file=sys.stderr,
            flush=True,
        )
    return rounds


def examined(setting: Setting, case: str, ways: Sequence[str]) -> dict[str, Any]:
    """Losses and masks of the pruned models, those of other draws too."""
    ours = outcomes(setting.folder / "calibrant", setting.matrices, case)
    others = [way for way in ways if way != "calibrant"]
    losses = {way: [loss(setting.folder / way, setting.asked)] for way in ways}
    found: dict[str, dict[str, Any]] = {"arrival": {}}
    for way in others:
        theirs = outcomes(setting.folder / way, setting.matrices, case)
        found["arrival"][way] = agreement(setting.matrices, ours, theirs)
    same = setting.folder / "same"
    if not setting.asked.without_reference:
        found["same inputs"] = {}
        pruned(setting, "calibrant", case, same, dtype="float32", propagate="reference")
        alike = outcomes(same, setting.matrices, case)
        for way in others:
            theirs = outcomes(setting.folder / way, setting.matrices, case)
            found["same inputs"][way] = agreement(setting.matrices, alike, theirs)
        losses["reference"] = [loss(same, setting.asked)]
    for seed in range(1, setting.asked.draws):
        for way in ("llmcompressor", "calibrant"):
            pruned(setting, way, case, same, seed)
            losses[way].append(loss(same, setting.asked))
    for name in (*ways, "same"):
        shutil.rmtree(setting.folder / name, ignore_errors=True)
    return {"agreement": found, "losses": losses}


def summary(rounds: Sequence[Mapping[str, Any]], ways: Sequence[str]) -> dict[str, Any]:
    """What the rounds say: ratios of each pair, and of ours to the floor in the type that has
    the lower one.
    """
    seconds, whole = (
        {way: [pair[way][kind] for pair in rounds] for way in ways} for kind in ("seconds", "whole")
    )
    dtypes = sorted(
        machine.DTYPES, key=lambda dtype: statistics.median(pair["floor"][dtype] for pair in rounds)
    )
    others = [way for way in ways if way != "calibrant"]
    return {
        "seconds": seconds,
        "whole": whole,
        "ratios": {
            way: [pair[way]["seconds"] / pair["calibrant"]["seconds"] for pair in rounds]
            for way in others
        },
        "whole_ratios": {
            way: [pair[way]["whole"] / pair["calibrant"]["whole"] for pair in rounds]
            for way in others
        },
        "peaks": {way: max(pair[way]["peak"] for pair in rounds) for way in ways},
        "peaks_in_all": {way: max(pair[way]["peak_in_all"] for pair in rounds) for way in ways},
        "dtypes": {way: rounds[0][way]["dtype"] for way in ways},
        "propagate": rounds[0]["calibrant"]["propagate"],
        "floors": {dtype: [pair["floor"][dtype] for pair in rounds] for dtype in machine.DTYPES},
        "floor_dtype": dtypes[0],
        "of_floor": [pair["calibrant"]["seconds"] / pair["floor"][dtypes[0]] for pair in rounds],
        "products": [pair["products"] for pair in rounds],
    }


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float | None]:
    """The mean of `one` less `other`, pair by pair, and its standard error over draws; None of a
    single draw.
    """
    apart = [a - b for a, b in zip(one, other, strict=True)]
    return statistics.mean(apart), statistics.stdev(apart) / math.sqrt(len(apart)) if len(
        apart
    ) > 1 else None


def line(case: str, found: Mapping[str, Any], dense: float) -> str:
    """What is told of a case."""
    seconds = {way: statistics.median(taken) for way, taken in found["seconds"].items()}
    told = [f"{case:<14} " + "   ".join(f"{way} {taken:.1f} s" for way, taken in seconds.items())]
    for way, ratios in found["ratios"].items():
        whole, alike = (
            statistics.median(found["whole_ratios"][way]),
            {kind: of[way] for kind, of in found["agreement"].items()},
        )
        told.append(
            f"{statistics.median(ratios):.2f} times faster than {way} ({min(ratios):.2f} to "
            f"{max(ratios):.2f}; whole processes {whole:.2f})"
        )
        what = "values" if case.split()[0] in ROUNDED else "masks"
        told.append(f"{what} agree {alike['arrival']['mean']:.2%} as they are")
        same = alike.get("same inputs")
        if same is not None:
            told.append(
                f"{same['mean']:.2%} ({same['first']:.2%} in the first block) from the same"
            )
    told.append(
        "peak " + ", ".join(f"{way} {peak:,.0f}" for way, peak in found["peaks"].items()) + " MiB"
    )
    told.append(
        "loss "
        + ", ".join(f"{way} {losses[0]:.4f}" for way, losses in found["losses"].items())
        + f", dense {dense:.4f}"
    )
    mean, error = difference(found["losses"]["calibrant"], found["losses"]["llmcompressor"])
    told.append(f"ours less theirs {mean:+.4f}" + (f" ± {error:.4f}" if error is not None else ""))
    least = statistics.median(found["floors"][found["floor_dtype"]])
    told.append(
        f"{statistics.median(found['of_floor']):.2f} times the floor ({least:.1f} s, "
        f"{found['floor_dtype']})"
    )
    return "   ".join(told)


def usual_options(docstring: str | None) -> argparse.ArgumentParser:
    """Return a command line with the options that every script about peers has."""
    parser = argparse.ArgumentParser(description=(docstring or "").partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--data", default="python_docs")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--measured", type=int, default=8192, help="tokens of the loss")
    parser.add_argument("--out", type=Path, help="the file of the record")
    return parser


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or other arguments like it."""
    parser = usual_options(__doc__)
    parser.add_argument("--saved-dtype", default="float32", help="the type of the saved folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--draws", type=int, default=1, help="draws of tokens whose losses are compared"
    )
    parser.add_argument("--loss-dtype", default="float32")
    parser.add_argument("--without-reference", action="store_true")
    parser.add_argument("--dtype", default="auto", help="ours")
    parser.add_argument("--peer-dtype", default="float32", choices=[*machine.DTYPES, FASTER])
    parser.add_argument(
        "--peer-batch",
        type=int,
        default=1,
        help="llm-compressor's batch_size; 1 is its own default",
    )
    parser.add_argument(
        "--keep-freed",
        action="store_true",
        help="tell glibc to keep freed memory in the processes of the others too",
    )
    parser.add_argument("--peer", help="the Python of an environment with llmcompressor")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(USUAL))
    parser.add_argument(
        "--literal", action="store_true", help=f"{LITERAL} by the literal two-pass loop as well"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="8 × 128 tokens, one round, 512 tokens measured: does everything work?",
    )
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.samples, asked.length, asked.rounds, asked.measured = 8, 128, 1, 512
    return asked


def main() -> None:
    """Time every case and print a line for each, then the record as JSON."""
    asked = parsed()
    peer = interpreter(asked.peer)
    with tempfile.TemporaryDirectory() as name:
        setting = prepare(Path(name), asked, peer)
        question = {**machine.question_of(asked, CHOSEN), "dense": setting.loss}
        record = machine.started(asked.out, question, "cases")
        print(
            f"{asked.model}, {asked.samples} × {asked.length} tokens, "
            f"{machine.told(question['machine'])}",
            flush=True,
        )
        choose_peer_type(setting, record)
        for case in asked.cases:
            ways = (
                "llmcompressor",
                "calibrant",
                *(["literal"] if asked.literal and case == LITERAL else []),
            )
            rounds = timed(setting, case, ways)
            record["cases"][case] = {**summary(rounds, ways), **examined(setting, case, ways)}
            versions = rounds[0]["llmcompressor"]["versions"]
            theirs = {"llmcompressor": versions["llmcompressor"], "peer torch": versions["torch"]}
            record["versions"] = {**rounds[0]["calibrant"]["versions"], **theirs}
            print(line(case, record["cases"][case], setting.loss), flush=True)
            machine.keep(asked.out, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
