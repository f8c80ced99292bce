import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.lab.report.tables.latex import escaped

from tests.report.made import BEST, EVERYTHING, FULL, SECOND, ranking, reported

PRINTABLE = "".join(map(chr, range(32, 127)))
HOSTILE = (
    f"{PRINTABLE} \\input{{/etc/passwd}} -- --- ^^M é ñ ç Å ő ß ł 数 × − ± ≤ τ – — \x00\u202e\n%"
)


def environments(text: str) -> None:
    """Every `\\begin` has its `\\end`, every brace its partner, outside comments."""
    bare = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    open_: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", bare):
        if kind == "begin":
            open_.append(name)
        else:
            assert open_.pop() == name
    assert open_ == []
    depth = 0
    for brace in re.sub(r"\\[{}\\]", "", bare):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        assert depth >= 0
    assert depth == 0


def rows(text: str) -> list[list[list[str]]]:
    """The cells of each table, from its heads on."""
    bodies = re.findall(r"\\toprule\n(.*?)\\bottomrule", text, re.DOTALL)
    return [
        [
            re.split(r"(?<!\\)&", line.strip().removesuffix(r"\\"))
            for line in body.splitlines()
            if line.endswith(r"\\")
        ]
        for body in bodies
    ]


def test_booktabs_with_the_best_in_bold_and_letters_raised():
    text = reported().to_latex()
    environments(text)
    assert r"\usepackage{booktabs}" in text
    assert (
        text.count(r"\begin{table}") == text.count(r"\toprule") == text.count(r"\bottomrule") == 3
    )
    ranked, *_ = rows(text)
    assert [cell.strip() for cell in ranked[1]][:5] == [
        r"\textbf{python\_docs}",
        "1",
        r"\textbf{+1.600}\textsuperscript{a}",
        r"\textbf{+1.400}\textsuperscript{a}",
        r"+1.800\textsuperscript{a}",
    ]
    assert ranked[2][1].strip() == r"2\textendash{}3"
    assert r"$-$0.123" in text
    specs = re.findall(r"\\begin\{tabular\}\{@\{\}(?:p\{[^}]*\}|l)([lr]*)@\{\}\}", text)
    for spec, table in zip(specs, rows(text), strict=True):
        assert {len(row) for row in table} == {len(spec) + 1}, "each row has a cell for each column"


def test_whatever_a_name_holds_is_plain_ascii_and_runs_nothing():
    text = reported(
        replace(
            EVERYTHING,
            rankings=(ranking(replace(BEST, name=HOSTILE), SECOND, model=HOSTILE),),
            missing=(HOSTILE,),
        )
    ).to_latex()
    assert text.isascii()
    environments(text)
    for line in text.splitlines():
        assert line.startswith("%") or r"\input{" not in line
        assert line.startswith("%") or not re.search(
            r"(?<!\\)[#$%]", re.sub(r"\$(?:-|\\[a-z]+|\^\{2\})\$", "", line)
        )


def test_escaping():
    written = {
        "a_b%c&d#e$f": r"a\_b\%c\&d\#e\$f",
        "{x}": r"\{x\}",
        "~^\\": r"\textasciitilde{}\textasciicircum{}\textbackslash{}",
        "<|>": r"\textless{}\textbar{}\textgreater{}",
        "[opt]*": "{[}opt{]}{*}",
        "a--b---c": "a-{}-b-{}-{}-c",
        "0.1 ± 0.2 × 3 − 4 ≤ 5": r"0.1 $\pm$ 0.2 $\times$ 3 $-$ 4 $\leq$ 5",
        "café ñ": r"caf\'{e} \~{n}",
        "ï": r"\"{\i}",
        "数": r"\texttt{U+6570}",
        "a\nb": "a b",
        "\x00": r"\texttt{U+0000}",
    }
    assert {given: escaped(given) for given in written} == written


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None,
    reason="there is no pdflatex here",
)
def test_pdflatex_takes_it(tmp_path: Path):
    if subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode:
        pytest.skip("there is no booktabs here")
    hostile = ranking(
        replace(BEST, name=HOSTILE), replace(SECOND, name="[opt] * row"), model=HOSTILE
    )
    (tmp_path / "tables.tex").write_text(
        reported(replace(EVERYTHING, rankings=(FULL, hostile))).to_latex()
    )
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{tables}\\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert not re.findall(r"^!.*", done.stdout, re.MULTILINE)
