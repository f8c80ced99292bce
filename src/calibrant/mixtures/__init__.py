"""Mixtures of calibration sources, weighed by what the untouched model's matrices saw of each: without any further forward."""

from calibrant.mixtures.algebra import Errors, Group, Shares, blended, groups_of, only, uniform, without
from calibrant.mixtures.gathering import Gathered, Watched, gathered
from calibrant.mixtures.metering import Meter, Metered, Point, metered
from calibrant.mixtures.mixing import mix
from calibrant.mixtures.mixture import Influence, Mixture, Row, expression
from calibrant.mixtures.objective import Objective, parse_objective
from calibrant.mixtures.sampling import FITTING, SCORING, Effort, Sample
from calibrant.mixtures.searching import Search, rounded

__all__ = [
    "FITTING",
    "SCORING",
    "Effort",
    "Errors",
    "Gathered",
    "Group",
    "Influence",
    "Meter",
    "Metered",
    "Mixture",
    "Objective",
    "Point",
    "Row",
    "Sample",
    "Search",
    "Shares",
    "Watched",
    "blended",
    "expression",
    "gathered",
    "groups_of",
    "metered",
    "mix",
    "only",
    "parse_objective",
    "rounded",
    "uniform",
    "without",
]
