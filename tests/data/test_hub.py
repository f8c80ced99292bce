"""Mirror first, hub second; a hub that can't be reached costs one sentence."""

import gzip
import json
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow
import pytest
from datasets import config, exceptions
from huggingface_hub import HfApi, errors
from huggingface_hub.utils import httpx

from calibrant.data import HubDataset, hub, mirror, sources
from calibrant.data.hub import records
from calibrant.data.sources import gsm8k
from calibrant.errors import DataError

pytestmark = pytest.mark.usefixtures("forgetful", "cold")

NOWHERE = HubDataset("nobody/nothing", "main")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
PLACES = [("x", "train")]
OPTION = r"give a local mirror that holds x/train\.jsonl with --data-dir DIR or CALIBRANT_DATA=DIR$"


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
    jsonl(map(problem, range(100)), "hub/train.jsonl")
    return jsonl(map(problem, range(100, 130)), "hub/test.jsonl").parent


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `load_dataset` is called with; it gives three records that it says were downloaded at COMMIT."""
    calls: list[dict[str, Any]] = []

    class Loaded(list[dict[str, int]]):
        info = SimpleNamespace(download_checksums={f"hf://datasets/nobody/nothing@{COMMIT}/main/train.parquet": {}})

    def load(path: str, name: str | None = None, **options: object) -> Loaded:
        calls.append({"path": path, "name": name, **options})
        return Loaded([{"a": 1}, {"a": 2}, {"a": 3}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    return calls


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """A hub that says which commit is the newest; what it was asked, and how long one would have waited."""
    questions: list[tuple[str, float]] = []

    def dataset_info(self: HfApi, repo_id: str, *, timeout: float) -> SimpleNamespace:
        questions.append((repo_id, timeout))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    return questions


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)


# ---- what is read -------------------------------------------------------------------------------------------------------------------------------


def test_datasets_reads_what_the_mirror_lacks(hub_folder: Path):
    found, origin = records(HubDataset(str(hub_folder)), "test", [("gsm8k", "test")])
    assert list(found) == [problem(i) for i in range(100, 130)]
    assert origin == f"hub: {hub_folder}@unpinned"


def test_a_source_reads_from_the_hub(hub_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gsm8k, "HUB", HubDataset(str(hub_folder)))
    rows = list(sources.build("gsm8k").rows("measure"))
    assert {row.question for row in rows} == {problem(i)["question"] for i in range(100, 130)}


@pytest.mark.parametrize(("first", "read"), [(7, 7), (100, 100), (1000, 100)])
def test_of_a_large_split_exactly_its_front_is_read(hub_folder: Path, first: int, read: int):
    found, origin = records(HubDataset(str(hub_folder), first=first), "train", PLACES)
    assert list(found) == [problem(i) for i in range(read)]
    assert origin == f"hub: {hub_folder}@unpinned, first {read} records"


def test_no_more_is_fetched_than_the_front(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    fetched = []

    class Stream:
        info = SimpleNamespace(download_checksums=None)

        def __iter__(self) -> Iterator[dict[str, int]]:
            for i in range(1000):
                fetched.append(i)
                yield {"a": i}

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: Stream())
    found, origin = records(HubDataset("nobody/nothing", first=5), "train", PLACES)
    assert fetched == [0, 1, 2, 3, 4]
    assert [record["a"] for record in found] == fetched
    assert origin == "hub: nobody/nothing@unpinned, first 5 records"


@pytest.mark.parametrize("first", [None, 4])
@pytest.mark.parametrize("name", ["en/part-0.jsonl", "en/part-0.json.gz", "en/part-0.parquet"])
def test_of_a_split_in_many_files_only_the_named_one_is_read(tmp_path: Path, name: str, first: int | None):
    path = tmp_path / "set" / name
    path.parent.mkdir(parents=True)
    text = "".join(json.dumps(problem(i)) + "\n" for i in range(10))
    if name.endswith("parquet"):
        datasets.Dataset.from_list([problem(i) for i in range(10)]).to_parquet(path)
    else:
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    (path.parent / "part-1.jsonl").write_text("{broken")
    (tmp_path / "set" / "README.md").write_text("---\nconfigs: [{config_name: en, data_files: en/part-1.jsonl}]\n---\n")
    found, origin = records(HubDataset(str(tmp_path / "set"), "en", files={"train": name}, first=first), "train", PLACES)
    assert list(found) == [problem(i) for i in range(first or 10)]
    assert origin == f"hub: {tmp_path / 'set'}@unpinned, {name}" + (f", first {first} records" if first else "")


def test_values_of_the_hubs_own_types_come_as_plain_python(tmp_path: Path):
    features = datasets.Features(
        {
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "options": datasets.List(datasets.Value("string")),
            "choices": {"label": datasets.List(datasets.Value("string")), "text": datasets.List(datasets.Value("string"))},
            "turns": datasets.List({"role": datasets.Value("string")}),
            "flag": datasets.Value("bool"),
        }
    )
    given = {"label": 1, "options": ["a"], "choices": {"label": ["A"], "text": ["a"]}, "turns": [{"role": "user"}], "flag": True}
    datasets.Dataset.from_list([given], features=features).to_parquet(tmp_path / "set" / "train.parquet")
    for first in (None, 1):
        found, _ = records(HubDataset(str(tmp_path / "set"), first=first), "train", PLACES)
        assert json.dumps(list(found)) == json.dumps([given])


def test_code_from_the_hub_is_never_allowed(asked: list[dict[str, Any]]):
    for kind in (NOWHERE, HubDataset("nobody/nothing", files={"train": "a.jsonl"}), HubDataset("nobody/nothing", first=1)):
        records(kind, "train", PLACES)
    assert not any("trust_remote_code" in call for call in asked)


# ---- which commit -------------------------------------------------------------------------------------------------------------------------------


def test_the_newest_commit_is_asked_once_and_read(asked: list[dict[str, Any]], online: list[tuple[str, float]]):
    for split in ("train", "test"):
        assert records(NOWHERE, split, PLACES)[1] == f"hub: nobody/nothing@{COMMIT}"
    assert online == [("nobody/nothing", 10.0)]
    assert asked == [{"path": "nobody/nothing", "name": "main", "split": s, "revision": COMMIT, "streaming": False} for s in ("train", "test")]


def test_a_file_is_read_at_that_commit(asked: list[dict[str, Any]], online: list[tuple[str, float]]):
    crawl = HubDataset("allenai/c4", "en", files={"train": "en/c4-train.00000-of-01024.json.gz"}, first=2)
    found, origin = records(crawl, "train", PLACES)
    assert list(found) == [{"a": 1}, {"a": 2}]
    assert origin == f"hub: allenai/c4@{COMMIT}, en/c4-train.00000-of-01024.json.gz, first 2 records"
    address = f"hf://datasets/allenai/c4@{COMMIT}/en/c4-train.00000-of-01024.json.gz"
    assert asked == [{"path": "json", "name": None, "data_files": {"train": address}, "split": "train", "streaming": True}]


def test_a_pinned_revision_is_not_asked(asked: list[dict[str, Any]], online: list[tuple[str, float]]):
    assert records(HubDataset("nobody/nothing", revision="v1"), "train", PLACES)[1] == "hub: nobody/nothing@v1"
    assert (asked[0]["revision"], online) == ("v1", [])


def test_offline_the_commit_is_that_of_the_cache(asked: list[dict[str, Any]]):
    assert records(NOWHERE, "train", PLACES)[1] == f"hub: nobody/nothing@{COMMIT}"
    assert asked[0]["revision"] is None


# ---- what goes wrong ----------------------------------------------------------------------------------------------------------------------------


def refusal(kind: type[errors.HfHubHTTPError], status: int) -> errors.HfHubHTTPError:
    answer = httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/x"))
    return kind(f"{status} Client Error. (Request ID: Root=1-2-3)\n\nCannot access it", response=answer)


def beneath(top: Exception, cause: Exception) -> Exception:
    top.__cause__ = cause
    return top


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionError("no route"), "no route"),
        (ValueError("no route\nsecond line"), "no route"),
        (TimeoutError(), "TimeoutError"),
        (httpx.ConnectTimeout("timed out"), "timed out"),
        (httpx.RemoteProtocolError("peer closed connection"), "peer closed connection"),
        (EOFError("Compressed file ended"), "Compressed file ended"),
        (errors.OfflineModeIsEnabled("offline mode is enabled."), "offline mode is on, see HF_HUB_OFFLINE, and it isn't in the cache"),
        (
            exceptions.DatasetNotFoundError("Dataset 'nobody/nothing' doesn't exist on the Hub or cannot be accessed."),
            "it doesn't exist there, or .*",
        ),
        (refusal(errors.RepositoryNotFoundError, 404), "it doesn't exist there, or only for those who may see it"),
        (refusal(errors.GatedRepoError, 403), r"it is gated: .*huggingface.co/datasets/nobody/nothing and log in with `hf auth login`"),
        (exceptions.DatasetNotFoundError("Dataset 'x' is a gated dataset on the Hub. You must be …"), "it is gated: accept its conditions at .*"),
        (beneath(FileNotFoundError("x.jsonl"), refusal(errors.GatedRepoError, 401)), "it is gated: .*"),
        (refusal(errors.HfHubHTTPError, 503), r"503 Client Error\. \(Request ID: Root=1-2-3\)"),
        (RuntimeError("Dataset scripts are no longer supported, but found nothing.py"), "it is a script, and code from the hub isn't run"),
        (beneath(exceptions.DatasetGenerationError("An error occurred while generating the dataset"), OSError("disk on fire")), "disk on fire"),
        (ValueError("BuilderConfig 'main' not found. Available: " + ", ".join(map(str, range(200)))), r"BuilderConfig 'main' not found\. [\w:, ]*…"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_every_failure_costs_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str):
    failing(monkeypatch, error)
    with pytest.raises(DataError, match=rf"^'nobody/nothing' \(train\) can't be had from the Hugging Face hub \({reason}\); {OPTION}") as caught:
        records(NOWHERE, "train", PLACES)
    assert "\n" not in str(caught.value)
    assert caught.value.subject == "nobody/nothing"


def test_a_commit_that_cannot_be_asked_costs_one_sentence(asked: list[dict[str, Any]], online: object, monkeypatch: pytest.MonkeyPatch):
    def dataset_info(self: HfApi, repo_id: str, *, timeout: float) -> None:
        raise httpx.ConnectError("[Errno -2] Name or service not known")

    monkeypatch.setattr(HfApi, "dataset_info", dataset_info)
    with pytest.raises(DataError, match=rf"'nobody/nothing' \(train\) .*\(\[Errno -2\] Name or service not known\); {OPTION}"):
        records(NOWHERE, "train", PLACES)
    assert asked == []


def test_a_connection_that_drops_in_the_middle_costs_one_sentence(monkeypatch: pytest.MonkeyPatch):
    seen = []

    class Dropping:
        info = SimpleNamespace(download_checksums=None)

        def __iter__(self) -> Iterator[dict[str, int]]:
            yield {"a": 1}
            seen.append(config.STREAMING_READ_MAX_RETRIES)
            raise ConnectionError("Server Disconnected")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: Dropping())
    usual = config.STREAMING_READ_MAX_RETRIES
    with pytest.raises(DataError, match=rf"'nobody/nothing' \(train\) .*\(Server Disconnected\); {OPTION}"):
        records(HubDataset("nobody/nothing", first=10), "train", PLACES)
    assert seen == [1]
    assert config.STREAMING_READ_MAX_RETRIES == usual > 1


def test_a_script_is_refused_by_the_library_and_said_so(tmp_path: Path):
    (tmp_path / "scripted").mkdir()
    (tmp_path / "scripted" / "scripted.py").write_text("raise SystemExit('run')")
    with pytest.raises(DataError, match=rf"scripted' \(train\) .*\(it is a script, and code from the hub isn't run\); {OPTION}"):
        records(HubDataset(str(tmp_path / "scripted")), "train", PLACES)


def test_a_configuration_or_a_file_that_is_not_there_is_named(hub_folder: Path):
    (hub_folder / "README.md").write_text("---\nconfigs: [{config_name: en, data_files: train.jsonl}]\n---\n")
    with pytest.raises(DataError, match=rf"hub' \(train\) .*\(BuilderConfig 'tlh' not found\. Available: \['en'\]\); {OPTION}"):
        records(HubDataset(str(hub_folder), "tlh"), "train", PLACES)
    with pytest.raises(DataError, match=rf"hub' \(train\) .*\(Unable to find '.*hub/gone\.jsonl'.*\); {OPTION}"):
        records(HubDataset(str(hub_folder), files={"train": "gone.jsonl"}), "train", PLACES)


@pytest.mark.parametrize("first", [None, 90])
def test_a_file_that_is_cut_off_is_an_error_and_no_end(tmp_path: Path, first: int | None):
    (tmp_path / "set").mkdir()
    whole = gzip.compress("".join(json.dumps(problem(i)) + "\n" for i in range(100)).encode())
    (tmp_path / "set" / "train.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=rf"set' \(train\) .*\(Compressed file ended before the end-of-stream marker was reached\); {OPTION}"):
        records(HubDataset(str(tmp_path / "set"), files={"train": "train.jsonl.gz"}, first=first), "train", PLACES)


@pytest.mark.skipif(find_spec("zstandard") is not None, reason="zstandard is installed, so nothing is missing")
def test_zstandard_that_is_not_installed_is_named(tmp_path: Path):
    (tmp_path / "set").mkdir()
    with pyarrow.CompressedOutputStream(str(tmp_path / "set" / "train.jsonl.zst"), "zstd") as file:
        file.write(json.dumps(problem(1)).encode() + b"\n")
    with pytest.raises(DataError, match=rf"set' \(train\) .*compressed with Zstandard: pip install zstandard\); {OPTION}"):
        records(HubDataset(str(tmp_path / "set"), files={"train": "train.jsonl.zst"}, first=1), "train", PLACES)


@pytest.mark.skipif(find_spec("zstandard") is None, reason="zstandard isn't installed")
def test_a_broken_zstandard_file_costs_one_sentence(tmp_path: Path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl.zst").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=rf"set' \(train\) .*\(zstd decompress error: Unknown frame descriptor\); {OPTION}"):
        records(HubDataset(str(tmp_path / "set"), files={"train": "train.jsonl.zst"}, first=1), "train", PLACES)


def test_without_mirror_and_internet_a_source_says_what_to_do():
    with pytest.raises(DataError, match=r"'openai/gsm8k' .*gsm8k/train.jsonl with --data-dir"):
        sources.build("gsm8k").rows("calibrate")


# ---- the mirror ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [False, True])
def test_the_mirror_comes_first(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch):
    data = json.dumps(problem(1)).encode() + b"\n"
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / ("train.jsonl.gz" if zipped else "train.jsonl")).write_bytes(gzip.compress(data) if zipped else data)
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


def test_a_hub_that_says_nothing_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []

    def head(address: str, *, timeout: float) -> None:
        asked.append(timeout)
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=head))
    assert not hub.answers()
    assert asked == [hub.ANSWER_WITHIN]
    monkeypatch.setattr("huggingface_hub.get_session", lambda: SimpleNamespace(head=lambda address, timeout: None))
    assert hub.answers()
