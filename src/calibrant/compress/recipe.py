"""A recipe: what is to be done to a model, as values that were checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_args

from calibrant.activations import Propagation, Statistic
from calibrant.allocations import Allocation, allocations
from calibrant.data import TokenBatch
from calibrant.errors import SpecError
from calibrant.methods import MatrixMethod, Method, methods
from calibrant.models import Opened
from calibrant.numerics import type_name
from calibrant.results import Run
from calibrant.spec import canonical
from calibrant.targets import CacheGrid, InputGrid, Scheme, Target, WithCache, parse_target
from calibrant.transforms import Transform, transforms
from calibrant.walk.starving import AS_SEEN, Starved
from calibrant.walk.statistics import KINDS

PROPAGATIONS: Final[tuple[Propagation, ...]] = ("arrival", "reference", "dense")


@dataclass(frozen=True)
class Recipe:
    """What is to be done to a model: transforms first, then the allocation, then what the method
    makes of each matrix's target.
    """

    method: Method
    target: Target
    allocation: Allocation
    propagate: Propagation
    transforms: tuple[Transform, ...] = ()
    starved: Starved = AS_SEEN

    @classmethod
    def parse(
        cls,
        method: str | Method,
        target: float | str | Target,
        propagate: str | None = None,
        allocation: str | Allocation = "uniform",
        transform: Sequence[str | Transform] = (),
        starved: str = AS_SEEN,
    ) -> "Recipe":
        """Return the recipe that the texts of a user ask for. Raises an `InputError` for a text
        that can't be read, which says what is allowed.

        Without `propagate` it is the method's own default. `starved` says what experts with few
        tokens are calibrated on.
        """
        if propagate is not None and propagate not in PROPAGATIONS:
            known = ", ".join(PROPAGATIONS)
            message = f"propagate={propagate!r} is not known; choose one of {known}"
            raise SpecError(message, subject=propagate)
        built: Method = methods.build(method)
        if propagate is None:
            propagate = built.propagate
        else:
            check_propagation(built, propagate)
        aimed = target if isinstance(target, Target) else parse_target(target)
        if isinstance(transform, str | Transform):
            transform = (transform,)
        aimed = built.aim(aimed)
        built_transforms = tuple(map(transforms.build, transform))
        for built_transform in built_transforms:
            built_transform.check(aimed)
        return cls(
            built,
            aimed,
            allocations.build(allocation),
            propagate,
            built_transforms,
            _starved(starved, built, propagate),
        )

    @property
    def looks(self) -> bool:
        """Whether anything in it looks at calibration data, so that the result depends on it."""
        return bool(self.looking)

    @property
    def weights_look(self) -> bool:
        """Whether what becomes of weights depends on calibration data. Where only scales of inputs
        or of the KV cache do, a few tokens are enough.
        """
        return self.looks and self.looking != str(self.target)

    @property
    def walks(self) -> bool:
        """Whether its propagation makes a difference to the result."""
        return self.method.looks or self.target.looks

    @property
    def tries(self) -> bool:
        """Whether anything in it measures the model on calibration data again and again."""
        return self.method.tries or self.allocation.tries

    @property
    def looking(self) -> str:
        """The first part of it that looks at calibration data, as it is written; empty where none
        does.
        """
        if self.method.looks:
            return str(self.method)
        for part in (self.allocation, *self.transforms):
            if part.observes:
                return str(part)
        if self.allocation.tries:
            return str(self.allocation)
        return str(self.target) if self.target.looks else ""

    @property
    def leaves_weights(self) -> bool:
        """Whether the KV cache alone is rounded, and weights stay as they are."""
        return isinstance(self.target.weights, WithCache)

    @property
    def inputs(self) -> InputGrid | None:
        """What becomes of the inputs of matrices; None where they stay as they are."""
        return self.target.inputs if isinstance(self.target, Scheme | WithCache) else None

    @property
    def cache(self) -> CacheGrid | None:
        """What becomes of keys and values; None where they stay as they are."""
        return self.target.cache if isinstance(self.target, WithCache) else None

    @property
    def propagate_inputs(self) -> Propagation:
        """How the walks go that find scales of inputs, and of keys and values. They are through the
        compressed model, so never `dense`.
        """
        return "arrival" if self.propagate == "arrival" else "reference"

    def forwards_for_scales(self, propagate: Propagation) -> int:
        """Return how often all tokens go through each block to find scales, once the weights are
        compressed.
        """
        # Where it isn't `arrival`, a walk is `reference`, which runs each block twice.
        walked = 1 if propagate == "arrival" else 2
        forwards = 0
        if self.inputs is not None and self.inputs.range is not None:
            forwards += walked
        if self.cache is not None:
            # Before a block runs, it runs aside to show its keys and values.
            forwards += walked + 1
        return forwards

    @property
    def shared(self) -> tuple[type[Statistic], ...]:
        """The statistics of the untouched model's matrices that it looks at, as far as they can be
        kept on disk for other runs.
        """
        # After a transform, matrices see something else.
        if self.transforms:
            return ()
        observes = self.allocation.observes
        if self.propagate == "dense":
            observes = (*self.method.observes, *observes)
        # Each kind once, in the order in which they were asked for.
        return tuple(kind for kind in dict.fromkeys(observes) if kind in KINDS)

    def run(self, opened: Opened, batch: TokenBatch | None, data: str = "", seed: int = 0) -> Run:
        """Return the run: the description of doing this to `opened`, calibrated on `batch`, from
        which the identity follows.
        """
        # What makes no difference to the result is left empty, and so out of the identity.
        used_data = ""
        used_seed = 0
        fingerprint = ""
        propagate = ""
        starved = ""
        if self.looks:
            used_data = data
            used_seed = seed
            if batch is not None:
                fingerprint = batch.fingerprint
        if self.walks:
            propagate = self.propagate
        if self.starved != AS_SEEN:
            starved = self.starved
        return Run(
            model=opened.digest,
            model_name=opened.name,
            data=used_data,
            tokens=fingerprint,
            method=canonical(self.method),
            target=str(self.target),
            allocation=canonical(self.allocation),
            propagate=propagate,
            dtype=type_name(opened.dtype),
            seed=used_seed,
            transforms=tuple(map(canonical, self.transforms)),
            starved=starved,
            revised=self.target.revised,
        )


def check_propagation(method: Method, propagate: str) -> None:
    """Raise `SpecError` for a propagation that the method can't be used with."""
    if propagate not in method.propagations:
        allowed = " or ".join(method.propagations)
        advice = f"leave propagate out, or write {allowed}"
        raise SpecError(f"{method} can't be done in {propagate}; {advice}", subject=propagate)


def _starved(way: str, method: Method, propagate: Propagation) -> Starved:
    """`way`, if it is a known one that `method` can go; else raises `SpecError`."""
    ways = get_args(Starved)
    if way not in ways:
        problem = f"starved={way!r} is no way to calibrate experts with few tokens"
        raise SpecError(f"{problem}; choose one of {', '.join(ways)}", subject=way)
    if way != AS_SEEN and not (isinstance(method, MatrixMethod) and method.observes):
        problem = f"{method} calibrates no experts, so none of them is starved"
        raise SpecError(f"{problem}; leave starved out", subject=way)
    if way == "shared" and propagate != "dense":
        problem = (
            "what experts saw can be shared only where all of it is there before any is changed"
        )
        raise SpecError(
            f"{problem}; add --propagate dense (in Python propagate='dense')", subject=way
        )
    return way  # pyright: ignore[reportReturnType]  # one of them
