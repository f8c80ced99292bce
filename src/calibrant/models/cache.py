"""The user's cache of models. It keeps dequantized models, so that a GGUF file that was opened once
opens again without being parsed and dequantized; and files that packages bring in parts, joined.

They lie in `$CALIBRANT_CACHE`, or `calibrant` in `$XDG_CACHE_HOME`, or in `~/.cache`: below
`models` a folder for each file and dtype, as large as the weights, and below `joined` the files.
Any of it may be deleted at any time. What can't be written isn't kept: `CALIBRANT_CACHE=/dev/null`
keeps nothing.

The folder of a dequantized model is named after the file's bytes, the dtype and the versions of
what dequantized it. It holds what transformers made of them, bit for bit. It appears by rename, and
one process writes at a time. What no longer has its checksum is deleted and made anew.
"""

import importlib.util
import os
import shutil
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast, final

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrant.errors import DataError, ModelError
from calibrant.models.folder import file_digest
from calibrant.models.saving import same_rights
from calibrant.numerics import type_name
from calibrant.spec import identity
from calibrant.spec.named import NamedModel
from calibrant.system.durable import (
    UNFINISHED,
    appearing,
    read_json,
    reason,
    replacing,
    sealed,
    take,
    text_of_json,
)
from calibrant.system.seals import Purpose, tell_made_again

CACHE: Final = "CALIBRANT_CACHE"
LAYOUT: Final = 2
"""The version of a kept folder's form. A folder of another version is made anew."""
DESCRIPTION: Final = "kept.json"
ROOM: Final = 4
"""A model is kept only where so many times its size is free: a cache is no reason for a full disk.
"""

_CHUNK: Final = 2**20
_HEADERS: Final = 0.01
"""The share of a kept model's files that isn't numbers, at most."""


def cache_folder() -> Path:
    """Return the folder of what Calibrant can make again, as the user's environment says; it
    needn't exist.
    """
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calibrant"


@final
@dataclass(frozen=True)
class CachedModel:
    """The place in the cache of one dequantized model: of the file with this `digest` (`sha256:…`),
    in this dtype.
    """

    digest: str
    dtype: torch.dtype

    def load(self) -> tuple[PreTrainedModel, str] | None:
        """Return the model and its note, if they are kept and undamaged. A damaged folder is
        deleted.
        """
        if not self._folder.is_dir():
            return None
        try:
            description = read_json(self._folder / DESCRIPTION, self._purpose, required=True)
            # A thread reads the files for their checksums while this one makes the model of them.
            with ThreadPoolExecutor(1) as threads:
                sums = threads.submit(_checksums, self._folder)
                config = AutoConfig.from_pretrained(self._folder, trust_remote_code=False)
                options: dict[str, Any] = {
                    "config": config,
                    "trust_remote_code": False,
                    "dtype": self.dtype,
                    "use_safetensors": True,
                    "output_loading_info": True,
                }
                opened = AutoModelForCausalLM.from_pretrained(self._folder, **options)
                model, loaded = cast(Any, opened)
            if sums.result() == description["checksums"] and not any(loaded.values()):
                return model, str(description["note"])
        except (OSError, DataError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
            pass  # whatever is wrong with it, it can be made again
        tell_made_again("a dequantized model", str(self._folder))
        shutil.rmtree(self._folder, ignore_errors=True)
        return None

    def store(self, model: PreTrainedModel, note: str) -> None:
        """Keep the model, unless there is no room or another process is keeping it. What other
        versions kept of the same file is deleted.
        """
        place = self._folder.parent
        try:
            place.mkdir(parents=True, exist_ok=True)
            # The files will take about as much as the parameters' memory.
            size = sum(parameter.nbytes for parameter in model.parameters())
            if shutil.disk_usage(place).free < ROOM * size:
                return
            with (place / ".lock").open("w") as lock:
                if take(lock) and not self._folder.exists():
                    self._write(model, note, place / f"{UNFINISHED}-{self._folder.name}")
        except (OSError, SafetensorError):
            pass  # what can't be kept is made again

    def _write(self, model: PreTrainedModel, note: str, unfinished: Path) -> None:
        # Nothing is flushed to the disk: should a power failure damage it, its checksums tell.
        with appearing(self._folder, unfinished):
            model.save_pretrained(unfinished)
            description = {"note": note, "checksums": _checksums(unfinished), **self._identity}
            text = text_of_json(sealed(description, self._purpose))
            (unfinished / DESCRIPTION).write_text(text, encoding="utf-8")
            same_rights(unfinished / DESCRIPTION)
        # Copies of the same file by other versions are of no use any more.
        for folder in self._folder.parent.glob(f"{self._prefix}-*"):
            if folder != self._folder:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _prefix(self) -> str:
        return f"{self.digest.rpartition(':')[2][:32]}-{str(self.dtype).removeprefix('torch.')}"

    @cached_property
    def _folder(self) -> Path:
        suffix = identity(self._identity).rpartition(":")[2][:8]
        return cache_folder() / "models" / f"{self._prefix}-{suffix}"

    @property
    def _purpose(self) -> Purpose:
        return {"kind": "dequantized model", "of": identity(self._identity)}

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that the kept bits depend on."""
        versions = {name: version(name) for name in ("transformers", "gguf", "torch", "numpy")}
        return {
            "layout": LAYOUT,
            "file": self.digest,
            "dtype": str(self.dtype),
            "versions": versions,
        }


def may_be_kept(numbers: int, dtype: torch.dtype) -> bool:
    """Return whether a model of so many numbers is kept in this type. Which one it is isn't looked
    at: for that the whole file would have to be read.
    """
    size = numbers * dtype.itemsize
    name = type_name(dtype)
    for folder in (cache_folder() / "models").glob(f"*-{name}-*"):
        kept = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        if abs(kept - size) <= _HEADERS * size:
            return True
    return False


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of each file that a model is read from. It finds damage, four times as fast as a
    digest would.
    """
    paths = [path for path in sorted(folder.iterdir()) if path.name != DESCRIPTION]
    return {path.name: _checksum(path) for path in paths}


def _checksum(path: Path) -> int:
    total = 0
    chunk = memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            total = zlib.crc32(chunk[:size], total)
    return total


def path_of(model: NamedModel) -> Path:
    """Return the file of a model with a short name. Installed packages have it, which are read as
    data and never imported. A file in parts is joined once, in the user's cache.

    Raises `ModelError` where a package isn't installed, and where the joined file isn't the one
    whose digest is known.
    """
    parts: list[Path] = []
    for name in model.parts:
        part = _file_in_package(name)
        if part is None:
            raise ModelError(
                f"{model.name} is read from {model.packages} installed; bring it with: {model.pip}",
                subject=model.name,
            )
        parts.append(part)
    return parts[0] if len(parts) == 1 else _joined(model, parts)


def _file_in_package(part: str) -> Path | None:
    """A file of an installed package, `PACKAGE/PATH`; None where it isn't installed. The package is
    never imported, since that would run it.
    """
    name, _, path = part.partition("/")
    package = importlib.util.find_spec(name)
    if package is None:
        return None
    for folder in package.submodule_search_locations or ():
        if (Path(folder) / path).is_file():
            return Path(folder) / path
    return None


def _joined(model: NamedModel, parts: Sequence[Path]) -> Path:
    # Hashing the whole file each time takes longer than opening it, so a note beside it says that
    # this very file had the digest.
    whole = cache_folder() / "joined" / model.file
    checked = not model.digest or _was_checked(whole, model.digest)
    if checked and _fits_parts(whole, parts):
        return whole
    try:
        whole.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _rewriting(whole) as unfinished:
                _join(unfinished, parts)
                if model.digest and file_digest(unfinished) != model.digest:
                    raise ModelError(
                        f"the parts of {model.name} make another file than the model; install "
                        f"them again with: {model.pip} --force-reinstall",
                        subject=model.name,
                    )
        except ModelError:
            # The file that was there isn't the model either: this is reached only where it wasn't
            # checked, or doesn't fit the parts.
            whole.unlink(missing_ok=True)
            raise
        if model.digest:
            with _rewriting(_checked_file(whole)) as unfinished:
                unfinished.write_text(_checked_line(whole, model.digest), encoding="utf-8")
    except OSError as error:
        raise ModelError(
            f"{model.name} is in parts and can't be joined in {str(whole.parent)!r} "
            f"({reason(error)})",
            subject=model.name,
        ) from error
    return whole


def _rewriting(file: Path) -> AbstractContextManager[Path]:
    """Give a file that takes the place of `file` at the end; no other process writes to it."""
    return replacing(file, file.with_name(f".{os.getpid()}-{file.name}"), flushed=False)


def _join(whole: Path, parts: Sequence[Path]) -> None:
    with whole.open("wb") as file:
        for part in parts:
            with part.open("rb") as content:
                shutil.copyfileobj(content, file, _CHUNK)


def _fits_parts(whole: Path, parts: Sequence[Path]) -> bool:
    """Return whether a file is as large as all parts together and as new as the newest."""
    if not whole.is_file():
        return False
    joined = whole.stat()
    stats = [part.stat() for part in parts]
    as_large = joined.st_size == sum(part.st_size for part in stats)
    return as_large and joined.st_mtime >= max(part.st_mtime for part in stats)


def _was_checked(whole: Path, digest: str) -> bool:
    """Return whether this very file had the digest: place, size and time are those it had then."""
    try:
        return _checked_file(whole).read_text(encoding="utf-8") == _checked_line(whole, digest)
    except (OSError, UnicodeDecodeError):
        return False


def _checked_file(whole: Path) -> Path:
    """Return the file of the note which says that `whole` was checked."""
    return whole.with_name(f"{whole.name}.checked")


def _checked_line(whole: Path, digest: str) -> str:
    status = whole.stat()
    return f"{whole} {status.st_size} {status.st_mtime_ns} {digest}\n"
