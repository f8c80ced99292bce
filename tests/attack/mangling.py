"""Good input made bad, by chance and from a seed: texts, JSON, bytes. What comes out may still
be good; whoever uses it must cope with both.
"""

import json
import random
from typing import Any, Final

ODD: Final = (
    "\x00", "\x07", "\x1b[2J", "\u202e", "\ud800", "\ufeff", "\u2028", "é", "数", "🙂", "'", '"',
    "\\", "\n", "\t", "(", ")", "[", "{", "=", ",", ":", "@", "*", "+", "-", ".", "/", "~", "..",
    "%s", "{}", "$HOME", "<b>", "9" * 5000, "1e400", "1e999999999", "nan", "-inf", "٣", "0x10",
    "None",
)  # fmt: skip
"""Pieces that a text is mended with."""

HOSTILE: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**12, 0.5, float("nan"), float("inf"), -1e308,
    "", " ", "x", "null", "\ud800", "\x1b[31m", "../up", "/dev/zero", "~nouser", "x" * 100_000,
    [], {}, [None], [[]], {"": None}, [1, "a", None], {"a": {"b": {"c": []}}}, 10**400,
)  # fmt: skip
"""Values that stand where others belong."""


def text(chance: random.Random, good: str) -> str:
    """One to three changes to a text: something left out, doubled, swapped, put in, or the whole
    of it repeated or wrapped many times.
    """
    made = good
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        at, to = sorted(chance.randrange(len(made) + 1) for _ in range(2))
        made = chance.choice(
            (
                made[:at] + made[to:],
                made[:to] + made[at:],
                made[:at] + chance.choice(ODD) + made[at:],
                made[:at] + chance.choice(ODD) + made[to:],
                made[to:] + made[:to],
                made[:at] + made[at:to][::-1] + made[to:],
            )
        )
    if chance.random() < 0.04:
        made = chance.choice(
            (
                made * 300,
                "(" * 500 + made,
                f"{made} + " * 400 + made,
                made.replace("(", "(" * 90),
                "[" * 5000,
            )
        )
    return made


def value(chance: random.Random, good: Any) -> Any:
    """A copy of plain data in which something is another value, is missing, is doubled, or has
    moved a level.
    """
    places = list(_places(good))
    path = chance.choice(places)
    if not path:
        return chance.choice(HOSTILE)
    copy = json.loads(json.dumps(good))
    parent: Any = copy
    for step in path[:-1]:
        parent = parent[step]
    match chance.randrange(5):
        case 0 if isinstance(parent, dict):
            del parent[path[-1]]
        case 1 if isinstance(parent, dict):
            parent[text(chance, str(path[-1]))] = parent[path[-1]]
        case 2:
            parent[path[-1]] = [parent[path[-1]]]
        case 3 if isinstance(parent[path[-1]], str):
            parent[path[-1]] = text(chance, parent[path[-1]])
        case 3 if isinstance(parent[path[-1]], int | float) and not isinstance(
            parent[path[-1]], bool
        ):
            parent[path[-1]] = chance.choice(
                (
                    -1,
                    0,
                    1,
                    parent[path[-1]] * 1000,
                    parent[path[-1]] + 0.5,
                    str(parent[path[-1]]),
                    10**12,
                )
            )
        case _:
            parent[path[-1]] = chance.choice(HOSTILE)
    return copy


def as_json(chance: random.Random, good: Any) -> bytes:
    """JSON of plain data, mangled as data or as text."""
    if chance.random() < 0.7:
        return json.dumps(value(chance, good), ensure_ascii=chance.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    made = json.dumps(good)
    if chance.random() < 0.2:
        return (
            "[" * 100_000 if chance.random() < 0.5 else made.replace(": ", ": " + "9" * 6000, 1)
        ).encode()
    return text(chance, made).encode("utf-8", "surrogatepass")


def data(chance: random.Random, good: bytes) -> bytes:
    """A file's bytes: cut, flipped, with zeros in it, with something doubled or put in, with a
    size at its beginning that is another.
    """
    made = bytearray(good)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not made:
            break
        at = chance.randrange(min(len(made), 4096) if chance.random() < 0.7 else len(made))
        size = min(chance.choice((1, 2, 8, 64, 512)), len(made) - at)
        match chance.randrange(6):
            case 0:
                del made[at:]
            case 1:
                made[at] ^= 1 << chance.randrange(8)
            case 2:
                made[at : at + size] = bytes(size)
            case 3:
                made[at:at] = made[at : at + size]
            case 4:
                made[at : at + size] = chance.randbytes(size)
            case _:
                made[at : at + 8] = chance.choice((0, 1, 2**31, 2**63 - 1, 2**64 - 1)).to_bytes(
                    8, "little"
                )
    return bytes(made)


def _places(whole: Any, path: tuple[Any, ...] = ()) -> "list[tuple[Any, ...]]":
    found = [path]
    children = (
        whole.items()
        if isinstance(whole, dict)
        else enumerate(whole)
        if isinstance(whole, list)
        else ()
    )
    for key, child in children:
        found += _places(child, (*path, key))
    return found
