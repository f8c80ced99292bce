"""A compressed matrix: its new numbers, the form in which it is stored, such as codes with their
scales, and how large its outputs are.

Whatever the form, `dense()` gives the numbers that were measured, bit for bit.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import gguf
import torch
from jaxtyping import Float, Int8, Shaped, UInt8
from torch import Tensor

from calibrant.activations import Gram, wide
from calibrant.numerics import ceil_div, six_digits, type_name
from calibrant.spec.classes import keep_class
from calibrant.spec.foreign import brief
from calibrant.system.products import frexp, in_float64
from calibrant.targets import E2M1, E4M3, FloatGrid, Grid

_FORMS: Final = dict[str, type["Packed"]]()
"""Every form that is defined in this process, by its word."""

_TYPES: Final = ("float32", "float16", "bfloat16", "float64")
"""The types that a dense matrix may have."""

TILE_NUMBERS: Final = 2**18
"""How many numbers the rows have together that are worked on at a time: in float32 they fit into a
core's cache.
"""

_COLUMNS: Final = 256
"""Columns of a Gram that are multiplied at a time."""


class Packed(ABC):
    """A matrix in another form than its dense numbers. `form` is a word that no other form has.
    `stored` gives what a file holds of it, and `read` makes it again.
    """

    form: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # An inherited word is that of the class which has it.
        if vars(cls).get("form"):
            keep_class(_FORMS, cls.form, cls)

    @abstractmethod
    def dense(self) -> Float[Tensor, "out in"]:
        """Return the matrix that this stands for, bit for bit the compressed weight."""

    @property
    @abstractmethod
    def weights(self) -> int:
        """How many numbers the dense matrix has."""

    @property
    @abstractmethod
    def bits(self) -> int:
        """How many bits all of it takes: with what is needed to read it, such as scales and zero
        points, and without padding to whole words.
        """

    @abstractmethod
    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return all that `read` needs to make an equal one of it: plain JSON data, and tensors
        by name.
        """

    @classmethod
    @abstractmethod
    def read(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Packed":
        """Make it again. `KeyError` or `ValueError` for what `stored` didn't give."""

    def facts(self) -> Mapping[str, Any]:
        """Return what a record says of it: `bits_a_weight`, to six digits, and `bytes`."""
        size = ceil_div(self.bits, 8)
        return {"bits_a_weight": six_digits(self.bits / self.weights), "bytes": size}


@dataclass(frozen=True)
class Codes(Packed):
    """Whole numbers on `grid`: a code c of a group with the scale s and the zero point z stands for
    s · (c - z).

    `scales` have the type of the weight, and so have differences and products. Codes are small
    enough for differences to be exact in it; so each value is rounded once, as readers of the
    compressed-tensors format do it. `zeros` are None on a symmetric grid.

    >>> import torch
    >>> codes = torch.tensor([[7, -8, 1, 0]], dtype=torch.int8)
    >>> packed = Codes(Grid.read("w4g2"), codes, torch.tensor([[0.5, 2.0]]))
    >>> packed.dense()
    tensor([[ 3.5000, -4.0000,  2.0000,  0.0000]])
    >>> packed.facts()
    {'bits_a_weight': 20.0, 'bytes': 10}
    """

    form: ClassVar[str] = "codes"

    grid: Grid
    codes: Int8[Tensor, "out in"]
    scales: Float[Tensor, "out group"]
    zeros: Int8[Tensor, "out group"] | None = None

    def dense(self) -> Float[Tensor, "out in"]:
        groups = self.scales.shape[1]
        dtype = self.scales.dtype
        grouped = self.codes.unflatten(1, (groups, -1)).to(dtype)
        if self.zeros is not None:
            grouped = grouped - self.zeros[:, :, None].to(dtype)
        return (grouped * self.scales[:, :, None]).flatten(1)

    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {"codes": self.codes, "scales": self.scales}
        if self.zeros is not None:
            tensors["zeros"] = self.zeros
        return {"grid": str(self.grid)}, tensors

    @classmethod
    def read(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Codes":
        grid = Grid.read(facts["grid"])
        if grid is None:
            raise ValueError(f"{brief(facts['grid'])} is no grid")
        codes = tensors["codes"]
        scales = tensors["scales"]
        zeros = tensors.get("zeros")
        rows, groups = scales.shape
        fits = codes.dim() == 2 and rows == len(codes) and groups > 0
        # Groups are equally wide.
        fits = fits and codes.shape[1] % groups == 0
        if zeros is not None:
            fits = fits and zeros.shape == scales.shape
        if not fits:
            shapes = f"codes {list(codes.shape)} and scales {list(scales.shape)}"
            raise ValueError(f"{shapes} don't fit each other")
        return cls(grid, codes, scales, zeros)

    @property
    def weights(self) -> int:
        return self.codes.numel()

    @property
    def bits(self) -> int:
        codes = self.codes.numel()
        # Zero points are codes too.
        if self.zeros is not None:
            codes += self.zeros.numel()
        bits_of_scales = self.scales.numel() * self.scales.dtype.itemsize * 8
        return codes * self.grid.bits + bits_of_scales


@dataclass(frozen=True)
class FloatScales:
    """What the codes of a matrix on a float `grid` are multiplied by.

    `stored` has the scales as a file has them, one for each part of the matrix that shares one:
    numbers of the matrix's type `dtype`, or codes of e4m3 or e8m0. Those of e4m3 are divided by a
    `global_scale`.
    """

    grid: FloatGrid
    stored: Shaped[Tensor, "part group"]
    global_scale: Float[Tensor, "1"] | None
    dtype: torch.dtype

    def factors(self, rows: int) -> Float[Tensor, "out group"]:
        """Return the factor of each group of a matrix with so many rows, in the type in which
        products are made: the matrix's own for plain scales, else float32.
        """
        factors = self.stored
        if self.grid.scale == "e8m0":
            # A code is the exponent of a power of two.
            power_of_code = torch.tensor([2.0 ** (code - 127) for code in range(256)])
            factors = power_of_code.to(factors.device)[factors.int()]
        if self.global_scale is not None:
            factors = E4M3.values_of(factors) / self.global_scale
        return factors.repeat_interleave(self.grid.height(rows), dim=0)[:rows]

    def fit(self, rows: int, inputs: int) -> bool:
        """Return whether they are those of a matrix of this shape."""
        width = self.grid.width(inputs)
        if not rows or not inputs or inputs % width:
            return False
        # The last part may have fewer rows.
        parts = ceil_div(rows, self.grid.height(rows))
        shape = (parts, inputs // width)
        dtype = self.dtype if self.grid.scale == "plain" else torch.uint8
        if self.stored.shape != shape or self.stored.dtype != dtype:
            return False
        if self.global_scale is None:
            return self.grid.scale != "e4m3"
        return self.grid.scale == "e4m3" and self.global_scale.shape == (1,)

    def nearest(self, weight: Float[Tensor, "out in"]) -> "FloatCodes":
        """Return the nearest value of each weight; half way between two, the one with the even
        code.
        """
        # In float32 or better: the quotient of two bfloat16 numbers would miss values.
        dtype = wide(weight.dtype)
        factors = self.factors(len(weight)).to(dtype)
        groups = factors.shape[1]
        codes = torch.empty_like(weight, dtype=torch.uint8)
        # A few rows at a time, whose numbers stay in the cache.
        tile = max(1, TILE_NUMBERS // weight.shape[1])
        for start in range(0, len(weight), tile):
            rows = slice(start, start + tile)
            grouped = weight[rows].to(dtype).unflatten(1, (groups, -1))
            values = self.grid.element.nearest(grouped / factors[rows, :, None])
            codes[rows] = self.grid.element.codes_of(values.flatten(1))
        return FloatCodes(self, codes)

    def coded(self, values: Float[Tensor, "out in"]) -> "FloatCodes":
        """Return the packed form whose codes stand for these values."""
        return FloatCodes(self, self.grid.element.codes_of(values))


@dataclass(frozen=True)
class FloatCodes(Packed):
    """Floating-point numbers of few bits, by their codes, each times the factor of its group. The
    product is made and rounded as readers of the compressed-tensors format do it.

    >>> import torch
    >>> scales = FloatScales(FloatGrid("FP8A16"), torch.tensor([[0.5]]), None, torch.float32)
    >>> packed = scales.nearest(torch.tensor([[1.0, -0.3]]))
    >>> packed.codes.tolist(), packed.dense().tolist()
    ([[64, 178]], [[1.0, -0.3125]])
    """

    form: ClassVar[str] = "float_codes"

    scales: FloatScales
    codes: UInt8[Tensor, "out in"]

    def dense(self) -> Float[Tensor, "out in"]:
        factors = self.scales.factors(len(self.codes))
        values = self.scales.grid.element.values_of(self.codes).to(factors.dtype)
        grouped = values.unflatten(1, (factors.shape[1], -1))
        products = (grouped * factors[:, :, None]).flatten(1)
        return products.to(self.scales.dtype)

    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        scales = self.scales
        tensors = {"codes": self.bytes(), "scales": scales.stored}
        if scales.global_scale is not None:
            tensors["global_scale"] = scales.global_scale
        return {"grid": str(scales.grid), "dtype": type_name(scales.dtype)}, tensors

    @classmethod
    def read(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "FloatCodes":
        grid = FloatGrid.read(facts["grid"])
        if grid is None:
            raise ValueError(f"{brief(facts['grid'])} is no grid of floating-point numbers")
        scales = FloatScales(
            grid,
            stored=tensors["scales"],
            global_scale=tensors.get("global_scale"),
            dtype=_type_of(facts),
        )
        codes = tensors["codes"]
        if codes.dim() != 2 or codes.dtype != torch.uint8:
            raise ValueError(f"{type_name(codes.dtype)} {list(codes.shape)} are no codes")
        if grid.element == E2M1:
            codes = from_pairs(codes)
        if not scales.fit(*codes.shape):
            shapes = f"codes {list(codes.shape)} and scales {list(scales.stored.shape)}"
            raise ValueError(f"{shapes} of {grid} don't fit each other")
        return cls(scales, codes)

    def bytes(self) -> UInt8[Tensor, "out byte"]:
        """Return the codes as a file has them: of 4 bits two in a byte."""
        if self.scales.grid.element == E2M1:
            return in_pairs(self.codes)
        return self.codes

    @property
    def weights(self) -> int:
        return self.codes.numel()

    @property
    def bits(self) -> int:
        scales = self.scales
        bits = self.codes.numel() * scales.grid.bits
        bits += scales.stored.numel() * scales.stored.element_size() * 8
        if scales.global_scale is not None:
            bits += 32
        return bits


def in_pairs(codes: UInt8[Tensor, "out in"]) -> UInt8[Tensor, "out byte"]:
    """Return codes of 4 bits two in a byte, the first in its lower half.

    >>> in_pairs(torch.tensor([[1, 15]], dtype=torch.uint8)).tolist()
    [[241]]
    """
    lower = codes[:, 0::2]
    upper = codes[:, 1::2]
    return lower | (upper << 4)


def from_pairs(pairs: UInt8[Tensor, "out byte"]) -> UInt8[Tensor, "out in"]:
    """Return the codes that `in_pairs` put together."""
    lower = pairs & 15
    upper = pairs >> 4
    return torch.stack([lower, upper], dim=2).flatten(1)


def _type_of(facts: Mapping[str, Any]) -> torch.dtype:
    """Return the type of a dense matrix. `ValueError` for what is none."""
    if facts["dtype"] not in _TYPES:
        raise ValueError(f"{brief(facts['dtype'])} is no type of weights")
    return getattr(torch, facts["dtype"])


@dataclass(frozen=True)
class GgmlBlocks(Packed):
    """A matrix as llama.cpp stores it: its rows as the bytes of blocks of a `kind`, such as
    `q4_k`. `dtype` is the type of the dense matrix.
    """

    form: ClassVar[str] = "ggml"

    kind: str
    blocks: UInt8[Tensor, "out byte"]
    dtype: torch.dtype

    def dense(self) -> Float[Tensor, "out in"]:
        numbers = gguf.dequantize(self.blocks.cpu().numpy(), self._type)
        return torch.from_numpy(numbers).to(self.dtype).to(self.blocks.device)

    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts = {"kind": self.kind, "dtype": type_name(self.dtype)}
        return facts, {"blocks": self.blocks}

    @classmethod
    def read(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "GgmlBlocks":
        return cls(facts["kind"], tensors["blocks"], _type_of(facts))

    @property
    def weights(self) -> int:
        weights_of_block, bytes_of_block = gguf.GGML_QUANT_SIZES[self._type]
        block_count = self.blocks.numel() // bytes_of_block
        return block_count * weights_of_block

    @property
    def bits(self) -> int:
        return self.blocks.numel() * 8

    @property
    def _type(self) -> gguf.GGMLQuantizationType:
        return gguf.GGMLQuantizationType[self.kind.upper()]


@dataclass(frozen=True)
class Factors(Packed):
    """A product of two factors: one that is `shared` with other matrices, and one of the matrix's
    `own`, which may have zeros.

    It is shared · own, transposed if `turned`. Matrices whose shared factors have the same `name`
    have the same one. `sharing` is how many matrices these are, and this one counts as many parts
    of its bits. Of `own` either all numbers are counted, or those that aren't zero and a bit a
    number that says where they are: whichever is less.

    `exact_factor` rounds factors so that every sum of products is exact in float64. So the product
    is the same on every machine, in whatever order it is added up, and is then rounded: to float32,
    and to the type of the factors.

    >>> import torch
    >>> shared = torch.tensor([[1.0, 2.0]])
    >>> own = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    >>> packed = Factors("mlp", shared, own, sharing=2, turned=False)
    >>> packed.dense()
    tensor([[3., 2.]])
    >>> packed.bits == 2 * 32 // 2 + 2 * 32 + 4
    True
    """

    form: ClassVar[str] = "factors"

    name: str
    shared: Float[Tensor, "stream rank"]
    own: Float[Tensor, "rank unit"]
    sharing: int
    turned: bool

    def dense(self) -> Float[Tensor, "out in"]:
        device = self.own.device
        product = in_float64(self.shared) @ in_float64(self.own)
        if self.own.dtype != torch.float64:
            product = product.float().to(self.own.dtype)
        if self.turned:
            product = product.T.contiguous()
        return product.to(device)

    def stored(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        facts = {"shared": self.name, "sharing": self.sharing, "turned": self.turned}
        return facts, {"shared": self.shared, "own": self.own}

    @classmethod
    def read(cls, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Factors":
        name = facts["shared"]
        sharing = facts["sharing"]
        turned = facts["turned"]
        # Not `isinstance`: true is an int too.
        is_count = type(sharing) is int and sharing >= 1
        if not isinstance(name, str) or not is_count or not isinstance(turned, bool):
            given = f"{brief(name)}, {brief(sharing)}, {brief(turned)}"
            needs = "which factor how many matrices share, and how it is used"
            raise ValueError(f"{given} don't say {needs}")
        shared = tensors["shared"]
        own = tensors["own"]
        matrices = shared.dim() == own.dim() == 2 and shared.dtype == own.dtype
        if not matrices or shared.shape[1] != own.shape[0]:
            shapes = f"{list(shared.shape)} and {list(own.shape)}"
            raise ValueError(f"factors of {shapes} have no product")
        return cls(name, shared, own, sharing, turned)

    @property
    def weights(self) -> int:
        return self.shared.shape[0] * self.own.shape[1]

    @property
    def bits(self) -> int:
        bits_a_number = self.own.element_size() * 8
        numbers = self.own.numel()
        # Zeros may be left out, with a bit for each number that says where they are.
        without_zeros = int(self.own.count_nonzero()) * bits_a_number + numbers
        stored = min(numbers * bits_a_number, without_zeros)
        # This matrix's part of the shared factor.
        part = ceil_div(self.shared.numel() * bits_a_number, self.sharing)
        return stored + part


def exact_factor(
    numbers: Float[Tensor, "row column"], dim: int, rank: int, dtype: torch.dtype
) -> Float[Tensor, "row column"]:
    """Return `numbers` in the type `dtype`, rounded so that sums of `rank` products of two such
    factors are exact in float64.

    `dim` is the one over which a product is summed: 1 of the left factor, 0 of the right one. The
    numbers along it become whole multiples of one power of two. It is so large that they have few
    binary digits, 21 for a rank of 2048, and that a sum of products needs no more than the 53 that
    float64 has.
    """
    rounded = in_float64(numbers.to(dtype))
    digits = (53 - max(rank - 1, 0).bit_length()) // 2
    largest = rounded.abs().amax(dim, keepdim=True)
    # The next power of two above the largest, by its mantissa: exact, as `pow` needn't be.
    power = (largest / frexp(largest)[0]).where(largest > 0, 1.0)
    unit = power * 2.0**-digits
    return ((rounded / unit).round() * unit).to(numbers.device, dtype)


def to_stored(packed: Packed) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return a packed matrix as plain JSON data, which says its form, and tensors by name."""
    facts, tensors = packed.stored()
    return {**facts, "form": packed.form}, tensors


def from_stored(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Packed:
    """Return what `to_stored` was given. `KeyError` for a form that this process doesn't know,
    `KeyError` or `ValueError` for what isn't of that form.
    """
    return _FORMS[facts["form"]].read(facts, tensors)


@dataclass(frozen=True)
class Change:
    """What a matrix W lost by becoming Ŵ, where a method finds that out on its way: it saves a
    record from reading both again.

    `zeros` counts the numbers of Ŵ that are zero. `size` is ‖WX‖² and `lost` ‖(W−Ŵ)X‖², by what the
    method observes: its Gram, or feature norms with inputs taken to be uncorrelated.
    """

    zeros: int
    size: float
    lost: float


@dataclass(frozen=True)
class Compressed:
    """A new weight, and what the record should know about how it came about (a damping step that
    was needed, …).

    `packed` is the same weight as it is stored, where that isn't the dense matrix: `packed.dense()`
    equals `weight` bit for bit. A `change` of None is computed from both weights. `only_removes`
    says that every number that isn't zero is the one that was there, so that a mask is enough to
    make `weight` again.
    """

    weight: Float[Tensor, "out in"]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])
    packed: Packed | None = None
    change: Change | None = None
    only_removes: bool = False


def gram_energy(gram: Gram, dtype: torch.dtype) -> Callable[[Tensor], float]:
    """Return what gives tr(WGWᵀ) of a matrix W [out, in] of type `dtype`: its outputs, squared and
    summed over tokens.
    """
    matrix = gram.upper

    def energy(weight: Float[Tensor, "out in"]) -> float:
        total = 0.0
        for start in range(0, len(matrix), _COLUMNS):
            columns = slice(start, start + _COLUMNS)
            # From the upper triangle alone, which is half of the work, and all that is kept on
            # disk. So the diagonal counts half, and the sum twice.
            panel = matrix[: columns.stop, columns].to(dtype, copy=True)
            corner = panel[start:]
            corner.triu_()
            corner.diagonal().mul_(0.5)
            products = weight[:, : columns.stop] @ panel
            products *= weight[:, columns]
            total += float(products.sum(1).cpu().double().sum())
        return 2 * total

    return energy
