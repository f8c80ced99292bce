"""A tiny model whose files are mangled in seeded ways either opens or is refused as input.
Nothing else comes of it, and nothing hangs.
"""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from _pytest.mark import ParameterSet

from calibrant.errors import InputError
from calibrant.models import open_model, open_tokenizer

from tests.effort import quick

NUMBERS: Final = (0, -1, 1, 7, 2**31, 10**9, 10**30, 0.5, float("inf"), float("nan"))
STRINGS: Final = ("", "x", "../outside", "float7", "\x1b[2J\n\u202e", "é" * 10_000)
VALUES: Final[tuple[Any, ...]] = (
    None,
    True,
    *NUMBERS,
    *STRINGS,
    [],
    {},
    [1, "a"],
    {"a": {"b": [None]}},
)
TEXTS: Final = (
    "",
    "null",
    "[]",
    "0",
    '"text"',
    "{",
    '{"a": NaN}',
    "[" * 50_000,
    '{"a":' * 500,
    "9" * 6000,
    "\ufeff{}",
    "\x00",
)


@pytest.fixture(scope="module")
def indexed(sound: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index, so that there is one to mangle."""
    folder = Path(shutil.copytree(sound, tmp_path_factory.mktemp("indexed") / "model"))
    names = json.loads(_header(folder / "model.safetensors"))
    (folder / "model.safetensors.index.json").write_text(
        json.dumps(
            {"weight_map": dict.fromkeys(names.keys() - {"__metadata__"}, "model.safetensors")}
        )
    )
    return folder


def _header(path: Path) -> bytes:
    content = path.read_bytes()
    return content[8 : 8 + struct.unpack("<Q", content[:8])[0]]


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in plain data, with each of its keys or positions."""
    inner = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    return [(value, key) for key, _ in inner] + [
        place for _, each in inner for place in _places(each)
    ]


def mangled_json(text: str, chance: random.Random) -> str:
    """The text with a few values changed, taken out or put elsewhere; or something else
    altogether.
    """
    if chance.random() < 0.15:
        return chance.choice(TEXTS)
    if chance.random() < 0.1:
        return text[: chance.randrange(len(text))]
    value = json.loads(text)
    for _ in range(chance.randint(1, 3)):
        container, key = chance.choice(_places(value) or [([None], 0)])
        if key not in (container if isinstance(container, dict) else range(len(container))):
            continue
        if isinstance(container, dict) and chance.random() < 0.25:
            container[str(chance.choice(VALUES))] = container.pop(key)
        elif chance.random() < 0.2:
            del container[key]
        else:
            container[key] = chance.choice(VALUES)
    return json.dumps(value)


def of_json(name: str) -> Callable[[Path, random.Random], object]:
    def mangle(folder: Path, chance: random.Random) -> None:
        path = folder / name
        path.write_text(mangled_json(path.read_text(), chance))

    return mangle


def of_header(folder: Path, chance: random.Random) -> None:
    """A safetensors file with another header before the same numbers, or with another length."""
    path = folder / "model.safetensors"
    content, header = path.read_bytes(), _header(path)
    other = mangled_json(header.decode(), chance).encode("utf-8", "replace")
    length = chance.choice([0, 1, 2**40, 2**63]) if chance.random() < 0.15 else len(other)
    path.write_bytes(struct.pack("<Q", length) + other + content[8 + len(header) :])


def of_bytes(path: Path, chance: random.Random) -> None:
    """Some numbers in the first part of a file, where its header is, or its end cut off."""
    content = bytearray(path.read_bytes())
    for _ in range(chance.randint(1, 4)):
        at = chance.choice(
            [4, 8, 16, 24, chance.randrange(2000), chance.randrange(len(content) // 2)]
        )
        code, value = chance.choice(
            [
                ("B", chance.randrange(256)),
                ("I", chance.choice([0, 9, 2**31])),
                ("Q", chance.choice([0, 1000, 2**40, 2**62])),
            ]
        )
        struct.pack_into(f"<{code}", content, at, value)
    path.write_bytes(
        content[: chance.randrange(len(content))] if chance.random() < 0.1 else content
    )


def opens_or_is_refused(opening: Callable[[str], object], ref: Path) -> bool:
    said = ""
    try:
        with quick():
            opening(str(ref))
    except InputError as error:
        said = str(error)
    assert "\x1b" not in said, "what was given could act on a terminal"
    return not said


MANGLED: Final[dict[str, Callable[[Path, random.Random], object]]] = {
    "configuration": of_json("config.json"),
    "index": of_json("model.safetensors.index.json"),
    "header": of_header,
    "tokenizer": of_json("tokenizer.json"),
    "settings": of_json("tokenizer_config.json"),
    "generation": of_json("generation_config.json"),
}


def seeds(few: int, most: int) -> list[ParameterSet]:
    """A few are tried every time; the others are slow."""
    return [
        pytest.param(range(few), id="few"),
        pytest.param(range(few, most), id="more", marks=pytest.mark.slow),
    ]


@pytest.mark.parametrize("tried", seeds(8, 25))
@pytest.mark.parametrize("which", MANGLED)
def test_a_mangled_folder(indexed: Path, tmp_path: Path, which: str, tried: range):
    refused = 0
    for seed in tried:
        folder = Path(shutil.copytree(indexed, tmp_path / str(seed)))
        MANGLED[which](folder, random.Random(f"{which} {seed}"))
        refused += not opens_or_is_refused(lambda ref: open_model(ref, "float32", "cpu"), folder)
        opens_or_is_refused(open_tokenizer, folder)
    assert refused > (0 if which in ("settings", "generation") else len(tried) // 5), (
        "it is mangled so little that the test tests nothing"
    )


def test_a_mangled_gguf(gguf_file: Path, tmp_path: Path):
    refused = 0
    for seed in range(50):
        path = Path(shutil.copy(gguf_file, tmp_path / f"{seed}.gguf"))
        of_bytes(path, random.Random(seed))
        refused += not opens_or_is_refused(lambda ref: open_model(ref, "float32", "cpu"), path)
        opens_or_is_refused(open_tokenizer, path)
    assert refused > 10
