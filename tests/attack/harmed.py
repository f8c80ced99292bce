"""Files that a command wrote are harmed before another command reads them again: nothing may then
come out that looks whole and is something else.

A `Scene` is what came before, and the command that reads. A case is a scene, one of the files that
lie there, and a harm. Every file that is there when the reading command begins is a candidate, so
that a new kind of file can't be forgotten.
"""

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors import safe_open
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.compress.checkpoint import Checkpoint
from calibrant.results import MASK, Store
from calibrant.results.live import DATABASE
from calibrant.results.outcomes import Journal
from calibrant.testing import tiny_folder, tiny_gguf

SMALL: Final = ("--samples", "4", "--length", "32", "--dtype", "float32", "--device", "cpu")
LOSS: Final = "loss(source=python_docs, tokens=128, length=32)"
MORE: Final = "loss(source=arithmetic, tokens=64, length=32)"
TELLING: Final = (("store", "merge"),)
"""Commands that end with 1 where they say what is wrong with a store, and do the rest."""
NOT_A_RESULT: Final = (
    "provenance",
    "seal",
    "seconds",
    "machine",
    "sizes",
    "files",
    "when",
    "reused",
    "folder",
)
"""What differs from one time to the next, or is compared by what it stands for."""

Words = Sequence[str]


@dataclass(frozen=True)
class Ended:
    """How commands ended: the first exit code that isn't 0, what was said, and what came out of
    them.
    """

    code: int
    said: str
    tells: bool = False
    fault: str = ""
    result: Any = None


@dataclass(frozen=True)
class Scene:
    """What lies in a folder before the commands `again` read it, and how their results are read
    from there.
    """

    name: str
    folder: Path
    again: Sequence[Words]
    result: Callable[[Path, str], Any]


def commands(folder: Path, every: Sequence[Words], result: Callable[[Path, str], Any]) -> Ended:
    """Run commands in a folder, with a cache in it, up to the first that doesn't end well."""
    printed, complaints, telling = "", "", False
    with contextlib.chdir(folder), pytest.MonkeyPatch.context() as patched:
        patched.setenv("CALIBRANT_CACHE", str(folder / "cache"))
        for words in every:
            with contextlib.redirect_stderr(io.StringIO()):
                done = CliRunner().invoke(app, list(words))
            complaints += done.stderr
            tells = done.exit_code == 1 and tuple(words[:2]) in TELLING
            telling = telling or tells
            if done.exception is not None and not isinstance(done.exception, SystemExit):
                return Ended(1, complaints, f"{type(done.exception).__name__}: {done.exception}")
            if done.exit_code != 0 and not tells:
                return Ended(done.exit_code, complaints)
            printed = done.stdout
        return Ended(0, complaints, telling, result=result(folder, printed))


@contextlib.contextmanager
def killed(kind: type[Any], name: str, at: int) -> Iterator[None]:
    """While this is open, the `at`-th call of a method of a class ends the command, right after
    it has done its work.
    """
    method, calls = getattr(kind, name), 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        found = method(*args, **kwargs)
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(kind, name, deadly)
        yield


def interrupted(folder: Path, words: Words, kind: type[Any], name: str, at: int) -> None:
    """Run a command that is killed."""
    with killed(kind, name, at):
        ended = commands(folder, [words], lambda *_: None)
    assert ended.code == 130, ended


# What came out


def model_of(folder: Path, printed: str) -> Any:
    """The numbers of the model in `out`, and its record without what differs from one time to
    the next.
    """
    del printed
    tensors: dict[str, Any] = {}
    for path in sorted((folder / "out").rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # no dict
                numbers = file.get_tensor(key).view(torch.uint8).numpy()
                tensors[f"{path.parent.name}/{key}"] = numbers.tobytes()
    return tensors, _stripped(json.loads((folder / "out" / "calibrant.json").read_text()))


def printed_json(folder: Path, printed: str) -> Any:
    """What the last command printed."""
    del folder
    return _stripped(json.loads(printed))


def stored(folder: Path, printed: str) -> Any:
    """All numbers in the store `both`, by the ids of what they are of."""
    del printed
    found: dict[str, Any] = {}
    with Store(folder / "both", create=False) as store:
        for run_id in store.ids():
            found[run_id] = repr(store.record(run_id)), store.file(run_id, MASK)
            for measure_id, measured in store.measurements(run_id).items():
                found[measure_id] = repr((measured.score, measured.outcomes))
    return found


def _stripped(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _stripped(part) for key, part in value.items() if key not in NOT_A_RESULT}
    return [_stripped(part) for part in value] if isinstance(value, list) else value


# Scenes


def study(methods: Sequence[str], evaluate: Sequence[str], propagate: str, seed: int) -> str:
    """A study's file."""
    entries = {
        "model": "model",
        "data": ["python_docs", "random_tokens"],
        "method": list(methods),
        "target": [0.5],
        "seeds": [seed],
        "samples": 4,
        "length": 32,
        "dtype": "float32",
        "device": "cpu",
        "propagate": propagate,
        "evaluate": list(evaluate),
        "baseline": "random_tokens",
    }
    return "".join(f"{name}: {json.dumps(value)}\n" for name, value in entries.items())


def scenes(ground: Path, seed: int = 0) -> dict[str, Scene]:
    """Every scene, each in a folder of its own below `ground`; those of another `seed` have the
    same files of other runs.
    """
    found: dict[str, Scene] = {}
    for maker in MAKERS:
        scene = maker(_prepared(ground, maker.__name__), seed)
        found[scene.name] = scene
    return found


def _prepared(ground: Path, name: str) -> Path:
    folder = ground / name
    (folder / "cache").mkdir(parents=True)
    if not (ground / "model").exists():
        tiny_folder(ground / "model", num_hidden_layers=3)
        tiny_gguf(ground / "tiny.gguf")
    (folder / "model").symlink_to(ground / "model")
    (folder / "tiny.gguf").symlink_to(ground / "tiny.gguf")
    return folder


def _draw(seed: int) -> Words:
    return ("--seed", str(seed), *SMALL)


def _compression(verb: str, method: str, out: str, *more: str) -> Words:
    """The words of a job."""
    job = (verb, "model", "--method", method, "--data", "python_docs", "--out", out)
    return (*job, *more)


def _done(folder: Path, *every: Words) -> None:
    """Run commands that end well."""
    ended = commands(folder, every, lambda *_: None)
    assert ended.code == 0, ended


def checkpoint(folder: Path, seed: int) -> Scene:
    words = _compression("quantize", "gptq", "out", "--target", "w4g16", *_draw(seed))
    interrupted(folder, words, Checkpoint, "add", 2)
    return Scene("checkpoint", folder, [words], model_of)


def search(folder: Path, seed: int) -> Scene:
    words = _compression("prune", "greedy", "out", "--target", "0.67", *_draw(seed))
    interrupted(folder, words, Journal, "add", 1)
    return Scene("search", folder, [words], model_of)


def _larger_study(name: str, folder: Path, first: str, second: str) -> Scene:
    """A finished study, before one that asks more."""
    (folder / "one.yaml").write_text(first)
    (folder / "two.yaml").write_text(second)
    _done(folder, ("study", "one.yaml", "--out", "results"))
    again = [("study", "two.yaml", "--out", "results"), ("report", "results", "--format", "json")]
    return Scene(name, folder, again, printed_json)


def resumed_study(folder: Path, seed: int) -> Scene:
    first = study(["wanda"], [LOSS], "dense", seed)
    second = study(["wanda", "ria"], [LOSS], "dense", seed)
    return _larger_study("resumed_study", folder, first, second)


def kept_states(folder: Path, seed: int) -> Scene:
    first = study(["wanda", "sparsegpt"], [LOSS], "arrival", seed)
    second = study(["wanda", "sparsegpt"], [LOSS, MORE], "arrival", seed)
    return _larger_study("kept_states", folder, first, second)


def _studied(folder: Path, seed: int) -> None:
    (folder / "one.yaml").write_text(study(["wanda", "magnitude"], [LOSS], "dense", seed))
    _done(folder, ("study", "one.yaml", "--out", "results"))
    (folder / "one.yaml").unlink()
    shutil.rmtree(folder / "results" / "statistics")


def report(folder: Path, seed: int) -> Scene:
    _studied(folder, seed)
    return Scene("report", folder, [("report", "results", "--format", "json")], printed_json)


def packed(folder: Path, seed: int) -> Scene:
    scene = report(folder, seed)
    _done(folder, ("store", "pack", "results"))
    return replace(scene, name="packed")


def merged(folder: Path, seed: int) -> Scene:
    _studied(folder, seed)
    return Scene("merged", folder, [("store", "merge", "both", "results")], stored)


def mixed(folder: Path, seed: int) -> Scene:
    words = (
        "mix",
        "model",
        "--sources",
        "python_docs",
        "--sources",
        "arithmetic",
        "--tokens",
        "256",
        "--length",
        "32",
        "--seed",
        str(seed),
        "--dtype",
        "float32",
        "--json",
    )
    _done(folder, words)
    return Scene("mixed", folder, [words], printed_json)


def saved_model(folder: Path, seed: int) -> Scene:
    exports = ("--export", "compressed_tensors", "--export", "sparse")
    how = ("--target", "w4g16", *exports, *_draw(seed))
    _done(folder, _compression("quantize", "gptq", "out", *how))
    form = "out/compressed_tensors"
    again = [
        ("evaluate", place, "--task", LOSS, "--dtype", "float32", "--json")
        for place in ("out/sparse", form, "out")
    ]
    return Scene("saved_model", folder, again, printed_json)


def exported(folder: Path, seed: int) -> Scene:
    _done(folder, _compression("prune", "wanda", "pruned", "--export", "sparse", *_draw(seed)))
    words = ("export", "pruned/sparse", "--to", "hf", "--out", "out")
    return Scene("exported", folder, [words], model_of)


def finished(folder: Path, seed: int) -> Scene:
    words = _compression("prune", "wanda", "out", *_draw(seed))
    _done(folder, words)
    return Scene("finished", folder, [words], model_of)


def explained(folder: Path, seed: int) -> Scene:
    _done(folder, _compression("prune", "wanda", "out", *_draw(seed)))
    again = ("explain", "out", "--source", "python_docs", "--dtype", "float32", "--json")
    return Scene("explained", folder, [again], printed_json)


def imatrix(folder: Path, seed: int) -> Scene:
    words = (
        "imatrix",
        "tiny.gguf",
        "--data",
        "python_docs",
        "--samples",
        "3",
        "--length",
        "24",
        "--dtype",
        "float32",
        "--seed",
        str(seed),
    )
    _done(folder, (*words, "--out", "mine.gguf"))
    shutil.rmtree(folder / "cache")
    (folder / "cache").mkdir()
    return Scene("imatrix", folder, [("inspect", "mine.gguf", "--json")], printed_json)


def journal(folder: Path, seed: int) -> Scene:
    task = f"loss(source=python_docs, tokens={2048 + seed}, length=32)"
    words = ("evaluate", "model", "--task", task, "--dtype", "float32", "--json")
    interrupted(folder, words, Journal, "add", 1)
    return Scene("journal", folder, [words], printed_json)


def caches(folder: Path, seed: int) -> Scene:
    data = ("selfcal", "least_perplexity(source=python_docs)")
    rest = (
        "--method",
        "wanda",
        "--samples",
        "3",
        "--length",
        "24",
        "--dtype",
        "float32",
        "--seed",
        str(seed),
        "--json",
    )
    every = [
        ("prune", "tiny.gguf", "--data", text, "--out", f"out-{number}", *rest)
        for number, text in enumerate(data)
    ]
    _done(folder, *every)
    for number in range(len(data)):
        shutil.rmtree(folder / f"out-{number}")
    return Scene("caches", folder, every, models_of)


def compared(folder: Path, seed: int) -> Scene:
    task = f"agreement(source=python_docs, tokens={512 + seed}, length=32)"
    words = ("evaluate", "pruned", "--task", task, "--dtype", "float32", "--json")
    _done(folder, _compression("prune", "wanda", "pruned", *SMALL), words)
    assert list((folder / "cache" / "head_inputs").iterdir())
    return Scene("compared", folder, [words], printed_json)


def models_of(folder: Path, printed: str) -> Any:
    """The records of all models that were made."""
    del printed
    return [
        _stripped(json.loads(path.read_text()))
        for path in sorted(folder.glob("out-*/calibrant.json"))
    ]


MAKERS: Final = (
    checkpoint,
    search,
    resumed_study,
    kept_states,
    report,
    packed,
    merged,
    mixed,
    saved_model,
    exported,
    finished,
    explained,
    imatrix,
    journal,
    compared,
    caches,
)


# Harms


def candidates(scene: Scene) -> list[Path]:
    """Every file that lies in the folder of a scene, as paths in it; what the user wrote isn't
    ours to protect.
    """
    found: list[Path] = []
    for path in sorted(scene.folder.rglob("*")):
        inside = path.relative_to(scene.folder)
        given = inside.parts[0] in ("model", "tiny.gguf") or (
            inside.suffix == ".yaml" and len(inside.parts) == 1
        )
        if path.is_file() and not path.is_symlink() and path.stat().st_size and not given:
            found.append(inside)
    return found


def harm(chance: random.Random, place: Path, inside: Path, other: Path) -> str:
    """Harm one file of the folder `place`, and say how; `other` is the same folder of another
    run.
    """
    path = place / inside
    content = bytearray(path.read_bytes())
    way = chance.choice(("flip", "flip", "zero", "cut", "neighbour", "another run's"))
    if way == "flip":
        at = chance.randrange(len(content))
        content[at] ^= 1 << chance.randrange(8)
    elif way == "zero":
        begin = chance.randrange(len(content))
        length = min(chance.choice((1, 256, 4096)), len(content) - begin)
        content[begin : begin + length] = bytes(length)
    elif way == "cut":
        del content[chance.randrange(len(content)) :]
    else:
        where = place if way == "neighbour" else other
        content = bytearray(_another(chance, place, inside, where).read_bytes())
    path.write_bytes(content)
    return way


def _harmed(chance: random.Random, scene: Scene, place: Path, other: Path) -> tuple[Path, str]:
    """Harm one of the files so that it is another one, and say which and how."""
    while True:
        inside = chance.choice(candidates(scene))
        before = (place / inside).read_bytes()
        way = harm(chance, place, inside, other)
        if (place / inside).read_bytes() != before:
            return inside, way


def _another(chance: random.Random, place: Path, inside: Path, other: Path) -> Path:
    """A file of the same kind: of the same name elsewhere, or of the same ending beside it."""
    same = [
        path
        for path in sorted(other.rglob(inside.name))
        if path.is_file() and path != place / inside
    ]
    alike = [
        path
        for path in sorted((other / inside).parent.glob(f"*{inside.suffix}"))
        if path.is_file() and path != place / inside
    ]
    found = alike or same if other == place else same or alike
    return chance.choice(found) if found else place / inside


def case(
    number: int,
    every: Mapping[str, Scene],
    others: Mapping[str, Scene],
    whole: Mapping[str, Any],
    ground: Path,
) -> str | None:
    """Run one case and say what is wrong with how it ended; None if nothing is."""
    chance = random.Random(number)
    name = list(every)[number % len(every)]
    scene = every[name]
    here = ground / f"case-{number}"
    shutil.copytree(scene.folder, here, symlinks=True)
    try:
        inside, way = _harmed(chance, scene, here, others[name].folder)
        ended = commands(here, scene.again, scene.result)
    finally:
        shutil.rmtree(here, ignore_errors=True)
    about = f"case {number}, {name}: {inside} ({way})"
    if ended.fault:
        return f"{about}: {ended.fault}"
    if ended.code == 2:
        lines = [line for line in ended.said.splitlines() if line.strip()]
        return (
            None
            if lines and "Traceback" not in ended.said
            else f"{about}: refused without a word, or with a traceback: {ended.said[:300]}"
        )
    if ended.code != 0:
        return f"{about}: ended with {ended.code}: {ended.said[:300]}"
    # The database of another study is another store, and an importance matrix is what the user
    # names.
    if way == "another run's" and inside.name in (DATABASE, "mine.gguf"):
        return None
    if (
        name == "merged"
    ):  # what is damaged isn't taken, which is said, and what is taken is the same
        lacking = whole[name].keys() - ended.result.keys()
        if lacking and not ended.tells:
            return f"{about}: {len(lacking)} results are lacking, without a word"
        return None if ended.result.items() <= whole[name].items() else f"{about}: another result"
    if ended.result != whole[name]:
        return f"{about}: another result"
    return None
