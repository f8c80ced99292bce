"""What is used of vLLM, made of transformers. A folder that is called `refused` is one that it has
no kernel for, one that is called `deadly` kills it, and one that is called `busy` keeps it busy
for ever.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


@dataclass
class SamplingParams:
    """How tokens are chosen."""

    temperature: float
    max_tokens: int
    prompt_logprobs: int | None = None
    detokenize: bool = True
    top_p: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False
    stop_token_ids: list[int] | None = None
    allowed_token_ids: list[int] | None = None


class Logprob(NamedTuple):
    """What is known of a token in a place."""

    logprob: float
    rank: int


class Written(NamedTuple):
    """What stands behind a prompt."""

    token_ids: list[int]


class Output(NamedTuple):
    """What is returned for a prompt."""

    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[Written]


class LLM:
    """A model that is open."""

    def __init__(
        self, model: str, dtype: str, max_model_len: int, load_format: str, enforce_eager: bool
    ) -> None:
        sys.stdout.write(f"Loading {model}\n")
        if Path(model).name == "refused":
            raise ValueError("Failed to find a kernel:\n none of\n  them\nfits.")
        if Path(model).name == "deadly":
            sys.stderr.write("out of memory\n")
            sys.stderr.flush()
            os._exit(9)
        while Path(model).name == "busy":
            time.sleep(0.1)
        config = json.loads((Path(model) / "config.json").read_text())
        if max_model_len > config["max_position_embeddings"]:
            assert os.environ["VLLM_ALLOW_LONG_MAX_MODEL_LEN"] == "1"
        import torch
        from transformers import AutoModelForCausalLM

        assert load_format == "safetensors"
        assert enforce_eager
        self._torch: Any = torch
        self._model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
        self._room = max_model_len

    def generate(
        self,
        prompts: list[dict[str, list[int]]],
        sampling_params: SamplingParams | list[SamplingParams],
        use_tqdm: bool = True,
    ) -> list[Output]:
        """Continue prompts, by their most probable tokens where `temperature` is 0."""
        assert not use_tqdm
        if isinstance(sampling_params, SamplingParams):
            sampling_params = [sampling_params] * len(prompts)
        outputs: list[Output] = []
        for prompt, sampling in zip(prompts, sampling_params, strict=True):
            outputs.append(self._output(prompt["prompt_token_ids"], sampling))
        return outputs

    def _output(self, ids: list[int], sampling: SamplingParams) -> Output:
        if len(ids) + sampling.max_tokens > self._room:
            raise ValueError("The prompt is too long.")
        written: list[int] = []
        ends = set(sampling.stop_token_ids or ())
        if not sampling.ignore_eos:
            ends.add(self._model.config.eos_token_id)
        generator = self._torch.Generator()
        if sampling.seed is not None:
            generator.manual_seed(sampling.seed)
        while len(written) < sampling.max_tokens and not ends & set(written[-1:]):
            row = self._logarithms(ids + written)[-1]
            written.append(self._next(row, sampling, generator))
        known: list[dict[int, Logprob] | None] | None = None
        if sampling.prompt_logprobs:
            known = [None, *self._known(ids)]
        return Output(ids, known, [Written(written)])

    def _next(self, row: Any, sampling: SamplingParams, generator: Any) -> int:
        if sampling.allowed_token_ids is not None:
            allowed = self._torch.full_like(row, -self._torch.inf)
            allowed[sampling.allowed_token_ids] = row[sampling.allowed_token_ids]
            row = allowed
        if sampling.temperature == 0:
            return int(row.argmax())
        likely, tokens = (row / sampling.temperature).softmax(-1).sort(descending=True)
        likely[likely.cumsum(0) - likely >= sampling.top_p] = 0
        return int(tokens[self._torch.multinomial(likely, 1, generator=generator)])

    def _known(self, ids: list[int]) -> list[dict[int, Logprob] | None]:
        known: list[dict[int, Logprob] | None] = []
        for token, row in zip(ids[1:], self._logarithms(ids), strict=False):
            best = int(row.argmax())
            rank = int((row > row[token]).sum()) + 1
            entries = {token: Logprob(float(row[token]), rank)}
            entries[best] = Logprob(float(row[best]), 1)
            known.append(entries)
        return known

    def _logarithms(self, ids: list[int]) -> Any:
        with self._torch.no_grad():
            logits = self._model(self._torch.tensor([ids])).logits[0]
        return logits.float().log_softmax(-1)
