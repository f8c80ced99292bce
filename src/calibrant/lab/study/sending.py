"""What goes between a study and its workers, in msgpack: the work, as classes and fields; and what
a worker on another machine asks of the one store.

Nothing is pickled, and what arrives is checked by its types. A class that this process learned,
such as a user's own, has no file that a name leads to. So its name is sent, and the worker learns
it too: texts within other objects may name it. Data that were handed over as objects are in no
file either, and their rows are sent.

A worker on another machine has a `RemoteStore`, which asks in messages. The process that started it
has a `Desk`, which does what is asked in the store and answers. So one process alone writes, and a
worker that dies loses only what it hadn't sent.
"""

import importlib
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import fields
from fractions import Fraction
from functools import partial
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, NamedTuple, get_type_hints, overload

import msgspec

from calibrant.allocations import allocations
from calibrant.compress import Recipe
from calibrant.data import CalibrationSet, selectors, sources
from calibrant.data.given import Content, Given, keep, own_behind
from calibrant.errors import CalibrantError, DataError, SpecError
from calibrant.evaluators import evaluators
from calibrant.lab.study.request import RunRequest, Workload
from calibrant.methods import methods
from calibrant.results import Cell, Claim, Measurement, Record, Store, measurement_id
from calibrant.results.outcomes import Journal
from calibrant.spec import Spec, build, classes_in, qualified
from calibrant.spec.foreign import brief
from calibrant.spec.registry import Registry
from calibrant.system.wire import kind_of, raised
from calibrant.transforms import transforms

_EVERY: Final = (methods, evaluators, allocations, transforms, sources, selectors)
REGISTRIES: Final[dict[str, Registry]] = {registry.package: registry for registry in _EVERY}
"""Where a study looks names up, by the folder of each."""
Number = Annotated[int, msgspec.Meta(ge=0)]


def packed(work: Workload) -> bytes:
    """Return a workload as bytes for other processes: each set and recipe once.

    Raises `SpecError` for a class that they can't import.
    """
    sets = work.calibrations
    recipes = work.recipes
    set_numbers = {name: number for number, name in enumerate(sets)}
    recipe_numbers = {recipe: number for number, recipe in enumerate(recipes)}
    requests: list[tuple[str, int | None, int]] = []
    for request in work.requests:
        number = set_numbers.get(repr(request.calibration))
        requests.append((request.model, number, recipe_numbers[request.recipe]))
    # First of all, since it raises for what workers can't import.
    classes = _travelling(work)
    settings: dict[str, Any] = {}
    for name in _settings():
        settings[name] = _plain(getattr(work, name))
    message = {
        "classes": classes,
        "given": list(map(_plain, _handed_over(work))),
        "sets": list(map(_plain, sets.values())),
        "recipes": list(map(_plain, recipes)),
        "requests": requests,
        "settings": settings,
    }
    return msgspec.msgpack.encode(message)


def unpacked(message: bytes) -> Workload:
    """Return the workload that `packed` wrote.

    Raises `DataError` for other bytes, and the `InputError` of something that is named in it and
    isn't there any more.
    """
    try:
        sent = msgspec.msgpack.decode(message)
        _learn(msgspec.convert(sent["classes"], dict[str, list[str]]))
        arrived = _Arrived()
        for content in arrived.typed(sent["given"], list[Content]):
            keep(content)
        sets = [arrived.calibration(each) for each in sent["sets"]]
        recipes = [arrived.typed(each, Recipe) for each in sent["recipes"]]
        numbers = arrived.typed(sent["requests"], list[tuple[str, Number | None, Number]])
        requests: list[RunRequest] = []
        for model, number, recipe in numbers:
            calibration: CalibrationSet | None = None
            if number is not None:
                calibration = sets[number]
            requests.append(RunRequest(model, calibration, recipes[recipe]))
        settings: dict[str, Any] = {}
        for name, kind in _settings().items():
            settings[name] = arrived.typed(sent["settings"][name], kind)
        return Workload(requests=tuple(requests), **settings)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise DataError(
            f"{brief(message)} is no work of a study ({error}); start the study again"
        ) from error


def _settings() -> dict[str, Any]:
    """The types of what a workload holds beside its requests, by name."""
    kinds = get_type_hints(Workload)
    del kinds["requests"]
    return kinds


def _plain(value: Any) -> Any:
    """A value as plain data. Only a spec has its class beside it: the place of any other object
    says what it is.
    """
    match value:
        case None | bool() | int() | float() | str():
            return value
        case Fraction():
            return {"fraction": str(value)}
        case list() | tuple() | frozenset():
            return [_plain(item) for item in value]
        case Mapping():
            return {key: _plain(item) for key, item in value.items()}
        case _:
            names = [field.name for field in fields(value) if field.init]
            inside = {name: _plain(getattr(value, name)) for name in names}
            if isinstance(value, Spec):
                return {"class": qualified(type(value)), "fields": inside}
            return inside


class _Arrived:
    """Makes values of plain data. Equal specs become one object, so that a user's file is read only
    once.
    """

    def __init__(self) -> None:
        self._specs: dict[bytes, Spec] = {}

    def typed(self, plain: Any, kind: Any) -> Any:
        """The value of this type."""
        return msgspec.convert(plain, kind, dec_hook=self._special)

    def calibration(self, plain: Any) -> CalibrationSet:
        """The calibration set, which isn't read from its text again."""
        hints = get_type_hints(CalibrationSet)
        # The constructor would read the text again, and the files of the parts with it.
        made = object.__new__(CalibrationSet)
        for field in fields(CalibrationSet):
            if field.name != "mixed":
                value = self.typed(plain[field.name], hints[field.name])
                object.__setattr__(made, field.name, value)
        object.__setattr__(made, "mixed", tuple(map(self.calibration, plain["mixed"])))
        return made

    def _special(self, kind: type[Any], plain: Any) -> Any:
        """What msgspec knows no type for: fractions, and specs of any class that is a `kind`."""
        value = self._value(plain)
        if not isinstance(value, kind):
            raise TypeError(f"{brief(value)} stands where a {kind.__name__} should")
        return value

    def _value(self, plain: Any) -> Any:
        """A value whose class stands in the message. A list is a tuple in whatever has a hash."""
        match plain:
            case {"class": str(name), "fields": dict(inside)}:
                return self._object(name, inside)
            case {"fraction": str(text)}:
                return Fraction(text)
            case dict():
                return {key: self._value(item) for key, item in plain.items()}
            case list():
                return tuple(self._value(item) for item in plain)
            case _:
                return plain

    def _object(self, name: str, inside: Mapping[str, Any]) -> Any:
        kind = _imported(name)
        values = {field: self._value(item) for field, item in inside.items()}
        if not (isinstance(kind, type) and issubclass(kind, Spec)):
            raise TypeError(f"{name} is no class that is sent to workers")
        key = msgspec.msgpack.encode([name, inside])
        # Specs may be large, and a source keeps what it read of its file.
        if key not in self._specs:
            self._specs[key] = build(kind, values)
        return self._specs[key]


def _travelling(work: Workload) -> dict[str, list[str]]:
    """The classes that the worker has to learn, as `module:Class` by the folder of their
    registry.
    """
    used: set[type[Any]] = set()
    for spec in work.specs():
        used |= set(classes_in(spec))
    sent: dict[str, list[str]] = {}
    for package, registry in REGISTRIES.items():
        for kind in registry.learned():
            if kind in used:
                _check_importable(kind)
                sent.setdefault(package, []).append(qualified(kind))
    return sent


def _handed_over(work: Workload) -> list[Content]:
    """The data that came as objects, each once."""
    contents: dict[str, Content] = {}
    for calibration in work.calibrations.values():
        for term in calibration.parts:
            for source in own_behind(term.source):
                if isinstance(source, Given):
                    contents[source.digest] = source.content
    return list(contents.values())


def _check_importable(kind: type[Any]) -> None:
    """Raise `SpecError` for a class of a notebook, the script itself, or a function."""
    if kind.__module__ == "__main__":
        where = "in a notebook or the script itself"
    elif "<locals>" in kind.__qualname__:
        where = "within a function"
    else:
        return
    raise SpecError(
        f"{kind.__name__} is defined {where}, where other processes can't import it; put it at the "
        "top of a file of its own and import it from there, or run the study without workers",
        subject=kind.__name__,
    )


def _learn(classes: Mapping[str, list[str]]) -> None:
    """Learn the classes that were learned where the message comes from."""
    for package, names in classes.items():
        for name in names:
            REGISTRIES[package].learn(_imported(name))


def _imported(name: str) -> Any:
    """The class called `module:Class`. Raises `SpecError` for one that isn't there."""
    module, _, path = name.partition(":")
    try:
        return attrgetter(path)(importlib.import_module(module))
    except Exception as error:  # a file may raise anything while it is imported
        raise SpecError(
            f"{name} can't be imported here ({error}); put its file where every worker finds it",
            subject=name,
        ) from error


PAUSE: Final = 0.2
"""Seconds between two times that a worker asks whether a claim is free."""

Plain = dict[str, Any]


class QuestionTypes(NamedTuple):
    """The types of what is asked with, and of the answer."""

    given: Any
    answer: Any


QUESTIONS: Final[Mapping[str, QuestionTypes]] = {
    "cells": QuestionTypes(tuple[()], list[Cell]),
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
        self._claims: dict[str, Claim] = {}
        self._journals: dict[str, Journal] = {}

    def answer(self, asked: str, given: bytes) -> bytes:
        """Return the answer, or the error that came of it, for `RemoteStore` to read."""
        try:
            question = QUESTIONS[asked]
            values = msgspec.msgpack.decode(given, type=question.given)
        except (LookupError, ValueError, TypeError) as error:
            text = f"{brief(asked)} is no question of a worker ({error}); start the study again"
            return _error("DataError", text)
        # Claims and journals this desk holds for the worker; all else is the store's.
        method = getattr(self, f"_{asked}", None)
        if method is None:
            method = getattr(self._store, asked)
        try:
            answer = method(*values)
            return msgspec.msgpack.encode(["answer", answer])
        except CalibrantError as error:
            return _error(kind_of(error), str(error), error.subject)
        except Exception as error:  # noqa: BLE001
            return _error("DataError", f"{asked} failed: {error!r}")

    def close(self) -> None:
        """Free what the worker had claimed, and close the store."""
        with ExitStack() as closing:  # if one can't be freed, the others are all the same
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
    """The methods of `Store` that a driver needs, each asked of a `Desk`. `folder` is this worker's
    alone, for the statistics of the dense model."""

    shares_folder: Final = False

    def __init__(self, asking: Asking, folder: Path) -> None:
        self.folder = folder
        self._asking = asking

    def __getattr__(self, asked: str) -> Callable[..., Any]:
        """Return the method of the store that is called so, where a worker may ask for it."""
        if asked not in QUESTIONS:
            raise AttributeError(asked)
        return partial(self.ask, asked)

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
        error = raised(name, text, subject)
        if error is None:
            error = DataError(text, subject=subject)
        raise error

    def record(self, run_id: str, whole: bool = True) -> Record | None:
        """See `Store`."""
        return self.ask("record", run_id, whole)

    def add_record(self, record: Record, files: Mapping[str, bytes] = MappingProxyType({})) -> str:
        """See `Store`."""
        return self.ask("add_record", record, dict(files))

    def add_measurement(
        self,
        run_id: str,
        evaluator: Mapping[str, Any],
        measurement: Measurement,
        data: str = "",
    ) -> str:
        """See `Store`."""
        return self.ask("add_measurement", run_id, evaluator, measurement, data)

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
        self._store = store
        self._name = name

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
