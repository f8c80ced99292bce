"""GGUF files: sound or damaged, what their weights were quantized to, and opening them as a dense model of transformers."""

import functools
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast, final

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast, modeling_gguf_pytorch_utils

from calibrant.models.complete import check_complete, check_fits, outline, refuse_unused
from calibrant.models.configuring import Room, check_counts, check_sizes
from calibrant.models.gguf_header import Header, check_magic, read_header
from calibrant.models.keeping import Keeping
from calibrant.models.quiet import Refusal
from calibrant.models.saving import forget_quantization
from calibrant.models.tokenizing import check_ids, gguf_tokenizer

FLOATS: Final = ("F32", "F16", "BF16", "F64")

_COUNTED: Final = {"block_count": "num_hidden_layers", "expert_count": "num_experts"}
_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_NO_PLACE: Final = re.compile(r"^rope_f|rot_embd|_exps\.|^output\.weight$")
"""Tables of angles, which a model makes itself; experts, which transformers puts together; a head, which it may tie."""


def open_gguf(path: Path, dtype: torch.dtype, digest: str) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """The model, its tokenizer, and a note such as "dequantized from Q4_1" (empty if nothing was quantized).

    `digest` is that of the file: by it the dequantized model is kept in the user's cache, as `keeping` says. Raises `ModelError` for a file that is
    no GGUF, is truncated or damaged, holds blocks or tensors that the model has no place for, or is of an architecture that transformers can't
    read.
    """
    header = _header(path)
    keeping = Keeping(digest, dtype)
    kept = keeping.model()
    with _each_step_once() as places:
        model, note = kept or _dequantized(path, dtype)
        tokenizer = gguf_tokenizer(path)
    forget_quantization(model)
    if places:
        _check_used(header, places, str(path))
    check_ids(tokenizer, model, str(path))
    if kept is None:
        keeping.keep(model, note)
    model.config.name_or_path = model.name_or_path = str(path.parent)
    model.config.architectures = [type(model).__name__]  # as it is once the model has been saved
    return model, tokenizer, note


def _header(path: Path) -> Header:
    """The file's header, if it has as many blocks as it says."""
    check_magic(path)
    with Refusal(f"{path} is truncated or damaged", "; download it again", str(path)):
        header = read_header(path)
    counts = {_COUNTED[kind]: value for key, value in header.values.items() if (kind := key.partition(".")[2]) in _COUNTED}
    check_counts(counts, str(path), Room.of(header.tensors.values()))
    blocks = counts.get("num_hidden_layers")
    for name in header.tensors:
        block = _BLOCK.match(name)
        if block and isinstance(blocks, int) and int(block[1]) >= blocks:
            refuse_unused(name, str(path))
    return header


def _check_used(header: Header, places: Collection[str], ref: str) -> None:
    """Raise `ModelError` for a tensor whose name has no place in the model: transformers passes over it in silence."""
    for name in sorted(header.tensors):
        if name not in places and not _NO_PLACE.search(name):
            refuse_unused(name, ref)


def _dequantized(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    reader = _read(path)
    config = _opened(path, AutoConfig)
    check_sizes(config, str(path))
    with _opening(path):
        empty = outline(config)
    if empty is not None:
        check_fits(empty, sum(int(tensor.n_elements) for tensor in reader.tensors), str(path))
    # A file's weights would stay packed where a kernel for that is at hand: they are wanted as plain numbers.
    options: dict[str, Any] = {"dtype": dtype, "quantization_config": GgufConfig(dequantize=True), "output_loading_info": True}
    model, loaded = _opened(path, AutoModelForCausalLM, config=config, **options)
    check_complete(loaded, str(path))
    return model, quantization(reader)


def _opened(path: Path, kind: Any, **options: Any) -> Any:
    """What transformers makes of the file."""
    with _opening(path):
        return kind.from_pretrained(path.parent, gguf_file=path.name, **options)


def _opening(path: Path) -> Refusal:
    return Refusal(f"{path} is a GGUF file that transformers can't open", "; try a folder of safetensors", str(path))


def quantization(reader: gguf.GGUFReader) -> str:
    """What most numbers of the file are quantized to, as a note; empty if all are plain floats."""
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    packed = [kind for kind, _ in sizes.most_common() if kind not in FLOATS]
    return f"dequantized from {packed[0]}" if packed else ""


def _read(path: Path) -> gguf.GGUFReader:
    with Refusal(f"{path} is truncated or damaged", "; download it again", str(path)):
        return gguf.GGUFReader(path)


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
def _each_step_once() -> Iterator[set[str]]:
    """While it lasts, the file is parsed once and the map of names made once, without a progress bar. It gives the names that have a place.

    transformers 5.24 parses the file anew for the configuration and for the weights, and makes the map once for every module: 8 of the 15
    seconds that SmolLM2 takes to open. Both are only read, so one copy serves.
    """
    library, legacy = cast(Any, gguf), cast(Any, modeling_gguf_pytorch_utils)
    reader, names, bar, weights_map = library.GGUFReader, library.get_tensor_name_map, legacy.tqdm, legacy.get_gguf_hf_weights_map
    once = functools.cache(_Reader)
    places: set[str] = set()

    def mapped(*given: Any, **options: Any) -> dict[str, str]:
        found = weights_map(*given, **options)
        places.update(found)
        return found

    library.GGUFReader = lambda path: once(Path(path))
    library.get_tensor_name_map = functools.cache(names)
    legacy.tqdm = lambda steps, **_: steps
    legacy.get_gguf_hf_weights_map = mapped
    try:
        yield places
    finally:
        library.GGUFReader, library.get_tensor_name_map, legacy.tqdm, legacy.get_gguf_hf_weights_map = reader, names, bar, weights_map
