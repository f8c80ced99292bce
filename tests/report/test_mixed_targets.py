"""A study that removes and rounds: what is tested, what its report says, and that the report
reads well whatever was asked.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from calibrant.lab.report import Report, report
from calibrant.lab.study.plan import plan
from calibrant.results import Store, verify

from tests.study.small import asked, texts


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    given = texts(tmp_path_factory.mktemp("mixed") / "data")
    groups = {
        "removed": {"method": ["wanda", "magnitude"], "target": [0.5]},
        "rounded": {"method": "rtn", "target": ["w4g16", "w8"]},
        "fitted": {"method": ["gptq", "rtn"], "target": ["w3"]},
    }
    return asked(
        given, data=[given["prose"], "random_tokens"], methods="wanda", groups=groups, seeds=[0, 1]
    )


@pytest.fixture(scope="module")
def found(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Report:
    finished = study.run(tmp_path_factory.mktemp("mixed") / "results")
    assert not finished.failures
    return report(finished)


def test_what_rounds_and_looks_at_nothing_has_one_run_for_all_data(study: Any, found: Report):
    store = Store(found.folder, create=False)
    cells = store.cells()
    assert [(c.target, c.data, c.seed) for c in cells if c.method == "rtn"] == [
        ("w4g16", "", 0),
        ("w8", "", 0),
        ("w3", "", 0),
    ]
    assert len(cells) == 1 + 1 + 3 + 2 * (2 * 2), (
        "the dense model, magnitude, three grids, and two draws of two sets by two methods"
    )
    assert verify(found.folder) == []
    told = plan(study, found.folder, probed=False)
    assert (told.runs.left, set(told.targets)) == (0, {"0.5", "w4g16", "w8", "w3"})
    for record in store.records():
        method = record.run.method["spec"]
        for weight in record.weights:
            assert ("bits_a_weight" in weight, "bytes" in weight) == (
                method in ("rtn", "gptq"),
            ) * 2
            assert ("bits" in weight) == (method in ("wanda", "magnitude")) or method == "none", (
                "masks are kept of what was removed"
            )


def test_it_is_compared_by_itself_and_a_quantizer_that_looks_is_ranked_like_any_other(
    found: Report,
):
    comparison = found.comparison
    ranked = {(r.method, r.target): [b.name for b in r.baselines] for r in comparison.rankings}
    assert ranked == {("wanda", "0.5"): ["magnitude"], ("gptq", "w3"): ["rtn"]}
    assert [(r.method, r.target, len(r.entries)) for r in comparison.unranked] == [
        ("rtn", "w4g16", 0),
        ("rtn", "w8", 0),
    ]
    for ranking in comparison.unranked:
        (entry,) = ranking.baselines
        assert entry.name == "rtn"
        assert ranking.dense is not None
        for m in ranking.measured:
            assert entry.increases[m].value == pytest.approx(
                entry.losses[m].value - ranking.dense.losses[m].value
            )
    coarse, fine = (abs(r.baselines[0].mean.value) for r in comparison.unranked)
    assert fine < coarse
    assert [r.bits for r in comparison.unranked] == [pytest.approx(6.0), pytest.approx(80 / 9)]


def test_every_format_and_the_page_show_it(found: Report):
    page = found.html()
    for text in (str(found), found.text("table"), found.to_latex(), page):
        told = " ".join(text.replace("\\", "").split())
        for said in (
            "Without calibration data: ",
            "rtn w4g16",
            "4 bits in groups of 16",
            "rtn w8",
            "8 bits by row",
            "gptq at 3 bits by row (w3)",
        ):
            assert said in told, said
    assert "--method rtn --target w4g16 --dtype float32 --out quantized" in page
    told = found.to_json()
    assert len(told["unranked"]) == 2
    assert told["settings"]["achieved sparsity"] == "0.5000"
    assert "6.000 (w4g16), 8.889 (w8)" in told["settings"]["bits a weight"]
    assert "rtn" in found.to_csv()
    assert found.plots()


def test_a_target_that_was_not_reached_is_said(tmp_path: Path):
    given = texts(tmp_path / "data")
    methods = ["wanda", "magnitude"]
    study = asked(given, data=[given["prose"]], methods=methods, targets=[0.5, 0.999])
    found = report(study.run(tmp_path / "results"))
    page = found.html()
    assert "of the weights went, which is less than 0.999" in page
    assert "less than 0.5:" not in page
    settings = json.loads(found.text("json"))["settings"]
    sentence = settings["target not reached"]
    assert sentence.startswith("On ")
    assert "with wanda, " in sentence
    assert "less than 0.999: only whole weights go" in sentence
    assert "Targets not reached" in str(found)
    for text in (str(found), found.text("table")):
        assert "less than 0.999: only whole weights go" in " ".join(text.split())
