"""The page in a real browser: what happens when it is hovered, clicked, typed at, and when names
are hostile.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calibrant.spec.foreign import visible

from tests.report.page.browser import (
    HOSTILE,
    Watched,
    browser,
    layered,
    needs_browser,
    opened,
    similar,
    small,
)

pytestmark = [needs_browser, pytest.mark.slow]

PLACES = """[...document.querySelectorAll('.symbols path')].map((p) => {
    const b = p.getBoundingClientRect();
    return [b.x + b.width / 2, b.y + b.height / 2];
})"""
STROKES = "() => [...document.querySelectorAll('.lines line')].map((l) => l.getAttribute('stroke'))"


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as one:
        yield one


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("six") / "page.html"
    data = similar(6)
    names = [n.name for n in data.nodes]
    path.write_text(
        small(data, [layered(names), layered(names[2:], method="sparsegpt", seed=1)]), "utf-8"
    )
    return path


@pytest.fixture(scope="module")
def shared(started: Any, six: Path) -> Iterator[Watched]:
    with opened(started, reduced_motion="reduce") as watched:
        yield watched.open(six)
        assert watched.wrong == []
        assert watched.requests == [six.as_uri()]


@pytest.fixture
def page(shared: Watched, six: Path) -> Any:
    """The page of six sets, as new, without motion."""
    shared.page.goto("about:blank")
    shared.requests.clear()
    shared.open(six)
    shared.page.locator("#network-graph").scroll_into_view_if_needed()
    return shared.page


def places(page: Any) -> list[list[float]]:
    """Where the nodes are on the screen, in the order of the data."""
    return page.evaluate(f"() => {PLACES}")


@pytest.mark.smoke
def test_hovering_tells_name_result_and_layers(page: Any):
    page.mouse.move(*places(page)[0])
    tip = page.locator("#network-graph .tip")
    assert tip.is_visible()
    assert tip.inner_text().split("\n") == ["corpus_0:text@many", similar(6).nodes[0].result]
    assert page.locator("#network-status").inner_text().startswith("corpus_0:text@many: +")
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    assert page.locator("#network-status").inner_text() == ""
    strip = page.locator(".strip").nth(2)
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#layers > .tip")
    tip.wait_for()
    first, *others = tip.inner_text().split("\n")
    assert first.startswith("block ")
    assert [line.rpartition(": ")[0] for line in others] == [n.name for n in similar(6).nodes[:2]]


def test_clicking_opens_the_set_and_back_returns(page: Any):
    page.mouse.click(*places(page)[1])
    page.locator("#set-2").wait_for()
    assert page.evaluate("location.hash") == "#set-2"
    assert not page.locator("#overview").is_visible()
    assert not page.locator("#set-1").is_visible()
    assert (
        page.evaluate("[document.activeElement.textContent, document.title]")
        == ["code_1:icl@crop"] * 2
    )
    page.go_back()
    page.wait_for_function("!document.getElementById('overview').hidden")
    assert page.title() == "Report"
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.go_forward()
    page.wait_for_function("document.getElementById('overview').hidden")
    page.locator("#set-2 a").click()
    page.locator("#runs").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Runs", (
        "a link to a part goes to the part"
    )
    assert page.locator("#runs").evaluate("(e) => e.getBoundingClientRect().top") < 900


def test_keys_go_from_node_to_node_and_enter_opens(page: Any):
    page.locator("#network-graph").evaluate(
        "(e) => e.previousElementSibling.querySelector('[data-zoom=reset]').focus()"
    )
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "network-graph"
    names = [n.name for n in similar(6).nodes]
    for keys, name in (
        (["ArrowRight"], names[0]),
        (["ArrowDown", "ArrowDown"], names[2]),
        (["ArrowLeft"], names[1]),
        (["End"], names[5]),
    ):
        for key in keys:
            page.keyboard.press(key)
        assert page.locator("#network-status").inner_text().startswith(name)
        assert page.locator("#network-graph .tip").is_visible()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.locator("#set-1").wait_for()


def test_escape_leaves_the_graph_and_keys_begin_anew(page: Any):
    graph, said = page.locator("#network-graph"), page.locator("#network-status")
    names = [n.name for n in similar(6).nodes]
    for key, name in (
        ("ArrowRight", names[0]),
        ("ArrowLeft", names[5]),
        ("Home", names[0]),
        ("End", names[5]),
    ):
        graph.press(key)
        assert said.inner_text().startswith(name), key
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement === document.body")
        assert not graph.locator(".tip").is_visible()


def width(page: Any) -> float:
    found = [x for x, _ in places(page)]
    return max(found) - min(found)


def test_buttons_keys_and_the_wheel_zoom_and_reset(page: Any):
    first = width(page)
    page.locator("[data-zoom=in]").click()
    assert width(page) == pytest.approx(1.4 * first, rel=0.01)
    page.locator("[data-zoom=reset]").click()
    assert width(page) == pytest.approx(first, rel=0.01)
    graph = page.locator("#network-graph")
    graph.press("-")
    assert width(page) == pytest.approx(first / 1.4, rel=0.01)
    graph.press("0")
    graph.press("+")
    assert width(page) == pytest.approx(1.4 * first, rel=0.01)
    graph.press("0")
    x, y = places(page)[2]
    top = page.evaluate("scrollY")
    page.mouse.move(x, y)
    page.mouse.wheel(0, -120)
    page.wait_for_timeout(100)
    assert width(page) > 1.1 * first
    assert places(page)[2] == pytest.approx([x, y], abs=1), "what is under the pointer stays there"
    assert page.evaluate("scrollY") == top


def test_effects_are_drawn_when_asked_for(page: Any):
    data = similar(6)
    better, worse = (
        sum(e.verdict == verdict for e in data.effects) for verdict in ("better", "worse")
    )
    assert better
    assert worse
    assert not page.locator("#network-key").is_visible()
    page.get_by_label("calibrated on → measured on").check()
    strokes = page.evaluate(STROKES)
    assert (strokes.count("var(--better)"), strokes.count("var(--worse)")) == (better, worse)
    dashed = (
        "() => [...document.querySelectorAll('.lines line[stroke-dasharray]')].map((l) => "
        "l.getAttribute('stroke'))"
    )
    assert page.evaluate(dashed) == ["var(--worse)"] * worse
    assert page.evaluate("() => document.querySelectorAll('.ends path').length") == better + worse
    assert len(places(page)) == 6 + 3
    assert page.locator("#network-key").is_visible()
    page.locator("#network-graph").press("ArrowRight")
    helped = [
        data.measured[e.measured] for e in data.effects if e.set == 0 and e.verdict == "better"
    ]
    for name in helped:
        assert f"better on {name}" in page.locator("#network-status").inner_text()
    page.get_by_label("calibrated on → measured on").uncheck()
    assert set(page.evaluate(STROKES)) == {"var(--soft)"}
    assert len(places(page)) == 6


def test_layers_follow_the_choice_of_sets_and_runs(page: Any):
    names = [n.name for n in similar(6).nodes]
    said, line = (
        page.locator("#layers-status"),
        "() => document.querySelector('.strip path[stroke-width]').getAttribute('d')",
    )
    assert page.evaluate("() => document.querySelectorAll('#layers .strip svg').length") == 3
    first, drawn = said.inner_text(), page.evaluate(line)
    assert first.startswith(f"{names[0]} and {names[1]}: masks differ most in block ")
    page.locator("#layers-b").select_option(label=names[2])
    assert said.inner_text().startswith(f"{names[0]} and {names[2]}: ")
    assert page.evaluate(line) != drawn
    page.locator("#layers-a").select_option(label=names[2])
    assert said.inner_text().startswith(f"{names[2]} and {names[0]}: "), "the two change places"
    page.locator("#layers-run").select_option("1")
    assert said.inner_text().startswith(f"{names[2]} and {names[3]}: "), (
        "sets that the other runs lack give way"
    )
    made = layered(names[2:], method="sparsegpt", seed=1)
    page.locator("#layers summary").click()
    cells = page.locator("#layers-table tbody tr").nth(4).inner_text().split("\t")
    assert cells == [
        "model.layers.4",
        f"{100 * (1 - made.masks[0, 1, 4]):.1f} %",
        f"{made.statistics[0, 1, 4]:.3f}",
        f"{100 * made.error[0, 4]:.2f} %",
        f"{100 * made.error[1, 4]:.2f} %",
    ]
    assert "sparsegpt" in page.locator("#layers-table caption").inner_text()
    page.locator("#layers-a-page").click()
    page.locator("#set-3").wait_for()


def test_without_a_script_there_are_tables_and_every_set(started: Any, six: Path):
    with opened(started, java_script_enabled=False) as watched:
        watched.page.goto(six.as_uri())
        assert watched.page.locator(".view:visible").count() == 7
        assert watched.page.locator("#network table:visible").count() == 2
        assert watched.page.locator("#layers-table").is_visible()
        assert not watched.page.locator("#network-graph").is_visible()
        assert watched.page.get_by_text("need JavaScript").is_visible()


def test_hostile_names_are_text(started: Any, tmp_path: Path):
    names = [f"{HOSTILE}{i}" for i in range(6)]
    path = tmp_path / "page.html"
    path.write_text(small(similar(6, names=names), [layered(names)]), "utf-8")
    with opened(started, reduced_motion="reduce") as watched:
        page = watched.open(path).page
        page.locator("#network-graph").press("ArrowRight")
        assert visible(names[0])[:40] in page.locator("#network-status").inner_text()
        page.get_by_label("calibrated on → measured on").check()
        page.locator("#layers-b").select_option("3")
        page.locator("#network-graph").press("ArrowRight")
        page.locator("#network-graph").press("Enter")
        assert page.evaluate(
            "() => [document.querySelectorAll('main img').length, document.querySelectorAll('main "
            "b').length]"
        ) == [0, 0]
        assert watched.wrong == []
        assert watched.requests == [path.as_uri()]
