"""Runs cases: each in a folder of its own, watched for what may not happen.

python -m tests.attack.running --minutes 60 --seed 1     # an hour of it; each case that broke
something is told with its seed python -m tests.attack.running --case "header 4711"      # one case
again, with its traceback
"""

import argparse
import contextlib
import io
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final

from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.results.database import SIDE_SUFFIXES

from tests.attack.kinds import KINDS, Ground
from tests.effort import yardstick

SLOW: Final = 100
"""Yardsticks of the processor that a case may take."""

STUCK: Final = 900.0
"""Seconds of the clock after which a case waits for what never comes."""

TELLING: Final = ("store verify", "store merge")
"""Commands that end with 1 where they say what is wrong with a store."""


@dataclass(frozen=True)
class Broken:
    """A case that did what may not happen."""

    case: str
    words: str
    why: str
    trace: str = ""


class TooLong(BaseException):
    """A case was stopped. No `Exception`, so that nothing takes it for a fault of the input."""


def attacked(kind: str, seed: int, ground: Ground) -> Broken | None:
    """Run one case; None if it ended as it should: done, or one sentence and 2, nothing left
    behind.
    """
    chance = random.Random(f"{kind} {seed}")
    here = Path(tempfile.mkdtemp(dir=ground.folder))
    try:
        with contextlib.chdir(here):
            words = [str(word) for word in KINDS[kind](chance, ground, here)]
            before = _listing(here)
            why, trace = _watched(words)
            if why and not why.startswith("code"):
                return Broken(f"{kind} {seed}", _shown(words), why, trace)
            left = sorted(_listing(here) - before) if why == "code 2" else []
            if left:
                return Broken(
                    f"{kind} {seed}", _shown(words), f"left behind: {', '.join(left[:5])}"
                )
        return None
    finally:
        shutil.rmtree(here, ignore_errors=True)


def attack(seeds: Iterable[int], ground: Ground) -> Iterator[tuple[str, Broken | None]]:
    """Run cases of all kinds in turn, one for each seed."""
    kinds = list(KINDS)
    for seed in seeds:
        kind = kinds[seed % len(kinds)]
        yield kind, attacked(kind, seed, ground)


def _watched(words: list[str]) -> tuple[str, str]:
    """How a command ended: `code 0` or `code 2` if well, else what was wrong, with a traceback."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    limits = {
        signal.ITIMER_PROF: (signal.SIGPROF, SLOW * yardstick()),
        signal.ITIMER_REAL: (signal.SIGALRM, STUCK),
    }
    usual = {number: signal.signal(number, stop) for number, _ in limits.values()}
    for timer, (_, seconds) in limits.items():
        signal.setitimer(timer, seconds)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            done = CliRunner().invoke(app, words)
    except TooLong as error:
        return f"took over {SLOW} yardsticks, or waited for ever", "".join(
            traceback.format_exception(error)[-8:]
        )
    finally:
        for timer in limits:
            signal.setitimer(timer, 0)
        for number, handler in usual.items():
            signal.signal(number, handler)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return f"{type(done.exception).__name__}: {done.exception}"[:300], "".join(
            traceback.format_exception(done.exception)
        )
    if done.exit_code == 1 and " ".join(words[:2]) in TELLING:
        return "code 1", ""
    if done.exit_code not in (0, 2):
        return f"ended with {done.exit_code}: {done.stderr[:300]}", ""
    if done.exit_code == 2 and not done.stderr.strip():
        return "refused without a word", ""
    if done.exit_code == 2 and max(map(len, done.stderr.splitlines())) > 2_000:
        return f"a message of {len(done.stderr):,} characters", done.stderr[:300]
    return f"code {done.exit_code}", ""


def _listing(folder: Path) -> set[str]:
    """What is in a folder, but for what a reader keeps beside a database until its process ends."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return {name for name in found if not name.endswith(SIDE_SUFFIXES)}


def _shown(words: list[str]) -> str:
    return " ".join(ascii(word)[:80] for word in words)


def main() -> None:
    """An hour of it, or one case again."""
    options = argparse.ArgumentParser()
    options.add_argument("--minutes", type=float, default=60.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--case", default="")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ground = Ground(Path(folder))
        if given.case:
            kind, seed = given.case.split()
            broken = attacked(kind, int(seed), ground)
            print(
                broken.words + "\n" + broken.why + "\n" + broken.trace
                if broken
                else "as it should be"
            )
            sys.exit(broken is not None)
        until, seeds, counts = (
            time.monotonic() + 60 * given.minutes,
            iter(range(given.seed * 10_000_000, sys.maxsize)),
            Counter[str](),
        )
        for kind, broken in attack(seeds, ground):
            counts[kind] += 1
            if broken:
                counts["broken"] += 1
                print(f"{broken.case}: {broken.why}\n    {broken.words}", flush=True)
            if time.monotonic() > until:
                break
        print(dict(counts))


if __name__ == "__main__":
    main()
