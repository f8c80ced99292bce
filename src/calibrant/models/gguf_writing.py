"""Writing a model as GGUF: metadata and tokenizer of another GGUF file, copied with their types,
and the model's own numbers.

Nothing about the tokenizer is derived anew, so nothing can be wrong with it. llama.cpp keeps some
numbers in another way than transformers: `llama` has the rows of queries and keys in another order
(each head's rotary halves interleaved), `gemma` norms that are larger by one, and experts of gate
and up as two tensors. Only architectures of which this is known are written.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from torch import Tensor

from calibrant.errors import OutputError
from calibrant.models.gguf_file import Header, check_magic, gguf_tokenizer, read_header
from calibrant.models.gguf_names import EXPERTS, architecture_of, tensor_name
from calibrant.models.quiet import Refusal
from calibrant.models.saving import Opened
from calibrant.models.viewing import ModelView

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
PERMUTED: Final = ("llama",)
SHIFTED: Final = ("gemma2", "gemma3")
_TYPES: Final = GGMLQuantizationType
FILE_TYPES: Final = {_TYPES.F32: 0, _TYPES.F16: 1, _TYPES.BF16: 32, _TYPES.Q4_0: 2, _TYPES.Q8_0: 7}
"""What `general.file_type` says of a file whose matrices are mostly of one type."""

Bytes = tuple[np.ndarray, GGMLQuantizationType]
"""A tensor's bytes, a row for each of its rows, and their type."""


@final
@dataclass(frozen=True, eq=False)
class GgufPart:
    """One tensor of a model under its name in GGUF, and the parameter that it is. `matrix` is the
    name of the view's matrix that it is, if it is one.

    `order` are its rows as GGUF has them, None where they are in the same order; `shift` is added
    to every number. A tensor of all experts of a layer has `rows`: where each expert's rows stand
    in the matrix that transformers has of it, since gate and up are one there.
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
        """The names of the view's matrices that are parts of it, an expert each; none if it is a
        tensor of no experts.
        """
        return (
            ()
            if self.rows is None
            else tuple(f"{self.parameter}[{number}]" for number in range(len(self.tensor)))
        )

    def numbers(self) -> np.ndarray:
        """Return the numbers as GGUF has them, in float32."""
        ordered = (
            self.tensor if self.order is None else self.tensor[self.order.to(self.tensor.device)]
        )
        return (ordered.detach().float() + self.shift).cpu().contiguous().numpy()


def parts_of(view: ModelView) -> Iterator[GgufPart]:
    """Yield every tensor of a model as GGUF has it. Raises `OutputError` for one that has no
    name there.
    """
    architecture, config = (
        architecture_of(view.model),
        view.model.config.get_text_config(decoder=True),
    )
    matrices = {
        weight.stored.data_ptr(): weight for weight in view.weights if weight.expert is None
    }
    for name, parameter in view.model.named_parameters():
        last = name.rpartition(".")[2]
        if parameter.dim() == 3 and last in EXPERTS:
            block = next(part for part in name.split(".") if part.isdigit())
            size = parameter.shape[1] // len(EXPERTS[last])
            for number, own in enumerate(EXPERTS[last]):
                rows = slice(number * size, (number + 1) * size)
                yield GgufPart(
                    f"blk.{block}.{own}.weight", parameter.detach()[:, rows], name, rows=rows
                )
            continue
        known = tensor_name(view.model, name)
        if known is None:
            raise OutputError(
                f"{name} has no name in a GGUF file of {architecture}; use llama.cpp's own converter on the folder",
                subject=name,
            )
        weight = matrices.get(parameter.data_ptr())
        tensor = parameter.detach() if weight is None else weight.get()
        shift = 1.0 if architecture in SHIFTED and known.endswith("norm.weight") else 0.0
        order = _order(known, len(tensor), config) if architecture in PERMUTED else None
        yield GgufPart(known, tensor, name, weight.name if weight else None, order, shift)


def _order(name: str, rows: int, config: Any) -> Tensor | None:
    """The rows of queries and keys as `llama` has them in GGUF: of each head the two halves that
    turn together, one after the other in turns.
    """
    heads = (
        config.num_attention_heads
        if ".attn_q." in name
        else config.num_key_value_heads
        if ".attn_k." in name
        else None
    )
    return (
        None
        if heads is None
        else torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)
    )


def check_template(view: ModelView, template: Path) -> Header:
    """Return the header of a file to copy metadata and tokenizer from. Raises `OutputError`
    unless it is of the view's architecture and shapes.
    """
    architecture = architecture_of(view.model)
    check_magic(template)
    with Refusal(f"{template} is truncated or damaged", "; download it again", str(template)):
        header = read_header(template)
    if architecture not in WRITTEN:
        allowed = ", ".join(WRITTEN)
        raise OutputError(
            f"{architecture} isn't written as GGUF here ({allowed} are); use llama.cpp's own converter on the folder",
            subject=architecture,
        )
    theirs = header.values.get("general.architecture")
    if theirs != architecture:
        raise OutputError(
            f"{template} is of the architecture {theirs}, and the model is {architecture}; name a file of the same model",
            subject=str(template),
        )
    there = dict.fromkeys(header.tensors)
    for part in parts_of(view):
        shape = header.tensors.get(part.name)
        if shape is None and part.name != "output.weight":
            raise OutputError(
                f"{template} has no {part.name}, and the model has; name a file of the same model",
                subject=part.name,
            )
        if shape is not None and shape != tuple(part.tensor.shape):
            ours = f"{list(part.tensor.shape)} in the model and {list(shape)} in {template}"
            raise OutputError(
                f"{part.name} is {ours}; name a file of the same model", subject=part.name
            )
        there.pop(part.name, None)
    if extra := [
        name for name in there if not name.startswith("rope_f") and name != "output.weight"
    ]:
        raise OutputError(
            f"{template} holds {extra[0]}, and the model has no such tensor; name a file of the same model",
            subject=extra[0],
        )
    return header


def check_vocabulary(opened: Opened, template: Path) -> None:
    """Raise `OutputError` if a file to copy the tokenizer from lacks a token of the model, or
    has it under another number.
    """
    # A reader may add tokens that a file doesn't list, so every token of the model must be there
    # under its number, and not the other way round.
    theirs = gguf_tokenizer(template).get_vocab()
    if any(theirs.get(token) != number for token, number in opened.tokenizer.get_vocab().items()):
        raise OutputError(
            f"{template} has another vocabulary than {opened.name}; name a file of the same model",
            subject=str(template),
        )


def write_gguf(
    view: ModelView,
    template: Path,
    path: Path,
    encode: Callable[[GgufPart], Bytes],
    facts: Mapping[str, str],
) -> None:
    """Write the model to `path`: metadata of `template`, tensors as `encode` gives them, and
    `facts` as further keys.

    Tensors that only the template has, tables of angles, are copied. A head that is tied has no
    tensor, as usual.
    """
    reader = gguf.GGUFReader(template)
    writer = gguf.GGUFWriter(path, architecture_of(view.model))
    for name, field in reader.fields.items():
        if not name.startswith(("GGUF.", "calibrant.")) and name not in (
            "general.architecture",
            "general.file_type",
            *facts,
        ):
            kinds = [*field.types, None]
            writer.add_key_value(
                name,
                field.contents(),
                kinds[0] or GGUFValueType.STRING,
                kinds[1] if kinds[0] == GGUFValueType.ARRAY else None,
            )
    ours = {part.name: part for part in parts_of(view)}
    copied = {
        str(t.name): t
        for t in reader.tensors
        if str(t.name) not in ours and str(t.name) != "output.weight"
    }
    sizes: dict[GGMLQuantizationType, int] = {}
    for part in ours.values():
        content, kind = encode(part)
        writer.add_tensor(part.name, content, raw_dtype=kind)
        sizes[kind] = sizes.get(kind, 0) + part.tensor.numel()
    for name, tensor in copied.items():
        writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
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
    """Return a tensor as plain numbers: matrices of `kind`, vectors in float32, as llama.cpp has
    them.
    """
    used = kind if part.tensor.dim() > 1 else GGMLQuantizationType.F32
    return gguf.quantize(part.numbers(), used), used


def q4_0(codes: Tensor, scales: Tensor) -> np.ndarray:
    """Return codes from -8 to 7 as Q4_0: for each 32 inputs of a row the scale in float16, and 16
    bytes with code + 8 of inputs j and j + 16.

    `codes` are int8 [out, in], `scales` [out, in / 32].
    """
    positive = (codes.numpy().astype(np.int16) + 8).astype(np.uint8).reshape(len(codes), -1, 32)
    return _blocks(scales, positive[:, :, :16] | (positive[:, :, 16:] << 4))


def q8_0(codes: Tensor, scales: Tensor) -> np.ndarray:
    """Return codes of 8 bits as Q8_0: for each 32 inputs of a row the scale in float16, and 32
    signed bytes. Shapes as for `q4_0`.
    """
    return _blocks(scales, codes.numpy().reshape(len(codes), -1, 32).view(np.uint8))


def _blocks(scales: Tensor, content: np.ndarray) -> np.ndarray:
    halves = scales.float().numpy().astype("<f2")[:, :, None].view(np.uint8)
    return np.concatenate([halves, content], axis=2).reshape(len(content), -1)
