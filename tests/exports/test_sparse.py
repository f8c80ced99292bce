"""The `sparse` folder is the same model to the bit, smaller by what it promises, and no reader of plain folders takes it for one."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import calibrant
from calibrant.compress import export, prune, quantize
from calibrant.edits import Replace, read_edit
from calibrant.edits.file import from_bytes
from calibrant.errors import ModelError, OutputError
from calibrant.evaluators import evaluate
from calibrant.exports import CompressedModel
from calibrant.exports.sparse import Sparse
from calibrant.methods import methods
from calibrant.models import Opened, load, open_model, sparse_folder, view
from calibrant.models.compact import same
from calibrant.models.saving import write_model
from calibrant.packed import Codes, Compressed, Factors, exact_factor
from calibrant.store import EDITS, Record, Run, Store
from calibrant.targets import Grid, parse_target
from calibrant.testing import tiny_folder

from tests.models.slowly import numbers_of
from tests.study.small import asked, texts

IDS = torch.arange(3, 35).reshape(2, 16)
SMALL: dict[str, Any] = {"samples": 4, "length": 24}
FEW: dict[str, Any] = {"num_local_experts": 4}


def made(tmp_path: Path, method: str, target: str, dtype: str = "float32", family: str = "llama", **overrides: Any) -> Path:
    folder = tiny_folder(tmp_path / "model", family, **overrides)
    act = quantize if "w" in target or "q" in target else prune
    act(str(folder), "python_docs", method, target, tmp_path / "out", dtype=dtype, export="sparse", **SMALL)
    return tmp_path / "out"


def sheet_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sparse.json").read_text())


def parts_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def bytes_of(entry: dict[str, Any], parts: dict[str, torch.Tensor]) -> int:
    layouts = entry["tensors"].values() if "form" in entry else [entry]
    return sum(parts[name].nbytes for layout in layouts for name in layout["parts"].values())


def assert_same_model(dense: Any, loaded: Any) -> None:
    ours, theirs = loaded.state_dict(), dense.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not same(ours[name], theirs[name])] == []
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in dense.named_parameters()], "what is tied is tied"
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, dense(IDS).logits)


@pytest.mark.parametrize(
    ("method", "target", "dtype", "family", "overrides"),
    [
        ("wanda", "0.5", "float32", "llama", {}),
        ("wanda", "0.5", "bfloat16", "llama", {"tie_word_embeddings": True}),
        ("magnitude", "2:4", "bfloat16", "qwen2", {}),
        ("magnitude", "1:4", "float16", "llama", {"attention_bias": True, "mlp_bias": True}),
        ("magnitude", "0.9", "float64", "gemma3", {}),
        ("wanda", "0.5", "float32", "gpt2", {}),
        ("wanda", "0.7", "bfloat16", "opt", {}),
        ("magnitude", "0.5", "bfloat16", "mixtral", FEW),
        ("magnitude", "2:4", "float32", "qwen3_moe", {"num_experts": 4}),
        ("rtn", "w4g16", "bfloat16", "llama", {}),
        ("rtn", "w3g16a", "float32", "qwen2", {"tie_word_embeddings": True}),
        ("rtn", "w8", "bfloat16", "gpt2", {}),
        ("rtn", "w4g16", "bfloat16", "mixtral", FEW),
        ("rtn", "w5g16a", "float32", "olmoe", {"num_experts": 4}),
        ("sparsegpt", "2:4+w4g16", "bfloat16", "llama", {}),
        ("sparsegpt", "0.5+w3g16a", "float32", "llama", {}),
        ("ggml", "q4_0", "bfloat16", "llama", {}),
    ],
)
def test_it_is_the_same_model_to_the_bit(tmp_path: Path, method: str, target: str, dtype: str, family: str, overrides: dict[str, Any]) -> None:
    out = made(tmp_path, method, target, dtype, family, **overrides)
    loaded = load(out / "sparse")
    assert loaded.dtype == getattr(torch, dtype)
    assert not loaded.training
    assert_same_model(AutoModelForCausalLM.from_pretrained(out, dtype=getattr(torch, dtype)).eval(), loaded)
    sheet, dense = sheet_of(out / "sparse"), parts_of(out)
    assert sheet["tensors"].keys() == dense.keys()
    assert sheet["dense_bytes"] == sum(tensor.nbytes for tensor in dense.values())
    assert sheet["bytes"] == sum(tensor.nbytes for tensor in parts_of(out / "sparse").values()) < sheet["dense_bytes"]


@pytest.mark.parametrize(
    ("method", "target", "dtype", "family", "most"),
    [
        ("wanda", "0.5", "bfloat16", "llama", 0.5625),
        ("wanda", "0.5", "float32", "llama", 0.53125),
        ("magnitude", "2:4", "bfloat16", "llama", 0.5625),
        ("magnitude", "1:4", "bfloat16", "llama", 0.28125),
        ("magnitude", "0.9", "bfloat16", "llama", 0.1 + 0.0625 + 0.002),
        ("wanda", "0.5", "bfloat16", "mixtral", 0.5625),
        # 4 bits of 16, and for each 16 inputs a scale of 16 bits
        ("rtn", "w4g16", "bfloat16", "llama", 5 / 16),
        ("rtn", "w4g16", "bfloat16", "mixtral", 5 / 16),
        # half of the codes, and two places of 2 bits for each four
        ("sparsegpt", "2:4+w4g16", "bfloat16", "llama", 4 / 16),
        ("sparsegpt", "2:4+w4g16a", "bfloat16", "llama", 4.25 / 16),
        ("ggml", "q4_0", "bfloat16", "llama", 4.5 / 16),
    ],
)
def test_each_matrix_takes_what_is_promised(tmp_path: Path, method: str, target: str, dtype: str, family: str, most: float) -> None:
    out = made(tmp_path, method, target, dtype, family, **(FEW if family == "mixtral" else {}))
    sheet, parts, dense = sheet_of(out / "sparse"), parts_of(out / "sparse"), parts_of(out)
    matrices = {
        name: entry for name, entry in sheet["tensors"].items() if ".layers." in name and dense[name].dim() == 2 and "gate.weight" not in name
    }
    assert len(matrices) == (3 * (4 + 3 * 4) if family == "mixtral" else 21)
    shares = {name: bytes_of(entry, parts) / dense[name].nbytes for name, entry in matrices.items()}
    assert {name: share for name, share in shares.items() if share > most} == {}
    assert sum(bytes_of(entry, parts) for entry in matrices.values()) > 0
    left = {name: bytes_of(entry, parts) / dense[name].nbytes for name, entry in sheet["tensors"].items() if name not in matrices}
    assert all(share <= 1 for share in left.values())


@pytest.mark.parametrize(("method", "target"), [("magnitude", "0.5"), ("magnitude", "2:4"), ("rtn", "w4g16a"), ("sparsegpt", "2:4+w4g16")])
def test_another_reader_finds_the_same_numbers(tmp_path: Path, method: str, target: str) -> None:
    """One that knows what the docstrings say, number by number."""
    out = made(tmp_path, method, target)
    parts = {name: part.flatten().tolist() for name, part in parts_of(out / "sparse").items()}
    dense = parts_of(out)

    def plain(layout: dict[str, Any]) -> list[Any]:
        return numbers_of(layout, {key: parts[name] for key, name in layout["parts"].items()})

    forms = 0
    for name, entry in sheet_of(out / "sparse")["tensors"].items():
        if "form" not in entry:
            assert plain(entry) == dense[name].flatten().tolist()
            continue
        forms += 1
        tensors, (rows, columns) = entry["tensors"], entry["shape"]
        codes, scales, groups = plain(tensors["codes"]), plain(tensors["scales"]), tensors["scales"]["shape"][1]
        bits = int(entry["form"]["grid"][1])
        zeros = plain(tensors["zeros"]) if "zeros" in tensors else [0] * (rows * groups)
        found = []
        for at, code in enumerate(codes):
            group = at // columns * groups + at % columns // (columns // groups)
            if entry["form"].get("around_zeros"):
                code = (code + zeros[group] + 2 ** (bits - 1)) % 2**bits - 2 ** (bits - 1)
            found.append(torch.tensor(float(code - zeros[group])).mul(torch.tensor(scales[group])).item())
        assert found == dense[name].flatten().tolist()
    assert forms == (21 if "w" in target else 0)


def test_what_would_be_larger_stays_as_it_is(tmp_path: Path) -> None:
    out = made(tmp_path, "magnitude", "0.05", "bfloat16")
    entries = sheet_of(out / "sparse")["tensors"]
    assert {entry["layout"] for name, entry in entries.items() if name.endswith("_proj.weight")} == {"whole"}
    assert sheet_of(out / "sparse")["bytes"] <= sheet_of(out / "sparse")["dense_bytes"]


def test_transformers_does_not_take_it_for_a_plain_folder(tmp_path: Path) -> None:
    folder = made(tmp_path, "magnitude", "0.5") / "sparse"
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)
    (folder / "sparse-00001.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"has no numbers for|has no place for|and weights are"):
        open_model(str(folder), "float32", "cpu")


def test_it_becomes_an_ordinary_folder_again_byte_by_byte(tmp_path: Path) -> None:
    out = made(tmp_path, "sparsegpt", "2:4+w4g16", "bfloat16")
    done = export(out / "sparse", tmp_path / "plain")
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json", "README.md"):
        assert (tmp_path / "plain" / name).read_bytes() == (out / name).read_bytes(), name
    assert open_model(str(tmp_path / "plain"), "bfloat16", "cpu").digest == open_model(str(out), "bfloat16", "cpu").digest
    before, after = (json.loads((place / "calibrant.json").read_text()) for place in (out, tmp_path / "plain"))
    assert before.pop("sizes").keys() == {"hf", "sparse"}
    assert after.pop("files") == {name: digest for name, digest in before.pop("files").items() if "/" not in name}
    assert after.pop("seal") != before.pop("seal")
    assert after == {**before, "exports": ["hf"]}
    assert done.after > done.before
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.bfloat16).eval()
    assert_same_model(theirs, load(out / "sparse"))


def test_a_folder_becomes_sparse_later_and_leaves_what_it_was(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mixtral", **FEW)
    prune(str(folder), "python_docs", "wanda", 0.5, tmp_path / "out", dtype="bfloat16", **SMALL)
    there = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    done = export(tmp_path / "out", tmp_path / "small", "sparse")
    assert done.after < done.before
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == there
    assert not list((tmp_path / "small").glob(".*"))
    assert_same_model(AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).eval(), load(tmp_path / "small"))
    with pytest.raises(OutputError, match="small already holds"):
        export(tmp_path / "out", tmp_path / "small", "sparse")
    with pytest.raises(OutputError, match=r"compressed_tensors is made of what compressing a model leaves behind"):
        export(tmp_path / "out", tmp_path / "other", "compressed_tensors")
    assert not (tmp_path / "other").exists()


def test_it_is_measured_and_compressed_as_the_folder_beside_it_is(tmp_path: Path) -> None:
    out = made(tmp_path, "wanda", "0.5", "float32")
    task = "agreement(source=python_docs, tokens=64, length=16)"
    dense, sparse = (evaluate(str(place), task, dtype="float32")[0].score for place in (out, out / "sparse"))
    assert dense.value == sparse.value > 0
    with pytest.raises(calibrant.InputError, match="are also measured by"):
        evaluate(str(out / "sparse"), f"loss(source={str(leaked(tmp_path))!r}, tokens=64, length=16)", dtype="float32")
    once_more = [prune(str(place), "python_docs", "wanda", 0.75, dtype="float32", **SMALL) for place in (out, out / "sparse")]
    assert_same_model(*(done.opened.model for done in once_more))


def test_numbers_of_several_files_are_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse_folder, "MOST", 20_000)
    out = made(tmp_path, "magnitude", "0.5")
    names = sheet_of(out / "sparse")["files"]
    assert len(names) > 3
    assert names == sorted(path.name for path in (out / "sparse").glob("*.safetensors"))
    with safe_open(out / "sparse" / names[0], framework="pt") as file:
        assert file.metadata() == {"format": "calibrant-sparse"}
    assert_same_model(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), load(out / "sparse"))


def test_attention_and_networks_that_went_apart_take_nothing(tmp_path: Path) -> None:
    out = made(tmp_path, "evop(tokens=96, apart=true, greedy=false, generations=2)", "0.34")
    zeros = {name for name, tensor in parts_of(out).items() if not tensor.any()}
    entries = sheet_of(out / "sparse")["tensors"]
    assert zeros
    assert {name for name, entry in entries.items() if entry["layout"] == "zeros"} == zeros
    assert not any(entries[name]["parts"] for name in zeros)
    gone, all_of_it = sum(parts_of(out)[name].nbytes for name in zeros), sheet_of(out / "sparse")["dense_bytes"]
    assert sheet_of(out / "sparse")["bytes"] == all_of_it - gone
    assert_same_model(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), load(out / "sparse"))


def test_what_matrices_share_is_stored_once(tmp_path: Path, plugged: Any) -> None:
    example = Path(__file__).parents[2] / "examples" / "shared_factor.py"
    plugged({"calibrant.methods": {"shared_factor": "shared_example:SharedFactor"}}, shared_example=example.read_text())
    out = made(tmp_path, "shared_factor", "0.5")
    forms = {name: entry for name, entry in sheet_of(out / "sparse")["tensors"].items() if "form" in entry}
    common = {entry["tensors"]["common"]["parts"]["values"] for entry in forms.values()}
    assert len(forms) == 21
    assert len(common) == 6, "in each of three blocks one for what reads the stream and one for what reads hidden units"
    assert_same_model(AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval(), load(out / "sparse"))


def test_factors_are_stored_as_factors(tmp_path: Path) -> None:
    """One factor for the feed-forward matrices of all blocks, half of each matrix's own factor zeros."""
    opened = open_model(str(tiny_folder(tmp_path / "model")), "bfloat16", "cpu")
    seen_by, generator, edits = view(opened.model), torch.Generator().manual_seed(0), list[Replace]()
    shared = exact_factor(torch.randn(32, 8, generator=generator), 1, 8, torch.bfloat16)
    for weight in (weight for weight in seen_by.weights if "mlp" in weight.name):
        own = torch.randn(8, 64, generator=generator)
        own[torch.rand(8, 64, generator=generator) < 0.5] = 0
        factors = Factors("mlp", shared.clone(), exact_factor(own, 0, 8, torch.bfloat16), 9, weight.shape == (64, 32))
        edits.append(Replace(weight, Compressed(factors.dense(), {}, factors)))
        edits[-1].apply(seen_by)
    (tmp_path / "out").mkdir()
    write_model(opened, tmp_path / "out")
    Sparse().write(CompressedModel(opened, seen_by, Record(Run("", "", "", "", {}, "", {}, "", ""), 0.0), edits), tmp_path / "out")
    sheet, parts = sheet_of(tmp_path / "out" / "sparse"), parts_of(tmp_path / "out" / "sparse")
    forms = [entry for entry in sheet["tensors"].values() if "form" in entry]
    assert len(forms) == 9
    assert len({entry["tensors"]["shared"]["parts"]["values"] for entry in forms}) == 1
    assert {entry["tensors"]["own"]["layout"] for entry in forms} == {"bits"}
    of_factors = {name for entry in forms for tensor in entry["tensors"].values() for name in tensor["parts"].values()}
    kept = sum(edit.compressed.packed.own.count_nonzero() for edit in edits)  # type: ignore[union-attr]
    assert sum(parts[name].nbytes for name in of_factors) == 2 * (32 * 8 + int(kept)) + 9 * 8 * 64 // 8
    assert_same_model(opened.model, load(tmp_path / "out" / "sparse"))


def test_it_holds_what_a_study_kept_of_a_run(tmp_path: Path) -> None:
    given = texts(tmp_path / "texts")
    study = asked(given, methods=["gptq"], target="w4g16", data=["random_tokens"], edits_gb=1.0)
    assert not study.run(tmp_path / "store").failures
    (kept,) = (tmp_path / "store").glob(f"runs/*/{EDITS}")
    opened = open_model(given["model"], "float32", "cpu")
    seen_by = view(opened.model)
    edits = [read_edit(stored, seen_by) for stored in from_bytes(kept.read_bytes())]
    for edit in edits:
        edit.apply(seen_by)
    record = next(record for record in Store(tmp_path / "store").records() if record.weights)
    (tmp_path / "folder").mkdir()
    opened.model.save_pretrained(tmp_path / "folder")
    opened.tokenizer.save_pretrained(tmp_path / "folder")
    Sparse().write(CompressedModel(opened, seen_by, record, edits), tmp_path / "folder")
    assert sum("form" in entry for entry in sheet_of(tmp_path / "folder" / "sparse")["tensors"].values()) == len(record.weights) == 14
    assert_same_model(opened.model, load(tmp_path / "folder" / "sparse"))


def test_after_a_kill_the_codes_are_there_too(tmp_path: Path) -> None:
    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    folder = tiny_folder(tmp_path / "model")
    how = {"target": "w4g16", "dtype": "float32", "export": "sparse"}
    with pytest.raises(KeyboardInterrupt):
        quantize(str(folder), out=tmp_path / "out", **how, progress=killed)
    quantize(str(folder), out=tmp_path / "out", **how)
    quantize(str(folder), out=tmp_path / "whole", **how)
    ours, theirs = ({path.name: path.read_bytes() for path in (tmp_path / name / "sparse").iterdir()} for name in ("out", "whole"))
    assert ours == theirs


def test_codes_of_zero_points_go_around_in_a_circle() -> None:
    generator = torch.Generator().manual_seed(0)
    for bits in range(2, 9):
        half = 2 ** (bits - 1)
        codes, zeros = (torch.randint(-half, half, shape, generator=generator).to(torch.int8) for shape in ((8, 12), (8, 3)))
        first = Codes(Grid(bits, 4, symmetric=False), codes, torch.ones(8, 3), zeros)
        facts, tensors = sparse_folder.write_form(first)
        turned = tensors["codes"].to(torch.int16)
        assert -half <= turned.min() <= turned.max() < half
        by_input = zeros.repeat_interleave(4, dim=1)
        assert torch.equal(turned == 0, codes == by_input)
        again = sparse_folder.read_form(facts, tensors)
        assert isinstance(again, Codes)
        assert torch.equal(again.codes, codes)


def test_a_model_of_its_own_code_is_refused_before_any_work(tmp_path: Path) -> None:
    opened = open_model(str(tiny_folder(tmp_path / "model")), "float32", "cpu")
    own = type("OwnModel", (type(opened.model),), {"__module__": "modeling_own"})
    opened.model.__class__ = own
    with pytest.raises(OutputError, match=r"sparse holds models of architectures that transformers has, and .* is a OwnModel of its own code"):
        Sparse().check(methods.build("wanda"), parse_target(0.5), Opened(opened.model, None, "own", "", "", torch.float32), view(opened.model))


def leaked(tmp_path: Path) -> Path:
    """A file whose rows a model that is made in `out` was calibrated on."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"so they had tea at eight, and the cat sat on the mat {n}"}) for n in range(40)))
    shutil.rmtree(tmp_path / "out")
    prune(str(tmp_path / "model"), str(rows), "wanda", 0.5, tmp_path / "out", dtype="float32", export="sparse", **SMALL)
    return rows
