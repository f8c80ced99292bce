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
        sampling_params: SamplingParams,
        use_tqdm: bool = True,
    ) -> list[Output]:
        """Continue prompts by their most probable tokens."""
        assert not use_tqdm
        assert sampling_params.temperature == 0
        return [self._output(prompt["prompt_token_ids"], sampling_params) for prompt in prompts]

    def _output(self, ids: list[int], sampling: SamplingParams) -> Output:
        if len(ids) + sampling.max_tokens > self._room:
            raise ValueError("The prompt is too long.")
        written: list[int] = []
        end = self._model.config.eos_token_id
        while len(written) < sampling.max_tokens and (not written or written[-1] != end):
            written.append(int(self._logarithms(ids + written)[-1].argmax()))
        known: list[dict[int, Logprob] | None] | None = None
        if sampling.prompt_logprobs:
            known = [None, *self._known(ids)]
        return Output(ids, known, [Written(written)])

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
