"""Layers of experts: which router picks among which matrices, which experts it picked, and how
experts are dropped.

transformers keeps the experts of a layer as slices of three-dimensional tensors. Their router is
the one matrix beside them that has a row for each expert. Its choice is read where the model hands
it over, so it is what the model itself acts on:

- nearly all models call `experts(hidden, index, weights)`, where index and weights are
  `[token, chosen]`;
- Llama 4's router returns scores `[token, expert]`, which are zero for experts that aren't chosen;
- JetMoE's router returns the chosen experts of all tokens, sorted by expert.

A layer that isn't laid out in one of these ways is refused by name. JetMoE also has experts of
*attention*. They are no expert layers: only feed-forward layers are.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calibrant.errors import ModelError, TargetError
from calibrant.models.changing import without_numbers
from calibrant.models.viewing import EXPERT_COUNTS, Block, ModelView, Weight
from calibrant.numerics import ceil_div

ROUTERS: Final = ("gate", "router")
TOP_K_NAMES: Final = (
    "top_k",
    "num_experts_per_tok",
    "top_k_experts",
    "moe_k",
    "moe_topk",
    "moe_top_k",
)
"""What modules and configurations call the number of experts that a router picks for each token."""
WEIGHS_INPUTS: Final = ("Llama4TextExperts",)
"""Classes of experts whose input is multiplied with the router's weight, and not their output."""


@final
@dataclass(frozen=True)
class ExpertLayer:
    """A feed-forward layer made of `count` experts, of which its router picks `top_k` for each
    token.

    `experts` are each expert's matrices, in the order in which the model declares them; `shared`
    are the matrices of experts that every token passes through. `matrix` is the router's own,
    `[expert, in]`.
    """

    block: int
    name: str
    count: int
    top_k: int
    matrix: Weight
    experts: tuple[tuple[Weight, ...], ...]
    shared: tuple[Weight, ...]
    module: nn.Module = field(repr=False, compare=False)
    """What holds the router and the experts; in some models it is the block itself."""
    router: nn.Module = field(repr=False, compare=False)
    holders: tuple[nn.Module, ...] = field(repr=False, compare=False)
    """The modules whose parameters the experts are slices of."""

    @property
    def weighs_inputs(self) -> bool:
        """Whether the router's weight is multiplied with an expert's input, as in Llama 4, and not
        with its output.
        """
        return type(self.holders[0]).__name__ in WEIGHS_INPUTS


def expert_layers(view: ModelView) -> tuple[ExpertLayer, ...]:
    """Return the expert layers of a model, in order; none for a model without experts.

    Raises `ModelError`, naming the layer, where it can't be told which matrix is the router.
    """
    layers: list[ExpertLayer] = []
    for block in view.blocks:
        layers += _layers(view, block)
    return tuple(layers)


def _layers(view: ModelView, block: Block) -> Iterator[ExpertLayer]:
    # By the name of the module around the experts, the matrices of each expert.
    places: dict[str, dict[int, list[Weight]]] = {}
    for weight in block.weights:
        of_attention = "attn" in weight.name or "attention" in weight.name
        if weight.expert is not None and not of_attention:
            place = _holder(weight).rpartition(".")[0]
            places.setdefault(place, {}).setdefault(weight.expert, []).append(weight)
    for place, experts in places.items():
        count = len(experts)
        module = view.model.get_submodule(place)
        owners = {_holder(weight): weight.owner for weight in experts[0]}
        holders = tuple(owners.values())
        matrix = _router(view, block, place, count, tuple(owners))
        router = module.get_submodule(matrix.name.removeprefix(f"{place}.").partition(".")[0])
        top_k = _top_k(view, (router, module, *holders), place)
        matrices = tuple(tuple(experts[expert]) for expert in range(count))
        shared = tuple(weight for weight in block.weights if _is_shared(weight))
        yield ExpertLayer(
            block.index, place, count, top_k, matrix, matrices, shared, module, router, holders
        )


def _is_shared(weight: Weight) -> bool:
    return weight.expert is None and "shared" in weight.name


def _holder(weight: Weight) -> str:
    """The name of the module that holds an expert's matrix as a slice of its parameter."""
    # The tensor name of a parameter `weight` is that of its module already.
    name = weight.tensor_name
    return name if weight.key == "weight" else name.rpartition(".")[0]


def _router(
    view: ModelView, block: Block, place: str, count: int, holders: Sequence[str]
) -> Weight:
    """The one matrix at `place` that is called a router's and has `count` rows. Raises `ModelError`
    where there is none, or there are several.
    """
    candidates: list[Weight] = []
    for name, parameter in view.model.get_submodule(place).named_parameters(prefix=place):
        path, _, key = name.rpartition(".")
        if key != "weight" or parameter.dim() != 2 or parameter.shape[0] != count:
            continue
        held = any(f"{path}.".startswith(f"{holder}.") for holder in holders)
        if not held and _is_router(view, place, path):
            owner = view.model.get_submodule(path)
            shape = count, parameter.shape[1]
            candidates.append(Weight(path, block.index, shape, False, None, owner, key))
    if len(candidates) == 1:
        return candidates[0]
    problem = "no router has one row for each of them"
    if candidates:
        names = ", ".join(weight.name for weight in candidates)
        problem = f"several matrices could be their router ({names})"
    raise ModelError(
        f"{place} has {count} experts, but {problem}; its experts can be pruned, but neither "
        "watched nor dropped",
        subject=place,
    )


def _is_router(view: ModelView, place: str, path: str) -> bool:
    """Whether the module `path`, or one around it inside `place`, is called a router."""
    name = place
    for part in path.removeprefix(place).split(".")[1:]:
        name = f"{name}.{part}"
        kind = type(view.model.get_submodule(name)).__name__
        if part in ROUTERS or kind.endswith(("Router", "Gate", "Gating")):
            return True
    return False


def _top_k(view: ModelView, modules: Sequence[nn.Module], place: str) -> int:
    """How many experts a router picks, as the first of its modules says that knows."""
    for module in (*modules, view.config):
        number = _whole_number(module, TOP_K_NAMES)
        if number is not None:
            return number
    raise ModelError(
        f"{place} doesn't say how many experts its router picks; they can be pruned, but neither "
        "watched nor dropped",
        subject=place,
    )


def _whole_number(subject: Any, names: Sequence[str]) -> int | None:
    """The first of these attributes of a module or configuration that is a whole number."""
    for name in names:
        number = getattr(subject, name, None)
        # To Python, True is a whole number too.
        if isinstance(number, int) and not isinstance(number, bool):
            return number
    return None


@final
class Choices:
    """While it is entered, notes which experts the routers of `layers` pick; of several forwards
    the last one counts.
    """

    def __init__(self, layers: Sequence[ExpertLayer]) -> None:
        self._layers = layers
        self._picks: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks = ExitStack()

    def __enter__(self) -> "Choices":
        for layer in self._layers:
            arguments = partial(self._read_arguments, layer)
            handle = layer.holders[0].register_forward_pre_hook(arguments, with_kwargs=True)
            self._hooks.callback(handle.remove)
            handle = layer.router.register_forward_hook(partial(self._read_output, layer))
            self._hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()

    def of(
        self, layer: ExpertLayer
    ) -> tuple[Int[Tensor, "token chosen"], Float[Tensor, "token chosen"]]:
        """Return the numbers of the experts that each token was sent to, and the router's weight
        for each of them.

        Every token has a row, padding too. Raises `ModelError` for a router whose output isn't
        understood.
        """
        if layer.name not in self._picks:
            raise ModelError(
                f"whom the router of {layer.name} picks can't be read from its forward: it isn't "
                "laid out as known",
                subject=layer.name,
            )
        return self._picks[layer.name]

    def _read_arguments(
        self, layer: ExpertLayer, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        index, weights = sent(args, kwargs)
        if index is not None and weights is not None:
            self._picks[layer.name] = index.detach(), weights.detach()

    def _read_output(self, layer: ExpertLayer, _: nn.Module, args: Any, output: Any) -> None:
        match output:
            # Llama 4: scores of all experts, zero for those that aren't chosen.
            case (Tensor() as scores, Tensor() as logits) if (
                scores.shape == logits.shape and scores.shape[-1] == layer.count
            ):
                weights, index = scores.detach().topk(layer.top_k, dim=-1)
            # JetMoE: rows of all tokens sorted by expert, and how many each expert has.
            case (
                Tensor() as order,
                Tensor() as token,
                Tensor() as gates,
                list() as sizes,
                Tensor(),
            ) if len(sizes) == layer.count:
                device = order.device
                numbers = torch.arange(layer.count, device=device)
                experts = torch.repeat_interleave(numbers, torch.tensor(sizes, device=device))
                # `order` says which of all choices, token by token, each sorted row is.
                index = torch.empty_like(experts)
                weights = torch.empty_like(gates.detach())
                index[order] = experts
                weights[order] = gates.detach()
                rows = len(token) // layer.top_k
                index = index.view(rows, layer.top_k)
                weights = weights.view(rows, layer.top_k)
            case _:
                return
        self._picks[layer.name] = index, weights


def sent(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Return, of the arguments that experts are called with, which of them each token is sent to,
    and their weights, both `[token, chosen]`; None for what isn't there.
    """
    matrices: list[Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor) and value.dim() == 2:
            matrices.append(value)
    # The index has whole numbers; the weights are floats of its shape, which the hidden states
    # aren't.
    index = next((matrix for matrix in matrices if not matrix.is_floating_point()), None)
    for matrix in matrices:
        if index is not None and matrix.is_floating_point() and matrix.shape == index.shape:
            return index, matrix
    return index, None


GROUP_COUNTS: Final = ("n_group", "num_expert_group", "moe_n_group")
"""What configurations call the number of groups of experts."""
PICKED_GROUPS: Final = ("topk_group", "topk_groups", "moe_topk_group")
"""What they call the number of groups that a router picks first."""


# What has to shrink isn't guessed from names. The smaller model is built from its configuration,
# without numbers, and every tensor and number of an expert layer that differs there is changed to
# that. So a router's rows and bias, corrections of its scores, and the experts' biases shrink too.
# A model that its configuration couldn't describe is refused before anything is changed.


def drop_experts(view: ModelView, experts: Mapping[int, Sequence[int]]) -> None:
    """Remove experts of each block's expert layer, given by number, and say so in the
    configuration.

    Once saved, the model opens with plain transformers and computes the same. The experts that stay
    are numbered anew, in order. A configuration has one number of experts, so every expert layer
    must lose equally many. Nothing is overwritten, so a `Snapshot` restores the model without
    having copied anything.

    Raises `TargetError` where fewer would stay than the router picks, and `ModelError` for experts
    or layers that don't exist, and where the configuration can't describe what is left. Then
    nothing is changed.
    """
    layers = expert_layers(view)
    staying = {layer.name: _staying(layer, experts.get(layer.block, ())) for layer in layers}
    _check(view, layers, staying, experts)
    if not any(experts.values()):
        return
    count = layers[0].count
    remaining = len(staying[layers[0].name])
    # All that may be refused is found before the first tensor is cut.
    smaller = _described(view, count, remaining)
    cuts = _cuts(view, smaller, layers, count, remaining)
    for layer in layers:
        for name, axis in cuts[layer.name].items():
            _cut(view.model, name, axis, staying[layer.name])
        _renumber(view.model.get_submodule(layer.name), smaller.get_submodule(layer.name))
    _set_counts(view.config, count, remaining)
    view.refresh()


def _staying(layer: ExpertLayer, dropped: Sequence[int]) -> list[int]:
    for expert in dropped:
        if not 0 <= expert < layer.count:
            raise ModelError(
                f"{layer.name} has no expert {expert}: it has experts 0 to {layer.count - 1}",
                subject=str(expert),
            )
    staying = [expert for expert in range(layer.count) if expert not in set(dropped)]
    if len(staying) < layer.top_k:
        raise TargetError(
            f"{layer.name}: dropping {layer.count - len(staying)} of {layer.count} experts would "
            f"leave {len(staying)}, but its router picks {layer.top_k} for each token; keep at "
            f"least {layer.top_k}",
            subject=layer.name,
        )
    return staying


def _check(
    view: ModelView,
    layers: Sequence[ExpertLayer],
    staying: Mapping[str, list[int]],
    experts: Mapping[int, Sequence[int]],
) -> None:
    check_blocks(experts, [layer.block for layer in layers])
    remaining = {layer.name: len(staying[layer.name]) for layer in layers}
    if len(set(remaining.values())) > 1:
        fewest = min(remaining, key=remaining.__getitem__)
        most = max(remaining, key=remaining.__getitem__)
        raise ModelError(
            f"{fewest} would keep {remaining[fewest]} experts and {most} {remaining[most]}, but a "
            "configuration has one number for all layers; drop equally many in each",
            subject=fewest,
        )
    for layer in layers:
        _check_groups(view, layer, staying[layer.name])
        for name, tensor in _tensors(layer.module, layer.name).items():
            if not tensor.is_floating_point():
                raise ModelError(
                    f"{name} may name experts by number, so none of them can be dropped; such "
                    "models aren't known yet",
                    subject=name,
                )


def check_blocks(given: Iterable[int], layered: Sequence[int]) -> None:
    """Raise `ModelError` for a block of the `given` that isn't among those with experts."""
    strangers = sorted(set(given) - set(layered))
    if strangers:
        known = ", ".join(map(str, layered)) or "none"
        raise ModelError(
            f"block {strangers[0]} has no layer of experts (blocks that have one: {known})",
            subject=str(strangers[0]),
        )


def _check_groups(view: ModelView, layer: ExpertLayer, staying: Sequence[int]) -> None:
    """Raise `ModelError` where a router that picks groups of neighbouring experts first couldn't go
    on. It needs groups of equal size, of two experts at least: it ranks them by their best two.
    """
    groups = _whole_number(view.config, GROUP_COUNTS) or 1
    if groups <= 1:
        return
    picked = _whole_number(view.config, PICKED_GROUPS)
    sizes = [0] * groups
    for expert in staying:
        sizes[expert * groups // layer.count] += 1
    # The groups that are picked must hold at least as many experts as a token is sent to.
    picked_groups = groups if picked is None else picked
    smallest = max(2, ceil_div(layer.top_k, picked_groups))
    if len(set(sizes)) > 1 or sizes[0] < smallest:
        raise ModelError(
            f"the router of {layer.name} picks among {groups} groups, which would keep {sizes} "
            f"experts; keep equally many in each, and at least {smallest}",
            subject=layer.name,
        )


def _described(view: ModelView, count: int, remaining: int) -> nn.Module:
    """The smaller model, without numbers."""
    config = copy.deepcopy(view.model.config)
    _set_counts(config.get_text_config(decoder=True), count, remaining)
    return without_numbers(view.model, config)


def _set_counts(config: Any, count: int, remaining: int) -> None:
    for name in EXPERT_COUNTS:
        if getattr(config, name, None) == count:
            setattr(config, name, remaining)


def _cuts(
    view: ModelView, smaller: nn.Module, layers: Sequence[ExpertLayer], count: int, remaining: int
) -> dict[str, dict[str, int]]:
    """The tensors of each layer that must be cut, and along which axis. Raises `ModelError` where
    the configuration would change anything else.
    """
    present = {name: tuple(tensor.shape) for name, tensor in _tensors(view.model).items()}
    described = {name: tuple(tensor.shape) for name, tensor in _tensors(smaller).items()}
    cuts: dict[str, dict[str, int]] = {layer.name: {} for layer in layers}
    for name in sorted({*present, *described}):
        before = present.get(name)
        after = described.get(name)
        if before == after:
            continue
        place = next((layer.name for layer in layers if name.startswith(f"{layer.name}.")), None)
        axis = _cut_axis(before, after, count, remaining)
        if place is None or axis is None:
            raise ModelError(
                f"with {remaining} of {count} experts the configuration would ask for another "
                f"{name}; experts of a {type(view.model).__name__} can't be dropped",
                subject=name,
            )
        cuts[place][name] = axis
    # Router and experts must all shrink, or the layer wouldn't fit together.
    for layer in layers:
        cut = tuple(name.removesuffix(".weight") for name in cuts[layer.name])
        for weight in (layer.matrix, *layer.experts[0]):
            if not weight.name.startswith(cut):
                raise ModelError(
                    f"the configuration doesn't say how many experts {layer.name} has, so "
                    f"{weight.name} can't shrink",
                    subject=weight.name,
                )
    return cuts


def _cut_axis(
    before: tuple[int, ...] | None, after: tuple[int, ...] | None, count: int, remaining: int
) -> int | None:
    """The one axis along which two shapes differ, if it shrinks from `count` to `remaining`."""
    if before is None or after is None or len(before) != len(after):
        return None
    axes = [axis for axis, size in enumerate(before) if size != after[axis]]
    if len(axes) != 1 or (before[axes[0]], after[axes[0]]) != (count, remaining):
        return None
    return axes[0]


def _tensors(model: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    parameters = model.named_parameters(prefix, remove_duplicate=False)
    buffers = model.named_buffers(prefix, remove_duplicate=False)
    return {**dict(parameters), **dict(buffers)}


def _cut(model: nn.Module, name: str, axis: int, staying: Sequence[int]) -> None:
    """Replace a tensor by its slices of the experts that stay; the old tensor isn't changed."""
    path, _, key = name.rpartition(".")
    owner = model.get_submodule(path)
    before = getattr(owner, key)
    # A new tensor, so that a snapshot's reference to the old one brings it back.
    after = before.detach().index_select(axis, torch.tensor(staying, device=before.device))
    if isinstance(before, nn.Parameter):
        owner.register_parameter(key, nn.Parameter(after, requires_grad=before.requires_grad))
    else:
        owner.register_buffer(key, after, persistent=key not in owner._non_persistent_buffers_set)


def _renumber(larger: nn.Module, smaller: nn.Module) -> None:
    """Copy the whole numbers that are attributes of the smaller layer's modules: counts of experts
    are among them, under whatever name.
    """
    for name, module in larger.named_modules():
        other = vars(smaller.get_submodule(name))
        for key, value in list(vars(module).items()):
            if type(value) is int and type(other.get(key)) is int:
                setattr(module, key, other[key])
