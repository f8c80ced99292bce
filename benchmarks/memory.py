"""Peak memory of pruning with a large calibration set, ours and llm-compressor's: python
benchmarks/memory.py [--samples 128] [--out FILE]

SmolLM2's first blocks alone (`--blocks`), since all blocks cost the same and only the weights of
the others would be added, to both alike. Each way is a process of its own and sees the same tokens;
a peak is the most memory that it held until the pruning was done. Times aren't compared.
"""

import argparse
import copy
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from benchmarks.peers import Setting, child, interpreter

DATA: Final = "python_code"
CASES: Final = {"wanda 0.5": ("wanda", "0.5"), "sparsegpt 0.5": ("sparsegpt", "0.5")}
WAYS: Final = {
    "calibrant, arrival": ("calibrant", "arrival"),
    "calibrant, reference": ("calibrant", "reference"),
    "llm-compressor": ("llmcompressor", ""),
}


def prepare(folder: Path, asked: argparse.Namespace) -> tuple[str, int]:
    """Save a model of the first blocks, and the tokens; their fingerprint, and the bytes of the
    weights that were left out.
    """
    import calibrant
    from calibrant.models import save

    opened = calibrant.open_model("smollm2", "float32")
    seen_by = calibrant.view(opened.model)
    rest = range(asked.blocks, len(seen_by.blocks))
    left_out = sum(
        p.numel() * p.element_size() for at in rest for p in seen_by.blocks[at].module.parameters()
    )
    seen_by.drop_blocks(list(rest))
    save(opened, folder / "model", {})
    batch = calibrant.CalibrationSet(DATA, samples=asked.samples, length=asked.length).tokens(
        opened.tokenizer
    )
    (folder / "tokens.json").write_text(json.dumps(batch.ids.tolist()))
    return batch.fingerprint, left_out


def measured(folder: Path, asked: argparse.Namespace, peer: Path, case: str, way: str) -> float:
    """The peak of one way, in MiB."""
    method, sparsity = CASES[case]
    who, propagate = WAYS[way]
    told: dict[str, Any] = {
        "method": method,
        "target": sparsity,
        "seed": 0,
        "dtype": "float32",
        "propagate": propagate,
        "data": DATA,
    }
    needs = copy.copy(asked)
    needs.peer_batch, needs.keep_freed = 1, False
    setting = Setting(folder, (), {}, (), 0.0, needs, peer)
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    found = child(setting, who, **told, tokens=str(folder / "tokens.json"), out=str(out))
    print(f"{case}, {way}: {found['peak']:,.0f} MiB in {found['seconds']:.0f} s", flush=True)
    return found["peak"]


def main() -> None:
    """Measure every case and way, and keep the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--peer", help="the Python of an environment that has llmcompressor")
    parser.add_argument("--out", type=Path, help="a file that keeps what was measured")
    asked = parser.parse_args()
    peer = interpreter(asked.peer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fingerprint, left_out = prepare(folder, asked)
        record: dict[str, Any] = {
            name: getattr(asked, name) for name in ("samples", "length", "blocks")
        }
        record |= {
            "tokens": fingerprint,
            "left_out": left_out / 2**20,
            "machine": machine.facts(),
            "cases": {},
        }
        for case in CASES:
            record["cases"][case] = {way: measured(folder, asked, peer, case, way) for way in WAYS}
            machine.keep(asked.out, record)


if __name__ == "__main__":
    main()
