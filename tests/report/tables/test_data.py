import csv as standard
import io
import json
import math
from dataclasses import replace

import polars as pl
import pytest

from calibrant.compare import Estimate, Evidence, PaperQuestion
from calibrant.foreign import visible
from calibrant.report.sentences import finding
from calibrant.report.tables.data import csv, report_data

from tests.report.made import ACCOUNT, BEST, EVERYTHING, FULL, PLAIN, ranking


def test_json_holds_numbers_intervals_and_sentences():
    told = json.loads(json.dumps(report_data(replace(EVERYTHING, rankings=(PLAIN,)), ACCOUNT), allow_nan=False))
    (made,) = told["rankings"]
    assert made["finding"] == finding(PLAIN)
    first, second, _ = made["entries"]
    assert first["to_best_interval"] is None
    assert second["mean"]["value"] == pytest.approx(1.7)
    assert second["mean_interval"][0] == pytest.approx(1.7 - 2.086 * 0.02, abs=1e-4)
    assert second["to_best_interval"][0] < 0.1 - 2.086 * 0.02  # widened for all pairs
    assert math.isclose(made["level"], 0.95)


def test_json_holds_everything_else():
    evidence = Evidence("c4 against pile", "smollm2", "mean", Estimate(0.1, 0.02, 8.0, 40), (0.02, 0.18), "worse", "nats/token")
    asked = PaperQuestion("baseline", "Is c4 the best?", "no", "pile did better.", (evidence,))
    told = json.loads(json.dumps(report_data(replace(EVERYTHING, questions=(asked,)), ACCOUNT), allow_nan=False))
    assert [c["verdict"] for c in told["contrasts"]] == ["better", "worse", "not significant", "one draw only", "not computed"]
    assert told["contrasts"][0]["interval"][1] == pytest.approx(-0.123 + 2.306 * 0.02, abs=1e-4)
    assert told["contrasts"][4]["interval"] is None
    assert told["contrasts"][0]["sentence"].startswith("own data: gsm8k:icl did better")
    assert [a["tau"] for a in told["agreements"]] == [0.87, 0.2, -0.1]
    (question,) = told["questions"]
    assert (question["answer"], question["evidence"][0]["interval"], question["evidence"][0]["difference"]["value"]) == ("no", [0.02, 0.18], 0.1)
    assert (told["comparisons"], told["stale"], len(told["missing"]), len(told["caveats"])) == (63, 2, 1, 2)
    assert told["models"] == {"smollm2": "dequantized from Q4_1"}
    (made,) = told["rankings"]
    assert made["entries"][0]["best_on"] == ["docs:text", "mean"]
    assert made["partial"][0]["mean"]["value"] is None, "a hole is null"
    assert set(made["partial"][0]["losses"]) == {"code:text"}


def test_what_has_no_end_is_null():
    endless = replace(BEST, mean=replace(BEST.mean, value=math.inf, stderr=math.nan))
    (made,) = report_data(replace(EVERYTHING, rankings=(ranking(endless), FULL)), ACCOUNT)["rankings"][:1]
    assert made["entries"][0]["mean"]["value"] is None
    assert made["entries"][0]["mean"]["stderr"] is None


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
