"""Finds the files that a user's path stands for, and which parts they are: one file, the files of a
folder, or those that a pattern matches.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from glob import has_magic
from itertools import chain, islice
from pathlib import Path
from typing import Final

from calibrant.data._base import joined
from calibrant.data._files import PICKLES, SUFFIXES, known_suffix, reason_of, refuse, suffix_of
from calibrant.data._limits import LONGEST_DESCRIPTION, LOOKED_THROUGH, MOST_FILES
from calibrant.errors import DataError
from calibrant.spec.foreign import user_path

File = tuple[Path, str]
"""A file, and what messages call it."""

SPLITS: Final = ("train", "validation", "test")

_SPLIT: Final = re.compile(
    r"(?<![^\W\d_])(train|validation|valid|val|dev|test)(?![^\W\d_])", re.IGNORECASE
)
"""A split's name as a word of its own: no letter stands beside it."""
_USUAL_NAME: Final = {"valid": "validation", "val": "validation", "dev": "validation"}
_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}
_UNREAD: Final = (
    *(".ndjson", ".feather", ".orc", ".avro", ".xlsx", ".xml"),
    *(".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".tar", ".tgz"),
    *PICKLES,
)
"""Endings of files that may well be data, and that aren't read: whoever has such is told."""
_LOOKED_INTO: Final = 1_000
"""How many names are looked at to learn whether folders hold data that aren't read."""
_MOST_NAMED: Final = 20
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

    `ignored` are files and folders of files that aren't used, `assumed` says that the files of the
    train split aren't called so.
    """

    splits: Mapping[str, Sequence[File]]
    ignored: Sequence[str] = ()
    assumed: bool = False

    @property
    def all(self) -> tuple[File, ...]:
        """Every file that is read, in order."""
        return tuple(chain.from_iterable(self.parts))

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
        if len(self.splits) == 1 and not self.splits.keys().isdisjoint(("test", "validation")):
            return None
        return self._first_present(*SPLITS, "")

    @property
    def measure(self) -> str | None:
        """The split that is measured on, if there is one beside, or nothing else: test, else
        validation.
        """
        name = self._first_present("test", "validation")
        if name == self.calibrate:
            return None
        return name

    def _first_present(self, *names: str) -> str | None:
        for name in names:
            if name in self.splits:
                return name
        return None

    @property
    def note(self) -> str:
        """Return which split is what, and what isn't used, as clauses."""
        unused = [name for name in self.splits if name not in self.used]
        unused += self.ignored
        if not unused:
            return self._uses
        others = ", ".join(map(repr, unused[:_MOST_NAMED]))
        if len(unused) > _MOST_NAMED:
            others += f" and {len(unused) - _MOST_NAMED:,} more"
        return joined(self._uses, f"not used: {others}")

    @property
    def _uses(self) -> str:
        """Which split is what; nothing where a file names none."""
        calibrate = self.calibrate
        if calibrate is None:
            return f"all of it is {self.measure!r} and measures; nothing calibrates"
        if self.measure is not None:
            calibrating = "what names no split" if self.assumed else repr(calibrate)
            return f"{calibrating} calibrates and {self.measure!r} measures"
        if calibrate:
            return f"all of it is {calibrate!r} and divided by hash"
        return ""


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
    """Raise `DataError` for what isn't there, or is no file: opening it could wait, or not end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        if os.path.islink(path):
            message = "is a link to something that isn't there; mend it or take it away"
            refuse(f"{label!r} {message}", label, error)
        advice = "give the path of a data file or of a folder of them, or the name of a source"
        refuse(f"there is no file {label!r}; {advice}", label, error)
    except (OSError, ValueError) as error:
        message = f"can't be opened: {reason_of(error)}; give a file that may be read"
        refuse(f"{label!r} {message}", label, error)
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        advice = "write what comes out of it to a file first"
        refuse(f"{label!r} is {kind} and no file; {advice}", label)


def _folder(folder: Path, label: str) -> Files:
    if not os.access(folder, os.R_OK | os.X_OK):
        refuse(f"the folder {label!r} may not be read; change its permissions", label)
    if os.path.isfile(folder / "dataset_dict.json"):
        return _dataset_dict(folder, label)
    if os.path.isfile(folder / "state.json"):
        return Files({"": _dataset(folder, label)})
    with os.scandir(folder) as entries:
        names = [entry.name for entry in islice(entries, LOOKED_THROUGH + 1)]
    if len(names) > LOOKED_THROUGH:
        refuse(
            f"{label!r} holds more than {LOOKED_THROUGH:,} names; give a folder that holds the "
            "data files only",
            label,
        )
    candidates = [(folder / name, f"{label}/{name}") for name in names]
    return _by_split(candidates, label, len(folder.parts))


def _pattern(pattern: str, label: str) -> Files:
    paths = [Path(name) for name in dict.fromkeys(_matching(pattern, label))]
    if not paths:
        refuse(
            f"nothing matches {label!r}; give a pattern that names data files, such as "
            "'data/*.jsonl'",
            label,
        )
    fixed = 0
    for part in Path(pattern).parts:
        if has_magic(part):
            break
        fixed += 1
    return _by_split([(path, str(path)) for path in paths], label, fixed)


def _matching(pattern: str, label: str) -> Iterator[str]:
    """Yield what a pattern names, as `glob` has it, but that `**` follows no links. `DataError`
    if there is too much to look through.
    """
    lookup = _Lookup(label)
    # Folders, each with the parts of the pattern that are to be found below it.
    waiting: list[tuple[str, tuple[str, ...]]] = [("", Path(pattern).parts)]
    while waiting:
        folder, parts = waiting.pop()
        rest = parts[1:]
        if parts[0] == "**":
            # It may stand for no folder at all; at the end of a pattern it is every file.
            waiting.append((folder, rest or ("*",)))
            # What is inside a folder may be any number of folders deeper.
            waiting += [(inner, parts) for inner in lookup.folders(folder)]
            continue
        for path in lookup.matches(folder, parts[0], folders_only=bool(rest)):
            if rest:
                waiting.append((path, rest))
            else:
                yield path


class _Lookup:
    """Looks through folders for a pattern, and counts the names there.

    Not the standard glob: its ** follows links, of which a circle never ends, and it counts
    nothing.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._looked_at = 0

    def folders(self, folder: str) -> Iterator[str]:
        """Yield the folders in a folder, without links and hidden ones."""
        for entry in self._entries(folder):
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield os.path.join(folder, entry.name)

    def matches(self, folder: str, part: str, folders_only: bool) -> Iterator[str]:
        """Yield what one part of a pattern, which isn't `**`, names in a folder."""
        if not has_magic(part):
            path = os.path.join(folder, part)
            if folders_only or os.path.lexists(path):
                yield path
            return
        for entry in self._entries(folder):
            hidden = entry.name.startswith(".") and not part.startswith(".")
            if hidden or not fnmatch(entry.name, part):
                continue
            if not folders_only or entry.is_dir():
                yield os.path.join(folder, entry.name)

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        # Nothing where that can't be known, as `glob` has it.
        with suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                self._looked_at += 1
                if self._looked_at > LOOKED_THROUGH:
                    refuse(
                        f"{self._label!r} would look through more than {LOOKED_THROUGH:,} names; "
                        "begin it with a folder nearer to the files",
                        self._label,
                    )
                yield entry


def _by_split(candidates: Sequence[File], label: str, fixed: int) -> Files:
    """Return files in the order of their names, by split if their names say one. The first
    `fixed` parts of each path are where the user's own path leads, and say nothing.

    Raises `DataError` if there are none, or too many, or of several kinds.
    """
    splits: dict[str, list[File]] = {}
    for file in _data_files(candidates, label):
        splits.setdefault(_split_of(file[0], fixed), []).append(file)
    unnamed = splits.pop("", [])
    ignored: list[str] = []
    assumed = False
    # What is beside a measured part and isn't named is there to calibrate; beside a train part it
    # is anything.
    if not splits:
        splits[""] = unnamed
    elif "train" in splits:
        ignored = list(map(_label_of, unnamed))
    elif unnamed:
        assumed = True
        splits["train"] = unnamed
    ignored += _passed_over(candidates)
    used = chain.from_iterable(splits.values())
    kinds = sorted({known_suffix(path).split(".")[1] for path, _ in used})
    if len(kinds) > 1:
        message = f"holds files of several kinds ({', '.join(kinds)})"
        refuse(f"{label!r} {message}; choose with a pattern, such as '*.{kinds[0]}'", label)
    return Files({name: splits[name] for name in (*SPLITS, "") if name in splits}, ignored, assumed)


def _data_files(candidates: Sequence[File], label: str) -> list[File]:
    """Return the data files in the order of their names. Raises `DataError` if there are none, or
    too many.
    """
    files = sorted(filter(_may_be_data, candidates), key=_label_of)
    if len(files) > MOST_FILES:
        message = f"stands for {len(files):,} data files, and at most {MOST_FILES:,} are read"
        refuse(f"{label!r} {message}; join them", label)
    # A folder may be called `train.jsonl`, as Spark writes them; it isn't looked into.
    files = [file for file in files if not os.path.isdir(file[0])]
    if not files:
        reason = ""
        for path, _ in candidates:
            if path.suffix.lower() in PICKLES and os.path.isfile(path):
                reason = "; what looks like a pickle is never read, since it can run any program"
        refuse(
            f"{label!r} holds no data file{reason}; a data file ends in {', '.join(SUFFIXES)}",
            label,
        )
    for path, file_label in files:
        _check_regular(path, file_label)
    return files


def _may_be_data(file: File) -> bool:
    path, _ = file
    if _is_hidden(path.name) or path.name in _DESCRIPTIONS:
        return False
    return known_suffix(path) != ""


def _is_hidden(name: str) -> bool:
    """Return whether a name begins as those do that programs keep for themselves."""
    return name[0] in "._"


def _passed_over(candidates: Sequence[File]) -> list[str]:
    """Return the names of what may well be data and isn't read: files of kinds that aren't known,
    and folders that hold files.
    """
    looked_into: set[Path] = set()
    for path, _ in candidates:
        looked_into.update(path.parents)
    names_left = _LOOKED_INTO
    found: list[str] = []
    for path, label in sorted(candidates, key=_label_of):
        if not os.path.isdir(path):
            if _is_unread(path):
                found.append(label)
        # A pattern that goes deeper finds a folder and the files in it.
        elif path not in looked_into and not _is_hidden(path.name):
            inside, looked_at = _holds_data(path, names_left)
            names_left -= looked_at
            if inside:
                found.append(f"{label}/")
    return found


def _is_unread(path: Path) -> bool:
    """Return whether a file may well be data, and is of a kind that isn't read."""
    if _is_hidden(path.name) or known_suffix(path):
        return False
    return path.suffix.lower() in _UNREAD


def _holds_data(folder: Path, most: int) -> tuple[bool, int]:
    """Return whether a folder holds a file that may be data, as far as its first `most` names say,
    and how many names were looked at.
    """
    looked_at = 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        for name in names:
            if looked_at >= most:
                return False, looked_at
            looked_at += 1
            path = Path(place, name)
            if _is_unread(path) or _may_be_data((path, name)):
                return True, looked_at
        looked_at += len(folders)
        if looked_at >= most:
            return False, looked_at
    return False, looked_at


def _label_of(file: File) -> str:
    return file[1]


def _split_of(path: Path, fixed: int) -> str:
    """Return the split that a file's name says, or else the nearest of the folders that it is in,
    behind the first `fixed` parts of its path; empty if none says one.

    >>> _split_of(Path("data/test/wiki_train.jsonl"), 1)
    'train'
    >>> _split_of(Path("data/test/wiki.jsonl"), 1)
    'test'
    """
    for name in reversed(path.parts[fixed:]):
        words = _SPLIT.findall(name)
        if words:
            # Where there are several, the one that the name begins with, or else the last: the
            # name of a split follows that of its set.
            begins = _SPLIT.match(name)
            word = words[-1] if begins is None else begins[1]
            return _USUAL_NAME.get(word.lower(), word.lower())
    return ""


def _dataset_dict(folder: Path, label: str) -> Files:
    """Return what `DatasetDict.save_to_disk` wrote: a folder a split."""
    names = _described(folder / "dataset_dict.json", f"{label}/dataset_dict.json", "splits")
    splits: dict[str, list[File]] = {}
    for name in names:
        if name in SPLITS:
            splits[name] = _dataset(folder / name, f"{label}/{name}")
    if not splits:
        refuse(
            f"{label!r} has the splits {', '.join(names) or 'none'}; of train, validation and "
            "test it needs one, or give one split's folder",
            label,
        )
    return Files(splits, [name for name in names if name not in splits])


def _dataset(folder: Path, label: str) -> list[File]:
    """Return what `Dataset.save_to_disk` wrote: Arrow files that `state.json` names, beside
    which there may be others that are a cache.
    """
    names = _described(folder / "state.json", f"{label}/state.json", "_data_files")
    names = [name for name in names if Path(name).suffix == ".arrow"]
    missing = [name for name in names if not os.path.isfile(folder / name)]
    if not names:
        missing = ["*.arrow"]
    if missing:
        lost = f"{label}/{missing[0]}"
        refuse(
            f"{lost!r} is missing, which {label}/state.json names; save the data set again", label
        )
    return [(folder / name, f"{label}/{name}") for name in names]


def _described(path: Path, label: str, key: str) -> list[str]:
    """Return the names that a description lists under `key`, without any folder that they name:
    nothing outside is read.
    """
    names: list[str] = []
    try:
        if path.stat().st_size > LONGEST_DESCRIPTION:
            raise ValueError("it is far larger than any description")
        for entry in json.loads(path.read_bytes())[key]:
            name = entry if isinstance(entry, str) else entry["filename"]
            # Its last part alone: `../../secret` is a file of this folder called `secret`.
            names.append(Path(name).name)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        refuse(
            f"{label!r} doesn't list {key!r} as `datasets` writes it; save the data set again "
            "with save_to_disk",
            label,
            error,
        )
    return names
