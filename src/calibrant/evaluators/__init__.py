"""Measuring a model; the list of evaluators is the list of files."""

# First: it imports transformers faster than the others would.
import calibrant.models  # pyright: ignore[reportUnusedImport]  # noqa: F401
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
