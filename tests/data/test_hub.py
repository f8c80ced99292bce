"""Mirror first, hub second; a hub that can't be reached costs one sentence."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest

from calibrant.data import Hub, mirror, sources
from calibrant.data.hub import records
from calibrant.data.sources import gsm8k
from calibrant.errors import DataError

pytestmark = pytest.mark.usefixtures("forgetful")

NOWHERE = Hub("nobody/nothing", "main")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def problem(i: int) -> dict[str, str]:
    return {"question": f"What is {i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}


@pytest.fixture
def hub_folder(jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A data set laid out as on the hub; `datasets` opens it by its path."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    jsonl(map(problem, range(100)), "hub/train.jsonl")
    return jsonl(map(problem, range(100, 130)), "hub/test.jsonl").parent


@pytest.mark.parametrize("streaming", [False, True])
def test_datasets_reads_what_the_mirror_lacks(hub_folder: Path, streaming: bool):
    found, origin = records(Hub(str(hub_folder)), "test", [("gsm8k", "test")], streaming=streaming)
    assert list(found) == [problem(i) for i in range(100, 130)]
    assert origin == f"hub: {hub_folder}@unpinned"


def test_a_source_reads_from_the_hub(hub_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gsm8k, "HUB", Hub(str(hub_folder)))
    rows = list(sources.build("gsm8k").rows("measure"))
    assert {row.question for row in rows} == {problem(i)["question"] for i in range(100, 130)}


def test_the_commit_that_was_downloaded_is_recorded(monkeypatch: pytest.MonkeyPatch):
    info = SimpleNamespace(download_checksums={f"hf://datasets/nobody/nothing@{COMMIT}/main/train.parquet": {}})
    asked = []

    class Loaded(list):
        pass

    def load(*args: object, **kwargs: object) -> Loaded:
        asked.append((args, kwargs))
        loaded = Loaded([{"a": 1}])
        loaded.info = info
        return loaded

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert records(NOWHERE, "train", [("x", "train")])[1] == f"hub: nobody/nothing@{COMMIT}"
    assert records(Hub("nobody/nothing", revision="v1"), "train", [("x", "train")])[1] == "hub: nobody/nothing@v1"
    assert [kwargs["revision"] for _, kwargs in asked] == [None, "v1"]
    assert asked[0][0] == ("nobody/nothing", "main")


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("no route"), datasets.exceptions.DatasetNotFoundError("no route")])
def test_an_unreachable_hub_costs_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception):
    def load(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(DataError, match=r"'nobody/nothing' \(train\).*no route.*x/train.jsonl with --data-dir DIR or CALIBRANT_DATA=DIR") as caught:
        records(NOWHERE, "train", [("x", "train")])
    assert "\n" not in str(caught.value)


def test_without_mirror_and_internet_a_source_says_what_to_do():
    with pytest.raises(DataError, match=r"'openai/gsm8k' .*gsm8k/train.jsonl with --data-dir"):
        sources.build("gsm8k").rows("calibrate")


@pytest.mark.parametrize("zipped", [False, True])
def test_the_mirror_comes_first(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch):
    data = json.dumps(problem(1)).encode() + b"\n"
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ("train.jsonl.gz" if zipped else "train.jsonl")).write_bytes(gzip.compress(data) if zipped else data)
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    found, origin = records(NOWHERE, "train", [("missing", "train"), ("x", "train")])
    assert (list(found), origin) == ([problem(1)], "mirror: x/train")


def test_a_chosen_mirror_outdoes_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert mirror() is None
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    assert mirror() == tmp_path
    (tmp_path / "other").mkdir()
    assert mirror(tmp_path / "other") == tmp_path / "other"
    assert mirror() == tmp_path / "other"


def test_a_mirror_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"--data-dir names '.*nowhere', which is no folder"):
        mirror(tmp_path / "nowhere")
    monkeypatch.setenv("CALIBRANT_DATA", "/no/where")
    with pytest.raises(DataError, match="CALIBRANT_DATA names '/no/where'"):
        mirror()


def test_a_broken_line_of_the_mirror_is_named(tmp_path: Path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "train.jsonl").write_text(json.dumps(problem(1)) + "\n{broken\n")
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(problem(2)) + "\n")
    mirror(tmp_path)
    with pytest.raises(DataError, match=r"gsm8k/train.jsonl:2: '{broken' is no JSON"):
        sources.build("gsm8k").rows("calibrate")
