"""A grid of runs and what is measured on each: what the store lacks is computed, so resuming is asking again."""

from calibrant.study.file import read_study
from calibrant.study.plan import Plan, plan
from calibrant.study.request import StudyResult
from calibrant.study.study import Study

__all__ = ["Plan", "Study", "StudyResult", "plan", "read_study"]
