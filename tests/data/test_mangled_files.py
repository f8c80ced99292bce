"""Whatever is in a file, it is read or refused in a sentence: a seeded stream of files that
nobody would write on purpose.
"""

import json
import random
from pathlib import Path
from typing import Any, Final

import pyarrow
import pytest

from calibrant.data.user_file import UserFile
from calibrant.errors import DataError

from tests.data.written import packed, tabled
from tests.effort import quick

EACH: Final = 11
"""Files of each ending."""
ENDINGS: Final = (
    "jsonl",
    "json",
    "csv",
    "tsv",
    "txt",
    "jsonl.gz",
    "csv.gz",
    "jsonl.zst",
    "parquet",
    "arrow",
)
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
    "ü" * 300,
)
TEXTS: Final = (
    "",
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
NUMBERS: Final = (
    0,
    -1,
    1.5,
    10**30,
    10**3000,
    float("inf"),
    float("-inf"),
    float("nan"),
    2**63,
    True,
)
LINES: Final = (
    "",
    "null",
    "[]",
    "{",
    '{"text": 1e400}',
    '{"text":' + "[" * 5_000,
    '{"a": 1, "a": 2}',
    '{"answer": ' + "9" * 5_000 + "}",
    "\ud800",
)


def value(rng: random.Random, depth: int = 3) -> Any:
    """Anything that JSON can hold, and some of what it can't."""
    match rng.randrange(7 if depth else 3):
        case 0:
            return rng.choice(TEXTS)
        case 1:
            return rng.choice(NUMBERS)
        case 2:
            return rng.choice([None, "\ud800", "half \udfff surrogate"])
        case 3 | 4:
            return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
        case 5:
            return {
                rng.choice(["role", "content", "type", "text", "label"]): value(rng, depth - 1)
                for _ in range(rng.randrange(4))
            }
        case _:
            return [
                {"role": rng.choice(["user", "assistant", "", 5]), "content": value(rng, depth - 1)}
                for _ in range(rng.randrange(3))
            ]


def records(rng: random.Random) -> list[dict[str, Any]]:
    found = []
    for _ in range(rng.randrange(12)):
        plain = {rng.choice(["text", "question"]): "plain words"} if rng.random() < 0.8 else {}
        others = {
            rng.choice(NAMES[2:]): value(rng) if rng.random() < 0.3 else rng.choice(TEXTS)
            for _ in range(rng.randrange(5))
        }
        found.append(plain | others)
    return found


def lines(rng: random.Random) -> list[str]:
    """Lines of JSON, of which some are none."""
    found = [json.dumps(record, ensure_ascii=rng.random() < 0.8) for record in records(rng)]
    found += rng.sample(LINES, rng.randrange(3)) if rng.random() < 0.3 else []
    return rng.sample(found, len(found))


def cells(rng: random.Random, between: str) -> str:
    """Quoted cells, not always as many as there are columns."""
    names = ["text", *rng.sample(NAMES[1:], rng.randrange(3))]
    rows = [names]
    for _ in range(rng.randrange(8)):
        rows.append([rng.choice(TEXTS) for _ in names + ["x"] * (rng.random() < 0.05)])
    quoted = [between.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    return rng.choice(["\n", "\r\n", "\r"]).join(quoted)


def table(rng: random.Random) -> Any:
    """Texts, and beside them columns of odd types and names."""
    numbers = pyarrow.array([rng.randrange(-(2**62), 2**62) for _ in range(4)])
    texts = pyarrow.array([rng.choice(TEXTS) for _ in range(4)])
    odd = [
        texts,
        numbers.cast(
            pyarrow.timestamp(
                rng.choice(["s", "us", "ns"]),
                tz=rng.choice([None, "UTC", "Mars/Olympus", "+99:99"]),
            )
        ),
        numbers.cast(pyarrow.duration(rng.choice(["s", "ns"]))),
        pyarrow.array([b"\xff\xfe"] * 4, pyarrow.binary()),
        pyarrow.StructArray.from_arrays(
            [numbers, texts], rng.choice([["a", "a"], ["role", "content"], ["", ""]])
        ),
        pyarrow.array([[("k", 1), ("k", 2)]] * 4, pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        texts.dictionary_encode(),
        pyarrow.array([float("nan"), float("inf"), 1e308, 0.0]),
    ]
    names = rng.sample(NAMES[1:], rng.randrange(3))
    return pyarrow.Table.from_arrays(
        [pyarrow.array(["plain words"] * 4), *rng.sample(odd, len(names))], names=["text", *names]
    )


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The same bytes, most often; else cut short, with one flipped, with some put in, or twice."""
    at = rng.randrange(len(content) + 1)
    ways = [
        content[:at],
        content[:at] + rng.randbytes(1) + content[at + 1 :],
        content[:at] + rng.randbytes(30) + content[at:],
        content * 2,
    ]
    return rng.choice(ways) if rng.random() < 0.4 else content


def mangled(rng: random.Random, path: Path) -> None:
    """Write what this chance makes of a file of this ending."""
    kind = path.suffixes[0]
    if kind in (".parquet", ".arrow"):
        try:
            tabled(path, table(rng), stream=rng.random() < 0.5)
        except (pyarrow.ArrowException, ValueError):
            path.write_bytes(rng.randbytes(200))  # this writer refuses what others may write
    elif kind in (".jsonl", ".json"):
        text = "[" + ",".join(lines(rng)) + "]" if kind == ".json" else "\n".join(lines(rng))
        packed(path, damaged(rng, text.encode("utf-8", "surrogatepass")))
    else:
        packed(path, damaged(rng, cells(rng, "\t" if kind == ".tsv" else ",").encode()))
    if path.suffix != kind or kind in (".parquet", ".arrow"):
        path.write_bytes(damaged(rng, path.read_bytes()))


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_is_read_or_refused_in_a_sentence(tmp_path: Path, ending: str):
    sentences: list[str] = []
    for seed in range(EACH):
        path = tmp_path / f"{seed}.{ending}"
        mangled(random.Random(f"{ending} {seed}"), path)
        sentence = ""
        with quick():
            try:
                UserFile(str(path)).size()
            except DataError as error:
                sentence = str(error)
        assert not sentence or path.name in sentence, seed
        assert "\x1b" not in sentence, seed
        sentence.encode()
        sentences.append(sentence)
    assert "" in sentences, "a generator that makes nothing readable shows little"
    assert any(sentences) or ending == "txt"
