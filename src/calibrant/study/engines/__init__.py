"""Who does the work of a study: this process, several of this machine, or Ray."""

import importlib.util

from calibrant.errors import SpecError
from calibrant.progress import Progress
from calibrant.registry import did_you_mean
from calibrant.study.engines import local
from calibrant.study.ledger import Ledger
from calibrant.study.question import Finished

ENGINES = ("local", "ray")


def check(engine: str, workers: int = 1, address: str | None = None, gpus: float = 0.0) -> None:
    """Raise `SpecError` for an engine that doesn't exist or isn't installed, or for what it can't be asked for."""
    if engine not in ENGINES:
        raise SpecError(f"there is no engine called {engine!r}{did_you_mean(engine, ENGINES)} (known: {', '.join(ENGINES)})", subject=engine)
    if workers < 1:
        raise SpecError(f"{workers} workers can't do anything; give at least 1", subject="workers")
    if gpus < 0:
        raise SpecError(f"a worker can't have {gpus} GPUs; give 0 or more", subject="gpus")
    if engine == "local" and (address is not None or gpus):
        given = f"the address {address!r}" if address is not None else f"gpus={gpus}"
        raise SpecError(f"{given} is for the engine ray, and this study runs with local; ask for ray, or leave it out", subject="engine")
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise SpecError("the engine ray needs the package ray, which isn't here; install it with pip install 'calibrant[ray]'", subject="ray")


def run(engine: str, ledger: Ledger, progress: Progress, *, workers: int, address: str | None, gpus: float) -> Finished:
    """Have `engine` answer what the ledger's store lacks. `SpecError` for what `check` refuses."""
    check(engine, workers, address, gpus)
    if engine == "local":
        return local.run(ledger, progress, workers)
    from calibrant.study.engines import ray

    return ray.run(ledger, progress, workers, address, gpus)
