"""What a killed `prune` left: the edits it had made, beside the folder it was going to write.

The edits of a block, or one that is no block's, are one safetensors file that appears by rename. What the method found out by trying is a journal.
Each carries the id of what was asked; asked for anything else, it is started anew.
"""

import errno
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calibrant.durable import replacing, usual_rights
from calibrant.edits import StoredEdit, as_tensors, from_tensors
from calibrant.errors import OutputError
from calibrant.outcomes import Journal


@dataclass(frozen=True)
class FinishedStep:
    """What was done in one step: its edits, and what the record says about each."""

    edits: Sequence[StoredEdit]
    reports: Sequence[dict[str, Any]]


def _without_numbers(part: Any) -> Tensor:
    """A tensor of a file, of its shape; of what type it is nobody asks who doesn't want its numbers."""
    return torch.empty(part.get_shape(), device="meta")


class Checkpoint:
    """The finished edits of the run `run_id` that is to be saved as `out`. Nothing is written before something is done."""

    def __init__(self, out: Path, run_id: str) -> None:
        out = out.absolute()
        self.folder = out.parent / f".{out.name}.calibrant-partial"
        self._run_id = run_id

    def load(self, numbers: bool = True) -> list[FinishedStep]:
        """Return the unbroken row of steps from the first one on; empty if nothing was begun, or something else was.

        Without `numbers` the edits' tensors are on the meta device, and `edits` reads those of a step.
        """
        steps: list[FinishedStep] = []
        for index in range(len(list(self.folder.glob("edits-*.safetensors")))):
            step = self._read(index, numbers)
            if step is None:
                break
            steps.append(step)
        return steps

    def names(self, index: int) -> Sequence[str]:
        """Return the names of the matrices that a step replaced."""
        step = self._read(index, numbers=False)
        return [] if step is None else [edit.facts["name"] for edit in step.edits]

    def edits(self, index: int) -> Sequence[StoredEdit]:
        """Return the edits of a step that was kept. Raises `OutputError` if it isn't there any more."""
        step = self._read(index)
        if step is None:
            message = f"step {index} in {str(self.folder)!r} was kept and can't be read again; run the same command again"
            raise OutputError(message, subject=str(self.folder))
        return step.edits

    def journal(self) -> Journal:
        """Return what the method tried, and found out, before an interruption; what it adds is kept."""
        return Journal(self.folder / "tried.jsonl", self._run_id)

    def _read(self, index: int, numbers: bool = True) -> FinishedStep | None:
        path = self._path(index)
        try:
            with safe_open(path, framework="pt", backend="pread") as file:
                metadata = file.metadata() or {}
                if metadata.get("run") != self._run_id:
                    return None
                names = list(file.keys())
                tensors = {name: file.get_tensor(name) if numbers else _without_numbers(file.get_slice(name)) for name in names}
                return FinishedStep(from_tensors(tensors, json.loads(metadata["edits"])), json.loads(metadata["reports"]))
        except (SafetensorError, FileNotFoundError):
            return None

    def add(self, index: int, edits: Sequence[StoredEdit], reports: Sequence[dict[str, Any]]) -> None:
        """Keep the edits of step `index`. Raises `OutputError` on a full disk; the steps before it stay."""
        tensors, entries = as_tensors(edits)
        path = self._path(index)
        metadata = {"run": self._run_id, "edits": json.dumps(entries), "reports": json.dumps(reports)}
        try:
            with replacing(path, path.with_suffix(".unfinished"), flushed=False) as half, usual_rights(half):
                save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, half, metadata=metadata)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
            reason = "the disk is full; free some space and run the same command again" if full else f"{error}; is it yours to write to?"
            raise OutputError(f"can't keep step {index} in {str(self.folder)!r}: {reason}", subject=str(self.folder)) from error

    @contextmanager
    def staying(self) -> Iterator[None]:
        """While the model is saved: an `OutputError` says that the finished blocks stay, and where."""
        try:
            yield
        except OutputError as error:
            if not self.folder.is_dir():
                raise
            stay = f"the finished blocks stay in {self.folder}, and the same command goes on from them"
            raise OutputError(f"{error}; {stay}", subject=error.subject) from error

    def remove(self) -> None:
        """The model is saved: nothing is left to continue."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, index: int) -> Path:
        return self.folder / f"edits-{index:05d}.safetensors"
