"""What is asked for, and what predicts it: the usual method of a target, the usual target of a
method, and the stand-in of a method.

Damage is predicted matrix by matrix from sums of statistics (`algebra`). Most methods read such
sums and nothing else, and predict themselves; others, such as a recipe of llama.cpp's, name a
method that comes near (`Method.stand_in`).
"""

from collections.abc import Mapping
from typing import Final

from calibrant.activations import InputStatistic
from calibrant.errors import SpecError, TargetError
from calibrant.methods import MatrixMethod, Method, StandIn, methods
from calibrant.targets import (
    GgmlKind,
    GgufRecipe,
    Grid,
    Removal,
    SparseGrid,
    Target,
    accepted,
    parse_target,
)
from calibrant.walk.statistics import KINDS

USUAL: Final[Mapping[type[Target], str]] = {
    Removal: "wanda",
    SparseGrid: "sparsegpt",
    Grid: "gptq",
    GgmlKind: "ggml",
    GgufRecipe: "llama_cpp",
}
"""The method of each kind of target, where none is named: what is in use and looks at data. For
grids that is gptq, whose result depends on the text most; what most people run, rtn, looks at
none.
"""
LOOKING: Final[Mapping[type[Target], str]] = {
    Removal: "wanda or sparsegpt",
    SparseGrid: "sparsegpt",
    Grid: "gptq, rsq, awq or rtn(scales=importance)",
    GgmlKind: "ggml",
    GgufRecipe: "llama_cpp",
}
SPARSITY: Final = 0.6
"""What methods that remove are asked for where nothing is said."""


def aim_of(
    method: str | Method | None, target: float | str | Target | None
) -> tuple[Method, Target]:
    """Return the method and the target that are meant where one or both aren't said.

    Without either it is Wanda at 0.6. Raises `SpecError` for a method that isn't known,
    `TargetError` for a target that isn't, that the method doesn't accept, or for which there is
    nothing to choose data by.

    >>> aim_of(None, "w4g64"), aim_of("rtn(scales=importance)", None)
    ((gptq, Grid(bits=4, group=64, symmetric=True)), (rtn(scales='importance'), Grid(bits=4, group=64, symmetric=True)))
    """
    read = (
        None if target is None else target if isinstance(target, Target) else parse_target(target)
    )
    if method is None:
        name = "wanda" if read is None else _by_kind(USUAL, read)
        if name is None:
            raise TargetError(
                f"{read} is no target that data is chosen for; ask for {accepted(tuple(USUAL))}",
                subject=str(read),
            )
        method = name
    built: Method = methods.build(method)
    if read is None:
        # Of the kinds that it accepts the first is its own; what removes has its usual share.
        first = built.accepts[0]
        read = parse_target(
            SPARSITY if issubclass(Removal, first) or issubclass(first, Removal) else first.example
        )
    return built, built.aim(read)


def stand_in_of(method: Method, target: Target) -> StandIn:
    """Return what predicts `method`. `SpecError` where data makes no difference, or nothing can
    be predicted from sums of statistics.
    """
    if not method.looks:
        instead = _by_kind(LOOKING, target)
        raise SpecError(
            f"{method} looks at no data, so every text gives the same weights; choose {instead or 'another method'}",
            subject=str(method),
        )
    if not method.heeds(target):
        raise SpecError(
            f"{method} rounds to {target} without regard to data, so any text will do: there is nothing to choose",
            subject=str(target),
        )
    found = method.stand_in(target)
    if found is None:
        raise SpecError(
            f"what {method} does with {target} can't be predicted from statistics of texts; {_instead(target)}",
            subject=str(method),
        )
    statistic_of(found.method)
    return found


def statistic_of(method: MatrixMethod) -> type[InputStatistic]:
    """Return the one statistic that the method reads of a matrix's inputs. `SpecError` for a
    method that can't be used with mixtures.
    """
    kinds = [kind for kind in KINDS if kind in method.observes]
    if len(kinds) != 1 or len(method.observes) != 1:
        raise SpecError(
            f"{method} looks at {', '.join(k.__name__ for k in method.observes) or 'the loss'}; statistics of a mixture are added up for methods "
            "that look at FeatureNorms or at a Gram alone, such as wanda and sparsegpt",
            subject=str(method),
        )
    return kinds[0]


def _instead(target: Target) -> str:
    name = _by_kind(LOOKING, target)
    return f"choose {name}" if name else f"ask for {accepted(tuple(USUAL))}"


def _by_kind(names: Mapping[type[Target], str], target: Target) -> str | None:
    return next((name for kind, name in names.items() if isinstance(target, kind)), None)
