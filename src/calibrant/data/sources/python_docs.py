"""The topics of Python's own help: prose that every full installation has."""

import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from calibrant.data._base import Row, SourceRows, StoredSource, divide
from calibrant.errors import DataError


@dataclass(frozen=True, repr=False)
class PythonDocs(StoredSource):
    """`pydoc_data.topics`, a topic a row: what `help('with')` shows, about 330 kB of technical
    English.

    Topics repeat each other (a fifth of the text), so a paragraph stays with the longest topic that
    has it: nothing that is measured is also calibrated on. The rows are those of the running
    Python; the record keeps its version.
    """

    kind = "corpus"
    licence = "PSF-2.0"
    homepage = "https://docs.python.org/3/reference/"
    fields = ("text",)

    def read(self) -> SourceRows:
        try:
            from pydoc_data.topics import topics
        except ImportError as error:
            raise DataError(
                "this Python has no pydoc_data.topics; install Python's standard library whole",
                subject="python_docs",
            ) from error
        return SourceRows(divide(unrepeated(topics)), f"Python {platform.python_version()}")


def unrepeated(topics: Mapping[str, str]) -> Iterator[Row]:
    """Yield each topic without the paragraphs of more than 40 characters that a longer topic has
    too.
    """
    seen: set[str] = set()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name)):
        fresh: list[str] = []
        words: set[str] = set()
        for paragraph in re.split(r"\n\s*\n", topics[name].strip()):
            content = " ".join(paragraph.split())
            words.add(content)
            if len(paragraph) <= 40 or content not in seen:
                fresh.append(paragraph)
        seen |= words
        # Headings whose paragraphs all went would be left as rows of titles.
        if any(len(paragraph) > 40 for paragraph in fresh):
            yield Row(text="\n\n".join(fresh))
