"""Looks at data: what a calibration set holds, what to fix in it, which sources work here, and
whether a set leaks what is measured.
"""

from calibrant.data.inspect.facts import Inspection, inspect_tokens
from calibrant.data.inspect.inspecting import inspect
from calibrant.data.inspect.leaks import (
    Leak,
    LeakCount,
    RowFingerprints,
    find_leaks,
    ngrams,
    serious,
)
from calibrant.data.inspect.overlap import near_duplicates
from calibrant.data.inspect.profiling import profile
from calibrant.data.inspect.surveying import SourceCheck, survey

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
