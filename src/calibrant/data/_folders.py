"""Which files a user's path stands for, and which parts they are: one file, the files of a
folder, or those that a pattern matches.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import has_magic
from itertools import islice
from pathlib import Path
from typing import Final

from calibrant.data._files import PICKLES, SUFFIXES, known_suffix, reason_of, suffix_of
from calibrant.errors import DataError
from calibrant.spec.foreign import user_path

LOOKED_THROUGH: Final = 200_000
"""How many names are looked at to find the files of a folder or a pattern."""
MOST_FILES: Final = 10_000
"""Data files of a folder or a pattern at most."""
LONGEST_DESCRIPTION: Final = 1 << 24
"""Bytes of a file in which `datasets` lists splits or files at most."""

File = tuple[Path, str]
"""A file, and what messages call it."""

_SPLIT: Final = re.compile(r"(train|validation|valid|val|dev|test)(?![^\W_])", re.IGNORECASE)
_SAME: Final = {"valid": "validation", "val": "validation", "dev": "validation"}
_KINDS: Final[Mapping[str, Callable[[int], bool]]] = {
    "a folder": stat.S_ISDIR,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
    "a pipe": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
}
_DESCRIPTIONS: Final = (
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
)


@dataclass(frozen=True)
class Files:
    """The files behind a path by the split that they are; without splits, all are under the empty
    name.

    `ignored` are files that aren't used, `assumed` says that the files of the train split aren't
    called so.
    """

    splits: Mapping[str, Sequence[File]]
    ignored: Sequence[str] = ()
    assumed: bool = False

    @property
    def all(self) -> tuple[File, ...]:
        """Every file that is read, in order."""
        return tuple(file for part in self.parts for file in part)

    @property
    def parts(self) -> tuple[tuple[File, ...], ...]:
        """The files of each split that is used."""
        return tuple(tuple(self.splits[name]) for name in self.used)

    @property
    def used(self) -> tuple[str, ...]:
        """The split that calibrates and the one that is measured on, as far as there are such."""
        return tuple(name for name in (self.calibrate, self.measure) if name is not None)

    @property
    def calibrate(self) -> str | None:
        """The split that calibrates; if it is the only one, it is divided. None where there is
        only a split that is measured on.
        """
        if len(self.splits) == 1 and not {"test", "validation"}.isdisjoint(self.splits):
            return None
        return next(name for name in ("train", "validation", "test", "") if name in self.splits)

    @property
    def measure(self) -> str | None:
        """The split that is measured on, if there is one beside, or nothing else: test, else
        validation.
        """
        return next(
            (
                name
                for name in ("test", "validation")
                if name in self.splits and name != self.calibrate
            ),
            None,
        )

    @property
    def note(self) -> str:
        """Return which split is what, and what isn't used, as clauses."""
        if self.calibrate is None:
            what = f"all of it is {self.measure!r} and measures; nothing calibrates"
        elif self.measure is None:
            what = f"all of it is {self.calibrate!r} and divided by hash" if self.calibrate else ""
        else:
            first = "what names no split" if self.assumed else repr(self.calibrate)
            what = f"{first} calibrates and {self.measure!r} measures"
        unused = [name for name in self.splits if name not in self.used]
        others = ", ".join([*map(repr, unused), *map(repr, self.ignored)])
        return "; ".join(filter(None, [what, f"not used: {others}" if others else ""]))


def files_of(text: str) -> Files:
    """Return what a path stands for. `DataError` if nothing is there, or nothing that can be
    read, or a mixture.
    """
    path = user_path(text, DataError)
    if os.path.isdir(path):
        return _folder(path, text.rstrip("/\\") or text)
    if has_magic(text) and not os.path.lexists(path):
        return _pattern(str(path), text)
    suffix_of(path, text)
    _check_regular(path, text)
    return Files({"": [(path, text)]})


def _check_regular(path: Path, label: str) -> None:
    """`DataError` for what is no file: it isn't there, or opening it would wait, or never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.islink(path):
            raise DataError(
                f"{label!r} is a link to something that isn't there; mend it or take it away",
                subject=label,
            ) from error
        raise DataError(
            f"there is no file {label!r}; give the path of a data file or of a folder of them, or the name of a source",
            subject=label,
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(
            f"{label!r} can't be opened: {reason_of(error)}; give a file that may be read",
            subject=label,
        ) from error
    if not stat.S_ISREG(mode):
        kind = next((name for name, has in _KINDS.items() if has(mode)), "something else")
        raise DataError(
            f"{label!r} is {kind} and no file; write what comes out of it to a file first",
            subject=label,
        )


def _folder(folder: Path, label: str) -> Files:
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(
            f"the folder {label!r} may not be read; change its permissions", subject=label
        )
    if os.path.isfile(folder / "dataset_dict.json"):
        return _dataset_dict(folder, label)
    if os.path.isfile(folder / "state.json"):
        return Files({"": _dataset(folder, label)})
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, LOOKED_THROUGH + 1)]
    if len(names) > LOOKED_THROUGH:
        raise DataError(
            f"{label!r} holds more than {LOOKED_THROUGH:,} names; give a folder that holds the data files only",
            subject=label,
        )
    return _sorted_out([(folder / name, f"{label}/{name}") for name in names], label)


def _pattern(pattern: str, label: str) -> Files:
    files = [Path(name) for name in dict.fromkeys(_matching(pattern, label))]
    if not files:
        raise DataError(
            f"nothing matches {label!r}; give a pattern that names data files, such as 'data/*.jsonl'",
            subject=label,
        )
    return _sorted_out([(path, str(path)) for path in files], label)


def _matching(pattern: str, label: str) -> Iterator[str]:
    """Yield what a pattern names, as `glob` has it, but that `**` follows no links. `DataError`
    if there is too much to look through.
    """
    # Not the standard glob: its ** follows links, of which a circle never ends, and it counts
    # nothing.
    waiting: list[tuple[str, tuple[str, ...]]] = [("", Path(pattern).parts)]
    looked_at = 0
    while waiting:
        place, (part, *rest) = waiting.pop()
        deep, rest = part == "**", tuple(rest)
        if not deep and not has_magic(part):
            if rest:
                waiting.append((os.path.join(place, part), rest))
            elif os.path.lexists(os.path.join(place, part)):
                yield os.path.join(place, part)
            continue
        if deep:
            waiting.append((place, rest or ("*",)))
        for entry in _entries(place or "."):
            looked_at += 1
            if looked_at > LOOKED_THROUGH:
                most = f"{LOOKED_THROUGH:,}"
                raise DataError(
                    f"{label!r} would look through more than {most} names; begin it with a folder nearer to the files",
                    subject=label,
                )
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if hidden or not (deep or fnmatch(entry.name, part)):
                continue
            inside, further = os.path.join(place, entry.name), (part, *rest) if deep else rest
            if not further:
                yield inside
            elif entry.is_dir(follow_symlinks=not deep):
                waiting.append((inside, further))


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield what is in a folder; nothing where that can't be known, as `glob` has it."""
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return


def _sorted_out(candidates: Sequence[File], label: str) -> Files:
    """Files in the order of their names, by split if their names say one. `DataError` if there
    are none, or too many, or of several kinds.
    """
    data = sorted(
        (
            f
            for f in candidates
            if known_suffix(f[0]) and f[0].name not in _DESCRIPTIONS and f[0].name[0] not in "._"
        ),
        key=lambda f: f[1],
    )
    if len(data) > MOST_FILES:
        raise DataError(
            f"{label!r} stands for {len(data):,} data files, and at most {MOST_FILES:,} are read; join them",
            subject=label,
        )
    data = [(path, file_label) for path, file_label in data if not os.path.isdir(path)]
    for path, file_label in data:
        _check_regular(path, file_label)
    allowed = f"a data file ends in {', '.join(SUFFIXES)}"
    if not data:
        pickled = any(
            path.suffix.lower() in PICKLES for path, _ in candidates if os.path.isfile(path)
        )
        reason = (
            "; what looks like a pickle is never read, since it can run any program"
            if pickled
            else ""
        )
        raise DataError(f"{label!r} holds no data file{reason}; {allowed}", subject=label)
    named = [(file, _split_of(file[0])) for file in data]
    splits = {
        name: [file for file, split in named if split == name]
        for name in ("train", "validation", "test", "")
    }
    parts = {name: files for name, files in splits.items() if files}
    # What is beside a measured part and isn't named is there to calibrate; beside a train part it
    # is anything.
    assumed = "" in parts and "train" not in parts and len(parts) > 1
    if assumed:
        parts["train"] = parts.pop("")
    ignored = (
        [file_label for _, file_label in parts.pop("")] if "train" in parts and "" in parts else []
    )
    kinds = sorted(
        {known_suffix(path).split(".")[1] for files in parts.values() for path, _ in files}
    )
    if len(kinds) > 1:
        raise DataError(
            f"{label!r} holds files of several kinds ({', '.join(kinds)}); choose with a pattern, such as '*.{kinds[0]}'",
            subject=label,
        )
    return Files(parts, ignored, assumed)


def _split_of(path: Path) -> str:
    match = _SPLIT.match(path.name)
    return _SAME.get(match[1].lower(), match[1].lower()) if match else ""


def _dataset_dict(folder: Path, label: str) -> Files:
    """Return what `DatasetDict.save_to_disk` wrote: a folder a split."""
    names = _described(folder / "dataset_dict.json", f"{label}/dataset_dict.json", "splits")
    splits = {
        name: _dataset(folder / name, f"{label}/{name}")
        for name in names
        if name in ("train", "validation", "test")
    }
    if not splits:
        names_there = ", ".join(names) or "none"
        raise DataError(
            f"{label!r} has the splits {names_there}; of train, validation and test it needs one, or give one split's folder",
            subject=label,
        )
    return Files(splits, [name for name in names if name not in splits])


def _dataset(folder: Path, label: str) -> list[File]:
    """Return what `Dataset.save_to_disk` wrote: Arrow files that `state.json` names, beside
    which there may be others that are a cache.
    """
    names = _described(folder / "state.json", f"{label}/state.json", "_data_files")
    arrow_files = [
        (folder / name, f"{label}/{name}") for name in names if Path(name).suffix == ".arrow"
    ]
    missing = next((label for path, label in arrow_files if not os.path.isfile(path)), None)
    if missing or not arrow_files:
        lost = missing or f"{label}/*.arrow"
        raise DataError(
            f"{lost!r} is missing, which {label}/state.json names; save the data set again",
            subject=label,
        )
    return arrow_files


def _described(path: Path, label: str, key: str) -> list[str]:
    """Return the names that a description lists under `key`, without any folder that they name:
    nothing outside is read.
    """
    try:
        if path.stat().st_size > LONGEST_DESCRIPTION:
            raise ValueError("it is far larger than any description")
        listed = json.loads(path.read_bytes())[key]
        return [
            Path(entry if isinstance(entry, str) else entry["filename"]).name for entry in listed
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{label!r} doesn't list {key!r} as `datasets` writes it; save the data set again with save_to_disk",
            subject=label,
        ) from error
