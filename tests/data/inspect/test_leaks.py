"""Leaks that were put there are found, and what only looks like one isn't called serious."""

import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from calibrant.data import KnownExamples, Message, Row, lettered, sources
from calibrant.data._words import words
from calibrant.data.inspect import LeakCount, RowFingerprints
from calibrant.data.inspect.leaks import COMMON, Leak, find_leaks, ngrams, serious

NUMBERS = random.Random(7)


def some(count: int, seed: int | str) -> list[str]:
    """Words that no other seed has."""
    return [f"w{seed}x{i}" for i in range(count)]


def text(count: int, seed: int | str) -> str:
    return " ".join(some(count, seed))


def only(calibration: Sequence[Row], measured: Sequence[Row]) -> Leak:
    (leak,) = find_leaks(calibration, measured)
    return leak


def test_runs_know_neither_case_nor_punctuation_nor_how_accents_are_written():
    for words_, runs in ((0, 0), (3, 0), (4, 1), (8, 1), (12, 5), (13, 1), (40, 28)):
        assert len(ngrams(text(words_, 1))) == runs
    assert ngrams("The CAFÉ, (on 5th street) — is open!") == ngrams(
        "the cafe\u0301 on 5TH street is OPEN"
    )
    assert not ngrams("the café on 5th street is open") & ngrams("the café on 6th street is open")
    # Where no spaces are, each letter is a word.
    assert len(ngrams("今天天气很好我们一起去公园散步吧")) == 16 - 12
    assert len(ngrams("สวัสดีชาวโลก")) == len(ngrams("สวัสดี ชาวโลก")) > 0


def test_the_same_example_in_another_dress_is_found():
    leak = only(
        [Row(question="How  many APPLES?", answer="3")],
        [Row(question="how many apples?", answer="4", rationale=text(40, 1))],
    )
    assert leak == Leak(
        Row(question="how many apples?").example,
        Row(question="how many apples?").example,
        "same example",
        1.0,
    )
    assert serious(leak)


def talk(*asked: str) -> Row:
    turns: list[Message] = []
    for question in asked:
        turns += [Message("user", question), Message("assistant", f"As to {question}")]
    return Row(question=asked[0], answer=turns[1].content, turns=tuple(turns))


def test_conversations_are_the_same_example_if_one_is_how_the_other_begins():
    bread = talk("Hi", "How is bread made?")
    painter = talk("Hi", "Who painted this?")
    assert find_leaks([bread], [painter]) == []
    assert RowFingerprints.of([bread]).leaks([painter]) == LeakCount(rows=1)
    greeting = talk("hi")
    longer = talk("hi", "How is  bread made?", "And cake?")
    last_asked = Row(question="And cake?", answer="So.", turns=longer.turns)
    for row, other in ((bread, bread), (bread, longer), (bread, greeting), (longer, last_asked)):
        for calibration, measured in ((row, other), (other, row)):
            assert only([calibration], [measured]).kind == "same example"
            seen = RowFingerprints.of([calibration])
            assert seen.leaks([measured]) == LeakCount(same=1, rows=1)
            assert not seen.leaks([talk("Good day", "How is bread made?")])
    assert RowFingerprints.of([longer]).leaks([talk("Hi!", "How is bread made")]).respaced == 1
    # A long first message is evidence by itself.
    passage = "Read this passage of more than thirteen words, and then tell me what it is about"
    both = [talk(passage, "Sum it up.")], [talk(passage, "Who wrote it?")]
    assert only(*both).kind == "same example"
    # What older models were calibrated on is known by the first question alone.
    older = RowFingerprints(KnownExamples({Row(question="Hi").example}))
    assert older.leaks([painter]).same == 1
    assert older.leaks([Row(question="Hi", turns=(Message("user", "Who?"),))]).same == 1


def test_the_share_is_that_of_the_measured_row():
    measured = Row(text=text(112, 1))  # 100 runs
    half = Row(text=f"{text(30, 2)} {' '.join(some(112, 1)[:62])} {text(500, 3)}")  # 50 of them
    less = Row(text=" ".join(some(112, 1)[:61]) + "\n" + " ".join(some(112, 1)[:61]))
    found = {
        leak.row: leak
        for leak in find_leaks(
            [half, less, Row(text=text(200, 4))], [Row(text=text(300, 5)), measured]
        )
    }
    assert found == {
        half.example: Leak(half.example, measured.example, "13-gram", 0.5),
        less.example: Leak(less.example, measured.example, "13-gram", 0.49),
    }
    assert [serious(found[row.example]) for row in (half, less)] == [True, False]


def test_a_short_row_is_found_in_a_long_one_by_runs_of_eight_and_a_very_short_one_as_a_whole():
    measured = Row(question=text(10, 1), answer="no")  # 11 words, 4 runs
    leak = only([Row(text=f"{text(50, 2)} {text(10, 1)} {text(50, 3)}")], [measured])
    assert (leak.kind, leak.share) == ("8-gram", 0.75)
    short = [Row(question="Who wrote Hamlet?", answer="Shakespeare, I think")]
    assert find_leaks([Row(text=f"who wrote hamlet shakespeare i think {text(9, 1)}")], short) == []
    assert only([Row(text="Who wrote “Hamlet”: Shakespeare, I think")], short).share == 1.0
    assert find_leaks([Row(text="to be or")], [Row(question="To be, or", answer="")]) == []


@pytest.mark.parametrize(
    "row",
    [
        Row(text=text(20, 1)),
        Row(question=text(20, 1), answer="x"),
        Row(question="why?", answer=text(20, 1)),
        Row(question="why?", answer="x", rationale=text(20, 1)),
        Row(turns=(Message("user", "why?"), Message("assistant", text(20, 1)))),
    ],
)
def test_everything_that_a_model_would_learn_from_is_compared(row: Row):
    assert only([Row(text=text(20, 1))], [row]).share > 0.5
    assert only([row], [Row(text=text(20, 1) + " y")]).share > 0.5


def test_marks_letters_and_repeated_fields_are_no_content():
    asked, told = text(9, 1), text(9, 2)
    framed = Row(
        question=f"Premise: {asked}\nHypothesis: {told}", answer="neutral", frame=("", "Label:")
    )
    assert only([Row(text=f"{asked} {told} neutral")], [framed]).share == 1.0
    chosen, holding = (
        Row(question=text(12, 3), answer="A", choices=("x", "y"), labels=lettered("xy")),
        Row(text=text(12, 3) + " however"),
    )
    assert only([holding], [chosen]) == Leak(holding.example, chosen.example, "8-gram", 1.0)
    chat = Row(
        question=text(15, 4),
        answer=text(15, 5),
        turns=(Message("user", text(15, 4)), Message("assistant", text(15, 5))),
    )
    assert only([Row(text=f"{text(15, 4)} {text(15, 5)}")], [chat]).share == 1.0


def test_what_most_measured_rows_share_is_boilerplate():
    notice = text(60, "notice")

    def told(number: int) -> Row:
        return Row(text=f"{notice} {text(20, number)}")

    measured = [told(i) for i in range(COMMON + 1)]
    calibration = [told(-1 - i) for i in range(5)]
    assert find_leaks(calibration, measured) == []
    assert len(find_leaks(calibration, measured[1:])) == 5 * COMMON
    files = [Row(text=f"{text(40, 'licence')}\n{text(200, i)}") for i in range(4)]
    assert [serious(leak) for leak in find_leaks(files[:2], files[2:])] == [False] * 4
    assert (
        only([Row(text=text(20, 3))], measured).share < 0.5
    )  # of the runs that only it has, those that begin in the boilerplate are missing


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_prompt_that_half_of_the_conversations_have_is_no_content(role: str):
    def told(number: int, prompt: str | int) -> Row:
        turns = (Message(role, text(60, prompt)), Message("user", text(20, number)))
        return Row(turns=turns)

    calibration = [told(-1, "ours"), Row(text=text(20, 1))]
    alike = [told(number, "ours") for number in (1, 2, 3)]
    others = [told(number, number) for number in (4, 5, 6)]
    fingerprints = RowFingerprints.of(calibration, own_files=True)
    leak = only(calibration, [*alike, *others])
    assert (leak.measured, leak.share) == (alike[0].example, 1.0)
    assert fingerprints.leaks([*alike, *others]) == LeakCount(alike=1, rows=6)
    # What one or two conversations are told may be a document, and so may what few are told.
    for few in (alike[1:], [*alike, *others, told(7, 7)]):
        assert serious(find_leaks(calibration[:1], few)[0])
        assert fingerprints.leaks(few).alike >= 2


def test_rows_without_words_and_no_rows_at_all():
    nothing = [Row(text="…"), Row(integers=(1, 2, 3)), Row(question="?", answer="!")]
    assert (
        find_leaks(nothing, [Row(text=text(20, 1))])
        == find_leaks([], nothing)
        == find_leaks([Row(text="a")], [])
        == []
    )
    assert {leak.kind for leak in find_leaks(nothing, nothing)} == {"same example"}
    assert (
        find_leaks([Row(text="\ud800 \x00" + text(20, 1))], [Row(text=text(20, 1))])[0].share == 1.0
    )


def brute(calibration: Sequence[Row], measured: Sequence[Row]) -> Iterator[tuple[str, str, float]]:
    """The shares of runs of 13 as tuples of words, pair by pair."""

    def grams(row: Row) -> set[tuple[str, ...]]:
        spoken = words(row.text or "")
        return {tuple(spoken[i : i + 13]) for i in range(len(spoken) - 12)}

    for row in calibration:
        for other in measured:
            if grams(row) & grams(other):
                yield row.example, other.example, len(grams(row) & grams(other)) / len(grams(other))


def test_all_pairs_against_an_oracle():
    pool = [text(20, f"pool{i}") for i in range(12)]
    rows = [Row(text=" ".join(NUMBERS.choices(pool, k=3)) + f" own{i}") for i in range(80)]
    found = {(leak.row, leak.measured, leak.share) for leak in find_leaks(rows[:40], rows[40:])}
    assert found == set(brute(rows[:40], rows[40:]))
    assert len(found) > 100


def test_on_real_data(real_mirror: Path):
    source = sources.build("gsm8k")
    rows = list(source.rows("calibrate"))
    found = find_leaks(rows, source.rows("measure"))
    assert 0 < len(found) < 20
    assert not any(map(serious, found))
    again = find_leaks(rows, rows[:50])
    assert sum(leak.kind == "same example" for leak in again) == 50
    assert all(a.row != b.row or a.measured != b.measured for a, b in pairwise(again))
