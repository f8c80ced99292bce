"""What is told about a set before it is used."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, as_source
from calibrant.data._encoding import IdEncoder
from calibrant.data.inspect import facts, inspect, inspect_tokens, overlap
from calibrant.data.inspect.facts import histogram
from calibrant.data.user_file import UserFile
from calibrant.errors import DataError, SpecError

Jsonl = Callable[..., Path]
WORDS = [
    a + b + c
    for a in ("ka", "lo", "mi", "nu", "re")
    for b in ("ba", "do", "fi", "gu", "he")
    for c in ("n", "s", "t", "r")
]


@pytest.fixture(autouse=True)
def _each_reads_its_own_file(forgetful: None) -> None:
    """Files of two tests may have the same name, and their times the same nanosecond."""


def prose(seed: int, words: int) -> str:
    """So many words, others for each seed."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def test_an_inspection_counts_what_is_there(jsonl: Jsonl, letters: PreTrainedTokenizerBase):
    texts = [f"{i:02d}" * (1 + i % 4) for i in range(90)]
    path = jsonl([{"text": text} for text in [*texts, *texts[:5]]])
    data = CalibrationSet(f"{path}@one", samples=10, length=16)
    batch, found = data.tokens(letters), inspect_tokens(data, letters)
    lengths = sorted(batch.mask.sum(1).tolist())
    (part,) = found.parts
    assert (found.windows, found.rows, found.tokens, found.length) == (10, 10, sum(lengths), 16)
    assert found.padding == part["padding"] == pytest.approx(1 - sum(lengths) / 160)
    assert found.budget == {"flag": "--samples", "amount": 10}
    assert found.fingerprint == batch.fingerprint
    assert (found.repeated_windows, found.double_starts, found.pads, found.model) == (0, 0, 0, None)
    assert found.disjoint_draws == part["rows_held"] // 10
    assert (part["row_lengths"][0], part["row_lengths"][-1]) == (lengths[0], lengths[-1])
    assert lengths[0] <= part["row_lengths"][2] <= lengths[-1]
    assert sum(count for _, _, count in part["histogram"]) == 10
    assert [letters.decode(batch.ids[i][batch.mask[i]].tolist()) for i in (0, 1, 2)] == part[
        "texts"
    ]
    assert (part["licence"], part["unshown"], part["empty"], part["special_texts"]) == (
        "the user's own",
        "",
        0,
        {},
    )
    assert part["duplicates_dropped"] <= 5


def test_the_vocabulary_is_weighed(letters: PreTrainedTokenizerBase):
    dull = inspect_tokens(CalibrationSet("full_stops", samples=2, length=8), letters).vocabulary
    assert (dull["distinct"], dull["entropy"], dull["even"]) == (1, 0, 1)
    data = CalibrationSet("random_tokens", samples=4, length=200)
    batch, found = data.tokens(letters), inspect_tokens(data, letters).vocabulary
    counts = Counter(batch.ids[batch.mask].tolist())
    shares = [count / 800 for count in counts.values()]
    assert (found["size"], found["distinct"]) == (len(letters), len(counts))
    assert found["share"] == pytest.approx(len(counts) / len(letters))
    assert found["even"] == pytest.approx(math.prod(share**-share for share in shares))


def test_start_tokens_that_stand_together(jsonl: Jsonl, started: PreTrainedTokenizerBase):
    path = jsonl([{"text": "<s>" * (i % 2) + prose(i, 6)} for i in range(90)])
    data = CalibrationSet(f"{path}@one", samples=20, length=64)
    found = inspect_tokens(data, started)
    wanted = sum(row.text.startswith("<s>") for row in data.rows(started)[0] if row.text)
    assert 0 < wanted < 20
    assert found.double_starts == wanted
    assert found.parts[0]["special_texts"] == {"<s>": wanted}
    assert [text for text in found.parts[0]["texts"] if text.startswith("<s>")] == list(
        found.parts[0]["texts"]
    )
    said = [
        sentence
        for sentence in found.verdict
        if "start tokens" in sentence or "special tokens" in sentence
    ]
    assert [f"{path}@one(bos='none')" in sentence for sentence in said] == [True, False]
    plain = jsonl([{"text": prose(i, 6)} for i in range(90)], "plain.jsonl")
    alone = inspect_tokens(CalibrationSet(f"{plain}@one", samples=4, length=64), started)
    assert (alone.double_starts, alone.parts[0]["special_texts"]) == (0, {}), (
        "a start token alone is nothing to mention"
    )


@pytest.mark.parametrize("budget", [{"tokens": 3000}, {"samples": 40}], ids=str)
def test_the_advice_on_draws_keeps_its_word(
    jsonl: Jsonl, letters: PreTrainedTokenizerBase, budget: dict[str, int]
):
    path = jsonl([{"text": prose(i, 5 + i % 90)} for i in range(60)])
    found = inspect_tokens(CalibrationSet(str(path), length=64, **budget), letters)
    assert found.disjoint_draws is not None
    assert 1 <= found.disjoint_draws < 5
    assert found.enough is not None
    (unit,) = budget
    (said,) = [sentence for sentence in found.verdict if "disjoint draw" in sentence]
    assert f"--{unit} to {found.enough:,}" in said
    taken: list[set[str]] = []
    for seed in range(5):
        smaller = CalibrationSet(str(path), length=64, seed=seed, **{unit: found.enough})
        taken.append({row.key for row in smaller.rows(letters)[0]})
    assert len(set().union(*taken)) == sum(map(len, taken)), "five draws that share no row"


def test_near_duplicates_are_rows_used_by_their_numbers(
    jsonl: Jsonl, letters: PreTrainedTokenizerBase
):
    path = jsonl([{"text": prose(i % 20, 60) + f" end {i}"} for i in range(60)])
    data = CalibrationSet(f"{path}@one", samples=20, length=16)
    rows, near = data.rows(letters)[0], inspect_tokens(data, letters).near_duplicates
    ends = [str(row.text).partition(" end ")[0] for row in rows]
    wanted = {(i + 1, j + 1) for j in range(20) for i in range(j) if ends[i] == ends[j]}
    assert wanted
    assert {tuple(pair["numbers"]) for pair in near["pairs"]} == wanted
    assert near["rows"] == len({j for _, j in wanted})
    first = near["pairs"][0]
    assert first["parts"] == [str(data), str(data)]
    assert first["quote"] == " ".join(str(rows[first["numbers"][0] - 1].text).split())[:100] + "…"
    few = jsonl([{"text": prose(i, 60)} for i in range(8)], "few.jsonl")
    drawn = CalibrationSet(f"{few}@legacy", samples=10, length=64)
    assert len({row.key for row in drawn.rows(letters)[0]}) < len(drawn.rows(letters)[0])
    assert inspect_tokens(drawn, letters).near_duplicates["pairs"] == [], (
        "a row that is drawn twice is no near-duplicate"
    )


@pytest.mark.parametrize(
    ("asked", "filled", "startless"),
    [
        ("{}:zero", "{}:icl", "{}:question@one(bos='none')"),
        ("{}:icl", "{}:icl", "{}:qa@many(bos='none')"),
        ("{}:qa@legacy(of='one')", "{}:icl", ""),
        ("{}:qa@many(shots=2, bos='none')", "{}:icl", ""),
    ],
)
def test_what_a_verdict_may_propose_is_an_expression(
    jsonl: Jsonl, letters: PreTrainedTokenizerBase, asked: str, filled: str, startless: str
):
    path = jsonl([{"question": prose(i, 4), "answer": str(i)} for i in range(60)])
    (part,) = inspect_tokens(
        CalibrationSet(asked.format(path), samples=1, length=32), letters
    ).parts
    assert (part["filled"], part["startless"]) == (filled.format(path), startless.format(path))
    assert all(
        str(CalibrationSet(text)) == text for text in (part["filled"], part["startless"]) if text
    )


def test_rows_that_another_source_measures_are_named(
    jsonl: Jsonl, letters: PreTrainedTokenizerBase
):
    mine = jsonl([{"text": prose(i, 40)} for i in range(80)])
    theirs = jsonl(
        [{"text": prose(i, 40).upper()} for i in range(40, 120)], "theirs.jsonl"
    )  # other bytes, so perhaps in another part
    data = CalibrationSet(f"{mine}@one", samples=40, length=64)
    found = inspect_tokens(data, letters, against=[str(theirs)])
    measured = {str(row.text).lower() for row in UserFile(str(theirs)).part("measure").rows}
    rows = data.rows(letters)[0]
    wanted = {(number, row.example) for number, row in enumerate(rows, 1) if row.text in measured}
    assert wanted
    own, other = found.overlap_checks
    assert (own["against"], own["same"], own["half"], own["leaks"]) == (str(mine), 0, 0, [])
    assert (other["measured_rows"], other["same"], other["half"], other["given_away"]) == (
        len(measured),
        len(wanted),
        0,
        len(wanted),
    )
    assert {
        (leak["number"], leak["row"]) for leak in other["leaks"] if leak["kind"] == "same example"
    } == wanted
    assert all(
        leak["quote"].startswith(str(rows[leak["number"] - 1].text)[:50]) for leak in other["leaks"]
    )
    assert any(
        sentence.endswith(f"remove them from {mine}, or don't measure on {theirs}")
        for sentence in found.verdict
    )


def test_its_own_measured_part_is_compared_unasked(jsonl: Jsonl, letters: PreTrainedTokenizerBase):
    path = jsonl([{"text": f"{prose(i // 4, 40)} {i}"} for i in range(80)])
    found = inspect_tokens(
        CalibrationSet(f"0.5*{path}@one + 0.5*full_stops", samples=20, length=64), letters
    )
    (check,) = found.overlap_checks
    assert (check["part"], check["against"]) == (f"{path}@one", str(path))
    rows = CalibrationSet(f"{path}@one", samples=10, length=64).rows(letters)[0]
    measured = {
        str(row.text).rpartition(" ")[0] for row in UserFile(str(path)).part("measure").rows
    }
    assert (check["same"], check["half"]) == (
        0,
        sum(str(row.text).rpartition(" ")[0] in measured for row in rows),
    )
    assert check["half"] > 0
    assert [
        sentence
        for sentence in found.verdict
        if "half or more of what" in sentence and sentence.endswith(f"remove them from {path}")
    ]
    assert [leak["serious"] for leak in check["leaks"]] == sorted(
        (leak["serious"] for leak in check["leaks"]), reverse=True
    )
    assert {leak["kind"] for leak in check["leaks"]} == {"13-gram"}


def test_a_large_measured_part_is_compared_where_it_is_asked_for_and_once(
    jsonl: Jsonl, letters: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(overlap, "MOST_ROWS", 3)
    one, two = (
        jsonl([{"text": prose(i + at, 40)} for i in range(80)], name)
        for at, name in ((0, "one.jsonl"), (100, "two.jsonl"))
    )
    data = CalibrationSet(f"{one}@one", samples=4, length=64)
    (check,) = inspect_tokens(data, letters).overlap_checks
    assert f"--against {one}" in check["unchecked"]
    asked = inspect_tokens(data, letters, against=[str(two), f"{two} + {one}"]).overlap_checks
    assert sorted((check["part"], check["against"], check["same"]) for check in asked) == [
        (f"{one}@one", str(one), 0),
        (f"{one}@one", str(two), 0),
    ]


@pytest.mark.parametrize(("given", "error"), [("full_stops", DataError), ("gsm9k", SpecError)])
def test_what_cannot_be_compared_with_is_refused(
    letters: PreTrainedTokenizerBase, given: str, error: type[Exception]
):
    with pytest.raises(error, match=given):
        inspect_tokens(CalibrationSet("full_stops", samples=1, length=8), letters, against=[given])


def test_what_may_not_be_quoted_is_not_shown(
    jsonl: Jsonl, letters: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(UserFile, "shown", False)
    monkeypatch.setattr(UserFile, "licence", "for research only")
    secret = jsonl([{"text": f"{prose(i // 4, 40)} {i}"} for i in range(80)])
    found = inspect_tokens(CalibrationSet(f"{secret}@one", samples=20, length=64), letters)
    assert "for research only" in found.parts[0]["unshown"]
    assert found.overlap_checks[0]["leaks"]
    assert found.near_duplicates["pairs"]
    assert not [
        word for word in WORDS if word in json.dumps(found.to_json()).replace(str(secret), "")
    ]


def test_a_file_that_holds_less_than_is_usual_is_looked_at_whole(
    jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch, letters: PreTrainedTokenizerBase
):
    monkeypatch.setattr(
        "calibrant.data.inspect.inspecting.open_tokenizer", lambda _: (letters, "letters")
    )
    path = jsonl([{"text": prose(i, 40)} for i in range(30)])
    found = inspect(str(path))
    held = CalibrationSet(str(path)).most_tokens(letters, 10**6)
    assert (found.budget["flag"], found.budget["amount"], found.tokens) == ("--tokens", held, held)
    assert found.budget["instead"] == "128 windows of 2,048 tokens"
    with pytest.raises(DataError, match=f"or ask for {held} tokens instead"):
        inspect(str(path), samples=128)


@pytest.mark.parametrize(("held", "tries"), [(4, False), (7, True)])
def test_the_search_for_enough_draws_reads_no_row_again(
    letters: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch, held: int, tries: bool
):
    few = as_source([prose(i, 400) for i in range(held)])
    data = CalibrationSet(str(few), tokens=2_000 * held, length=64)
    batch = data.tokens(letters)
    read = Counter[str]()
    amounts: list[int | None] = []
    text = IdEncoder.text
    disjoint_draws = CalibrationSet.disjoint_draws

    def counted_text(self: IdEncoder, content: str) -> Any:
        if content.strip():  # a separator is no row
            read[content] += 1
        return text(self, content)

    def counted_draws(self: CalibrationSet, *given: Any, **named: Any) -> int | None:
        amounts.append(self.budget)
        return disjoint_draws(self, *given, **named)

    monkeypatch.setattr(IdEncoder, "text", counted_text)
    monkeypatch.setattr(CalibrationSet, "disjoint_draws", counted_draws)
    encoder = IdEncoder(letters)
    enough = facts._budget_for_enough_draws(data, encoder, 1, batch.facts["parts"])
    assert (enough is not None) == tries
    assert (len(amounts) > 1) == tries
    assert max(read.values(), default=0) == int(tries)


def test_a_mix_with_an_object_that_holds_little_can_be_inspected(letters: PreTrainedTokenizerBase):
    few = as_source([prose(i, 40) for i in range(30)])
    mix = CalibrationSet(f"mix({few}=0.5, python_docs=0.5)").fitted(letters)
    found = inspect_tokens(mix, letters)
    assert (found.disjoint_draws, found.enough) == (1, None)


def test_lengths_fall_into_few_round_ranges_and_those_far_out_into_the_last():
    assert histogram([]) == []
    ranges = histogram([*range(100), 5000])
    assert len(ranges) <= 12
    assert sum(count for _, _, count in ranges) == 101
    assert ranges[-1][1:] == [5000, ranges[-1][2]]
