import re
from dataclasses import replace

from markdown_it import MarkdownIt

from tests.report.made import BEST, EVERYTHING, SECOND, lettered, plain, ranking, reported

HOSTILE = "a|b <script>alert(1)</script> *c* _d_ `e` [f](http://g) ~~h~~ # i &amp; \\ j\nk\x1b"


def drawn(text: str) -> str:
    """What a reader of GitHub's Markdown sees, as HTML."""
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).render(text)


def cells(html: str) -> list[list[str]]:
    return [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL)
    ]


def test_tables_are_drawn_with_the_best_in_bold_and_letters_raised():
    text = str(reported())
    html = plain(drawn(text))
    found = cells(html)
    assert found[0] == ["calibrated on", "rank", "mean", "docs", "code", "worse than the best"]
    assert found[1][:3] == [
        "<strong>python_docs</strong>",
        "1",
        "<strong>+1.600 ± 0.020</strong><sup>a</sup>",
    ]
    assert found[2][3] == "+1.500 ± 0.020<sup>ab</sup>"
    assert [row[0] for row in found[2:4]] == ["c4", "full_stops (control)"]
    assert "<li>pile (draw 0) on loss(source='docs'): DataError: no rows</li>" in html.replace(
        "&#x27;", "'"
    )
    assert html.count("<table>") == 3
    assert "one standard error" in html, "the key stands beneath"
    for table in text.split("\n## "):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1, (
            "each line has a cell for each column"
        )


def test_whatever_a_name_holds_is_shown_as_itself():
    made = ranking(lettered(replace(BEST, name=HOSTILE), "a", (1, 1)), SECOND, model=HOSTILE)
    html = drawn(str(reported(replace(EVERYTHING, rankings=(made,), missing=(HOSTILE,)))))
    sound = set(re.findall(r"</?[a-z0-9]+", drawn(str(reported()))))
    assert set(re.findall(r"</?[a-z0-9]+", html)) <= sound
    shown = (
        re.sub(r"<[^>]+>", "", html).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    assert shown.count(HOSTILE.replace("\n", " ").replace("\x1b", "\\x1b")) >= 4
