"""A report as a notebook shows it: what was found, each ranking's plot and table, in the page's own style."""

from collections.abc import Iterator
from typing import Final

from calibrant.report.page.contents import Contents
from calibrant.report.page.frame import style
from calibrant.report.page.overview import ranked
from calibrant.report.page.pictures import picture
from calibrant.report.page.tags import paragraph, text
from calibrant.report.plots import forest
from calibrant.report.sentences import doubts, finding

MOST: Final = 3
"""How many rankings are shown; the page has them all."""


def fragment(contents: Contents, key: str) -> str:
    """HTML without scripts, for a cell of a notebook. `key` must differ from that of any other report in the same notebook."""
    return f'<div class="calibrant-report"><style>{style(".calibrant-report")}</style>{"".join(_parts(contents, key))}</div>'


def _parts(contents: Contents, key: str) -> Iterator[str]:
    rankings = contents.comparison.rankings
    for number, (title, ranking) in enumerate(zip(contents.titles.values(), rankings, strict=True)):
        if number == MOST:
            yield paragraph(f"… and {len(rankings) - MOST} more; write_html() makes the page that has them all.", "note")
            return
        yield f"<h3>{text(title)}</h3>"
        yield from (paragraph(f"Doubtful: {d}", "doubt") for d in doubts(ranking))
        yield paragraph(finding(ranking))
        if (drawn := forest(ranking)) is not None:
            yield picture(drawn, f"{key}-{number}")
        yield from ranked(contents, ranking)
    if not rankings:
        yield paragraph("No calibration set has all of its measurements yet, so there is nothing to rank.")
