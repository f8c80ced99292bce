from dataclasses import replace

from calibrant.compare import Comparison, PaperQuestion
from calibrant.report.plots import plots

from tests.report.made import ASKED, FULL


def test_each_ranking_and_question_has_its_plots():
    found = plots(
        Comparison((FULL,), questions=(ASKED, PaperQuestion("baseline", "?", "yes", "", ASKED.evidence))), [], {"python_docs": 100, "c4": 200}
    )
    assert [plot.name for plot in found] == ["forest-wanda-0.6", "kept-wanda-0.6", "tokens-wanda-0.6", "pareto-wanda-0.6", "in-context"]


def test_names_say_the_model_where_there_are_several():
    found = plots(Comparison((FULL, replace(FULL, model="qwen"), FULL)), [], {})
    assert [p.name for p in found if p.name.startswith("forest")] == [
        "forest-wanda-0.6-smollm2",
        "forest-wanda-0.6-qwen",
        "forest-wanda-0.6-smollm2-2",
    ]


def test_an_empty_comparison_has_none():
    assert plots(Comparison(), [], {}) == []
