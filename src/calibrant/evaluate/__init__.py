"""Measuring a model; the list of evaluators is the list of files."""

from calibrant.evaluate._base import Evaluator
from calibrant.evaluate._measuring import evaluate, evaluators, timed

__all__ = ["Evaluator", "evaluate", "evaluators", "timed"]
