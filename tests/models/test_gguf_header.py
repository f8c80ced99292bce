"""GGUF files that claim more than they hold are refused before anything walks or allocates what isn't there."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from calibrant.errors import ModelError
from calibrant.models import open_model, open_tokenizer
from calibrant.models.gguf_file import read_header
from calibrant.testing import tiny_gguf

HUGE = 2**62


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_the_header_says_what_gguf_reads(file: Path):
    header, reader = read_header(file), gguf.GGUFReader(file)
    assert {name: tuple(reversed(shape)) for name, shape in header.tensors.items()} == {t.name: tuple(t.shape.tolist()) for t in reader.tensors}
    names = [name for name, value in header.values.items() if not isinstance(value, list)]
    assert len(names) > 8
    assert {name: header.values[name] for name in names} == {name: reader.fields[name].contents() for name in names}


def overwritten(file: Path, place: Path, at: int, code: str, value: int) -> Path:
    content = bytearray(file.read_bytes())
    struct.pack_into(f"<{code}", content, at, value)
    (place / "bad.gguf").write_bytes(content)
    return place / "bad.gguf"


def after(file: Path, text: bytes) -> int:
    return file.read_bytes().index(text) + len(text)


@pytest.mark.parametrize(
    ("place", "code", "value", "said"),
    [
        (4, "I", 99, "its version is 99"),
        (8, "Q", HUGE, "claims 4,611,686,018,427,387,904 tensors"),
        (16, "Q", HUGE, "claims 4,611,686,018,427,387,904 entries"),
        (24, "Q", HUGE, "a name in it has 4,611,686,018,427,387,904 bytes"),
        (b"general.architecture", "I", 77, "an entry is of the unknown type 77"),
        (b"general.architecture\x08\0\0\0", "Q", HUGE, "something of 4,611,686,018,427,387,904 bytes begins at byte"),
        (b"tokenizer.ggml.tokens\x09\0\0\0\x08\0\0\0", "Q", HUGE, "claims 4,611,686,018,427,387,904 texts"),
        (b"tokenizer.ggml.tokens\x09\0\0\0\x08\0\0\0", "Q", 5000, "damaged|something of"),
        (b"tokenizer.ggml.tokens\x09\0\0\0", "I", 9, "an entry is of the unknown type 9"),
        (b"tokenizer.ggml.scores\x09\0\0\0\x06\0\0\0", "Q", HUGE, "something of"),
        (b"blk.0.attn_q.weight", "I", 2**31, "'blk.0.attn_q.weight' has 2147483648 dimensions"),
        (b"blk.0.attn_q.weight\2\0\0\0", "Q", HUGE, "its tensors end at byte"),
        (b"blk.0.attn_q.weight\2\0\0\0", "Q", 33, "has rows of 33, which Q8_0 can't pack"),
    ],
)
def test_a_header_that_claims_too_much(file: Path, tmp_path: Path, place: int | bytes, code: str, value: int, said: str):
    bad = overwritten(file, tmp_path, place if isinstance(place, int) else after(file, place), code, value)
    with pytest.raises(ModelError, match=f"bad.gguf is truncated or damaged .*({said})"):
        open_model(str(bad), "float32", "cpu")
    with pytest.raises(ModelError, match=f"bad.gguf has no tokenizer that can be read .*({said})"):
        open_tokenizer(str(bad))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        (b"llama.block_count", 10**9, "num_hidden_layers is 1000000000, but the files have room for 1,024"),
        (b"llama.block_count", 2, "holds 'blk.2.attn_norm.weight', which a model of this configuration has no place for|holds 'blk.2"),
        (b"llama.block_count", 0, "holds 'blk.0"),
        (b"llama.embedding_length", 10**9, r"holds [\d,]+ numbers, but its configuration asks for"),
        (b"llama.feed_forward_length", 10**9, r"holds [\d,]+ numbers, but its configuration asks for"),
        (b"llama.vocab_size", 2**31, r"holds [\d,]+ numbers, but its configuration asks for"),
        (b"llama.attention.head_count", 0, "head_count|num_attention_heads is 0|can't open"),
    ],
)
def test_sizes_that_the_tensors_do_not_have(file: Path, tmp_path: Path, key: bytes, value: int, said: str):
    bad = overwritten(file, tmp_path, after(file, key + b"\x04\0\0\0"), "I", value)
    with pytest.raises(ModelError, match=said):
        open_model(str(bad), "float32", "cpu")


def test_a_tensor_that_nobody_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    add = gguf.GGUFWriter.add_tensor
    named: list[str] = []

    def one_more(self: gguf.GGUFWriter, name: str, *given: object, **options: object) -> None:
        if not named:
            named.append("blk.0.stranger.weight")
            add(self, "blk.0.stranger.weight", torch.zeros(4).numpy())
            add(self, "rope_freqs.weight", np.ones(4, dtype=np.float32))  # as the files of llama 3 have them
        add(self, name, *given, **options)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", one_more)
    path = tiny_gguf(tmp_path / "more.gguf")
    with pytest.raises(ModelError, match=r"more.gguf holds 'blk.0.stranger.weight', which a model of this configuration has no place for"):
        open_model(str(path), "float32", "cpu")
