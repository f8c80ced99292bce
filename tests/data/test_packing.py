"""Windows against what is written out by hand."""

import re

import numpy as np
import pytest
from tokenizers import Regex, normalizers
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, Crop, Many, One, Whole, as_source
from calibrant.data.packings._base import PAD, Frame, Packing, TokenizedText, Window
from calibrant.data.packings.imatrix import ImatrixChunks
from calibrant.data.packings.legacy import Legacy
from calibrant.errors import DataError, SpecError
from calibrant.testing import tiny_tokenizer


def encode(text: str) -> np.ndarray:
    return np.array([ord(c) for c in text], dtype=np.int32)


def texts(*given: str):
    return iter([TokenizedText(text, encode(text)) for text in given])


FRAME = Frame(4, encode)


def cut(packing, given, sizes, length=4, draw=0) -> list[str]:
    frame = Frame(length, encode, draw)
    long_enough = (text for text in given if len(text.ids) >= packing.shortest(frame))
    return [
        "".join(map(chr, window.ids)) for window in packing.windows(long_enough, iter(sizes), frame)
    ]


def test_one_takes_a_text_a_window_and_cuts_its_end():
    assert cut(One(), texts("abcdef", "g", "hi"), [4, 4]) == ["abcd", "g"]
    assert cut(One(), texts("ab"), [4, 4, 4]) == ["ab"]


def test_many_joins_with_the_separator_and_wastes_nothing():
    assert cut(Many(separator="--"), texts("abc", "d", "efg"), [4, 4, 4]) == ["abc-", "-d--", "efg"]
    assert cut(Many(separator=""), texts("abc", "d", "efg"), [4, 3]) == ["abcd", "efg"]
    assert cut(Many(), texts("abc", "de"), [7]) == ["abc\n\nde"]
    given = texts("abcd", "efgh", "ijkl")
    assert cut(Many(separator=""), given, [4, 2]) == ["abcd", "ef"]
    assert next(given).key == "ijkl", "a text was taken that isn't needed"
    assert cut(Many(), texts("abcdefghij"), [4, 4, 4]) == ["abcd", "efgh", "ij"]


def test_whole_cuts_no_text_that_fits_a_window():
    given = texts("ab", "cd", "e", "fghi", "jk")
    assert cut(Whole(), given, [4, 4, 4, 4]) == ["abcd", "e", "fghi", "jk"]
    # Only what is longer than a window is cut, and so is the first text of a smaller last window.
    assert cut(Whole(), texts("abcdef", "g"), [4, 4]) == ["abcd", "g"]
    assert cut(Whole(), texts("abc", "def"), [4, 2]) == ["abc", "de"]
    ended = [
        window.broken for window in Whole().windows(texts("ab", "cdefgh"), iter([4, 4]), FRAME)
    ]
    assert ended == [False, True]
    given = texts("abcd", "efgh")
    assert cut(Whole(), given, [4]) == ["abcd"]
    assert next(given).key == "efgh", "a text was taken that isn't needed"


def test_a_row_that_no_longer_fits_is_none_of_the_draw():
    rows = [f"{number:04}" for number in range(40)]
    source = as_source(rows)
    first = CalibrationSet(f"{source}:text@whole(bos='none')", samples=3, length=10)
    tokenizer = tiny_tokenizer()
    batch = first.tokens(tokenizer)
    assert batch.mask.sum(1).tolist() == [8, 8, 8]
    shown = {tokenizer.decode(row)[:4] for row in batch.ids}
    shown |= {tokenizer.decode(row)[4:8] for row in batch.ids}
    assert {row.text for row in batch.rows} == shown
    assert batch.facts["parts"][0]["rows"] == 6
    later = first.redrawn(1).tokens(tokenizer)
    assert not {row.text for row in later.rows} & shown
    exact = CalibrationSet(f"{source}:text@whole(bos='none')", tokens=21, length=10)
    assert exact.tokens(tokenizer).mask.sum(1).tolist() == [8, 8, 4, 1]


def test_crop_passes_short_texts_over_and_cuts_within_long_ones():
    long = "abcdefghijklmnop"
    windows = cut(Crop(), texts("abc", long, "abcd", "x"), [4, 4, 4])
    assert len(windows) == 2
    assert windows[0] in long
    assert windows[1] == "abcd"
    assert cut(Crop(), texts("abc"), [2]) == [], (
        "a part of a window came from a text that is too short"
    )
    assert len(cut(Crop(), texts("abcd"), [2])[0]) == 2


@pytest.mark.parametrize(("packing", "windows"), [("crop", 3), ("legacy(of='crop')", 2)])
def test_a_row_that_is_too_short_for_a_window_is_none_of_the_draw(
    packing: str, windows: int, started: PreTrainedTokenizerBase
):
    lengths = [3, 20, 9, 10, 25] * 4
    source = as_source([str(number).rjust(length) for number, length in enumerate(lengths)])
    data = CalibrationSet(f"{source}:text@{packing}", samples=windows, length=10)
    batch = data.tokens(started)
    (part,) = batch.facts["parts"]
    least = 9 if packing == "crop" else 10  # with the start token, a window and one more
    assert part["rows"] == len(batch.rows) == len(batch.examples) == windows
    assert all(len(row.text or "") >= least for row in batch.rows)
    assert part["row_lengths"][0] >= least
    order = [row.text or "" for row in data.parts[0].source.rows("calibrate")]
    read = order[: order.index(batch.rows[-1].text or "") + 1]
    if packing == "crop":
        assert part["too_short"] == sum(len(text) < least for text in read) > 0


def test_what_is_too_short_is_counted_with_its_start_token(started: PreTrainedTokenizerBase):
    source = as_source(["x" * 9, "y" * 10, "z" * 3])
    data = CalibrationSet(f"{source}:text@crop(bos='document')", samples=3, length=10)
    with pytest.raises(
        DataError, match=r"2 texts of at least 10 tokens \(the longest of 3 has 11\)"
    ):
        data.tokens(started)


@pytest.mark.parametrize(
    "text",
    [
        "random_tokens@crop",
        "random_tokens@legacy",
        "random_letters:chat(worked=true)",
    ],
)
def test_a_control_that_gives_no_window_is_refused(text: str):
    data = CalibrationSet(text, samples=2, length=600)
    with pytest.raises(DataError) as caught:
        data.tokens(tiny_tokenizer())
    assert caught.value.subject == str(data.parts[0].source)


def test_a_control_of_which_no_token_is_left_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(Regex(r"[\s\S]"), "")
    data = CalibrationSet("random_letters", samples=2, length=16)
    with pytest.raises(DataError, match="holds 0 tokens in 100 texts"):
        data.tokens(tokenizer)


def test_crop_looks_everywhere_and_differently_in_each_draw():
    long = "".join(map(chr, range(100, 400)))
    starts = {ord(cut(Crop(), texts(long), [4], draw=draw)[0][0]) - 100 for draw in range(300)}
    assert len(starts) > 150
    assert min(starts) < 20
    assert max(starts) > 276
    assert cut(Crop(), texts(long), [4], draw=7) == cut(Crop(), texts(long), [4], draw=7)


@pytest.mark.parametrize(
    ("packing", "counts"),
    [
        (One(), [3, 8]),
        (Many(), [13, 3]),
        (Many(separator=""), [9, 3]),
        (Crop(), [1, 4, 3, 5]),
        (ImatrixChunks(separator="-"), [11, 3, 2]),
    ],
)
def test_supply_counts_what_there_is(packing: Packing, counts: list[int]):
    assert [
        int(number)
        for number in re.findall(r"\d+", packing.supply([1, 3, 5], Frame(4, encode, 0, 1)))
    ] == counts


def windows(packing: Packing, given, sizes, length=8) -> list[Window]:
    return list(packing.windows(given, iter(sizes), Frame(length, encode)))


def test_shots_puts_that_many_texts_into_each_window():
    assert cut(
        Many(separator="-", shots=2), texts("ab", "c", "d", "efghijk", "l"), [8, 8, 8], length=8
    ) == ["ab-c", "d-efghij", "l"]
    assert [
        w.broken
        for w in windows(Many(separator="-", shots=2), texts("ab", "c", "d", "efghijk"), [8, 8])
    ] == [False, True]
    with pytest.raises(SpecError) as caught:
        Many(shots=0)
    assert caught.value.subject == "shots"


def test_isolated_texts_are_cut_apart_where_they_meet():
    found = windows(Many(isolate=True), texts("abc", "de", "fghijklmn", "op"), [8, 8])
    assert [["".join(map(chr, piece)) for piece in window.sequences()] for window in found] == [
        ["abc", "de", "fgh"],
        ["ijklmn", "op"],
    ]
    assert [window.broken for window in found] == [True, False]
    counted = windows(Many(isolate=True, shots=2), texts("abc", "de", "fghijklmn"), [8, 8])
    assert [["".join(map(chr, piece)) for piece in window.sequences()] for window in counted] == [
        ["abc", "de"],
        ["fghijklm"],
    ]


def test_legacy_pads_lone_texts_on_their_left_and_the_pads_count():
    found = windows(Legacy("one"), texts("abc", "abcdefghijk"), [8, 8])
    assert found[0].ids.tolist() == [PAD] * 5 + [97, 98, 99]
    assert "".join(map(chr, found[1].ids)) == "abcdefgh"


def test_legacy_takes_a_window_from_texts_that_overfill_it():
    given = ["abcd", "efgh", "ijkl", "mnop", "qrst"]
    found = [
        "".join(map(chr, window.ids)) for window in windows(Legacy("many"), texts(*given), [8])
    ]
    assert len(found) == 1
    assert found[0] in "abcdefghijkl"
    assert len(windows(Legacy("many"), texts(*given, *given), [8, 8, 8, 8])) == 3


def test_legacy_crops_only_what_is_longer_than_a_window():
    assert cut(Legacy("crop"), texts("abcdefgh", "abcdefghi"), [8, 8], length=8)[0] in (
        "abcdefgh",
        "bcdefghi",
    )
    assert len(cut(Legacy("crop"), texts("abcdefgh", "abcdefghi"), [8, 8], length=8)) == 1


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (lambda: Many(bos="documents"), "documents"),
        (lambda: Legacy("on"), "on"),
        (lambda: One(bos=""), ""),
    ],
)
def test_words_that_do_not_exist_are_named(make, given: str):
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.subject == given


def test_imatrix_is_one_stream_whose_rest_is_dropped():
    assert cut(ImatrixChunks(separator="-"), texts("abc", "d", "efghij"), [4, 4, 4]) == [
        "abc-",
        "d-ef",
        "ghij",
    ]
    assert cut(ImatrixChunks(separator="-"), texts("abc", "d", "efghi"), [4, 4, 4]) == [
        "abc-",
        "d-ef",
    ]


def test_imatrix_puts_the_start_token_in_place_of_a_windows_first():
    """As llama-imatrix does: the stream begins with a start token, and each window's first token
    is overwritten by one.
    """
    stream, windows = (
        "^" + "abcdefghijklm",
        ImatrixChunks(separator="").windows(
            texts("abcdef", "ghijklm"), iter([3, 3, 3, 3]), Frame(3, encode, 0, 1)
        ),
    )
    assert ["^" + "".join(map(chr, window.ids)) for window in windows] == [
        "^" + stream[at + 1 : at + 4] for at in (0, 4, 8)
    ]
