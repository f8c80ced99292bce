"""The importance matrix of a mixture of calibration sets, from what the dense model saw of each:
no forward is run.
"""

from collections.abc import Mapping, Sequence

from calibrant.activations import FeatureNorms, InputStatistic, Seen
from calibrant.lab.mixtures.algebra import Shares
from calibrant.lab.mixtures.mixture import expression
from calibrant.lab.mixtures.statistics import MixtureStatistics
from calibrant.models import Weight
from calibrant.models.imatrix import Imatrix, importance_of
from calibrant.system.products import exact


def imatrix_of(
    statistics: MixtureStatistics, shares: Shares, names: Mapping[str, Sequence[str]], length: int
) -> Imatrix:
    """Return what `calibrant imatrix` would gather with the mixture as its data; `names` are GGUF's
    tensors by matrix.

    Each source's sums count by its share, a token; the count of a tensor is the number of all
    tokens that reached it.
    """
    seen: dict[Weight, Seen] = {}
    for weight, mixed in statistics.mixed(shares):
        seen[weight] = Seen({FeatureNorms: _norms(mixed[statistics.kind])})
    windows = 0
    for source, share in zip(statistics.sources, shares, strict=True):
        if share:
            batch = source.batch
            windows += int(batch.facts.get("windows", len(batch.ids)))
    sources = [source.data for source in statistics.sources]
    data = expression(sources, shares)
    tensors = {matrix: tuple(tensor_names) for matrix, tensor_names in names.items()}
    importance = importance_of(statistics.view, seen, tensors)
    return Imatrix(importance, (f"{data}; {windows}×{length}",), windows, length)


def _norms(statistic: InputStatistic) -> FeatureNorms:
    """The sums of squares, which are a Gram's diagonal too."""
    # A copy, since a view would keep the whole Gram in memory.
    norms = exact(statistic.norms()).clone()
    return FeatureNorms(norms, statistic.tokens, statistic.mass)
