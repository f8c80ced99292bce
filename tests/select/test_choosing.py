"""The seam between selectors and all else: pools, draws, nesting, what is kept, and what is
refused; with a selector that picks by length.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from calibrant.compress import prune
from calibrant.data import CalibrationSet, Chat, Row
from calibrant.data.formats.qa import QA
from calibrant.data.inspect import inspect
from calibrant.data.select import Context, Picking, Selection, Selector, resolved
from calibrant.data.select._base import parsed_terms, rendered_rows
from calibrant.errors import DataError
from calibrant.evaluators import leaks
from calibrant.evaluators.loss import Loss
from calibrant.models import open_model
from calibrant.spec.registry import Registry
from calibrant.testing import tiny_folder, tiny_tokenizer


@dataclass(frozen=True, repr=False)
class Shortest(Picking):
    """The shortest texts."""

    needs_model = False
    source: str
    candidates: int = 10

    def order(self, texts: Sequence[str], context: Context) -> tuple[Sequence[int], str]:
        return sorted(range(len(texts)), key=lambda at: len(texts[at])), ""


@dataclass(frozen=True, repr=False)
class Reading(Picking):
    """As they come, and it says which model it looked at; `LOOKED` has the draws that it was
    asked for.
    """

    source: str
    candidates: int = 10

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

    def select(self, context: Context) -> Selection:
        return Selection(
            tuple(Row(text=f"draw {context.draw} text {number}") for number in range(20)),
            f"{context.tokens} tokens wanted",
        )

    def disjoint(self) -> None:
        return None

    def measured(self):
        raise DataError(f"{self} measures nothing", subject=str(self))


TOKENIZER = tiny_tokenizer()
LOOKED: list[int] = []
KNOWN = {"shortest": Shortest, "reading": Reading, "made": Made}
for _name, _kind in KNOWN.items():
    _kind.spec_name = classmethod(lambda cls, name=_name: name)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of forty texts and of questions, and a registry that knows the selectors of this
    file.
    """
    texts = [{"text": f"{i:03d}".ljust(30 - i % 20, chr(ord("a") + i % 26))} for i in range(40)]
    problems = [
        {"question": f"{i}+1?", "answer": i + 1, "rationale": f"{i} and one."} for i in range(40)
    ]
    for name, rows in (("corpus", texts), ("problems", problems)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        Registry,
        "names",
        lambda self, old=Registry.names: sorted(
            [*old(self), *(KNOWN if self.noun == "selector" else ())]
        ),
    )
    get = Registry.get
    monkeypatch.setattr(
        Registry, "get", lambda self, name: KNOWN[name] if name in KNOWN else get(self, name)
    )
    monkeypatch.setenv("CALIBRANT_CACHE", str(tmp_path / "cache"))
    parsed_terms.cache_clear()
    LOOKED.clear()
    return tmp_path


def drawn(text: str, seed: int = 0, tokens: int = 60) -> list[Row]:
    chosen = resolved(CalibrationSet(text, tokens=tokens, length=32, seed=seed), TOKENIZER)
    return [row for rows in chosen.rows(TOKENIZER) for row in rows]


@pytest.mark.parametrize(
    "text",
    [
        "shortest(source='corpus.jsonl')",
        "shortest(source='corpus.jsonl + problems.jsonl:cot')@one",
        "0.5*made + 0.5*shortest(source='corpus.jsonl')",
    ],
)
def test_its_text_reads_back_and_it_chooses_again_what_it_chose(text: str) -> None:
    chosen = CalibrationSet(text, tokens=64, length=32)
    assert CalibrationSet(str(chosen), tokens=64, length=32) == chosen
    batch = resolved(chosen, TOKENIZER).tokens(TOKENIZER)
    assert (
        batch.fingerprint
        == resolved(CalibrationSet(str(chosen), tokens=64, length=32), TOKENIZER)
        .tokens(TOKENIZER)
        .fingerprint
    )
    assert batch.facts["data"] == str(chosen)
    assert all(part["overlap"] == 0 for part in batch.facts["parts"])


def test_the_budget_takes_from_the_top_and_draws_have_pools_of_their_own() -> None:
    rows = list(CalibrationSet("corpus.jsonl").parts[0].source.rows("calibrate"))
    for seed in (0, 1):
        pool = rows[10 * seed : 10 * seed + 10]
        expected = sorted(pool, key=lambda row: len(row.text or ""))
        found = drawn("shortest(source='corpus.jsonl')", seed)
        assert found == expected[: len(found)]
        assert 2 <= len(found) < 10


def test_rows_keep_their_fields_unless_a_format_is_named_within() -> None:
    assert {row.present for row in drawn("shortest(source='problems.jsonl'):cot")} == {
        ("question", "answer", "rationale")
    }
    assert {row.present for row in drawn("shortest(source='problems.jsonl:cot')")} == {("text",)}
    assert str(CalibrationSet("shortest(source='problems.jsonl')").parts[0]).endswith(":icl")
    with pytest.raises(DataError) as caught:
        CalibrationSet("shortest(source='problems.jsonl:cot'):cot")
    assert caught.value.subject == "shortest(source='problems.jsonl:cot')"


def test_the_number_of_disjoint_draws_needs_no_model_and_beyond_it_overlap_is_counted() -> None:
    held = len(list(CalibrationSet("corpus.jsonl").parts[0].source.rows("calibrate")))
    assert (
        CalibrationSet("reading(source='corpus.jsonl')", tokens=64, length=32).disjoint_draws(
            TOKENIZER
        )
        == held // 10
    )
    assert CalibrationSet("made", tokens=64, length=32).disjoint_draws(TOKENIZER) is None
    assert (
        CalibrationSet(
            "0.5*made + 0.5*reading(source='corpus.jsonl')", tokens=64, length=32
        ).disjoint_draws(TOKENIZER)
        == held // 10
    )
    late = resolved(
        CalibrationSet(
            "shortest(source='corpus.jsonl', candidates=1000)", tokens=64, length=32, seed=1
        ),
        TOKENIZER,
    )
    assert late.tokens(TOKENIZER).facts["overlap"] > 0.5


def test_what_has_no_model_has_not_chosen_or_repeats_itself_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def twice() -> list[Row]:
        monkeypatch.setattr(Shortest, "order", lambda self, texts, context: ([0, 0], ""))
        return drawn("shortest(source='corpus.jsonl')")

    for named, ask in (
        ("reading", lambda: drawn("reading(source='corpus.jsonl')")),
        (
            "shortest",
            lambda: CalibrationSet("shortest(source='corpus.jsonl')", tokens=64, length=32).tokens(
                TOKENIZER
            ),
        ),
        ("shortest", twice),
    ):
        with pytest.raises(DataError) as caught:
            ask()
        assert caught.value.subject == f"{named}(source='corpus.jsonl')"


def test_what_took_a_model_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(str(tiny_folder(folder / "model")), "float32", "cpu")
    held = len(list(CalibrationSet("corpus.jsonl").parts[0].source.rows("calibrate")))
    # The candidates of every draw are the same.
    spec = f"reading(source='corpus.jsonl', candidates={held})"
    asked = CalibrationSet(spec, tokens=64, length=32)
    first, second = (resolved(asked, opened).tokens(opened.tokenizer) for _ in range(2))
    assert (
        first.facts["parts"][0]["note"]
        == second.facts["parts"][0]["note"]
        == f"{held} candidates; read by {opened.name}"
    )
    assert LOOKED == [0]
    assert first.fingerprint == second.fingerprint
    monkeypatch.setattr(Reading, "beside", lambda self, context: ("a target",))
    resolved(asked, opened).tokens(opened.tokenizer)
    assert LOOKED == [0, 0]
    LOOKED.pop()
    resolved(asked.redrawn(1), opened).tokens(opened.tokenizer)
    assert LOOKED == [0, 1]


def test_an_order_is_made_again_for_another_tokenizer_and_other_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(str(tiny_folder(folder / "model")), "float32", "cpu")
    asked = CalibrationSet("reading(source='problems.jsonl')", tokens=64, length=32)
    resolved(asked, opened).tokens(opened.tokenizer)
    opened.tokenizer.add_tokens(["and one"])
    resolved(asked, opened).tokens(opened.tokenizer)
    assert LOOKED == [0, 0]
    # The same rows as other texts, as another chat template would write them.
    monkeypatch.setattr(QA, "render", lambda self, row, tokenizer=None: "as another text")
    resolved(asked, opened).tokens(opened.tokenizer)
    assert LOOKED == [0, 0, 0]


def test_a_conversation_that_the_template_refuses_is_no_candidate(folder: Path) -> None:
    talks = [
        [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i}!"}]
        for i in range(40)
    ]
    lines = [json.dumps({"messages": talk}) + "\n" for talk in talks]
    (folder / "talks.jsonl").write_text("".join(lines))
    refused, *rows = CalibrationSet("talks.jsonl").parts[0].source.rows("calibrate")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        f"{{% if messages[0].content == '{refused.turns[0].content}' %}}"
        "{{ raise_exception('not that') }}{% endif %}{{ messages[0].content }}"
    )
    asked = CalibrationSet("shortest(source='talks.jsonl:chat', candidates=100)@one", samples=2)
    batch = resolved(asked, tokenizer).tokens(tokenizer)
    note = f"{len(rows)} candidates; 1 refused by the model's chat template"
    assert batch.facts["parts"][0]["note"] == note
    rendered = rendered_rows([refused, *rows], Chat(), tokenizer)
    assert [row for row, _ in rendered.rows] == rows
    tokenizer.chat_template = "{{ raise_exception('not that') }}"
    with pytest.raises(DataError, match="not that"):
        resolved(asked, tokenizer).tokens(tokenizer)


def test_it_serves_prune_and_inspect(folder: Path) -> None:
    model = str(tiny_folder(folder / "model"))
    record = prune(
        model,
        data="reading(source='corpus.jsonl')",
        method="wanda",
        target="0.5",
        tokens=64,
        length=32,
    ).record
    assert record.run.data == "reading(source='corpus.jsonl')"
    assert record.data_facts["parts"][0]["origin"] == "chosen by reading(source='corpus.jsonl')"
    assert (
        inspect("reading(source='corpus.jsonl')", model, tokens=64, length=32).fingerprint
        == record.run.tokens
    )


def test_what_is_held_out_is_the_sources_own() -> None:
    asked = CalibrationSet("shortest(source='corpus.jsonl')", tokens=30, length=16)
    own = CalibrationSet("corpus.jsonl", tokens=30, length=16)
    assert (
        asked.held_out().tokens(TOKENIZER).fingerprint
        == own.held_out().tokens(TOKENIZER).fingerprint
    )
    several = "shortest(source='corpus.jsonl + problems.jsonl')"
    with pytest.raises(DataError) as caught:
        CalibrationSet(several, tokens=30, length=16).held_out()
    assert caught.value.subject == several


def test_a_file_within_is_looked_at_for_leaks() -> None:
    evaluator = Loss(source="corpus.jsonl", tokens=100, length=16)
    assert leaks([CalibrationSet("shortest(source='corpus.jsonl')")], [evaluator]) == leaks(
        [CalibrationSet("corpus.jsonl")], [evaluator]
    )
