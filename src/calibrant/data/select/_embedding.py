"""Makes points of texts (by what the model makes of them, by their words, or by a sentence
encoder), and clusters of points.
"""

import warnings
from collections.abc import Iterable, Sequence
from importlib import import_module
from itertools import chain, zip_longest
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int
from torch.nn.functional import normalize

from calibrant.data._words import words
from calibrant.data.select._base import Context, Selector
from calibrant.data.select._reading import beginnings, pooled
from calibrant.errors import DataError, SpecError

EMBEDDINGS: Final = ("model", "tfidf", "sentence")
ENCODER: Final = "sentence-transformers/all-MiniLM-L6-v2"
"""Small, and what most examples of sentence-transformers use; its revision isn't pinned."""

Labels = Int[np.ndarray, " text"]
Distances = Float[np.ndarray, " text"]

KMEANS_STARTS: Final = 4
"""How often k-means begins anew; the best result is taken."""

Points = Any
"""A matrix [text, feature] of float64, dense or of scipy's sparse rows, each row of length one
or zero.
"""


def check_embedding(selector: Selector, embed: str) -> None:
    """Raise `SpecError` for an embedding that there isn't."""
    if embed not in EMBEDDINGS:
        raise SpecError(
            f"{selector.spec_name()}(embed={embed!r}): it must be one of {', '.join(EMBEDDINGS)}",
            subject=embed,
        )


def embedded(
    selector: Selector, texts: Sequence[str], embed: str, encoder: str, context: Context
) -> Points:
    """Return the texts as points.

    `model`: the mean of the untouched model's last hidden states over the tokens that a window can
    hold. `tfidf`: see there. `sentence`: what the encoder of sentence-transformers that is called
    `encoder` gives. `DataError` without a model, or without that package or encoder.
    """
    if embed == "tfidf":
        return tfidf(texts)
    if embed == "sentence":
        return sentences(selector, texts, encoder)
    sequences = beginnings(texts, context.tokenizer, context.length)
    points = pooled(context.model(selector), sequences, "last", context.progress)
    return normalize(points.double()).numpy()


def tfidf(texts: Sequence[str]) -> Points:
    """Return the texts as sparse points, a case-folded word a feature.

    A word counts 1 + log of how often it stands in the text, times the logarithm of its rarity
    among the texts.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    words_of_texts = [words(text) for text in texts]
    if not any(words_of_texts):
        return csr_matrix((len(texts), 1), dtype=np.float64)
    # With `list` they stay the words that they are already.
    options: dict[str, Any] = {"analyzer": list, "sublinear_tf": True, "dtype": np.float64}
    return TfidfVectorizer(**options).fit_transform(words_of_texts)


def sentences(
    selector: Selector, texts: Sequence[str], encoder: str
) -> Float[np.ndarray, "text feature"]:
    """Return what a sentence encoder makes of the texts; the package is looked for only here."""
    try:
        package = import_module("sentence_transformers")
    except ImportError as error:
        raise DataError(
            f"{selector} needs the package sentence-transformers, which can't be imported "
            f"({error}); bring it with pip install sentence-transformers, or choose "
            "embed='tfidf', which needs nothing",
            subject=str(selector),
        ) from error
    try:
        model = package.SentenceTransformer(encoder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{selector} can't open the sentence encoder {encoder!r}: {error}; give a folder or "
            "an id on the hub",
            subject=encoder,
        ) from error
    points = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
    return np.asarray(points, dtype=np.float64)


def clustered(points: Points, k: int, seed: int) -> tuple[Labels, Distances]:
    """Return the k-means cluster of each point, and its distance to that cluster's centre; fewer
    clusters where there are fewer distinct points.

    Lloyd's algorithm from k-means++ (scikit-learn's), the best of `KMEANS_STARTS` starts; seeded,
    on one thread, so that sums are taken in one order.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    count = points.shape[0]
    if not count or not points.shape[1]:
        return np.zeros(count, dtype=np.int64), np.zeros(count)
    # One thread: sums of several would be taken in another order each time.
    with threadpool_limits(1), warnings.catch_warnings():
        # It warns where there are fewer distinct points than clusters.
        warnings.simplefilter("ignore", ConvergenceWarning)
        options: dict[str, Any] = {"n_init": KMEANS_STARTS, "random_state": seed}
        fitted = KMeans(min(k, count), **options).fit(points)
        labels = np.asarray(fitted.labels_, dtype=np.int64)
        distances = fitted.transform(points)  # to every centre, of which each point's own is kept
    return labels, np.asarray(distances[np.arange(count), labels], dtype=np.float64)


def in_turn(groups: Iterable[Iterable[Any]]) -> list[int]:
    """Return the first of each group, then the second of each that has one, and so on."""
    members = chain.from_iterable(zip_longest(*groups))
    return [int(member) for member in members if member is not None]
