"""What can be named: sources, methods and the like, each with what it is.

What this package has is told by `catalogue.json`, which `make generate` writes from the classes.
So a list imports none of them. A name that isn't in there is read from its class: it is another
package's, or its file is newer than the catalogue.
"""

import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from calibrant.errors import SpecError
from calibrant.spec import is_foreign, qualified, text_of
from calibrant.spec.families import family_of_kind
from calibrant.spec.foreign import did_you_mean
from calibrant.spec.grammar import read_target
from calibrant.spec.named import NAMED
from calibrant.spec.registry import Registry

CATALOGUE: Final = Path(__file__).with_name("catalogue.json")
"""For each kind but models, and each file in its folder: the fields of its `Named`.

Of a method also whether it removes something (`removes`).
"""

FOLDERS: Final = {
    "sources": ("calibrant.data.sources", "source"),
    "formats": ("calibrant.data.formats", "format"),
    "packings": ("calibrant.data.packings", "packing"),
    "methods": ("calibrant.methods", "method"),
    "targets": ("calibrant.targets", "target"),
    "allocations": ("calibrant.allocations", "allocation"),
    "transforms": ("calibrant.transforms", "transform"),
    "exports": ("calibrant.exports", "export"),
    "selectors": ("calibrant.data.select", "selector"),
    "tasks": ("calibrant.evaluators", "task"),
    "tools": ("calibrant.handover", "tool"),
}
"""Each kind of names: the package whose files they are, and what one of them is."""
KINDS: Final = ("models", *FOLDERS)

Entry = dict[str, Any]
"""What the catalogue says of one name."""

_MODELS: Final = {
    **{model.name: model.summary for model in NAMED.values()},
    "FILE.gguf": "a GGUF file, dequantized",
    "FOLDER": "a folder that transformers or calibrant saved, with safetensors",
    "ORGANISATION/NAME": "a model of the Hugging Face hub",
}
_BETWEEN_WORDS: Final = re.compile("(?<=[a-z])(?=[A-Z])")


@dataclass(frozen=True)
class Named:
    """One name: what its class does in a line, its parameters with their defaults as texts, further
    facts such as a licence, and what its file says it is.

    A thing of another package has its `class` among the facts.
    """

    name: str
    summary: str
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    title: str = ""


def catalogue(kind: str) -> list[Named]:
    """List what can be named of one kind (`models`, `sources`, `methods`, …).

    A class that can't be imported is listed with the reason. Of a name that several have, a warning
    says whose is listed. Raises `SpecError` for a kind that doesn't exist.

    >>> [entry.name for entry in catalogue("packings")]
    ['crop', 'imatrix', 'legacy', 'many', 'one', 'whole']
    >>> next(entry for entry in catalogue("methods") if entry.name == "sparsegpt").facts
    {'accepts': '0.5, 2:4 or 2:4+w4g64', 'looks_at': 'gram'}
    """
    if kind not in KINDS:
        near = did_you_mean(kind, KINDS)
        known = ", ".join(KINDS)
        message = f"there is nothing called {kind!r} to list{near}; choose one of {known}"
        raise SpecError(message, subject=kind)
    if kind == "models":
        return [Named(name, summary) for name, summary in _MODELS.items()]
    registry = _registry(kind)
    generated = _generated(kind, registry)
    entries = list[Named]()
    for name in registry.names():
        registry.warn_of_shared_name(name)
        if name in generated:
            entries.append(from_entry(generated[name]))
        else:
            entries.append(_from_class(kind, name, registry))
    return sorted(entries, key=attrgetter("name"))


def names(kind: str) -> list[str]:
    """List the names alone of one of `KINDS`; not even the files are read.

    >>> names("packings")
    ['crop', 'imatrix', 'legacy', 'many', 'one', 'whole']
    """
    if kind == "models":
        return list(_MODELS)
    return _registry(kind).names()


def removing() -> list[Named]:
    """List the methods that remove weights, blocks or experts.

    Nothing is imported for it. So methods that the catalogue lacks, such as those of other
    packages, are among them whatever they do.

    >>> [entry.name for entry in removing() if entry.name.startswith("s")]
    ['short_gpt', 'sparsegpt', 'svd']
    """
    registry = _registry("methods")
    generated = _generated("methods", registry)
    entries = list[Named]()
    for name in registry.names():
        if name not in generated:
            entries.append(Named(name, "`calibrant list methods` says what it does"))
        elif generated[name]["removes"]:
            entries.append(from_entry(generated[name]))
    return entries


@cache
def target_removes(target: str) -> bool:
    """Say whether the text of a target says how much goes, and no more.

    Kinds of this package are told by the text; classes of other packages are asked, where there are
    any. What none of them reads, since its package isn't here, removes nothing.

    >>> target_removes("2:4"), target_removes("blocks 0.25"), target_removes("2:4+w4g64")
    (True, True, False)
    """
    label = read_target(target)
    if label.removal:
        return True
    if label.bits is not None or label.budget is not None:
        return False
    registry = _registry("targets")
    for name in registry.names():
        if name in registry.own:
            continue
        try:
            read = registry.get(name).read(target)
        except Exception:  # noqa: BLE001  # a class of another package may raise anything
            continue
        if read is not None:
            return read.verb == "prune"
    return False


def entries_of(kind: str) -> dict[str, Entry]:
    """Describe the classes of one folder, by their files' names, as `CATALOGUE` has them.

    Imports all of them, and leaves out those of other packages.
    """
    registry = _registry(kind)
    entries = dict[str, Entry]()
    for name in sorted(registry.own):
        cls = registry.get(name)
        entry = dataclasses.asdict(_read_class(kind, name, cls))
        if kind == "methods":
            entry["removes"] = _removes(cls)
        entries[name] = entry
    return entries


def from_entry(entry: Entry) -> Named:
    """Return the name that an entry of the catalogue describes."""
    return Named(
        name=entry["name"],
        summary=entry["summary"],
        parameters=entry["parameters"],
        facts=entry["facts"],
        title=entry["title"],
    )


def _registry(kind: str) -> Registry:
    package, noun = FOLDERS[kind]
    return Registry(package, noun)


def _generated(kind: str, registry: Registry) -> dict[str, Entry]:
    """Return what the catalogue says of the files that are in the folder."""
    content = CATALOGUE.read_text("utf-8")
    entries = json.loads(content)[kind]
    return {name: entries[name] for name in registry.own.intersection(entries)}


def _from_class(kind: str, name: str, registry: Registry) -> Named:
    try:
        return _read_class(kind, name, registry.get(name))
    except Exception as error:  # noqa: BLE001  # a file may raise anything while it is imported
        return Named(name, f"can't be read: {type(error).__name__}: {error}")


def _read_class(kind: str, name: str, cls: type[Any]) -> Named:
    """Return what a class says of itself."""
    summary = _first_paragraph(inspect.getdoc(cls))
    title = _first_paragraph(sys.modules[cls.__module__].__doc__)
    facts = dict[str, str]()
    if is_foreign(cls):
        facts["class"] = qualified(cls)
    if kind == "targets":
        facts["written"] = cls.written
        return Named(cls.example, summary, facts=facts, title=title)
    for fact in ("kind", "licence", "homepage", "after"):
        value = getattr(cls, fact, None)
        if isinstance(value, str) and value:
            facts[fact] = value
    if kind in ("sources", "selectors"):
        facts["family"] = cls.family or family_of_kind(cls.kind)
    if kind == "methods":
        facts["accepts"] = _accepted(cls)
        facts["looks_at"] = _looked_at(cls)
    return Named(name, summary, _parameters(cls), facts, title)


def _first_paragraph(docstring: str | None) -> str:
    paragraph = (docstring or "").strip().partition("\n\n")[0]
    return " ".join(paragraph.split())


def _parameters(cls: type[Any]) -> dict[str, str]:
    """Return the parameters with their defaults as texts; those without one have an empty text."""
    parameters = dict[str, str]()
    if not dataclasses.is_dataclass(cls):
        return parameters
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        parameters[field.name] = ""
        if field.default is not dataclasses.MISSING:
            parameters[field.name] = text_of(field.default)
    return parameters


def _accepted(method: type[Any]) -> str:
    """Return an example of each kind of target that a method accepts, the shortest first.

    What the catalogue says of our methods doesn't depend on which other packages are there.
    """
    from calibrant.targets import Target, examples, kinds

    shown = list[type[Target]]()
    for target in kinds(method.accepts):
        if is_foreign(method) or not is_foreign(target):
            shown.append(target)
    return examples(shown)


def _looked_at(method: type[Any]) -> str:
    """Return what a method looks at, in words: `FeatureNorms` is feature norms."""
    observes = method.observes
    tries = method.tries
    # Where its parameters decide, a method with the default ones is asked.
    if isinstance(observes, property):
        observes = method().observes
    if isinstance(tries, property):
        tries = method().tries
    looked_at = list[str]()
    for statistic in observes:
        words = _BETWEEN_WORDS.sub(" ", statistic.__name__)
        looked_at.append(words.lower())
    if tries:
        looked_at.append("the loss")
    return ", ".join(looked_at) or "no data"


def _removes(method: type[Any]) -> bool:
    """Return whether a method accepts a target that removes something, and isn't `none`."""
    from calibrant.targets import Share, Sparsity

    if not method.prunes:
        return False
    return issubclass(Sparsity, method.accepts) or issubclass(Share, method.accepts)
