"""What a dense model's head is given is kept from one command to the next: the other layers run
once, every score is the same to the bit, and nothing counts that another model, or another machine,
would compute otherwise.
"""

import copy
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from calibrant.evaluators import Subject, evaluate, keep_predictions
from calibrant.evaluators import _dense as dense_module
from calibrant.evaluators import _head_inputs as head_inputs
from calibrant.evaluators._windows import ScoredWindow
from calibrant.evaluators.agreement import Agreement
from calibrant.models import Opened
from calibrant.results.outcomes import Measurement


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each forward of a dense model."""
    ran = list[int]()
    forward = dense_module.batch_logits

    def counted(model: PreTrainedModel, batch: Sequence[ScoredWindow]) -> torch.Tensor:
        ran.append(1)
        return forward(model, batch)

    monkeypatch.setattr(dense_module, "batch_logits", counted)
    return ran


def in_new_process(
    dense: PreTrainedModel, pruned: Opened, texts: Path, change: Callable[[PreTrainedModel], object]
) -> Measurement:
    """Measure as a process would that has just opened `dense`, and changed it."""
    opened_again = copy.deepcopy(dense)
    change(opened_again)
    keep_predictions(opened_again, in_memory=False, cached=True)
    agreement = Agreement(source=str(texts), tokens=400, length=32)
    return agreement.measure(Subject(pruned.model, pruned.tokenizer, opened_again))


def untouched(model: PreTrainedModel) -> None:
    """Change nothing."""


def kept(cache: Path) -> list[Path]:
    """The files that are kept."""
    return sorted((cache / "calibrant" / head_inputs.FOLDER).glob("*"))


def test_another_process_runs_no_forward_and_measures_the_same(
    opened: Opened, pruned: Opened, texts: Path, forwards: list[int]
) -> None:
    first = in_new_process(opened.model, pruned, texts, untouched)
    assert forwards
    forwards.clear()
    assert in_new_process(opened.model, pruned, texts, untouched) == first
    assert not forwards


def test_evaluate_runs_the_dense_model_once_for_two_commands(
    opened: Opened, pruned: Opened, texts: Path, forwards: list[int]
) -> None:
    scores = list[float]()
    counts = list[int]()
    for _ in range(2):
        (measured,) = evaluate(
            pruned.model,
            pruned.tokenizer,
            reference=opened.model,
            tasks=Agreement(source=str(texts), tokens=400, length=32),
        )
        scores.append(measured.score.value)
        counts.append(len(forwards))
    assert scores[0] == scores[1] > 0
    assert counts[0] == counts[1] > 0


def double_the_head(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)


def compute_eagerly(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("change", [double_the_head, compute_eagerly])
def test_a_model_that_computes_otherwise_is_run(
    change: Callable[[PreTrainedModel], object],
    opened: Opened,
    pruned: Opened,
    texts: Path,
    forwards: list[int],
) -> None:
    in_new_process(opened.model, pruned, texts, untouched)
    forwards.clear()
    in_new_process(opened.model, pruned, texts, change)
    assert forwards


def test_what_another_machine_computed_does_not_count(
    opened: Opened,
    pruned: Opened,
    texts: Path,
    forwards: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_new_process(opened.model, pruned, texts, untouched)
    forwards.clear()
    monkeypatch.setattr(head_inputs, "processor", lambda: "another processor")
    in_new_process(opened.model, pruned, texts, untouched)
    assert forwards


def add_a_hook(model: PreTrainedModel) -> None:
    model.register_forward_hook(lambda module, arguments, output: None)


def replace_a_forward(model: PreTrainedModel) -> None:
    module = model.get_output_embeddings()
    assert module is not None
    module.forward = module.forward


@pytest.mark.parametrize("change", [add_a_hook, replace_a_forward])
def test_nothing_is_kept_of_a_model_that_its_numbers_do_not_describe(
    change: Callable[[PreTrainedModel], object],
    opened: Opened,
    pruned: Opened,
    texts: Path,
    own_cache: Path,
) -> None:
    in_new_process(opened.model, pruned, texts, change)
    assert kept(own_cache) == []


def test_without_a_cache_nothing_is_kept(
    opened: Opened, pruned: Opened, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALIBRANT_CACHE", os.devnull)
    measured = in_new_process(opened.model, pruned, texts, untouched)
    monkeypatch.delenv("CALIBRANT_CACHE")
    assert measured == in_new_process(opened.model, pruned, texts, untouched)


def test_a_damaged_file_is_made_again(
    opened: Opened, pruned: Opened, texts: Path, own_cache: Path, forwards: list[int]
) -> None:
    first = in_new_process(opened.model, pruned, texts, untouched)
    damaged = kept(own_cache)[0]
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    forwards.clear()
    assert in_new_process(opened.model, pruned, texts, untouched) == first
    assert len(forwards) == 1
    assert damaged.read_bytes() == whole


def test_what_was_not_used_for_the_longest_time_makes_room(
    opened: Opened,
    pruned: Opened,
    texts: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_new_process(opened.model, pruned, texts, untouched)
    first = kept(own_cache)
    size = sum(path.stat().st_size for path in first)
    monkeypatch.setattr(head_inputs, "MOST", size)
    in_new_process(opened.model, pruned, texts, double_the_head)
    second = kept(own_cache)
    assert sum(path.stat().st_size for path in second) <= size
    assert len(second) == len(first)
    assert set(first).isdisjoint(second)
