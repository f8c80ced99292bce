"""GGUF files: sound or damaged, what their weights were quantized to, and opening them as a
dense model of transformers.
"""

import functools
import mmap
import re
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, cast, final

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)

from calibrant.errors import ModelError
from calibrant.models.cache import CachedModel
from calibrant.models.complete import check_complete, check_fits, outline, refuse_unused
from calibrant.models.configuring import Room, check_counts, check_sizes
from calibrant.models.quiet import Refusal
from calibrant.models.saving import forget_quantization
from calibrant.models.tokenizing import check_ids, check_template, try_out
from calibrant.spec.foreign import brief

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DIMENSIONS: Final = 4
LONGEST_NAME: Final = 2**16
TEXT, LIST = 8, 9
SCALARS: Final = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
ALIGNMENT: Final = 32
FLOATS: Final = ("F32", "F16", "BF16", "F64")

_COUNTED: Final = {"block_count": "num_hidden_layers", "expert_count": "num_experts"}
_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_NO_PLACE: Final = re.compile(r"^rope_f|rot_embd|_exps\.|^output\.weight$")
"""Tables of angles, which a model makes itself; experts, which transformers puts together; a
head, which it may tie.
"""


@final
@dataclass(frozen=True)
class Header:
    """The single values of a GGUF file's header by name, and the shape of each tensor."""

    values: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]


def check_magic(path: Path) -> None:
    """Raise `ModelError` unless the file begins as GGUF files do."""
    with (
        Refusal(f"{path} can't be read", "; is it yours to read?", str(path)),
        path.open("rb") as file,
    ):
        begins = file.read(len(MAGIC))
    if begins != MAGIC:
        raise ModelError(
            f"{path} is no GGUF file (it doesn't begin with {MAGIC.decode()}), or is truncated or damaged; download it again",
            subject=str(path),
        )


def read_header(path: Path) -> Header:
    """Return the header of a GGUF file. Raises `ValueError`, saying what, for one that is cut off
    or claims more than there is.

    The readers of gguf and transformers believe every count and length. A mangled one has them walk
    or allocate without end, so the header is gone through first: nothing in it may be larger than
    what is left of the file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _HeaderReader(content).header()


@final
class _HeaderReader:
    """A place in the file, which moves on with what is read."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, len(MAGIC)

    def header(self) -> Header:
        version, tensors, values = self._next("I"), self._next("Q"), self._next("Q")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, and 2 and 3 can be read")
        self._check_room(values, 13, "entries")
        read = [(self._text(LONGEST_NAME), self._value(self._next("I"))) for _ in range(values)]
        self._check_room(tensors, 24, "tensors")
        shapes: dict[str, tuple[int, ...]] = {}
        ends = 0
        for _ in range(tensors):
            name, shape, end = self._tensor()
            if name in shapes:
                raise ValueError(f"it holds {brief(name)} twice")
            shapes[name], ends = shape, max(ends, end)
        self._check_data(dict(read).get("general.alignment", ALIGNMENT), ends)
        return Header(dict(read), shapes)

    def _check_data(self, alignment: Any, ends: int) -> None:
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {brief(alignment)}, and no power of two")
        start = -(-self._at // alignment) * alignment
        if ends and start + ends > len(self._content):
            raise ValueError(
                f"its tensors end at byte {start + ends:,}, and it has {len(self._content):,}"
            )

    def _tensor(self) -> tuple[str, tuple[int, ...], int]:
        """A tensor's name, its shape, and where it ends in the data."""
        name, dimensions = self._text(LONGEST_NAME), self._next("I")
        if dimensions > DIMENSIONS:
            raise ValueError(
                f"{brief(name)} has {dimensions} dimensions, and {DIMENSIONS} are allowed"
            )
        shape = tuple(reversed([self._next("Q") for _ in range(dimensions)]))
        kind, offset = GGMLQuantizationType(self._next("I")), self._next("Q")
        block, size = GGML_QUANT_SIZES[kind]
        if shape and shape[-1] % block:
            raise ValueError(f"{brief(name)} has rows of {shape[-1]}, which {kind.name} can't pack")
        return name, shape, offset + prod(shape) // block * size

    def _value(self, kind: int) -> Any:
        """A single value, or a list's length: what is in it, nobody here asks."""
        if kind == TEXT:
            return self._text()
        if kind != LIST:
            return self._next(_scalar(kind))
        inner, count = self._next("I"), self._next("Q")
        if inner == TEXT:
            self._check_room(count, 8, "texts")
            self._skip_texts(count)
        else:
            self._skip(count * struct.calcsize(_scalar(inner)))
        return [count]

    def _skip_texts(self, count: int) -> None:
        """A vocabulary has a hundred thousand of them, so this is written to be quick."""
        length, at, size = struct.Struct("<Q").unpack_from, self._at, len(self._content)
        for _ in range(count):
            if at + 8 > size:
                break
            at += 8 + length(self._content, at)[0]
        self._skip(at - self._at)

    def _text(self, longest: int | None = None) -> str:
        length = self._next("Q")
        if longest is not None and length > longest:
            raise ValueError(f"a name in it has {length:,} bytes")
        start = self._at
        self._skip(length)
        return self._content[start : self._at].decode("utf-8")

    def _next(self, code: str) -> Any:
        start = self._at
        self._skip(struct.calcsize(code))
        return struct.unpack_from(f"<{code}", self._content, start)[0]

    def _skip(self, size: int) -> None:
        if self._at + size > len(self._content):
            raise ValueError(
                f"something of {size:,} bytes begins at byte {self._at:,}, and it has {len(self._content):,}"
            )
        self._at += size

    def _check_room(self, count: int, each: int, what: str) -> None:
        if count * each > len(self._content) - self._at:
            raise ValueError(
                f"it claims {count:,} {what} from byte {self._at:,} on, and has {len(self._content):,} bytes"
            )


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"an entry is of the unknown type {kind}")
    return f"{SCALARS[kind]}"


def open_gguf(
    path: Path, dtype: torch.dtype, digest: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """Return the model, its tokenizer, and a note such as "dequantized from Q4_1" (empty if nothing
    was quantized).

    `digest` is that of the file: by it the dequantized model lies in the user's cache, as `cache`
    says. Raises `ModelError` for a file that is no GGUF, is truncated or damaged, holds blocks or
    tensors that the model has no place for, or is of an architecture that transformers can't read.
    """
    header = _header(path)
    cache = CachedModel(digest, dtype)
    cached = cache.load()
    with _each_step_once() as places:
        model, note = cached or _dequantized(path, dtype)
        tokenizer = gguf_tokenizer(path)
    forget_quantization(model)
    if places:
        # transformers passes over a tensor whose name has no place in the model in silence.
        for name in sorted(header.tensors):
            if name not in places and not _NO_PLACE.search(name):
                refuse_unused(name, str(path))
    check_ids(tokenizer, model, str(path))
    if cached is None:
        cache.store(model, note)
    model.config.name_or_path = model.name_or_path = str(path.parent)
    model.config.architectures = [type(model).__name__]  # as it is once the model has been saved
    return model, tokenizer, note


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer in a GGUF file, whose weights aren't read. Raises `ModelError` as
    `folder_tokenizer` does.
    """
    check_magic(path)
    why = ": it is damaged, or of a kind transformers doesn't know; download it again"
    with Refusal(f"{path} has no tokenizer that can be read", why, str(path)):
        read_header(path)
        # Not AutoTokenizer, which reads the whole file again only to come to the same class.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
        try_out(tokenizer)
    check_template(tokenizer, str(path))
    return tokenizer


def _header(path: Path) -> Header:
    """The file's header, if it has as many blocks as it says."""
    check_magic(path)
    with Refusal(f"{path} is truncated or damaged", "; download it again", str(path)):
        header = read_header(path)
    counts = {
        _COUNTED[kind]: value
        for key, value in header.values.items()
        if (kind := key.partition(".")[2]) in _COUNTED
    }
    check_counts(counts, str(path), Room.of(header.tensors.values()))
    blocks = counts.get("num_hidden_layers")
    for name in header.tensors:
        block = _BLOCK.match(name)
        if block and isinstance(blocks, int) and int(block[1]) >= blocks:
            refuse_unused(name, str(path))
    return header


def _dequantized(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    with Refusal(f"{path} is truncated or damaged", "; download it again", str(path)):
        reader = gguf.GGUFReader(path)
    config = _opened(path, AutoConfig)
    check_sizes(config, str(path))
    with _opening(path):
        empty = outline(config)
    if empty is not None:
        check_fits(empty, sum(int(tensor.n_elements) for tensor in reader.tensors), str(path))
    # A file's weights would stay packed where a kernel for that is at hand: they are wanted as
    # plain numbers.
    options: dict[str, Any] = {
        "dtype": dtype,
        "quantization_config": GgufConfig(dequantize=True),
        "output_loading_info": True,
    }
    model, loaded = _opened(path, AutoModelForCausalLM, config=config, **options)
    check_complete(loaded, str(path))
    return model, quantization(reader)


def _opened(path: Path, kind: Any, **options: Any) -> Any:
    """What transformers makes of the file."""
    with _opening(path):
        return kind.from_pretrained(path.parent, gguf_file=path.name, **options)


def _opening(path: Path) -> Refusal:
    return Refusal(
        f"{path} is a GGUF file that transformers can't open",
        "; try a folder of safetensors",
        str(path),
    )


def quantization(reader: gguf.GGUFReader) -> str:
    """Return what the file is quantized to, as a note: the recipe that it names, else the type
    of most numbers; empty if all are plain floats.
    """
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    packed = [kind for kind, _ in sizes.most_common() if kind not in FLOATS]
    return f"dequantized from {_recipe(reader) or packed[0]}" if packed else ""


def _recipe(reader: gguf.GGUFReader) -> str:
    """What the file says its mixture of types is called, such as Q4_K_M; empty if it doesn't, or
    says what isn't known.
    """
    field = reader.get_field("general.file_type")
    number = None if field is None else field.contents()
    name = (
        LlamaFileType(number).name.removeprefix("MOSTLY_") if number in set(LlamaFileType) else ""
    )
    return "" if name in ("ALL_F32", "GUESSED", *FLOATS) else name


@final
class _QuickReader(gguf.GGUFReader):
    """gguf's own reader, with the mapped file seen as a plain array: its vocabulary is read in a
    third of the time.
    """

    @property
    def data(self) -> Any:
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes = mapped.view(np.ndarray)


@contextmanager
def _each_step_once() -> Iterator[set[str]]:
    """While it lasts, the file is parsed once and the map of names made once, without a progress
    bar. It gives the names that have a place.

    transformers 5.24 parses the file anew for the configuration and for the weights, and makes the
    map once for every module: 8 of the 15 seconds that SmolLM2 takes to open. Both are only read,
    so one copy serves.
    """
    library, legacy = cast(Any, gguf), cast(Any, modeling_gguf_pytorch_utils)
    reader, names, bar, weights_map = (
        library.GGUFReader,
        library.get_tensor_name_map,
        legacy.tqdm,
        legacy.get_gguf_hf_weights_map,
    )
    once = functools.cache(_QuickReader)
    places: set[str] = set()

    def mapped(*arguments: Any, **options: Any) -> dict[str, str]:
        names_map = weights_map(*arguments, **options)
        places.update(names_map)
        return names_map

    library.GGUFReader = lambda path: once(Path(path))
    library.get_tensor_name_map = functools.cache(names)
    legacy.tqdm = lambda steps, **_: steps
    legacy.get_gguf_hf_weights_map = mapped
    try:
        yield places
    finally:
        (
            library.GGUFReader,
            library.get_tensor_name_map,
            legacy.tqdm,
            legacy.get_gguf_hf_weights_map,
        ) = reader, names, bar, weights_map
