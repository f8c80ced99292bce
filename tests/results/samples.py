"""Runs and measurements to keep and to spoil, with every value that is easily lost."""

import math
from dataclasses import replace

from calibrant.results import Measurement, Outcome, Record, Run, Score

RUN = Run(
    model="sha256:m",
    model_name="tiny",
    data="wikitext",
    tokens="sha256:t",
    method={"spec": "wanda", "revision": 1},
    target="0.5",
    allocation={"spec": "uniform", "revision": 1},
    propagate="dense",
    dtype="float32",
    seed=3,
)
MATRIX = {
    "name": "a",
    "shape": [2, 4],
    "zeros": 4,
    "sparsity": 0.5,
    "error": 0.1 + 0.2,
    "error_from": "gram",
    "bits": "0f" * 32,
    "inputs": "3c00" * 32,
    "notes": {"order": [1, None, "ü"]},
}
ODD_MATRIX = {
    "name": "b",
    "shape": [1, 8],
    "sparsity": 0.0,
    "error": 1,
    "bits": "0f0f",
    "later": True,
}
"""Facts of other types and lengths than the columns of a published table have."""
UNEVEN_MATRIX = {"name": "c", "shape": [2, 2], "zeros": 1, "sparsity": 0.3}
"""Its sparsity isn't its share of zeros, as `MATRIX`'s is."""
BARE_MATRIX = {"name": "d", "shape": [2, 2], "zeros": 1}
RECORD = Record(
    RUN,
    0.5,
    (MATRIX, ODD_MATRIX, UNEVEN_MATRIX, BARE_MATRIX),
    ({"name": "head", "reason": "tied"},),
    {"tokens": 9},
    {"seconds": 1.5},
)
OTHER_RUN = replace(RUN, target="0.7", transforms=({"spec": "rotate", "revision": 1},))
OTHER = Record(OTHER_RUN, 0.7, (), edits=({"edit": "remove", "removed": 2},))

LOSS = {"spec": "loss", "revision": 1, "source": "wikitext"}
SCORE = Score(
    measured="wikitext:text",
    metric="loss",
    value=(40.1 + (0.1 + 0.2)) / 30,
    stderr=0.1,
    n=2,
    unit="nats/token",
    better="lower",
    facts={"tokens": 30, "perplexity": math.inf},
)
ITEMS = Outcome("sha256:b", 40.1, 10.0), Outcome("sha256:a", 0.1 + 0.2, 20.0)
MEASURED = Measurement(SCORE, ITEMS, {"seconds": 2.0})

QUIZ = {"spec": "task", "name": "quiz", "revision": 1}
QUIZ_SCORE = Score("quiz", "loss", 2.0, None, 2, "nats/token", "lower")
QUIZ_ITEMS = (
    Outcome("first", 1.5, 1.0, {"nats": 1.5, "choices": [0.5, math.inf], "hit": True, "note": "ü"}),
    Outcome("second", 2.5, 1.0, {"nats": 2.5, "choices": [-0.0, 1 / 3], "hit": False, "note": ""}),
)
QUIZZED = Measurement(QUIZ_SCORE, QUIZ_ITEMS, {}, (replace(QUIZ_SCORE, metric="acc"),))

ESSAY = {"spec": "task", "name": "essay", "revision": 1}
ESSAY_ITEMS = (
    Outcome("first", math.nan, 1.0, {"hit": "half", "nats": 2, "choices": []}),
    Outcome("second", -0.0, 1.0, {"hit": None, "nats": 3, "choices": [-math.inf, math.nan]}),
)
WRITTEN = Measurement(replace(QUIZ_SCORE, value=math.nan), ESSAY_ITEMS)
"""A measurement whose facts have the names of another's and other types."""

CHOICE = {"spec": "task", "name": "choice", "revision": 1}
CHOICE_ITEMS = (
    Outcome("first", -0.0, 1.0, {"choices": [-0.0, math.nan, 0.5, 0.5], "gold": 0}),
    Outcome("second", 0.5, 1.0, {"choices": [0.5, 0.5, -0.0, math.nan], "gold": 1}),
    Outcome("third", 0.0, 1.0, {"choices": [0.0, 0.0, math.nan], "gold": 1}),
)
CHOSEN = Measurement(replace(QUIZ_SCORE, value=0.5 / 3, n=3), CHOICE_ITEMS)
"""Each value is that of the right choice, and most numbers stand there several times."""

ALONE = Measurement(replace(SCORE, stderr=None, chance=0.25))
"""A score without items."""

MEASUREMENTS = (
    (LOSS, MEASURED),
    (QUIZ, QUIZZED),
    (ESSAY, WRITTEN),
    (CHOICE, CHOSEN),
    ({**LOSS, "tokens": 5}, ALONE),
)
MASK = b"\x00\xff"
EDITS = b"edits"
PROFILE = b'{"a": 1}'
