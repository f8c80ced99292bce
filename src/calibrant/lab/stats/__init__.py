"""Which differences are real: paired comparisons of what was measured, with their uncertainty. No
torch here.

`compare(store)` does everything at once; `read`, `tidy`, `draws` and `contrast` are for comparisons
of one's own.
"""

from calibrant.lab.stats.comparison import (
    Comparison,
    RankAgreement,
    Regret,
    compare,
    comparisons_in,
    rankings,
    regret,
    significantly_different,
)
from calibrant.lab.stats.contrasts import Contrast
from calibrant.lab.stats.crossed import Draws, contrast
from calibrant.lab.stats.estimate import LEVEL, Estimate, detectable, t_quantile
from calibrant.lab.stats.kept import (
    KeptExperts,
    KeptWords,
    kept_experts,
    kept_languages_in,
    kept_words,
    kept_words_in,
)
from calibrant.lab.stats.labels import (
    bits_of,
    describe_target,
    is_rounded,
    join_names,
    label_measured,
    label_set,
    sparsity_of,
    target_noun,
)
from calibrant.lab.stats.questions import Evidence, PaperQuestion
from calibrant.lab.stats.ranking import MEAN, Ranking, RankingEntry, pairs
from calibrant.lab.stats.results import Results, UncountedRun, draws, narrowed, read, tidy
from calibrant.lab.stats.sensitivity import Gap, Sensitivity, variance_ratio
from calibrant.lab.stats.sets import (
    MEASURES,
    Draw,
    Layers,
    MaskOverlap,
    SetSummary,
    Similarity,
    layers,
    medians,
    overlaps,
    similarity,
    summaries,
)

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
    "Gap",
    "KeptExperts",
    "KeptWords",
    "Layers",
    "MaskOverlap",
    "PaperQuestion",
    "RankAgreement",
    "Ranking",
    "RankingEntry",
    "Regret",
    "Results",
    "Sensitivity",
    "SetSummary",
    "Similarity",
    "UncountedRun",
    "bits_of",
    "compare",
    "comparisons_in",
    "contrast",
    "describe_target",
    "detectable",
    "draws",
    "is_rounded",
    "join_names",
    "kept_experts",
    "kept_languages_in",
    "kept_words",
    "kept_words_in",
    "label_measured",
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
    "sparsity_of",
    "summaries",
    "t_quantile",
    "target_noun",
    "tidy",
    "variance_ratio",
]
