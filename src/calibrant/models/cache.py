"""A cache of dequantized models, so that a GGUF file which was opened once is opened again without
parsing and dequantizing it.

They lie in the user's cache: `$CALIBRANT_CACHE/models`, or `calibrant/models` in `$XDG_CACHE_HOME`,
or in `~/.cache`; a folder for each file and dtype, as large as the weights. Any of it may be
deleted at any time. What can't be written isn't kept: `CALIBRANT_CACHE=/dev/null` keeps nothing.

A folder answers for the file's bytes, the dtype and the versions of what dequantized it, and holds
what transformers made of them, bit for bit. It appears by rename, one process writes at a time, and
what no longer has its checksum is deleted and made anew.
"""

import os
import shutil
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, cast, final

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from calibrant.errors import DataError
from calibrant.models.saving import same_rights
from calibrant.spec import identity
from calibrant.system.durable import UNFINISHED, appearing, read_json, sealed, take, text_of_json
from calibrant.system.seals import Purpose, tell_made_again

CACHE: Final = "CALIBRANT_CACHE"
LAYOUT: Final = 2
"""Of a kept folder; another number, and it is made anew."""
DESCRIPTION: Final = "kept.json"
ROOM: Final = 4
"""How many times its size must be free where a model is to be kept: a cache is no reason for a
full disk.
"""

_CHUNK: Final = 2**20


def cache_folder() -> Path:
    """Where Calibrant keeps what it can make again, as the user's environment says; it needn't
    exist.
    """
    own = os.environ.get(CACHE)
    return (
        Path(own).expanduser()
        if own
        else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calibrant"
    )


@final
@dataclass(frozen=True)
class CachedModel:
    """The place of one dequantized model: that of the file with this `digest` (`sha256:…`), in
    this dtype.
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
            about = read_json(self._folder / DESCRIPTION, self._purpose, required=True)
            with ThreadPoolExecutor(1) as beside:
                sums = beside.submit(_checksums, self._folder)
                config = AutoConfig.from_pretrained(self._folder, trust_remote_code=False)
                options: dict[str, Any] = {
                    "dtype": self.dtype,
                    "use_safetensors": True,
                    "output_loading_info": True,
                }
                model, loaded = cast(
                    Any,
                    AutoModelForCausalLM.from_pretrained(
                        self._folder, config=config, trust_remote_code=False, **options
                    ),
                )
            if sums.result() == about["checksums"] and not any(loaded.values()):
                return model, str(about["note"])
        except (OSError, DataError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
            pass  # whatever is wrong with it, it can be made again
        tell_made_again("a dequantized model", str(self._folder))
        shutil.rmtree(self._folder, ignore_errors=True)
        return None

    def store(self, model: PreTrainedModel, note: str) -> None:
        """Keep the model, if there is room and nobody else is about to; what was kept of the
        same file by other versions goes.
        """
        place = self._folder.parent
        try:
            place.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(place).free < ROOM * sum(p.nbytes for p in model.parameters()):
                return
            with (place / ".lock").open("w") as lock:
                if take(lock) and not self._folder.exists():
                    self._write(model, note, place / f"{UNFINISHED}-{self._folder.name}")
        except (OSError, SafetensorError):
            pass

    def _write(self, model: PreTrainedModel, note: str, half: Path) -> None:
        """Nothing is flushed to the disk: what a lost power supply damages is noticed."""
        with appearing(self._folder, half):
            model.save_pretrained(half)
            about = {"note": note, "checksums": _checksums(half), **self._identity}
            description = text_of_json(sealed(about, self._purpose))
            (half / DESCRIPTION).write_text(description, encoding="utf-8")
            same_rights(half / DESCRIPTION)
        # Copies of the same file by other versions are of no use any more.
        for folder in self._folder.parent.glob(f"{self._begins}-*"):
            if folder != self._folder:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def _begins(self) -> str:
        return f"{self.digest.rpartition(':')[2][:32]}-{str(self.dtype).removeprefix('torch.')}"

    @cached_property
    def _folder(self) -> Path:
        return (
            cache_folder()
            / "models"
            / f"{self._begins}-{identity(self._identity).rpartition(':')[2][:8]}"
        )

    @property
    def _purpose(self) -> Purpose:
        return {"kind": "dequantized model", "of": identity(self._identity)}

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that the bits depend on."""
        versions = {name: version(name) for name in ("transformers", "gguf", "torch", "numpy")}
        return {
            "layout": LAYOUT,
            "file": self.digest,
            "dtype": str(self.dtype),
            "versions": versions,
        }


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of each file that a model is read from. It finds damage, four times as fast as a
    digest would.
    """
    return {
        path.name: _checksum(path) for path in sorted(folder.iterdir()) if path.name != DESCRIPTION
    }


def _checksum(path: Path) -> int:
    total, chunk = 0, memoryview(bytearray(_CHUNK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(chunk):
            total = zlib.crc32(chunk[:size], total)
    return total
