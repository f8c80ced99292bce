"""Whatever is in a file, it is read or refused in a sentence: a seeded stream of files that nobody would write on purpose."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pyarrow
import pyarrow.parquet
import pytest

from calibrant.data.user_file import UserFile
from calibrant.errors import DataError

from tests.effort import quick

CASES: Final = 110
ENDINGS: Final = ("jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "csv.gz", "jsonl.zst", "parquet", "arrow")

NAMES: Final = (
    "text",
    "question",
    "answer",
    "choices",
    "turns",
    "messages",
    "rationale",
    "",
    " ",
    "a\nb",
    "\x1b[2J",
    "‮text",
    "text ",
    "0",
    "ü" * 300,
)
TEXTS: Final = (
    "",
    " ",
    "plain words",
    "\x00\x07\x1b[31m",
    "‮back",
    "é\u0301",
    "😀",
    "a\r\nb",
    '"',
    ",;\t",
    "NaN",
    "word " * 2_000,
    "\ufeff",
    "\u2028",
)
NUMBERS: Final = (0, -1, 1.5, 10**30, 10**3000, float("inf"), float("-inf"), float("nan"), 2**63, True)


def value(rng: random.Random, depth: int = 3) -> Any:
    """Anything that JSON can hold, and some of what it can't."""
    kind = rng.randrange(8 if depth else 4)
    match kind:
        case 0 | 1:
            return rng.choice(TEXTS)
        case 2:
            return rng.choice(NUMBERS)
        case 3:
            return rng.choice([None, "\ud800", "half \udfff surrogate"])
        case 4 | 5:
            return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
        case 6:
            return {rng.choice(["role", "content", "type", "text", "label", "from", "value"]): value(rng, depth - 1) for _ in range(rng.randrange(4))}
        case _:
            return [{"role": rng.choice(["user", "assistant", "", "\ud800", 5]), "content": value(rng, depth - 1)} for _ in range(rng.randrange(3))]


def record(rng: random.Random) -> dict[str, Any]:
    plain = {rng.choice(["text", "question"]): "plain words"} if rng.random() < 0.8 else {}
    return plain | {rng.choice(NAMES[2:]): value(rng) if rng.random() < 0.3 else rng.choice(TEXTS) for _ in range(rng.randrange(5))}


def lines(rng: random.Random) -> bytes:
    """Lines of JSON, of which some are none."""
    rows = [json.dumps(record(rng), ensure_ascii=rng.random() < 0.8) for _ in range(rng.randrange(12))]
    odd = [
        "",
        "null",
        "[]",
        "{",
        '{"text": 1e400}',
        '{"text":' + "[" * rng.choice([10, 5_000]),
        '{"a": 1, "a": 2}',
        '{"answer": ' + "9" * 5_000 + "}",
        "\ud800",
    ]
    rows += rng.sample(odd, rng.randrange(3)) if rng.random() < 0.3 else []
    return "\n".join(rng.sample(rows, len(rows))).encode("utf-8", "surrogatepass")


def table(rng: random.Random) -> bytes:
    """Cells between commas or tabs, not always as many as there are columns."""
    between = rng.choice([",", "\t"])
    names = ["text", *rng.sample(NAMES[1:], rng.randrange(3))] if rng.random() < 0.7 else [rng.choice(NAMES) for _ in range(rng.randrange(1, 6))]
    rows = [[rng.choice(TEXTS) for _ in names + ["x"] * (rng.random() < 0.05)] for _ in range(rng.randrange(8))]
    quoted = [between.join('"' + cell.replace('"', '""') + '"' if rng.random() < 0.95 else cell for cell in row) for row in [names, *rows]]
    return rng.choice(["\n", "\r\n", "\r"]).join(quoted).encode("utf-8", "surrogatepass")


def column(rng: random.Random, count: int) -> Any:
    """A column of any type that Arrow knows."""
    numbers = pyarrow.array([rng.randrange(-(2**62), 2**62) for _ in range(count)])
    small = pyarrow.array([rng.randrange(-(2**31), 2**31) for _ in range(count)], pyarrow.int32())
    texts = pyarrow.array([rng.choice(TEXTS) for _ in range(count)])
    kinds: list[Callable[[], Any]] = [
        lambda: texts,
        lambda: texts,
        lambda: numbers.cast(pyarrow.timestamp(rng.choice(["s", "us", "ns"]), tz=rng.choice([None, "UTC", "Mars/Olympus", "+99:99"]))),
        lambda: numbers.cast(pyarrow.duration(rng.choice(["s", "ns"]))),
        lambda: small.cast(pyarrow.date32()),
        lambda: pyarrow.array([None] * count, pyarrow.null()),
        lambda: pyarrow.array([b"\xff\xfe"] * count, pyarrow.binary()),
        lambda: pyarrow.Array.from_buffers(
            pyarrow.string(),
            count,
            [
                None,
                pyarrow.py_buffer(b"\0\0\0\0" + b"".join((2 * (i + 1)).to_bytes(4, "little") for i in range(count))),
                pyarrow.py_buffer(b"\xff\xfe" * count),
            ],
        ),
        lambda: pyarrow.StructArray.from_arrays([numbers, texts], rng.choice([["a", "a"], ["role", "content"], ["", ""]])),
        lambda: pyarrow.array([[{"role": "user", "content": rng.choice(TEXTS)}]] * count),
        lambda: pyarrow.array([[("k", 1), ("k", 2)]] * count, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        lambda: texts.dictionary_encode(),
        lambda: pyarrow.array([float("nan"), float("inf"), 1e308][:count] + [0.0] * max(0, count - 3)),
    ]
    return rng.choice(kinds)()


def columns(rng: random.Random, path: Path) -> None:
    count = rng.randrange(1, 8)
    names = rng.sample(NAMES[1:], rng.randrange(3)) if rng.random() < 0.8 else [rng.choice(NAMES) for _ in range(rng.randrange(1, 5))]
    plain = pyarrow.array(["plain words"] * count)
    made = pyarrow.Table.from_arrays([plain, *(column(rng, count) for _ in names)], names=["text", *names])
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(made, path)
    else:
        make = rng.choice([pyarrow.ipc.new_file, pyarrow.ipc.new_stream])
        with pyarrow.OSFile(str(path), "wb") as file, make(file, made.schema) as writer:
            writer.write_table(made)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The same bytes, most often; else cut short, with some flipped, with some put in, or twice."""
    at = rng.randrange(len(content) + 1)
    match rng.randrange(12):
        case 0:
            return content[:at]
        case 1 | 2:
            flipped = bytearray(content)
            for _ in range(rng.randrange(1, 6)):
                if flipped:
                    flipped[rng.randrange(len(flipped))] = rng.randrange(256)
            return bytes(flipped)
        case 3:
            return content[:at] + rng.randbytes(rng.randrange(1, 50)) + content[at:]
        case 4:
            return content + content
        case _:
            return content


def mangled(seed: int, folder: Path) -> Path:
    """A file that this number stands for."""
    rng = random.Random(seed)
    ending = ENDINGS[seed % len(ENDINGS)]
    path = folder / f"{seed}.{ending}"
    if ending in ("parquet", "arrow"):
        try:
            columns(rng, path)
        except (pyarrow.ArrowException, ValueError):
            path.write_bytes(rng.randbytes(200))  # this writer refuses what others may write
        path.write_bytes(damaged(rng, path.read_bytes()))
        return path
    inner = ending.partition(".")[0]
    content = table(rng) if inner in ("csv", "tsv", "txt") else lines(rng)
    if inner == "json":
        content = b"[" + content.replace(b"\n", b",") + b"]"
    if rng.random() < 0.3:
        content = damaged(rng, content)
    if ending.endswith(".gz"):
        content = damaged(rng, gzip.compress(content))
    elif ending.endswith(".zst"):
        content = damaged(rng, pyarrow.compress(content, codec="zstd", asbytes=True))
    path.write_bytes(content)
    return path


def outcome(path: Path) -> str:
    """What is said against a file; empty if it is read."""
    try:
        UserFile(str(path)).size()
    except DataError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_read_or_refused_in_a_sentence(tmp_path: Path, ending: str):
    sentences: list[str] = []
    for seed in range(ENDINGS.index(ending), CASES, len(ENDINGS)):
        path = mangled(seed, tmp_path)
        with quick():
            sentence = outcome(path)
        assert not sentence or path.name in sentence, seed
        assert "\x1b" not in sentence, seed
        sentence.encode()
        sentences.append(sentence)
    assert "" in sentences, "a generator that makes nothing readable shows little"
    assert any(sentences) or ending == "txt"
