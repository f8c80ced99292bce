"""Which differences are real: paired comparisons of what was measured, with their uncertainty. No torch here."""

from calibrant.compare.agreement import Agreement
from calibrant.compare.comparing import Comparison, compare, rankings
from calibrant.compare.crossed import Draws, contrast
from calibrant.compare.estimate import LEVEL, Estimate, t_quantile
from calibrant.compare.primary import Contrasted
from calibrant.compare.ranking import CONTROLS, MEAN, Entry, Ranking, pairs, source_name
from calibrant.compare.reading import Reading, read
from calibrant.compare.tidying import tidy

__all__ = [
    "CONTROLS",
    "LEVEL",
    "MEAN",
    "Agreement",
    "Comparison",
    "Contrasted",
    "Draws",
    "Entry",
    "Estimate",
    "Ranking",
    "Reading",
    "compare",
    "contrast",
    "pairs",
    "rankings",
    "read",
    "source_name",
    "t_quantile",
    "tidy",
]
