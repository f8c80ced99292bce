"""What an open model is, and saving it as an ordinary Hugging Face folder, complete or not at
all.
"""

import errno
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from calibrant.errors import ModelError, OutputError
from calibrant.models.manifest import MANIFEST, read_manifest, write_manifest
from calibrant.models.quiet import quiet, quoted
from calibrant.models.residence import IN_MEMORY, Residence
from calibrant.models.shards import write_shards
from calibrant.spec.foreign import user_path
from calibrant.system.durable import appearing, flush

FACTS: Final = {"model_name": "of", "method": "by", "target": "at", "data": "calibrated on"}
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@final
@dataclass
class Opened:
    """A model ready to be used. `digest` is that of the weights' bytes, `note` what results of it
    must say, such as "dequantized from Q4_1".

    `residence` says whether its blocks are in memory or on disk; `view` is given it.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str
    digest: str
    note: str
    dtype: torch.dtype
    residence: Residence = IN_MEMORY


def save(
    opened: Opened,
    folder: str | Path,
    manifest: Mapping[str, Any],
    beside: Mapping[str, bytes] | None = None,
) -> None:
    """Write model, tokenizer and `manifest` (as `calibrant.json`) to `folder`, which plain
    transformers opens; `beside` are more files by name.

    Everything is written to a hidden folder beside it and appears by rename; whatever happens,
    nothing half-written stays. The working dtype is the one saved. The manifest gets the model's
    `note` if it has none. Raises `OutputError` for a folder that exists and isn't empty, and for a
    disk that is full or can't be written.
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
    """As `save`, but what is in the context writes the model, into the hidden folder that it is
    given.
    """
    folder = Path(folder)
    check_output(folder)
    with quiet(), _appears(folder) as temporary:
        yield temporary
        for name, content in (beside or {}).items():
            (temporary / name).write_bytes(content)
        write_manifest(temporary, {"note": opened.note, **manifest})
        same_rights(temporary / MANIFEST)


def write_model(opened: Opened, folder: Path) -> None:
    """Write model and tokenizer into `folder` as transformers does; where blocks are on disk,
    one after the other.
    """
    forget_quantization(opened.model)
    if opened.residence.on_disk:
        write_shards(opened.model, opened.residence, folder)
    else:
        opened.model.save_pretrained(folder)
    opened.tokenizer.save_pretrained(folder)


def same_rights(file: Path) -> None:
    """Give all files beside `file`, which was written as usual, its rights: safetensors lets
    nobody but the owner read what it writes.
    """
    rights = file.stat().st_mode
    for other in file.parent.iterdir():
        if other.is_file():
            other.chmod(rights)


def check_output(folder: str | Path) -> None:
    """Raise `OutputError` unless `folder` can be written: it must not exist or be empty, and its
    place must be writable. Changes nothing.
    """
    folder = user_path(folder, OutputError)
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        what = (
            "a link"
            if folder.is_symlink()
            else "a file"
            if folder.is_file()
            else "a pipe or device"
        )
        raise OutputError(
            f"{folder} is {what}; name a folder that doesn't exist yet", subject=str(folder)
        )
    if (folder / MANIFEST).is_file():
        raise OutputError(
            f"{folder} already holds {_description(folder)}; name another folder, or delete this one first",
            subject=str(folder),
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(
            f"{folder} exists, isn't empty and isn't ours; name a folder that doesn't exist yet",
            subject=str(folder),
        )
    place = next(p for p in folder.absolute().parents if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OutputError(
            f"{folder} can't be made, because {place} is no folder that we may write to; name another place",
            subject=str(folder),
        )


def forget_quantization(model: PreTrainedModel) -> None:
    """Remove what transformers remembers of a file's quantization: the weights are plain numbers
    now, and such an entry would stop saving.
    """
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
    for name in ("quantization_config", "_pre_quantization_dtype"):
        vars(model.config).pop(name, None)


@contextmanager
def _appears(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder`, renamed to it at the end; on any failure it and the
    parents made for it are removed.
    """
    try:
        with appearing(
            folder, folder.absolute().parent / f".{folder.absolute().name}.unfinished"
        ) as temporary:
            yield temporary
    except OSError as error:
        what = (
            "the disk is full"
            if error.errno in FULL
            else f"writing failed ({error.strerror or error})"
        )
        raise OutputError(
            f"{folder} couldn't be saved: {what}; nothing of it was left behind, so make room or name another place",
            subject=str(folder),
        ) from error
    except SafetensorError as error:
        # safetensors writes in Rust and keeps the system's error number in its message only.
        number = re.search(r"os error (\d+)", str(error))
        what = (
            "the disk is full"
            if number and int(number[1]) in FULL
            else f"writing failed ({quoted(error)})"
        )
        raise OutputError(
            f"{folder} couldn't be saved: {what}; nothing of it was left behind, so make room or name another place",
            subject=str(folder),
        ) from error
    with suppress(OSError):  # it is there and whole; some places can't be flushed
        flush(folder.absolute().parent)


def _description(folder: Path) -> str:
    """What a finished folder of ours holds, in words."""
    try:
        manifest = read_manifest(folder) or {}
    except ModelError:
        return f"a model of ours whose {MANIFEST} is damaged"
    record = manifest.get("record", {})
    facts = {**manifest, **record, **record.get("run", {})}
    facts["method"] = (
        facts["method"].get("spec", "")
        if isinstance(facts.get("method"), dict)
        else facts.get("method", "")
    )
    facts_in_words = [f"{label} {facts[name]}" for name, label in FACTS.items() if facts.get(name)]
    return (
        f"a compressed model ({', '.join(facts_in_words)})"
        if facts_in_words
        else "a compressed model"
    )
