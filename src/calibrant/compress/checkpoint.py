"""What a killed `prune` left: the finished edits, in a folder beside the one it was going to write.

A step is the edits of a block, or one edit that belongs to no block. It is one safetensors file,
which appears by rename, with a seal for its run and its number. It is written while the next step
is made. What the method found out by trying is in a journal. What is damaged, or is of another run,
is made again.
"""

import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from torch import Tensor

from calibrant.edits import StoredEdit, as_tensors, from_tensors
from calibrant.errors import OutputError
from calibrant.models.changing import Listener
from calibrant.results.outcomes import Journal
from calibrant.system import sealed_tensors
from calibrant.system.durable import is_at, reason, remove_empty, short, take, undoing
from calibrant.system.seals import BrokenSealError, Purpose, tell_made_again


@dataclass(frozen=True)
class FinishedStep:
    """A step as it was kept: its edits, and what the record says about each."""

    edits: Sequence[StoredEdit]
    reports: Sequence[dict[str, Any]]

    def without_numbers(self) -> "FinishedStep":
        """Return the same with tensors that have a shape and no numbers."""
        edits: list[StoredEdit] = []
        for edit in self.edits:
            shapes = {name: tensor.to("meta") for name, tensor in edit.tensors.items()}
            edits.append(replace(edit, tensors=shapes))
        return FinishedStep(edits, self.reports)


class Checkpoint:
    """The finished steps of the run `run_id`, which is to be saved as `out`. The folder is made
    with the first step, or with its lock.
    """

    def __init__(self, out: Path, run_id: str) -> None:
        self._out = out.absolute()
        self.folder = self._out.parent / f".{self._out.name}.calibrant-partial"
        self.loaded = 0
        """How many finished steps there were when they were loaded."""
        self._run_id = run_id
        self._names: dict[int, tuple[str, ...]] = {}
        self._reported: set[Path] = set()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep others from making the same model while it lasts. Raises `OutputError` where one
        does, and where the folder can't be written.
        """
        lock = self.folder / "lock"
        with undoing(self.folder):
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                # To append, since a link in its place may lead to a file of the user's.
                file = lock.open("a")
            except OSError as error:
                message = f"can't keep finished steps in {str(self.folder)!r}: {reason(error)}"
                raise OutputError(message, subject=str(self.folder)) from error
            with file:
                # A job that has just ended takes its file away.
                if not take(file) or not is_at(lock, file.fileno()):
                    message = f"{self._out} is being made by another process"
                    advice = "wait for it, or name another folder"
                    raise OutputError(f"{message}; {advice}", subject=str(self._out))
                try:
                    yield
                finally:
                    # While it is locked, so that no other's lock is taken away.
                    if is_at(lock, file.fileno()):
                        with suppress(OSError):
                            lock.unlink()
                        remove_empty(self.folder)

    def load(self, numbers: bool = True) -> list[FinishedStep]:
        """Return the finished steps from the first one on, as far as none is missing; empty if
        nothing was begun, or another run was.

        A damaged step ends them too, and a line says so. Without `numbers` the edits' tensors are
        on the meta device; `edits` reads those of a step.
        """
        steps: list[FinishedStep] = []
        # There can't be more steps than files; a missing one ends the loop.
        for index in range(len(list(self.folder.glob("edits-*.safetensors")))):
            path = self._path(index)
            try:
                step = self._read(index)
            except FileNotFoundError:
                break
            except BrokenSealError:
                # Once: a job loads several times.
                if path not in self._reported:
                    tell_made_again("a finished step", short(path))
                self._reported.add(path)
                break
            steps.append(step if numbers else step.without_numbers())
        self.loaded = len(steps)
        return steps

    def begun(self) -> bool:
        """Return whether something of this run is kept."""
        try:
            self._read(0)
        except (FileNotFoundError, BrokenSealError):
            return bool(self.journal().known)
        return True

    def names(self, index: int) -> Sequence[str]:
        """Return the names of the matrices that a step replaced. The step must have been loaded or
        added.
        """
        return self._names[index]

    def edits(self, index: int) -> Sequence[StoredEdit]:
        """Read the edits of a kept step once more. Raises `OutputError` if it isn't there, or not
        what was written.
        """
        try:
            return self._read(index).edits
        except (FileNotFoundError, BrokenSealError) as error:
            problem = f"step {index} in {str(self.folder)!r} was kept and can't be read again"
            message = f"{problem}; run the same command again"
            raise OutputError(message, subject=str(self.folder)) from error

    def journal(self) -> Journal:
        """Return the journal of what the method found out by trying; what it adds is kept."""
        return Journal(self.folder / "tried.sqlite", self._run_id)

    def add(
        self, index: int, edits: Sequence[StoredEdit], reports: Sequence[dict[str, Any]]
    ) -> None:
        """Keep step `index`: its edits, and what the record says of each. Raises `OutputError`
        where it can't be written, as on a full disk; the steps before it stay.
        """
        tensors, entries = as_tensors(edits)
        facts = {"edits": entries, "reports": list(reports)}
        try:
            sealed_tensors.write(self._path(index), self._purpose(index), facts, tensors)
        except OSError as error:
            message = f"can't keep step {index} in {str(self.folder)!r}: {reason(error)}"
            raise OutputError(message, subject=str(self.folder)) from error
        self._names[index] = _matrix_names(edits)

    @contextmanager
    def staying(self) -> Iterator[None]:
        """While the model is saved, let an `OutputError` say that the finished blocks stay, and
        where.
        """
        try:
            yield
        except OutputError as error:
            if not self._path(0).exists():
                raise
            stay = f"the finished blocks stay in {self.folder}"
            message = f"{error}; {stay}, and the same command goes on from them"
            raise OutputError(message, subject=error.subject) from error

    def remove(self) -> None:
        """Remove the folder, once the model is saved and nothing is left to continue."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self, index: int) -> FinishedStep:
        # Read and not mapped: a limit on addresses, which the user may have set, holds then.
        stored = sealed_tensors.read(self._path(index), self._purpose(index), mapped=False)
        edits = from_tensors(stored.tensors, stored.facts["edits"])
        self._names[index] = _matrix_names(edits)
        return FinishedStep(edits, stored.facts["reports"])

    def _purpose(self, index: int) -> Purpose:
        return {"kind": "checkpoint", "run": self._run_id, "step": index}

    def _path(self, index: int) -> Path:
        return self.folder / f"edits-{index:05d}.safetensors"


@final
class StepWriter(Listener):
    """Writes finished steps while the next one is made, one at a time. Whoever is about to change
    numbers that are being written waits until they are.

    An error in writing is raised by what is called next, at the latest at the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._places: set[int] = set()

    def add(
        self,
        checkpoint: Checkpoint,
        index: int,
        edits: Sequence[StoredEdit],
        reports: Sequence[dict[str, Any]],
    ) -> None:
        """Begin to keep a step in `checkpoint`, once the step before it is kept. Raises
        `OutputError` where that one can't be.
        """
        self.wait()
        for edit in edits:
            self._places |= {_place(tensor) for tensor in edit.tensors.values()}
        self._writing = self._thread.submit(checkpoint.add, index, edits, reports)

    def wait(self) -> None:
        """Return when all is written. Raises `OutputError` where that can't be done."""
        writing = self._writing
        self._writing = None
        self._places = set()
        if writing is not None:
            writing.result()

    def will_change(self, tensor: Tensor) -> None:
        if _place(tensor) in self._places:
            self.wait()

    def __enter__(self) -> "StepWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        # Also after another error what is finished is kept; that error says more than this one.
        self._thread.shutdown()
        if kind is None:
            self.wait()


def _place(tensor: Tensor) -> int:
    """The address of the memory that a tensor is a part of."""
    return tensor.untyped_storage().data_ptr()


def _matrix_names(edits: Sequence[StoredEdit]) -> tuple[str, ...]:
    """The names of the matrices that these edits replace; other edits have none."""
    return tuple(edit.facts["name"] for edit in edits if "name" in edit.facts)
