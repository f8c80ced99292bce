"""How long an importance matrix takes next to llama.cpp: python benchmarks/imatrix.py [--samples
16] [--length 512] [--rounds 5] [--out FILE]

SmolLM2 in float32 and the same windows for both: ours gathers them in torch, as `calibrant imatrix`
does; theirs is the forward of llama.cpp over an F32 GGUF file of the same numbers, watched through
its callback, as llama-imatrix does. Each input is read once there, and not once for each matrix
that it is multiplied with, which is to llama.cpp's advantage. Each way runs in a process of its
own, with as many threads; they take turns, the first of a pair by turns too, so that a slow moment
of the machine meets both. Timed is the gathering: the model is open before, and writing comes
after. Processor seconds stand beside those of the clock. Names and counts must be equal, and how
far the sums are apart is said.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine
from benchmarks.ways import peak

HERE: Final = Path(__file__).resolve()
WAYS: Final = ("llama_cpp", "calibrant")
DATA: Final = "python_docs@imatrix"
READS: Final = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "kqv_out": ("attn_output",),
    "ffn_norm": ("ffn_gate", "ffn_up"),
    "ffn_swiglu": ("ffn_down",),
}
"""What llama.cpp calls the inputs of a llama's products, and which tensors they are multiplied
with.
"""

Sums = dict[str, tuple[np.ndarray, int]]
"""Σ x² of each column and the tokens, by tensor."""


class Watched:
    """A GGUF file of a llama whose inputs llama.cpp's own callback shows: a literal
    llama-imatrix. `sums` holds what was seen.
    """

    def __init__(self, path: Path, length: int, threads: int) -> None:
        import gguf
        from cffi import FFI
        from llama_cpp_py_sync import _cffi_bindings as bindings

        from calibrant.llama_cpp import LlamaModel
        from calibrant.llama_cpp.library import llama

        ffi, _ = llama()
        own = FFI()
        own.cdef("""
            const char * ggml_get_name(const void * tensor);
            size_t ggml_nbytes(const void * tensor);
            void ggml_backend_tensor_get(
                const void * tensor, void * data, size_t offset, size_t size);
        """)
        base: Any = own.dlopen(
            str(next(iter(sorted(Path(bindings.__file__).parent.glob("*ggml-base*")))))
        )
        self.sums: Sums = {}
        columns = {str(t.name): int(t.shape[0]) for t in gguf.GGUFReader(path).tensors}

        @ffi.callback("ggml_backend_sched_eval_callback")
        def look(tensor: Any, asks: bool, data: Any) -> bool:
            address = own.cast("void *", int(ffi.cast("uintptr_t", tensor)))
            what, _, block = own.string(base.ggml_get_name(address)).decode().partition("-")
            if what not in READS or not block.isdigit():
                return not asks
            if not asks:
                values = np.zeros(base.ggml_nbytes(address) // 4, dtype=np.float32)
                base.ggml_backend_tensor_get(address, own.from_buffer(values), 0, values.nbytes)
                for read in READS[what]:
                    name = f"blk.{block}.{read}.weight"
                    rows = values.reshape(-1, columns[name])
                    before, tokens = self.sums.get(name, (0.0, 0))
                    self.sums[name] = (
                        before + np.square(rows, dtype=np.float64).sum(0),
                        tokens + len(rows),
                    )
            return True

        self._kept = look  # as long as llama.cpp may call it
        self.model = LlamaModel(path, length, threads, exact=True, watch=look)

    def see(self, windows: Sequence[Sequence[int]]) -> Sums:
        """Run the windows, one after the other, and return what was seen."""
        for window in windows:
            self.model.logits(window)
        return self.sums


def prepare(folder: Path, samples: int, length: int) -> None:
    """The model as an F32 GGUF file, which both open, and the windows."""
    import gguf

    import calibrant
    from calibrant.models import gguf_of, view
    from calibrant.models.gguf_writing import plain, write_gguf

    opened, template = calibrant.open_model("smollm2", "float32", "cpu"), gguf_of("smollm2")
    assert template is not None
    write_gguf(
        view(opened.model),
        template,
        folder / "model.gguf",
        lambda part: plain(part, gguf.GGMLQuantizationType.F32),
        {},
    )
    batch = calibrant.CalibrationSet(DATA, samples=samples, length=length).tokens(opened.tokenizer)
    (folder / "windows.json").write_text(json.dumps(batch.ids.tolist()))


def child(way: str, samples: int, length: int, folder: Path) -> None:
    """One way in this process; what it found lies in the folder."""
    import torch

    import calibrant

    threads = torch.get_num_threads()
    if way == "calibrant":
        opened = calibrant.open_model(str(folder / "model.gguf"), "float32", "cpu")
        data = calibrant.CalibrationSet(DATA, samples=samples, length=length)
        began, processor = time.perf_counter(), time.process_time()
        made = calibrant.imatrix(opened, data=data)
        sums: Sums = {
            name: (entry.sums[0], int(entry.counts[0])) for name, entry in made.entries.items()
        }
    else:
        watched, windows = (
            Watched(folder / "model.gguf", length, threads),
            json.loads((folder / "windows.json").read_text()),
        )
        began, processor = time.perf_counter(), time.process_time()
        sums = watched.see(windows)
    found = {
        "seconds": time.perf_counter() - began,
        "processor": time.process_time() - processor,
        "peak": peak(),
    }
    counts = {name: tokens for name, (_, tokens) in sums.items()}
    np.savez(folder / f"{way}.npz", **{name: values for name, (values, _) in sums.items()})
    print(json.dumps({**found, "counts": counts, "threads": threads}))


def run(way: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a process that goes one way says."""
    words = [
        "--way",
        way,
        "--folder",
        str(folder),
        "--samples",
        str(asked.samples),
        "--length",
        str(asked.length),
    ]
    done = subprocess.run(
        [sys.executable, HERE, *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{way}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def apart(folder: Path, pair: dict[str, dict[str, Any]]) -> tuple[float, float]:
    """The median and the largest relative difference of the sums; names and counts are equal."""
    assert pair["calibrant"]["counts"] == pair["llama_cpp"]["counts"], (
        "the two saw other tensors or other tokens"
    )
    with np.load(folder / "calibrant.npz") as ours, np.load(folder / "llama_cpp.npz") as theirs:
        differences = np.concatenate(
            [np.abs(ours[name].astype(np.float64) / theirs[name] - 1) for name in theirs.files]
        )
    return float(np.median(differences)), float(differences.max())


def summary(
    rounds: Sequence[dict[str, dict[str, Any]]], differences: tuple[float, float]
) -> dict[str, Any]:
    """What the rounds say: ratios of each pair, above 1 where ours is faster."""
    return {
        "seconds": {way: [pair[way]["seconds"] for pair in rounds] for way in WAYS},
        "processor": {way: [pair[way]["processor"] for pair in rounds] for way in WAYS},
        "ratios": [pair["llama_cpp"]["seconds"] / pair["calibrant"]["seconds"] for pair in rounds],
        "processor_ratios": [
            pair["llama_cpp"]["processor"] / pair["calibrant"]["processor"] for pair in rounds
        ],
        "peaks": {way: max(pair[way]["peak"] for pair in rounds) for way in WAYS},
        "apart": {"median": differences[0], "largest": differences[1]},
    }


def line(found: dict[str, Any]) -> str:
    """What is told of it."""
    seconds = {way: statistics.median(taken) for way, taken in found["seconds"].items()}
    ratios, processor = found["ratios"], statistics.median(found["processor_ratios"])
    return (
        f"llama.cpp {seconds['llama_cpp']:.1f} s   calibrant {seconds['calibrant']:.1f} s   "
        f"{statistics.median(ratios):.2f} times faster ({min(ratios):.2f} to {max(ratios):.2f}; "
        f"processor seconds {processor:.2f})   "
        f"peak {found['peaks']['llama_cpp']:,.0f} and {found['peaks']['calibrant']:,.0f} MiB   "
        f"sums apart by a median of {found['apart']['median']:.1e}, at most "
        f"{found['apart']['largest']:.1e}"
    )


def main() -> None:
    """Run the rounds and print a line, then the record as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--quick", action="store_true", help="2 × 128 tokens, one round: does everything work?"
    )
    parser.add_argument("--out", type=Path, help="a file that keeps what was measured")
    for hidden in ("--way", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if asked.way:
        child(asked.way, asked.samples, asked.length, Path(asked.folder))
        return
    if asked.quick:
        asked.samples, asked.length, asked.rounds = 2, 128, 1
    with tempfile.TemporaryDirectory() as name:
        folder, about = Path(name), machine.facts()
        prepare(folder, asked.samples, asked.length)
        print(
            f"smollm2 (dequantized from Q4_1), float32, {asked.samples} × {asked.length} tokens; "
            f"{machine.told(about)}",
            flush=True,
        )
        rounds = [
            {way: run(way, asked, folder) for way in (WAYS if at % 2 == 0 else WAYS[::-1])}
            for at in range(asked.rounds)
        ]
        found = summary(rounds, apart(folder, rounds[-1]))
    print(line(found))
    record = {
        "asked": {name: getattr(asked, name) for name in ("samples", "length", "rounds")},
        "machine": about,
        "found": found,
    }
    record["versions"] = {
        name: version(name) for name in ("calibrant", "torch", "llama-cpp-py-sync")
    }
    machine.keep(asked.out, record)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
