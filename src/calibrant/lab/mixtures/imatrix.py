"""The importance matrix of a mixture of calibration sets, from what the dense model saw of each:
no forward is run.
"""

from collections.abc import Mapping, Sequence

from calibrant.activations import FeatureNorms, InputStatistic, Seen
from calibrant.lab.mixtures.algebra import Shares
from calibrant.lab.mixtures.mixture import expression
from calibrant.lab.mixtures.statistics import MixtureStatistics
from calibrant.models.imatrix import Imatrix, importance_of


def imatrix_of(
    statistics: MixtureStatistics, shares: Shares, names: Mapping[str, Sequence[str]], length: int
) -> Imatrix:
    """Return what `calibrant imatrix` would gather with the mixture as its data; `names` are GGUF's
    tensors by matrix.

    Each source's sums count by its share, a token; the count of a tensor is the number of all
    tokens that reached it.
    """
    seen = {
        weight: Seen({FeatureNorms: _norms(there[statistics.kind])})
        for weight, there in statistics.mixed(shares)
    }
    used = [source for source, share in zip(statistics.sources, shares, strict=True) if share]
    windows = sum(int(source.batch.facts.get("windows", len(source.batch.ids))) for source in used)
    described = (
        f"{expression([source.data for source in statistics.sources], shares)}; {windows}×{length}"
    )
    tensors = {matrix: tuple(several) for matrix, several in names.items()}
    return Imatrix(importance_of(statistics.seen_by, seen, tensors), (described,), windows, length)


def _norms(statistic: InputStatistic) -> FeatureNorms:
    """The sums of squares, which are a Gram's diagonal too."""
    return FeatureNorms(
        statistic.norms().double().clone(), statistic.tokens, statistic.mass
    )  # no view that keeps a whole Gram in memory
