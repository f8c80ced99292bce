"""The kinds of target there are, a text read as one of them, and the sentences that say what is
allowed.
"""

from collections.abc import Iterable
from typing import Any, Final

from calibrant.errors import TargetError
from calibrant.spec.foreign import user_text
from calibrant.spec.registry import Registry
from calibrant.targets._base import Target

LEAST_PER_CENT: Final = 5
"""From here on a number that should be a share is likely to be meant in per cent."""

targets: Final = Registry("calibrant.targets", "target")


def kinds(accepts: Iterable[type[Target]] = (Target,)) -> list[type[Target]]:
    """Return the kinds of target that something accepts; `accepts` may hold abstract classes. The
    one with the shortest example comes first.
    """
    chosen: list[type[Target]] = []
    for name in targets.names():
        kind = targets.get(name)
        if issubclass(kind, tuple(accepts)):
            chosen.append(kind)
    return sorted(chosen, key=_by_example)


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
    calibrant.errors.TargetError: 'half' is no target; write a sparsity...
    """
    value = user_text(text, TargetError) if isinstance(text, str) else text
    for kind in kinds():
        target = kind.read(value)
        if target is not None:
            return target
    raise TargetError(f"{text!r} is no target; {allowed()}", subject=str(text))


def percentage(value: Any) -> str:
    """Return, for what is no share, what was likely meant: for 50, `, did you mean 0.5?`.

    Empty for what can't be per cent, and for a number such as 1.5, which is hardly meant as 1.5 %.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    if not LEAST_PER_CENT <= value < 100:
        return ""
    return f", did you mean {value / 100:g}?"
