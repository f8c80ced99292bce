"""How the results of a study will be compared, said before it runs: the baseline, pools of sets, and the contrasts that are tested."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from calibrant.evaluators import Evaluator
from calibrant.registry import did_you_mean
from calibrant.spec import Call, parse
from calibrant.study.cells import Labels
from calibrant.study.checking import NAME, Mistakes, Path, StudyContents, StudyReader, items, keyed, listed, short, where

SIDES: Final = ("compare", "with")
NARROWED: Final = {"model": "model", "method": "way", "sparsity": "target", "propagate": "propagate"}
"""Keys of a contrast that restrict it, and the label of a cell that each is about."""
KEYS: Final = ("name", *SIDES, "on", *NARROWED)


def read_contrasts(reader: StudyReader) -> StudyContents:
    """Add to what was read of the grid what is compared in it."""
    comparing = _Comparing(reader)
    comparing.baseline()
    comparing.pools()
    comparing.primary()
    return reader.contents


class _Comparing:
    def __init__(self, reader: StudyReader) -> None:
        self._reader, self._mistakes, self._entries, self._contents = reader, reader.mistakes, reader.entries, reader.contents
        self._sets = dict.fromkeys(labels.data for labels in self._contents.labels if labels.data)
        self._tested: dict[str, Path] = {}
        self._named: dict[str, Path] = {}
        looking = [labels for labels in self._contents.labels if labels.data]
        self._there = {key: {getattr(labels, label) for labels in looking} for key, label in NARROWED.items()}
        self._alike: dict[Labels, set[str]] = {}
        """The sets of the grid, by the rest of a cell's labels but its draw."""
        for labels in looking:
            self._alike.setdefault(labels._replace(data="…", seed=0), set()).add(labels.data)

    def baseline(self) -> None:
        raw = self._entries.get("baseline")
        if raw is not None:
            self._contents.baseline = self._set(("baseline",), raw)

    def pools(self) -> None:
        for name, path, raw in self._reader.named("pools"):
            sets = [read for at, text in items(path, raw) if (read := self._set(at, text)) is not None]
            twice = next((text for at, text in enumerate(sets) if text in sets[:at]), None)
            if raw in (None, [], ()):
                self._mistakes.add(path, f"the pool {name!r} is empty; name the sets that it takes together")
            if twice is not None:
                self._mistakes.add(path, f"the pool {name!r} holds {twice} twice; leave one out")
            if name in self._sets or self._canonical(name) in self._sets:
                self._mistakes.add(path, f"the pool {name!r} is called like a set of the grid; give it another name")
            self._contents.pools[name] = sets

    def primary(self) -> None:
        for path, raw in items(("primary",), self._entries.get("primary") or ()):
            keys = keyed(self._mistakes, path, raw, KEYS, "contrast")
            before = len(self._mistakes.entries)
            contrast: dict[str, Any] = {side: self._side(path, side, keys) for side in SIDES}
            contrast |= {"on": self._on(*keys["on"])} if "on" in keys else {}
            contrast |= {key: self._narrowed(key, *keys[key]) for key in NARROWED if key in keys}
            read = bool(keys) and len(self._mistakes.entries) == before
            contrast = {"name": self._name(keys, contrast), **contrast}
            if read and self._possible(path, contrast):
                self._contents.primary.append(contrast)

    def _name(self, keys: Mapping[str, tuple[Path, Any]], contrast: Mapping[str, Any]) -> str:
        path, raw = keys.get("name", ((), None))
        if raw is None:
            return f"{contrast['compare']} against {contrast['with']}"
        if not isinstance(raw, str) or not raw.strip() or len(raw) > 2 * NAME or not raw.isprintable():
            self._mistakes.add(path, f"{short(raw)} is no name; write a few words of at most {2 * NAME} letters, or leave the name out")
        elif raw in self._named:
            self._mistakes.add(path, f"{short(raw)} is also what {where(self._named[raw])} is called; call it otherwise")
        else:
            self._named[raw] = path[:-1]
        return str(raw)

    def _side(self, path: Path, side: str, keys: Mapping[str, tuple[Path, Any]]) -> str | None:
        """The pool's name, or the set's canonical text."""
        if side not in keys:
            if keys:
                self._mistakes.add(path, f"the contrast has no {side!r}; it compares a set or pool with another")
            return None
        at, raw = keys[side]
        return raw if isinstance(raw, str) and raw in self._contents.pools else self._set(at, raw, self._contents.pools)

    def _on(self, path: Path, raw: Any) -> list[str]:
        """The evaluators' canonical texts; some of an evaluator's parameters are enough if no other evaluator has them."""
        evaluators = [read for at, text in items(path, raw) if (read := self._evaluator(at, text)) is not None]
        if raw in (None, [], ()):
            self._mistakes.add(path, "a contrast on nothing; name evaluators of the study, or leave 'on' out")
        if len(set(evaluators)) < len(evaluators):
            self._mistakes.add(path, f"{short(raw)} names an evaluator twice; leave one out")
        return evaluators

    def _evaluator(self, path: Path, raw: Any) -> str | None:
        known = self._contents.evaluators
        read = self._mistakes.tried(path, parse, raw) if isinstance(raw, str) else None
        if read is None and isinstance(raw, str):
            return None
        fitting = [text for text, evaluator in known.items() if isinstance(read, Call) and _fits(evaluator, read)]
        exact = [text for text in fitting if text == str(raw).strip()]
        if len(fitting) > 1 and not exact:
            self._mistakes.add(path, f"{short(raw)} is any of {', '.join(fitting)}; write one as it stands under evaluate")
        elif not fitting:
            hint = did_you_mean(str(raw), known)
            self._mistakes.add(path, f"{short(raw)} is nothing that this study measures{hint}; it measures {listed(known)}")
        return (exact or fitting or [None])[0]

    def _narrowed(self, key: str, path: Path, raw: Any) -> list[str]:
        there = self._there[key]
        values: list[str] = []
        for at, value in items(path, raw):
            # `wanda + owl` is what tables call a method with an allocation; a method that has several, and none of them alone, stands for all.
            read = value if key == "method" and isinstance(value, str) and value in there else self._reader.value(key, at, value)
            meant = [str(read)] if str(read) in there else sorted(text for text in there if key == "method" and text.startswith(f"{read} + "))
            if read is not None and not meant:
                self._mistakes.add(at, f"{short(value)} isn't in the grid; its {key} is one of {listed(there)}")
            values += meant if read is not None else []
        if raw in (None, [], ()):
            self._mistakes.add(path, f"a contrast within no {key}; name one of {listed(there)}, or leave the key out")
        return values

    def _possible(self, path: Path, contrast: Mapping[str, Any]) -> bool:
        """Whether the contrast is one, isn't there already, and the grid has both of its sides somewhere."""
        compare, against = (set(self._contents.pools.get(contrast[side], [contrast[side]])) for side in SIDES)
        if compare == against:
            self._mistakes.add(path, f"{contrast['compare']} is compared with itself; compare it with another set or pool")
            return False
        same = repr([sorted(compare), sorted(against), *(sorted(contrast.get(key, [])) for key in ("on", *NARROWED))])
        if same in self._tested:
            self._mistakes.add(path, f"{short(contrast['name'])} is the same contrast as {where(self._tested[same])}; leave one out")
            return False
        self._tested[same] = path
        if not any(compare | against <= sets for sets in self._together(contrast)):
            narrowing = "; ".join(f"{key} {listed(contrast[key])}" for key in NARROWED if key in contrast)
            missing = f"no model, method and sparsity{f' ({narrowing})' if narrowing else ''} has both {contrast['compare']} and {contrast['with']}"
            self._mistakes.add(path, f"{missing}; widen the grid, or take other sets")
            return False
        return True

    def _together(self, contrast: Mapping[str, Any]) -> list[set[str]]:
        """The sets that the grid has with each model, method, target and propagation that the contrast is about."""
        narrowed = {NARROWED[key]: contrast[key] for key in NARROWED if key in contrast}
        return [sets for labels, sets in self._alike.items() if labels.among(narrowed)]

    def _set(self, path: Path, raw: Any, pools: Sequence[str] | Mapping[str, Any] = ()) -> str | None:
        """The canonical text of a set of the grid."""
        what = "set or pool" if pools else "set"
        if not isinstance(raw, str):
            self._mistakes.add(path, f"{short(raw)} is no {what}; write it as it stands under data")
            return None
        text = self._canonical(raw)
        if text in self._sets:
            return text
        near = did_you_mean(raw, [*pools, *self._sets])
        grid = f"the grid has {listed([*pools, *self._sets])}"
        if text is not None:
            self._mistakes.add(path, f"{short(raw)} is no {what} of the grid; {grid}")
        elif near:
            self._mistakes.add(path, f"there is no {what} called {short(raw)}{near}; {grid}")
        else:
            self._reader.value("data", path, raw)
        return None

    def _canonical(self, text: str) -> str | None:
        """A set's canonical text, without a complaint if it is none."""
        read = StudyReader({}, Mistakes()).value("data", (), text)
        return None if read is None else str(read)


def _fits(evaluator: Evaluator, call: Call) -> bool:
    """Whether an evaluator has every parameter that a call names."""
    plain = {name: value.name if isinstance(value, Call) and not value.arguments else value for name, value in call.arguments.items()}
    return call.name == evaluator.spec_name() and all(getattr(evaluator, name, None) == value for name, value in plain.items())
