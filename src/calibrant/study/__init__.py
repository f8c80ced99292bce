"""A grid of runs and what is measured on each: what the store lacks is computed, so resuming is asking again."""

from calibrant.study.file import read_study
from calibrant.study.grid import Study
from calibrant.study.plan import Plan, plan
from calibrant.study.question import Finished

__all__ = ["Finished", "Plan", "Study", "plan", "read_study"]
