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
from datetime import timedelta
from types import TracebackType
from typing import Any, Final, TypeVar, final

import torch
import torch.distributed as dist

from calibrant.activations import Gram, Seen, Statistic
from calibrant.errors import DataError, RankError
from calibrant.spec.foreign import brief
from calibrant.system.launch import MOST, launched, number
from calibrant.walk.rank_messages import (
    LANGUAGE,
    WIDE,
    GramSize,
    InOrder,
    RankFailure,
    RankMessage,
    added,
    called,
    loaded_kinds,
    moved,
)

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
        """Return the device of this rank where `asked` is what the user gave: on CUDA, each rank
        of a machine has one of its own.
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
    def agree(self, what: str, mine: object) -> None:
        """Go on if `mine` is the same on every rank, else raise `RankError`, saying that `what`
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

    def agree(self, what: str, mine: object) -> None:
        pass

    def total(self, mine: Iterable[Seen], device: torch.device) -> Seen:
        return added(mine)

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
        corner = dist.PrefixStore(f"calibrant {next(_JOINED)}", store)  # pyright: ignore[reportPrivateImportUsage]  # public, says the manual
        dist.init_process_group("gloo", store=corner, rank=rank, world_size=size, timeout=PATIENCE)
    try:
        with _Together() as ranks:
            yield ranks
    finally:
        if ours:
            dist.destroy_process_group()


_JOINED: Final = itertools.count()


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
class _Together(Ranks):
    """Ranks of a process group. A context that all of them leave together."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._gloo: Any = dist.new_group(backend="gloo", timeout=PATIENCE)
        self._nccl: Any = None
        self._apart = False

    def __enter__(self) -> "_Together":
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
            for group in (self._nccl, self._gloo) if self._nccl else (self._gloo,):
                dist.destroy_process_group(group)

    @property
    def _place(self) -> int:
        """This rank's number on its machine."""
        return number("LOCAL_RANK", 0, MOST) if "LOCAL_RANK" in os.environ else self.rank

    def device(self, requested: str) -> str:
        return (
            f"cuda:{self._place}"
            if requested == "cuda" or (requested == "auto" and torch.cuda.is_available())
            else requested
        )

    def share(self, items: Sequence[T]) -> Sequence[T]:
        return items[
            len(items) * self.rank // self.size : len(items) * (self.rank + 1) // self.size
        ]

    def gathered(self, mine: Sequence[T]) -> Sequence[T]:
        return [item for items in self._meet("what stands next", mine) for item in items]

    def all(self, mine: bool) -> bool:
        return all(self._meet("a vote", mine))

    def agree(self, what: str, mine: object) -> None:
        answers = self._meet(what, mine)
        for rank, other in enumerate(answers):
            if other != answers[0]:
                self._apart = True
                raise RankError(
                    f"{what} differs: {brief(answers[0])} on rank 0, {brief(other)} on rank {rank}; give all ranks the same",
                    subject=what,
                )

    def total(self, mine: Iterable[Seen], device: torch.device) -> Seen:
        return self._total(added(map(self.part, mine)), device)

    def part(self, seen: Seen) -> Seen:
        return Seen({kind: one if kind is Gram else InOrder((one,)) for kind, one in seen.items()})

    def _total(self, mine: Seen | None, device: torch.device) -> Seen:
        own: dict[type[Statistic], Any] = dict(mine or {})
        parts: dict[str, Any] = {
            called(kind): GramSize.of(one) if kind is Gram else one.parts
            for kind, one in own.items()
        }
        parts_of_ranks, kinds = [one for one in self._meet("a sum", parts) if one], loaded_kinds()
        return Seen(
            {
                kind: self._reduced(own.get(kind), [one[name] for one in parts_of_ranks], device)
                if kind is Gram
                else added(moved(part, device) for one in parts_of_ranks for part in one[name])
                for name, kind in ((name, kinds[name]) for name in parts_of_ranks[0])
            }
        )

    def totals(self, mine: Mapping[str, Seen], device: torch.device) -> Mapping[str, Seen]:
        numbers: dict[int, int] = {}
        numbers_of_ranks = self._meet(
            "the sums of a block",
            {name: numbers.setdefault(id(seen), len(numbers)) for name, seen in mine.items()},
        )
        # Each rank says which of its sums a matrix has; matrices that have the same one on every
        # rank have one sum.
        shared = {
            name: tuple(one.get(name) for one in numbers_of_ranks)
            for name in dict.fromkeys(name for one in numbers_of_ranks for name in one)
        }
        sums: dict[tuple[int | None, ...], Seen] = {}
        for name, key in shared.items():
            if key not in sums:
                sums[key] = self._total(mine.get(name), device)
        return {name: sums[key] for name, key in shared.items()}

    def _reduced(
        self, mine: Gram | None, sizes: Sequence["GramSize"], device: torch.device
    ) -> Gram:
        """The sum of the ranks' Gram matrices. Who fails in here is missed by the others, but
        not heard.
        """
        self._apart = True
        width = sizes[0].width
        matrix = (
            torch.zeros(width, width, dtype=WIDE[sizes[0].dtype], device=device)
            if mine is None
            else mine.matrix.clone()
        )
        if matrix.is_cuda and self._nccl is None:
            self._nccl = dist.new_group(backend="nccl", timeout=PATIENCE)
        carried = matrix if matrix.is_cuda else matrix.cpu()
        with _listening():
            dist.all_reduce(carried, group=self._nccl if matrix.is_cuda else self._gloo)
        self._apart = False
        return Gram(
            carried.to(device), sum(one.tokens for one in sizes), sum(one.mass for one in sizes)
        )

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
                    f"rank 0 is at {messages[0].where!r} and rank {rank} at {message.where!r}; give all ranks the same to do",
                    subject=where,
                )
        return [message.what for message in messages]

    def _exchange(self, message_out: "RankMessage") -> list["RankMessage"]:
        message = LANGUAGE.pack(message_out)
        # Until the exchange is over this rank counts as parted: interrupted in it, it must not go
        # to another one, where the others aren't.
        apart, self._apart = self._apart, True
        if apart:
            raise RankError(
                "the ranks have parted already; start them anew", subject=message_out.where
            )
        with _listening():
            answers = [LANGUAGE.unpack(answer) for answer in self._messages(message)]
        self._apart = False
        return answers

    def _messages(self, mine: bytes) -> list[bytes]:
        """What every rank sends, in rank order."""
        # Gathering needs tensors of one size on all ranks, so the lengths go first and the messages
        # are padded to the longest.
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(mine)]), group=self._gloo)
        longest = max(map(int, sizes))
        every = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        dist.all_gather(
            every,
            torch.frombuffer(bytearray(mine.ljust(longest)), dtype=torch.uint8),
            group=self._gloo,
        )
        return [one[: int(size)].numpy().tobytes() for one, size in zip(every, sizes, strict=True)]


@contextmanager
def _listening() -> Iterator[None]:
    """Raise `RankError` where another rank is gone or doesn't answer."""
    try:
        yield
    except RuntimeError as error:
        what = re.sub(r"^\[.*?\] |\. This is typically.*", "", " ".join(str(error).split()))
        raise RankError(
            f"another rank was lost ({what}); what torchrun says of it tells why; start them again to continue"
        ) from error
    except DataError as error:
        raise RankError(f"another rank said what can't be understood: {error}") from error
