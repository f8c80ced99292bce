import csv as standard
import io
import json
import math
from dataclasses import replace
from typing import Any

import polars as pl
import pytest

from calibrant.lab.report.sentences import finding
from calibrant.lab.report.tables.data import csv, report_data
from calibrant.lab.stats import Estimate, Evidence, PaperQuestion
from calibrant.spec.foreign import visible

from tests.report.made import ACCOUNT, BEST, EVERYTHING, FULL, PLAIN, ranking


def told(**changes: object) -> dict[str, Any]:
    """What stands in the JSON of a report, read as strictly as another program would."""
    return json.loads(
        json.dumps(report_data(replace(EVERYTHING, **changes), ACCOUNT), allow_nan=False)
    )


def test_json_holds_numbers_intervals_and_sentences():
    (made,) = told(rankings=(PLAIN,))["rankings"]
    assert made["finding"] == finding(PLAIN)
    first, second, _ = made["entries"]
    assert first["to_best_interval"] is None
    assert second["mean"]["value"] == pytest.approx(1.7)
    assert second["mean_interval"][0] == pytest.approx(1.7 - 2.086 * 0.02, abs=1e-4)
    assert second["to_best_interval"][0] < 0.1 - 2.086 * 0.02  # widened for all pairs
    assert made["level"] == pytest.approx(0.95)
    endless = ranking(replace(BEST, mean=replace(BEST.mean, value=math.inf, stderr=math.nan)))
    mean = told(rankings=(endless, FULL))["rankings"][0]["entries"][0]["mean"]
    assert (mean["value"], mean["stderr"]) == (None, None), "what has no end is null"


def test_json_holds_everything_else():
    evidence = Evidence(
        "c4 against pile",
        "smollm2",
        "mean",
        Estimate(0.1, 0.02, 8.0, 40),
        (0.02, 0.18),
        "worse",
        "nats/token",
    )
    data = told(
        questions=(
            PaperQuestion("baseline", "Is c4 the best?", "no", "pile did better.", (evidence,)),
        )
    )
    assert [c["verdict"] for c in data["contrasts"]] == [
        "better",
        "worse",
        "not significant",
        "one draw only",
        "not computed",
    ]
    assert data["contrasts"][0]["interval"][1] == pytest.approx(-0.123 + 2.306 * 0.02, abs=1e-4)
    assert data["contrasts"][4]["interval"] is None
    assert [a["tau"] for a in data["agreements"]] == [0.87, 0.2, -0.1]
    (question,) = data["questions"]
    assert (
        question["answer"],
        question["evidence"][0]["interval"],
        question["evidence"][0]["difference"]["value"],
    ) == ("no", [0.02, 0.18], 0.1)
    assert (data["comparisons"], data["stale"], len(data["missing"])) == (63, 2, 1)
    assert data["models"] == {"smollm2": "dequantized from Q4_1"}
    (made,) = data["rankings"]
    assert made["entries"][0]["best_on"] == ["docs:text", "mean"]
    assert made["partial"][0]["mean"]["value"] is None, "a hole is null"
    assert set(made["partial"][0]["losses"]) == {"code:text"}


def read(text: str) -> list[list[str]]:
    return list(standard.reader(io.StringIO(text, newline="")))


def test_one_line_a_score_ends_as_rfc_4180_says():
    text = csv(
        pl.DataFrame(
            {
                "data": ["c4", 'a "b", c\nd'],
                "value": [0.5, -1.25],
                "stderr": pl.Series([None, 0.1], dtype=pl.Float64),
            }
        )
    )
    assert text.startswith("data,value,stderr\r\n")
    assert text.endswith("\r\n")
    assert read(text)[1:] == [["c4", "0.5", ""], ['a "b", c\nd', "-1.25", "0.1"]]
    assert '"a ""b"", c\nd"' in text


def test_a_text_cant_become_a_formula_and_a_number_stays_one():
    for begins in ("=", "+", "-", "@", "\t", "\r"):
        rows = read(
            csv(pl.DataFrame({"data": [f"{begins}cmd()", "0.5*c4 + 0.5*=x"], "value": [-1.0, 2.0]}))
        )
        assert rows[1:] == [[visible(f"'{begins}cmd()"), "-1.0"], ["0.5*c4 + 0.5*=x", "2.0"]]
