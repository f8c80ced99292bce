"""Which differences are real: paired comparisons of what was measured, with their uncertainty. No torch here."""

from calibrant.compare.agreement import Agreement
from calibrant.compare.comparing import Comparison, compare
from calibrant.compare.crossed import Draws, contrast
from calibrant.compare.estimate import LEVEL, Estimate, t_quantile
from calibrant.compare.primary import Contrasted
from calibrant.compare.ranking import CONTROLS, Entry, Ranking, pairs, rankings, source_name, tidy

__all__ = [
    "CONTROLS",
    "LEVEL",
    "Agreement",
    "Comparison",
    "Contrasted",
    "Draws",
    "Entry",
    "Estimate",
    "Ranking",
    "compare",
    "contrast",
    "pairs",
    "rankings",
    "source_name",
    "t_quantile",
    "tidy",
]
