"""Makes calibration data: rows come from sources, become text by formats, and windows of tokens by
packings.
"""

from calibrant.data._base import (
    PARTS,
    Format,
    KnownExamples,
    Part,
    PartRows,
    PerDraw,
    Row,
    Source,
    SourceRows,
    StoredSource,
    divide,
    lettered,
    train_and_test,
)
from calibrant.data._batching import by_length, counted_sequences, divided, micro_batches, padded
from calibrant.data._encoding import start_tokens
from calibrant.data._marks import ROLES, Role
from calibrant.data._messages import Conversation, FunctionCall, Message
from calibrant.data._templates import templated
from calibrant.data._written import Stretch, Written, roles_of_tokens
from calibrant.data.calibration import CalibrationSet, TokenBatch
from calibrant.data.expression import held_out, parse_source, selectors
from calibrant.data.formats import formats
from calibrant.data.formats.chat import Chat
from calibrant.data.given import as_source
from calibrant.data.hub import HubDataset, mirror
from calibrant.data.objects import Data, as_set
from calibrant.data.packings import packings
from calibrant.data.packings._base import Packing
from calibrant.data.packings.crop import Crop
from calibrant.data.packings.many import Many
from calibrant.data.packings.one import One
from calibrant.data.packings.whole import Whole
from calibrant.data.sources import sources

__all__ = [
    "PARTS",
    "ROLES",
    "CalibrationSet",
    "Chat",
    "Conversation",
    "Crop",
    "Data",
    "Format",
    "FunctionCall",
    "HubDataset",
    "KnownExamples",
    "Many",
    "Message",
    "One",
    "Packing",
    "Part",
    "PartRows",
    "PerDraw",
    "Role",
    "Row",
    "Source",
    "SourceRows",
    "StoredSource",
    "Stretch",
    "TokenBatch",
    "Whole",
    "Written",
    "as_set",
    "as_source",
    "by_length",
    "counted_sequences",
    "divide",
    "divided",
    "formats",
    "held_out",
    "lettered",
    "micro_batches",
    "mirror",
    "packings",
    "padded",
    "parse_source",
    "roles_of_tokens",
    "selectors",
    "sources",
    "start_tokens",
    "templated",
    "train_and_test",
]
