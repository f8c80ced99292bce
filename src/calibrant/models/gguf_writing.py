"""Writing a model as GGUF. Metadata and tokenizer are copied, with their types, from another GGUF
file. The numbers are the model's own, under the names that llama.cpp has for them.

`model.layers.0.self_attn.q_proj` is `blk.0.attn_q.weight` in a GGUF file. The gguf package has a
table of names for each architecture. What it lacks is here: which architecture a model of
transformers is, and the names of tensors in which transformers keeps all experts of a layer.

Nothing of the tokenizer is made anew, so nothing can be wrong with it. llama.cpp keeps some numbers
in another way than transformers. In `llama` the rows of queries and keys are in another order (the
rotary halves of each head interleaved). In `gemma` norms are larger by one. Experts have gate and
up as two tensors, and the gate of a shared expert is a vector. Only architectures of which all this
is known are written.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from torch import Tensor

from calibrant.errors import ModelError, OutputError
from calibrant.models.gguf_file import Header, check_magic, gguf_tokenizer, read_header
from calibrant.models.gguf_settings import TABLES, UnreadSettingError, first_difference
from calibrant.models.quiet import Refusal
from calibrant.models.saving import Opened
from calibrant.models.viewing import ModelView, Weight
from calibrant.spec.foreign import brief

ALIASES: Final = {
    "mistral": "llama",
    "mixtral": "llama",
    "cohere": "command-r",
    "starcoder2": "starcoder2",
    "gpt_oss": "gpt-oss",
    "phi": "phi2",
}
"""GGUF's names of architectures, where they aren't the model type of transformers, with or without
its underscores.
"""

EXPERTS: Final = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
"""GGUF's tensors of all experts of a layer, by the last part of transformers' name. Gate and up are
one tensor in transformers and two in GGUF, and read the same inputs.
"""

_ARCHITECTURES: Final = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}

WRITTEN: Final = (
    "gemma2",
    "gemma3",
    "gpt2",
    "llama",
    "phi3",
    "qwen2",
    "qwen2moe",
    "qwen3",
    "qwen3moe",
    "starcoder2",
)
"""The architectures that can be written."""
HEAD: Final = "output.weight"
"""The name of the head. A tied head has no tensor in a file."""
PERMUTED: Final = ("llama",)
"""Architectures in which the rows of queries and keys are in another order."""
SHIFTED: Final = ("gemma2", "gemma3")
"""Architectures in which norms are larger by one."""
SHARED_GATE: Final = "ffn_gate_inp_shexp.weight"
"""How the name of a shared expert's gate ends: one row in transformers, a vector in a file."""
FOREIGN: Final = ("GGUF.", "calibrant.", "quantize.imatrix.")
"""How entries begin that are about the file itself, and aren't copied: how it was made."""
CHANGED: Final = ("general.architecture", "general.file_type", "general.alignment")
"""Entries that the file that is written has anew."""
_TYPES: Final = GGMLQuantizationType
FILE_TYPES: Final = {_TYPES.F32: 0, _TYPES.F16: 1, _TYPES.BF16: 32, _TYPES.Q4_0: 2, _TYPES.Q8_0: 7}
"""What `general.file_type` says of a file whose matrices are mostly of one type."""

Bytes = tuple[np.ndarray, GGMLQuantizationType]
"""A tensor as bytes [row, byte], or as plain numbers, and their type in GGUF."""


def architecture_of(model: Any) -> str:
    """Return the name of a model's architecture in GGUF. Raises `ModelError` for one that
    llama.cpp has no name for.
    """
    kind = str(model.config.get_text_config(decoder=True).model_type)
    plain = kind.removesuffix("_text")
    joined = plain.replace("_", "")
    for name in (ALIASES.get(plain, ""), plain, joined, plain.replace("_", "-")):
        if name in _ARCHITECTURES:
            return name
    raise ModelError(
        f"llama.cpp has no names for the tensors of {kind}; give a model of another architecture",
        subject=kind,
    )


def tensor_names(view: ModelView) -> dict[str, tuple[str, ...]]:
    """Return the names of the GGUF tensors that each matrix of a model is, or is a part of, by the
    matrix's name. An expert's matrix is a part of the tensors of all experts.

    Raises `ModelError` for an architecture without names, and for a matrix that has none in it.
    """
    architecture = architecture_of(view.model)
    known = gguf.get_tensor_name_map(_ARCHITECTURES[architecture], len(view.blocks))
    names: dict[str, tuple[str, ...]] = {}
    for weight in view.weights:
        path = weight.tensor_name
        parts = _expert_tensors(weight, path.rpartition(".")[2])
        if not parts:
            name = known.get_name(path, try_suffixes=(".weight",))
            if name is None:
                raise ModelError(
                    f"llama.cpp's {architecture} has no name for {weight.name}; give a model of "
                    "another architecture",
                    subject=weight.name,
                )
            parts = (f"{name.removesuffix('.weight')}.weight",)
        names[weight.name] = parts
    return names


def _expert_tensors(weight: Weight, last: str) -> tuple[str, ...]:
    """The tensors of all experts that hold this expert's matrix; none for a matrix of no expert."""
    if weight.expert is None:
        return ()
    return tuple(f"blk.{weight.block}.{part}.weight" for part in EXPERTS.get(last, ()))


def tensor_name(model: Any, parameter: str) -> str | None:
    """Return the GGUF name of one parameter (`model.norm.weight`); None for a parameter without
    one.
    """
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    names = gguf.get_tensor_name_map(_ARCHITECTURES[architecture_of(model)], layers)
    return names.get_name(parameter, try_suffixes=(".weight", ".bias"))


@final
@dataclass(frozen=True, eq=False)
class GgufPart:
    """One tensor of a model under its name in GGUF. `parameter` is the name of the model's
    parameter, and `matrix` that of the view's matrix, if it is one.

    `order` has the number of the model's row for each row in GGUF; None where the order is the
    same. `shift` is added to every number. A tensor of all experts of a layer has `rows`: which
    rows it has of each expert's matrix in transformers, where gate and up are one.
    """

    name: str
    tensor: Tensor
    parameter: str
    matrix: str | None = None
    order: Tensor | None = None
    shift: float = 0.0
    rows: slice | None = None

    @property
    def experts(self) -> tuple[str, ...]:
        """The names of the view's matrices in this tensor, one for each expert; empty for a tensor
        of no experts.
        """
        if self.rows is None:
            return ()
        return tuple(f"{self.parameter}[{number}]" for number in range(len(self.tensor)))

    def numbers(self) -> np.ndarray:
        """Return the numbers as GGUF has them, in float32."""
        tensor = self.tensor
        if self.order is not None:
            tensor = tensor[self.order.to(tensor.device)]
        return (tensor.detach().float() + self.shift).cpu().contiguous().numpy()


def parts_of(view: ModelView) -> Iterator[GgufPart]:
    """Yield every tensor of a model under its name in GGUF. Raises `OutputError` for one that has
    no name there.
    """
    architecture = architecture_of(view.model)
    config = view.config
    matrices: dict[int, Weight] = {}
    for weight in view.weights:
        if weight.expert is None:
            matrices[weight.address] = weight
    for name, parameter in view.model.named_parameters():
        last = name.rpartition(".")[2]
        if parameter.dim() == 3 and last in EXPERTS:
            yield from _expert_parts(name, parameter.detach(), EXPERTS[last])
            continue
        gguf_name = tensor_name(view.model, name)
        if gguf_name is None:
            raise OutputError(
                f"{name} has no name in a GGUF file of {architecture}; use llama.cpp's own "
                "converter on the folder",
                subject=name,
            )
        weight = matrices.get(parameter.data_ptr())
        tensor = parameter.detach() if weight is None else weight.get()
        if gguf_name.endswith(SHARED_GATE):
            tensor = tensor[0]
        matrix = None if weight is None else weight.name
        shift = 1.0 if architecture in SHIFTED and gguf_name.endswith("norm.weight") else 0.0
        order = _order(gguf_name, len(tensor), config) if architecture in PERMUTED else None
        yield GgufPart(gguf_name, tensor, name, matrix, order, shift)


def _expert_parts(name: str, experts: Tensor, tensors: tuple[str, ...]) -> Iterator[GgufPart]:
    """The GGUF tensors into which transformers' one tensor is divided, by equally many rows."""
    block = next(part for part in name.split(".") if part.isdigit())
    rows_of_each = experts.shape[1] // len(tensors)
    start = 0
    for tensor in tensors:
        rows = slice(start, start + rows_of_each)
        yield GgufPart(f"blk.{block}.{tensor}.weight", experts[:, rows], name, rows=rows)
        start = rows.stop


def _order(name: str, rows: int, config: Any) -> Tensor | None:
    """The order of the rows of queries and keys as `llama` has them in GGUF; None for other
    tensors.

    In transformers row i of a head's first half is rotated together with row i of its second half;
    in GGUF these two are neighbours.
    """
    if ".attn_q." in name:
        heads = config.num_attention_heads
    elif ".attn_k." in name:
        heads = config.num_key_value_heads
    else:
        return None
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def check_template(view: ModelView, template: Path) -> Header:
    """Return the header of `template`, a file to copy metadata and tokenizer from. Raises
    `OutputError` unless it is of the view's architecture and shapes, and says of how the model
    computes what its configuration says.
    """
    architecture = architecture_of(view.model)
    check_magic(template)
    with Refusal(f"{template} is truncated or damaged", "; download it again", str(template)):
        header = read_header(template)
        reader = gguf.GGUFReader(template)
        # They are copied at the end of the job, and what can't be read is noticed now.
        list(_entries(reader))
    if architecture not in WRITTEN:
        raise OutputError(
            f"{architecture} isn't written as GGUF here ({', '.join(WRITTEN)} are); use "
            "llama.cpp's own converter on the folder",
            subject=architecture,
        )
    theirs = header.values.get("general.architecture")
    if theirs != architecture:
        raise _other_model(
            f"{template} is of the architecture {theirs}, and the model is {architecture}", template
        )
    unmatched = dict(header.tensors)
    for part in parts_of(view):
        shape = unmatched.pop(part.name, None)
        if shape is None and part.name != HEAD:
            raise _other_model(f"{template} has no {part.name}, and the model has", part.name)
        ours = tuple(part.tensor.shape)
        # Some files have the gate of a shared expert as one row.
        if shape is not None and shape not in (ours, (1, *ours)):
            raise _other_model(
                f"{part.name} is {list(ours)} in the model and {list(shape)} in {template}",
                part.name,
            )
    # Tables of angles are no parameters of the model; they are copied.
    for name in unmatched:
        if name != HEAD and name not in TABLES:
            raise _other_model(f"{template} holds {name}, and the model has no such tensor", name)
    _check_settings(view.model.config, header, reader, template)
    return header


def _check_settings(config: Any, header: Header, reader: gguf.GGUFReader, template: Path) -> None:
    """Raise `OutputError` unless the metadata say what the configuration says, as far as both are
    compared.
    """
    with Refusal(f"{template} is truncated or damaged", "; download it again", str(template)):
        try:
            setting = first_difference(config, header.values, reader)
        except UnreadSettingError as unread:
            raise _other_model(
                f"{template} {unread}, and the model has nothing like it", unread.name
            ) from None
    if setting is None:
        return
    named = f"which has no {setting.name}" if setting.absent else setting.name
    raise _other_model(
        f"{setting.entry} is {brief(setting.held)} in the model and {brief(setting.value)} in "
        f"{template} ({named})",
        setting.name,
    )


def _other_model(why: str, subject: str | Path) -> OutputError:
    return OutputError(f"{why}; name a file of the same model", subject=str(subject))


def check_vocabulary(opened: Opened, template: Path) -> None:
    """Raise `OutputError` if `template`, whose tokenizer is to be copied, lacks a token of the
    model or has it under another number.
    """
    # Not the other way round: a reader may add tokens that the file doesn't list.
    theirs = gguf_tokenizer(template).get_vocab()
    for token, number in opened.tokenizer.get_vocab().items():
        if theirs.get(token) != number:
            why = f"{template} has another vocabulary than {opened.name}"
            raise _other_model(why, template)


@final
@dataclass(frozen=True, eq=False)
class _Entry:
    """An entry of metadata: its value, of which type it is, and of which its items are, if it is a
    list.
    """

    name: str
    value: Any
    kind: GGUFValueType
    inner: GGUFValueType | None


def _entries(reader: gguf.GGUFReader) -> Iterator[_Entry]:
    """The entries that are copied: those that are about the model. Empty lists aren't among them,
    since the writer takes none.
    """
    for name, field in reader.fields.items():
        if name.startswith(FOREIGN) or name in CHANGED:
            continue
        kind = field.types[0] if field.types else GGUFValueType.STRING
        inner = None
        if kind == GGUFValueType.ARRAY:
            if not len(field.data):
                continue
            inner = field.types[1]
        yield _Entry(name, field.contents(), kind, inner)


def write_gguf(
    view: ModelView,
    template: Path,
    path: Path,
    encode: Callable[[GgufPart], Bytes],
    facts: Mapping[str, str],
) -> None:
    """Write the model to `path`: metadata of `template`, tensors as `encode` returns them, and
    `facts` as further keys.

    Tensors that only the template has (tables of angles) are copied. A tied head has no tensor, as
    usual. How the template was laid out and quantized isn't copied.
    """
    reader = gguf.GGUFReader(template)
    writer = gguf.GGUFWriter(path, architecture_of(view.model))
    for entry in _entries(reader):
        if entry.name not in facts:
            writer.add_key_value(entry.name, entry.value, entry.kind, entry.inner)
    sizes: Counter[GGMLQuantizationType] = Counter()
    written: set[str] = set()
    for part in parts_of(view):
        written.add(part.name)
        content, kind = encode(part)
        writer.add_tensor(part.name, content, raw_dtype=kind)
        sizes[kind] += part.tensor.numel()
    for tensor in reader.tensors:
        name = str(tensor.name)
        if name not in written and name != HEAD:
            writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    # llama.cpp names a file after the type of most of its numbers.
    most = max(sizes, key=sizes.__getitem__)
    if most in FILE_TYPES:
        writer.add_uint32("general.file_type", FILE_TYPES[most])
    for name, value in facts.items():
        writer.add_string(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def plain(part: GgufPart, kind: GGMLQuantizationType) -> Bytes:
    """Return a tensor as plain numbers: a matrix in `kind`, a vector in float32, as llama.cpp has
    vectors.
    """
    used = kind if part.tensor.dim() > 1 else GGMLQuantizationType.F32
    return gguf.quantize(part.numbers(), used), used


def q4_0(codes: Tensor, scales: Tensor) -> np.ndarray:
    """Return codes from -8 to 7 as bytes of Q4_0. Each 32 inputs of a row are a scale in float16
    and 16 bytes; byte j has code + 8 of input j in its low half and of input j + 16 in its high
    half.

    `codes` are int8 [out, in], `scales` [out, in / 32].
    """
    positive = (codes.numpy().astype(np.int16) + 8).astype(np.uint8).reshape(len(codes), -1, 32)
    return _blocks(scales, positive[:, :, :16] | (positive[:, :, 16:] << 4))


def q8_0(codes: Tensor, scales: Tensor) -> np.ndarray:
    """Return codes of 8 bits as bytes of Q8_0. Each 32 inputs of a row are a scale in float16 and
    32 signed bytes. Shapes are those of `q4_0`.
    """
    return _blocks(scales, codes.numpy().reshape(len(codes), -1, 32).view(np.uint8))


def _blocks(scales: Tensor, content: np.ndarray) -> np.ndarray:
    # Each block is its scale, in float16 with the low byte first, and then its codes.
    halves = scales.float().numpy().astype("<f2")[:, :, None].view(np.uint8)
    return np.concatenate([halves, content], axis=2).reshape(len(content), -1)
