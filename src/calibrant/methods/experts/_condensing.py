"""What CD-MoE searches with: what a layer of experts and each of its experts did to some tokens,
and how far a choice of experts is from that.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Final, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from calibrant.activations import Routing
from calibrant.data import TokenBatch, micro_batches
from calibrant.edits import Condense
from calibrant.errors import ModelError, NumericsError, SpecError
from calibrant.job import Job
from calibrant.methods._searching import Choice
from calibrant.methods.experts._training import train
from calibrant.models import Condensed, ExpertLayer, ModelView, condensed, expert_layers
from calibrant.models.condensing import alone, shared_of
from calibrant.walk import TOKENS_PER_PASS
from calibrant.walk.products import hidden_of, inputs_of
from calibrant.walk.ranks import Ranks
from calibrant.walk.variants import AS_IT_IS, Variant

ROWS_AT_ONCE: Final = 256
"""Tokens whose distributions are compared at a time."""
GATED: Final = 0.05
"""How much of what a layer gives beside its routed experts, as a share of its size, may be
anything but the shared expert times a number.
"""


def divergence(
    before: Float[Tensor, "token hidden"], after: Float[Tensor, "token hidden"]
) -> Float[Tensor, "token"]:
    """Return the Jensen–Shannon divergence of two hidden states as distributions over the features,
    in nats: 0 for equal ones, log 2 at most.

    A state is made a distribution by a softmax, as CD-MoE's code does. It is computed in float64:
    states that are nearly equal differ in the square.

    >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])).tolist()
    [0.0]
    """
    kind = torch.float64 if before.device.type != "mps" else torch.float32
    half = torch.log(torch.tensor(2.0, dtype=kind, device=before.device))
    found: list[Tensor] = []
    for rows, others in zip(before.split(ROWS_AT_ONCE), after.split(ROWS_AT_ONCE), strict=True):
        p = rows.to(kind).log_softmax(-1)
        q = others.to(kind).log_softmax(-1)
        middle = torch.logaddexp(p, q) - half
        both = 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1)
        # Rounding may leave it a little below zero.
        found.append(both.clamp_min(0))
    return torch.cat(found) if found else before.new_zeros(0, dtype=kind)


@final
@dataclass(frozen=True)
class LayerSample:
    """What a layer of experts did to the real tokens of one micro-batch.

    `after` is what the block gave and `given` what the layer did; `beside` is what the layer gave
    beside its routed experts, and `shared` what the shared expert gives without a gate (neither in
    a layer without one). `weights` say how much each token counts: over all micro-batches they add
    up to 1.
    """

    x: Float[Tensor, "token hidden"]
    after: Float[Tensor, "token hidden"]
    given: Float[Tensor, "token hidden"]
    beside: Float[Tensor, "token hidden"] | None
    shared: Float[Tensor, "token hidden"] | None
    weights: Float[Tensor, "token"]

    def gate_sum(self, layer: ExpertLayer) -> float:
        """Return Σ w·g with the shared expert's gate g of each token, found as what its output was
        multiplied with; 0 for a layer without one.

        Raises `ModelError` where what the layer gives beside its routed experts isn't the shared
        expert's output times a number.
        """
        if self.beside is None or self.shared is None:
            return 0.0
        beside = self.beside.double()
        shared = self.shared.double()
        sizes = shared.square().sum(-1)
        # Least squares of one number: the gate of a token whose shared output isn't zero.
        gates = torch.where(sizes > 0, (beside * shared).sum(-1) / sizes, 0)
        rest = (beside - gates[:, None] * shared).norm()
        if not float(rest) <= GATED * float(beside.norm()):
            problem = f"{layer.name} adds more to its routed experts than a shared one times a gate"
            raise ModelError(f"{problem}, so it can't be condensed", subject=layer.name)
        return float((gates * self.weights).sum())


def layer_samples(
    view: ModelView, layers: Sequence[ExpertLayer], batch: TokenBatch, ranks: Ranks
) -> dict[int, list[LayerSample]]:
    """Return what each layer of experts did to a batch, micro-batch by micro-batch of this rank,
    in one forward of each. Of a mix, of every part.
    """
    parts = batch.mixed or ((1.0, batch),)
    whole = sum(share for share, _ in parts)
    found: dict[int, list[LayerSample]] = {layer.block: [] for layer in layers}
    device = next(view.model.parameters()).device
    for share, part in parts:
        mass = float((part.weights * part.mask).double().sum())
        for ids, mask, weights in ranks.share(list(micro_batches(part, TOKENS_PER_PASS))):
            counts = (weights.flatten() > 0).to(device)
            shares = (weights.flatten().double() * (share / whole / mass)).to(device)[counts]
            padding = None if bool(mask.all()) else mask.to(device)
            inputs = inputs_of(view.base, ids.to(device), padding)
            for block, caught in _watched(view, layers, inputs).items():
                found[block].append(caught.sample(counts, shares))
    return found


def _watched(
    view: ModelView, layers: Sequence[ExpertLayer], inputs: Mapping[str, Any]
) -> dict[int, "_Caught"]:
    """What layers did in a forward, by their blocks."""
    caught = {layer.block: _Caught(view, layer) for layer in layers}
    with ExitStack() as stack, torch.no_grad():
        for watch in caught.values():
            stack.enter_context(watch)
        view.base(**inputs)
    return caught


@final
class _Caught:
    """Writes down what goes into and comes out of a layer of experts while a forward runs."""

    def __init__(self, view: ModelView, layer: ExpertLayer) -> None:
        if len(layer.holders) != 1:
            name = layer.name
            message = (
                f"the experts of {name} are in several modules, so they can't be run one by one"
            )
            raise ModelError(message, subject=name)
        self._layer = layer
        self._modules: dict[str, nn.Module] = {
            "after": view.blocks[layer.block].module,
            "given": layer.module,
            "routed": layer.holders[0],
        }
        shared = shared_of(layer)
        if shared is not None:
            self._modules["shared"] = shared
        self._seen: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "_Caught":
        for part, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keeping(part)))
        watching = self._layer.module.register_forward_pre_hook(self._keep_input, with_kwargs=True)
        self._handles.append(watching)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_input(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Copies, since what a module is given, or gives, may be written over by who comes next.
        self._seen["x"] = hidden_of(args, kwargs).detach().clone()

    def _keeping(self, part: str) -> Callable[[Any, Any, Any], None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            self._seen[part] = hidden_of(tuple(tree_leaves(output)), {}).detach().clone()

        return keep

    def sample(
        self, counts: Bool[Tensor, "position"], weights: Float[Tensor, "token"]
    ) -> LayerSample:
        """Return it of the positions that count."""
        name = self._layer.name
        rows: dict[str, Tensor] = {}
        for part in ("x", *self._modules):
            tensor = self._seen.get(part)
            if tensor is None or tensor.shape[:-1].numel() != len(counts):
                problem = f"what goes through {name} can't be followed ({part})"
                raise ModelError(f"{problem}, so its experts can't be condensed", subject=name)
            rows[part] = tensor.flatten(0, -2)[counts]
            if not bool(rows[part].isfinite().all()):
                problem = f"the activations of {name} hold NaN or infinity"
                advice = "the model or its type can't be calibrated on"
                raise NumericsError(f"{problem}; {advice}", subject=name)
        shared = rows.get("shared")
        beside = None if shared is None else rows["given"] - rows["routed"]
        return LayerSample(rows["x"], rows["after"], rows["given"], beside, shared, weights)


@final
class ExpertSearch:
    """How far the output of a block is from what it was when its layer of experts is a choice of
    them, each with a gate.

    `gates` says which: the mean over the tokens that were `sent` to the expert, the mean over `all`
    with 0 for the others, or what makes the squared error of the layer's output least for this very
    choice (`fitted`). The shared expert has its mean over all tokens, or is fitted like the others.
    An expert that no token was sent to has no mean gate, and is no `candidate`.
    """

    def __init__(
        self,
        layer: ExpertLayer,
        samples: Sequence[LayerSample],
        routing: Routing,
        ranks: Ranks,
        gates: str,
    ) -> None:
        self._samples = samples
        self._ranks = ranks
        sent = routing.counts.tolist()
        self.candidates = [expert for expert in range(layer.count) if sent[expert] > 0]
        tokens = torch.full_like(routing.counts, routing.mass) if gates == "all" else routing.counts
        self._means = [float(routing.gates[expert] / tokens[expert]) for expert in self.candidates]
        self._shared = sum(ranks.gathered([sample.gate_sum(layer) for sample in samples]))
        self._alone: list[list[Tensor]] = []
        for sample in samples:
            self._alone.append([alone(layer, expert, sample.x) for expert in self.candidates])
        self._equations = self._summed_up() if gates == "fitted" else None

    def kept(self, places: Sequence[int]) -> Condensed:
        """Return what a layer of the candidates at these places would be."""
        shared, gates = self._gates(places)
        experts = [self.candidates[place] for place in places]
        return Condensed(dict(zip(experts, gates, strict=True)), shared)

    def measure(self, choices: Sequence[Choice], tokens: int) -> Sequence[float]:
        """Return the mean divergence of each choice of candidates, which has a 1 for those that
        are kept.
        """
        del tokens  # there is one stage
        mine: list[list[float]] = []
        for number in range(len(self._samples)):
            mine.append([self._divergence(choice, number) for choice in choices])
        # Added in the order of the micro-batches, whatever rank had them.
        every = self._ranks.gathered(mine)
        return [reduce(add, column) for column in zip(*every, strict=True)]

    def _divergence(self, choice: Choice, number: int) -> float:
        sample = self._samples[number]
        kind = torch.promote_types(sample.x.dtype, torch.float32)
        places = [place for place, level in enumerate(choice) if level]
        shared, gates = self._gates(places)
        output = torch.zeros_like(sample.after, dtype=kind)
        if sample.shared is not None:
            output = shared * sample.shared.to(kind)
        for place, gate in zip(places, gates, strict=True):
            output = output + gate * self._alone[number][place].to(kind)
        # What the block gave, and not what it added the layer's output to: so that a choice that
        # gives the same differs by nothing at all.
        moved = sample.after.to(kind) + (output - sample.given.to(kind))
        return float((divergence(sample.after, moved) * sample.weights).sum())

    def _gates(self, places: Sequence[int]) -> tuple[float, list[float]]:
        """The shared expert's gate, and those of the candidates at these places."""
        if self._equations is None:
            return self._shared, [self._means[place] for place in places]
        products, wanted = self._equations
        has_shared = len(wanted) > len(self.candidates)
        rows = list(places)
        if has_shared:
            rows.insert(0, len(self.candidates))
        if not rows:
            return 0.0, []
        # Two experts that give the same have the gates of least squares.
        square = products[np.ix_(rows, rows)]
        solved = np.linalg.lstsq(square, wanted[rows], rcond=1e-9)[0].tolist()
        return (solved[0], solved[1:]) if has_shared else (0.0, solved)

    def _summed_up(self) -> tuple[np.ndarray, np.ndarray]:
        """Products of the outputs of all candidates, and of the shared expert behind them, with
        each other and with what the layer gave.
        """
        mine: list[list[list[float]]] = []
        for sample, outputs in zip(self._samples, self._alone, strict=True):
            parts = list(outputs)
            if sample.shared is not None:
                parts.append(sample.shared)
            parts.append(sample.given)
            roots = sample.weights.sqrt().float()[:, None]
            weighted = torch.stack([(part.float() * roots).flatten() for part in parts])
            mine.append((weighted @ weighted.T).double().tolist())
        # In the order of the micro-batches, whatever rank had them.
        whole = np.sum(np.array(self._ranks.gathered(mine)), axis=0)
        return whole[:-1, :-1], whole[:-1, -1]


def tuned(job: Job, edit: Condense, steps: int, rate: float, seed: int) -> Mapping[str, Tensor]:
    """Return the numbers that the networks of condensed layers come to by `steps` of training, by
    the names of their parameters.

    The model is left as it was. Raises `SpecError` where several processes share the work: each
    would train on its own part.
    """
    if job.ranks.size > 1:
        problem = "training what is kept takes one process"
        message = f"{problem}; start it without torchrun, or leave steps out"
        raise SpecError(message, subject="steps")
    names = {layer.block: layer.name for layer in expert_layers(job.view)}
    with job.trying(edit):
        places = tuple(f"{names[block]}." for block in edit.layers)
        parameters: dict[str, nn.Parameter] = {}
        for name, parameter in job.view.model.named_parameters():
            if name.startswith(places):
                parameters[name] = parameter
        train(job.view, job.tokens(), list(parameters.values()), steps, rate, seed)
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def plain_or_not(
    view: ModelView, layers: Sequence[ExpertLayer], kept: Mapping[int, Condensed]
) -> dict[int, tuple[Variant, Variant]]:
    """Return each block with a layer of experts as it is, and condensed."""
    networks = condensed(view, kept)
    ways: dict[int, tuple[Variant, Variant]] = {}
    for layer in layers:
        exchanged = ((layer.module, networks[layer.name]),)
        ways[layer.block] = (AS_IT_IS, Variant(parts=exchanged))
    return ways


def order_of(path: Sequence[Choice]) -> list[int]:
    """Return the units in the order in which they were raised, from the choices at the end of each
    step.

    >>> order_of([(0, 1, 0), (1, 1, 0)])
    [1, 0]
    """
    order: list[int] = []
    before: Choice = ()
    for choice in path:
        for unit, level in enumerate(choice):
            if level > (before[unit] if before else 0):
                order.append(unit)
        before = choice
    return order
