"""Objects as a notebook shows them: with what they are, and as text whatever they are called."""

from html.parser import HTMLParser
from pathlib import Path

from calibrant.compress import prune, quantize
from calibrant.data import CalibrationSet
from calibrant.data.inspect import inspect
from calibrant.evaluators import evaluate
from calibrant.lab.study import Study, plan
from calibrant.system.notebook import card, listing

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
    page = card(
        HOSTILE,
        {HOSTILE: HOSTILE, "empty": "", "none": None},
        HOSTILE,
        listing([HOSTILE], [[HOSTILE, 3]]),
    )
    assert set(Tags(page).found) <= {
        "div",
        "strong",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "p",
    }
    assert "empty" not in page
    assert "none" not in page


def test_a_rounded_cache_is_not_called_pruning(tmp_path: Path):
    given = texts(tmp_path)
    done = quantize(given["model"], target="kv_int8", data=given["prose"], samples=2, length=32)
    assert "quantized" in done._repr_html_()
    assert "no weight of its matrices rounded" in repr(done)


def test_the_main_objects_show_themselves(tmp_path: Path):
    given = texts(tmp_path)
    study: Study = asked(
        given,
        data=[given["prose"]],
        methods=["wanda"],
        evaluate=[f"loss(source={given['verse']!r}, tokens=64, length=32)"],
    )
    pruned = prune(given["model"], data=given["prose"], samples=2, length=32, dtype="float32")
    (measured,) = evaluate(
        given["model"], tasks=[f"loss(source={given['verse']!r}, tokens=64, length=32)"]
    )
    small = CalibrationSet(given["prose"], samples=2, length=32)
    shown = [
        (small, given["prose"]),
        (inspect(small, given["model"]), given["prose"]),
        (study, "2"),
        (plan(study, tmp_path / "results", probed=False), "2"),
    ]
    shown += [
        (pruned.record, "wanda"),
        (pruned, "tiny"),
        (measured, "nats/token"),
        (study.run(tmp_path / "results"), "2"),
    ]
    for value, told in shown:
        page = value._repr_html_()
        assert told in page
        assert page.count("<table>") == page.count("</table>") > 0
