"""GGUF files that claim more than they hold are refused before anything walks or allocates what
isn't there.
"""

import struct
from pathlib import Path

import pytest

from calibrant.models import open_model, open_tokenizer

from tests.models.refused import refusal_of

HUGE = 2**62
SAID = f"{HUGE:,}"


def overwritten(file: Path, bad: Path, behind: int | bytes, code: str, value: int) -> Path:
    """The file with another number at a place, or behind a text."""
    content = bytearray(file.read_bytes())
    at = behind if isinstance(behind, int) else content.index(behind) + len(behind)
    struct.pack_into(f"<{code}", content, at, value)
    bad.write_bytes(content)
    return bad


@pytest.mark.parametrize(
    ("place", "code", "value", "said"),
    [
        (4, "I", 99, "2 and 3"),
        (8, "Q", HUGE, SAID),
        (b"general.architecture", "I", 77, "77"),
        (b"tokenizer.ggml.tokens\x09\0\0\0\x08\0\0\0", "Q", HUGE, SAID),
        (b"tokenizer.ggml.tokens\x09\0\0\0", "I", 9, "unknown type 9"),
        (b"tokenizer.ggml.scores\x09\0\0\0\x06\0\0\0", "Q", HUGE, "4,114"),
        (b"blk.0.attn_q.weight", "I", 2**31, "blk.0.attn_q.weight"),
        (b"blk.0.attn_q.weight\2\0\0\0", "Q", 33, "blk.0.attn_q.weight"),
    ],
)
def test_a_header_that_claims_too_much(
    gguf_file: Path, tmp_path: Path, place: int | bytes, code: str, value: int, said: str
):
    bad = str(overwritten(gguf_file, tmp_path / "bad.gguf", place, code, value))
    for opening in (open_model, open_tokenizer):
        error = refusal_of(opening, bad)
        assert error.subject == bad
        assert said in str(error)


def test_tensors_that_share_bytes(gguf_file: Path, tmp_path: Path):
    """So that many large ones don't fit into a small file."""
    place = gguf_file.read_bytes().index(b"blk.0.attn_k.weight") + len(b"blk.0.attn_k.weight")
    # Behind its name: how many dimensions, two of them, the type.
    bad = overwritten(gguf_file, tmp_path / "bad.gguf", place + 4 + 16 + 4, "Q", 0)
    error = refusal_of(open_model, str(bad))
    assert error.subject == str(bad)
    assert "'blk.0.attn_k.weight'" in str(error)
    assert "begins within" in str(error)


def test_an_entry_that_is_there_twice(gguf_file: Path, tmp_path: Path):
    bad = tmp_path / "bad.gguf"
    content = gguf_file.read_bytes()
    bad.write_bytes(content.replace(b"ggml.bos_token_id", b"ggml.eos_token_id"))
    for opening in (open_model, open_tokenizer):
        error = refusal_of(opening, str(bad))
        assert "the entry 'tokenizer.ggml.eos_token_id' twice" in str(error)


@pytest.mark.parametrize(
    ("key", "value", "subject"),
    [
        (b"llama.block_count", 10**9, "num_hidden_layers"),
        (b"llama.block_count", 2, "blk.2.attn_q.weight"),
        (b"llama.embedding_length", 10**9, "model.layers.0.self_attn.q_proj.weight"),
        (b"llama.vocab_size", 2**31, "model.embed_tokens.weight"),
        (b"llama.attention.head_count", 0, ""),
    ],
)
def test_sizes_that_the_tensors_do_not_have(
    gguf_file: Path, tmp_path: Path, key: bytes, value: int, subject: str
):
    bad = str(overwritten(gguf_file, tmp_path / "bad.gguf", key + b"\x04\0\0\0", "I", value))
    assert refusal_of(open_model, bad, "float32", "cpu").subject == (subject or bad)
