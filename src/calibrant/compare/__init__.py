"""Which differences are real: paired comparisons of what was measured, with their uncertainty. No torch here."""

from calibrant.compare.agreement import RankAgreement
from calibrant.compare.comparing import Comparison, compare, rankings
from calibrant.compare.crossed import Draws, contrast
from calibrant.compare.draws import draws
from calibrant.compare.estimate import LEVEL, Estimate, t_quantile
from calibrant.compare.families import label_set
from calibrant.compare.layers import Layers, layers
from calibrant.compare.overlaps import MaskOverlap, overlaps
from calibrant.compare.power import detectable
from calibrant.compare.primary import Contrast
from calibrant.compare.questions import Evidence, PaperQuestion
from calibrant.compare.ranking import MEAN, Ranking, RankingEntry, bits_of, describe_target, is_grid, join_names, pairs, target_noun
from calibrant.compare.regret import Regret, regret, significantly_different
from calibrant.compare.results import Results, narrowed, read
from calibrant.compare.similarity import MEASURES, Similarity, similarity
from calibrant.compare.summaries import Draw, SetSummary, medians, summaries
from calibrant.compare.tidying import tidy

__all__ = [
    "LEVEL",
    "MEAN",
    "MEASURES",
    "Comparison",
    "Contrast",
    "Draw",
    "Draws",
    "Estimate",
    "Evidence",
    "Layers",
    "MaskOverlap",
    "PaperQuestion",
    "RankAgreement",
    "Ranking",
    "RankingEntry",
    "Regret",
    "Results",
    "SetSummary",
    "Similarity",
    "bits_of",
    "compare",
    "contrast",
    "describe_target",
    "detectable",
    "draws",
    "is_grid",
    "join_names",
    "label_set",
    "layers",
    "medians",
    "narrowed",
    "overlaps",
    "pairs",
    "rankings",
    "read",
    "regret",
    "significantly_different",
    "similarity",
    "summaries",
    "t_quantile",
    "target_noun",
    "tidy",
]
