"""A report as a notebook shows it."""

import re
from pathlib import Path

from calibrant.lab.report import report
from calibrant.lab.report.sentences import NOTHING_TO_RANK, ONLY_MEASURED
from calibrant.results import Store

from tests.report.made import store_of
from tests.report.page.test_page import BREAKOUT, HOSTILE, Reader


def test_a_report_shows_what_was_found_without_a_script_and_names_as_text(tmp_path: Path):
    found = report(
        store_of(tmp_path, {HOSTILE: (2.5, 3.9), "gsm8k:cot": (2.9, 3.4)}, model=BREAKOUT)
    )
    page = found._repr_html_()
    read = Reader(page)
    assert "gsm8k:cot kept" in "".join(read.text)
    assert not {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe"}
    assert page.count('role="img"') == 2, "one for a wide screen, one for a narrow one"
    ids = re.findall(r'\sid="([^"]+)"', page + report(tmp_path)._repr_html_())
    assert len(ids) == len(set(ids)), "two reports may stand in one notebook"
    assert "body {" not in page, "the style is the report's alone"
    assert ".calibrant-report { color-scheme" in page


def test_without_calibration_data_it_says_what_was_measured(tmp_path: Path):
    folder = store_of(tmp_path, {})
    shown = report(folder)._repr_html_()
    assert "Without calibration data" in shown
    assert "magnitude" in shown
    with Store(folder) as store:
        store.write_cells([cell for cell in store.cells() if cell.method == "none"])
    shown = report(folder)._repr_html_()
    assert ONLY_MEASURED in shown
    assert NOTHING_TO_RANK not in shown
