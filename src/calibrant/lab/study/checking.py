"""The entries of a study, read once into values and checked as a whole: all mistakes are found at
once, each with its place.

Our own code and no schema library, after trying two (docs/log/2026-11-26.md):
msgspec ends at the first mistake; pydantic took 49 lines more for the single values alone, since
each of its messages needs one of ours. The rest (duplicates, names that stand elsewhere, what the
grid holds) needs the entries before it.
"""

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, Final, TypeVar, cast

import numpy as np

from calibrant.activations import Propagation
from calibrant.allocations import Allocation, allocations
from calibrant.compress import PROPAGATIONS, Recipe
from calibrant.compress.recipe import check_propagation
from calibrant.data import CalibrationSet, Source
from calibrant.data.calibration import LAST_DRAW, WINDOWS, check_budget, check_one_budget
from calibrant.data.given import as_source
from calibrant.errors import DataError, InputError, Problem
from calibrant.evaluators import Evaluator, evaluators
from calibrant.lab.study.request import DENSE, USUAL, Axes, Labels, RunRequest, union
from calibrant.methods import Method, methods
from calibrant.models.devices import DTYPES, device_kinds
from calibrant.options import RENAMED, DataOptions
from calibrant.spec import Spec, reads_back
from calibrant.spec.foreign import LARGEST, brief, did_you_mean, user_text
from calibrant.spec.registry import Registry
from calibrant.targets import Target, parse_target
from calibrant.transforms import Transform, transforms

Made = TypeVar("Made")
Path = tuple[str | int, ...]
"""Where something stands in a study: keys and numbers, outermost first."""
Given = dict[str, tuple[Path, Any]]
"""What was given, by canonical keys: where it stands, and the value."""

AXES: Final = ("model", "data", "method", "allocation", "target", "seeds", "propagate")
"""What a group may replace and an entry of `exclude` may name."""
LISTS: Final = AXES[:-1]
"""The axes that may hold several values."""
BUDGET: Final = ("samples", "length", "tokens")
SWITCHES: Final = ("masks", "quotes", "allow_leak")
DISK_LIMITS: Final = ("statistics_gb", "edits_gb")
"""Keys that say how much of something is kept on disk."""
KEYS: Final = (
    *LISTS,
    "evaluate",
    "samples",
    "tokens",
    "length",
    "propagate",
    "dtype",
    "device",
    *SWITCHES,
    *DISK_LIMITS,
    "transform",
    "baseline",
    "groups",
    "exclude",
    "pools",
    "primary",
)
"""Every key of a study file."""
SYNONYMS: Final = {
    "models": "model",
    "methods": "method",
    "targets": "target",
    "seed": "seeds",
    "sets": "data",
    "evaluators": "evaluate",
    "task": "evaluate",
    "tasks": "evaluate",
}
"""Other words for keys, and the canonical key of each."""

_LABELS: Final = {axis: axis for axis in AXES} | {"seeds": "seed"}
"""The label of a cell that each axis stands for."""
_DATA_AXES: Final = ("data", "seeds", "propagate")
"""Axes that only what looks at data has."""
_USUAL_BUDGET: Final[dict[str, Any]] = {
    "samples": WINDOWS,
    "length": DataOptions.length,
    "tokens": DataOptions.tokens,
}
NOTHING: Final = (None, (), [])
SINGLE: Final = (str, int, float, Spec, CalibrationSet)
"""What is one value and no list of them."""
NAME: Final = 100
"""Letters of a name at most: it stands in tables."""
MOST_VALUES: Final = 10_000
"""Values of an axis, or of any other list of a study, at most."""
MOST_RUNS: Final = 100_000
"""Runs of a study at most."""
MOST_COMPARISONS: Final = 10_000_000
"""Pairs at most of a run and an entry of `exclude`, or of a run and a contrast."""


@dataclass
class Mistakes:
    """Mistakes by place and message, in the order in which they are found, each once."""

    entries: dict[tuple[Path, str], None] = field(default_factory=dict[tuple[Path, str], None])

    def add(self, path: Path, message: str) -> None:
        """Add one."""
        self.entries[path, message] = None

    def about(self, path: Path, given: Any, complaint: str) -> None:
        """Add one that begins with what was given."""
        self.add(path, f"{short(given)} {complaint}")

    def tried(self, path: Path, make: Callable[..., Made], *given: Any) -> Made | None:
        """Return what `make` returns, or None where it complains, which is added."""
        try:
            return make(*given)
        except InputError as error:
            message = str(error)
            if any(_is_cut(value) for value in given):
                message += "; in a list within brackets, a text with a comma needs quotes"
            self.add(path, message)
            return None

    def problems(self, lines: Mapping[Path, int] | None = None) -> list[Problem]:
        """Return all of them in the order of their lines.

        `lines` says where each key and item stands.
        """
        known = lines or {}
        problems: list[Problem] = []
        for path, message in self.entries:
            line = 0
            for end in range(len(path) + 1):  # the nearest thing around it that has a line
                line = known.get(path[:end], line)
            problems.append(Problem(line, where(path), message))
        return sorted(problems, key=attrgetter("line"))


def _is_cut(value: Any) -> bool:
    """Whether a text lacks one of its brackets."""
    return isinstance(value, str) and value.count("(") != value.count(")")


def where(path: Path) -> str:
    """Return a path as messages write it: `groups.small.data[2]`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}"
    return text.removeprefix(".")


def short(value: Any) -> str:
    """Return a value for a message, never long."""
    text = brief(written(value))
    if len(text) > 60:
        text = f"{text[:60]}…"
    return text


def listed(names: Iterable[Any], most: int = 12) -> str:
    """Return some names in words, so many at most."""
    texts = sorted(map(str, names))
    shown = ", ".join(texts[:most]) or "none"
    more = len(texts) - most
    if more > 0:
        shown += f" and {more} more"
    return shown


def gathered(value: Any) -> Any:
    """Return a value with a list in the place of each sequence in it, and a whole number in that of
    each of numpy.

    Of a sequence without end it has one value more than is allowed.
    """
    if isinstance(value, Mapping):
        return {key: gathered(item) for key, item in value.items()}
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, SINGLE) or not isinstance(value, Iterable):
        return value
    values: list[Any] = []
    for item in islice(value, MOST_VALUES + 1):
        # Nearly all are single values, up to two millions of them: they need no call.
        if isinstance(item, SINGLE):
            values.append(item)
        else:
            values.append(gathered(item))
    return values


def handed_over(mistakes: Mistakes, data: Any) -> Any:
    """Return the axis `data` with sources in the place of objects among its values."""
    if not isinstance(data, list | tuple):
        return data
    values: list[Any] = []
    for number, value in enumerate(cast("Sequence[Any]", data)):
        if isinstance(value, Mapping) and "data" in value:
            named = cast("Mapping[str, Any]", value)
            source = _source_of(mistakes, ("data", number, "data"), named["data"])
            values.append({**named, "data": source})
        else:
            values.append(_source_of(mistakes, ("data", number), value))
    return values


def _source_of(mistakes: Mistakes, path: Path, value: Any) -> Any:
    """Return an object as a source, and what else a study reads as it is."""
    if isinstance(value, (*SINGLE, Mapping)) or not isinstance(value, Iterable):
        return value
    return mistakes.tried(path, as_source, value)


def written(value: Any) -> Any:
    """Return a value as a study file holds it: objects as their texts."""
    if isinstance(value, Spec | CalibrationSet):
        return str(value)
    if isinstance(value, Mapping):
        return {key: written(item) for key, item in value.items()}
    if isinstance(value, list):
        return [written(item) for item in value]
    return value


def items(path: Path, value: Any) -> list[tuple[Path, Any]]:
    """Return the values of an axis with their paths; a single value stands for a list of one."""
    if isinstance(value, list | tuple | range):
        found: list[tuple[Path, Any]] = []
        for number, item in enumerate(value):
            place = (*path, number)
            found.append((place, item))
        return found
    return [(path, value)]


def keyed(mistakes: Mistakes, path: Path, raw: Any, known: Sequence[str], noun: str) -> Given:
    """Return the entries of a mapping by their canonical keys, each with its path.

    What is no mapping, and a key that is unknown, is a mistake.
    """
    entries: Given = {}
    allowed = ", ".join(known)
    if not isinstance(raw, Mapping):
        mistakes.about(path, raw, f"is no {noun}; write keys with values, of {allowed}")
        return entries
    for key, value in raw.items():
        place = (*path, key)
        name = SYNONYMS.get(str(key), str(key))
        if name in entries:
            first_place, _ = entries[name]
            mistakes.add(place, f"{key} says the same as {where(first_place)}; leave one out")
        elif name in known:
            entries[name] = place, value
        elif key in RENAMED:
            mistakes.add(place, f"{key} is called {RENAMED[key]} now; write that")
        else:
            words = [word for word, meant in SYNONYMS.items() if meant in known]
            hint = did_you_mean(str(key), [*known, *words])
            if name in KEYS and name not in AXES:
                hint = f"; {key} is the same for the whole study"
            mistakes.add(place, f"a {noun} has no key {key!r}{hint} (known: {allowed})")
    return entries


KINDS: Final[dict[str, tuple[type[Spec], Registry]]] = {
    "method": (Method, methods),
    "allocation": (Allocation, allocations),
    "evaluate": (Evaluator, evaluators),
    "transform": (Transform, transforms),
}
"""What stands under a key: a class, and the registry that reads its texts."""


@dataclass
class StudyContents:
    """What a study holds: a request for each cell, by its labels, and the cells of each group.

    `evaluators` are by their texts. The rest is what readers of results need, in texts; `names` are
    short names of calibration sets, by the sets' texts.
    """

    requests: dict[Labels, RunRequest] = field(default_factory=dict[Labels, RunRequest])
    groups: dict[str, set[Labels]] = field(default_factory=dict[str, set[Labels]])
    evaluators: dict[str, Evaluator] = field(default_factory=dict[str, Evaluator])
    names: dict[str, str] = field(default_factory=dict[str, str])
    baseline: str | None = None
    pools: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    primary: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class StudyReader:
    """Reads one study and adds what is wrong with it to `mistakes`.

    `entries` are by their canonical keys. Each distinct text is read into an object once.
    """

    def __init__(self, entries: Mapping[str, Any], mistakes: Mistakes) -> None:
        self.entries = entries
        self.mistakes = mistakes
        self.contents = StudyContents()
        self.refused = False
        """Whether there is so much that no cell was made."""
        self._budget = dict(_USUAL_BUDGET)
        self._transforms: tuple[Transform, ...] = ()
        self._built: dict[tuple[str, str], Any] = {}
        self._readers: Final[dict[str, Callable[[Path, Any], Any]]] = {
            "model": partial(self._text, make=user_text),
            "data": self._set,
            "method": partial(self._spec, "method"),
            "allocation": partial(self._spec, "allocation"),
            "target": self._target,
            "seeds": partial(self._whole_number, noun="a draw", least=0, most=LAST_DRAW),
            "propagate": partial(self._choice, allowed=PROPAGATIONS),
        }

    def grid(self) -> StudyContents:
        """Read cells and evaluators; `contrasts.read_contrasts` then reads what is compared."""
        self._read_scalars()
        self.refused = self._too_long()
        if self.refused:
            return self.contents
        # Runs are counted before they are made: a few lines may ask for millions.
        self._read_evaluators()
        grids = self._grids()
        self.refused = self._too_much(grids)
        if self.refused:
            return self.contents
        cells = self._cells(grids)
        exclude: list[dict[str, set[Any]]] = []
        for path, entry in items(("exclude",), self.entries.get("exclude") or ()):
            matching = self._excluded(path, entry, cells)
            if matching:
                exclude.append(matching)
        # Excluding comes after all groups, whose cells may be the same.
        self.contents.requests = union(cells, exclude)
        if cells and not self.contents.requests:
            message = f"everything is left out: of {len(cells)} runs none remains; narrow an entry"
            self.mistakes.add(("exclude",), message)
        self._check_pairs()
        return self.contents

    # Single values.

    def value(self, axis: str, path: Path, raw: Any) -> Any:
        """Return one value of an axis, text or object, as an object; None for a mistake."""
        return self._readers[axis](path, raw)

    def set_of(self, text: str) -> CalibrationSet:
        """Return the calibration set that a text or short name stands for.

        Raises an `InputError` where there is none.
        """
        for expression, name in self.contents.names.items():
            if text == name:
                text = expression
        return self._build_once("data", text)

    def _build_once(self, key: str, text: str) -> Any:
        """What a text under a key stands for. It is made only the first time."""
        if (key, text) not in self._built:
            if key == "data":
                self._built[key, text] = CalibrationSet(text, **self._budget)
            else:
                _, registry = KINDS[key]
                self._built[key, text] = registry.build(text)
        return self._built[key, text]

    def _text(self, path: Path, raw: Any, make: Callable[[str], Made]) -> Made | None:
        if isinstance(raw, str) and raw.strip():
            return self.mistakes.tried(path, make, raw)
        advice = "write a name, such as wanda, or quote what holds a comma"
        self.mistakes.about(path, raw, f"is no text; {advice}")
        return None

    def _spec(self, key: str, path: Path, raw: Any) -> Any:
        kind, registry = KINDS[key]
        if not isinstance(raw, kind):
            # An object of another kind is refused like its text.
            return self._text(path, written(raw), partial(self._build_once, key))
        text = self.mistakes.tried(path, registry.text, raw)
        if text is None:
            return None
        if reads_back(raw):
            return raw
        # Identities are those of the study's file: an object that its text says otherwise, such as
        # with 1 for 1.0, is what its text says.
        return self._build_once(key, text)

    def _set(self, path: Path, raw: Any) -> CalibrationSet | None:
        if isinstance(raw, CalibrationSet):
            return self._given_set(path, raw)
        if isinstance(raw, Source):
            return self.mistakes.tried(path, partial(CalibrationSet, **self._budget), raw)
        if isinstance(raw, Mapping):
            return self._named_set(path, raw)
        return self._text(path, raw, self.set_of)

    def _named_set(self, path: Path, raw: Any) -> CalibrationSet | None:
        """A set with a short name, as `{name: mixture, data: 0.5*c4 + 0.5*python_code}`."""
        keys = keyed(self.mistakes, path, raw, ("name", "data"), "calibration set")
        if len(keys) < 2:
            self.mistakes.about(path, raw, "is no calibration set; write both name and data")
            return None
        place, name = keys["name"]
        calibration = self._set(*keys["data"])
        if calibration is None or not self._check_name(place, name):
            return None
        names = self.contents.names
        text = str(calibration)
        taken = name in names.values() and names.get(text) != name
        named_otherwise = text in names and names[text] != name
        if taken or named_otherwise or self._is_set(name):
            message = "is what another set is called; give each set one name of its own"
            self.mistakes.about(place, name, message)
        names[text] = name
        return calibration

    def _is_set(self, text: str) -> bool:
        """Whether a text is a set without being a short name."""
        if text in self.contents.names.values():
            return False
        try:
            self.set_of(text)
        except InputError:
            return False
        return True

    def _given_set(self, path: Path, given: CalibrationSet) -> CalibrationSet | None:
        """A set with the study's budget. A study has one for all its sets."""
        budget = self._budget
        alike = given.length == budget["length"] and given.budget == budget["tokens"]
        if given.budget is None:
            alike = alike and given.samples == budget["samples"]
        if alike and not given.seed and given.part == "calibrate":
            if given.at_most:
                # In a study a budget is exact, also that of data that came as objects.
                return CalibrationSet(given.expr, **budget)
            return given
        settings: list[str] = []
        for name in BUDGET:
            if budget[name] is not None:
                settings.append(f"{name}={budget[name]}")
        self.mistakes.add(
            path,
            f"{given!r} has a budget or a draw of its own, and in a study all sets have the "
            f"study's, {', '.join(settings)}; give its text, {given.expr!r}",
        )
        return None

    def _target(self, path: Path, raw: Any) -> Target | None:
        if isinstance(raw, Target):
            return raw
        if isinstance(raw, bool) or not isinstance(raw, str | int | float):
            raw = short(raw)
        return self.mistakes.tried(path, parse_target, raw)

    def _whole_number(
        self, path: Path, raw: Any, noun: str, least: int, most: int = LARGEST
    ) -> int | None:
        whole = type(raw) is int  # True is no number here
        if whole and least <= raw <= most:
            return raw
        allowed = f"at least {least}"
        if whole and raw > most:
            allowed = f"at most {most:,}"
        message = f"{noun} is {short(raw)}; it must be a whole number of {allowed}"
        self.mistakes.add(path, message)
        return None

    def _choice(self, path: Path, raw: Any, allowed: Sequence[Made]) -> Made | None:
        if isinstance(raw, str) and raw in allowed:
            return allowed[allowed.index(raw)]
        names = [str(choice) for choice in allowed]
        hint = did_you_mean(str(raw), names)
        choices = ", ".join(names)
        self.mistakes.about(path, raw, f"is not known{hint}; choose one of {choices}")
        return None

    # What is said once for the whole study.

    def named(self, key: str) -> Iterator[tuple[str, Path, Any]]:
        """Yield the entries of `groups` or `pools`: name, path, value."""
        raw = self.entries.get(key) or {}
        if not isinstance(raw, Mapping):
            message = f"has no names; write each of the {key} under a name of its own"
            self.mistakes.about((key,), raw, message)
            return
        for name, value in raw.items():
            self._check_name((key, name), name)
            yield str(name), (key, name), value

    def _check_name(self, path: Path, name: Any) -> bool:
        """Whether something can be a name; a mistake if not."""
        fits = isinstance(name, str) and bool(name.strip()) and name.isprintable()
        if fits and len(name) <= NAME:
            return True
        self.mistakes.about(path, name, f"is no name; write one of at most {NAME} letters")
        return False

    def _read_scalars(self) -> None:
        self._read_budget()
        for name in SWITCHES:
            raw = self.entries.get(name)
            if not isinstance(raw, bool):
                self.mistakes.add((name,), f"{name} is {short(raw)}; it must be true or false")
        for name in DISK_LIMITS:
            limit: Any = self.entries.get(name)
            number = isinstance(limit, int | float) and not isinstance(limit, bool)
            if not number or not 0 <= limit < float("inf"):
                message = f"{name} is {short(limit)}; it must be a number of gigabytes, 0 or more"
                self.mistakes.add((name,), message)
        self._propagation(("propagate",), self.entries.get("propagate"))
        self._choice(("dtype",), self.entries.get("dtype"), ("auto", *DTYPES))
        device = self.entries.get("device")
        if isinstance(device, str):
            device = device.partition(":")[0]
        self._choice(("device",), device, ("auto", *device_kinds()))
        found: list[Transform] = []
        for path, raw in self._listed(("transform",), self.entries.get("transform") or ()):
            transform: Transform | None = self._spec("transform", path, raw)
            if transform is not None:
                found.append(transform)
        self._transforms = tuple(found)

    def _read_budget(self) -> None:
        for name in _USUAL_BUDGET:
            raw = self.entries.get(name)
            if raw is None and name == "tokens":
                continue
            number = self._whole_number((name,), raw, name, 1)
            if number is not None:
                self._budget[name] = number
        try:
            check_budget(**self._budget, seed=0)
        except DataError as error:
            self.mistakes.add((error.subject,), str(error))
            self._budget = dict(_USUAL_BUDGET)
        samples, tokens = self._budget["samples"], self._budget["tokens"]
        if tokens is None:
            return
        # A study that is written down says the usual number of windows too, beside tokens.
        if samples != WINDOWS:
            self.mistakes.tried(("samples",), partial(check_one_budget, samples), tokens)
        self._budget["samples"] = None

    def _read_evaluators(self) -> None:
        found = self.contents.evaluators
        for path, raw in self._listed(("evaluate",), self.entries.get("evaluate", ())):
            evaluator: Evaluator | None = self._spec("evaluate", path, raw)
            if evaluator is None:
                continue
            before = len(self.mistakes.entries)
            self.mistakes.tried(path, evaluator.check)
            if len(self.mistakes.entries) > before:
                continue
            text = str(evaluator)
            if text in found:
                self._add_twice(path, raw, text)
            found[text] = evaluator

    # How much there is.

    def _too_long(self) -> bool:
        """Whether a list has more entries than are read."""
        for key in (*LISTS, "evaluate", "exclude", "primary", "groups", "pools"):
            value = self.entries.get(key)
            sizes = [_count(value)]
            if key in ("groups", "pools"):
                for _, _, inside in self.named(key):
                    sizes.append(_count(inside))
                    if isinstance(inside, Mapping):
                        sizes += map(_count, inside.values())
            if max(sizes) > MOST_VALUES:
                message = f"more than {MOST_VALUES:,} entries; divide the study into several"
                self.mistakes.add((key,), message)
                return True
        return False

    def _too_much(self, grids: Mapping[str, Axes]) -> bool:
        """Count the runs before any is made, and what they are compared with."""
        runs = sum(grid.count() for grid in grids.values())
        if runs > MOST_RUNS:
            place = "groups" if self.entries.get("groups") else "data"
            message = f"the study has {runs:,} runs, and {MOST_RUNS:,} are the most"
            advice = "take fewer draws, sets or targets, or divide it into several"
            self.mistakes.add((place,), f"{message}; {advice}")
            return True
        for key in ("exclude", "primary"):
            several = _count(self.entries.get(key))
            if several * runs > MOST_COMPARISONS:
                message = f"{several:,} entries for {runs:,} runs are too many"
                advice = "write fewer that say more, or divide the study"
                self.mistakes.add((key,), f"{message}; {advice}")
                return True
        return False

    # The grid.

    def _grids(self) -> dict[str, Axes]:
        """The grid of each group, by its name; without groups there is one."""
        groups: dict[str, Given] = {}
        for name, path, raw in self.named("groups"):
            groups[name] = keyed(self.mistakes, path, raw, AXES, "group")
        # What every group replaces needn't be given above them. What is given is read all the same,
        # and its mistakes are told once.
        lacking: list[str] = []
        shared: dict[str, list[Any]] = {}
        for axis in LISTS:
            raw = self.entries.get(axis)
            shared[axis] = self._axis(axis, (axis,), raw)
            in_every_group = bool(groups) and all(axis in group for group in groups.values())
            if raw in NOTHING and not in_every_group:
                lacking.append(axis)
        if not groups:
            groups[""] = {}
        grids = {name: self._grid(group, shared) for name, group in groups.items()}
        # Where nothing looks at data, as where finished models are measured, none is needed.
        if "data" in lacking and not any(grid.looks for grid in grids.values()):
            lacking.remove("data")
        for axis in lacking:
            self.mistakes.add((axis,), f"a study needs at least one {axis}, and has none")
        return grids

    def _grid(self, replaced: Given, shared: Mapping[str, list[Any]]) -> Axes:
        """The grid of one group, with the axes that it replaces."""
        values = {axis: self._replaced(axis, replaced, shared) for axis in LISTS}
        above = self._propagation(("propagate",), self.entries.get("propagate"))
        propagate = above
        if "propagate" in replaced:
            propagate = self._propagation(*replaced["propagate"])
        return Axes(
            models=values["model"],
            data=values["data"],
            methods=values["method"],
            targets=values["target"],
            seeds=values["seeds"],
            allocations=values["allocation"],
            transforms=self._transforms,
            propagate=propagate,
            blind=above or USUAL,
        )

    def _cells(self, grids: Mapping[str, Axes]) -> dict[Labels, RunRequest]:
        """Every cell of every grid once, before any is left out."""
        cells: dict[Labels, RunRequest] = {}
        for name, grid in grids.items():
            requests = {request.labels: request for request in grid.requests()}
            if self.entries.get("groups"):
                self.contents.groups[name] = set(requests)
            cells |= requests
        return cells

    def _replaced(self, axis: str, replaced: Given, shared: Mapping[str, list[Any]]) -> list[Any]:
        if axis not in replaced:
            return shared[axis]
        path, raw = replaced[axis]
        if raw in NOTHING:
            message = f"the group replaces {axis} by nothing"
            self.mistakes.add(path, f"{message}; name at least one, or leave the key out")
        return self._axis(axis, path, raw)

    def _propagation(self, path: Path, raw: Any) -> Propagation | None:
        if raw is None:
            return None
        return self._choice(path, raw, PROPAGATIONS)

    def _axis(self, axis: str, path: Path, raw: Any) -> list[Any]:
        """The values of an axis without those that are mistakes."""
        values: dict[Hashable, Any] = {}
        places: dict[Hashable, Path] = {}
        read = self._readers[axis]
        key_of: Callable[[Any], Hashable] = str
        if axis == "data":
            key_of = _content_key
        for place, given in self._listed(path, raw):
            value = read(place, given)
            key = key_of(value)
            if key in values:
                first_place = where(places[key])
                self._add_twice(place, given, f"{values[key]} ({first_place})")
            elif value is not None:
                values[key] = value
                places[key] = place
        return list(values.values())

    def _listed(self, path: Path, raw: Any) -> list[tuple[Path, Any]]:
        if isinstance(raw, Mapping):
            message = "has keys of its own; write one value or a list of values"
            self.mistakes.about(path, raw, message)
            return []
        if raw is None:
            return []
        return items(path, raw)

    def _add_twice(self, path: Path, raw: Any, first: str) -> None:
        message = f"is there twice: it is the same as {first}; leave one out"
        self.mistakes.about(path, raw, message)

    def _excluded(self, path: Path, entry: Any, cells: Collection[Labels]) -> dict[str, set[Any]]:
        """An entry of `exclude` as what it matches; empty if it is a mistake."""
        keys = keyed(self.mistakes, path, entry, AXES, "thing to exclude")
        if not keys and entry in ({}, None):
            message = "an empty entry would leave out everything; say what it leaves out"
            self.mistakes.add(path, message)
        before = len(self.mistakes.entries)
        matching: dict[str, set[Any]] = {}
        for axis, (place, raw) in keys.items():
            matching[_LABELS[axis]] = self._left_out(axis, place, raw, cells)
        compressed = [labels for labels in cells if labels.method != DENSE]
        read = bool(keys) and len(self.mistakes.entries) == before
        if read and not any(labels.among(matching) for labels in compressed):
            message = f"matches none of the {len(cells)} runs; correct it or leave it out"
            self.mistakes.about(path, entry, message)
        return matching

    def _left_out(self, axis: str, path: Path, raw: Any, cells: Iterable[Labels]) -> set[Any]:
        """The labels that an entry of `exclude` names on one axis."""
        there: set[Any] = set()
        for labels in cells:
            # The dense model is never left out, and what looks at no data has no label of data.
            if labels.data or (labels.method != DENSE and axis not in _DATA_AXES):
                there.add(getattr(labels, _LABELS[axis]))
        named: set[Any] = set()
        # All are read before any is looked for: the mistakes of reading come first.
        read: list[tuple[Path, Any, Any]] = []
        for place, given in self._listed(path, raw):
            value = self.value(axis, place, given)
            read.append((place, given, value))
        for place, given, value in read:
            if value is None:
                continue
            label = value if axis == "seeds" else str(value)
            named.add(label)
            if label not in there:
                message = f"there is nothing to leave out; it has {listed(there)}"
                self.mistakes.about(place, given, f"isn't in the grid, so {message}")
        return named

    def _check_pairs(self) -> None:
        """Check that each method and the transforms accept their targets, and each method its
        propagation, in each group.
        """
        if not self.contents.groups:
            self._check_group(("target",), ("propagate",), self.contents.requests)
        for name, cells in self.contents.groups.items():
            self._check_group(("groups", name), ("groups", name), cells)

    def _check_group(self, targets: Path, propagate: Path, cells: Iterable[Labels]) -> None:
        """Add what is wrong to the path of the `targets`, or to that of `propagate`."""
        # One recipe stands for all with the same method and target, or method and propagation.
        by_target: dict[tuple[str, str], Recipe] = {}
        by_propagation: dict[tuple[str, str], Recipe] = {}
        for labels, request in self.contents.requests.items():
            if labels in cells and labels.method != DENSE:
                recipe = request.recipe
                by_target.setdefault((labels.method, labels.target), recipe)
                by_propagation.setdefault((labels.method, recipe.propagate), recipe)
        for recipe in by_target.values():
            try:
                recipe.method.check(recipe.target.weights)
                for transform in recipe.transforms:
                    transform.check(recipe.target)
            except InputError as error:
                advice = "write a group for each kind of target, or leave the pair out with exclude"
                self.mistakes.add(targets, f"{error}; {advice}")
        for recipe in by_propagation.values():
            self.mistakes.tried(propagate, check_propagation, recipe.method, recipe.propagate)


def _content_key(data: CalibrationSet | None) -> Hashable:
    """What a set reads, which two paths of one file share; None of what was a mistake."""
    return None if data is None else data.content_key


def _count(value: Any) -> int:
    """How many entries an axis, or a part of a study, has."""
    if isinstance(value, list | tuple | range | Mapping):
        return len(value)
    if value is None:
        return 0
    return 1
