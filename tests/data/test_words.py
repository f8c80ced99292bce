"""Words of every script, against what a reader would say they are."""

import numpy as np
import pytest

from calibrant.data._words import numbered, runs, words
from calibrant.inspection.leaks import ngrams


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Don't_stop – x1, 3.14!", ["don", "t", "stop", "x1", "3", "14"]),
        ("ÉCOLE e\u0301cole Straße", ["école", "école", "strasse"]),
        ("soft\u00adhyphen \ufeffmark می\u200cخواهم", ["softhyphen", "mark", "میخواهم"]),
        ("我喜欢猫。猫が好き", ["我", "喜", "欢", "猫", "猫", "が", "好", "き"]),
        ("ภาษาไทย ที่", ["ภ", "า", "ษ", "า", "ไ", "ท", "ย", "ที่"]),
        ("हिन्दी भाषा كِتَابٌ 안녕 하세요", ["हिन्दी", "भाषा", "كِتَابٌ", "안녕", "하세요"]),
        ("𐤀𐤁 𠀀𠀁 👩‍👩‍👧 \x00\ud800 ...", ["𐤀𐤁", "𠀀", "𠀁"]),
        ("x" * 100 + " É" + "ü" * 99, ["x" * 64, "x" * 36, "é" + "ü" * 63, "ü" * 36]),
        ("", []),
    ],
)
def test_words(text: str, found: list[str]):
    assert words(text) == found


def test_a_run_is_a_number_that_depends_on_its_words_and_their_order():
    one, other, short = (numbered(text.split()) for text in ("a b c d", "b a c d b c d", "a b"))
    assert len(runs(one, 3)) == 2
    assert runs(one, 3)[1] == runs(other, 3)[4]
    assert runs(one, 2)[0] != runs(other, 2)[0]
    assert not len(runs(short, 3))
    assert len(np.unique(runs(numbered([str(i % 1000) for i in range(100_000)]), 2))) == 1000


def test_numbers_are_the_same_in_every_process():
    assert sorted(ngrams("one two three four five")) == [7003702146407501101]  # as another process found them
