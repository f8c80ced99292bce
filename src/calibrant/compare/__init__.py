"""Which differences are real: paired comparisons of what was measured, with their uncertainty. No torch here."""

from calibrant.compare.agreement import Agreement
from calibrant.compare.comparing import Comparison, compare, rankings
from calibrant.compare.crossed import Draws, contrast
from calibrant.compare.draws import draws
from calibrant.compare.estimate import LEVEL, Estimate, t_quantile
from calibrant.compare.families import labelled
from calibrant.compare.layers import Layers, layers
from calibrant.compare.likeness import MEASURES, Likeness, likeness
from calibrant.compare.overlaps import Overlaps, overlaps
from calibrant.compare.portraits import Draw, Portrait, portraits, usual
from calibrant.compare.primary import Contrasted
from calibrant.compare.questions import Evidence, Question
from calibrant.compare.ranking import MEAN, Entry, Ranking, pairs
from calibrant.compare.reading import Reading, read
from calibrant.compare.regret import Regret, regret
from calibrant.compare.tidying import tidy

__all__ = [
    "LEVEL",
    "MEAN",
    "MEASURES",
    "Agreement",
    "Comparison",
    "Contrasted",
    "Draw",
    "Draws",
    "Entry",
    "Estimate",
    "Evidence",
    "Layers",
    "Likeness",
    "Overlaps",
    "Portrait",
    "Question",
    "Ranking",
    "Reading",
    "Regret",
    "compare",
    "contrast",
    "draws",
    "labelled",
    "layers",
    "likeness",
    "overlaps",
    "pairs",
    "portraits",
    "rankings",
    "read",
    "regret",
    "t_quantile",
    "tidy",
    "usual",
]
