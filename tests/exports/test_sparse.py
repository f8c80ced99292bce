"""The `sparse` folder is the same model to the bit, smaller by what it promises, and no reader
of plain folders takes it for one.
"""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from calibrant.compress import export, prune, quantize
from calibrant.errors import DataError, OutputError
from calibrant.evaluators import evaluate
from calibrant.exports.sparse import Sparse
from calibrant.methods import methods
from calibrant.models import Opened, load, open_model, sparse_folder, view
from calibrant.models.compact import same
from calibrant.targets import parse_target
from calibrant.testing import tiny_folder

from tests.models.refused import refusal_of

IDS = torch.arange(3, 35).reshape(2, 16)
SMALL: dict[str, Any] = {"samples": 4, "length": 24}
FEW: dict[str, Any] = {"num_local_experts": 4}


def make(
    place: Path,
    method: str,
    target: str,
    dtype: str = "float32",
    family: str = "llama",
    **overrides: Any,
) -> Path:
    folder = tiny_folder(place / "model", family, **overrides)
    act = quantize if "w" in target or "q" in target else prune
    act(
        str(folder),
        data="python_docs",
        method=method,
        target=target,
        out=place / "out",
        dtype=dtype,
        export="sparse",
        **SMALL,
    )
    return place / "out"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Folders that are made once and only read."""
    return cache(
        lambda *given, **overrides: make(tmp_path_factory.mktemp("made"), *given, **overrides)
    )


def dense_of(out: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(out, dtype=dtype).eval()


def sheet_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sparse.json").read_text())


def parts_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def bytes_of(entry: dict[str, Any], parts: dict[str, torch.Tensor]) -> int:
    layouts = entry["tensors"].values() if "form" in entry else [entry]
    return sum(parts[name].nbytes for layout in layouts for name in layout["parts"].values())


def assert_same_model(dense: Any, loaded: Any) -> None:
    ours, theirs = loaded.state_dict(), dense.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not same(ours[name], theirs[name])] == []
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in dense.named_parameters()], (
        "what is tied is tied"
    )
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, dense(IDS).logits)


@pytest.mark.parametrize(
    ("method", "target", "dtype", "family", "overrides"),
    [
        ("wanda", "0.5", "bfloat16", "llama", {"tie_word_embeddings": True}),
        ("magnitude", "2:4", "float32", "qwen3_moe", {"num_experts": 4}),
        ("rtn", "w8", "bfloat16", "gpt2", {}),
        ("rtn", "w4g16", "bfloat16", "mixtral", FEW),
    ],
)
def test_it_is_the_same_model_to_the_bit(
    made: Callable[..., Path],
    method: str,
    target: str,
    dtype: str,
    family: str,
    overrides: dict[str, Any],
) -> None:
    assert_sound(made(method, target, dtype, family, **overrides), getattr(torch, dtype))


def assert_sound(out: Path, dtype: torch.dtype) -> None:
    loaded = load(out / "sparse")
    assert loaded.dtype == dtype
    assert not loaded.training
    assert_same_model(dense_of(out, dtype), loaded)
    sheet, dense = sheet_of(out / "sparse"), parts_of(out)
    assert sheet["tensors"].keys() == dense.keys()
    assert sheet["dense_bytes"] == sum(tensor.nbytes for tensor in dense.values())
    assert (
        sheet["bytes"]
        == sum(tensor.nbytes for tensor in parts_of(out / "sparse").values())
        < sheet["dense_bytes"]
    )


PROMISED = {
    ("magnitude", "2:4"): 0.5625,
    ("rtn", "w4g16"): 5 / 16,  # 4 bits of 16, and for each 16 inputs a scale of 16 bits
    ("sparsegpt", "2:4+w4g16"): 4 / 16,  # half of the codes, and two places of 2 bits for each four
    ("ggml", "q4_0"): 4.5 / 16,
}


@pytest.mark.parametrize("way", PROMISED)
def test_each_matrix_takes_what_is_promised(
    made: Callable[..., Path], way: tuple[str, str]
) -> None:
    out = made(*way, "bfloat16")
    assert_sound(out, torch.bfloat16)
    sheet, parts, dense = sheet_of(out / "sparse"), parts_of(out / "sparse"), parts_of(out)
    matrices = {
        name: entry
        for name, entry in sheet["tensors"].items()
        if ".layers." in name and dense[name].dim() == 2
    }
    assert len(matrices) == 21
    shares = {name: bytes_of(entry, parts) / dense[name].nbytes for name, entry in matrices.items()}
    assert {name: share for name, share in shares.items() if share > PROMISED[way]} == {}
    assert sum(shares.values()) > 0
    left = {
        name: bytes_of(entry, parts) / dense[name].nbytes
        for name, entry in sheet["tensors"].items()
        if name not in matrices
    }
    assert all(share <= 1 for share in left.values())


def test_transformers_does_not_take_it_for_a_plain_folder(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(made("magnitude", "0.5") / "sparse", tmp_path / "sparse"))
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)
    (folder / "sparse-00001.safetensors").rename(folder / "model.safetensors")
    assert (
        refusal_of(open_model, str(folder), "float32", "cpu").subject
        == "model.layers.0.mlp.down_proj.weight:bits"
    )


def test_it_becomes_an_ordinary_folder_again_byte_by_byte(
    made: Callable[..., Path], tmp_path: Path
) -> None:
    out = made("sparsegpt", "2:4+w4g16", "bfloat16")
    done = export(out / "sparse", tmp_path / "plain")
    for name in (
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "generation_config.json",
        "README.md",
    ):
        assert (tmp_path / "plain" / name).read_bytes() == (out / name).read_bytes(), name
    assert (
        open_model(str(tmp_path / "plain"), "bfloat16", "cpu").digest
        == open_model(str(out), "bfloat16", "cpu").digest
    )
    before, after = (
        json.loads((place / "calibrant.json").read_text()) for place in (out, tmp_path / "plain")
    )
    assert before.pop("sizes").keys() == {"hf", "sparse"}
    assert after.pop("files") == {
        name: digest for name, digest in before.pop("files").items() if "/" not in name
    }
    assert after.pop("seal") != before.pop("seal")
    assert after == {**before, "exports": ["hf"]}
    assert done.after > done.before


def test_a_folder_becomes_sparse_later_and_leaves_what_it_was(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", "mixtral", **FEW)
    prune(
        str(folder),
        data="python_docs",
        method="wanda",
        target=0.5,
        out=tmp_path / "out",
        dtype="bfloat16",
        **SMALL,
    )
    there = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    done = export(tmp_path / "out", tmp_path / "small", "sparse")
    assert done.after < done.before
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == there
    assert not list((tmp_path / "small").glob(".*"))
    assert_same_model(dense_of(tmp_path / "out", torch.bfloat16), load(tmp_path / "small"))
    assert refusal_of(
        export, tmp_path / "out", tmp_path / "small", "sparse", kind=OutputError
    ).subject == str(tmp_path / "small")
    assert (
        refusal_of(
            export, tmp_path / "out", tmp_path / "other", "compressed_tensors", kind=OutputError
        ).subject
        == "compressed_tensors"
    )
    assert not (tmp_path / "other").exists()


def test_it_is_measured_and_compressed_as_the_folder_beside_it_is(tmp_path: Path) -> None:
    rows, folder = tmp_path / "rows.jsonl", tiny_folder(tmp_path / "model")
    rows.write_text(
        "\n".join(
            json.dumps({"text": f"so they had tea at eight, and the cat sat on the mat {n}"})
            for n in range(40)
        )
    )
    out = tmp_path / "out"
    prune(
        str(folder),
        data=str(rows),
        method="wanda",
        target=0.5,
        out=out,
        dtype="float32",
        export="sparse",
        **SMALL,
    )
    task = "agreement(source=python_docs, tokens=64, length=16)"
    dense, sparse = (
        evaluate(str(place), tasks=task, dtype="float32")[0].score
        for place in (out, out / "sparse")
    )
    assert dense.value == sparse.value > 0
    again = f"loss(source={str(rows)!r}, tokens=64, length=16)"
    assert refusal_of(
        evaluate, str(out / "sparse"), tasks=again, kind=DataError, dtype="float32"
    ).subject == str(out)
    once_more = [
        prune(str(place), data="python_docs", method="wanda", target=0.75, dtype="float32", **SMALL)
        for place in (out, out / "sparse")
    ]
    assert_same_model(*(done.opened.model for done in once_more))


def test_numbers_of_several_files_are_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse_folder, "MOST", 20_000)
    out = make(tmp_path, "magnitude", "0.5")
    names = sheet_of(out / "sparse")["files"]
    assert len(names) > 3
    assert names == sorted(path.name for path in (out / "sparse").glob("*.safetensors"))
    assert_same_model(dense_of(out), load(out / "sparse"))


def test_what_matrices_share_is_stored_once(tmp_path: Path, plugged: Any) -> None:
    example = Path(__file__).parents[2] / "examples" / "shared_factor.py"
    plugged(
        {"calibrant.methods": {"shared_factor": "shared_factor:SharedFactor"}},
        shared_factor=example.read_text(),
    )
    out = make(tmp_path, "shared_factor", "0.5")
    forms = {
        name: entry
        for name, entry in sheet_of(out / "sparse")["tensors"].items()
        if "form" in entry
    }
    common = {entry["tensors"]["common"]["parts"]["values"] for entry in forms.values()}
    assert len(forms) == 21
    assert len(common) == 6, (
        "in each of three blocks one for what reads the stream and one for what reads hidden units"
    )
    assert_same_model(dense_of(out), load(out / "sparse"))


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
    ours, theirs = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "sparse").iterdir()}
        for name in ("out", "whole")
    )
    assert ours == theirs


def test_a_model_of_its_own_code_is_refused_before_any_work(tmp_path: Path) -> None:
    opened = open_model(str(tiny_folder(tmp_path / "model")), "float32", "cpu")
    own = type("OwnModel", (type(opened.model),), {"__module__": "modeling_own"})
    opened.model.__class__ = own
    given = (
        methods.build("wanda"),
        parse_target(0.5),
        Opened(opened.model, None, "own", "", "", torch.float32),
        view(opened.model),
    )
    assert refusal_of(Sparse().check, *given, kind=OutputError).subject == "own"
