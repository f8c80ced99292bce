"""Workers of a Ray cluster: a local one that is started for the study and listens on this machine alone, or the one at an address.

An actor keeps a model open. Tokens and statistics reach it as files, so the store must lie in a folder that all nodes share; the driver alone
writes results.
"""

import functools
import os
import queue
import re
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch

from calibrant.clock import Clock
from calibrant.errors import SpecError, WorkerError
from calibrant.progress import Progress
from calibrant.study.engines.language import LANGUAGE, Reply, Told
from calibrant.study.engines.local import THREADS, environment, shared_threads
from calibrant.study.engines.station import Station, replies
from calibrant.study.engines.team import Team, Tokens
from calibrant.study.engines.worker import Worker
from calibrant.study.ledger import Ledger
from calibrant.study.question import Finished, without_questions

PASSED_ON: Final = ("CALIBRANT_", "HF_", "TRANSFORMERS_", "TOKENIZERS_", "XDG_")
"""Beginnings of the variables that workers get from this process; not those that hold a secret, which a cluster shows to who looks at it."""

KNOCK: Final = 10.0
"""Seconds that a cluster has to answer."""

_PLACE: Final = re.compile(r"\bpid[:=] ?(\d+).*?\bip[:=] ?([0-9A-Fa-f.:]+)", re.DOTALL)

QUIET: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}


def run(ledger: Ledger, progress: Progress, workers: int, address: str | None, gpus: float) -> Finished:
    """Answer every question with `workers` actors, each with `gpus` of a GPU. `SpecError` if Ray isn't there, or has no such resources."""
    workers = min(workers, len(ledger.job.questions))
    with _cluster(address) as ray:
        cpus, threads = _shares(ray, workers, gpus, address)
        options = {
            "num_cpus": cpus,
            "num_gpus": gpus,
            "max_restarts": 0,
            "runtime_env": {"env_vars": _variables(threads)},
        }
        given = ray.put(LANGUAGE.pack((LANGUAGE.pack(without_questions(ledger.job)), ledger.store.folder.absolute(), threads, Path.cwd())))
        team = Team(ledger, progress, Tokens(ledger.store.corner().absolute()))
        return team.work([lambda told: Remote(ray, options, given, told, ledger.clock)] * workers)


class Actor:
    """What runs on a worker: it answers in a thread of its own, so that progress can be told meanwhile. All that it hears and says is messages."""

    def __init__(self, given: bytes) -> None:
        job, folder, threads, here = LANGUAGE.unpack(given)
        if here.is_dir():  # files of the user's are named as the driver sees them
            os.chdir(here)
        self._said: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        self._station = Station(lambda: LANGUAGE.unpack(job), folder, lambda *what: self._said.put(LANGUAGE.pack(Told(*what))))

    def perform(self, message: bytes) -> Iterator[bytes]:
        """What the station replies, and progress as it comes."""
        done = self._thread.submit(self._perform, message)
        while (reply := self._said.get()) is not None:
            yield reply
        done.result()

    def _perform(self, message: bytes) -> None:
        try:
            for reply in replies(self._station, message):
                self._said.put(reply)
        finally:
            self._said.put(None)


class Remote(Worker):
    """An actor as its driver knows it."""

    def __init__(self, ray: ModuleType, options: Mapping[str, Any], given: Any, progress: Progress, clock: Clock) -> None:
        super().__init__(progress, clock)
        self._ray, self._ended = ray, threading.Event()
        self._actor = ray.remote(**options)(Actor).remote(given)

    def call(self, what: str, *given: Any) -> Iterator[Reply]:
        try:
            for piece in self._actor.perform.options(num_returns="streaming").remote(LANGUAGE.pack((what, *given))):
                yield LANGUAGE.unpack(self._ray.get(piece))
        except self._ray.exceptions.RayActorError as death:
            name, why = _obituary(str(death))
            raise WorkerError(f"{name} died ({why})", subject=name) from None

    def end(self) -> None:
        if not self._ended.is_set() and self._ray.is_initialized():
            self._ended.set()
            self._ray.kill(self._actor)


def _obituary(text: str) -> tuple[str, str]:
    """Which process of which node died, and why, as Ray tells it: it knows both however soon that was."""
    known = _PLACE.search(text)
    name = f"process {known[1]} on node {known[2]}" if known else "a worker of which Ray tells no process"
    rest = text.partition("\nThe actor")[2] or text.rstrip().rpartition("\n")[2]  # an error of its own stands in the last line
    return name, " ".join(rest.split())[:300] or "its node may be gone"


@contextmanager
def _cluster(address: str | None) -> Iterator[ModuleType]:
    """Ray, connected; where it was connected before, it stays so."""
    with _environment({**QUIET, **(_keyed() if address else _apart())}):
        import ray

        mine = not ray.is_initialized()
        if mine:
            _connect(ray, address)
    try:
        yield ray
    finally:
        if mine:
            ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    where = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        if address:
            _knock(address)
        ray.init(**where, log_to_driver=False, logging_level="error")
    except (OSError, ValueError, RuntimeError) as error:
        raise SpecError(
            f"there is no Ray cluster to work with at {address or 'this machine'!r} ({' '.join(str(error).split())[:300]}); "
            "start one with 'ray start --head' and give its HOST:PORT, or leave the address out to have one started here",
            subject=address or "ray",
        ) from error


def _knock(address: str) -> None:
    """Raise `OSError` if nobody listens at HOST:PORT: Ray itself would try for minutes. `ValueError` for an address of another kind."""
    host, colon, port = address.rpartition(":")
    if address == "auto":
        return
    if not (colon and port.isdecimal()) or "/" in host:
        raise ValueError("neither HOST:PORT nor auto")
    socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK).close()


def _keyed() -> dict[str, str]:
    """What makes Ray show the word that the user keeps for clusters which ask for one; the others don't mind."""
    kept = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or (Path.home() / ".ray" / "auth_token").exists()
    return {"RAY_AUTH_MODE": "token"} if kept else {}


@functools.cache
def _apart() -> dict[str, str]:
    """What keeps local clusters to themselves, the same for all that this process starts, since Ray reads it when it is imported. Where that
    was done before, it is the user's own to set up.

    By its name the first is for other systems, and what it does is to keep all that Ray listens on off the network. The others let only those
    give orders who know a word that is made up here.
    """
    if "ray" in sys.modules or {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return {}
    return {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables that Ray reads while it starts; those that the user has set stay as they are."""
    with ExitStack() as after:
        for name in variables.keys() - os.environ.keys():
            os.environ[name] = variables[name]
            after.callback(os.environ.pop, name, None)
        yield


def _shares(ray: ModuleType, workers: int, gpus: float, address: str | None) -> tuple[float, int]:
    """CPUs and threads for each worker. `SpecError` where the cluster has too few GPUs."""
    has = ray.cluster_resources()
    if workers * gpus > has.get("GPU", 0.0):
        raise SpecError(
            f"{workers} workers with {gpus:g} GPUs each need {workers * gpus:g}, and the cluster has {has.get('GPU', 0.0):g}; take fewer",
            subject="gpus",
        )
    if address is None:
        share = has.get("CPU", 1.0) / workers
        return float(int(share)) or share, shared_threads(workers)  # above 1, Ray counts in whole ones
    largest = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    share = max(1, int(min(has.get("CPU", 1.0) / workers, largest)))
    return float(share), share


def _variables(threads: int) -> dict[str, str]:
    passed = {k: v for k, v in os.environ.items() if k.startswith(PASSED_ON) and "TOKEN" not in k.removeprefix("TOKENIZERS_")}
    said = environment(threads)
    return {**passed, **{name: said[name] for name in (*THREADS, "CALIBRANT_DATA") if name in said}}
