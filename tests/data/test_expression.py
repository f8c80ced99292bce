"""The grammar: what is read, how it is written back, and what is refused."""

from fractions import Fraction
from pathlib import Path

import pytest

from calibrant.data import CalibrationSet, held_out
from calibrant.data.expression import Term, parse_expression, parse_format, parse_source
from calibrant.data.packings import packings
from calibrant.data.packings._base import Packing
from calibrant.data.packings.legacy import Legacy
from calibrant.errors import CalibrantError, DataError, SpecError

from tests.refusing import refused


@pytest.mark.parametrize(
    ("text", "form", "packing", "written"),
    [
        ("wikitext", "text", "many", "wikitext"),
        ("gsm8k", "qa", "many", "gsm8k:icl"),
        ("gsm8k:zero", "question", "one", "gsm8k:zero"),
        ("gsm8k:single", "qa", "one", "gsm8k:single"),
        ("gsm8k : cot @ one", "cot", "one", "gsm8k:cot@one"),
        (
            "wikitext:text@many(separator=' + ')",
            "text",
            "many(separator=' + ')",
            "wikitext@many(separator=' + ')",
        ),
        ("gsm8k:cot@many(separator='\\n\\n')", "cot", "many", "gsm8k:cot"),
        ("gsm8k:cot(steps=3)", "cot(steps=3)", "many", "gsm8k:cot(steps=3)"),
        ("ultrachat", "chat", "many(separator='')", "ultrachat"),
        ("gsm8k:chat", "chat", "many(separator='')", "gsm8k:chat"),
        (
            "gsm8k:qa@many(bos='document')",
            "qa",
            "many(bos='document')",
            "gsm8k:qa@many(bos='document')",
        ),
    ],
)
def test_one_term(text: str, form: str, packing: str, written: str):
    (term,) = parse_expression(text)
    assert (str(term.format), str(term.packing), str(term)) == (form, packing, written)
    assert parse_expression(written) == (term,)


BARE = [packings.get(name)() for name in packings.names()]
PACKINGS = [*BARE, *(Legacy(of) for of in ("one", "many", "crop"))]


@pytest.mark.parametrize("packing", PACKINGS, ids=repr)
@pytest.mark.parametrize(
    "named",
    [
        "wikitext:text",
        "gsm8k:qa",
        "gsm8k:cot",
        "gsm8k:question",
        "gsm8k:chat",
        "random_tokens:text",
    ],
)
def test_every_packing_is_read_back_in_every_format(named: str, packing: Packing):
    source, _, form = named.partition(":")
    rendered, _ = parse_format(form)
    term = Term(parse_source(source), rendered, packing)
    assert parse_expression(str(term)) == (term,)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("0.30*gsm8k:cot+0.7 * wikitext", "0.3*gsm8k:cot + 0.7*wikitext"),
        ("3*gsm8k:cot + 7*wikitext", "0.3*gsm8k:cot + 0.7*wikitext"),
        ("wikitext + gsm8k + python_docs", "1*wikitext + 1*gsm8k:icl + 1*python_docs"),
    ],
)
def test_the_canonical_text_reads_back_as_the_same(text: str, canonical: str):
    assert str(CalibrationSet(text)) == canonical
    assert parse_expression(canonical) == parse_expression(text)


def test_shares_are_exact():
    assert [t.share for t in parse_expression("0.1*wikitext + 0.2*gsm8k + 0.7*python_docs")] == [
        Fraction(1, 10),
        Fraction(2, 10),
        Fraction(7, 10),
    ]
    assert sum(t.share for t in parse_expression("wikitext + gsm8k + python_docs")) == 1


@pytest.mark.parametrize(
    "name", ["plain.jsonl", "with space.jsonl", "a+b*c:d@e.jsonl", "don't.jsonl"]
)
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
    assert parse_expression("mine.jsonl") == parse_expression("'mine.jsonl'")
    assert (
        str(CalibrationSet("0.5*mine.jsonl + 0.5*./mine.jsonl@one"))
        == "0.5*mine.jsonl + 0.5*./mine.jsonl@one"
    )


MISSPELT = [
    "wikitext(x=__import__('os'))",
    "x*wikitext",
    "data/*.jsonl",
    "",
    "wikitext:text:text",
    "5",
    "mix(a=gsm8k, weight=0.5)",
    "mix()",
    "mix(a=gsm8k, 2b=wikitext, weight=0.5)",
    "mix(a=gsm8k, b=wikitext, weight=0.5):text",
    "mix(a=gsm8k",
]
IMPOSSIBLE = [
    "0*wikitext + 1*gsm8k",
    "nowhere/mine.jsonl",
    "mix(a=gsm8k, b=wikitext, weights=[1, -1])",
    "mix(a=gsm8k, b=wikitext, weight=-0.5)",
]
WITHIN = [
    ("wikitxt", SpecError, "wikitxt"),
    ("gsm8k:cott", SpecError, "cott"),
    ("wikitext@croq", SpecError, "croq"),
    ("wikitext@many(separator=3)", SpecError, "separator"),
    ("wikitext@many(separator=__import__('os'))", SpecError, "many(separator=__import__('os'))"),
    ("wikitext +", SpecError, ""),
    ("wikitext:'a'", SpecError, "'a'"),
    ("a.jsonl(path='b.jsonl')", SpecError, "a.jsonl"),
    ("wikitext:qa", DataError, "wikitext"),
    ("mix(a=gsm9k, b=wikitext, weight=0.5)", SpecError, "gsm9k"),
    ("mix(a=wikitext:cot, b=wikitext, weight=0.5)", DataError, "wikitext"),
]
WHOLE = [
    *((text, SpecError, text) for text in MISSPELT),
    *((text, DataError, text) for text in IMPOSSIBLE),
]


@pytest.mark.parametrize(("text", "error", "subject"), [*WHOLE, *WITHIN])
def test_refusals_name_what_was_given(text: str, error: type[CalibrantError], subject: str):
    with pytest.raises(error) as caught:
        CalibrationSet(text)
    assert caught.value.subject.strip() == subject
    assert subject in str(caught.value)
    assert "\n" not in str(caught.value)


def test_held_out_gives_source_and_format():
    source, form = held_out("gsm8k")
    assert (str(source), str(form)) == ("gsm8k", "qa")
    assert [str(held_out("gsm8k", name)[1]) for name in ("cot", "zero")] == ["cot", "question"]
    assert str(held_out("wikitext")[1]) == "text"
    assert str(held_out("gsm8k:cot(steps=3)")[1]) == "cot(steps=3)"
    with refused(SpecError, "gsm8k:"):
        held_out("gsm8k:")
    for given in (("full_stops",), ("wikitext", "qa")):
        with pytest.raises(DataError) as caught:
            held_out(*given)
        assert caught.value.subject == given[0]


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
    with pytest.raises(DataError) as caught:
        parse_expression(f"{sheet}:icl(question='Q', answer='A1')")
    assert caught.value.subject == "Q"
