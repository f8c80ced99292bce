"""What a dense model's head is given is kept from one command to the next: its other layers run
once, every score is the same to the bit, and nothing counts that another model, or another machine,
would compute otherwise.
"""

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from calibrant.evaluators import Subject, evaluate
from calibrant.evaluators import _dense as dense_module
from calibrant.evaluators import _head_inputs as head_inputs
from calibrant.evaluators._dense import cached_predictions
from calibrant.evaluators._head_inputs import HeadInputs
from calibrant.evaluators._windows import ScoredWindow
from calibrant.evaluators.agreement import Agreement
from calibrant.models import Model, Opened, open_model
from calibrant.results.outcomes import Measurement
from calibrant.testing import tiny_folder


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each forward of a dense model whose predictions may be kept."""
    ran = list[int]()
    forward = dense_module.batch_logits

    def counted(model: PreTrainedModel, batch: Sequence[ScoredWindow]) -> torch.Tensor:
        ran.append(1)
        return forward(model, batch)

    monkeypatch.setattr(dense_module, "batch_logits", counted)
    return ran


@pytest.fixture
def measured(opened: Opened, pruned: Opened, texts: Path) -> Callable[..., Measurement]:
    """Measures as a command would that has just opened the dense model."""

    def measure(dense: Opened = opened) -> Measurement:
        agreement = Agreement(source=str(texts), tokens=400, length=32)
        with cached_predictions(dense):
            return agreement.measure(Subject(pruned.model, pruned.tokenizer, dense.model))

    return measure


def files(cache: Path) -> list[Path]:
    """The files that are kept."""
    return sorted((cache / "calibrant" / head_inputs.FOLDER).glob("*"))


def test_the_next_command_runs_no_forward_and_measures_the_same(
    measured: Callable[..., Measurement], forwards: list[int]
) -> None:
    first = measured()
    assert forwards
    forwards.clear()
    assert measured() == first
    assert not forwards


def test_evaluate_runs_a_named_dense_model_once_for_two_commands(
    opened: Opened, pruned: Opened, texts: Path, forwards: list[int], own_cache: Path
) -> None:
    def score(reference: Model) -> float:
        forwards.clear()
        agreement = Agreement(source=str(texts), tokens=400, length=32)
        (found,) = evaluate(
            pruned.model, pruned.tokenizer, reference=reference, tasks=agreement, dtype="float64"
        )
        return found.score.value

    first = score(opened.name)
    assert forwards
    assert score(opened.name) == first > 0
    assert not forwards
    # What an object computes may be more than its numbers say.
    kept = files(own_cache)
    changed = copy.deepcopy(opened.model)
    changed.model.layers[0].mlp.act_fn = torch.nn.ReLU()
    assert score(changed) != first
    assert files(own_cache) == kept


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("processor", lambda: "another processor"),
        ("version", lambda package: "another version"),
        ("REVISION", 1),
    ],
)
def test_what_was_computed_in_another_way_does_not_count(
    name: str,
    value: object,
    measured: Callable[..., Measurement],
    forwards: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured()
    forwards.clear()
    monkeypatch.setattr(head_inputs, name, value)
    measured()
    assert forwards


def test_another_model_does_not_count(
    tmp_path: Path, measured: Callable[..., Measurement], forwards: list[int]
) -> None:
    measured()
    folder = tiny_folder(tmp_path / "other", "llama", seed=1)
    forwards.clear()
    measured(open_model(str(folder), "float64"))
    assert forwards


def test_a_model_that_was_changed_meanwhile_is_run_and_not_kept(
    tmp_path: Path, pruned: Opened, texts: Path, forwards: list[int], own_cache: Path
) -> None:
    dense = open_model(str(tiny_folder(tmp_path / "dense", "llama")), "float64")
    agreement = Agreement(source=str(texts), tokens=400, length=32)
    with cached_predictions(dense):
        first = agreement.measure(Subject(pruned.model, pruned.tokenizer, dense.model))
        kept = files(own_cache)
        forwards.clear()
        with torch.no_grad():
            dense.model.lm_head.weight.mul_(2.0)
        second = agreement.measure(Subject(pruned.model, pruned.tokenizer, dense.model))
    assert second.score.value != first.score.value
    assert files(own_cache) == kept


def test_nothing_is_kept_of_an_object_or_under_autocast_or_without_a_cache(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert HeadInputs.of(opened) is not None
    assert HeadInputs.of(replace(opened, hashed=lambda: "tensors:0")) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert HeadInputs.of(opened) is None
    monkeypatch.setenv("CALIBRANT_CACHE", os.devnull)
    assert HeadInputs.of(opened) is None


def test_a_damaged_file_is_made_again(
    measured: Callable[..., Measurement],
    own_cache: Path,
    forwards: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = measured()
    damaged = files(own_cache)[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    forwards.clear()
    assert measured() == first
    assert len(forwards) == 1
    assert damaged.read_bytes() == whole
    assert "what a dense model's head was given" in caplog.text


def test_what_was_not_used_for_the_longest_time_makes_room(
    tmp_path: Path,
    measured: Callable[..., Measurement],
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured()
    first = files(own_cache)
    size = sum(path.stat().st_size for path in first)
    monkeypatch.setattr(head_inputs, "MOST_BYTES", size)
    measured(open_model(str(tiny_folder(tmp_path / "other", "llama", seed=1)), "float64"))
    second = files(own_cache)
    assert sum(path.stat().st_size for path in second) <= size
    assert len(second) == len(first)
    assert set(first).isdisjoint(second)


def test_what_a_command_uses_itself_makes_no_room(
    measured: Callable[..., Measurement], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibrant.evaluators.agreement.TOKENS_PER_BATCH", 64)
    measured()
    every = files(own_cache)
    size = sum(path.stat().st_size for path in every)
    for path in every:
        path.unlink()
    monkeypatch.setattr(head_inputs, "MOST_BYTES", size // 2)
    measured()
    kept = files(own_cache)
    assert 0 < len(kept) < len(every)
    measured()
    assert files(own_cache) == kept


def test_a_model_whose_head_alone_does_not_give_its_logits_is_not_kept(
    tmp_path: Path, own_cache: Path
) -> None:
    capped = open_model(str(tiny_folder(tmp_path / "capped", "gemma2")), "float64")
    assert capped.model.config.final_logit_softcapping
    with cached_predictions(capped):
        window = ScoredWindow("a", 0, [1, 2, 3, 4], 1, 8)
        dense_module.dense_predictions(capped.model, [window])
    assert files(own_cache) == []
