"""What a study asks, read and checked as a whole: every mistake is found at once, each with its place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from calibrant.allocations import allocations
from calibrant.compress import PROPAGATIONS
from calibrant.data import CalibrationSet
from calibrant.data.calibration import LAST_DRAW, check_budget
from calibrant.errors import DataError, InputError, Problem
from calibrant.evaluators import Evaluator, evaluators
from calibrant.foreign import LARGEST, brief, user_text
from calibrant.methods import Method, methods
from calibrant.models.devices import DEVICES, DTYPES
from calibrant.registry import did_you_mean
from calibrant.study.cells import DENSE, Axes, Labels, union
from calibrant.targets import parse_target
from calibrant.transforms import transforms

T = TypeVar("T")
Path = tuple[str | int, ...]
"""Where something stands in a study: keys and numbers, outermost first."""

AXES: Final = ("model", "data", "method", "sparsity", "seeds", "propagate")
"""What a group may replace and an entry of `exclude` may name."""
SCALARS: Final = ("samples", "tokens", "length", "propagate", "allocation", "dtype", "device", "masks", "quotes", "allow_leak")
ROOM: Final = ("statistics_gb", "edits_gb")
"""Keys that say how much of something is kept on disk."""
KEYS: Final = (
    "model",
    "data",
    "method",
    "sparsity",
    "seeds",
    "evaluate",
    *SCALARS,
    *ROOM,
    "transform",
    "baseline",
    "groups",
    "exclude",
    "pools",
    "primary",
)
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

_KIND: Final = {"model": "model", "data": "data", "method": "method", "sparsity": "target", "seeds": "seed", "propagate": "propagate"}
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
_USUAL: Final = {"samples": 128, "length": 2048, "tokens": None}


@dataclass
class Mistakes:
    """Mistakes as they are found; the same one is kept once."""

    found: dict[tuple[Path, str], None] = field(default_factory=dict[tuple[Path, str], None])

    def add(self, path: Path, message: str) -> None:
        """Keep one."""
        self.found[path, message] = None

    def tried(self, path: Path, make: Callable[..., T], *given: Any) -> T | None:
        """What `make` gives, or None and its complaint about what it was given."""
        try:
            return make(*given)
        except InputError as error:
            cut = any(isinstance(text, str) and text.count("(") != text.count(")") for text in given)
            self.add(path, f"{error}{'; in a list within brackets, a text with a comma needs quotes' if cut else ''}")
            return None

    def problems(self, lines: Mapping[Path, int] | None = None) -> list[Problem]:
        """All of them in the order of their lines; `lines` says where each key and item stands."""
        told = [Problem(_line(path, lines or {}), where(path), message) for path, message in self.found]
        return sorted(told, key=lambda problem: problem.line)


def where(path: Path) -> str:
    """A path as it is told: `groups.small.data[2]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def short(value: Any) -> str:
    """A value for a message, never long."""
    told = brief(value)
    return told if len(told) <= 60 else told[:60] + "…"


def items(path: Path, value: Any) -> list[tuple[Path, Any]]:
    """The values of an axis with their paths; a single value stands for a list of one."""
    return [((*path, at), item) for at, item in enumerate(value)] if isinstance(value, list | tuple | range) else [(path, value)]


def keyed(mistakes: Mistakes, path: Path, given: Any, known: Sequence[str], what: str) -> dict[str, tuple[Path, Any]]:
    """The entries of a mapping by their canonical keys, each with its path; what is none, or unknown, is a mistake."""
    found: dict[str, tuple[Path, Any]] = {}
    if not isinstance(given, Mapping):
        mistakes.add(path, f"{short(given)} is no {what}; write keys with values, of {', '.join(known)}")
        return found
    for key, value in given.items():
        name = OTHERWISE.get(str(key), str(key))
        if name not in known:
            aside = f"; {key} is the same for the whole study" if name in KEYS else did_you_mean(str(key), [*known, *OTHERWISE])
            mistakes.add((*path, key), f"a {what} has no key {key!r}{aside} (known: {', '.join(known)})")
        elif name in found:
            mistakes.add((*path, key), f"{key} says the same as {where(found[name][0])}; leave one out")
        else:
            found[name] = (*path, key), value
    return found


@dataclass
class Read:
    """What was read of a study: its cells, those of each group, evaluators and calibration sets by their texts, and what readers of results need."""

    labels: list[Labels] = field(default_factory=list[Labels])
    groups: dict[str, set[Labels]] = field(default_factory=dict[str, set[Labels]])
    evaluators: dict[str, Evaluator] = field(default_factory=dict[str, Evaluator])
    sets: dict[str, CalibrationSet] = field(default_factory=dict[str, CalibrationSet])
    baseline: str | None = None
    pools: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    primary: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])


class Reading:
    """Reads one study, `asked` by its canonical keys, and keeps what is wrong in `mistakes`."""

    def __init__(self, asked: Mapping[str, Any], mistakes: Mistakes) -> None:
        self.asked, self.mistakes, self.read = asked, mistakes, Read()
        self._budget: dict[str, Any] = dict(_USUAL)
        self._looking = False
        self.refused = False
        """Whether there is so much that none of it was read."""

    def grid(self) -> Read:
        """The cells and the evaluators; then `contrasts.read_contrasts` reads what is compared."""
        self._scalars()
        self.refused = self._too_much()
        if self.refused:
            return self.read
        for path, text in self._listed(("evaluate",), self.asked.get("evaluate", ())):
            found = self._built(path, text, _evaluator)
            if found is not None and not self._twice(path, text, str(found), self.read.evaluators):
                self.read.evaluators[str(found)] = found
        grids = self._grids()
        whole = union(grids)
        exclude = [self._excluded(path, entry, whole) for path, entry in items(("exclude",), self.asked.get("exclude") or ())]
        self.read.labels = union(grids, [entry for entry in exclude if entry])
        groups = [name for name, _, _ in self.named("groups")]
        self.read.groups = {name: set(grid.labels()) for name, grid in zip(groups, grids, strict=False)}  # without groups there is one grid
        if whole and not self.read.labels:
            self.mistakes.add(("exclude",), f"everything is left out: of {len(whole)} runs none remains; narrow an entry")
        self._pairs()
        return self.read

    def _pairs(self) -> None:
        """Whether each method accepts what it is asked for, in each group."""
        groups = {("groups", name): labels for name, labels in self.read.groups.items()}
        for path, labels in (groups or {("sparsity",): set(self.read.labels)}).items():
            for method, target in dict.fromkeys((of.method, of.target) for of in self.read.labels if of.method != DENSE and of in labels):
                if refusal := _refusal(method, target):
                    apart = "write a group for each kind of target, or leave the pair out with exclude"
                    self.mistakes.add(path, f"{refusal}; {apart}")

    def value(self, axis: str, path: Path, given: Any) -> Any:
        """One value of an axis: a `Method`, or a canonical text or number; None for a mistake."""
        match axis:
            case "data":
                found = self._built(path, given, lambda text: CalibrationSet(text, **self._budget))
                return None if found is None else str(self.read.sets.setdefault(str(found), found))
            case "method":
                return self._built(path, given, methods.build)
            case "sparsity":
                plain = isinstance(given, str | int | float) and not isinstance(given, bool)
                found = self.mistakes.tried(path, parse_target, given if plain else short(given))
                return None if found is None else str(found)
            case "seeds":
                return self._whole(path, given, "a draw", 0, LAST_DRAW)
            case "propagate":
                return self._one_of(path, given, PROPAGATIONS)
            case _:
                return self._built(path, given, user_text)

    def named(self, key: str) -> Iterator[tuple[str, Path, Any]]:
        """The entries of `groups` or `pools`: name, path, value."""
        given = self.asked.get(key) or {}
        if not isinstance(given, Mapping):
            self.mistakes.add((key,), f"{short(given)} gives no names; write each of the {key} under a name of its own")
            return
        for name, value in given.items():
            if not isinstance(name, str) or not name.strip() or len(name) > NAME or not name.isprintable():
                self.mistakes.add((key, name), f"{short(name)} is no name; write one of at most {NAME} letters")
            yield str(name), (key, name), value

    def _scalars(self) -> None:
        for name in _USUAL:
            value = self.asked.get(name)
            if value is not None or name != "tokens":
                found = self._whole((name,), value, name, 1)
                self._budget[name] = self._budget[name] if found is None else found
        try:
            check_budget(**self._budget, seed=0)
        except DataError as error:
            self.mistakes.add((error.subject,), str(error))
            self._budget = dict(_USUAL)
        for name in ("masks", "quotes", "allow_leak"):
            if not isinstance(self.asked.get(name), bool):
                self.mistakes.add((name,), f"{name} is {short(self.asked.get(name))}; it must be true or false")
        for name in ROOM:
            limit = self.asked.get(name)
            if isinstance(limit, bool) or not isinstance(limit, int | float) or not 0 <= limit < float("inf"):
                self.mistakes.add((name,), f"{name} is {short(limit)}; it must be a number of gigabytes, 0 or more")
        if self.asked.get("propagate") is not None:
            self._one_of(("propagate",), self.asked["propagate"], PROPAGATIONS)
        self._one_of(("dtype",), self.asked.get("dtype"), ("auto", *DTYPES))
        device = self.asked.get("device")
        self._one_of(("device",), device.partition(":")[0] if isinstance(device, str) else device, ("auto", *DEVICES))
        before = [self._built(path, value, transforms.build) for path, value in self._listed(("transform",), self.asked.get("transform") or ())]
        shares = self._built(("allocation",), self.asked.get("allocation"), allocations.build)
        self._looking = any(part is not None and part.observes for part in (shares, *before))

    def _too_much(self) -> bool:
        """Count what is asked for, before any of it is read; more than can be done is a mistake, and the only one that is worth telling."""
        groups = [group for _, _, group in self.named("groups") if isinstance(group, Mapping)]
        lists = {key: self.asked.get(key) for key in (*AXES[:-1], "evaluate", "exclude", "primary", "groups", "pools")}
        pools = [several for _, _, several in self.named("pools")]
        inside = [*(("groups", value) for group in groups for value in group.values()), *(("pools", pool) for pool in pools)]
        for key, value in [*lists.items(), *inside]:
            if _count(value) > MOST_VALUES:
                self.mistakes.add((key,), f"more than {MOST_VALUES:,} entries; divide the study into several")
                return True
        runs = sum(self._runs({OTHERWISE.get(str(axis), str(axis)): value for axis, value in group.items()}) for group in groups or [{}])
        if runs > MOST_RUNS:
            told = (
                f"the study asks for {runs:,} runs, and {MOST_RUNS:,} are the most; take fewer draws, sets or sparsities, or divide it into several"
            )
            self.mistakes.add(("groups" if groups else "data",), told)
            return True
        for key in ("exclude", "primary"):
            if (several := _count(self.asked.get(key))) * runs > MOST_COMPARISONS:
                self.mistakes.add((key,), f"{several:,} entries for {runs:,} runs are too many; write fewer that say more, or divide the study")
                return True
        return False

    def _runs(self, group: Mapping[str, Any]) -> int:
        """How many runs the grid of a group has, if nothing in it is there twice."""
        models, data, methods, targets, seeds = (group.get(axis, self.asked.get(axis)) for axis in AXES[:-1])
        looks = [self._looking or _looks(method) for _, method in items((), methods)]
        return _count(models) * (1 + _count(targets) * (sum(looks) * _count(data) * _count(seeds) + len(looks) - sum(looks)))

    def _grids(self) -> list[Axes]:
        """The grid of each group, or the one grid where there are none."""
        groups = [(path, keyed(self.mistakes, path, value, AXES, "group")) for _, path, value in self.named("groups")]
        own = {axis: ((axis,), self.asked.get(axis)) for axis in AXES}
        # An axis that every group replaces needn't be given above them; one that is given is read, and its mistakes are told once.
        lacking = [axis for axis in AXES[:-1] if self.asked.get(axis) in (None, (), []) and not (groups and all(axis in g for _, g in groups))]
        for axis in lacking:
            self.mistakes.add((axis,), f"a study needs at least one {axis}, and none is given")
        read = {axis: self._axis(axis, path, given) for axis, (path, given) in own.items() if axis not in lacking}
        every = groups or [((), dict[str, tuple[Path, Any]]())]
        axes = [([self._of(axis, group, read) for axis in AXES[:-1]], self._propagation(group)) for _, group in every]
        return [Axes(models, data, pruning, targets, seeds, propagate, self._looking) for (models, data, pruning, targets, seeds), propagate in axes]

    def _of(self, axis: str, group: Mapping[str, tuple[Path, Any]], read: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
        if axis not in group:
            return read.get(axis, ())
        path, given = group[axis]
        if given in (None, (), []):
            self.mistakes.add(path, f"the group replaces {axis} by nothing; name at least one, or leave the key out")
        return self._axis(axis, path, given)

    def _propagation(self, group: Mapping[str, tuple[Path, Any]]) -> str | None:
        path, given = group.get("propagate", (("propagate",), self.asked.get("propagate")))
        return None if given is None else self._one_of(path, given, PROPAGATIONS)

    def _axis(self, axis: str, path: Path, given: Any) -> list[Any]:
        """The values of an axis without those that are mistakes."""
        found: dict[str, Any] = {}
        places: dict[str, Path] = {}
        for at, value in self._listed(path, given) if axis != "propagate" else []:
            read = self.value(axis, at, value)
            if read is not None and not self._twice(at, value, str(read), places):
                found[str(read)], places[str(read)] = read, at
        return list(found.values())

    def _listed(self, path: Path, given: Any) -> list[tuple[Path, Any]]:
        if isinstance(given, Mapping):
            self.mistakes.add(path, f"{short(given)} has keys of its own; write one value or a list of values")
            return []
        return [] if given is None else items(path, given)

    def _twice(self, path: Path, given: Any, text: str, before: Mapping[str, Any]) -> bool:
        if text in before:
            first = f" ({where(before[text])})" if isinstance(before[text], tuple) else ""
            self.mistakes.add(path, f"{short(given)} is there twice: it is the same as {text}{first}; leave one out")
        return text in before

    def _excluded(self, path: Path, entry: Any, whole: Sequence[Labels]) -> dict[str, set[Any]]:
        """An entry of `exclude` as what it matches; empty if it is a mistake."""
        keys, wanted = keyed(self.mistakes, path, entry, AXES, "thing to exclude"), dict[str, set[Any]]()
        if not keys:
            if entry in ({}, None):
                self.mistakes.add(path, "an empty entry would leave out everything; say what it leaves out")
            return {}
        before = len(self.mistakes.found)
        for axis, (at, given) in keys.items():
            read = [(place, value, self.value(axis, place, value)) for place, value in self._listed(at, given)]
            there = {getattr(labels, _KIND[axis]) for labels in whole if labels.data or (labels.method != DENSE and axis not in _SEEN)}
            for place, value, found in read:
                if found is not None and self._text(found) not in there:
                    self.mistakes.add(place, f"{short(value)} isn't in the grid, so there is nothing to leave out; it has {listed(there)}")
            wanted[_KIND[axis]] = {self._text(found) for _, _, found in read if found is not None}
        if len(self.mistakes.found) == before and not any(labels.method != DENSE and labels.among(wanted) for labels in whole):
            self.mistakes.add(path, f"{short(entry)} matches none of the {len(whole)} runs; correct it or leave it out")
        return wanted

    def _text(self, found: Any) -> Any:
        return str(found) if isinstance(found, Method) else found

    def _built(self, path: Path, given: Any, make: Callable[[Any], T]) -> T | None:
        if isinstance(given, str) and given.strip():
            return self.mistakes.tried(path, make, given)
        self.mistakes.add(path, f"{short(given)} is no text; write a name, such as wanda, or quote what holds a comma")
        return None

    def _whole(self, path: Path, given: Any, what: str, least: int, most: int = LARGEST) -> int | None:
        if type(given) is int and least <= given <= most:
            return given
        allowed = f"at most {most:,}" if type(given) is int and given > most else f"at least {least}"
        self.mistakes.add(path, f"{what} is {short(given)}; it must be a whole number of {allowed}")
        return None

    def _one_of(self, path: Path, given: Any, allowed: Sequence[str]) -> str | None:
        if isinstance(given, str) and given in allowed:
            return given
        hint = did_you_mean(given, allowed) if isinstance(given, str) else ""
        self.mistakes.add(path, f"{short(given)} is not known{hint}; choose one of {', '.join(allowed)}")
        return None


def listed(names: Any, most: int = 12) -> str:
    """Some names in words, so many at most."""
    told = sorted(map(str, names))
    return ", ".join(told[:most]) + (f" and {len(told) - most} more" if len(told) > most else "") if told else "none"


def _count(value: Any) -> int:
    """How many entries an axis, or a part of a study, has."""
    return 0 if value is None else len(value) if isinstance(value, list | tuple | range | Mapping) else 1


def _looks(method: Any) -> bool:
    """Whether a method looks at data, so that there is a run for each set and draw; what is no method is told of later."""
    try:
        return isinstance(method, str | Method) and methods.build(method).looks
    except InputError:
        return False


def _evaluator(text: str | Evaluator) -> Evaluator:
    found = evaluators.build(text)
    found.check()
    return found


def _refusal(method: str, target: str) -> str:
    """Why a target can't be asked of a method; nothing if it can."""
    try:
        methods.build(method).check(parse_target(target))
    except InputError as error:
        return str(error)
    return ""


def _line(path: Path, lines: Mapping[Path, int]) -> int:
    """The line of a path, or of the nearest thing around it that has one."""
    return next((lines[path[:end]] for end in range(len(path), -1, -1) if path[:end] in lines), 0)
