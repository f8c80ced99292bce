"""Several processes that calibrate together, as torchrun starts them: each runs some of the
micro-batches, and all see the sums of all.

    with joined() as ranks:
        for weight, seen in walk(view, batch, method.observes, propagate, ranks=ranks):
            ...

A rank is one of the processes. Each opens the model, takes its share of the micro-batches and does
all the rest as one process would: what `seen` holds is the same on every rank, and so is what comes
of it. Whatever is written is written by the first rank.

Small statistics are gathered and added in the order of one process, so that their sums are one
process's to the last bit. Gram matrices are added where they are, by one all-reduce for each input
that differs: float32 sums in another order.

Ranks talk in meetings. A meeting has a name and every rank is in it, a failing one too: it says why
instead, and all end for its reason. So nobody waits for a rank that went elsewhere; one that is
killed is missed at once, and one that hangs after `PATIENCE`.

Gloo carries the words, and the sums of processors; NCCL those of CUDA, which follows PyTorch's
documented behaviour but is untested here: no such machine was at hand.
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
"""How long a rank waits for the others: longer than any of them works alone, which is when the
first one saves.
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
        """Return the device of this rank where `requested` is what the user gave: on CUDA, each
        rank of a machine has one of its own.
        """

    @abstractmethod
    def share(self, items: Sequence[T]) -> Sequence[T]:
        """Return what this rank takes of `items`: an unbroken run of them, in rank order; none
        where there are more ranks than items.
        """

    @abstractmethod
    def gathered(self, mine: Sequence[T]) -> Sequence[T]:
        """Return the lists of all ranks, one behind the other."""

    @abstractmethod
    def all(self, mine: bool) -> bool:
        """True if `mine` is true on every rank."""

    @abstractmethod
    def agree(self, subject: str, mine: object) -> None:
        """Go on if `mine` is the same on every rank, else raise `RankError`, saying that `subject`
        differs.
        """

    @abstractmethod
    def total(self, mine: Iterable[Seen], device: torch.device) -> Seen:
        """Return the sum, on `device`, of what the micro-batches of all ranks showed; `mine` are
        this rank's, maybe none, but some rank has one.
        """

    @abstractmethod
    def part(self, seen: Seen) -> Seen:
        """Return what one micro-batch showed, as something to add up for `totals`."""

    @abstractmethod
    def totals(self, mine: Mapping[str, Seen], device: torch.device) -> Mapping[str, Seen]:
        """For every matrix that any rank saw, by name and in the order of one process, the sum of
        all ranks' sums of parts, on `device`.

        Matrices that share a sum on every rank go on sharing it.
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
        """Return what the others raise for it."""
        if self.kind == KeyboardInterrupt.__name__:
            return KeyboardInterrupt()
        known = raised(self.kind, self.text, self.subject)
        return known or RankError(f"rank {rank} failed: {self.text}", subject=self.subject)


@dataclass(frozen=True)
class GramSize:
    """What there is to know of a Gram before it is summed."""

    width: int
    dtype: str
    tokens: int
    mass: float

    @classmethod
    def of(cls, gram: Gram) -> "GramSize":
        return cls(len(gram.matrix), str(gram.matrix.dtype), gram.tokens, gram.mass)


@final
class InOrder(Statistic):
    """Statistics that stand one behind the other until all are there: how floats are added
    decides their last bits.
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
    """Return the sum from left to right; None of nothing."""
    total: Any = None
    for part in parts:
        total = part if total is None else total + part
    return total


def _name_of(kind: type[Statistic]) -> str:
    """Return what messages call a kind of statistic: its class, with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _loaded_kinds() -> dict[str, type[Statistic]]:
    """Return the statistics that this process knows, by name, a method's own among them: nothing
    is imported because a message says so.
    """
    kinds: list[type[Statistic]] = [Statistic]
    for kind in kinds:  # grows while it is gone through
        kinds += kind.__subclasses__()
    return {_name_of(kind): kind for kind in kinds}


def _write_statistic(part: Statistic) -> list[Any]:
    return [_name_of(type(part)), part.held()]


def _read_statistic(written: list[Any]) -> Statistic:
    name, fields = written
    return _loaded_kinds()[name](**fields)


_WIDE: Final = {str(dtype): dtype for dtype in (torch.float32, torch.float64)}
"""What a Gram is summed in."""

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
    """The processes that torchrun started this one with, for as long as the context lasts; `ALONE`
    where there are none.

    All ranks leave it together: an exception of one is raised on every other too, a
    `CalibrantError` and an interrupt as what they are, and anything else as `RankError`, which is
    also what is raised where a rank is lost. A process group that is there already is used and
    left; otherwise one is made, and gone afterwards.
    """
    if not _are_several():
        yield ALONE
        return
    ours = not dist.is_initialized()
    if ours:
        with _listening():
            store, rank, size = _met()
        # What an earlier group left in the store would lead a later one astray: each has a corner
        # of its own.
        corner = dist.PrefixStore(f"calibrant {next(_GROUPS)}", store)  # pyright: ignore[reportPrivateImportUsage]  # public, says the manual
        dist.init_process_group("gloo", store=corner, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        with _Joined() as ranks:
            yield ranks
    finally:
        if ours:
            dist.destroy_process_group()


_GROUPS: Final = itertools.count()


@functools.cache
def _met() -> tuple[Any, int, int]:
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
        self._apart = False

    def __enter__(self) -> "_Joined":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # All leave together: who is done waits here for the others, and learns whether one of them
        # failed. Who failed comes to the next meeting of the others, whatever its name, and says
        # why.
        try:
            if error is None:
                self._meet("the end", None)
            elif not self._apart:
                with suppress(RankError):  # this rank has its own reason
                    self._exchange(RankMessage("", None, RankFailure.of(error)))
        finally:
            if self._nccl:
                dist.destroy_process_group(self._nccl)
            dist.destroy_process_group(self._gloo)

    def device(self, requested: str) -> str:
        if requested == "cuda" or (requested == "auto" and torch.cuda.is_available()):
            # This rank's number on its machine.
            place = self.rank
            if "LOCAL_RANK" in os.environ:
                place = number("LOCAL_RANK", 0, MOST)
            return f"cuda:{place}"
        return requested

    def share(self, items: Sequence[T]) -> Sequence[T]:
        start = len(items) * self.rank // self.size
        end = len(items) * (self.rank + 1) // self.size
        return items[start:end]

    def gathered(self, mine: Sequence[T]) -> Sequence[T]:
        everywhere: list[T] = []
        for items in self._meet("what stands next", mine):
            everywhere += items
        return everywhere

    def all(self, mine: bool) -> bool:
        return all(self._meet("a vote", mine))

    def agree(self, subject: str, mine: object) -> None:
        answers = self._meet(subject, mine)
        for rank, other in enumerate(answers):
            if other != answers[0]:
                self._apart = True
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
        # Each rank says which of its sums a matrix has; matrices that have the same one on every
        # rank have one sum.
        numbers: dict[int, int] = {}
        numbered = {name: numbers.setdefault(id(seen), len(numbers)) for name, seen in mine.items()}
        numbers_of_ranks = self._meet("the sums of a block", numbered)
        names: dict[str, None] = {}
        for numbered in numbers_of_ranks:
            names |= dict.fromkeys(numbered)
        sums: dict[tuple[int | None, ...], Seen] = {}
        totals: dict[str, Seen] = {}
        for name in names:
            key = tuple(numbered.get(name) for numbered in numbers_of_ranks)
            if key not in sums:
                sums[key] = self._total(mine.get(name), device)
            totals[name] = sums[key]
        return totals

    def _total(self, mine: Seen | None, device: torch.device) -> Seen:
        held: dict[type[Statistic], Any] = dict(mine or {})
        message: dict[str, Any] = {}
        for kind, statistic in held.items():
            message[_name_of(kind)] = GramSize.of(statistic) if kind is Gram else statistic.parts
        # A rank that saw nothing of the matrix has nothing to add.
        messages = [message for message in self._meet("a sum", message) if message]
        kinds = _loaded_kinds()
        total: dict[type[Statistic], Any] = {}
        for name in messages[0]:
            kind = kinds[name]
            given = [message[name] for message in messages]
            if kind is Gram:
                total[kind] = self._summed_gram(held.get(kind), given, device)
            else:
                # One process would add them in this order too, so the last bits are its own.
                parts = itertools.chain.from_iterable(given)
                total[kind] = _added(_moved(part, device) for part in parts)
        return Seen(total)

    def _summed_gram(
        self, mine: Gram | None, sizes: Sequence[GramSize], device: torch.device
    ) -> Gram:
        """The sum of the ranks' Gram matrices. Who fails in here is missed by the others, but
        not heard.
        """
        self._apart = True
        if mine is None:
            width = sizes[0].width
            matrix = torch.zeros(width, width, dtype=_WIDE[sizes[0].dtype], device=device)
        else:
            matrix = mine.matrix.clone()
        if matrix.is_cuda and self._nccl is None:
            self._nccl = dist.new_group(backend="nccl", timeout=PATIENCE)
        group = self._nccl if matrix.is_cuda else self._gloo
        carried = matrix if matrix.is_cuda else matrix.cpu()
        with _listening():
            dist.all_reduce(carried, group=group)
        self._apart = False
        tokens = sum(size.tokens for size in sizes)
        mass = sum(size.mass for size in sizes)
        return Gram(carried.to(device), tokens, mass)

    def _meet(self, where: str, mine: T) -> list[T]:
        """What every rank says at this point, in rank order; raises what another one failed of."""
        messages = self._exchange(RankMessage(where, mine))
        for rank, message in enumerate(messages):
            if message.failure is not None:
                self._apart = True
                raise message.failure.error(rank)
        for rank, message in enumerate(messages):
            if message.where != messages[0].where:
                self._apart = True
                raise RankError(
                    f"rank 0 is at {messages[0].where!r} and rank {rank} at {message.where!r}; "
                    "give all ranks the same to do",
                    subject=where,
                )
        return [message.value for message in messages]

    def _exchange(self, message: RankMessage) -> list[RankMessage]:
        packed = LANGUAGE.pack(message)
        if self._apart:
            raise RankError("the ranks have parted already; start them anew", subject=message.where)
        # Until the exchange is over this rank counts as parted: interrupted in it, it must not go
        # to another one, where the others aren't.
        self._apart = True
        with _listening():
            answers = [LANGUAGE.unpack(answer) for answer in self._messages(packed)]
        self._apart = False
        return answers

    def _messages(self, mine: bytes) -> list[bytes]:
        """What every rank sends, in rank order."""
        # Gathering needs tensors of one size on all ranks, so the lengths go first and the messages
        # are padded to the longest.
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(mine)]), group=self._gloo)
        longest = max(map(int, sizes))
        padded = torch.frombuffer(bytearray(mine.ljust(longest)), dtype=torch.uint8)
        every = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(every, padded, group=self._gloo)
        messages: list[bytes] = []
        for message, size in zip(every, sizes, strict=True):
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
def _listening() -> Iterator[None]:
    """Raise `RankError` where another rank is gone or doesn't answer."""
    try:
        yield
    except RuntimeError as error:
        # Without the place in PyTorch's source, and the advice that follows it.
        said = re.sub(r"^\[.*?\] |\. This is typically.*", "", " ".join(str(error).split()))
        raise RankError(
            f"another rank was lost ({said}); what torchrun says of it tells why; start them "
            "again to continue"
        ) from error
    except DataError as error:
        raise RankError(f"another rank said what can't be understood: {error}") from error
