"""The grammar of calibration data: what its values hold, and that a label read from a text is the one that the set itself has."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from calibrant.data import CalibrationSet
from calibrant.errors import DataError, InputError, SpecError
from calibrant.grammar import File, MeasuredLabel, Mix, Part, SetLabel, is_path, pieces, read_measured, read_set, read_source, set_label, written_path
from calibrant.spec import Call

from tests.refusing import refused


def test_a_sum_is_read_into_parts():
    one, two = read_set("3*gsm8k:cot(steps=3)@one + 7*'my data/*.jsonl'(text=body)")
    assert one == Part(Call("gsm8k"), Call("cot", {"steps": 3}), Call("one"), Fraction(3, 10))
    assert two == Part(File("my data/*.jsonl", {"text": Call("body")}), share=Fraction(7, 10))
    assert str(two.source) == "'my data/*.jsonl'(text=body)"
    unknown = Part(Call("no_such_source"), Call("no_format"), Call("no_packing"))
    assert read_set("no_such_source:no_format@no_packing") == (unknown,), "names are not looked up here"
    assert read_source("my-source") == Call("my-source"), "another package may call its source so"


def test_a_mix_is_read_with_its_names():
    found = read_set("mix(domain=gsm8k:cot, general='c4 + pile', weight=0.25)")
    assert found == Mix(("domain", "general"), ("gsm8k:cot", "c4 + pile"), (Fraction(1, 4), Fraction(3, 4)))
    assert str(found) == "mix(domain=gsm8k:cot, general=c4 + pile, weight=0.25)"
    assert read_set("mix(a=c4, b=pile, weight=1)") == Mix(("a",), ("c4",), (Fraction(1),)), "what has no weight is left out"


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
        ("a.jsonl(path=b)", SpecError, "a.jsonl"),
        ("arithmetic(digits=2, digits=3)", SpecError, "digits"),
        ("0.5*c4 + 0.5*gsm8k:cot(steps=3, steps=4)", SpecError, "steps"),
        ("c4@many(separator=' ', separator='')", SpecError, "separator"),
        ("notes.jsonl(text=body, text=title)", SpecError, "text"),
        ("'my notes.jsonl'(text=body, text=title)", SpecError, "text"),
        ("mix(a=c4, b=pile, weights=[1, 2], b=gsm8k)", SpecError, "mix(a=c4, b=pile, weights=[1, 2], b=gsm8k)"),
        ("mix(a=c4, b=pile, weights=[1, 2], weights=[1, 1])", SpecError, "mix(a=c4, b=pile, weights=[1, 2], weights=[1, 1])"),
    ],
)
def test_what_cannot_be_read_is_refused_by_what_was_given(text: str, error: type[InputError], subject: str):
    with pytest.raises(error) as caught:
        read_set(text)
    assert caught.value.subject.strip() == subject


@pytest.mark.parametrize(
    "text",
    [
        "c4@crop",
        "gsm8k:zero",
        "gsm8k:cot(steps=3)@many(separator=' + ')",
        "redpajama(subsets=['github', 'arxiv'])",
        "zipcal(source='c4 + pile')",
        "similar(source=c4, to='gsm8k:cot')@crop",
        "0.3*gsm8k:cot + 0.7*c4",
        "mix(domain=gsm8k:cot, general=c4, weight=0.5)",
        "arithmetic:chat",
    ],
)
def test_the_label_of_a_text_is_that_of_the_set(text: str):
    made = CalibrationSet(text).label
    read = set_label(made.text)
    assert made.text == str(CalibrationSet(text))
    assert read == replace(made, family=read.family), "what a set is about isn't in its text"


def test_the_label_of_a_file_is_that_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a: b.jsonl").write_text('{"Q": "why?", "A": "because"}\n')
    made = CalibrationSet("'a: b.jsonl':icl(question='Q', answer='A')@crop").label
    assert made == SetLabel(made.text, "'a: b.jsonl'(question='Q', answer='A')", "", "qa", "crop", "qa@crop", "own")
    assert set_label(made.text) == made


def test_a_label_that_cannot_be_read_has_a_source_at_most():
    assert set_label("what ( is this") == SetLabel("what ( is this", "what ( is this")
    assert set_label("javascript:alert(1)") == SetLabel("javascript:alert(1)", "javascript")


@pytest.mark.parametrize(
    ("text", "source", "brief"),
    [
        ("wikitext:text", "wikitext", "wikitext"),
        ("race (3-shot, seed 1)", "race", "race (3-shot, seed 1)"),
        ("gsm8k, 3-shot, cot", "gsm8k", "gsm8k, 3-shot, cot"),
        ("wikitext:text, joined", "wikitext", "wikitext"),
        ("arc_easy, 5-shot (harness)", "arc_easy", "arc_easy, 5-shot (harness)"),
        ("flores(language='fra_Latn'):text", "flores(language='fra_Latn')", "flores(language='fra_Latn')"),
        ("'a: b.jsonl':text", "'a: b.jsonl'", "'a: b.jsonl'"),
        ("what ( is this", "what ( is this", "what ( is this"),
    ],
)
def test_what_was_measured_is_of_a_source(text: str, source: str, brief: str):
    assert read_measured(text) == MeasuredLabel(source, brief)


def test_marks_within_quotes_and_brackets_divide_nothing():
    assert pieces("a:'b:c':(d:e):[f:g]", ":") == ["a", "'b:c'", "(d:e)", "[f:g]"]
    assert pieces(r"'C:\data':x", ":") == [r"'C:\data'", "x"], "a backslash in a path escapes nothing"
    assert pieces(r"c4(x='it\'s:'):x", ":") == [r"c4(x='it\'s:')", "x"]


def test_paths_are_known_by_a_folder_or_an_ending():
    assert [is_path(name) for name in ("c4", "notes.jsonl", "~me", r"C:\data", "data/x")] == [False, True, True, True, True]
    assert [written_path(path) for path in ("notes.jsonl", "data", "it's.txt")] == ["notes.jsonl", "'data'", '"it\'s.txt"']
    with refused(SpecError, "a'b\"c.txt"):
        written_path("a'b\"c.txt")
