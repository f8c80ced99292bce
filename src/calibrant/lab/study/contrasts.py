"""How the results of a study will be compared, said before it runs.

That is the baseline, pools of sets, and the contrasts that are tested.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from calibrant.data import CalibrationSet, Source
from calibrant.errors import InputError
from calibrant.evaluators import Evaluator
from calibrant.lab.study.checking import (
    NAME,
    NOTHING,
    Given,
    Path,
    StudyContents,
    StudyReader,
    items,
    keyed,
    listed,
    short,
    where,
)
from calibrant.lab.study.request import Labels
from calibrant.spec import Call, parse
from calibrant.spec.foreign import did_you_mean

SIDES: Final = ("compare", "with")
NARROWED: Final = {
    "model": "model",
    "method": "way",
    "target": "target",
    "propagate": "propagate",
}
"""Keys of a contrast that restrict it, and the label of a cell that each is about."""
KEYS: Final = ("name", *SIDES, "on", *NARROWED)


def read_contrasts(reader: StudyReader) -> StudyContents:
    """Add to what was read of the grid what is compared in it."""
    comparing = _Comparing(reader)
    comparing.read_baseline()
    comparing.read_pools()
    comparing.read_contrasts()
    return reader.contents


class _Comparing:
    """Reads what is compared. Its baseline comes first, and pools before what may name them."""

    def __init__(self, reader: StudyReader) -> None:
        self._reader = reader
        self._mistakes = reader.mistakes
        self._contents = reader.contents
        self._cells = [labels for labels in self._contents.requests if labels.data]
        """The labels of the cells that look at data: only sets are compared."""
        self._sets = dict.fromkeys(labels.data for labels in self._cells)
        self._grid_labels: dict[str, set[str]] = {}
        """The labels of the grid, by the key of a contrast that narrows to some of them."""
        for key, label in NARROWED.items():
            self._grid_labels[key] = {getattr(labels, label) for labels in self._cells}
        self._tested: dict[str, Path] = {}
        """Where each contrast stands, by what it compares."""
        self._named: dict[str, Path] = {}
        """Where each contrast stands, by the name that it was given."""

    def read_baseline(self) -> None:
        raw = self._reader.entries.get("baseline")
        if raw is not None:
            self._contents.baseline = self._set(("baseline",), raw)

    def read_pools(self) -> None:
        for name, path, raw in self._reader.named("pools"):
            sets: list[str] = []
            for place, given in items(path, raw):
                text = self._set(place, given)
                if text in sets:
                    message = f"the pool {name!r} holds {text} twice; leave one out"
                    self._mistakes.add(path, message)
                if text is not None:
                    sets.append(text)
            if raw in NOTHING:
                message = f"the pool {name!r} is empty; name the sets that it takes together"
                self._mistakes.add(path, message)
            if self._canonical(name) in self._sets:
                message = f"the pool {name!r} is called like a set of the grid"
                self._mistakes.add(path, f"{message}; give it another name")
            self._contents.pools[name] = sets

    def read_contrasts(self) -> None:
        for path, raw in items(("primary",), self._reader.entries.get("primary") or ()):
            keys = keyed(self._mistakes, path, raw, KEYS, "contrast")
            # A contrast with a mistake in it is told that, and nothing that follows from it.
            before = len(self._mistakes.entries)
            contrast = self._contrast(path, keys)
            read = bool(keys) and len(self._mistakes.entries) == before
            if read and self._possible(path, contrast):
                self._contents.primary.append(contrast)

    def _contrast(self, path: Path, keys: Given) -> dict[str, Any]:
        read: dict[str, Any] = {side: self._side(path, side, keys) for side in SIDES}
        if "on" in keys:
            read["on"] = self._on(*keys["on"])
        for key in NARROWED:
            if key in keys:
                read[key] = self._narrowed(key, *keys[key])
        name = f"{read['compare']} against {read['with']}"
        if "name" in keys:
            name = self._name(*keys["name"]) or name
        return {"name": name, **read}

    def _name(self, path: Path, raw: Any) -> str | None:
        if raw is None:
            return None
        most = 2 * NAME
        fits = isinstance(raw, str) and bool(raw.strip()) and raw.isprintable()
        if not fits or len(raw) > most:
            advice = f"write a few words of at most {most} letters, or leave the name out"
            self._mistakes.about(path, raw, f"is no name; {advice}")
        elif raw in self._named:
            first = where(self._named[raw])
            self._mistakes.about(path, raw, f"is also what {first} is called; call it otherwise")
        else:
            self._named[raw] = path[:-1]
        return str(raw)

    def _side(self, path: Path, side: str, keys: Given) -> str | None:
        """The pool's name, or the set's canonical text."""
        if side in keys:
            place, raw = keys[side]
            pools = self._contents.pools
            if isinstance(raw, str) and raw in pools:
                return raw
            return self._set(place, raw, pools)
        if keys:
            message = f"the contrast has no {side!r}; it compares a set or pool with another"
            self._mistakes.add(path, message)
        return None

    def _on(self, path: Path, raw: Any) -> list[str]:
        """The evaluators' canonical texts."""
        texts: list[str] = []
        for place, given in items(path, raw):
            text = self._evaluator(place, given)
            if text is not None:
                texts.append(text)
        if raw in NOTHING:
            message = "a contrast on nothing; name evaluators of the study, or leave 'on' out"
            self._mistakes.add(path, message)
        if len(set(texts)) < len(texts):
            self._mistakes.about(path, raw, "names an evaluator twice; leave one out")
        return texts

    def _evaluator(self, path: Path, raw: Any) -> str | None:
        """An evaluator's text. Some of its parameters are enough if no other has them."""
        known = self._contents.evaluators
        text = str(raw).strip()
        if text in known:
            return text
        fitting: list[str] = []
        if isinstance(raw, str):
            call = self._mistakes.tried(path, parse, raw)
            if call is None:
                return None
            fitting = [name for name, evaluator in known.items() if _fits(evaluator, call)]
        if not fitting:
            hint = did_you_mean(str(raw), known)
            message = f"is nothing that this study measures{hint}; it measures {listed(known)}"
            self._mistakes.about(path, raw, message)
            return None
        if len(fitting) > 1:
            message = f"is any of {', '.join(fitting)}; write one as it stands under evaluate"
            self._mistakes.about(path, raw, message)
        return fitting[0]

    def _narrowed(self, key: str, path: Path, raw: Any) -> list[str]:
        values: list[str] = []
        for place, given in items(path, raw):
            values += self._meant(key, place, given)
        if raw in NOTHING:
            message = f"a contrast within no {key}; name one of {listed(self._grid_labels[key])}"
            self._mistakes.add(path, f"{message}, or leave the key out")
        return values

    def _meant(self, key: str, path: Path, raw: Any) -> list[str]:
        """The labels that a contrast is narrowed to by one value.

        `wanda + owl` is what tables call a method with an allocation. A method that has several,
        and none of them alone, stands for all.
        """
        known = self._grid_labels[key]
        # What is written as its label is it, and isn't read again.
        if isinstance(raw, str) and raw in known:
            return [raw]
        value = self._reader.value(key, path, raw)
        if value is None:
            return []
        text = str(value)
        if text in known:
            return [text]
        meant: list[str] = []
        if key == "method":
            meant = sorted(way for way in known if way.startswith(f"{text} + "))
        if not meant:
            message = f"isn't in the grid; its {key} is one of {listed(known)}"
            self._mistakes.about(path, raw, message)
        return meant

    def _possible(self, path: Path, contrast: Mapping[str, Any]) -> bool:
        """Whether it compares two things, isn't there already, and the grid has both its sides."""
        pools = self._contents.pools
        name = contrast["compare"]
        other = contrast["with"]
        compare = set(pools.get(name, [name]))
        against = set(pools.get(other, [other]))
        if compare == against:
            message = f"{name} is compared with itself; compare it with another set or pool"
            self._mistakes.add(path, message)
            return False
        # A key that it leaves out stands for all that there is.
        whole: dict[str, Any] = {"on": self._contents.evaluators, **self._grid_labels, **contrast}
        narrowing = [sorted(set(whole[key])) for key in ("on", *NARROWED)]
        # Sorted, since a against b is the same test as b against a.
        sides = sorted([sorted(compare), sorted(against)])
        content = repr([sides, narrowing])
        if content in self._tested:
            first = where(self._tested[content])
            message = f"is the same contrast as {first}; leave one out"
            self._mistakes.about(path, contrast["name"], message)
            return False
        self._tested[content] = path
        if self._stand_together(compare | against, contrast):
            return True
        limits: list[str] = []
        for key in NARROWED:
            if key in contrast:
                limits.append(f"{key} {listed(contrast[key])}")
        subject = "no model, method and target"
        if limits:
            subject += f" ({'; '.join(limits)})"
        message = f"{subject} has both {name} and {other}"
        self._mistakes.add(path, f"{message}; widen the grid, or take other sets")
        return False

    def _stand_together(self, sets: set[str], contrast: Mapping[str, Any]) -> bool:
        """Whether the grid has all these sets with one way that the contrast is about."""
        narrowed: dict[str, Any] = {}
        for key, label in NARROWED.items():
            if key in contrast:
                narrowed[label] = contrast[key]
        sets_by_rest: dict[Labels, set[str]] = {}
        for labels in self._cells:
            if labels.data in sets and labels.among(narrowed):
                # Draws aside: two sets are compared over all draws that they have.
                rest = labels._replace(data="…", seed=0)
                sets_by_rest.setdefault(rest, set()).add(labels.data)
        return sets in sets_by_rest.values()

    def _set(self, path: Path, raw: Any, pools: Collection[str] = ()) -> str | None:
        """The canonical text of a set of the grid."""
        noun = "set or pool" if pools else "set"
        if isinstance(raw, CalibrationSet | Source):
            given = self._reader.value("data", path, raw)
            if given is None:
                return None
            raw = str(given)
        if not isinstance(raw, str):
            self._mistakes.about(path, raw, f"is no {noun}; write it as it stands under data")
            return None
        text = self._canonical(raw)
        if text in self._sets:
            return text
        names: Sequence[str] = [*pools, *self._sets]
        near = did_you_mean(raw, names)
        grid = f"the grid has {listed(names)}"
        if text is not None:
            self._mistakes.about(path, raw, f"is no {noun} of the grid; {grid}")
        elif near:
            self._mistakes.add(path, f"there is no {noun} called {short(raw)}{near}; {grid}")
        else:
            # Read again, for the mistake that it has as a set.
            self._reader.value("data", path, raw)
        return None

    def _canonical(self, text: str) -> str | None:
        """A set's canonical text, without a complaint if it is none."""
        if text in self._sets:
            return text
        if not text.strip():
            return None
        try:
            return str(self._reader.set_of(text))
        except InputError:
            return None


def _fits(evaluator: Evaluator, call: Any) -> bool:
    """Whether an evaluator has every parameter that a call names."""
    if not isinstance(call, Call) or call.name != evaluator.spec_name():
        return False
    for name, value in call.arguments.items():
        # A bare name stands for a text.
        bare = isinstance(value, Call) and not value.arguments
        plain = value.name if bare else value
        if not hasattr(evaluator, name) or getattr(evaluator, name) != plain:
            return False
    return True
