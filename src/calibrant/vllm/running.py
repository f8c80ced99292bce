"""A model's folder as vLLM runs it: the losses and the answers that a server gives. vLLM runs in a
process of its own, so that its packages may be others than those of this one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

from calibrant.data import by_length
from calibrant.decoding import TOKENS_PER_BATCH, Ended, Generated, check_fit
from calibrant.errors import ModelError
from calibrant.models import Opened, gguf_of, located, open_tokenizer, resolve_dtype, saved_dtype
from calibrant.models.devices import check_device_name
from calibrant.models.digests import file_digests, folder_digest
from calibrant.models.folder import CONFIG, read_object, weight_files
from calibrant.models.rounded_inputs import INPUTS
from calibrant.models.saving import check_unchanged
from calibrant.numerics import type_name
from calibrant.spec import identity
from calibrant.vllm.process import VllmProcess, engine_in, interpreter, on_gpu

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


@dataclass(frozen=True)
class VllmSampling:
    """How vLLM draws tokens: after `temperature` (0: always the most probable) and `top_p`, with
    a seed for each prompt, among the first `vocabulary` tokens; None: among all.

    A text ends at one of the tokens `ends`, and at no other.
    """

    temperature: float
    top_p: float
    seeds: Sequence[int]
    ends: Sequence[int]
    vocabulary: int | None


def opened_by_vllm(ref: str, dtype: str = "auto", device: str = "auto") -> Opened:
    """Open a folder as vLLM runs it, in `dtype`; by default in the type that it was saved in. A
    `device` such as `cuda:1` is the GPU that vLLM takes; any other leaves the choice to vLLM.

    Raises `ModelError` for anything but a folder of safetensors, and for one whose inputs or KV
    cache vLLM would leave as they are though they were rounded; `MissingPackageError` without vLLM.
    """
    if gguf_of(ref) is not None:
        raise ModelError(
            f"{ref} is a GGUF file, and vLLM runs folders here; give a folder of safetensors, such "
            "as the export compressed_tensors, or leave engine out",
            subject=ref,
        )
    folder = located(ref)
    if (folder / INPUTS).is_file():
        raise ModelError(
            f"{ref} rounds its inputs or its KV cache, which {INPUTS} there says and vLLM doesn't "
            "read; quantize with the export compressed_tensors, and give the folder of that name "
            "in it",
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
    engine = engine_in(python)
    note = f"as {engine} runs it"
    if manifest.get("note"):
        note = f"{manifest['note']}; {note}"
    model = RunByVllm(ref, folder, type_name(resolved), python, device=device)
    digest = identity([folder_digest(digests), engine])
    return Opened(model, tokenizer, ref, digest, note, resolved)


@final
class RunByVllm(PreTrainedModel):
    """Says what vLLM finds of token ids. It has no parameters and no logits: vLLM gives only
    those of a few tokens.

    vLLM has room for `least_room` tokens, or for more as soon as there must be, and is given
    `settings` beside its usual ones. `device` is that of `opened_by_vllm`. Raises `ModelError` for
    a device that isn't known, and for a GPU that this process doesn't see.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        dtype: str,
        python: Path,
        least_room: int = 0,
        settings: Mapping[str, Any] | None = None,
        device: str = "auto",
    ) -> None:
        check_device_name(device)
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
        self._least_room = least_room
        self._settings = settings or {}
        self._gpu = on_gpu(device)
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

    def continued(
        self, prompts: Sequence[Sequence[int]], most: int, sampling: VllmSampling | None = None
    ) -> list[list[int]]:
        """Return up to `most` tokens behind each prompt, the most probable ones without `sampling`;
        fewer where vLLM stops at a token that ends texts, which is among them. Raises `ModelError`
        where it can't run the model.
        """
        room = max(map(len, prompts)) + most
        request: dict[str, Any] = {"prompts": list(prompts), "most": most}
        if sampling is not None:
            request["sampling"] = asdict(sampling)
        return self._started(room).ask(request)

    def close(self) -> None:
        """End vLLM's process, if there is one."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _started(self, room: int) -> VllmProcess:
        """Return vLLM with the model in it, and room for so many tokens at least."""
        # Room takes memory, so there is more only when there must be.
        room = max(room, self._least_room)
        if self._process is None or self._process.closed or self._room < room:
            self.close()
            variables = dict(self._gpu)
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
                **self._settings,
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


def _negative(logarithm: float | None) -> float:
    """Return the negative of a logarithm, which is None where it isn't finite."""
    if logarithm is None:
        return math.inf
    return -logarithm
