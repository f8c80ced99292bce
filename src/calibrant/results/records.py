"""The values in a store: the run that was requested, its record, and the cells of a study's grid;
and which mappings may stand in them.

What is named in a mapping must have its type where it is there. What an older version left out may
lack, and what a newer one adds may be there, and is kept. `msgspec` checks it, and `make generate`
writes a JSON schema of it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Final, Required, TypedDict

import msgspec
from msgspec import Meta

from calibrant.numerics import counted, megabytes
from calibrant.results.outcomes import Count, Score, ScoreFacts, Size
from calibrant.spec import identity
from calibrant.spec.families import known_family
from calibrant.spec.grammar import SetLabel, read_target
from calibrant.system.durable import from_json
from calibrant.system.markdown import without_folders
from calibrant.system.notebook import card

Hexadecimal = Annotated[str, Meta(pattern="^(?:[0-9a-f]{4})*$")]
Identity = Annotated[str, Meta(pattern=r"^[\w:-]{0,200}$")]
"""An id, or nothing for what a study plans and hasn't made yet."""
Several = str | int | float | list[str | int | float] | None
DENSE: Final = "dense"
"""The label of the model that nothing was removed from."""
UNTOUCHED: Final = "none"
"""The method of the model as it came."""
MEASURED: Final = "measured"
"""The method of a finished model that nothing but its label is known of."""
SHORT: Final = 0.05
"""What share of what was to go, or to stay, may be missing before a record says so."""


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


def failure_for_others(failure: Mapping[str, Any]) -> dict[str, Any]:
    """Return a failure without what tells of the machine: its traceback, and folders in its
    error.
    """
    shown = {name: value for name, value in failure.items() if name != "traceback"}
    if "error" in shown:
        shown["error"] = without_folders(shown["error"])
    return shown


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


@dataclass(frozen=True)
class Run:
    """The request for a run, resolved; plain JSON data only.

    `data` and `tokens` are empty where nothing in it looks at data, `propagate` where the method
    doesn't. `model_name`, `data` and `seed` are labels: the model's digest and the tokens'
    fingerprint already cover what they name. `starved` says what experts with few tokens are
    calibrated on, empty where it is those. `revised` is how often what the target stands for had
    changed by then (`Target.revised`).
    """

    model: str
    model_name: str
    data: str
    tokens: str
    method: Mapping[str, Any]
    target: str
    allocation: Mapping[str, Any]
    propagate: str
    dtype: str
    seed: Count = 0
    transforms: tuple[Mapping[str, Any], ...] = ()
    starved: str = ""
    revised: Count = 0

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Run":
        """Return the run whose plain data this is. Raises `ValueError` for anything else."""
        run = msgspec.convert(fields, cls)
        run.check()
        return run

    def check(self) -> None:
        """Raise `ValueError` for a run whose parts aren't canonical forms of specs."""
        msgspec.convert([self.method, self.allocation, *self.transforms], list[SpecForm])

    @property
    def id(self) -> str:
        """The identity of what decides the outcome: the same on every machine."""
        return identity(_without_empty({name: getattr(self, name) for name in _DECIDING}))

    @property
    def revisions(self) -> dict[str, int]:
        """The revision of everything that it names, as the function `revisions` returns them; the
        target's is 1 before it was revised.
        """
        found = revisions("method", self.method)
        found |= revisions("allocation", self.allocation)
        found |= revisions("transform", self.transforms)
        found[f"target {self.target}"] = 1 + self.revised
        return found


@dataclass(frozen=True)
class Record:
    """What came out of a run.

    `sparsity` is achieved over the compressed matrices. `weights` has a name, shape, sparsity and
    notes each, and may have the relative `error` of the matrix's output with `error_from` ("gram"
    or "norms"); where it is stored as dense numbers `bits`, 256 bits of the mask chosen by hash, as
    64 hexadecimal digits, else `bits_a_weight` and `bytes`, scales and all; `inputs`, the sizes of
    32 input features chosen so, as 128; and of an expert's matrix `tokens`, how many reached it.
    `dense` has the matrices left alone, with the reason; `edits` what else was done: transforms,
    and what removed whole parts, which then count in `sparsity`. `provenance` (seconds per phase,
    peak memory in bytes, versions, device, threads, a note such as "dequantized from Q4_1") is no
    part of the result and isn't compared.
    """

    run: Run
    sparsity: Size
    weights: tuple[Mapping[str, Any], ...] = ()
    dense: tuple[Mapping[str, Any], ...] = ()
    data_facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any], compare=False)
    edits: tuple[Mapping[str, Any], ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the record as plain data, without the fields it leaves empty: `read` makes it
        again.
        """
        fields = asdict(self)
        if not self.edits:
            del fields["edits"]
        return {**fields, "run": _without_empty(fields["run"])}

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "Record":
        """Return the record whose plain data this is. Raises `ValueError` for anything else."""
        record = msgspec.convert(fields, cls)
        record.run.check()
        msgspec.convert([*record.weights, *record.dense], list[MatrixFacts])
        msgspec.convert(record.edits, tuple[EditFacts, ...])
        msgspec.convert(record.data_facts, DataFacts)
        read_provenance(record.provenance)
        return record

    @property
    def shortfall(self) -> str:
        """Say if clearly less went than the target says; empty where it was reached."""
        return short_of_target(self.run.target, self.sparsity, self.weights, self.edits)

    def _repr_html_(self) -> str:
        run = self.run
        facts = {
            "model": run.model_name,
            "calibrated on": run.data,
            "draw": run.seed if run.data else "",
            "method": run.method.get("spec"),
            "target": run.target,
            "propagation": run.propagate,
            "numbers": run.dtype,
        }
        stored = stored_bits(self.weights)
        if stored is None and self.weights:
            facts["achieved sparsity"] = f"{self.sparsity:.4f}"
        if stored is not None:
            size = sum(weight["bytes"] for weight in self.weights)
            facts["bits a weight"] = f"{stored:.3f}, {megabytes(size)} in all"
        facts["removed"] = parts_gone(self.edits)
        facts["condensed"] = condensed_in_words(self.edits)
        facts["target not reached"] = self.shortfall
        facts["matrices compressed"] = len(self.weights)
        facts["inputs"] = inputs_in_words(self.edits)
        facts["KV cache"] = cache_in_words(self.edits)
        facts["left dense"] = left_dense(self.dense)
        facts["note"] = self.provenance.get("model_note")
        return card(f"Run {run.id.rpartition(':')[2][:12]}", facts)


@dataclass(frozen=True)
class Cell:
    """One cell of a study's grid, and where its results are.

    The labels are the study's: two cells may share a run (a source that gives the same tokens for
    every seed, a method that looks at no data). `run` is empty where the run's identity isn't known
    because something failed; `measures` maps the evaluator's text to its id. `propagate` is empty
    where no data is looked at, and in older stores.
    """

    model: str
    data: str
    method: str
    target: str
    seed: Count
    run: Identity
    measures: Mapping[str, Identity] = field(default_factory=dict[str, str])
    propagate: str = ""

    @property
    def labels(self) -> tuple[str, str, str, str, int, str]:
        """What distinguishes the cells of a grid: everything but the results."""
        return self.model, self.data, self.method, self.target, self.seed, self.propagate


@dataclass(frozen=True)
class ScoreEntry:
    """What is stored of a measurement beside its items: what was measured on which run, and what
    came of it. `evaluator` is the canonical form, `data` the digest of what it measured on, if it
    has one."""

    id: str
    run: str
    evaluator: Mapping[str, Any]
    score: Score
    data: str = ""
    beside: tuple[Score, ...] = ()

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "ScoreEntry":
        """Return the entry whose plain data this is. Raises `ValueError` for anything else."""
        entry = msgspec.convert(fields, cls)
        msgspec.convert(entry.evaluator, SpecForm)
        for score in (entry.score, *entry.beside):
            msgspec.convert(score.facts, ScoreFacts)
        return entry

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, without scores beside where there are none."""
        fields = asdict(self)
        if not self.beside:
            del fields["beside"]
        return fields


@dataclass(frozen=True)
class StudyIndex:
    """The grid of a store's last study: its cells, its calibration `sets` by their texts, what else
    reading needs of the `study`, and the `revisions` of everything that it names.

    `measured` are cells of no study: the models that `evaluate` put into the store.
    """

    cells: tuple[Cell, ...] = ()
    sets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    study: Mapping[str, Any] = field(default_factory=dict[str, Any])
    revisions: Mapping[str, int] = field(default_factory=dict[str, int])
    measured: tuple[Cell, ...] = ()

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "StudyIndex":
        """Return the index whose plain data this is. Raises `ValueError` for anything else."""
        index = msgspec.convert(fields, cls)
        msgspec.convert(index.study, StudyParts)
        index.labels()
        return index

    def plain(self) -> dict[str, Any]:
        """Return it as plain data, without the parts that are empty."""
        fields = asdict(self)
        for name in ("sets", "study", "revisions", "measured"):
            if not fields[name]:
                del fields[name]
        return fields

    def labels(self) -> dict[str, SetLabel]:
        """Return what each calibration set is called, by its text."""
        labels = dict[str, SetLabel]()
        for text, parts in self.sets.items():
            family = known_family(str(parts.get("family")))
            labels[text] = msgspec.convert({**parts, "text": text, "family": family}, SetLabel)
        return labels


_DECIDING: Final = (
    *("model", "tokens", "method", "target", "allocation"),
    *("propagate", "dtype", "transforms", "starved", "revised"),
)
"""The fields of a run that decide its outcome."""


def _without_empty(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's fields, without `transforms`, `starved` and `revised` where these are empty.

    They came after the first runs were stored, whose ids and records stay as they are.
    """
    fields = dict(run)
    for later in ("transforms", "starved", "revised"):
        if not fields[later]:
            del fields[later]
    return fields


def differences(first: Run, second: Run) -> tuple[str, ...]:
    """Return the names of what decides the outcome of a run and differs in these two."""
    names: list[str] = []
    for name in _DECIDING:
        if getattr(first, name) != getattr(second, name):
            names.append(name)
    return tuple(names)


def read_provenance(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what is known beside a result, as it is. Raises `ValueError` for anything else."""
    msgspec.convert(fields, Provenance)
    return fields


def read_profile(content: bytes) -> Mapping[str, Any]:
    """Return what is known of a calibration set. Raises `ValueError` for anything else."""
    return msgspec.convert(from_json(content.decode()), Profile)


def stored_bits(weights: Sequence[Mapping[str, Any]]) -> float | None:
    """Return how many bits a weight takes on average in these matrices of a record, scales and all.

    None where there are none, or where one is stored as dense numbers or without its shape.
    """
    bits: list[float] = []
    count = 0
    for weight in weights:
        if "bits_a_weight" not in weight or "shape" not in weight:
            return None
        rows, columns = weight["shape"]
        bits.append(rows * columns * weight["bits_a_weight"])
        count += rows * columns
    # `sum` compensates for rounding, += wouldn't.
    return sum(bits) / count if count else None


def inputs_in_words(edits: Sequence[Mapping[str, Any]]) -> str:
    """Return in words of how many matrices of a record inputs are rounded, and how, and of how many
    compressed ones they aren't; empty where all stay as they are.
    """
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for edit in edits:
        if edit["edit"] == "quantize_inputs":
            counts[_rounding_in_words(edit)] += 1
        if edit["edit"] == "inputs_left":
            reasons.update(edit["matrices"].values())
    parts = [f"of {count} matrices {words}" for words, count in counts.items()]
    parts += [f"of {count} left as they are ({reason})" for reason, count in reasons.items()]
    return "; ".join(parts)


def cache_in_words(edits: Sequence[Mapping[str, Any]]) -> str:
    """Return in words how many attentions of a record get a rounded KV cache, and how; empty where
    none does.

    >>> grid = {"element": "int8", "per": "head"}
    >>> cache_in_words([{"edit": "quantize_cache", "name": "layers.0.attention", "grid": grid}])
    'int8, scales for each head, in 1 attention'
    """
    counts: Counter[str] = Counter()
    for edit in edits:
        if edit["edit"] == "quantize_cache":
            grid = edit["grid"]
            shared_by = "each head" if grid["per"] == "head" else "all heads together"
            counts[f"{grid['element']}, scales for {shared_by}"] += 1
    parts: list[str] = []
    for words, count in counts.items():
        noun = "attention" if count == 1 else "attentions"
        parts.append(f"{words}, in {count} {noun}")
    return "; ".join(parts)


def _rounding_in_words(edit: Mapping[str, Any]) -> str:
    element = edit["element"]
    if edit["strategy"] == "tensor":
        return f"{element} with a scale for each matrix, found by {edit['range']}"
    if edit["strategy"] == "token":
        return f"{element} with a scale for each token"
    words = f"{element} with a scale for {edit['group']} inputs of a token"
    if "range" in edit:
        words += f", times one for each matrix, found by {edit['range']}"
    return words


def parts_gone(edits: Sequence[Mapping[str, Any]]) -> str:
    """Return in words how many blocks of a record's model went, or experts of each layer; empty
    where none did.

    >>> parts_gone([{"edit": "drop_blocks", "blocks": [1, 2], "of": 30}])
    '2 of 30 blocks'
    """
    parts = _count_of_parts(edits)
    if parts is None:
        return ""
    gone, whole, noun = parts
    if gone == 0:
        # Of blocks whose halves go apart perhaps none went as a whole.
        return ""
    return f"{gone} of {whole} {noun}"


def condensed_in_words(edits: Sequence[Mapping[str, Any]]) -> str:
    """Return in words how many layers of experts of a record's model are plain networks now, and of
    how many routed experts each of them is made; empty where none is.

    >>> condensed_in_words([{"edit": "condense", "layers": {"2": {"experts": [4, 7]}}, "of": 8}])
    '1 layer of experts, to 2 of 8'
    """
    kept: list[int] = []
    whole = 0
    for edit in edits:
        if edit["edit"] == "condense":
            whole = edit["of"]
            for layer in edit["layers"].values():
                kept.append(len(layer["experts"]))
    if not kept:
        return ""
    layers = counted(len(kept), "layer")
    fewest = min(kept)
    most = max(kept)
    if most == 0:
        return f"{layers} of experts, to no routed expert of {whole}"
    # A layer of which few experts got tokens keeps fewer.
    numbers = str(most) if fewest == most else f"{fewest} to {most}"
    return f"{layers} of experts, to {numbers} of {whole}"


def short_of_target(
    target: str,
    sparsity: float,
    matrices: Sequence[Mapping[str, Any]],
    edits: Sequence[Mapping[str, Any]],
) -> str:
    """Return a sentence if clearly less went than a record's target says, since counts are rounded
    down; empty where it didn't.

    Clearly is by more than a twentieth of what was to go, or of what was to stay.
    """
    label = read_target(target)
    if label.share is None:
        return ""
    parts = _count_of_parts(edits)
    if label.parts is None and matrices and parts is None:
        reached = sparsity
        went = f"{sparsity:.4%} of the weights"
        why = "only whole weights go, and their number is rounded down, mostly in each row"
    elif label.parts is not None and not matrices and parts is not None:
        gone, whole, noun = parts
        reached = gone / whole
        went = f"{gone} of {whole} {noun}"
        why = f"only whole {label.parts} go, and their number is rounded down"
    else:
        # What factors or condensed layers come to stands in their notes.
        return ""
    missing = label.share - reached
    if missing <= SHORT * min(label.share, 1 - label.share):
        return ""
    return f"{went} went, which is less than {target}: {why}"


def _count_of_parts(edits: Sequence[Mapping[str, Any]]) -> tuple[int, int, str] | None:
    """Return how many blocks, or experts of each layer, went of how many, and their noun."""
    gone = 0
    whole = 0
    noun = ""
    for edit in edits:
        if edit["edit"] == "drop_blocks":
            gone += len(edit.get("blocks", ()))
            noun = "blocks"
        elif edit["edit"] == "drop_experts":
            # Equally many of each layer.
            gone += max(map(len, edit.get("experts", {}).values()), default=0)
            noun = "experts of each layer"
        else:
            continue
        # The first of several edits says how many there were at first.
        whole = whole or edit.get("of", 0)
    if whole == 0:
        return None
    return gone, whole, noun


def left_dense(matrices: Sequence[Mapping[str, Any]]) -> str:
    """Return in words which matrices of a record were left as they are, by reason; one that is the
    only one with its reason is named.
    """
    reasons: dict[str, list[str]] = {}
    for matrix in matrices:
        reasons.setdefault(matrix["reason"], []).append(matrix["name"])
    parts: list[str] = []
    for reason, names in reasons.items():
        if len(names) == 1:
            parts.append(f"{names[0]} ({reason})")
        else:
            parts.append(f"{len(names)} × {reason}")
    return "; ".join(parts)


def measurement_id(run_id: str, evaluator: Mapping[str, Any], data: str = "") -> str:
    """Return the identity of one evaluator (its canonical form) on one run; `data` is the digest of
    what it measures on, if it has one."""
    parts = [run_id, evaluator]
    # Ids were made before there were digests of data, and stay as they were.
    if data:
        parts.append(data)
    return identity(parts)


def revisions(kind: str, form: Any) -> dict[str, int]:
    """Return the revision of everything in a canonical form, by kind and name: `{"method wanda":
    1}`.

    `kind` is `method`, `allocation`, `transform` or `evaluator`. What stands twice in the form
    counts with its lowest revision.
    """
    lowest: dict[str, int] = {}
    for name, revision in _revised(form):
        label = f"{kind} {name}"
        lowest[label] = min(revision, lowest.get(label, revision))
    return lowest


def is_older(found: Mapping[str, int], current: Mapping[str, int]) -> bool:
    """Return whether one of the revisions that a result was `found` with is lower than the
    `current` one of the same name.
    """
    return any(revision < current.get(label, revision) for label, revision in found.items())


def revision_order(form: Any) -> tuple[int, ...]:
    """Return the revisions in a canonical form, in its order: of two forms that differ in
    nothing else, the newer has the greater.
    """
    return tuple(revision for _, revision in _revised(form))


def identity_without_revisions(run: Run) -> str:
    """Return the identity of a run with its labels, but without its revisions."""
    fields = asdict(run)
    del fields["revised"]
    return identity(_without_revisions(fields))


def identity_without_tokens(run: Run) -> str:
    """Return the identity of a run with its set and draw, but without its tokens and the name of
    its model.
    """
    fields = asdict(run)
    del fields["tokens"], fields["model_name"]
    return identity(fields)


def _without_revisions(form: Any) -> Any:
    if isinstance(form, Mapping):
        return {name: _without_revisions(part) for name, part in form.items() if name != "revision"}
    if isinstance(form, list | tuple):
        return [_without_revisions(part) for part in form]
    return form


def _revised(form: Any) -> Iterator[tuple[str, int]]:
    if isinstance(form, Mapping):
        if "spec" in form and isinstance(form.get("revision"), int):
            name = str(form["spec"])
            if "class" in form:
                # Two packages may have a class of the same name, whose revisions say nothing of
                # each other.
                name = f"{name} ({form['class']})"
            yield name, form["revision"]
        for name in sorted(form):
            yield from _revised(form[name])
    elif isinstance(form, list | tuple):
        for part in form:
            yield from _revised(part)
