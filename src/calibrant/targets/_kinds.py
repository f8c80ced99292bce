"""The kinds of target there are, a text read as one of them, and the sentences that say what is
allowed.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

from calibrant.errors import CalibrantError, SpecError, TargetError
from calibrant.spec.classes import is_foreign, qualified
from calibrant.spec.foreign import user_text
from calibrant.spec.registry import Registry
from calibrant.targets._base import Target

LEAST_PER_CENT: Final = 5
"""From here on a number that should be a share is likely to be meant in per cent."""

_BITS: Final = re.compile(r"(?:u?int)?([2-8])(?:\.0|[ -]?bits?)?")
"""Bits of a grid, as other libraries and people write them: `4`, `int4`, `4-bit`."""
_GRID: Final = re.compile(r"w[2-8](g[1-9][0-9]{0,3})?a?")

targets: Final = Registry("calibrant.targets", "target")


def kinds(accepts: Iterable[type[Target]] = (Target,)) -> list[type[Target]]:
    """Return the kinds of target that something accepts; `accepts` may hold abstract classes. The
    one with the shortest example comes first. Kinds of other packages that can't be read are none.
    """
    known, _ = _known_and_broken()
    chosen = [kind for kind in known if issubclass(kind, tuple(accepts))]
    return sorted(chosen, key=_by_example)


def _known_and_broken() -> tuple[list[type[Target]], list[str]]:
    """Every kind of target, and for each of another package that can't be read, why."""
    known: list[type[Target]] = []
    broken: list[str] = []
    for name in targets.names():
        try:
            known.append(targets.get(name))
        except SpecError as error:
            if name in targets.own:
                raise
            broken.append(str(error))
    return known, broken


def _by_example(kind: type[Target]) -> tuple[int, str]:
    return len(kind.example), kind.example


def accepted(accepts: Iterable[type[Target]] = (Target,)) -> str:
    """Return in words which kinds of target something accepts: `a sparsity …, such as 0.5, or N:M
    …, such as 2:4`.
    """
    *others, last = [f"{kind.written}, such as {kind.example}" for kind in kinds(accepts)]
    if not others:
        return last
    return f"{', '.join(others)}, or {last}"


def allowed(accepts: Iterable[type[Target]] = (Target,)) -> str:
    """Return what to write instead, for the end of an error: `write a sparsity …, such as 0.5`."""
    return f"write {accepted(accepts)}"


def examples(classes: Iterable[type[Target]]) -> str:
    """Return an example of each of these kinds: `0.5, 2:4 or w4g64`."""
    found = [kind.example for kind in classes]
    most = ", ".join(found[:-1])
    last = "".join(found[-1:])
    if not most:
        return last
    return f"{most} or {last}"


def parse_target(text: str | float | int) -> Target:
    """Return the target that a text or number such as `0.5`, `"0.5"`, `"2:4"` or `"w4g64"` asks
    for. Raises `TargetError` for anything else.

    >>> parse_target("2:4")
    NofM(n=2, m=4)
    >>> parse_target("w4g64").bits
    4
    >>> parse_target("60%")
    Sparsity(fraction=0.6)
    >>> parse_target("half")
    Traceback (most recent call last):
    calibrant.errors.TargetError: 'half' is no target; write one such as 0.5, 2:4, ...
    """
    value = user_text(text, TargetError) if isinstance(text, str) else text
    failed: list[str] = []
    for kind in kinds():
        try:
            target = kind.read(value)
        except Exception as error:
            if isinstance(error, CalibrantError) or not is_foreign(kind):
                raise
            failed.append(f"{qualified(kind)} fails on it with {type(error).__name__}: {error}")
            continue
        if target is not None:
            return target
    # Whoever writes it may mean one of those that can't be read.
    _, broken = _known_and_broken()
    broken += failed
    instead = f"write one such as {examples(kinds())}"
    explained = "calibrant list targets says what each is"
    message = "; ".join([f"{text!r} is no target", *broken, f"{instead} ({explained})"])
    raise TargetError(message + bits_hint(str(text)), subject=str(text))


def bits_hint(text: str) -> str:
    """Return, for what was likely meant in bits, how it is written: for `4.0` and `int4`,
    `; 4 bits are written w4g64`. Empty for anything else.
    """
    written = text.strip().lower()
    if _GRID.fullmatch(written) and written != text.strip():
        return f"; write it {written}"
    match = _BITS.fullmatch(written)
    if match is None:
        return ""
    bits = match[1]
    return f"; {bits} bits are written w{bits}g64"


def percentage(value: Any) -> str:
    """Return, for what is no share, what was likely meant: for 50, `, perhaps you mean 0.5`.

    Empty for what can't be per cent, and for a number such as 1.5, which is hardly meant as 1.5 %.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not LEAST_PER_CENT <= value < 100:
        return ""
    return f", perhaps you mean {value / 100:g}"
