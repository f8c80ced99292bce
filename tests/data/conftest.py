"""Tokenizers that need nothing: words and bytes, with and without a start token; and a mirror if
there is one.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from calibrant.data import _base, hub

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_tokenizer(start: bool) -> PreTrainedTokenizerFast:
    """One token a byte; ids 0, 1, 2 are special, bytes follow."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *ALPHABET])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if start:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def letters() -> PreTrainedTokenizerBase:
    """A byte a token, no start token."""
    return byte_tokenizer(start=False)


@pytest.fixture(scope="session")
def started() -> PreTrainedTokenizerBase:
    """A byte a token, and a start token before each text."""
    return byte_tokenizer(start=True)


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins without a mirror."""
    monkeypatch.delenv("CALIBRANT_DATA", raising=False)
    monkeypatch.setattr(hub, "_chosen", [])


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Nothing that was read before is remembered, nor what this test reads."""
    _base._hold.cache_clear()
    yield
    _base._hold.cache_clear()


ASKED_FOR = os.environ.get("CALIBRANT_DATA")


@pytest.fixture
def real_mirror(no_mirror: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not ASKED_FOR:
        pytest.skip("CALIBRANT_DATA names no mirror with real data")
    monkeypatch.setenv("CALIBRANT_DATA", ASKED_FOR)
    return Path(ASKED_FOR)


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write records to a JSONL file."""

    def write(records: Iterable[dict[str, Any]], name: str = "mine.jsonl") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        return path

    return write
