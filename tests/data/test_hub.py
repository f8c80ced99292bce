"""Mirror first, hub second; a hub that can't be reached costs one sentence."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from datasets import config
from huggingface_hub import HfApi, constants, errors
from huggingface_hub.utils import httpx

from calibrant.data import HubDataset, hub, mirror
from calibrant.data.hub import records
from calibrant.data.sources import sources
from calibrant.errors import DataError, MissingPackageError
from calibrant.lab.choose.goal import readable

from tests.data.written import written

pytestmark = pytest.mark.usefixtures("forgetful", "cold")

NOWHERE = HubDataset("nobody/nothing", "main")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLACES = [("x", "train")]


def problem(i: int) -> dict[str, str]:
    return {"question": f"What is {i} and 1?", "answer": f"It is {i + 1}.\n#### {i + 1}"}


@pytest.fixture
def cold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nothing is cached: no data set, no commit."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    hub._commit.cache_clear()
    yield
    hub._commit.cache_clear()


@pytest.fixture
def hub_folder(jsonl: Callable[..., Path]) -> Path:
    """A data set laid out as on the hub; `datasets` opens it by its path."""
    return jsonl(map(problem, range(100)), "hub/train.jsonl").parent


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `load_dataset` is called with; it gives three records that it says were downloaded at
    COMMIT.
    """
    calls: list[dict[str, Any]] = []

    class Loaded(list[dict[str, int]]):
        info = SimpleNamespace(
            download_checksums={f"hf://datasets/nobody/nothing@{COMMIT}/main/train.parquet": {}}
        )

    def load(path: str, name: str | None = None, **options: object) -> Loaded:
        calls.append({"path": path, "name": name, **options})
        return Loaded([{"a": 1}, {"a": 2}, {"a": 3}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """A hub that says which commit is the newest; what it was asked, and how long one would have
    waited.
    """
    questions: list[tuple[str, float]] = []

    def dataset_info(self: HfApi, repo_id: str, *, timeout: float) -> SimpleNamespace:
        questions.append((repo_id, timeout))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    return questions


@pytest.mark.parametrize(("first", "read"), [(None, 100), (7, 7), (1000, 100)])
def test_of_a_large_split_exactly_its_front_is_read(hub_folder: Path, first: int | None, read: int):
    found, origin = records(HubDataset(str(hub_folder), first=first), "train", PLACES)
    assert list(found) == [problem(i) for i in range(read)]
    assert origin == f"hub: {hub_folder}@unpinned" + (f", first {read} records" if first else "")


def test_values_of_the_hubs_own_types_come_as_plain_python(tmp_path: Path):
    several = datasets.List(datasets.Value("string"))
    features = {
        "label": datasets.ClassLabel(names=["no", "yes"]),
        "choices": {"label": several, "text": several},
        "turns": datasets.List({"role": datasets.Value("string")}),
        "flag": datasets.Value("bool"),
    }
    given = {
        "label": 1,
        "choices": {"label": ["A"], "text": ["a"]},
        "turns": [{"role": "user"}],
        "flag": True,
    }
    datasets.Dataset.from_list([given], features=datasets.Features(features)).to_parquet(
        tmp_path / "set" / "train.parquet"
    )
    for first in (None, 1):
        found, _ = records(HubDataset(str(tmp_path / "set"), first=first), "train", PLACES)
        assert json.dumps(list(found)) == json.dumps([given])


def test_the_newest_commit_is_asked_once_and_read(
    asked: list[dict[str, Any]], online: list[tuple[str, float]]
):
    for split in ("train", "test"):
        assert records(NOWHERE, split, PLACES)[1] == f"hub: nobody/nothing@{COMMIT}"
    assert online == [("nobody/nothing", 10.0)]
    assert [(call["split"], call["revision"]) for call in asked] == [
        ("train", COMMIT),
        ("test", COMMIT),
    ]
    assert (
        records(HubDataset("nobody/nothing", revision="v1"), "train", PLACES)[1]
        == "hub: nobody/nothing@v1"
    )
    assert (asked[-1]["revision"], len(online)) == ("v1", 1), "a pinned revision was asked for"


def test_offline_the_commit_is_that_of_the_cache(asked: list[dict[str, Any]]):
    assert records(NOWHERE, "train", PLACES)[1] == f"hub: nobody/nothing@{COMMIT}"
    assert asked[0]["revision"] is None


def test_a_file_is_read_at_that_commit(
    asked: list[dict[str, Any]], online: list[tuple[str, float]]
):
    crawl = HubDataset(
        "allenai/c4", "en", files={"train": "en/c4-train.00000-of-01024.json.gz"}, first=2
    )
    found, origin = records(crawl, "train", PLACES)
    assert list(found) == [{"a": 1}, {"a": 2}]
    assert (
        origin == f"hub: allenai/c4@{COMMIT}, en/c4-train.00000-of-01024.json.gz, first 2 records"
    )
    address = f"hf://datasets/allenai/c4@{COMMIT}/en/c4-train.00000-of-01024.json.gz"
    assert asked == [
        {
            "path": "json",
            "name": None,
            "data_files": {"train": address},
            "split": "train",
            "streaming": True,
        }
    ]
    assert "trust_remote_code" not in asked[0]


def refusal(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    answer = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))
    return kind(
        f"{status} Client Error. (Request ID: Root=1-2-3)\n\nCannot access it", response=answer
    )


def beneath(top: Exception, cause: Exception) -> Exception:
    top.__cause__ = cause
    return top


def raised(error: Exception) -> None:
    raise error


def refused(hub: HubDataset) -> str:
    """What is said of a hub that doesn't give: a sentence about the set, with the way out of it."""
    with pytest.raises(DataError) as caught:
        records(hub, "train", PLACES)
    said = str(caught.value)
    assert caught.value.subject == hub.id
    assert "\n" not in said
    assert "x/train.jsonl" in said
    assert "--data-dir" in said
    return said


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError(), "TimeoutError"),
        (EOFError("Compressed file ended"), "Compressed file ended"),
        (errors.OfflineModeIsEnabled("offline mode is enabled."), "HF_HUB_OFFLINE"),
        (refusal(errors.RepositoryNotFoundError, 404), "exist"),
        (refusal(errors.GatedRepoError, 403), "huggingface.co/datasets/nobody/nothing"),
        (beneath(FileNotFoundError("x.jsonl"), refusal(errors.GatedRepoError, 401)), "gated"),
        (refusal(errors.HfHubHTTPError, 503), "503 Client Error"),
        (RuntimeError("Dataset scripts are no longer supported, but found nothing.py"), "script"),
        (ValueError("zstd not supported"), "pip install zstandard"),
        (
            ValueError(
                "BuilderConfig 'main' not found. Available: " + ", ".join(map(str, range(200)))
            ),
            "'main'",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_failure_costs_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
):
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: raised(error))
    said = refused(NOWHERE)
    assert reason in said
    assert len(said) < 500


def test_a_commit_that_cannot_be_asked_costs_one_sentence(
    asked: list[dict[str, Any]], online: object, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        HfApi,
        "dataset_info",
        lambda *args, **options: raised(httpx.ConnectError("[Errno -2] Name or service not known")),
    )
    assert "[Errno -2]" in refused(NOWHERE)
    assert asked == []


def test_a_script_is_never_run(tmp_path: Path):
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("raise SystemExit('run')")
    assert "script" in refused(HubDataset(str(tmp_path / "scripted")))


def test_a_configuration_or_a_file_that_is_not_there_is_named(hub_folder: Path):
    (hub_folder / "README.md").write_text(
        "---\nconfigs: [{config_name: en, data_files: train.jsonl}]\n---\n"
    )
    assert "'tlh'" in refused(HubDataset(str(hub_folder), "tlh"))
    assert "gone.jsonl" in refused(HubDataset(str(hub_folder), files={"train": "gone.jsonl"}))


@pytest.mark.parametrize("first", [None, 90])
def test_a_file_that_is_cut_off_is_an_error_and_no_end(tmp_path: Path, first: int | None):
    path = written(tmp_path / "set" / "train.jsonl.gz", [problem(i) for i in range(100)])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "Compressed file ended" in refused(
        HubDataset(str(tmp_path / "set"), files={"train": path.name}, first=first)
    )


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_the_mirror_comes_first(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    written(tmp_path / "x" / name, [problem(1)])
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    for kind in (NOWHERE, HubDataset("nobody/nothing", files={"train": "a.jsonl"}, first=1)):
        found, origin = records(kind, "train", [("missing", "train"), ("x", "train")])
        assert (list(found), origin) == ([problem(1)], "mirror: x/train")


def test_a_chosen_mirror_outdoes_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert mirror() is None
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    assert mirror() == tmp_path
    (tmp_path / "other").mkdir()
    assert mirror(tmp_path / "other") == tmp_path / "other"
    assert mirror() == tmp_path / "other"


def test_a_mirror_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match="--data-dir") as caught:
        mirror(tmp_path / "nowhere")
    assert caught.value.subject == str(tmp_path / "nowhere")
    monkeypatch.setenv("CALIBRANT_DATA", "/no/where")
    with pytest.raises(DataError, match="CALIBRANT_DATA") as caught:
        mirror()
    assert caught.value.subject == "/no/where"


def test_a_hub_that_says_nothing_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "huggingface_hub.get_session",
        lambda: SimpleNamespace(head=lambda address, timeout: raised(ConnectionError("no route"))),
    )
    assert not hub.is_reachable()
    monkeypatch.setattr(
        "huggingface_hub.get_session", lambda: SimpleNamespace(head=lambda address, timeout: None)
    )
    assert hub.is_reachable()


def test_a_connection_that_drops_in_the_middle_costs_one_sentence(monkeypatch: pytest.MonkeyPatch):
    tries: list[int] = []

    class Dropping:
        info = SimpleNamespace(download_checksums=None)

        def __iter__(self) -> Iterator[dict[str, int]]:
            yield {"a": 1}
            tries.append(config.STREAMING_READ_MAX_RETRIES)
            raise ConnectionError("Server Disconnected")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: Dropping())
    usual = config.STREAMING_READ_MAX_RETRIES
    with pytest.raises(DataError, match="Server Disconnected") as caught:
        records(HubDataset("nobody/nothing", first=10), "train", PLACES)
    assert caught.value.subject == "nobody/nothing"
    assert tries == [1]
    assert config.STREAMING_READ_MAX_RETRIES == usual > 1


def test_without_the_package_that_reads_the_hub_nothing_of_it_is_here_and_plans_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert not hub.is_reachable()
    before = constants.HF_HUB_OFFLINE
    with hub.offline():
        assert constants.HF_HUB_OFFLINE
        assert not readable(sources.build("c4"))
    assert constants.HF_HUB_OFFLINE is before
    with pytest.raises(MissingPackageError, match="needs the package datasets"):
        records(NOWHERE, "train", PLACES)
