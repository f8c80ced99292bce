"""Tells what a calibration set holds as a given model would see it, what the model makes of it, and
which experts of a mixture it reaches.

The model's loss says whether the texts are its kind of text. The share of the energy, Σx² over what
a matrix is multiplied with, says which tokens decide what is pruned: a start token or a template
that fills every statistic leaves little say to the texts themselves.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from calibrant.activations import FeatureNorms, Routing, wide
from calibrant.data import CalibrationSet, TokenBatch, as_set, micro_batches
from calibrant.data.calibration import KINDS
from calibrant.data.inspect.facts import Inspection, inspect_tokens
from calibrant.data.inspect.overlap import measurable
from calibrant.data.inspect.profiling import text_tokens
from calibrant.data.select import resolved
from calibrant.errors import ModelError, NumericsError
from calibrant.models import (
    ModelView,
    Opened,
    expert_layers,
    only_looks,
    open_tokenizer,
    opened_of,
    view,
)
from calibrant.models.readable import check_windows
from calibrant.numerics import type_name
from calibrant.options import InspectOptions, with_fields_of
from calibrant.system.products import exact
from calibrant.system.progress import Progress, silent
from calibrant.walk import walk, walk_blocks
from calibrant.walk.block_statistics import TokenKinds, coverage

TOKENS: Final = 8_192
"""How many tokens of a set a model is run on."""

TOKENS_PER_PASS: Final = 2_048
"""Tokens whose logits are held at once."""


@with_fields_of(InspectOptions)
@only_looks
def inspect(options: InspectOptions) -> Inspection:
    """Draw `data` and say what is in it, part by part, with the beginnings of a few windows, and
    what to fix.

    Without `model` a `tokenizer` reads it, else that of smollm2, and nothing is run. With it, its
    own tokenizer does, and `Inspection.model` has its loss on up to 8,192 tokens of the set, for
    each kind of token the share of the statistics that comes from it, and of a mixture of experts
    which of them get few tokens or none. `against` are sources whose measured rows the set's rows
    are compared with. The budget is that of `prune`, 128 windows, or as many tokens as there are
    where no budget is given and the sources hold less; of a `CalibrationSet` it is the set's own.
    Raises an `InputError` for a set, a model or a source that can't be used.
    """
    data = options.data
    calibration = as_set(data, options.samples, options.length, options.tokens, options.seed)
    reader, name = _reader(options)
    tokenizer = reader.tokenizer if isinstance(reader, Opened) else reader
    usual = f"{calibration.samples} windows of {calibration.length:,} tokens"
    held = None
    if calibration.at_most:
        calibration = calibration.fitted(tokenizer)
        held = calibration.budget
    elif not isinstance(data, CalibrationSet) and options.samples is None and not options.tokens:
        held = _tokens_held(calibration, tokenizer)
        if held is not None:
            calibration = CalibrationSet(
                calibration.expr, length=calibration.length, tokens=held, seed=calibration.seed
            )
    calibration = resolved(calibration, reader, options.progress)
    inspection = inspect_tokens(calibration, tokenizer, options.against)
    facts = None
    if isinstance(reader, Opened):
        facts = _model_facts(reader, calibration, options.progress)
    budget = dict(inspection.budget)
    if held is not None:
        budget["instead"] = usual
    return replace(inspection, tokenizer=name, model=facts, budget=budget)


def _reader(options: InspectOptions) -> tuple[Opened | PreTrainedTokenizerBase, str]:
    """Return what reads the set, and its name: a tokenizer alone, or a model, which is then run on
    it too.
    """
    if options.model is None:
        tokenizer = options.tokenizer
        if tokenizer is None:
            return open_tokenizer("smollm2")
        return tokenizer, tokenizer.name_or_path or type(tokenizer).__name__
    # A name that isn't there is said before a model is opened, which takes longer.
    measurable(options.against)
    opened = opened_of(options.model, options.tokenizer, options.dtype, options.device)
    return opened, opened.name


def _tokens_held(calibration: CalibrationSet, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return how many tokens the sources hold, if that is less than the set's budget; None where
    they hold enough, or where that can't be told in tokens.
    """
    if calibration.per_draw or not all(term.packing.fills for term in calibration.parts):
        return None
    most = calibration.samples * calibration.length
    tokens = calibration.most_tokens(tokenizer, most)
    if tokens in (0, most):
        return None
    return tokens


def _model_facts(opened: Opened, calibration: CalibrationSet, progress: Progress) -> dict[str, Any]:
    """Return what a model makes of a set."""
    whole = calibration.tokens(opened.tokenizer)
    check_windows(opened.model, whole.ids, whole.mask)
    model_view = view(opened.model)
    batch, kinds = _excerpt(whole, calibration.kinds(opened.tokenizer).long(), TOKENS)
    facts = {
        "name": opened.name,
        "note": opened.note,
        "dtype": type_name(opened.dtype),
        "loss": loss(opened, batch, progress),
        "energy": energy(model_view, batch, kinds, progress),
    }
    experts = expert_coverage(model_view, batch, int(whole.mask.sum()), progress)
    if experts is not None:
        facts["experts"] = experts
    return facts


def _excerpt(batch: TokenBatch, kinds: Tensor, most: int) -> tuple[TokenBatch, Tensor]:
    """Return sequences from all over the set, up to `most` tokens: the first, then the middle one,
    then those between, and so on.
    """
    count = len(batch.ids)
    digits = max(1, (count - 1).bit_length())

    # The digits of a place, in binary, read backwards (van der Corput): the first places are spread
    # over the whole, and the others fill the gaps.
    def reversed_digits(place: int) -> int:
        return int(format(place, f"0{digits}b")[::-1], 2)

    # At least one sequence, however long it is; its end is masked below.
    chosen: list[int] = []
    tokens_left = most
    for place in sorted(range(count), key=reversed_digits):
        tokens = int(batch.mask[place].sum())
        if tokens <= tokens_left or not chosen:
            chosen.append(place)
            tokens_left -= tokens
    rows = torch.tensor(sorted(chosen))
    mask = batch.mask[rows]
    mask = mask & (mask.cumsum(1) <= most)
    pads = None
    if batch.pads is not None:
        pads = batch.pads[rows] & mask
    excerpt = replace(
        batch,
        ids=batch.ids[rows],
        mask=mask,
        weights=batch.weights[rows] * mask,
        pads=pads,
        fingerprint="",
        examples=(),
        rows=(),
    )
    return excerpt, kinds[rows]


@torch.no_grad()
def loss(opened: Opened, batch: TokenBatch, progress: Progress = silent) -> dict[str, Any]:
    """Return the mean negative log likelihood of the batch's real tokens, in nats, each given those
    before it in its sequence.

    A sequence's first token has nothing to be predicted from; where there are no others, the mean
    is None. `NumericsError` where the outputs aren't finite.
    """
    scored = text_tokens(batch)
    device = opened.model.device
    nats = 0.0
    count = 0
    done = 0
    total = int(batch.mask.sum())
    # Micro-batches reorder ids, mask and weights alike: as weights, which tokens are texts' comes
    # along.
    for ids, mask, weights in micro_batches(
        replace(batch, weights=scored.float()), TOKENS_PER_PASS
    ):
        inputs = {"input_ids": ids.to(device)}
        if not bool(mask.all()):
            inputs["attention_mask"] = mask.to(device).long()
        logits: Tensor = opened.model(**inputs, use_cache=False).logits
        is_target = weights[:, 1:] > 0
        predicted = logits[:, :-1][is_target.to(device)]
        predicted = predicted.to(wide(predicted.dtype))
        targets = ids[:, 1:][is_target].to(device)
        # Summed in float64, so that the order of the batches hardly shows.
        nats += float(exact(cross_entropy(predicted, targets, reduction="none")).sum())
        count += int(is_target.sum())
        done += int(mask.sum())
        progress("loss of the model", done, total)
    if not count:
        return {"value": None, "tokens": 0, "unit": "nats/token"}
    value = nats / count
    if not math.isfinite(value):
        raise NumericsError(
            f"the loss of {opened.name} on this set is {value}: the model's outputs aren't finite",
            subject=opened.name,
        )
    return {"value": value, "tokens": count, "unit": "nats/token"}


def energy(
    view: ModelView, batch: TokenBatch, kinds: Tensor, progress: Progress = silent
) -> dict[str, Any]:
    """Return for each kind of token but content its share of Σx² in the untouched model's matrices;
    `kinds` says what each id is, as indices of `KINDS`.

    `tokens` is the kind's share of the tokens, for comparison; `median` and `most` are over
    matrices, `where` names the one with most; `matrices` sums over the matrices of one role, such
    as `mlp.down_proj`. Pads that count are a kind of their own.
    """
    text = text_tokens(batch)
    tokens_of_kinds: dict[str, Tensor] = {}
    for name in ("start", "special", "template"):
        tokens_of_kinds[name] = text & (kinds == KINDS.index(name))
    if batch.pads is not None:
        tokens_of_kinds["pad"] = batch.pads
    present: dict[str, Tensor] = {}
    for name, tokens in tokens_of_kinds.items():
        if bool((batch.weights * tokens).any()):
            present[name] = tokens
    blocks_to_walk = len(view.blocks) * (1 + len(present))
    blocks_done = 0

    def on_block(block: int) -> None:
        progress("energy", blocks_done + block, blocks_to_walk)

    # A statistic is a sum over tokens: what one kind adds to it is the same walk with the weights
    # of all other tokens at 0.
    whole_squares = _squares_by_matrix(view, batch, on_block)
    shares: dict[str, Any] = {}
    for name, tokens in present.items():
        blocks_done += len(view.blocks)
        squares = _squares_by_matrix(view, replace(batch, weights=batch.weights * tokens), on_block)
        share = float(tokens.sum() / batch.mask.sum())
        shares[name] = {"tokens": share, **_shares_of_squares(squares, whole_squares, view)}
    return {"tokens": int(batch.mask.sum()), "matrices": len(whole_squares), "kinds": shares}


def _squares_by_matrix(
    view: ModelView, batch: TokenBatch, on_block: Callable[[int], None]
) -> dict[str, float]:
    """Return Σx² of every matrix that tokens of weight reach, by name."""
    squares: dict[str, float] = {}
    steps = walk(view, batch, (FeatureNorms,), "dense", tokens_per_pass=TOKENS_PER_PASS)
    for weight, statistics in steps:
        squares[weight.name] = float(exact(statistics[FeatureNorms].norms()).sum())
        on_block(weight.block + 1)
    return squares


def _shares_of_squares(
    squares: Mapping[str, float], whole_squares: Mapping[str, float], view: ModelView
) -> dict[str, Any]:
    shares: dict[str, float] = {}
    for name, total in whole_squares.items():
        if total > 0:
            shares[name] = squares.get(name, 0.0) / total
    roles: dict[str, list[str]] = {}
    for block in view.blocks:
        for weight in block.weights:
            if weight.name in shares:
                name = weight.name.removeprefix(block.name + ".")
                # Without the number of an expert: all experts have the same role.
                role = re.sub(r"\[\d+\]|\.\d+(?=\.)", "", name)
                roles.setdefault(role, []).append(weight.name)
    summed: dict[str, float] = {}
    for role, names in roles.items():
        sum_of_kind = sum(squares.get(name, 0.0) for name in names)
        whole_sum = sum(whole_squares[name] for name in names)
        summed[role] = sum_of_kind / whole_sum
    if not shares:
        return {"median": 0.0, "most": 0.0, "where": "", "matrices": summed}
    name = max(shares, key=shares.__getitem__)
    return {
        "median": median(shares.values()),
        "most": shares[name],
        "where": name,
        "matrices": summed,
    }


@torch.no_grad()
def expert_coverage(
    view: ModelView, batch: TokenBatch, tokens: int, progress: Progress = silent
) -> dict[str, Any] | None:
    """Return what the experts of every layer get of `batch`, and would get of a set of so many
    `tokens` like it; None for a model without experts.

    By layer, in `layers`: what `coverage` says, with `counts` for the whole set, and `kinds`, how
    many kinds of tokens of the batch each got. `unseen` and `starved` count experts of all layers.
    Where a router can't be told, `why` says so, and there are no layers.
    """
    facts: dict[str, Any] = {
        "tokens": 0,
        "of": tokens,
        "experts": 0,
        "unseen": 0,
        "starved": 0,
        "why": "",
        "layers": {},
    }
    try:
        layers = {layer.block: layer for layer in expert_layers(view)}
    except ModelError as error:
        return {**facts, "why": str(error)}
    if not layers:
        return None
    facts["tokens"] = int((batch.weights > 0).sum())
    for block, seen in walk_blocks(view, batch, (Routing, TokenKinds)):
        if block.index in layers:
            layer = layers[block.index]
            routing = seen[Routing]
            inputs = layer.matrix.shape[1]
            # A weight counts here as in statistics, so counts are those of a set whose tokens all
            # weigh the same.
            covered = coverage(routing * (tokens / routing.mass), inputs)
            facts["layers"][layer.name] = {
                **covered,
                "inputs": inputs,
                "kinds": seen[TokenKinds].counts().tolist(),
            }
            facts["experts"] += covered["experts"]
            facts["unseen"] += len(covered["unseen"])
            facts["starved"] += len(covered["starved"])
        progress("experts", block.index + 1, len(view.blocks))
    return facts
