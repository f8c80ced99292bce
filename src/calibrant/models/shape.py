"""How large a model and its parts are: all that a plan needs to know of it."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Literal, final

import torch

from calibrant.errors import ModelError
from calibrant.models.viewing import EXPERT_COUNTS, ModelView, Weight

USED_EXPERTS: Final = ("num_experts_per_tok", "num_experts_per_token", "moe_topk")
"""What configurations call the number of experts that a token goes through."""
TABLE_OF_POSITIONS: Final = "position_embd.weight"
"""The tensor in which a GGUF file has learned positions, as GPT-2 has."""
_GGUF_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
# A router (`ffn_gate_inp`) stays dense.
_GGUF_MATRIX: Final = re.compile(r"blk\.\d+\.(attn|ffn|ssm)_(?!gate_inp)\w+\.weight$")
_GGUF_EMBEDDING: Final = "token_embd.weight"


@final
@dataclass(frozen=True)
class MatrixShape:
    """A matrix `[outputs, inputs]`, and the `part` of its block that it belongs to, such as the
    attention. `used` is the share of the tokens that go through it: below 1 for an expert.
    """

    outputs: int
    inputs: int
    part: str
    used: float = 1.0

    @property
    def numbers(self) -> int:
        """How many weights it has."""
        return self.outputs * self.inputs


@final
@dataclass(frozen=True)
class BlockShape:
    """A block: how many `numbers` it has in all, and its matrices."""

    numbers: int
    matrices: tuple[MatrixShape, ...]


@final
@dataclass(frozen=True)
class ModelShape:
    """How many `numbers` a model has, and how they are divided. Tied numbers count once.

    `outside` are those outside the blocks, `hidden` is the width of the residual stream, and
    `vocabulary` the number of tokens that the head chooses among. `cached` are the numbers of the
    KV cache for each token: keys and values of all blocks.
    """

    numbers: int
    outside: int
    hidden: int
    vocabulary: int
    blocks: tuple[BlockShape, ...]
    cached: int

    @classmethod
    def of(cls, view: ModelView) -> "ModelShape":
        """Return the shape of a model, which needs no numbers."""
        # By the parameters' ids, since blocks may share some.
        sizes = {id(parameter): parameter.numel() for parameter in view.model.parameters()}
        inside: set[int] = set()
        used = _used_share(view.config)
        blocks: list[BlockShape] = []
        for block in view.blocks:
            parameters = {id(parameter) for parameter in block.module.parameters()}
            inside |= parameters
            numbers = sum(sizes[parameter] for parameter in parameters)
            matrices = [_matrix_shape(weight, used) for weight in block.weights]
            blocks.append(BlockShape(numbers, tuple(matrices)))
        numbers = sum(sizes.values())
        return cls(
            numbers=numbers,
            outside=numbers - sum(sizes[parameter] for parameter in inside),
            hidden=view.config.hidden_size,
            vocabulary=view.config.vocab_size,
            blocks=tuple(blocks),
            cached=len(blocks) * _cached_in_a_block(view.config),
        )

    @classmethod
    def of_gguf(
        cls, values: Mapping[str, Any], tensors: Mapping[str, tuple[int, ...]], path: str
    ) -> "ModelShape":
        """Return the shape of the model that a GGUF file's header describes, with the single
        `values` in it and the shapes of its `tensors`. Raises `ModelError` for one without an
        embedding or without blocks.
        """
        embedding = tensors.get(_GGUF_EMBEDDING, ())
        sizes: defaultdict[int, int] = defaultdict(int)
        matrices: defaultdict[int, list[MatrixShape]] = defaultdict(list)
        used = _used_in_gguf(values)
        for name, shape in tensors.items():
            block = _GGUF_BLOCK.match(name)
            if block is None:
                continue
            index = int(block[1])
            sizes[index] += prod(shape)
            matrix = _GGUF_MATRIX.match(name)
            if matrix is not None and len(shape) == 2:
                matrices[index].append(MatrixShape(*shape, matrix[1]))
            elif matrix is not None and len(shape) == 3:
                experts, outputs, inputs = shape
                for expert in range(experts):
                    part = f"{matrix[1]}[{expert}]"
                    matrices[index].append(MatrixShape(outputs, inputs, part, used))
        if len(embedding) != 2 or not matrices[0]:
            raise ModelError(
                f"{path} holds no embedding or no blocks, so it is no language model; give the "
                "file of a whole model",
                subject=path,
            )
        blocks: list[BlockShape] = []
        for index in sorted(sizes):
            blocks.append(BlockShape(sizes[index], tuple(matrices[index])))
        numbers = sum(prod(shape) for shape in tensors.values())
        return cls(
            numbers=numbers,
            outside=numbers - sum(sizes.values()),
            hidden=embedding[1],
            vocabulary=embedding[0],
            blocks=tuple(blocks),
            cached=len(blocks) * _cached_in_gguf(values, hidden=embedding[1]),
        )

    @property
    def matrices(self) -> list[MatrixShape]:
        """All matrices, block by block."""
        shapes: list[MatrixShape] = []
        for block in self.blocks:
            shapes.extend(block.matrices)
        return shapes

    @property
    def largest_block(self) -> int:
        """How many numbers the largest block has."""
        return max(block.numbers for block in self.blocks)

    @property
    def neurons(self) -> list[int]:
        """How many neurons each block has at most: inputs of its widest matrix."""
        widths: list[int] = []
        for block in self.blocks:
            widths.append(max((matrix.inputs for matrix in block.matrices), default=0))
        return widths

    @property
    def numbers_per_token(self) -> int:
        """How many numbers a token takes in a block: input, residual, and the two widest
        results.
        """
        matrices = self.blocks[0].matrices
        inputs = [matrix.inputs for matrix in matrices]
        outputs = [matrix.outputs for matrix in matrices]
        return 3 * min(inputs) + max(inputs) + max(outputs)

    @property
    def input_widths(self) -> list[int]:
        """The width of every distinct input of matrices, block by block: those that begin a part
        of a block share the residual stream, and all others have inputs of their own.
        """
        widths: list[int] = []
        for block in self.blocks:
            parts: defaultdict[str, list[int]] = defaultdict(list)
            for matrix in block.matrices:
                parts[matrix.part].append(matrix.inputs)
            for inputs in parts.values():
                inner = [width for width in inputs if width != self.hidden]
                # A part that doesn't read the residual stream has one input.
                if len(inner) == len(inputs):
                    widths.append(inner[0])
                    continue
                widths.append(self.hidden)
                if len(inputs) > 1:
                    # The matrix that ends a part may have inputs as wide as the residual stream.
                    widths += inner or inputs[:1]
        return widths


Storage = Literal["memory", "copied", "folder", "gguf", "hub"]
"""Where the numbers of a model come from: they are in memory already, are copied there, or are in a
folder, in a GGUF file, or on the hub, not downloaded yet.
"""


@final
@dataclass(frozen=True)
class ModelOutline:
    """A model as far as it is known before it is opened: its shape, and the type and device that
    it would be opened in. Its files have `stored` bytes. `divisible` says whether its blocks can
    stay on disk. `longest_window` is how many tokens it can read at once, where that has an end,
    and `positions` how many its configuration names.
    """

    name: str
    shape: ModelShape
    dtype: torch.dtype
    device: torch.device
    storage: Storage
    stored: int
    divisible: bool
    longest_window: int | None = None
    positions: int | None = None

    @property
    def added(self) -> int:
        """How many bytes the process holds more once the model is open."""
        if self.storage == "memory":
            return 0
        return self.shape.numbers * self.dtype.itemsize

    def note_on_length(self, length: int) -> str:
        """Return what a plan says of windows of up to `length` tokens; nothing where the model was
        made for them.
        """
        longest = self.longest_window
        positions = self.positions
        if longest is not None and length > longest:
            return (
                f"windows may have {length:,} tokens, and the model has {longest:,} positions: "
                f"longer windows are refused, so give a length of at most {longest}"
            )
        if positions is not None and length > positions:
            return (
                f"windows may have {length:,} tokens, and the model was made for {positions:,}: "
                "what it says of longer ones may mean little"
            )
        return ""


def _matrix_shape(weight: Weight, used: float) -> MatrixShape:
    part = weight.name.removesuffix(".weight").rpartition(".")[0]
    outputs, inputs = weight.shape
    if weight.expert is not None:
        return MatrixShape(outputs, inputs, f"{part}[{weight.expert}]", used)
    if ".experts." in weight.name:
        return MatrixShape(outputs, inputs, part, used)
    return MatrixShape(outputs, inputs, part)


def _used_share(config: Any) -> float:
    """The share of the experts of a block that a token goes through; 1 where the configuration
    doesn't say.
    """
    return _share(_first(config, USED_EXPERTS), _first(config, EXPERT_COUNTS))


def _cached_in_a_block(config: Any) -> int:
    """The numbers of a token's keys and values in a block; 0 for a model without heads.

    Where layers differ, transformers refuses to name one number of heads, or names a list. Then
    each query is taken to have a key and a value of its own.
    """
    each_query_its_own = 2 * config.hidden_size
    try:
        queries = getattr(config, "num_attention_heads", None)
        heads = getattr(config, "num_key_value_heads", None) or queries
        width = getattr(config, "head_dim", None)
    except RuntimeError:
        return each_query_its_own
    if not queries:
        return 0
    if not isinstance(queries, int) or not isinstance(heads, int):
        return each_query_its_own
    if not isinstance(width, int):
        width = config.hidden_size // queries
    # Where keys and values come from a narrow latent state, they have widths of their own.
    keys = getattr(config, "qk_head_dim", None) or width
    values = getattr(config, "v_head_dim", None) or width
    return heads * (keys + values)


def _cached_in_gguf(values: Mapping[str, Any], hidden: int) -> int:
    """The same of a GGUF file with these `values`."""
    attention = f"{values.get('general.architecture', '')}.attention"
    queries = values.get(f"{attention}.head_count")
    # A list of them, where layers differ, isn't a single value.
    if not queries:
        return 2 * hidden
    heads = values.get(f"{attention}.head_count_kv") or queries
    width = hidden // queries
    key_width = values.get(f"{attention}.key_length") or width
    value_width = values.get(f"{attention}.value_length") or width
    return heads * (key_width + value_width)


def positions_in_gguf(values: Mapping[str, Any]) -> int | None:
    """Return how many positions the header of a GGUF file names; None where it names none."""
    positions = values.get(f"{values.get('general.architecture', '')}.context_length")
    return positions if isinstance(positions, int) and positions >= 1 else None


def _used_in_gguf(values: Mapping[str, Any]) -> float:
    architecture = values.get("general.architecture", "")
    used = values.get(f"{architecture}.expert_used_count")
    return _share(used, values.get(f"{architecture}.expert_count"))


def _share(used: object, experts: object) -> float:
    if not isinstance(used, int) or not isinstance(experts, int):
        return 1.0
    return used / experts if 0 < used <= experts else 1.0


def _first(config: Any, names: tuple[str, ...]) -> object:
    """The first of these entries that a configuration has."""
    for name in names:
        if hasattr(config, name):
            return getattr(config, name)
    return None
