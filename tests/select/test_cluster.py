"""Clustered sampling: even over clusters that are known beforehand."""

import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from calibrant.errors import DataError, SpecError
from calibrant.select._embedding import EMBEDDINGS, clustered, embedded, in_turn, sentences, tfidf
from calibrant.select._reading import beginnings, pooled

from tests.select.contexts import TROUBLE, built, check_order, context, opened, pieces
from tests.trained import LANGUAGES

THEMES = ["ships sail the wide sea", "numbers add up to sums", "cats and dogs eat meat", "rain falls on green hills"]
KNOWN = [f"{theme} {theme} again" for theme, count in zip(THEMES, (40, 9, 6, 5), strict=True) for _ in range(count)]
SUBJECT = [at for at, count in enumerate((40, 9, 6, 5)) for _ in range(count)]


def test_clusters_that_are_plain_give_the_same_number_each() -> None:
    order = check_order(built("cluster(source=python_docs, k=4, embed=tfidf)"), KNOWN, context(model=False))
    for taken in range(4, 21, 4):
        assert Counter(SUBJECT[one] for one in order[:taken]) == dict.fromkeys(range(4), taken // 4)
    assert {SUBJECT[one] for one in order[32:]} == {0}, "used up clusters were not passed over"


def test_draws_differ_and_are_repeated() -> None:
    selector = built("cluster(source=python_docs, k=4, embed=tfidf)")
    orders = [check_order(selector, KNOWN, context(draw, model=False)) for draw in range(3)]
    assert len({tuple(order) for order in orders}) == 3


@pytest.mark.parametrize("embed", ["model", "tfidf"])
@pytest.mark.parametrize("trouble", TROUBLE)
def test_odd_candidates(embed: str, trouble: str) -> None:
    check_order(built(f"cluster(source=python_docs, embed={embed})"), TROUBLE[trouble], context())


def test_the_note_tells_the_clusters() -> None:
    assert built("cluster(source=python_docs, k=4, embed=tfidf)").order(KNOWN, context(model=False))[1] == "4 clusters of 5 to 40"


def test_the_model_tells_languages_apart() -> None:
    languages = np.repeat([0, 1, 2], 40)
    points = embedded(built("cluster(source=python_docs)"), [text for name in LANGUAGES for text in pieces(name, 40)], "model", "", context())
    labels, _ = clustered(points, 6, 0)
    purity = sum(np.bincount(languages[labels == label]).max() for label in range(6)) / len(labels)
    assert purity > 0.7  # of a choice by chance: about 0.45


def entropy(labels: np.ndarray) -> float:
    shares = np.bincount(labels)[np.unique(labels)] / len(labels)
    return float(-(shares * np.log(shares)).sum())


@pytest.mark.slow
@pytest.mark.parametrize("rare", ["python_code", "arithmetic"])
def test_a_set_covers_clusters_that_it_was_not_chosen_by_more_evenly_than_chance(rare: str) -> None:
    """EvoP's claim for CCDS, in a pool of two languages at 90 to 10: by clusters of the states of all layers, where the choice is by the last."""
    several = [*pieces("python_docs", 180), *pieces(rare, 20)]
    other, _ = clustered(pooled(opened(), beginnings(several, context().tokenizer, 120), "all").double().numpy(), 16, 999)
    by_cluster = [other[built("cluster(source=python_docs, k=8)").order(several, context(draw, 120))[0][:16]] for draw in range(6)]
    by_chance = [other[np.random.default_rng(seed).permutation(200)[:16]] for seed in range(40)]
    assert np.mean([entropy(one) for one in by_cluster]) > np.mean([entropy(one) for one in by_chance]) + 0.05
    assert np.mean([len(set(one)) for one in by_cluster]) > np.mean([len(set(one)) for one in by_chance])


@pytest.mark.parametrize("seed", range(3))
def test_kmeans_leaves_each_point_with_its_nearest_centre(seed: int) -> None:
    points = np.random.default_rng(seed).standard_normal((60, 5))
    labels, distances = clustered(points, 6, seed)
    centres = np.stack([points[labels == label].mean(0) for label in range(6)])
    every = np.sqrt(((points[:, None] - centres[None]) ** 2).sum(-1))
    assert (labels == every.argmin(1)).all()
    np.testing.assert_allclose(distances, every.min(1), rtol=1e-9)


def test_turns() -> None:
    assert in_turn([[1, 2, 3], [], [0], [7, 8]]) == [1, 0, 7, 2, 8, 3]
    assert in_turn([]) == []


def test_tfidf_is_what_its_sentence_says() -> None:
    texts = ["Cat cat dog", "dog fish", "", "cat, the CAT!", "fish"]
    found = np.asarray(tfidf(texts).todense())
    vocabulary = sorted({"cat", "dog", "fish", "the"})
    counts = np.array([[text.lower().replace(",", "").replace("!", "").split().count(word) for word in vocabulary] for text in texts], dtype=float)
    rarity = np.log((1 + len(texts)) / (1 + (counts > 0).sum(0))) + 1
    plain = np.where(counts > 0, 1 + np.log(np.maximum(counts, 1)), 0) * rarity
    lengths = np.linalg.norm(plain, axis=1, keepdims=True)
    np.testing.assert_allclose(found, plain / np.where(lengths == 0, 1, lengths))


def test_a_sentence_encoder_embeds_where_its_package_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class SentenceTransformer:
        def __init__(self, name: str, trust_remote_code: bool) -> None:
            asked.append((name, trust_remote_code))
            if name == "no/such":
                raise OSError("no such thing on the hub")

        def encode(self, texts: list[str], normalize_embeddings: bool, show_progress_bar: bool) -> Any:
            assert normalize_embeddings
            return np.array([[float(theme in text) for theme in THEMES] for text in texts], dtype=np.float32)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=SentenceTransformer))
    order = check_order(built("cluster(source=python_docs, k=4, embed=sentence, encoder='mine')"), KNOWN, context(model=False))
    assert sorted(SUBJECT[one] for one in order[:4]) == [0, 1, 2, 3]
    assert asked[0] == ("mine", False)
    with pytest.raises(DataError, match=r"can't open the sentence encoder 'no/such': no such thing on the hub"):
        sentences(built("cluster(source=python_docs)"), ["a"], "no/such")


def test_without_the_package_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(DataError, match=r"cluster\(source='python_docs', embed='sentence'\) needs the package sentence-transformers.*pip install"):
        built("cluster(source=python_docs, embed=sentence)").order(KNOWN, context())


@pytest.mark.parametrize("embed", EMBEDDINGS)
def test_only_the_model_s_embedding_needs_it(embed: str) -> None:
    assert built(f"cluster(source=python_docs, embed={embed})").needs_model == (embed == "model")


def test_without_a_model_its_embedding_is_refused() -> None:
    with pytest.raises(DataError, match=r"cluster\(source='python_docs'\) needs the model"):
        built("cluster(source=python_docs)").order(KNOWN, context(model=False))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("cluster(source=python_docs, k=0)", r"cluster\(k=0\): there must be at least 1"),
        ("cluster(source=python_docs, candidates=0)", r"cluster\(candidates=0\)"),
        ("cluster(source=python_docs, embed=words)", r"cluster\(embed='words'\): it must be one of model, tfidf, sentence"),
    ],
)
def test_what_can_t_be_is_refused(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        built(spec)
