"""Records of published data sets: from the local mirror if it has them, else from the Hugging Face hub."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, cast

from calibrant.data._base import Hub
from calibrant.data._mirror import mirrored
from calibrant.errors import DataError


def records(hub: Hub, split: str, places: Sequence[tuple[str, str]], streaming: bool = False) -> tuple[Iterator[dict[str, Any]], str]:
    """The records of one split, and where they came from.

    `places` are the (folder, split) pairs that a mirror may keep them under, best first. `streaming` reads a large set record by record
    instead of downloading it whole. Raises `DataError` if neither has them.
    """
    for folder, name in places:
        found = mirrored(folder, name)
        if found is not None:
            return found, f"mirror: {folder}/{name}"
    return _download(hub, split, places[0], streaming)


def _download(hub: Hub, split: str, place: tuple[str, str], streaming: bool) -> tuple[Iterator[dict[str, Any]], str]:
    import datasets
    from datasets.exceptions import DatasetsError

    revision = None if hub.revision == "unpinned" else hub.revision
    try:
        found = datasets.load_dataset(hub.id, hub.config, split=split, revision=revision, streaming=streaming)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{hub.id!r} ({split}) can't be had from the Hugging Face hub ({reason}); without internet, give a local mirror that holds "
            f"{place[0]}/{place[1]}.jsonl with --data-dir DIR or CALIBRANT_DATA=DIR",
            subject=hub.id,
        ) from error
    return (cast("dict[str, Any]", record) for record in found), f"hub: {hub.id}@{revision or _revision(found)}"


def _revision(found: Any) -> str:
    """The commit that was downloaded, which `datasets` keeps in the addresses of the files only."""
    addresses = " ".join(map(str, found.info.download_checksums or ()))
    commit = re.search(r"@([0-9a-f]{40})/", addresses)
    return commit[1] if commit else "unpinned"
