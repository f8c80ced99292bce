"""What a real vLLM computes with our exports, next to our own numbers: python benchmarks/in_vllm.py
FOLDER [CASE ...] [--make] [--out FILE]

`make vllm` makes the environment. Each case is a model that is quantized once and exported into
FOLDER, which is all that --make does. Then vLLM and torch are shown the same windows of held-out
text, both in bfloat16. A token is alike where the one that vLLM finds most probable is one of those
that are so here; there may be several, since bfloat16 has few digits. What vLLM refuses is kept in
its words. A record keeps the cases of earlier calls.

Then our own model in float32 takes vLLM's place, which shows how far another arithmetic alone moves
the tokens. Where keys and values are in FP8, ours are also cut towards zero, as vLLM cuts them.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from calibrant.targets import CacheGrid

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks import machine

SMALL: Final = "smollm2"
LARGER: Final = "gemma3-270m"
"""Its rows can be divided into groups of 128, and those of SmolLM2 can't."""
DENSE: Final = "dense"
CACHE_IN_FP8: Final = "kv_fp8"
ADVICE: Final = "; take the engine torch"
"""How the end of a message begins that says what to do."""
TOKENS: Final = 2048
LENGTH: Final = 512
TASK: Final = f"loss(source=python_docs, tokens={TOKENS}, length={LENGTH})"
DATA: Final = {"data": "python_docs", "samples": 16, "length": 512}


@dataclass(frozen=True)
class Case:
    """A model, and what is done with it."""

    model: str
    method: str
    target: str

    @property
    def name(self) -> str:
        """What it is called in the record and on the command line."""
        words = [self.model, self.method, self.target]
        return " ".join(word for word in words if word)


CASES: Final = (
    Case(SMALL, DENSE, ""),
    Case(SMALL, "rtn", "w4g64"),
    Case(SMALL, "rtn", f"w4g64+{CACHE_IN_FP8}"),
    Case(SMALL, "rtn", "w4g32"),
    Case(SMALL, "rtn", "W8A16"),
    Case(SMALL, "rtn", "W8A8"),
    Case(SMALL, "rtn", "FP8"),
    Case(SMALL, "rtn", "FP8_DYNAMIC"),
    Case(SMALL, "rtn", "NVFP4A16"),
    Case(SMALL, "rtn", "MXFP4A16"),
    Case(SMALL, "rtn", "NVFP4"),
    Case(SMALL, "rtn", "MXFP4"),
    Case(LARGER, DENSE, ""),
    Case(LARGER, "rtn", "w4g128"),
    Case(LARGER, "rtn", "W4A8"),
    Case(LARGER, "rtn", "FP8_BLOCK"),
)


def made(case: Case, folder: Path) -> Path:
    """The folder of a case that vLLM opens; it is written where it isn't there."""
    import calibrant

    out = folder / case.name.replace(" ", "-")
    if case.method == DENSE:
        if not out.is_dir():
            opened = calibrant.open_model(case.model, "bfloat16", "cpu")
            opened.model.save_pretrained(out)
            opened.tokenizer.save_pretrained(out)
        return out
    if not out.is_dir():
        calibrant.quantize(
            case.model,
            method=case.method,
            target=case.target,
            out=out,
            dtype="bfloat16",
            device="cpu",
            export="compressed_tensors",
            **DATA,
        )
    return out / "compressed_tensors"


def compared(folder: Path, cache_in_fp8: bool) -> dict[str, Any]:
    """What vLLM and torch make of the windows: the tokens that are alike, and the losses. Where
    keys and values are in FP8, also with ours cut towards zero.
    """
    from calibrant.errors import ModelError
    from calibrant.vllm import RunByVllm, opened_by_vllm

    opened = opened_by_vllm(str(folder), "bfloat16")
    windows = _windows(opened.tokenizer)
    assert isinstance(opened.model, RunByVllm)
    began = time.perf_counter()
    try:
        # All at once, since vLLM starts anew for a window that is longer than those before.
        theirs = opened.model.scored([window.ids for window in windows])
    except ModelError as error:
        # Without the path of the folder, and what users are told to do.
        _, _, said = str(error).partition(": ")
        words, _, _ = said.partition(ADVICE)
        return {"refused": words.removeprefix("it says ")}
    seconds = time.perf_counter() - began
    del opened
    found = _compare(folder, windows, theirs)
    case: dict[str, Any] = {
        "tokens": found.tokens,
        "alike": found.alike,
        "ours": found.ours,
        "vllm": found.theirs,
        "apart": found.apart,
        "seconds": seconds,
    }
    if cache_in_fp8:
        with cache_cut_towards_zero():
            cut = _compare(folder, windows, theirs)
        assert cut.ours != found.ours, "keys and values weren't cut"
        case["cut"] = {"alike": cut.alike, "ours": cut.ours, "apart": cut.apart}
    return case


def arithmetic(folder: Path) -> dict[str, Any]:
    """The tokens that are alike, and losses apart, with our float32 in place of vLLM."""
    import torch

    import calibrant
    from calibrant.vllm import TokensInVllm

    opened = calibrant.open_model(str(folder), "float32", "cpu")
    windows = _windows(opened.tokenizer)
    in_float32: list[TokensInVllm] = []
    # Told of in the same form as vLLM's tokens.
    for window in windows:
        with torch.no_grad():
            rows = opened.model(torch.tensor([window.ids])).logits[0, :-1]
        following = torch.tensor(window.ids[1:])
        nats = torch.nn.functional.cross_entropy(rows, following, reduction="none")
        in_float32.append(TokensInVllm(nats.tolist(), rows.argmax(-1).tolist()))
    del opened
    found = _compare(folder, windows, in_float32)
    return {"alike": found.alike, "apart": found.apart}


class _Comparison(NamedTuple):
    """How many tokens were scored, how many are alike, the mean losses, and the mean of how far a
    token's two losses lie apart.
    """

    tokens: int
    alike: int
    ours: float
    theirs: float
    apart: float


@contextmanager
def cache_cut_towards_zero() -> Iterator[None]:
    """While it lasts, our keys and values in FP8 are cut towards zero, as vLLM 0.32 does on a
    processor without AMX.
    """
    import torch

    from calibrant.targets import CacheGrid

    def cut(self: "CacheGrid", numbers: "Tensor", scales: Sequence[float]) -> "Tensor":
        # One scale for all heads, as `kv_fp8` has.
        (scale,) = scales
        limits = torch.finfo(torch.float8_e4m3fn)
        exact = (numbers.float() / scale).clamp(limits.min, limits.max)
        nearest = exact.to(torch.float8_e4m3fn)
        too_far = nearest.float().abs() > exact.abs()
        # Among numbers of one sign, the code before is that of the next number towards zero.
        codes = nearest.view(torch.uint8) - too_far.to(torch.uint8)
        return (codes.view(torch.float8_e4m3fn).float() * scale).to(numbers.dtype)

    rounded = CacheGrid.rounded
    CacheGrid.rounded = cut
    try:
        yield
    finally:
        CacheGrid.rounded = rounded


def _windows(tokenizer: Any) -> list[Any]:
    """The windows of held-out text."""
    from calibrant.evaluators import evaluators

    task: Any = evaluators.build(TASK)
    return task.windows(tokenizer)


def _compare(folder: Path, windows: Sequence[Any], theirs: Sequence[Any]) -> _Comparison:
    """Put what others found beside what our model finds in bfloat16."""
    import torch

    import calibrant

    model = calibrant.open_model(str(folder), "bfloat16", "cpu").model
    alike = 0
    our_nats: list[float] = []
    their_nats: list[float] = []
    for window, found in zip(windows, theirs, strict=True):
        with torch.no_grad():
            rows = model(torch.tensor([window.ids])).logits[0, :-1].float()
        logarithms = rows.log_softmax(-1)
        for place in range(window.unscored - 1, len(window.ids) - 1):
            row = rows[place]
            alike += bool(row[found.likeliest[place]] == row.max())
            our_nats.append(-float(logarithms[place, window.ids[place + 1]]))
            their_nats.append(found.nats[place])
    apart = [abs(one - other) for one, other in zip(our_nats, their_nats, strict=True)]
    return _Comparison(
        len(our_nats),
        alike,
        statistics.fmean(our_nats),
        statistics.fmean(their_nats),
        statistics.fmean(apart),
    )


def chosen(names: Sequence[str]) -> list[Case]:
    """The cases that are named, or all of them."""
    if not names:
        return list(CASES)
    by_name = {case.name: case for case in CASES}
    return [by_name[name] for name in names]


def main() -> None:
    """Compare case by case, and print a line for each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the exports are")
    parser.add_argument("cases", nargs="*", help="such as 'smollm2 rtn W8A8'; all without any")
    parser.add_argument("--make", action="store_true", help="only write the exports")
    parser.add_argument("--out", type=Path, help="a file that keeps what was measured")
    asked = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    if asked.make:
        for case in chosen(asked.cases):
            print(made(case, asked.folder), flush=True)
        return
    from calibrant.vllm.process import interpreter, version_in

    versions = {name: version(name) for name in ("calibrant", "torch", "transformers")}
    versions["vllm"] = version_in(interpreter())
    question = {"task": TASK, "data": DATA, "machine": machine.facts(), "versions": versions}
    record = machine.started(asked.out, question, "cases")
    for case in chosen(asked.cases):
        folder = made(case, asked.folder)
        found = compared(folder, cache_in_fp8=case.target.endswith(CACHE_IN_FP8))
        if "refused" not in found:
            found["arithmetic"] = arithmetic(folder)
        record["cases"][case.name] = found
        machine.keep(asked.out, record)
        print(f"{case.name}: {json.dumps(found)}", flush=True)


if __name__ == "__main__":
    main()
