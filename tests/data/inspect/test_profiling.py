"""What is kept of a calibration set's text: counted by hand here, and never enough to put a row
together again.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, sources
from calibrant.data.inspect.profiling import LETTERS, may_be_quoted, profile, quoted
from calibrant.data.select import resolved

Jsonl = Callable[..., Path]
SOME = ["eggs", "ducks", "seven", "market", "Zebra", "naïve", "мама", "1,234", "x=3.5;"]


@pytest.fixture(autouse=True)
def _each_reads_its_own_file(forgetful: None) -> None:
    """Files of two tests may have the same name, and their times the same nanosecond."""


def texts(count: int) -> list[str]:
    return [
        " ".join(random.Random(i).choices(SOME, k=12))
        + f" only{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10 % 10]}"
        for i in range(count)
    ]


def test_words_and_characters_are_those_of_the_windows(
    jsonl: Jsonl, letters: PreTrainedTokenizerBase
):
    data = CalibrationSet(f"{jsonl([{'text': t} for t in texts(60)])}@one", samples=12, length=400)
    batch = data.tokens(letters)
    found = profile(data, batch, letters)
    windows = [
        letters.decode(ids[mask].tolist()) for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]
    counts: Counter[str] = Counter()
    for window in windows:
        counts.update(
            "".join(c if c.isalpha() else " " for c in word.casefold()) for word in window.split()
        )
    words = Counter({w.strip(): n for w, n in counts.items() if len(w.strip()) > 1})
    several = {w for w in words if sum(w in window.casefold() for window in windows) > 1}
    assert found["words"] == {w: words[w] for w in several}
    assert "zebra" in found["words"]
    assert "мама" in found["words"]
    assert not any(word.startswith("only") for word in found["words"]), (
        "a word of one window alone may be anybody's name"
    )
    assert (found["counted"], found["distinct"]) == (words.total(), len(words))
    assert found["word_length"] == pytest.approx(
        sum(len(w) * n for w, n in words.items()) / words.total()
    )
    assert found["even"] == pytest.approx(
        math.exp(-sum(n / words.total() * math.log(n / words.total()) for n in words.values()))
    )
    whole = "".join(windows)
    assert found["characters"]["digits"] == pytest.approx(
        sum(c.isdigit() for c in whole) / len(whole)
    )
    assert found["characters"]["letters"] == pytest.approx(
        sum(c.isalpha() for c in whole) / len(whole)
    )
    assert sum(found["characters"].values()) == pytest.approx(1)
    cyrillic = sum("а" <= c <= "я" for c in whole)
    assert found["scripts"] == {
        "Latin": pytest.approx(1 - found["scripts"]["Cyrillic"]),
        "Cyrillic": pytest.approx(cyrillic / sum(map(str.isalpha, whole))),
    }
    assert found["numbers"] == pytest.approx(
        100 * (whole.count("1,234") + whole.count("3.5")) / words.total()
    )
    assert json.loads(json.dumps(found)) == found


def test_a_users_rows_are_not_quoted_and_open_ones_are(
    jsonl: Jsonl, letters: PreTrainedTokenizerBase
):
    path = jsonl([{"text": t} for t in texts(60)])
    data = CalibrationSet(f"0.5*{path} + 0.5*python_docs", samples=8, length=300)
    batch = data.tokens(letters)
    found = profile(data, batch, letters)
    assert found["unquoted"] == {str(data.parts[0]): "the user's own"}
    begin = batch.facts["parts"][0]["sequences"]
    assert found["examples"] == [
        {"part": "python_docs", "licence": "PSF-2.0", "text": quoted(batch, begin + i, letters)}
        for i in range(2)
    ]
    assert all(len(e["text"]) <= LETTERS + 1 for e in found["examples"])
    assert not any(t[:40] in json.dumps(found["examples"]) for t in texts(60))


@pytest.mark.parametrize("selected", ["python_docs + {}", "longest(source='python_docs + {}')"])
def test_what_is_chosen_from_several_sources_is_quoted_only_if_all_are_open(
    selected: str, jsonl: Jsonl, letters: PreTrainedTokenizerBase
):
    path = jsonl([{"text": t} for t in texts(60)])
    source = CalibrationSet(f'longest(source="{selected.format(path)}", candidates=40)')
    data = CalibrationSet(str(source), tokens=2000, length=100)
    found = profile(data, resolved(data, letters).tokens(letters), letters)
    assert found["examples"] == []
    assert found["unquoted"] == {str(data): "PSF-2.0; the user's own"}
    alone = CalibrationSet("longest(source=python_docs, candidates=40)", tokens=2000, length=100)
    assert profile(alone, resolved(alone, letters).tokens(letters), letters)["examples"]


def test_a_source_that_shows_nothing_is_not_quoted_whatever_its_licence(
    monkeypatch: pytest.MonkeyPatch, letters: PreTrainedTokenizerBase
):
    data = CalibrationSet("python_docs", samples=2, length=100)
    monkeypatch.setattr(type(data.parts[0].source), "shown", False)
    assert profile(data, data.tokens(letters), letters)["examples"] == []


QUOTED = {
    *(
        "arc_easy",
        "arithmetic",
        "boolq",
        "commonsense_qa",
        "esnli",
        "flores",
        "full_stops",
        "gsm8k",
        "hellaswag",
        "mawps",
        "openbookqa",
        "piqa",
    ),
    *(
        "python_code",
        "python_docs",
        "random_tokens",
        "svamp",
        "ultrachat",
        "wikipedia",
        "wikitext",
        "winogrande",
        "xquad",
    ),
}


UNQUOTED = {
    *(
        "anli_r1",
        "anli_r2",
        "anli_r3",
        "c4",
        "dolma",
        "fineweb_edu",
        "mc4",
        "open_platypus",
        "oscar",
        "pile",
        "race",
        "redpajama",
        "rte",
    ),
    "slimpajama",
}


def test_only_plainly_open_licences_let_rows_be_shown_to_everybody():
    looked_at = [name for name in sources.names() if name in QUOTED | UNQUOTED]
    assert {name for name in looked_at if may_be_quoted(sources.get(name).licence)} == QUOTED
    for closed in (
        "CC BY-NC 4.0",
        "CC BY-NC-SA 4.0",
        "the user's own",
        "",
        "ODC-By 1.0",
        "non-commercial research only",
        "CC0 1.0 for what it adds",
    ):
        assert not may_be_quoted(closed), closed
