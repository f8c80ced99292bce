"""What a measurement is: a score and what every item gave. Until it is whole, a journal keeps it.
No torch here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypedDict

from msgspec import Meta

from calibrant.errors import OutputError
from calibrant.results.database import DamagedError, Database
from calibrant.system.durable import from_json, line_of_json, short
from calibrant.system.notebook import card, listing
from calibrant.system.seals import BrokenSealError, seal_of, tell_made_again

MOST: Final = 10_000_000
"""Items of a measurement at most."""
LARGEST: Final = 2**32
"""Bytes of them at most, unpacked."""
_SEAL_DIGITS: Final = 16
"""Digits of an entry's seal: 64 bits find any damage, and a journal has many entries."""
_KEY: Final = re.compile("[0-9a-f]{64}")

Whole = Annotated[int, Meta(ge=-(2**63) + 1, le=2**63 - 1)]
"""A whole number that has a float and a text."""
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Size = Annotated[float, Meta(ge=0)]


class ScoreFacts(TypedDict, total=False):
    """What reports show of what was measured, beside the number."""

    items: str
    tokens: Count
    bytes: Count
    length: Count
    perplexity: float
    bits_per_byte: float
    floor: Size
    floor_tokens: Count
    floor_between: str
    rows: Count
    rows_of: Count


@dataclass(frozen=True)
class Score:
    """One number about a model.

    `measured` says on what (`wikitext`), `metric` how (`loss`), `unit` in what (`nats/token`), `n`
    over how many items. `stderr` is over items, None where it can't be had; `chance` what guessing
    would get. `facts` holds the rest (`ScoreFacts`): tokens, bytes, bits_per_byte, perplexity,
    context length; `rows`, how many rows were measured, and `rows_of`, how many the source has in
    all its parts together; of a divergence `floor`, below which a difference is none that a runtime
    would keep.
    """

    measured: str
    metric: str
    value: float
    stderr: float | None
    n: Count
    unit: str
    better: Literal["lower", "higher"]
    chance: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Outcome:
    """What one item gave. `value` / `weight` is its own score (summed nats / scored tokens);
    Σvalue / Σweight is the whole's.

    `facts` are what else is known of it (choice scores, the gold choice, whether it was hit), the
    same names for every item of a measurement.
    """

    item: str
    value: float
    weight: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Measurement:
    """A score with what every item gave; `provenance` (seconds, device) is no part of the result
    and isn't compared.

    `beside` are other scores of the same items, such as the accuracies beside a loss.
    """

    score: Score
    outcomes: tuple[Outcome, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)
    beside: tuple[Score, ...] = ()

    @cached_property
    def by_item(self) -> tuple[tuple[str, ...], Any, Any]:
        """The names of the items in their order, and arrays of what each gave and of its weight;
        made once, since many comparisons ask for them."""
        import numpy as np

        items: list[tuple[str, float, float]] = []
        for outcome in self.outcomes:
            items.append((item_name(outcome.item), outcome.value, outcome.weight))
        # By name, since comparisons pair the items of two measurements.
        items.sort()
        names = tuple(name for name, _, _ in items)
        values = np.array([value for _, value, _ in items], dtype=np.float64)
        weights = np.array([weight for _, _, weight in items], dtype=np.float64)
        for array in (values, weights):
            array.setflags(write=False)  # whoever compares them next gets the same ones
        return names, values, weights

    def _repr_html_(self) -> str:
        heads = ("measured", "metric", "value", "standard error", "items", "unit", "better")
        lines: list[tuple[Any, ...]] = []
        for score in (self.score, *self.beside):
            value = f"{score.value:.4f}"
            error = "" if score.stderr is None else f"{score.stderr:.4f}"
            measured = score.measured, score.metric, value, error
            lines.append((*measured, score.n, score.unit, score.better))
        return card(f"Measurement on {self.score.measured}", {}, inside=listing(heads, lines))


JOURNAL_TABLE: Final = (
    "journal (question TEXT NOT NULL, name TEXT NOT NULL, entry TEXT NOT NULL,"
    " PRIMARY KEY (question, name))"
)
JOURNAL_VERSION: Final = 1


class Journal:
    """What a measurement, or a search, that isn't finished has found so far, by name.

    Opened again, it knows what was found before. Each entry has a seal of its own, and one that
    isn't what was written is dropped. Without a path nothing is written. Numbers come back bit for
    bit.
    """

    def __init__(self, path: Path | None = None, question: str = "") -> None:
        self.question = question
        self._database: Database | None = None
        self._known: dict[str, Any] = {}
        if path is not None:
            self._open(path)

    @classmethod
    def within(cls, database: Database, question: str) -> "Journal":
        """Return the journal of a question in a file that has a table for journals."""
        journal = cls(question=question)
        journal._read(database)
        return journal

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def __getitem__(self, name: str) -> Any:
        return self._known[name]

    def __len__(self) -> int:
        return len(self._known)

    @property
    def known(self) -> dict[str, Any]:
        """All that was found, by name."""
        return dict(self._known)

    def add(self, results: Mapping[str, Any]) -> None:
        """Keep what was found: plain JSON data by name. `OutputError` if it can't be written."""
        if self._database is not None:
            entries: list[tuple[str, str, str]] = []
            for name, value in results.items():
                entry = line_of_json([value, self._seal(name, value)])
                entries.append((self.question, name, entry))
            with self._database.writing("write the journal") as connection:
                connection.executemany("INSERT OR REPLACE INTO journal VALUES (?, ?, ?)", entries)
        self._known.update(results)

    def remove(self) -> None:
        """Forget it: the measurement is whole."""
        self._known.clear()
        if self._database is None or not self._database.path.is_file():
            return
        begun = "SELECT 1 FROM journal WHERE question = ? LIMIT 1"
        if not self._database.rows(begun, self.question):
            return  # as mostly, and looking is quicker than a transaction
        with self._database.writing("end the journal") as connection:
            connection.execute("DELETE FROM journal WHERE question = ?", (self.question,))

    def _open(self, path: Path) -> None:
        """Keep what is found in a file of its own. One that is damaged is begun anew."""
        database = Database(path, (JOURNAL_TABLE,), JOURNAL_VERSION)
        self._database = database
        if not path.is_file():
            return
        try:
            version = database.version()
            if version != JOURNAL_VERSION:
                raise OutputError(
                    f"the journal {short(path)!r} was written in format {version}, this calibrant "
                    f"reads {JOURNAL_VERSION}; use the version that wrote it, or delete it",
                    subject=str(path),
                )
            self._read(database)
        # What it held can be found again, so a damaged one stops nothing.
        except DamagedError:
            tell_made_again("the journal", short(path))
            database.set_aside()

    def _read(self, database: Database) -> None:
        """Read what was found before, and keep more of it there."""
        self._database = database
        # As bytes, since SQLite reads nothing more where one text is none.
        columns = "CAST(name AS BLOB), CAST(entry AS BLOB)"
        query = f"SELECT {columns} FROM journal WHERE question = ? ORDER BY rowid"
        for name, entry in database.rows(query, self.question):
            try:
                text = name.decode()
                value, seal = from_json(entry.decode())
                if seal != self._seal(text, value):
                    raise BrokenSealError
                self._known[text] = value
            except (ValueError, TypeError):
                tell_made_again("a line of the journal", short(database.path))

    def _seal(self, name: str, value: Any) -> str:
        purpose = {"kind": "journal", "question": self.question}
        return seal_of(purpose, line_of_json([name, value]).encode())[:_SEAL_DIGITS]


def item_name(item: str) -> str:
    """Return an item's name among others: in stores of format 1 a row had all 64 digits of its key,
    which begins with the 16 that it has now."""
    return item[:16] if _KEY.fullmatch(item) else item
