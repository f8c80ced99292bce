"""A parameter that would overflow, or never come to an end, is refused at once."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import pytest
from jaxtyping import TypeCheckError

from calibrant.allocations import allocations
from calibrant.data.formats import formats
from calibrant.data.packings import packings
from calibrant.data.select import selectors
from calibrant.errors import InputError, SpecError
from calibrant.evaluators import evaluators
from calibrant.exports import exports
from calibrant.methods import methods
from calibrant.spec.registry import Registry
from calibrant.transforms import transforms

REGISTRIES: Final[tuple[Registry, ...]] = (
    methods,
    allocations,
    transforms,
    selectors,
    evaluators,
    exports,
    formats,
    packings,
)
LARGE: Final = {"float": (1e308,), "int": (10**9, 10**15)}
"""By what a parameter holds: one that holds both is given both."""

NEEDED: Final = {
    "cluster": "source=c4",
    "cola": "source=c4",
    "generation": "name=gsm8k",
    "harness": "task=arc_easy",
    "igsp": "source=c4",
    "influence": "name=race",
    "lape": "sources=['flores(language=en)', 'flores(language=de)']",
    "least_perplexity": "source=c4",
    "longest": "source=c4",
    "similar": "source=c4, to=gsm8k",
    "task": "name=race",
    "zipcal": "source=c4",
}
"""What can't be left out."""

BUDGET: Final = "a budget: no more is read than there is"
MEASURED: Final = "a budget of a thousand million at most"
SEED: Final = "a seed: any is as good as another"
HARMLESS: Final[dict[tuple[str, str], str]] = {
    **{(name, "tokens"): BUDGET for name in ("cd_moe", "evolved", "evop", "evopress", "greedy")},
    **{(name, "tokens"): MEASURED for name in ("agreement", "lape", "loss", "perplexity", "words")},
    **{(name, "seed"): SEED for name in ("autoround", "cd_moe", "evolved", "evop", "evopress")},
    **{(name, "seed"): SEED for name in ("generation", "mc_suite", "rotate", "task", "words")},
}
"""What as large a whole number is allowed of, and why."""


Case = tuple[Registry, str, str, Any]


def all_cases() -> Iterator[Case]:
    """Every parameter of every class that numbers may be given to, with large ones of its kind."""
    for registry in REGISTRIES:
        for name in registry.names():
            for field in dataclasses.fields(registry.get(name)):
                kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
                kind = "float" if field.name == "damps" else kind
                for number in LARGE if field.init else ():
                    if number in kind:
                        yield from ((registry, name, field.name, value) for value in LARGE[number])


CASES: Final = list(all_cases())
NAMED: Final = [f"{name}-{parameter}-{value}" for _, name, parameter, value in CASES]


@pytest.mark.parametrize(("registry", "name", "parameter", "value"), CASES, ids=NAMED)
def test_too_large_is_refused(registry: Registry, name: str, parameter: str, value: Any) -> None:
    given = [NEEDED[name]] if name in NEEDED else []
    text = f"{name}({', '.join([*given, f'{parameter}={value!r}'])})"
    why = HARMLESS.get((name, parameter), "")
    if why and (why != MEASURED or value == 10**9):
        registry.build(text)
        return
    with pytest.raises((InputError, TypeCheckError)) as caught:
        registry.build(text)
    if isinstance(caught.value, TypeCheckError):
        return  # where types are checked, that comes first
    # The method that is fitted with each of several dampings refuses its own.
    assert caught.value.subject == ("damp" if parameter == "damps" else parameter)


def test_large_is_not_too_large_and_a_text_is_no_number() -> None:
    for text in ("gptq(damp=1000)", "awq(steps=1000)", "rsq(expand=64)"):
        assert methods.build(text)
    for cls, given in (
        (methods.get("awq"), {"steps": "20"}),
        (allocations.get("evolved"), {"levels": "3"}),
        (formats.get("cot"), {"steps": "3"}),
    ):
        with pytest.raises((SpecError, TypeCheckError)) as caught:
            cls(**given)
        assert isinstance(caught.value, TypeCheckError) or [caught.value.subject] == list(given)
