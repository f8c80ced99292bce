"""What the shell offers for a word that is half typed: names, as files list them, so that
nothing slow is imported for it.
"""

from collections.abc import Callable, Iterable

Completer = Callable[[str], list[str]]


def names_of(*kinds: str) -> Completer:
    """Return what completes a name of these kinds of `calibrant list`."""

    def complete(incomplete: str) -> list[str]:
        from calibrant.names import names

        return _that_begin(incomplete, (name for kind in kinds for name in names(kind)))

    return complete


def one_of(*words: str) -> Completer:
    """Return what completes one of a few words."""
    return lambda incomplete: _that_begin(incomplete, words)


def kind(incomplete: str) -> list[str]:
    """Complete what can be listed."""
    from calibrant.names import KINDS

    return _that_begin(incomplete, KINDS)


def expression(incomplete: str) -> list[str]:
    """Complete the last name of a calibration set: a source or selector, behind a colon a format,
    behind @ a packing.

    >>> expression("0.5*c4 + 0.5*gsm8k:co")
    ['0.5*c4 + 0.5*gsm8k:cot']
    """
    cut = max(incomplete.rfind(mark) for mark in ":@+*(=, ") + 1
    kinds = {":": ["formats"], "@": ["packings"]}.get(
        incomplete[cut - 1 : cut], ["sources", "selectors"]
    )
    return [incomplete[:cut] + name for name in names_of(*kinds)(incomplete[cut:])]


def _that_begin(incomplete: str, words: Iterable[str]) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]
