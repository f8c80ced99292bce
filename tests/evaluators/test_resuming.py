"""An evaluation that was killed goes on, and gives what it would have given."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.compress import prune
from calibrant.errors import DataError
from calibrant.evaluators import Evaluator, evaluate, evaluators, loss
from calibrant.lab.study.request import digests_of
from calibrant.models import Opened, open_model
from calibrant.results.outcomes import Journal
from calibrant.system.progress import Progress
from calibrant.testing import tiny_folder

from tests.databases import questions

TASKS = [
    "loss(source='python_docs', tokens=1000, length=64)",
    "loss(source='python_docs', tokens=600, length=32)",
]


def test_a_user_without_a_cache_can_evaluate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    folder = str(tiny_folder(tmp_path / "tiny"))
    kept = evaluate(folder, tasks=TASKS[0], dtype="float32")
    monkeypatch.setenv("CALIBRANT_CACHE", os.devnull)
    assert evaluate(folder, tasks=TASKS[0], dtype="float32")[0].score == kept[0].score


def test_a_cache_that_cannot_be_written_stops_no_evaluation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = str(tiny_folder(tmp_path / "tiny"))
    kept = evaluate(folder, tasks=TASKS, dtype="float32")
    assert not caplog.messages
    # Below a file nothing can be made, whoever asks.
    (tmp_path / "file").touch()
    monkeypatch.setenv("CALIBRANT_CACHE", str(tmp_path / "file/cache"))
    unkept = evaluate(folder, tasks=TASKS, dtype="float32")
    assert [one.score for one in unkept] == [one.score for one in kept]
    (told,) = caplog.messages
    assert str(tmp_path / "file/cache") in told
    assert "set CALIBRANT_CACHE to a folder" in told


def test_a_killed_evaluation_goes_on_from_its_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
):
    opened = open_model(str(tiny_folder(tmp_path / "tiny")), "float32")
    whole = evaluate(opened, tasks=TASKS)
    journals = own_cache / "calibrant" / "journals.sqlite"
    assert questions(journals) == set()
    monkeypatch.setattr(loss, "TOKENS_PER_BATCH", 256)
    batches: list[int] = []
    score, stop = loss.summed_nats, 0

    def counted(model, batch):
        batches.append(len(batch))
        if len(batches) == stop:
            raise KeyboardInterrupt
        return score(model, batch)

    monkeypatch.setattr(loss, "summed_nats", counted)
    one_go, needed = evaluate(opened, tasks=TASKS), len(batches)
    assert needed > 4
    for last in (2, needed - 1):
        batches.clear()
        stop = last
        with pytest.raises(KeyboardInterrupt):
            evaluate(opened, tasks=TASKS)
        assert questions(journals)
        batches.clear()
        stop = 0
        resumed = evaluate(opened, tasks=TASKS)
        assert len(batches) == needed - (last - 1)
        assert resumed == one_go
        assert questions(journals) == set()
    for a, b in zip(one_go, whole, strict=True):
        assert a.score.value == pytest.approx(b.score.value, abs=1e-6)


def test_the_journal_of_a_file_that_was_edited_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
):
    opened = open_model(str(tiny_folder(tmp_path / "tiny")), "float32")
    file = tmp_path / "mine.jsonl"
    names = []
    for version in ("one", "two", "one"):
        file.write_text(
            "\n".join(json.dumps({"text": f"text {i} of version {version}"}) for i in range(40))
        )
        with monkeypatch.context() as killed:
            killed.setattr("calibrant.evaluators._measuring.timed", _killed)
            with pytest.raises(KeyboardInterrupt):
                evaluate(opened, tasks=f"loss(source={str(file)!r}, tokens=200, length=64)")
        names.append(questions(own_cache / "calibrant" / "journals.sqlite"))
    assert len(names[0]) == 1
    assert len(names[1]) == 2
    assert names[2] == names[1]


def _killed(
    task: Evaluator,
    opened: Opened,
    progress: Progress,
    reference: object,
    journal: Journal,
    leaked: int,
) -> None:
    journal.add({"an item": 1.0})
    raise KeyboardInterrupt


def test_of_what_is_known_here_only_users_files_have_a_digest(tmp_path: Path):
    rows = [json.dumps({"question": f"{i}?", "answer": str(i)}) for i in range(60)]
    (tmp_path / "mine.jsonl").write_text("\n".join(rows))
    named = (
        "loss(source={})",
        "perplexity(source={})",
        "agreement(source={})",
        "task(name={})",
        "generation(name={})",
    )
    assert {
        evaluators.build(text.format("python_docs" if "source" in text else "gsm8k")).digest()
        for text in named
    } == {""}
    own = [evaluators.build(text.format(repr(str(tmp_path / "mine.jsonl")))) for text in named]
    before = {evaluator.digest() for evaluator in own}
    assert len(before) == 1
    assert before != {""}
    (tmp_path / "mine.jsonl").write_text("\n".join(rows[:-30]))
    assert not before & {evaluator.digest() for evaluator in own}
    harness = evaluators.build(f"harness(task=mine, include_path={str(tmp_path)!r})")
    first = harness.digest()
    (tmp_path / "mine.yaml").write_text("task: mine")
    assert len({"", first, harness.digest()}) == 3


DIARY = """
from dataclasses import dataclass
from pathlib import Path
from calibrant.data import Row, SourceRows, StoredSource, divide

@dataclass(frozen=True, repr=False)
class Diary(StoredSource):
    kind, licence, homepage, fields = "corpus", "MIT", "", ("text",)
    path: str = ""

    def place(self):
        return Path(self.path).read_text()

    def read(self):
        word = Path(self.path).read_text()
        return SourceRows(divide(Row(text=f"{word} on day {day}") for day in range(60)), "")
"""


def test_a_changed_source_of_another_package_is_measured_anew(
    tmp_path: Path, plugged: Callable[..., None]
):
    plugged({"calibrant.data.sources": {"diary": "diaries:Diary"}}, diaries=DIARY)
    file = tmp_path / "diary.txt"
    file.write_text("walked")
    evaluator = loss.Loss(source=f"diary(path={str(file)!r})")
    walked = evaluator.digest()
    assert walked
    assert evaluator.digest() == walked
    file.write_text("swam")
    assert evaluator.digest() not in ("", walked)
    file.unlink()
    with pytest.raises(DataError, match=r"FileNotFoundError.*mend diaries:Diary"):
        evaluator.digest()
    assert digests_of({str(evaluator): evaluator}) == {}, "what is wrong its measurement says"


def test_models_pruned_in_memory_do_not_go_on_with_one_another_s_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
):
    folder, task = (
        str(tiny_folder(tmp_path / "tiny")),
        "loss(source='python_docs', tokens=200, length=64)",
    )
    half, most = (
        prune(folder, data="arithmetic", method="magnitude", target=target, dtype="float32").opened
        for target in ("0.5", "0.75")
    )
    monkeypatch.setattr("calibrant.evaluators._measuring.timed", _killed)
    for model in (half, most, open_model(folder, "float32")):
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, tasks=task)
    assert len(questions(own_cache / "calibrant" / "journals.sqlite")) == 3
