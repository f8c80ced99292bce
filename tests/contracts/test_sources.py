"""Every source keeps its contract, and a source that breaks it is found out."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from calibrant.data import (
    Format,
    Part,
    Row,
    Source,
    SourceRows,
    StoredSource,
    divide,
    parse_source,
    sources,
)
from calibrant.errors import DataError
from calibrant.testing.sources import check_source


def kept_elsewhere(name: str) -> bool:
    """Whether the source's rows are a data set's, which only a local mirror has here."""
    return isinstance(sources.build(name), StoredSource) and name not in {
        "arithmetic",
        "python_code",
        "python_docs",
    }


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if kept_elsewhere(name) else ())
        for name in sources.names()
    ],
)
def test_contract(name: str):
    source = sources.build(name)
    try:
        next(source.rows("measure"))
    except DataError as error:
        # What is wrong with rows that are there is no reason to skip.
        if not kept_elsewhere(name) or "can't be had" not in str(error):
            raise
        pytest.skip(f"{name} has no data here: {error}")
    check_source(source)


GOOD = [Row(text=f"text {i}") for i in range(200)]


@dataclass(frozen=True, repr=False)
class Sound(Source):
    """Three texts to calibrate on, and two others to measure on."""

    kind, licence, homepage, fields = "corpus", "MIT", "", ("text",)
    calibrate: ClassVar = GOOD[:3]
    measure: ClassVar = GOOD[4:6]

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        return iter({"calibrate": self.calibrate, "measure": self.measure}.get(part, []))


@dataclass(frozen=True, repr=False)
class Changing(StoredSource):
    """Other rows at every reading."""

    kind, licence, homepage, fields = "corpus", "MIT", "", ("text",)
    turns: ClassVar = itertools.count()

    def read(self) -> SourceRows:
        return SourceRows(divide(GOOD), "")

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        rows = list(super().rows(part))
        return iter(rows[next(self.turns) % 2 :])


@pytest.mark.parametrize(
    ("faults", "told"),
    [
        ({}, ""),
        ({"calibrate": [*GOOD[:3], GOOD[0]]}, "'calibrate' gives a row twice"),
        ({"measure": [Row(text="Text  1"), GOOD[3]]}, "'text 1' is in 'measure'"),
        ({"fields": ("text", "answer")}, "lacks answer"),
        ({"calibrate": []}, "'calibrate' has no rows"),
        ({"licence": ""}, "licence"),
        ({"fields": ("text", "title")}, "title"),
        ({"kind": "poem"}, "'poem'"),
        ({"calibrate": [Row(text="")]}, "nothing"),
        (None, "change"),
    ],
)
def test_a_broken_promise_is_named(
    faults: dict[str, Any] | None, told: str, monkeypatch: pytest.MonkeyPatch
):
    source = Changing() if faults is None else type("Faulty", (Sound,), faults)()
    monkeypatch.setattr("calibrant.testing.sources.parse_source", lambda text: source)
    if not told:
        check_source(source)
        return
    with pytest.raises(DataError) as caught:
        check_source(source)
    assert told in str(caught.value)
    assert caught.value.subject == str(source)


def test_a_row_that_no_format_takes_is_named(monkeypatch: pytest.MonkeyPatch):
    source = Sound()
    monkeypatch.setattr("calibrant.testing.sources.parse_source", lambda text: source)
    monkeypatch.setattr(Format, "takes", lambda row_format, row: False)
    with pytest.raises(DataError, match=GOOD[0].name):
        check_source(source)


def test_the_text_of_a_source_must_read_back(monkeypatch: pytest.MonkeyPatch):
    source = sources.build("full_stops")
    monkeypatch.setattr(
        "calibrant.testing.sources.parse_source", lambda text: sources.build("random_tokens")
    )
    with pytest.raises(DataError, match="read back") as caught:
        check_source(source)
    assert caught.value.subject == "full_stops"


THEIRS = """
from calibrant.data.sources.full_stops import FullStops

class Mine(FullStops):
    pass

class Other(FullStops):
    pass
"""


def test_a_source_of_another_package_is_checked_by_its_name(plugged: Callable[..., None]):
    plugged({"calibrant.data.sources": {"dots": "theirs:Mine"}}, theirs=THEIRS)
    check_source(parse_source("dots"))
    import theirs  # pyright: ignore[reportMissingImports]

    with pytest.raises(DataError, match="the entry point other = 'theirs:Other'"):
        check_source(theirs.Other())
