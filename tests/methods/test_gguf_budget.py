"""A budget of bytes: kinds are chosen so that the file's tensors stay within it and cost the least,
and the file is what llama.cpp makes with these kinds.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import calibrant
from calibrant.compress import Compression, planning, quantize, room
from calibrant.compress.importance import imatrix
from calibrant.compress.planning import SCRATCH
from calibrant.edits import ReplaceParameters
from calibrant.errors import DataError, SpecError, TargetError
from calibrant.llama_cpp import quantize_file
from calibrant.methods import methods
from calibrant.methods.quantization import _gguf_file
from calibrant.models import ModelShape, open_model
from calibrant.models import view as seen
from calibrant.targets import GgufBudget, GgufRecipe, parse_target
from calibrant.testing import tiny_folder, tiny_model
from calibrant.testing.tiny import tiny_gguf

from tests.methods.test_llama_cpp import MOE, SMALL, tiny_moe_gguf
from tests.refusing import refused

pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")

KINDS = ("iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
"""All kinds of 32 inputs, which fit the rows of tiny models."""


def within(template: Path, out: Path, budget: int, **asked: Any) -> Compression:
    method = asked.pop("method", "llama_cpp")
    asked = {"data": "python_docs", "export": "gguf"} | SMALL | asked
    target = GgufBudget(budget)
    return quantize(str(template), method=method, target=target, out=out, **asked)


def notes_of(done: Compression) -> dict[str, Any]:
    return done.record.edits[0]["notes"]


def file_of(done: Compression) -> Path:
    assert done.out is not None
    return done.out / "model.gguf"


def tensors_of(path: Path) -> dict[str, gguf.ReaderTensor]:
    return {str(tensor.name): tensor for tensor in gguf.GGUFReader(path).tensors}


def bytes_of(path: Path) -> int:
    return sum(tensor.n_bytes for tensor in tensors_of(path).values())


def without_tokenizer(path: Path, copy: Path) -> Path:
    """The same tensors in a file that llama.cpp opens: it reads no tokenizer without merges."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(copy, "llama")
    for name, field in reader.fields.items():
        if name.startswith("llama."):
            writer.add_key_value(name, field.contents(), field.types[0])
    writer.add_tokenizer_model("none")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return copy


def named_in(refused: TargetError) -> int:
    """The bytes that a refusal names as those that there must be."""
    *_, named = [word for word in str(refused).split() if word.endswith("MB;")]
    target = parse_target(f"gguf {named.removesuffix(';')}")
    assert isinstance(target, GgufBudget)
    return target.bytes


def least_of(template: Path, out: Path) -> int:
    """The least budget, as the refusals of smaller ones name it: first one from shapes alone."""
    with pytest.raises(TargetError) as at_once:
        within(template, out, 1000)
    assert at_once.value.subject == "gguf 0.001MB"
    with pytest.raises(TargetError) as refused:
        within(template, out, named_in(at_once.value))
    assert not out.exists()
    return named_in(refused.value)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("gguf 90MB", 90_000_000),
        ("GGUF 1.5 gb", 1_500_000_000),
        ("gguf 2MiB", 2 * 2**20),
        ("gguf 0.5GiB", 2**29),
        ("gguf 85.196801MB", 85_196_801),
    ],
)
def test_a_budget_is_read_in_any_unit_and_written_in_one(given: str, count: int) -> None:
    target = parse_target(given)
    assert target == GgufBudget(count)
    assert parse_target(str(target)) == target


@pytest.mark.parametrize("given", ["gguf", "gguf 90", "gguf 0MB", "gguf -1MB", "gguf many MB"])
def test_what_is_no_budget_is_refused(given: str) -> None:
    with pytest.raises(TargetError) as refused:
        parse_target(given)
    assert refused.value.subject == given


@pytest.mark.parametrize("given", [True, 0, -1])
def test_bytes_are_a_whole_number_above_zero(given: int) -> None:
    with pytest.raises(TargetError) as refused:
        GgufBudget(given)
    assert refused.value.subject == str(given)


def test_a_cache_beside_a_budget_is_refused_as_such() -> None:
    with pytest.raises(TargetError, match="KV cache beside 'gguf 90MB'"):
        parse_target("gguf 90MB+kv_fp8")


def test_too_little_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    done: list[str] = []

    def noted(what: str, count: int, total: int) -> None:
        done.append(what)

    with pytest.raises(TargetError) as refused:
        within(template, tmp_path / "out", 20_000, progress=noted)
    assert named_in(refused.value) > 20_000
    assert "costs of kinds" not in done
    within(template, tmp_path / "out", named_in(refused.value), progress=noted)
    assert "costs of kinds" in done


def test_windows_of_one_token_predict_nothing(tmp_path: Path) -> None:
    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    with pytest.raises(DataError) as refused:
        within(template, tmp_path / "out", 40_000, method="llama_cpp(by=kl)", length=1)
    assert refused.value.subject == "1"


def test_killed_it_chooses_the_same_kinds_again(tmp_path: Path) -> None:
    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    budget = bytes_of(template) // 5

    def killed(what: str, count: int, total: int) -> None:
        if what.startswith("llama_cpp") and count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        within(template, tmp_path / "out", budget, progress=killed)
    again = within(template, tmp_path / "out", budget)
    once = within(template, tmp_path / "once", budget)
    assert notes_of(again) == notes_of(once)
    first, second = (file_of(done) for done in (once, again))
    assert first.read_bytes() == second.read_bytes()


def relative_errors(template: Path) -> dict[str, dict[str, float]]:
    """What each tensor loses by each kind, in float64: the literal sum over rows and columns."""
    from calibrant.llama_cpp import quantize_matrix

    means = {
        name: entry.importance[0]
        for name, entry in imatrix(str(template), data="python_docs", **SMALL).entries.items()
    }
    errors: dict[str, dict[str, float]] = {}
    for name, tensor in tensors_of(template).items():
        if tensor.data.ndim < 2:
            continue
        dense = tensor.data.astype(np.float64)
        mean = means.get(name)
        weights = np.ones(dense.shape[1]) if mean is None else mean.astype(np.float64)
        errors[name] = {}
        for kind in KINDS:
            blocks = quantize_matrix(tensor.data, kind, mean)
            back = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])
            lost = np.einsum("oi,i->", (dense - back.astype(np.float64)) ** 2, weights)
            errors[name][kind] = float(lost / np.einsum("oi,i->", dense**2, weights))
    return errors


def test_the_file_is_within_its_budget_and_no_single_kind_costs_less(tmp_path: Path) -> None:
    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    dense = tensors_of(template)
    errors = relative_errors(template)
    plain = sum(tensor.n_bytes for name, tensor in dense.items() if name not in errors)
    for share in (4.6, 5.3, 6.4):
        numbers = sum(dense[name].n_elements for name in errors)
        budget = plain + int(numbers * share / 8)
        done = within(template, tmp_path / f"{share}", budget)
        notes = notes_of(done)
        written = tensors_of(file_of(done))
        assert bytes_of(file_of(done)) == notes["bytes"] <= budget
        kinds = {name: written[name].tensor_type.name.lower() for name in errors}
        assert kinds == {name: chosen["kind"] for name, chosen in notes["tensors"].items()}
        cost = sum(errors[name][kind] for name, kind in kinds.items())
        assert notes["cost"] == pytest.approx(cost, rel=1e-4)
        for kind in KINDS:
            size = (
                plain
                + numbers * gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]][1] // 32
            )
            if size <= budget:
                assert cost <= sum(errors[name][kind] for name in errors) * (1 + 1e-9)


def test_equal_budgets_give_equal_files_that_llama_cpp_opens(tmp_path: Path) -> None:
    from calibrant.llama_cpp import LlamaModel

    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    least = least_of(template, tmp_path / "refused")
    once = within(template, tmp_path / "once", least + 3000)
    again = within(template, tmp_path / "again", least + 3000)
    first, second = (file_of(done) for done in (once, again))
    assert first.read_bytes() == second.read_bytes()
    assert once.record.run.id == again.record.run.id
    ids = torch.arange(3, 35).reshape(2, 16)
    in_torch = open_model(str(once.out), "float32", "cpu").model(ids).logits
    assert torch.equal(in_torch, open_model(str(first), "float32", "cpu").model(ids).logits)
    with LlamaModel(without_tokenizer(first, tmp_path / "bare.gguf"), 16) as running:
        assert np.isfinite(running.logits(list(range(3, 19)))).all()


def test_the_least_budget_is_met_and_costs_what_each_tensor_alone_does(tmp_path: Path) -> None:
    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    least = least_of(template, tmp_path / "refused")
    done = within(
        template, tmp_path / "out", least, method="llama_cpp(by=kl)", length=16, samples=2
    )
    notes = notes_of(done)
    assert bytes_of(file_of(done)) == notes["bytes"] == least
    # With every tensor at its smallest kind, a cost is the divergence by that tensor alone.
    written = open_model(str(done.out), "float64", "cpu").model
    dense = open_model(str(template), "float64", "cpu")
    batch = calibrant.CalibrationSet("python_docs", samples=2, length=16).tokens(dense.tokenizer)

    def logs() -> torch.Tensor:
        with torch.no_grad():
            return dense.model(batch.ids).logits[:, :-1].log_softmax(-1)

    before = logs()
    for parameter, tensor in (
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"),
        ("model.embed_tokens.weight", "token_embd.weight"),
    ):
        numbers = dense.model.get_parameter(parameter).data
        kept = numbers.clone()
        numbers.copy_(written.get_parameter(parameter).data)
        expected = float((before.exp() * (before - logs())).sum(-1).mean())
        numbers.copy_(kept)
        assert notes["tensors"][tensor]["cost"] == pytest.approx(expected, rel=1e-2)


@pytest.mark.big
def test_a_file_of_the_size_of_a_recipe_loses_less(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"data": "python_docs", "samples": 2, "length": 256, "export": "gguf"}
    recipe, budget = tmp_path / "recipe", tmp_path / "budget"
    quantize("smollm2", method="llama_cpp", target="Q4_K_M", out=recipe, **asked)
    size = bytes_of(recipe / "model.gguf")
    quantize("smollm2", method="llama_cpp", target=GgufBudget(size), out=budget, **asked)
    assert bytes_of(budget / "model.gguf") <= size
    task = "loss(source='python_docs', tokens=2048, length=256)"
    losses: list[float] = []
    for folder in (recipe, budget):
        (measured,) = calibrant.evaluate(
            str(folder / "model.gguf"), tasks=[task], engine="llama_cpp"
        )
        losses.append(measured.score.value)
    assert losses[1] < losses[0]


def test_gate_and_up_of_experts_get_one_kind(tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "folder", "qwen3_moe", **MOE))
    template = tiny_moe_gguf(tmp_path / "moe.gguf")
    method, export = f"llama_cpp(like='{template}')", f"gguf(like='{template}')"
    plain = 4 * sum(tensor.n_elements for tensor in tensors_of(template).values())
    done = within(Path(folder), tmp_path / "out", plain // 6, method=method, export=export)
    written = tensors_of(file_of(done))
    assert bytes_of(file_of(done)) == notes_of(done)["bytes"] <= plain // 6
    for block in range(2):
        pair = {
            written[f"blk.{block}.ffn_{part}_exps.weight"].tensor_type for part in ("gate", "up")
        }
        assert len(pair) == 1
    # llama.cpp leaves routers as they are.
    assert written["blk.0.ffn_gate_inp.weight"].tensor_type == gguf.GGMLQuantizationType.F32


def test_without_data_kinds_are_chosen_too(tmp_path: Path) -> None:
    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    budget = bytes_of(template) // 6
    done = within(
        template, tmp_path / "out", budget, method="llama_cpp(importance=false)", data=None
    )
    assert bytes_of(file_of(done)) == notes_of(done)["bytes"] <= budget


def test_a_recipe_leaves_nothing_to_choose(tmp_path: Path) -> None:
    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    with pytest.raises(TargetError) as refused:
        quantize(
            str(template), data="python_docs", method="llama_cpp(by=kl)", target="Q4_0", **SMALL
        )
    assert refused.value.subject == "Q4_0"
    with pytest.raises(SpecError):
        methods.build("llama_cpp(by=size)")


@pytest.mark.parametrize(
    ("method", "target"),
    [("llama_cpp", "gguf 0.04MB"), ("llama_cpp(by=kl)", "gguf 0.04MB"), ("llama_cpp", "Q8_0")],
)
def test_scratch_files_are_as_large_as_planned(
    tmp_path: Path, method: str, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = str(tiny_gguf(tmp_path / "tiny.gguf", "F32"))
    largest = 0

    def watched(source: Path, made: Path, *rest: Any) -> None:
        nonlocal largest
        quantize_file(source, made, *rest)
        largest = max(largest, sum(file.stat().st_size for file in source.parent.iterdir()))

    monkeypatch.setattr(_gguf_file, "quantize_file", watched)
    asked: dict[str, Any] = {"data": "python_docs", "method": method, "target": target, **SMALL}
    planned = calibrant.plan(quantize, template, **asked)
    quantize(template, **asked)
    assert planned.disk == {SCRATCH: pytest.approx(largest, rel=0.15)}
    # Nothing else is written without a folder for the result.
    assert planned.seconds.keys() == {"open", "tokenize", "compress"}


def test_a_disk_too_small_for_scratch_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = str(tiny_gguf(tmp_path / "tiny.gguf", "F32"))
    asked: dict[str, Any] = {"data": "python_docs", "method": "llama_cpp", **SMALL}
    asked |= {"target": "gguf 0.04MB", "out": tmp_path / "out"}
    scratch = calibrant.plan(quantize, template, **asked).disk[SCRATCH]
    for free, fits in ((scratch, True), (scratch - 1, False)):
        monkeypatch.setattr(planning, "free_for_scratch", lambda out, free=free: free)
        planned = calibrant.plan(quantize, template, **asked)
        assert planned.fits == fits
        assert fits or "TMPDIR" in planned.problems[0]


def test_scratch_files_count_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = str(tiny_gguf(tmp_path / "tiny.gguf", "F32"))
    # Nothing else counts, so that the bytes that are needed are known.
    monkeypatch.setattr(room, "held_now", lambda: 0)
    recipe = GgufRecipe("Q4_0")
    mapped = room.mapped_bytes(ModelShape.of(seen(open_model(template).model)), recipe)
    method = methods.build("llama_cpp(importance=false)")
    asked = {"method": method, "target": recipe, "out": tmp_path / "out"}
    with refused(SpecError, method):
        quantize(template, memory=(mapped - 1) / 1e9, **asked)
    assert quantize(template, memory=(mapped + 1) / 1e9, **asked).record.edits


def test_a_plan_and_a_profile_name_what_kinds_cost(tmp_path: Path) -> None:
    template = str(tiny_gguf(tmp_path / "tiny.gguf", "F32"))
    asked: dict[str, Any] = {"data": "python_docs", "method": "llama_cpp", **SMALL}
    recipe, budget = (
        calibrant.plan(quantize, template, target=target, **asked)
        for target in ("Q8_0", "gguf 0.04MB")
    )
    assert "costs of kinds" not in recipe.parts
    assert budget.seconds["compress"] > recipe.seconds["compress"]
    done = quantize(template, target="gguf 0.04MB", profile=True, **asked)
    assert done.costs is not None
    assert done.costs.parts["costs of kinds"] > 0
    assert budget.parts["costs of kinds"] > 0


def test_a_plan_knows_the_budget(tmp_path: Path) -> None:
    template = str(tiny_gguf(tmp_path / "tiny.gguf", "F32"))
    asked: dict[str, Any] = {"data": "python_docs", "method": "llama_cpp", "export": "gguf"}
    asked |= SMALL
    asked["out"] = tmp_path / "out"
    enough = calibrant.plan(quantize, template, target="gguf 0.05MB", **asked)
    assert enough.fits
    assert 50_000 <= enough.disk["gguf"] < 100_000
    assert not calibrant.plan(quantize, template, target="gguf 0.001MB", **asked).fits
    # More than the largest kinds take isn't written.
    too_much = calibrant.plan(quantize, template, target="gguf 1000000GB", **asked)
    assert too_much.fits
    assert too_much.disk["gguf"] < 100_000


def test_notes_outlive_an_interruption() -> None:
    edit = ReplaceParameters({}, {"budget": 90})
    view = seen(tiny_model("llama"))
    assert ReplaceParameters.read(edit.stored(), view) == edit
