"""Where the user's cache is. What lies in it can be made again, so any of it may be deleted at any
time; what can't be written there isn't kept.
"""

import os
from pathlib import Path
from typing import Final

CACHE: Final = "CALIBRANT_CACHE"


def cache_folder() -> Path:
    """Return `$CALIBRANT_CACHE`, or `calibrant` in `$XDG_CACHE_HOME` or in `~/.cache`; it needn't
    exist. `CALIBRANT_CACHE=/dev/null` keeps nothing, and neither does a user without a home folder.
    """
    chosen = os.environ.get(CACHE)
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(chosen) if chosen else Path(caches) / "calibrant"
    try:
        return folder.expanduser()
    except RuntimeError:
        return Path(os.devnull)


def takes_files(folder: Path) -> bool:
    """Return whether this user may put files into a folder, or make it where it isn't there."""
    place = folder.absolute()
    # Of a folder that may not be looked into, it says that nothing is there, and raises nothing. A
    # link to nowhere is there, and is no folder.
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)
