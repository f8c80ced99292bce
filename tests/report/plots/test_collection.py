from dataclasses import replace

from calibrant.lab.report.plots import plots
from calibrant.lab.stats import Comparison, PaperQuestion

from tests.report.made import ASKED, FULL
from tests.report.plots.test_routers import MADE
from tests.report.plots.test_sensitivity import GPTQ, RTN, of


def test_each_ranking_question_and_model_has_its_plots_under_names_of_their_own():
    asked = (ASKED, PaperQuestion("baseline", "?", "yes", "", ASKED.evidence))
    found = plots(Comparison((FULL,), questions=asked), [], {"python_docs": 100, "c4": 200})
    assert [plot.name for plot in found] == [
        "forest-wanda-0.6",
        "kept-wanda-0.6",
        "tokens-wanda-0.6",
        "pareto-wanda-0.6",
        "in-context",
    ]
    several = plots(Comparison((FULL, replace(FULL, model="qwen"), FULL)), [], {})
    forests = [p.name for p in several if p.name.startswith("forest")]
    assert forests == [
        "forest-wanda-0.6-smollm2",
        "forest-wanda-0.6-qwen",
        "forest-wanda-0.6-smollm2-2",
    ]
    experts = plots(Comparison(), [], {}, [MADE, replace(MADE, target="experts 0.25")])
    assert [plot.name for plot in experts] == [
        "experts-mc_suite-experts-0.5",
        "experts-mc_suite-experts-0.25",
    ]
    worth = plots(
        Comparison(sensitivities=(GPTQ, RTN, of("gptq", 0.2, 0.1, 0.1, model="other"))), [], {}
    )
    assert [plot.name for plot in worth] == ["sensitivity-tiny", "sensitivity-other"]
    assert plots(Comparison(), [], {}) == []
