"""Searching for the best of many choices that all cost the same: what may be chosen, what was
tried, and the ways to go on from there.
"""

from calibrant.methods._searching.space import Choice, Space
from calibrant.methods._searching.strategies import climb, eliminate, evolve
from calibrant.methods._searching.trials import Trials

__all__ = ["Choice", "Space", "Trials", "climb", "eliminate", "evolve"]
