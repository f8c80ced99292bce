"""Texts as points: by what the model makes of them, by their words, or by a sentence encoder."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final

import numpy as np
from jaxtyping import Float
from torch.nn.functional import normalize

from calibrant.data._words import words
from calibrant.errors import DataError, SpecError
from calibrant.select._base import Context, Selector
from calibrant.select._reading import beginnings, pooled

EMBEDDINGS: Final = ("model", "tfidf", "sentence")
ENCODER: Final = "sentence-transformers/all-MiniLM-L6-v2"
"""Small, and what most examples of sentence-transformers use; its revision isn't pinned."""

Points = Any
"""A matrix [text, feature] of float64, dense or of scipy's sparse rows, each row of length one or zero."""


def check_embedding(selector: Selector, embed: str) -> None:
    """`SpecError` for an embedding that there isn't."""
    if embed not in EMBEDDINGS:
        raise SpecError(f"{selector.spec_name()}(embed={embed!r}): it must be one of {', '.join(EMBEDDINGS)}", subject=embed)


def embedded(selector: Selector, texts: Sequence[str], embed: str, encoder: str, context: Context) -> Points:
    """The texts as points.

    `model`: the mean of the untouched model's last hidden states over the tokens that a window can hold. `tfidf`: see there. `sentence`: what
    the encoder of sentence-transformers that is called `encoder` gives. `DataError` without a model, or without that package or encoder.
    """
    match embed:
        case "model":
            sequences = beginnings(texts, context.tokenizer, context.length)
            return normalize(pooled(context.model(selector), sequences, "last", context.progress).double()).numpy()
        case "tfidf":
            return tfidf(texts)
        case _:
            return sentences(selector, texts, encoder)


def tfidf(texts: Sequence[str]) -> Points:
    """Words, case-folded, by 1 + log of how often they stand in the text, times the logarithm of their rarity among the texts; sparse."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfVectorizer

    spoken = [words(text) for text in texts]
    if not any(spoken):
        return csr_matrix((len(texts), 1), dtype=np.float64)
    options: dict[str, Any] = {"analyzer": list, "sublinear_tf": True, "dtype": np.float64}  # they are words already
    return TfidfVectorizer(**options).fit_transform(spoken)


def sentences(selector: Selector, texts: Sequence[str], encoder: str) -> Float[np.ndarray, "text feature"]:
    """What a sentence encoder makes of the texts; the package is looked for only here."""
    try:
        package = import_module("sentence_transformers")
    except ImportError as error:
        raise DataError(
            f"{selector} needs the package sentence-transformers, which can't be imported ({error}); "
            "bring it with pip install sentence-transformers, or choose embed='tfidf', which needs nothing",
            subject=str(selector),
        ) from error
    try:
        model = package.SentenceTransformer(encoder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise DataError(
            f"{selector} can't open the sentence encoder {encoder!r}: {error}; give a folder or an id on the hub", subject=encoder
        ) from error
    return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), dtype=np.float64)
