"""What the files of a store hold: a file of another shape is refused where it is read, so that no other module need check.

What is named here must have its type where it is there; what an older version left out may lack, and what a newer one adds may be there.
"""

import re
import types
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Annotated, Any, Final, Literal, Required, TypedDict, Union, get_args, get_origin, get_type_hints, is_typeddict

from calibrant.foreign import brief

_LARGEST: Final = 2**63
"""Whole numbers in a store lie between this and its negative, so that each has a float and a text."""

Count = Annotated[int, 0]
Size = Annotated[float, 0]
"""At least 0."""
Hex = Annotated[str, re.compile(r"(?:[0-9a-f]{4})*+")]
Name = Annotated[str, re.compile(r"[\w:-]{1,200}")]
"""An id: it becomes a file's name."""
NoName = Annotated[str, re.compile(r"[\w:-]{0,200}")]
"""An id, or nothing for what a study plans and hasn't made yet."""
Several = str | int | float | list[str | int | float] | None


class SpecFields(TypedDict, total=False):
    """The beginning of a spec's canonical form."""

    spec: str
    revision: int


class Hub(TypedDict, total=False):
    """Where on the hub a part comes from."""

    id: str
    config: str | None
    revision: str


class PartFields(TypedDict, total=False):
    """The facts in a record of one part of its calibration set."""

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


class Facts(TypedDict, total=False):
    """The facts in a record of its calibration set."""

    data: str
    draw: Count
    windows: Count
    length: Count
    tokens: Count
    pads: Count
    overlap: Size
    parts: list[PartFields]
    mix: list[Mapping[str, Any]]
    leaked: Mapping[str, Count]


class Matrix(TypedDict, total=False):
    """The facts in a record of a matrix."""

    name: Required[str]
    shape: list[Count]
    zeros: Count
    sparsity: Size
    error: Size
    error_from: str
    bits_a_weight: Size
    bytes: Count
    bits: Hex
    inputs: Hex
    notes: Mapping[str, Any]
    tokens: Count
    reason: str


class RunFile(TypedDict, total=False):
    """The fields of a `Run` in `record.json`."""

    model: str
    model_name: str
    data: str
    tokens: str
    method: SpecFields
    target: str
    allocation: SpecFields
    propagate: str
    dtype: str
    seed: Count
    transforms: list[SpecFields]
    starved: str


class EditFacts(TypedDict, total=False):
    """The facts in a record of an edit that is no matrix's."""

    edit: Required[str]
    removed: Count
    notes: Mapping[str, Any]


class RecordFile(TypedDict, total=False):
    """`record.json`, with its weights."""

    id: str
    run: RunFile
    sparsity: Size
    weights: list[Matrix]
    dense: list[Matrix]
    data_facts: Facts
    edits: list[EditFacts]


class ScoreFacts(TypedDict, total=False):
    """What reports show of what was measured."""

    items: str
    tokens: Count
    bytes: Count
    length: Count
    perplexity: float
    bits_per_byte: float
    floor: Size
    floor_tokens: Count
    floor_between: str


class ScoreFields(TypedDict, total=False):
    """The fields of a `Score`."""

    measured: str
    metric: str
    value: float
    stderr: Size | None
    n: Count
    unit: str
    better: Literal["lower", "higher"]
    chance: float | None
    facts: ScoreFacts


class ScoreFile(TypedDict, total=False):
    """`score.json`."""

    id: str
    run: str
    evaluator: SpecFields
    data: str
    score: ScoreFields
    beside: list[ScoreFields]


class Provenance(TypedDict, total=False):
    """`provenance.json`: of a run with seconds by phase, of a measurement with all of them."""

    seconds: Mapping[str, Size] | Size
    versions: Mapping[str, str]
    peak_memory_bytes: Count
    model_note: str
    note: str


class CellFields(TypedDict, total=False):
    """The fields of a `Cell`."""

    model: str
    data: str
    method: str
    target: str
    seed: Count
    run: NoName
    measures: Mapping[str, NoName]
    propagate: str


class SetFields(TypedDict):
    """The fields of a `SetLabel` but for its text."""

    source: str
    name: str
    format: str
    packing: str
    rest: str
    family: str


Primary = TypedDict(
    "Primary",
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


class StudyFields(TypedDict, total=False):
    """What reading needs of a study."""

    baseline: str | None
    pools: Mapping[str, list[str]] | None
    primary: list[Primary]


class IndexFile(TypedDict, total=False):
    """`index.json`."""

    cells: list[CellFields]
    sets: Mapping[str, SetFields]
    study: StudyFields
    revisions: Mapping[str, int]


class FailureFile(TypedDict, total=False):
    """A file in `failures`."""

    id: str
    what: str
    error: str
    cell: list[str | int]
    when: str


class Example(TypedDict):
    """A window that may be quoted."""

    part: str
    licence: str
    text: str


class ProfileFile(TypedDict):
    """`profile.json`."""

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


Test = Callable[[Any, str], None]
"""Raises `ValueError` for a value that isn't of some shape; the text says what the value is."""


def check(value: Any, shape: Any) -> Any:
    """Return `value`. Raises `ValueError` if it isn't of `shape`, a type or one of the dictionaries above, naming what isn't."""
    _test(shape)(value, "it")
    return value


@cache
def _test(shape: Any) -> Test:
    """Made once for each shape: a record holds thousands of values."""
    origin, inside = get_origin(shape), get_args(shape)
    if is_typeddict(shape):
        return _of_fields(shape)
    if origin is Annotated:
        return _of_some(_test(inside[0]), inside[1])
    if origin is list:
        return _of_parts(list, "a list", _test(inside[0]))
    if origin is Mapping:
        return _of_parts(dict, "a mapping", _test(inside[1]))
    if origin in (Union, types.UnionType):
        return _of_either([_test(one) for one in inside])
    if origin is Literal:
        return _of(lambda value: isinstance(value, str) and value in inside, f"one of {', '.join(inside)}")
    return _SIMPLE[shape]


def _of(fits: Callable[[Any], bool], expected: str) -> Test:
    def test(value: Any, where: str) -> None:
        if not fits(value):
            raise ValueError(f"{where} is {brief(value)}, and must be {expected}")

    return test


def _of_fields(shape: Any) -> Test:
    hints = get_type_hints(shape, include_extras=True)
    tests = [(name, _test(get_args(hint)[0] if get_origin(hint) is Required else hint), repr(name)) for name, hint in hints.items()]
    mapping, needed = _of(lambda value: isinstance(value, dict), "a mapping"), shape.__required_keys__

    def test(value: Any, where: str) -> None:
        mapping(value, where)
        if not needed <= value.keys():
            raise ValueError(f"{where} has no {', '.join(sorted(needed - value.keys()))}")
        for name, inner, called in tests:
            if name in value:
                inner(value[name], called)

    return test


def _of_parts(kind: type[Any], expected: str, inner: Test) -> Test:
    outer = _of(lambda value: isinstance(value, kind), expected)
    if inner is _SIMPLE[Any]:
        return outer

    def test(value: Any, where: str) -> None:
        outer(value, where)
        for part in value.values() if kind is dict else value:
            inner(part, where)

    return test


def _of_some(outer: Test, limit: Any) -> Test:
    """Texts that match a pattern, or numbers that aren't smaller than a limit."""
    text = isinstance(limit, re.Pattern)
    inner = (
        _of(lambda value: limit.fullmatch(value) is not None, "a text of that kind")
        if text
        else _of(lambda value: not value < limit, f"at least {limit}")
    )

    def test(value: Any, where: str) -> None:
        outer(value, where)
        inner(value, where)

    return test


def _of_either(tests: Sequence[Test]) -> Test:
    def fits(value: Any) -> bool:
        for test in tests:
            with suppress(ValueError):
                test(value, "")
                return True
        return False

    return _of(fits, "what stands there otherwise")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


_SIMPLE: Final[dict[Any, Test]] = {
    Any: _of(lambda value: True, ""),
    str: _of(lambda value: isinstance(value, str), "a text"),
    int: _of(_is_whole, "a whole number"),
    float: _of(lambda value: isinstance(value, float) or _is_whole(value), "a number"),
    type(None): _of(lambda value: value is None, "nothing"),
}
