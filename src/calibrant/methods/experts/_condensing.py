"""What CD-MoE searches with: samples of what a layer of experts and each of its experts did to some
tokens, and how far the output of the block moves when only a choice of the experts is left.
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
from calibrant.system.products import exact, exact_type
from calibrant.walk import TOKENS_PER_PASS
from calibrant.walk.products import hidden_of, inputs_of
from calibrant.walk.ranks import Ranks
from calibrant.walk.variants import AS_IT_IS, Variant

TOKENS_AT_ONCE: Final = 256
"""Tokens whose distributions are compared at a time."""
UNEXPLAINED: Final = 0.05
"""What a layer adds to its routed experts should be the shared expert's output times a number. This
is how much of it, as a share of its norm, may be something else.
"""


def divergence(
    before: Float[Tensor, "token hidden"], after: Float[Tensor, "token hidden"]
) -> Float[Tensor, "token"]:
    """Return, for each token, the Jensen–Shannon divergence of two hidden states as distributions
    over the features, in nats: 0 for equal ones, log 2 at most.

    A state is made a distribution by a softmax, as CD-MoE's code does. It is computed in float64,
    since the divergence of nearly equal states is the square of how little they differ. MPS has
    none, and computes it in float32.

    >>> divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]])).tolist()
    [0.0]
    """
    dtype = exact_type(before.device)
    log_two = torch.log(torch.tensor(2.0, dtype=dtype, device=before.device))
    divergences: list[Tensor] = []
    for start in range(0, len(before), TOKENS_AT_ONCE):
        tokens = slice(start, start + TOKENS_AT_ONCE)
        log_p = before[tokens].to(dtype).log_softmax(-1)
        log_q = after[tokens].to(dtype).log_softmax(-1)
        log_middle = torch.logaddexp(log_p, log_q) - log_two
        terms = log_p.exp() * (log_p - log_middle) + log_q.exp() * (log_q - log_middle)
        # Rounding may leave a sum a little below zero.
        divergences.append((0.5 * terms.sum(-1)).clamp_min(0))
    if not divergences:
        return before.new_zeros(0, dtype=dtype)
    return torch.cat(divergences)


@final
@dataclass(frozen=True)
class LayerSample:
    """What a layer of experts did to the real tokens of one micro-batch.

    `inputs` are those of the layer. `beside_routed` is what the layer adds to the output of its
    routed experts, and `shared_output` what the shared expert gives before it is multiplied with a
    gate: both are None in a layer without a shared expert. `weights` say how much each token
    counts; over all micro-batches they add up to 1.
    """

    inputs: Float[Tensor, "token hidden"]
    block_output: Float[Tensor, "token hidden"]
    layer_output: Float[Tensor, "token hidden"]
    beside_routed: Float[Tensor, "token hidden"] | None
    shared_output: Float[Tensor, "token hidden"] | None
    weights: Float[Tensor, "token"]

    def gate_sum(self, layer: ExpertLayer) -> float:
        """Return Σ w·g over the tokens, with their weights w and the shared expert's gates g: what
        its output was multiplied with. 0 for a layer without a shared expert.

        Raises `ModelError` where what the layer gives beside its routed experts isn't the shared
        expert's output times a number.
        """
        if self.beside_routed is None or self.shared_output is None:
            return 0.0
        beside = exact(self.beside_routed)
        shared = exact(self.shared_output)
        sizes = shared.square().sum(-1)
        # The gate is a number for each token, and follows by least squares from the two outputs.
        products = (beside * shared).sum(-1)
        gates = torch.where(sizes > 0, products / sizes, 0)
        unexplained = (beside - gates[:, None] * shared).norm()
        if not float(unexplained) <= UNEXPLAINED * float(beside.norm()):
            problem = f"{layer.name} adds more to its routed experts than a shared one times a gate"
            raise ModelError(f"{problem}, so it can't be condensed", subject=layer.name)
        return float((gates * self.weights).sum())


def layer_samples(
    view: ModelView, layers: Sequence[ExpertLayer], batch: TokenBatch, ranks: Ranks
) -> dict[int, list[LayerSample]]:
    """Return what each layer of experts did to a batch, by the number of its block: a sample for
    each micro-batch of this rank, of every set of a mix.

    All layers are recorded in the same forward.
    """
    samples: dict[int, list[LayerSample]] = {layer.block: [] for layer in layers}
    device = view.device
    for share, part in batch.sets:
        for ids, mask, weights in ranks.share(list(micro_batches(part, TOKENS_PER_PASS))):
            flat_weights = weights.flatten()
            counted = (flat_weights > 0).to(device)
            scaled = flat_weights.double() * (share / part.mass)
            shares = scaled.to(device, exact_type(device))[counted]
            padding = None if bool(mask.all()) else mask.to(device)
            inputs = inputs_of(view.base, ids.to(device), padding)
            for block, recorder in _recorded(view, layers, inputs).items():
                samples[block].append(recorder.sample(counted, shares))
    return samples


def _recorded(
    view: ModelView, layers: Sequence[ExpertLayer], inputs: Mapping[str, Any]
) -> dict[int, "_LayerRecorder"]:
    """What layers did in a forward, by their blocks."""
    recorders = {layer.block: _LayerRecorder(view, layer) for layer in layers}
    with ExitStack() as stack, torch.no_grad():
        for recorder in recorders.values():
            stack.enter_context(recorder)
        view.base(**inputs)
    return recorders


@final
class _LayerRecorder:
    """Records what goes into and comes out of a layer of experts, while it is entered and a forward
    runs. Raises `ModelError` for a layer whose experts are in several modules.
    """

    def __init__(self, view: ModelView, layer: ExpertLayer) -> None:
        if len(layer.holders) != 1:
            name = layer.name
            message = (
                f"the experts of {name} are in several modules, so they can't be run one by one"
            )
            raise ModelError(message, subject=name)
        self._layer = layer
        self._modules: dict[str, nn.Module] = {
            "block_output": view.blocks[layer.block].module,
            "layer_output": layer.module,
            "routed_output": layer.holders[0],
        }
        shared = shared_of(layer)
        if shared is not None:
            self._modules["shared_output"] = shared
        self._activations: dict[str, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> "_LayerRecorder":
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keep_output(name)))
        handle = self._layer.module.register_forward_pre_hook(self._keep_input, with_kwargs=True)
        self._handles.append(handle)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _keep_input(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Copies, since what a module is given, or gives, may be written over by who comes next.
        self._activations["inputs"] = hidden_of(args, kwargs).detach().clone()

    def _keep_output(self, name: str) -> Callable[[Any, Any, Any], None]:
        def keep(module: Any, args: Any, output: Any) -> None:
            hidden = hidden_of(tuple(tree_leaves(output)), {})
            self._activations[name] = hidden.detach().clone()

        return keep

    def sample(
        self, counted: Bool[Tensor, "position"], weights: Float[Tensor, "token"]
    ) -> LayerSample:
        """Return what was recorded at the positions that are `counted`, each with its weight."""
        name = self._layer.name
        states: dict[str, Tensor] = {}
        for part in ("inputs", *self._modules):
            recorded = self._activations.get(part)
            if recorded is None or recorded.shape[:-1].numel() != len(counted):
                problem = f"what goes through {name} can't be followed ({part})"
                raise ModelError(f"{problem}, so its experts can't be condensed", subject=name)
            state = recorded.flatten(0, -2)[counted]
            if not bool(state.isfinite().all()):
                problem = f"the activations of {name} hold NaN or infinity"
                advice = "the model or its type can't be calibrated on"
                raise NumericsError(f"{problem}; {advice}", subject=name)
            states[part] = state
        shared = states.get("shared_output")
        beside_routed: Tensor | None = None
        if shared is not None:
            beside_routed = states["layer_output"] - states["routed_output"]
        return LayerSample(
            inputs=states["inputs"],
            block_output=states["block_output"],
            layer_output=states["layer_output"],
            beside_routed=beside_routed,
            shared_output=shared,
            weights=weights,
        )


@final
class ExpertSearch:
    """Measures how far the output of a block moves when of its layer of experts a choice is left,
    each multiplied with a gate that is the same for all tokens.

    `gates` says with which gate: the mean over the tokens that were `sent` to the expert; the mean
    over `all` tokens, with 0 for the others; or, `fitted`, that with which the squared error of the
    layer's output is least for this very choice. The gate of the shared expert is its mean over all
    tokens, or fitted like the others. An expert that no token was sent to has no mean gate, and is
    not among the `candidates`.
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
        tokens = routing.counts
        if gates == "all":
            tokens = torch.full_like(routing.counts, routing.mass)
        mean_gates = routing.gates / tokens
        self._mean_gates = [float(mean_gates[expert]) for expert in self.candidates]
        gate_sums = [sample.gate_sum(layer) for sample in samples]
        self._shared_gate = sum(ranks.gathered(gate_sums))
        self._expert_outputs: list[list[Tensor]] = []
        for sample in samples:
            outputs = [alone(layer, expert, sample.inputs) for expert in self.candidates]
            self._expert_outputs.append(outputs)
        self._equations = self._normal_equations() if gates == "fitted" else None

    def condensed_layer(self, places: Sequence[int]) -> Condensed:
        """Return the layer that keeps the candidates at these places."""
        shared, gates = self._gates(places)
        experts = [self.candidates[place] for place in places]
        return Condensed(dict(zip(experts, gates, strict=True)), shared)

    def measure(self, choices: Sequence[Choice], tokens: int) -> Sequence[float]:
        """Return the mean divergence of each choice, which has for each candidate a 1 if it is
        kept, and else a 0.
        """
        del tokens  # there is one stage
        by_sample: list[list[float]] = []
        for index in range(len(self._samples)):
            by_sample.append([self._divergence(choice, index) for choice in choices])
        # Added in the order of the micro-batches, whatever rank had them.
        by_micro_batch = self._ranks.gathered(by_sample)
        return [reduce(add, column) for column in zip(*by_micro_batch, strict=True)]

    def _divergence(self, choice: Choice, index: int) -> float:
        sample = self._samples[index]
        dtype = torch.promote_types(sample.inputs.dtype, torch.float32)
        places = [place for place, level in enumerate(choice) if level]
        shared, gates = self._gates(places)
        output = torch.zeros_like(sample.block_output, dtype=dtype)
        if sample.shared_output is not None:
            output = shared * sample.shared_output.to(dtype)
        for place, gate in zip(places, gates, strict=True):
            output = output + gate * self._expert_outputs[index][place].to(dtype)
        # The difference is added to the block's output: a choice that gives what the layer gave has
        # a divergence of exactly 0, which a sum that is made anew would round differently.
        moved = sample.block_output.to(dtype) + (output - sample.layer_output.to(dtype))
        return float((divergence(sample.block_output, moved) * sample.weights).sum())

    def _gates(self, places: Sequence[int]) -> tuple[float, list[float]]:
        """The shared expert's gate, and those of the candidates at these places."""
        if self._equations is None:
            return self._shared_gate, [self._mean_gates[place] for place in places]
        products, targets = self._equations
        has_shared = len(targets) > len(self.candidates)
        rows = list(places)
        if has_shared:
            rows.insert(0, len(self.candidates))
        if not rows:
            return 0.0, []
        # Not `solve`: two experts that give the same make the system singular.
        system = products[np.ix_(rows, rows)]
        solution, *_ = np.linalg.lstsq(system, targets[rows], rcond=1e-9)
        gates = solution.tolist()
        if has_shared:
            return gates[0], gates[1:]
        return 0.0, gates

    def _normal_equations(self) -> tuple[np.ndarray, np.ndarray]:
        """The normal equations of the gates: the products of all candidates' outputs with each
        other, and with the layer's output. The shared expert, if there is one, comes last.
        """
        by_sample: list[list[list[float]]] = []
        for sample, outputs in zip(self._samples, self._expert_outputs, strict=True):
            columns = list(outputs)
            if sample.shared_output is not None:
                columns.append(sample.shared_output)
            columns.append(sample.layer_output)
            roots = sample.weights.sqrt().float()[:, None]
            weighted = torch.stack([(column.float() * roots).flatten() for column in columns])
            by_sample.append(exact(weighted @ weighted.T).tolist())
        # Added in the order of the micro-batches, whatever rank had them.
        total = np.sum(np.array(self._ranks.gathered(by_sample)), axis=0)
        # The layer's output is the last.
        products = total[:-1, :-1]
        targets = total[:-1, -1]
        return products, targets


def tuned(job: Job, edit: Condense, steps: int, rate: float, seed: int) -> Mapping[str, Tensor]:
    """Train the networks of the condensed layers for `steps`, and return what their parameters
    become, by name.

    The model is left as it was. Raises `SpecError` where several processes share the work: each
    would train on its own part.
    """
    if job.ranks.size > 1:
        problem = "training what is kept takes one process"
        message = f"{problem}; start it without torchrun, or leave steps out"
        raise SpecError(message, subject="steps")
    names = {layer.block: layer.name for layer in expert_layers(job.view)}
    with job.trying(edit):
        prefixes = tuple(f"{names[block]}." for block in edit.layers)
        parameters: dict[str, nn.Parameter] = {}
        for name, parameter in job.view.model.named_parameters():
            if name.startswith(prefixes):
                parameters[name] = parameter
        train(job.view, job.tokens(), list(parameters.values()), steps, rate, seed)
        return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def plain_and_condensed(
    view: ModelView, layers: Sequence[ExpertLayer], kept: Mapping[int, Condensed]
) -> dict[int, tuple[Variant, Variant]]:
    """Return, by block, its layer of experts as it is, and condensed to what is `kept`."""
    networks = condensed(view, kept)
    variants: dict[int, tuple[Variant, Variant]] = {}
    for layer in layers:
        exchange = ((layer.module, networks[layer.name]),)
        variants[layer.block] = (AS_IT_IS, Variant(parts=exchange))
    return variants


def order_of(path: Sequence[Choice]) -> list[int]:
    """Return the units in the order in which a search raised them; `path` has its choice after each
    step.

    >>> order_of([(0, 1, 0), (1, 1, 0)])
    [1, 0]
    """
    order: list[int] = []
    levels: dict[int, int] = {}
    for choice in path:
        for unit, level in enumerate(choice):
            if level > levels.get(unit, 0):
                order.append(unit)
            levels[unit] = level
    return order
