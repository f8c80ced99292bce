"""Writing a model as GGUF: metadata and tokenizer of another GGUF file, copied with their types,
and the model's own numbers, under the names that llama.cpp has for them.

`model.layers.0.self_attn.q_proj` is `blk.0.attn_q.weight` in a GGUF file. The gguf package has a
table of names for each architecture. What it lacks is said here: which architecture a model of
transformers is, and the tensors in which transformers keeps all experts of a layer.

Nothing about the tokenizer is derived anew, so nothing can be wrong with it. llama.cpp keeps some
numbers in another way than transformers: `llama` has the rows of queries and keys in another order
(each head's rotary halves interleaved), `gemma` norms that are larger by one, and experts of gate
and up as two tensors. Only architectures of which this is known are written.
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
from calibrant.models.quiet import Refusal
from calibrant.models.saving import Opened
from calibrant.models.viewing import ModelView, Weight

ALIASES: Final = {
    "mistral": "llama",
    "mixtral": "llama",
    "cohere": "command-r",
    "starcoder2": "starcoder2",
    "gpt_oss": "gpt-oss",
    "phi": "phi2",
}
"""What GGUF calls an architecture, where it isn't the model type of transformers with its joints
left out.
"""

EXPERTS: Final = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
"""Tensors of all experts by the last part of their name. Gate and up are one tensor in
transformers and two in GGUF, and read the same inputs.
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
HEAD: Final = "output.weight"
"""A tied head has no tensor in a file."""
PERMUTED: Final = ("llama",)
SHIFTED: Final = ("gemma2", "gemma3")
_TYPES: Final = GGMLQuantizationType
FILE_TYPES: Final = {_TYPES.F32: 0, _TYPES.F16: 1, _TYPES.BF16: 32, _TYPES.Q4_0: 2, _TYPES.Q8_0: 7}
"""What `general.file_type` says of a file whose matrices are mostly of one type."""

Bytes = tuple[np.ndarray, GGMLQuantizationType]
"""A tensor's bytes, a row for each of its rows, and their type."""


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
    """Return the GGUF tensors that each matrix of a model is (a part of), by the matrix's name; of
    one expert they are those of all.

    Raises `ModelError` for an architecture without names, and for a matrix that it has no name for.
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
    """The tensors of all experts that one expert's matrix is in; none for any other matrix."""
    if weight.expert is None:
        return ()
    return tuple(f"blk.{weight.block}.{part}.weight" for part in EXPERTS.get(last, ()))


def tensor_name(model: Any, parameter: str) -> str | None:
    """Return the GGUF tensor that one parameter (`model.norm.weight`) is; None for one without a
    name of its own, such as a tied head.
    """
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    names = gguf.get_tensor_name_map(_ARCHITECTURES[architecture_of(model)], layers)
    return names.get_name(parameter, try_suffixes=(".weight", ".bias"))


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
    """Yield every tensor of a model as GGUF has it. Raises `OutputError` for one that has no
    name there.
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
        known = tensor_name(view.model, name)
        if known is None:
            raise OutputError(
                f"{name} has no name in a GGUF file of {architecture}; use llama.cpp's own "
                "converter on the folder",
                subject=name,
            )
        weight = matrices.get(parameter.data_ptr())
        tensor = parameter.detach() if weight is None else weight.get()
        matrix = None if weight is None else weight.name
        shift = 1.0 if architecture in SHIFTED and known.endswith("norm.weight") else 0.0
        order = _order(known, len(tensor), config) if architecture in PERMUTED else None
        yield GgufPart(known, tensor, name, matrix, order, shift)


def _expert_parts(name: str, experts: Tensor, tensors: tuple[str, ...]) -> Iterator[GgufPart]:
    """The tensors of a layer that transformers has as one, each with as many rows."""
    block = next(part for part in name.split(".") if part.isdigit())
    size = experts.shape[1] // len(tensors)
    for number, tensor in enumerate(tensors):
        rows = slice(number * size, (number + 1) * size)
        yield GgufPart(f"blk.{block}.{tensor}.weight", experts[:, rows], name, rows=rows)


def _order(name: str, rows: int, config: Any) -> Tensor | None:
    """The rows of queries and keys as `llama` has them in GGUF: of each head the two halves that
    turn together, one after the other in turns.
    """
    if ".attn_q." in name:
        heads = config.num_attention_heads
    elif ".attn_k." in name:
        heads = config.num_key_value_heads
    else:
        return None
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def check_template(view: ModelView, template: Path) -> Header:
    """Return the header of a file to copy metadata and tokenizer from. Raises `OutputError`
    unless it is of the view's architecture and shapes.
    """
    architecture = architecture_of(view.model)
    check_magic(template)
    with Refusal(f"{template} is truncated or damaged", "; download it again", str(template)):
        header = read_header(template)
    if architecture not in WRITTEN:
        raise OutputError(
            f"{architecture} isn't written as GGUF here ({', '.join(WRITTEN)} are); use "
            "llama.cpp's own converter on the folder",
            subject=architecture,
        )
    theirs = header.values.get("general.architecture")
    if theirs != architecture:
        raise _another(
            f"{template} is of the architecture {theirs}, and the model is {architecture}", template
        )
    extra = dict(header.tensors)
    for part in parts_of(view):
        shape = extra.pop(part.name, None)
        if shape is None and part.name != HEAD:
            raise _another(f"{template} has no {part.name}, and the model has", part.name)
        ours = tuple(part.tensor.shape)
        if shape is not None and shape != ours:
            raise _another(
                f"{part.name} is {list(ours)} in the model and {list(shape)} in {template}",
                part.name,
            )
    for name in extra:
        if name != HEAD and not name.startswith("rope_f"):
            raise _another(f"{template} holds {name}, and the model has no such tensor", name)
    return header


def _another(why: str, subject: str | Path) -> OutputError:
    return OutputError(f"{why}; name a file of the same model", subject=str(subject))


def check_vocabulary(opened: Opened, template: Path) -> None:
    """Raise `OutputError` if a file to copy the tokenizer from lacks a token of the model, or
    has it under another number.
    """
    # A reader may add tokens that a file doesn't list, so every token of the model must be there
    # under its number, and not the other way round.
    theirs = gguf_tokenizer(template).get_vocab()
    for token, number in opened.tokenizer.get_vocab().items():
        if theirs.get(token) != number:
            why = f"{template} has another vocabulary than {opened.name}"
            raise _another(why, template)


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
    changed = ("general.architecture", "general.file_type", *facts)
    for name, field in reader.fields.items():
        if name.startswith(("GGUF.", "calibrant.")) or name in changed:
            continue
        kind = field.types[0] if field.types else GGUFValueType.STRING
        inner = field.types[1] if kind == GGUFValueType.ARRAY and len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), kind, inner)
    sizes: Counter[GGMLQuantizationType] = Counter()
    ours: set[str] = set()
    for part in parts_of(view):
        ours.add(part.name)
        content, kind = encode(part)
        writer.add_tensor(part.name, content, raw_dtype=kind)
        sizes[kind] += part.tensor.numel()
    for tensor in reader.tensors:
        name = str(tensor.name)
        if name not in ours and name != HEAD:
            writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    # A file is called by the type of most of its numbers, as llama.cpp has it.
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
    # Scales are float16 in the file, low byte first, and stand before their block's codes.
    halves = scales.float().numpy().astype("<f2")[:, :, None].view(np.uint8)
    return np.concatenate([halves, content], axis=2).reshape(len(content), -1)
