"""The study file: YAML 1.2, read as plain data with the line of everything in it.

Only the plain part of YAML is read: mappings with text keys, lists, texts, numbers, true and false,
null, and repeated parts (`&name`, `*name`). What a scalar without quotes means follows the core
schema of YAML 1.2, so `2:4`, `gsm8k:icl`, `no` and `on` are texts. Tags, keys that come twice,
several documents and parts that hold themselves are mistakes with a line, as everything else is
that a study can't be run with.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath
from typing import Any, Final, final

from ruamel.yaml import YAML, events
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import Event
from ruamel.yaml.reader import ReaderError

from calibrant.errors import Problem, StudyError
from calibrant.lab.study.checking import (
    DISK_LIMITS,
    KEYS,
    SYNONYMS,
    Mistakes,
    Path,
    StudyContents,
    keyed,
)
from calibrant.lab.study.study import DEFAULTS, KEY_OF_FIELD, NOTHING, Study, read
from calibrant.spec.foreign import user_path, user_text

LARGEST: Final = 256 * 1024
"""Bytes of a study file at most: one that is larger is something else."""
DEEPEST: Final = 16
"""Lists and mappings within one another at most."""
MOST: Final = 50_000
"""Values in a file at most, those of repeated parts counted as often as they are used."""

_CONSTANTS: Final[dict[str, Any]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_WHOLE: Final = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}")
_NUMBER: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE_OR_NAN: Final = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_study(path: str | FilePath) -> Study:
    """Return the study that a file holds.

    Raises `StudyError` for a file that can't be read or has mistakes: all of them, each with its
    line. Nothing is run or written.
    """
    name = str(path)
    mistakes = Mistakes()
    text = _text(user_path(path), name)
    entries, lines = _Document(text, name, mistakes).read()
    fields = {key: field for field, key in KEY_OF_FIELD.items()}
    values: dict[str, Any] = {}
    keys = keyed(mistakes, (), entries, KEYS, "study")
    for key, (_, value) in keys.items():
        field = fields.get(key, key)
        # A key without a value is left out where that may be, and else a mistake.
        if value is not None or DEFAULTS[field] not in NOTHING:
            values[field] = value
    contents = StudyContents()
    if keys:
        contents = read(values, mistakes)
    if mistakes.entries:
        raise StudyError(mistakes.problems(_by_canonical_keys(lines)), subject=name)
    # 8 and 8.0 are the same limit, and the store keeps one text of a study.
    for key in DISK_LIMITS:
        if isinstance(values.get(key), int):
            values[key] = float(values[key])
    return Study.holding(values, contents)


def _by_canonical_keys(lines: Mapping[Path, int]) -> dict[Path, int]:
    """The lines by their paths, and for each key that is a synonym also by the canonical key."""
    canonical: dict[Path, int] = {}
    for path, line in lines.items():
        if path:
            key, *rest = path
            canonical[SYNONYMS.get(str(key), key), *rest] = line
    # A key's own line goes before that of another word for it.
    return canonical | dict(lines)


def _text(path: FilePath, name: str) -> str:
    """The file's text. `StudyError` for what is no text file of a study's size."""
    advice = "name the YAML file of a study"
    try:
        if path.is_dir():
            raise _refused(name, 0, f"this is a folder; {advice}")
        if path.exists() and not path.is_file():
            raise _refused(name, 0, f"this is a pipe or device, which may never end; {advice}")
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        message = f"the file can't be read ({error.strerror}); {advice}"
        raise _refused(name, 0, message) from error
    if len(content) > LARGEST:
        much = f"the file is larger than {LARGEST // 1024} KiB, so it is hardly a study"
        raise _refused(name, 0, f"{much}; name the YAML file of one")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        message = f"the byte {content[error.start]:#04x} is no UTF-8; save the file as UTF-8"
        raise _refused(name, line, message) from error


def _refused(name: str, line: int, message: str) -> StudyError:
    """The error that ends the reading at once, since the rest can't be understood."""
    return StudyError([Problem(line, "", message)], subject=name)


@final
class _Document:
    """One document as plain data; the lines of its keys and items by their paths."""

    def __init__(self, text: str, name: str, mistakes: Mistakes) -> None:
        self._name = name
        self._mistakes = mistakes
        self._events = self._parsed(text)
        self._lines: dict[Path, int] = {(): 1}
        self._known: dict[str, tuple[Any, dict[Path, int]] | None] = {}
        """What repeated parts hold and its lines, by their names; None while one is being read."""
        self._count = 0

    def read(self) -> tuple[Any, dict[Path, int]]:
        """The data and the lines. An empty file is a `StudyError`."""
        value: Any = None
        documents = 0
        for event in self._events:
            if not isinstance(event, events.DocumentStartEvent):
                continue
            documents += 1
            if documents > 1:
                raise self._at(event, "a second document begins here; a file holds one study")
            if event.version not in (None, (1, 2)):
                version = ".".join(map(str, event.version))
                advice = "a study file is YAML 1.2, leave the line out"
                raise self._at(event, f"this says YAML {version}; {advice}")
            self._lines[()] = _line(event)
            value = self._value((), next(self._events))
        if value is None:
            advice = "a study names at least a model and data, as in model: smollm2"
            raise _refused(self._name, 0, f"there is nothing in it; {advice}")
        return value, self._lines

    def _parsed(self, text: str) -> Iterator[Event]:
        """YAML's events; `StudyError` where the text is no YAML."""
        try:
            yield from YAML(typ="safe", pure=True).parse(text)
        except MarkedYAMLError as error:
            message = f"this is no YAML: {error.problem or error.context}"
            if "mapping values" in str(error.problem):
                message += "; a text with a colon and a space in it needs quotes"
            mark = error.problem_mark or error.context_mark
            line = 0
            if mark:
                line = mark.line + 1
            raise _refused(self._name, line, message) from error
        except ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            letter = chr(error.character)
            message = f"this is no YAML: the character {letter!r} may not stand in it; remove it"
            raise _refused(self._name, line, message) from error

    def _value(self, path: Path, event: Event) -> Any:
        self._count += 1
        if self._count > MOST:
            much = f"more than {MOST:,} things"
            raise self._at(event, f"the file holds {much}, so it is hardly a study")
        self._check_depth(len(path), event)
        self._lines.setdefault(path, _line(event))
        if isinstance(event, events.AliasEvent):
            return self._repeated(path, event)
        anchor = getattr(event, "anchor", None)
        tag = getattr(event, "tag", None)
        if tag is not None:
            advice = "write a plain text, number, list or mapping"
            self._mistakes.add(path, f"the tag {tag!r} is not read; {advice}")
        if anchor is None:
            return self._plain(path, event)
        # Until it is read, to repeat it would never end.
        self._known[anchor] = None
        value = self._plain(path, event)
        depth = len(path)
        lines: dict[Path, int] = {}
        for place, line in self._lines.items():
            if place[:depth] == path:
                inside = place[depth:]
                lines[inside] = line
        self._known[anchor] = value, lines
        return value

    def _check_depth(self, depth: int, event: Event) -> None:
        if depth > DEEPEST:
            much = f"lists within lists, more than {DEEPEST} deep"
            raise self._at(event, f"the file holds {much}, so it is hardly a study")

    def _plain(self, path: Path, event: Event) -> Any:
        """A scalar, or what a list or mapping holds."""
        if isinstance(event, events.ScalarEvent):
            return self._scalar(path, event)
        values: list[Any] = []
        keys: dict[str, Any] = {}
        for inside in self._events:
            if isinstance(inside, events.SequenceEndEvent):
                return values
            if isinstance(inside, events.MappingEndEvent):
                return keys
            if isinstance(event, events.MappingStartEvent):
                self._entry(path, inside, keys)
            else:
                values.append(self._value((*path, len(values)), inside))
        return values

    def _entry(self, path: Path, key: Event, keys: dict[str, Any]) -> None:
        if not isinstance(key, events.ScalarEvent):
            raise self._at(key, "a key must be a text")
        name = key.value
        place = (*path, name)
        repeated = name in keys
        if repeated:
            first = self._lines[place]
            place = (*path, f"{name} (again)")
            message = f"the key {name!r} is there twice, first in line {first}; leave one out"
            self._mistakes.add(place, message)
        self._lines[place] = _line(key)
        value = self._value(place, next(self._events))
        if not repeated:
            keys[name] = value

    def _repeated(self, path: Path, event: events.AliasEvent) -> Any:
        """A part that was named before, and is repeated here."""
        name = event.anchor
        if name not in self._known:
            message = f"nothing is called &{name} above; name a part before it is repeated"
            raise self._at(event, message)
        known = self._known[name]
        if known is None:
            message = f"*{name} stands within what it repeats, so it would never end"
            raise self._at(event, message)
        value, lines = known
        self._check_depth(len(path) + max(map(len, lines)), event)
        # Repeated parts count as often as they are used: few lines could stand for billions.
        self._count += len(lines)
        for place in lines:
            self._lines[*path, *place] = self._lines[path]
        return value

    def _scalar(self, path: Path, event: events.ScalarEvent) -> Any:
        """A scalar by the core schema of YAML 1.2.

        Only one without quotes can be anything but a text.
        """
        text: str = self._mistakes.tried(path, user_text, event.value) or ""
        if event.style is not None:
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _WHOLE.fullmatch(text):
            if text.startswith(("0o", "0x")):
                return int(text, 0)
            return int(text)
        if _INFINITE_OR_NAN.fullmatch(text):
            return float(text.replace(".", ""))
        if _NUMBER.fullmatch(text):
            return float(text)
        return text

    def _at(self, event: Event, message: str) -> StudyError:
        return _refused(self._name, _line(event), message)


def _line(event: Event) -> int:
    return event.start_mark.line + 1
