"""Boxes on the page of the published demo, in a real browser with whatever fonts it has: nothing covers, leaves or breaks anything."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calibrant.report import report

from tests.report.page.browser import Watched, browser, needs_browser, opened

pytestmark = [needs_browser, pytest.mark.slow]

STUDIES = Path(__file__).parents[3] / "studies"
SCREENS = [(width, scheme) for width, scheme in ((1440, "light"), (390, "dark"))]

COVERED = """() => [...document.querySelectorAll('svg.plot')].filter((svg) => svg.getClientRects().length).flatMap((svg) => {
    const boxes = [...svg.querySelectorAll('text')].map((t) => [t.textContent, t.getBoundingClientRect()]).filter(([t]) => t.trim());
    return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([, q]) =>
        Math.min(p.right, q.right) - Math.max(p.left, q.left) > 2 && Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top) > 0.35 * p.height
    ).map(([b]) => `${a} | ${b}`));
})"""
OUTSIDE = """() => [...document.querySelectorAll('svg.plot')].filter((svg) => svg.getClientRects().length).flatMap((svg) => {
    const frame = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].map((t) => [t.textContent, t.getBoundingClientRect()])
        .filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1 || b.top < frame.top - 1 || b.bottom > frame.bottom + 1)
        .map(([text]) => text);
})"""
CUT = """() => [...document.querySelectorAll('table.cards td, table.cards tbody th')].filter((cell) => {
    const box = cell.getBoundingClientRect();
    return box.width && (box.left < 0 || box.right > innerWidth + 0.5 || cell.scrollWidth > cell.clientWidth + 1);
}).map((cell) => cell.textContent.slice(0, 60))"""


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(STUDIES / "demo").write_html(tmp_path_factory.mktemp("page") / "demo.html")


@pytest.fixture(params=SCREENS, ids=lambda screen: f"{screen[0]}-{screen[1]}")
def shown(request: Any, started: Any, page: Path) -> Iterator[tuple[int, Watched]]:
    width, scheme = request.param
    with opened(started, width=width, color_scheme=scheme, reduced_motion="reduce") as watched:
        yield width, watched.open(page)
        assert watched.wrong == []


def test_nothing_stands_over_anything_or_outside(shown: tuple[int, Watched]):
    width, watched = shown
    look = watched.page.evaluate
    assert look(COVERED) == []
    assert look(OUTSIDE) == []
    assert look("document.documentElement.scrollWidth") <= width, "the page itself never scrolls sideways"
    narrow = width == 390
    assert not (narrow and look(CUT))
    assert watched.page.locator("#ranking .on-narrow svg").first.is_visible() is narrow
    assert watched.page.locator("#ranking .on-wide svg").first.is_visible() is not narrow
    assert not watched.violations()
