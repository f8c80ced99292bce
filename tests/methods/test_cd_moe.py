"""CD-MoE against a literal one in float64: experts run one by one, divergences by scipy, layers
tried in plain transformers models.
"""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.spatial.distance import jensenshannon
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, PreTrainedModel

from calibrant.compress import Recipe, compress, prune
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import ModelError
from calibrant.methods import methods
from calibrant.models import Opened, open_model, view
from calibrant.results import Record
from calibrant.targets import parse_target
from calibrant.testing import check_edits, tiny_tokenizer

from tests.killed import killed_after, tried
from tests.models.mixtures_of_experts import tiny_mixture
from tests.usual import usually

SMALL = {"samples": 12, "length": 24, "dtype": "float32"}
KINDS = ("qwen2_moe", "qwen3_moe")
BY_KIND = pytest.mark.parametrize("kind", usually(KINDS, {"qwen2_moe"}))
BLOCKS = 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model with a shared expert that has a gate, and one without."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in made.items():
        tiny_mixture(kind, num_hidden_layers=BLOCKS).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
    return made


@pytest.fixture
def batch(tmp_path: Path) -> TokenBatch:
    """A mix of two sets of lone texts, of different lengths with padding behind them. Of their
    tokens none counts as much as another.
    """
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "\n".join(
            json.dumps({"text": "so they had tea at eight " * n + str(n)}) for n in range(1, 9)
        )
    )
    texts = CalibrationSet(f"{str(rows)!r}:text@one", samples=5, length=200)
    drawn = texts.tokens(tiny_tokenizer())
    generator = torch.Generator().manual_seed(4)
    weights = (torch.rand(drawn.ids.shape, generator=generator) + 0.1) * drawn.mask
    parts: list[tuple[float, TokenBatch]] = []
    for factor, place in ((0.2, slice(0, 3)), (1.5, slice(3, 5))):
        ids, mask = drawn.ids[place], drawn.mask[place]
        parts.append((factor, replace(drawn, ids=ids, mask=mask, weights=weights[place])))
    whole = torch.cat([factor * part.weights for factor, part in parts])
    return replace(drawn, weights=whole, mixed=tuple(parts))


@dataclass
class Literal:
    """A model in float64, and what its blocks do to some texts without padding; `weights` of all
    their tokens together are 1.
    """

    model: Any
    texts: list[Tensor]
    weights: Tensor

    def states(self, mlps: dict[int, nn.Module] | None = None) -> list[dict[str, Tensor]]:
        """By block what its layer of experts gets, what that gives, and what the block gives;
        with other modules in the place of some layers.
        """
        model = copy.deepcopy(self.model)
        for block, mlp in (mlps or {}).items():
            model.model.layers[block].mlp = mlp
        seen: list[dict[str, list[Tensor]]] = [
            {"x": [], "given": [], "after": []} for _ in model.model.layers
        ]

        def keep_layer(place: int) -> Callable[[Any, Any, Any], None]:
            return lambda _, args, output: (
                seen[place]["x"].append(args[0][0]),
                seen[place]["given"].append(output[0]),
            )[0]

        def keep_block(place: int) -> Callable[[Any, Any, Any], None]:
            return lambda _, __, output: seen[place]["after"].append(
                (output if isinstance(output, Tensor) else output[0])[0]
            )

        for place, block in enumerate(model.model.layers):
            block.mlp.register_forward_hook(keep_layer(place))
            block.register_forward_hook(keep_block(place))
        with torch.no_grad():
            for ids in self.texts:
                model(ids[None], use_cache=False)
        return [{name: torch.cat(parts) for name, parts in one.items()} for one in seen]

    def expert(self, block: int, expert: int, x: Tensor) -> Tensor:
        experts = self.model.model.layers[block].mlp.experts
        both, down = experts.gate_up_proj[expert].detach(), experts.down_proj[expert].detach()
        half = len(both) // 2
        return (silu(x @ both[:half].T) * (x @ both[half:].T)) @ down.T

    def gates(self, block: int, x: Tensor) -> tuple[dict[int, float], float]:
        """The mean gate of each expert over the tokens that picked it, and that of the shared
        one over all.
        """
        mlp = self.model.model.layers[block].mlp
        sums, masses = dict[int, float](), dict[int, float]()
        for row, weight in zip(x, self.weights.tolist(), strict=True):
            chances = (mlp.gate.weight.detach() @ row).softmax(0)
            best = sorted(range(len(chances)), key=lambda e: -float(chances[e]))[:2]
            whole = sum(float(chances[e]) for e in best) if mlp.gate.norm_topk_prob else 1.0
            for expert in best:
                gate = float(chances[expert]) / whole
                sums[expert] = sums.get(expert, 0.0) + weight * gate
                masses[expert] = masses.get(expert, 0.0) + weight
        shared = 0.0
        if hasattr(mlp, "shared_expert_gate"):
            shared_gates = torch.sigmoid(x @ mlp.shared_expert_gate.weight.detach().T)[:, 0]
            shared = float(shared_gates @ self.weights)
        return {expert: sums[expert] / masses[expert] for expert in sorted(sums)}, shared

    def diverged(self, one: Tensor, other: Tensor) -> float:
        """The mean divergence of two states of all tokens."""
        distances: list[float] = []
        for before, after in zip(one.softmax(-1), other.softmax(-1), strict=True):
            distances.append(jensenshannon(before.numpy(), after.numpy()))
        return float(np.nan_to_num(distances) ** 2 @ self.weights.numpy())

    def condensed(
        self,
        block: int,
        x: Tensor,
        experts: tuple[int, ...],
        gates: dict[int, float],
        shared: float,
    ) -> Tensor:
        mlp = self.model.model.layers[block].mlp
        y = torch.zeros_like(x)
        if hasattr(mlp, "shared_expert"):
            own = mlp.shared_expert
            y = (
                shared
                * (silu(x @ own.gate_proj.weight.detach().T) * (x @ own.up_proj.weight.detach().T))
                @ own.down_proj.weight.detach().T
            )
        for expert in experts:
            y = y + gates[expert] * self.expert(block, expert, x)
        return y


class Side(nn.Module):
    """A layer of experts of which some are kept."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        return self.of(x)


def literal(folder: Path, batch: TokenBatch) -> Literal:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    model.set_experts_implementation("eager")
    texts = [ids[mask] for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    weights = batch.weights[batch.mask].double()
    return Literal(model, texts, weights / weights.sum())


def condensed_by(
    folder: Path, method: str, target: float | str, batch: TokenBatch
) -> tuple[Opened, Record]:
    opened = open_model(str(folder), "float32")
    return opened, compress(opened, view(opened.model), batch, Recipe.parse(method, target))


@pytest.mark.parametrize("kind", KINDS)
def test_experts_and_layers_are_those_of_a_literal_search(
    kind: str, folders: dict[str, Path], batch: TokenBatch
) -> None:
    assert not bool(batch.mask.all()), "there is padding"
    opened, record = condensed_by(folders[kind], "cd_moe(experts=3, tokens=100000)", 0.5, batch)
    (edit,) = record.edits
    slow = literal(folders[kind], batch)
    states = slow.states()
    found: dict[int, nn.Module] = {}
    for block, seen in enumerate(states):
        gates, shared = slow.gates(block, seen["x"])
        kept: tuple[int, ...] = ()
        course: list[float] = []
        for _ in range(4):
            moved = (
                seen["after"]
                - seen["given"]
                + slow.condensed(block, seen["x"], kept, gates, shared)
            )
            course.append(slow.diverged(seen["after"], moved))
            if len(kept) < 3:
                kept = min(
                    ((*kept, e) for e in gates if e not in kept),
                    key=lambda some: slow.diverged(
                        seen["after"],
                        seen["after"]
                        - seen["given"]
                        + slow.condensed(block, seen["x"], some, gates, shared),
                    ),
                )
        assert edit["notes"]["experts"][str(block)]["order"] == list(kept)
        assert edit["notes"]["experts"][str(block)]["divergence"] == pytest.approx(course, rel=2e-3)
        if str(block) in edit["layers"]:
            assert edit["layers"][str(block)]["gates"] == pytest.approx(
                [gates[e] for e in kept], rel=1e-4
            )
            assert kind == "qwen3_moe" or edit["layers"][str(block)]["shared"] == pytest.approx(
                shared, rel=1e-3
            )
        found[block] = Side(
            lambda x, block=block, kept=kept, gates=gates, shared=shared: slow.condensed(
                block, x[0], kept, gates, shared
            )[None]
        )
    chosen: tuple[int, ...] = ()
    course = []
    for _ in range(2):
        left = [block for block in range(BLOCKS) if block not in chosen]
        tried = {
            b: slow.diverged(
                states[-1]["after"], slow.states({c: found[c] for c in (*chosen, b)})[-1]["after"]
            )
            for b in left
        }
        chosen = (*chosen, min(tried, key=tried.__getitem__))
        course.append(min(tried.values()))
    assert edit["notes"]["layers"] == list(chosen)
    assert edit["notes"]["course"] == pytest.approx(course, rel=2e-3)
    # What the model became is what the literal one is with these layers.
    model = copy.deepcopy(slow.model)
    for block in chosen:
        model.model.layers[block].mlp = found[block]
    with torch.no_grad():
        for ids in slow.texts:
            torch.testing.assert_close(
                opened.model(ids[None]).logits.double(), model(ids[None]).logits, rtol=0, atol=5e-4
            )


def test_what_is_added_beside_a_shared_expert_is_refused(
    folders: dict[str, Path], batch: TokenBatch
) -> None:
    opened = open_model(str(folders["qwen2_moe"]), "float32")
    layer = opened.model.model.layers[2].mlp
    forward = layer.forward
    layer.forward = lambda x: forward(x) + x
    with pytest.raises(ModelError) as refused:
        compress(opened, view(opened.model), batch, Recipe.parse("cd_moe(experts=2)", 0.5))
    assert refused.value.subject == "model.layers.2.mlp"


@BY_KIND
def test_gates_of_all_tokens_and_fitted_ones_are_what_they_say(
    kind: str, folders: dict[str, Path], batch: TokenBatch
) -> None:
    """The one mean is the other times the share of tokens; fitted gates are those of a
    regression of all numbers of a layer's output.
    """
    slow = literal(folders[kind], batch)
    states = slow.states()
    (every,) = condensed_by(
        folders[kind], "cd_moe(experts=8, gates=all, tokens=100000)", 0.5, batch
    )[1].edits
    for block, entry in every["layers"].items():
        x = states[int(block)]["x"]
        gates, _ = slow.gates(int(block), x)
        masses = dict.fromkeys(gates, 0.0)
        for best, weight in zip(picked(slow, int(block), x), slow.weights.tolist(), strict=True):
            for expert in best:
                masses[expert] += weight
        assert entry["gates"] == pytest.approx(
            [gates[e] * masses[e] for e in entry["experts"]], rel=1e-4
        )
    (fitted,) = condensed_by(
        folders[kind], "cd_moe(experts=3, gates=fitted, tokens=100000)", 0.5, batch
    )[1].edits
    for block, entry in fitted["layers"].items():
        seen = states[int(block)]
        columns = [
            slow.expert(int(block), expert, seen["x"]).flatten() for expert in entry["experts"]
        ]
        want = list(entry["gates"])
        if kind == "qwen2_moe":
            columns.insert(0, slow.condensed(int(block), seen["x"], (), {}, 1.0).flatten())
            want.insert(0, entry["shared"])
        roots = slow.weights.sqrt().repeat_interleave(seen["given"].shape[-1])
        weighted = torch.stack(columns, 1) * roots[:, None]
        solved = np.linalg.lstsq(
            weighted.numpy(), (seen["given"].flatten() * roots).numpy(), rcond=None
        )[0]
        assert want == pytest.approx(solved.tolist(), rel=2e-3, abs=1e-4)
    (mean,) = condensed_by(folders[kind], "cd_moe(experts=3, tokens=100000)", 0.5, batch)[1].edits
    ends = [
        sum(one["divergence"][-1] for one in edit["notes"]["experts"].values())
        for edit in (fitted, mean)
    ]
    assert ends[0] < ends[1], "a fit of this choice is nearer than means"


def picked(slow: Literal, block: int, x: Tensor) -> list[list[int]]:
    return (x @ slow.model.model.layers[block].mlp.gate.weight.detach().T).topk(2).indices.tolist()


@BY_KIND
@pytest.mark.parametrize(
    "method",
    usually(
        ["cd_moe(experts=2, gates=fitted)", "cd_moe(experts=2, steps=2, rate=0.01)"],
        ["cd_moe(experts=2, steps=2, rate=0.01)"],
    ),
)
def test_its_edits_keep_their_contract(kind: str, method: str, folders: dict[str, Path]) -> None:
    check_edits(methods.build(method), parse_target("blocks 0.5"), str(folders[kind]))


def test_saved_it_opens_with_plain_transformers_and_is_smaller_by_what_is_promised(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    done = prune(
        str(folders["qwen2_moe"]),
        data="python_docs",
        method="cd_moe(experts=2)",
        target=0.5,
        out=tmp_path / "out",
        **SMALL,
    )
    (edit,) = done.record.edits
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    again.set_experts_implementation("eager")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, done.opened.model(ids).logits)
    assert again.config.mlp_only_layers == sorted(edit["notes"]["layers"])
    assert edit["bytes"] == tensors_of(folders["qwen2_moe"]) - tensors_of(tmp_path / "out")
    # Of a layer: eight experts of 3 · 16 · 32, a shared one of 3 · 24 · 32, the router and the
    # shared gate; left are 3 · (24 + 2 · 16) · 32.
    assert edit["removed"] == 2 * (8 * 3 * 16 * 32 + 3 * 24 * 32 - 3 * (24 + 2 * 16) * 32)
    assert edit["bytes"] == 4 * (edit["removed"] + 2 * (8 * 32 + 32))
    whole = sum(
        weight.shape[0] * weight.shape[1]
        for weight in view(tiny_mixture("qwen2_moe", num_hidden_layers=BLOCKS)).weights
    )
    assert done.record.sparsity == pytest.approx(edit["removed"] / whole)
    assert prune(
        str(folders["qwen2_moe"]),
        data="python_docs",
        method="cd_moe(experts=2)",
        target=0.5,
        out=tmp_path / "out",
        **SMALL,
    ).already_done


def tensors_of(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return sum(one.numel() * one.element_size() for one in map(file.get_tensor, file.keys()))


def test_killed_after_any_measurement_it_comes_to_the_same_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder, method = str(folders["qwen2_moe"]), "cd_moe(experts=2, steps=2, rate=0.001)"
    whole = prune(
        folder, data="python_docs", method=method, target=0.5, out=tmp_path / "whole", **SMALL
    )
    for at in (1, 11, 14):
        out = tmp_path / f"killed-{at}"
        with killed_after(at), pytest.raises(KeyboardInterrupt):
            prune(folder, data="python_docs", method=method, target=0.5, out=out, **SMALL)
        assert tried(out) > 0
        again = prune(folder, data="python_docs", method=method, target=0.5, out=out, **SMALL)
        assert again.record.edits == whole.record.edits
        assert (out / "model.safetensors").read_bytes() == (
            tmp_path / "whole/model.safetensors"
        ).read_bytes()
        assert not list(tmp_path.glob(".killed*")), "nothing is left of the search"


def test_training_what_was_kept_lowers_the_loss_and_touches_nothing_else(
    folders: dict[str, Path], batch: TokenBatch
) -> None:
    plain, _ = condensed_by(folders["qwen2_moe"], "cd_moe(experts=2)", 0.5, batch)
    trained, record = condensed_by(
        folders["qwen2_moe"], "cd_moe(experts=2, steps=8, rate=0.005)", 0.5, batch
    )
    (edit,) = record.edits
    before, after = plain.model.state_dict(), trained.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        f"model.layers.{block}.mlp.{key}_proj.weight"
        for block in edit["layers"]
        for key in ("gate", "up", "down")
    }
    assert edit["tuned"] == len(changed)
    assert nats(trained.model, batch) < nats(plain.model, batch) - 0.05
    assert all(parameter.requires_grad for parameter in trained.model.parameters())
    assert edit["notes"]["loss"] == pytest.approx(nats(trained.model, batch), rel=1e-4)


def nats(model: PreTrainedModel, batch: TokenBatch) -> float:
    """Text by text, from plain forwards; each set of the mix by its share."""
    lost = 0.0
    whole = float(batch.weights.double().sum())
    for factor, part in batch.mixed:
        total = mass = 0.0
        for ids, mask, weights in zip(part.ids, part.mask, part.weights, strict=True):
            real = ids[mask]
            counted = weights[mask].double()[1:]
            with torch.no_grad():
                words = model(real[None]).logits[0].double().log_softmax(-1)
            total -= float(words[:-1].gather(-1, real[1:, None])[:, 0] @ counted)
            mass += float(counted.sum())
        lost += factor * float(part.weights.double().sum()) / whole * total / mass
    return lost


def test_nothing_of_a_target_is_nothing_condensed(
    folders: dict[str, Path], batch: TokenBatch
) -> None:
    assert condensed_by(folders["qwen2_moe"], "cd_moe", 0.0, batch)[1].edits == ()
