"""How much of a calibration set experts get, in a line."""

from collections.abc import Mapping, Sequence
from typing import Any


def covered(experts: Mapping[str, Any] | None) -> str:
    """Return how many experts a set leaves without tokens or with few, and how evenly they are
    used; empty for a model without experts.
    """
    if not experts or experts["why"]:
        return experts["why"] if experts else ""
    even = sorted(one["even"] / one["experts"] for one in experts["layers"].values())
    looked = (
        f"{experts['unseen']:,} of {experts['experts']:,} get none of {experts['tokens']:,} tokens"
    )
    few = f"{experts['starved']:,} would get fewer of all {experts['of']:,} than they have inputs"
    return f"{looked}, {few}; the load is as even as if {even[0]:.0%} to {even[-1]:.0%} of a layer's were used alike"


def starved(matrices: Sequence[Mapping[str, Any]], run: Mapping[str, Any]) -> str:
    """Return how many matrices of experts were calibrated on fewer tokens than they have inputs,
    and which on fewest; empty where none was.
    """
    few = [
        matrix
        for matrix in matrices
        if "tokens" in matrix and matrix["tokens"] < matrix["shape"][1]
    ]
    how = f"experts with few tokens: {run['starved']}" if run.get("starved") else ""
    if not few:
        return how
    least = min(few, key=lambda matrix: matrix["tokens"])
    saw = f"{len(few):,} of experts' matrices saw fewer than their inputs, fewest {least['name']}: {least['tokens']:,} for {least['shape'][1]:,}"
    return "; ".join(filter(None, [saw, how]))
