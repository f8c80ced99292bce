"""The grammar: what is read, how it is written back, and what is refused."""

from fractions import Fraction
from pathlib import Path

import pytest

from calibrant.data import CalibrationSet, held_out, parse_source
from calibrant.data.expression import parse_expression
from calibrant.errors import CalibrantError, DataError, SpecError


def said(text: str) -> list[tuple[str, str, str]]:
    return [(str(t.source), str(t.format), str(t.packing)) for t in parse_expression(text)]


@pytest.mark.parametrize(
    ("text", "source", "form", "packing"),
    [
        ("wikitext", "wikitext", "text", "many"),
        ("gsm8k", "gsm8k", "qa", "many"),
        ("gsm8k:zero", "gsm8k", "question", "one"),
        ("gsm8k:single", "gsm8k", "qa", "one"),
        ("gsm8k:icl", "gsm8k", "qa", "many"),
        ("gsm8k:cot", "gsm8k", "cot", "many"),
        ("gsm8k:cot@one", "gsm8k", "cot", "one"),
        ("gsm8k:qa@crop", "gsm8k", "qa", "crop"),
        ("gsm8k : cot @ one", "gsm8k", "cot", "one"),
        ("wikitext@crop", "wikitext", "text", "crop"),
        ("wikitext:text@many(separator=' + ')", "wikitext", "text", "many(separator=' + ')"),
        ("wikitext@many(separator='\\n')", "wikitext", "text", "many(separator='\\n')"),
        ("random_tokens", "random_tokens", "text", "many(separator='')"),
    ],
)
def test_one_term(text: str, source: str, form: str, packing: str):
    assert said(text) == [(source, form, packing)]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("wikitext:text@many", "wikitext"),
        ("gsm8k", "gsm8k:icl"),
        ("gsm8k:qa@many", "gsm8k:icl"),
        ("gsm8k:question@one", "gsm8k:zero"),
        ("gsm8k:question", "gsm8k:question"),
        ("gsm8k:cot@many(separator='\\n\\n')", "gsm8k:cot"),
        ("random_tokens:text", "random_tokens"),
        ("0.30*gsm8k:cot+0.7 * wikitext", "0.3*gsm8k:cot + 0.7*wikitext"),
        ("3*gsm8k:cot + 7*wikitext", "0.3*gsm8k:cot + 0.7*wikitext"),
        ("wikitext + gsm8k + python_docs", "1*wikitext + 1*gsm8k:icl + 1*python_docs"),
        ("2*wikitext", "wikitext"),
        ("1e-1*wikitext + .9*gsm8k", "0.1*wikitext + 0.9*gsm8k:icl"),
    ],
)
def test_the_canonical_text_reads_back_as_the_same(text: str, canonical: str):
    assert str(CalibrationSet(text)) == canonical
    assert parse_expression(canonical) == parse_expression(text)


def test_shares_are_exact():
    assert [t.share for t in parse_expression("0.1*wikitext + 0.2*gsm8k + 0.7*python_docs")] == [Fraction(1, 10), Fraction(2, 10), Fraction(7, 10)]
    assert sum(t.share for t in parse_expression("wikitext + gsm8k + python_docs")) == 1


@pytest.mark.parametrize("name", ["plain.jsonl", "with space.jsonl", "a+b*c:d@e.jsonl", "don't.jsonl"])
def test_a_quoted_path_stands_for_a_source(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_text('{"body": "a text"}\n')
    quote = '"' if "'" in name else "'"
    (term,) = parse_expression(f"{quote}{path}{quote}(text=body):text@one")
    assert term.source.path == str(path)
    assert term.source.text == "body"
    assert parse_expression(str(term)) == (term,)


def test_a_plain_path_needs_no_quotes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text('{"text": "a"}\n')
    assert said("mine.jsonl") == said("'mine.jsonl'") == [("mine.jsonl", "text", "many")]
    assert str(CalibrationSet("0.5*mine.jsonl + 0.5*./mine.jsonl@one")) == "0.5*mine.jsonl + 0.5*./mine.jsonl@one"


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("wikitxt", SpecError, "no source called 'wikitxt', did you mean 'wikitext'"),
        ("gsm8k:cott", SpecError, "no format called 'cott', did you mean 'cot'"),
        ("gsm8k:iccl", SpecError, "no format called 'iccl', did you mean 'icl'"),
        ("wikitext@croq", SpecError, "no packing called 'croq', did you mean 'crop'"),
        ("wikitext@many(seperator=' ')", SpecError, "no parameter 'seperator', did you mean 'separator'"),
        ("wikitext@many(separator=3)", SpecError, "separator=3"),
        ("wikitext(x=__import__('os'))", SpecError, "__import__"),
        ("wanda(x=__import__('os'))", SpecError, "__import__"),
        ("wikitext@many(separator=__import__('os'))", SpecError, "__import__"),
        ("x*wikitext", SpecError, "'x' is no weight"),
        ("2*3*wikitext", SpecError, "'2' is no weight"),
        ("0*wikitext + 1*gsm8k", DataError, "weight 0 must be above 0"),
        ("-0.5*wikitext + 1*gsm8k", DataError, "weight -0.5 must be above 0"),
        ("0.5*wikitext + gsm8k", SpecError, "'0.5.wikitext . gsm8k': some parts have a weight"),
        ("", SpecError, "empty calibration set ''"),
        ("wikitext +", SpecError, "'' is no calibration set"),
        ("wikitext:text:text", SpecError, "'wikitext:text:text' is no calibration set"),
        ("wikitext@one@one", SpecError, "'wikitext@one@one' is no calibration set"),
        ("wikitext:'a'", SpecError, "\"'a'\" is no name"),
        ("'mine.jsonl", SpecError, "'mine.jsonl\": a quote isn't closed"),
        ("wikitext(", SpecError, r"'wikitext\(': a bracket isn't closed"),
        ("5", SpecError, "'5' is no source"),
        ("wikitext:qa", DataError, "wikitext can't be rendered as qa: that needs question, answer, and wikitext has text"),
        ("random_tokens:cot", DataError, "random_tokens can't be rendered as cot.*has integers"),
        ("gsm8k:text", DataError, "gsm8k can't be rendered as text.*gsm8k has question, answer, rationale"),
        ("nowhere/mine.jsonl", DataError, "no file 'nowhere/mine.jsonl'"),
    ],
)
def test_refusals_name_what_was_given(text: str, error: type[CalibrantError], match: str):
    with pytest.raises(error, match=match) as caught:
        CalibrationSet(text)
    assert "\n" not in str(caught.value)


def test_a_path_is_not_given_as_an_argument():
    with pytest.raises(SpecError, match=r"'a.jsonl': the path stands before the brackets"):
        CalibrationSet("a.jsonl(path='b.jsonl')")


def test_a_path_with_both_quotes_cannot_be_written(tmp_path: Path):
    from calibrant.data.user_file import UserFile

    path = tmp_path / "a'b\"c.txt"
    path.write_text("text")
    with pytest.raises(SpecError, match="both kinds of quotes"):
        str(UserFile(str(path)))


def test_held_out_gives_source_and_format():
    source, form = held_out("gsm8k")
    assert (str(source), str(form)) == ("gsm8k", "qa")
    assert [str(held_out("gsm8k", name)[1]) for name in ("cot", "zero")] == ["cot", "question"]
    assert str(held_out("wikitext")[1]) == "text"
    with pytest.raises(DataError, match="'full_stops' is a control"):
        held_out("full_stops")
    with pytest.raises(DataError, match="wikitext can't be rendered as qa"):
        held_out("wikitext", "qa")


def test_sources_are_read_with_their_arguments(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,reply\nwhy,because\n")
    source = parse_source(f"{path}(question=prompt, answer='reply')")
    assert source.fields == ("question", "answer")
    assert parse_source(str(source)) == source


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "sheet.csv"
    path.write_text("Q1,A1,why\n" + "\n".join(f"{i}+1?,{i + 1},because {i}" for i in range(40)))
    return path


def test_a_format_can_name_the_columns_of_a_users_file(sheet: Path):
    (term,) = parse_expression(f"{sheet}:cot(question='Q1', answer='A1', rationale='why', steps=1)")
    assert str(term.format) == "cot(steps=1)"
    assert str(term.source) == f"{sheet}(question='Q1', answer='A1', rationale='why')"
    (again,) = parse_expression(str(term))
    assert again == term
    with pytest.raises(DataError, match=r"no column 'Q'.*did you mean 'Q1'"):
        parse_expression(f"{sheet}:icl(question='Q', answer='A1')")


@pytest.mark.parametrize(
    ("text", "format", "packing", "written"),
    [
        ("gsm8k:cot(steps=3)", "cot(steps=3)", "many", "gsm8k:cot(steps=3)"),
        ("c4@legacy", "text", "legacy(of='crop')", "c4@legacy(of='crop')"),
        ("gsm8k:question@legacy", "question", "legacy(of='one')", "gsm8k:question@legacy(of='one')"),
        ("gsm8k@legacy", "qa", "legacy", "gsm8k:qa@legacy"),
        ("gsm8k:qa@legacy(of='one')", "qa", "legacy(of='one')", "gsm8k:qa@legacy(of='one')"),
        ("ultrachat", "chat", "many(separator='')", "ultrachat"),
        ("gsm8k:chat", "chat", "many(separator='')", "gsm8k:chat"),
        ("gsm8k:qa@many(bos='document')", "qa", "many(bos='document')", "gsm8k:qa@many(bos='document')"),
    ],
)
def test_what_the_formats_and_packings_of_the_study_stand_for(text: str, format: str, packing: str, written: str):
    (term,) = parse_expression(text)
    assert (str(term.format), str(term.packing), str(term)) == (format, packing, written)
    assert parse_expression(str(term)) == (term,)


def test_a_set_without_rationales_is_refused_with_those_that_have_some():
    with pytest.raises(DataError, match=r"race can't be rendered as cot.*needs rationale.*sets that have it: .*esnli, gsm8k") as caught:
        parse_expression("race:cot")
    assert caught.value.subject == "race"
    assert "winogrande" not in str(caught.value).partition("sets that have it")[2]


def test_an_unquoted_glob_is_told_to_be_quoted():
    with pytest.raises(SpecError, match=r"'data/' is no weight.*quote a path that has \* in it"):
        parse_expression("data/*.jsonl")
