"""Importance matrices as files: what is written comes back, ggml's own parser reads it too, and
what is none is one sentence.
"""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from calibrant.compress.importance import Imatrix, ImatrixEntry, compared, read_imatrix
from calibrant.errors import DataError, OutputError

from tests.models.refused import refusal_of


def made(scale: float = 1.0) -> Imatrix:
    noise = np.random.default_rng(0)
    one = ImatrixEntry(noise.random((1, 6)).astype(np.float32) * scale, np.array([70]))
    experts = ImatrixEntry(
        np.stack([noise.random(4), np.zeros(4), noise.random(4)]).astype(np.float32),
        np.array([40, 0, 30]),
    )
    return Imatrix(
        {"blk.0.ffn_up_exps.weight": experts, "blk.0.attn_q.weight": one},
        ("prose; 7×10; draw 0",),
        7,
        10,
    )


def test_a_gguf_file_comes_back_and_has_the_three_keys_and_no_architecture(tmp_path: Path):
    path = made().write(tmp_path / "a.gguf")
    reader = gguf.GGUFReader(path)
    assert reader.get_field("general.type").contents() == "imatrix"
    assert reader.get_field("general.architecture") is None
    assert [name for name in reader.fields if name.startswith("imatrix.")] == [
        "imatrix.datasets",
        "imatrix.chunk_count",
        "imatrix.chunk_size",
    ]
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
    unseen = back.entries["blk.0.ffn_up_exps.weight"].importance[1]
    assert unseen.tolist() == [1, 1, 1, 1], "an expert without tokens counts as one everywhere"


def test_the_older_form_by_hand_and_back(tmp_path: Path):
    path = made().write(tmp_path / "a.dat")
    stored = path.read_bytes()
    assert struct.unpack_from("<ii", stored) == (2, len("blk.0.attn_q.weight"))
    calls, values = struct.unpack_from("<ii", stored, 8 + len("blk.0.attn_q.weight"))
    assert (calls, values) == (7, 6)
    assert stored.endswith(
        struct.pack("<ii", 7, len("prose; 7×10; draw 0".encode())) + "prose; 7×10; draw 0".encode()
    )
    back = read_imatrix(path)
    for name, entry in made().entries.items():
        np.testing.assert_allclose(
            back.entries[name].importance.ravel(), entry.importance.ravel(), rtol=1e-6
        )


def test_what_is_made_of_no_known_text_comes_back(tmp_path: Path):
    path = replace(made(), datasets=()).write(tmp_path / "a.gguf")
    assert read_imatrix(path).datasets == ()


@pytest.mark.parametrize("name", ["a.gguf", "a.dat"])
@pytest.mark.parametrize("kept", [2, 30, 90, -40])
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, kept: int):
    path = made().write(tmp_path / name)
    path.write_bytes(path.read_bytes()[:kept])
    assert refusal_of(read_imatrix, path, kind=DataError).subject == str(path)


def test_a_model_and_a_text_are_no_imatrix(tmp_path: Path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (tmp_path / "text.dat").write_text("a text that calls itself an imatrix")
    for name in ("model.gguf", "text.dat", "nowhere.dat"):
        assert refusal_of(read_imatrix, tmp_path / name, kind=DataError).subject == str(
            tmp_path / name
        )
    for name in ("a.bin", "no/a.gguf"):
        assert refusal_of(made().write, tmp_path / name, kind=OutputError).subject == str(
            tmp_path / name
        )


def odd(path: Path, datasets: object = "prose", count: object = 7, name: str = "in_sum2") -> Path:
    """A file with facts of other types, or tensors of another name."""
    writer = gguf.GGUFWriter(path, "")
    writer.add_type("imatrix")
    for key, value in (("datasets", datasets), ("chunk_count", count), ("chunk_size", 10)):
        if isinstance(value, list):
            writer.add_array(f"imatrix.{key}", value)
        elif isinstance(value, int):
            writer.add_uint32(f"imatrix.{key}", value)
        else:
            writer.add_string(f"imatrix.{key}", str(value))
    writer.add_tensor(f"blk.0.attn_q.weight.{name}", np.ones((1, 4), dtype=np.float32))
    writer.add_tensor("blk.0.attn_q.weight.counts", np.ones((1, 1), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"datasets": 3}, "imatrix.datasets is 3, and no list"),
        ({"datasets": "prose"}, "imatrix.datasets is 'prose', and no list"),
        ({"count": [7, 8]}, "imatrix.chunk_count is [7, 8], and no whole number"),
        ({"count": "seven"}, "imatrix.chunk_count is 'seven', and no whole number"),
        ({"name": "in_sum"}, "it holds no .in_sum2"),
    ],
)
def test_facts_of_another_type_and_no_sums(tmp_path: Path, facts: dict[str, Any], said: str):
    given = {"datasets": ["prose"], **facts}
    refusal = refusal_of(read_imatrix, odd(tmp_path / "odd.gguf", **given), kind=DataError)
    assert said in str(refusal)
    assert refusal.subject == str(tmp_path / "odd.gguf")


def test_one_without_tensors_is_not_compared():
    empty = replace(made(), entries={})
    for pair in ((made(), empty), (empty, made())):
        assert "without tensors" in str(refusal_of(compared, *pair, kind=DataError))


def test_two_are_compared_tensor_by_tensor():
    mine, other = made(), made()
    other.entries["blk.0.attn_q.weight"].sums[0, :3] *= 10
    found = compared(mine, other)
    assert found.alike is not None
    assert found.alike["blk.0.ffn_up_exps.weight"] == 1
    assert found.alike["blk.0.attn_q.weight"] < 0.9
    assert (found.experts, found.unseen, found.rare) == (3, 1, 0)
    assert (
        compared(made(), made(7.0)).median == 1
    )  # a factor that all columns share asks for the same


def test_an_expert_with_several_matrices_is_counted_once():
    imatrix = made()
    up = imatrix.entries["blk.0.ffn_up_exps.weight"]
    imatrix.entries["blk.0.ffn_gate_exps.weight"] = up
    # What one of its matrices saw a token of isn't unseen.
    more = replace(up, counts=np.array([40, 5, 30]))
    imatrix.entries["blk.0.ffn_down_exps.weight"] = more
    imatrix.entries["blk.1.ffn_up_exps.weight"] = replace(up, counts=np.array([4, 0, 0]))
    found = compared(imatrix)
    assert (found.experts, found.unseen, found.rare) == (6, 2, 2)


def test_two_of_different_models_are_refused():
    entry = ImatrixEntry(np.ones((1, 5), dtype=np.float32), np.array([3]))
    narrow, elsewhere = (
        Imatrix({"blk.0.attn_q.weight": entry}, (), 1, 1),
        Imatrix({"blk.9.x.weight": entry}, (), 1, 1),
    )
    assert refusal_of(compared, made(), narrow, kind=DataError).subject == "blk.0.attn_q.weight"
    assert "blk.9.x.weight" in str(refusal_of(compared, made(), elsewhere, kind=DataError))
