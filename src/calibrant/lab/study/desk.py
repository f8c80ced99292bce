"""A store at a distance: what a worker on another machine asks of the process that started it.

The worker has a `RemoteStore`, which asks in messages. The process that started it has a `Desk`,
which does what is asked in the one store and answers. So one process alone writes, and a worker
that dies loses only what it hadn't sent. What is sent is msgpack and is checked by its type.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, overload

import msgspec

from calibrant.errors import CalibrantError, DataError
from calibrant.results import Claim, Measurement, Record, Store, measurement_id
from calibrant.results.outcomes import Journal
from calibrant.spec.foreign import brief
from calibrant.system.wire import kind_of, raised

PAUSE: Final = 0.2
"""Seconds between two times that a worker asks whether a claim is free."""

Plain = dict[str, Any]


class QuestionTypes(NamedTuple):
    """The types of what is asked with, and of the answer."""

    given: Any
    answer: Any


QUESTIONS: Final[Mapping[str, QuestionTypes]] = {
    "ids": QuestionTypes(tuple[()], list[str]),
    "has_record": QuestionTypes(tuple[str], bool),
    "measured": QuestionTypes(tuple[str], set[str]),
    "record": QuestionTypes(tuple[str, bool], Record | None),
    "provenance": QuestionTypes(tuple[str], Plain),
    "state": QuestionTypes(tuple[str], bytes | None),
    "bytes_of": QuestionTypes(tuple[str], int),
    "add_record": QuestionTypes(tuple[Record, dict[str, bytes]], str),
    "put_back": QuestionTypes(tuple[str, dict[str, bytes]], None),
    "add_measurement": QuestionTypes(tuple[str, Plain, Measurement, str], str),
    "failure": QuestionTypes(tuple[str], Plain | None),
    "add_failure": QuestionTypes(tuple[str, Plain], None),
    "clear_failure": QuestionTypes(tuple[str], None),
    "claim": QuestionTypes(tuple[str], bool),
    "free": QuestionTypes(tuple[str], None),
    "known": QuestionTypes(tuple[str], Plain),
    "keep": QuestionTypes(tuple[str, Plain], None),
    "forget": QuestionTypes(tuple[str], None),
}
"""What may be asked: methods of `Store`, and those of `Desk` for claims and journals."""


class Desk:
    """Does in the store in `folder` what one worker asks. Closed, it frees the worker's claims."""

    def __init__(self, folder: str | Path) -> None:
        self._store = Store(folder)
        self._claims = dict[str, Claim]()
        self._journals = dict[str, Journal]()
        # What isn't asked of the store, since this desk holds it for the worker.
        self._held_here = {
            "claim": self._claim,
            "free": self._free,
            "known": self._known,
            "keep": self._keep,
            "forget": self._forget,
        }

    def answer(self, asked: str, given: bytes) -> bytes:
        """Return the answer, or the error that came of it, for `RemoteStore` to read."""
        try:
            question = QUESTIONS[asked]
            values = msgspec.msgpack.decode(given, type=question.given)
        except (LookupError, ValueError, TypeError) as error:
            text = f"{brief(asked)} is no question of a worker ({error}); start the study again"
            return _error("DataError", text)
        act = self._held_here.get(asked) or getattr(self._store, asked)
        try:
            answer = act(*values)
            return msgspec.msgpack.encode(["answer", answer])
        except CalibrantError as error:
            return _error(kind_of(error), str(error), error.subject)
        except Exception as error:  # noqa: BLE001
            return _error("DataError", f"{asked} failed: {error!r}")

    def close(self) -> None:
        """Free what the worker had claimed, and close the store."""
        with ExitStack() as closing:  # one that can't be freed leaves no other held
            closing.callback(self._store.close)
            for claim in self._claims.values():
                closing.callback(claim.free)
        self._claims.clear()

    def _claim(self, name: str) -> bool:
        claim = self._store.claim(name)
        if claim is not None:
            self._claims[name] = claim
        return claim is not None

    def _free(self, name: str) -> None:
        claim = self._claims.pop(name, None)
        if claim is not None:
            claim.free()

    def _journal(self, question: str) -> Journal:
        if question not in self._journals:
            self._journals[question] = self._store.trials(question)
        return self._journals[question]

    def _known(self, question: str) -> Plain:
        return self._journal(question).known

    def _keep(self, question: str, results: Plain) -> None:
        self._journal(question).add(results)

    def _forget(self, question: str) -> None:
        self._journal(question).remove()
        del self._journals[question]


def _error(kind: str, text: str, subject: str = "") -> bytes:
    """The answer that makes a worker raise an error."""
    return msgspec.msgpack.encode(["error", [kind, text, subject]])


Asking = Callable[[str, bytes], bytes]
"""Sends a question with what is given, and returns the answer."""


class RemoteStore:
    """The methods of `Store` that a driver needs, each asked of a `Desk`. `folder` is one of this
    machine, for the statistics of the untouched model."""

    def __init__(self, asking: Asking, folder: Path) -> None:
        self.folder, self._asking = folder, asking

    def ask(self, asked: str, *values: Any) -> Any:
        """Return the answer to a question. Raises the error that it came to."""
        answer = self._asking(asked, msgspec.msgpack.encode(values))
        try:
            kind, content = msgspec.msgpack.decode(answer, type=tuple[str, msgspec.Raw])
            if kind == "answer":
                return msgspec.msgpack.decode(content, type=QUESTIONS[asked].answer)
            name, text, subject = msgspec.msgpack.decode(content, type=tuple[str, str, str])
        except ValueError as error:
            text = f"{brief(answer)} is no answer to {asked} ({error}); start the study again"
            raise DataError(text) from error
        raise raised(name, text, subject) or DataError(text, subject=subject)

    def ids(self) -> list[str]:
        """See `Store`."""
        return self.ask("ids")

    def has_record(self, run_id: str) -> bool:
        """See `Store`."""
        return self.ask("has_record", run_id)

    def measured(self, run_id: str) -> set[str]:
        """See `Store`."""
        return self.ask("measured", run_id)

    def record(self, run_id: str, whole: bool = True) -> Record | None:
        """See `Store`."""
        return self.ask("record", run_id, whole)

    def provenance(self, run_id: str) -> Mapping[str, Any]:
        """See `Store`."""
        return self.ask("provenance", run_id)

    def state(self, run_id: str) -> bytes | None:
        """See `Store`."""
        return self.ask("state", run_id)

    def bytes_of(self, name: str) -> int:
        """See `Store`."""
        return self.ask("bytes_of", name)

    def add_record(self, record: Record, files: Mapping[str, bytes] = MappingProxyType({})) -> str:
        """See `Store`."""
        return self.ask("add_record", record, dict(files))

    def put_back(self, run_id: str, contents: Mapping[str, bytes]) -> None:
        """See `Store`."""
        self.ask("put_back", run_id, dict(contents))

    def add_measurement(
        self,
        run_id: str,
        evaluator: Mapping[str, Any],
        measurement: Measurement,
        data: str = "",
    ) -> str:
        """See `Store`."""
        return self.ask("add_measurement", run_id, evaluator, measurement, data)

    def failure(self, failed_id: str) -> Mapping[str, Any] | None:
        """See `Store`."""
        return self.ask("failure", failed_id)

    def add_failure(self, failed_id: str, what: Mapping[str, Any]) -> None:
        """See `Store`."""
        self.ask("add_failure", failed_id, what)

    def clear_failure(self, failed_id: str) -> None:
        """See `Store`."""
        self.ask("clear_failure", failed_id)

    def journal(self, run_id: str, evaluator: Mapping[str, Any], data: str = "") -> Journal:
        """See `Store`."""
        return RemoteJournal(self, measurement_id(run_id, evaluator, data))

    def trials(self, run_id: str) -> Journal:
        """See `Store`."""
        return RemoteJournal(self, run_id)

    @overload
    def claim(self, name: str, wait: Literal[True]) -> "RemoteClaim": ...
    @overload
    def claim(self, name: str, wait: bool = False) -> "RemoteClaim | None": ...
    def claim(self, name: str, wait: bool = False) -> "RemoteClaim | None":
        """See `Store`."""
        while not self.ask("claim", name):
            if not wait:
                return None
            time.sleep(PAUSE)
        return RemoteClaim(self, name)


class RemoteClaim:
    """A claim that the desk holds for this worker. A context manager."""

    def __init__(self, store: RemoteStore, name: str) -> None:
        self._store, self._name = store, name

    def free(self) -> None:
        """Release the claim."""
        self._store.ask("free", self._name)

    def __enter__(self) -> "RemoteClaim":
        return self

    def __exit__(self, *_: object) -> None:
        self.free()


class RemoteJournal(Journal):
    """A journal that the desk keeps."""

    def __init__(self, store: RemoteStore, question: str) -> None:
        super().__init__(question=question)
        self._store = store
        self._known.update(store.ask("known", question))

    def add(self, results: Mapping[str, Any]) -> None:
        """Keep what was found."""
        self._store.ask("keep", self.question, dict(results))
        self._known.update(results)

    def remove(self) -> None:
        """Forget it."""
        self._store.ask("forget", self.question)
        self._known.clear()
