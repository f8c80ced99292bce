"""What can be done to a model, one change at a time: each can be applied, undone, described and
kept.

A method yields edits; the loop in `compress` applies one before it asks for the next. An edit
doesn't remember what it changed: what undoes it is asked for before it is applied. By `stored` and
`read` it outlives a killed job, and is there for a later measurement of the same run. A method that
changes a model in a way of its own defines a subclass beside itself; its `kind` must be a word that
no other edit has.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

from torch import Tensor

from calibrant.activations import FeatureNorms, InputStatistic, Seen
from calibrant.edits.changes import (
    input_sizes,
    kept_alone,
    mask_bits,
    nonzero_bits,
    output_error,
    zeros_of,
)
from calibrant.errors import DataError
from calibrant.models import ModelView, Weight, drop_experts, expert_layers, overwrite
from calibrant.packed import Compressed, Packed, from_stored, to_stored
from calibrant.spec.classes import keep_class

NORMS: Final = "input norms"
"""The tensor of a kept edit that has the norms of a matrix's inputs. Two words, since tensors of
packed forms have names of one.
"""

KEPT: Final = "kept numbers"
"""The tensor of a stored edit that only removes: which numbers stay, a bit each."""

_KINDS: Final = dict[str, type["Edit"]]()
"""Every kind of edit that is defined in this process, by the word that a stored edit says."""


@dataclass(frozen=True)
class StoredEdit:
    """An edit as a file holds it: what it is, plain JSON data, and tensors by name."""

    kind: str
    facts: Mapping[str, Any]
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])


class Edit(ABC):
    """One change to a model."""

    kind: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # An inherited word is that of the class which has it.
        if vars(cls).get("kind"):
            keep_class(_KINDS, cls.kind, cls)

    @property
    def block(self) -> int | None:
        """The block whose numbers it changes; it changes no others. Edits of one block are kept
        together; in `dense` they aren't applied again before the walk after a kill is over. None
        for one that is kept by itself, and is applied before it.
        """
        return None

    @abstractmethod
    def apply(self, view: ModelView) -> None:
        """Change the model."""

    @abstractmethod
    def undo(self, view: ModelView) -> Callable[[], None]:
        """Return what will undo this edit. It is called before `apply`; of several edits the last
        is undone first.
        """

    @abstractmethod
    def report(self, view: ModelView) -> dict[str, Any]:
        """Return what the record should know, as plain JSON data. It is called before `apply`,
        since it compares with the model as it is.

        Weights that go with blocks or experts count as `removed`.
        """

    def applied(self) -> "Edit":
        """Return the same edit, once it is applied, without what was there only to judge it: that
        saves memory while a block's edits wait for each other before they are kept.
        """
        return self

    @abstractmethod
    def stored(self) -> StoredEdit:
        """Return all that `read` needs to make an equal edit of it."""

    def stored_briefly(self) -> StoredEdit:
        """Return what `read` needs for a model that has, where this edit changes them, the very
        numbers that it was made for. It may be less than `stored`.
        """
        return self.stored()

    @classmethod
    @abstractmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Edit":
        """Make the edit again. `KeyError` or `ValueError` for what is of another model."""


@dataclass(frozen=True)
class Replace(Edit):
    """A matrix becomes another of its shape; `seen` is what the record judges it by.

    Of `seen` the norms of its inputs are kept: an importance matrix is made of them.
    """

    kind: ClassVar[str] = "replace"

    weight: Weight
    compressed: Compressed
    seen: Seen = field(default_factory=lambda: Seen({}))

    @property
    def block(self) -> int | None:
        return self.weight.block

    def apply(self, view: ModelView) -> None:
        self.weight.set(self.compressed.weight)

    def undo(self, view: ModelView) -> Callable[[], None]:
        before = self.weight.get().clone()
        return lambda: self.weight.set(before)

    def report(self, view: ModelView) -> dict[str, Any]:
        """Return the matrix's line in the record."""
        name = self.weight.name
        after = self.compressed.weight
        packed = self.compressed.packed
        change = self.compressed.change
        zeros = zeros_of(after) if change is None else change.zeros
        line: dict[str, Any] = {
            "name": name,
            "shape": list(self.weight.shape),
            "zeros": zeros,
            "sparsity": zeros / after.numel(),
        }
        # A block that isn't held may have its numbers beside the device.
        before = self.weight.get().to(after.device)
        line |= output_error(before, after, self.seen, name, change)
        if packed is None:
            line["bits"] = mask_bits(name, after)
        else:
            line |= packed.facts()
        line |= input_sizes(name, self.seen)
        if self.weight.expert is not None and self.seen:
            line["tokens"] = self.seen.tokens
        line["notes"] = dict(self.compressed.notes)
        return line

    def applied(self) -> "Replace":
        # The model's own numbers by now, not a copy of them.
        compressed = replace(self.compressed, weight=self.weight.get())
        return Replace(self.weight, compressed, _kept_norms(self.seen))

    def stored(self) -> StoredEdit:
        facts: dict[str, Any] = {"name": self.weight.name, "notes": dict(self.compressed.notes)}
        tensors = {"weight": self.compressed.weight}
        packed_facts = None
        if self.compressed.packed is not None:
            packed_facts, tensors = to_stored(self.compressed.packed)
        seen = _kept_norms(self.seen)
        if FeatureNorms in seen:
            norms = seen[FeatureNorms]
            facts["norms"] = {"tokens": norms.tokens, "mass": norms.mass}
            tensors = {**tensors, NORMS: norms.squares}
        if packed_facts is not None:
            facts["packed"] = packed_facts
        return StoredEdit(self.kind, facts, tensors)

    def stored_briefly(self) -> StoredEdit:
        stored = self.stored()
        if self.compressed.packed is not None or not self.compressed.only_removes:
            return stored
        tensors = dict(stored.tensors)
        kept = nonzero_bits(tensors.pop("weight"))
        if kept is None:
            return stored
        tensors[KEPT] = kept
        return replace(stored, tensors=tensors)

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Replace":
        facts = stored.facts
        weight = view.named[facts["name"]]
        tensors = {name: tensor.to(weight.stored.device) for name, tensor in stored.tensors.items()}
        packed = None
        only_removes = KEPT in tensors
        if "packed" in facts:
            packed = from_stored(facts["packed"], tensors)
            numbers = packed.dense()
        elif only_removes:
            numbers = kept_alone(weight.get(), tensors[KEPT])
        else:
            numbers = tensors["weight"]
        norms = facts.get("norms")
        seen = Seen({})
        if norms is not None:
            sizes = FeatureNorms(tensors[NORMS], norms["tokens"], norms["mass"])
            seen = Seen({FeatureNorms: sizes})
        compressed = Compressed(numbers, facts["notes"], packed, only_removes=only_removes)
        return cls(weight, compressed, seen)


def _kept_norms(seen: Seen) -> Seen:
    """Return what is kept of what a matrix saw: the norms of its inputs. They are copied, since
    norms of a Gram are a view of it, which would keep all of it in memory.
    """
    for statistic in seen.values():
        if isinstance(statistic, InputStatistic):
            norms = statistic.norms().clone()
            return Seen({FeatureNorms: FeatureNorms(norms, statistic.tokens, statistic.mass)})
    return Seen({})


def _weight_count(weights: Iterable[Weight]) -> int:
    """Return how many numbers these matrices have."""
    return sum(weight.shape[0] * weight.shape[1] for weight in weights)


@dataclass(frozen=True)
class DropBlocks(Edit):
    """Whole blocks go; those that stay are numbered anew. `notes` say how they were chosen."""

    kind: ClassVar[str] = "drop_blocks"

    indices: tuple[int, ...]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def apply(self, view: ModelView) -> None:
        view.drop_blocks(self.indices)

    def undo(self, view: ModelView) -> Callable[[], None]:
        return view.remembered()

    def report(self, view: ModelView) -> dict[str, Any]:
        removed = sum(_weight_count(view.blocks[index].weights) for index in self.indices)
        return {
            "edit": self.kind,
            "blocks": list(self.indices),
            "of": len(view.blocks),
            "removed": removed,
            "notes": dict(self.notes),
        }

    def stored(self) -> StoredEdit:
        return StoredEdit(self.kind, {"blocks": list(self.indices), "notes": dict(self.notes)})

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "DropBlocks":
        return cls(tuple(stored.facts["blocks"]), stored.facts["notes"])


@dataclass(frozen=True)
class DropExperts(Edit):
    """Experts go, of each block those that `experts` names; equally many of each layer, since a
    configuration has one number. `notes` say how they were chosen.
    """

    kind: ClassVar[str] = "drop_experts"

    experts: Mapping[int, tuple[int, ...]]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def apply(self, view: ModelView) -> None:
        drop_experts(view, self.experts)

    def undo(self, view: ModelView) -> Callable[[], None]:
        return view.remembered()

    def report(self, view: ModelView) -> dict[str, Any]:
        layers = {layer.block: layer for layer in expert_layers(view)}
        removed = 0
        for block, indices in self.experts.items():
            experts = layers[block].experts
            for index in indices:
                removed += _weight_count(experts[index])
        counts = [layer.count for layer in layers.values()]
        # All layers have equally many.
        count = counts[0] if counts else 0
        return {
            "edit": self.kind,
            "experts": self._listed(),
            "of": count,
            "removed": removed,
            "notes": dict(self.notes),
        }

    def stored(self) -> StoredEdit:
        return StoredEdit(self.kind, {"experts": self._listed(), "notes": dict(self.notes)})

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "DropExperts":
        listed = stored.facts["experts"].items()
        experts = {int(block): tuple(numbers) for block, numbers in listed}
        return cls(experts, stored.facts["notes"])

    def _listed(self) -> dict[str, list[int]]:
        return {str(block): list(experts) for block, experts in self.experts.items()}


@dataclass(frozen=True)
class ReplaceParameters(Edit):
    """Parameters that are no matrices of blocks, such as an embedding, become what their packed
    forms stand for. `notes` are about the whole model, and go into the record.
    """

    kind: ClassVar[str] = "replace_parameters"

    packed: Mapping[str, Packed]
    notes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def apply(self, view: ModelView) -> None:
        for name, form in self.packed.items():
            overwrite(view.model.get_parameter(name).detach(), form.dense())

    def undo(self, view: ModelView) -> Callable[[], None]:
        before: dict[str, Tensor] = {}
        for name in self.packed:
            before[name] = view.model.get_parameter(name).detach().clone()

        def put_back() -> None:
            for name, numbers in before.items():
                overwrite(view.model.get_parameter(name).detach(), numbers)

        return put_back

    def report(self, view: ModelView) -> dict[str, Any]:
        parameters = {name: dict(form.facts()) for name, form in self.packed.items()}
        report: dict[str, Any] = {"edit": self.kind, "parameters": parameters}
        if self.notes:
            report["notes"] = dict(self.notes)
        return report

    def stored(self) -> StoredEdit:
        parameters: list[list[Any]] = []
        tensors: dict[str, Tensor] = {}
        for number, (name, form) in enumerate(self.packed.items()):
            facts, parts = to_stored(form)
            parameters.append([name, facts, list(parts)])
            for key, tensor in parts.items():
                tensors[f"{number}.{key}"] = tensor
        facts: dict[str, Any] = {"parameters": parameters}
        if self.notes:
            facts["notes"] = dict(self.notes)
        return StoredEdit(self.kind, facts, tensors)

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "ReplaceParameters":
        device = view.device
        packed: dict[str, Packed] = {}
        for number, (name, facts, keys) in enumerate(stored.facts["parameters"]):
            parts: dict[str, Tensor] = {}
            for key in keys:
                parts[key] = stored.tensors[f"{number}.{key}"].to(device)
            packed[name] = from_stored(facts, parts)
        return cls(packed, stored.facts.get("notes", {}))


def read_edit(stored: StoredEdit, view: ModelView) -> Edit:
    """Return the edit that was kept. `DataError` for one of a kind that this process doesn't know,
    or of another model.
    """
    if stored.kind not in _KINDS:
        raise DataError(
            f"an edit of the kind {stored.kind!r} can't be read; "
            f"install the package of the method that made it",
            subject=stored.kind,
        )
    try:
        return _KINDS[stored.kind].read(stored, view)
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"an edit of the kind {stored.kind!r} is of another model ({error!r})",
            subject=stored.kind,
        ) from error


def as_tensors(edits: Sequence[StoredEdit]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Return edits as a safetensors file holds them: their tensors under names of their own, and
    the rest as plain JSON data.

    A tensor that several edits share is there once; the others say under which name (`same`).
    """
    tensors: dict[str, Tensor] = {}
    entries: list[dict[str, Any]] = []
    places: dict[Any, str] = {}
    for number, stored in enumerate(edits):
        same: dict[str, str] = {}
        for name, tensor in stored.tensors.items():
            memory = memory_of(tensor)
            if memory in places:
                same[name] = places[memory]
                continue
            places[memory] = f"{number}.{name}"
            tensors[f"{number}.{name}"] = tensor
        entry: dict[str, Any] = {
            "kind": stored.kind,
            "facts": dict(stored.facts),
            "tensors": list(stored.tensors),
        }
        if same:
            entry["same"] = same
        entries.append(entry)
    return tensors, entries


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return where the numbers of a tensor are, and how they lie there: the same for two tensors
    that share their numbers.
    """
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def from_tensors(
    tensors: Mapping[str, Tensor], entries: Sequence[Mapping[str, Any]]
) -> list[StoredEdit]:
    """Return the edits again. `KeyError` or `TypeError` for what `as_tensors` didn't give."""
    edits: list[StoredEdit] = []
    for number, entry in enumerate(entries):
        same = entry.get("same", {})
        held: dict[str, Tensor] = {}
        for name in entry["tensors"]:
            stored_name = same.get(name, f"{number}.{name}")
            held[name] = tensors[stored_name]
        edits.append(StoredEdit(entry["kind"], entry["facts"], held))
    return edits
