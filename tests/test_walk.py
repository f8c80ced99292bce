"""The walk against an oracle that takes every input from full runs of the model, one unpadded
sample at a time.

The oracle knows no walk: inputs come from forward pre-hooks on the modules that hold a matrix, and
inside fused experts from the definition (rows routed to the expert; gate times up of them).
Everything is float64, so that a mask that differs is a mistake and not rounding.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from calibrant.activations import BlockChange, FeatureMaxima, FeatureNorms, Gram, Seen
from calibrant.data import TokenBatch, micro_batches
from calibrant.errors import ModelError, NumericsError, WalkError
from calibrant.models import ModelView, Opened, Weight, view
from calibrant.testing import FAMILIES, tiny_model
from calibrant.walk.rehearsal import rehearse
from calibrant.walk.statistics import untouched
from calibrant.walk.walking import walk, walk_blocks

from tests.usual import usually

MIXTURES = ("mixtral", "qwen3_moe", "olmoe")
LENGTHS = (12, 7, 12, 10, 3)


def padded_batch(weights: Tensor | None = None, left: bool = False) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 100, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    if left:
        mask = mask.flip(1)
        ids = torch.stack([row.roll(max(LENGTHS) - n) for row, n in zip(ids, LENGTHS, strict=True)])
    ids = ids.masked_fill(~mask, 0)
    given = torch.ones(ids.shape) if weights is None else weights
    return TokenBatch(
        ids=ids, mask=mask, weights=(given * mask).float(), fingerprint="sha256:test", facts={}
    )


def model_of(family: str) -> nn.Module:
    return tiny_model(family, dtype=torch.float64)


class Oracle:
    """Inputs of every matrix of one block, over full runs of the model on single, unpadded
    samples.
    """

    def __init__(self, model: nn.Module, batch: TokenBatch) -> None:
        self.model, self.view, self.batch = model, view(model), batch

    def inputs(self, block: int, only: str = "") -> dict[str, tuple[Tensor, Tensor]]:
        """Matrix name -> rows that reach it [token, in] and their weights, for matrices that any
        row reaches; or for one alone.
        """
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for ids, mask, weights in zip(
            self.batch.ids, self.batch.mask, self.batch.weights, strict=True
        ):
            counts = weights[mask]
            keep: Callable[[str, Tensor, Tensor], None] = lambda name, x, w: found.setdefault(  # noqa: E731
                name, []
            ).append((x[w > 0], w[w > 0]))
            hooks = self._hooks(
                self.view.blocks[block].module, self.view.blocks[block].name, counts, keep, only
            )
            with torch.no_grad():
                self.model(input_ids=ids[mask][None], use_cache=False)
            for hook in hooks:
                hook.remove()
        joined = {
            name: (torch.cat([x for x, _ in seen]), torch.cat([w for _, w in seen]))
            for name, seen in found.items()
        }
        return {name: seen for name, seen in joined.items() if len(seen[0])}

    def _hooks(
        self,
        module: nn.Module,
        prefix: str,
        counts: Tensor,
        keep: Callable[[str, Tensor, Tensor], None],
        only: str,
    ) -> list[Any]:
        hooks = []
        names = {w.name for w in self.view.weights}
        wanted = {only} if only else names
        for name, child in module.named_modules():
            full = f"{prefix}.{name}"
            if full in wanted:
                hooks.append(
                    child.register_forward_pre_hook(
                        lambda _, a, full=full: keep(
                            full, a[0].reshape(-1, a[0].shape[-1]).clone(), counts
                        )
                    )
                )
            elif f"{full}.gate_up_proj[0]" in names and only.startswith(full if only else ""):
                hooks.append(
                    child.register_forward_pre_hook(
                        lambda m, a, full=full: self._experts(
                            m, full, a[0], a[1], counts, keep, only
                        )
                    )
                )
        return hooks

    @staticmethod
    def _experts(
        module: nn.Module,
        name: str,
        hidden: Tensor,
        chosen: Tensor,
        counts: Tensor,
        keep: Callable[[str, Tensor, Tensor], None],
        only: str,
    ) -> None:
        for expert in (
            range(len(module.gate_up_proj)) if not only else [int(only[only.index("[") + 1 : -1])]
        ):
            rows = (chosen == expert).any(-1)
            if rows.any():
                x = hidden.reshape(-1, hidden.shape[-1])[rows]
                gate, up = (x @ module.gate_up_proj[expert].T).chunk(2, -1)
                keep(f"{name}.gate_up_proj[{expert}]", x, counts[rows])
                keep(f"{name}.down_proj[{expert}]", module.act_fn(gate) * up, counts[rows])


def halved(matrix: Tensor, squares: Tensor) -> Tensor:
    """A pruning rule of the test's own: the half with the smallest |w|·norm goes, row by row."""
    lowest = (matrix.abs() * squares.sqrt()).argsort(dim=1)[:, : matrix.shape[1] // 2]
    return matrix.scatter(1, lowest, 0.0)


def walked(
    model: nn.Module, batch: TokenBatch, propagate: str, tokens_per_pass: int = 24
) -> tuple[list[Weight], ModelView]:
    """Prune with the walk; the visits in their order."""
    seen_by, visits = view(model), []
    for weight, seen in walk(
        seen_by, batch, (FeatureNorms,), propagate, tokens_per_pass=tokens_per_pass
    ):
        weight.set(halved(weight.get().clone(), seen[FeatureNorms].norms()))
        visits.append(weight)
    return visits, seen_by


def assert_same_weights(a: nn.Module, b: nn.Module) -> None:
    other = dict(b.named_parameters())
    for name, tensor in a.named_parameters():
        assert torch.equal(tensor, other[name]), name


class Outputs(BlockChange):
    """What a block gives, micro-batch by micro-batch."""

    parts: tuple[Tensor, ...] = ()

    @classmethod
    def of(cls, before: Tensor, after: Tensor, weights: Tensor | None = None) -> "Outputs":
        return cls._of(after)

    @classmethod
    def _of(cls, *parts: Tensor) -> "Outputs":
        outputs = cls(0.0, sum(map(len, parts)), 0.0)
        outputs.parts = parts
        return outputs

    def __add__(self, other: "Outputs") -> "Outputs":  # type: ignore[override]
        return self._of(*self.parts, *other.parts)


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_a_forward_in_pieces_is_that_forward(family: str) -> None:
    model, outputs, expected = tiny_model(family), list[Tensor](), list[Tensor]()
    seen_by = view(model)
    hook = seen_by.blocks[-1].module.register_forward_hook(
        lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out)
    )
    with torch.no_grad():
        for ids, mask, _ in micro_batches(padded_batch(), 24):
            model(input_ids=ids, attention_mask=mask.long(), use_cache=False)
            given = outputs.pop()
            expected.append(
                (given if given.shape[:2] == mask.shape else given.transpose(0, 1))[mask]
            )
    hook.remove()
    found = {
        block.index: seen[Outputs]
        for block, seen in walk_blocks(seen_by, padded_batch(), (Outputs,), tokens_per_pass=24)
    }
    assert list(found) == [0, 1, 2]
    assert len(found[2].parts) == len(expected) > 1
    assert all(map(torch.equal, found[2].parts, expected)), family


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_arrival_is_pruning_one_matrix_at_a_time(family: str) -> None:
    sizes = (
        {"num_hidden_layers": 2, "num_local_experts" if family == "mixtral" else "num_experts": 16}
        if family in MIXTURES
        else {}
    )
    pruned, expected = (
        tiny_model(family, dtype=torch.float64, **sizes),
        tiny_model(family, dtype=torch.float64, **sizes),
    )
    visits, seen_by = walked(pruned, padded_batch(), "arrival")
    assert len({w.name for w in visits}) == len(visits)
    oracle = Oracle(expected, padded_batch())
    by_name = {w.name: w for w in oracle.view.weights}
    reached: set[str] = set()
    for weight in visits:
        x, _ = oracle.inputs(weight.block, weight.name)[weight.name]
        by_name[weight.name].set(halved(by_name[weight.name].get().clone(), (x**2).sum(0)))
        reached |= {weight.name}
    assert_same_weights(pruned, expected)
    missed = {w.name for w in seen_by.weights} - reached
    really = {name for block in range(len(seen_by.blocks)) for name in oracle.inputs(block)}
    assert not missed & really, "a matrix that tokens reach was skipped"
    if family in MIXTURES:
        assert missed, "the test wants experts that no token reaches"


@pytest.mark.parametrize("family", usually(FAMILIES, ("llama", "gpt2", "qwen3_moe")))
def test_reference_is_a_literal_two_pass_loop(family: str) -> None:
    pruned, expected = model_of(family), model_of(family)
    walked(pruned, padded_batch(), "reference")
    oracle = Oracle(expected, padded_batch())
    for block in oracle.view.blocks:
        inputs = oracle.inputs(block.index)
        for weight in block.weights:
            if weight.name in inputs:
                weight.set(halved(weight.get().clone(), (inputs[weight.name][0] ** 2).sum(0)))
    assert_same_weights(pruned, expected)


@pytest.fixture
def wide_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """gemma2's attention takes its softmax in float32, where another order of sums shows on some
    processors. With it in the type of its input all families are float64, and held to it.
    """
    softmax = torch.nn.functional.softmax

    def in_the_type_of_its_input(scores: torch.Tensor, **settings: Any) -> torch.Tensor:
        return softmax(scores, **settings | {"dtype": None})

    monkeypatch.setattr(torch.nn.functional, "softmax", in_the_type_of_its_input)


@pytest.mark.usefixtures("wide_softmax")
@pytest.mark.parametrize("family", usually(FAMILIES))
def test_dense_sees_the_untouched_model_token_by_token(family: str) -> None:
    weights = torch.rand(len(LENGTHS), max(LENGTHS), generator=torch.Generator().manual_seed(5))
    weights[weights < 0.2] = 0.0
    batch = padded_batch(weights)
    oracle, seen_by = Oracle(model_of(family), batch), view(model_of(family))
    expected = {
        name: seen
        for block in range(len(seen_by.blocks))
        for name, seen in oracle.inputs(block).items()
    }
    found: dict[str, Seen] = {}
    for weight, seen in walk(seen_by, batch, (FeatureNorms, Gram), "dense", tokens_per_pass=24):
        found[weight.name] = seen
        weight.set(torch.zeros_like(weight.get()))  # must not matter
    assert found.keys() == expected.keys()
    for name, (x, w) in expected.items():
        assert found[name].tokens == len(x)
        assert found[name][Gram].mass == pytest.approx(float(w.double().sum()), rel=1e-6)
        norms = (x**2 * w[:, None]).sum(0)
        assert torch.allclose(found[name][FeatureNorms].norms(), norms, 1e-9, 1e-12), name
        gram = x.T @ (x * w[:, None])
        assert torch.allclose(found[name][Gram].matrix, gram, 1e-9, 1e-9), name


@pytest.mark.usefixtures("wide_softmax")
@pytest.mark.parametrize("family", usually(FAMILIES, {"opt", "qwen3_moe"}))
def test_the_largest_inputs_are_those_of_a_loop_over_tokens_also_of_a_mix(family: str) -> None:
    weights = torch.rand(len(LENGTHS), max(LENGTHS), generator=torch.Generator().manual_seed(5))
    weights[weights < 0.4] = 0.0
    batch = padded_batch(weights)
    oracle, seen_by = Oracle(model_of(family), batch), view(model_of(family))
    opened = Opened(seen_by.model, None, "tiny", "sha256:0", "", torch.float64)
    parts: list[tuple[float, TokenBatch]] = []
    for share, samples in ((0.1, slice(0, 2)), (0.9, slice(2, 5))):
        tensors = batch.ids[samples], batch.mask[samples], batch.weights[samples]
        parts.append((share, TokenBatch(*tensors, fingerprint=f"sha256:{share}", facts={})))
    kinds = (FeatureMaxima,)
    alone = {
        weight.name: seen[FeatureMaxima]
        for weight, seen in walk(seen_by, batch, kinds, "dense", tokens_per_pass=24)
    }
    mixed = {
        weight.name: seen[FeatureMaxima]
        for weight, seen in untouched(opened, seen_by, replace(batch, mixed=tuple(parts)), kinds)
    }
    checked = 0
    for block in range(len(seen_by.blocks)):
        for name, (x, _) in oracle.inputs(block).items():
            largest = [max(abs(value) for value in column) for column in x.T.tolist()]
            for found in (alone[name], mixed[name]):
                assert found.maxima.tolist() == pytest.approx(largest, rel=1e-9, abs=1e-12), name
                assert found.largest() == pytest.approx(max(largest), rel=1e-9)
            checked += 1
    assert checked == len(alone) == len(mixed)


@pytest.mark.parametrize(
    ("family", "propagate"),
    [
        ("llama", "dense"),
        ("opt", "arrival"),
        ("gemma3", "reference"),
        pytest.param("llama", "arrival", marks=pytest.mark.slow),
        pytest.param("llama", "reference", marks=pytest.mark.slow),
        pytest.param("gpt2", "dense", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", "arrival", marks=pytest.mark.slow),
    ],
)
def test_where_the_padding_stands_does_not_matter(family: str, propagate: str) -> None:
    right, left, alone = (model_of(family) for _ in range(3))
    walked(right, padded_batch(), propagate)
    walked(left, padded_batch(left=True), propagate)
    walked(
        alone, padded_batch(), propagate, tokens_per_pass=1
    )  # every sample on its own: nothing is padded
    assert_same_weights(right, left)
    assert_same_weights(right, alone)


def test_a_walk_may_be_freed_in_another_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    unraised: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", unraised.append)
    seen_by = view(model_of("llama"))
    walks = [walk(seen_by, padded_batch(), (Gram,), "arrival")]
    next(walks[0])
    thread = threading.Thread(target=walks.clear)
    thread.start()
    thread.join()
    assert not unraised
    # The model is as before.
    again = [weight for weight, _ in walk(seen_by, padded_batch(), (Gram,), "arrival")]
    assert again == list(seen_by.weights)


def test_nothing_is_run_for_a_method_that_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("llama")
    monkeypatch.setattr(
        type(model.model), "forward", lambda *_, **__: pytest.fail("the model was run")
    )
    seen_by = view(model)
    assert [w for w, _ in walk(seen_by, None, ())] == list(seen_by.weights)


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
def test_a_walk_that_starts_later_ends_the_same(propagate: str) -> None:
    whole, resumed = model_of("llama"), model_of("llama")
    walked(whole, padded_batch(), propagate)
    before = view(resumed)
    kept = {w.name: w.get().clone() for w in view(whole).weights if w.block < 2}
    by_name = {w.name: w for w in before.weights}
    if propagate != "dense":
        for name, tensor in kept.items():
            by_name[name].set(tensor)
    for weight, seen in walk(
        before, padded_batch(), (FeatureNorms,), propagate, tokens_per_pass=24, start=2
    ):
        assert weight.block == 2
        weight.set(halved(weight.get().clone(), seen[FeatureNorms].norms()))
    if propagate == "dense":
        for name, tensor in kept.items():
            by_name[name].set(tensor)
    assert_same_weights(whole, resumed)


def test_the_loop_runs_outside_the_walks_own_contexts_and_leaving_it_unwinds_the_forwards() -> None:
    from torch.overrides import _get_current_function_mode

    model, left = model_of("llama"), []

    class Guard(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: object, **kwargs: object) -> object:
            try:
                return self.inner(*args, **kwargs)
            finally:
                left.append(1)

    model.model.layers[0].mlp = Guard(model.model.layers[0].mlp)
    visits = walk(view(model), padded_batch(), (FeatureNorms,), "arrival", tokens_per_pass=24)
    for weight, _ in visits:
        assert torch.is_grad_enabled()
        assert _get_current_function_mode() is None
        if "up_proj" in weight.name:
            break
    visits.close()
    assert len(left) == 1 + len(
        list(micro_batches(padded_batch(), 24))
    )  # the first is the rehearsal's


def test_nan_in_activations_names_the_matrix() -> None:
    model = model_of("llama")
    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight[3] = float("nan")
    with pytest.raises(NumericsError) as refused:
        list(walk(view(model), padded_batch(), (FeatureNorms,), "arrival"))
    assert refused.value.subject == "model.layers.1.self_attn.q_proj"


def test_a_matrix_used_twice_is_left_on_arrival_only() -> None:
    model = model_of("llama")
    twice = model.model.layers[0].mlp

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = twice

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.inner(x))

    model.model.layers[0].mlp = Twice()
    arrived = {w.name for w, _ in walk(view(model), padded_batch(), (FeatureNorms,), "arrival")}
    assert arrived == {w.name for w in view(model).weights if ".inner." not in w.name}
    counts = {
        w.name: s.tokens for w, s in walk(view(model), padded_batch(), (FeatureNorms,), "reference")
    }
    assert counts["model.layers.0.mlp.inner.gate_proj"] == 2 * sum(LENGTHS)


@pytest.mark.parametrize(
    "rows",
    [lambda hidden: hidden[:5], lambda hidden: hidden[torch.arange(7)][:5]],
    ids=["of nobody", "of too many"],
)
def test_rows_that_cannot_be_traced_are_refused_by_name(rows: Callable[[Tensor], Tensor]) -> None:
    model = tiny_model("mixtral", dtype=torch.float64)
    experts = model.model.layers[0].mlp.experts
    experts.forward = lambda hidden, chosen, _: (
        nn.functional.linear(rows(hidden), experts.gate_up_proj[0]).sum() + hidden
    )
    with pytest.raises(ModelError) as refused:
        list(walk(view(model), padded_batch(), (FeatureNorms,), "dense"))
    assert refused.value.subject == "model.layers.0.mlp.experts.gate_up_proj[0]"


def test_a_forward_that_ends_early_is_refused_by_name() -> None:
    model = model_of("llama")
    seen_by = view(model)
    rehearse(seen_by)
    model.model.forward = lambda input_ids, attention_mask, use_cache: model.model.embed_tokens(
        input_ids
    )
    with pytest.raises(WalkError) as refused:
        list(walk(seen_by, padded_batch(), (FeatureNorms,), "arrival"))
    assert refused.value.subject == "model.layers.0"


def test_the_model_can_be_asked_while_it_is_walked() -> None:
    model = model_of("llama")
    ids = padded_batch().ids[:1]
    want = model(ids).logits
    for _ in walk(view(model), padded_batch(), (FeatureNorms,), "arrival", tokens_per_pass=24):
        assert torch.equal(model(ids).logits, want)
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def overwrite_inputs(model: nn.Module) -> None:
    """Let each block write what comes out of it over what it was given."""
    for layer in model.model.layers:
        layer.forward = lambda hidden_states, layer=layer, **asked: hidden_states.copy_(
            type(layer).forward(layer, hidden_states, **asked)
        )
    assert rehearse(view(model)).changes_input


def test_what_a_block_changes_is_seen_where_it_writes_over_its_input() -> None:
    ids = torch.randint(3, 100, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    batch = TokenBatch(ids, mask, mask.float(), "sha256:test", {})
    expected = [seen[BlockChange].total for seen in changes_of(model_of("llama"), batch)]
    model = model_of("llama")
    overwrite_inputs(model)
    assert [seen[BlockChange].total for seen in changes_of(model, batch)] == expected
    assert min(expected) > 0


def changes_of(model: nn.Module, batch: TokenBatch) -> list[Seen]:
    return [seen for _, seen in walk_blocks(view(model), batch, (BlockChange,))]


def test_a_block_that_writes_into_its_input_is_run_twice_on_a_copy() -> None:
    model, expected = model_of("llama"), model_of("llama")
    overwrite_inputs(model)
    walked(model, padded_batch(), "reference")
    walked(expected, padded_batch(), "reference")
    assert_same_weights(model, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_blocks_are_seen_from_outside(weighted: bool) -> None:
    weights = torch.ones(len(LENGTHS), max(LENGTHS))
    if weighted:
        weights = torch.rand(weights.shape, generator=torch.Generator().manual_seed(1))
        weights[weights < 0.3] = 0.0
    model, batch = model_of("llama"), padded_batch(weights)
    seen_by, states = view(model), []
    hooks = [
        b.module.register_forward_hook(
            lambda _m, a, out: states.append((a[0], out[0] if isinstance(out, tuple) else out))
        )
        for b in seen_by.blocks
    ]
    totals = [0.0] * len(seen_by.blocks)
    for ids, mask, counted in zip(batch.ids, batch.mask, batch.weights, strict=True):
        states.clear()
        with torch.no_grad():
            model(input_ids=ids[mask][None], use_cache=False)
        for i, (before, after) in enumerate(states):
            totals[i] += sum(
                float(weight) * (1 - float(b @ a / (b.norm() * a.norm())))
                for b, a, weight in zip(before[0], after[0], counted[mask], strict=True)
            )
    for hook in hooks:
        hook.remove()
    found = [
        seen[BlockChange]
        for _, seen in walk_blocks(seen_by, batch, (BlockChange,), tokens_per_pass=24)
    ]
    assert [change.total for change in found] == pytest.approx(totals, rel=1e-9)
    mass = float(batch.weights.double().sum())
    assert [change.mass for change in found] == pytest.approx([mass] * len(found), rel=1e-9)
