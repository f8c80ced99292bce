import re
from dataclasses import replace

from markdown_it import MarkdownIt

from calibrant.report.tables.markdown import escaped

from tests.report.made import BEST, EVERYTHING, FULL, SECOND, lettered, plain, ranking, reported

HOSTILE = "a|b <script>alert(1)</script> *c* _d_ `e` [f](http://g) ~~h~~ # i &amp; \\ j\nk\x1b"


def drawn(text: str) -> str:
    """What a reader of GitHub's Markdown sees, as HTML."""
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)


def cells(html: str) -> list[list[str]]:
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)]


def test_tables_are_drawn_with_the_best_in_bold_and_letters_raised():
    html = plain(drawn(str(reported())))
    found = cells(html)
    assert found[0] == ["calibrated on", "rank", "mean", "docs", "code", "worse than the best"]
    assert found[1][:3] == ["<strong>python_docs</strong>", "1", "<strong>+1.600 ± 0.020</strong><sup>a</sup>"]
    assert found[2][0] == "c4"
    assert found[2][3] == "+1.500 ± 0.020<sup>ab</sup>"
    assert found[3][0] == "full_stops (control)"
    assert found[4][2] == "—"
    assert "<h2>Primary contrasts</h2>" in html
    assert "<li>pile (draw 0) on loss(source='docs'): DataError: no rows</li>" in html.replace("&#x27;", "'")
    assert html.count("<table>") == 3


def test_every_line_has_a_cell_for_each_column():
    for table in str(reported()).split("\n## "):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1


def test_whatever_a_name_holds_is_shown_as_itself():
    made = ranking(lettered(replace(BEST, name=HOSTILE), "a", (1, 1)), SECOND, model=HOSTILE)
    html = drawn(str(reported(replace(EVERYTHING, rankings=(made,), missing=(HOSTILE,)))))
    sound = set(re.findall(r"</?[a-z0-9]+", drawn(str(reported()))))
    assert set(re.findall(r"</?[a-z0-9]+", html)) <= sound
    shown = re.sub(r"<[^>]+>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert shown.count(HOSTILE.replace("\n", " ").replace("\x1b", "\\x1b")) >= 4


def test_the_key_stands_beneath():
    assert "Increase over the dense model in nats/token; ± one standard error; in a column," in str(reported(replace(EVERYTHING, rankings=(FULL,))))


def test_escaping():
    assert escaped("a_b|c") == "a\\_b\\|c"
    assert escaped("60\u00a0%") == "60\u00a0%"
