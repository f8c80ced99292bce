"""Effects as the share of the dense model's performance that is kept."""

import math
from collections.abc import Mapping, Sequence

from calibrant.compare.crossed import Side, combination
from calibrant.compare.estimate import Estimate
from calibrant.outcomes import Score


def kept(sides: Mapping[str, Side], dense: Mapping[str, Side], measured: Sequence[str]) -> Estimate | None:
    """The share of the dense model's performance that `sides` keep, averaged over the `measured` sets; None where there is no such share.

    Of a loss or a divergence in nats it is exp(dense − its own): of the probability that each token of the right text had, what is left in the
    geometric mean. Where more is better it is (its own − chance) / (dense − chance), and there is none if the dense model is no better than
    chance; of anything else, dense / its own. The error is by the delta method.
    """
    parts = {m: share_kept(sides[m].value, dense[m].value, sides[m].score) for m in measured}
    shares = {m: found for m, found in parts.items() if found is not None}
    if len(shares) < len(parts) or not parts:
        return None
    many = len(shares)
    mine = {m: by_own / many for m, (_, by_own, _) in shares.items()}
    theirs = {m: by_dense / many for m, (_, _, by_dense) in shares.items()}
    return combination([(sides, mine), (dense, theirs)], sum(share for share, _, _ in shares.values()) / many)


def share_kept(own: float, dense: float, score: Score) -> tuple[float, float, float] | None:
    """The share that a value keeps of the dense model's on the same scale, and its derivatives by the one and by the other; see `kept`."""
    if score.better == "higher":
        room = dense - (score.chance or 0.0)
        share = (own - (score.chance or 0.0)) / room if room > 0 else 0.0
        return (share, 1 / room, -share / room) if room > 0 else None
    if score.unit.startswith("nats"):
        share = math.exp(min(dense - own, 700.0))
        return share, -share, share
    return (dense / own, -dense / own**2, 1 / own) if own > 0 else None
