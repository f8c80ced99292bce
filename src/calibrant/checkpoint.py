"""What a killed `prune` left: the blocks it had finished, beside the folder it was going to write.

A block is one safetensors file that appears by rename. The folder carries the id of what was asked; asked for anything else, it is started anew.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from calibrant.durable import undoing, usual_rights
from calibrant.errors import OutputError
from calibrant.models import Block


@dataclass(frozen=True)
class Finished:
    """One block as it was left: its new matrices by name, and what the record says about them."""

    weights: Mapping[str, Tensor]
    reports: Sequence[dict[str, Any]]


class Checkpoint:
    """The finished blocks of the run `run_id` that is to be saved as `out`. Nothing is written before the first block is done."""

    def __init__(self, out: Path, run_id: str) -> None:
        out = out.absolute()
        self.folder = out.parent / f".{out.name}.calibrant-partial"
        self._run_id = run_id

    def load(self) -> dict[int, Finished]:
        """The unbroken row of blocks from the first one on; empty if nothing was begun, or something else was."""
        found: dict[int, Finished] = {}
        for index in range(len(list(self.folder.glob("block-*.safetensors")))):
            block = self._read(index)
            if block is None:
                break
            found[index] = block
        return found

    def _read(self, index: int) -> Finished | None:
        path = self._path(index)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("run") != self._run_id:
                    return None
                return Finished({name: file.get_tensor(name) for name in file.keys()}, json.loads(metadata["reports"]))  # noqa: SIM118  # no mapping
        except (SafetensorError, FileNotFoundError):
            return None

    def add(self, index: int, block: Block, reports: Sequence[dict[str, Any]]) -> None:
        """Keep a finished block. Raises `OutputError` on a full disk; the blocks before it stay."""
        names = {report["name"] for report in reports}
        tensors = {weight.name: weight.get().detach().contiguous().cpu() for weight in block.weights if weight.name in names}
        path = self._path(index)
        half = path.with_suffix(".unfinished")
        try:
            with undoing(self.folder, half):
                self.folder.mkdir(parents=True, exist_ok=True)
                with usual_rights(half):
                    save_file(tensors, half, metadata={"run": self._run_id, "reports": json.dumps(reports)})
                os.replace(half, path)
        except (OSError, SafetensorError) as error:
            full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
            reason = "the disk is full; free some space and ask again" if full else f"{error}; is it yours to write to?"
            with suppress(OSError):
                half.unlink()
            raise OutputError(f"can't keep block {index} in {str(self.folder)!r}: {reason}", subject=str(self.folder)) from error

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
        return self.folder / f"block-{index:05d}.safetensors"
