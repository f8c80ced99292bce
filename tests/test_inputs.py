"""Models whose matrices get rounded inputs: what they compute, how they are taken back, kept,
saved, measured, and gone on with after a kill.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MambaConfig, MambaForCausalLM

import calibrant
from calibrant.activations import FeatureMaxima, MagnitudeCounts, Seen
from calibrant.compress import (
    Recipe,
    UntouchedModel,
    compress,
    prune,
    prune_quantize,
    quantize,
    transformed,
)
from calibrant.compress.inputs import range_of
from calibrant.data import CalibrationSet
from calibrant.edits import Edit, QuantizeInputs, read_edit
from calibrant.edits.file import from_bytes, to_bytes
from calibrant.errors import DataError, NumericsError, OutputError, SpecError
from calibrant.lab.report import report
from calibrant.lab.study import Study
from calibrant.lab.study.loaded import LoadedModel
from calibrant.models import Opened, Snapshot, load, open_model, view
from calibrant.models.rounded_inputs import INPUTS, rounding_modules
from calibrant.results import EDITS, Record, Store
from calibrant.targets import InputGrid
from calibrant.testing import tiny_folder, tiny_tokenizer
from calibrant.walk.rehearsal import rehearse

from tests.killed import killed_behind
from tests.models.refused import refusal_of
from tests.study.small import kept_files
from tests.usual import two_hundred_lines

IDS = torch.arange(3, 67).reshape(2, 32)
SMALL: dict[str, Any] = {"samples": 4, "length": 32, "dtype": "float32"}
SCHEMES = ["W8A8", "FP8", "FP8(range=mse)", "FP8_DYNAMIC", "NVFP4", "MXFP4"]


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tiny_folder(tmp_path / "model", "llama"))


def logits_of(opened: Opened) -> Tensor:
    with torch.no_grad():
        return opened.model(IDS).logits


def compressed(
    folder: str, texts: str, target: str, method: str = "rtn"
) -> tuple[Opened, list[Edit], Record]:
    opened = open_model(folder, "float32")
    recipe = Recipe.parse(method, target)
    batch = CalibrationSet(texts, samples=4, length=32).tokens(opened.tokenizer)
    edits: list[Edit] = []
    record = compress(opened, view(opened.model), batch, recipe, keep=edits.append)
    return opened, edits, record


def int8(x: Tensor) -> Tensor:
    """Each token's inputs on 256 values."""
    scales = x.abs().amax(-1, keepdim=True) / 127.5
    return (x / scales).round().clamp(-128, 127) * scales


class Int8Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch calls it so
        return nn.functional.linear(int8(input), self.weight, self.bias)


def rounded_by_hand(opened: Opened) -> None:
    """Make of a llama one that computes what W8A8 says."""
    for module in opened.model.model.layers.modules():
        if isinstance(module, nn.Linear):
            scales = module.weight.abs().amax(1, keepdim=True) / 127.5
            with torch.no_grad():
                module.weight.copy_((module.weight / scales).round().clamp(-128, 127) * scales)
            module.__class__ = Int8Linear


def test_w8a8_computes_what_a_model_written_for_it_does(folder: str, texts: str):
    opened, _, record = compressed(folder, texts, "W8A8")
    by_hand = open_model(folder, "float32")
    rounded_by_hand(by_hand)
    expected = logits_of(by_hand)
    assert not torch.equal(expected, logits_of(open_model(folder, "float32")))
    torch.testing.assert_close(logits_of(opened), expected, rtol=1e-5, atol=1e-5)
    lines = [edit for edit in record.edits if edit["edit"] == "quantize_inputs"]
    assert len(lines) == 21
    assert lines[0]["strategy"] == "token"
    assert record.run.tokens == record.run.data == ""


def test_smoothed_and_rounded_is_rounded_after_smoothing(folder: str, texts: str):
    """The smoothed model, written for W8A8 by hand, gives the logits of both together."""
    recipe = Recipe.parse("rtn", "W8A8", transform=["smooth"])
    both = open_model(folder, "float32")
    batch = CalibrationSet(texts, samples=4, length=32).tokens(both.tokenizer)
    compress(both, view(both.model), batch, recipe)
    by_hand = open_model(folder, "float32")
    untouched = UntouchedModel(by_hand, view(by_hand.model), batch)
    assert list(transformed(untouched, recipe.transforms))
    smooth = logits_of(by_hand)
    torch.testing.assert_close(
        smooth, logits_of(open_model(folder, "float32")), rtol=1e-5, atol=1e-5
    )
    rounded_by_hand(by_hand)
    expected = logits_of(by_hand)
    assert not torch.allclose(expected, smooth, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits_of(both), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", SCHEMES)
def test_all_is_taken_back_to_the_bit_and_read_again(target: str, folder: str, texts: str):
    method = "gptq" if target == "FP8" else "rtn"
    opened, edits, record = compressed(folder, texts, target, method)
    made = logits_of(opened)
    assert json.dumps(record.plain(), allow_nan=False)
    again = open_model(folder, "float32")
    untouched = logits_of(again)
    model_view = view(again.model)
    undoing: list[Any] = []
    for stored in from_bytes(to_bytes([edit.stored() for edit in edits])):
        edit = read_edit(stored, model_view)
        undoing.append(edit.undo(model_view))
        edit.apply(model_view)
    assert torch.equal(logits_of(again), made)
    for undo in reversed(undoing):
        undo()
    assert torch.equal(logits_of(again), untouched)
    assert not rounding_modules(again.model)


def test_a_snapshot_and_a_copy_know_of_it(folder: str, texts: str):
    opened, edits, _ = compressed(folder, texts, "W8A8")
    copied = copy.deepcopy(opened.model)
    made = logits_of(opened)
    inputs = [edit for edit in edits if isinstance(edit, QuantizeInputs)]
    restored = open_model(folder, "float32")
    model_view = view(restored.model)
    untouched = logits_of(restored)
    snapshot = Snapshot.of(model_view)
    for edit in edits:
        read_edit(edit.stored(), model_view).apply(model_view)
    with snapshot.as_it_was():
        assert torch.equal(logits_of(restored), untouched)
    assert torch.equal(logits_of(restored), made)
    snapshot.restore()
    assert torch.equal(logits_of(restored), untouched)
    # What is undone in one doesn't change its copy.
    for edit in inputs:
        edit.undo(view(opened.model))
        vars(edit.weight.owner).pop("forward")
    with torch.no_grad():
        assert torch.equal(copied(IDS).logits, made)


def test_static_scales_are_those_of_inputs_that_come_through_rounded_ones(folder: str, texts: str):
    """By hooks of the finished model: what arrives at each matrix is what its scale is of."""
    opened, edits, _ = compressed(folder, texts, "FP8")
    largest: dict[str, float] = {}
    handles: list[Any] = []
    for edit in edits:
        if isinstance(edit, QuantizeInputs):

            def note(_: nn.Module, args: tuple[Tensor], name: str = edit.weight.name) -> None:
                largest[name] = max(largest.get(name, 0.0), float(args[0].abs().max()))

            handles.append(edit.weight.owner.register_forward_pre_hook(note))
    batch = CalibrationSet(texts, samples=4, length=32).tokens(opened.tokenizer)
    with torch.no_grad():
        opened.model(batch.ids)
    scales = {
        edit.weight.name: edit.static_scale for edit in edits if isinstance(edit, QuantizeInputs)
    }
    assert len(scales) == 21
    for name, scale in scales.items():
        assert scale == pytest.approx(largest[name] / 448, rel=1e-4)
    attention = "model.layers.1.self_attn"
    assert scales[f"{attention}.q_proj"] == scales[f"{attention}.v_proj"]


def test_a_range_may_leave_out_what_stands_out(folder: str, texts: str):
    reaches: dict[str, dict[str, float]] = {}
    for target in ("FP8", "FP8(range=percentile)", "FP8(range=mse)"):
        _, edits, _ = compressed(folder, texts, target)
        reaches[target] = {
            edit.weight.name: edit.notes["reach"]
            for edit in edits
            if isinstance(edit, QuantizeInputs)
        }
    name = "model.layers.0.self_attn.q_proj"
    absmax, percentile, mse = (reach[name] for reach in reaches.values())
    assert percentile <= absmax
    assert mse <= absmax
    assert len({absmax, percentile, mse}) > 1


def test_a_range_by_percentile_reaches_to_all_but_one_in_ten_thousand():
    x = torch.randn(400, 500, generator=torch.Generator().manual_seed(2))
    x[:19, 0] = 100 + torch.arange(19.0)
    seen = Seen({FeatureMaxima: FeatureMaxima.of(x), MagnitudeCounts: MagnitudeCounts.of(x)})
    reach = range_of(seen, InputGrid("e4m3", "tensor", range="percentile"))
    # Twenty of 200,000 are larger: the outliers, and one more.
    exact = float(x.abs().flatten().sort().values[-21])
    assert exact <= reach <= exact * (1 + 1 / 32)


def test_a_range_by_mse_is_where_a_slow_sum_of_squared_errors_is_least():
    x = torch.randn(400, 500, generator=torch.Generator().manual_seed(3))
    x[0, 0] = 6.0
    seen = Seen({FeatureMaxima: FeatureMaxima.of(x), MagnitudeCounts: MagnitudeCounts.of(x)})
    reach = range_of(seen, InputGrid("int8", "tensor", range="mse"))
    errors: dict[float, float] = {}
    for step in range(1, 101):
        tried = 6.0 * step / 100
        scale = tried / 127.5
        rounded = (x.double() / scale).round().clamp(-128, 127) * scale
        errors[tried] = float((rounded - x).square().sum())
    # Inputs count as the middles of their sizes, which moves the errors a little.
    assert errors[reach] <= 1.02 * min(errors.values())
    assert errors[6.0] > 1.02 * min(errors.values()), "it isn't the farthest"


def test_a_scale_that_is_not_finite_is_refused(folder: str, texts: str):
    opened, edits, _ = compressed(folder, texts, "FP8")
    (first, *_) = [edit for edit in edits if isinstance(edit, QuantizeInputs)]
    stored = first.stored()
    for scale in (float("nan"), float("inf"), 0.0, -1.0):
        broken = type(stored)(stored.kind, {**stored.facts, "scale": scale})
        with pytest.raises(NumericsError):
            read_edit(broken, view(opened.model)).apply(view(opened.model))
    elsewhere = type(stored)(stored.kind, {**stored.facts, "matrix": "model.layers.9.up_proj"})
    with pytest.raises(DataError):
        read_edit(elsewhere, view(opened.model))


@pytest.mark.parametrize("target", ["W8A8", "FP8"])
def test_experts_in_one_module_keep_their_inputs_and_are_named(
    target: str, texts: str, tmp_path: Path
):
    folder = str(tiny_folder(tmp_path / "model", "mixtral"))
    opened, _, record = compressed(folder, texts, target)
    rounding = rounding_modules(opened.model)
    assert rounding
    assert all("experts" not in name for name in rounding)
    (left,) = [edit["matrices"] for edit in record.edits if edit["edit"] == "inputs_left"]
    assert left
    assert all("experts" in name for name in left)


class TwoOfThree(nn.Module):
    """Three experts in modules of their own, of which no token reaches the last."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.experts = nn.ModuleList(copy.deepcopy(network) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x) + self.experts[1](2 * x)


def test_an_expert_that_saw_no_token_gets_the_scales_of_the_others(folder: str, texts: str):
    opened = open_model(folder, "float32")
    for block in opened.model.model.layers:
        block.mlp = TwoOfThree(block.mlp)
    recipe = Recipe.parse("rtn", "FP8")
    batch = CalibrationSet(texts, samples=4, length=32).tokens(opened.tokenizer)
    edits: list[Edit] = []
    compress(opened, view(opened.model), batch, recipe, keep=edits.append)
    inputs = {edit.weight.name: edit for edit in edits if isinstance(edit, QuantizeInputs)}
    for block in range(3):
        experts = f"model.layers.{block}.mlp.experts"
        for use in ("gate_proj", "up_proj", "down_proj"):
            *seen, unseen = (inputs[f"{experts}.{expert}.{use}"] for expert in range(3))
            assert unseen.static_scale == max(edit.static_scale or 0 for edit in seen)
            assert unseen.notes["from"] == [edit.weight.name for edit in seen]
            assert "from" not in seen[0].notes


def test_an_export_refuses_rounded_inputs_of_an_expert_that_got_no_codes(
    folder: str, texts: str, tmp_path: Path
):
    """It saw no token when a model that rounds inputs was quantized again."""
    opened = open_model(folder, "float32")
    for block in opened.model.model.layers:
        block.mlp = TwoOfThree(block.mlp)
    compress(opened, view(opened.model), None, Recipe.parse("rtn", "W8A8"))
    unseen = "model.layers.0.mlp.experts.2.gate_proj"
    asked: dict[str, Any] = {"data": texts, "target": "w8", "export": "compressed_tensors"}
    asked |= {"tokenizer": opened.tokenizer, **SMALL}
    refusal = refusal_of(
        quantize, opened.model, method="gptq", out=tmp_path / "out", kind=OutputError, **asked
    )
    assert refusal.subject == unseen
    assert not (tmp_path / "out").exists()
    # Without data every matrix gets codes, and keeps what becomes of its inputs.
    quantize(opened.model, method="rtn", out=tmp_path / "out", **asked)
    config = json.loads((tmp_path / "out/compressed_tensors/config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["input_activations"]["num_bits"] == 8
    assert unseen not in config["quantization_config"]["ignore"]


def test_a_matrix_that_is_used_without_its_module_is_left(tmp_path: Path, texts: str):
    config = MambaConfig(vocab_size=259, hidden_size=32, num_hidden_layers=2, state_size=4)
    MambaForCausalLM(config).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")
    opened, _, record = compressed(folder, texts, "W8A8")
    past_module = rehearse(view(opened.model)).past_module
    (left,) = [edit["matrices"] for edit in record.edits if edit["edit"] == "inputs_left"]
    assert past_module
    assert past_module <= set(left)


def test_static_scales_need_data(folder: str):
    refusal_of(quantize, folder, target="FP8", dtype="float32", kind=SpecError)
    quantize(folder, target="FP8_DYNAMIC", dtype="float32")


def files(folder: Path) -> dict[str, Any]:
    """All files of a folder; of the manifest what doesn't say how it came about."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    manifest = json.loads(found.pop("calibrant.json"))
    del manifest["record"]["provenance"], manifest["seal"]
    return {**found, "calibrant.json": manifest}


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("method", "target", "propagate"),
    [
        ("gptq", "FP8", "arrival"),
        ("awq", "NVFP4", "dense"),
        ("rtn", "W8A8", None),
        ("rtn, smoothed", "FP8", None),
    ],
)
@pytest.mark.parametrize("step", [1, 2, 4])
def test_killed_at_any_step_it_comes_to_the_same_files(
    step: int,
    method: str,
    target: str,
    propagate: str | None,
    on_disk: bool,
    folder: str,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    if on_disk and method == "awq":
        pytest.skip("awq needs the whole model")
    data = texts if method != "rtn" else None
    method, _, smoothed = method.partition(", ")
    job: dict[str, Any] = {"data": data, "method": method, "target": target, "memory": 1000.0}
    if smoothed:
        job["transform"] = "smooth"
    if propagate is not None:
        job["propagate"] = propagate
    quantize(folder, out=tmp_path / "whole", **job, **SMALL)
    if on_disk:
        monkeypatch.setattr(prune_quantize, "left_on_disk", lambda *_: "its blocks stayed on disk")
    with killed_behind(step):
        quantize(folder, out=tmp_path / "out", **job, **SMALL)
    done = quantize(folder, out=tmp_path / "out", **job, **SMALL)
    assert done.continued_from == step + 1
    assert done.opened.residence.on_disk == on_disk
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_saved_folder_is_opened_as_it_was_made(folder: str, texts: str, tmp_path: Path):
    out = tmp_path / "out"
    done = quantize(folder, data=texts, target="FP8", out=out, **SMALL)
    made = logits_of(done.opened)
    opened = open_model(str(out), "float32")
    assert torch.equal(logits_of(opened), made)
    with torch.no_grad():
        assert torch.equal(load(out)(IDS).logits, made)
        plain = AutoModelForCausalLM.from_pretrained(out).eval()
        assert not torch.equal(plain(IDS).logits, made)
    assert INPUTS in (out / "README.md").read_text("utf-8")
    # What is made of it keeps how inputs are rounded, or is refused.
    calibrant.export(out, tmp_path / "again")
    assert torch.equal(logits_of(open_model(str(tmp_path / "again"), "float32")), made)
    refusal_of(calibrant.export, out, tmp_path / "sparse", "sparse", kind=OutputError)
    already = quantize(folder, data=texts, target="FP8", out=out, **SMALL)
    assert already.already_done
    given = open_model(folder, "float32")
    taken = quantize(given.model, given.tokenizer, data=texts, target="FP8", out=out, **SMALL)
    assert torch.equal(logits_of(taken.opened), made)
    # Other scales are another model.
    before = open_model(str(tmp_path / "again")).digest
    place = tmp_path / "again" / INPUTS
    (tmp_path / "again" / "calibrant.json").unlink()
    text = json.loads(place.read_text("utf-8"))
    for facts in text["modules"].values():
        facts["scale"] *= 2
    place.write_text(json.dumps(text), "utf-8")
    assert open_model(str(tmp_path / "again")).digest != before


@pytest.mark.parametrize(
    "change",
    [
        {"scale": None},
        {"scale": -1.0},
        {"scale": "1"},
        {"grid": {"element": "e4m3"}},
        {"grid": 3},
        {"grid": {"element": "e4m3", "strategy": "tensor"}, "scale": None},
        {"grid": {"element": "e4m3", "strategy": "group", "group": 7}, "scale": None},
    ],
)
def test_a_folder_that_says_nonsense_of_inputs_is_refused(
    change: dict[str, Any], folder: str, texts: str, tmp_path: Path
):
    out = tmp_path / "out"
    quantize(folder, data=texts, target="FP8", out=out, **SMALL)
    (out / "calibrant.json").unlink()
    document = json.loads((out / INPUTS).read_text("utf-8"))
    document["modules"]["model.layers.0.mlp.up_proj"] |= change
    (out / INPUTS).write_text(json.dumps(document), "utf-8")
    assert refusal_of(open_model, str(out)).subject == str(out / INPUTS)
    del document["modules"]["model.layers.0.mlp.up_proj"]
    document["modules"]["model.layers.7.mlp.up_proj"] = {}
    (out / INPUTS).write_text(json.dumps(document), "utf-8")
    assert refusal_of(open_model, str(out)).subject == str(out / INPUTS)


def test_other_exports_refuse_it_before_any_work(folder: str, tmp_path: Path):
    for form in ("sparse", "gguf"):
        options: dict[str, Any] = {"target": "W8A8", "out": tmp_path / "out", "export": form}
        refusal_of(quantize, folder, **options, kind=OutputError)
    assert not (tmp_path / "out").exists()


def test_a_model_that_already_rounds_inputs_goes_on_doing_so(folder: str, tmp_path: Path):
    first = quantize(folder, target="W8A8", out=tmp_path / "first", dtype="float32")
    rounding = rounding_modules(first.opened.model)
    options: dict[str, Any] = {"target": "w4g16", "dtype": "float32"}
    for form in ("sparse", "gguf"):
        out = tmp_path / form
        given = str(tmp_path / "first")
        said = refusal_of(quantize, given, **options, out=out, export=form, kind=OutputError)
        assert said.subject == given
        assert not out.exists()
    quantize(str(tmp_path / "first"), **options, out=tmp_path / "second")
    opened = open_model(str(tmp_path / "second"), "float32")
    assert rounding_modules(opened.model).keys() == rounding.keys()
    assert INPUTS in (tmp_path / "second" / "README.md").read_text("utf-8")


@pytest.mark.parametrize("scheme", ["FP8", "W8A8"])
@pytest.mark.parametrize(
    "job",
    [
        {"target": "NVFP4"},
        {"target": "w8", "transform": "smooth"},
        {"target": "w8", "transform": "rotate"},
        {"target": "w8", "method": "awq"},
    ],
)
def test_what_does_not_fit_inputs_that_are_rounded_is_refused(
    job: dict[str, Any], scheme: str, folder: str, texts: str, tmp_path: Path
):
    """Static scales are those of the inputs that came, and what is rounded isn't rounded again."""
    rounded = str(tmp_path / "rounded")
    quantize(folder, data=texts, target=scheme, out=rounded, **SMALL)
    out = tmp_path / "out"
    said = refusal_of(quantize, rounded, data=texts, out=out, **job, **SMALL, kind=SpecError)
    assert said.subject in job.values()
    assert not out.exists()


@pytest.mark.parametrize(
    ("verb", "job"),
    [
        (prune, {"method": "sparsegpt"}),
        (prune, {"method": "short_gpt", "target": "blocks 0.34"}),
        (quantize, {"method": "gptq", "target": "w4g16"}),
    ],
)
def test_a_model_that_rounds_inputs_is_compressed_further(
    verb: Any, job: dict[str, Any], folder: str, texts: str, tmp_path: Path
):
    quantize(folder, target="W8A8", out=tmp_path / "rounded", dtype="float32")
    done = verb(str(tmp_path / "rounded"), data=texts, out=tmp_path / "out", **job, **SMALL)
    blocks = len(done.model.model.layers)
    assert len(rounding_modules(done.model)) == 7 * blocks
    assert torch.equal(
        logits_of(open_model(str(tmp_path / "out"), "float32")), logits_of(done.opened)
    )


@pytest.mark.parametrize("propagate", ["arrival", "dense"])
def test_scales_for_a_mix_reach_as_far_as_each_of_its_sets(propagate: str, folder: str, texts: str):
    """A set counts by its share in what weights are fitted to, fully in how far inputs reach."""
    reaches: dict[str, float] = {}
    name = "model.layers.0.self_attn.q_proj"
    for data in (texts, "random_tokens", f"mix(one={texts!r}, other=random_tokens, weight=0.5)"):
        done = quantize(
            folder, data=data, method="gptq", target="FP8", propagate=propagate, **SMALL
        )
        for edit in done.record.edits:
            if edit.get("name") == name:
                reaches[data] = edit["notes"]["reach"]
    one, other, mixed = reaches.values()
    assert mixed == max(one, other)


def test_a_study_of_two_schemes_measures_again_from_what_is_stored(
    folder: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tasks = [f"loss(source={texts!r}, tokens=200, length=64)"]
    asked: dict[str, Any] = {
        "model": [folder],
        "data": ["random_tokens"],
        "method": ["rtn"],
        "target": ["W8A8", "FP8"],
        "samples": 4,
        "length": 32,
    }
    whole = Study(**asked, evaluate=tasks).run(tmp_path / "store")
    assert not whole.failures
    store = Store(tmp_path / "store")
    tokens: dict[str, str] = {}
    for run in store.ids():
        record = store.record(run)
        assert record is not None
        tokens[record.run.target] = record.run.tokens
    assert tokens["FP8"]
    assert not tokens["W8A8"]
    assert len(kept_files(tmp_path / "store", EDITS)) == 1
    losses: set[float] = set()
    for run in store.ids():
        losses |= {measured.score.value for measured in store.scores(run).values()}
    assert len(losses) == 3
    made: list[str] = []

    def noted(opened: Any, view: Any, batch: Any, recipe: Recipe, **how: Any) -> Any:
        made.append(str(recipe.target))
        return compress(opened, view, batch, recipe, **how)

    said = report(tmp_path / "store").facts.settings["inputs"]
    assert "W8A8: of 21 matrices int8" in said
    assert "FP8: of 21 matrices e4m3" in said
    monkeypatch.setattr("calibrant.lab.study.driver.compress", noted)
    more = [*tasks, tasks[0].replace("200", "300")]
    assert not Study(**asked, evaluate=more).run(tmp_path / "store").failures
    assert "FP8" not in made


def test_the_model_of_a_study_is_dense_again_after_a_scheme(folder: str, texts: str):
    loaded = LoadedModel(open_model(folder, "float32"))
    untouched = logits_of(loaded.opened)
    recipe = Recipe.parse("rtn", "W8A8")
    compress(loaded.opened, loaded.view, None, recipe, keep=loaded.remember)
    made = logits_of(loaded.opened)
    kept = loaded.edits()
    assert kept is not None
    assert loaded.mask() is None
    assert not rounding_modules(loaded.reference())
    loaded.restore()
    assert torch.equal(logits_of(loaded.opened), untouched)
    loaded.apply(kept)
    assert torch.equal(logits_of(loaded.opened), made)


def test_a_plan_knows_the_second_walk(folder: str, texts: str):
    forwards: dict[str, float] = {}
    for target in ("FP8", "FP8_DYNAMIC"):
        planned = calibrant.plan(
            calibrant.quantize, folder, data=texts, method="gptq", target=target, **SMALL
        )
        forwards[target] = planned.parts["forward"]
    assert forwards["FP8"] == pytest.approx(2 * forwards["FP8_DYNAMIC"], rel=0.3)
