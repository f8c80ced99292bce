"""How an importance matrix looks in a terminal: what it covers, and in which tensors another one
differs.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from calibrant.cli.screen._lines import labelled, one_line

SHOWN: Final = 8
"""Tensors that are listed, those that differ most."""


def gathered(result: Mapping[str, Any]) -> Iterator[Any]:
    """What an importance matrix was made of, and where it is."""
    yield from covered(result)
    left = result["left_out"]
    reasons = sorted({str(reason) for reason in left.values()})
    yield from labelled(
        ("left out", f"{len(left):,} matrices: {'; '.join(reasons)}" if left else ""),
        ("note", result["note"]),
        ("written to", result["out"]),
    )


def covered(result: Mapping[str, Any]) -> Iterator[Any]:
    """What an importance matrix covers; with another, how alike the two are, and the tensors
    that differ most.
    """
    experts = (
        f"{result['unseen']:,} of {result['experts']:,} saw no token, {result['rare']:,} fewer than 16"
        if result["experts"]
        else ""
    )
    size = f" of {result['chunk_size']:,} tokens" if result["chunk_size"] else ""
    yield from labelled(
        ("imatrix of", "; ".join(result["datasets"]) or "it doesn't say what"),
        ("windows", f"{result['chunks']:,}{size}"),
        ("tensors", f"{result['tensors']:,}"),
        ("experts", experts),
    )
    if result.get("alike") is None:
        return
    alike = sorted(result["alike"].items(), key=lambda pair: pair[1])
    same = sum(value == 1 for _, value in alike)
    yield from labelled(
        ("same in both", f"{same:,} of {len(alike):,} tensors"),
        (
            "alike",
            f"median correlation of log importance {result['median']:.3f}, lowest {alike[0][1]:.3f}",
        ),
        ("only here", ", ".join(result["only_here"][:SHOWN])),
        ("only there", ", ".join(result["only_there"][:SHOWN])),
    )
    if same < len(alike):
        yield ""
        yield "least alike"
        yield from (
            f"  {value:.3f}  {one_line(name)}" for name, value in alike[:SHOWN] if value < 1
        )
