"""Changes of a model besides its matrices: who is told before numbers are overwritten, how the
structure is remembered, how whole blocks are removed, and how a head is untied from its embedding.

    will_change(parameter)
    parameter.detach().mul_(2)

Whatever writes a model's numbers in place must call `will_change` first. `Weight.set` does; an edit
or a transform that writes elsewhere (a norm, an embedding) calls it itself, or uses `overwrite`.
Replacing a parameter by another, or its `data`, needs no call: the old numbers still exist.
"""

import copy
import weakref
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from calibrant.errors import ModelError
from calibrant.models.quiet import Refusal

PER_LAYER: Final = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "attention_layers",
    "attn_layers",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
)
"""Entries of a configuration that say something of each block."""
LAYER_INDICES: Final = ("mlp_only_layers", "attn_layer_indices", "moe_layers", "hybrid_layer_ids")
"""Entries of a configuration that list some blocks by number."""
CACHE_KEYS: Final = ("layer_idx", "layer_id")
"""Attributes of modules that say where in the cache their block's keys and values are."""
PLACES: Final = (*CACHE_KEYS, "layer_number", "num_hidden_layers", "seed")
"""Attributes of modules that follow from a block's place, and that no forward computes with:
MiniMax, GPT-NeoX Japanese and BigBird keep the last three.
"""


class Listener(ABC):
    """Is told before numbers change, for as long as the object lives."""

    def __init__(self) -> None:
        _LISTENERS.add(self)

    @abstractmethod
    def will_change(self, tensor: Tensor) -> None:
        """`tensor`, or a part of it, is about to be overwritten."""


_LISTENERS: weakref.WeakSet[Listener] = weakref.WeakSet()


def will_change(tensor: Tensor) -> None:
    """Say that the numbers of `tensor` (or of what it is a view of) are about to be overwritten
    in place.
    """
    for listener in list(_LISTENERS):
        listener.will_change(tensor)


def overwrite(tensor: Tensor, numbers: Tensor) -> None:
    """Copy `numbers`, of the same shape, over those of `tensor`, in the type of `tensor`; listeners
    are told first.
    """
    will_change(tensor)
    with torch.no_grad():
        tensor.copy_(numbers)


def place_of(tensor: Tensor) -> int:
    """Return where a parameter's numbers are, as a number that is the same for two parameters that
    are tied.
    """
    # On the meta device nothing has an address, but there a tied parameter is one object.
    return id(tensor) if tensor.is_meta else tensor.data_ptr()


@final
@dataclass(frozen=True)
class Structure:
    """A model's structure, remembered: which module holds what, and what the configurations say."""

    modules: tuple[tuple[nn.Module, Mapping[str, Any]], ...]
    configs: tuple[tuple[PreTrainedConfig, Mapping[str, Any]], ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Structure":
        """Remember the structure of `model`."""
        modules: list[tuple[nn.Module, Mapping[str, Any]]] = []
        configs: dict[int, PreTrainedConfig] = {}
        for module in model.modules():
            parts = {name: _shallow(value) for name, value in vars(module).items()}
            modules.append((module, parts))
            _add_configs(vars(module).values(), configs)
        entries = tuple((config, _deep(vars(config))) for config in configs.values())
        return cls(tuple(modules), entries)

    def put_back(self) -> None:
        """Make the model's structure what is remembered here."""
        for module, parts in self.modules:
            attributes = vars(module)
            for name in list(attributes):
                if name not in parts:
                    del attributes[name]
            for name, value in parts.items():
                # A hook's handle holds the very dictionary that the hook is in, so that stays.
                if "hook" not in name:
                    attributes[name] = _shallow(value)
        # Modules hold these very objects, so a configuration is rewritten and not replaced.
        for config, entries in self.configs:
            vars(config).clear()
            vars(config).update(_deep(entries))


def _shallow(value: Any) -> Any:
    # Containers are copied, since whoever changes a module changes them in place.
    return copy.copy(value) if type(value) in (dict, OrderedDict, list, set) else value


def _add_configs(values: Iterable[Any], configs: dict[int, PreTrainedConfig]) -> None:
    """Add all configurations among `values`, and those inside them, by `id`: many parts of a model
    hold the same few objects.
    """
    for value in values:
        if isinstance(value, PreTrainedConfig) and id(value) not in configs:
            configs[id(value)] = value
            _add_configs(vars(value).values(), configs)


def _deep(entries: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of a configuration's entries, but of configurations among them, which stay the
    objects that the model's parts hold.
    """
    copied: dict[str, Any] = {}
    for name, value in entries.items():
        copied[name] = value if isinstance(value, PreTrainedConfig) else copy.deepcopy(value)
    return copied


def without_numbers(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """Return the model of the same class that another configuration describes, on the meta device.
    It shows whether that configuration would make the model that is wanted.
    """
    with torch.device("meta"):
        return type(model)(config)


def drop(model: PreTrainedModel, layers: str, indices: Sequence[int]) -> None:
    """Remove the blocks `indices` from the list called `layers`, and number the rest anew, in the
    configuration and in the modules.

    Raises `ModelError`, and changes nothing, for an index that doesn't exist, if no block is left,
    or if the configuration can't describe the remaining blocks. That is so where a block's kind, or
    a number that it computes with, follows from its place or from how many blocks there are.
    """
    blocks = model.get_submodule(layers)
    assert isinstance(blocks, nn.ModuleList)
    for index in indices:
        if not 0 <= index < len(blocks):
            raise ModelError(
                f"there is no block {index}: the model has blocks 0 to {len(blocks) - 1}",
                subject=str(index),
            )
    remaining = [index for index in range(len(blocks)) if index not in set(indices)]
    if not remaining:
        raise ModelError(
            f"dropping blocks {sorted(set(indices))} would leave none; keep at least one",
            subject=layers,
        )
    # Before anything is touched, so that a refusal leaves the model as it is.
    _check_describable(model, layers, remaining)
    _renumber_config(model.config.get_text_config(decoder=True), remaining)
    # From the last one down, so that those still to be looked at keep their numbers.
    for index in reversed(range(len(blocks))):
        if index not in remaining:
            del blocks[index]
    for place, block in enumerate(blocks):
        for module in block.modules():
            for name in CACHE_KEYS:
                if name in vars(module):
                    setattr(module, name, place)


def _renumber_config(config: Any, remaining: list[int]) -> None:
    """Leave in `config` only what is about the `remaining` blocks."""
    count = config.num_hidden_layers
    # Only what it holds itself: a property follows from other entries.
    for name, entry in list(vars(config).items()):
        if not isinstance(entry, list | tuple):
            continue
        if name in PER_LAYER and len(entry) == count:
            setattr(config, name, [entry[index] for index in remaining])
        if name in LAYER_INDICES:
            setattr(config, name, [new for new, old in enumerate(remaining) if old in entry])
    config.num_hidden_layers = len(remaining)


def _check_describable(model: PreTrainedModel, layers: str, remaining: list[int]) -> None:
    """Build the smaller model from its configuration, without numbers, and compare names and
    shapes, and what each block keeps of its place or of how many blocks there are.
    """
    config = copy.deepcopy(model.config)
    text_config = config.get_text_config(decoder=True)
    kind = type(model).__name__
    refused = f"with only blocks {remaining} left, transformers can't make a {kind}"
    with Refusal(refused, "; drop others or none", layers):
        _renumber_config(text_config, remaining)
        text_config.validate()
        smaller = without_numbers(model, config)
    actual: dict[str, torch.Size] = {}
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{layers}."):
            actual[name] = parameter.shape
            continue
        index, _, rest = name.removeprefix(f"{layers}.").partition(".")
        if int(index) in remaining:
            actual[f"{layers}.{remaining.index(int(index))}.{rest}"] = parameter.shape
    described = {name: parameter.shape for name, parameter in smaller.named_parameters()}
    _check_same(actual, described, remaining)
    # Built anew as well, since a forward may have changed what the model's own modules keep.
    whole = without_numbers(model, copy.deepcopy(model.config))
    for place, index in enumerate(remaining):
        name = f"{layers}.{place}"
        kept = _attributes(whole.get_submodule(f"{layers}.{index}"), name)
        _check_same(kept, _attributes(smaller.get_submodule(name), name), remaining)


def _attributes(block: nn.Module, block_name: str) -> dict[str, object]:
    """What the modules of a block may compute with besides tensors: single numbers, names and
    switches, and tables of numbers, such as Zamba2's of which block uses which adapter.
    """
    attributes: dict[str, object] = {}
    for module_name, module in block.named_modules(prefix=block_name):
        for name, value in vars(module).items():
            if name in PLACES:
                continue
            is_single = value is None or isinstance(value, int | float | str)
            is_table = isinstance(value, dict) and all(
                isinstance(each, int | float) for each in value.values()
            )
            # Torch's own tables begin with an underscore.
            if is_single or (is_table and not name.startswith("_")):
                attributes[f"{module_name}.{name}"] = value
    return attributes


def _check_same(
    actual: Mapping[str, object], described: Mapping[str, object], remaining: list[int]
) -> None:
    for name in sorted({*described, *actual}):
        if described.get(name) != actual.get(name):
            raise ModelError(
                f"with only blocks {remaining} left, the configuration would ask for another "
                f"{name}; drop others or none",
                subject=name,
            )


def tied(model: PreTrainedModel) -> tuple[tuple[str, ...], ...]:
    """Return the names of parameters that share their numbers: a tuple for each memory that has
    several names, in the model's order.
    """
    names_by_memory: dict[tuple[int, torch.Size, tuple[int, ...]], list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        memory = place_of(parameter), parameter.shape, parameter.stride()
        names_by_memory.setdefault(memory, []).append(name)
    groups: list[tuple[str, ...]] = []
    for names in names_by_memory.values():
        if len(names) > 1:
            groups.append(tuple(names))
    return tuple(groups)


def untie(model: PreTrainedModel) -> bool:
    """Give the head numbers of its own, and say so in the configuration. Once saved, the model
    opens with plain transformers and computes the same.

    Returns False, and changes nothing, where the head is not tied. Raises `ModelError`, and changes
    nothing, for a model without a head, and for an architecture whose head is always its embedding.
    """
    head = model.get_output_embeddings()
    kind = type(model).__name__
    if head is None or not isinstance(getattr(head, "weight", None), nn.Parameter):
        raise ModelError(
            f"{kind} has no head that could be untied; give a model that predicts the next token",
            subject="head",
        )
    name = f"{_name_of(head, model)}.weight"
    shared = [group for group in tied(model) if name in group]
    if not shared:
        return False
    if not _can_be_untied(model, name):
        others = ", ".join(other for other in shared[0] if other != name)
        raise ModelError(
            f"{name} is always {others} in a {kind}, whatever its configuration says", subject=name
        )
    before = head.get_parameter("weight")
    # A new parameter: overwriting the old one would change the embedding.
    after = nn.Parameter(before.detach().clone(), requires_grad=before.requires_grad)
    head.register_parameter("weight", after)
    _say_untied(model.config)
    # transformers ties all that is in this table, whatever the configuration says.
    tied_keys = getattr(model, "all_tied_weights_keys", None)
    if isinstance(tied_keys, Mapping):
        model.all_tied_weights_keys = {
            target: source for target, source in tied_keys.items() if name not in (target, source)
        }
    return True


def _name_of(wanted: nn.Module, model: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _say_untied(config: Any) -> None:
    config.tie_word_embeddings = False
    config.get_text_config(decoder=True).tie_word_embeddings = False


def _can_be_untied(model: PreTrainedModel, head: str) -> bool:
    """Build the untied model from its configuration, without numbers, and look whether its head
    is a parameter of its own.
    """
    config = copy.deepcopy(model.config)
    _say_untied(config)
    other = without_numbers(model, config)
    other.tie_weights()
    parameters = dict(other.named_parameters(remove_duplicate=False))
    untied = parameters.pop(head)
    return all(parameter is not untied for parameter in parameters.values())
