"""The grammar of calibration data: what its values hold, and how they are written back."""

from fractions import Fraction

import pytest

from calibrant.errors import DataError, InputError, SpecError
from calibrant.spec import Call
from calibrant.spec.grammar import (
    File,
    Mix,
    WrittenTerm,
    is_path,
    pieces,
    read_set,
    read_source,
    read_sum,
    written_path,
)

from tests.refusing import refused


def test_a_sum_is_read_into_parts():
    one, two = read_sum("3*gsm8k:cot(steps=3)@one + 7*'my data/*.jsonl'(text=body)")
    assert one == WrittenTerm(
        Call("gsm8k"), Call("cot", {"steps": 3}), Call("one"), Fraction(3, 10)
    )
    assert two == WrittenTerm(
        File("my data/*.jsonl", {"text": Call("body")}), share=Fraction(7, 10)
    )
    assert str(two.source) == "'my data/*.jsonl'(text=body)"
    unknown = WrittenTerm(Call("no_such_source"), Call("no_format"), Call("no_packing"))
    assert read_set("no_such_source:no_format@no_packing") == (unknown,), (
        "names are not looked up here"
    )
    assert read_source("my-source") == Call("my-source"), "another package may call its source so"


def mix_of(names: tuple[str, ...], sets: tuple[str, ...], *shares: Fraction) -> Mix:
    return Mix(names, tuple(map(read_sum, sets)), shares)


def test_a_mix_is_read_with_its_names():
    found = read_set("mix(domain=gsm8k:cot, general='c4 + pile', weight=0.25)")
    assert found == mix_of(
        ("domain", "general"), ("gsm8k:cot", "c4 + pile"), Fraction(1, 4), Fraction(3, 4)
    )
    assert str(found) == "mix(domain=gsm8k:cot, general=0.5*c4 + 0.5*pile, weight=0.25)"
    assert read_set("mix(a=c4, b=pile, weight=1)") == read_sum("c4"), (
        "what has no weight is left out"
    )


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("mix(c4=0.5, gsm8k=0.5)", "mix(c4=c4, gsm8k=gsm8k, weight=0.5)"),
        ("mix(c4=1, gsm8k=1)", "mix(c4=c4, gsm8k=gsm8k)"),
        ("mix( c4 = 70 %, gsm8k:cot = 30% )", "mix(c4=c4, gsm8k_cot=gsm8k:cot, weight=0.7)"),
        (
            "mix(c4=2, pile=3, gsm8k=5)",
            "mix(c4=c4, pile=pile, gsm8k=gsm8k, weights=[0.2, 0.3, 0.5])",
        ),
        ("mix(c4=1, pile=1, gsm8k=1)", "mix(c4=c4, pile=pile, gsm8k=gsm8k)"),
        ("mix(c4=1, pile=0, gsm8k=3)", "mix(c4=c4, gsm8k=gsm8k, weight=0.25)"),
        ("mix(c4=1, pile=0, gsm8k=2)", "mix(c4=c4, gsm8k=gsm8k, weights=[1, 2])"),
        (
            "mix(c4@one=1, c4@many(separator='=')=3)",
            "mix(c4_one=c4@one, c4_many_separator=c4@many(separator='='), weight=0.25)",
        ),
        (
            "mix('a, b=c.txt'=1, ./notes.txt=1)",
            "mix(a_b_c_txt='a, b=c.txt'(), notes_txt=./notes.txt)",
        ),
        ("mix('0.5'=1, ./0.5=1)", "mix(_0_5='0.5', _0_5_2=./0.5)"),
        ("mix(c4 + pile=1, gsm8k=1)", "mix(c4_pile=c4 + pile, gsm8k=gsm8k)"),
        ("mix(c4=1e-30, gsm8k=0.9)", "mix(c4=c4, gsm8k=gsm8k, weight=1.1111111111111111e-30)"),
        (
            "mix(c4=0.10000000000000003, pile=1, gsm8k=1)",
            "mix(c4=c4, pile=pile, gsm8k=gsm8k, weights=[0.10000000000000003, 1, 1])",
        ),
        (
            "mix(c4=1e-30, pile=1, gsm8k=1e30)",
            "mix(c4=c4, pile=pile, gsm8k=gsm8k, weights=[1e-30, 1, 1e30])",
        ),
    ],
)
def test_sources_with_their_weights_are_the_mix_of_them_by_their_names(text: str, same: str):
    found = read_set(text)
    assert found == read_set(same)
    assert isinstance(found, Mix)
    assert read_set(str(found)) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("c4)", "a bracket isn't opened"),
        ("c4(", "a bracket isn't closed"),
        ("mix(c4=1, gsm8k=1)@many", "nothing may stand behind a mix"),
        ("mix(c4=1, gsm8k=1e-20)", "too far apart"),
        ("'notes.jsonl'oops", "'oops' stands behind a path"),
        ("./notes(1).jsonl", "'.1..jsonl' stands behind a path, where only brackets"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(text: str, said: str):
    with pytest.raises(SpecError, match=said):
        read_set(text)


def test_of_two_sets_one_may_have_all_the_weight():
    assert read_set("mix(c4=1, gsm8k=0)") == read_sum("c4")


def test_a_file_that_is_called_like_a_number_is_none_in_quotes():
    found = read_set("mix(a='0.5', b=./0.5, weight=0.25)")
    files = (WrittenTerm(File("0.5")),), (WrittenTerm(File("./0.5")),)
    assert found == Mix(("a", "b"), files, (Fraction(1, 4), Fraction(3, 4)))
    assert str(found) == "mix(a='0.5', b=./0.5, weight=0.25)"
    assert read_set(str(found)) == found


@pytest.mark.parametrize(
    ("text", "error", "subject"),
    [
        ("", SpecError, ""),
        ("5", SpecError, "5"),
        ("c4:text:text", SpecError, "c4:text:text"),
        ("c4 + mix(a=c4, b=pile)", SpecError, "mix(a=c4, b=pile)"),
        ("0.5*c4 + pile", SpecError, "0.5*c4 + pile"),
        ("0*c4 + 1*pile", DataError, "0*c4 + 1*pile"),
        ("x*c4 + 1*pile", SpecError, "x*c4 + 1*pile"),
        ("1e999999999*c4 + 1*pile", SpecError, "1e999999999*c4 + 1*pile"),
        ("c4(", SpecError, "c4("),
        ("c4@many(separator=open('x'))", SpecError, "many(separator=open('x'))"),
        ("c4)", SpecError, "c4)"),
        ("a.jsonl(path=b)", SpecError, "a.jsonl"),
        ("'notes.jsonl'oops", SpecError, "notes.jsonl"),
        ("'notes.jsonl' (text=body)oops", SpecError, "notes.jsonl"),
        ("''", SpecError, "''"),
        ("''(text=body)", SpecError, "''(text=body)"),
        ("arithmetic(digits=2, digits=3)", SpecError, "digits"),
        ("0.5*c4 + 0.5*gsm8k:cot(steps=3, steps=4)", SpecError, "steps"),
        ("c4@many(separator=' ', separator='')", SpecError, "separator"),
        ("notes.jsonl(text=body, text=title)", SpecError, "text"),
        ("'my notes.jsonl'(text=body, text=title)", SpecError, "text"),
        (
            "mix(a=c4, b=pile, weights=[1, 2], b=gsm8k)",
            SpecError,
            "mix(a=c4, b=pile, weights=[1, 2], b=gsm8k)",
        ),
        ("mix(a=c4, gsm8k=0.5)", SpecError, "mix(a=c4, gsm8k=0.5)"),
        ("mix(c4=0.5, gsm8k=0.5, weight=0.5)", SpecError, "mix(c4=0.5, gsm8k=0.5, weight=0.5)"),
        ("mix(c4=0.5, c4=0.5)", SpecError, "mix(c4=0.5, c4=0.5)"),
        ("mix(c4=1)", SpecError, "mix(c4=1)"),
        ("mix(c4, gsm8k)", SpecError, "mix(c4, gsm8k)"),
        ("mix(c4=-1, gsm8k=2)", DataError, "mix(c4=-1, gsm8k=2)"),
        ("mix(c4=0, gsm8k=0%)", DataError, "mix(c4=0, gsm8k=0%)"),
        ("mix(c4=1e99, gsm8k=1)", SpecError, "mix(c4=1e99, gsm8k=1)"),
        ("mix(c4=1, gsm8k=1e-20)", SpecError, "mix(c4=1, gsm8k=1e-20)"),
        ("mix(c4=1e-20, gsm8k=1e20)", SpecError, "mix(c4=1e-20, gsm8k=1e20)"),
        (
            "mix(a=c4, b=gsm8k, weight=0.99999999999999999999)",
            SpecError,
            "mix(a=c4, b=gsm8k, weight=0.99999999999999999999)",
        ),
        (
            f"mix(c4={'9' * 70}, pile=1, gsm8k=1e-30)",
            SpecError,
            f"mix(c4={'9' * 70}, pile=1, gsm8k=1e-30)",
        ),
        ("mix(c4=1, gsm8k=1)@many", SpecError, "mix(c4=1, gsm8k=1)@many"),
        ("mix(c4=1, gsm8k=1)@many(bos='none')", SpecError, "mix(c4=1, gsm8k=1)@many(bos='none')"),
        ("mix(mix(a=c4, b=pile)=1, gsm8k=1)", SpecError, "mix(a=c4, b=pile)"),
        (
            "mix(a=c4, b=pile, weights=[1, 2], weights=[1, 1])",
            SpecError,
            "mix(a=c4, b=pile, weights=[1, 2], weights=[1, 1])",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_by_what_was_given(
    text: str, error: type[InputError], subject: str
):
    with pytest.raises(error) as caught:
        read_set(text)
    assert caught.value.subject.strip() == subject


def test_marks_within_quotes_and_brackets_divide_nothing():
    assert pieces("a:'b:c':(d:e):[f:g]", ":") == ["a", "'b:c'", "(d:e)", "[f:g]"]
    assert pieces(r"'C:\data':x", ":") == [r"'C:\data'", "x"], (
        "a backslash in a path escapes nothing"
    )
    assert pieces(r"c4(x='it\'s:'):x", ":") == [r"c4(x='it\'s:')", "x"]


def test_paths_are_known_by_a_folder_or_an_ending():
    assert [is_path(name) for name in ("c4", "notes.jsonl", "~me", r"C:\data", "data/x")] == [
        False,
        True,
        True,
        True,
        True,
    ]
    assert [written_path(path) for path in ("notes.jsonl", "data", "it's.txt")] == [
        "notes.jsonl",
        "'data'",
        '"it\'s.txt"',
    ]
    with refused(SpecError, "a'b\"c.txt"):
        written_path("a'b\"c.txt")
