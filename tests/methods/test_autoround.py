"""AutoRound's codes are those of a literal loop over autograd, and err no more than rounding to
nearest.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from calibrant.compress import edits_of, plan, quantize
from calibrant.data import TokenBatch
from calibrant.edits import Replace
from calibrant.errors import ModelError
from calibrant.job import Job
from calibrant.methods import methods
from calibrant.methods.quantization import autoround
from calibrant.models import Opened, Weight, open_model, view
from calibrant.packed import Codes
from calibrant.targets import Grid, parse_target
from calibrant.testing.tiny import tiny_folder, tiny_model

from tests.usual import usually


def batch_of(rows: int = 4, length: int = 24) -> TokenBatch:
    """Windows of which the last has padding, with tokens that count unequally."""
    chance = torch.Generator().manual_seed(7)
    ids = torch.randint(3, 200, (rows, length), generator=chance)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[-1, length // 2 :] = False
    weights = torch.randint(1, 4, ids.shape, generator=chance) / 2 * mask
    return TokenBatch(ids * mask, mask, weights, "sha256:0", {})


def job_of(model: PreTrainedModel, target: str, batch: TokenBatch | None = None) -> Job:
    seen, aim = view(model), parse_target(target)
    opened = Opened(model, None, "tiny", "sha256:0", "", model.dtype)
    targets = dict.fromkeys(seen.named, aim)
    return Job(opened, seen, batch or batch_of(), aim, targets, "dense")


def rounded(method: str, job: Job) -> dict[str, Replace]:
    """The edits of a method by the names of their matrices; they are applied."""
    found: dict[str, Replace] = {}
    for edit in edits_of(methods.build(method), job):
        assert isinstance(edit, Replace)
        edit.apply(job.view)
        found[edit.weight.name] = edit
    return found


def codes_of(edit: Replace) -> Tensor:
    assert isinstance(edit.compressed.packed, Codes)
    assert torch.equal(edit.compressed.packed.dense(), edit.compressed.weight)
    return edit.compressed.packed.codes


def straight(x: Tensor) -> Tensor:
    """Rounded, with the gradient of what was given."""
    return x + (x.round() - x).detach()


def by_hand(w: Tensor, v: Tensor, a: Tensor, b: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """A matrix rounded as the paper has it, and its codes: literally, for autograd."""
    width = grid.group or w.shape[1]
    groups = w.reshape(len(w), -1, width)
    low = groups.amin(2).clamp_max(0) * a
    high = groups.amax(2).clamp_min(0) * b
    lowest, highest = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1
    if grid.symmetric:
        sign = torch.where(high < -low, 1.0, -1.0)
        s = (sign * torch.maximum(high, -low) / 2 ** (grid.bits - 1))[:, :, None]
        z = torch.zeros_like(s)
    else:
        s = ((high - low) / (2**grid.bits - 1))[:, :, None]
        z = straight(lowest - low[:, :, None] / s)
    codes = torch.clamp(straight(groups / s + v.reshape(groups.shape)) + z, lowest, highest)
    return (s * (codes - z)).reshape(w.shape), codes.detach().reshape(w.shape)


def nearest_by_hand(w: Tensor, grid: Grid) -> Tensor:
    groups = w.reshape(len(w), -1, grid.group or w.shape[1])
    low, high = groups.amin(2, keepdim=True).clamp_max(0), groups.amax(2, keepdim=True).clamp_min(0)
    lowest, highest, z = -(2 ** (grid.bits - 1)), 2 ** (grid.bits - 1) - 1, torch.zeros(())
    if grid.symmetric:
        s = torch.maximum(high, -low) / ((2**grid.bits - 1) / 2)
    else:
        s = (high - low) / (2**grid.bits - 1)
        z = (lowest - low / s).round()
    return (((groups / s + z).round().clamp(lowest, highest) - z) * s).reshape(w.shape)


class LiteralBlock:
    """A block with some of its matrices replaced, run on given hidden states."""

    def __init__(self, block: Any, weights: list[Weight]) -> None:
        self.module, self.weights = block.module, weights
        names = {id(parameter): name for name, parameter in block.module.named_parameters()}
        self.names = {w.name: names[id(getattr(w.owner, w.key))] for w in weights}

    def run(self, matrices: dict[str, Tensor], hidden: Tensor, rest: Any, kwargs: Any) -> Tensor:
        stored: dict[str, Tensor] = {}
        for weight in self.weights:
            name = self.names[weight.name]
            matrix = matrices[weight.name]
            matrix = matrix.T if weight.transposed else matrix
            if weight.expert is None:
                stored[name] = matrix
                continue
            if name not in stored:
                stored[name] = getattr(weight.owner, weight.key).detach()
            slices = list(stored[name])
            slices[weight.expert] = matrix
            stored[name] = torch.stack(slices)
        output = functional_call(self.module, stored, (hidden, *rest), kwargs)
        return output if isinstance(output, Tensor) else output[0]


def literal(
    model: PreTrainedModel, batch: TokenBatch, grid: Grid, steps: int, seen: set[str], inputs: str
) -> tuple[dict[str, Tensor], list[tuple[float, float]]]:
    """The codes of a literal loop, in which every step sees all windows, and the errors of each
    block before and after. Of a block that rounding to nearest does better, no codes.
    """
    blocks, calls = view(model).blocks, list[Any]()
    hooks = [
        block.module.register_forward_hook(
            lambda _, args, kwargs, out: calls.append(
                (args, kwargs, out if isinstance(out, Tensor) else out[0])
            ),
            with_kwargs=True,
        )
        for block in blocks
    ]
    with torch.no_grad():
        model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
    for hook in hooks:
        hook.remove()
    found, errors, arriving = dict[str, Tensor](), list[tuple[float, float]](), calls[0][0][0]
    for block, ((dense_input, *rest), kwargs, aim) in zip(blocks, calls, strict=True):
        hidden = arriving if inputs == "arrival" else dense_input
        weights = [weight for weight in block.weights if weight.name in seen]
        layer = LiteralBlock(block, weights)
        dense = {weight.name: weight.get().clone() for weight in weights}

        def error(
            matrices: dict[str, Tensor],
            layer: LiteralBlock = layer,
            hidden: Tensor = hidden,
            rest: Any = rest,
            kwargs: Any = kwargs,
            aim: Tensor = aim,
        ) -> Tensor:
            squares = (layer.run(matrices, hidden, rest, kwargs) - aim).square().sum(2)
            return (squares * batch.weights).sum()

        parameters: dict[str, list[Tensor]] = {}
        for name, w in dense.items():
            shape = (len(w), w.shape[1] // (grid.group or w.shape[1]))
            v, a, b = torch.zeros_like(w), w.new_ones(shape), w.new_ones(shape)
            parameters[name] = [one.requires_grad_() for one in (v, a, b)]
        best, least, kept = dict[str, Tensor](), float("inf"), dict[str, Tensor]()
        for step in range(steps):
            made: dict[str, tuple[Tensor, Tensor]] = {}
            for name, w in dense.items():
                v, a, b = parameters[name]
                made[name] = by_hand(w, v, a, b, grid)
            loss = error({name: matrix for name, (matrix, _) in made.items()})
            if loss.item() < least:
                least = loss.item()
                best = {name: codes for name, (_, codes) in made.items()}
                kept = {name: matrix.detach() for name, (matrix, _) in made.items()}
            loss.backward()
            with torch.no_grad():
                for v, a, b in parameters.values():
                    for one, bounds in ((v, (-0.5, 0.5)), (a, (0, 1)), (b, (0, 1))):
                        if one.grad is not None:
                            one -= (1 - step / steps) / steps * one.grad.sign()
                            one.clamp_(*bounds)
                            one.grad = None
        with torch.no_grad():
            nearest = {name: nearest_by_hand(w, grid) for name, w in dense.items()}
            before = float(error(nearest))
            if least < before:
                found |= best
            else:
                kept = nearest
            errors.append((before, min(least, before)))
            arriving = layer.run(kept, hidden, rest, kwargs)
    return found, errors


@pytest.mark.parametrize(
    "case",
    usually(
        [
            "llama w4g16 arrival",
            "llama w3g16a arrival",
            "llama w2 dense",
            "llama w5g16a arrival",
            "gpt2 w2g16 arrival",
            "gpt2 w3a dense",
            "mixtral w3g16 arrival",
            "qwen3_moe w4g16a arrival",
        ],
        {
            "llama w4g16 arrival",
            "llama w3g16a arrival",
            "gpt2 w2g16 arrival",
            "mixtral w3g16 arrival",
        },
    ),
)
def test_codes_are_those_of_a_literal_loop_with_autograd(case: str):
    family, target, inputs = case.split()
    steps, batch, grid = 12, batch_of(), parse_target(target)
    assert isinstance(grid, Grid)
    job = job_of(tiny_model(family).double(), target)
    edits = rounded(f"autoround(steps={steps}, inputs={inputs})", job)
    expected, errors = literal(tiny_model(family).double(), batch, grid, steps, set(edits), inputs)
    assert expected, "the literal loop did nothing better than rounding to nearest"
    for name, codes in expected.items():
        assert torch.equal(codes_of(edits[name]).double(), codes), name
    mass = float(batch.weights.sum()) * job.view.config.hidden_size
    for edit in edits.values():
        before, after = errors[edit.weight.block]
        notes = edit.compressed.notes
        assert notes["before"] == pytest.approx(before / mass, rel=1e-5)
        assert notes["after"] == pytest.approx(after / mass, rel=1e-5)
    assert all(parameter.grad is None for parameter in job.opened.model.parameters())


@pytest.mark.parametrize("case", ["llama w3g16", "llama w3g16a", "llama w2", "mixtral w2g16"])
def test_a_matrix_in_parts_gets_the_codes_of_the_whole(case: str, monkeypatch: pytest.MonkeyPatch):
    family, target = case.split()
    found: list[dict[str, Replace]] = []
    # On any number of threads.
    monkeypatch.setattr(autoround, "THREADS_PER_PART", 2**20)
    # The whole, and parts of a few rows, of which the last has fewer.
    for weights in (2**40, 250):
        monkeypatch.setattr(autoround, "WEIGHTS_PER_PART", weights)
        job = job_of(tiny_model(family).bfloat16(), target)
        for weight in job.view.weights:
            matrix = weight.get()
            rows = autoround._rows_per_part(weight, matrix)
            assert (rows < len(matrix)) == (weights == 250)
        found.append(rounded("autoround(steps=6)", job))
    whole, in_parts = found
    assert any(edit.compressed.notes["step"] is not None for edit in whole.values())
    for name, edit in whole.items():
        assert torch.equal(codes_of(edit), codes_of(in_parts[name])), name
        assert torch.equal(edit.compressed.weight, in_parts[name].compressed.weight), name


def outputs(model: PreTrainedModel, block: int) -> Tensor:
    batch, found = batch_of(), list[Tensor]()
    module = view(model).blocks[block].module
    hook = module.register_forward_hook(
        lambda _, __, out: found.append(out if isinstance(out, Tensor) else out[0])
    )
    with torch.no_grad():
        model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
    hook.remove()
    return found[0].double() * batch.weights[:, :, None].sqrt()


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("target", ["w2g16", "w8g16"])
def test_no_block_errs_more_than_rounded_to_nearest(family: str, target: str):
    """Checked at the first block, whose inputs are the same, with the model's own forward."""
    dense, errors = outputs(tiny_model(family), 0), dict[str, float]()
    for method in ("rtn", "autoround(steps=20)"):
        model = tiny_model(family)
        edits = rounded(method, job_of(model, target))
        errors[method] = float((outputs(model, 0) - dense).square().sum())
        if method != "rtn":
            # What no token reached stays as it was; rtn rounds it too, which changes nothing here.
            assert all(edit.seen.tokens for edit in edits.values())
    assert errors["autoround(steps=20)"] <= errors["rtn"] * (1 + 1e-6)
    if target == "w2g16":
        assert errors["autoround(steps=20)"] < 0.9 * errors["rtn"]


def test_the_seed_decides_which_windows_a_step_sees():
    def codes(method: str) -> dict[str, Tensor]:
        edits = rounded(method, job_of(tiny_model("llama"), "w3g16", batch_of(6, 400)))
        return {name: codes_of(edit) for name, edit in edits.items()}

    asked = "autoround(steps=6, batch=1, seed={})"
    first, again, other = (codes(asked.format(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_a_mix_counts_each_part_by_its_share():
    whole = batch_of()
    first, second = (
        TokenBatch(whole.ids[rows], whole.mask[rows], whole.weights[rows] * factor, "", {})
        for rows, factor in ((slice(0, 2), 4.0), (slice(2, 4), 0.5))
    )
    mix = TokenBatch(
        whole.ids, whole.mask, whole.weights, "sha256:1", {}, mixed=((0.25, first), (2.0, second))
    )
    found = [
        rounded("autoround(steps=5)", job_of(tiny_model("llama").double(), "w3g16", batch))
        for batch in (whole, mix)
    ]
    for name, edit in found[0].items():
        assert torch.equal(codes_of(edit), codes_of(found[1][name]))


def test_a_step_sees_as_many_windows_as_asked_where_micro_batches_differ_in_size():
    whole = batch_of(7)
    mixed = tuple(
        (1.0, TokenBatch(whole.ids[rows], whole.mask[rows], whole.weights[rows], "", {}))
        for rows in (slice(0, 4), slice(4, 5), slice(5, 6), slice(6, 7))
    )
    mix = TokenBatch(whole.ids, whole.mask, whole.weights, "sha256:1", {}, mixed=mixed)

    def codes(windows: int) -> dict[str, Tensor]:
        job = job_of(tiny_model("llama").double(), "w3g16", mix)
        edits = rounded(f"autoround(steps=5, batch={windows})", job)
        return {name: codes_of(edit) for name, edit in edits.items()}

    some, seven, more = codes(4), codes(7), codes(100)
    assert all(torch.equal(seven[name], more[name]) for name in seven)
    assert any(not torch.equal(seven[name], some[name]) for name in seven)


def test_a_model_that_changes_what_passes_between_blocks_is_refused_on_arrival():
    def doubled() -> PreTrainedModel:
        model = tiny_model("llama")
        model.model.layers[1].register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
        return model

    with pytest.raises(ModelError) as refused:
        rounded("autoround(steps=1)", job_of(doubled(), "w4g16"))
    assert refused.value.subject == "model.layers.1"
    assert rounded("autoround(steps=1, inputs=dense)", job_of(doubled(), "w4g16"))


def test_killed_and_asked_again_it_continues(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model"))
    asked = {
        "data": "python_docs",
        "method": "autoround(steps=4)",
        "target": "w3g16",
        "samples": 4,
        "length": 16,
        "dtype": "float32",
        "export": ["compressed_tensors"],
    }
    whole = quantize(folder, out=tmp_path / "whole", **asked)

    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(folder, out=tmp_path / "again", progress=killed, **asked)
    again = quantize(folder, out=tmp_path / "again", **asked)
    assert again.continued_from == 2
    assert again.record == whole.record
    for name in ("model.safetensors", "compressed_tensors/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # Scales may be negative: what opens the codes gives the same numbers.
    plain = open_model(str(tmp_path / "whole"), "float32").model.state_dict()
    packed = open_model(str(tmp_path / "whole/compressed_tensors"), "float32").model.state_dict()
    assert all(torch.equal(plain[name], packed[name]) for name in plain)


def test_a_plan_counts_the_steps(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model"))
    given = {"data": "python_docs", "target": "w4g16", "samples": 64, "length": 512}
    few, many = (
        plan(quantize, folder, method=f"autoround(steps={steps})", **given) for steps in (100, 200)
    )
    ratio = many.parts["method and record"] / few.parts["method and record"]
    assert 1.7 < ratio <= 2
    assert not many.notes
