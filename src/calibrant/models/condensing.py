"""Condensing: a layer of experts becomes a plain feed-forward network. The experts that are kept
stand in it side by side, each multiplied with a gate that is the same for all tokens.

A gated network is a sum over its hidden units, and a constant gate can be multiplied into its down
projection. So the shared expert and the experts that are kept make one network, as wide as all of
them together, which needs no router.

The configurations of some architectures can say so: `mlp_only_layers` (Qwen-MoE) or
`mlp_layer_types` list the blocks that have a plain network, which is `intermediate_size` wide. That
is one number for all blocks, so a narrower network gets hidden units of zeros.

Nothing is guessed from names. The model that the new configuration describes is built without
numbers. Its plain network must have the shapes that are needed, and give the same outputs as the
kept experts on some rows.
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

PLAIN_LAYER: Final = "dense"
"""What a block without experts is called in `mlp_layer_types`."""
PREFIXES: Final = ("first_k_dense_replace", "moe_layer_start_index")
"""Entries that say from which block on there are experts. With such an entry, only the first blocks
can have plain networks.
"""
TOLERANCES: Final = {torch.float64: 1e-10, torch.float32: 1e-4}
"""How far, as a share of its norm, a network's output may be from that of the experts; 0.03 in
narrower types.
"""
TRIED_ROWS: Final = 8


@final
@dataclass(frozen=True)
class Condensed:
    """What is kept of a layer of experts: the experts by number, each with its gate, and the gate
    of the shared expert, which has no effect in a layer without one.
    """

    gates: Mapping[int, float]
    shared: float = 1.0


_Units = tuple[Float[Tensor, "unit in"], Float[Tensor, "unit in"], Float[Tensor, "out unit"]]
"""Hidden units of a gated network: their rows of the gate and up projections, and their columns
of the down projection.
"""


def condense(view: ModelView, layers: Mapping[int, Condensed]) -> None:
    """Replace the layers of experts of some blocks, given by index, by plain networks, and say so
    in the configuration.

    Once saved, the model opens with plain transformers and computes the same. Nothing is
    overwritten, so a `Snapshot` restores it without having copied anything. Raises `ModelError` as
    `condensed` does; then nothing is changed.
    """
    if not layers:
        return
    networks = condensed(view, layers)
    config = view.config
    _declare_plain(view, config, layers, _width(view, layers))
    # From here on nothing can be refused.
    for name, network in networks.items():
        path, _, key = name.rpartition(".")
        setattr(view.model.get_submodule(path), key, network)
        if "config" in vars(network):
            network.config = config
    view.refresh()


@torch.no_grad()
def condensed(view: ModelView, layers: Mapping[int, Condensed]) -> dict[str, nn.Module]:
    """Return the plain networks that the layers of experts of these blocks would become, by the
    layer's name. Nothing is changed.

    Raises `ModelError` for a block without experts, for experts that don't exist, where nothing
    would be kept, and where the architecture can't have a plain network there.
    """
    layers_by_block = {layer.block: layer for layer in expert_layers(view)}
    check_blocks(layers, list(layers_by_block))
    for block, kept in layers.items():
        _check_kept(layers_by_block[block], kept)
    names = {layers_by_block[block].name for block in layers}
    described = _described(view, names, layers, _width(view, layers))
    networks: dict[str, nn.Module] = {}
    for block, kept in layers.items():
        layer = layers_by_block[block]
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
        # The constant gate is a factor of the weights, so no router is needed.
        downs[:, units] = factor * down
        start = units.stop
    network.requires_grad_(next(layer.module.parameters()).requires_grad)


@torch.no_grad()
def alone(
    layer: ExpertLayer, expert: int, x: Float[Tensor, "token in"]
) -> Float[Tensor, "token in"]:
    """Return what one expert gives for every row of `x`, without the router's weight."""
    # Every row is sent to this one expert, with the weight 1.
    index = torch.full((len(x), 1), expert, device=x.device)
    return layer.holders[0](x, index, torch.ones(len(x), 1, dtype=x.dtype, device=x.device))


def shared_of(layer: ExpertLayer) -> nn.Module | None:
    """Return the module of the shared expert, which every token passes through; None for a layer
    without one. Raises `ModelError` for several, or one outside the layer.
    """
    modules: set[str] = set()
    for weight in layer.shared:
        if weight.name.startswith(f"{layer.name}."):
            modules.add(weight.name.removeprefix(f"{layer.name}.").partition(".")[0])
        else:
            # An empty name stands for a module outside the layer.
            modules.add("")
    if not modules:
        return None
    if len(modules) > 1 or "" in modules:
        raise ModelError(
            f"{layer.name} has several shared experts, or one outside of it; its experts can't be "
            "condensed",
            subject=layer.name,
        )
    return layer.module.get_submodule(modules.pop())


def _check_kept(layer: ExpertLayer, kept: Condensed) -> None:
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
    """How many hidden units every plain network has: as many as the widest one needs. Where the
    model has plain networks already, as many as those have.
    """
    layers_by_block = {layer.block: layer for layer in expert_layers(view)}
    widest = 0
    for block, kept in layers.items():
        width = sum(down.shape[1] for (_, _, down), _ in _kept_units(layers_by_block[block], kept))
        widest = max(widest, width)
    # In a model of experts only, no plain network says how wide the others must be.
    if all(block.index in layers_by_block for block in view.blocks):
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


def _declare_plain(view: ModelView, config: Any, blocks: Collection[int], width: int) -> None:
    """Say in a configuration that these blocks have plain networks. Raises `ModelError` where it
    has no entry for that.
    """
    plain_blocks = getattr(config, "mlp_only_layers", None)
    layer_types = getattr(config, "mlp_layer_types", None)
    if isinstance(plain_blocks, list | tuple):
        config.mlp_only_layers = sorted({*plain_blocks, *blocks})
    elif isinstance(layer_types, list | tuple) and len(layer_types) == len(view.blocks):
        layer_types = list(layer_types)
        for block in blocks:
            layer_types[block] = PLAIN_LAYER
        config.mlp_layer_types = layer_types
    else:
        prefixes = [name for name in PREFIXES if getattr(config, name, None) is not None]
        why = "it has no mlp_only_layers"
        if prefixes:
            why = f"its {prefixes[0]} lets none but the first blocks be without"
        kind = type(view.model).__name__
        raise ModelError(
            f"the configuration of {kind} can't say that some of its blocks have no experts: {why}",
            subject=kind,
        )
    config.intermediate_size = width


def _described(
    view: ModelView, names: Collection[str], blocks: Collection[int], width: int
) -> nn.Module:
    """The model with plain networks in `names`, without numbers. Raises `ModelError` where the new
    configuration would change any other parameter, or makes other networks.
    """
    config = copy.deepcopy(view.model.config)
    _declare_plain(view, config.get_text_config(decoder=True), blocks, width)
    described = without_numbers(view.model, config)
    inside = tuple(f"{name}." for name in names)
    before = _shapes(view.model, inside)
    after = _shapes(described, inside)
    wrong = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    plain: set[str] = set()
    for prefix in inside:
        plain |= {f"{prefix}{key}_proj.weight" for key in ("gate", "up", "down")}
    parameters = described.named_parameters(remove_duplicate=False)
    networks = {name for name, _ in parameters if name.startswith(inside)}
    wrong += sorted(networks ^ plain)
    if wrong:
        kind = type(view.model).__name__
        raise ModelError(
            "without some layers of experts the configuration would ask for another "
            f"{wrong[0]}; those of {kind} can't be condensed",
            subject=wrong[0],
        )
    return described


def _shapes(model: nn.Module, excluded: tuple[str, ...]) -> dict[str, torch.Size]:
    """The shapes of a model's parameters, without those whose names begin with one of
    `excluded`.
    """
    shapes: dict[str, torch.Size] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(excluded):
            shapes[name] = parameter.shape
    return shapes


def _kept_units(layer: ExpertLayer, kept: Condensed) -> list[tuple[_Units, float]]:
    """The hidden units of the shared expert, and then of the kept experts, each with its gate."""
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
        # One matrix holds gate and up, one below the other.
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
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRIED_ROWS, layer.matrix.shape[1], generator=generator).to(
        sample.device, sample.dtype
    )
    parts = [gate * alone(layer, expert, x) for expert, gate in kept.gates.items()]
    shared = shared_of(layer)
    if shared is not None:
        parts.append(kept.shared * shared(x))
    expected = torch.stack(parts).sum(0)
    error = float((network(x) - expected).float().norm())
    size = float(expected.float().norm())
    # Written with `not`, since no comparison with NaN is true: NaN is refused too.
    if not error <= TOLERANCES.get(sample.dtype, 0.03) * size:
        raise ModelError(
            f"the experts of {layer.name} compute something else than gated networks side by "
            "side; they can't be condensed",
            subject=layer.name,
        )
