"""What can be done to a model, one change at a time: each can be applied, undone, described and
kept.

A method yields edits; the loop in `compress` applies one before it asks for the next. An edit holds
no state of its own: what undoes it is asked for before it is applied. `stored` and `read` carry it
over a kill, and to a later measurement of the same run. A method that changes a model in a way of
its own defines a subclass beside itself; its `kind` must be a word that no other edit has.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final

from torch import Tensor

from calibrant.activations import FeatureNorms, InputStatistic, Seen
from calibrant.edits.changes import input_sizes, mask_bits, output_error, zeros_of
from calibrant.errors import DataError
from calibrant.models import ModelView, Weight, drop_experts, expert_layers, overwrite
from calibrant.packed import Compressed, Packed, from_stored, to_stored

NORMS: Final = "input norms"
"""The tensor of a kept edit that has the sizes of a matrix's inputs; a packed form's own have
names of one word.
"""

_KINDS: Final = dict[str, type["Edit"]]()
"""Every kind of edit that is defined in this process, by the word that a kept one says."""


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
        if cls.kind:
            _KINDS[cls.kind] = cls

    @property
    def block(self) -> int | None:
        """The block that it is a part of; edits of one block are kept together. None for one
        that is kept by itself.
        """
        return None

    @abstractmethod
    def apply(self, view: ModelView) -> None:
        """Change the model."""

    @abstractmethod
    def undo(self, view: ModelView) -> Callable[[], None]:
        """Give what will undo this edit. Asked for before it is applied; of several edits the
        last is undone first.
        """

    @abstractmethod
    def report(self, view: ModelView) -> dict[str, Any]:
        """Say in plain JSON data what the record should know. Asked for before it is applied, while
        the model is what it changes.

        Weights that go count as `removed`.
        """

    def applied(self) -> "Edit":
        """Give the same edit, once it is applied, without what only judging it took: a block's
        edits wait for each other before they are kept.
        """
        return self

    @abstractmethod
    def stored(self) -> StoredEdit:
        """Give all that `read` needs to make an equal edit of it."""

    @classmethod
    @abstractmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Edit":
        """Make the edit again. `KeyError` or `ValueError` for what is of another model."""


@dataclass(frozen=True)
class Replace(Edit):
    """A matrix becomes another of its shape; `seen` is what it was judged by, for the record.

    Of that, the sizes of its inputs are kept: an importance matrix is made of them.
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
        weight, after, packed = self.weight, self.compressed.weight, self.compressed.packed
        error = output_error(weight.get(), after, self.seen, weight.name)
        zeros = zeros_of(after)
        return {
            "name": weight.name,
            "shape": list(weight.shape),
            "zeros": zeros,
            "sparsity": zeros / after.numel(),
            **error,
            **({"bits": mask_bits(weight.name, after)} if packed is None else packed.facts()),
            **input_sizes(weight.name, self.seen),
            **({"tokens": self.seen.tokens} if weight.expert is not None and self.seen else {}),
            "notes": dict(self.compressed.notes),
        }

    def applied(self) -> "Replace":
        own = replace(
            self.compressed, weight=self.weight.get()
        )  # the model's numbers by now, not a copy
        return Replace(self.weight, own, _sizes(self.seen))

    def stored(self) -> StoredEdit:
        facts: dict[str, Any] = {"name": self.weight.name, "notes": dict(self.compressed.notes)}
        packed, sizes, seen = self.compressed.packed, dict[str, Tensor](), _sizes(self.seen)
        if FeatureNorms in seen:
            norms = seen[FeatureNorms]
            facts["norms"], sizes = (
                {"tokens": norms.tokens, "mass": norms.mass},
                {NORMS: norms.squares},
            )
        if packed is None:
            return StoredEdit(self.kind, facts, {"weight": self.compressed.weight, **sizes})
        form, tensors = to_stored(packed)
        return StoredEdit(self.kind, {**facts, "packed": form}, {**tensors, **sizes})

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "Replace":
        weight = view.named[stored.facts["name"]]
        tensors = {name: tensor.to(weight.stored.device) for name, tensor in stored.tensors.items()}
        packed = from_stored(stored.facts["packed"], tensors) if "packed" in stored.facts else None
        norms = stored.facts.get("norms")
        seen = Seen(
            {}
            if norms is None
            else {FeatureNorms: FeatureNorms(tensors[NORMS], norms["tokens"], norms["mass"])}
        )
        return cls(
            weight,
            Compressed(
                tensors["weight"] if packed is None else packed.dense(),
                stored.facts["notes"],
                packed,
            ),
            seen,
        )


def _sizes(seen: Seen) -> Seen:
    """What is kept of what a matrix saw: how large its inputs were. A copy, since several
    matrices may share one statistic, and a Gram is large.
    """
    found = next(
        (statistic for statistic in seen.values() if isinstance(statistic, InputStatistic)), None
    )
    return Seen(
        {}
        if found is None
        else {FeatureNorms: FeatureNorms(found.norms().clone(), found.tokens, found.mass)}
    )


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
        blocks = [view.blocks[i] for i in self.indices]
        removed = sum(w.shape[0] * w.shape[1] for block in blocks for w in block.weights)
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
    """Experts go, by block those of its layer of experts; equally many of each, since a
    configuration has one number. `notes` as for blocks.
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
        dropped = [
            layers[block].experts[expert]
            for block, experts in self.experts.items()
            for expert in experts
        ]
        removed = sum(w.shape[0] * w.shape[1] for matrices in dropped for w in matrices)
        count = next((layer.count for layer in layers.values()), 0)
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
        return cls(
            {int(block): tuple(experts) for block, experts in stored.facts["experts"].items()},
            stored.facts["notes"],
        )

    def _listed(self) -> dict[str, list[int]]:
        return {str(block): list(experts) for block, experts in self.experts.items()}


@dataclass(frozen=True)
class ReplaceParameters(Edit):
    """Parameters that are no matrices of blocks, such as an embedding, become what their packed
    forms stand for.
    """

    kind: ClassVar[str] = "replace_parameters"

    packed: Mapping[str, Packed]

    def apply(self, view: ModelView) -> None:
        for name, form in self.packed.items():
            overwrite(view.model.get_parameter(name).detach(), form.dense())

    def undo(self, view: ModelView) -> Callable[[], None]:
        before = {name: view.model.get_parameter(name).detach().clone() for name in self.packed}

        def put_back() -> None:
            for name, numbers in before.items():
                overwrite(view.model.get_parameter(name).detach(), numbers)

        return put_back

    def report(self, view: ModelView) -> dict[str, Any]:
        return {
            "edit": self.kind,
            "parameters": {name: dict(form.facts()) for name, form in self.packed.items()},
        }

    def stored(self) -> StoredEdit:
        forms = {name: to_stored(form) for name, form in self.packed.items()}
        tensors = {
            f"{number}.{key}": tensor
            for number, (_, own) in enumerate(forms.values())
            for key, tensor in own.items()
        }
        return StoredEdit(
            self.kind,
            {"parameters": [[name, facts, list(own)] for name, (facts, own) in forms.items()]},
            tensors,
        )

    @classmethod
    def read(cls, stored: StoredEdit, view: ModelView) -> "ReplaceParameters":
        device = next(view.model.parameters()).device
        entries = enumerate(stored.facts["parameters"])
        forms = {
            name: from_stored(facts, {key: stored.tensors[f"{n}.{key}"].to(device) for key in keys})
            for n, (name, facts, keys) in entries
        }
        return cls(forms)


def read_edit(stored: StoredEdit, view: ModelView) -> Edit:
    """Return the edit that was kept. `DataError` for one of a kind that nothing here defines, or
    of another model.
    """
    if stored.kind not in _KINDS:
        raise DataError(
            f"an edit of the kind {stored.kind!r} can't be read; install the package of the method that made it",
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
    """Edits as a safetensors file holds them: their tensors under names of their own, and the rest
    as plain JSON data.

    A tensor that several edits share is there once; the others say under which name (`same`).
    """
    tensors, entries, places = dict[str, Tensor](), list[dict[str, Any]](), dict[Any, str]()
    for number, stored in enumerate(edits):
        named = {
            name: places.setdefault(memory_of(tensor), f"{number}.{name}")
            for name, tensor in stored.tensors.items()
        }
        tensors |= {
            place: stored.tensors[name]
            for name, place in named.items()
            if place == f"{number}.{name}"
        }
        same = {name: place for name, place in named.items() if place != f"{number}.{name}"}
        entries.append(
            {
                "kind": stored.kind,
                "facts": dict(stored.facts),
                "tensors": list(stored.tensors),
                **({"same": same} if same else {}),
            }
        )
    return tensors, entries


def memory_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return where the numbers of a tensor are, and how they lie there: the same for two that
    are one.
    """
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def from_tensors(
    tensors: Mapping[str, Tensor], entries: Sequence[Mapping[str, Any]]
) -> list[StoredEdit]:
    """Return the edits again. `KeyError` or `TypeError` where something isn't what `as_tensors`
    gave.
    """
    found: list[StoredEdit] = []
    for number, entry in enumerate(entries):
        same = entry.get("same", {})
        found.append(
            StoredEdit(
                entry["kind"],
                entry["facts"],
                {name: tensors[same.get(name, f"{number}.{name}")] for name in entry["tensors"]},
            )
        )
    return found
