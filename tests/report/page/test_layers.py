import math
from dataclasses import replace

import numpy as np

from calibrant.compare import Layers
from calibrant.report.page.layers import layers

from tests.report.page.browser import data_in, layered


def page(*found: Layers) -> str:
    return layers(found, {"a": "set-1", "b": "set-2"})


def without(made: Layers, *facts: str) -> Layers:
    return replace(made, **{fact: np.full_like(getattr(made, fact), math.nan) for fact in facts})


def test_the_table_holds_the_first_pair():
    made = layered(["a", "b", "c"], blocks=3)
    html = page(made)
    rows = html.partition("<tbody>")[2].partition("</tbody>")[0].split("</tr>")[:-1]
    assert len(rows) == 3
    assert f"<td>{100 * (1 - made.masks[0, 1, 2]):.1f} %</td><td>{made.statistics[0, 1, 2]:.3f}</td>" in rows[2]
    assert "model.layers.2" in rows[2]
    assert "<details open" in html, "without a script it stands open"
    assert '<label class="pick" hidden><span>Runs' in html, "there is one run to choose"


def test_the_choice_of_runs_is_there_where_there_are_several():
    html = page(layered(["a", "b"]), without(layered(["b", "c"], method="sparsegpt"), "statistics"))
    assert '<label class="pick"><span>Runs' in html
    assert [run["sets"] for run in data_in(html, "layers-data")["runs"]] == [[0, 1], [1, 2]]
    assert "Of smollm2, sparsegpt at 60\u00a0% sparsity, arrival propagation" in html, "it is said which lack something"
    odd = replace(layered(["a", "b"], blocks=3), blocks=("model.layers.4", "model.layers.5", "lm_head"))
    assert data_in(page(odd), "layers-data")["runs"][0]["numbers"] == [4, 5, 2], "blocks are called by their number or their place"


def test_what_is_missing_is_said():
    made = layered(["a", "b"])
    assert "This store" not in page(made)
    html = page(without(made, "masks", "statistics"))
    assert "how their masks differ and the activation statistics" in html
    assert data_in(html, "layers-data")["runs"][0]["masks"] == []
    some = made.error.copy()
    some[0, 0] = math.nan
    html = page(replace(made, error=some))
    assert "the output errors in some places" in html
    assert data_in(html, "layers-data")["runs"][0]["error"][0][:2] == "//"
    for nothing in ((), (without(made, "masks", "statistics", "error"),), (layered(["a", "b"], blocks=0),)):
        assert "no facts about layers" in page(*nothing)
        assert "<script" not in page(*nothing)
    assert "one calibration set alone" in page(layered(["a"]))
