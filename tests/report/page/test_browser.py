"""The page in a real browser: what happens when it is hovered, clicked, dragged, typed at, printed, and when names are hostile."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from calibrant.foreign import visible

from tests.report.page.browser import HOSTILE, Watched, browser, layered, needs_browser, opened, similar, small

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
    path.write_text(small(data, [layered(names), layered(names[2:], method="sparsegpt", seed=1)], rows=12), "utf-8")
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


def apart(one: list[list[float]], other: list[list[float]]) -> list[float]:
    return [((a - c) ** 2 + (b - d) ** 2) ** 0.5 for (a, b), (c, d) in zip(one, other, strict=True)]


def test_hovering_tells_name_and_result(page: Any):
    page.mouse.move(*places(page)[0])
    tip = page.locator("#network-graph .tip")
    assert tip.is_visible()
    assert tip.inner_text().split("\n") == ["corpus_0:text@many", similar(6).nodes[0].result]
    assert page.locator("#network-status").inner_text().startswith("corpus_0:text@many: +")
    page.mouse.move(5, 5)
    assert not tip.is_visible()
    assert page.locator("#network-status").inner_text() == ""


def test_clicking_opens_the_set_and_back_returns(page: Any):
    page.mouse.click(*places(page)[1])
    page.locator("#set-2").wait_for()
    assert page.evaluate("location.hash") == "#set-2"
    assert not page.locator("#overview").is_visible()
    assert not page.locator("#set-1").is_visible()
    assert page.evaluate("[document.activeElement.textContent, document.title]") == ["code_1:icl@crop"] * 2
    page.go_back()
    page.wait_for_function("!document.getElementById('overview').hidden")
    assert page.title() == "Report"
    assert page.evaluate("document.activeElement.tagName") == "H1"
    page.go_forward()
    page.wait_for_function("document.getElementById('overview').hidden")
    page.locator("#set-2 a").click()
    page.locator("#runs").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "Runs", "a link to a part goes to the part"
    assert page.locator("#runs").evaluate("(e) => e.getBoundingClientRect().top") < 900


def test_a_dragged_node_stays_where_it_is_put_and_reset_lets_go(page: Any):
    before = places(page)
    x, y = before[0]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 30, y + 20, steps=4)
    page.mouse.move(x + 60, y + 40, steps=4)
    page.mouse.up()
    moved = places(page)
    assert moved[0] == pytest.approx([x + 60, y + 40], abs=2)
    assert max(apart(before[1:], moved[1:])) < 1, "without motion nothing else moves"
    assert page.evaluate("location.hash") == "", "a drag is no click"
    page.locator("#network-threshold").press("ArrowRight")
    page.mouse.move(5, 5)
    assert places(page)[0] == pytest.approx(moved[0], abs=2)
    page.locator("[data-zoom=reset]").click()
    assert apart(places(page), moved)[0] > 5


def test_dragging_the_ground_pans(page: Any):
    before = places(page)
    box = page.locator("#network-graph").bounding_box()
    x, y = box["x"] + 8, box["y"] + 8
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 50, y + 30, steps=5)
    page.mouse.up()
    for (a, b), (c, d) in zip(before, places(page), strict=True):
        assert [c - a, d - b] == pytest.approx([50, 30], abs=1)


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


def test_at_the_limits_of_the_zoom_the_page_scrolls_on(page: Any):
    page.evaluate("window.scrollTo(0, 0)")
    page.mouse.move(*places(page)[0])
    for _ in range(10):
        page.mouse.wheel(0, 400)
    page.wait_for_function("scrollY > 100")


def test_keys_go_from_node_to_node_and_enter_opens(page: Any):
    page.locator("#network-graph").evaluate("(e) => e.previousElementSibling.querySelector('[data-zoom=reset]').focus()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "network-graph"
    said = page.locator("#network-status")
    names = [n.name for n in similar(6).nodes]
    page.keyboard.press("ArrowRight")
    assert said.inner_text().startswith(names[0])
    assert page.locator("#network-graph .tip").is_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert said.inner_text().startswith(names[2])
    page.keyboard.press("ArrowLeft")
    assert said.inner_text().startswith(names[1])
    page.keyboard.press("End")
    assert said.inner_text().startswith(names[5])
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.locator("#set-1").wait_for()


def test_escape_leaves_the_graph(page: Any):
    graph = page.locator("#network-graph")
    graph.press("ArrowRight")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement === document.body")
    assert not graph.locator(".tip").is_visible()


def test_another_measure_has_other_lines(page: Any):
    def drawn() -> list[str]:
        return page.evaluate("() => [...document.querySelectorAll('.lines line')].map((l) => l.outerHTML)")

    before, told = drawn(), page.locator("#network-shown").inner_text()
    page.get_by_label("the statistics that the model gets").check()
    assert drawn() != before
    assert page.locator("#network-shown").inner_text() != told
    assert page.get_by_label("the masks that they lead to").is_disabled()


def test_the_threshold_changes_how_many_lines_there_are(page: Any):
    shown = page.locator("#network-shown")
    count = "() => document.querySelectorAll('.lines line').length"
    slider = page.locator("#network-threshold")
    slider.press("Home")
    assert (page.evaluate(count), shown.inner_text().endswith("15 of 15 lines")) == (15, True)
    slider.press("End")
    few = page.evaluate(count)
    assert few <= 1
    assert shown.inner_text().endswith(f": {few} of 15 lines")


def test_effects_are_drawn_when_asked_for(page: Any):
    data = similar(6)
    better, worse = (sum(e.verdict == verdict for e in data.effects) for verdict in ("better", "worse"))
    assert better
    assert worse
    assert not page.locator("#network-key").is_visible()
    page.get_by_label("calibrated on → measured on").check()
    strokes = page.evaluate(STROKES)
    assert (strokes.count("var(--better)"), strokes.count("var(--worse)")) == (better, worse)
    dashed = "() => [...document.querySelectorAll('.lines line[stroke-dasharray]')].map((l) => l.getAttribute('stroke'))"
    assert page.evaluate(dashed) == ["var(--worse)"] * worse
    assert page.evaluate("() => document.querySelectorAll('.ends path').length") == better + worse
    assert len(places(page)) == 6 + 3
    assert page.locator("#network-key").is_visible()
    page.locator("#network-graph").press("ArrowRight")
    helped = [data.measured[e.measured] for e in data.effects if e.set == 0 and e.verdict == "better"]
    for name in helped:
        assert f"better on {name}" in page.locator("#network-status").inner_text()
    page.get_by_label("calibrated on → measured on").uncheck()
    assert set(page.evaluate(STROKES)) == {"var(--soft)"}
    assert len(places(page)) == 6


def test_layers_follow_the_choice_of_sets_and_runs(page: Any):
    names = [n.name for n in similar(6).nodes]
    said, line = page.locator("#layers-status"), "() => document.querySelector('.strip path[stroke-width]').getAttribute('d')"
    assert page.evaluate("() => document.querySelectorAll('#layers .strip svg').length") == 3
    first, drawn = said.inner_text(), page.evaluate(line)
    assert first.startswith(f"{names[0]} and {names[1]}: masks differ most in block ")
    page.locator("#layers-b").select_option(label=names[2])
    assert said.inner_text().startswith(f"{names[0]} and {names[2]}: ")
    assert page.evaluate(line) != drawn
    page.locator("#layers-a").select_option(label=names[2])
    assert said.inner_text().startswith(f"{names[2]} and {names[0]}: "), "the two change places"
    page.locator("#layers-run").select_option("1")
    assert said.inner_text().startswith(f"{names[2]} and {names[3]}: "), "sets that the other runs lack give way"
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


def test_layers_tell_their_numbers_when_hovered(page: Any):
    page.locator(".strip").nth(2).scroll_into_view_if_needed()
    box = page.locator(".strip").nth(2).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = page.locator("#layers > .tip")
    tip.wait_for()
    first, *others = tip.inner_text().split("\n")
    assert first.startswith("block ")
    assert [line.rpartition(": ")[0] for line in others] == [n.name for n in similar(6).nodes[:2]]


def rows(page: Any) -> list[str]:
    return page.evaluate("() => [...document.querySelectorAll('#table tbody tr')].filter((r) => !r.hidden).map((r) => r.cells[0].textContent)")


def test_sorting_goes_by_value_and_leaves_what_is_aside_at_the_end(page: Any):
    mean = page.get_by_role("button", name="mean")
    mean.click()
    values = page.evaluate("() => [...document.querySelectorAll('#table tbody td')].map((c) => c.dataset.value)")
    assert values == [*map(str, sorted((7 * i) % 11 for i in range(12))), "", "-5"]
    assert page.locator("#table th").nth(1).get_attribute("aria-sort") == "ascending"
    mean.click()
    assert rows(page)[-2:] == ["hole", "dense"]
    assert page.evaluate("() => document.querySelector('#table tbody td').dataset.value") == "10"
    page.locator("#table .sort").first.click()
    assert rows(page)[1:5] == ["row 0", "row 1", "row 2", "row 3"], "numbers in text count as numbers"
    assert page.locator("#table th[aria-sort]").count() == 1


def test_filtering_needs_every_word_and_counts(page: Any):
    count = page.locator(".filter-count")
    assert count.inner_text() == "14 of 14"
    page.locator("input.filter").fill("ROW 1")
    assert rows(page) == ["row 1", "row 10", "row 11"] or set(rows(page)) >= {"row 1", "row 10", "row 11"}
    assert count.inner_text() == f"{len(rows(page))} of 14"
    page.locator("input.filter").fill("nothing")
    assert count.inner_text() == "0 of 14"


def test_choosers_show_one_each_and_print_shows_all(page: Any):
    assert page.locator("[data-choice]:visible").all_inner_texts() == ["the first way", "one"]
    page.locator("[data-chooses=way]").select_option("y")
    assert page.locator("[data-choice]:visible").all_inner_texts() == ["the second way", "one"]
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.locator("[data-choice]:visible").count() == 4
    assert page.locator(".view:visible").count() == 7
    assert page.locator("details[data-folds][open]").count() == 2
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.locator("[data-choice]:visible").count() == 2
    assert page.locator(".view:visible").count() == 1


def test_copying_says_so_or_selects(page: Any):
    page.locator("button.copy").click()
    said = page.locator(".copied")
    page.wait_for_function("() => document.querySelector('.copied').textContent !== ''")
    assert said.inner_text() == "copied" or page.evaluate("getSelection().toString()") == "model: smollm2"
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new DOMException('no')); }")
    page.locator("button.copy").click()
    page.wait_for_function("() => document.querySelector('.copied').textContent.startsWith('selected')")
    assert page.evaluate("getSelection().toString()") == "model: smollm2"


def test_a_page_opened_at_a_set_shows_it_and_draws_later(started: Any, six: Path):
    with opened(started, reduced_motion="reduce") as watched:
        watched.page.goto(f"{six.as_uri()}#set-4")
        watched.page.locator("#set-4").wait_for()
        assert not watched.page.locator("#overview").is_visible()
        watched.page.evaluate("location.hash = '#network'")
        watched.page.wait_for_selector("#network-graph svg .symbols path")
        assert watched.wrong == []


def test_without_a_script_there_are_tables_and_every_set(started: Any, six: Path):
    with opened(started, java_script_enabled=False) as watched:
        watched.page.goto(six.as_uri())
        assert watched.page.locator(".view:visible").count() == 7
        assert watched.page.locator("#network table:visible").count() == 2
        assert watched.page.locator("#layers-table").is_visible()
        assert not watched.page.locator("#network-graph").is_visible()
        assert watched.page.get_by_text("need JavaScript").is_visible()


def test_nodes_move_to_a_new_layout_where_motion_is_welcome(started: Any, six: Path):
    with opened(started) as watched:
        page = watched.open(six).page
        before = places(page)
        page.get_by_label("the statistics that the model gets").check()
        watched.settle()
        assert max(apart(before, places(page))) > 5
        x, y = places(page)[0]
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 40, y + 30, steps=5)
        page.mouse.up()
        watched.settle()
        assert places(page)[0] == pytest.approx([x + 40, y + 30], abs=2)
        assert watched.wrong == []


def test_two_fingers_zoom(started: Any, six: Path):
    with opened(started, 390, 844, has_touch=True, reduced_motion="reduce") as watched:
        page = watched.open(six).page
        page.locator("#network-graph").scroll_into_view_if_needed()
        first, box = width(page), page.locator("#network-graph").bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        touch = page.context.new_cdp_session(page)
        for kind, reach in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80)):
            points = [{"x": x - reach, "y": y, "id": 1}, {"x": x + reach, "y": y, "id": 2}]
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        page.wait_for_timeout(100)
        assert width(page) > 1.5 * first
        assert watched.wrong == []


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, data = tmp_path_factory.mktemp("sixty") / "page.html", similar(60)
    path.write_text(small(data, [layered([n.name for n in data.nodes], blocks=32)], rows=500), "utf-8")
    return path


def test_a_page_of_sixty_sets_shows_one_view_at_a_time(started: Any, sixty: Path):
    with opened(started) as watched:
        page = watched.open(sixty).page
        for target in ("set-30", "overview", "set-60", "set-1"):
            page.evaluate("(target) => { location.hash = target; }", target)
            page.locator(f"#{target}").wait_for()
            assert page.locator(".view:visible").count() == 1


def test_labels_stay_inside_and_rarely_overlap(started: Any, sixty: Path):
    with opened(started, reduced_motion="reduce") as watched:
        page = watched.open(sixty).page
        boxes = page.evaluate(
            "() => [...document.querySelectorAll('.labels text')].filter((t) => Number(t.getAttribute('opacity') ?? 1) > 0)"
            ".map((t) => { const b = t.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; })"
        )
        area = page.locator("#network-graph").bounding_box()
        left, top = area["x"], area["y"]
        inside = [b for b in boxes if b[0] >= left and b[1] >= top and b[2] <= left + area["width"] and b[3] <= top + area["height"]]
        assert len(inside) == len(boxes) > 45
        pairs = [
            (a, b) for i, a in enumerate(boxes) for b in boxes[:i] if min(a[2], b[2]) - max(a[0], b[0]) > 4 and min(a[3], b[3]) - max(a[1], b[1]) > 6
        ]
        assert len(pairs) <= 2


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
        assert page.evaluate("() => [document.querySelectorAll('main img').length, document.querySelectorAll('main b').length]") == [0, 0]
        assert watched.wrong == []
        assert watched.requests == [path.as_uri()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [390, 1280])
def test_nothing_serious_is_found_by_axe(started: Any, six: Path, scheme: str, size: int):
    pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
    with opened(started, size, color_scheme=scheme, reduced_motion="reduce") as watched:
        page = watched.open(six).page
        page.get_by_label("calibrated on → measured on").check()
        for fold in page.locator("details > summary").all():
            fold.click()
        page.locator("#network-graph").press("ArrowRight")
        assert watched.violations() == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing makes the page itself scroll sideways"
        page.evaluate("location.hash = '#set-2'")
        page.locator("#set-2").wait_for()
        assert watched.violations() == []
