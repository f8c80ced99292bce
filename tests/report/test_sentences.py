from dataclasses import replace

import pytest

from calibrant.report.sentences import caveats, describe_target, doubts, finding, join_names, meaning_of_kept, percent, remarks, short

from tests.report.made import BEST, FULL, HOLED, LAST, MAGNITUDE, PLAIN, SECOND, entry, plain, ranking


def test_the_finding_names_the_best_its_cost_and_the_range_of_the_others():
    assert plain(finding(PLAIN)) == (
        "Of 3 calibration sets, python_docs kept smollm2 best with wanda at 60 % sparsity: averaged over docs and code, its loss rose by 1.600 "
        "nats/token over the dense model's (95 % interval 1.558 to 1.642). "
        "Every other set did significantly worse, by 0.100 (c4) to 4.900 (full_stops) nats/token."
    )


def test_the_finding_says_what_cant_be_told_apart_from_the_best():
    told = finding(ranking(BEST, replace(SECOND, tied=True), LAST))
    assert "c4 cannot be distinguished from it. The other did significantly worse, by 4.900 (full_stops) nats/token." in told


def test_the_finding_when_nothing_can_be_told_apart():
    told = finding(ranking(BEST, replace(SECOND, tied=True), replace(LAST, tied=True)))
    assert told.startswith(
        "No difference is significant: averaged over docs and code, none of the 3 calibration sets did significantly worse than the best one"
    )
    assert "that may be chance" in told
    assert "kept smollm2 best" not in told


def test_the_finding_of_a_single_set():
    assert finding(ranking(BEST)).startswith("Only python_docs was tried on smollm2")


def test_the_finding_with_two_sets():
    assert "The other one did significantly worse, by 0.100 (c4) nats/token." in finding(ranking(BEST, SECOND))


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
        "On docs, smollm2 is better than the dense model when pruned with c4 (by 0.500) and magnitude (by 0.010); significantly with c4."
    )
    (chance,) = doubts(ranking(BEST, entry("c4", (-0.01, 4.0), 0.1)))
    assert "it may be chance" in chance


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.5, "better than every set"), (9.0, "worse than every set"), (3.0, "better than full_stops, worse than the rest")]
)
def test_remarks_place_the_baselines(value: float, verdict: str):
    (told,) = remarks(ranking(BEST, SECOND, LAST, baselines=(entry("magnitude", (value, value), 1.0, draws=0),)))
    assert told.startswith(f"Magnitude, which looks at no data, did {verdict}")


def test_remarks_say_what_share_of_the_dense_model_the_best_kept():
    assert plain(remarks(FULL)[0]) == (
        "Of the dense model's performance, python_docs kept 25 % on docs and 17 % on code "
        "(kept: the dense model's perplexity over the compressed model's, which is e to the minus increase of the loss)."
    )
    assert not any("kept" in said for said in remarks(PLAIN))


def test_draws_that_overlap_are_named():
    (told,) = [c for c in caveats(ranking(replace(BEST, draws=3, overlapping=True), replace(SECOND, draws=3))) if "share more than" in c]
    assert told.startswith("The draws of python_docs share more than a tenth of their rows")


def test_a_ranking_without_a_whole_set_has_nothing_to_say():
    empty = ranking(partial=(HOLED,), baselines=(MAGNITUDE,))
    assert finding(empty) == "No calibration set has all of its measurements on smollm2 with wanda yet, so there is nothing to rank."
    assert [*caveats(empty), *doubts(empty), *remarks(empty)] == []


@pytest.mark.parametrize(("share", "told"), [(0.95, "95 %"), (0.995, "99.5 %"), (1.0, "100 %")])
def test_percent(share: float, told: str):
    assert plain(percent(share)) == told


def test_short_names_stay_distinct():
    assert short("wikitext:text", ["wikitext:text", "gsm8k:qa"]) == "wikitext"
    assert short("gsm8k:qa", ["gsm8k:cot", "gsm8k:qa"]) == "gsm8k:qa"
    assert [join_names(["a"]), join_names(["a", "b"]), join_names(["a", "b", "c"])] == ["a", "a and b", "a, b and c"]


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("0.6", "60\u00a0% sparsity"),
        ("2:4", "2:4 sparsity"),
        ("", "any sparsity"),
        ("0.5, 2:4", "50\u00a0% and 2:4 sparsity"),
        ("w4g64", "4 bits in groups of 64 (w4g64)"),
        ("w8", "8 bits by row (w8)"),
        ("w3g128a", "3 bits in groups of 128 with zero points (w3g128a)"),
        ("0.5, 2:4, w4g64, w8", "50\u00a0% and 2:4 sparsity, 4 bits in groups of 64 (w4g64) and 8 bits by row (w8)"),
        ("rank=16", "rank=16"),
        ("blocks 0.2", "20\u00a0% of the blocks"),
    ],
)
def test_a_target_in_words(target: str, told: str):
    assert describe_target(target) == told


def test_what_kept_means_is_said_for_what_was_measured():
    scores = replace(FULL, better=dict.fromkeys(FULL.measured, "higher"))
    assert meaning_of_kept(scores) == "kept: the score above chance as a share of the dense model's"
    both = replace(FULL, better={"docs:text": "lower", "code:text": "higher"})
    assert meaning_of_kept(both).startswith("kept: on docs the dense model's perplexity over")
    assert meaning_of_kept(both).endswith("; on code the score above chance as a share of the dense model's")
    assert meaning_of_kept(replace(FULL, units=dict.fromkeys(FULL.measured, "bits"))) == "kept: the dense model's number over the compressed model's"


def test_differences_below_the_noise_floor_are_named():
    near, far = entry("c4", (1.404, 1.804), 0.004), entry("full_stops", (1.6, 2.0), 0.2)
    told = caveats(ranking(BEST, near, far, floors={"docs:text": 0.05}, units=dict.fromkeys(FULL.measured, "nats/token")))
    assert told[-1] == (
        "Two computations of the same numbers are 0.05 nats/token apart on docs: a smaller difference is none that a runtime would keep. "
        "That is so of the best set and c4."
    )
    apart = caveats(ranking(BEST, far, floors={"docs:text": 0.05}))
    assert apart[-1].endswith("a smaller difference is none that a runtime would keep.")
    assert caveats(ranking(BEST, near, far, floors={"docs:text": 1e-6})) == caveats(ranking(BEST, near, far))
