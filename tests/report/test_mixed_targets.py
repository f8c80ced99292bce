"""A study that removes and rounds: what is tested, what its report says, and that the report reads well whatever was asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from calibrant.activations import FeatureNorms, Seen
from calibrant.methods import Compressed, MatrixMethod
from calibrant.methods.rtn import RoundToNearest
from calibrant.report import Report, report
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
    groups = {"removed": {"method": ["wanda", "magnitude"], "sparsity": [0.5]}, "rounded": {"method": "rtn", "sparsity": ["w4g16", "w8"]}}
    return asked(given, data=[given["prose"], "random_tokens"], methods="wanda", groups=groups, seeds=[0, 1])


@pytest.fixture(scope="module")
def found(study: Any, tmp_path_factory: pytest.TempPathFactory) -> Report:
    finished = study.run(tmp_path_factory.mktemp("mixed") / "results")
    assert not finished.failures
    return report(finished)


def test_what_rounds_and_looks_at_nothing_has_one_run_for_all_data(study: Any, found: Report):
    store = Store(found.folder, create=False)
    cells = store.cells()
    assert [(c.method, c.target, c.data, c.seed) for c in cells if c.method == "rtn"] == [("rtn", "w4g16", "", 0), ("rtn", "w8", "", 0)]
    assert len(cells) == 1 + 1 + 2 + 2 * 2, "the dense model, magnitude, two grids, and two draws of two sets"
    assert verify(found.folder) == []
    told = plan(study, found.folder, probed=False)
    assert (told.runs.left, told.targets) == (0, ("0.5", "w4g16", "w8"))
    for record in store.records():
        method = record.run.method["spec"]
        for weight in record.weights:
            assert ("bits_a_weight" in weight, "bytes" in weight) == (method == "rtn", method == "rtn")
            assert ("bits" in weight) == (method in ("wanda", "magnitude")) or method == "none", "masks are kept of what was removed"


def test_it_is_compared_by_itself(found: Report):
    comparison = found.comparison
    assert [(r.method, r.target) for r in comparison.rankings] == [("wanda", "0.5")]
    assert [(r.method, r.target, len(r.entries)) for r in comparison.unranked] == [("rtn", "w4g16", 0), ("rtn", "w8", 0)]
    for ranking in comparison.unranked:
        (entry,) = ranking.baselines
        assert entry.name == "rtn"
        assert ranking.dense is not None
        for m in ranking.measured:
            assert entry.increases[m].value == pytest.approx(entry.losses[m].value - ranking.dense.losses[m].value)
    coarse, fine = (abs(r.baselines[0].mean.value) for r in comparison.unranked)
    assert fine < coarse
    assert [r.bits for r in comparison.unranked] == [pytest.approx(6.0), pytest.approx(80 / 9)]


def test_every_format_and_the_page_show_it(found: Report):
    page = found.html()
    for text in (str(found), found.text("table"), found.to_latex(), page):
        told = " ".join(text.replace("\\", "").split())
        for said in ("Without calibration data: ", "rtn w4g16", "4 bits in groups of 16", "rtn w8", "8 bits by row"):
            assert said in told, said
    assert "--method rtn --target w4g16 --dtype float32 --out quantized" in page
    assert "--method rtn --sparsity" not in page
    told = found.to_json()
    assert len(told["unranked"]) == 2
    assert "bits" not in told["rankings"][0]
    assert told["settings"]["achieved sparsity"] == "0.5000"
    assert told["settings"]["bits a weight"] == "6.000 (w4g16), 8.889 (w8)"
    assert "rtn" in found.to_csv()


def test_a_quantizer_that_looks_is_ranked_like_any_other(plugged: Any, tmp_path: Path):
    plugged({"calibrant.methods": {"matters": qualified(RoundsWhereItMatters)}})
    given = texts(tmp_path / "data")
    groups = {"removed": {"method": "wanda", "sparsity": 0.5}, "rounded": {"method": ["matters", "rtn"], "sparsity": ["w3"]}}
    finished = asked(
        given, data=[given["prose"]], evaluate=[f"loss(source={given['verse']!r}, tokens=200, length=64)"], methods="wanda", groups=groups
    )
    found = report(finished.run(tmp_path / "results"))
    rankings = {(r.method, r.target): r for r in found.comparison.rankings}
    assert list(rankings) == [("matters", "w3"), ("wanda", "0.5")]
    assert [b.name for b in rankings["matters", "w3"].baselines] == ["rtn"]
    assert found.comparison.unranked == ()
    assert "matters at 3 bits by row (w3)" in " ".join(str(found).split())
    assert "Model, method and target" in found.html()
    assert found.plots()
