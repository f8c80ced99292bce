"""What a measurement is: a score, what every item gave, and the journal that it is kept in until it is whole. No torch here."""

import errno
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from calibrant.durable import flush, from_json, line_of_json, opened, reason, replacing, short, undoing, unreadable
from calibrant.errors import OutputError
from calibrant.notebook import card, listing
from calibrant.seals import seal_of, tell_made_again

MOST: Final = 10_000_000
"""Items of a measurement at most."""
LARGEST: Final = 2**32
"""Bytes of them at most, unpacked."""
COLUMNS: Final = ("item", "value", "weight")
_SEAL_DIGITS: Final = 16
"""Digits of a line's seal: 64 bits find any damage, and a journal has many lines."""


@dataclass(frozen=True)
class Score:
    """One number about a model.

    `measured` says on what (`wikitext`), `metric` how (`loss`), `unit` in what (`nats/token`), `n` over how many items. `stderr` is over
    items, None where it can't be had; `chance` what guessing would get. `facts` holds the rest: tokens, bytes, bits_per_byte, perplexity,
    context length; `rows`, how many rows were measured, and `rows_of`, how many the source has in all its parts together; of a divergence `floor`,
    below which a difference is none that a runtime would keep.
    """

    measured: str
    metric: str
    value: float
    stderr: float | None
    n: int
    unit: str
    better: Literal["lower", "higher"]
    chance: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Outcome:
    """What one item gave. `value` / `weight` is its own score (summed nats / scored tokens); Σvalue / Σweight is the whole's.

    `facts` are what else is known of it (choice scores, the gold choice, whether it was hit), the same names for every item of a measurement.
    """

    item: str
    value: float
    weight: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Measurement:
    """A score with what every item gave; `provenance` (seconds, device) is no part of the result and isn't compared.

    `beside` are other scores of the same items, such as the accuracies beside a loss.
    """

    score: Score
    outcomes: tuple[Outcome, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)
    beside: tuple[Score, ...] = ()

    @cached_property
    def by_item(self) -> tuple[tuple[str, ...], Any, Any]:
        """The names of the items in their order, and arrays of what each gave and of its weight; made once, since many comparisons ask for them."""
        import numpy as np

        rows = sorted((called(o.item), o.value, o.weight) for o in self.outcomes)
        values, weights = (np.array([row[i] for row in rows], dtype=np.float64) for i in (1, 2))
        for array in (values, weights):
            array.setflags(write=False)  # whoever compares them next gets the same ones
        return tuple(row[0] for row in rows), values, weights

    def _repr_html_(self) -> str:
        heads = ("measured", "metric", "value", "standard error", "items", "unit", "better")
        lines = [
            (s.measured, s.metric, f"{s.value:.4f}", "" if s.stderr is None else f"{s.stderr:.4f}", s.n, s.unit, s.better)
            for s in (self.score, *self.beside)
        ]
        return card(f"Measurement on {self.score.measured}", {}, inside=listing(heads, lines))


class Journal:
    """What a measurement, or a search, that isn't finished has found so far: a line of JSON for each thing that was scored.

    Opened again, it knows what was scored before; a line that a kill cut short is dropped, and so is a whole journal that answers another question.
    Each line has a seal of its own, and one that isn't what was written is dropped too. Without a path nothing is written. Numbers come back bit
    for bit.
    """

    def __init__(self, path: Path | None = None, question: str = "") -> None:
        self.path, self._question = path, question
        self._known: dict[str, Any] = self._read(path) if path is not None and path.is_file() else {}

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
        if self.path is not None:
            lines = [self._line(name, value) for name, value in results.items()]
            try:
                with undoing(self.path.parent, self.path):
                    self._append(self.path, lines)
            except OSError as error:
                raise OutputError(f"the journal {short(self.path)!r} can't be written: {reason(error)}", subject=str(self.path)) from error
        self._known.update(results)

    def remove(self) -> None:
        """Forget it: the measurement is whole."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _line(self, name: str, value: Any) -> str:
        return line_of_json([name, value, self._seal(name, value)]) + "\n"

    def _first_line(self) -> str:
        return line_of_json([self._question]) + "\n"

    def _seal(self, name: str, value: Any) -> str:
        purpose = {"kind": "journal", "question": self._question}
        return seal_of(purpose, line_of_json([name, value]).encode())[:_SEAL_DIGITS]

    def _append(self, path: Path, lines: list[str]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "it is no file")
        with path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            first = [] if end else [self._first_line()]
            text = "".join(first + lines).encode()
            try:
                while text:
                    text = text[file.write(text) :]
                os.fsync(file.fileno())
            except OSError:
                if end:
                    file.truncate(end)  # a cut line would spoil the one that is written after it
                else:
                    path.unlink(missing_ok=True)
                raise
        if not end:
            flush(path.parent)

    def _read(self, path: Path) -> dict[str, Any]:
        first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) or [""]
        if first != self._first_line():
            cut = not lines and not first.endswith("\n")  # by a kill, which is nothing to speak of
            if not cut and not _is_first_line(first):
                tell_made_again("the journal", short(path))
            path.unlink()
            return {}
        known = dict[str, Any]()
        kept = [first]
        for line in lines:
            entry = self._entry(line)
            if entry is not None:
                known[entry[0]] = entry[1]
            # Two that found no journal at once have both begun it.
            if entry is not None or line == first:
                kept.append(line)
        dropped = len(lines) + 1 - len(kept)
        if dropped == 0:
            return known
        # The last line may have been cut by a kill, which is nothing to speak of.
        if dropped > 1 or lines[-1].endswith("\n"):
            tell_made_again("a line of the journal", short(path))
        # What was cut is taken off, or the next line would be glued to it.
        with replacing(path) as half:
            half.write_text("".join(kept), encoding="utf-8")
        return known

    def _entry(self, line: str) -> tuple[str, Any] | None:
        """The name and value that a line has; None for a line that isn't as it was written."""
        if not line.endswith("\n"):
            return None
        try:
            name, value, seal = from_json(line)
        except (ValueError, TypeError):
            return None
        if not isinstance(name, str) or seal != self._seal(name, value):
            return None
        return name, value


def _is_first_line(line: str) -> bool:
    """Whether a line is how the journal of some question begins."""
    try:
        question = from_json(line)
    except ValueError:
        return False
    return isinstance(question, list) and len(question) == 1


def read_items(path: Path) -> tuple[Outcome, ...]:
    """Return the outcomes of a measurement, a row an item. `DataError` for a file that can't be read."""
    return outcomes_of(read_table(path), path)


def read_table(path: Path) -> Any:
    """Return the items of a measurement as an Arrow table. `DataError` for a file that can't be read, or isn't one of items."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opened(path) as raw, pq.ParquetFile(raw) as file:
            _check_items(file)
            return file.read()
    except (OSError, LookupError, ValueError, TypeError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


def outcomes_of(table: Any, path: Path) -> tuple[Outcome, ...]:
    """Return the outcomes in a table of items; what isn't in columns is in their facts. `DataError`, which names `path`, where one is incomplete."""
    try:
        if any(table[name].null_count for name in COLUMNS):
            raise ValueError("some of its items have no name, value or weight")
        rows = table.to_pylist()
        return tuple(Outcome(*(row.pop(name) for name in COLUMNS), facts=row) for row in rows)
    except (LookupError, ValueError, TypeError) as error:
        raise unreadable(path, error) from error


def _check_items(file: Any) -> None:
    """Raise `ValueError` for a Parquet file that isn't one of items, or would unpack to more than anybody measures."""
    import pyarrow as pa

    if missing := [name for name in COLUMNS if name not in file.schema_arrow.names]:
        raise ValueError(f"it has no column {', '.join(map(repr, missing))}")
    kinds = {name: file.schema_arrow.field(name).type for name in COLUMNS}
    text = pa.types.is_string(kinds["item"]) or pa.types.is_large_string(kinds["item"])
    if not text or not all(pa.types.is_floating(kinds[name]) for name in ("value", "weight")):
        raise ValueError(f"its columns are {', '.join(f'{name}: {kind}' for name, kind in kinds.items())}; they must be a text and two numbers")
    size = sum(file.metadata.row_group(at).total_byte_size for at in range(file.metadata.num_row_groups))
    if file.metadata.num_rows > MOST or size > LARGEST:
        raise ValueError(f"it holds {file.metadata.num_rows} items of {size} bytes; at most {MOST} of {LARGEST} can be read")


def called(item: str) -> str:
    """Return an item's name among others: in stores of format 1 a row had all 64 digits of its key, which begins with the 16 that it has now."""
    return item[:16] if len(item) == 64 else item


def write_items(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write one row an item; each of the facts is a column."""
    import pyarrow as pa

    columns: dict[str, Any] = {
        "item": pa.array([o.item for o in outcomes], pa.string()),
        "value": pa.array([o.value for o in outcomes], pa.float64()),
        "weight": pa.array([o.weight for o in outcomes], pa.float64()),
    }
    columns |= {name: pa.array([o.facts[name] for o in outcomes]) for name in (outcomes[0].facts if outcomes else ())}
    with path.open("wb") as file:
        write_table(pa.table(columns), file)
    flush(path)


WAYS: Final = 3
"""In so many ways items were written; the last is today's, the others are those of older versions."""


def write_table(table: Any, file: Any, way: int = WAYS - 1) -> None:
    """Write a table of items into an open file, in one of the ways in which calibrant has done it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # What makes large tables quick makes these, of a few hundred rows and hardly a value twice, a fifth larger. The bytes of the numbers lie apart,
    # since most were computed with fewer digits than they are kept with.
    apart = {path: "BYTE_STREAM_SPLIT" for path, kind in map(leaf, table.schema) if pa.types.is_floating(kind)}
    small = {"compression_level": 19, "use_dictionary": False, "write_statistics": False, "store_schema": False}
    options: list[dict[str, Any]] = [{}, small, {**small, "column_encoding": apart or None}]
    pq.write_table(table, file, compression="zstd", **options[way])


def leaf(column: Any) -> tuple[str, Any]:
    """Return what Parquet calls the innermost values of a column, and their type."""
    import pyarrow as pa

    path, kind = column.name, column.type
    while pa.types.is_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return path, kind
