"""Inputs that a folder in a format of compressed-tensors says are rounded: in its configuration
how, and in its files with which static scales.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

from safetensors import safe_open
from torch import nn

from calibrant.errors import ModelError, NumericsError
from calibrant.models.complete import StoredTensor
from calibrant.models.configuring import opening_by_transformers
from calibrant.models.float_folder import SCALE
from calibrant.models.folder import CONFIG, entries, read_object
from calibrant.models.rounded_inputs import MODULES, round_inputs
from calibrant.spec.foreign import brief
from calibrant.targets import InputGrid
from calibrant.targets.scheme import SCHEMES

STATIC: Final = "input_scale"
"""What the static scale of a tensor is called."""
GLOBAL: Final = "input_global_scale"
"""What the global scale of e4m3 scales is called."""
LINEAR: Final = "Linear"
"""The target that stands for all linear layers which aren't named."""


def input_settings(grid: InputGrid) -> dict[str, Any]:
    """Return what the library's configuration says of inputs on a grid."""
    settings: dict[str, Any] = {
        "num_bits": 4 if grid.element == "e2m1" else 8,
        "type": "int" if grid.element == "int8" else "float",
        "symmetric": True,
        "strategy": grid.strategy,
        "group_size": grid.group,
        "dynamic": grid.range is None,
    }
    if grid.has_global_scale:
        # The global scale is found beforehand, and those of groups aren't.
        settings |= {"strategy": "tensor_group", "dynamic": "local"}
    return settings


def quantization_settings(folder: Path) -> Mapping[str, Any]:
    """Return what a folder's configuration says of quantization; nothing where it says none."""
    for name, value in entries(read_object(folder / CONFIG)):
        if name == "quantization_config" and isinstance(value, dict):
            return value
    return {}


def scale_name(grid: InputGrid) -> str:
    """Return what the tensor of a static scale is called, behind the name of its module."""
    return GLOBAL if grid.has_global_scale else STATIC


@final
@dataclass(frozen=True)
class DeclaredInputs:
    """The modules whose inputs are rounded, by name, each with its grid and static scale; `tensors`
    are the names of all that the files say of inputs.
    """

    modules: Mapping[str, tuple[InputGrid, float | None]] = field(
        default_factory=dict[str, tuple[InputGrid, float | None]]
    )
    tensors: frozenset[str] = frozenset()

    def apply(self, model: nn.Module, ref: str) -> None:
        """Let the modules of `model` round their inputs. Raises `ModelError` for one that can't,
        or whose inputs aren't whole groups, and for a scale that isn't finite and above 0.
        """
        known = dict(model.named_modules())
        for name, (grid, scale) in self.modules.items():
            module = known.get(name)
            if not isinstance(module, MODULES):
                raise ModelError(
                    f"{ref} rounds the inputs of {brief(name)}, which is no linear layer of this "
                    "model; check its configuration",
                    subject=name,
                )
            try:
                round_inputs(module, grid, scale)
            except (NumericsError, ValueError) as error:
                raise ModelError(f"{ref}: {name}: {error}", subject=name) from error


def declared_inputs(
    folder: Path, ref: str, weights: Sequence[Path], stored: Mapping[str, StoredTensor]
) -> DeclaredInputs:
    """Return which inputs a folder says are rounded. Raises `ModelError` for a way that isn't known
    here, and for a module without its static scale.
    """
    by_target = _by_target(folder, ref)
    if all(grid is None for grid in by_target.values()):
        return DeclaredInputs()
    _check_targets(by_target, stored, ref)
    grids: dict[str, InputGrid] = {}
    tensors: set[str] = set()
    wanted: dict[str, str] = {}
    for name in stored:
        module, _, part = name.rpartition(".")
        if part in (STATIC, GLOBAL):
            tensors.add(name)
        grid = by_target.get(module, by_target.get(LINEAR))
        if part == SCALE and grid is not None:
            grids[module] = grid
            if grid.range is not None:
                wanted[f"{module}.{scale_name(grid)}"] = module
    scales = _static_scales(weights, wanted, ref)
    modules: dict[str, tuple[InputGrid, float | None]] = {}
    for module, grid in grids.items():
        modules[module] = grid, scales.get(module)
    return DeclaredInputs(modules, frozenset(tensors))


def _static_scales(
    weights: Sequence[Path], wanted: Mapping[str, str], ref: str
) -> dict[str, float]:
    """The scales in the tensors that are wanted, by their modules; `wanted` has the module of each.
    Raises `ModelError` for one that is missing or isn't a single number.
    """
    scales: dict[str, float] = {}
    for path in weights:
        with opening_by_transformers(ref), safe_open(path, framework="pt") as file:
            for name in wanted.keys() & set(file.keys()):
                numbers = file.get_tensor(name).flatten().tolist()
                if len(numbers) == 1:
                    scales[wanted[name]] = float(numbers[0])
    for name, module in wanted.items():
        if module not in scales:
            raise ModelError(
                f"{ref} holds no number {name}, which the inputs of {module} need; save it again",
                subject=module,
            )
    return scales


def _check_targets(targets: Collection[str], stored: Mapping[str, StoredTensor], ref: str) -> None:
    """Raise `ModelError` for a target that is neither `Linear` nor the name of a quantized matrix:
    what it stands for isn't known, such as of a pattern.
    """
    for target in targets:
        if target != LINEAR and f"{target}.{SCALE}" not in stored:
            raise ModelError(
                f"{ref} rounds inputs, and has a group for {brief(target)}, which is no quantized "
                f"matrix of its own; in its {CONFIG}, name matrices, or {LINEAR} for all",
                subject=ref,
            )


def _by_target(folder: Path, ref: str) -> dict[str, InputGrid | None]:
    """How inputs are rounded, by the targets of the configuration: `Linear`, or modules by name;
    None for a target whose inputs stay as they are.
    """
    groups = quantization_settings(folder).get("config_groups")
    if not isinstance(groups, dict):
        return {}
    found: dict[str, InputGrid | None] = {}
    for group in groups.values():
        if not isinstance(group, dict):
            continue
        given = group.get("input_activations")
        grid = _grid_of(given, ref) if given else None
        targets = group.get("targets")
        # What isn't a list is no name of a matrix, and refused as such.
        for target in targets if isinstance(targets, list) else [targets]:
            found[str(target)] = grid
    return found


def _grid_of(given: Any, ref: str) -> InputGrid:
    for parts in SCHEMES.values():
        expected = input_settings(parts.inputs).items()
        if isinstance(given, dict) and all(given.get(key) == value for key, value in expected):
            return parts.inputs
    raise ModelError(
        f"{ref} rounds activations in a way that isn't computed here ({brief(given)}); "
        f"{', '.join(SCHEMES)} are",
        subject=ref,
    )
