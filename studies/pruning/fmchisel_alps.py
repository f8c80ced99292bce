"""The ALPS of fmchisel on weights and Grams of a file; `layers.py` starts it with the interpreter
of an environment that has fmchisel 0.1.2.

It imports modules of llmcompressor 0.5.1, and runs on a processor with torch 2.13 (newer than it
asks for) in an environment made so: pip install "transformers<4.53" "datasets<5" "numpy>=2"
compressed-tensors==0.9.4 dataclasses_json accelerate loguru pydantic torch pip install --no-deps
llmcompressor==0.5.1 fmchisel==0.1.2
"""

import sys
import time
from pathlib import Path
from typing import Any


def main(given: Path, made: Path, target: str) -> None:
    """Prune every matrix of `given` to `target`, and write each with its seconds of the
    processor to `made`.
    """
    import torch
    from fmchisel.pruning.alps.utils.alps_sparsify import sparsify_weight

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if ":" in target:
        n, m = map(int, target.split(":"))
        sparsity = 1 - n / m
    else:
        n, m = 0, 0
        sparsity = float(target)
    done: dict[str, Any] = {}
    for name, (weight, hessian) in torch.load(given).items():
        module = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        module.weight.copy_(weight)
        began = time.process_time()
        _, pruned = sparsify_weight(module, {module: hessian}, sparsity, prunen=n, prunem=m)
        done[name] = pruned.detach().clone(), time.process_time() - began
    torch.save(done, made)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
