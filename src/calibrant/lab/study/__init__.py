"""A grid of runs and what is measured on each: what the store lacks is computed, so resuming is
asking again.
"""

from calibrant.lab.study.file import read_study
from calibrant.lab.study.plan import Plan, plan
from calibrant.lab.study.request import StudyResult
from calibrant.lab.study.study import Study

__all__ = ["Plan", "Study", "StudyResult", "plan", "read_study"]
