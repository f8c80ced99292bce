"""llama.cpp's quantizers: the bytes are those that llama.cpp's own tool writes of the same file
with the same imatrix.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from calibrant.activations import FeatureNorms, Seen
from calibrant.compress import quantize
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.methods.quantization.ggml import Ggml
from calibrant.packed import GgmlBlocks, from_stored, to_stored
from calibrant.targets import GgmlKind, parse_target
from calibrant.targets.ggml_kind import KINDS
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_gguf

from tests.usual import usually

SMALL = {"samples": 2, "length": 16, "dtype": "float32"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_kind_is_read_and_says_what_fits() -> None:
    assert parse_target("Q4_K") == GgmlKind("q4_k")
    assert (str(parse_target("q4_0")), parse_target("q4_0").amount, GgmlKind("q8_0").amount) == (
        "q4_0",
        4.5,
        8.5,
    )
    for kind, inputs, instead in (("q4_k", 576, "q5_0"), ("q4_0", 40, "w4")):
        with pytest.raises(TargetError, match=f"choose .*{instead}|{instead} there") as refused:
            GgmlKind(kind).check((8, inputs), "w")
        assert refused.value.subject == "w"
    with pytest.raises(TargetError) as unknown:
        GgmlKind("q9_9")
    assert unknown.value.subject == "q9_9"
    assert GgmlKind.read("w4g64") is None


def test_blocks_are_stored_and_read_again() -> None:
    blocks = torch.from_numpy(gguf.quantize(normal(3, 64).numpy(), gguf.GGMLQuantizationType.Q8_0))
    packed = GgmlBlocks("q8_0", blocks, torch.bfloat16)
    assert (packed.weights, packed.bits, packed.facts()["bits_a_weight"]) == (192, 192 * 8.5, 8.5)
    again = from_stored(*to_stored(packed))
    assert again.dense().dtype == torch.bfloat16
    assert torch.equal(again.dense(), packed.dense())


ggml = pytest.mark.usefixtures("_llama_cpp")


def shipped() -> Any:
    """A second cffi object and the library that the package ships, with functions that nothing
    in `calibrant` calls.
    """
    from cffi import FFI
    from llama_cpp_py_sync import _cffi_bindings as bindings

    ffi = FFI()
    names = [kind.replace("_k", "_K") for kind in KINDS]
    ffi.cdef(
        "".join(
            f"void dequantize_row_{name}(const void * x, float * y, int64_t k);\n" for name in names
        )
    )
    return ffi, ffi.dlopen(
        str(next(iter(sorted(Path(bindings.__file__).parent.glob("*ggml-base*")))))
    )


SLOWLY = {"iq1_s", "iq1_m", "iq2_s", "iq2_xs", "iq3_s"}
"""Kinds whose blocks take llama.cpp long to make."""
BY_KIND = pytest.mark.parametrize("kind", usually(KINDS, set(KINDS) - SLOWLY))


@ggml
@BY_KIND
def test_what_blocks_stand_for_is_what_ggml_makes_of_them(kind: str) -> None:
    seen = Seen({FeatureNorms: FeatureNorms.of(normal(40, 256, seed=1))})
    packed = Ggml().compress(normal(8, 256), seen, GgmlKind(kind)).packed
    ffi, library = shipped()
    blocks, theirs = packed.blocks.numpy(), np.zeros((8, 256), dtype=np.float32)
    getattr(library, f"dequantize_row_{kind.replace('_k', '_K')}")(
        ffi.from_buffer(blocks), ffi.from_buffer("float[]", theirs), theirs.size
    )
    np.testing.assert_array_equal(packed.dense().numpy(), theirs)


NEEDY = ("iq1_s", "iq2_xxs", "iq2_xs")
"""Kinds that llama.cpp makes with an imatrix alone."""


@ggml
@BY_KIND
def test_importance_makes_what_matters_more_exact(kind: str) -> None:
    weight, x = normal(16, 256), normal(500, 256, seed=1) * torch.linspace(0.01, 3, 256)
    weighed = Ggml().compress(weight, Seen({FeatureNorms: FeatureNorms.of(x)}), GgmlKind(kind))
    if kind in NEEDY:  # beside inputs that all matter alike
        plain = Ggml().compress(
            weight, Seen({FeatureNorms: FeatureNorms.of(torch.ones(4, 256))}), GgmlKind(kind)
        )
    else:
        plain = Ggml(importance=False).compress(weight, Seen({}), GgmlKind(kind))
    assert torch.equal(weighed.packed.dense(), weighed.weight)
    error = {
        name: float((((one.weight - weight) @ x.T) ** 2).sum())
        for name, one in (("weighed", weighed), ("plain", plain))
    }
    assert (
        error["weighed"] == error["plain"] if kind == "q8_0" else error["weighed"] < error["plain"]
    )


@ggml
def test_a_kind_that_needs_an_importance_is_refused_without_one_before_any_work(
    tmp_path: Path,
) -> None:
    folder = tiny_folder(tmp_path / "folder", hidden_size=256, intermediate_size=256)
    for kind in KINDS:
        if kind not in NEEDY:
            Ggml(importance=False).check(GgmlKind(kind))
            continue
        with pytest.raises(TargetError) as unweighed:
            quantize(
                str(folder),
                method="ggml(importance=false)",
                target=kind,
                out=tmp_path / "out",
                dtype="float32",
            )
        assert unweighed.value.subject == kind
        with pytest.raises(TargetError) as late:
            Ggml(importance=False).compress(normal(2, 256), Seen({}), GgmlKind(kind))
        assert late.value.subject == kind
    with pytest.raises(SpecError) as without_data:
        quantize(str(folder), method="ggml", target="q4_0", out=tmp_path / "out", dtype="float32")
    assert without_data.value.subject == "ggml"
    assert list(tmp_path.iterdir()) == [folder]


@ggml
def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(NumericsError) as refused:
        Ggml(importance=False).compress(normal(2, 256) * torch.nan, Seen({}), GgmlKind("q4_k"))
    assert refused.value.subject == "the weight"


@ggml
def test_the_whole_job_writes_the_bytes_that_llama_cpps_own_tool_writes(tmp_path: Path) -> None:
    from calibrant.compress.importance import imatrix
    from calibrant.llama_cpp import quantize_file

    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    done = quantize(
        str(template),
        data="python_docs",
        method="ggml",
        target="q4_0",
        out=tmp_path / "out",
        export="gguf",
        **SMALL,
    )
    assert {matrix["bits_a_weight"] for matrix in done.record.weights} == {4.5}
    seen = imatrix(str(template), data="python_docs", **SMALL)
    quantize_file(
        template,
        tmp_path / "theirs.gguf",
        "Q4_0",
        {name: entry.importance.ravel() for name, entry in seen.entries.items()},
    )
    ours, theirs = (
        {str(t.name): t for t in gguf.GGUFReader(path).tensors}
        for path in (tmp_path / "out" / "model.gguf", tmp_path / "theirs.gguf")
    )
    same = [
        name
        for name, tensor in theirs.items()
        if name.startswith("blk.") and tensor.tensor_type.name == "Q4_0"
    ]
    assert len(same) >= 18  # of the first down projections the recipe makes Q4_1
    for name in same:
        np.testing.assert_array_equal(ours[name].data, theirs[name].data, err_msg=name)
