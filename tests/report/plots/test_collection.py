from dataclasses import replace

from calibrant.compare import Comparison, PaperQuestion
from calibrant.report.plots import plots

from tests.report.made import ASKED, FULL


def test_each_ranking_and_question_has_its_plots_and_names_say_the_model_where_there_are_several():
    asked = (ASKED, PaperQuestion("baseline", "?", "yes", "", ASKED.evidence))
    found = plots(Comparison((FULL,), questions=asked), [], {"python_docs": 100, "c4": 200})
    assert [plot.name for plot in found] == ["forest-wanda-0.6", "kept-wanda-0.6", "tokens-wanda-0.6", "pareto-wanda-0.6", "in-context"]
    several = plots(Comparison((FULL, replace(FULL, model="qwen"), FULL)), [], {})
    forests = [p.name for p in several if p.name.startswith("forest")]
    assert forests == ["forest-wanda-0.6-smollm2", "forest-wanda-0.6-qwen", "forest-wanda-0.6-smollm2-2"]
    assert plots(Comparison(), [], {}) == []
