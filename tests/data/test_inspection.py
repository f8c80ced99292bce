"""What is told about a set before it is used."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, inspect


def test_an_inspection_counts_what_is_there(jsonl: Callable[..., Path], letters: PreTrainedTokenizerBase):
    texts = [f"{i:02d}" * (1 + i % 4) for i in range(90)]
    path = jsonl([{"text": text} for text in [*texts, *texts[:5]]])
    data = CalibrationSet(f"{path}@one", samples=10, length=16)
    batch, found = data.tokens(letters), inspect(data, letters)
    lengths = sorted(batch.mask.sum(1).tolist())
    (part,) = found.parts
    assert (found.windows, found.rows, found.tokens, found.length) == (10, 10, sum(lengths), 16)
    assert found.padding == pytest.approx(1 - sum(lengths) / 160)
    assert found.fingerprint == batch.fingerprint
    assert found.repeated_windows == 0
    assert found.disjoint_draws == part["rows_held"] // 10
    assert (part["row_lengths"][0], part["row_lengths"][-1]) == (lengths[0], lengths[-1])
    assert lengths[0] <= part["row_lengths"][2] <= lengths[-1]
    assert [letters.decode(batch.ids[i][batch.mask[i]].tolist()) for i in (0, 1)] == part["texts"]
    assert part["licence"] == "the user's own"
    assert part["duplicates_dropped"] <= 5
    assert json.loads(json.dumps(found.to_json())) == found.to_json()


def test_each_part_shows_its_own_windows(jsonl: Callable[..., Path], letters: PreTrainedTokenizerBase):
    path = jsonl([{"text": f"text number {i:03d}"} for i in range(90)])
    found = inspect(CalibrationSet(f"0.5*{path} + 0.5*full_stops", samples=8, length=16), letters, show=1, letters=11)
    assert [part["texts"] for part in found.parts] == [[found.parts[0]["texts"][0]], ["..........."]]
    assert found.parts[0]["texts"][0].startswith("text number")
    assert found.repeated_windows == 3
    assert found.parts[1]["rows_held"] is None


def test_controls_have_no_end(letters: PreTrainedTokenizerBase):
    assert inspect(CalibrationSet("random_tokens", samples=2, length=8), letters).disjoint_draws is None
