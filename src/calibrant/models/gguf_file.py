"""GGUF files: sound or damaged, what their weights were quantized to, and opening them as a dense model of transformers."""

import functools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast, final

import gguf
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast, modeling_gguf_pytorch_utils

from calibrant.errors import ModelError
from calibrant.models.complete import check_complete
from calibrant.models.keeping import Keeping
from calibrant.models.quiet import quoted
from calibrant.models.saving import forget_quantization

MAGIC: Final = b"GGUF"
FLOATS: Final = ("F32", "F16", "BF16", "F64")


def open_gguf(path: Path, dtype: torch.dtype, digest: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """The model, its tokenizer, and a note such as "dequantized from Q4_1" (empty if nothing was quantized).

    `digest` is that of the file: by it the dequantized model is kept in the user's cache, as `keeping` says. Raises `ModelError` for a file that is
    no GGUF, is truncated or damaged, or is of an architecture that transformers can't read.
    """
    check_magic(path)
    keeping = Keeping(digest, dtype)
    kept = keeping.model()
    with _each_step_once():
        model, note = kept or _dequantized(path, dtype)
        # Not AutoTokenizer, which reads the whole file again only to come to the same class.
        tokenizer = _opened(path, PreTrainedTokenizerFast)
    forget_quantization(model)
    if kept is None:
        keeping.keep(model, note)
    model.config.name_or_path = model.name_or_path = str(path.parent)
    model.config.architectures = [type(model).__name__]  # as it is once the model has been saved
    return model, tokenizer, note


def _dequantized(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    note = quantization(_read(path))
    # A file's weights would stay packed where a kernel for that is at hand: they are wanted as plain numbers.
    asked: dict[str, Any] = {"dtype": dtype, "quantization_config": GgufConfig(dequantize=True), "output_loading_info": True}
    model, loaded = _opened(path, AutoModelForCausalLM, config=_opened(path, AutoConfig), **asked)
    check_complete(loaded, str(path))
    return model, note


def _opened(path: Path, kind: Any, **asked: Any) -> Any:
    """What transformers makes of the file."""
    try:
        return kind.from_pretrained(path.parent, gguf_file=path.name, **asked)
    except (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, StrictDataclassError) as error:
        raise ModelError(
            f"{path} is a GGUF file that transformers can't open ({quoted(error)}); try a folder of safetensors", subject=str(path)
        ) from error


def check_magic(path: Path) -> None:
    """Raise `ModelError` unless the file begins as GGUF files do."""
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ModelError(
                f"{path} is no GGUF file (it doesn't begin with {MAGIC.decode()}), or is truncated or damaged; download it again", subject=str(path)
            )


def quantization(reader: gguf.GGUFReader) -> str:
    """What most numbers of the file are quantized to, as a note; empty if all are plain floats."""
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    packed = [kind for kind, _ in sizes.most_common() if kind not in FLOATS]
    return f"dequantized from {packed[0]}" if packed else ""


def _read(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ModelError(f"{path} is truncated or damaged ({quoted(error)}); download it again", subject=str(path)) from error


@final
class _Reader(gguf.GGUFReader):
    """gguf's own reader, with the mapped file seen as a plain array: its vocabulary is read in a third of the time."""

    @property
    def data(self) -> Any:
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes = mapped.view(np.ndarray)


@contextmanager
def _each_step_once() -> Iterator[None]:
    """While it lasts, the file is parsed once and the map of names made once, without a progress bar.

    transformers 5.24 parses the file anew for the configuration and for the weights, and makes the map once for every module: 8 of the 15
    seconds that SmolLM2 takes to open. Both are only read, so one copy serves.
    """
    library, legacy = cast(Any, gguf), cast(Any, modeling_gguf_pytorch_utils)
    reader, names, bar = library.GGUFReader, library.get_tensor_name_map, legacy.tqdm
    once = functools.cache(_Reader)
    library.GGUFReader = lambda path: once(Path(path))
    library.get_tensor_name_map = functools.cache(names)
    legacy.tqdm = lambda steps, **_: steps
    try:
        yield
    finally:
        library.GGUFReader, library.get_tensor_name_map, legacy.tqdm = reader, names, bar
