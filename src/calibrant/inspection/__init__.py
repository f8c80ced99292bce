"""Looking at data: what a calibration set holds, what to fix in it, which sources work here, and whether a set leaks what is measured."""

from calibrant.inspection.facts import Inspection, inspect_tokens
from calibrant.inspection.inspecting import inspect
from calibrant.inspection.leaks import Leak, LeakCount, RowFingerprints, find_leaks, ngrams, serious
from calibrant.inspection.overlap import near_duplicates
from calibrant.inspection.profiling import profile
from calibrant.inspection.surveying import SourceCheck, survey

__all__ = [
    "Inspection",
    "Leak",
    "LeakCount",
    "RowFingerprints",
    "SourceCheck",
    "find_leaks",
    "inspect",
    "inspect_tokens",
    "near_duplicates",
    "ngrams",
    "profile",
    "serious",
    "survey",
]
