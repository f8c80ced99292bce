"""What a study says before it runs about how its results will be compared: the baseline, pools of sets, and the contrasts that are tested."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from calibrant.evaluators import Evaluator
from calibrant.registry import did_you_mean
from calibrant.spec import Call, parse
from calibrant.study.cells import Labels
from calibrant.study.checking import NAME, Mistakes, Path, Read, Reading, items, keyed, listed, short, where

SIDES: Final = ("compare", "with")
NARROWED: Final = {"model": "model", "method": "method", "sparsity": "target", "propagate": "propagate"}
"""Keys of a contrast that restrict it, and the label of a cell that each is about."""
KEYS: Final = ("name", *SIDES, "on", *NARROWED)


def read_contrasts(reading: Reading) -> Read:
    """Add to what was read of the grid what is compared in it."""
    comparing = _Comparing(reading)
    comparing.baseline()
    comparing.pools()
    comparing.primary()
    return reading.read


class _Comparing:
    def __init__(self, reading: Reading) -> None:
        self._reading, self._mistakes, self._asked, self._read = reading, reading.mistakes, reading.asked, reading.read
        self._sets = dict.fromkeys(labels.data for labels in self._read.labels if labels.data)
        self._tested: dict[str, Path] = {}
        self._named: dict[str, Path] = {}
        looking = [labels for labels in self._read.labels if labels.data]
        self._there = {key: {getattr(labels, label) for labels in looking} for key, label in NARROWED.items()}
        self._alike: dict[Labels, set[str]] = {}
        """The sets of the grid, by the rest of a cell's labels but its draw."""
        for labels in looking:
            self._alike.setdefault(labels._replace(data="…", seed=0), set()).add(labels.data)

    def baseline(self) -> None:
        given = self._asked.get("baseline")
        if given is not None:
            self._read.baseline = self._set(("baseline",), given)

    def pools(self) -> None:
        for name, path, given in self._reading.named("pools"):
            found = [read for at, text in items(path, given) if (read := self._set(at, text)) is not None]
            twice = next((text for at, text in enumerate(found) if text in found[:at]), None)
            if given in (None, [], ()):
                self._mistakes.add(path, f"the pool {name!r} is empty; name the sets that it takes together")
            if twice is not None:
                self._mistakes.add(path, f"the pool {name!r} holds {twice} twice; leave one out")
            if name in self._sets or self._canonical(name) in self._sets:
                self._mistakes.add(path, f"the pool {name!r} is called like a set of the grid; give it another name")
            self._read.pools[name] = found

    def primary(self) -> None:
        for path, given in items(("primary",), self._asked.get("primary") or ()):
            keys = keyed(self._mistakes, path, given, KEYS, "contrast")
            before = len(self._mistakes.found)
            found: dict[str, Any] = {side: self._side(path, side, keys) for side in SIDES}
            found |= {"on": self._on(*keys["on"])} if "on" in keys else {}
            found |= {key: self._narrowed(key, *keys[key]) for key in NARROWED if key in keys}
            read = bool(keys) and len(self._mistakes.found) == before
            found = {"name": self._name(keys, found), **found}
            if read and self._possible(path, found):
                self._read.primary.append(found)

    def _name(self, keys: Mapping[str, tuple[Path, Any]], found: Mapping[str, Any]) -> str:
        path, given = keys.get("name", ((), None))
        if given is None:
            return f"{found['compare']} against {found['with']}"
        if not isinstance(given, str) or not given.strip() or len(given) > 2 * NAME or not given.isprintable():
            self._mistakes.add(path, f"{short(given)} is no name; write a few words of at most {2 * NAME} letters, or leave the name out")
        elif given in self._named:
            self._mistakes.add(path, f"{short(given)} is also what {where(self._named[given])} is called; call it otherwise")
        else:
            self._named[given] = path[:-1]
        return str(given)

    def _side(self, path: Path, side: str, keys: Mapping[str, tuple[Path, Any]]) -> str | None:
        """The pool's name, or the set's canonical text."""
        if side not in keys:
            if keys:
                self._mistakes.add(path, f"the contrast has no {side!r}; it compares a set or pool with another")
            return None
        at, given = keys[side]
        return given if isinstance(given, str) and given in self._read.pools else self._set(at, given, self._read.pools)

    def _on(self, path: Path, given: Any) -> list[str]:
        """The evaluators' canonical texts; one that is told by a part of its parameters is found if it is the only one."""
        found = [read for at, text in items(path, given) if (read := self._evaluator(at, text)) is not None]
        if given in (None, [], ()):
            self._mistakes.add(path, "a contrast on nothing; name evaluators of the study, or leave 'on' out")
        if len(set(found)) < len(found):
            self._mistakes.add(path, f"{short(given)} names an evaluator twice; leave one out")
        return found

    def _evaluator(self, path: Path, given: Any) -> str | None:
        known = self._read.evaluators
        read = self._mistakes.tried(path, parse, given) if isinstance(given, str) else None
        if read is None and isinstance(given, str):
            return None
        fitting = [text for text, evaluator in known.items() if isinstance(read, Call) and _is_told(evaluator, read)]
        exact = [text for text in fitting if text == str(given).strip()]
        if len(fitting) > 1 and not exact:
            self._mistakes.add(path, f"{short(given)} is any of {', '.join(fitting)}; write one as it stands under evaluate")
        elif not fitting:
            hint = did_you_mean(str(given), known)
            self._mistakes.add(path, f"{short(given)} is nothing that this study measures{hint}; it measures {listed(known)}")
        return (exact or fitting or [None])[0]

    def _narrowed(self, key: str, path: Path, given: Any) -> list[str]:
        there = self._there[key]
        found: list[str] = []
        for at, value in items(path, given):
            read = self._reading.value(key, at, value)
            if read is not None and str(read) not in there:
                self._mistakes.add(at, f"{short(value)} isn't in the grid; its {key} is one of {listed(there)}")
            elif read is not None:
                found.append(str(read))
        if given in (None, [], ()):
            self._mistakes.add(path, f"a contrast within no {key}; name one of {listed(there)}, or leave the key out")
        return found

    def _possible(self, path: Path, found: Mapping[str, Any]) -> bool:
        """Whether the contrast is one, isn't there already, and the grid has both of its sides somewhere."""
        compare, against = (set(self._read.pools.get(found[side], [found[side]])) for side in SIDES)
        if compare == against:
            self._mistakes.add(path, f"{found['compare']} is compared with itself; compare it with another set or pool")
            return False
        same = repr([sorted(compare), sorted(against), *(sorted(found.get(key, [])) for key in ("on", *NARROWED))])
        if same in self._tested:
            self._mistakes.add(path, f"{short(found['name'])} is the same contrast as {where(self._tested[same])}; leave one out")
            return False
        self._tested[same] = path
        if not any(compare | against <= sets for sets in self._together(found)):
            told = "; ".join(f"{key} {listed(found[key])}" for key in NARROWED if key in found)
            lacking = f"no model, method and sparsity{f' ({told})' if told else ''} has both {found['compare']} and {found['with']}"
            self._mistakes.add(path, f"{lacking}; widen the grid, or take other sets")
            return False
        return True

    def _together(self, found: Mapping[str, Any]) -> list[set[str]]:
        """The sets that are asked for with each model, method, target and propagation that the contrast is about."""
        narrowed = {NARROWED[key]: found[key] for key in NARROWED if key in found}
        return [sets for labels, sets in self._alike.items() if labels.among(narrowed)]

    def _set(self, path: Path, given: Any, pools: Sequence[str] | Mapping[str, Any] = ()) -> str | None:
        """The canonical text of a set of the grid."""
        what = "set or pool" if pools else "set"
        if not isinstance(given, str):
            self._mistakes.add(path, f"{short(given)} is no {what}; write it as it stands under data")
            return None
        found = self._canonical(given)
        if found in self._sets:
            return found
        near = did_you_mean(given, [*pools, *self._sets])
        grid = f"the grid has {listed([*pools, *self._sets])}"
        if found is not None:
            self._mistakes.add(path, f"{short(given)} is no {what} of the grid; {grid}")
        elif near:
            self._mistakes.add(path, f"there is no {what} called {short(given)}{near}; {grid}")
        else:
            self._reading.value("data", path, given)
        return None

    def _canonical(self, text: str) -> str | None:
        """A set's canonical text, without a complaint if it is none."""
        read = Reading({}, Mistakes()).value("data", (), text)
        return None if read is None else str(read)


def _is_told(evaluator: Evaluator, told: Call) -> bool:
    """Whether every parameter that is told is the evaluator's."""
    plain = {name: value.name if isinstance(value, Call) and not value.arguments else value for name, value in told.arguments.items()}
    return told.name == evaluator.spec_name() and all(getattr(evaluator, name, None) == value for name, value in plain.items())
