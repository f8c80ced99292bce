"""Reads the records of published data sets: from the local mirror if it has them, else from the
Hugging Face hub.

Data only is read from the hub, never code: a set that is a script can't be had. What is too large
is read from its front, one file of it where the set names one, at a commit that was asked for
before, so that a record of it says exactly what was read.
"""

import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

from calibrant.data._files import read_records
from calibrant.errors import DataError
from calibrant.spec.foreign import user_path
from calibrant.system.extras import needed_for

Records = Iterator[dict[str, Any]]

ANSWER_WITHIN: Final = 10.0
"""Seconds that the hub has to say which commit is the newest."""
MOST_RETRIES: Final = 1
"""How often `datasets` tries again to read on after a lost connection.

Each try takes half a minute, in which the hub's own client tries six times; the usual 20 would be
ten minutes of silence.
"""
SHOWN: Final = 160
"""Characters of somebody else's error message that are worth repeating."""


_chosen: list[Path] = []
"""The mirror that `mirror(folder)` set for this process; empty if none was."""


@dataclass(frozen=True)
class HubDataset:
    """Where the hub keeps a data set. An unpinned revision is recorded at loading; `verified` says
    whether anybody opened the address.

    `files` maps a split to the one file (a shard) that is read of it; `first` is how many records
    are streamed of a split that is too large to be had whole: its first ones.
    """

    id: str
    config: str | None = None
    revision: str = "unpinned"
    verified: bool = False
    files: Mapping[str, str] | None = None
    first: int | None = None


def mirror(folder: str | Path | None = None) -> Path | None:
    """Return the mirror's folder, for the whole process. Given one, it is set; else it is the one
    set before, or that of `CALIBRANT_DATA`, or none.

    Raises `DataError` for a folder that doesn't exist.
    """
    if folder is not None:
        _chosen[:] = [_existing(Path(folder), "--data-dir")]
    if _chosen:
        return _chosen[0]
    variable = os.environ.get("CALIBRANT_DATA")
    if not variable:
        return None
    return _existing(Path(variable), "CALIBRANT_DATA")


def _existing(path: Path, given_by: str) -> Path:
    folder = user_path(path, DataError)
    if not os.path.isdir(folder):
        raise DataError(
            f"{given_by} names {str(path)!r}, which is no folder; give the folder that holds "
            "NAME/train.jsonl",
            subject=str(path),
        )
    return folder.resolve()


def records(hub: HubDataset, split: str, places: Sequence[tuple[str, str]]) -> tuple[Records, str]:
    """Return the records of one split as plain Python values, and where they came from.

    `places` are the (folder, split) pairs that a mirror may keep them under, best first. Raises
    `DataError` if neither has them.
    """
    return mirrored(places) or _from_hub(hub, split, places[0])


def mirrored(places: Sequence[tuple[str, str]]) -> tuple[Records, str] | None:
    """Return the records of the first of these (folder, split) pairs that the mirror has as
    `.jsonl` or `.jsonl.gz`, and their origin; else None.
    """
    root = mirror()
    if root is None:
        return None
    for folder, split in places:
        for name in (f"{split}.jsonl", f"{split}.jsonl.gz"):
            path = root / folder / name
            if path.is_file():
                return read_records(path, f"{folder}/{name}"), f"mirror: {folder}/{split}"
    return None


def is_reachable() -> bool:
    """Return whether the hub answers within `ANSWER_WITHIN` seconds.

    Without this question, each set that is read from a hub that is silent costs half a minute. It
    doesn't where the package that reads its data sets isn't installed.
    """
    from huggingface_hub import constants, get_session

    if find_spec("datasets") is None:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=ANSWER_WITHIN)
    except _faults():
        return False
    return True


@contextmanager
def offline() -> Iterator[None]:
    """Within, the hub is not contacted: what is neither in the mirror nor in the hub's local
    cache is a `DataError`.
    """
    from huggingface_hub import constants

    libraries: list[Any] = [constants]
    # Optional: without it nothing is read from the hub.
    with suppress(ModuleNotFoundError):
        from datasets import config

        libraries.append(config)
    # They have read the variable when they were imported, so it is too late to set it.
    before = [library.HF_HUB_OFFLINE for library in libraries]
    for library in libraries:
        library.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for library, was_offline in zip(libraries, before, strict=True):
            library.HF_HUB_OFFLINE = was_offline
        _commit.cache_clear()  # what the cache said offline is no answer for later


@needed_for("a data set of the hub")
def _from_hub(hub: HubDataset, split: str, place: tuple[str, str]) -> tuple[Records, str]:
    file = (hub.files or {}).get(split)
    try:
        commit = hub.revision
        if commit == "unpinned":
            commit = _commit(hub.id)
        with _few_retries():
            dataset = _opened(hub, split, file, commit)
            # What is streamed is read here and now, so that a connection that breaks in the middle
            # is this error too.
            records = dataset
            if hub.first is not None:
                records = list(islice(dataset, hub.first))
    except _faults() as error:
        raise DataError(
            f"{hub.id!r} ({split}) can't be had from the Hugging Face hub "
            f"({_reason(error, hub.id)}); give a local mirror that holds "
            f"{place[0]}/{place[1]}.jsonl with --data-dir DIR or CALIBRANT_DATA=DIR",
            subject=hub.id,
        ) from error
    origin = f"hub: {hub.id}@{commit or _downloaded(dataset)}"
    if file:
        origin += f", {file}"
    if hub.first is not None:
        origin += f", first {len(records)} records"
    return iter(cast("Records", records)), origin


def _opened(hub: HubDataset, split: str, file: str | None, commit: str | None) -> Any:
    from datasets import load_dataset

    streaming = hub.first is not None
    if file is None:
        return load_dataset(hub.id, hub.config, split=split, revision=commit, streaming=streaming)
    # A folder of this machine may stand in the place of a data set on the hub.
    root = hub.id
    if not Path(hub.id).is_dir():
        root = f"hf://datasets/{hub.id}"
        if commit:
            root += f"@{commit}"
    reader = "parquet" if file.endswith(".parquet") else "json"
    files = {split: f"{root}/{file}"}
    return load_dataset(reader, data_files=files, split=split, streaming=streaming)


@lru_cache(maxsize=64)
def _commit(name: str) -> str | None:
    """Return the newest commit, asked once a process so that all splits are of one. None for a
    local folder, and offline: there the cache decides.
    """
    from datasets import config
    from huggingface_hub import HfApi

    if Path(name).is_dir() or config.HF_HUB_OFFLINE:
        return None
    return HfApi().dataset_info(name, timeout=ANSWER_WITHIN).sha


@contextmanager
def _few_retries() -> Iterator[None]:
    """Make a lost connection an error soon."""
    from datasets import config

    before = config.STREAMING_READ_MAX_RETRIES
    config.STREAMING_READ_MAX_RETRIES = min(MOST_RETRIES, before)
    try:
        yield
    finally:
        config.STREAMING_READ_MAX_RETRIES = before


def _downloaded(dataset: Any) -> str:
    """Return the commit that the library took by itself, which it keeps in the addresses of the
    files only.
    """
    addresses = " ".join(map(str, dataset.info.download_checksums or ()))
    commit = re.search(r"@([0-9a-f]{40})/", addresses)
    return commit[1] if commit else "unpinned"


def _faults() -> tuple[type[Exception], ...]:
    """Return what the libraries raise for a set that isn't there, isn't ours to read, is a
    script, is broken, or for a network that fails.
    """
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    # The parent of the hub's own error is that of its HTTP library, whichever that is in this
    # version.
    http = cast("type[Exception]", HfHubHTTPError.__bases__[0])
    # Zstandard is optional, and there only once something has been read with it.
    zstd = getattr(sys.modules.get("zstandard"), "ZstdError", EOFError)
    return (
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        zlib.error,
        zstd,
        DatasetsError,
        EntryNotFoundError,
        http,
    )


def _reason(error: BaseException, name: str) -> str:
    """Return the reason in a few words. The libraries put the telling error beneath a general
    one, so all of them are looked at.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    errors = [error]
    cause = error.__cause__
    while cause is not None:
        errors.append(cause)
        cause = cause.__cause__
    messages = " ".join(map(str, errors))
    gated = any(isinstance(beneath, GatedRepoError) for beneath in errors)
    missing = any(isinstance(beneath, RepositoryNotFoundError) for beneath in errors)
    if "offline mode is enabled" in messages or "OfflineModeIsEnabled" in messages:
        return "offline mode is on, see HF_HUB_OFFLINE, and it isn't in the cache"
    if gated or "is a gated dataset" in messages:
        page = f"https://huggingface.co/datasets/{name}"
        return f"it is gated: accept its conditions at {page} and log in with `hf auth login`"
    if "scripts are no longer supported" in messages:
        return "it is a script, and code from the hub isn't run"
    if missing or "doesn't exist on the Hub" in messages:
        return "it doesn't exist there, or only for those who may see it"
    if "zstd not supported" in messages:
        return "its files are compressed with Zstandard: pip install zstandard"
    telling = error
    if str(error).startswith("An error occurred while generating the dataset"):
        telling = errors[-1]
    lines = str(telling).strip().splitlines() or [type(telling).__name__]
    line = lines[0].strip()
    if len(line) > SHOWN:
        line = line[:SHOWN] + "…"
    return line
