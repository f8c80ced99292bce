"""What is known of the sets, against sums and TF-IDF worked out by hand."""

import math
from collections import Counter
from pathlib import Path

import pytest

from calibrant.errors import DataError
from calibrant.lab.stats import medians, summaries
from calibrant.lab.stats.results import read
from calibrant.lab.stats.sets import TERMS, key_terms
from calibrant.results import PROFILE, Store

from tests.stats.stores import store_of


def profile(words: dict[str, int], windows: int = 4, **changes: object) -> dict[str, object]:
    usually = {
        "revision": 1,
        "windows": windows,
        "words": words,
        "counted": sum(words.values()),
        "distinct": len(words),
        "even": 3.0,
        "numbers": 2.0,
    }
    shares = {
        "characters": {"letters": 0.8, "spaces": 0.2},
        "scripts": {"Latin": 1.0},
        "word_length": 5.0,
    }
    return {
        **usually,
        **shares,
        "examples": [{"part": "p", "licence": "MIT", "text": "t"}],
        "unquoted": {},
        **changes,
    }


LOSSES = {
    "dense": [[3.0, 2.0]],
    "c4": [[3.5, 2.6], [3.6, 2.6]],
    "gsm8k:cot": [[3.9, 2.1]],
    "old": [[3.9, 2.2]],
}
WORDS = {"c4": {"the": 9, "web": 4, "news": 2}, "gsm8k:cot": {"the": 5, "eggs": 7, "sold": 2}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Read and never written."""
    profiles = {
        "c4/0": profile(WORDS["c4"]),
        "c4/1": profile({"web": 1, "market": 3}, 12, numbers=6.0),
        "gsm8k:cot": profile(WORDS["gsm8k:cot"]),
    }
    return store_of(tmp_path_factory.mktemp("sets") / "study", LOSSES, profiles=profiles)


def test_the_sets_are_there_with_their_facts_and_their_draws_put_together(store: Store):
    found = summaries(store, read(store))
    sets = {one.name: one for one in found}
    assert list(sets) == ["c4", "gsm8k:cot", "old"]
    assert [d.run.seed for d in sets["c4"].draws] == [0, 1]
    assert sets["c4"].tokens == round(4096.5)
    assert (sets["c4"].family, sets["gsm8k:cot"].family, sets["old"].family) == (
        "corpus",
        "arithmetic",
        "own",
    )
    assert (sets["old"].profile, sets["old"].terms) == (None, ())
    whole = sets["c4"].profile
    assert whole is not None
    assert whole["words"] == {"the": 9, "web": 5, "news": 2, "market": 3}
    assert (whole["windows"], whole["counted"]) == (16, 19)
    assert whole["numbers"] == pytest.approx((4 * 2.0 + 12 * 6.0) / 16)
    assert whole["characters"] == pytest.approx({"letters": 0.8, "spaces": 0.2})
    around = medians(found)
    assert around["numbers"] == pytest.approx((5.0 + 2.0) / 2)
    assert around["letters"] == pytest.approx(0.8)
    assert medians([]) == {}


def by_hand(counts: dict[str, dict[str, int]]) -> dict[str, dict[str, float]]:
    """1 + ln tf, times 1 + ln((1 + n)/(1 + df)), to length one."""
    n, df = len(counts), Counter(word for words in counts.values() for word in words)
    weights = {
        s: {w: (1 + math.log(c)) * (1 + math.log((1 + n) / (1 + df[w]))) for w, c in words.items()}
        for s, words in counts.items()
    }
    return {
        s: {w: v / math.sqrt(sum(x * x for x in each.values())) for w, v in each.items()}
        for s, each in weights.items()
    }


def test_key_terms_are_the_words_that_stand_out():
    counts = {**WORDS, "code": {"def": 6, "the": 1, "web": 1}}
    weights = by_hand(counts)
    terms = key_terms({name: profile(words) for name, words in counts.items()})
    for name in counts:
        others = [w for s, w in weights.items() if s != name]
        ahead = {
            word: value - sum(o.get(word, 0.0) for o in others) / 2
            for word, value in weights[name].items()
        }
        expected = sorted(
            ((w, v) for w, v in ahead.items() if v > 0), key=lambda item: (-item[1], item[0])
        )[:TERMS]
        assert [w for w, _ in terms[name]] == [w for w, _ in expected]
        assert [v for _, v in terms[name]] == pytest.approx([v for _, v in expected])
    assert terms["gsm8k:cot"][0][0] == "eggs"
    assert "the" not in dict(terms["code"])


def test_a_profile_that_cannot_be_read_is_named(tmp_path: Path):
    store = store_of(
        tmp_path, {"gsm8k:cot": [[3.9, 2.1]]}, profiles={"gsm8k:cot": profile(WORDS["gsm8k:cot"])}
    )
    (cell,) = store.cells()
    path = store.blobs.path(store.results(cell.run).digests(cell.run)[PROFILE])
    path.write_text("{")
    with pytest.raises(DataError) as raised:
        summaries(store, read(store))
    assert raised.value.subject == str(path)
