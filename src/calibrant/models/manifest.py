"""The `calibrant.json` of a folder that we saved: what the model in it is, and the hash of every
file that was written with it.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from calibrant.errors import DataError, ModelError
from calibrant.models.folder import CONFIG, file_digest
from calibrant.spec.foreign import visible
from calibrant.system.durable import flush, read_json, sealed, text_of_json
from calibrant.system.seals import SEAL, BrokenSealError, Purpose

MANIFEST: Final = "calibrant.json"
FILES: Final = "files"
"""The entry of a manifest with the SHA-256 of each file, by its path in the folder."""
VERSION: Final = "calibrant"
"""The entry of a manifest with the version that wrote it."""
WEIGHTS_SUFFIX: Final = ".safetensors"
OTHER_READERS: Final = (".gguf", ".dat")
"""The endings of what other programs read, and no model's folder is opened from."""
CARD: Final = "README.md"
"""The model card: people edit it, and `evaluate` adds to it, so that its hash isn't kept."""

_PURPOSE: Final[Purpose] = {"kind": "manifest"}
_REMEDY: Final = (
    f"restore it from a copy, or delete {MANIFEST} to use the folder as any other model"
)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of a folder in which everything else is, and see all of it to the disk."""
    paths = list(_written(folder))
    # Hashing keeps a processor busy and flushing the disk, so both are done at the same time.
    with ThreadPoolExecutor(1) as beside:
        flushed = beside.map(flush, paths)
        digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}
        list(flushed)  # an error of the disk is raised here
    document = sealed({**manifest, FILES: digests}, _PURPOSE)
    (folder / MANIFEST).write_text(text_of_json(document, ordered=True), encoding="utf-8")
    flush(folder / MANIFEST)
    for inside in (folder, *folder.rglob("*")):
        if inside.is_dir():
            flush(inside)


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """Return what the `calibrant.json` of a folder that we saved says; None for every other folder.

    Raises `ModelError` for one that is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        return _manifest(path)
    except (DataError, ValueError) as error:
        raise ModelError(
            f"{visible(str(path))} is damaged; {_REMEDY}", subject=str(path)
        ) from error


def manifest_folder(ref: str | Path) -> Path:
    """Return the folder whose manifest is about the model that `ref` names.

    It is that folder itself, or the folder that we saved which holds it as an export.
    """
    path = Path(ref)
    if (path / MANIFEST).exists() or not path.exists() or not (path.parent / MANIFEST).is_file():
        return path
    return path if _is_foreign(path.parent / MANIFEST) else path.parent


def check_unchanged(
    place: Path, digests: Mapping[str, str], weights: bool = True
) -> dict[str, Any] | None:
    """Return the manifest about the model at `place`, a folder or a file, if there is one.

    `digests` are those of its files, by their names, that are known already. Without `weights` only
    what a tokenizer is read from is compared. Raises `ModelError` for a file that isn't what was
    written with the manifest, such as weights of another run.
    """
    home = manifest_folder(place)
    manifest = read_manifest(home)
    expected_digests: Mapping[str, str] = (manifest or {}).get(FILES, {})
    forms = {Path(name).parent for name in expected_digests if Path(name).name == CONFIG}
    for name, expected in expected_digests.items():
        path = home / name
        if path != place and not _is_read(path, place, home, forms):
            continue
        if path.suffix == WEIGHTS_SUFFIX and not weights:
            continue
        if not path.is_file():
            raise ModelError(
                f"{visible(str(path))} is missing, and was written with {MANIFEST}; {_REMEDY}",
                subject=str(path),
            )
        known = digests.get(path.name) if place in (path, path.parent) else None
        if (known or file_digest(path)) != expected:
            raise ModelError(
                f"{visible(str(path))} isn't what was written with {MANIFEST}; {_REMEDY}",
                subject=str(path),
            )
    return manifest


def _manifest(path: Path) -> dict[str, Any]:
    """What a manifest says. Raises `DataError` or `ValueError` for what is none."""
    try:
        manifest = read_json(path, _PURPOSE)
    except DataError:
        # Before there were seals, a manifest might hold NaN.
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict) or {FILES, SEAL} & manifest.keys():
            raise
    if not isinstance(manifest, dict):
        raise BrokenSealError
    files = manifest.get(FILES)
    if files is None and VERSION not in manifest:
        raise BrokenSealError
    if files is not None and not _maps_text_to_text(files):
        raise BrokenSealError
    return manifest


def _is_foreign(path: Path) -> bool:
    """Whether a file of this name is somebody else's: sound JSON without our entries. What is
    damaged may be ours.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return not isinstance(value, dict) or not {VERSION, FILES, SEAL} & value.keys()


def _maps_text_to_text(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(text, str) for pair in value.items() for text in pair
    )


def _is_read(path: Path, place: Path, home: Path, forms: Collection[Path]) -> bool:
    """Whether a file that was written into the folder `home` is read with the model in the folder
    `place`, or tells of it.

    `forms` are the folders, in `home`, that each hold a model of their own.
    """
    if path.suffix in OTHER_READERS:
        return False
    if home / _form_of(path.relative_to(home), forms) == place:
        return True
    return path.parent == home and path.suffix != WEIGHTS_SUFFIX


def _form_of(inside: Path, forms: Collection[Path]) -> Path:
    """The innermost folder around a file that holds a model of its own."""
    for folder in inside.parents:
        if folder in forms:
            return folder
    return Path()


def _written(folder: Path) -> Iterator[Path]:
    """All files in a folder and in the folders in it, but for the manifest and cards."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MANIFEST, CARD):
            yield path
