"""An evaluation that was killed goes on, and gives what it would have given."""

from pathlib import Path

import pytest

from calibrant.evaluators import evaluate, loss
from calibrant.models import open_model
from calibrant.testing import tiny_folder

TASKS = ["loss(source='python_docs', tokens=3000, length=64)", "loss(source='python_docs', tokens=2000, length=32)"]


def test_a_killed_evaluation_goes_on_from_its_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path):
    opened = open_model(str(tiny_folder(tmp_path / "tiny")), "float32")
    whole = evaluate(opened, TASKS)
    journals = own_cache / "calibrant" / "journals"
    assert list(journals.glob("*")) == []
    monkeypatch.setattr(loss, "TOKENS_PER_BATCH", 256)
    batches: list[int] = []
    score = loss.summed_nats

    def counted(model, batch):
        batches.append(len(batch))
        if len(batches) == stop:
            raise KeyboardInterrupt
        return score(model, batch)

    monkeypatch.setattr(loss, "summed_nats", counted)
    stop = 0
    one_go = evaluate(opened, TASKS)
    needed = len(batches)
    for stop in (2, needed - 1):
        batches.clear()
        with pytest.raises(KeyboardInterrupt):
            evaluate(opened, TASKS)
        assert list(journals.glob("*.jsonl"))
        batches.clear()
        stop, before = 0, stop
        resumed = evaluate(opened, TASKS)
        assert len(batches) == needed - (before - 1)
        assert resumed == one_go
        assert list(journals.glob("*")) == []
    for a, b in zip(one_go, whole, strict=True):
        assert a.score.value == pytest.approx(b.score.value, abs=1e-6)
