"""A model that is larger than the memory it may take: python benchmarks/larger.py [--method gptq
--target w4g64] [--memory 4] [--out FILE]

A random Llama (by default of three billion numbers, 6 GB in bfloat16) is written block by block,
and pruned with Wanda to 2:4 by a process that the system lets have no more private memory than was
promised (RLIMIT_DATA). A second process is killed once half of the blocks are done, and a third
goes on from there; what both wrote is compared by SHA-256. Seconds are those of the processor,
since other work changes them less. In FILE other methods and targets that were measured on the same
machine stay.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine

SHAPE: Final = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
}
SPREAD: Final = 0.02


def write_model(folder: Path, blocks: int, shape: Mapping[str, int] = SHAPE) -> int:
    """Write a random Llama of this shape into `folder`, one tensor in memory at a time, and return
    how many numbers it has.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from calibrant.models.on_disk import Shard
    from calibrant.testing.tiny import tiny_tokenizer

    config = LlamaConfig(
        **shape,
        num_hidden_layers=blocks,
        max_position_embeddings=4096,
        dtype="bfloat16",
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        described = {
            name: tensor.bfloat16()
            for name, tensor in LlamaForCausalLM(config).state_dict().items()
        }
    shard, random = (
        Shard.of(described, folder / "model.safetensors"),
        torch.Generator().manual_seed(0),
    )
    shard.begin()
    for name, tensor in described.items():
        numbers = (
            torch.ones(tensor.shape)
            if tensor.dim() == 1
            else torch.randn(tensor.shape, generator=random) * SPREAD
        )
        shard.write({name: numbers.bfloat16()})
    return sum(tensor.numel() for tensor in described.values())


CHILD: Final = """
import json, resource, sys, time
model, data, out, memory, samples, length, method, target = sys.argv[1:]
limit = int(float(memory) * 1e9)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from calibrant.compress import prune, quantize
from calibrant.system.process import own_process
own_process()
run = quantize if target.startswith("w") else prune
def told(what, done, total):
    print(what, done, total, file=sys.stderr, flush=True)
done = run(
    model,
    data=data,
    method=method,
    target=target,
    out=out,
    samples=int(samples),
    length=int(length),
    dtype="bfloat16",
    device="cpu",
    memory=float(memory),
    profile=True,
    progress=told,
)
how = done.record.provenance
facts = {
    "note": how["note"],
    "peak": how["peak_memory_bytes"],
    "seconds": time.process_time(),
    "continued": done.continued_from,
    "sparsity": done.record.sparsity,
    "phases": dict(done.costs.phases),
    "parts": dict(done.costs.parts),
}
print(json.dumps(facts))
"""


def start(asked: argparse.Namespace, folder: Path, out: str) -> "subprocess.Popen[str]":
    """Start a job under the limit."""
    told = (
        folder / "model",
        folder / "texts.txt",
        folder / out,
        asked.memory,
        asked.tokens // asked.length,
        asked.length,
        asked.method,
        asked.target,
    )
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, told)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(job: "subprocess.Popen[str]") -> dict[str, Any]:
    """What a job says at its end."""
    out, errors = job.communicate()
    if job.returncode:
        raise SystemExit(errors[-2000:])
    said = json.loads(out.splitlines()[-1])
    return {**said, "note": re.sub(r"^\S*/model", "the model", said["note"])}


def killed(job: "subprocess.Popen[str]", blocks: int) -> str:
    """Kill a job when it says that so many blocks are done; its last word."""
    assert job.stderr is not None
    line = ""
    for line in job.stderr:
        if f" {blocks} " in line and "statistics" not in line:
            job.send_signal(signal.SIGKILL)
            break
    job.wait()
    return line.strip()


def digests(folder: Path) -> Mapping[str, str]:
    """The SHA-256 of each file of weights."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def main() -> None:
    """Write the model, prune it, kill and go on, and keep the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--memory", type=float, default=4.0)
    parser.add_argument("--blocks", type=int, default=28)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--method", default="wanda")
    parser.add_argument("--target", default="2:4")
    parser.add_argument("--without-kill", action="store_true")
    parser.add_argument("--out", type=Path, help="a file that keeps what was measured")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.process_time()
        numbers = write_model(folder / "model", asked.blocks)
        print(
            f"{numbers / 1e9:.2f} billion numbers, written in {time.process_time() - began:.0f} s",
            flush=True,
        )
        words = "\n".join(
            f"line {i} says that {i} and {i + 1} make {2 * i + 1}, and then some more words follow"
            for i in range(asked.tokens // 20)
        )
        (folder / "texts.txt").write_text(words)
        case: dict[str, Any] = {
            key: getattr(asked, key)
            for key in ("memory", "blocks", "tokens", "length", "method", "target")
        }
        case |= {
            "numbers": numbers,
            "bytes": os.path.getsize(folder / "model" / "model.safetensors"),
        }
        case["whole"] = finished(start(asked, folder, "whole"))
        print(json.dumps(case["whole"]), flush=True)
        keep(asked.out, case)
        if not asked.without_kill:
            whole = digests(folder / "whole")
            shutil.rmtree(folder / "whole")
            case["killed"] = killed(start(asked, folder, "again"), asked.blocks // 2)
            case["again"] = finished(start(asked, folder, "again"))
            case["same"] = digests(folder / "again") == whole
            print(json.dumps(case["again"]), case["same"], flush=True)
            keep(asked.out, case)


def keep(out: Path | None, case: Mapping[str, Any]) -> None:
    """Put a case into the record, if there is one, beside the others of this machine."""
    record = machine.started(out, {"machine": machine.facts()}, "cases")
    machine.keep(
        out, {**record, "cases": {**record["cases"], f"{case['method']} {case['target']}": case}}
    )


if __name__ == "__main__":
    main()
