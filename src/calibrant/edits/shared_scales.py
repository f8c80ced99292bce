"""Which matrices have one global scale of NVFP4 together: those that are joined when they are
served.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import product
from typing import Final

from calibrant.models import Weight
from calibrant.targets import FloatGrid, Target

JOINED: Final = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_b", "in_proj_a"),
)
"""Names of matrices that vLLM joins into one, where one module has them all. The last two are those
of Qwen3.5's linear attention, for which llm-compressor has no common scale; it has one for all
others.
"""


def sharing_scales(weights: Iterable[Weight], targets: Mapping[str, Target]) -> dict[str, Target]:
    """Return the targets of a block's matrices, by name, where matrices that are joined when they
    are served have one global scale: each of their grids reaches as far as all of them together.

    A matrix is left with its own scale if one that it is joined with is on another kind of grid.
    None of the matrices may be rounded yet.
    """
    named = {weight.name: weight for weight in weights}
    shared = {name: targets[name] for name in named}
    grids: dict[str, FloatGrid] = {}
    modules: dict[str, None] = {}
    for name, target in shared.items():
        if isinstance(target, FloatGrid) and target.scale == "e4m3":
            grids[name] = target
            module, _, _ = name.rpartition(".")
            modules[module] = None
    for module, names in product(modules, JOINED):
        members = [f"{module}.{name}" for name in names]
        if all(member in grids for member in members):
            largest = [float(named[member].get().abs().max()) for member in members]
            reach = max(largest)
            for member in members:
                shared[member] = replace(grids[member], reach=reach)
    return shared
