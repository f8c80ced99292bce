"""Objects as a notebook shows them: with what they are, and as text whatever they are called."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from calibrant.compress import prune
from calibrant.data import CalibrationSet
from calibrant.evaluators import evaluate
from calibrant.inspection import inspect
from calibrant.notebook import card, listing
from calibrant.study import Study, plan

from tests.study.small import asked, texts

HOSTILE = "</td><script>alert(1)</script><img src=x onerror='alert(1)'>"


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


def test_whatever_a_thing_is_called_is_text():
    page = card(HOSTILE, {HOSTILE: HOSTILE, "empty": "", "none": None}, HOSTILE, listing([HOSTILE], [[HOSTILE, 3]]))
    assert set(Tags(page).found) <= {"div", "strong", "table", "thead", "tbody", "tr", "th", "td", "p"}
    assert "empty" not in page
    assert "none" not in page


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    folder = tmp_path_factory.mktemp("notebook")
    return texts(folder), folder


def test_the_main_objects_show_themselves(made: tuple[dict[str, str], Path]):
    given, folder = made
    study: Study = asked(given, data=[given["prose"]], methods=["wanda"])
    pruned = prune(given["model"], given["prose"], samples=2, length=32, dtype="float32")
    (measured,) = evaluate(given["model"], [f"loss(source={given['verse']!r}, tokens=64, length=32)"])
    shown = {
        "2 windows of 32 tokens": CalibrationSet("random_tokens", samples=2, length=32),
        "disjoint draws": inspect(CalibrationSet(given["prose"], samples=2, length=32), given["model"]),
        "Study of 2 runs": study,
        "2, of which 0 are done": plan(study, folder / "results", probed=False),
        "achieved sparsity": pruned.record,
        "tiny, pruned": pruned,
        "nats/token": measured,
        "computed": study.run(folder / "results"),
    }
    for words, value in shown.items():
        page = value._repr_html_()
        assert words in page, (words, page)
        assert page.count("<table>") == page.count("</table>")
