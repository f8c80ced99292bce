"""Plots as the page shows them: each in a figure of its own, which scrolls where it is wider than the screen."""

from collections.abc import Iterator, Sequence

from calibrant.report.page.tags import text
from calibrant.report.plots import Plot, inline


def picture(plot: Plot, key: str) -> str:
    """One plot under its title; `key` must be unique in the page."""
    scrolling = f'<div class="scroll" role="region" tabindex="0" aria-label="{text(plot.title)}">{inline(plot, key)}</div>'
    return f'<figure class="wide"><figcaption>{text(plot.title)}</figcaption>{scrolling}</figure>'


def pictures(plots: Sequence[Plot], key: str) -> Iterator[str]:
    """Plots side by side where there is room."""
    yield '<div class="figures">'
    yield from (picture(plot, f"{key}-p{number}") for number, plot in enumerate(plots))
    yield "</div>"
