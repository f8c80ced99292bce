"""Every source keeps its contract, and a source that breaks it is found out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from calibrant.data import Part, Row, Source, SourceRows, StoredSource, divide, parse_source, sources
from calibrant.errors import DataError, SpecError
from calibrant.testing.sources import check_source


def kept_elsewhere(name: str) -> bool:
    """Whether the source's rows are a data set's, which only a local mirror has here."""
    return isinstance(sources.build(name), StoredSource) and name not in {"arithmetic", "python_code", "python_docs"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if kept_elsewhere(name) else ()) for name in sources.names()])
def test_contract(name: str):
    source = sources.build(name)
    try:
        next(source.rows("measure"))
    except DataError as error:
        pytest.skip(f"{name} has no data here: {error}")
    check_source(source)


GOOD = [Row(text=f"text {i}") for i in range(200)]


class Bad:
    """Sources with one fault each."""

    @dataclass(frozen=True, repr=False)
    class Changing(StoredSource):
        kind, licence, homepage, fields = "corpus", "MIT", "", ("text",)

        def read(self) -> SourceRows:
            return SourceRows(divide(GOOD), "")

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            rows = list(super().rows(part))
            Bad.turns += 1
            return iter(rows[Bad.turns % 2 :])

    @dataclass(frozen=True, repr=False)
    class Twice(Source):
        kind, licence, homepage, fields = "corpus", "MIT", "", ("text",)

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            return iter([*GOOD[:3], GOOD[0]] if part == "calibrate" else GOOD[4:6] if part == "measure" else [])

    @dataclass(frozen=True, repr=False)
    class Shared(Source):
        kind, licence, homepage, fields = "corpus", "MIT", "", ("text",)

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            return iter([Row(text="Text  1"), GOOD[3]] if part == "measure" else GOOD[:3])

    @dataclass(frozen=True, repr=False)
    class Lacking(Source):
        kind, licence, homepage, fields = "questions", "MIT", "", ("question", "answer")

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            return iter([Row(question=part)])

    @dataclass(frozen=True, repr=False)
    class Empty(Source):
        kind, licence, homepage, fields = "corpus", "MIT", "", ("text",)

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            return iter(())

    @dataclass(frozen=True, repr=False)
    class Unlicensed(Source):
        kind, licence, homepage, fields = "corpus", "", "", ("text",)

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            return iter(GOOD[:1])

    @dataclass(frozen=True, repr=False)
    class Odd(Source):
        kind, licence, homepage, fields = "corpus", "MIT", "", ("text", "title")

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            return iter(GOOD[:1])

    @dataclass(frozen=True, repr=False)
    class Unkind(Source):
        kind, licence, homepage, fields = "poem", "MIT", "", ("text",)

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            return iter(GOOD[:1])

    @dataclass(frozen=True, repr=False)
    class Unwritten(Source):
        kind, licence, homepage, fields = "corpus", "MIT", "", ("text",)

        def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
            return iter([Row(text="")])

    turns = 0


@pytest.mark.parametrize(
    ("bad", "broken"),
    [
        (Bad.Changing, "change from one reading to the next"),
        (Bad.Twice, "'calibrate' gives a row twice"),
        (Bad.Shared, "'text 1' is in 'measure' and in 'calibrate'"),
        (Bad.Lacking, "a row of 'calibrate' lacks answer"),
        (Bad.Empty, "the part 'calibrate' has no rows"),
        (Bad.Unlicensed, "declares no licence"),
        (Bad.Odd, "declares the fields .*title"),
        (Bad.Unkind, "'poem' is no kind"),
        (Bad.Unwritten, "is rendered as nothing|gives a row twice|is in"),
    ],
)
def test_a_broken_promise_is_named(bad: type[Source], broken: str, monkeypatch: pytest.MonkeyPatch):
    source = bad()
    monkeypatch.setattr("calibrant.testing.sources.parse_source", lambda text: source)
    with pytest.raises(DataError, match=broken) as caught:
        check_source(source)
    assert caught.value.subject == str(source)


def test_the_text_of_a_source_must_read_back(monkeypatch: pytest.MonkeyPatch):
    source = sources.build("full_stops")
    monkeypatch.setattr("calibrant.testing.sources.parse_source", lambda text: sources.build("random_tokens"))
    with pytest.raises(DataError, match="full_stops breaks its contract: its text doesn't read back"):
        check_source(source)


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

    with pytest.raises(SpecError, match="there is no source called 'Other'"):
        check_source(theirs.Other())
