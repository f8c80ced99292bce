"""The importance matrix that was used is the one that `calibrant imatrix` gathers, and survives
a kill; where none was used it says so.
"""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import calibrant
from calibrant.cli import app
from calibrant.compress import prune, quantize
from calibrant.compress.importance import Imatrix, read_imatrix
from calibrant.errors import ModelError, OutputError
from calibrant.testing import tiny_folder

from tests.models.refused import refusal_of
from tests.usual import usually

SMALL = {"samples": 3, "length": 16, "dtype": "float32"}
HOW = (None, "python_docs", "rtn(scales=importance)", "w4g16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def gathered(folder: Path) -> Imatrix:
    return calibrant.imatrix(str(folder), data="python_docs", **SMALL)


def test_it_is_the_file_that_imatrix_writes_of_the_same_data(folder: Path, tmp_path: Path) -> None:
    for form, export in (("gguf", "imatrix"), ("dat", "imatrix(form=dat)")):
        quantize(str(folder), *HOW, tmp_path / form, export=export, propagate="dense", **SMALL)
        calibrant.imatrix(str(folder), data="python_docs", out=tmp_path / f"a.{form}", **SMALL)
        assert (tmp_path / form / f"imatrix.{form}").read_bytes() == (
            tmp_path / f"a.{form}"
        ).read_bytes()


@pytest.mark.parametrize("propagate", ["dense", "arrival"])
def test_a_job_that_was_killed_writes_the_same(
    folder: Path, tmp_path: Path, propagate: str
) -> None:
    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    options = {**SMALL, "propagate": propagate, "export": "imatrix"}
    quantize(str(folder), *HOW, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        quantize(str(folder), *HOW, tmp_path / "killed", **options, progress=killed)
    assert quantize(str(folder), *HOW, tmp_path / "killed", **options).continued_from == 2
    one, other = (read_imatrix(tmp_path / name / "imatrix.gguf") for name in ("killed", "whole"))
    assert one.entries.keys() == other.entries.keys()
    assert len(one.entries) == 21
    for name, entry in one.entries.items():
        np.testing.assert_array_equal(entry.sums, other.entries[name].sums)
    assert one.datasets == other.datasets


METHODS = {"wanda": "0.5", "sparsegpt": "0.5", "gptq": "w4g16", "rsq(importance=equal)": "w4g16"}


@pytest.mark.parametrize("method", usually(METHODS, {"wanda", "gptq"}))
def test_every_method_that_looks_at_inputs_has_one(
    folder: Path, gathered: Imatrix, tmp_path: Path, method: str
) -> None:
    verb = prune if METHODS[method] == "0.5" else quantize
    verb(
        str(folder),
        data="python_docs",
        method=method,
        target=METHODS[method],
        out=tmp_path / "out",
        export="imatrix",
        propagate="dense",
        **SMALL,
    )
    made = read_imatrix(tmp_path / "out" / "imatrix.gguf")
    assert made.entries.keys() == gathered.entries.keys()
    for name, entry in gathered.entries.items():
        np.testing.assert_allclose(made.entries[name].sums, entry.sums, rtol=1e-5)
        np.testing.assert_array_equal(made.entries[name].counts, entry.counts)


def test_where_none_was_used_it_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    opt, out = str(tiny_folder(tmp_path / "opt", "opt")), tmp_path / "out"
    assert (
        refusal_of(
            quantize,
            str(folder),
            data=None,
            method="rtn",
            target="w4g16",
            out=out,
            kind=OutputError,
            export="imatrix",
            dtype="float32",
        ).subject
        == "rtn"
    )
    assert (
        refusal_of(
            quantize, str(folder), *HOW, out, kind=OutputError, export="imatrix(form=bin)", **SMALL
        ).subject
        == "bin"
    )
    assert (
        refusal_of(quantize, opt, *HOW, out, kind=ModelError, export="imatrix", **SMALL).subject
        == "opt"
    )
    found = CliRunner().invoke(
        app,
        ["quantize", str(folder), "--target", "w4g16", "--export", "imatrix", "--out", str(out)],
    )
    assert found.exit_code == 2
    assert not out.exists()
