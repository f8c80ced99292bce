"""The seam between selectors and all else: pools, draws, nesting, what is kept, and what is refused; with a selector that picks by length."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from calibrant.compress import prune
from calibrant.data import CalibrationSet, Row, expression
from calibrant.errors import DataError, SpecError
from calibrant.evaluators import leaks
from calibrant.evaluators.loss import Loss
from calibrant.inspection import inspect
from calibrant.models import open_model
from calibrant.registry import Registry
from calibrant.select import Context, Picking, Selection, Selector, resolved
from calibrant.select._base import _parsed
from calibrant.testing import tiny_folder, tiny_tokenizer


@dataclass(frozen=True, repr=False)
class Shortest(Picking):
    """The shortest texts; `asked` counts how often it had to look."""

    needs_model = False
    source: str
    candidates: int = 10

    @classmethod
    def spec_name(cls) -> str:
        return "shortest"

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        return sorted(range(len(texts)), key=lambda at: len(texts[at])), f"the shortest has {min(map(len, texts))} letters"


@dataclass(frozen=True, repr=False)
class Reading(Picking):
    """As they come, and it says which model it looked at."""

    source: str
    candidates: int = 10

    @classmethod
    def spec_name(cls) -> str:
        return "reading"

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        LOOKED.append(context.draw)
        return range(len(texts)), f"read by {context.model(self).name}"


@dataclass(frozen=True, repr=False)
class Made(Selector):
    """Twenty texts of its own for each draw."""

    needs_model = False
    kind = "corpus"
    licence = "none"
    homepage = ""
    fields = ("text",)

    @classmethod
    def spec_name(cls) -> str:
        return "made"

    def select(self, context: Context) -> Selection:
        return Selection(tuple(Row(text=f"draw {context.draw} text {number}") for number in range(20)), f"{context.tokens} tokens wanted")

    def disjoint(self) -> None:
        return None

    def measured(self):
        raise DataError(f"{self} measures nothing", subject=str(self))


LOOKED: list[int] = []
KNOWN = {"shortest": Shortest, "reading": Reading, "made": Made}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of forty texts and of questions, and a registry that knows the selectors of this file."""
    texts = [{"text": f"{i:03d}".ljust(30 - i % 20, chr(ord("a") + i % 26))} for i in range(40)]
    problems = [{"question": f"{i}+1?", "answer": i + 1, "rationale": f"{i} and one."} for i in range(40)]
    for name, rows in (("corpus", texts), ("problems", problems)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Registry, "names", lambda self, old=Registry.names: sorted([*old(self), *(KNOWN if self.noun == "selector" else ())]))
    get = Registry.get
    monkeypatch.setattr(Registry, "get", lambda self, name: KNOWN[name] if name in KNOWN else get(self, name))
    monkeypatch.setenv("CALIBRANT_CACHE", str(tmp_path / "cache"))
    _parsed.cache_clear()
    LOOKED.clear()
    return tmp_path


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    return tiny_tokenizer()


def drawn(text: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0, tokens: int = 60) -> list[Row]:
    chosen = resolved(CalibrationSet(text, tokens=tokens, length=32, seed=seed), tokenizer)
    return [row for rows in chosen.rows(tokenizer) for row in rows]


@pytest.mark.parametrize(
    "text",
    [
        "shortest(source='corpus.jsonl')",
        "shortest(source='problems.jsonl', candidates=4):cot",
        "shortest(source='corpus.jsonl + problems.jsonl:cot')@one",
        "0.5*made + 0.5*shortest(source='corpus.jsonl')",
        "mix(a=made, b=shortest(source='corpus.jsonl'), weight=0.3)",
        "shortest(source=made)",
    ],
)
def test_its_text_reads_back_and_it_chooses_again_what_it_chose(text: str, tokenizer: PreTrainedTokenizerBase) -> None:
    chosen = CalibrationSet(text, tokens=64, length=32)
    assert CalibrationSet(str(chosen), tokens=64, length=32) == chosen
    batch = resolved(chosen, tokenizer).tokens(tokenizer)
    assert batch.fingerprint == resolved(CalibrationSet(str(chosen), tokens=64, length=32), tokenizer).tokens(tokenizer).fingerprint
    assert batch.facts["data"] == str(chosen)
    assert all(part["overlap"] == 0 for part in batch.facts["parts"])


def test_the_budget_takes_from_the_top_and_draws_have_pools_of_their_own(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = list(CalibrationSet("corpus.jsonl").parts[0].source.rows("calibrate"))
    for seed in (0, 1):
        pool = rows[10 * seed : 10 * seed + 10]
        expected = sorted(pool, key=lambda row: len(row.text or ""))
        found = drawn("shortest(source='corpus.jsonl')", tokenizer, seed)
        assert found == expected[: len(found)]
        assert 2 <= len(found) < 10


def test_a_selector_within_is_asked_for_as_many_texts_as_candidates(tokenizer: PreTrainedTokenizerBase) -> None:
    chosen = resolved(CalibrationSet("shortest(source=made, candidates=15)", tokens=64, length=32), tokenizer)
    note = chosen.tokens(tokenizer).facts["parts"][0]["note"]
    assert note.startswith("15 candidates")
    source = chosen.parts[0].source
    assert isinstance(source, Shortest)
    assert len(source.for_draw(0).rows) == 15


def test_rows_keep_their_fields_unless_a_format_is_named_within(tokenizer: PreTrainedTokenizerBase) -> None:
    assert {row.present for row in drawn("shortest(source='problems.jsonl'):cot", tokenizer)} == {("question", "answer", "rationale")}
    assert {row.present for row in drawn("shortest(source='problems.jsonl:cot')", tokenizer)} == {("text",)}
    assert str(CalibrationSet("shortest(source='problems.jsonl')").parts[0]).endswith(":icl")
    with pytest.raises(DataError, match="can't be rendered as cot"):
        CalibrationSet("shortest(source='problems.jsonl:cot'):cot")


def test_a_part_of_a_sum_is_wanted_for_its_share(tokenizer: PreTrainedTokenizerBase) -> None:
    chosen = resolved(CalibrationSet("0.25*made + 0.75*corpus.jsonl", tokens=80, length=32), tokenizer)
    assert [part["note"] for part in chosen.tokens(tokenizer).facts["parts"]] == ["20 tokens wanted", ""]


def test_weights_within_share_the_candidates_out(tokenizer: PreTrainedTokenizerBase) -> None:
    notes = resolved(CalibrationSet("shortest(source='0.2*corpus.jsonl + 0.8*problems.jsonl:cot')", tokens=20, length=32), tokenizer)
    assert notes.tokens(tokenizer).facts["parts"][0]["note"].startswith("10 candidates; the shortest has ")
    source = notes.parts[0].source
    assert isinstance(source, Shortest)
    assert source._counts == [2, 8]


def test_how_many_draws_are_disjoint_is_known_without_a_model(tokenizer: PreTrainedTokenizerBase) -> None:
    held = len(list(CalibrationSet("corpus.jsonl").parts[0].source.rows("calibrate")))
    assert CalibrationSet("reading(source='corpus.jsonl')", tokens=64, length=32).disjoint_draws(tokenizer) == held // 10
    assert CalibrationSet("made", tokens=64, length=32).disjoint_draws(tokenizer) is None
    assert CalibrationSet("0.5*made + 0.5*reading(source='corpus.jsonl')", tokens=64, length=32).disjoint_draws(tokenizer) == held // 10


def test_beyond_the_disjoint_draws_the_overlap_is_counted(tokenizer: PreTrainedTokenizerBase) -> None:
    late = resolved(CalibrationSet("shortest(source='corpus.jsonl', candidates=1000)", tokens=64, length=32, seed=1), tokenizer)
    assert late.tokens(tokenizer).facts["overlap"] > 0.5


def test_with_a_tokenizer_alone_a_selector_that_needs_a_model_says_so(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"reading\(source='corpus.jsonl'\) needs the model, and there is only a tokenizer here"):
        drawn("reading(source='corpus.jsonl')", tokenizer)
    with pytest.raises(DataError, match=r"shortest\(source='corpus.jsonl'\) has chosen no rows yet"):
        CalibrationSet("shortest(source='corpus.jsonl')", tokens=64, length=32).tokens(tokenizer)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("shortest(source='corpus.jsonl', candidates=0)", r"shortest\(candidates=0\): it must have at least 1"),
        ("shortest(source=random_tokens)", r"shortest\(source='random_tokens'\): a control has nothing to choose"),
        ("shortest(sauce='corpus.jsonl')", "shortest has no parameter 'sauce'"),
        ("shortes(source='corpus.jsonl')", "there is no selector called 'shortes', did you mean 'shortest'"),
    ],
)
def test_refusals(text: str, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        CalibrationSet(text)


def test_an_order_that_repeats_itself_is_refused(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shortest, "order", lambda self, texts, context: ([0, 0], ""))
    with pytest.raises(DataError, match=r"shortest\(source='corpus.jsonl'\) gave an order that names a candidate twice"):
        drawn("shortest(source='corpus.jsonl')", tokenizer)


def test_what_took_a_model_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(str(tiny_folder(folder / "model")), "float32", "cpu")
    asked = CalibrationSet("reading(source='corpus.jsonl')", tokens=64, length=32)
    first, second = (resolved(asked, opened).tokens(opened.tokenizer) for _ in range(2))
    assert first.facts["parts"][0]["note"] == second.facts["parts"][0]["note"] == f"10 candidates; read by {opened.name}"
    assert LOOKED == [0]
    assert first.fingerprint == second.fingerprint
    monkeypatch.setattr(Reading, "beside", lambda self, context: ("a target",))
    resolved(asked, opened).tokens(opened.tokenizer)
    assert LOOKED == [0, 0]
    LOOKED.pop()
    resolved(CalibrationSet("reading(source='corpus.jsonl')", tokens=64, length=32, seed=1), opened).tokens(opened.tokenizer)
    assert LOOKED == [0, 1]


def test_it_serves_prune_and_inspect(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model = str(tiny_folder(folder / "model"))
    record = prune(model, "reading(source='corpus.jsonl')", "wanda", "0.5", tokens=64, length=32).record
    assert record.run.data == "reading(source='corpus.jsonl')"
    assert record.data_facts["parts"][0]["origin"] == "chosen by reading(source='corpus.jsonl')"
    assert inspect("reading(source='corpus.jsonl')", model, tokens=64, length=32).fingerprint == record.run.tokens


def test_what_is_held_out_is_the_sources_own(tokenizer: PreTrainedTokenizerBase) -> None:
    asked = CalibrationSet("shortest(source='corpus.jsonl')", tokens=30, length=16)
    assert (
        asked.held_out().tokens(tokenizer).fingerprint
        == CalibrationSet("corpus.jsonl", tokens=30, length=16).held_out().tokens(tokenizer).fingerprint
    )
    with pytest.raises(DataError, match="picks from several sources, of which none measures"):
        CalibrationSet("shortest(source='corpus.jsonl + problems.jsonl')", tokens=30, length=16).held_out()


def test_a_file_within_is_looked_at_for_leaks(folder: Path) -> None:
    evaluator = Loss(source="corpus.jsonl", tokens=100, length=16)
    assert leaks([CalibrationSet("shortest(source='corpus.jsonl')")], [evaluator]) == leaks([CalibrationSet("corpus.jsonl")], [evaluator])
    assert expression.selectors.noun == "selector"
