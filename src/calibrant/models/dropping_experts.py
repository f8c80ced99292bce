"""Removing experts so that what is left is still a model of its architecture.

What has to shrink isn't guessed from names: the smaller model is built from its configuration, without numbers, and every tensor and number of
an expert layer that is another there is made so. So a router's rows, its bias, corrections of its scores and the experts' own biases follow,
and a model that its configuration couldn't describe is refused before anything is touched.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from calibrant.errors import ModelError, TargetError
from calibrant.models.experts import ExpertLayer, expert_layers
from calibrant.models.viewing import EXPERT_COUNTS, ModelView

GROUPS: Final = ("n_group", "num_expert_group", "moe_n_group")
PICKED_GROUPS: Final = ("topk_group", "topk_groups", "moe_topk_group")


def drop_experts(view: ModelView, experts: Mapping[int, Sequence[int]]) -> None:
    """Remove experts by number, for each block those of its expert layer, and say so in the configuration.

    Saved, the model opens with plain transformers and computes the same. The experts that stay are numbered anew, in order. A configuration
    knows one number of experts, so every expert layer must lose equally many. Nothing is overwritten, so a `Snapshot` brings all back without
    having copied it.

    Raises `TargetError` where fewer would stay than the router picks, and `ModelError` for experts or layers that don't exist, and for what the
    configuration can't describe. Then nothing is changed.
    """
    layers = expert_layers(view)
    kept = {layer.name: _kept(layer, experts.get(layer.block, ())) for layer in layers}
    _check(view, layers, kept, experts)
    if not any(experts.values()):
        return
    count, left = layers[0].count, len(kept[layers[0].name])
    config: Any = view.model.config.get_text_config(decoder=True)
    smaller = _described(view, count, left)
    cuts = _cuts(view, smaller, layers, count, left)
    for layer in layers:
        for name, axis in cuts[layer.name].items():
            _cut(view.model, name, axis, kept[layer.name])
        _renumber(view.model.get_submodule(layer.name), smaller.get_submodule(layer.name))
    _say(config, count, left)
    view.refresh()


def _kept(layer: ExpertLayer, gone: Sequence[int]) -> list[int]:
    strangers = [e for e in gone if not 0 <= e < layer.count]
    if strangers:
        raise ModelError(f"{layer.name} has no expert {strangers[0]}: it has experts 0 to {layer.count - 1}", subject=str(strangers[0]))
    kept = [e for e in range(layer.count) if e not in set(gone)]
    if len(kept) < layer.top_k:
        raise TargetError(
            f"{layer.name}: dropping {layer.count - len(kept)} of {layer.count} experts would leave {len(kept)}, but its router picks {layer.top_k} "
            f"for each token; keep at least {layer.top_k}",
            subject=layer.name,
        )
    return kept


def _check(view: ModelView, layers: Sequence[ExpertLayer], kept: Mapping[str, list[int]], experts: Mapping[int, Sequence[int]]) -> None:
    strangers = sorted(set(experts) - {layer.block for layer in layers})
    if strangers:
        there = ", ".join(str(layer.block) for layer in layers) or "none"
        raise ModelError(f"block {strangers[0]} has no layer of experts (blocks that have one: {there})", subject=str(strangers[0]))
    left = {layer.name: len(kept[layer.name]) for layer in layers}
    if len(set(left.values())) > 1:
        few, many = min(left, key=lambda name: left[name]), max(left, key=lambda name: left[name])
        raise ModelError(
            f"{few} would keep {left[few]} experts and {many} {left[many]}, but a configuration has one number for all layers; "
            "drop equally many in each",
            subject=few,
        )
    for layer in layers:
        _check_groups(view, layer, kept[layer.name])
        for name, tensor in [*layer.module.named_parameters(prefix=layer.name), *layer.module.named_buffers(prefix=layer.name)]:
            if not tensor.is_floating_point():
                raise ModelError(f"{name} may name experts by number, so none of them can be dropped; such models aren't known yet", subject=name)


def _check_groups(view: ModelView, layer: ExpertLayer, kept: Sequence[int]) -> None:
    """A router that picks groups of neighbours first needs groups of one size, with two experts at least: it ranks them by their best two."""
    config: Any = view.model.config.get_text_config(decoder=True)
    groups = next((n for name in GROUPS if isinstance(n := getattr(config, name, None), int)), 1)
    if groups <= 1:
        return
    picked = next((n for name in PICKED_GROUPS if isinstance(n := getattr(config, name, None), int)), groups)
    sizes = [sum(1 for e in kept if e * groups // layer.count == group) for group in range(groups)]
    least = max(2, -(-layer.top_k // picked))
    if len(set(sizes)) > 1 or sizes[0] < least:
        raise ModelError(
            f"the router of {layer.name} picks among {groups} groups, which would keep {sizes} experts; "
            f"keep equally many in each, and at least {least}",
            subject=layer.name,
        )


def _described(view: ModelView, count: int, left: int) -> nn.Module:
    """The smaller model, without numbers."""
    config: Any = copy.deepcopy(view.model.config)
    _say(config.get_text_config(decoder=True), count, left)
    with torch.device("meta"):
        return type(view.model)(config)


def _say(config: Any, count: int, left: int) -> None:
    for name in EXPERT_COUNTS:
        if getattr(config, name, None) == count:
            setattr(config, name, left)


def _cuts(view: ModelView, smaller: nn.Module, layers: Sequence[ExpertLayer], count: int, left: int) -> dict[str, dict[str, int]]:
    """For each layer the tensors to be cut, and along which axis. `ModelError` where the configuration asks for anything else."""
    wanted, cuts = _tensors(smaller), {layer.name: dict[str, int]() for layer in layers}
    present = _tensors(view.model)
    for name in sorted({*present, *wanted}):
        now, then = (tuple(there[name].shape) if name in there else None for there in (present, wanted))
        if now == then:
            continue
        layer = next((layer.name for layer in layers if name.startswith(f"{layer.name}.")), None)
        axes = [] if now is None or then is None or len(now) != len(then) else [i for i, (a, b) in enumerate(zip(now, then, strict=True)) if a != b]
        if layer is None or len(axes) != 1 or now is None or then is None or (now[axes[0]], then[axes[0]]) != (count, left):
            raise ModelError(
                f"with {left} of {count} experts the configuration would ask for another {name}; "
                f"experts of a {type(view.model).__name__} can't be dropped",
                subject=name,
            )
        cuts[layer][name] = axes[0]
    for layer in layers:
        uncut = [w.name for w in (layer.matrix, *layer.experts[0]) if not any(w.name.startswith(n.removesuffix(".weight")) for n in cuts[layer.name])]
        if uncut:
            raise ModelError(f"the configuration doesn't say how many experts {layer.name} has, so {uncut[0]} can't shrink", subject=uncut[0])
    return cuts


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def _cut(model: nn.Module, name: str, axis: int, kept: Sequence[int]) -> None:
    """Put a tensor with the slices `kept` in place of the one that is there, which stays what it was."""
    path, _, key = name.rpartition(".")
    owner = model.get_submodule(path)
    before = getattr(owner, key)
    after = before.detach().index_select(axis, torch.tensor(kept, device=before.device))
    if isinstance(before, nn.Parameter):
        owner.register_parameter(key, nn.Parameter(after, requires_grad=before.requires_grad))
    else:
        owner.register_buffer(key, after, persistent=key not in owner._non_persistent_buffers_set)


def _renumber(here: nn.Module, there: nn.Module) -> None:
    """Take over the whole numbers that the modules of the smaller layer have: counts of experts, under whatever name."""
    for name, module in here.named_modules():
        other = vars(there.get_submodule(name))
        for key, value in list(vars(module).items()):
            if type(value) is int and type(other.get(key)) is int:
                setattr(module, key, other[key])
