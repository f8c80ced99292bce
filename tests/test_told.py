"""What the prose of findings, their list and the README tells is a number of a table: of the page,
of a page that the README or the list links to there; a share in a finding may also be of a page
that its paragraph links to.

Tables themselves are made of records (test_published.py). Of which method or set a number is,
nothing here checks.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
NUMBER = re.compile(r"(?:(?<![\w.])[+-])?(?<![\d.])\d+\.\d{1,4}\b(?!\.\d)")
"""A number with decimals and its sign, if it has one; the hyphen of a name isn't a sign."""
SHARE = re.compile(
    r"(?<![\d.,:-])(\d+)(?: (?:to|and|in place of) (\d+))?(?: ?%| points)(?: \((\d+)(?: to "
    r"(\d+))?\b(?!\.))?"
)
"""A share, or two of them, and what stands in brackets behind it: another one, or an interval."""
WITH_ERROR = re.compile(r"([+-]?\d+\.\d+)( ± )(\d+\.\d+)")
INTERVAL = re.compile(r"\d\.\d+ \(([+-]?\d+\.\d+)( to )([+-]?\d+\.\d+)\)")
"""An interval in brackets behind its number."""
SPARSITY = re.compile(r"(?:blocks |numbers )?0\.\d+")
LEVEL = re.compile(r"\b95 %|(?:at|rate of) 5 %|bold is below 0\.05")
FACTS = {
    "c4.md": {"15.6", "40", "99.98"},
    "choosing.md": {"5", "60"},
    "index.md": {"0.25", "60"},
    "languages.md": {"1", "50"},
    "mixing.md": {"50"},
    "pruning.md": {"0.25", "60", "70"},
    "template.md": {"2.5"},
    "words.md": {"50", "60"},
}
"""By page what no table has: targets, hours, limits of what is listed, how many neurons are told
of, how alike two processors' masks are, a model's version, the least difference that was asked for.
"""
ROUNDED = {"served.md"}
"""Pages whose prose has a decimal less than their tables."""
PAGES = {
    path.name: path.read_text("utf-8").replace("−", "-").splitlines()
    for path in (PROJECT / "docs/findings").glob("*.md")
}
OWN = sorted(PAGES.keys() - {"index.md", "dense.md"})
"""The pages with prose of their own; that on the dense model is made by a script as a whole."""


@pytest.mark.parametrize("page", OWN)
def test_a_page_tells_what_its_tables_say(page: str):
    prose = [line for line in PAGES[page] if line and not line.startswith("|")]
    assert sum(len(NUMBER.findall(line)) for line in prose) > 10
    for line in prose:
        assert list(without_a_table(line, {page}, linked(line), page)) == [], line


@pytest.mark.parametrize("page", OWN)
def test_a_number_with_its_error_and_an_interval_stand_together_in_a_table(page: str):
    for line in PAGES[page]:
        if line.startswith("|"):
            continue
        told = plain(line)
        cells = plain(rows_of({page} | linked(line)))
        for first, between, second in WITH_ERROR.findall(told) + INTERVAL.findall(told):
            end = rf"{between}[+-]?{re.escape(second.lstrip('+-'))}(?!\d)"
            assert re.search(rf"(?<![\d.]){re.escape(first.lstrip('+-'))}{end}", cells), line


def plain(text: str) -> str:
    """The text without marks of bold."""
    return text.replace("*", "")


def test_the_readme_and_the_list_of_findings_tell_what_the_tables_of_the_pages_say():
    headline = (
        (PROJECT / "README.md")
        .read_text("utf-8")
        .partition("## What it found")[2]
        .partition("## ")[0]
        .split("\n\n")
    )
    listed = [line for line in PAGES["index.md"] if line.startswith("| [")]
    assert len(listed) == len(PAGES) - 1
    for told in [*headline, *listed]:
        assert list(without_a_table(told, linked(told), linked(told), "index.md")) == [], told


def linked(told: str) -> set[str]:
    """The findings that a paragraph links to."""
    return PAGES.keys() & set(re.findall(r"[\w-]+\.md", told))


def without_a_table(told: str, pages: set[str], others: set[str], where: str) -> Iterator[str]:
    """The numbers that no table of these pages has, and the shares that none of these and the
    others has.

    Without the facts of the page `where` it is told.
    """
    facts = FACTS.get(where, set())
    cells = NUMBER.findall(rows_of(pages))
    extra = 1 if where in ROUNDED else 0
    for number in NUMBER.findall(LEVEL.sub("", told)):
        if number not in facts and not any(says(cell, number, extra) for cell in cells):
            yield number
    yield from sorted(
        shares(told)
        - shares(rows_of(pages | others))
        - targets([line for page in pages | others for line in PAGES[page]])
        - facts
    )


def rows_of(pages: set[str]) -> str:
    """The tables of some findings."""
    return "\n".join(line for page in pages for line in PAGES[page] if line.startswith("|"))


def says(cell: str, told: str, extra: int = 0) -> bool:
    """Whether a number of a table comes to what is told, with its decimals, and its sign if it is
    told with one. With two or more decimals the table must have as many, or `extra` more.
    """
    decimals = len(told.partition(".")[2])
    if decimals > 1 and len(cell.partition(".")[2]) - decimals not in {0, extra}:
        return False
    if told[0] in "+-" and cell[0] != told[0]:
        return False
    half = 0.5 * 10**-decimals
    return abs(abs(float(told)) - abs(float(cell))) <= half + 1e-9


def shares(text: str) -> set[str]:
    """The shares, as whole numbers, but for levels of significance."""
    return {share for found in SHARE.findall(LEVEL.sub("", text)) for share in found if share}


def targets(lines: Sequence[str]) -> set[str]:
    """The shares that tables have as targets, of weights, blocks or numbers."""
    found: set[str] = set()
    heads: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and not before.startswith("|"):
            heads = cells
        found |= {
            f"{100 * float(cell.split()[-1]):.0f}"
            for head, cell in zip(heads, cells, strict=False)
            if head == "target" and SPARSITY.fullmatch(cell)
        }
    return found
