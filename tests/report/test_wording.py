"""What a report says of what it found, by the words and numbers that tell it from something
else.
"""

from dataclasses import replace

import pytest

from calibrant.lab.stats import Comparison, Ranking

from tests.report.made import (
    BEST,
    FULL,
    HOLED,
    LAST,
    MAGNITUDE,
    PLAIN,
    SECOND,
    entry,
    ranking,
    reported,
)

TIED = replace(SECOND, tied=True)
FELL = entry("a", (-0.1, -0.1), None)
BARE = [replace(e, increases={}) for e in (BEST, SECOND)]
RANDOM = entry("random_tokens", (1.0, 1.0), None)
NATS = dict.fromkeys(FULL.measured, "nats/token")
NEAR = (BEST, entry("c4", (1.404, 1.804), 0.004), entry("full_stops", (1.6, 2.0), 0.2))


def told(comparison: Comparison) -> str:
    """What a very wide terminal shows, with plain spaces and in one line."""
    return " ".join(reported(comparison).table(9000).split())


def beside(value: float) -> Ranking:
    """A ranking beside which magnitude did so much worse than the dense model."""
    return ranking(
        BEST, SECOND, LAST, baselines=(entry("magnitude", (value, value), 1.0, draws=0),)
    )


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            PLAIN,
            "Of 3 calibration sets, python_docs kept smollm2 best with wanda at 60 % sparsity: "
            "averaged over docs and code, its loss rose by 1.600",
        ),
        (
            PLAIN,
            "(95 % interval 1.558 to 1.642). Every other set did significantly worse, by 0.100 "
            "(c4) to 4.900 (full_stops) nats/token.",
        ),
        (PLAIN, "one draw cannot say"),
        (
            ranking(BEST, TIED, LAST),
            "c4 cannot be distinguished from it. The other did significantly worse, by 4.900 "
            "(full_stops)",
        ),
        (ranking(BEST, TIED, replace(LAST, tied=True)), "No difference is significant"),
        (ranking(FELL, SECOND), "its loss fell by 0.100 nats/token below the dense model's"),
        (ranking(*BARE, dense=None), "its loss is 1.600 nats/token (95"),
        (
            ranking(BEST, SECOND, unit="share right"),
            "it lost 1.600 share right against the dense model",
        ),
        (ranking(BEST, replace(SECOND, draws=3)), "Some sets were drawn once"),
        (
            ranking(replace(BEST, draws=3, overlapping=True), replace(SECOND, draws=3)),
            "The draws of python_docs share more than a tenth",
        ),
        (
            ranking(RANDOM, entry("c4", (1.5, 1.5), 0.5), entry("pile", (1.01, 1.01), 0.01)),
            "it did better than c4 by 0.500 (smollm2, wanda 60 %) (p < 0.001 after Holm over 8 "
            "comparisons)",
        ),
        (
            ranking(BEST, entry("full_stops", (1.6, 1.9), 0.15), entry("c4", (2.0, 2.5), 0.65)),
            "full_stops is a control without content",
        ),
        (
            beside(3.0),
            "Magnitude, which looks at no data, did better than full_stops, worse than the rest",
        ),
        (FULL, "Of the dense model's performance, python_docs kept 25 % on docs and 17 % on code"),
        (ranking(partial=(HOLED,), baselines=(MAGNITUDE,)), "there is nothing to rank"),
        (ranking(*NEAR, floors={"docs:text": 0.05}, units=NATS), "0.05 nats/token apart on docs"),
        (
            replace(FULL, better={"docs:text": "lower", "code:text": "higher"}),
            "kept: on docs the dense model's perplexity over",
        ),
        (
            replace(FULL, units=dict.fromkeys(FULL.measured, "bits")),
            "kept: the dense model's number over the compressed model's",
        ),
        (
            replace(FULL, better=dict.fromkeys(FULL.measured, "higher")),
            "the score above chance as a share of the dense model's",
        ),
    ],
)
def test_a_report_says_what_was_found(made: Ranking, said: str):
    assert said in told(Comparison((made,)))


def test_a_report_says_nothing_that_was_not_found():
    nothing = told(Comparison((ranking(BEST, TIED, replace(LAST, tied=True)),)))
    assert "kept smollm2 best" not in nothing
    assert "is a control without content" not in told(Comparison((PLAIN,)))
    assert (
        "chance"
        not in told(Comparison((ranking(RANDOM, entry("c4", (1.5, 1.5), 0.5)),))).partition("Of 2")[
            0
        ]
    )
    assert "none that a runtime" not in told(
        Comparison((ranking(*NEAR, floors={"docs:text": 1e-6}),))
    )
