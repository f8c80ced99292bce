import json
import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from calibrant.compare import Entry, Estimate, Ranking
from calibrant.report.findings import caveats, doubts, finding, listed, remarks, short
from calibrant.report.tables import as_json, columns, markdown, rows, table, words

DENSE = {"docs:text": 2.6, "code:text": 2.3}


def entry(name: str, increases: tuple[float, float], to_best: float | None, *, tied: bool = False, draws: int = 1, spread: float = 0.02) -> Entry:
    each = {m: Estimate(v, spread, 20.0, 21) for m, v in zip(DENSE, increases, strict=True)}
    losses = {m: replace(e, value=e.value + DENSE[m]) for m, e in each.items()}
    gap = None if to_best is None else Estimate(to_best, spread, 20.0, 42)
    return Entry(
        name,
        name in ("random_tokens", "full_stops"),
        (f"sha256:{name}",),
        draws,
        losses,
        each,
        Estimate(sum(increases) / 2, spread, 20.0, 42),
        gap,
        tied,
    )


def ranking(*entries: Entry, baselines: tuple[Entry, ...] = (), **changes: object) -> Ranking:
    given = {
        "model": "smollm2",
        "method": "wanda",
        "target": "0.6",
        "measured": tuple(DENSE),
        "averaged": tuple(DENSE),
        "unit": "nats/token",
        "entries": entries,
        "baselines": baselines,
        "dense": entry("dense", (0.0, 0.0), None, draws=0),
        "missing": (),
        **changes,
    }
    return Ranking(**given)  # pyright: ignore[reportArgumentType]


BEST, SECOND, LAST = entry("python_docs", (1.4, 1.8), None), entry("c4", (1.5, 1.9), 0.1), entry("full_stops", (6.0, 7.0), 4.9)
PLAIN = ranking(BEST, SECOND, LAST, baselines=(entry("magnitude", (5.0, 5.5), 3.65, draws=0),))


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_the_finding_names_the_best_its_cost_and_the_range_of_the_others():
    assert plain(finding(PLAIN)) == (
        "Of 3 calibration sets, python_docs kept smollm2 best with wanda at 60 % sparsity: averaged over docs and code, its loss rose by 1.600 "
        "nats/token over the dense model's (95 % interval 1.558 to 1.642). Every other set did worse, by 0.100 (c4) to 4.900 (full_stops) nats/token."
    )


def test_the_finding_says_what_cant_be_told_apart_from_the_best():
    told = finding(ranking(BEST, replace(SECOND, tied=True), LAST))
    assert "c4 can't be told apart from it. The other did worse, by 4.900 (full_stops) nats/token." in told


def test_the_finding_when_nothing_can_be_told_apart():
    told = finding(ranking(BEST, replace(SECOND, tied=True), replace(LAST, tied=True)))
    assert told.startswith(
        "Nothing can be told apart: averaged over docs and code, none of the 3 calibration sets did reliably worse than the best one"
    )
    assert "that may be chance" in told
    assert "kept smollm2 best" not in told


def test_the_finding_of_a_single_set():
    assert finding(ranking(BEST)).startswith("Only python_docs was tried on smollm2")


def test_the_finding_with_two_sets():
    assert "The other one did worse, by 0.100 (c4) nats/token." in finding(ranking(BEST, SECOND))


def test_the_finding_when_the_loss_fell():
    assert "its loss fell by 0.100 nats/token below the dense model's" in finding(ranking(entry("a", (-0.1, -0.1), None), SECOND))


def test_the_finding_without_a_dense_model():
    bare = [replace(e, increases={}) for e in (BEST, SECOND)]
    assert "its loss is 1.600 nats/token (95" in plain(finding(ranking(*bare, dense=None)))


def test_the_finding_of_another_measure():
    told = finding(ranking(BEST, SECOND, unit="share right"))
    assert "it lost 1.600 share right against the dense model" in told
    assert "it gained 0.100 share right" in finding(ranking(entry("a", (-0.1, -0.1), None), SECOND, unit="share right"))
    assert "its score is 1.600 share right" in finding(ranking(BEST, SECOND, unit="share right", dense=None))


def test_one_draw_is_never_passed_over():
    assert "one draw cannot say" in caveats(PLAIN)[0]
    mixed = caveats(ranking(BEST, replace(SECOND, draws=3)))[0]
    assert "Some sets were drawn once" in mixed
    several = caveats(ranking(replace(BEST, draws=3), replace(SECOND, draws=2)))[0]
    assert "other draws of the calibration data (2 to 3 draws a set)" in several
    assert "6 pairs" in caveats(PLAIN)[1]
    assert (
        caveats(ranking(BEST, missing=("c4 (draw 0) on loss: no rows",)))[-1]
        == "Not everything that was asked for is here: c4 (draw 0) on loss: no rows."
    )


def test_nothing_odd_gives_no_doubts():
    assert doubts(PLAIN) == []


def test_a_control_that_beats_real_text_is_a_doubt():
    first = ranking(entry("random_tokens", (1.0, 1.0), None), entry("c4", (1.5, 1.5), 0.5), entry("pile", (1.01, 1.01), 0.01))
    (told,) = doubts(first)
    assert "random_tokens is a control without content, and it did better than c4 (by 0.500) and pile (by 0.010)" in told
    assert "it may be chance" in told
    (sure,) = doubts(ranking(entry("random_tokens", (1.0, 1.0), None), entry("c4", (1.5, 1.5), 0.5)))
    assert "chance" not in sure


def test_a_control_in_the_middle_is_a_doubt_too():
    (told,) = doubts(ranking(BEST, entry("full_stops", (1.6, 1.9), 0.15), entry("c4", (2.0, 2.5), 0.65)))
    assert "full_stops is a control without content, and it did better than c4" in told
    assert "python_docs" not in told


def test_a_pruned_model_that_beats_the_dense_one_is_a_doubt():
    odd = ranking(BEST, entry("c4", (-0.5, 4.0), 0.1), baselines=(entry("magnitude", (-0.01, 5.0), 1.0, draws=0),))
    (told,) = doubts(odd)
    assert told.startswith(
        "On docs, smollm2 is better than the dense model when pruned with c4 (by 0.500) and magnitude (by 0.010); told apart from it: c4."
    )
    (chance,) = doubts(ranking(BEST, entry("c4", (-0.01, 4.0), 0.1)))
    assert "it may be chance" in chance


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.5, "better than every set"), (9.0, "worse than every set"), (3.0, "better than full_stops, worse than the rest")]
)
def test_remarks_place_the_baselines(value: float, verdict: str):
    (told,) = remarks(ranking(BEST, SECOND, LAST, baselines=(entry("magnitude", (value, value), 1.0, draws=0),)))
    assert told.startswith(f"Magnitude, which looks at no data, did {verdict}")


def test_rows_have_a_cell_for_each_column():
    for brief in (False, True):
        assert {len(row) for row in rows(PLAIN, brief)} == {len(columns(PLAIN))}
    first, *_, magnitude, dense = rows(PLAIN)
    assert first == ["1. python_docs", "+1.600 ± 0.020", "+1.400 ± 0.020", "+1.800 ± 0.020", "the best"]
    assert rows(PLAIN, brief=True)[0][2] == "+1.400"
    assert magnitude[0] == "magnitude (no data)"
    assert dense == ["dense: its loss", "", "2.600", "2.300", ""]
    assert rows(PLAIN)[2][0] == "3. full_stops (control)"
    assert rows(ranking(BEST, replace(SECOND, tied=True)))[1][-1] == "+0.100 ± 0.020 can't tell"


def test_doubts_come_before_the_finding():
    told = words(ranking(entry("random_tokens", (1.0, 1.0), None), SECOND))
    assert told[0].startswith("Doubtful: random_tokens is a control")
    assert told[1].startswith("Of 2 calibration sets, random_tokens kept smollm2 best")
    assert words(PLAIN)[0] == finding(PLAIN)


def test_one_measured_set_has_no_column_of_means():
    alone = ranking(BEST, SECOND, measured=("docs:text",), averaged=("docs:text",))
    assert columns(alone) == ["calibrated on", "on docs", "worse than the best"]
    assert rows(alone, brief=True)[0] == ["1. python_docs", "+1.400 ± 0.020", "the best"]


def test_the_terminal_table_shows_markup_as_text():
    out = StringIO()
    hostile = replace(BEST, name="[bold red]x[/]")
    Console(file=out, width=140).print(table(ranking(hostile, SECOND), "dequantized from Q4_1"))
    assert "[bold red]x[/]" in out.getvalue()
    assert "smollm2 (dequantized from Q4_1), wanda at 60\u00a0% sparsity" in out.getvalue()


def test_markdown_shows_markup_as_text():
    text = markdown([ranking(replace(BEST, name="a|b <script> *c*"), SECOND)], {"smollm2": "dequantized from Q4_1"})
    assert "1. a\\|b &lt;script&gt; \\*c\\*" in text
    assert "<script>" not in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {6}


def test_json_holds_numbers_intervals_and_sentences():
    (told,) = json.loads(json.dumps(as_json([PLAIN])))
    assert told["finding"] == finding(PLAIN)
    first, second, _ = told["entries"]
    assert first["to_best_interval"] is None
    assert second["mean"]["value"] == pytest.approx(1.7)
    assert second["mean_interval"][0] == pytest.approx(1.7 - 2.086 * 0.02, abs=1e-4)
    assert second["to_best_interval"][0] < 0.1 - 2.086 * 0.02  # widened for all pairs
    assert math.isclose(told["level"], 0.95)


def test_short_names_stay_distinct():
    assert short("wikitext:text", ["wikitext:text", "gsm8k:qa"]) == "wikitext"
    assert short("gsm8k:qa", ["gsm8k:cot", "gsm8k:qa"]) == "gsm8k:qa"
    assert [listed(["a"]), listed(["a", "b"]), listed(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
