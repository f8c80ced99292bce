"""What computes a model's predictions: torch, or what will run the model, so that it is measured
as it will run: llama.cpp for a GGUF file, vLLM for a folder.
"""

from importlib.metadata import version
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, Literal, final, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from calibrant.errors import ModelError, SpecError
from calibrant.evaluators._base import Evaluator
from calibrant.llama_cpp import LlamaModel
from calibrant.models import Opened, gguf_of, open_model
from calibrant.models.digests import file_digest
from calibrant.models.gguf_file import gguf_tokenizer, read_header
from calibrant.spec import identity
from calibrant.spec.foreign import did_you_mean
from calibrant.vllm import RunByVllm, opened_by_vllm

Engine = Literal["torch", "llama_cpp", "vllm"]
ENGINES: Final = get_args(Engine)
MEASURED: Final = {
    "llama_cpp": ("loss", "agreement"),
    "vllm": ("loss", "perplexity", "generation"),
}
"""The tasks that each engine but torch can measure. llama.cpp gives logits of whole windows. vLLM
gives the likelihood of their tokens, and continues prompts.
"""


def check_engine(engine: str, tasks: list[Evaluator]) -> None:
    """Raise `SpecError` for an engine that there isn't, or a task that it can't measure."""
    if engine not in ENGINES:
        raise SpecError(
            f"there is no engine {engine!r}{did_you_mean(engine, ENGINES)}; "
            f"choose one of {', '.join(ENGINES)}",
            subject=engine,
        )
    if engine not in MEASURED:
        return
    measured = MEASURED[engine]
    for task in tasks:
        if task.spec_name() not in measured:
            raise SpecError(
                f"{task} can't be measured with {engine}, which measures only "
                f"{', '.join(measured)}; leave engine out",
                subject=str(task),
            )


def runs_by(engine: str, opened: Opened) -> bool:
    """Return whether an engine that isn't torch runs this open model."""
    runner = RunByVllm if engine == "vllm" else RunByLlamaCpp
    return isinstance(opened.model, runner)


def opened_by(engine: str, ref: str, dtype: str, device: str) -> Opened:
    """Open a model as an engine runs it that isn't torch. `dtype` and `device` are for vLLM."""
    if engine == "vllm":
        return opened_by_vllm(ref, dtype, device)
    return opened_by_llama_cpp(ref)


def opened_by_llama_cpp(ref: str) -> Opened:
    """Open a GGUF file as llama.cpp runs it. Raises `ModelError` for anything else, and
    `MissingPackageError` without the package.
    """
    path = gguf_of(ref)
    if path is None:
        raise ModelError(
            f"{ref} is no GGUF file, and llama.cpp runs nothing else; "
            f"leave engine out, or give the file",
            subject=ref,
        )
    tokenizer = gguf_tokenizer(path)
    digest = file_digest(path)
    # Opened with a context of 8 tokens: a file that can't be opened is refused now, and not while
    # it is measured.
    LlamaModel(path, 8).close()
    engine = f"llama.cpp, llama-cpp-py-sync {version('llama-cpp-py-sync')}"
    return Opened(
        RunByLlamaCpp(path),
        tokenizer,
        ref,
        identity([digest, engine]),
        f"as {engine} runs it",
        torch.float32,
    )


@final
class RunByLlamaCpp(PreTrainedModel):
    """Gives logits as a model of transformers does. It has no parameters."""

    def __init__(self, path: Path) -> None:
        super().__init__(PretrainedConfig())
        self._path = path
        self._model: LlamaModel | None = None

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def forward(
        self,
        input_ids: Int[Tensor, "sample position"],
        attention_mask: Tensor | None = None,
        use_cache: bool = False,
    ) -> Any:
        """Return the logits [sample, position, vocabulary] as `.logits`; padding, on the right,
        gets none and is zero.
        """
        del use_cache
        lengths = [input_ids.shape[1]] * len(input_ids)
        if attention_mask is not None:
            lengths = attention_mask.sum(1).tolist()
        model = self._open(max(lengths))
        rows: list[Tensor] = []
        for ids, length in zip(input_ids, lengths, strict=True):
            rows.append(torch.from_numpy(model.logits(ids[:length].tolist())))
        return SimpleNamespace(logits=nn.utils.rnn.pad_sequence(rows, batch_first=True))

    def in_torch(self, room: int) -> PreTrainedModel | None:
        """Return a model of torch with the file's numbers, in float32; None where it would take
        more than `room` bytes or can't be opened.
        """
        numbers = sum(prod(shape) for shape in read_header(self._path).tensors.values())
        if 4 * numbers > room:
            return None
        try:
            return open_model(str(self._path), "float32", "cpu").model
        except ModelError:
            return None

    def _open(self, length: int) -> LlamaModel:
        """Return the model with a context of at least so many tokens."""
        # A context takes memory by its length, so it grows only when it must.
        if self._model is None or self._model.length < length:
            if self._model is not None:
                self._model.close()
            self._model = LlamaModel(self._path, length, torch.get_num_threads())
        return self._model
