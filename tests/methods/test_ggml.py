"""llama.cpp's quantizers: the bytes are those that llama.cpp's own tool writes of the same file with the same imatrix."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from calibrant.activations import FeatureNorms, Seen
from calibrant.compress import quantize
from calibrant.errors import NumericsError, SpecError, TargetError
from calibrant.methods.ggml import Ggml
from calibrant.packed import GgmlBlocks, from_stored, to_stored
from calibrant.targets import GgmlKind, parse_target
from calibrant.testing.tiny import tiny_gguf

SMALL = {"samples": 2, "length": 16, "dtype": "float32"}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_kind_is_read_and_says_what_fits() -> None:
    assert parse_target("Q4_K") == GgmlKind("q4_k")
    assert (str(parse_target("q4_0")), parse_target("q4_0").amount, GgmlKind("q8_0").amount) == ("q4_0", 4.5, 8.5)
    with pytest.raises(TargetError, match=r"w has 576 inputs, and q4_k packs 256 at a time; llama.cpp takes q5_0 there, so choose that"):
        GgmlKind("q4_k").check((8, 576), "w")
    with pytest.raises(TargetError, match=r"w has 40 inputs, and q4_0 packs 32 at a time; choose a grid such as w4"):
        GgmlKind("q4_0").check((8, 40), "w")
    with pytest.raises(TargetError, match=r"'q9_9' is no kind of llama.cpp's blocks; write one of q4_0, "):
        GgmlKind("q9_9")
    assert GgmlKind.read("w4g64") is None


def test_blocks_are_stored_and_read_again() -> None:
    blocks = torch.from_numpy(gguf.quantize(normal(3, 64).numpy(), gguf.GGMLQuantizationType.Q8_0))
    packed = GgmlBlocks("q8_0", blocks, torch.bfloat16)
    assert (packed.weights, packed.bits, packed.facts()["bits_a_weight"]) == (192, 192 * 8.5, 8.5)
    again = from_stored(*to_stored(packed))
    assert again.dense().dtype == torch.bfloat16
    assert torch.equal(again.dense(), packed.dense())


ggml = pytest.mark.usefixtures("_llama_cpp")


@pytest.fixture
def _llama_cpp() -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")


@ggml
@pytest.mark.parametrize("kind", ["q4_0", "q5_0", "q8_0", "iq4_nl", "q4_k", "q6_k", "q2_k"])
def test_importance_makes_what_matters_more_exact(kind: str) -> None:
    weight, x = normal(16, 256), normal(500, 256, seed=1) * torch.linspace(0.01, 3, 256)
    seen = Seen({FeatureNorms: FeatureNorms.of(x)})
    weighed, plain = (Ggml(importance=i).compress(weight, seen if i else Seen({}), GgmlKind(kind)) for i in (True, False))
    assert torch.equal(weighed.packed.dense(), weighed.weight)
    error = {name: float((((one.weight - weight) @ x.T) ** 2).sum()) for name, one in (("weighed", weighed), ("plain", plain))}
    assert error["weighed"] == error["plain"] if kind == "q8_0" else error["weighed"] < error["plain"]


@ggml
def test_without_data_or_with_numbers_that_are_none_it_says_so() -> None:
    with pytest.raises(TargetError, match=r"iq2_xs can't be chosen without knowing which inputs matter; give calibration data"):
        Ggml(importance=False).compress(normal(2, 256), Seen({}), GgmlKind("iq2_xs"))
    with pytest.raises(NumericsError, match=r"the weight holds NaN"):
        Ggml(importance=False).compress(normal(2, 256) * torch.nan, Seen({}), GgmlKind("q4_k"))


@ggml
def test_the_whole_job_writes_the_bytes_that_llama_cpps_own_tool_writes(tmp_path: Path) -> None:
    from calibrant.importance import imatrix
    from calibrant.llama_cpp import quantize_file

    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    done = quantize(str(template), "python_docs", "ggml", "q4_0", tmp_path / "out", export="gguf", **SMALL)
    assert {matrix["bits_a_weight"] for matrix in done.record.weights} == {4.5}
    seen = imatrix(str(template), "python_docs", **SMALL)
    quantize_file(template, tmp_path / "theirs.gguf", "Q4_0", {name: entry.importance.ravel() for name, entry in seen.entries.items()})
    ours, theirs = ({str(t.name): t for t in gguf.GGUFReader(path).tensors} for path in (tmp_path / "out" / "model.gguf", tmp_path / "theirs.gguf"))
    same = [name for name, tensor in theirs.items() if name.startswith("blk.") and tensor.tensor_type.name == "Q4_0"]
    assert len(same) >= 18  # of the first down projections the recipe makes Q4_1
    for name in same:
        np.testing.assert_array_equal(ours[name].data, theirs[name].data, err_msg=name)


def test_without_data_the_job_asks_for_it(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"ggml looks at activations and needs calibration data"):
        quantize(str(tiny_gguf(tmp_path / "tiny.gguf", "F32")), method="ggml", target="q4_0", out=tmp_path / "out")
