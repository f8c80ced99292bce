"""The frame of the page: its head, what the browser may run, and the order of its parts."""

from collections.abc import Iterator
from functools import cache
from html import escape
from importlib.resources import files
from typing import Final

from calibrant.compare import join_names
from calibrant.report.page import connections, grid, overview, runs, sets
from calibrant.report.page.bundle import digest, vega_bundle
from calibrant.report.page.contents import Contents
from calibrant.report.page.layers import layers
from calibrant.report.page.network import network
from calibrant.report.page.tags import text
from calibrant.report.plots.theme import DARK, LIGHT

STYLES: Final = ("page.css", "interactive.css")
POLICY: Final = "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
"""What the browser is told to refuse: every request, and every script but the page's own two, which are known by their hashes."""

PARTS: Final = {
    "answer": "Answer",
    "ranking": "Ranking",
    "questions": "Questions",
    "grid": "Grid",
    "sets": "Sets",
    "network": "Network",
    "layers": "Layers",
    "conclusions": "Contrasts",
    "runs": "Runs",
    "about": "About",
}
"""The parts of the page that its navigation leads to, where they are there."""


def page(contents: Contents) -> str:
    """The whole page."""
    facts = contents.facts
    models = join_names([f"{model} ({note})" if note else model for model, note in facts.models.items()] or ["no model"])
    title = f"Which calibration data kept {join_names(list(facts.models) or ['the model'])} best?"
    body = "\n".join(_body(contents))
    scripts = [vega_bundle(), _file("page.js")]
    policy = POLICY.format(scripts=" ".join(f"'{digest(script)}'" for script in scripts))
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=False)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{text(title)}</title>\n<style>\n{colours()}{''.join(map(_file, STYLES))}</style>\n</head>\n<body>",
            '<a class="skip" href="#answer">To the answer</a>',
            f'<header><p class="over">Calibrant report · {text(models)}</p><h1 tabindex="-1">{text(title)}</h1></header>',
            _navigation(body),
            f"<main>{body}</main>",
            f"<footer>{text(facts.machine.get('versions', ''))}. Made from the study’s own store; this page fetches nothing.</footer>",
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )


def _body(contents: Contents) -> Iterator[str]:
    yield '<div id="overview" class="view">'
    for part in (overview.answer, overview.rankings, overview.questions, grid.grid, sets.index):
        yield from part(contents)
    yield from network(connections.network_of(contents))
    yield from layers(contents.ordered_layers, contents.ids)
    for part in (grid.said, runs.runs, runs.about):
        yield from part(contents)
    yield "</div>"
    yield from sets.pages(contents)


def _navigation(body: str) -> str:
    """Links to the parts that are there."""
    links = "".join(f'<a href="#{part}">{title}</a>' for part, title in PARTS.items() if f' id="{part}"' in body)
    return f'<nav aria-label="Parts of this page">{links}</nav>'


def colours(root: str = ":root") -> str:
    """The palettes of the plots as custom properties of `root`: light, and dark for who prefers it."""
    light, dark = ("".join(f" --{name}: {value};" for name, value in palette.items()) for palette in (LIGHT, DARK))
    return f"{root} {{ color-scheme: light dark;{light} }}\n@media screen and (prefers-color-scheme: dark) {{ {root} {{{dark} }} }}\n"


def style(root: str) -> str:
    """The page's colours and its tables' style, for what stands inside an element `root` of another page."""
    css = _file("page.css")
    rules = css[css.index(".finding {") : css.index("@media print")]
    return f"{colours(root)}{root} {{ color: var(--ink); background: var(--paper); padding: 0.5rem; }}\n@scope ({root}) {{ {rules} }}"


@cache
def _file(name: str) -> str:
    return files("calibrant.report.page").joinpath(name).read_text("utf-8")
