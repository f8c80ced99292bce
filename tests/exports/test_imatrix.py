"""The importance matrix that was used is the one that `calibrant imatrix` gathers, and survives a kill; where none was used it says so."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import calibrant
from calibrant.cli import app
from calibrant.compress import prune, quantize
from calibrant.errors import ModelError, OutputError
from calibrant.importance import read_imatrix
from calibrant.testing import tiny_folder

SMALL = {"samples": 3, "length": 16, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "llama")


def test_it_is_the_file_that_imatrix_writes_of_the_same_data(folder: Path, tmp_path: Path) -> None:
    options = {**SMALL, "propagate": "dense"}
    quantize(str(folder), "python_docs", "rtn(scales=importance)", "w4g16", tmp_path / "out", export="imatrix", **options)
    calibrant.imatrix(str(folder), "python_docs", tmp_path / "a.gguf", **SMALL)
    assert (tmp_path / "out" / "imatrix.gguf").read_bytes() == (tmp_path / "a.gguf").read_bytes()
    quantize(str(folder), "python_docs", "rtn(scales=importance)", "w4g16", tmp_path / "dat", export="imatrix(form=dat)", **options)
    calibrant.imatrix(str(folder), "python_docs", tmp_path / "a.dat", **SMALL)
    assert (tmp_path / "dat" / "imatrix.dat").read_bytes() == (tmp_path / "a.dat").read_bytes()


def test_experts_are_counted_one_by_one(tmp_path: Path) -> None:
    model = str(tiny_folder(tmp_path / "moe", "qwen3_moe"))
    quantize(model, "python_docs", "rtn(scales=importance)", "w4g16", tmp_path / "out", export="imatrix", propagate="dense", **SMALL)
    made = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    counts = made.entries["blk.1.ffn_up_exps.weight"].counts
    assert (len(counts), counts.sum()) == (32, 3 * 16 * 2)


def test_a_job_that_was_killed_writes_the_same(folder: Path, tmp_path: Path) -> None:
    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    how = ("python_docs", "rtn(scales=importance)", "w4g16")
    for propagate in ("dense", "arrival"):
        options = {**SMALL, "propagate": propagate, "export": "imatrix"}
        quantize(str(folder), *how, tmp_path / f"{propagate}-whole", **options)
        with pytest.raises(KeyboardInterrupt):
            quantize(str(folder), *how, tmp_path / propagate, **options, progress=killed)
        assert quantize(str(folder), *how, tmp_path / propagate, **options).continued_from == 2
        one, other = (read_imatrix(tmp_path / name / "imatrix.gguf") for name in (propagate, f"{propagate}-whole"))
        assert one.entries.keys() == other.entries.keys()
        assert len(one.entries) == 21
        for name, entry in one.entries.items():
            np.testing.assert_array_equal(entry.sums, other.entries[name].sums)
        assert one.datasets == (f"python_docs; 3×16; draw 0{'' if propagate == 'dense' else '; arrival'}",)


@pytest.mark.parametrize(("method", "target"), [("wanda", "0.5"), ("sparsegpt", "0.5"), ("gptq", "w4g16"), ("rsq(importance=equal)", "w4g16")])
def test_every_method_that_looks_at_inputs_has_one(folder: Path, tmp_path: Path, method: str, target: str) -> None:
    verb = prune if target == "0.5" else quantize
    verb(str(folder), "python_docs", method, target, tmp_path / "out", export="imatrix", propagate="dense", **SMALL)
    made, seen = read_imatrix(tmp_path / "out" / "imatrix.gguf"), calibrant.imatrix(str(folder), "python_docs", **SMALL)
    assert made.entries.keys() == seen.entries.keys()
    for name, entry in seen.entries.items():
        np.testing.assert_allclose(made.entries[name].sums, entry.sums, rtol=1e-5)
        np.testing.assert_array_equal(made.entries[name].counts, entry.counts)


def test_of_awq_it_is_what_the_scaled_matrices_read(folder: Path, tmp_path: Path) -> None:
    """Scales move into what comes before, so the inputs are other ones: those of the model that is written, but for its rounding."""
    quantize(str(folder), "python_docs", "awq(clip=false)", "w8", tmp_path / "out", export="imatrix", **SMALL)
    made, seen = read_imatrix(tmp_path / "out" / "imatrix.gguf"), calibrant.imatrix(str(tmp_path / "out"), "python_docs", **SMALL)
    assert made.entries.keys() == seen.entries.keys()
    for name, entry in seen.entries.items():
        np.testing.assert_allclose(made.entries[name].sums, entry.sums, rtol=0.05)


def test_after_a_transform_the_file_says_so(folder: Path, tmp_path: Path) -> None:
    quantize(str(folder), "python_docs", "gptq", "w4g16", tmp_path / "out", export="imatrix", transform="rotate", **SMALL)
    assert read_imatrix(tmp_path / "out" / "imatrix.gguf").datasets[0].startswith("python_docs; 3×16; draw 0; arrival; rotate")


def test_where_none_was_used_it_is_one_sentence_before_any_work(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        OutputError, match=r"imatrix holds the sizes of the inputs that a method looked at, and rtn looks at none; leave --export imatrix out"
    ):
        quantize(str(folder), None, "rtn", "w4g16", tmp_path / "out", export="imatrix", dtype="float32")
    with pytest.raises(OutputError, match=r"form='bin' is no form of an imatrix; choose one of gguf, dat"):
        quantize(str(folder), "python_docs", "rtn(scales=importance)", "w4g16", tmp_path / "out", export="imatrix(form=bin)", **SMALL)
    opt = str(tiny_folder(tmp_path / "opt", "opt"))
    with pytest.raises(ModelError, match=r"llama.cpp has no names for the tensors of opt"):
        quantize(opt, "python_docs", "rtn(scales=importance)", "w4g16", tmp_path / "out", export="imatrix", **SMALL)
    assert not (tmp_path / "out").exists()
    found = CliRunner().invoke(app, ["quantize", str(folder), "--target", "w4g16", "--export", "imatrix", "--out", str(tmp_path / "out")])
    assert (found.exit_code, "looks at none" in found.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
