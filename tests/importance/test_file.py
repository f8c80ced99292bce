"""Importance matrices as files: what is written comes back, ggml's own parser reads it too, and what is none is one sentence."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from calibrant.errors import DataError, OutputError
from calibrant.importance import Imatrix, ImatrixEntry, compared, read_imatrix


def made(scale: float = 1.0) -> Imatrix:
    noise = np.random.default_rng(0)
    one = ImatrixEntry(noise.random((1, 6)).astype(np.float32) * scale, np.array([70]))
    experts = ImatrixEntry(np.stack([noise.random(4), np.zeros(4), noise.random(4)]).astype(np.float32), np.array([40, 0, 30]))
    return Imatrix({"blk.0.ffn_up_exps.weight": experts, "blk.0.attn_q.weight": one}, ("prose; 7×10; draw 0",), 7, 10)


def test_a_gguf_file_comes_back_and_has_the_three_keys_and_no_architecture(tmp_path: Path):
    path = made().write(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("general.architecture") is None
    assert [name for name in reader.fields if name.startswith("imatrix.")] == ["imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert {str(t.name): [int(n) for n in t.shape] for t in reader.tensors} == {
        "blk.0.attn_q.weight.in_sum2": [6, 1],
        "blk.0.attn_q.weight.counts": [1, 1],
        "blk.0.ffn_up_exps.weight.in_sum2": [4, 3],
        "blk.0.ffn_up_exps.weight.counts": [1, 3],
    }
    back = read_imatrix(path)
    assert (back.datasets, back.chunks, back.chunk_size) == (("prose; 7×10; draw 0",), 7, 10)
    for name, entry in made().entries.items():
        np.testing.assert_array_equal(back.entries[name].sums, entry.sums)
        np.testing.assert_array_equal(back.entries[name].counts, entry.counts)


def test_an_expert_without_tokens_counts_as_one_everywhere():
    assert made().entries["blk.0.ffn_up_exps.weight"].importance[1].tolist() == [1, 1, 1, 1]


def test_the_older_form_by_hand_and_back(tmp_path: Path):
    path = made().write(tmp_path / "a.dat")
    stored = path.read_bytes()
    assert struct.unpack_from("<ii", stored) == (2, len("blk.0.attn_q.weight"))
    calls, values = struct.unpack_from("<ii", stored, 8 + len("blk.0.attn_q.weight"))
    assert (calls, values) == (7, 6)
    assert stored.endswith(struct.pack("<ii", 7, len("prose; 7×10; draw 0".encode())) + "prose; 7×10; draw 0".encode())
    back = read_imatrix(path)
    for name, entry in made().entries.items():
        np.testing.assert_allclose(back.entries[name].importance.ravel(), entry.importance.ravel(), rtol=1e-6)


@pytest.mark.parametrize("name", ["a.gguf", "a.dat"])
@pytest.mark.parametrize("kept", [2, 30, 90, -40])
def test_a_truncated_file_is_one_sentence(tmp_path: Path, name: str, kept: int):
    path = made().write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=rf"{name}' is truncated or damaged"):
        read_imatrix(path)


def test_a_model_and_a_text_are_no_imatrix(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(DataError, match=r"model.gguf' is a model and no imatrix; make one with calibrant imatrix"):
        read_imatrix(tmp_path / "model.gguf")
    (tmp_path / "text.dat").write_text("a text that calls itself an imatrix")
    with pytest.raises(DataError, match=r"text.dat' is truncated or damaged, or no imatrix"):
        read_imatrix(tmp_path / "text.dat")
    with pytest.raises(DataError, match=r"nowhere.dat' can't be read"):
        read_imatrix(tmp_path / "nowhere.dat")


def test_where_it_cannot_be_written_is_said_before(tmp_path: Path):
    with pytest.raises(OutputError, match=r"a.bin' is no name for an imatrix; let it end with .gguf \(llama.cpp\) or .dat"):
        made().write(tmp_path / "a.bin")
    with pytest.raises(OutputError, match=r"a.gguf' can't be written; name a file in a folder that exists"):
        made().write(tmp_path / "no" / "a.gguf")


def test_two_are_compared_tensor_by_tensor():
    mine, other = made(), made()
    other.entries["blk.0.attn_q.weight"].sums[0, :3] *= 10
    found = compared(mine, other)
    assert found.alike is not None
    assert found.alike["blk.0.ffn_up_exps.weight"] == 1
    assert found.alike["blk.0.attn_q.weight"] < 0.9
    assert (found.experts, found.unseen, found.rare) == (3, 1, 0)
    assert compared(made(), made(7.0)).median == 1  # a factor that all columns share asks for the same


def test_two_of_different_models_are_one_sentence():
    entry = ImatrixEntry(np.ones((1, 5), dtype=np.float32), np.array([3]))
    with pytest.raises(DataError, match=r"of different models: blk.0.attn_q.weight has 6 columns in one and 5 in the other"):
        compared(made(), Imatrix({"blk.0.attn_q.weight": entry}, (), 1, 1))
    with pytest.raises(DataError, match=r"of different models: blk.0.attn_q.weight is in one and blk.9.x.weight in the other"):
        compared(made(), Imatrix({"blk.9.x.weight": entry}, (), 1, 1))
