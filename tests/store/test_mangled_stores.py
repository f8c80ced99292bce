"""A store of which one file is mangled: whatever reads it does so or says a sentence, and nothing that is there is changed."""

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from calibrant.durable import text_of_json
from calibrant.errors import CalibrantError
from calibrant.report import report
from calibrant.store import Store, merge, verify
from calibrant.study import Study, plan

from tests.study.small import asked, texts

CASES: Final = [pytest.param(seed, marks=pytest.mark.slow if seed >= 6 else ()) for seed in range(150)]
SHAPES: Final[list[Any]] = [None, True, -1, 0.5, 1e308, float("inf"), float("nan"), 2**70, "", "../..", "\x1b[2J", [], {}, [[]], {"a": None}]
BYTES: Final = [
    *(b"", b"null", b"[]", b"3", b'"text"', b"{}", b"NaN", b"\xff\xfe\x00", b'{"run": "\\ud800"}', b'{"float": []}', b"\x80\x04\x95" + b"\x00" * 20),
    b"{" * 100_000,
    b'{"cells": ' + b"[" * 500 + b"]" * 500 + b"}",
    b'{"n": ' + b"9" * 5000 + b"}",
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Path]:
    """A study of four runs with a pool, a contrast and a failure, and its store."""
    folder = tmp_path_factory.mktemp("whole")
    given = texts(folder / "texts")
    primary = [{"compare": "simple", "with": given["prose"]}]
    compared = {"baseline": given["prose"], "pools": {"simple": ["random_tokens"]}, "primary": primary, "seeds": [0]}
    evaluate = f"loss(source={given['verse']!r}, tokens=200, length=64)"
    study = asked(given, data=[given["prose"], "random_tokens"], methods=["wanda", "magnitude"], evaluate=evaluate, **compared)
    assert study.run(folder / "store").failures == {}
    with Store(folder / "store") as store:
        store.add_failure("sha256:" + "0" * 64, {"what": "x", "error": "y", "cell": ["m", "d", "wanda", "0.5", 0], "when": "then"})
        store.journal("sha256:1", {"spec": "loss"}).add({"item": [1, 2.5]})
    return study, folder / "store"


def parts_of(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in some JSON."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(path for key, part in inside for path in parts_of(part, (*at, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    """The same with something else in one place; with `...` nothing is there."""
    if not path:
        return by
    changed = dict(value) if isinstance(value, dict) else list(value)
    if len(path) == 1 and by is ...:
        del changed[path[0]]
    else:
        changed[path[0]] = replaced(changed[path[0]], path[1:], by)
    return changed


def mangled_json(content: bytes, chance: random.Random) -> bytes:
    value = json.loads(content)
    path = chance.choice([p for p in parts_of(value) if p] or [()])
    by = chance.choice([*SHAPES, ..., ...]) if path else None
    return text_of_json(replaced(value, path, by)).encode("utf-8", "surrogatepass")


def mangle(path: Path, chance: random.Random) -> str:
    """Do something to a file, and say what."""
    content, packed = path.read_bytes(), path.suffix == ".gz"
    ways = ["bytes", "cut", "bits", "fifo", "device", "folder", "gone", "loop"] + (["json"] * 8 if path.suffix in (".json", ".gz") else [])
    way = chance.choice(ways + ["bomb"] * packed)
    match way:
        case "json":
            made = mangled_json(gzip.decompress(content) if packed else content, chance)
            path.write_bytes(gzip.compress(made) if packed else made)
        case "bytes":
            made = chance.choice(BYTES)
            path.write_bytes(gzip.compress(made) if packed and chance.random() < 0.5 else made)
        case "cut":
            path.write_bytes(content[: chance.randrange(len(content) + 1)])
        case "bits":
            flipped = bytearray(content or b"x")
            for _ in range(chance.randint(1, 8)):
                flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
            path.write_bytes(flipped)
        case "bomb":
            path.write_bytes(gzip.compress(b"[" + b"0," * 2**25, compresslevel=1))
        case _:
            path.unlink()
            match way:
                case "fifo":
                    os.mkfifo(path)
                case "device":
                    path.symlink_to("/dev/zero")
                case "folder":
                    path.mkdir()
                case "loop":
                    path.symlink_to(path.name)
                case _:
                    pass
    return way


def state(folder: Path) -> dict[str, Any]:
    """Everything in a store: files by their bytes, the rest by its kind."""
    there = (p for p in folder.rglob("*") if ".unfinished" not in p.parts and ".claims" not in p.parts)
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else os.lstat(p).st_mode for p in there}


def complaint(act: Callable[[], object]) -> str:
    """What is said; nothing where all went well. Anything but a sentence of ours fails the test."""
    try:
        act()
    except CalibrantError as error:
        text = str(error)
        assert text, "a complaint says something"
        assert "\n" not in text, text
        assert len(text) < 1500, text
        return text
    return ""


def looked_at(store: Path, whole: Path, folder: Path) -> list[Callable[[], object]]:
    """What must not change the store, and then a merge into it."""
    return [
        lambda: report(store).write_html(folder / "page.html"),
        lambda: verify(store),
        lambda: Store(store, create=False).cells(),
        lambda: merge(folder / "merged", [store]),
        lambda: merge(folder / "both", [whole, store]),
    ]


@pytest.mark.parametrize("seed", CASES)
def test_it_is_read_or_refused_in_a_sentence(whole: tuple[Study, Path], tmp_path: Path, seed: int):
    chance, store = random.Random(seed), tmp_path / "store"
    shutil.copytree(whole[1], store)
    files = sorted(p for p in store.rglob("*") if p.is_file() and ".unfinished" not in p.parts and p.name != "lock" and "statistics" not in p.parts)
    kinds = sorted({p.name if p.parent.name != "failures" else "failure" for p in files})
    kind = kinds[seed % len(kinds)]
    path = chance.choice([p for p in files if kind in (p.name, "failure" if p.parent.name == "failures" else "")])
    way = mangle(path, chance)
    before = state(store)
    for act in looked_at(store, whole[1], tmp_path):
        complaint(act)
        assert state(store) == before, f"{way} of {path.relative_to(store)}"
    complaint(lambda: merge(store, [whole[1]]))
    after = state(store)
    there = {name for name, content in before.items() if isinstance(content, bytes) and name != "index.json" and name[:8] != "failures"}
    lost = {name for name in there if after.get(name) != before[name]}
    assert not lost, f"{way} of {path.relative_to(store)}"


def test_the_store_itself_is_read_without_a_word(whole: tuple[Study, Path], tmp_path: Path):
    """Else everything above might be refused for another reason."""
    assert [complaint(act) for act in looked_at(whole[1], whole[1], tmp_path)] == [""] * 5
    assert (tmp_path / "page.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("index.json", "[" * 100_000),
        ("study.yaml", "\ud800"),
        ("calibrant-store.json", "null"),
        ("runs/*/record.json", "3"),
        ("runs/*/mask.npz", "PK"),
        ("failures/*.json", "[]"),
    ],
)
def test_a_study_goes_on_or_says_why_not(whole: tuple[Study, Path], tmp_path: Path, name: str, content: str):
    study, store = whole[0], tmp_path / "store"
    shutil.copytree(whole[1], store)
    path = next(store.glob(name))
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    shutil.rmtree(next(store.glob("runs/*/mask.npz")).parent / "measures")  # so that there is something to do, from a mask
    before = {k: v for k, v in state(store).items() if k.startswith("runs/")}
    complaint(lambda: plan(study, store, probed=False))
    complaint(lambda: study.run(store))
    complaint(lambda: study.run(store, retry=True))
    after = state(store)
    changed = {name for name, what in before.items() if after.get(name) != what}
    assert changed <= {str(path.relative_to(store))}, "what was there stays as it was; a damaged mask may be written again"
    for failure in store.glob("failures/*.json"):
        assert "Traceback" not in failure.read_text() or "DataError" in failure.read_text(), failure.read_text()
