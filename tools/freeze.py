"""Writes what must not change into `tests/frozen`, where tests compare it with what the code gives:
python -m tools.freeze [--revision REASON]

Each file there maps names to what the code gave for them. A name that is new is added. A file in
which something would be another thing now, or would be gone, isn't overwritten, and then no other
file is either: `--revision REASON` does it, and writes the reason, the date and the file's name
into `tests/frozen/README.md`.
"""

import argparse
import json
import lzma
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, final

FROZEN: Final = Path(__file__).parents[1] / "tests/frozen"
README: Final = "README.md"
EXACT: Final = 0.0
NEARLY: Final = 1e-9
"""For numbers that another processor adds in another order."""
ROUGHLY: Final = 1e-4
"""For sums of numbers that went through a model, in float32."""

REFUSAL: Final = "frozen, and would be another thing now; say why with --revision REASON"
WITH_REASON: Final = (
    "put back what changed or is gone by mistake, else run python -m tools.freeze --revision REASON"
)
SHOWN: Final = 5
"""Names in a message at most."""

Entries = Mapping[str, Any]


@final
@dataclass(frozen=True)
class Frozen:
    """A file of what must not change: its name, what the code gives now, and by which share numbers
    that aren't whole may differ."""

    name: str
    now: Callable[[], Iterable[tuple[str, Any]]]
    tolerance: float = EXACT


@final
@dataclass(frozen=True)
class Difference:
    """What differs between a frozen file and the code: names that are other things now, that are
    gone, and that are new."""

    changed: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    @property
    def breaks(self) -> bool:
        """Whether something isn't what it was."""
        return bool(self.changed or self.gone)

    def __bool__(self) -> bool:
        return bool(self.changed or self.gone or self.new)

    def __str__(self) -> str:
        parts = {"changed": self.changed, "gone": self.gone, "new": self.new}
        told = list[str]()
        for what, names in parts.items():
            if names:
                first = ", ".join(map(repr, names[:SHOWN]))
                told.append(f"{what}: {first} ({len(names)})")
        return "; ".join(told)


def files() -> tuple[Frozen, ...]:
    """Return every file with what makes it. What opens models is imported here, so that reading the
    files imports nothing."""
    from tests.frozen import comparison, exports, masks, requests, stores, texts

    return (
        Frozen("stores.json", stores.sums),
        Frozen("ids.json.xz", stores.digits),
        Frozen("requests.json", requests.ids),
        Frozen("masks.json", masks.numbers, ROUGHLY),
        Frozen("exports.json", exports.written, ROUGHLY),
        Frozen("comparison.json.xz", comparison.told, NEARLY),
        Frozen("texts.json", texts.read),
    )


def read(name: str, folder: Path = FROZEN) -> dict[str, Any]:
    """Return what a frozen file holds; nothing if it isn't there yet."""
    path = folder / name
    if not path.exists():
        return {}
    content = path.read_bytes()
    if path.suffix == ".xz":
        content = lzma.decompress(content)
    return json.loads(content)


def difference(before: Entries, now: Entries, tolerance: float = EXACT) -> Difference:
    """Return what differs between what was frozen and what the code gives now."""
    both = [name for name in before if name in now]
    changed = tuple(name for name in both if not same(before[name], now[name], tolerance))
    gone = tuple(name for name in before if name not in now)
    new = tuple(name for name in now if name not in before)
    return Difference(changed, gone, new)


def same(one: Any, other: Any, tolerance: float = EXACT) -> bool:
    """Return whether two pieces of plain data are the same, but for so large a share of their
    numbers that aren't whole."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance * 1e-3)
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return False
        return all(same(one[name], other[name], tolerance) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        if len(one) != len(other):
            return False
        return all(same(*pair, tolerance) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


def freeze(frozen: Sequence[Frozen], folder: Path = FROZEN, reason: str = "") -> list[str]:
    """Write the files that differ from what the code gives, and return a line for each.

    Without a `reason` a file in which something changed or is gone isn't written, nor is any other:
    then `SystemExit` says which and how.
    """
    made = {file.name: _plain(file.now()) for file in frozen}
    before = {file.name: read(file.name, folder) for file in frozen}
    found = dict[str, Difference]()
    for file in frozen:
        found[file.name] = difference(before[file.name], made[file.name], file.tolerance)
    broken = [f"{name}: {differs}" for name, differs in found.items() if differs.breaks]
    if broken and not reason:
        raise SystemExit("\n".join([REFUSAL, *broken]))
    told = list[str]()
    for name, differs in found.items():
        if not differs:
            continue
        kept = made[name]
        if not differs.breaks:
            # Numbers that differ a little stay the ones that were frozen first.
            kept = {**made[name], **before[name]}
        _write(folder / name, kept)
        told.append(f"{name}: {differs}")
        if differs.breaks:
            _write_reason(folder / README, name, reason)
    return told


def add(frozen: Sequence[Frozen], folder: Path = FROZEN) -> list[str]:
    """Write names that are new; what was frozen stays, for the tests to tell.

    Return a sentence for each file whose new names aren't written, because something else in it
    changed or is gone. New numbers of a class whose revision was raised look like that: the old
    ones are gone, and a reason is wanted.
    """
    held_back = list[str]()
    for file in frozen:
        before = read(file.name, folder)
        made = _plain(file.now())
        differs = difference(before, made, file.tolerance)
        if not differs.new:
            continue
        if differs.breaks:
            held_back.append(f"{file.name}: {differs}; nothing of it is added: {WITH_REASON}")
            continue
        new = {name: made[name] for name in differs.new}
        _write(folder / file.name, {**before, **new})
    return held_back


def _plain(entries: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Entries as JSON gives them back."""
    return json.loads(json.dumps(dict(entries), ensure_ascii=False, allow_nan=False))


def _write(path: Path, entries: Entries) -> None:
    """Write entries, one a line and in order, so that a diff shows which of them changed."""
    lines = [f"{_json(name)}: {_json(entries[name])}" for name in sorted(entries)]
    content = ("{\n" + ",\n".join(lines) + "\n}\n").encode()
    if path.suffix == ".xz":
        content = lzma.compress(content, preset=9)
    path.write_bytes(content)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def _write_reason(path: Path, name: str, reason: str) -> None:
    line = " ".join(reason.split()).replace("|", "\\|")
    with path.open("a", encoding="utf-8") as readme:
        readme.write(f"| {date.today().isoformat()} | `{name}` | {line} |\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Freeze what the arguments ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    told = "why what was frozen is another thing now"
    parser.add_argument("--revision", metavar="REASON", default="", help=told)
    reason = parser.parse_args(arguments).revision.strip()
    _same_everywhere()
    for line in freeze(files(), reason=reason):
        sys.stdout.write(f"{line}\n")


def _same_everywhere() -> None:
    """Compute as the tests do: with one thread, and without the hub."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
