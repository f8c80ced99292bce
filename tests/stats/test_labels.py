from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from calibrant.data import CalibrationSet
from calibrant.lab.stats import label_measured, label_set, read
from calibrant.lab.stats.labels import MeasuredLabel
from calibrant.results import Cell, Record, Run, Store
from calibrant.spec.grammar import SetLabel
from calibrant.testing import tiny_tokenizer


@pytest.mark.parametrize(
    ("expression", "family"),
    [
        ("gsm8k:cot@many", "arithmetic"),
        ("c4@crop", "corpus"),
        ("redpajama(subsets=['github'])", "corpus"),
        ("mix(a=c4, b=gsm8k:cot, weight=0.5)", "mixed"),
        ("zipcal(source='c4 + pile')", "selected"),
        ("0.5*selfgen + 0.5*c4", "mixed"),
        ("'data/*.jsonl':qa", "own"),
        ("no ( such text", "own"),
        ("", "own"),
    ],
)
def test_an_expression_has_the_family_of_its_source(expression: str, family: str):
    assert label_set(expression).family == family


def store_of(folder: Path, data: str, parts: list[dict[str, str]], run: str = "") -> Store:
    store = Store(folder)
    asked = Run(
        "sha256:m",
        "tiny",
        data,
        "sha256:t",
        {"spec": "wanda", "revision": 1},
        "0.5",
        {},
        "",
        "float32",
    )
    kept = store.add_record(Record(asked, 0.5, data_facts={"parts": parts} if parts else {}))
    store.write_cells([Cell("tiny", data, "wanda", "0.5", 0, run or kept)])
    return store


@pytest.mark.parametrize(
    ("data", "parts", "family"),
    [
        ("chemistry:icl", [{"family": "reading"}], "reading"),
        ("chemistry:icl", [{"family": "of a later version"}], "own"),
        ("gsm8k:icl", [{"origin": "an older record"}], "arithmetic"),
        ("gsm8k:icl", [], "arithmetic"),
        ("1*gsm8k:icl + 1*chemistry", [{"family": "arithmetic"}, {"family": "reading"}], "mixed"),
    ],
)
def test_a_record_tells_the_family_of_its_set_unless_the_index_does(
    tmp_path: Path, data: str, parts: list[dict[str, str]], family: str
):
    store = store_of(tmp_path, data, parts)
    label = read(store).label(data)
    assert (label.text, label.family) == (data, family)
    store.write_cells(store.cells(), sets=[replace(label_set("esnli:cot"), text=data)])
    told = read(store).label(data)
    assert (told.source, told.family) == ("esnli", "inference")


ELEMENTS = """
from dataclasses import dataclass
from calibrant.data import Row, SourceRows, StoredSource, divide

@dataclass(frozen=True, repr=False)
class Told(StoredSource):
    kind, family, licence, homepage = "questions", "reading", "MIT", ""
    fields = ("question", "answer")

    def read(self):
        rows = (Row(question=f"element {i}?", answer=f"E{i}") for i in range(300))
        return SourceRows(divide(rows), "")
"""


def test_a_source_of_another_package_says_its_own_family(plugged: Callable[..., None]):
    plugged({"calibrant.data.sources": {"my-elements": "elements:Told"}}, elements=ELEMENTS)
    told = CalibrationSet("my-elements:icl", samples=2, length=64)
    assert (str(told), told.label.family) == ("my-elements:icl", "reading")
    assert told.tokens(tiny_tokenizer()).facts["parts"][0]["family"] == "reading"
    assert label_set("0.5*my-elements + 0.5*c4").family == "mixed"


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
    read = label_set(made.text)
    assert made.text == str(CalibrationSet(text))
    assert read == replace(made, family=read.family), "what a set is about isn't in its text"


def test_the_label_of_a_file_is_that_of_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("a: b.jsonl").write_text('{"Q": "why?", "A": "because"}\n')
    made = CalibrationSet("'a: b.jsonl':icl(question='Q', answer='A')@crop").label
    assert made == SetLabel(
        made.text, "'a: b.jsonl'(question='Q', answer='A')", "", "qa", "crop", "qa@crop", "own"
    )
    assert label_set(made.text) == made


def test_a_label_that_cannot_be_read_has_a_source_at_most():
    assert label_set("what ( is this") == SetLabel("what ( is this", "what ( is this")
    assert label_set("javascript:alert(1)") == SetLabel("javascript:alert(1)", "javascript")


@pytest.mark.parametrize(
    ("text", "source", "brief"),
    [
        ("wikitext:text", "wikitext", "wikitext"),
        ("race (3-shot, seed 1)", "race", "race (3-shot, seed 1)"),
        ("gsm8k, 3-shot, cot", "gsm8k", "gsm8k, 3-shot, cot"),
        ("wikitext:text, joined", "wikitext", "wikitext"),
        ("arc_easy, 5-shot (harness)", "arc_easy", "arc_easy, 5-shot (harness)"),
        (
            "flores(language='fra_Latn'):text",
            "flores(language='fra_Latn')",
            "flores(language='fra_Latn')",
        ),
        ("'a: b.jsonl':text", "'a: b.jsonl'", "'a: b.jsonl'"),
        ("what ( is this", "what ( is this", "what ( is this"),
    ],
)
def test_what_was_measured_is_of_a_source(text: str, source: str, brief: str):
    assert label_measured(text) == MeasuredLabel(source, brief)
