"""The `calibrant.json` of a folder that we saved: what the model in it is, and the hash of every file that was written with it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from calibrant.durable import flush, read_json, sealed, text_of_json
from calibrant.errors import DataError, ModelError
from calibrant.foreign import visible
from calibrant.models.folder import file_digest
from calibrant.seals import BrokenSealError, Purpose

MANIFEST: Final = "calibrant.json"
FILES: Final = "files"
"""The entry of a manifest with the SHA-256 of each file, by its path in the folder."""
VERSION: Final = "calibrant"
"""The entry of a manifest with the version that wrote it."""
CARD: Final = "README.md"
"""The model card: people edit it, and `evaluate` adds to it, so that its hash isn't kept."""

_PURPOSE: Final[Purpose] = {"kind": "manifest"}
_REMEDY: Final = f"restore it from a copy, or delete {MANIFEST} to use the folder as any other model"


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder in which everything else is, and see all of it to the disk."""
    digests: dict[str, str] = {}
    for path in _written(folder):
        flush(path)
        digests[path.relative_to(folder).as_posix()] = file_digest(path)
    document = sealed({**manifest, FILES: digests}, _PURPOSE)
    (folder / MANIFEST).write_text(text_of_json(document, ordered=True), encoding="utf-8")
    flush(folder / MANIFEST)
    flush(folder)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return what the `calibrant.json` of a folder that we saved says; None for every other folder.

    Raises `ModelError` for one that is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = read_json(path, _PURPOSE)
        # One without a seal is from before there were seals, and said which version wrote it.
        if not isinstance(manifest, dict) or not {VERSION, FILES} & manifest.keys():
            raise BrokenSealError
    except (DataError, BrokenSealError) as error:
        raise ModelError(f"{visible(str(path))} is damaged; {_REMEDY}", subject=str(path)) from error
    return manifest


def home_of(ref: str | Path) -> Path:
    """Return the folder whose manifest is about the model that `ref` names.

    It is that folder itself, or the folder that we saved which holds it as an export.
    """
    path = Path(ref)
    if (path / MANIFEST).exists() or not path.exists():
        return path
    return path if read_manifest(path.parent) is None else path.parent


def check_unchanged(place: Path, digests: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the manifest about the model at `place`, a folder or a file, if there is one.

    `digests` are those of its files, by their names, that are known already. Raises `ModelError` for a file that isn't what was written with the
    manifest, such as weights of another run.
    """
    home = home_of(place)
    manifest = read_manifest(home)
    listed = (manifest or {}).get(FILES, {})
    for name, expected in listed.items():
        path = home / name
        if not _belongs(path, place, home):
            continue
        known = digests.get(path.name) if path.parent == place else None
        if not path.is_file():
            raise ModelError(f"{visible(str(path))} is missing, and was written with {MANIFEST}; {_REMEDY}", subject=str(path))
        if (known or file_digest(path)) != expected:
            raise ModelError(f"{visible(str(path))} isn't what was written with {MANIFEST}; {_REMEDY}", subject=str(path))
    return manifest


def _belongs(path: Path, place: Path, home: Path) -> bool:
    """Whether a file is read with the model at `place`: it is in that folder, or is that file, or tells of the model."""
    if path in (place, place / path.name):
        return True
    return path.parent == home and path.suffix not in (".safetensors", ".gguf")


def _written(folder: Path) -> Iterator[Path]:
    """All files in a folder and in the folders in it, but for the manifest and cards."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, CARD):
            yield path
