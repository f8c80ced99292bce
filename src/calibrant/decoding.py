"""Decoding of many prompts at once. What they all begin with is computed once, and a prompt that
comes several times is read once. Nothing depends on which of them are decoded together.

Prompts of like length are read together, behind as much of the common beginning as leaves each of
them the same number of tokens: so there is no padding. The memories of a batch are aligned on the
right: what a shorter prompt lacks is left out before it, never in the middle. What a token sees,
and how far away it is, is what it would be alone, windows of attention included. So what is written
doesn't depend on the batch, but for rounding.

The most probable token is taken unless `choose` takes another, whatever the model's own generation
settings say.

Why not transformers' `generate`: it computes the common beginning anew for each prompt, and pads
prompts, so that what is scored would depend on the batch. `benchmarks/answers.py` compares how long
both take.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Final, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from calibrant.data import by_length
from calibrant.errors import DataError, NumericsError
from calibrant.models.readable import (
    check_tokens,
    longest_text,
    positions_before_first,
    rope_alike_beyond,
    rope_alike_up_to,
)
from calibrant.system.products import full_speed

TOKENS_PER_BATCH: Final = 16_384
"""Tokens, shown or to come, whose keys and values are held at once; the result doesn't depend on
it beyond rounding.
"""
TOKENS_READ_AT_ONCE: Final = 1024
"""Tokens of prompts that are read together: enough for long products of matrices."""
REMEMBERED: Final = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers that remember keys and values, a pair a token, and nothing else."""
BY_DISTANCE: Final = frozenset({"bloom", "mpt"})
"""Families that need no positions, since all they know is how far away a token is (ALiBi)."""
MORE_COLUMNS: Final = frozenset({"blt", "dory", "git", "xlm"})
"""Families whose memory, or whose mask, has more columns or layers than there are tokens and
blocks.
"""

Ended = Callable[[Sequence[int]], bool]
"""Says whether these tokens, the last of them new, are a whole answer."""

Way = Literal["within", "beyond", "anew"]
"""How a prompt is decoded: with a memory, within or beyond the length up to which rotary positions
have the frequencies of short texts; or with everything shown anew for each token.
"""

Choose = Callable[
    [Float[Tensor, "prompt word"], Sequence[int], int],
    Int[Tensor, " prompt"],
]
"""Returns the next token of prompts from their logits, their numbers, and how many tokens each has
written.
"""


@dataclass(frozen=True)
class Generated:
    """What a model wrote: its tokens with those that ended it, and whether it was the limit that
    did.
    """

    ids: tuple[int, ...]
    cut: bool


class Decoder:
    """Continues `prompts` (token ids, at least one each) by up to `most` tokens, a batch at a time,
    each until `ended` says so. `choose` takes the next tokens; without it the most probable is.

    Raises `DataError` if the longest doesn't fit into the model's positions; `run` raises
    `NumericsError` for outputs that aren't finite. A model that remembers more than keys and
    values, such as a recurrent state, or counts positions itself is shown everything anew for each
    token, one prompt at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        most: int,
        ended: Ended,
        measured: str,
        choose: Choose | None = None,
    ) -> None:
        self.model = model
        self.prompts = [list(prompt) for prompt in prompts]
        self.most = most
        self.ended = ended
        self.measured = measured
        self.choose = choose or self._most_probable
        check_fit(prompts, most, longest_text(model), measured)
        check_tokens(model, max(map(max, prompts)))
        self.remembers = remembers(model)
        self.alike_up_to = rope_alike_up_to(model)
        self.alike_beyond = rope_alike_beyond(model)
        self.shared = 0
        self.within: list[list[int]] = []
        by_way = self._by_way(range(len(prompts)))
        # The beginning of a prompt beyond the length, read alone, would get the frequencies of
        # short texts, so nothing is shared with one.
        if "within" in by_way and "beyond" not in by_way:
            self.within = [self.prompts[number] for number in by_way["within"]]
            # At least one token of each prompt is shown in its batch: what it says comes next is
            # the first answer.
            self.shared = min(length_in_common(self.within), min(map(len, self.within)) - 1)

    def batches(self) -> Iterator[list[int]]:
        """Yield the numbers of the prompts that are decoded together: those of like length that are
        decoded in one way, the longest first. The same for the same prompts.
        """
        for way, numbers in self._by_way(range(len(self.prompts))).items():
            lengths = [len(self.prompts[number]) + self.most for number in numbers]
            # One prompt at a time where there is no memory to go on from.
            tokens = 1 if way == "anew" else TOKENS_PER_BATCH
            for places in by_length(lengths, tokens):
                yield [numbers[place] for place in places]

    @torch.no_grad()
    def run(self, batch: Sequence[int]) -> list[Generated]:
        """Return what the model writes after each of these prompts."""
        answers: dict[int, Generated] = {}
        for way, numbers in self._by_way(batch).items():
            if way == "anew":
                written = [self._without_cache(number) for number in numbers]
            else:
                written = self._with_cache(numbers)
            answers.update(zip(numbers, written, strict=True))
        return [answers[number] for number in batch]

    def _by_way(self, numbers: Iterable[int]) -> dict[Way, list[int]]:
        """Return the prompts that are decoded in each way."""
        by_way: dict[Way, list[int]] = {}
        for number in numbers:
            by_way.setdefault(self._way(number), []).append(number)
        return by_way

    def _way(self, number: int) -> Way:
        """Return how a prompt is decoded.

        Some rotary positions have other frequencies in a text beyond a length, so prompts of both
        sides make no batch. An answer that crosses it is written without a memory, since all that
        is remembered would have to turn; so is one of a model that remembers more.
        """
        length = len(self.prompts[number])
        if not self.remembers:
            return "anew"
        if self.alike_up_to is None or length + self.most <= self.alike_up_to:
            return "within"
        if self.alike_beyond is not None and length > self.alike_beyond:
            return "beyond"
        return "anew"

    def _with_cache(self, batch: Sequence[int]) -> list[Generated]:
        prompts = [self.prompts[number] for number in batch]
        width = max(map(len, prompts))
        logits, cache = self._read(prompts, width)
        left_out = [width - len(prompt) for prompt in prompts]
        shifts = torch.tensor(left_out, device=self.model.device)
        written: list[list[int]] = [[] for _ in prompts]
        unfinished = list(range(len(prompts)))
        step = 0
        while True:
            numbers = [batch[place] for place in unfinished]
            new_tokens = self.choose(logits, numbers, step)
            for place, token in zip(unfinished, new_tokens.tolist(), strict=True):
                written[place].append(token)
            # Rows of the batch whose answers aren't finished.
            remaining: list[int] = []
            for row, place in enumerate(unfinished):
                if not self._is_finished(written[place]):
                    remaining.append(row)
            if not remaining:
                return [self._generated(ids) for ids in written]
            if len(remaining) < len(unfinished):
                # Finished answers leave the batch; what they remembered goes with them.
                order = moved_together(remaining)
                kept = torch.tensor(order, device=new_tokens.device)
                cache.batch_select_indices(kept)
                shifts = shifts[kept]
                new_tokens = new_tokens[kept]
                unfinished = [unfinished[row] for row in order]
            width += 1
            step += 1
            # Only for steps, which take most of the time. For prompts, which are long, oneDNN
            # holds half as much memory again as the plan of a batch counts.
            with full_speed():
                logits = self._forward(new_tokens[:, None], width, shifts, cache)

    def _read(
        self, prompts: Sequence[list[int]], width: int
    ) -> tuple[Float[Tensor, "prompt word"], DynamicCache]:
        """Return the logits after each prompt, and what is remembered of them, aligned on the
        right in `width` columns. Behind these there is room for what is to be written.
        """
        rows: dict[tuple[int, ...], list[int]] = {}
        for row, prompt in enumerate(prompts):
            rows.setdefault(tuple(prompt), []).append(row)
        logits: dict[int, Tensor] = {}
        wholes: list[Tensor] = []
        for group in alike(list(rows), self.shared, TOKENS_READ_AT_ONCE):
            group_logits, group_cache = self._read_together(group)
            parts = list(chain.from_iterable(_pairs(group_cache)))
            if not wholes:
                wholes = [_columns(part, len(prompts), width + self.most) for part in parts]
            for place, prompt in enumerate(group):
                for row in rows[prompt]:
                    logits[row] = group_logits[place]
                    for whole, part in zip(wholes, parts, strict=True):
                        own = part[place, :, part.shape[2] - len(prompt) :]
                        whole[row, :, width - len(prompt) : width] = own
        cache = DynamicCache()
        pairs = zip(wholes[::2], wholes[1::2], strict=True)
        cache.layers.extend(ReservedLayer(keys, values, width) for keys, values in pairs)
        return torch.stack([logits[row] for row in range(len(prompts))]), cache

    def _read_together(
        self, prompts: Sequence[tuple[int, ...]]
    ) -> tuple[Float[Tensor, "prompt word"], DynamicCache]:
        """Return the logits after each of these prompts, the longest first, and what is remembered
        of them, aligned on the right.

        As many tokens are shown of each as the longest has behind the common beginning.
        """
        longest = len(prompts[0])
        shown = longest - self.shared
        device = self.model.device
        shifts = torch.tensor([longest - len(prompt) for prompt in prompts], device=device)
        # What is left out is masked. It may hold the first token's numbers.
        tokens = torch.arange(self.shared, device=device) - shifts[:, None]
        tokens = tokens.clamp(min=0)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(self._beginning):
            cache.update(_of_tokens(keys, tokens), _of_tokens(values, tokens), layer)
        ids = torch.tensor([prompt[-shown:] for prompt in prompts], device=device)
        return self._forward(ids, longest, shifts, cache), cache

    def _forward(
        self,
        ids: Int[Tensor, "row token"],
        width: int,
        shifts: Int[Tensor, " row"],
        cache: DynamicCache,
    ) -> Float[Tensor, "row word"]:
        """Return the logits after the last column of `ids`, which stand at the end of `width`
        columns of which each row leaves `shifts` out.
        """
        columns = torch.arange(width, device=ids.device)
        mask = (columns >= shifts[:, None]).long()
        # What is left out has no position, and is masked; its number must only be a valid one.
        positions = (columns - shifts[:, None]).clamp(min=0)
        positions = positions[:, width - ids.shape[1] :]
        optional = accepted(self.model, position_ids=positions, logits_to_keep=1)
        output = self.model(
            input_ids=ids, attention_mask=mask, cache=cache, use_cache=True, **optional
        )
        return output.logits[:, -1]

    def _without_cache(self, number: int) -> Generated:
        """Continue one prompt without a memory: every token is predicted from all before it, shown
        again.
        """
        prompt = self.prompts[number]
        written: list[int] = []
        limit = accepted(self.model, logits_to_keep=1)
        # `ended` looks at the last token, so there must be one.
        while not written or not self._is_finished(written):
            ids = torch.tensor([prompt + written], device=self.model.device)
            logits = self.model(input_ids=ids, use_cache=False, **limit).logits[:, -1]
            written.append(int(self.choose(logits, [number], len(written))))
        return self._generated(written)

    def _most_probable(
        self, logits: Float[Tensor, "row word"], numbers: Sequence[int], step: int
    ) -> Int[Tensor, " row"]:
        del numbers, step
        highest_logits, chosen = logits.max(-1)
        if not bool(highest_logits.isfinite().all()):
            raise NumericsError(
                f"{self.measured}: the model's outputs aren't finite, "
                f"so there is no most probable token",
                subject=self.measured,
            )
        return chosen

    def _is_finished(self, written: Sequence[int]) -> bool:
        return len(written) >= self.most or self.ended(written)

    def _generated(self, written: Sequence[int]) -> Generated:
        return Generated(tuple(written), cut=not self.ended(written))

    @cached_property
    def _beginning(self) -> list[tuple[Tensor, Tensor]]:
        """Keys and values `[1, head, token, feature]` of what all prompts that are read with a
        memory begin with, a pair a layer.
        """
        if not self.shared:
            return []
        cache = DynamicCache()
        ids = torch.tensor([self.within[0][: self.shared]], device=self.model.device)
        limit = accepted(self.model, logits_to_keep=1)
        self.model(input_ids=ids, cache=cache, use_cache=True, **limit)
        return _pairs(cache)


class ReservedLayer(DynamicLayer):
    """Keys and values `[row, head, position, feature]` with positions reserved for those to come.
    The usual layer copies all of them at every step.

    The first `filled` positions are filled.
    """

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._all_keys = keys
        self._all_values = values
        self._show(filled)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        begin = self.get_seq_length()
        end = begin + key_states.shape[2]
        # In place: the layer shows a view of what is filled so far.
        self._all_keys[:, :, begin:end] = key_states
        self._all_values[:, :, begin:end] = value_states
        return self._show(end)

    def batch_select_indices(self, indices: Tensor) -> None:
        end = self.get_seq_length()
        count = len(indices)
        places = torch.arange(count, device=indices.device)
        # Rows that stay where they are needn't be copied, and those that go are just not shown.
        moved = (indices != places).nonzero()[:, 0]
        for whole in (self._all_keys, self._all_values):
            part = whole[:, :, :end]
            part[moved] = part[indices[moved]]
        self._all_keys = self._all_keys[:count]
        self._all_values = self._all_values[:count]
        self._show(end)

    def _show(self, end: int) -> tuple[Tensor, Tensor]:
        self.keys = self._all_keys[:, :, :end]
        self.values = self._all_values[:, :, :end]
        return self.keys, self.values


def check_fit(
    prompts: Sequence[Sequence[int]], most: int, positions: int | None, measured: str
) -> None:
    """Raise `DataError` if the longest prompt and `most` tokens behind it don't fit into a model's
    positions; without a number of these, or with one below 1, nothing is too long.
    """
    longest = max(map(len, prompts))
    # XLNet says -1.
    if isinstance(positions, int) and 0 < positions < longest + most:
        raise DataError(
            f"{measured}: a prompt of {longest:,} tokens and {most:,} to write don't fit into "
            f"the model's {positions:,} positions; take fewer shots or shorter prompts",
            subject=measured,
        )


def moved_together(remaining: Sequence[int]) -> list[int]:
    """Return the rows that remain in an order in which few of them move: the last ones take the
    places of those that are gone.

    >>> moved_together([0, 2, 4, 5])
    [0, 5, 2, 4]
    """
    staying = set(remaining)
    count = len(remaining)
    moving = [row for row in remaining if row >= count]
    order: list[int] = []
    for place in range(count):
        if place in staying:
            order.append(place)
        else:
            order.append(moving.pop())
    return order


def remembers(model: PreTrainedModel) -> bool:
    """Return whether all that a model keeps of what it has read are keys and values, a pair a
    token and layer, and whether it can be told where the next tokens stand.

    Not where it counts the positions itself, by the columns of a batch (BART) or from the number of
    the padding token on (RoBERTa).
    """
    if getattr(model, "_is_stateful", False) or not accepted(model, cache=None):
        return False
    family = model.config.model_type
    if family in MORE_COLUMNS or positions_before_first(model):
        return False
    if family not in BY_DISTANCE and not accepted(model, position_ids=None):
        return False
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    return set(kinds) <= REMEMBERED


def accepted(model: PreTrainedModel, **arguments: Any) -> dict[str, Any]:
    """Return those of the arguments that the model's forward names: not every family has every
    one.
    """
    parameters = inspect.signature(model.forward).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many tokens both begin with."""
    for place, (token, other) in enumerate(zip(first, second, strict=False)):
        if token != other:
            return place
    return min(len(first), len(second))


def alike(
    prompts: Sequence[tuple[int, ...]], shared: int, most: int
) -> Iterator[list[tuple[int, ...]]]:
    """Yield lots of prompts that begin with the same `shared` tokens, the longest first. None is
    shorter than what the longest of its lot has behind these. A lot has at most `most` tokens
    there, or one prompt.

    >>> [[len(prompt) for prompt in lot] for lot in alike([(7,) * 9, (7,) * 4, (7,) * 5], 4, 99)]
    [[9, 5], [4]]
    """
    lot: list[tuple[int, ...]] = []
    for prompt in sorted(prompts, key=len, reverse=True):
        if lot:
            shown = len(lot[0]) - shared
            if len(prompt) < shown or (len(lot) + 1) * shown > most:
                yield lot
                lot = []
        lot.append(prompt)
    yield lot


def length_in_common(prompts: Sequence[list[int]]) -> int:
    """Return how many tokens all prompts begin with."""
    # As many as the first and the last in the order of their tokens have in common.
    return common_length(min(prompts), max(prompts))


def _pairs(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Return keys and values of each layer. All of them are kept, also where a layer has a window:
    the mask says which of them are seen.
    """
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]


def _of_tokens(
    part: Float[Tensor, "1 head token feature"], tokens: Int[Tensor, "row column"]
) -> Float[Tensor, "row head column feature"]:
    """Return what is remembered of these tokens."""
    return part[0][:, tokens].transpose(0, 1)


def _columns(
    part: Float[Tensor, "prompt head token feature"], rows: int, width: int
) -> Float[Tensor, "row head column feature"]:
    """Return zeros of the same kind, for as many prompts and columns."""
    return part.new_zeros(rows, part.shape[1], width, part.shape[3])
