"""The plain data within a record: what each mapping may hold, and of which type.

What is named here must have its type where it is there. What an older version left out may lack,
and what a newer one adds may be there, and is kept. `msgspec` checks it, and `make generate` writes
a JSON schema of it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Required, TypedDict

from msgspec import Meta

from calibrant.results.outcomes import Count, Size

Hexadecimal = Annotated[str, Meta(pattern="^(?:[0-9a-f]{4})*$")]
Identity = Annotated[str, Meta(pattern=r"^[\w:-]{0,200}$")]
"""An id, or nothing for what a study plans and hasn't made yet."""
Several = str | int | float | list[str | int | float] | None


class SpecForm(TypedDict, total=False):
    """The beginning of a spec's canonical form; its parameters stand beside."""

    spec: str
    revision: int


class Hub(TypedDict, total=False):
    """Where on the hub a part comes from."""

    id: str
    config: str | None
    revision: str


class PartFacts(TypedDict, total=False):
    """What a record knows of one part of its calibration set."""

    data: str
    family: str
    share: Size
    weight: float
    windows: Count
    sequences: Count
    tokens: Count
    rows: Count
    rows_held: Count | None
    overlap: Size
    row_lengths: list[Count]
    origin: str
    note: str
    hub: Hub | None
    licence: str


class DataFacts(TypedDict, total=False):
    """What a record knows of its calibration set."""

    data: str
    draw: Count
    windows: Count
    length: Count
    tokens: Count
    pads: Count
    overlap: Size
    parts: list[PartFacts]
    mix: list[Mapping[str, Any]]
    leaked: Mapping[str, Count]


class MatrixFacts(TypedDict, total=False):
    """What a record knows of a matrix; see `Record`."""

    name: Required[str]
    shape: list[Count]
    zeros: Count
    sparsity: Size
    error: float
    error_from: str
    bits_a_weight: Size
    bytes: Count
    bits: Hexadecimal
    inputs: Hexadecimal
    notes: Mapping[str, Any]
    tokens: Count
    reason: str


class EditFacts(TypedDict, total=False):
    """What a record knows of an edit that is no matrix's."""

    edit: Required[str]
    removed: Count
    notes: Mapping[str, Any]


class Provenance(TypedDict, total=False):
    """How a result came about: of a run seconds by phase, of a measurement all of them."""

    seconds: Mapping[str, Size] | Size
    versions: Mapping[str, str]
    peak_memory_bytes: Count
    model_note: str
    note: str


class Failure(TypedDict, total=False):
    """Why something isn't there, with the labels of the cell that is empty because of it."""

    id: str
    what: str
    error: str
    cell: list[str | int]
    when: str


Contrast = TypedDict(
    "Contrast",
    {
        "compare": Required[str],
        "with": str | None,
        "name": str | None,
        "on": Several,
        "model": Several,
        "method": Several,
        "sparsity": Several,
        "target": Several,
    },
    total=False,
)
"""A contrast that is tested; `with` is no name that a class could have."""


class StudyParts(TypedDict, total=False):
    """What reading results needs of their study."""

    baseline: str | None
    pools: Mapping[str, list[str]] | None
    primary: list[Contrast]


class Example(TypedDict):
    """A window that may be quoted."""

    part: str
    licence: str
    text: str


class Profile(TypedDict):
    """What the windows of a calibration set say."""

    words: Mapping[str, Count]
    windows: Count
    counted: Count
    distinct: Count
    even: Size
    numbers: Size
    word_length: Size
    characters: Mapping[str, Size]
    scripts: Mapping[str, Size]
    examples: list[Example]
    unquoted: Mapping[str, str]
