"""The scripts of the page: Vega as one text, the digest by which the page's policy knows a script, data for scripts. No torch here."""

import hashlib
import json
from base64 import b64encode
from functools import cache
from typing import Any, Final

from calibrant.foreign import visible_data

UNSAFE: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
"""What could end a script or begin an element, as JSON writes it otherwise. U+2028 and U+2029 are written so by `json` itself."""


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, which sets `window.vegaEmbed`; about 0.9 MB, made in a second.

    Nothing in it can end the script element that it stands in.
    """
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    for opening in ("</script", "<script", "<!--"):
        script = script.replace(opening, f"\\x3c{opening[1:]}")
    return script


def digest(script: str) -> str:
    """The script as a content security policy names it: `sha256-…`, of exactly the text between the tags."""
    return f"sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def embedded(key: str, data: Any) -> str:
    """Data for a script, in an element called `key` that no browser runs. Raises `ValueError` for a number that JSON doesn't have."""
    text = json.dumps(visible_data(data), separators=(",", ":"), allow_nan=False)
    for sign, written in UNSAFE.items():
        text = text.replace(sign, written)
    return f'<script type="application/json" id="{key}">{text}</script>'
