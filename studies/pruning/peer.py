"""What SmolLM2 loses that llm-compressor's SparseGPT pruned, on the tokens and domains of
smollm2.yaml: python -m studies.pruning.peer --peer PYTHON

PYTHON is the interpreter of an environment with llm-compressor, such as the one that
benchmarks/peers.py makes. It prunes to 60 % in float32 with the study's draws of C4, one unless
`--draws` says more; a block's matrices see what they get before the block is pruned (its
`sequential` pipeline). Losses are measured by the study's own tasks, in the study's type. The
record, peer.json, keeps every draw that is done. Needs a mirror of the data sets (CALIBRANT_DATA).
"""

import argparse
import json
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from benchmarks import machine

HERE: Final = Path(__file__).parent
RECORD: Final = HERE / "peer.json"
WAYS: Final = HERE.parents[1] / "benchmarks/ways.py"
METHOD, TARGET, DATA = "sparsegpt", "0.6", "c4"


def draw(study: Mapping[str, Any], seed: int, python: str, folder: Path) -> dict[str, Any]:
    """Prune with one draw, in a process of the peer's, and measure what comes out."""
    import calibrant
    from calibrant.models import save

    opened = calibrant.open_model(study["model"], "float32")
    save(opened, folder / "model", {})
    drawn = calibrant.CalibrationSet(
        DATA, tokens=study["tokens"], length=study["length"], seed=seed
    )
    batch = drawn.tokens(opened.tokenizer)
    # Padding would be a part of the peer's Grams: each window is given without it.
    windows = zip(batch.ids, batch.mask.bool(), strict=True)
    real_tokens = [ids[mask].tolist() for ids, mask in windows]
    (folder / "tokens.json").write_text(json.dumps(real_tokens))
    told = {
        "way": "llmcompressor",
        "method": METHOD,
        "target": TARGET,
        "dtype": "float32",
        "batch": 1,
        "model": str(folder / "model"),
        "tokens": str(folder / "tokens.json"),
        "out": str(folder / "pruned"),
    }
    done = subprocess.run(
        [python, WAYS, json.dumps(told)], capture_output=True, text=True, cwd=folder, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-4000:])
    found = json.loads(done.stdout.splitlines()[-1])
    losses: dict[str, Any] = {}
    for measured in calibrant.evaluate(
        str(folder / "pruned"), tasks=study["evaluate"], dtype=study["dtype"]
    ):
        score = measured.score
        losses[score.measured] = {
            "value": score.value,
            "standard error": score.stderr,
            "items": score.n,
        }
    return {
        "tokens": batch.fingerprint,
        "seconds": found["seconds"],
        "versions": found["versions"],
        "losses": losses,
    }


def main() -> None:
    """Compute the draws that the record lacks, each in a folder of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--peer", required=True, help="the Python of an environment with llmcompressor"
    )
    parser.add_argument("--draws", type=int, default=1)
    asked = parser.parse_args()
    study = yaml.safe_load((HERE / "smollm2.yaml").read_text("utf-8"))
    question = {
        "asked": {name: study[name] for name in ("model", "dtype", "tokens", "length", "evaluate")},
        "machine": machine.facts(),
    }
    record = machine.started(RECORD, question, "draws")
    for seed in range(asked.draws):
        if str(seed) not in record["draws"]:
            with tempfile.TemporaryDirectory() as folder:
                record["draws"][str(seed)] = draw(study, seed, asked.peer, Path(folder))
            machine.keep(RECORD, record)
    print(json.dumps(record["draws"], indent=1))


if __name__ == "__main__":
    main()
