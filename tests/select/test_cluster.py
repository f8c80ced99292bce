"""Clustered sampling: even over clusters that are known beforehand."""

import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrant.data.select._embedding import tfidf
from calibrant.errors import DataError

from tests.select.contexts import built, check_order, context

THEMES = [
    "ships sail the wide sea",
    "numbers add up to sums",
    "cats and dogs eat meat",
    "rain falls on green hills",
]
KNOWN = [
    f"{theme} {theme} again"
    for theme, count in zip(THEMES, (40, 9, 6, 5), strict=True)
    for _ in range(count)
]
SUBJECT = [at for at, count in enumerate((40, 9, 6, 5)) for _ in range(count)]


def test_clusters_that_are_plain_give_the_same_number_each_and_draws_differ() -> None:
    selector = built("cluster(source=python_docs, k=4, embed=tfidf)")
    orders = [check_order(selector, KNOWN, context(draw, model=False)) for draw in range(3)]
    for taken in range(4, 21, 4):
        assert Counter(SUBJECT[one] for one in orders[0][:taken]) == dict.fromkeys(
            range(4), taken // 4
        )
    assert {SUBJECT[one] for one in orders[0][32:]} == {0}, "used up clusters were not passed over"
    assert len({tuple(order) for order in orders}) == 3


def test_tfidf_is_what_its_sentence_says() -> None:
    texts = ["Cat cat dog", "dog fish", "", "cat, the CAT!", "fish"]
    found = np.asarray(tfidf(texts).todense())
    vocabulary = sorted({"cat", "dog", "fish", "the"})
    counts = np.array(
        [
            [
                text.lower().replace(",", "").replace("!", "").split().count(word)
                for word in vocabulary
            ]
            for text in texts
        ],
        dtype=float,
    )
    rarity = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    plain = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * rarity
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain / np.where(lengths == 0, 1, lengths))


def test_a_sentence_encoder_embeds_where_its_package_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    class SentenceTransformer:
        def __init__(self, name: str, trust_remote_code: bool) -> None:
            asked.append((name, trust_remote_code))
            if name == "no/such":
                raise OSError("no such thing on the hub")

        def encode(
            self, texts: list[str], normalize_embeddings: bool, show_progress_bar: bool
        ) -> Any:
            assert normalize_embeddings
            return np.array(
                [[float(theme in text) for theme in THEMES] for text in texts], dtype=np.float32
            )

    monkeypatch.setitem(
        sys.modules,
        "sentence_transformers",
        SimpleNamespace(SentenceTransformer=SentenceTransformer),
    )
    order = check_order(
        built("cluster(source=python_docs, k=4, embed=sentence, encoder='mine')"),
        KNOWN,
        context(model=False),
    )
    assert sorted(SUBJECT[one] for one in order[:4]) == [0, 1, 2, 3]
    assert asked[0] == ("mine", False)
    with pytest.raises(DataError) as caught:
        built("cluster(source=python_docs, embed=sentence, encoder='no/such')").order(
            KNOWN, context(model=False)
        )
    assert caught.value.subject == "no/such"
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError) as caught:
        built("cluster(source=python_docs, embed=sentence)").order(KNOWN, context())
    assert caught.value.subject == "cluster(source='python_docs', embed='sentence')"
