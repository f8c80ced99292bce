"""What a matrix saw: sums over the tokens that reached it.

Every statistic is a plain sum over real tokens (never a running mean), so `a + b` is what one pass
over both would give, and `a * 0.5` weighs one. Of two maxima the sum is the larger. Padding and
tokens of weight zero never arrive: the walk removes them. Sums are kept in float32 or better,
whatever the activations' type: a Gram accumulated in bfloat16 isn't positive definite already in
the first block of a small model.

Shapes: `token` rows that reached the matrix, `in` its inputs.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calibrant.system.products import (
    exact,
    exact_type,
    frexp,
    full_speed,
    has_tiles,
    rounding_factors,
)

T = TypeVar("T")
S = TypeVar("S", bound="Statistic")

Propagation = Literal["arrival", "reference", "dense"]
"""Which inputs a matrix sees: those that arrive through what is compressed before it, as it goes
(`arrival`) or in a second pass (`reference`), or those of the untouched model (`dense`).
"""

CHUNK = 1024
"""Rows that are promoted to a wider type at a time: few enough that the copy stays in the cache,
and that partial sums in float32 are short.
"""

EXACT_CHUNK = 4096
"""The same where the processor multiplies in tiles: such products want many rows, and are as near
to float64's even so.
"""

PANEL = 192
"""Rows of a Gram's panel: few enough that little of the lower triangle is multiplied too, and
enough for the product's full speed.
"""

SIZES: Final = 2048
"""Sizes that inputs are counted by."""
SIZES_OF_OCTAVE: Final = 32
"""How many of them there are from a number to its double."""
LEAST_EXPONENT: Final = -32
"""The first size begins at 2 to the power of this."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return the type statistics and scores of `dtype` numbers are computed in: float64 stays,
    everything else becomes float32.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


class Statistic(ABC):
    """A sum over tokens: two are added, and one is scaled by a number.

    `tokens` is how many arrived, `mass` the sum of their weights. A subclass is made of the numbers
    that it holds under public names. All of them are sums, unless it adds in a way of its own.
    """

    square: ClassVar[bool] = False
    """Whether it is made of square matrices, as wide as a matrix has inputs."""

    tokens: int
    mass: float

    def __add__(self: S, other: Any) -> S:
        theirs = other.held()
        sums = {name: number + theirs[name] for name, number in self.held().items()}
        return type(self)(**sums)

    def __mul__(self: S, factor: float) -> S:
        scaled = {name: number * factor for name, number in self.held().items()}
        scaled["tokens"] = self.tokens
        return type(self)(**scaled)

    def held(self) -> dict[str, Any]:
        """Return what its class makes an equal statistic of: values by name."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def finite(self) -> bool:
        """Return False where a NaN or an infinity arrived, or a sum became one."""
        numbers = [value for value in self.held().values() if isinstance(value, Tensor | float)]
        return all(bool(torch.as_tensor(number).isfinite().all()) for number in numbers)


class InputStatistic(Statistic):
    """What a matrix was multiplied with."""

    @classmethod
    @abstractmethod
    def of(
        cls: type[S], x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> S:
        """Return the statistic of these rows alone; `weights` count a row more or less than
        once.
        """

    @abstractmethod
    def norms(self) -> Float[Tensor, "in"]:
        """Σ w·x², the weighted squared length of each input feature."""

    def finite(self) -> bool:
        return bool(torch.isfinite(self.norms()).all())


class _SquaresOfFeatures(InputStatistic):
    """A statistic with Σ w·x² of each input feature. A class may add others."""

    def __init__(self, squares: Float[Tensor, "in"], tokens: int, mass: float) -> None:
        self.squares = squares
        self.tokens = tokens
        self.mass = mass

    def norms(self) -> Float[Tensor, "in"]:
        return self.squares


class FeatureNorms(_SquaresOfFeatures):
    """Σ w·x² for each input feature: what Wanda needs.

    >>> seen = FeatureNorms.of(torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> seen.norms().tolist(), seen.tokens
    ([10.0, 4.0], 2)
    >>> (seen + seen * 0.5).norms().tolist()
    [15.0, 6.0]
    """

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "FeatureNorms":
        # Sums of a chunk are in the wide type, and their total is in float64: so the order of many
        # additions decides no mask.
        total = torch.zeros(x.shape[1], dtype=exact_type(x.device), device=x.device)
        for rows, row_weights in _chunks(x, weights):
            # Promoted rows are a copy already, which may be changed in place.
            squares = rows.square() if rows.dtype == x.dtype else rows.square_()
            if row_weights is not None:
                squares.mul_(row_weights[:, None])
            total += squares.sum(0)
        return FeatureNorms(total, x.shape[0], _mass(x, weights))


class FeatureSizes(_SquaresOfFeatures):
    """Σ w·|x| of each input feature, and Σ w·x²: what AWQ chooses scales by.

    >>> FeatureSizes.of(torch.tensor([[1.0, -2.0], [3.0, 0.0]])).means().tolist()
    [2.0, 1.0]
    """

    def __init__(
        self, sums: Float[Tensor, "in"], squares: Float[Tensor, "in"], tokens: int, mass: float
    ) -> None:
        self.sums = sums
        super().__init__(squares, tokens, mass)

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "FeatureSizes":
        norms = FeatureNorms.of(x, weights)
        sums = torch.zeros_like(norms.squares)
        for rows, row_weights in _chunks(x, weights):
            sizes = rows.abs()
            if row_weights is not None:
                sizes.mul_(row_weights[:, None])
            sums += sizes.sum(0)
        return FeatureSizes(sums, norms.squares, norms.tokens, norms.mass)

    def means(self) -> Float[Tensor, "in"]:
        """Return the weighted mean of |x|."""
        return self.sums / self.mass


class FeatureMoments(_SquaresOfFeatures):
    """Σ w·x of each input feature, and Σ w·x²: its mean and variance.

    >>> seen = FeatureMoments.of(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    >>> seen.means().tolist(), seen.variances().tolist()
    ([2.0, -1.0], [1.0, 1.0])
    """

    def __init__(
        self, sums: Float[Tensor, "in"], squares: Float[Tensor, "in"], tokens: int, mass: float
    ) -> None:
        self.sums = sums
        super().__init__(squares, tokens, mass)

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "FeatureMoments":
        norms = FeatureNorms.of(x, weights)
        sums = torch.zeros_like(norms.squares)
        for rows, row_weights in _chunks(x, weights):
            weighted = rows if row_weights is None else rows * row_weights[:, None]
            sums += weighted.sum(0)
        return FeatureMoments(sums, norms.squares, norms.tokens, norms.mass)

    def means(self) -> Float[Tensor, "in"]:
        """Return the weighted mean of x."""
        return self.sums / self.mass

    def variances(self) -> Float[Tensor, "in"]:
        """Return the weighted variance of x; 0 where rounding would leave it below."""
        return (self.squares / self.mass - self.means().square()).clamp_min(0)


class FeatureMaxima(_SquaresOfFeatures):
    """The largest |x| of each input feature, and Σ w·x²: what quantized inputs have to reach to.

    A maximum is no sum: of two the larger stays, and weights make no difference to it.

    >>> seen = FeatureMaxima.of(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    >>> seen.maxima.tolist(), seen.largest()
    ([3.0, 2.0], 3.0)
    >>> (seen * 0.5 + FeatureMaxima.of(torch.tensor([[0.0, 4.0]]))).maxima.tolist()
    [3.0, 4.0]
    """

    def __init__(
        self, maxima: Float[Tensor, "in"], squares: Float[Tensor, "in"], tokens: int, mass: float
    ) -> None:
        self.maxima = maxima
        super().__init__(squares, tokens, mass)

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "FeatureMaxima":
        norms = FeatureNorms.of(x, weights)
        maxima = torch.zeros(x.shape[1], dtype=wide(x.dtype), device=x.device)
        for rows, _ in _chunks(x, None):
            maxima = torch.maximum(maxima, rows.abs().amax(0))
        return FeatureMaxima(maxima, norms.squares, norms.tokens, norms.mass)

    def __add__(self, other: "FeatureMaxima") -> "FeatureMaxima":
        maxima = torch.maximum(self.maxima, other.maxima)
        squares = self.squares + other.squares
        return FeatureMaxima(maxima, squares, self.tokens + other.tokens, self.mass + other.mass)

    def __mul__(self, factor: float) -> "FeatureMaxima":
        return FeatureMaxima(self.maxima, self.squares * factor, self.tokens, self.mass * factor)

    def largest(self) -> float:
        """Return the largest |x| of all features."""
        return float(self.maxima.max())


class MagnitudeCounts(_SquaresOfFeatures):
    """How many inputs of all features are of a size, Σ w for each of 2,048 sizes |x|, and Σ w·x² of
    each feature: what a scale that doesn't reach to the largest input is found by.

    There are 32 sizes to each doubling, from 2^-32 to 2^32; what is smaller or larger counts as the
    first or the last.

    >>> seen = MagnitudeCounts.of(torch.tensor([[1.0, -1.01], [3.0, 0.0]]))
    >>> seen.counts.count_nonzero().item(), seen.quantile(0.75)
    (3, 1.03125)
    """

    def __init__(
        self, counts: Float[Tensor, "size"], squares: Float[Tensor, "in"], tokens: int, mass: float
    ) -> None:
        self.counts = counts
        super().__init__(squares, tokens, mass)

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "MagnitudeCounts":
        norms = FeatureNorms.of(x, weights)
        counts = torch.zeros(SIZES, dtype=exact_type(x.device), device=x.device)
        for rows, row_weights in _chunks(x, weights):
            mantissa, exponent = frexp(rows.abs())
            within = ((mantissa - 0.5) * 2 * SIZES_OF_OCTAVE).int()
            places = (exponent - 1 - LEAST_EXPONENT) * SIZES_OF_OCTAVE + within
            places = places.where(mantissa > 0, 0).clamp(0, SIZES - 1).flatten()
            if row_weights is None:
                counts += places.bincount(minlength=SIZES)
            else:
                each = row_weights.to(counts.dtype)[:, None].expand_as(rows).flatten()
                counts += places.bincount(each, minlength=SIZES)
        return MagnitudeCounts(counts, norms.squares, norms.tokens, norms.mass)

    def middles(self) -> Float[Tensor, "size"]:
        """Return the number in the middle of each size, in float64."""
        lower = self._lower_ends()
        return (lower[:-1] + lower[1:]) / 2

    def quantile(self, share: float) -> float:
        """Return how large inputs are of which this share is no larger: the upper end of a size."""
        below = self.counts.cumsum(0).cpu().double()
        place = int((below < share * below[-1]).count_nonzero())
        return float(self._lower_ends()[min(place, SIZES - 1) + 1])

    def _lower_ends(self) -> Float[Tensor, "end"]:
        """Return where each size begins, and where the last one ends."""
        places = torch.arange(SIZES + 1)
        octaves = places // SIZES_OF_OCTAVE + LEAST_EXPONENT
        within = 1 + (places % SIZES_OF_OCTAVE).double() / SIZES_OF_OCTAVE
        return torch.ldexp(within, octaves)


class Gram(InputStatistic):
    """Σ w·x xᵀ: what methods that reconstruct outputs need. Computed results (a factorisation,
    say) are cached on it and never stored.
    """

    square = True

    def __init__(
        self, matrix: Float[Tensor, "in in"], tokens: int, mass: float, panel: int = 0
    ) -> None:
        self._numbers = matrix
        self.tokens = tokens
        self.mass = mass
        # Unless it is 0, what lies left of each panel of so many rows isn't there yet.
        self._panel = panel
        self._cache: dict[Any, Any] = {}

    @property
    def matrix(self) -> Float[Tensor, "in in"]:
        """The whole matrix.

        What lies left of a panel is mirrored from what lies above it when it is first asked for.
        All parts of a sum are added by then.
        """
        if self._panel:
            for start in range(self._panel, len(self._numbers), self._panel):
                end = start + self._panel
                self._numbers[start:end, :start] = self._numbers[:start, start:end].T
            self._panel = 0
        return self._numbers

    @property
    def upper(self) -> Float[Tensor, "in in"]:
        """The matrix of which only the upper triangle, with the diagonal, may be read: it is there
        without mirroring. What is below may be anything.
        """
        return self._numbers

    @classmethod
    def of(
        cls, x: Float[Tensor, "token in"], weights: Float[Tensor, "token"] | None = None
    ) -> "Gram":
        width = x.shape[1]
        in_tiles = (
            x.dtype == torch.bfloat16 and weights is None and x.device.type == "cpu" and has_tiles()
        )
        panel = 2 * PANEL if in_tiles else PANEL
        chunk = EXACT_CHUNK if in_tiles else CHUNK
        # Only the upper triangle is multiplied, panel by panel: half of the work of a whole product
        # with its own transpose.
        total = torch.zeros(width, width, dtype=wide(x.dtype), device=x.device)
        with rounding_factors() if in_tiles else full_speed():
            for rows, row_weights in _chunks(x, weights, chunk):
                weighted = rows if row_weights is None else rows * row_weights[:, None]
                for start in range(0, width, panel):
                    end = start + panel
                    total[start:end, start:].addmm_(rows[:, start:end].T, weighted[:, start:])
        return Gram(total, x.shape[0], _mass(x, weights), panel)

    def __add__(self, other: "Gram") -> "Gram":
        tokens = self.tokens + other.tokens
        mass = self.mass + other.mass
        if self._panel and self._panel == other._panel:
            # Both lack the same half. It is made once, of the sum.
            return Gram(self._numbers + other._numbers, tokens, mass, self._panel)
        return Gram(self.matrix + other.matrix, tokens, mass)

    def __iadd__(self, other: "Gram") -> "Gram":
        if self._panel != other._panel:
            return self + other
        # In place, and so two Grams are in memory, not three.
        self._numbers += other._numbers
        self._cache.clear()
        self.tokens += other.tokens
        self.mass += other.mass
        return self

    def __mul__(self, factor: float) -> "Gram":
        return Gram(self._numbers * factor, self.tokens, self.mass * factor, self._panel)

    def held(self) -> dict[str, Any]:
        return {"matrix": self.matrix, "tokens": self.tokens, "mass": self.mass}

    def norms(self) -> Float[Tensor, "in"]:
        # The diagonal lies in the panels, so nothing needs to be mirrored.
        return self._numbers.diagonal()

    def symmetric(self) -> Float[Tensor, "in in"]:
        """Return a copy of the matrix with its upper triangle mirrored: a product may have rounded
        the two triangles differently.
        """
        numbers = self._numbers
        return torch.where(_upper(len(numbers), numbers.device), numbers, numbers.T)

    def packed(self) -> Float[Tensor, "pair"]:
        """Return the upper triangle, row by row: all there is to keep."""
        # Not by a mask: the places that it stands for take four times the memory of the numbers.
        rows = [numbers[place:] for place, numbers in enumerate(self._numbers)]
        return torch.cat(rows)

    @classmethod
    def unpacked(cls, packed: Float[Tensor, "pair"], tokens: int, mass: float) -> "Gram":
        """Return the Gram whose upper triangle `packed` is, mirrored."""
        # A triangle of n rows has n(n + 1)/2 numbers.
        width = (math.isqrt(8 * len(packed) + 1) - 1) // 2
        matrix = packed.new_empty(width, width)
        start = 0
        for place in range(width):
            stop = start + width - place
            matrix[place, place:] = packed[start:stop]
            matrix[place:, place] = packed[start:stop]
            start = stop
        return Gram(matrix, tokens, mass)

    def cached(self, key: Any, compute: Callable[[], T]) -> T:
        """`compute()`, once for each `key`: matrices that saw the same input share this Gram,
        and so its factorisation.
        """
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]


class BlockChange(Statistic):
    """Σ w·(1 − cos(before, after)): how far a block turns its input. ShortGPT's block influence
    (arXiv 2403.03853, eq. 1) is this over `mass`.
    """

    def __init__(self, total: float, tokens: int, mass: float) -> None:
        self.total = total
        self.tokens = tokens
        self.mass = mass

    @classmethod
    def of(
        cls,
        before: Float[Tensor, "token hidden"],
        after: Float[Tensor, "token hidden"],
        weights: Float[Tensor, "token"] | None = None,
    ) -> "BlockChange":
        """Return the change that these rows underwent."""
        before = before.to(wide(before.dtype))
        # The cosine of nearly equal rows is near 1: in bfloat16 nothing would be left of 1 - cos.
        cosines = torch.nn.functional.cosine_similarity(before, after.to(wide(after.dtype)), dim=-1)
        turned = exact(1 - cosines)
        if weights is not None:
            turned = turned * weights
        return BlockChange(float(turned.sum()), before.shape[0], _mass(before, weights))


class Routing(Statistic):
    """Which experts a router picked: for each how many tokens it got and with what weight, and for
    each two how many tokens had both.

    `counts` is Σ w over the tokens sent to an expert, `gates` Σ w·g with the weight g that its
    output got, and `together` Σ w over the tokens that were sent to both of two experts: `counts`
    is its diagonal. All are float64.
    """

    def __init__(
        self,
        counts: Float[Tensor, "expert"],
        gates: Float[Tensor, "expert"],
        together: Float[Tensor, "expert expert"],
        tokens: int,
        mass: float,
    ) -> None:
        self.counts = counts
        self.gates = gates
        self.together = together
        self.tokens = tokens
        self.mass = mass

    @classmethod
    def of(
        cls,
        chosen: Int[Tensor, "token chosen"],
        gates: Float[Tensor, "token chosen"],
        experts: int,
        weights: Float[Tensor, "token"] | None = None,
    ) -> "Routing":
        """Return the routing of these tokens alone, among so many `experts`; a number that is no
        expert's says that a choice was left out.
        """
        dtype = exact_type(gates.device)
        real = (chosen >= 0) & (chosen < experts)
        # One column more than there are experts takes the choices that were left out.
        columns = torch.where(real, chosen, experts).long()
        zeros = torch.zeros(len(chosen), experts + 1, dtype=dtype, device=gates.device)
        sent = zeros.scatter(1, columns, 1.0)[:, :experts]
        given = zeros.scatter_add(1, columns, gates.to(dtype))[:, :experts]
        weighted = sent
        if weights is not None:
            token_weights = weights.to(dtype)[:, None]
            weighted = sent * token_weights
            given = given * token_weights
        return Routing(
            weighted.sum(0),
            given.sum(0),
            together=sent.T @ weighted,
            tokens=len(chosen),
            mass=_mass(chosen, weights),
        )

    def mean_gates(self) -> Float[Tensor, "expert"]:
        """Return the mean weight that each expert's output got, over the tokens sent to it; 0
        for one that got none.
        """
        return torch.where(self.counts > 0, self.gates / self.counts, 0)

    def entropy(self) -> float:
        """Return the entropy of the load, in nats: of which expert a token is sent to. It is the
        log of the number of experts where all get equally many.
        """
        shares = self.counts[self.counts > 0] / self.counts.sum()
        return -float((shares * shares.log()).sum())


class Seen(Mapping[type[Statistic], Statistic]):
    """What one matrix (or block) saw, by kind: `seen[FeatureNorms]`. A method finds in it what
    it declared in `observes`.
    """

    def __init__(self, statistics: Mapping[type[Statistic], Statistic]) -> None:
        self._statistics = dict(statistics)

    @classmethod
    def of_gram(cls, gram: Gram) -> "Seen":
        """Return what a Gram tells methods that look at it, or at feature norms, which are its
        diagonal.
        """
        norms = FeatureNorms(exact(gram.norms()), gram.tokens, gram.mass)
        return cls({Gram: gram, FeatureNorms: norms})

    def __getitem__(self, kind: type[S]) -> S:
        return self._statistics[kind]  # pyright: ignore[reportReturnType]  # the key's type is the value's

    def __iter__(self):
        return iter(self._statistics)

    def __len__(self) -> int:
        return len(self._statistics)

    def __add__(self, other: "Seen") -> "Seen":
        return Seen({kind: mine + other[kind] for kind, mine in self._statistics.items()})

    def __iadd__(self, other: "Seen") -> "Seen":
        for kind, mine in self._statistics.items():
            mine += other[kind]
            self._statistics[kind] = mine
        return self

    def __mul__(self, factor: float) -> "Seen":
        return Seen({kind: mine * factor for kind, mine in self._statistics.items()})

    @property
    def tokens(self) -> int:
        """Real tokens that arrived; 0 where nothing is observed."""
        return max((statistic.tokens for statistic in self._statistics.values()), default=0)


def _upper(width: int, device: torch.device) -> Bool[Tensor, "in in"]:
    """Return the mask of the upper triangle, with the diagonal."""
    return torch.ones(width, width, dtype=torch.bool, device=device).triu()


def _chunks(
    x: Tensor, weights: Tensor | None, size: int = CHUNK
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield so many rows of `x` at a time, in the wide type, with their weights."""
    for start in range(0, x.shape[0], size):
        rows = x[start : start + size].to(wide(x.dtype))
        chunk_weights = None if weights is None else weights[start : start + size].to(rows.dtype)
        yield rows, chunk_weights


def _mass(x: Tensor, weights: Tensor | None) -> float:
    """Return the sum of the weights of these rows; each counts 1 without weights."""
    return float(x.shape[0]) if weights is None else float(exact(weights).sum())
