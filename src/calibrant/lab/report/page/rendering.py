"""How the page's templates become HTML: what they may call, how every value is escaped, and what
goes in as it is.

Each value in a template passes through `visible`, so that what acts on a reader's screen is shown
as its escape, and is then escaped by Jinja. Only what this room itself makes goes in as it is, as
`Markup`: drawings, style sheets, scripts and their data. No torch here.
"""

import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from math import isnan
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from calibrant.lab.report.facts import PHASES
from calibrant.lab.report.page.parts import (
    in_words,
    licence,
    origin,
    plain,
    profile_rows,
    rows_of,
    scripts_of,
)
from calibrant.lab.report.plots import (
    Plot,
    against_size,
    against_sparsity,
    against_tokens,
    evidence,
    forest,
    inline,
    kept,
    pareto,
    worth,
)
from calibrant.lab.report.plots.theme import DARK, FAMILIES, LIGHT
from calibrant.lab.report.sentences import caveats, finding, remarks, rise, row_noun, short
from calibrant.lab.report.tables.table import heading, row_head
from calibrant.lab.stats import LEVEL, MEAN, MEASURES, describe_target, join_names, target_noun
from calibrant.numerics import HOLE, percent
from calibrant.spec.families import WORDS
from calibrant.spec.foreign import visible, visible_data

STYLES: Final = ("page.css", "interactive.css")

COLUMN: Final = 660
"""Units of a drawing that fits into half of a page."""

UNSAFE: Final = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}
"""What could end a script or begin an element, as JSON writes it otherwise. U+2028 and U+2029
are written so by `json` itself.
"""


def render(template: str, **values: Any) -> Markup:
    """Return a template of this room, filled with `values`."""
    filled = _environment().get_template(f"{template}.html.jinja").render(values)
    return Markup(filled)


FUNCTIONS: Final = (
    *(describe_target, target_noun, join_names, percent, heading, rise, row_head, row_noun),
    *(finding, remarks, caveats),
    *(forest, kept, pareto, against_tokens, against_sparsity, against_size, evidence, worth),
    *(in_words, licence, origin, rows_of, scripts_of, profile_rows),
)
"""What templates may call, by their names."""


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("calibrant.lab.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["nan"] = isnan
    environment.filters |= {"short_in": _short_in, "plain": plain}
    environment.globals |= {function.__name__: function for function in FUNCTIONS}
    environment.globals |= {
        "HOLE": HOLE,
        "LEVEL": LEVEL,
        "MEAN": MEAN,
        "MEASURES": MEASURES,
        "FAMILIES": FAMILIES,
        "FAMILY_WORDS": WORDS,
        "PHASES": PHASES,
        "inline": _inline,
        "is_large": _is_large,
        "heads_style": _heads_style,
    }
    return environment


def _shown(value: Any) -> Any:
    """A value as a template shows it, before it is escaped."""
    if isinstance(value, Markup):
        return value
    return "" if value is None else visible(str(value))


def _short_in(measured: str, among: Sequence[str], before: str = "") -> str:
    return f"{before}{short(measured, among)}"


def _inline(plot: Plot, key: str) -> Markup:
    return Markup(inline(plot, key))


def _is_large(svg: Markup) -> bool:
    """Whether a drawing takes the whole width of a page; others stand two in a row where there
    is room.
    """
    found = re.search(r' viewBox="\S+ \S+ ([\d.]+) ', svg)
    return found is not None and float(found[1]) > COLUMN


def _heads_style(heads: Sequence[str]) -> str:
    """Return the heads of a table as custom properties, for the style sheet to write before
    figures: texts of CSS, in which nothing ends them.

    >>> _heads_style(["", 'a "b"'])
    '--h2:"a \\\\22 b\\\\22 "'
    """
    escape = {ord(sign): f"\\{ord(sign):x} " for sign in '"\\<>&\n\r\f{};'}
    properties: list[str] = []
    for place, head in enumerate(heads, 1):
        if head:
            properties.append(f'--h{place}:"{visible(head).translate(escape)}"')
    return ";".join(properties)


def embedded(key: str, data: Any) -> Markup:
    """Return data for a script, in an element called `key` that no browser runs. Raises
    `ValueError` for a number that JSON doesn't have.
    """
    text = json.dumps(visible_data(data), separators=(",", ":"), allow_nan=False)
    for sign, written in UNSAFE.items():
        text = text.replace(sign, written)
    return Markup(f'<script type="application/json" id="{key}">{text}</script>')


@cache
def vega_bundle() -> Markup:
    """Return Vega, Vega-Lite and Vega-Embed as one script, which sets `window.vegaEmbed`; about 0.9
    MB, made in a second.

    Nothing in it can end the script element that it stands in.
    """
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    for opening in ("</script", "<script", "<!--"):
        script = script.replace(opening, f"\\x3c{opening[1:]}")
    return Markup(script)


@cache
def page_script() -> Markup:
    """Return the page's own script."""
    return _file("page.js")


def digest(script: str) -> str:
    """Return the name of a script in a content security policy: `sha256-…`, of exactly the text
    between the tags.

    >>> digest("")
    'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='
    """
    hashed = hashlib.sha256(script.encode()).digest()
    return f"sha256-{b64encode(hashed).decode()}"


def colours(root: str = ":root") -> str:
    """Return the palettes of the plots as custom properties of `root`: light, and dark for who
    prefers it.
    """
    light = _properties(LIGHT)
    dark = _properties(DARK)
    return (
        f"{root} {{ color-scheme: light dark;{light} }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ {root} {{{dark} }} }}\n"
    )


def _properties(palette: Mapping[str, str]) -> str:
    return "".join(f" --{name}: {value};" for name, value in palette.items())


def page_style() -> Markup:
    """Return the style sheet of the page."""
    sheets = [colours(), *map(_file, STYLES)]
    return Markup("".join(sheets))


def excerpt_style(root: str) -> Markup:
    """Return the page's colours and its tables' style, for what stands inside an element `root`
    of another page.
    """
    css = _file("page.css")
    first = css.index(".finding {")
    behind = css.index("@media print")
    rules = css[first:behind]
    return Markup(
        f"{colours(root)}"
        f"{root} {{ color: var(--ink); background: var(--paper); padding: 0.5rem; }}\n"
        f"@scope ({root}) {{ {rules} }}"
    )


@cache
def _file(name: str) -> Markup:
    file = files("calibrant.lab.report.page") / name
    return Markup(file.read_text("utf-8"))
