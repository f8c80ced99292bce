"""What an open model is, and saving it as an ordinary Hugging Face folder, complete or not at all.

Each folder gets a manifest, `calibrant.json`, which says what the model is and has the hash of
every file.
"""

import copy
import errno
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Final, TypeAlias, final

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from calibrant.errors import DataError, ModelError, OutputError
from calibrant.models.digests import file_digest
from calibrant.models.folder import CONFIG
from calibrant.models.on_disk import write_shards
from calibrant.models.quiet import Refusal, quiet, quoted
from calibrant.models.rounded_inputs import write_rounding
from calibrant.models.viewing import IN_MEMORY, Residence
from calibrant.spec.foreign import user_path, visible
from calibrant.system.durable import appearing, flush, read_json, sealed, text_of_json
from calibrant.system.seals import SEAL, BrokenSealError, Purpose

FACTS: Final = {"model_name": "of", "method": "by", "target": "at", "data": "calibrated on"}
"""What a message says of a folder that we saved: each entry of the manifest, and the word before
it.
"""
FULL: Final = (errno.ENOSPC, errno.EDQUOT)

MANIFEST: Final = "calibrant.json"
FILES: Final = "files"
"""The entry of a manifest with the SHA-256 of each file, by its path in the folder."""
VERSION: Final = "calibrant"
"""The entry of a manifest with the version that wrote it."""
WEIGHTS_SUFFIX: Final = ".safetensors"
OTHER_READERS: Final = (".gguf", ".dat")
"""Endings of files that only other programs read."""
CARD: Final = "README.md"
"""The model card. People edit it, and `evaluate` adds to it, so its hash isn't kept."""

_PURPOSE: Final[Purpose] = {"kind": "manifest"}
_REMEDY: Final = (
    f"restore it from a copy, or delete {MANIFEST} to use the folder as any other model"
)


@final
@dataclass
class Opened:
    """A model ready to be used. `note` is what every result of the model must say, such as
    "dequantized from Q4_1".

    `hashed` is the digest, or what finds it: read `digest`. `residence` says whether its blocks are
    in memory or on disk; `view` is given it.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str
    hashed: str | Callable[[], str]
    note: str
    dtype: torch.dtype
    residence: Residence = IN_MEMORY

    @property
    def digest(self) -> str:
        """That of the weights' bytes; of a model that was given as an object it is found when it is
        first asked for.
        """
        if not isinstance(self.hashed, str):
            self.hashed = self.hashed()
        return self.hashed


Model: TypeAlias = str | Path | Opened | PreTrainedModel
"""What a verb takes for a model: a name, a path, or one that is open already."""
Tokenizer: TypeAlias = PreTrainedTokenizerBase
"""What a verb takes for the tokenizer of a model that is open."""


def save(
    opened: Opened,
    folder: str | Path,
    manifest: Mapping[str, Any],
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write model, tokenizer and `manifest` (as `calibrant.json`) to `folder`, which plain
    transformers opens; `beside` are more files by name.

    Everything is written to a hidden folder beside it, which is then renamed; whatever happens,
    nothing half-written stays. Numbers are saved in the type that they have now. The manifest gets
    the model's `note` if it has none. Raises `OutputError` for a folder that exists and isn't
    empty, or that another process is writing, and for a disk that is full or can't be written.
    """
    with saved(opened, folder, manifest, beside) as temporary:
        write_model(opened, temporary)


@contextmanager
def saved(
    opened: Opened,
    folder: str | Path,
    manifest: Mapping[str, Any],
    beside: Mapping[str, bytes] | None = None,
) -> Iterator[Path]:
    """Save as `save` does, but leave the writing of the model to the body of the `with`: it is
    given the hidden folder to write into.
    """
    folder = user_path(folder, OutputError)
    check_output(folder)
    with quiet(), _appears(folder) as temporary:
        yield temporary
        # The manifest is written last, since it has the hashes of everything else.
        for name, content in (beside or {}).items():
            (temporary / name).write_bytes(content)
        write_manifest(temporary, {"note": opened.note, **manifest})
        same_rights(temporary / MANIFEST)


def write_model(opened: Opened, folder: Path) -> None:
    """Write model and tokenizer into `folder` as transformers does, and beside them which inputs
    are rounded; blocks that are on disk are written one after the other.
    """
    forget_quantization(opened.model)
    if opened.residence.on_disk:
        write_shards(opened.model, opened.residence, folder)
    else:
        opened.model.save_pretrained(folder)
    opened.tokenizer.save_pretrained(folder)
    write_rounding(opened.model, folder)


def same_rights(file: Path) -> None:
    """Give all files beside `file` the rights that `file` has."""
    # safetensors lets nobody but the owner read what it writes; `file` was written as usual.
    rights = file.stat().st_mode
    for other in file.parent.iterdir():
        if other.is_file():
            other.chmod(rights)


def check_output(folder: str | Path) -> None:
    """Raise `OutputError` unless `folder` can be written: it is empty or doesn't exist yet, and the
    folder around it can be written. Changes nothing.
    """
    folder = user_path(folder, OutputError)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise _not_writable(
            f"{folder} is {_kind_of(folder)}; name a folder that doesn't exist yet", folder
        )
    if (folder / MANIFEST).is_file():
        raise _not_writable(
            f"{folder} already holds {_description(folder)}; name another folder, or delete this "
            "one first",
            folder,
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise _not_writable(
            f"{folder} exists, isn't empty and isn't ours; name a folder that doesn't exist yet",
            folder,
        )
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise _not_writable(
            f"{folder} can't be made, because {place} is no folder that we may write to; name "
            "another place",
            folder,
        )


def _not_writable(message: str, folder: Path) -> OutputError:
    return OutputError(message, subject=str(folder))


def _kind_of(path: Path) -> str:
    if path.is_symlink():
        return "a link"
    return "a file" if path.is_file() else "a pipe or device"


def check_savable(opened: Opened) -> None:
    """Raise `ModelError` for a model whose settings transformers refuses to save. Changes nothing,
    and looks at no numbers.
    """
    model = opened.model
    config = copy.deepcopy(model.config)
    _forget_quantization_in(config)
    name = opened.name
    advice = "mend the model's config or generation_config, or config.json or "
    advice += "generation_config.json in its folder"
    try:
        scratch = TemporaryDirectory()
    except OSError:
        # Without a place to try it in, saving itself says what is wrong.
        return
    refusal = Refusal(f"transformers refuses to save {name}", f"; {advice}", name)
    with scratch as folder, quiet(), refusal:
        try:
            config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
        except OSError:
            # So it does of what the disk lacks.
            return


def forget_quantization(model: PreTrainedModel) -> None:
    """Remove what transformers remembers of a file's quantization."""
    # The weights are plain numbers now, and transformers wouldn't save a model with such entries.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
    _forget_quantization_in(model.config)


def _forget_quantization_in(config: PreTrainedConfig) -> None:
    for name in ("quantization_config", "_pre_quantization_dtype"):
        vars(config).pop(name, None)


@contextmanager
def _appears(folder: Path) -> Iterator[Path]:
    """Give a new hidden folder beside `folder`, and rename it to that at the end. On any failure
    remove it, and the parents that were made for it.
    """
    whole = folder.absolute()
    try:
        with appearing(folder, whole.parent / f".{whole.name}.unfinished") as temporary:
            yield temporary
    except OSError as error:
        raise _unsaved(folder, error.errno, str(error.strerror or error)) from error
    except SafetensorError as error:
        # safetensors is written in Rust, and has the system's error number only in its message.
        number = re.search(r"os error (\d+)", str(error))
        code = int(number[1]) if number else None
        raise _unsaved(folder, code, quoted(error)) from error
    # The folder is there and whole already, and some file systems can't be flushed.
    with suppress(OSError):
        flush(whole.parent)


def _unsaved(folder: Path, number: int | None, message: str) -> OutputError:
    why = "the disk is full" if number in FULL else f"writing failed ({message})"
    return _not_writable(
        f"{folder} couldn't be saved: {why}; nothing of it was left behind, so make room or name "
        "another place",
        folder,
    )


def _description(folder: Path) -> str:
    """What a finished folder of ours holds, in words."""
    try:
        manifest = read_manifest(folder) or {}
    except ModelError:
        return f"a model of ours whose {MANIFEST} is damaged"
    record = manifest.get("record", {})
    facts = {**manifest, **record, **record.get("run", {})}
    method = facts.get("method", "")
    facts["method"] = method.get("spec", "") if isinstance(method, dict) else method
    words = [f"{word} {facts[name]}" for name, word in FACTS.items() if facts.get(name)]
    return f"a compressed model ({', '.join(words)})" if words else "a compressed model"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder in which everything else is, and flush all of it to the
    disk.
    """
    paths = list(_written(folder))
    # Hashing keeps a processor busy and flushing the disk, so both are done at the same time.
    with ThreadPoolExecutor(1) as threads:
        flushed = threads.map(flush, paths)
        digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}
        # Raises what flushing raised in its thread.
        list(flushed)
    document = sealed({**manifest, FILES: digests}, _PURPOSE)
    (folder / MANIFEST).write_text(text_of_json(document, ordered=True), encoding="utf-8")
    flush(folder / MANIFEST)
    for inside in (folder, *folder.rglob("*")):
        if inside.is_dir():
            flush(inside)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return the manifest of a folder that we saved; None for every other folder.

    Raises `ModelError` for a manifest that is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        return _manifest(path)
    except (DataError, ValueError, RecursionError) as error:
        raise _not_as_written(path, "is damaged") from error


def manifest_folder(ref: str | Path) -> Path:
    """Return the folder whose manifest is about the model that `ref` names.

    That is the folder `ref` itself, or the folder around it, if we saved that and `ref` is an
    export in it.
    """
    path = Path(ref)
    if (path / MANIFEST).exists() or not path.exists() or not (path.parent / MANIFEST).is_file():
        return path
    return path if _is_foreign(path.parent / MANIFEST) else path.parent


def check_unchanged(
    place: Path, digests: Mapping[str, str], weights: bool = True
) -> dict[str, Any] | None:
    """Return the manifest about the model at `place`, a folder or a file, if there is one.

    `digests` are digests of its files, by name, that are known already. Without `weights` only the
    files that a tokenizer is read from are compared. Raises `ModelError` for a file that isn't what
    was written with the manifest, such as weights of another run.
    """
    home = manifest_folder(place)
    manifest = read_manifest(home)
    written: Mapping[str, str] = (manifest or {}).get(FILES, {})
    forms = {Path(name).parent for name in written if Path(name).name == CONFIG}
    for name, expected in written.items():
        path = home / name
        if path != place and not _is_read(path, place, home, forms):
            continue
        if path.suffix == WEIGHTS_SUFFIX and not weights:
            continue
        if not path.is_file():
            raise _not_as_written(path, f"is missing, and was written with {MANIFEST}")
        known = digests.get(path.name) if place in (path, path.parent) else None
        if (known or file_digest(path)) != expected:
            raise _not_as_written(path, f"isn't what was written with {MANIFEST}")
    return manifest


def _not_as_written(path: Path, why: str) -> ModelError:
    return ModelError(f"{visible(str(path))} {why}; {_REMEDY}", subject=str(path))


def _manifest(path: Path) -> dict[str, Any]:
    """What a manifest says. Raises `DataError`, `ValueError` or `RecursionError` for a file that is
    no sound one.
    """
    try:
        manifest = read_json(path, _PURPOSE)
    except DataError:
        # A manifest from before there were seals may hold NaN, which `read_json` refuses.
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or {FILES, SEAL} & manifest.keys():
            raise
    if not isinstance(manifest, dict):
        raise BrokenSealError
    files = manifest.get(FILES)
    if files is None and VERSION not in manifest:
        raise BrokenSealError
    if files is not None and not _are_files(files):
        raise BrokenSealError
    return manifest


def _is_foreign(path: Path) -> bool:
    """Whether a file of the manifest's name is another program's: sound JSON without our entries. A
    damaged file counts as ours.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return not isinstance(value, dict) or not {VERSION, FILES, SEAL} & value.keys()


def _are_files(value: Any) -> bool:
    """Whether it is a mapping of paths inside a folder to texts."""
    if not isinstance(value, dict):
        return False
    for name, text in value.items():
        path = PurePosixPath(name)
        outside = path.is_absolute() or ".." in path.parts
        if outside or not isinstance(text, str):
            return False
    return True


def _is_read(path: Path, place: Path, home: Path, forms: Collection[Path]) -> bool:
    """Whether a file in the folder `home` belongs to the model in the folder `place`: it is read
    with it, or is a file directly in `home` that isn't weights.

    `forms` are the folders in `home`, by their paths there, that each hold a model of their own.
    """
    if path.suffix in OTHER_READERS:
        return False
    if home / _form_of(path.relative_to(home), forms) == place:
        return True
    return path.parent == home and path.suffix != WEIGHTS_SUFFIX


def _form_of(inside: Path, forms: Collection[Path]) -> Path:
    """The innermost of the folders `forms` around a file; an empty path if there is none."""
    for folder in inside.parents:
        if folder in forms:
            return folder
    return Path()


def _written(folder: Path) -> Iterator[Path]:
    """All files in a folder and in the folders in it, but for the manifest and cards."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, CARD):
            yield path
