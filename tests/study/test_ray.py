"""Ray gives what one process gives. Sockets are closed in the tests, so all of it happens in one
process of its own, on loopback.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from calibrant.errors import SpecError, WorkerError
from calibrant.lab.study import Study, ray
from calibrant.lab.study.driver import Report
from calibrant.lab.study.ray import RayWorker, _shares, _variables
from calibrant.lab.study.sending import RemoteStore
from calibrant.lab.study.workers import FORGIVEN, WORK

from tests.study.small import asked, results

DRIVER = """
import json, os, pathlib, signal, sys
from contextlib import suppress
import psutil, torch
torch.set_num_threads(1)
from calibrant.errors import SpecError
from calibrant.lab.study import Study
from calibrant.lab.study import ray as engine
given, store = json.loads(sys.argv[1]), sys.argv[2]
study, said, seen, listening = Study(**given), {}, [], set()
marks = [os.path.join(os.path.dirname(store), name) for name in ("early", "late")]

def die_once(mark):
    with suppress(FileExistsError), open(mark, "x") as file:
        file.write(str(os.getpid()))
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

class Mortal(engine.Actor):
    # One dies before it has begun, one when it is at work on a run.
    def __init__(self, job):
        die_once(marks[0])
        super().__init__(job)

    def messages(self):
        for message in super().messages():
            if b"doing" in message and b"0.5 on random_tokens" in message:
                die_once(marks[1])
            yield message

def look(what, done, total):
    seen.append([what, done, total])
    if what == "study":
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                for connection in process.net_connections("inet"):
                    if connection.status == "LISTEN":
                        listening.add(connection.laddr.ip)

engine.Actor = Mortal
finished = study.run(store, look, engine="ray", workers=2)
said |= {"died": finished.died, "failures": dict(finished.failures)}
said |= {"computed": finished.computed, "seen": seen, "listening": sorted(listening)}
said["killed"] = [pathlib.Path(mark).read_text() for mark in marks]
for address in ("127.0.0.1:1", "ray://127.0.0.1:1"):
    try:
        study.run(store, engine="ray", address=address)
    except SpecError as error:
        said[address] = str(error)
said["left"] = len(psutil.wait_procs(psutil.Process().children(recursive=True), timeout=900)[1])
print("\\n" + json.dumps(said))
"""


@pytest.fixture(scope="module")
def by_ray(
    given: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A study by two workers of which two are killed, one of them before it has begun, and what
    the driver saw.
    """
    folder = tmp_path_factory.mktemp("ray")
    study = {
        k: v
        for k, v in vars(asked(given)).items()
        if k in ("models", "data", "methods", "evaluate", "samples", "length", "dtype")
    }
    changes = {"HOME": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", DRIVER, json.dumps(study), str(folder / "store")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | changes
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, cwd=folder
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.smoke
def test_a_worker_that_is_killed_costs_nothing_and_all_is_as_of_one_process(
    given: dict[str, str], by_ray: tuple[Path, dict[str, Any]], tmp_path: Path
):
    folder, said = by_ray
    assert asked(given).run(tmp_path / "local").failures == {}
    assert results(folder / "store") == results(tmp_path / "local")
    assert (said["computed"], said["failures"]) == (8 + 16, {})
    assert len(said["died"]) == 2
    for number in said["killed"]:
        (died,) = (
            told
            for told in said["died"]
            if told.startswith(f"process {number} on node 127.0.0.1 died (")
        )
        assert died.endswith("tried again")


@pytest.mark.slow
@pytest.mark.smoke
def test_nothing_listens_on_the_network_and_nothing_is_left_behind(
    by_ray: tuple[Path, dict[str, Any]],
):
    folder, said = by_ray
    assert {ip.removeprefix("::ffff:") for ip in said["listening"]} == {"127.0.0.1"}
    assert said["left"] == 0
    assert not list((folder / "store" / ".unfinished").glob("*/")), "no tokens of a data set stay"
    assert not (folder / ".ray").exists(), "no password in the user's home"


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_isnt_there_is_said_at_once(
    by_ray: tuple[Path, dict[str, Any]], address: str
):
    assert repr(address) in by_ray[1][address]


SCHEMES = """
import json, sys
import torch
torch.set_num_threads(1)
from calibrant.lab.study import Study
study = Study(**json.loads(sys.argv[1]))
print("\\n" + json.dumps(dict(study.run(sys.argv[2], engine="ray", workers=2).failures)))
"""


@pytest.mark.slow
def test_schemes_by_workers_of_ray_are_those_of_one_process(given: dict[str, str], tmp_path: Path):
    study: dict[str, Any] = {
        "model": given["model"],
        "data": [given["prose"], "random_tokens"],
        "method": ["rtn", "gptq"],
        "target": ["W8A8", "FP8(range=mse)", "NVFP4"],
        "transform": "smooth",
        "evaluate": f"loss(source={given['verse']!r}, tokens=200, length=64)",
        "samples": 4,
        "length": 32,
        "dtype": "float32",
    }
    changes = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-c", SCHEMES, json.dumps(study), str(tmp_path / "store")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | changes
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {}
    assert not Study(**study).run(tmp_path / "local").failures
    assert results(tmp_path / "store") == results(tmp_path / "local")


def test_a_worker_goes_on_when_what_it_did_is_on_its_way(monkeypatch: pytest.MonkeyPatch):
    """Else one that is killed may have sent what nobody counts."""
    went_on, said = threading.Event(), list[Any]()

    def job(_: Any, report: Report, store: RemoteStore) -> None:
        report(["progress", "study", 0, 1])
        report(["made", "sha256:1"])
        went_on.set()
        said.append(store.has_record("sha256:1"))
        report(["done", 0])

    monkeypatch.setattr(ray, "do_job", job)
    task = {"working_folder": "/nowhere", "work": b"", "forgiven": "{}"}
    actor = ray.Actor(msgspec.msgpack.encode(task))
    messages = map(msgspec.msgpack.decode, actor.messages())
    assert [next(messages)[0] for _ in range(2)] == ["progress", "made"]
    assert not went_on.wait(0.2)
    assert next(messages)[:2] == ["ask", "has_record"]
    actor.answered(msgspec.msgpack.encode(["answer", True]))
    assert [message[0] for message in messages] == ["done"]
    assert said == [True]


def failed(errors: Any, cause: Exception) -> Exception:
    """What Ray raises for an error in an actor."""
    trace = f"ray::Actor.messages() (pid=12, ip=10.0.0.1)\n  File\n{cause!r}\n"
    task = errors.RayTaskError("messages", trace, cause, "ray", 12, "10.0.0.1")
    return task.as_instanceof_cause()


def ended_by(error: Callable[[Any], Exception], folder: Path) -> RayWorker:
    """A worker in whose place an error of Ray's comes."""
    errors = pytest.importorskip("ray.exceptions")

    def get(_: int) -> Any:
        raise error(errors)

    call = SimpleNamespace(remote=lambda *_: iter([1]))
    actor = SimpleNamespace(messages=SimpleNamespace(options=lambda **_: call))
    made = SimpleNamespace(remote=lambda _: actor)
    found = ModuleType("ray")
    found.__dict__.update(exceptions=errors, get=get, remote=lambda **_: lambda _: made)
    (folder / WORK).write_bytes(b"")
    (folder / FORGIVEN).write_text("{}")
    return RayWorker(found, {}, {"folder": str(folder / "store"), "shared": str(folder)})


SHORT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory.
Killed: pid=3, on the node with ip: 10.0.0.2
Refer to the documentation."""
UNNAMED = "a worker whose process Ray doesn't name died"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            lambda errors: errors.OutOfMemoryError(SHORT_OF_MEMORY),
            f"process 3 on node 10.0.0.2 died ({SHORT_OF_MEMORY.splitlines()[0]})",
        ),
        (
            lambda errors: errors.NodeDiedError("Its node is gone."),
            f"{UNNAMED} (Its node is gone.)",
        ),
        (
            lambda errors: failed(errors, KeyError("layer")),
            "process 12 on node 10.0.0.1 died (KeyError('layer'))",
        ),
        (
            lambda errors: errors.ActorDiedError(),
            f"{UNNAMED} (The actor died unexpectedly before finishing this task.)",
        ),
    ],
)
def test_whatever_ends_a_worker_is_its_death(
    error: Callable[[Any], Exception], said: str, tmp_path: Path
):
    """So another takes its place, and what two died at is given up."""
    with pytest.raises(WorkerError) as raised:
        list(ended_by(error, tmp_path).messages())
    assert str(raised.value) == said


@pytest.mark.parametrize(
    "error",
    [
        lambda errors: errors.RuntimeEnvSetupError("no such variable"),
        lambda errors: errors.ActorUnschedulableError("no such variable"),
    ],
)
def test_a_worker_that_no_node_can_start_is_refused(
    error: Callable[[Any], Exception], tmp_path: Path
):
    with pytest.raises(SpecError, match=r"can't start a worker .*no such variable"):
        list(ended_by(error, tmp_path).messages())


def cluster(*nodes: dict[str, float]) -> ModuleType:
    """As much of Ray as tells what a cluster of such nodes has."""
    total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    alive = [{"Alive": True, "Resources": node} for node in nodes]
    found = ModuleType("ray")
    found.__dict__.update(cluster_resources=lambda: total, nodes=lambda: alive)
    return found


def test_what_a_worker_takes_of_a_cluster():
    assert _shares(cluster({"CPU": 8.0}, {"CPU": 8.0}), 3, 0.0, "auto") == (5, 5)
    assert _shares(cluster({"CPU": 4.0}, {"CPU": 4.0}), 1, 0.0, "auto") == (4, 4), (
        "a worker is on one node"
    )
    assert _shares(cluster({"CPU": 2.0}), 8, 0.0, "auto") == (1, 1)
    assert _shares(cluster({"CPU": 4.0}), 3, 0.0, None) == (1, 1), "more than one are whole ones"
    assert _shares(cluster({"CPU": 2.0}), 4, 0.0, None) == (0.5, 1), (
        "here all workers have a place, be it less than a processor"
    )
    assert _shares(cluster({"CPU": 4.0, "GPU": 2.0}), 2, 1.0, "auto") == (2, 2)


def test_gpus_that_a_cluster_hasnt_got_are_refused():
    with pytest.raises(SpecError) as caught:
        _shares(cluster({"CPU": 4.0}), 2, 0.5, None)
    assert caught.value.subject == "gpus"


def test_gpus_of_two_nodes_are_not_one_workers():
    one, two = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 2.0}
    assert _shares(cluster(one, two), 3, 1.0, "auto") == (2, 2)
    assert _shares(cluster(one), 3, 0.3, "auto") == (1, 1)
    for nodes, workers, gpus in (((one, one), 1, 2.0), ((one, two), 2, 2.0), ((one, one), 3, 0.6)):
        with pytest.raises(SpecError):
            _shares(cluster(*nodes), workers, gpus, "auto")


def test_secrets_stay_out_of_what_is_passed_to_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    for name, value in {
        "HF_TOKEN": "hf_secret",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "SOMETHING": "else",
    }.items():
        monkeypatch.setenv(name, value)
    others = {
        "HF_API_KEY",
        "CALIBRANT_SECRET",
        "HF_PASSWORD",
        "TOKENIZERS_TOKEN",
        "XDG_RUNTIME_DIR",
    }
    for name in others:
        monkeypatch.setenv(name, "other")
    monkeypatch.setenv("CALIBRANT_DATA", str(tmp_path))
    passed = _variables(3)
    assert not passed.keys() & others
    assert passed.keys() & {"HF_TOKEN", "SOMETHING", "PYTHONPATH"} == set()
    assert passed["OMP_NUM_THREADS"] == "3"
    assert (
        passed["HF_HUB_OFFLINE"],
        passed["TOKENIZERS_PARALLELISM"],
        passed["CALIBRANT_DATA"],
    ) == ("1", "false", str(tmp_path))
