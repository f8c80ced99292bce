"""A study that removes and rounds: what is tested, what its report says, and that the report reads well whatever was asked."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from calibrant.activations import FeatureNorms, Seen
from calibrant.compare import compare
from calibrant.methods import Compressed, MatrixMethod
from calibrant.methods.rtn import RoundToNearest
from calibrant.report import Report, report
from calibrant.report.tables.sections import without_data
from calibrant.spec import qualified
from calibrant.store import Store, verify
from calibrant.study.plan import plan
from calibrant.targets import Grid, Target

from tests.study.small import asked, texts


@dataclass(frozen=True, repr=False)
class RoundsWhereItMatters(MatrixMethod):
    """Rounds to nearest what many tokens saw: a quantizer whose result depends on data."""

    accepts: ClassVar = (Grid,)
    observes: ClassVar = (FeatureNorms,)

    def compress(self, weight: torch.Tensor, seen: Seen, target: Target) -> Compressed:
        loud = seen[FeatureNorms].norms().argmax()
        shifted = weight.clone()
        shifted[:, loud] = 0
        return RoundToNearest().compress(shifted, seen, target)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Any:
    given = texts(tmp_path_factory.mktemp("mixed") / "data")
    groups = {"removed": {"method": ["wanda", "magnitude"], "sparsity": [0.5, "2:4"]}, "rounded": {"method": "rtn", "sparsity": ["w4g16", "w8"]}}
    return asked(given, methods="wanda", groups=groups, seeds=[0, 1])


@pytest.fixture(scope="module")
def found(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Report:
    finished = study.run(tmp_path_factory.mktemp("mixed") / "results")
    assert not finished.failures
    return report(finished)


def test_what_rounds_and_looks_at_nothing_has_one_run_for_all_data(study: Any, found: Report):
    cells = Store(found.folder, create=False).cells()
    assert [(c.method, c.target, c.data, c.seed) for c in cells if c.method == "rtn"] == [("rtn", "w4g16", "", 0), ("rtn", "w8", "", 0)]
    assert len(cells) == 1 + 2 + 2 + 2 * 3 * 2
    assert verify(found.folder) == []
    told = plan(study, found.folder, probed=False)
    assert (told.runs.left, told.targets) == (0, ("0.5", "2:4", "w4g16", "w8"))


def test_records_say_how_many_bits_a_weight_takes_and_keep_masks_of_what_was_removed(found: Report):
    for record in Store(found.folder, create=False).records():
        rounded, removed = record.run.method["spec"] == "rtn", record.run.method["spec"] in ("wanda", "magnitude")
        for weight in record.weights:
            assert ("bits_a_weight" in weight, "bytes" in weight) == (rounded, rounded)
            assert "bits" in weight if removed else not rounded or "bits" not in weight


def test_it_is_compared_by_itself(found: Report):
    comparison = found.comparison
    assert [(r.method, r.target) for r in comparison.rankings] == [("wanda", "0.5"), ("wanda", "2:4")]
    assert [(r.method, r.target, len(r.entries)) for r in comparison.unranked] == [("rtn", "w4g16", 0), ("rtn", "w8", 0)]
    for ranking in comparison.unranked:
        (entry,) = ranking.baselines
        assert entry.name == "rtn"
        assert ranking.dense is not None
        for m in ranking.measured:
            assert entry.increases[m].value == pytest.approx(entry.losses[m].value - ranking.dense.losses[m].value)
    coarse, fine = (abs(r.baselines[0].mean.value) for r in comparison.unranked)
    assert fine < coarse
    assert [r.method for r in compare(Store(found.folder, create=False), ["loss(source="]).unranked] == ["rtn", "rtn"]


def test_every_format_shows_it(found: Report):
    for text in (str(found), found.text("table"), found.to_latex()):
        told = " ".join(text.replace("\\", "").split())
        assert "Without calibration data: " in told
        for said in ("rtn w4g16", "4 bits in groups of 16", "rtn w8", "8 bits by row"):
            assert said in told, said
        assert "Rtn at 4 bits in groups of 16 (w4g16), which looks at no data: averaged over" in told
    told = found.to_json()
    assert [one["finding"].partition(":")[0] for one in told["unranked"]] == [
        "Rtn at 4 bits in groups of 16 (w4g16), which looks at no data",
        "Rtn at 8 bits by row (w8), which looks at no data",
    ]
    assert told["settings"]["achieved sparsity"] == "0.5000"
    assert told["settings"]["bits a weight"] == "6.000 (w4g16), 8.889 (w8)"
    assert "rtn" in found.to_csv()


def test_the_page_has_it_and_the_command_that_repeats_it(found: Report):
    page = found.html()
    assert "Without calibration data: " in page
    assert "<th" in page
    for said in ("rtn w4g16", "4 bits in groups of 16", "--method rtn --target w4g16 --dtype float32 --out quantized", ">target</"):
        assert said in page, said
    assert "--method rtn --sparsity" not in page
    assert "bits a weight</th><th" in page
    assert "against size: " in page
    assert [r.bits for r in found.comparison.unranked] == [pytest.approx(6.0), pytest.approx(80 / 9)]
    assert "bits" not in found.to_json()["rankings"][0]


def test_a_study_of_sparsities_is_told_as_before(found: Report):
    bare = replace(found.comparison, unranked=())
    assert list(without_data(bare)) == []
    page = replace(found, comparison=bare).html()
    assert "Model, method and sparsity" in page


def test_a_quantizer_that_looks_is_ranked_like_any_other(plugged: Any, tmp_path: Path):
    plugged({"calibrant.methods": {"matters": qualified(RoundsWhereItMatters)}})
    given = texts(tmp_path / "data")
    groups = {"removed": {"method": "wanda", "sparsity": 0.5}, "rounded": {"method": ["matters", "rtn"], "sparsity": ["w3"]}}
    finished = asked(given, methods="wanda", groups=groups).run(tmp_path / "results")
    assert not finished.failures
    found = report(finished)
    rankings = {(r.method, r.target): r for r in found.comparison.rankings}
    assert list(rankings) == [("matters", "w3"), ("wanda", "0.5")]
    assert [b.name for b in rankings["matters", "w3"].baselines] == ["rtn"]
    assert found.comparison.unranked == ()
    told = " ".join(str(found).split())
    assert "matters at 3 bits by row (w3)" in told
    page = found.html()
    assert "Model, method and target" in page
    assert page.count("matters at 3 bits by row (w3)") > 1
    assert [plot.title for plot in found.plots()]
