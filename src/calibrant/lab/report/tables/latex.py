"""A report's tables in LaTeX, as a paper takes them: booktabs, pdflatex. No torch here."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Final

from calibrant.lab.report.tables.sections import Section
from calibrant.lab.report.tables.table import Figure, Table, TableRow

ROOM: Final = 72
"""How many characters a line of a table may have, set small, in a column of a page."""

NAMES: Final = 30
"""How many of them names may take before they fold."""

MARKUP: Final = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "`": r"\textasciigrave{}",
    # At the beginning of a line these belong to the \\ before it.
    "[": "{[}",
    "]": "{]}",
    "*": "{*}",
    "\u00a0": "~",
    "–": r"\textendash{}",
    "—": r"\textemdash{}",
    "…": r"\dots{}",
    "×": r"$\times$",
    "±": r"$\pm$",
    "−": "$-$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "·": r"$\cdot$",
    "τ": r"$\tau$",
    "Σ": r"$\Sigma$",
    "²": r"$^{2}$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "’": "'",
    "“": "``",
    "”": "''",
}
"""Characters that LaTeX reads otherwise, or doesn't know, and how they are written."""

ACCENTS: Final = {
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0308": '"',
    "\u0304": "=",
    "\u0307": ".",
    "\u030c": "v",
    "\u0327": "c",
}
"""Combining accents, and the command that sets each."""


def latex(sections: Sequence[Section]) -> str:
    """A `table` environment for each section that has a table; what else is said stands in
    comments, for the text around it.
    """
    head = [
        "% Tables of a study, for \\input in a paper. They need, in its preamble:",
        r"%   \usepackage{booktabs}",
        "",
    ]
    return "\n".join(
        [
            *head,
            *(
                line
                for number, section in enumerate(sections, 1)
                for line in _section(section, number)
            ),
        ]
    )


def _section(section: Section, number: int) -> Iterator[str]:
    yield f"% {_comment(section.title)}"
    yield from (f"% {_comment(text)}" for text in (*section.sentences, *section.items))
    if section.table is not None:
        yield from _table(section.table, number)
    yield ""


def _table(table: Table, number: int) -> Iterator[str]:
    shown = next((t for t in table.shortened() if _width(t) <= ROOM), table.shortened()[-1])
    folded = max(len(_label(row)) for row in shown.rows) > NAMES
    names = r"p{0.28\linewidth}" if folded else "l"
    yield r"\begin{table}[t]"
    yield r"  \centering\small\setlength{\tabcolsep}{4pt}"
    stop = "" if table.title.endswith("?") else "."
    yield rf"  \caption{{{escaped(table.title)}{stop} {escaped(shown.key)}}}"
    yield rf"  \label{{tab:calibrant-{number}}}"
    columns = "".join("l" if column.words else "r" for column in shown.columns)
    yield rf"  \begin{{tabular}}{{@{{}}{names}{columns}@{{}}}}"
    yield r"    \toprule"
    yield _line([escaped(shown.head), *(escaped(c.head) for c in shown.columns)])
    yield r"    \midrule"
    for before, row in zip((shown.rows[0], *shown.rows), shown.rows, strict=False):
        if row.part != before.part:
            yield r"    \midrule"
        yield _line(
            [rf"\raggedright {_name(row)}" if folded else _name(row), *map(_figure, row.figures)]
        )
    yield from (r"    \bottomrule", r"  \end{tabular}", r"\end{table}")


def _width(table: Table) -> int:
    columns = zip(*(row.figures for row in table.rows), strict=True)
    figures = [
        max(len(c.head), *(len(str(f)) + len(f.letters) for f in cells))
        for c, cells in zip(table.columns, columns, strict=True)
    ]
    return min(NAMES, max(len(_label(row)) for row in table.rows)) + sum(
        wide + 1 for wide in figures
    )


def _label(row: TableRow) -> str:
    return f"{row.name} ({row.note})" if row.note else row.name


def _line(cells: Sequence[str]) -> str:
    return rf"    {' & '.join(cells)} \\"


def _name(row: TableRow) -> str:
    name = rf"\textbf{{{escaped(row.name)}}}" if row.best else escaped(row.name)
    return f"{name} ({escaped(row.note)})" if row.note else name


def _figure(figure: Figure) -> str:
    text = _number(str(figure))
    return (rf"\textbf{{{text}}}" if figure.best else text) + (
        rf"\textsuperscript{{{escaped(figure.letters)}}}" if figure.letters else ""
    )


def _number(text: str) -> str:
    """A figure: its hyphens are minus signs, where a digit follows."""
    return escaped(
        "".join(
            "−" if c == "-" and text[i + 1 : i + 2].isdigit() else c for i, c in enumerate(text)
        )
    )


def _comment(text: str) -> str:
    return "".join(c if " " <= c <= "~" else " " if c.isspace() else ascii(c)[1:-1] for c in text)


def escaped(text: str) -> str:
    """`text` in plain ASCII that pdflatex sets as itself; a character that has no such form is
    written as `U+6570`.
    """
    return re.sub(
        "-(?=-)", "-{}", "".join(map(_escaped, text))
    )  # two hyphens would be drawn as one dash


def _escaped(character: str) -> str:
    if character in MARKUP:
        return MARKUP[character]
    if " " <= character <= "~":
        return character
    if character.isspace():
        return " "
    letter, *accents = unicodedata.normalize("NFD", character)
    if len(accents) == 1 and accents[0] in ACCENTS and letter.isascii():
        return rf"\{ACCENTS[accents[0]]}{{{letter if letter not in 'ij' else chr(92) + letter}}}"
    return rf"\texttt{{U+{ord(character):04X}}}"
