"""Everything Calibrant raises on purpose.

CalibrantError                 one root; carries the subject it is about
├── InputError                 what the user gave is wrong: exit code 2, one sentence, no traceback
│   ├── SpecError              a text that is no spec; an unknown name or parameter
│   ├── DataError              a file, source, column, format, packing or budget
│   ├── ModelError             a model that can't be opened, viewed or saved
│   ├── TargetError            a sparsity or N:M pattern that doesn't exist or doesn't fit a matrix
│   ├── NumericsError          NaN or infinity in a weight or an activation; a Gram beyond repair
│   ├── MissingPackageError    a package that isn't installed; the message names its extra
│   ├── OutputError            a folder that isn't ours to write, a disk that is full
│   └── StudyError             a study that can't be run: every mistake in it, each with its line
├── WalkError                  a model's forward that can't be followed block by block: exit code 1
├── RankError                  one of several processes was lost, or went its own way: exit code 1
└── WorkerError                a worker of a study that died: why an answer isn't there, or, where
                               none is left, why the study ended: exit code 1

A message says what was given, what is allowed and what to do. What was given is repeated to a line
at most, however long it was.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

QUOTED: Final = 120
"""Characters of a quoted text that a message repeats at most: its beginning and, where a path
has its file's name, its end.
"""
LINE: Final = 1_000
"""Characters of a line of a message at most; what is cut of a longer one is its middle, since
its end says what to do.
"""
INTERRUPTED: Final = "interrupted; run the same command again to continue"
"""What an interrupted command says."""

_LONG_QUOTATION: Final = re.compile(rf"""(?<!\w)(['"])((?:(?!\1)[^\n]){{{QUOTED},}})\1(?!\w)""")
"""An apostrophe within a word opens no quotation."""


class CalibrantError(Exception):
    """The root. `subject` names what the error is about: a matrix, a file, a spec."""

    def __init__(self, message: str, *, subject: str = "") -> None:
        super().__init__("\n".join(map(fitted, message.split("\n"))))
        self.subject = subject


class InputError(CalibrantError):
    """What the user gave can't be used."""


class SpecError(InputError):
    """A text that can't be read as a spec, or names something that doesn't exist."""


class DataError(InputError):
    """Rows, columns, formats or budgets that don't fit."""


class ModelError(InputError):
    """A model that can't be opened, viewed or saved."""


class MissingPackageError(InputError):
    """An optional package that is not installed."""


class TargetError(InputError):
    """A compression target that doesn't exist, or doesn't fit the matrix."""


class NumericsError(InputError):
    """Numbers that no method can work with; `subject` is the matrix."""


class OutputError(InputError):
    """A place that results can't be written to."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a study: `line` of its file (0 where there is no file), `where` in it
    (`data[2]`), and what is wrong.
    """

    line: int
    where: str
    message: str

    def __str__(self) -> str:
        parts: list[str] = []
        if self.line:
            parts.append(f"line {self.line}")
        parts += [self.where, self.message]
        return ": ".join(filter(None, parts))


class StudyError(InputError):
    """A study with mistakes; `problems` are all of them, and the message has one line for each.
    `subject` is the file.
    """

    def __init__(self, problems: Sequence[Problem], *, subject: str = "") -> None:
        self.problems = tuple(problems)
        count = "a mistake" if len(self.problems) == 1 else f"{len(self.problems)} mistakes"
        super().__init__(
            "\n".join([f"{subject or 'the study'} has {count}:", *map(str, self.problems)]),
            subject=subject,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # `Exception` would make it again of its message.
        return partial(type(self), subject=self.subject), (self.problems,)


class WalkError(CalibrantError):
    """A forward that can't be followed; `subject` is the block or matrix."""


class RankError(CalibrantError):
    """Processes that torchrun started together and that no longer are."""


class WorkerError(CalibrantError):
    """A worker that died; `subject` is the worker."""


def fitted(line: str) -> str:
    """Return a line of a message so that it repeats no more than can be read of what was given."""
    if len(line) <= QUOTED:
        return line
    shorter = _LONG_QUOTATION.sub(_shortened, line)
    return shorter if len(shorter) <= LINE else f"{shorter[: LINE // 2]} … {shorter[-LINE // 4 :]}"


def _shortened(match: re.Match[str]) -> str:
    mark, text = match.groups()
    return (
        match[0]
        if len(text) <= QUOTED
        else f"{mark}{text[: QUOTED // 2]}…{text[1 - QUOTED // 2 :]}{mark}"
    )
