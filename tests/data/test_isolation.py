"""Isolated texts: the same as block-diagonal attention with positions that restart, on the real
model code.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from calibrant.activations import FeatureNorms
from calibrant.data import CalibrationSet
from calibrant.models import view
from calibrant.testing.tiny import tiny_model, tiny_tokenizer
from calibrant.walk import walk


@pytest.fixture
def texts(jsonl: Callable[..., Path]) -> Path:
    return jsonl({"text": f"{i:02d} " + "abcdefghij"[: 1 + i % 9] * 3} for i in range(100))


def windows(path: Path) -> list[list[list[int]]]:
    """Windows of 48 as lists of isolated texts, cut here by hand from the same rows."""
    tokenizer = tiny_tokenizer()
    rows = CalibrationSet(f"{path}@many(isolate=true, bos='none')", samples=3, length=48).rows(
        tokenizer
    )[0]
    found: list[list[list[int]]] = [[]]
    for row in rows:
        ids = tokenizer(row.text, add_special_tokens=False)["input_ids"]
        while ids:
            room = 48 - sum(map(len, found[-1]))
            found[-1].append(ids[:room])
            ids = ids[room:]
            if sum(map(len, found[-1])) == 48:
                found.append([])
    return found[:3]


def test_isolation_is_block_diagonal_attention_with_restarted_positions(texts: Path):
    model = tiny_model("llama").double().eval()
    batch = CalibrationSet(f"{texts}@many(isolate=true, bos='none')", samples=3, length=48).tokens(
        tiny_tokenizer()
    )
    by_hand = windows(texts)
    assert [row[mask].tolist() for row, mask in zip(batch.ids, batch.mask, strict=True)] == [
        piece for window in by_hand for piece in window
    ]
    assert batch.facts["windows"] == 3
    assert batch.facts["parts"][0]["sequences"] == len(batch.ids) > 3

    inputs: dict[str, torch.Tensor] = {}
    viewed = view(model)
    modules = dict(model.named_modules())
    for weight in viewed.weights:
        name = weight.name.removesuffix(".weight")
        modules[name].register_forward_hook(
            lambda _, given, __, name=name: inputs.update(
                {name: inputs.get(name, 0) + given[0].flatten(0, -2).square().sum(0)}
            )
        )
    with torch.no_grad():
        for window in by_hand:
            segment = torch.tensor([i for i, piece in enumerate(window) for _ in piece])
            allowed = (segment[:, None] == segment[None]) & torch.ones(48, 48).tril().bool()
            mask = torch.zeros(1, 1, 48, 48, dtype=torch.float64).masked_fill(
                ~allowed, torch.finfo(torch.float64).min
            )
            positions = torch.tensor([[at for piece in window for at in range(len(piece))]])
            model(
                torch.tensor([[i for piece in window for i in piece]]),
                attention_mask=mask,
                position_ids=positions,
                use_cache=False,
            )
    expected, inputs = inputs, {}
    for weight, seen in walk(viewed, batch, (FeatureNorms,), "dense"):
        torch.testing.assert_close(
            seen[FeatureNorms].squares,
            expected[weight.name.removesuffix(".weight")],
            rtol=1e-9,
            atol=1e-12,
        )
