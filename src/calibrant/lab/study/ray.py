"""Workers of a Ray cluster: a local one that is started for the study and listens on this machine
alone, or the one at an address.

An actor is a driver with a model of its own. It sends its results to the process that started it,
which alone writes (`Desk`). So the store lies on that process's machine, and the nodes need share
no folder. What a worker hadn't sent when it died is lost, and nothing else.
"""

import functools
import os
import queue
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, Final

import msgspec

from calibrant.errors import SpecError, WorkerError
from calibrant.lab.study.driver import Message
from calibrant.lab.study.sending import Desk, RemoteStore
from calibrant.lab.study.workers import (
    FORGIVEN,
    THREADS,
    WORK,
    Worker,
    do_job,
    environment,
    received,
    shared_threads,
)

PASSED_ON: Final = ("CALIBRANT_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "XDG_")
"""Beginnings of the variables that workers get from this process; not those that hold a secret,
which a cluster shows to who looks at it."""
SECRETS: Final = frozenset({"TOKEN", "KEY", "SECRET", "PASSWORD"})
"""Words in the name of a variable that holds a secret."""
OF_THIS_MACHINE: Final = frozenset({"XDG_RUNTIME_DIR", "XDG_SESSION_ID"})
"""Variables that mean nothing on another machine."""

TOKENS: Final = frozenset({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"})
"""Variables by which a user gives Ray a token."""

PATIENCE: Final = 10.0
"""Seconds that a cluster has to answer."""

_ROUNDING: Final = 1e-6
"""What the quotient of two numbers of GPUs may lack."""
_PLACE: Final = re.compile(r"\bpid[:=] ?(\d+).*?\bip[:=] ?([0-9A-Fa-f.:]+)", re.DOTALL)

RAY_SETTINGS: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}
"""Variables that Ray is started with: it tells nobody of its use, and hides GPUs from workers that
asked for none."""


@contextmanager
def ray_workers(
    workers: int, address: str | None, gpus: float
) -> Iterator[Callable[[Mapping[str, Any]], Worker]]:
    """Yield a function that starts an actor on a job, one of `workers`, each with `gpus` of a GPU.

    Raises `SpecError` where there is no such cluster, or it hasn't got so much.
    """
    with _cluster(address) as ray:
        cpus, threads = _shares(ray, workers, gpus, address)
        options = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_concurrency": 2,  # messages go out while answers come in
            "runtime_env": {"env_vars": _variables(threads)},
        }
        shared = {"threads": threads, "working_folder": str(Path.cwd())}

        def start(job: Mapping[str, Any]) -> Worker:
            return RayWorker(ray, options, {**job, **shared})

        yield start


class Actor:
    """What runs on a worker: a driver in a thread of its own, so that its messages can be read
    meanwhile.

    A message is a list in msgpack. The message `ask` is a question to the store: the method that is
    asked, and its arguments. The answer comes by `answered`.
    """

    def __init__(self, job: bytes) -> None:
        self._job: dict[str, Any] = msgspec.msgpack.decode(job)
        self._messages = queue.Queue[bytes | None]()
        self._answers = queue.Queue[bytes]()
        folder = self._job["working_folder"]
        if Path(folder).is_dir():  # files of the user's are named as there
            os.chdir(folder)

    def messages(self) -> Iterator[bytes]:
        """Do the job, and yield messages as they come."""
        with ThreadPoolExecutor(1) as thread:
            done = thread.submit(self._work)
            while (message := self._messages.get()) is not None:
                yield message
                self._messages.task_done()
            done.result()

    def answered(self, answer: bytes) -> None:
        """Take the answer to the last question."""
        self._answers.put(answer)

    def _work(self) -> None:
        try:
            with TemporaryDirectory(prefix="calibrant-") as folder:
                (Path(folder) / WORK).write_bytes(self._job["work"])
                (Path(folder) / FORGIVEN).write_text(self._job["forgiven"])
                store = RemoteStore(self._asked, Path(folder))
                do_job({**self._job, "shared": folder}, self._report, store)
        finally:
            self._messages.put(None)

    def _report(self, message: Message) -> None:
        self._messages.put(msgspec.msgpack.encode(message))
        if message[0] != "progress":
            # Until Ray has it: a worker that runs ahead of its messages may die with results that
            # nobody counts.
            self._messages.join()

    def _asked(self, asked: str, given: bytes) -> bytes:
        self._messages.put(msgspec.msgpack.encode(["ask", asked, given]))
        return self._answers.get()


class RayWorker(Worker):
    """An actor as the process that started it knows it."""

    def __init__(self, ray: ModuleType, options: Mapping[str, Any], job: Mapping[str, Any]) -> None:
        self._ray = ray
        self._ended = threading.Event()
        self._folder = job["folder"]
        shared = Path(job["shared"])
        task = {"work": (shared / WORK).read_bytes(), "forgiven": (shared / FORGIVEN).read_text()}
        message = msgspec.msgpack.encode({**job, **task})
        self._actor = ray.remote(**options)(Actor).remote(message)

    def messages(self) -> Iterator[Message]:
        failed = self._ray.exceptions
        desk = Desk(self._folder)
        try:
            for piece in self._actor.messages.options(num_returns="streaming").remote():
                message = msgspec.msgpack.decode(self._ray.get(piece), type=Message)
                if message[0] == "ask":
                    _, asked, given = message
                    self._actor.answered.remote(desk.answer(asked, given))
                else:
                    yield received(message)
        except (failed.RuntimeEnvSetupError, failed.ActorUnschedulableError) as error:
            # Another would end the same.
            raise SpecError(
                f"the Ray cluster can't start a worker ({_in_one_line(str(error))}); "
                "mend that on its nodes, or run the study with --engine local",
                subject="ray",
            ) from None
        except failed.RayError as death:
            name, why = _obituary(str(death))
            if not isinstance(death, failed.RayActorError | failed.RayTaskError):
                # A node that is gone or has no memory left: advice stands behind the first line.
                first, _, _ = str(death).strip().partition("\n")
                why = _in_one_line(first)
            raise WorkerError(f"{name} died ({why})", subject=name) from None
        finally:
            desk.close()

    def end(self) -> None:
        if not self._ended.is_set() and self._ray.is_initialized():
            self._ended.set()
            self._ray.kill(self._actor)


def _obituary(text: str) -> tuple[str, str]:
    """Which process of which node died, and why, read from the text of Ray's error.

    Only Ray knows both for a worker that dies before it has said anything.
    """
    name = "a worker whose process Ray doesn't name"
    place = _PLACE.search(text)
    if place:
        name = f"process {place[1]} on node {place[2]}"
    _, _, why = text.partition("\nThe actor")
    if not why:
        # An error of its own stands in the last line.
        _, _, why = text.rstrip().rpartition("\n")
    return name, _in_one_line(why) or "its node may be gone"


def _in_one_line(text: str) -> str:
    """A text of Ray's for a message, never long."""
    return " ".join(text.split())[:300]


@contextmanager
def _cluster(address: str | None) -> Iterator[ModuleType]:
    """Yield Ray, connected. Afterwards it is disconnected, unless it was connected before."""
    if address:
        access = _with_token()
    else:
        access = _private()
    with ExitStack() as after:
        with _environment({**RAY_SETTINGS, **access}):
            import ray

            if not ray.is_initialized():
                after.callback(ray.shutdown)
                _connect(ray, address)
        yield ray


def _connect(ray: ModuleType, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    try:
        if address:
            _try_address(address)
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, **quiet)
    except (OSError, ValueError, RuntimeError) as error:
        place = address or "this machine"
        raise SpecError(
            f"there is no Ray cluster to work with at {place!r} ({_in_one_line(str(error))}); "
            "start one with 'ray start --head' and give its HOST:PORT, "
            "or leave the address out to have one started here",
            subject=address or "ray",
        ) from error


def _try_address(address: str) -> None:
    """Raise `OSError` if nobody listens at HOST:PORT: Ray itself would try for minutes.
    `ValueError` for an address of another kind.
    """
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not (colon and port.isdecimal()) or "/" in host:
        raise ValueError("neither HOST:PORT nor auto")
    connection = socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE)
    connection.close()


def _with_token() -> dict[str, str]:
    """What makes Ray use the user's token for clusters that want one; the others don't mind."""
    named = not TOKENS.isdisjoint(os.environ)
    if named or (Path.home() / ".ray" / "auth_token").exists():
        return {"RAY_AUTH_MODE": "token"}
    return {}


@functools.cache
def _private() -> dict[str, str]:
    """What makes local clusters private: the same for all that this process starts, since Ray reads
    it when it is imported. Where Ray was imported before, or the user has a token, it is nothing:
    then the user sets this up.

    By its name the first variable is for other systems; its effect is that Ray listens on no
    network but this machine's own. With the others only those can give orders who know a token that
    is made up here.
    """
    imported = "ray" in sys.modules
    if imported or "RAY_AUTH_MODE" in os.environ or not TOKENS.isdisjoint(os.environ):
        return {}
    return {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables that Ray reads while it starts, and unset them afterwards.

    Those that the user has set stay as they are.
    """
    with ExitStack() as after:
        for name in variables.keys() - os.environ.keys():
            os.environ[name] = variables[name]
            after.callback(os.environ.pop, name, None)
        yield


def _shares(ray: ModuleType, workers: int, gpus: float, address: str | None) -> tuple[float, int]:
    """CPUs and threads for each worker. `SpecError` where the cluster's nodes, which a worker can't
    span, haven't got GPUs for all."""
    resources = ray.cluster_resources()
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cpus_each = resources.get("CPU", 1.0) / workers
    if gpus:
        places = sum(_places_for(node.get("GPU", 0.0), gpus) for node in nodes)
        if places < workers:
            found = resources.get("GPU", 0.0)
            raise SpecError(
                f"{workers} workers need {gpus:g} GPUs each, and the cluster's nodes have "
                f"{found:g} in all, enough for {places}; take fewer",
                subject="gpus",
            )
    if address is None:
        # From 1 on, Ray counts CPUs in whole ones.
        if cpus_each >= 1:
            cpus_each = float(int(cpus_each))
        return cpus_each, shared_threads(workers)
    largest_node = max(node.get("CPU", 0.0) for node in nodes)
    cpus = max(1, int(min(cpus_each, largest_node)))
    return float(cpus), cpus


def _variables(threads: int) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if _is_passed_on(name)}
    needed = environment(threads)
    for name in (*THREADS, "CALIBRANT_DATA"):
        if name in needed:
            passed[name] = needed[name]
    return passed


def _is_passed_on(name: str) -> bool:
    """Whether workers get a variable of this process."""
    # TOKENIZERS_PARALLELISM has the word TOKEN in it, and is no secret.
    secret = any(word in name.removeprefix("TOKENIZERS_") for word in SECRETS)
    return name.startswith(PASSED_ON) and not secret and name not in OF_THIS_MACHINE


def _places_for(node_gpus: float, gpus: float) -> int:
    """How many workers fit a node with `node_gpus`, where each takes `gpus`.

    A share of a GPU lies on one GPU: of two GPUs, each has room for one worker with 0.6 of it.
    """
    if gpus < 1:
        return int(node_gpus) * int(1 / gpus + _ROUNDING)
    return int(node_gpus / gpus + _ROUNDING)
