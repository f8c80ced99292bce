"""GGUF files: checking that they are sound, opening them as a dense model of transformers, and
saying what their weights were quantized to.
"""

import copy
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
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    modeling_gguf_pytorch_utils,
)
from transformers.integrations.gguf import reader as gguf_header_reader

from calibrant.errors import ModelError
from calibrant.models.complete import check_complete, check_fits, outline, refuse_unused
from calibrant.models.configuring import (
    Room,
    check_counts,
    check_ids,
    check_sizes,
    check_template,
    try_out,
)
from calibrant.models.folder import reading
from calibrant.models.gguf_decoding import add_tensors
from calibrant.models.gguf_settings import UnreadSettingError, adopt_settings
from calibrant.models.quiet import Refusal
from calibrant.models.saving import forget_quantization
from calibrant.numerics import ceil_div
from calibrant.spec.foreign import brief

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
DIMENSIONS: Final = 4
LONGEST_NAME: Final = 2**16
TEXT: Final = 8
LIST: Final = 9
"""The numbers of the types of a text and of a list."""
SCALARS: Final = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
"""Types of single values, by their numbers, as the codes of `struct`."""
SHORT_LIST: Final = 2**12
"""Entries of a list in a header that all are read. A longer one is a vocabulary."""
ALIGNMENT: Final = 32
FLOATS: Final = ("F32", "F16", "BF16", "F64")

# What a GGUF header calls the counts that a configuration has.
_COUNTED: Final = {"block_count": "num_hidden_layers", "expert_count": "num_experts"}
_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_NO_PLACE: Final = re.compile(r"^rope_f|rot_embd|_exps\.|^output\.weight$")
"""Tensors that may have no place of their own in a model: tables of angles, which `gguf_settings`
reads as entries of the configuration; experts, which transformers puts together; a head, which it
may tie.
"""


@final
@dataclass(frozen=True)
class Header:
    """The single values of a GGUF file's header by name, and the shape of each tensor."""

    values: dict[str, Any]
    tensors: dict[str, tuple[int, ...]]


def check_magic(path: Path) -> None:
    """Raise `ModelError` unless the file begins as GGUF files do."""
    with reading(path), path.open("rb") as file:
        begins = file.read(len(MAGIC))
    if begins != MAGIC:
        raise ModelError(
            f"{path} is no GGUF file (it doesn't begin with {MAGIC.decode()}), or is truncated or "
            "damaged; download it again",
            subject=str(path),
        )


def read_header(path: Path) -> Header:
    """Return the header of a GGUF file. Raises `ValueError`, saying what is wrong, for a file that
    is cut off or claims more than it holds.

    The readers of gguf and transformers believe every count and length. With a mangled one they
    loop or allocate without end. So the header is read here first, and nothing in it may be larger
    than the rest of the file.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _HeaderReader(content).header()


@final
class _HeaderReader:
    """Reads a header from a place in the file that moves on with what is read."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._place = len(MAGIC)

    def header(self) -> Header:
        version = self._read("I")
        tensors = self._read("Q")
        count = self._read("Q")
        if version not in VERSIONS:
            raise ValueError(f"its version is {version}, and 2 and 3 can be read")
        # The shortest entry takes 13 bytes: 8 for the length of its name, 4 for a type, 1 for a
        # value.
        self._check_room(count, 13, "entries")
        values: dict[str, Any] = {}
        for _ in range(count):
            name = self._text(LONGEST_NAME)
            # Readers differ in which of two they take.
            if name in values:
                raise ValueError(f"it has the entry {brief(name)} twice")
            values[name] = self._value(self._read("I"))
        # The shortest tensor takes 24 bytes: 8 for the length of its name, 4 for the number of its
        # dimensions, 4 for its type, 8 for its place.
        self._check_room(tensors, 24, "tensors")
        shapes: dict[str, tuple[int, ...]] = {}
        spans: list[tuple[int, int, str]] = []
        for _ in range(tensors):
            name, shape, start, end = self._tensor()
            if name in shapes:
                raise ValueError(f"it holds {brief(name)} twice")
            shapes[name] = shape
            if end > start:
                spans.append((start, end, name))
        last = _end_of(spans)
        self._check_data(values.get("general.alignment", ALIGNMENT), last)
        return Header(values, shapes)

    def _check_data(self, alignment: Any, size: int) -> None:
        """Raise `ValueError` unless the file has `size` bytes of data behind its header."""
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {brief(alignment)}, and no power of two")
        start = ceil_div(self._place, alignment) * alignment
        if size and start + size > len(self._content):
            raise ValueError(
                f"its tensors end at byte {start + size:,}, and it has {len(self._content):,}"
            )

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, its shape, and at which bytes of the data it begins and ends."""
        name = self._text(LONGEST_NAME)
        dimensions = self._read("I")
        if dimensions > DIMENSIONS:
            raise ValueError(
                f"{brief(name)} has {dimensions} dimensions, and {DIMENSIONS} are allowed"
            )
        # GGUF has the fastest dimension first, torch has it last.
        shape = tuple(reversed([self._read("Q") for _ in range(dimensions)]))
        kind = GGMLQuantizationType(self._read("I"))
        offset = self._read("Q")
        block, size = GGML_QUANT_SIZES[kind]
        if shape and shape[-1] % block:
            raise ValueError(f"{brief(name)} has rows of {shape[-1]}, which {kind.name} can't pack")
        return name, shape, offset, offset + prod(shape) // block * size

    def _value(self, kind: int) -> Any:
        """A single value. Of a list only its length, in a list: nobody needs what is in it."""
        if kind == TEXT:
            return self._text()
        if kind != LIST:
            return self._read(_scalar(kind))
        inner = self._read("I")
        count = self._read("Q")
        if inner == TEXT:
            self._check_room(count, 8, "texts")
            self._skip_texts(count)
        else:
            self._skip(count * struct.calcsize(_scalar(inner)))
        return [count]

    def _skip_texts(self, count: int) -> None:
        # A text that ends behind the file is noticed once, at the end.
        self._skip(_after_texts(self._content, self._place, count) - self._place)

    def _text(self, longest: int | None = None) -> str:
        length = self._read("Q")
        if longest is not None and length > longest:
            raise ValueError(f"a name in it has {length:,} bytes")
        start = self._place
        self._skip(length)
        return self._content[start : self._place].decode("utf-8")

    def _read(self, code: str) -> Any:
        start = self._place
        self._skip(struct.calcsize(code))
        return struct.unpack_from(f"<{code}", self._content, start)[0]

    def _skip(self, size: int) -> None:
        if self._place + size > len(self._content):
            raise ValueError(
                f"something of {size:,} bytes begins at byte {self._place:,}, and it has "
                f"{len(self._content):,}"
            )
        self._place += size

    def _check_room(self, count: int, smallest: int, name: str) -> None:
        """Raise `ValueError` unless there is room for `count` things of `smallest` bytes at
        least.
        """
        if count * smallest > len(self._content) - self._place:
            raise ValueError(
                f"it claims {count:,} {name} from byte {self._place:,} on, and has "
                f"{len(self._content):,} bytes"
            )


def _end_of(spans: list[tuple[int, int, str]]) -> int:
    """Where the last tensor ends, of tensors with their first byte, the byte behind them and their
    name. Raises `ValueError` where two share a byte: a small file could claim any number of large
    ones that way.
    """
    last = 0
    before = ""
    for start, end, name in sorted(spans):
        if start < last:
            raise ValueError(f"{brief(name)} begins within {brief(before)}")
        last = end
        before = name
    return last


def _after_texts(content: Any, place: int, count: int) -> int:
    """The place in a file behind so many texts, which begin at `place`; one behind the end of the
    file where it is too short.
    """
    # A vocabulary has a hundred thousand texts, so the loop is kept short.
    length = struct.Struct("<Q").unpack_from
    last = len(content) - 8
    for _ in range(count):
        if place > last:
            return len(content) + 1
        place += 8 + length(content, place)[0]
    return place


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"an entry is of the unknown type {kind}")
    return SCALARS[kind]


def open_gguf(
    path: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, str]:
    """Return the model, its tokenizer, and a note such as "dequantized from Q4_1" (empty if nothing
    was quantized).

    Raises `ModelError` for a file that is no GGUF, is truncated or damaged, holds blocks or tensors
    that the model has no place for, or is of an architecture that transformers can't read.
    """
    header = gguf_header(path)
    with _read_quickly() as used_names:
        model, note = _dequantized(path, header, dtype)
        tokenizer = gguf_tokenizer(path)
    forget_quantization(model)
    # transformers ignores a tensor whose name has no place in the model in silence. Of an
    # architecture that it converts in another way, it gives no names.
    if used_names:
        for name in sorted(header.tensors):
            if name not in used_names and not _NO_PLACE.search(name):
                refuse_unused(name, str(path))
    check_ids(tokenizer, model, str(path))
    model.config.name_or_path = model.name_or_path = str(path.parent)
    # As saving would set it.
    model.config.architectures = [type(model).__name__]
    return model, tokenizer, note


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """Return the tokenizer in a GGUF file; its weights aren't read. Raises `ModelError` as
    `folder_tokenizer` does.
    """
    check_magic(path)
    why = ": it is damaged, or of a kind transformers doesn't know; download it again"
    with Refusal(f"{path} has no tokenizer that can be read", why, str(path)):
        read_header(path)
        # AutoTokenizer would read the whole file again, and choose the same class.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(path.parent, gguf_file=path.name)
        try_out(tokenizer)
    check_template(tokenizer, str(path))
    return tokenizer


def gguf_header(path: Path) -> Header:
    """Return the file's header.

    Raises `ModelError` if it is damaged, asks for more layers than the file has room for, or has
    tensors of more blocks than it says.
    """
    check_magic(path)
    with Refusal(f"{path} is truncated or damaged", "; download it again", str(path)):
        header = read_header(path)
    counts: dict[str, Any] = {}
    for key, value in header.values.items():
        entry = key.partition(".")[2]  # without the architecture
        if entry in _COUNTED:
            counts[_COUNTED[entry]] = value
    check_counts(counts, str(path), Room.of(header.tensors.values()))
    blocks = counts.get("num_hidden_layers")
    for name in header.tensors:
        block = _BLOCK.match(name)
        if block and isinstance(blocks, int) and int(block[1]) >= blocks:
            refuse_unused(name, str(path))
    return header


def _dequantized(path: Path, header: Header, dtype: torch.dtype) -> tuple[PreTrainedModel, str]:
    with Refusal(f"{path} is truncated or damaged", "; download it again", str(path)):
        reader = gguf.GGUFReader(path)
    config = _opened(path, AutoConfig)
    check_sizes(config, str(path))
    _adopt_settings(config, path, header, reader)
    with _opening(path):
        empty = outline(config)
    if empty is not None:
        check_fits(empty, sum(int(tensor.n_elements) for tensor in reader.tensors), str(path))
    # Without this, weights would stay packed where transformers finds a kernel for them.
    quantized = GgufConfig(dequantize=True)
    model, loaded = _opened(
        path,
        AutoModelForCausalLM,
        config=config,
        dtype=dtype,
        quantization_config=quantized,
        output_loading_info=True,
    )
    check_complete(loaded, str(path))
    return model, quantization(reader)


def _adopt_settings(
    config: PreTrainedConfig, path: Path, header: Header, reader: gguf.GGUFReader
) -> None:
    """Let the configuration say all that the header says. Raises `ModelError` for what it has no
    place for.
    """
    with _opening(path):
        try:
            adopt_settings(config, header.values, reader)
        except UnreadSettingError as unread:
            raise ModelError(
                f"{path} {unread}, and that can't be read from GGUF; open the model's original "
                "folder of safetensors",
                subject=unread.name,
            ) from None


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


def quantized_to(path: Path) -> str:
    """Return what a GGUF file is quantized to, such as Q4_K_M; empty if its numbers are plain
    floats. Raises `ModelError` if it is damaged.
    """
    check_magic(path)
    with Refusal(f"{path} is truncated or damaged", "; download it again", str(path)):
        read_header(path)
        return _quantized_to(_QuickReader(path))


def quantization(reader: gguf.GGUFReader) -> str:
    """Return what the file is quantized to, as a note: the recipe that it names, else the type
    of most numbers; empty if all are plain floats.
    """
    name = _quantized_to(reader)
    return f"dequantized from {name}" if name else ""


def _quantized_to(reader: gguf.GGUFReader) -> str:
    sizes: Counter[str] = Counter()
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    packed = [kind for kind, _ in sizes.most_common() if kind not in FLOATS]
    if not packed:
        return ""
    return _recipe(reader) or packed[0]


def _recipe(reader: gguf.GGUFReader) -> str:
    """The name of the file's mixture of types as the file says it, such as Q4_K_M; empty where it
    says none, or one that isn't known.
    """
    field = reader.get_field("general.file_type")
    number = None if field is None else field.contents()
    # A tuple and no set, since a mangled file may have a list there.
    if number not in tuple(LlamaFileType):
        return ""
    name = LlamaFileType(number).name.removeprefix("MOSTLY_")
    return "" if name in ("ALL_F32", "GUESSED", *FLOATS) else name


@final
class _QuickReader(gguf.GGUFReader):
    """gguf's own reader, to which the mapped file is a plain array, and a long list so many times
    its first entry: of a vocabulary transformers wants the length alone.
    """

    @property
    def data(self) -> Any:
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes: Any = mapped.view(np.ndarray)

    def _get_field_parts(self, orig_offs: Any, raw_type: Any) -> Any:
        """The size of an entry's value, its parts, which of them are values, and its types."""
        if raw_type != LIST:
            return super()._get_field_parts(orig_offs, raw_type)
        inner, count = struct.unpack_from("<IQ", self._bytes, orig_offs)
        if count <= SHORT_LIST:
            return super()._get_field_parts(orig_offs, raw_type)
        first = orig_offs + struct.calcsize("<IQ")
        if inner == TEXT:
            end = _after_texts(self._bytes, first, count)
        else:
            end = first + count * struct.calcsize(_scalar(inner))
        _, parts, places, types = super()._get_field_parts(first, inner)
        return end - orig_offs, parts, places * count, [gguf.GGUFValueType.ARRAY, *types]


@contextmanager
def _read_quickly() -> Iterator[set[str]]:
    """Have transformers parse the file once, make the map of names once, and take the tensors of
    `add_tensors`, as long as the context lasts. Yield a set, which gets the names of tensors that
    have a place in the model.

    transformers 5.24 parses the file anew for the configuration and for the weights, makes the map
    once for every module, and decodes in one thread. What is parsed and mapped is only read, so one
    copy is enough.
    """
    library = cast(Any, gguf)
    legacy = cast(Any, modeling_gguf_pytorch_utils)
    weights_map = legacy.get_gguf_hf_weights_map
    parse = functools.cache(legacy.load_gguf_checkpoint)
    mapped = gguf_header_reader._mapped
    read_once = functools.cache(_QuickReader)
    used_names: set[str] = set()

    def read(path: Any) -> _QuickReader:
        return read_once(Path(path))

    def noted_map(*arguments: Any, **options: Any) -> dict[str, str]:
        names = weights_map(*arguments, **options)
        used_names.update(names)
        return names

    def load_quickly(
        path: str,
        return_tensors: bool = False,
        model_to_load: Any = None,
        torch_dtype: torch.dtype = torch.float32,
    ) -> dict[str, Any]:
        parsed = dict(parse(path))
        # Whoever asks for the configuration changes it.
        parsed["config"] = copy.deepcopy(parsed["config"])
        if return_tensors:
            add_tensors(parsed, Path(path), read(path), model_to_load, torch_dtype)
        return parsed

    def mapped_plainly(path: str) -> np.ndarray:
        return mapped(path).view(np.ndarray)

    replacements = [
        (library, "GGUFReader", read),
        (library, "get_tensor_name_map", functools.cache(library.get_tensor_name_map)),
        (legacy, "get_gguf_hf_weights_map", noted_map),
        (legacy, "load_gguf_checkpoint", load_quickly),
        (gguf_header_reader, "_mapped", mapped_plainly),
    ]
    before = [(module, name, getattr(module, name)) for module, name, _ in replacements]
    for module, name, replacement in replacements:
        setattr(module, name, replacement)
    try:
        yield used_names
    finally:
        for module, name, value in before:
            setattr(module, name, value)
