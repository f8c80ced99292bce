"""Runs one model in vLLM for `process.py`. This file is started by a Python that has vLLM and
needn't have calibrant: lines of JSON with token ids come in, and lines with what vLLM found go out.
"""

import importlib
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TextIO, final

VLLM: Final = "vllm"
"""It isn't imported by a statement, since it is no package that calibrant depends on."""


@final
class Served:
    """A model in vLLM, which is given `settings`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._vllm: Any = importlib.import_module(VLLM)
        self._model = self._vllm.LLM(**settings)

    def scored(self, prompts: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
        """Return the logarithm of the probability of each token but the first of a prompt, and the
        most probable token in its place.
        """
        # At least one token must be generated.
        outputs = self._run(prompts, self._greedy(max_tokens=1, prompt_logprobs=1))
        scored: list[dict[str, Any]] = []
        for output in outputs:
            logarithms: list[float | None] = []
            likeliest: list[int] = []
            # Nothing is known of the first token, which nothing predicts.
            for token, known in zip(
                output.prompt_token_ids[1:], output.prompt_logprobs[1:], strict=True
            ):
                by_token = {number: entry.logprob for number, entry in known.items()}
                logarithms.append(finite(by_token[token]))
                likeliest.append(max(by_token, key=by_token.__getitem__))
            scored.append({"logarithms": logarithms, "likeliest": likeliest})
        return scored

    def continued(self, prompts: Iterable[Sequence[int]], most: int) -> list[list[int]]:
        """Return the most probable tokens behind each prompt, at most so many."""
        return _written(self._run(prompts, self._greedy(max_tokens=most)))

    def sampled(
        self, prompts: Iterable[Sequence[int]], most: int, sampling: Mapping[str, Any]
    ) -> list[list[int]]:
        """Return tokens that are drawn behind each prompt, at most so many, with the one that ended
        them.
        """
        settings: dict[str, Any] = {
            "temperature": sampling["temperature"],
            "top_p": sampling["top_p"],
            "max_tokens": most,
            # Else the model's own end tokens would end texts too.
            "ignore_eos": True,
            "stop_token_ids": sampling["ends"],
            "detokenize": False,
        }
        if sampling["vocabulary"] is not None:
            settings["allowed_token_ids"] = list(range(sampling["vocabulary"]))
        drawn = [self._vllm.SamplingParams(seed=seed, **settings) for seed in sampling["seeds"]]
        return _written(self._run(prompts, drawn))

    def _greedy(self, **settings: Any) -> Any:
        return self._vllm.SamplingParams(temperature=0.0, detokenize=False, **settings)

    def _run(self, prompts: Iterable[Sequence[int]], sampling: Any) -> Any:
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        return self._model.generate(inputs, sampling, use_tqdm=False)


def _written(outputs: Iterable[Any]) -> list[list[int]]:
    """Return the tokens that vLLM wrote behind each prompt."""
    return [list(output.outputs[0].token_ids) for output in outputs]


def finite(logarithm: float) -> float | None:
    """Return a number that JSON has; None for all others."""
    if math.isfinite(logarithm):
        return logarithm
    return None


def answers_alone() -> TextIO:
    """Return the standard output for answers alone. What vLLM prints goes where errors go."""
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return output


def requests() -> Iterator[Any]:
    """Yield what each line of the standard input asks. Where there can be no more lines the process
    ends at once: nobody is left who waits for an answer.
    """
    lines: SimpleQueue[str] = SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    # In a thread, so that the end is seen while vLLM computes.
    Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def main() -> None:
    """Open the model that the first line says; then answer each line."""
    output = answers_alone()
    served: Served | None = None
    for asked in requests():
        reply: dict[str, Any] = {"answer": None}
        try:
            if served is None:
                served = Served(asked)
            elif "sampling" in asked:
                reply["answer"] = served.sampled(asked["prompts"], asked["most"], asked["sampling"])
            elif "most" in asked:
                reply["answer"] = served.continued(asked["prompts"], asked["most"])
            else:
                reply["answer"] = served.scored(asked["prompts"])
        except Exception as error:  # noqa: BLE001  # vLLM raises anything, and its words are wanted
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply, allow_nan=False), file=output, flush=True)


if __name__ == "__main__":
    main()
