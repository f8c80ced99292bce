"""What a calibration set holds, as a given model would see it; and, where the model is to be run,
what it makes of it.

The model's loss says whether the texts are its kind of text. The share of the energy, Σx² over what
a matrix is multiplied with, says which tokens decide what is pruned: a start token or a template
that fills every statistic leaves little say to the texts themselves.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrant.activations import FeatureNorms
from calibrant.data import CalibrationSet, Source, TokenBatch, micro_batches
from calibrant.data.calibration import KINDS
from calibrant.data.inspect.experts import expert_coverage
from calibrant.data.inspect.facts import Inspection, inspect_tokens
from calibrant.data.inspect.overlap import measurable
from calibrant.data.select import resolved
from calibrant.errors import NumericsError
from calibrant.models import ModelView, Opened, open_model, open_tokenizer, view
from calibrant.options import DataOptions, InspectOptions, with_fields_of
from calibrant.system.progress import Progress, silent
from calibrant.walk import walk

TOKENS: Final = 8_192
"""How much of a set a model is run on."""

TOKENS_PER_PASS: Final = 2_048
"""Tokens whose logits are held at once."""


@with_fields_of(InspectOptions)
def inspect(options: InspectOptions) -> Inspection:
    """Draw `data` and say what is in it, part by part, with the beginnings of a few windows, and
    what to fix.

    Without `model` the tokenizer of smollm2 reads it and nothing is run. With it, its own tokenizer
    does, and `Inspection.model` has its loss on up to 8,192 tokens of the set, for each kind of
    token the share of the statistics that comes from it, and of a mixture of experts which of them
    get few tokens or none. `against` are sources whose measured rows the set's rows are compared
    with. The budget is that of `prune`, 128 windows, or as many tokens as there are where no budget
    is given and the sources hold less; of a `CalibrationSet` it is the set's own. Raises an
    `InputError` for a set, a model or a source that can't be used.
    """
    data = options.data
    model = options.model
    if isinstance(data, CalibrationSet):
        fixed = True
        chosen = data
    else:
        fixed = options.samples is not None or options.tokens is not None
        samples = options.samples or DataOptions.samples
        chosen = CalibrationSet(data, samples, options.length, options.tokens, options.seed)
    if model is None:
        tokenizer, name = open_tokenizer("smollm2")
        chosen = chosen if fixed else _held(data, chosen, tokenizer)
        inspection = inspect_tokens(
            resolved(chosen, tokenizer, options.progress), tokenizer, options.against
        )
        return replace(
            inspection, tokenizer=name, budget={**inspection.budget, **_instead(chosen, fixed)}
        )
    measurable(
        options.against
    )  # a name that isn't there is said before a model is opened, which takes longer
    opened = (
        model if isinstance(model, Opened) else open_model(model, options.dtype, options.device)
    )
    chosen = resolved(
        chosen if fixed else _held(data, chosen, opened.tokenizer), opened, options.progress
    )
    inspection = inspect_tokens(chosen, opened.tokenizer, options.against)
    whole, seen_by = chosen.tokens(opened.tokenizer), view(opened.model)
    batch, kinds = _excerpt(whole, chosen.kinds(opened.tokenizer).long(), TOKENS)
    facts = {
        "name": opened.name,
        "note": opened.note,
        "dtype": str(opened.dtype).removeprefix("torch."),
        "loss": loss(opened, batch, options.progress),
        "energy": energy(seen_by, batch, kinds, options.progress),
    }
    if (
        covered := expert_coverage(seen_by, batch, int(whole.mask.sum()), options.progress)
    ) is not None:
        facts["experts"] = covered
    return replace(
        inspection,
        tokenizer=opened.name,
        model=facts,
        budget={**inspection.budget, **_instead(chosen, fixed)},
    )


def _held(
    data: str | Source | CalibrationSet, chosen: CalibrationSet, tokenizer: PreTrainedTokenizerBase
) -> CalibrationSet:
    """Return the set, with all the tokens that there are for its budget if the sources hold less
    than that.
    """
    most = chosen.samples * chosen.length
    if chosen.per_draw or not all(term.packing.fills for term in chosen.parts):
        return chosen
    tokens = chosen.most_tokens(tokenizer, most)
    if tokens in (0, most) or isinstance(data, CalibrationSet):
        return chosen
    return CalibrationSet(data, length=chosen.length, tokens=tokens, seed=chosen.seed)


def _instead(chosen: CalibrationSet, fixed: bool) -> dict[str, str]:
    """Return what was to be drawn, where there was less."""
    return (
        {}
        if fixed or chosen.budget is None
        else {"instead": f"{chosen.samples} windows of {chosen.length:,} tokens"}
    )


def _excerpt(batch: TokenBatch, kinds: Tensor, most: int) -> tuple[TokenBatch, Tensor]:
    """Sequences from all over the set, up to `most` tokens: the first, then the middle one, then
    those between, and so on.
    """
    # The digits of a place, in binary, read backwards: the first places are spread over the whole,
    # and the others fill the gaps.
    digits = max(1, (len(batch.ids) - 1).bit_length())
    order = sorted(range(len(batch.ids)), key=lambda i: int(format(i, f"0{digits}b")[::-1], 2))
    chosen: list[int] = []
    left = most
    for i in order:
        size = int(batch.mask[i].sum())
        if size <= left or not chosen:
            chosen.append(i)
            left -= size
    rows = torch.tensor(sorted(chosen))
    mask = batch.mask[rows] & (batch.mask[rows].cumsum(1) <= most)
    pads = None if batch.pads is None else batch.pads[rows] & mask
    weights = batch.weights[rows] * mask
    return replace(
        batch,
        ids=batch.ids[rows],
        mask=mask,
        weights=weights,
        pads=pads,
        fingerprint="",
        examples=(),
        rows=(),
    ), kinds[rows]


@torch.no_grad()
def loss(opened: Opened, batch: TokenBatch, progress: Progress = silent) -> dict[str, Any]:
    """Mean negative log likelihood of the batch's real tokens, in nats, each given those before it
    in its sequence.

    A sequence's first token has nothing to be predicted from. `NumericsError` where the outputs
    aren't finite.
    """
    scored = batch.mask if batch.pads is None else batch.mask & ~batch.pads
    nats, count, done = 0.0, 0, 0
    for ids, mask, scored_here in micro_batches(
        replace(batch, weights=scored.float()), TOKENS_PER_PASS
    ):
        where = opened.model.device
        padding = {} if bool(mask.all()) else {"attention_mask": mask.to(where).long()}
        logits: Tensor = opened.model(input_ids=ids.to(where), use_cache=False, **padding).logits
        rows = scored_here[:, 1:] > 0
        wide = logits[:, :-1][rows.to(where)]
        wide = wide.to(torch.float64 if wide.dtype == torch.float64 else torch.float32)
        each = torch.nn.functional.cross_entropy(wide, ids[:, 1:][rows].to(where), reduction="none")
        nats, count, done = (
            nats + float(each.double().sum()),
            count + int(rows.sum()),
            done + int(mask.sum()),
        )
        progress("loss of the model", done, int(batch.mask.sum()))
    value = nats / count if count else 0.0
    if not math.isfinite(value):
        raise NumericsError(
            f"the loss of {opened.name} on this set is {value}: the model's outputs aren't finite",
            subject=opened.name,
        )
    return {"value": value, "tokens": count, "unit": "nats/token"}


def energy(
    view: ModelView, batch: TokenBatch, kinds: Tensor, progress: Progress = silent
) -> dict[str, Any]:
    """For each kind of token but content, its share of Σx² in the untouched model's matrices;
    `kinds` says what each id is, as indices of `KINDS`.

    `tokens` is the kind's share of the tokens, for comparison; `median` and `most` are over
    matrices, `where` names the one with most; `matrices` sums over the matrices of one role, such
    as `mlp.down_proj`. Pads that count are a kind of their own.
    """
    pads = torch.zeros_like(batch.mask) if batch.pads is None else batch.pads
    classes = {name: batch.mask & ~pads & (kinds == KINDS.index(name)) for name in KINDS[:0:-1]} | {
        "pad": pads
    }
    present = {
        name: tokens for name, tokens in classes.items() if bool((batch.weights * tokens).any())
    }
    steps = len(view.blocks) * (1 + len(present))
    # A statistic is a sum over tokens: what one kind adds to it is the same walk with the weights
    # of all other tokens at 0.
    whole = _squares(view, batch, lambda block: progress("energy", block, steps))
    shares: dict[str, Any] = {}
    for number, (name, tokens) in enumerate(present.items(), 1):
        only = replace(batch, weights=batch.weights * tokens)
        squares = _squares(
            view,
            only,
            lambda block, done=number: progress("energy", done * len(view.blocks) + block, steps),
        )
        shares[name] = {
            "tokens": float(tokens.sum() / batch.mask.sum()),
            **_shares(squares, whole, view),
        }
    return {"tokens": int(batch.mask.sum()), "matrices": len(whole), "kinds": shares}


def _squares(view: ModelView, batch: TokenBatch, on_block: Any) -> dict[str, float]:
    """Σx² of every matrix that tokens of weight reach, by name."""
    squares: dict[str, float] = {}
    for weight, seen in walk(
        view, batch, (FeatureNorms,), "dense", tokens_per_pass=TOKENS_PER_PASS
    ):
        squares[weight.name] = float(seen[FeatureNorms].norms().double().sum())
        on_block(weight.block + 1)
    return squares


def _shares(
    squares: Mapping[str, float], whole: Mapping[str, float], view: ModelView
) -> dict[str, Any]:
    shares = {name: squares.get(name, 0.0) / total for name, total in whole.items() if total > 0}
    roles: dict[str, list[str]] = {}
    for block in view.blocks:
        for weight in block.weights:
            if weight.name in shares:
                # The name of a matrix in its block, the same for all experts.
                role = re.sub(
                    r"\[\d+\]|\.\d+(?=\.)", "", weight.name.removeprefix(block.name + ".")
                )
                roles.setdefault(role, []).append(weight.name)
    summed = {
        role: sum(squares.get(name, 0.0) for name in names) / sum(whole[name] for name in names)
        for role, names in roles.items()
    }
    where = max(shares, key=lambda name: shares[name], default="")
    return {
        "median": median(shares.values()) if shares else 0.0,
        "most": shares.get(where, 0.0),
        "where": where,
        "matrices": summed,
    }
