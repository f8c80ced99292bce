"""A parameter that would overflow, or never come to an end, is refused at once."""

import dataclasses
from collections.abc import Iterator
from typing import Any, Final

import pytest

from calibrant.allocations import allocations
from calibrant.data.formats import formats
from calibrant.data.packings import packings
from calibrant.errors import InputError
from calibrant.evaluators import evaluators
from calibrant.exports import exports
from calibrant.methods import methods
from calibrant.registry import Registry
from calibrant.select import selectors
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
LARGE: Final = (1e308, 10**9)

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
SEED: Final = "a seed: any is as good as another"
HARMLESS: Final[dict[tuple[str, str], str]] = {
    **{(name, "tokens"): BUDGET for name in ("cd_moe", "evolved", "evop", "evopress", "greedy")},
    ("owl", "times"): "no score lies so far above the mean, as with any other large number",
    **{(name, "tokens"): BUDGET for name in ("agreement", "lape", "loss", "perplexity", "words")},
    **{(name, "seed"): SEED for name in ("cd_moe", "evolved", "evop", "evopress", "generation")},
    **{(name, "seed"): SEED for name in ("mc_suite", "rotate", "task", "words")},
}
"""What a thousand million is allowed of, and why."""


def parameters(registry: Registry) -> Iterator[tuple[str, str]]:
    """Every parameter of every class that numbers may be given to."""
    for name in registry.names():
        for field in dataclasses.fields(registry.get(name)):
            kind = field.type.__name__ if isinstance(field.type, type) else str(field.type)
            numeric = "int" in kind or "float" in kind or field.name == "damps"
            if field.init and numeric:
                yield name, field.name


CASES: Final = [(registry, *which) for registry in REGISTRIES for which in parameters(registry)]
NAMED: Final = [f"{name}-{parameter}" for _, name, parameter in CASES]


@pytest.mark.parametrize("value", LARGE)
@pytest.mark.parametrize(("registry", "name", "parameter"), CASES, ids=NAMED)
def test_too_large_is_refused(registry: Registry, name: str, parameter: str, value: Any) -> None:
    given = [NEEDED[name]] if name in NEEDED else []
    text = f"{name}({', '.join([*given, f'{parameter}={value!r}'])})"
    if (name, parameter) in HARMLESS and isinstance(value, int):
        registry.build(text)
        return
    with pytest.raises(InputError) as caught:
        registry.build(text)
    assert parameter.rstrip("s") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_allowed_exists() -> None:
    assert HARMLESS.keys() <= {(name, parameter) for _, name, parameter in CASES}


@pytest.mark.parametrize("text", ["gptq(damp=1000)", "awq(steps=1000)", "rsq(expand=64)"])
def test_large_is_not_too_large(text: str) -> None:
    assert methods.build(text)
