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
