"""The report as one HTML file: nothing is fetched, and whatever a data set or a model is called
is shown as text. And the excerpt of it that a notebook shows. No torch here.
"""

from typing import Final

from markupsafe import Markup

from calibrant.lab.report.page.contents import Contents
from calibrant.lab.report.page.layers import layers
from calibrant.lab.report.page.network import network, network_of
from calibrant.lab.report.page.parts import language_maps, run_table, word_maps
from calibrant.lab.report.page.rendering import (
    digest,
    excerpt_style,
    page_script,
    page_style,
    render,
    vega_bundle,
)
from calibrant.lab.report.tables.sections import conclusions, sensitivity, without_data

__all__ = ["Contents", "fragment", "page"]

POLICY: Final = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What the browser is to refuse: every request, and every script but the page's own two, which
are known by their hashes.
"""

PARTS: Final = {
    "answer": "Answer",
    "ranking": "Ranking",
    "sensitivity": "Sensitivity",
    "questions": "Questions",
    "grid": "Grid",
    "sets": "Sets",
    "network": "Network",
    "layers": "Layers",
    "words": "Words",
    "languages": "Languages",
    "conclusions": "Contrasts",
    "runs": "Runs",
    "about": "About",
}
"""The parts of the page that its navigation leads to, where they are there."""

BADGES: Final = {
    "yes": "yes",
    "no": "no",
    "it depends": "depends",
    "undecided": "open",
    "not covered": "unasked",
}
"""The style of each answer to a question."""

MOST: Final = 3
"""How many rankings an excerpt shows; the page has them all."""


def page(contents: Contents) -> str:
    """Return the whole page."""
    scripts = [vega_bundle(), page_script()]
    digests = " ".join(f"'{digest(script)}'" for script in scripts)
    whole = render(
        "page",
        contents=contents,
        policy=Markup(POLICY.format(scripts=digests)),
        style=page_style(),
        scripts=scripts,
        parts=PARTS,
        badges=BADGES,
        network=network(network_of(contents)),
        layers=layers(contents.ordered_layers, contents.ids),
        word_maps=word_maps(contents),
        language_maps=language_maps(contents),
        sensitivity=list(sensitivity(contents.comparison)),
        conclusions=[*without_data(contents.comparison), *conclusions(contents.comparison)],
        run_table=run_table(contents),
    )
    # No longer markup: nobody adds to a page.
    return str(whole)


def fragment(contents: Contents, key: str) -> str:
    """Return HTML without scripts, for a cell of a notebook. `key` must differ from that of any
    other report in the same notebook.
    """
    titles = list(contents.titles.values())[:MOST]
    style = excerpt_style(".calibrant-report")
    excerpt = render(
        "excerpt",
        contents=contents,
        key=key,
        titles=titles,
        style=style,
        without_data=list(without_data(contents.comparison)),
    )
    return str(excerpt)
