"""GGUF, the form of llama.cpp: codes that fit its blocks are stored as they are, everything else
as plain numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from calibrant import __version__
from calibrant.errors import OutputError
from calibrant.exports._base import CompressedModel, Export, packed_now
from calibrant.methods import Method
from calibrant.models import ModelView, Opened, gguf_of
from calibrant.models.gguf_writing import (
    Bytes,
    GgufPart,
    check_template,
    check_vocabulary,
    plain,
    q4_0,
    q8_0,
    write_gguf,
)
from calibrant.numerics import type_name
from calibrant.packed import Codes, GgmlBlocks, Packed
from calibrant.spec import written_form
from calibrant.targets import Target

FILE: Final = "model.gguf"
TYPES: Final = ("own", "f32", "f16", "bf16")
BLOCK: Final = 32
"""Inputs that share a scale in Q4_0 and Q8_0, into which our codes go."""
_NAME_OF_TYPE: Final = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


@dataclass(frozen=True, repr=False)
class Gguf(Export):
    """Writes `model.gguf` for llama.cpp: metadata and tokenizer are those of the GGUF file that the
    model was opened from, or of `like`.

    Codes of symmetric grids whose groups are multiples of 32 inputs are stored exactly, as Q4_0 (up
    to 4 bits) or Q8_0, if their scales are numbers of float16, as those of a model in bfloat16 are.
    All other matrices are plain numbers of the type `plain`: the model's own (`own`), `f32`, `f16`
    or `bf16`; what doesn't fit that is rounded.
    """

    like: str = ""
    plain: str = "own"

    def __post_init__(self) -> None:
        if self.plain not in TYPES:
            raise OutputError(
                f"plain={self.plain!r} is no type of numbers for GGUF; "
                f"choose one of {', '.join(TYPES)}",
                subject=self.plain,
            )

    def check(self, method: Method, target: Target, opened: Opened, view: ModelView) -> None:
        self.check_inputs(opened, target)
        if method.drops_parts(len(view.blocks), target):
            raise self._refused_shape(
                f"{method} to {target} leaves fewer blocks or experts", str(method)
            )
        if self.plain == "own" and opened.dtype not in _NAME_OF_TYPE:
            raise OutputError(
                f"{self} has no numbers of {type_name(opened.dtype)}, as those of {opened.name} "
                "are; choose gguf(plain=f32)",
                subject=opened.name,
            )
        template = self._template(opened)
        check_template(view, template)
        check_vocabulary(opened, template)

    def write(self, compressed: CompressedModel, folder: Path) -> None:
        template = self._template(compressed.opened)
        packed = packed_now(compressed)
        # `check` asked the method, but what a search drops is known only now.
        for edit in compressed.record.edits:
            if edit.get("removed"):
                raise self._refused_shape(
                    f"{edit['edit']} left fewer blocks or experts", edit["edit"]
                )
        check_template(compressed.view, template)
        plain_name = self.plain
        if self.plain == "own":
            plain_name = _NAME_OF_TYPE[compressed.opened.dtype]
        plain_kind = GGMLQuantizationType[plain_name.upper()]
        run = compressed.record.run
        facts = {
            "version": __version__,
            "run": run.id,
            "method": written_form(run.method),
            "target": run.target,
            "data": run.data,
        }
        note = {f"calibrant.{name}": value for name, value in facts.items() if value}

        def encoded(part: GgufPart) -> Bytes:
            return _encoded(part, packed) or plain(part, plain_kind)

        write_gguf(compressed.view, template, folder / FILE, encoded, note)

    def _refused_shape(self, why: str, subject: str) -> OutputError:
        """The error for a model with fewer tensors than the file whose metadata are copied."""
        return OutputError(
            f"{self} copies the metadata of a GGUF file of the whole model, and {why}; "
            f"leave the export {self} out, and use llama.cpp's own converter on the folder",
            subject=subject,
        )

    def _template(self, opened: Opened) -> Path:
        """Return the file to copy from. Raises `OutputError` if there is none."""
        path = gguf_of(self.like or opened.name)
        if path is None and self.like:
            raise OutputError(
                f"{self.like!r} is no GGUF file; name one of the same model", subject=self.like
            )
        if path is None:
            raise OutputError(
                f"{opened.name} wasn't opened from GGUF, and its tokenizer can't be written as "
                f"llama.cpp wants it; name a GGUF file of the same model, gguf(like='FILE.gguf'), "
                f"or use llama.cpp's own converter on the folder",
                subject=opened.name,
            )
        return path


def _encoded(part: GgufPart, packed: Mapping[str, Packed]) -> Bytes | None:
    """Return the blocks that hold a tensor exactly; None if none do.

    A tensor of experts is stacked from their matrices, whose blocks must all be of one kind.
    """
    if part.rows is None:
        return _blocks(part, packed.get(part.matrix or part.parameter))
    arrays: list[np.ndarray] = []
    kinds: set[GGMLQuantizationType] = set()
    for name in part.experts:
        blocks = _blocks(part, packed.get(name))
        if blocks is None:
            return None
        arrays.append(blocks[0])
        kinds.add(blocks[1])
    if len(kinds) != 1:
        return None
    return np.stack(arrays), kinds.pop()


def _blocks(part: GgufPart, packed: Packed | None) -> Bytes | None:
    """Return the blocks that hold exactly those rows of a packed matrix that are in this tensor;
    None if none do.
    """
    if isinstance(packed, GgmlBlocks):
        return _rows(packed.blocks, part).cpu().numpy(), GGMLQuantizationType[packed.kind.upper()]
    if not isinstance(packed, Codes) or packed.zeros is not None:
        return None
    groups = packed.scales.shape[1]
    inputs = packed.codes.shape[1]
    # A group must consist of whole blocks, which then have its scale.
    if inputs % (BLOCK * groups):
        return None
    # A scale for each block of llama.cpp's, of which our group may have several.
    scales = packed.scales.cpu().repeat_interleave(inputs // groups // BLOCK, dim=1)
    # The blocks of llama.cpp have scales in float16.
    if not torch.equal(scales.to(torch.float16).to(scales.dtype), scales):
        return None
    codes = _rows(packed.codes.cpu(), part).contiguous()
    scales = _rows(scales, part)
    if packed.grid.bits <= 4:
        return q4_0(codes, scales), GGMLQuantizationType.Q4_0
    return q8_0(codes, scales), GGMLQuantizationType.Q8_0


def _rows(tensor: Tensor, part: GgufPart) -> Tensor:
    """Return those rows of a matrix that are in this part, in the order that GGUF has them in."""
    if part.rows is not None:
        tensor = tensor[part.rows]
    if part.order is not None:
        tensor = tensor[part.order]
    return tensor
