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
    """Return a `table` environment for each section that has a table; what else is said stands in
    comments, for the text around it.
    """
    lines = [
        "% Tables of a study, for \\input in a paper. They need, in its preamble:",
        r"%   \usepackage{booktabs}",
        "",
    ]
    for number, section in enumerate(sections, 1):
        lines.extend(_section(section, number))
    return "\n".join(lines)


def _section(section: Section, number: int) -> Iterator[str]:
    for text in (section.title, *section.sentences, *section.items):
        yield f"% {_comment(text)}"
    if section.table is not None:
        yield from _table(section.table, number)
    yield ""


def _table(table: Table, number: int) -> Iterator[str]:
    shown = _fitting(table)
    folded = _longest_label(shown) > NAMES
    names = r"p{0.28\linewidth}" if folded else "l"
    heads = [escaped(shown.head)]
    sides = ""
    for column in shown.columns:
        heads.append(escaped(column.head))
        sides += "l" if column.words else "r"
    stop = "" if table.title.endswith("?") else "."
    yield r"\begin{table}[t]"
    yield r"  \centering\small\setlength{\tabcolsep}{4pt}"
    yield rf"  \caption{{{escaped(table.title)}{stop} {escaped(shown.key)}}}"
    yield rf"  \label{{tab:calibrant-{number}}}"
    yield rf"  \begin{{tabular}}{{@{{}}{names}{sides}@{{}}}}"
    yield r"    \toprule"
    yield _line(heads)
    yield r"    \midrule"
    part = shown.rows[0].part
    for row in shown.rows:
        if row.part != part:
            part = row.part
            yield r"    \midrule"
        name = _name(row)
        if folded:
            name = rf"\raggedright {name}"
        yield _line([name, *map(_figure, row.figures)])
    yield r"    \bottomrule"
    yield r"  \end{tabular}"
    yield r"\end{table}"


def _fitting(table: Table) -> Table:
    """The fullest form of a table that fits; where none does, the shortest."""
    forms = table.shortened()
    for form in forms:
        if _width(form) <= ROOM:
            return form
    return forms[-1]


def _width(table: Table) -> int:
    """How many characters a line of a table has."""
    width = min(NAMES, _longest_label(table))
    for index, column in enumerate(table.columns):
        widest = len(column.head)
        for row in table.rows:
            figure = row.figures[index]
            widest = max(widest, len(str(figure)) + len(figure.letters))
        width += widest + 1
    return width


def _longest_label(table: Table) -> int:
    """How many characters the longest name of a row has, with its note."""
    longest = 0
    for row in table.rows:
        label = f"{row.name} ({row.note})" if row.note else row.name
        longest = max(longest, len(label))
    return longest


def _line(cells: Sequence[str]) -> str:
    return rf"    {' & '.join(cells)} \\"


def _name(row: TableRow) -> str:
    name = _bold(escaped(row.name), row.best)
    return f"{name} ({escaped(row.note)})" if row.note else name


def _figure(figure: Figure) -> str:
    # A hyphen before a digit is a minus sign.
    number = re.sub(r"-(?=\d)", "−", str(figure))
    text = _bold(escaped(number), figure.best)
    return rf"{text}\textsuperscript{{{escaped(figure.letters)}}}" if figure.letters else text


def _bold(text: str, best: bool) -> str:
    return rf"\textbf{{{text}}}" if best else text


def _comment(text: str) -> str:
    """`text` in printable ASCII, in one line."""
    return "".join(map(_commented, text))


def _commented(character: str) -> str:
    if " " <= character <= "~":
        return character
    if character.isspace():
        return " "
    return ascii(character)[1:-1]


def escaped(text: str) -> str:
    """Return `text` in plain ASCII that pdflatex sets as itself; a character that has no such form
    is written as `U+6570`.
    """
    written = "".join(map(_escaped, text))
    # Two hyphens would be drawn as one dash.
    return re.sub("-(?=-)", "-{}", written)


def _escaped(character: str) -> str:
    if character in MARKUP:
        return MARKUP[character]
    if " " <= character <= "~":
        return character
    if character.isspace():
        return " "
    letter, *accents = unicodedata.normalize("NFD", character)
    if len(accents) == 1 and accents[0] in ACCENTS and letter.isascii():
        accent = ACCENTS[accents[0]]
        if letter in "ij":
            # The commands \i and \j draw them without their dots.
            letter = rf"\{letter}"
        return rf"\{accent}{{{letter}}}"
    return rf"\texttt{{U+{ord(character):04X}}}"
