"""What a compressed model kept of a dense one's responses to words: by group, by block, by
document, and beside the loss.

How the damage of word groups goes with the loss is Spearman's rank correlation over groups, with an
interval over documents.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.errors import DataError
from calibrant.evaluators._base import items_of, mean_of
from calibrant.evaluators._responses import Pattern, Reading, Shown
from calibrant.evaluators._word_groups import Groups
from calibrant.results.outcomes import Measurement, Outcome, Score

DIGITS: Final = 5
"""Digits of the numbers that are stored of each group."""
RESAMPLES: Final = 400
"""Resamples of the documents, for an interval."""
LEVEL: Final = 0.95
FEWEST: Final = 8
"""Groups that a correlation is stated of at least."""

Table = Float[np.ndarray, "document group"]
"""Sums over the words of a group in a document."""
Column = Float[np.ndarray, " group"]


@final
@dataclass(frozen=True)
class DenseWords:
    """What a dense model showed on some windows: the number of neurons of each block, the groups,
    the windows with them, the pattern, and what the model itself shows of it.
    """

    widths: tuple[int, ...]
    groups: Groups
    readings: tuple[Reading, ...]
    pattern: Pattern
    shown: Shown

    @cached_property
    def known(self) -> list[int]:
        """The groups to which any neuron responds. `DataError` if there is none."""
        groups = self.pattern.known
        if not groups:
            raise DataError(
                f"no neuron responds to any of {len(self.groups.names)} groups of words more than "
                f"to shuffled ones; measure more tokens",
                subject="groups",
            )
        return groups

    @cached_property
    def documents(self) -> dict[str, list[int]]:
        """The windows of each document, the documents in the order of their keys."""
        documents: dict[str, list[int]] = {}
        for number, (words, _) in enumerate(self.readings):
            documents.setdefault(words.window.document, []).append(number)
        return {document: documents[document] for document in sorted(documents)}

    @cached_property
    def counts(self) -> Int[Tensor, "window group"]:
        """How many words of each group a window has."""
        size = len(self.groups.names)
        rows: list[Tensor] = []
        for _, labels in self.readings:
            inside = labels[labels >= 0]
            rows.append(torch.bincount(inside, minlength=size))
        return torch.stack(rows)

    def by_document(
        self, by_window: Float[Tensor, "window group"]
    ) -> Float[Tensor, "document group"]:
        """Return the sums over the windows of each document."""
        rows = [by_window[windows].sum(0) for windows in self.documents.values()]
        return torch.stack(rows)


@final
@dataclass(frozen=True)
class Forgotten:
    """What a model kept of a dense one's responses to words; `measured`, `length` and `seed` are
    the evaluator's.
    """

    measured: str
    length: int
    seed: int
    dense: DenseWords
    shown: Shown

    @cached_property
    def kept(self) -> Float[Tensor, " group"]:
        """The share kept of each group; NaN of one to which no neuron responds."""
        return self.shown.by_window.sum(0) / self.dense.shown.by_window.sum(0)

    @cached_property
    def raised(self) -> list[Float[Tensor, " _"]]:
        """By how many nats the loss of each scored token rose, window by window."""
        pairs = zip(self.shown.nats, self.dense.shown.nats, strict=True)
        return [ours - theirs for ours, theirs in pairs]

    @cached_property
    def raised_by_document(self) -> dict[str, tuple[float, int]]:
        """By how many nats the loss of each document rose in all, and over how many tokens."""
        raised: dict[str, tuple[float, int]] = {}
        for document, windows in self.dense.documents.items():
            nats = sum(float(self.raised[window].sum()) for window in windows)
            tokens = sum(len(self.raised[window]) for window in windows)
            raised[document] = (nats, tokens)
        return raised

    @cached_property
    def lost_by_block(self) -> Float[Tensor, "block group"]:
        """How much of each group's whole response each block lost: of a group they add up to its
        damage. NaN where no neuron responds.
        """
        dense = self.dense.shown.by_block
        return (dense - self.shown.by_block) / dense.sum(0)

    def measurement(self) -> Measurement:
        """Return the score, the outcomes, and what is stored of the groups."""
        outcomes = self._outcomes()
        count = len(outcomes)
        facts: dict[str, Any] = {
            "tokens": sum(int(outcome.facts["tokens"]) for outcome in outcomes),
            "documents": count,
            "length": self.length,
            "items": items_of(outcomes),
        }
        raised, error = mean_of(outcomes, "raised", "tokens")
        raised_score = Score(
            measured=self.measured,
            metric="raised",
            value=raised,
            stderr=error,
            n=count,
            unit="nats/token",
            better="lower",
            facts=facts,
        )
        kept, error = mean_of(outcomes)
        kept_score = Score(
            measured=self.measured,
            metric="kept",
            value=kept,
            stderr=error,
            n=count,
            unit="share",
            better="higher",
            chance=0.0,
            facts={**facts, **self._facts_of_groups()},
        )
        return Measurement(kept_score, tuple(outcomes), beside=(raised_score,))

    def _facts_of_groups(self) -> dict[str, Any]:
        """Return what is stored of the neurons, of how damage goes with the losses, and of each
        group.
        """
        return {
            **self._neurons(),
            **self._relation(self._document_losses).facts("rank_documents", self.seed),
            **self._relation(self._next_losses).facts("rank_next", self.seed),
            "words": self.table(),
        }

    def table(self) -> dict[str, list[Any]]:
        """Return what is known of each group as columns: its name, words, documents and neurons,
        what is kept of it, by how many nats a token the losses of the documents that hold it and
        of the tokens behind it rose, and the block that lost most of it.
        """
        groups = self.dense.known
        pattern = self.dense.pattern
        frequency = self.dense.by_document(self.dense.counts.double())
        holding = (frequency > 0).sum(0)
        # Of a group without responses every block is NaN; any will do, since it isn't shown.
        most_lost = self.lost_by_block.nan_to_num(-torch.inf).argmax(0)
        raised_documents = self._document_losses.by_token()
        raised_next = self._next_losses.by_token()
        return {
            "word": [self.dense.groups.names[group] for group in groups],
            "count": [int(pattern.counts[group]) for group in groups],
            "documents": [int(holding[group]) for group in groups],
            "neurons": [int(pattern.sizes[:, group].sum()) for group in groups],
            "kept": [round(float(self.kept[group]), DIGITS) for group in groups],
            "raised_documents": [_rounded(raised_documents[group]) for group in groups],
            "raised_next": [_rounded(raised_next[group]) for group in groups],
            "block": [int(most_lost[group]) for group in groups],
        }

    def _outcomes(self) -> list[Outcome]:
        dense = self.dense
        counts = dense.counts.double()
        # Each group counts alike: a word of a group that stands n times weighs 1/n.
        weight = counts / counts.sum(0)
        total = dense.shown.by_window.sum(0)
        # What was lost is taken from 1, word by word, so that the dense model's own outcomes are
        # exactly their weights.
        value = weight - (dense.shown.by_window - self.shown.by_window) / total
        values = dense.by_document(value)[:, dense.known].sum(1)
        weights = dense.by_document(weight)[:, dense.known].sum(1)
        words = dense.by_document(counts)[:, dense.known].sum(1)
        outcomes: list[Outcome] = []
        for number, document in enumerate(dense.documents):
            # A document without a word of any group says nothing of what is kept.
            if words[number]:
                raised, tokens = self.raised_by_document[document]
                facts = {"raised": raised, "tokens": tokens, "words": int(words[number])}
                outcome = Outcome(document, float(values[number]), float(weights[number]), facts)
                outcomes.append(outcome)
        return outcomes

    def _neurons(self) -> dict[str, Any]:
        """Return what is stored of the neurons and the blocks."""
        known = self.dense.known
        pattern = self.dense.pattern
        thresholds: dict[str, float | None] = {}
        for kind, least in sorted(pattern.thresholds.items()):
            thresholds[f"{2 ** (kind - 1)} to {2**kind - 1} words"] = _rounded(least)
        by_block = self.dense.shown.by_block[:, known]
        whole_shares = (by_block / by_block.sum(0)).sum(1).tolist()
        lost_shares = self.lost_by_block[:, known].sum(1).tolist()
        kept: list[float | None] = []
        for lost, whole in zip(lost_shares, whole_shares, strict=True):
            # A block to whose neurons no group belongs has nothing to keep.
            kept_share = None
            if whole:
                kept_share = _rounded(1 - lost / whole)
            kept.append(kept_share)
        groups = self.dense.groups
        return {
            "groups": len(known),
            "groups_left_out": groups.left_out + len(groups.names) - len(known),
            "neurons": sum(self.dense.widths),
            "responses": pattern.found,
            "responses_tested": pattern.tested,
            "thresholds": thresholds,
            "kept_by_block": kept,
        }

    def _relation(self, losses: "_Losses") -> "Relation":
        groups = self.dense.known

        def of_known(table: Float[Tensor, "document every"]) -> Table:
            return table[:, groups].numpy()

        return Relation(
            dense=of_known(self.dense.by_document(self.dense.shown.by_window)),
            shown=of_known(self.dense.by_document(self.shown.by_window)),
            raised=of_known(losses.raised),
            tokens=of_known(losses.tokens),
            frequency=of_known(losses.frequency),
        )

    @cached_property
    def _document_losses(self) -> "_Losses":
        """The losses of the documents that hold a group."""
        frequency = self.dense.by_document(self.dense.counts.double())
        holds = (frequency > 0).double()
        # [document, 2]: the nats, and the tokens.
        sums = torch.tensor(list(self.raised_by_document.values()), dtype=torch.float64)
        nats, tokens = sums.split(1, dim=1)
        return _Losses(holds * nats, holds * tokens, frequency)

    @cached_property
    def _next_losses(self) -> "_Losses":
        """The losses of the tokens behind a group's words."""
        raised = torch.zeros(self.dense.counts.shape, dtype=torch.float64)
        tokens = torch.zeros(self.dense.counts.shape, dtype=torch.float64)
        for number, (words, labels) in enumerate(self.dense.readings):
            nats = self.raised[number]
            # A word is read at its last token; the next one's loss stands one place further on,
            # among the scored tokens.
            behind = torch.tensor(words.places, dtype=torch.long) + 1 - words.window.unscored
            inside = (labels >= 0) & (behind >= 0) & (behind < len(nats))
            groups = labels[inside]
            raised[number].index_add_(0, groups, nats[behind[inside]])
            tokens[number].index_add_(0, groups, torch.ones(len(groups), dtype=torch.float64))
        by_document = self.dense.by_document(tokens)
        return _Losses(self.dense.by_document(raised), by_document, by_document)


@dataclass(frozen=True)
class _Losses:
    """By how many nats the losses of what belongs to a group rose in each document, over how many
    tokens, and how often the group is there.
    """

    raised: Float[Tensor, "document group"]
    tokens: Float[Tensor, "document group"]
    frequency: Float[Tensor, "document group"]

    def by_token(self) -> Column:
        """Return the nats a token of each group; not finite where there are no tokens."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.raised.sum(0).numpy() / self.tokens.sum(0).numpy()


@final
@dataclass(frozen=True)
class Relation:
    """Sums by document and group that the damage and the loss of each group follow from.

    `dense` and `shown` are the dense model's and the compressed one's part in the pattern; `raised`
    is by how many nats the losses of what belongs to a group rose, of `tokens` tokens. `frequency`
    is how often the group is there.
    """

    dense: Table
    shown: Table
    raised: Table
    tokens: Table
    frequency: Table

    def facts(self, name: str, seed: int) -> dict[str, float | None]:
        """Return the correlation under `name`, its interval, and the correlation at equal
        frequency of the groups; nothing for few groups.
        """
        documents = len(self.dense)
        every_once = np.ones(documents)
        value, at_equal_frequency = self._correlations(every_once)
        if value is None:
            return {}
        generator = np.random.default_rng(seed)
        resampled: list[float] = []
        # A single document says nothing of others.
        resamples = RESAMPLES if documents > 1 else 0
        for _ in range(resamples):
            # A resample of the documents: how often each was drawn.
            weights = generator.multinomial(documents, every_once / documents).astype(np.float64)
            resampled_value, _ = self._correlations(weights)
            if resampled_value is not None:
                resampled.append(resampled_value)
        lower_end: float | None = None
        upper_end: float | None = None
        if resampled:
            lower_end, upper_end = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        facts: dict[str, float | None] = {
            name: value,
            f"{name}_low": lower_end,
            f"{name}_high": upper_end,
            f"{name}_at_equal_frequency": at_equal_frequency,
        }
        for key, number in facts.items():
            if number is not None:
                facts[key] = round(float(number), 6)
        return facts

    def columns(self, weights: Float[np.ndarray, " document"]) -> tuple[Column, Column, Column]:
        """Return damage, nats a token and frequency of each group, its documents counted as
        often as `weights` says; NaN where there is nothing.
        """
        dense = weights @ self.dense
        shown = weights @ self.shown
        raised = weights @ self.raised
        tokens = weights @ self.tokens
        frequency = weights @ self.frequency
        with np.errstate(divide="ignore", invalid="ignore"):
            damage = np.where(dense > 0, 1 - shown / dense, np.nan)
            loss = np.where(tokens > 0, raised / tokens, np.nan)
        return damage, loss, frequency

    def _correlations(
        self, weights: Float[np.ndarray, " document"]
    ) -> tuple[float | None, float | None]:
        """Return the rank correlation of damage and loss, and that at equal frequency."""
        damage, loss, frequency = self.columns(weights)
        finite = np.isfinite(damage) & np.isfinite(loss)
        if finite.sum() < FEWEST:
            return None, None
        damage = ranks(damage[finite])
        loss = ranks(loss[finite])
        frequency = ranks(frequency[finite])
        # A partial rank correlation: what frequency explains of either is taken off.
        at_equal_frequency = correlation(_without(damage, frequency), _without(loss, frequency))
        return correlation(damage, loss), at_equal_frequency


def ranks(values: Column) -> Column:
    """Return the rank of each value from 0 on; equal ones share the mean of theirs."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    # Equal values take the ranks from `ends - counts` to `ends - 1`.
    return ((ends - counts + ends - 1) / 2)[places]


def correlation(first_column: Column, second_column: Column) -> float | None:
    """Return Pearson's correlation; None where one of the two doesn't vary."""
    first_column = first_column - first_column.mean()
    second_column = second_column - second_column.mean()
    size = float(np.sqrt((first_column @ first_column) * (second_column @ second_column)))
    # Of constant ranks rounding leaves a little more than zero.
    if size > 1e-12 * len(first_column):
        return float(first_column @ second_column) / size
    return None


def _without(values: Column, removed: Column) -> Column:
    """Return what is left of ranks once their straight line over others is taken off."""
    centred = values - values.mean()
    removed = removed - removed.mean()
    size = float(removed @ removed)
    if size == 0:
        return centred
    return centred - removed * float(removed @ values) / size


def _rounded(value: float) -> float | None:
    return round(float(value), DIGITS) if np.isfinite(value) else None
