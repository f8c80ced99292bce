"""What is asked for, and what predicts it: the usual method of a target, the usual target of a
method, and the stand-in of a method.

Damage is predicted matrix by matrix from sums of statistics (`algebra`). Most methods read such
sums and nothing else, and predict themselves; others, such as a recipe of llama.cpp's, name a
method that comes near (`Method.stand_in`).
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from calibrant.activations import InputStatistic
from calibrant.errors import SpecError, TargetError
from calibrant.methods import MatrixMethod, Method, StandIn, methods
from calibrant.targets import (
    FloatGrid,
    GgmlKind,
    GgufBudget,
    GgufRecipe,
    Grid,
    Removal,
    SparseGrid,
    Target,
    accepted,
    parse_target,
)
from calibrant.targets.gguf_budget import MOST_BITS, in_megabytes
from calibrant.walk.statistics import KINDS

USUAL: Final[Mapping[type[Target], str]] = {
    Removal: "wanda",
    SparseGrid: "sparsegpt",
    Grid: "gptq(scales=importance)",
    FloatGrid: "gptq",
    GgmlKind: "ggml",
    GgufRecipe: "llama_cpp",
    GgufBudget: "llama_cpp",
}
"""The method of each kind of target, where none is named: what is in use and looks at data. For
grids that is gptq, since what most people run, rtn, looks at none; with scales by importance, as
plain gptq can be worse than rtn on other text than it was calibrated on. Float grids have no such
scales.
"""
LOOKING: Final[Mapping[type[Target], str]] = {
    Removal: "wanda or sparsegpt",
    SparseGrid: "sparsegpt",
    Grid: "gptq, rsq, awq, autoround or rtn(scales=importance)",
    FloatGrid: "gptq, rsq or awq",
    GgmlKind: "ggml",
    GgufRecipe: "llama_cpp",
    GgufBudget: "llama_cpp",
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

    >>> aim_of(None, "w4g64")
    (gptq(scales='importance'), Grid(bits=4, group=64, symmetric=True))
    >>> aim_of(None, "NVFP4")
    (gptq, Scheme(name='NVFP4', range='absmax'))
    """
    if target is not None and not isinstance(target, Target):
        target = parse_target(target)
    if method is None:
        method = _usual_method(target)
    built: Method = methods.build(method)
    if target is None:
        target = _usual_target(built)
    return built, built.aim(target)


def _usual_method(target: Target | None) -> str:
    if target is None:
        return "wanda"
    if str(target) == "NVFP4":
        # The scheme, and no recipe of llama.cpp, as for `quantize`.
        return USUAL[FloatGrid]
    name = _by_kind(USUAL, target)
    if name is None:
        kinds = accepted(tuple(USUAL))
        message = f"{target} is no target that data is chosen for; ask for {kinds}"
        raise TargetError(message, subject=str(target))
    return name


def _usual_target(method: Method) -> Target:
    # Of the kinds that a method accepts the first is its own; what removes has its usual share.
    own_kind = method.accepts[0]
    if issubclass(Removal, own_kind) or issubclass(own_kind, Removal):
        return parse_target(SPARSITY)
    return parse_target(own_kind.example)


def stand_in_of(method: Method, target: Target) -> StandIn:
    """Return what predicts `method`.

    Raises `SpecError` where data makes no difference, or nothing can be predicted from sums of
    statistics.
    """
    # Of a scheme its weights: what becomes of inputs depends less on the text.
    target = target.weights
    if not method.looks:
        looking = _by_kind(LOOKING, target) or "another method"
        message = (
            f"{method} looks at no data, so every text gives the same weights; choose {looking}"
        )
        raise SpecError(message, subject=str(method))
    if not method.heeds(target):
        message = f"{method} rounds to {target} without regard to data, so any text will do"
        raise SpecError(f"{message}: there is nothing to choose", subject=str(target))
    stand_in = method.stand_in(target)
    if stand_in is None:
        message = f"what {method} does with {target} can't be predicted from statistics of texts"
        raise SpecError(f"{message}; {_instead(target)}", subject=str(method))
    statistic_of(stand_in.method)
    return stand_in


def fitted_to(stand_in: StandIn, numbers: int) -> StandIn:
    """Return a stand-in for a model of so many numbers. A budget of bytes is divided by them, which
    says how many bits each gets; other targets stay as they are.

    Raises `SpecError` for a budget with room for every tensor in the largest kind.
    """
    target = stand_in.target
    if not isinstance(target, GgufBudget):
        return stand_in
    most = math.ceil(MOST_BITS * numbers / 8)
    if target.bytes >= most:
        problem = f"{target} has room for every tensor in the largest kind, which no text changes"
        message = f"{problem}: there is nothing to choose; ask for less than {in_megabytes(most)}"
        raise SpecError(message, subject=str(target))
    return stand_in._replace(target=replace(target, numbers=numbers))


def statistic_of(method: MatrixMethod) -> type[InputStatistic]:
    """Return the one statistic that the method reads of a matrix's inputs.

    Raises `SpecError` for a method that can't be used with mixtures.
    """
    for kind in KINDS:
        if method.observes == (kind,):
            return kind
    observed = ", ".join(kind.__name__ for kind in method.observes) or "the loss"
    message = (
        f"{method} looks at {observed}; statistics of a mixture are added up for methods that look "
        "at FeatureNorms or at a Gram alone, such as wanda and sparsegpt"
    )
    raise SpecError(message, subject=str(method))


def _instead(target: Target) -> str:
    name = _by_kind(LOOKING, target)
    if name is None:
        kinds = accepted(tuple(USUAL))
        return f"ask for {kinds}"
    return f"choose {name}"


def _by_kind(names: Mapping[type[Target], str], target: Target) -> str | None:
    for kind, name in names.items():
        if isinstance(target.weights, kind):
            return name
    return None
