"""Words of every script, against what a reader would say they are."""

import pytest

from calibrant.data._words import words
from calibrant.data.inspect.leaks import ngrams


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


def test_numbers_are_the_same_in_every_process():
    assert sorted(ngrams("one two three four five")) == [
        7003702146407501101
    ]  # as another process found them
