"""Layers of experts as plain feed-forward networks: what is kept of them side by side, each
multiplied with a gate that is the same for all tokens.

A gated network is a sum over its hidden units, and a constant gate can be multiplied into its down
projection. So the shared expert and the experts that are kept are one network, as wide as all of
them, which needs no router. Some architectures can say so: `mlp_only_layers` (Qwen-MoE) or
`mlp_layer_types` list the blocks that have such a network, and it is `intermediate_size` wide. That
is one number for all of them, so a narrower network gets hidden units of zeros. Nothing is guessed
from names: the model that the configuration describes is built without numbers, and the network
that it has there must have the shapes, and on some rows the outputs, of what it stands for.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calibrant.errors import ModelError
from calibrant.models.changing import without_numbers
from calibrant.models.experts import ExpertLayer, check_blocks, expert_layers
from calibrant.models.viewing import ModelView, Weight

PLAIN: Final = "dense"
"""What a block without experts is called in `mlp_layer_types`."""
PREFIXES: Final = ("first_k_dense_replace", "moe_layer_start_index")
"""Entries that say from which block on there are experts: with them, no others but the first
blocks can be without.
"""
WITHIN: Final = {torch.float64: 1e-10, torch.float32: 1e-4}
"""How far, as a share of its size, a network's output may be from what it stands for; 0.03 in
narrower types.
"""
ROWS: Final = 8


@final
@dataclass(frozen=True)
class Condensed:
    """What is kept of a layer of experts: the numbers of experts, each with its gate, and the
    gate of the shared ones (of no effect without any).
    """

    gates: Mapping[int, float]
    shared: float = 1.0


_Units = tuple[Float[Tensor, "unit in"], Float[Tensor, "unit in"], Float[Tensor, "out unit"]]
"""Hidden units of a gated network: their rows of the gate and up projections, and their columns
of the down projection.
"""


def condense(view: ModelView, layers: Mapping[int, Condensed]) -> None:
    """Put plain networks in the place of the layers of experts of some blocks, and say so in the
    configuration.

    Saved, the model opens with plain transformers and computes the same. Nothing is overwritten, so
    a `Snapshot` brings all back without having copied it. Raises `ModelError` as `condensed` does;
    then nothing is changed.
    """
    if not layers:
        return
    networks = condensed(view, layers)
    config = view.config
    _say(view, config, layers, _width(view, layers))
    # From here on nothing can be refused.
    for name, network in networks.items():
        path, _, key = name.rpartition(".")
        setattr(view.model.get_submodule(path), key, network)
        if "config" in vars(network):
            network.config = config
    view.refresh()


@torch.no_grad()
def condensed(view: ModelView, layers: Mapping[int, Condensed]) -> dict[str, nn.Module]:
    """Return the plain network that each of these blocks' layers of experts would become, by the
    layer's name. Nothing is changed.

    Raises `ModelError` for a block without experts, for experts that don't exist, for nothing that
    is kept, and where the architecture can't have a plain network in their place.
    """
    found = {layer.block: layer for layer in expert_layers(view)}
    check_blocks(layers, list(found))
    for block, kept in layers.items():
        _check(found[block], kept)
    names = {found[block].name for block in layers}
    described = _described(view, names, layers, _width(view, layers))
    networks: dict[str, nn.Module] = {}
    for block, kept in layers.items():
        layer = found[block]
        network = described.get_submodule(layer.name)
        _fill(network, layer, kept)
        _check_outputs(layer, kept, network)
        networks[layer.name] = network
    return networks


def _fill(network: nn.Module, layer: ExpertLayer, kept: Condensed) -> None:
    """Give a network without numbers those of what is kept, and zeros beside them."""
    sample = layer.experts[0][0].stored
    network.to_empty(device=sample.device).to(sample.dtype).train(layer.module.training)
    gates = network.get_parameter("gate_proj.weight").zero_()
    ups = network.get_parameter("up_proj.weight").zero_()
    downs = network.get_parameter("down_proj.weight").zero_()
    start = 0
    for (gate, up, down), factor in _kept_units(layer, kept):
        units = slice(start, start + len(gate))
        gates[units] = gate
        ups[units] = up
        downs[:, units] = factor * down  # the constant gate, which needs no router then
        start = units.stop
    network.requires_grad_(next(layer.module.parameters()).requires_grad)


@torch.no_grad()
def alone(
    layer: ExpertLayer, expert: int, x: Float[Tensor, "token in"]
) -> Float[Tensor, "token in"]:
    """Return what one expert gives for every row of `x`, multiplied with no gate."""
    index = torch.full((len(x), 1), expert, device=x.device)
    return layer.holders[0](x, index, torch.ones(len(x), 1, dtype=x.dtype, device=x.device))


def shared_of(layer: ExpertLayer) -> nn.Module | None:
    """Return the module of the expert that every token passes through; None for a layer without
    one.
    """
    modules: set[str] = set()
    for weight in layer.shared:
        if weight.name.startswith(f"{layer.name}."):
            modules.add(weight.name.removeprefix(f"{layer.name}.").partition(".")[0])
        else:
            modules.add("")  # outside of the layer
    if not modules:
        return None
    if len(modules) > 1 or "" in modules:
        raise ModelError(
            f"{layer.name} has several shared experts, or one outside of it; its experts can't be "
            "condensed",
            subject=layer.name,
        )
    return layer.module.get_submodule(modules.pop())


def _check(layer: ExpertLayer, kept: Condensed) -> None:
    for expert in kept.gates:
        if not 0 <= expert < layer.count:
            raise ModelError(
                f"{layer.name} has no expert {expert}: it has experts 0 to {layer.count - 1}",
                subject=str(expert),
            )
    if not kept.gates and not layer.shared:
        raise ModelError(
            f"{layer.name} has no shared expert, so one at least of the others must be kept",
            subject=layer.name,
        )


def _width(view: ModelView, layers: Mapping[int, Condensed]) -> int:
    """The hidden units of every plain network: those of the widest; where there are such
    networks already, as many as they have.
    """
    found = {layer.block: layer for layer in expert_layers(view)}
    widest = 0
    for block, kept in layers.items():
        width = sum(down.shape[1] for (_, _, down), _ in _kept_units(found[block], kept))
        widest = max(widest, width)
    # No plain network is there yet, so nothing says how wide one must be.
    if all(block.index in found for block in view.blocks):
        return widest
    config = view.config
    if widest > config.intermediate_size:
        raise ModelError(
            f"a condensed layer would have {widest} hidden units, and the plain networks that "
            f"there are have {config.intermediate_size}, which a configuration says for all of "
            "them; keep fewer experts",
            subject=str(widest),
        )
    return config.intermediate_size


def _say(view: ModelView, config: Any, blocks: Collection[int], width: int) -> None:
    """Say in a configuration that these blocks have plain networks. `ModelError`, with the
    reason, where it can't.
    """
    listed = getattr(config, "mlp_only_layers", None)
    kinds = getattr(config, "mlp_layer_types", None)
    if isinstance(listed, list | tuple):
        config.mlp_only_layers = sorted({*listed, *blocks})
    elif isinstance(kinds, list | tuple) and len(kinds) == len(view.blocks):
        kinds = list(kinds)
        for block in blocks:
            kinds[block] = PLAIN
        config.mlp_layer_types = kinds
    else:
        prefixes = [name for name in PREFIXES if getattr(config, name, None) is not None]
        why = "it has no mlp_only_layers"
        if prefixes:
            why = f"its {prefixes[0]} lets none but the first blocks be without"
        kind = type(view.model).__name__
        raise ModelError(
            f"the configuration of a {kind} can't say that some of its blocks have no experts: "
            f"{why}",
            subject=kind,
        )
    config.intermediate_size = width


def _described(
    view: ModelView, names: Collection[str], blocks: Collection[int], width: int
) -> nn.Module:
    """The model with plain networks, without numbers. `ModelError` where the configuration would
    ask for anything else that is another.
    """
    config = copy.deepcopy(view.model.config)
    _say(view, config.get_text_config(decoder=True), blocks, width)
    described = without_numbers(view.model, config)
    inside = tuple(f"{name}." for name in names)
    now = _shapes(view.model, inside)
    then = _shapes(described, inside)
    odd = [name for name in sorted({*now, *then}) if now.get(name) != then.get(name)]
    plain: set[str] = set()
    for prefix in inside:
        plain |= {f"{prefix}{key}_proj.weight" for key in ("gate", "up", "down")}
    parameters = described.named_parameters(remove_duplicate=False)
    networks = {name for name, _ in parameters if name.startswith(inside)}
    odd += sorted(networks ^ plain)
    if odd:
        kind = type(view.model).__name__
        raise ModelError(
            "without some layers of experts the configuration would ask for another "
            f"{odd[0]}; those of a {kind} can't be condensed",
            subject=odd[0],
        )
    return described


def _shapes(model: nn.Module, but_for: tuple[str, ...]) -> dict[str, torch.Size]:
    """The shapes of a model's parameters, but for those whose names begin so."""
    shapes: dict[str, torch.Size] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(but_for):
            shapes[name] = parameter.shape
    return shapes


def _kept_units(layer: ExpertLayer, kept: Condensed) -> list[tuple[_Units, float]]:
    """The hidden units of the shared expert and of those that are kept, in this order, each with
    its gate.
    """
    units: list[tuple[_Units, float]] = []
    if layer.shared:
        units.append((_units(layer, layer.shared), kept.shared))
    for expert, gate in kept.gates.items():
        units.append((_units(layer, layer.experts[expert]), gate))
    return units


def _units(layer: ExpertLayer, matrices: Collection[Weight]) -> _Units:
    named: dict[str, Tensor] = {}
    for weight in matrices:
        named[weight.tensor_name.rpartition(".")[2]] = weight.get()
    match named:
        case {"gate_up_proj": both, "down_proj": down, **others} if not others:
            gate, up = both.chunk(2)
        case {"gate_proj": gate, "up_proj": up, "down_proj": down, **others} if not others:
            pass
        case _:
            parts = ", ".join(named)
            raise ModelError(
                f"the experts of {layer.name} are no plain gated networks ({parts}), so they "
                "can't be condensed",
                subject=layer.name,
            )
    return gate, up, down


def _check_outputs(layer: ExpertLayer, kept: Condensed, network: nn.Module) -> None:
    """Compare, on some rows, the network with the layer's own modules."""
    sample = layer.experts[0][0].stored
    chance = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, layer.matrix.shape[1], generator=chance).to(sample.device, sample.dtype)
    parts = [gate * alone(layer, expert, x) for expert, gate in kept.gates.items()]
    shared = shared_of(layer)
    if shared is not None:
        parts.append(kept.shared * shared(x))
    expected = torch.stack(parts).sum(0)
    error = float((network(x) - expected).float().norm())
    size = float(expected.float().norm())
    # Not `>`: NaN shall be refused too.
    if not error <= WITHIN.get(sample.dtype, 0.03) * size:
        raise ModelError(
            f"the experts of {layer.name} compute something else than gated networks side by "
            "side; they can't be condensed",
            subject=layer.name,
        )
