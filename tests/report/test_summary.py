"""What is said of a study of several rankings: one table of all sets with all methods, doubts
with Holm's correction, and no more than a screen of it.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from scipy.stats import t as student

from calibrant.lab.report import Report, report
from calibrant.lab.report.sentences import remarks
from calibrant.lab.report.summary import (
    Matrix,
    doubts,
    overall,
    short_method_names,
    short_set_names,
)
from calibrant.lab.report.tables.sections import Section
from calibrant.lab.report.tables.terminal import summary
from calibrant.lab.stats import Ranking
from calibrant.results import Store

from tests.report.made import entry, plain, ranking
from tests.stats.stores import made
from tests.stats.synthetic import Synthetic

SPREAD = 0.02
DF = 20.0
SCREEN = 60


def drawn(loss: float) -> list[list[float]]:
    """Three draws that hardly differ, measured on two texts."""
    return [[loss + 0.01 * step, loss - 1 - 0.01 * step] for step in (-1, 0, 1)]


LOSSES = {
    "wanda": {"c4": 3.50, "pile": 3.505, "gsm8k:cot": 3.9, "random_tokens": 4.4},
    "sparsegpt": {"c4": 3.30, "pile": 3.40, "gsm8k:cot": 3.8, "random_tokens": 3.6},
}
"""Of wanda two sets can't be told apart, of sparsegpt c4 is surely the best, and there the control
is surely better than one set with content.
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("summary") / "study"
    with Store(folder) as store:
        cells = []
        for method, losses in LOSSES.items():
            sets = {name: drawn(loss) for name, loss in losses.items()}
            for cell, record, files, measured in made({"dense": [[3.0, 2.0]], **sets}):
                if cell.method == "none" and cells:
                    continue
                if cell.method != "none":
                    form = {"spec": method, "revision": 1}
                    record = replace(record, run=replace(record.run, method=form))
                    cell = replace(cell, method=method)
                store.add_record(record, files)
                measures = {}
                for text, measurement in measured.items():
                    spec = {"spec": "loss", "source": text, "revision": 1}
                    measures[text] = store.add_measurement(record.run.id, spec, measurement)
                cells.append(replace(cell, run=record.run.id, measures=measures))
        store.write_cells(cells, {})
    return folder


def screen(found: Report, width: int = 120, whole: bool = False) -> str:
    console = Console(width=width, color_system=None, highlight=False, markup=False)
    with console.capture() as capture:
        for line in found.lines(width, whole=whole):
            console.print(line)
    return plain(capture.get())


def row_of(text: str, name: str) -> list[tuple[float, str]]:
    """The numbers of a set's row, each with its mark."""
    (line,) = re.findall(rf"^{re.escape(name)} +([\d.*~ ]+)$", text, re.MULTILINE)
    figures = line.split()
    return [(float(figure.strip("*~")), figure.lstrip("0123456789.")) for figure in figures]


def test_the_table_has_every_set_with_every_method_and_marks_the_best_and_what_is_tied(
    study: Path,
):
    text = screen(report(study))
    joined = " ".join(text.split())
    assert "Over 2 combinations of model, method and sparsity, the best was c4 in 2;" in joined
    assert "significantly better than every other set: c4 in 1." in joined
    (head,) = [line for line in text.splitlines() if line.startswith("calibrated on")]
    assert head.split() == ["calibrated", "on", "sparsegpt", "50", "%", "wanda", "50", "%"]
    marks = {"c4": ["*", "*"], "pile": ["", "~"], "gsm8k:cot": ["", ""], "random_tokens": ["", ""]}
    for name, wanted in marks.items():
        numbers, found = zip(*row_of(text, name), strict=True)
        assert list(found) == wanted
        # The dense model loses 3 on the one text and 2 on the other.
        losses = [LOSSES["sparsegpt"][name], LOSSES["wanda"][name]]
        assert numbers == pytest.approx([loss - 3 for loss in losses], abs=0.003)
    rows = [line.split()[0] for line in text.splitlines() if line.startswith(tuple(marks))]
    assert rows[:4] == list(marks), "the best first, a control last"


def test_an_answer_says_where_sets_were_drawn_once(study: Path):
    comparison = report(study).comparison
    assert "drawn once" not in overall(comparison)
    once = ranking(entry("c4", (1.5, 1.9), None, draws=1), entry("pile", (1.6, 2.0), 0.1, draws=1))
    several = replace(comparison, rankings=(*comparison.rankings, once))
    assert overall(several).endswith(
        "In 1 of them some sets were drawn once: nothing there speaks for other draws."
    )
    assert "nothing here speaks for other draws" in overall(
        replace(comparison, rankings=(once, once))
    )


def test_what_is_doubtful_is_said_with_its_p_after_holm(study: Path):
    text = " ".join(screen(report(study)).split())
    assert "random_tokens is a control without content, and it did better than gsm8k:cot" in text
    assert "by 0.201 (tiny, sparsegpt 50 %)" in text
    # In each ranking a control against three sets, and four sets on two texts against the dense
    # model.
    assert "after Holm over 22 comparisons" in text
    assert "better than c4" not in text


def test_a_summary_leaves_out_what_all_prints_and_a_method_is_printed_alone(study: Path):
    found = report(study)
    short = screen(found)
    whole = screen(found, whole=True)
    assert "--all prints every ranking" in short
    assert "--all prints every ranking" not in whole
    for ranked in found.rankings:
        assert f"tiny, {ranked.method} at 50 %" not in plain(short)
        assert f"tiny, {ranked.method} at 50 %" in plain(whole)
    alone = report(study, methods=["sparsegpt"])
    assert [ranked.method for ranked in alone.rankings] == ["sparsegpt"]
    text = screen(alone)
    assert "tiny, sparsegpt at 50 %" in plain(text), "a single ranking is printed whole"
    assert "wanda" not in text


def test_a_method_alone_is_so_in_every_format_and_keeps_the_correction_over_all(tmp_path: Path):
    folder = Synthetic(methods=2, targets=1, sets=3, draws=2, items=6).write(tmp_path / "two")
    every = report(folder)
    alone = report(folder, methods=["method0"])
    assert len(every.comparison.contrasts) > len(alone.comparison.contrasts) > 0
    text = " ".join(screen(alone).split())
    assert f"after Holm over {len(every.comparison.contrasts)}" in text
    assert alone.comparison.comparisons == every.comparison.comparisons / 2
    methods = {line.split(",")[2] for line in alone.to_csv().splitlines()[1:]}
    assert methods == {"none", "method0"}


@pytest.mark.parametrize("width", [60, 120])
def test_a_large_study_takes_a_screen_and_counts_the_rows_that_have_no_room(
    width: int, tmp_path: Path
):
    shape = Synthetic(methods=8, targets=5, sets=4, draws=2, items=6)
    found = report(shape.write(tmp_path / "large"))
    assert len(found.rankings) == 40
    text = screen(found, width)
    assert text.count("\n") <= SCREEN
    assert max(map(len, text.splitlines())) <= width
    assert "What each calibration set costs" in text
    named = [line for line in text.splitlines() if line.startswith("method0 ")]
    assert len(named) == 5, "the first method at five targets"
    shown = [line for line in text.splitlines() if line.startswith("method") and " %" in line]
    assert f"and {40 - len(shown)} more" in text
    assert len(shown) < SCREEN / 2, "what else was found has room"
    assert screen(found, width, whole=True).count("\n") > 10 * SCREEN


def test_sections_that_have_no_room_on_a_screen_are_left_out_from_the_end():
    sections = [Section(f"part {number}", sentences=("a line",) * 17) for number in range(5)]
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        for line in summary(sections, 80):
            console.print(line)
    text = capture.get()
    assert text.count("\n") <= SCREEN
    assert [f"part {number}" in text for number in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize("width", [60, 120])
def test_warnings_have_room_however_many_there_are_and_the_last_section_is_cut(width: int):
    sections = [
        Section("the answer", sentences=("an answer",)),
        *(Section(f"part {number}", sentences=("a line",) * 11) for number in range(3)),
        Section("Doubtful", sentences=("a doubt that takes a line",) * 61, warns=True),
        Section("the rest", sentences=("a line",) * 14),
    ]
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        for line in summary(sections, width):
            console.print(line)
    text = capture.get()
    assert text.count("\n") <= SCREEN
    assert text.count("a doubt") == 4
    assert "and 57 more, which --all prints" in text
    assert text.index("an answer") < text.index("a doubt")
    rest = text.partition("the rest")[2]
    shown = rest.count("a line")
    assert 0 < shown < 14
    assert f"and {14 - shown} more" in rest


def odd_rankings() -> tuple[Ranking, Ranking]:
    """A control is ahead of two sets by 0.2 and of one by 0.07; a set is ahead of the dense model
    by 0.03 on one text.
    """
    best = entry("python_docs", (0.10, 0.20), None)
    control = entry("full_stops", (0.15, 0.25), 0.05)
    near = entry("c4", (0.22, 0.32), 0.12)
    far = [entry(name, (0.35, 0.45), 0.25) for name in ("pile", "gsm8k:cot")]
    ahead = entry("python_docs", (-0.03, 0.20), None)
    behind = entry("c4", (0.20, 0.30), 0.2)
    return ranking(best, control, near, *far), ranking(ahead, behind, method="sparsegpt")


def test_holm_corrects_for_everything_that_was_looked_at():
    found = doubts(odd_rankings())
    # A control against four sets, and five and two sets on two texts.
    count = 4 + 10 + 4
    assert found.looked_at == count
    apart = SPREAD * 2**0.5
    far = student.sf(0.2 / apart, DF)
    near = student.sf(0.07 / apart, DF)
    dense = student.sf(0.03 / SPREAD, DF)
    assert far < near < dense < 0.1
    assert [doubt.p for doubt in found.every] == pytest.approx([far, far, near, dense])
    # Step by step, and none below the one before it.
    wanted = [count * far, count * far, (count - 2) * near, 1.0]
    assert [doubt.p_holm for doubt in found.every] == pytest.approx(wanted)
    assert near < 0.05 < wanted[2], "which alone would be significant"
    assert [doubt.significant for doubt in found.every] == [True, True, False, False]


def test_what_may_be_chance_is_counted_and_not_among_what_is_shown():
    found = doubts(odd_rankings())
    assert [sentence.split(" did better than ")[1][:4] for sentence in found.shown] == [
        "pile",
        "gsm8",
    ]
    assert all("p < 0.001 after Holm over 18 comparisons" in sentence for sentence in found.shown)
    assert len(found.chance) == 2
    assert "c4 by 0.070 (smollm2, wanda 60 %)" in plain(found.chance[0])
    assert "is better than the dense one by 0.030" in found.chance[1]
    assert found.in_short.startswith("2 odd results are not significant")
    assert "18 comparisons" in found.in_short


def test_without_a_dense_model_more_may_be_better():
    best = entry("c4", (0.75, 0.75), None)
    control = entry("random_tokens", (0.40, 0.40), 0.35)
    magnitude = entry("magnitude", (0.25, 0.25), 0.50, draws=0)
    sets = {"dense": None, "unit": "share right", "better": dict.fromkeys(best.losses, "higher")}
    best, control, magnitude = (replace(made, increases={}) for made in (best, control, magnitude))
    ranked = ranking(best, control, baselines=(magnitude,), **sets)
    assert doubts([ranked]).every == ()
    assert "did worse than every set (average +0.250" in remarks(ranked)[0]
    far = replace(entry("pile", (0.20, 0.20), 0.55), increases={})
    (doubt,) = doubts([ranking(best, control, far, **sets)]).every
    assert "better than pile by 0.200" in doubt.sentence


def test_arguments_tell_methods_apart_on_either_side_of_an_allocation():
    names = {
        "sparsegpt(damp=0.02) + least_error": "sparsegpt damp=0.02 + least_error",
        "sparsegpt + least_error": "sparsegpt + least_error",
        "gptq(scales='importance') + owl(spread=0.1)": "gptq importance + owl spread=0.1",
        "gptq + owl": "gptq + owl",
        "wanda(first=1, second=2, third=3) + owl(spread=0.1)": "wanda + owl 1",
        "wanda + owl(spread=0.05)": "wanda + owl spread=0.05",
    }
    assert short_method_names(names) == names
    sets = {
        "0.5*c4 + 0.5*python_code": "mixture 1",
        "0.3*c4 + 0.7*python_code": "mixture 2",
        "pile(subsets=['Github'])": "pile subsets=['Github']",
        "pile": "pile",
    }
    assert short_set_names(sets) == sets


def test_a_set_alone_is_not_surely_better_than_every_other():
    alone = ranking(entry("c4", (0.1, 0.2), None))
    among = ranking(entry("c4", (0.1, 0.2), None), entry("pile", (0.4, 0.5), 0.3))
    first, second = Matrix((alone, replace(among, method="sparsegpt")), {}).ends().rows
    assert not first.figures[0].best
    assert second.figures[0].best
