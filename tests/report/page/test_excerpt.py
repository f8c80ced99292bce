"""A report as a notebook shows it."""

import re
from pathlib import Path

from calibrant.report import report

from tests.report.made import store_of
from tests.report.page.test_page import BREAKOUT, HOSTILE, Reader


def test_a_report_shows_what_was_found_without_a_script(tmp_path: Path):
    found = report(store_of(tmp_path, {"python_docs": (2.5, 3.9), "gsm8k:cot": (2.9, 3.4)}))
    page = found._repr_html_()
    read = Reader(page)
    text = "".join(read.text)
    assert "gsm8k:cot kept smollm2 best" in text
    assert not {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe"}
    assert page.count('role="img"') == 2, "one for a wide screen, one for a narrow one"
    ids = re.findall(r'\sid="([^"]+)"', page + report(tmp_path)._repr_html_())
    assert len(ids) == len(set(ids)), "two reports may stand in one notebook"
    assert "body {" not in page, "the style is the report's alone"
    assert ".calibrant-report { color-scheme" in page


def test_names_are_text_there_too(tmp_path: Path):
    page = report(store_of(tmp_path, {HOSTILE: (2.5, 3.9), BREAKOUT: (2.9, 3.4)}, model=BREAKOUT))._repr_html_()
    assert not {tag for tag, _ in Reader(page).tags} & {"script", "img"}


def test_an_empty_report_says_so(tmp_path: Path):
    assert "nothing to rank" in report(store_of(tmp_path, {}))._repr_html_()
