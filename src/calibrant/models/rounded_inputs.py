"""Modules that round their inputs before they use them, as a scheme such as `W8A8` asks, and the
file in a model's folder that says which these are, and which attention rounds keys and values.

Where transformers opens such a folder, all of these stay as they are: it doesn't know the file.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, final

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from calibrant.errors import CalibrantError, ModelError, SpecError
from calibrant.models.folder import read_object
from calibrant.models.rounded_cache import RoundedCache, attends, round_cache, rounded_caches
from calibrant.models.viewing import Weight
from calibrant.spec.foreign import brief
from calibrant.system.durable import text_of_json
from calibrant.targets import InputGrid

INPUTS: Final = "rounded_inputs.json"
"""The file that says which modules of a saved model round their inputs, or keys and values, and
how.
"""
MODULES: Final = (nn.Linear, Conv1D)
"""Modules whose forward multiplies its one input with a matrix."""


@final
@dataclass(frozen=True)
class RoundedInputs:
    """The forward of a module that rounds its input to `grid` first; `static_scale` is None where
    all scales follow from the inputs.

    It stands in the module's own attributes. So it is a part of the model's structure: what
    restores that takes it away, and a copy of the model has one of its own.
    """

    grid: InputGrid
    static_scale: float | None
    forward: Callable[..., Tensor]

    def __post_init__(self) -> None:
        self.grid.check(self.static_scale)

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward(self.grid.rounded(x, self.static_scale))


def has_inputs(weight: Weight) -> bool:
    """Return whether a matrix has a module of its own, which can round its inputs."""
    return weight.expert is None and weight.key == "weight" and isinstance(weight.owner, MODULES)


def rounding_of(module: nn.Module) -> RoundedInputs | None:
    """Return how a module rounds its inputs; None for one that doesn't."""
    forward = vars(module).get("forward")
    return forward if isinstance(forward, RoundedInputs) else None


def round_inputs(module: nn.Module, grid: InputGrid, static_scale: float | None) -> None:
    """Let a module round its inputs, in place of how it did before. Raises `ValueError` where grid
    and scale don't fit each other or the inputs aren't whole groups, `NumericsError` for a scale
    that isn't finite and above 0.
    """
    inputs = _width(module)
    if grid.group is not None and inputs % grid.group:
        raise ValueError(f"{inputs} inputs aren't whole groups of {grid.group}")
    before = rounding_of(module)
    forward = module.forward if before is None else before.forward
    vars(module)["forward"] = RoundedInputs(grid, static_scale, forward)


def _width(module: Any) -> int:
    """How many inputs a module has."""
    first, last = module.weight.shape
    return first if isinstance(module, Conv1D) else last


def rounding_modules(model: nn.Module) -> dict[str, RoundedInputs]:
    """Return the modules of a model that round their inputs, by name."""
    found: dict[str, RoundedInputs] = {}
    for name, module in model.named_modules():
        rounding = rounding_of(module)
        if rounding is not None:
            found[name] = rounding
    return found


def check_inputs_may_change(model: nn.Module, by: str) -> None:
    """Raise `SpecError` for a model that rounds inputs, or keys and values, where these would be
    changed `by` what is written so: between a norm and a matrix nothing can move any more, and
    static scales were found for those that come now.
    """
    names = list(rounding_modules(model))
    if names:
        raise SpecError(
            f"{by} changes inputs of matrices, and those of {names[0]} are rounded already; "
            "start from the model before its inputs were rounded",
            subject=by,
        )
    for name in rounded_caches(model):
        raise SpecError(
            f"{by} may change keys and values, and those of {name} are rounded with scales that "
            "were found beforehand; start from the model before its KV cache was rounded",
            subject=by,
        )


def round_alike(model: nn.Module, other: nn.Module) -> None:
    """Let the modules of `model` round their inputs, and keys and values, as those of the same
    names in `other` do.
    """
    for name, rounding in rounding_modules(other).items():
        round_inputs(model.get_submodule(name), rounding.grid, rounding.static_scale)
    for name, rounded_cache in rounded_caches(other).items():
        round_cache(model.get_submodule(name), rounded_cache)


def rounded_parts(model: nn.Module) -> list[str]:
    """Return in words what a model rounds beside its weights."""
    parts: list[str] = []
    if rounding_modules(model):
        parts.append("the inputs of matrices")
    if rounded_caches(model):
        parts.append("the KV cache")
    return parts


def rounding_facts(model: nn.Module) -> dict[str, Any]:
    """Return as plain data how modules round their inputs, or keys and values, by their names."""
    modules: dict[str, Any] = {}
    for name, rounding in rounding_modules(model).items():
        modules[name] = {"grid": asdict(rounding.grid), "scale": rounding.static_scale}
    for name, rounded_cache in rounded_caches(model).items():
        modules[name] = rounded_cache.facts()
    return modules


def write_rounding(model: nn.Module, folder: Path) -> None:
    """Write into `folder` which modules round their inputs, or keys and values, if any do."""
    modules = rounding_facts(model)
    if modules:
        text = text_of_json({"modules": modules}, ordered=True)
        (folder / INPUTS).write_text(text, encoding="utf-8")


def round_as_written(model: nn.Module, folder: Path) -> None:
    """Let the modules of `model` round as `write_rounding` wrote it into its folder; does nothing
    where it didn't. Raises `ModelError` for a file that is damaged or of another model.
    """
    path = folder / INPUTS
    if not path.is_file():
        return
    modules = read_object(path).get("modules")
    if not isinstance(modules, dict):
        raise _damaged(path, brief(modules))
    known = dict(model.named_modules())
    for name, facts in modules.items():
        module = known.get(name)
        if module is None:
            raise _damaged(path, brief(name))
        try:
            _round(module, facts)
        except (CalibrantError, KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"{brief(name)}: {brief(facts)}") from error


def _round(module: nn.Module, facts: Mapping[str, Any]) -> None:
    """Let a module round as these facts say. Raises `KeyError`, `TypeError`, `ValueError` or
    `NumericsError` where they say nothing that can be done, and for a module that can't round.
    """
    if attends(module):
        round_cache(module, RoundedCache.read(facts))
    elif isinstance(module, MODULES):
        grid, static_scale = _grid_and_scale(facts)
        round_inputs(module, grid, static_scale)
    else:
        raise ValueError


def _grid_and_scale(facts: Mapping[str, Any]) -> tuple[InputGrid, float | None]:
    """The grid and the static scale of a module. Raises `KeyError`, `TypeError` or `ValueError` for
    what is none.
    """
    static_scale = facts["scale"]
    if static_scale is not None and type(static_scale) is not float:
        raise TypeError
    return InputGrid.read(facts["grid"]), static_scale


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path} says how a module rounds inputs or keys and values, and that doesn't fit the "
        f"model ({what}); save the model again",
        subject=str(path),
    )
