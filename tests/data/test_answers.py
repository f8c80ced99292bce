"""What a text says the answer is."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrant.data._answers import number_of, numbers, read_choice, read_number, same


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,200", [1200]),
        ("$1,234,567.50.", [Fraction("1234567.5")]),
        ("-3 and −4 and 5", [-3, -4, 5]),
        ("5 - 3 = 2", [5, 3, 2]),
        ("2 1/2 cups", [Fraction(5, 2)]),
        ("5/0", []),
        ("1.5e3", [1500]),
        ("9" * 5000, []),
        ("٣", []),
    ],
)
def test_numbers(text: str, expected: list[Fraction | int]) -> None:
    assert [number.value for number in numbers(text)] == expected


@settings(max_examples=50)
@given(st.text(max_size=300))
def test_any_text_can_be_read(text: str) -> None:
    for number in numbers(text):
        assert len(str(number)) < 120
    read_number(text)
    read_choice(text, ("no", "yes"), ("A", "B"))


def test_a_long_text_is_read_to_its_end() -> None:
    """One pattern that goes back and forth over such a text would never be done."""
    for text in (
        "1" * 9_000,
        "1," * 5_000,
        "1/" * 5_000,
        "1 1 " * 2_500,
        "answer is " * 1_000,
        "-" * 9_000,
    ):
        read_number(text)


def test_nothing_is_executed() -> None:
    assert read_number("__import__('os').abort() or 7") == number_of("7")
    assert read_number("2**9**9**9") == number_of("9")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("She has 3 left, so 18", "18"),
        ("16 - 3 = 13\nThe answer is 13. Or 99", "13"),
        ("The answer is $1,200.50 for 3 days.", "1200.50"),
        ("The answer is 6 * 3 = 18 eggs.", "18"),
        ("The answer is 4. No, the answer is 5.", "5"),
        ("It is 12. The answer is unknown.", "12"),
    ],
)
def test_the_number_a_text_gives(text: str, expected: str | None) -> None:
    found = read_number(text)
    assert (found and str(found)) == expected


@pytest.mark.parametrize(
    ("found", "gold", "alike"),
    [
        ("18", "18", True),
        ("0.67", "0.6666666666666666", True),
        ("2/3", "0.6666666666666666", True),
        ("0.675", "0.6666666666666666", False),
        ("-5", "5", False),
    ],
)
def test_when_two_numbers_are_the_same(found: str, gold: str, alike: bool) -> None:
    left, right = number_of(found), number_of(gold)
    assert left is not None
    assert right is not None
    assert same(left, right) is alike


LETTERS, TEXTS = ("A", "B", "C"), ("bloody mess", "friend", "A friend indeed")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(B)", 1),
        (" [c] because", 2),
        ("Bloody mess!", 0),
        ("A friend indeed", 2),
        ("A dog", None),
        ("I say A. The answer is C.", 2),
        ("The answer is (B).", 1),
    ],
)
def test_the_choice_a_text_names(text: str, expected: int | None) -> None:
    assert read_choice(text, TEXTS, LETTERS) == expected


def test_labels_that_are_the_choices() -> None:
    labels = ("entailment", "not_entailment", "neutral")
    said = ("Entailment.", "not entailment", "neutral because nobody knows", "no")
    assert [read_choice(text, labels) for text in said] == [0, 1, 2, None]
    assert read_choice("nothing", ("no", "yes")) is None
    assert [read_choice(text, ("Ian", "Dennis"), ("1", "2")) for text in ("1.5", "2")] == [None, 1]
