"""Mixtures of calibration sources, weighed by what the untouched model's matrices saw of each:
without any further forward.
"""

from calibrant.lab.mixtures.aims import aim_of, stand_in_of, statistic_of
from calibrant.lab.mixtures.algebra import (
    FITTING,
    NO_METER,
    SCORING,
    Effort,
    Errors,
    Sample,
    SharedInput,
    Shares,
    blended,
    only,
    shared_inputs,
    uniform,
    without,
)
from calibrant.lab.mixtures.enough import CurvePoint, TokenCurve, TokenMeter, read_curve
from calibrant.lab.mixtures.imatrix import imatrix_of
from calibrant.lab.mixtures.mixing import mix
from calibrant.lab.mixtures.mixture import ErrorRow, Influence, Mixture, expression
from calibrant.lab.mixtures.search import Objective, Search, parse_objective, rounded
from calibrant.lab.mixtures.statistics import MixtureStatistics, SetStatistics, gather_statistics

__all__ = [
    "FITTING",
    "NO_METER",
    "SCORING",
    "CurvePoint",
    "Effort",
    "ErrorRow",
    "Errors",
    "Influence",
    "Mixture",
    "MixtureStatistics",
    "Objective",
    "Sample",
    "Search",
    "SetStatistics",
    "SharedInput",
    "Shares",
    "TokenCurve",
    "TokenMeter",
    "aim_of",
    "blended",
    "expression",
    "gather_statistics",
    "imatrix_of",
    "mix",
    "only",
    "parse_objective",
    "read_curve",
    "rounded",
    "shared_inputs",
    "stand_in_of",
    "statistic_of",
    "uniform",
    "without",
]
