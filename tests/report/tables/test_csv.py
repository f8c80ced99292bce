import csv as standard
import io

import polars as pl
import pytest

from calibrant.foreign import visible
from calibrant.report.tables.data import csv


def read(text: str) -> list[list[str]]:
    return list(standard.reader(io.StringIO(text, newline="")))


def test_one_line_a_score_ends_as_rfc_4180_says():
    text = csv(pl.DataFrame({"data": ["c4", 'a "b", c\nd'], "value": [0.5, -1.25]}))
    assert text.startswith("data,value\r\n")
    assert text.endswith("\r\n")
    assert read(text) == [["data", "value"], ["c4", "0.5"], ['a "b", c\nd', "-1.25"]]
    assert '"a ""b"", c\nd"' in text


@pytest.mark.parametrize("begins", ["=", "+", "-", "@", "\t", "\r"])
def test_a_text_cant_become_a_formula_and_a_number_stays_one(begins: str):
    text = csv(pl.DataFrame({"data": [f"{begins}cmd()", "0.5*c4 + 0.5*=x"], "value": [-1.0, 2.0]}))
    assert [row[0] for row in read(text)[1:]] == [visible(f"'{begins}cmd()"), "0.5*c4 + 0.5*=x"]
    assert [row[1] for row in read(text)[1:]] == ["-1.0", "2.0"]


def test_what_isnt_known_is_empty():
    assert read(csv(pl.DataFrame({"data": ["c4"], "stderr": pl.Series([None], dtype=pl.Float64)})))[1] == ["c4", ""]
