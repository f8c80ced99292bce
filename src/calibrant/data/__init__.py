"""Calibration data: where rows come from, how they become text, and how text becomes windows of tokens."""

from calibrant.data._base import PARTS, Format, Found, Holding, Hub, Part, PerDraw, Row, Source, Stored, divide, lettered, train_and_test
from calibrant.data._batching import micro_batches
from calibrant.data._encoding import start_tokens
from calibrant.data._mirror import mirror
from calibrant.data._templates import templated
from calibrant.data.calibration import CalibrationSet, TokenBatch
from calibrant.data.expression import held_out, parse_source, selectors
from calibrant.data.formats import formats
from calibrant.data.inspection import Inspection, inspect
from calibrant.data.packing import PACKINGS, Crop, Many, One, Packing
from calibrant.data.profiling import profile
from calibrant.data.sources import sources

__all__ = [
    "PACKINGS",
    "PARTS",
    "CalibrationSet",
    "Crop",
    "Format",
    "Found",
    "Holding",
    "Hub",
    "Inspection",
    "Many",
    "One",
    "Packing",
    "Part",
    "PerDraw",
    "Row",
    "Source",
    "Stored",
    "TokenBatch",
    "divide",
    "formats",
    "held_out",
    "inspect",
    "lettered",
    "micro_batches",
    "mirror",
    "parse_source",
    "profile",
    "selectors",
    "sources",
    "start_tokens",
    "templated",
    "train_and_test",
]
