"""What a compressed model kept of a dense one's responses to words: by group, by block, by
document, and beside the loss.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from calibrant.errors import DataError
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._relating import Relation
from calibrant.evaluators._responses import Pattern, Reading, Shown
from calibrant.evaluators._word_groups import Groups
from calibrant.results.outcomes import Measurement, Outcome, Score
from calibrant.spec import identity

DIGITS: Final = 5
"""Of the numbers that are stored of each group."""


@final
@dataclass(frozen=True)
class DenseWords:
    """What a dense model showed on some windows: its neurons by block, the groups, the windows
    with them, the pattern, and what it shows of it.
    """

    widths: tuple[int, ...]
    groups: Groups
    readings: tuple[Reading, ...]
    pattern: Pattern
    shown: Shown

    @cached_property
    def known(self) -> list[int]:
        """The groups to which any neuron responds. `DataError` if there is none."""
        known = self.pattern.known
        if not known:
            raise DataError(
                f"no neuron responds to any of {len(self.groups.names)} groups of words more than to shuffled ones; measure more tokens",
                subject="groups",
            )
        return known

    @cached_property
    def documents(self) -> dict[str, list[int]]:
        """The windows of each document, the documents in the order of their keys."""
        found: dict[str, list[int]] = {}
        for at, (words, _) in enumerate(self.readings):
            found.setdefault(words.window.document, []).append(at)
        return {document: found[document] for document in sorted(found)}

    @cached_property
    def counts(self) -> Int[Tensor, "window group"]:
        """How many words of each group a window has."""
        size = len(self.groups.names)
        return torch.stack(
            [torch.bincount(labels[labels >= 0], minlength=size) for _, labels in self.readings]
        )


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
        return [
            ours - theirs
            for ours, theirs in zip(self.shown.nats, self.dense.shown.nats, strict=True)
        ]

    @cached_property
    def lost_by_block(self) -> Float[Tensor, "block group"]:
        """How much of each group's whole response each block lost: of a group they add up to its
        damage. NaN where no neuron responds.
        """
        return (self.dense.shown.by_block - self.shown.by_block) / self.dense.shown.by_block.sum(0)

    def measurement(self) -> Measurement:
        """Return the score, the outcomes, and what is stored of the groups."""
        outcomes = tuple(self._outcomes())
        weights, n = [o.weight for o in outcomes], len(outcomes)
        kept = ratio([o.value for o in outcomes], weights)
        tokens = [float(o.facts["tokens"]) for o in outcomes]
        increase = ratio([float(o.facts["raised"]) for o in outcomes], tokens)
        facts = {
            "tokens": int(sum(tokens)),
            "documents": n,
            "length": self.length,
            "items": identity([[o.item, o.weight] for o in outcomes]),
        }
        beside = Score(self.measured, "raised", *increase, n, "nats/token", "lower", facts=facts)
        known = (
            facts
            | self._found()
            | self.relation("documents").facts("rank_documents", self.seed)
            | self.relation("next").facts("rank_next", self.seed)
        )
        return Measurement(
            Score(
                self.measured,
                "kept",
                *kept,
                n,
                "share",
                "higher",
                0.0,
                known | {"words": self.table()},
            ),
            outcomes,
            beside=(beside,),
        )

    def table(self) -> dict[str, list[Any]]:
        """Return what is known of each group as columns: its name, words, documents and neurons,
        what is kept of it, by how many nats a token the losses of the documents that hold it and
        of the tokens behind it rose, and the block that lost most of it.
        """
        known = self.dense.known
        holding_it, after = (self._raised(which) for which in ("documents", "next"))
        lost = self.lost_by_block.nan_to_num(-torch.inf).argmax(0)
        holding = (self._by_document(self.dense.counts.double()) > 0).sum(0)
        columns: dict[str, list[Any]] = {
            "word": [self.dense.groups.names[g] for g in known],
            "count": [int(self.dense.pattern.counts[g]) for g in known],
            "documents": [int(holding[g]) for g in known],
            "neurons": [int(self.dense.pattern.sizes[:, g].sum()) for g in known],
            "kept": [round(float(self.kept[g]), DIGITS) for g in known],
            "raised_documents": [_rounded(holding_it[g]) for g in known],
            "raised_next": [_rounded(after[g]) for g in known],
            "block": [int(lost[g]) for g in known],
        }
        return columns

    def relation(self, which: str) -> Relation:
        """Return what damage has to do with the loss of the documents that hold a group
        (`documents`), or of the tokens behind it (`next`).
        """
        known = self.dense.known
        dense, own = (self._by_document(one.by_window) for one in (self.dense.shown, self.shown))
        raised, tokens = self._of_documents if which == "documents" else self._of_next
        return Relation(*(table[:, known].numpy() for table in (dense, own, raised, tokens)))

    def _outcomes(self) -> list[Outcome]:
        known, counts = self.dense.known, self.dense.counts.double()
        total, of_all = self.dense.shown.by_window.sum(0), counts.sum(0)
        # What was lost is taken from 1, word by word, so that the dense model's own outcomes are
        # exactly their weights.
        value = counts / of_all - (self.dense.shown.by_window - self.shown.by_window) / total
        values, weights = (
            self._by_document(each)[:, known].sum(1) for each in (value, counts / of_all)
        )
        words = self._by_document(counts)[:, known].sum(1)
        found: list[Outcome] = []
        for at, (document, windows) in enumerate(self.dense.documents.items()):
            raised, tokens = (
                sum(float(one) for one in each)
                for each in zip(
                    *((self.raised[w].sum(), len(self.raised[w])) for w in windows), strict=True
                )
            )
            if words[at]:
                facts = {"raised": raised, "tokens": int(tokens), "words": int(words[at])}
                found.append(Outcome(document, float(values[at]), float(weights[at]), facts))
        return found

    def _found(self) -> dict[str, Any]:
        """What is stored of the neurons and the blocks."""
        known, of = self.dense.known, self.dense.pattern
        whole = self.dense.shown.by_block[:, known] / self.dense.shown.by_block[:, known].sum(0)
        lost = self.lost_by_block[:, known]
        return {
            "groups": len(known),
            "groups_left_out": self.dense.groups.left_out
            + len(self.dense.groups.names)
            - len(known),
            "neurons": sum(self.dense.widths),
            "responses": of.found,
            "responses_tested": of.tested,
            "thresholds": {
                f"{2 ** (one - 1)} to {2**one - 1} words": _rounded(z)
                for one, z in sorted(of.thresholds.items())
            },
            "kept_by_block": [
                _rounded(1 - float(a) / float(b)) if b else None
                for a, b in zip(lost.sum(1), whole.sum(1), strict=True)
            ],
        }

    def _by_document(
        self, by_window: Float[Tensor, "window group"]
    ) -> Float[Tensor, "document group"]:
        return torch.stack([by_window[windows].sum(0) for windows in self.dense.documents.values()])

    def _raised(self, which: str) -> np.ndarray:
        raised, tokens = self._of_documents if which == "documents" else self._of_next
        with np.errstate(divide="ignore", invalid="ignore"):
            return raised.sum(0).numpy() / tokens.sum(0).numpy()

    @cached_property
    def _of_documents(
        self,
    ) -> tuple[Float[Tensor, "document group"], Float[Tensor, "document group"]]:
        """By how many nats the loss of each document rose, and its tokens, where it holds a
        group; else 0.
        """
        holds = (self._by_document(self.dense.counts.double()) > 0).double()
        raised = torch.tensor(
            [
                sum(float(self.raised[w].sum()) for w in windows)
                for windows in self.dense.documents.values()
            ],
            dtype=torch.float64,
        )
        tokens = torch.tensor(
            [
                sum(len(self.raised[w]) for w in windows)
                for windows in self.dense.documents.values()
            ],
            dtype=torch.float64,
        )
        return holds * raised[:, None], holds * tokens[:, None]

    @cached_property
    def _of_next(self) -> tuple[Float[Tensor, "document group"], Float[Tensor, "document group"]]:
        """By how many nats the losses of the tokens behind a group's words rose, and how many
        those are.
        """
        raised, tokens = (
            torch.zeros(self.dense.counts.shape, dtype=torch.float64) for _ in range(2)
        )
        for at, (words, labels) in enumerate(self.dense.readings):
            behind = torch.tensor(words.places, dtype=torch.long) + 1 - words.window.unscored
            inside = (labels >= 0) & (behind >= 0) & (behind < len(self.raised[at]))
            raised[at].index_add_(0, labels[inside], self.raised[at][behind[inside]])
            tokens[at].index_add_(
                0, labels[inside], torch.ones(int(inside.sum()), dtype=torch.float64)
            )
        return self._by_document(raised), self._by_document(tokens)


def _rounded(value: float) -> float | None:
    return round(float(value), DIGITS) if np.isfinite(value) else None
