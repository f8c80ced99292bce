"""Defines what data is made of: rows, sources that they come from, and formats that make text."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from string import ascii_uppercase
from typing import Any, ClassVar, Final, Literal, get_args

from transformers import PreTrainedTokenizerBase

from calibrant.data._messages import Message
from calibrant.data.hub import HubDataset, mirror
from calibrant.errors import DataError
from calibrant.spec import Spec
from calibrant.spec.families import Family

Part = Literal["calibrate", "measure", "exemplars"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
FIELDS: Final = (
    *("text", "question", "answer", "rationale"),
    *("choices", "turns", "tools", "integers", "ids"),
)
TELLING: Final = 13
"""Words from which on what is asked tells an example by itself; "Hi" doesn't. Leaks are found by
runs of as many.
"""


@dataclass(frozen=True)
class Row:
    """One example of a data set.

    `answer` is what stands in the text after the question: a label if the choices are listed
    (`labels` then says what each is called), else the choice itself. `turns` are the messages of a
    conversation, and `tools` the functions that it offers, as a `Conversation` has them. `integers`
    stand for text where a control chooses tokens itself: they are mapped onto the vocabulary. `ids`
    are tokens as a user gave them.

    How the example is put is no part of its content: `frame` is what stands before the question and
    what asks for the answer, `steps` counts the steps of the rationale by its set's own marks.
    """

    text: str | None = None
    question: str | None = None
    answer: str | None = None
    rationale: str | None = None
    choices: tuple[str, ...] = ()
    turns: tuple[Message, ...] = ()
    tools: tuple[str, ...] = ()
    integers: tuple[int, ...] | None = None
    ids: tuple[int, ...] | None = None
    labels: tuple[str, ...] = field(default=(), compare=False)
    frame: tuple[str, str] = field(default=("Question: ", "Answer:"), compare=False)
    steps: int = field(default=0, compare=False)

    @cached_property
    def key(self) -> str:
        """The SHA-256 of the content, 64 digits: it decides the row's part and its place in the
        order.
        """
        content = {name: getattr(self, name) for name in self.present}
        if self.turns:
            content["turns"] = [_content_of(message) for message in self.turns]
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return _sha256(text)

    @property
    def name(self) -> str:
        """What results call the row: the first 16 digits of its key, which say which row it is
        and nothing of its text.
        """
        return self.key[:16]

    @property
    def present(self) -> tuple[str, ...]:
        """The fields that this row has."""
        return tuple(name for name in FIELDS if getattr(self, name) not in (None, ()))

    @property
    def said(self) -> tuple[str, ...]:
        """All that is said in the conversation, a text for each message."""
        return tuple(message.said for message in self.turns)

    @property
    def subject(self) -> str:
        """The question or the text, whatever its case and spaces."""
        return caseless(self.question or self.text or self.key)

    @property
    def beginnings(self) -> tuple[str, ...]:
        """Hashes by which an example is known again without its text: of `subject`, and in a
        conversation of what the user has said up to each message. The last one stands for the
        whole. 16 digits of the SHA-256 each.

        A conversation whose subject has `TELLING` words is known by that alone: another that begins
        with it is about the same.
        """
        return beginnings_of(self, caseless)

    @property
    def example(self) -> str:
        """The last of `beginnings`."""
        return self.beginnings[-1]

    def need(self, field: str) -> str:
        """Return the text of a field; `DataError` if the row lacks it."""
        value = getattr(self, field)
        if not isinstance(value, str):
            present = ", ".join(self.present) or "nothing"
            raise DataError(
                f"a row without {field!r} can't be rendered; it has {present}", subject=field
            )
        return value


@dataclass
class KnownExamples:
    """Examples among which others are looked for, each by its `beginnings`. Of two conversations
    one may be how the other begins: these are the same example too.

    `whole` has the hash of each whole example, `begun` those of its beginnings.

    >>> first, second = Message("user", "Hi"), Message("user", "How warm is it?")
    >>> known = KnownExamples()
    >>> known.add([Row(question="Hi", turns=(first, second)).beginnings])
    >>> Row(question="hi", turns=(first,)).beginnings in known
    True
    >>> Row(question="Hi", turns=(first, first)).beginnings in known
    False
    """

    whole: set[str] = field(default_factory=set)
    begun: set[str] = field(default_factory=set)

    def __contains__(self, beginnings: Sequence[str]) -> bool:
        return beginnings[-1] in self.begun or not self.whole.isdisjoint(beginnings)

    def add(self, examples: Iterable[Sequence[str]]) -> None:
        """Remember examples by the beginnings of each."""
        for *begun, whole in examples:
            self.whole.add(whole)
            self.begun.update(begun)


@dataclass(frozen=True)
class SourceRows:
    """What a source holds: the rows of each part, in any order, and where they come from.

    `note` says how they differ from the published set; `lost` is what the note says of a user's
    rows that were left out.
    """

    rows: Mapping[Part, Iterable[Row]]
    origin: str
    note: str = ""
    lost: str = ""


@dataclass(frozen=True)
class PartRows:
    """One part of a source as it is used: distinct rows ordered by key, how many were left out
    and why, and the digest of what remains. Origin, note and what is lost are those of
    `SourceRows`.
    """

    rows: tuple[Row, ...]
    duplicates: int = 0
    overlapping: int = 0
    origin: str = ""
    note: str = ""
    lost: str = ""

    @cached_property
    def digest(self) -> str:
        """The tagged SHA-256 over the rows' keys."""
        return digest(self.rows)


class Source(Spec, ABC):
    """Where rows come from. `rows` gives one of its disjoint parts in an order that depends on the
    content alone.

    `kind`: a corpus has texts, a question set has questions and answers, a control has no content
    worth learning and no end. `family` says what it is about, for those who compare sets; empty
    means that of the kind: `corpus`, `control`, and `own` for questions. `fields` are those every
    row has, `sometimes` those that only some have. `default` is the format of an expression that
    names none; empty means that of the kind: `text`, and `icl` for questions. `shown` says whether
    the licence lets rows be quoted. Licence, home page and hub address are facts about the class.
    """

    kind: ClassVar[Literal["corpus", "questions", "control"]]
    family: ClassVar[Family | Literal[""]] = ""
    licence: ClassVar[str]
    homepage: ClassVar[str]
    hub: ClassVar[HubDataset | None] = None
    default: ClassVar[str] = ""
    shown: ClassVar[bool] = True
    fields: tuple[str, ...]
    sometimes: tuple[str, ...] = ()

    @abstractmethod
    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        """Yield the rows of `part`; `seed` matters to controls only. `DataError` for an unknown
        part, or if there is nothing to read.
        """


def family_of(source: Source | type[Source]) -> Family:
    """Return the family that a source says it is of, else that of its kind."""
    if source.family:
        return source.family
    if source.kind == "questions":
        return "own"
    return source.kind


class PerDraw(Source, ABC):
    """A source that supplies every draw anew, in the order in which it is to be dealt: what a
    selector chooses or makes.
    """

    family: ClassVar[Family | Literal[""]] = "selected"

    @abstractmethod
    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        """Yield the rows of draw `seed`. `DataError` if nothing has supplied them."""

    @abstractmethod
    def for_draw(self, draw: int) -> PartRows:
        """Return the rows of a draw, with where they come from."""

    @abstractmethod
    def disjoint(self) -> int | None:
        """Return how many draws share no row for certain, because each is made of candidates of
        its own. None where there is no end of such draws.
        """

    @property
    def origins(self) -> tuple[Source, ...]:
        """The sources that its rows are made of or chosen from."""
        return ()

    @abstractmethod
    def measured(self) -> Source:
        """Return the source whose `measure` part is like it. `DataError` if there is none."""


class StoredSource(Source, ABC):
    """A source that can be read whole. It says what it finds; the base removes duplicates and rows
    that also occur in the measured part.

    `siblings` are sources that share rows with this one: what *they* measure on is removed too, and
    counted. A sibling that can't be read here is named in the note.
    """

    siblings: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def read(self) -> SourceRows:
        """Return everything there is, divided into parts."""

    def place(self) -> Hashable:
        """Return where `read` would read from now. What was read is remembered by it: if it has
        changed, the source is read anew.
        """
        return mirror()

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        return iter(self.part(part).rows)

    def part(self, part: Part) -> PartRows:
        """Return one part with its counts and digest. It is read once, and again where the place
        is another.
        """
        check_part(part)
        return _hold(self, self.place())[part]

    def size(self) -> int:
        """Return how many rows all parts have together."""
        return sum(len(part.rows) for part in _hold(self, self.place()).values())


class Format(Spec, ABC):
    """How one row becomes text. Pure. `needs` are the fields it reads; a source without them is
    refused when the set is built.
    """

    needs: ClassVar[tuple[str, ...]]

    def takes(self, row: Row) -> bool:
        """Return whether this row can be rendered: by default, if it has what is needed. Others
        are passed over and counted.
        """
        present = set(row.present)
        if row.integers is not None or row.ids is not None:
            present.add("text")
        return present.issuperset(self.needs)

    @abstractmethod
    def render(self, row: Row, tokenizer: PreTrainedTokenizerBase | None = None) -> str:
        """Return the text of one row; only what follows a model's own chat template looks at the
        tokenizer.
        """


def check_part(part: str) -> None:
    """Raise `DataError` for anything but one of the three parts."""
    if part not in PARTS:
        raise DataError(f"there is no part {part!r}; a source has {', '.join(PARTS)}", subject=part)


def fraction(key: str) -> float:
    """Return the number in [0, 1) that has a hash's first 13 digits behind its point, base 16."""
    # 13 digits are 52 bits, which a float holds exactly.
    return int(key[:13], 16) / 16**13


def part_of(key: str) -> Part:
    """Return the part that a hash belongs to where nothing else divides a source: 70 %
    calibrate, 25 % measure, 5 % exemplars.
    """
    place = fraction(key)
    if place < 0.70:
        return "calibrate"
    if place < 0.95:
        return "measure"
    return "exemplars"


def train_part_of(key: str) -> Part:
    """Return the part that a hash belongs to in a train split: 5 % of it are exemplars."""
    if fraction(key) >= 0.95:
        return "exemplars"
    return "calibrate"


def divide(rows: Iterable[Row]) -> dict[Part, list[Row]]:
    """Divide a source of one split by the hash of each row's content."""
    parts: dict[Part, list[Row]] = {part: [] for part in PARTS}
    for row in rows:
        parts[part_of(row.key)].append(row)
    return parts


def train_and_test(train: Iterable[Row], test: Iterable[Row]) -> dict[Part, list[Row]]:
    """Divide a source that comes in two splits: train calibrates, but for 5 % exemplars chosen
    by hash; test measures.
    """
    parts: dict[Part, list[Row]] = {"calibrate": [], "measure": list(test), "exemplars": []}
    for row in train:
        parts[train_part_of(row.key)].append(row)
    return parts


def lettered(choices: Sequence[str]) -> tuple[str, ...]:
    """Return the labels A, B, C, … for these choices.

    >>> lettered(["red", "green"])
    ('A', 'B')
    """
    return tuple(ascii_uppercase[: len(choices)])


def digest(rows: Iterable[Row]) -> str:
    """Return the tagged SHA-256 over the keys of `rows` in their order."""
    return "sha256:" + _sha256("\n".join(row.key for row in rows))


def question_text(row: Row) -> str:
    """Return how a question is put, the same in every format.

    That is the question in its frame, as `Question: …`, the choices as lines with their labels if
    they are listed, and `Answer:`.
    """
    before, after = row.frame
    lines = [f"{before}{row.need('question')}"]
    if row.labels:
        for label, choice in zip(row.labels, row.choices, strict=True):
            lines.append(f"{label}. {choice}")
    return "\n".join([*lines, after])


def caseless(text: str) -> str:
    """Return a text without its case, with one space between words."""
    return " ".join(text.casefold().split())


def beginnings_of(row: Row, normalized: Callable[[str], str]) -> tuple[str, ...]:
    """Return `Row.beginnings`, each text normalized first."""
    subject = normalized(row.question or row.text or row.key)
    asked = [normalized(message.content or "") for message in row.turns if message.role == "user"]
    # The question may be a later message, or none of them.
    if subject not in asked:
        asked.insert(0, subject)
    beginnings = [_sha256(subject)[:16]]
    if len(asked) > 1 and len(subject.split()) < TELLING:
        until_here = hashlib.sha256()
        for text in asked:
            until_here.update(_encoded(text))
            beginnings.append(until_here.hexdigest()[:16])
            until_here.update(b"\n")
    return tuple(dict.fromkeys(beginnings))


def joined(*notes: str) -> str:
    """Return notes as one sentence; empty ones are passed over."""
    return "; ".join(filter(None, notes))


def _content_of(message: Message) -> Any:
    """Return what identifies a message. Most are a role and a text, and are hashed as a pair, as
    they were before there were others.
    """
    if message.plain:
        return [message.role, message.content]
    return message.record()


def _sha256(text: str) -> str:
    return hashlib.sha256(_encoded(text)).hexdigest()


def _encoded(text: str) -> bytes:
    # A user's text may hold half of a surrogate pair, which has no other encoding.
    return text.encode("utf-8", "surrogatepass")


@lru_cache(maxsize=8)
def _hold(source: StoredSource, place: Hashable) -> dict[Part, PartRows]:
    content = source.read()
    # Rows that only a sibling measures are taken out too, so that no pair of sources leaks.
    measured_by_siblings, unchecked = _measured_by_siblings(source)
    note = content.note
    if unchecked:
        note = joined(note, f"not checked against what {', '.join(unchecked)} measures")
    known = KnownExamples()
    parts: dict[Part, PartRows] = {}
    # What is measured comes first: a row that occurs there too is taken out of the parts that are
    # shown to a model.
    for part in ("measure", "exemplars", "calibrate"):
        rows = list(content.rows.get(part, ()))
        distinct = {row.key: row for row in rows}
        # In the order of the hashes: it depends on the content alone, and mixes topics well.
        in_order = [distinct[key] for key in sorted(distinct)]
        used_rows = [row for row in in_order if row.beginnings not in known]
        if part != "calibrate":
            known.add(row.beginnings for row in used_rows)
        if part == "measure":
            known.add(row.beginnings for row in measured_by_siblings)
        parts[part] = PartRows(
            tuple(used_rows),
            duplicates=len(rows) - len(distinct),
            overlapping=len(distinct) - len(used_rows),
            origin=content.origin,
            note=note,
            lost=content.lost,
        )
    return parts


def _measured_by_siblings(source: StoredSource) -> tuple[list[Row], list[str]]:
    """Return the rows that the siblings measure, and the siblings that can't be read."""
    from calibrant.data.sources import sources  # which imports this module

    rows: list[Row] = []
    unchecked: list[str] = []
    for name in source.siblings:
        try:
            rows += sources.build(name).read().rows["measure"]
        except DataError:
            unchecked.append(name)
    return rows, unchecked
