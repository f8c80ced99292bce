"""The entries of a study, read and checked as a whole: all mistakes are found at once, each with its place.

Our own code and no schema library, after trying two (docs/log/2026-11-26-schema-libraries.md): msgspec ends at the first mistake; pydantic took 49
lines more for the single values alone, since each of its messages needs one of ours, and the rest (duplicates, names that stand elsewhere, what the
grid holds) needs the entries before it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from calibrant.allocations import Allocation, allocations
from calibrant.compress import PROPAGATIONS
from calibrant.data import CalibrationSet
from calibrant.data.calibration import LAST_DRAW, check_budget
from calibrant.errors import DataError, InputError, Problem
from calibrant.evaluators import Evaluator, evaluators
from calibrant.foreign import LARGEST, brief, user_text
from calibrant.methods import Method, methods
from calibrant.models.devices import DEVICES, DTYPES
from calibrant.options import DataOptions
from calibrant.registry import Registry, did_you_mean
from calibrant.study.cells import DENSE, Axes, Labels, union
from calibrant.targets import parse_target
from calibrant.transforms import transforms

T = TypeVar("T")
Path = tuple[str | int, ...]
"""Where something stands in a study: keys and numbers, outermost first."""

AXES: Final = ("model", "data", "method", "allocation", "sparsity", "seeds", "propagate")
"""What a group may replace and an entry of `exclude` may name."""
SCALARS: Final = ("samples", "tokens", "length", "propagate", "dtype", "device", "masks", "quotes", "allow_leak")
ROOM: Final = ("statistics_gb", "edits_gb")
"""Keys that say how much of something is kept on disk."""
KEYS: Final = (*AXES[:-1], "evaluate", *SCALARS, *ROOM, "transform", "baseline", "groups", "exclude", "pools", "primary")
"""Every key of a study file."""
OTHERWISE: Final = {
    "models": "model",
    "methods": "method",
    "sparsities": "sparsity",
    "target": "sparsity",
    "targets": "sparsity",
    "seed": "seeds",
    "sets": "data",
    "evaluators": "evaluate",
}
"""Keys that are understood too."""

_KIND: Final = {**{axis: axis for axis in AXES}, "sparsity": "target", "seeds": "seed"}
"""What a cell's label is called that an axis stands for."""
_SEEN: Final = ("data", "seeds", "propagate")
"""Axes that only what looks at data has."""
NAME: Final = 100
"""Letters of a name at most: it stands in tables."""
MOST_VALUES: Final = 10_000
"""Of an axis, and of any other list of a study."""
MOST_RUNS: Final = 100_000
MOST_COMPARISONS: Final = 10_000_000
"""Of a run with an entry of `exclude`, or with a contrast."""
_USUAL: Final = {
    "samples": DataOptions.samples,
    "length": DataOptions.length,
    "tokens": DataOptions.tokens,
}


@dataclass
class Mistakes:
    """Mistakes as they are entries; the same one is kept once."""

    entries: dict[tuple[Path, str], None] = field(default_factory=dict[tuple[Path, str], None])

    def add(self, path: Path, message: str) -> None:
        """Add one."""
        self.entries[path, message] = None

    def tried(self, path: Path, make: Callable[..., T], *values: Any) -> T | None:
        """Return what `make` returns of these values, or None where it complains about them, which is added."""
        try:
            return make(*values)
        except InputError as error:
            cut = any(isinstance(text, str) and text.count("(") != text.count(")") for text in values)
            self.add(path, f"{error}{'; in a list within brackets, a text with a comma needs quotes' if cut else ''}")
            return None

    def problems(self, lines: Mapping[Path, int] | None = None) -> list[Problem]:
        """Return all of them in the order of their lines; `lines` says where each key and item stands."""
        problems = [Problem(_line(path, lines or {}), where(path), message) for path, message in self.entries]
        return sorted(problems, key=lambda problem: problem.line)


def where(path: Path) -> str:
    """Return a path as messages write it: `groups.small.data[2]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def short(value: Any) -> str:
    """Return a value for a message, never long."""
    text = brief(value)
    return text if len(text) <= 60 else text[:60] + "…"


def items(path: Path, value: Any) -> list[tuple[Path, Any]]:
    """Return the values of an axis with their paths; a single value stands for a list of one."""
    return [((*path, at), item) for at, item in enumerate(value)] if isinstance(value, list | tuple | range) else [(path, value)]


def keyed(mistakes: Mistakes, path: Path, raw: Any, known: Sequence[str], what: str) -> dict[str, tuple[Path, Any]]:
    """Return the entries of a mapping by their canonical keys, each with its path; what is none, or unknown, is a mistake."""
    entries: dict[str, tuple[Path, Any]] = {}
    if not isinstance(raw, Mapping):
        mistakes.add(path, f"{short(raw)} is no {what}; write keys with values, of {', '.join(known)}")
        return entries
    for key, value in raw.items():
        name = OTHERWISE.get(str(key), str(key))
        if name not in known:
            aside = f"; {key} is the same for the whole study" if name in KEYS else did_you_mean(str(key), [*known, *OTHERWISE])
            mistakes.add((*path, key), f"a {what} has no key {key!r}{aside} (known: {', '.join(known)})")
        elif name in entries:
            mistakes.add((*path, key), f"{key} says the same as {where(entries[name][0])}; leave one out")
        else:
            entries[name] = (*path, key), value
    return entries


@dataclass
class StudyContents:
    """What a study holds: its cells, those of each group, evaluators and calibration sets by their texts, and what readers of results need."""

    labels: list[Labels] = field(default_factory=list[Labels])
    groups: dict[str, set[Labels]] = field(default_factory=dict[str, set[Labels]])
    evaluators: dict[str, Evaluator] = field(default_factory=dict[str, Evaluator])
    sets: dict[str, CalibrationSet] = field(default_factory=dict[str, CalibrationSet])
    baseline: str | None = None
    pools: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    primary: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class StudyReader:
    """Reads one study, whose `entries` are by their canonical keys, and adds what is wrong to `mistakes`."""

    def __init__(self, entries: Mapping[str, Any], mistakes: Mistakes) -> None:
        self.entries, self.mistakes, self.contents = entries, mistakes, StudyContents()
        self._budget: dict[str, Any] = dict(_USUAL)
        self._looking = False
        self.refused = False
        """Whether there is so much that none of it was read."""

    def grid(self) -> StudyContents:
        """Read the cells and the evaluators; then `contrasts.read_contrasts` reads what is compared."""
        self._scalars()
        self.refused = self._too_much()
        if self.refused:
            return self.contents
        for path, text in self._listed(("evaluate",), self.entries.get("evaluate", ())):
            evaluator = self._built(path, text, _evaluator)
            if evaluator is not None and not self._twice(path, text, str(evaluator), self.contents.evaluators):
                self.contents.evaluators[str(evaluator)] = evaluator
        grids = self._grids()
        whole = union(grids)
        exclude = [self._excluded(path, entry, whole) for path, entry in items(("exclude",), self.entries.get("exclude") or ())]
        self.contents.labels = union(grids, [entry for entry in exclude if entry])
        groups = [name for name, _, _ in self.named("groups")]
        self.contents.groups = {name: set(grid.labels()) for name, grid in zip(groups, grids, strict=False)}  # without groups there is one grid
        if whole and not self.contents.labels:
            self.mistakes.add(("exclude",), f"everything is left out: of {len(whole)} runs none remains; narrow an entry")
        self._pairs()
        return self.contents

    def _pairs(self) -> None:
        """Check that each method accepts its targets, in each group."""
        groups = {("groups", name): labels for name, labels in self.contents.groups.items()}
        for path, labels in (groups or {("sparsity",): set(self.contents.labels)}).items():
            for method, target in dict.fromkeys((of.method, of.target) for of in self.contents.labels if of.method != DENSE and of in labels):
                if refusal := _refusal(method, target):
                    advice = "write a group for each kind of target, or leave the pair out with exclude"
                    self.mistakes.add(path, f"{refusal}; {advice}")

    def value(self, axis: str, path: Path, raw: Any) -> Any:
        """Return one value of an axis: a `Method`, an `Allocation`, or a canonical text or number; None for a mistake."""
        match axis:
            case "data":
                parsed = self._built(path, raw, lambda text: CalibrationSet(text, **self._budget))
                return None if parsed is None else str(self.contents.sets.setdefault(str(parsed), parsed))
            case "method":
                return self._built(path, raw, methods.build)
            case "allocation":
                return self._built(path, raw, allocations.build)
            case "sparsity":
                plain = isinstance(raw, str | int | float) and not isinstance(raw, bool)
                parsed = self.mistakes.tried(path, parse_target, raw if plain else short(raw))
                return None if parsed is None else str(parsed)
            case "seeds":
                return self._whole(path, raw, "a draw", 0, LAST_DRAW)
            case "propagate":
                return self._one_of(path, raw, PROPAGATIONS)
            case _:
                return self._built(path, raw, user_text)

    def named(self, key: str) -> Iterator[tuple[str, Path, Any]]:
        """Yield the entries of `groups` or `pools`: name, path, value."""
        raw = self.entries.get(key) or {}
        if not isinstance(raw, Mapping):
            self.mistakes.add((key,), f"{short(raw)} has no names; write each of the {key} under a name of its own")
            return
        for name, value in raw.items():
            if not isinstance(name, str) or not name.strip() or len(name) > NAME or not name.isprintable():
                self.mistakes.add((key, name), f"{short(name)} is no name; write one of at most {NAME} letters")
            yield str(name), (key, name), value

    def _scalars(self) -> None:
        for name in _USUAL:
            value = self.entries.get(name)
            if value is not None or name != "tokens":
                number = self._whole((name,), value, name, 1)
                self._budget[name] = self._budget[name] if number is None else number
        try:
            check_budget(**self._budget, seed=0)
        except DataError as error:
            self.mistakes.add((error.subject,), str(error))
            self._budget = dict(_USUAL)
        for name in ("masks", "quotes", "allow_leak"):
            if not isinstance(self.entries.get(name), bool):
                self.mistakes.add((name,), f"{name} is {short(self.entries.get(name))}; it must be true or false")
        for name in ROOM:
            limit = self.entries.get(name)
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit < float("inf"):
                self.mistakes.add((name,), f"{name} is {short(limit)}; it must be a number of gigabytes, 0 or more")
        if self.entries.get("propagate") is not None:
            self._one_of(("propagate",), self.entries["propagate"], PROPAGATIONS)
        self._one_of(("dtype",), self.entries.get("dtype"), ("auto", *DTYPES))
        device = self.entries.get("device")
        self._one_of(("device",), device.partition(":")[0] if isinstance(device, str) else device, ("auto", *DEVICES))
        before = [self._built(path, value, transforms.build) for path, value in self._listed(("transform",), self.entries.get("transform") or ())]
        self._looking = any(part is not None and part.observes for part in before)

    def _too_much(self) -> bool:
        """Count the runs before any is read. More than can be made is a mistake, and the only one that is worth a message."""
        groups = [group for _, _, group in self.named("groups") if isinstance(group, Mapping)]
        lists = {key: self.entries.get(key) for key in (*AXES[:-1], "evaluate", "exclude", "primary", "groups", "pools")}
        pools = [several for _, _, several in self.named("pools")]
        inside = [*(("groups", value) for group in groups for value in group.values()), *(("pools", pool) for pool in pools)]
        for key, value in [*lists.items(), *inside]:
            if _count(value) > MOST_VALUES:
                self.mistakes.add((key,), f"more than {MOST_VALUES:,} entries; divide the study into several")
                return True
        runs = sum(self._runs({OTHERWISE.get(str(axis), str(axis)): value for axis, value in group.items()}) for group in groups or [{}])
        if runs > MOST_RUNS:
            message = f"the study has {runs:,} runs, and {MOST_RUNS:,} are the most; take fewer draws, sets or sparsities, or divide it into several"
            self.mistakes.add(("groups" if groups else "data",), message)
            return True
        for key in ("exclude", "primary"):
            if (several := _count(self.entries.get(key))) * runs > MOST_COMPARISONS:
                self.mistakes.add((key,), f"{several:,} entries for {runs:,} runs are too many; write fewer that say more, or divide the study")
                return True
        return False

    def _runs(self, group: Mapping[str, Any]) -> int:
        """How many runs the grid of a group has, if nothing in it is there twice."""
        models, data, pruning, shares, targets, seeds = (group.get(axis, self.entries.get(axis)) for axis in AXES[:-1])
        ways = _count(pruning) * _count(shares)
        blind = [sum(not _looks(one, by) for _, one in items((), several)) for several, by in ((pruning, methods), (shares, allocations))]
        once = 0 if self._looking else blind[0] * blind[1]
        return _count(models) * (1 + _count(targets) * ((ways - once) * _count(data) * _count(seeds) + once))

    def _grids(self) -> list[Axes]:
        """The grid of each group, or the one grid where there are none."""
        groups = [(path, keyed(self.mistakes, path, value, AXES, "group")) for _, path, value in self.named("groups")]
        own = {axis: ((axis,), self.entries.get(axis)) for axis in AXES}
        # An axis that every group replaces needn't be given above them; one that is raw is read, and its mistakes are told once.
        lacking = [axis for axis in AXES[:-1] if self.entries.get(axis) in (None, (), []) and not (groups and all(axis in g for _, g in groups))]
        for axis in lacking:
            if axis != "data" or self._looks_at_data([{a: raw for a, (_, raw) in group.items()} for _, group in groups]):
                self.mistakes.add((axis,), f"a study needs at least one {axis}, and has none")
        read = {axis: self._axis(axis, path, raw) for axis, (path, raw) in own.items() if axis not in lacking}
        every = groups or [((), dict[str, tuple[Path, Any]]())]
        axes = [([self._of(axis, group, read) for axis in AXES[:-1]], self._propagation(group)) for _, group in every]
        return [
            Axes(models, data, pruning, targets, seeds, propagate, self._looking, shares)
            for (models, data, pruning, shares, targets, seeds), propagate in axes
        ]

    def _looks_at_data(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether anything in the study looks at data: without, as where finished models are only measured, it needs none."""
        kinds = (("method", methods), ("allocation", allocations))
        named = [(one, by) for axis, by in kinds for of in (self.entries, *groups) for _, one in items((), of.get(axis))]
        return self._looking or any(_looks(one, by) for one, by in named)

    def _of(self, axis: str, group: Mapping[str, tuple[Path, Any]], read: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
        if axis not in group:
            return read.get(axis, ())
        path, raw = group[axis]
        if raw in (None, (), []):
            self.mistakes.add(path, f"the group replaces {axis} by nothing; name at least one, or leave the key out")
        return self._axis(axis, path, raw)

    def _propagation(self, group: Mapping[str, tuple[Path, Any]]) -> str | None:
        path, raw = group.get("propagate", (("propagate",), self.entries.get("propagate")))
        return None if raw is None else self._one_of(path, raw, PROPAGATIONS)

    def _axis(self, axis: str, path: Path, raw: Any) -> list[Any]:
        """The values of an axis without those that are mistakes."""
        values: dict[str, Any] = {}
        places: dict[str, Path] = {}
        for at, value in self._listed(path, raw) if axis != "propagate" else []:
            parsed = self.value(axis, at, value)
            if parsed is not None and not self._twice(at, value, str(parsed), places):
                values[str(parsed)], places[str(parsed)] = parsed, at
        return list(values.values())

    def _listed(self, path: Path, raw: Any) -> list[tuple[Path, Any]]:
        if isinstance(raw, Mapping):
            self.mistakes.add(path, f"{short(raw)} has keys of its own; write one value or a list of values")
            return []
        return [] if raw is None else items(path, raw)

    def _twice(self, path: Path, raw: Any, text: str, before: Mapping[str, Any]) -> bool:
        if text in before:
            first = f" ({where(before[text])})" if isinstance(before[text], tuple) else ""
            self.mistakes.add(path, f"{short(raw)} is there twice: it is the same as {text}{first}; leave one out")
        return text in before

    def _excluded(self, path: Path, entry: Any, whole: Sequence[Labels]) -> dict[str, set[Any]]:
        """An entry of `exclude` as what it matches; empty if it is a mistake."""
        keys, matching = keyed(self.mistakes, path, entry, AXES, "thing to exclude"), dict[str, set[Any]]()
        if not keys:
            if entry in ({}, None):
                self.mistakes.add(path, "an empty entry would leave out everything; say what it leaves out")
            return {}
        before = len(self.mistakes.entries)
        for axis, (at, raw) in keys.items():
            read = [(place, value, self.value(axis, place, value)) for place, value in self._listed(at, raw)]
            there = {getattr(labels, _KIND[axis]) for labels in whole if labels.data or (labels.method != DENSE and axis not in _SEEN)}
            for place, value, parsed in read:
                if parsed is not None and self._text(parsed) not in there:
                    self.mistakes.add(place, f"{short(value)} isn't in the grid, so there is nothing to leave out; it has {listed(there)}")
            matching[_KIND[axis]] = {self._text(parsed) for _, _, parsed in read if parsed is not None}
        if len(self.mistakes.entries) == before and not any(labels.method != DENSE and labels.among(matching) for labels in whole):
            self.mistakes.add(path, f"{short(entry)} matches none of the {len(whole)} runs; correct it or leave it out")
        return matching

    def _text(self, parsed: Any) -> Any:
        return str(parsed) if isinstance(parsed, Method | Allocation) else parsed

    def _built(self, path: Path, raw: Any, make: Callable[[Any], T]) -> T | None:
        if isinstance(raw, str) and raw.strip():
            return self.mistakes.tried(path, make, raw)
        self.mistakes.add(path, f"{short(raw)} is no text; write a name, such as wanda, or quote what holds a comma")
        return None

    def _whole(self, path: Path, raw: Any, what: str, least: int, most: int = LARGEST) -> int | None:
        if type(raw) is int and least <= raw <= most:
            return raw
        allowed = f"at most {most:,}" if type(raw) is int and raw > most else f"at least {least}"
        self.mistakes.add(path, f"{what} is {short(raw)}; it must be a whole number of {allowed}")
        return None

    def _one_of(self, path: Path, raw: Any, allowed: Sequence[str]) -> str | None:
        if isinstance(raw, str) and raw in allowed:
            return raw
        hint = did_you_mean(raw, allowed) if isinstance(raw, str) else ""
        self.mistakes.add(path, f"{short(raw)} is not known{hint}; choose one of {', '.join(allowed)}")
        return None


def listed(names: Any, most: int = 12) -> str:
    """Return some names in words, so many at most."""
    texts = sorted(map(str, names))
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "") if texts else "none"


def _count(value: Any) -> int:
    """How many entries an axis, or a part of a study, has."""
    return 0 if value is None else len(value) if isinstance(value, list | tuple | range | Mapping) else 1


def _looks(thing: Any, registry: Registry) -> bool:
    """Whether a method or allocation looks at data, so that there is a run for each set and draw; what is neither is a mistake, found later."""
    try:
        built = registry.build(thing) if isinstance(thing, str | Method | Allocation) else None
    except InputError:
        return False
    return built.looks if isinstance(built, Method) else isinstance(built, Allocation) and bool(built.observes)


def _evaluator(text: str | Evaluator) -> Evaluator:
    evaluator = evaluators.build(text)
    evaluator.check()
    return evaluator


def _refusal(method: str, target: str) -> str:
    """Why a method can't work with a target; nothing if it can."""
    try:
        methods.build(method).check(parse_target(target))
    except InputError as error:
        return str(error)
    return ""


def _line(path: Path, lines: Mapping[Path, int]) -> int:
    """The line of a path, or of the nearest thing around it that has one."""
    return next((lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines), 0)
