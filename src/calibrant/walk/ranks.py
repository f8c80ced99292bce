"""Several processes that calibrate together, as torchrun starts them: each runs some of the
micro-batches, and all see the sums of all.

    with joined() as ranks:
        for weight, seen in walk(view, batch, method.observes, propagate, ranks=ranks):
            ...

A rank is one of the processes. Each opens the model, runs its share of the micro-batches, and does
all the rest as a single process would: `seen` is the same on every rank, and so is all that follows
from it. Only the first rank writes files.

Small statistics are gathered and added in the order of a single process, so their sums are the same
to the last bit. Gram matrices are added by one all-reduce for each distinct input: these are
float32 sums in another order.

Ranks talk in meetings. A meeting has a name, and every rank comes to it. A rank that fails comes
too, to the next one, and says why; then all ranks end for that reason. So nobody waits for a rank
that went elsewhere. A rank that is killed is missed at once, and one that hangs after `PATIENCE`.

Gloo carries the messages and adds what is on the processor. NCCL adds what is on CUDA; it follows
PyTorch's documented behaviour, but is untested here: no such machine was at hand.
"""

import functools
import itertools
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, TypeVar, final

import torch
import torch.distributed as dist

from calibrant.activations import Gram, Seen, Statistic
from calibrant.errors import CalibrantError, DataError, RankError
from calibrant.spec.foreign import brief
from calibrant.system.launch import MOST, launched, number
from calibrant.system.wire import Kind, Language, fields_of, kind_of, raised

T = TypeVar("T")

PATIENCE: Final = timedelta(minutes=30)
"""How long a rank waits for the others. No rank works so long without a meeting: the longest is the
first rank's saving of the model.
"""


class Ranks(ABC):
    """The processes that do one job, `size` of them; this one is number `rank`."""

    rank: int
    size: int

    @property
    def first(self) -> bool:
        """True on the rank that writes and speaks."""
        return self.rank == 0

    @abstractmethod
    def device(self, requested: str) -> str:
        """Return this rank's device, where `requested` is the user's choice: on CUDA, each rank of
        a machine has a device of its own.
        """

    @abstractmethod
    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return this rank's share of `items`: consecutive ones, in rank order; none where there
        are more ranks than items and nothing is left for this one.
        """

    @abstractmethod
    def gathered(self, mine: Sequence[T]) -> Sequence[T]:
        """Return the lists of all ranks, one behind the other."""

    @abstractmethod
    def all(self, mine: bool) -> bool:
        """True if `mine` is true on every rank."""

    @abstractmethod
    def agree(self, subject: str, mine: object) -> None:
        """Raise `RankError`, saying that `subject` differs, unless `mine` is the same on every
        rank.
        """

    @abstractmethod
    def total(self, mine: Iterable[Seen], device: torch.device) -> Seen:
        """Return the sum, on `device`, of what the micro-batches of all ranks showed. `mine` are
        this rank's; there may be none, but at least one rank must have some.
        """

    @abstractmethod
    def part(self, seen: Seen) -> Seen:
        """Return what one micro-batch showed, in the form that is added up for `totals`."""

    @abstractmethod
    def totals(self, mine: Mapping[str, Seen], device: torch.device) -> Mapping[str, Seen]:
        """Return, by name, the sum on `device` of what all ranks saw of each matrix, in the order
        of one process. `mine` are this rank's sums of what `part` returned.

        Matrices that share a sum on every rank share the total too.
        """


@dataclass(frozen=True)
class RankMessage:
    """What a rank says in a meeting: where it is, and what it has there, or why it failed."""

    where: str
    value: Any
    failure: "RankFailure | None" = None


@dataclass(frozen=True)
class RankFailure:
    """An exception in words: the exception itself may hold what can't be sent."""

    kind: str
    text: str
    subject: str

    @classmethod
    def of(cls, error: BaseException) -> "RankFailure":
        text = " ".join(str(error).split())
        if not isinstance(error, CalibrantError):
            text = f"{type(error).__name__}: {text}"
        return cls(kind_of(error), text, getattr(error, "subject", ""))

    def error(self, rank: int) -> BaseException:
        """Return what the other ranks raise, where this is the failure of `rank`."""
        if self.kind == KeyboardInterrupt.__name__:
            return KeyboardInterrupt()
        known = raised(self.kind, self.text, self.subject)
        return known or RankError(f"rank {rank} failed: {self.text}", subject=self.subject)


@dataclass(frozen=True)
class GramSize:
    """What ranks tell each other of a Gram before they add it: all but its numbers."""

    width: int
    dtype: str
    tokens: int
    mass: float

    @classmethod
    def of(cls, gram: Gram) -> "GramSize":
        return cls(len(gram.matrix), str(gram.matrix.dtype), gram.tokens, gram.mass)


@final
class InOrder(Statistic):
    """Statistics that are kept apart until all are there, and then added in the order of a single
    process: the order of a sum of floats decides its last bits.
    """

    def __init__(self, parts: tuple[Statistic, ...]) -> None:
        self.parts = parts
        self.tokens = sum(part.tokens for part in parts)
        self.mass = sum(part.mass for part in parts)

    def __add__(self, other: "InOrder") -> "InOrder":
        return InOrder(self.parts + other.parts)

    def __mul__(self, factor: float) -> "InOrder":
        return InOrder(tuple(part * factor for part in self.parts))


def _added(parts: Iterable[Any]) -> Any:
    """Return the sum from left to right, into which the first part may be made; None of nothing."""
    total: Any = None
    for part in parts:
        if total is None:
            total = part
        else:
            total += part
    return total


def _name_of(kind: type[Statistic]) -> str:
    """Return what messages call a kind of statistic: its class, with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _loaded_kinds() -> dict[str, type[Statistic]]:
    """Return the kinds of statistics that this process has imported, by name. A message can only
    name one of these: nothing is imported because a message says so.
    """
    kinds: list[type[Statistic]] = [Statistic]
    # The list grows while the loop goes through it, down to the last subclass.
    for kind in kinds:
        kinds += kind.__subclasses__()
    return {_name_of(kind): kind for kind in kinds}


def _write_statistic(part: Statistic) -> list[Any]:
    return [_name_of(type(part)), part.held()]


def _read_statistic(written: list[Any]) -> Statistic:
    name, fields = written
    return _loaded_kinds()[name](**fields)


_GRAM_DTYPES: Final = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}
"""The types that a Gram is summed in, by name."""

LANGUAGE: Final = Language(
    fields_of(RankMessage),
    fields_of(RankFailure),
    fields_of(GramSize),
    Kind("statistic", Statistic, _write_statistic, _read_statistic),
)


@final
class _Alone(Ranks):
    rank = 0
    size = 1

    def device(self, requested: str) -> str:
        return requested

    def share(self, items: Sequence[T]) -> Sequence[T]:
        return items

    def gathered(self, mine: Sequence[T]) -> Sequence[T]:
        return mine

    def all(self, mine: bool) -> bool:
        return mine

    def agree(self, subject: str, mine: object) -> None:
        pass

    def total(self, mine: Iterable[Seen], device: torch.device) -> Seen:
        return _added(mine)

    def part(self, seen: Seen) -> Seen:
        return seen

    def totals(self, mine: Mapping[str, Seen], device: torch.device) -> Mapping[str, Seen]:
        return mine


ALONE: Final[Ranks] = _Alone()
"""One process, which has nobody to wait for."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """Give the ranks that torchrun started, this process among them; `ALONE` where it started none.

    All ranks leave the context together. An exception on one rank is raised on every other too: a
    `CalibrantError` and an interrupt as they are, anything else as `RankError`. That is also raised
    where a rank is lost. A process group that exists already is used and left as it is; otherwise
    one is made, and destroyed afterwards.
    """
    if not _are_several():
        yield ALONE
        return
    ours = not dist.is_initialized()
    if ours:
        with _losing_a_rank():
            store, rank, size = _rendezvous()
        # What an earlier group left in the store would mislead a later one, so each group has a
        # prefix of its own.
        group_store = dist.PrefixStore(f"calibrant {next(_GROUPS)}", store)  # pyright: ignore[reportPrivateImportUsage]  # public, says the manual
        dist.init_process_group(
            "gloo", store=group_store, rank=rank, world_size=size, timeout=PATIENCE
        )
    try:
        with _Joined() as ranks:
            yield ranks
    finally:
        if ours:
            dist.destroy_process_group()


_GROUPS: Final = itertools.count()


@functools.cache
def _rendezvous() -> tuple[Any, int, int]:
    """The store in which the processes that torchrun started find each other, this one's rank,
    and how many they are.
    """
    return next(dist.rendezvous("env://"))  # pyright: ignore[reportPrivateImportUsage]  # public, says the manual


def _are_several() -> bool:
    if not dist.is_available():
        return False
    if dist.is_initialized():
        return dist.get_world_size() > 1
    launch = launched()
    return launch is not None and launch.size > 1


@final
class _Joined(Ranks):
    """Ranks of a process group. A context that all of them leave together."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self._gloo: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._nccl: Any = None
        self._parted = False
        """True once this rank must not come to another meeting: the others aren't there."""

    def __enter__(self) -> "_Joined":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A rank that is done waits here for the others, and learns whether one of them failed. A
        # rank that failed comes to the next meeting of the others, whatever its name, and says why.
        try:
            if error is None:
                self._meet("the end", None)
            elif not self._parted:
                with suppress(RankError):  # this rank has its own reason
                    self._exchange(RankMessage("", None, RankFailure.of(error)))
        finally:
            if self._nccl:
                dist.destroy_process_group(self._nccl)
            dist.destroy_process_group(self._gloo)

    def device(self, requested: str) -> str:
        if requested == "cuda" or (requested == "auto" and torch.cuda.is_available()):
            local_rank = self.rank
            if "LOCAL_RANK" in os.environ:
                local_rank = number("LOCAL_RANK", 0, MOST)
            return f"cuda:{local_rank}"
        return requested

    def share(self, items: Sequence[T]) -> Sequence[T]:
        start = len(items) * self.rank // self.size
        end = len(items) * (self.rank + 1) // self.size
        return items[start:end]

    def gathered(self, mine: Sequence[T]) -> Sequence[T]:
        gathered: list[T] = []
        for items in self._meet("what stands next", mine):
            gathered += items
        return gathered

    def all(self, mine: bool) -> bool:
        return all(self._meet("a vote", mine))

    def agree(self, subject: str, mine: object) -> None:
        answers = self._meet(subject, mine)
        for rank, other in enumerate(answers):
            if other != answers[0]:
                self._parted = True
                raise RankError(
                    f"{subject} differs: {brief(answers[0])} on rank 0, {brief(other)} on rank "
                    f"{rank}; give all ranks the same",
                    subject=subject,
                )

    def total(self, mine: Iterable[Seen], device: torch.device) -> Seen:
        return self._total(_added(map(self.part, mine)), device)

    def part(self, seen: Seen) -> Seen:
        parts: dict[type[Statistic], Statistic] = {}
        for kind, statistic in seen.items():
            parts[kind] = statistic if kind is Gram else InOrder((statistic,))
        return Seen(parts)

    def totals(self, mine: Mapping[str, Seen], device: torch.device) -> Mapping[str, Seen]:
        # Each rank numbers its sums, and says which of them each matrix has. Matrices whose numbers
        # are equal on every rank share one total.
        numbers: dict[int, int] = {}
        sum_numbers: dict[str, int] = {}
        for name, seen in mine.items():
            sum_numbers[name] = numbers.setdefault(id(seen), len(numbers))
        by_rank = self._meet("the sums of a block", sum_numbers)
        names: dict[str, None] = {}
        for rank_numbers in by_rank:
            names |= dict.fromkeys(rank_numbers)
        sums: dict[tuple[int | None, ...], Seen] = {}
        totals: dict[str, Seen] = {}
        for name in names:
            key = tuple(rank_numbers.get(name) for rank_numbers in by_rank)
            if key not in sums:
                sums[key] = self._total(mine.get(name), device)
            totals[name] = sums[key]
        return totals

    def _total(self, mine: Seen | None, device: torch.device) -> Seen:
        held: dict[type[Statistic], Any] = dict(mine or {})
        message: dict[str, Any] = {}
        for kind, statistic in held.items():
            message[_name_of(kind)] = GramSize.of(statistic) if kind is Gram else statistic.parts
        # A rank that saw nothing of the matrix sends an empty message.
        messages = [message for message in self._meet("a sum", message) if message]
        kinds = _loaded_kinds()
        total: dict[type[Statistic], Any] = {}
        for name in messages[0]:
            kind = kinds[name]
            contents = [message[name] for message in messages]
            if kind is Gram:
                total[kind] = self._summed_gram(held.get(kind), contents, device)
            else:
                # In rank order, which is the order of a single process: the last bits are its own.
                parts = itertools.chain.from_iterable(contents)
                total[kind] = _added(_moved(part, device) for part in parts)
        return Seen(total)

    def _summed_gram(
        self, mine: Gram | None, sizes: Sequence[GramSize], device: torch.device
    ) -> Gram:
        """The sum of the ranks' Gram matrices, of which `sizes` are those that there are."""
        # An all-reduce is no meeting: a rank that fails in here can't tell the others why, and they
        # only learn that it is lost.
        self._parted = True
        if mine is None:
            width = sizes[0].width
            matrix = torch.zeros(width, width, dtype=_GRAM_DTYPES[sizes[0].dtype], device=device)
        else:
            matrix = mine.matrix.clone()
        if matrix.is_cuda and self._nccl is None:
            self._nccl = dist.new_group(backend="nccl", timeout=PATIENCE)
        group = self._nccl if matrix.is_cuda else self._gloo
        summed = matrix if matrix.is_cuda else matrix.cpu()
        with _losing_a_rank():
            dist.all_reduce(summed, group=group)
        self._parted = False
        tokens = sum(size.tokens for size in sizes)
        mass = sum(size.mass for size in sizes)
        return Gram(summed.to(device), tokens, mass)

    def _meet(self, where: str, mine: T) -> list[T]:
        """What every rank says at this point, in rank order. Raises the failure of a rank that
        failed, and `RankError` where ranks are at different points.
        """
        messages = self._exchange(RankMessage(where, mine))
        for rank, message in enumerate(messages):
            if message.failure is not None:
                self._parted = True
                raise message.failure.error(rank)
        for rank, message in enumerate(messages):
            if message.where != messages[0].where:
                self._parted = True
                raise RankError(
                    f"rank 0 is at {messages[0].where!r} and rank {rank} at {message.where!r}; "
                    "give all ranks the same to do",
                    subject=where,
                )
        return [message.value for message in messages]

    def _exchange(self, message: RankMessage) -> list[RankMessage]:
        packed = LANGUAGE.pack(message)
        if self._parted:
            raise RankError("the ranks have parted already; start them anew", subject=message.where)
        # Until the exchange is over this rank counts as parted. Interrupted in the middle, it must
        # not begin another exchange, to which the others won't come.
        self._parted = True
        with _losing_a_rank():
            answers = [LANGUAGE.unpack(answer) for answer in self._messages(packed)]
        self._parted = False
        return answers

    def _messages(self, mine: bytes) -> list[bytes]:
        """What every rank sends, in rank order."""
        # Gathering needs tensors of one size on all ranks, so the lengths go first and the messages
        # are padded to the longest.
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(mine)]), group=self._gloo)
        longest = max(map(int, sizes))
        padded = torch.frombuffer(bytearray(mine.ljust(longest)), dtype=torch.uint8)
        received = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(received, padded, group=self._gloo)
        messages: list[bytes] = []
        for message, size in zip(received, sizes, strict=True):
            messages.append(message[: int(size)].numpy().tobytes())
        return messages


def _moved(part: Statistic, device: torch.device) -> Statistic:
    """Return the same statistic with its tensors on `device`."""
    fields = dict(part.held())
    for name, value in fields.items():
        if isinstance(value, torch.Tensor):
            fields[name] = value.to(device)
    return type(part)(**fields)


@contextmanager
def _losing_a_rank() -> Iterator[None]:
    """Raise `RankError` where another rank is gone or doesn't answer."""
    try:
        yield
    except RuntimeError as error:
        # PyTorch's message, without the place in its source and the advice at the end.
        message = re.sub(r"^\[.*?\] |\. This is typically.*", "", " ".join(str(error).split()))
        raise RankError(
            f"another rank was lost ({message}); what torchrun says of it tells why; start them "
            "again to continue"
        ) from error
    except DataError as error:
        raise RankError(f"another rank said what can't be understood: {error}") from error
