"""ShortGPT against a slow calculation of its own, from the front door to a model that plain
transformers opens.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from calibrant.compress import prune
from calibrant.data import CalibrationSet
from calibrant.methods.blocks.short_gpt import least_influence
from calibrant.models import open_model
from calibrant.testing import tiny_folder

SMALL = {"samples": 4, "length": 16, "dtype": "float32"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model")


def influences(folder: Path) -> list[float]:
    """1 − the mean cosine between what enters a block and what leaves it, token by token in
    float64, from a plain forward.
    """
    opened = open_model(str(folder), "float32")
    batch = CalibrationSet("python_docs", samples=4, length=16).tokens(opened.tokenizer)
    model = opened.model.double()
    with torch.no_grad():
        states = model(
            batch.ids, attention_mask=batch.mask.long(), output_hidden_states=True
        ).hidden_states[:-1]
        last: list[torch.Tensor] = []
        hook = model.model.layers[-1].register_forward_hook(
            lambda _, __, output: last.append(output)
        )
        model(batch.ids, attention_mask=batch.mask.long())
        hook.remove()
    found: list[float] = []
    for before, after in zip(states, (*states[1:], last[0]), strict=True):
        cosines = [
            float((x @ y) / (x.norm() * y.norm()))
            for x, y, real in zip(
                before.flatten(0, 1), after.flatten(0, 1), batch.mask.flatten(), strict=True
            )
            if real
        ]
        found.append(1 - sum(cosines) / len(cosines))
    return found


def test_the_block_that_turns_its_input_least_goes(folder: Path, tmp_path: Path) -> None:
    done = prune(
        str(folder),
        data="python_docs",
        method="short_gpt",
        target=0.34,
        out=tmp_path / "out",
        **SMALL,
    )
    wanted = influences(folder)
    (edit,) = done.record.edits
    assert edit["notes"]["scores"] == pytest.approx(wanted, rel=1e-4)
    assert (edit["edit"], edit["blocks"], edit["of"]) == (
        "drop_blocks",
        [wanted.index(min(wanted))],
        3,
    )
    assert done.record.sparsity == pytest.approx(1 / 3)
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        assert torch.equal(reopened(ids).logits, done.opened.model(ids).logits)
    assert reopened.config.num_hidden_layers == 2
    assert prune(
        str(folder),
        data="python_docs",
        method="short_gpt",
        target=0.34,
        out=tmp_path / "out",
        **SMALL,
    ).already_done
    assert json.loads((tmp_path / "out" / "calibrant.json").read_text())["record"]["edits"] == [
        edit
    ]


def test_the_blocks_that_turn_least_go_in_the_order_of_the_model() -> None:
    assert least_influence([3.0, 1.0, 2.0, 1.0, 4.0], 3) == (1, 2, 3)
    assert least_influence([0.1, 4.0, 3.0, 0.2], 2) == (0, 3)
    assert least_influence([2.0, 1.0, 1.0, 3.0], 1) == (1,), "of equal ones the first goes"
