"""What a model was calibrated on, remembered without its texts, so that rows can be known again when it is measured.

Three things are kept of a row. Its `Row.example`; its content, which is its words without case, spaces and punctuation; and its runs of 13 and of 8
words, as numbers. The first two say that a measured row is the same, the last that half of it was seen, as `leaks` defines it. Runs recur between the
published sets as well, which take care of each other, so they are looked at only where a file of the user's has a part in it.
"""

import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from calibrant.data._base import Row
from calibrant.data._words import Numbers, runs, words
from calibrant.data.leaks import COMMON, compared, run_length

RUNS: Final = "calibrant.runs.npy"
"""The file beside a saved model that holds its runs of words: sorted numbers, a plain array."""

MOST: Final = 1 << 20
"""How many runs are remembered. Of more, the smallest numbers are kept: a fair sample of each row's runs, and 8 MB at most."""

FEW: Final = 8
"""Where only a sample is remembered, a row is judged by no fewer of its runs than this."""

_SIGN: Final = re.compile(r"([-+*/^=<>\u2212\u00d7\u00f7])(?=\s*\d)")
"""Signs before a number are no punctuation: 3 + 4 isn't 3 - 4."""


def content_key(row: Row) -> str:
    """The first 16 digits of the SHA-256 of an example's words, whatever their case, spaces and punctuation; `Row.example` if it has none.

    >>> content_key(Row(text="Peel an onion.")) == content_key(Row(text="peel  an ONION?"))
    True
    >>> content_key(Row(text="3 + 4")) == content_key(Row(text="3 - 4"))
    False
    """
    found = words(_SIGN.sub(lambda sign: f" sign{ord(sign[1])} ", row.subject))
    return hashlib.sha256(" ".join(found).encode("utf-8", "surrogatepass")).hexdigest()[:16] if found else row.example


@dataclass(frozen=True)
class Leaked:
    """How many measured rows a model was calibrated on: `same` examples, `respaced` ones that differ in spaces and punctuation only, and `alike` ones
    of whose runs of words it saw at least half; `rows` is how many rows were looked at."""

    same: int = 0
    respaced: int = 0
    alike: int = 0
    rows: int = 0

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def count(self) -> int:
        """How many rows leaked, each counted once, by the gravest kind."""
        return self.same + self.respaced + self.alike

    def __str__(self) -> str:
        kinds = {
            "the same example": self.same,
            "the same but for spaces and punctuation": self.respaced,
            "sharing half of their words or more": self.alike,
        }
        return f"{self.count:,} of {self.rows:,} measured rows: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.items() if count)


@dataclass(frozen=True, eq=False)
class Shown:
    """The rows that a model was calibrated on. `own_files` says whether some of them came from a file of the user's."""

    examples: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()
    runs: Numbers = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    own_files: bool = False

    @classmethod
    def of(cls, rows: Iterable[Row], own_files: bool = False) -> "Shown":
        """What is remembered of these rows."""
        distinct = list({row.key: row for row in rows}.values())
        kept = np.zeros(0, dtype=np.uint64)
        waiting: list[Numbers] = []
        for row in distinct:
            waiting += _all_runs(compared(row))
            if sum(map(len, waiting)) > MOST:
                kept, waiting = np.unique(np.concatenate([kept, *waiting]))[:MOST], []
        kept = np.unique(np.concatenate([kept, *waiting]))[:MOST]
        return cls(frozenset(row.example for row in distinct), frozenset(map(content_key, distinct)), kept, own_files)

    @classmethod
    def read(cls, manifest: Mapping[str, Any] | None, folder: str | Path) -> "Shown":
        """What `manifest`, the `calibrant.json` of a saved model, and the array beside it say; what can't be read counts as empty."""
        entries = manifest or {}
        examples, contents = (_texts(entries.get(name)) for name in ("examples", "contents"))
        return cls(examples, contents, _read_runs(Path(folder) / RUNS), entries.get("own_files") is True)

    @property
    def entries(self) -> dict[str, Any]:
        """What a saved model's manifest says of them."""
        return {"examples": sorted(self.examples), "contents": sorted(self.contents), "own_files": self.own_files}

    @property
    def files(self) -> dict[str, bytes]:
        """What stands in files beside the manifest: none for a model that was shown nothing."""
        if not len(self.runs):
            return {}
        written = io.BytesIO()
        np.save(written, self.runs, allow_pickle=False)
        return {RUNS: written.getvalue()}

    def leaked(self, measured: Iterable[Row], own_files: bool = False) -> Leaked:
        """Which of the rows that are measured these are; `own_files` says that they come from a file of the user's."""
        if not self.examples and not self.contents:
            return Leaked()
        rows = list(measured)
        same = {at for at, row in enumerate(rows) if row.example in self.examples}
        respaced = {at for at, row in enumerate(rows) if content_key(row) in self.contents} - same
        alike = self._alike(rows) - same - respaced if own_files or self.own_files else set[int]()
        return Leaked(len(same), len(respaced), len(alike), len(rows))

    def _alike(self, measured: Sequence[Row]) -> set[int]:
        """The places of the rows of whose runs at least half were seen; runs that stand in more than `COMMON` of them don't count."""
        each = [np.unique(runs(numbers, run_length(len(numbers)))) for numbers in map(compared, measured)]
        owners = np.repeat(np.arange(len(each)), [len(found) for found in each])
        if not len(owners) or not len(self.runs):
            return set()
        values, at, counts = np.unique(np.concatenate(each), return_inverse=True, return_counts=True)
        judged = counts <= COMMON
        whole = np.bincount(owners, judged[at], len(each))
        if len(self.runs) == MOST:
            judged &= values <= self.runs[-1]
        seen = judged & np.isin(values, self.runs)
        looked_at, hit = np.bincount(owners, judged[at], len(each)), np.bincount(owners, seen[at], len(each))
        enough = (looked_at > 0) & (looked_at >= np.minimum(whole, FEW))
        return set(np.flatnonzero(enough & (2 * hit >= looked_at)).tolist())


def _texts(listed: Any) -> frozenset[str]:
    return frozenset(entry for entry in listed if isinstance(entry, str)) if isinstance(listed, list) else frozenset()


def _all_runs(numbers: Numbers) -> list[Numbers]:
    """The runs by which a measured row could be known in a text: of 13 words, of 8, and the whole of a short one."""
    short = [runs(numbers, len(numbers))] if 4 <= len(numbers) < 8 else []
    return [runs(numbers, 13), runs(numbers, 8), *short]


def _read_runs(path: Path) -> Numbers:
    """The array; empty where there is none, as beside an older model, or one that isn't ours."""
    try:
        # Mapped, so that a header that promises more than the file holds is refused and not believed.
        found = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, OverflowError, TypeError, MemoryError):
        return np.zeros(0, dtype=np.uint64)
    fits = found.dtype == np.uint64 and found.ndim == 1 and len(found) <= MOST and bool(np.all(found[1:] > found[:-1]))
    return found if fits else np.zeros(0, dtype=np.uint64)
