from dataclasses import replace

import pytest

from calibrant.compare import Comparison, Contrast, compare
from calibrant.report.sentences import ONLY_MEASURED, finding
from calibrant.report.tables.sections import (
    agreement_sentences,
    agreement_table,
    conclusions,
    contrast_sentence,
    contrast_table,
    sections,
    trust_sentences,
)

from tests.compare.stores import LOSSES, results_of
from tests.report.made import AGREEMENTS, BETTER, CONTRASTS, EVERYTHING, LOST, ONCE, OPEN, SECOND, WORSE, entry, plain, ranking


@pytest.mark.parametrize(
    ("contrast", "sentence"),
    [
        (
            BETTER,
            "own data: gsm8k:icl did better than c4 (smollm2, wanda at 60 % sparsity, on docs): -0.123 nats/token "
            "(95 % interval -0.169 to -0.077, p = 0.004 after Holm).",
        ),
        (
            WORSE,
            "gsm8k:icl did worse than c4 (smollm2, wanda at 60 % sparsity, on docs): +0.200 nats/token "
            "(95 % interval +0.154 to +0.246, p < 0.001 after Holm).",
        ),
        (
            OPEN,
            "gsm8k:icl and c4 cannot be distinguished (smollm2, wanda at 60 % sparsity, on docs). To detect 0.020 it would take 14 draws a set.",
        ),
        (
            ONCE,
            "drawn once: gsm8k:icl against c4 (smollm2, wanda at 60 % sparsity, on docs): one draw only. The interval covers other documents only.",
        ),
        (LOST, "gsm8k:icl against c4 (smollm2, wanda at 60 % sparsity, on docs): not computed. Pile (draw 0) failed: no rows."),
    ],
)
def test_a_contrast_in_words(contrast: Contrast, sentence: str):
    assert plain(contrast_sentence(contrast)) == sentence


def test_contrasts_as_a_table():
    table = contrast_table(CONTRASTS)
    found = [[str(f) for f in line.figures] for line in table.rows]
    assert found[0] == ["-0.123", "-0.169 to -0.077", "0.004", "0.055", "better"]
    assert found[1][2] == "< 0.001"
    assert [row[-1] for row in found] == ["better", "worse", "not significant", "one draw only", "not computed"]
    assert found[3][2] == "—"
    assert found[4][:4] == ["—"] * 4
    assert [line.name for line in table.rows][:2] == ["own data", "gsm8k:icl against c4"]
    assert plain(table.rows[0].note) == "gsm8k:icl against c4, smollm2, wanda at 60 % sparsity, on docs"
    assert [line.figures[-1].best for line in table.rows] == [True, True, False, False, False]
    assert "Difference in nats/token: below zero the first is better; p: two-sided, after Holm over 5" in table.key


def test_many_measured_sets_are_told_by_the_first_and_the_last():
    many = replace(OPEN, on=tuple(f"{name}:text" for name in "abcde"))
    assert "on the mean of 5, a to e)" in plain(contrast_sentence(many))
    assert "on a, b, c and d)" in plain(contrast_sentence(replace(many, on=many.on[:4])))


def test_a_contrast_is_not_named_twice():
    plainly = replace(OPEN, name="gsm8k:icl against c4")
    assert contrast_sentence(plainly) == contrast_sentence(OPEN)
    assert contrast_table([plainly]).rows == contrast_table([OPEN]).rows


def test_what_so_few_draws_can_show_at_best_is_said_once():
    few = [replace(c, smallest_p=0.1, smallest_p_of="a permutation of 3 and 3 draws") for c in (BETTER, OPEN)]
    (tested,) = [s for s in conclusions(Comparison(contrasts=(*few, LOST))) if s.title == "Primary contrasts"]
    assert [s for s in tested.sentences if "smallest p" in s] == [
        "The smallest p of a permutation of 3 and 3 draws is 0.100; a smaller one leans on Student's t."
    ]


def test_agreements_the_least_first():
    table = agreement_table(AGREEMENTS)
    assert [[str(f) for f in line.figures] for line in table.rows] == [
        ["-0.10", "—", "6"],
        ["+0.20", "-0.10 to +0.50", "6"],
        ["+0.87", "+0.50 to +1.00", "6"],
    ]
    assert plain(table.rows[0].name) == "60 % sparsity and 2:4 sparsity"
    assert table.rows[1].note == "qwen, 60 % sparsity"
    assert list(agreement_sentences(AGREEMENTS)) == [
        "By method: τ +0.20 to +0.87 over 2 pairs; the interval lies above zero for 1 of them.",
        "By sparsity: τ -0.10 for the one pair; its interval does not lie above zero.",
    ]


def test_what_trust_hangs_on():
    assert list(trust_sentences(Comparison())) == []
    stale, looks = trust_sentences(EVERYTHING)
    assert stale.startswith("2 records are from an older revision")
    assert looks.startswith("Beyond its 5 primary contrasts the report makes 63 comparisons.")
    (one,) = trust_sentences(Comparison(stale=1))
    assert one.startswith("1 record is from")
    (bare,) = trust_sentences(Comparison(comparisons=3))
    assert bare.startswith("The report makes 3 comparisons.")


def test_sections_come_in_the_order_they_are_read():
    titles = [plain(s.title) for s in sections(EVERYTHING, notes={"smollm2": "a note"})]
    assert titles == [
        "smollm2 (a note), wanda at 60 % sparsity, dense propagation",
        "Primary contrasts",
        "Do the rankings agree?",
        "What is missing",
        "How far to trust it",
    ]
    assert [s.title for s in conclusions(EVERYTHING)] == titles[1:]
    (nothing,) = sections(Comparison())
    assert "nothing to rank" in nothing.sentences[0]


def test_models_that_were_only_measured_are_shown_and_not_ranked():
    measured = compare(results_of({"dense": [[3.0, 2.0]]}))
    assert measured.only_measured
    first, table, *_ = sections(measured)
    assert (first.title, first.sentences) == ("Nothing to rank", (ONLY_MEASURED,))
    assert table.title == "Without calibration data: tiny"
    assert table.table is not None
    (row,) = table.table.rows
    assert measured.unranked[0].dense is not None
    losses = [f"{loss.value:.3f}" for loss in measured.unranked[0].dense.losses.values()]
    assert (row.name, [figure.value for figure in row.figures][1:]) == ("dense", losses)
    (ranking,) = measured.unranked
    assert finding(ranking) == ONLY_MEASURED
    assert not compare(results_of(LOSSES)).only_measured
    assert not Comparison().only_measured


def test_holes_are_listed_with_their_reasons():
    (missing,) = [s for s in sections(EVERYTHING) if s.title == "What is missing"]
    assert missing.items == ("pile (draw 0) on loss(source='docs'): DataError: no rows",)


def test_thousands_of_holes_are_counted():
    holes = tuple(f"c4 (draw {i}) on loss: not computed yet" for i in range(1200))
    (missing,) = conclusions(Comparison(missing=holes))
    assert missing.items[:100] == holes[:100]
    assert missing.items[100:] == ("… and 1,100 more, which --format json lists",)


def test_doubts_come_before_the_finding():
    odd = ranking(entry("random_tokens", (1.0, 1.0), None), SECOND)
    first, *_ = sections(replace(EVERYTHING, rankings=(odd,)))
    assert first.sentences[0].startswith("Doubtful: random_tokens is a control")
    assert first.sentences[1].startswith("Of 2 calibration sets, random_tokens kept smollm2 best")
