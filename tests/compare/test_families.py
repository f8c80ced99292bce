import pytest

from calibrant.compare import CONTROLS, FAMILIES, family_of
from calibrant.compare.families import SOURCES
from calibrant.data import sources
from calibrant.data.expression import selectors


def test_every_source_has_one_family():
    named = [name for names in SOURCES.values() for name in names]
    assert sorted(named) == sorted({*named}) == sorted([*sources.names(), *selectors.names()])
    assert sorted(SOURCES["selected"]) == selectors.names()
    assert set(SOURCES) <= set(FAMILIES)
    for name in sources.names():
        kind = getattr(sources.get(name), "kind", "")
        assert (family_of(name) == "control") == (kind == "control") == (name in CONTROLS)
        assert kind != "corpus" or family_of(name) in ("corpus", "code", "languages"), name


@pytest.mark.parametrize(
    ("expression", "family"),
    [
        ("gsm8k:cot@many", "arithmetic"),
        ("c4@crop", "corpus"),
        ("redpajama(subsets=['github'])", "corpus"),
        ("0.5*c4 + 0.5*gsm8k:cot", "mixed"),
        ("mix(a=c4, b=gsm8k:cot, weight=0.5)", "mixed"),
        ("selfgen", "selected"),
        ("zipcal(source='c4 + pile')", "selected"),
        ("0.5*selfgen + 0.5*c4", "mixed"),
        ("notes.jsonl", "own"),
        ("'data/*.jsonl':qa", "own"),
        ("", "own"),
    ],
)
def test_an_expression_has_the_family_of_its_source(expression: str, family: str):
    assert family_of(expression) == family
