"""Measuring a model; the list of evaluators is the list of files."""

import calibrant.models  # pyright: ignore[reportUnusedImport]  # noqa: F401  # first: it imports transformers faster than the others would
from calibrant.evaluators._base import Evaluator, SourceEvaluator, Subject
from calibrant.evaluators._dense import forget_predictions, keep_predictions
from calibrant.evaluators._explaining import Explanation, explain
from calibrant.evaluators._measuring import evaluate, evaluators, leaks, refuse, timed

__all__ = [
    "Evaluator",
    "Explanation",
    "SourceEvaluator",
    "Subject",
    "evaluate",
    "evaluators",
    "explain",
    "forget_predictions",
    "keep_predictions",
    "leaks",
    "refuse",
    "timed",
]
