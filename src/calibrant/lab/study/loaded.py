"""An open model with everything that is made of it once: the dense model's numbers, the last
token batch, a copy to compare with.
"""

import copy
import io
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import psutil
import torch
from transformers import PreTrainedModel

from calibrant.compress import Recipe, UntouchedModel, fitting, transformed
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.data.inspect import profile
from calibrant.data.select import resolved
from calibrant.edits import Edit, Replace, read_edit
from calibrant.edits.file import from_bytes, to_bytes
from calibrant.errors import DataError
from calibrant.evaluators import keep_predictions
from calibrant.evaluators._head_inputs import HeadInputs
from calibrant.models import Opened, Snapshot, check_finite, view, will_change
from calibrant.numerics import ceil_div
from calibrant.system.durable import text_of_json
from calibrant.transforms import Transform

ROOM: Final = 0.5
"""The share of the machine's memory, or of what models leave on a GPU, that activations may fill.
It is of all the memory and not of what is free, so that a second run has the same propagation, and
so the same id.
"""
MODELS: Final = 3
"""How many models' numbers a study may hold: the one it works on, what that was, and the dense one
to compare with.
"""

ZIP: Final = (b"PK\x03\x04", b"PK\x05\x06")
"""How a mask's file begins, with or without matrices. All four bytes count: edits begin with the
length of their header, whose first two bytes may be any.
"""

HEAD: Final = 256
"""Bytes at most that NumPy writes before an array."""

_DAMAGED: Final = (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged mask may raise."""


def room(model: PreTrainedModel) -> int:
    """The bytes that activations may fill where a dense model is."""
    device = model.device
    if device.type != "cuda":
        return int(psutil.virtual_memory().total * ROOM)
    total = torch.cuda.get_device_properties(device).total_memory
    held = MODELS * sum(parameter.nbytes for parameter in model.parameters())
    return max(0, int((total - held) * ROOM))


class LoadedModel:
    """An open model, what it was before anything was done to it, and its last token batch."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.view = view(opened.model)
        self._room = room(opened.model)
        check_finite(self.view)
        self._pristine = Snapshot.of(self.view)
        self._dense_weights = self.view.weights
        self.block_count = len(self.view.blocks)
        """How many blocks the dense model has."""
        self._edits: list[Edit] = []
        self._tokens: tuple[str, TokenBatch] | None = None
        self._profile: tuple[str, bytes] | None = None
        self._reference: PreTrainedModel | None = None

    def tokens(self, calibration: CalibrationSet | None) -> TokenBatch | None:
        """Return the set as tokens; the last one is remembered."""
        if calibration is None:
            return None
        if self._tokens is None or self._tokens[0] != repr(calibration):
            if calibration.per_draw:
                self.restore()  # a selector looks at the dense model
            batch = resolved(calibration, self.opened).tokens(self.opened.tokenizer)
            self._tokens = repr(calibration), batch
        return self._tokens[1]

    def has_tokens(self, calibration: CalibrationSet) -> bool:
        """Whether the last token batch is of this set."""
        return self._tokens is not None and self._tokens[0] == repr(calibration)

    def use_tokens(self, calibration: CalibrationSet, batch: TokenBatch) -> TokenBatch:
        """Use, and return, a token batch of `calibration` that was made elsewhere."""
        self._tokens = repr(calibration), batch
        return batch

    def profile(self, calibration: CalibrationSet | None, quotes: bool = True) -> bytes | None:
        """Return what the set's windows say, as a store keeps it, with or without `quotes`.

        The last profile is remembered, whatever the `quotes`, which are the same in a whole study.
        """
        batch = self.tokens(calibration)
        if calibration is None or batch is None:
            return None
        if self._profile is None or self._profile[0] != repr(calibration):
            facts = profile(calibration, batch, self.opened.tokenizer, quotes)
            self._profile = repr(calibration), text_of_json(facts).encode()
        return self._profile[1]

    def fitting(self, recipe: Recipe, batch: TokenBatch | None) -> tuple[Recipe, str]:
        """Return `recipe` as this machine can carry it out, and a sentence where that is
        something else.
        """
        allowed = recipe.method.propagations
        dtype = self.opened.dtype
        propagate, note = fitting(recipe.propagate, self.view, batch, dtype, self._room, allowed)
        return replace(recipe, propagate=propagate), note

    def restore(self) -> None:
        """Make the model dense again."""
        self._edits.clear()
        self._pristine.restore()

    def reference(self) -> PreTrainedModel:
        """Return a copy of the dense model, for evaluators that compare with it; made when it is
        first needed.
        """
        if self._reference is None:
            # The copy is of the dense model, whatever has been done to this one by now.
            with self._pristine.as_it_was():
                self._reference = copy.deepcopy(self.opened.model)
                keep_predictions(self._reference, HeadInputs.of(self.opened))
        return self._reference

    def remember(self, edit: Edit) -> None:
        """Remember an edit that was made, for `edits`."""
        self._edits.append(edit)

    def edits(self) -> bytes | None:
        """Return the edits since the model was dense, to be applied again; None if there are
        none.
        """
        if not self._edits:
            return None
        return to_bytes([edit.stored() for edit in self._edits])

    def mask(self) -> bytes | None:
        """Return the nonzero weights as bits; None if some nonzero weight isn't the dense
        model's, so that bits can't bring it back.
        """
        only_replaced = all(isinstance(edit, Replace) for edit in self._edits)
        # An edit that removes whole parts leaves the view with fewer matrices.
        if self.view.weights != self._dense_weights or not only_replaced:
            return None
        bits: dict[str, np.ndarray] = {}
        for index, weight in enumerate(self.view.weights):
            nonzero = weight.stored != 0
            pristine = self._pristine.original(weight)
            # Bits say only what is zero: every other weight must be the dense model's, to the bit.
            kept = torch.where(nonzero, pristine, torch.zeros_like(pristine))
            if not torch.equal(kept, weight.stored):
                return None
            bits[str(index)] = np.packbits(nonzero.cpu().numpy())
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **bits)
        return file.getvalue()

    def apply(
        self, state: bytes, before: Sequence[Transform] = (), batch: TokenBatch | None = None
    ) -> None:
        """Put the model into the state that `mask` or `edits` gave.

        The transforms `before` come first; they may look at `batch`. Raises `DataError` for what is
        of another model.
        """
        if state.startswith(ZIP):
            self._apply_mask(state)
            return
        edits = from_bytes(state)
        self.restore()
        for _ in transformed(UntouchedModel(self.opened, self.view, batch), before):
            pass
        with torch.no_grad():
            for edit in edits:
                read_edit(edit, self.view).apply(self.view)

    def _apply_mask(self, mask: bytes) -> None:
        """`DataError` for what is no mask of this model; then nothing is changed."""
        try:
            packed = self._packed_bits(mask)
        except _DAMAGED as error:
            raise DataError(
                f"the mask that is kept of a run on {self.opened.name} can't be read ({error})",
                subject=self.opened.name,
            ) from error
        self.restore()
        for weight, bits in zip(self.view.weights, packed, strict=True):
            stored = weight.stored
            nonzero = np.unpackbits(bits, count=stored.numel()).astype(bool)
            kept = torch.from_numpy(nonzero.reshape(tuple(stored.shape))).to(stored.device)
            # A model on disk, or on another device, has to know before it is written to.
            will_change(stored)
            stored.masked_fill_(~kept, 0)

    def _packed_bits(self, mask: bytes) -> list[np.ndarray]:
        """The bits of every matrix. `ValueError` where they are of another model, told before
        anything is unpacked.
        """
        sizes: list[int] = []
        for weight in self._dense_weights:
            numbers = weight.shape[0] * weight.shape[1]
            sizes.append(ceil_div(numbers, 8))
        # Sizes first: a made-up file could unpack to more than there is memory.
        with zipfile.ZipFile(io.BytesIO(mask)) as members:
            unpacked = sum(member.file_size for member in members.infolist())
        if unpacked > sum(sizes) + HEAD * len(sizes):
            raise ValueError("it holds more than the model has weights")
        packed: list[np.ndarray] = []
        with np.load(io.BytesIO(mask), allow_pickle=False) as arrays:
            for index, size in enumerate(sizes):
                bits = arrays[str(index)]
                if bits.dtype != np.uint8 or bits.shape != (size,):
                    raise ValueError("its matrices have other shapes than the model's")
                packed.append(bits)
        return packed
