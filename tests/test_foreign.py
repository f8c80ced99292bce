"""What comes from outside is only read: never acted on by a terminal, never repeated at length,
never an unnamed fault as a path.
"""

import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrant.errors import LINE, QUOTED, CalibrantError, DataError, InputError
from calibrant.spec.foreign import brief, user_path, visible, visible_data


@given(st.text(st.characters(codec=None), max_size=200))
def test_nothing_visible_acts_on_a_terminal(text: str):
    shown = visible(text)
    for letter in shown:
        assert letter in "\n\t" or unicodedata.category(letter) not in ("Cc", "Cs"), hex(
            ord(letter)
        )
        assert unicodedata.bidirectional(letter) not in {
            "LRE",
            "RLE",
            "LRO",
            "RLO",
            "PDF",
            "LRI",
            "RLI",
            "FSI",
            "PDI",
        }
    shown.encode("utf-8")
    assert visible(shown) == shown


@pytest.mark.parametrize("text", ["plain", "naïve – 中文 🙂", "a\tb\nc", "a\u00adb", "e\u0301"])
def test_what_is_harmless_stays_as_it_is(text: str):
    assert visible(text) == text


def test_plain_data_is_made_visible_everywhere():
    data = {"\x1bkey": ["\x07", ("\u202e", 1, None)]}
    assert json.dumps(visible_data(data)) == '{"\\\\x1bkey": ["\\\\x07", ["\\\\u202e", 1, null]]}'


@pytest.mark.parametrize(
    "value", ["x" * 10**6, 10**3000, [[[[[[[[1]]]]]]]] * 1000, {"k" * 500: "v" * 500}]
)
def test_a_value_in_a_message_is_a_line_at_most(value: object):
    assert len(brief(value)) <= 90
    assert "\n" not in brief(value)


@pytest.mark.parametrize(
    "text",
    ["~no-such-user-here/x", "a/" * 3000 + "b", "a/" * 1500 + "b", "x" * 300, "a\0b", "a\ud800b"],
)
def test_what_no_file_can_be_called_is_a_sentence(text: str):
    with pytest.raises(DataError) as caught:
        user_path(text, DataError)
    assert len(str(caught.value)) < 300
    assert caught.value.subject == text


def test_a_path_need_not_exist(tmp_path: Path):
    assert user_path(str(tmp_path / "not" / "there")) == tmp_path / "not" / "there"
    (tmp_path / "file").touch()
    assert user_path(tmp_path / "file" / "below") == tmp_path / "file" / "below"
    assert user_path("~") == Path.home()


@pytest.mark.parametrize(
    "message",
    ["there is no 'X' here; give Y", "one 'X'\nother 'X', no less", "no \"X\", and no 'X'; give Y"],
)
def test_an_error_repeats_what_was_given_to_a_line_at_most(message: str):
    said = str(CalibrantError(message.replace("X", "x" * 5000)))
    assert len(said) < 2 * QUOTED + 60
    assert said.count("…") == message.count("X")
    assert said.count("\n") == message.count("\n")
    assert said.endswith(message[-8:])


def test_of_a_long_message_the_end_stays_of_a_long_path_the_files_name_and_a_short_message_whole():
    said = str(InputError(f"{'x' * 100_000} is too long; shorten it"))
    assert len(said) < LINE
    assert said.endswith("is too long; shorten it")
    said = str(InputError(f"'/{'folder/' * 100}study.yaml' can't be read; give another"))
    assert "/study.yaml' can't be read; give another" in said
    assert len(said) < 200
    for short in (
        "there is no method called 'wnada', perhaps you mean 'wanda'",
        f"it can't {'be done ' * 40} with 'this'",
    ):
        assert str(InputError(short)) == short
