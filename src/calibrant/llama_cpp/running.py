"""A GGUF file as llama.cpp runs it: the logits of its own arithmetic, which rounds activations
too where weights are quantized.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
from jaxtyping import Float32

from calibrant.errors import ModelError
from calibrant.llama_cpp.library import last_error, llama


@final
class LlamaModel:
    """An open GGUF file with room for `length` tokens. Close it, or use `with`.

    `exact` keeps keys and values in float32, without flash attention. `watch` is a callback of the
    package's cffi, which is shown what is computed (`ggml_backend_sched_eval_callback`).
    """

    def __init__(
        self, path: Path, length: int, threads: int = 1, exact: bool = False, watch: Any = None
    ) -> None:
        self._ffi, self._library = llama()
        settings = self._library.llama_model_default_params()
        settings.n_gpu_layers = 0
        self._model = self._library.llama_model_load_from_file(str(path).encode(), settings)
        if self._model == self._ffi.NULL:
            raise ModelError(
                f"llama.cpp can't open {path}{last_error()}; "
                f"is it a GGUF file of a model, of an architecture that it knows?",
                subject=str(path),
            )
        context = self._library.llama_context_default_params()
        context.n_ctx = length
        context.n_batch = length
        context.n_ubatch = length
        context.n_threads = threads
        context.n_threads_batch = threads
        if exact:
            # The number of float32 among ggml's types, and of "off".
            context.type_k = 0
            context.type_v = 0
            context.flash_attn_type = 0
        if watch is not None:
            context.cb_eval = watch
        self._context = self._library.llama_init_from_model(self._model, context)
        if self._context == self._ffi.NULL:
            self._library.llama_model_free(self._model)
            raise ModelError(
                f"llama.cpp has no room for {length:,} tokens of {path}; use shorter windows",
                subject=str(path),
            )
        vocabulary = self._library.llama_model_get_vocab(self._model)
        self._size = self._library.llama_vocab_n_tokens(vocabulary)
        self.length = length

    def logits(self, ids: Sequence[int]) -> Float32[np.ndarray, "token vocabulary"]:
        """Return the logits at each of these tokens, which see nothing of earlier calls. Raises
        `ModelError` where llama.cpp fails.
        """
        library = self._library
        if not 0 < len(ids) <= self.length:
            raise ModelError(
                f"{len(ids):,} tokens were given, and there is room for 1 to {self.length:,}; "
                f"use shorter windows",
                subject=str(len(ids)),
            )
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        batch = library.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for place, token in enumerate(ids):
                batch.token[place] = int(token)
                batch.pos[place] = place
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = 0
                batch.logits[place] = 1
            code = library.llama_decode(self._context, batch)
            if code != 0:
                raise ModelError(
                    f"llama.cpp couldn't run {len(ids):,} tokens (code {code}); "
                    f"use shorter windows",
                    subject=str(code),
                )
            logits = library.llama_get_logits(self._context)
            buffer = self._ffi.buffer(logits, len(ids) * self._size * 4)
            # Copied: the next call writes to the same place.
            numbers = np.frombuffer(buffer, dtype=np.float32).copy()
            return numbers.reshape(len(ids), self._size)
        finally:
            library.llama_batch_free(batch)

    def close(self) -> None:
        """Give its memory back."""
        if self._context is not None:
            self._library.llama_free(self._context)
            self._library.llama_model_free(self._model)
            self._context = None

    def __enter__(self) -> "LlamaModel":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
