"""Sets as tokens: budgets, draws, shares, fingerprints."""

import copy
import hashlib
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from tokenizers import AddedToken, Tokenizer, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from calibrant.data import CalibrationSet, TokenBatch, as_set
from calibrant.data._base import Part, PartRows, PerDraw, Row, Source
from calibrant.data._draw import Deck, PartDraw
from calibrant.data.calibration import check_budget, fingerprint
from calibrant.errors import DataError


@pytest.fixture
def corpus(jsonl: Callable[..., Path]) -> Path:
    """Texts of 10 to 59 bytes; about 70 of them calibrate."""
    return jsonl(
        ({"text": f"{i:03d}".ljust(10 + i % 50, chr(ord("a") + i % 26))} for i in range(100)),
        "corpus.jsonl",
    )


@pytest.fixture
def problems(jsonl: Callable[..., Path]) -> Path:
    return jsonl(
        (
            {"question": f"{i}+1?", "answer": i + 1, "rationale": f"{i} and one."}
            for i in range(100)
        ),
        "problems.jsonl",
    )


def shown(batch: TokenBatch, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [
        tokenizer.decode(ids[mask].tolist())
        for ids, mask in zip(batch.ids, batch.mask, strict=True)
    ]


def calibrating(path: Path, **columns: str) -> list[str]:
    """What the calibrate part must be, worked out from the file alone: texts in the order of
    their hashes, 70 % of them.
    """
    hashed = {}
    for line in path.read_text().splitlines():
        record = {key: str(value) for key, value in json.loads(line).items()}
        hashed[hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()] = record[
            "text"
        ]
    return [hashed[key] for key in sorted(hashed) if int(key, 16) / 16**64 < 0.7]


def test_many_fills_every_window_with_the_rows_in_hash_order(
    corpus: Path, letters: PreTrainedTokenizerBase
):
    batch = CalibrationSet(str(corpus), samples=5, length=32).tokens(letters)
    assert batch.ids.shape == (5, 32)
    assert batch.mask.all()
    assert "".join(shown(batch, letters)) == "\n\n".join(calibrating(corpus))[: 5 * 32]
    assert (batch.weights == 1).all()
    assert (batch.ids.dtype, batch.mask.dtype, batch.weights.dtype) == (
        torch.int64,
        torch.bool,
        torch.float32,
    )


def test_draws_share_no_row_until_the_rows_are_used_up(
    corpus: Path, letters: PreTrainedTokenizerBase
):
    texts = calibrating(corpus)
    seen: list[str] = []
    for draw in range(len(texts) // 7):
        batch = CalibrationSet(f"{corpus}@one", samples=7, length=60, seed=draw).tokens(letters)
        assert batch.facts["overlap"] == 0
        seen += shown(batch, letters)
    assert seen == texts[: len(seen)]
    last = CalibrationSet(f"{corpus}@one", samples=7, length=60, seed=len(texts) // 7)
    batch, left = last.tokens(letters), len(texts) % 7
    assert batch.facts["overlap"] == pytest.approx((7 - left) / 7)
    assert shown(batch, letters) == texts[len(seen) :] + texts[: 7 - left]
    assert last.disjoint_draws(letters) == len(texts) // 7


@pytest.mark.parametrize(
    "text", ["{0}", "0.5*{0} + 0.5*random_tokens", "mix(a='{0}', b=random_tokens, weight=0.3)"]
)
def test_another_draw_of_a_set_is_the_set_that_is_read_with_it(
    corpus: Path, letters: PreTrainedTokenizerBase, text: str
):
    first = CalibrationSet(text.format(corpus), samples=2, length=32)
    third = first.redrawn(2)
    assert third == CalibrationSet(text.format(corpus), samples=2, length=32, seed=2)
    assert third.tokens(letters).facts["draw"] == 2
    assert first.seed == 0
    with pytest.raises(DataError) as caught:
        first.redrawn(-1)
    assert caught.value.subject == "seed"


def test_parts_with_the_same_source_share_no_row(problems: Path, letters: PreTrainedTokenizerBase):
    batch = CalibrationSet(
        f"0.5*{problems}:single + 0.5*{problems}:zero", samples=20, length=64
    ).tokens(letters)
    questions = [text.splitlines()[0] for text in shown(batch, letters)]
    assert len(set(questions)) == 20


def test_random_tokens_are_ordinary_even_and_new_in_each_draw(letters: PreTrainedTokenizerBase):
    batch = CalibrationSet("random_tokens", samples=64, length=512).tokens(letters)
    counts = torch.bincount(batch.ids.flatten(), minlength=len(letters))
    assert counts[:3].tolist() == [0, 0, 0]
    expected = 64 * 512 / 256
    assert (counts[3:] - expected).abs().max() < 5 * expected**0.5
    other = CalibrationSet("random_tokens", samples=64, length=512, seed=1).tokens(letters)
    assert (other.ids == batch.ids).float().mean() < 0.01
    assert other.facts["overlap"] == 0
    assert CalibrationSet("random_tokens", samples=2, length=16).disjoint_draws(letters) is None


def test_special_tokens_are_never_drawn(letters: PreTrainedTokenizerFast):
    tokenizer = copy.deepcopy(letters)
    tokenizer.add_tokens([AddedToken("<tool>", special=True), AddedToken("word", special=False)])
    ids = CalibrationSet("random_tokens", samples=64, length=512).tokens(tokenizer).ids
    assert tokenizer.convert_tokens_to_ids("<tool>") not in ids
    assert tokenizer.convert_tokens_to_ids("word") in ids
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<s>": 0}, "<s>")),
        unk_token="<s>",
        bos_token="<s>",
    )
    with pytest.raises(DataError) as caught:
        CalibrationSet("random_tokens", samples=1, length=4).tokens(tokenizer)
    assert caught.value.subject == "random_tokens"


def test_full_stops_are_one_token_again_and_again(letters: PreTrainedTokenizerBase):
    batches = [
        CalibrationSet("full_stops", samples=2, length=32, seed=seed).tokens(letters)
        for seed in (0, 3)
    ]
    assert set(batches[0].ids.flatten().tolist()) == {letters.convert_tokens_to_ids(".")}
    assert batches[0].fingerprint == batches[1].fingerprint
    assert [b.facts["overlap"] for b in batches] == [0, 1]


@dataclass(frozen=True, repr=False)
class SameAgain(PerDraw):
    """Supplies the same rows for every draw; the only one with an answer is the last."""

    kind = "questions"
    licence = homepage = ""
    fields = ("question",)

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        for number in range(3):
            yield Row(question=str(number))
        yield Row(question="1 + 1?", answer="2")

    def for_draw(self, draw: int) -> PartRows:
        return PartRows(tuple(self.rows("calibrate", draw)))

    def disjoint(self) -> int:
        return 1

    def measured(self) -> Source:
        raise NotImplementedError


def test_earlier_draws_are_read_as_far_as_a_draw_is_also_past_rows_that_are_not_used():
    *unused, used = SameAgain().rows("calibrate")
    part_draw = PartDraw(rows=[used], passed_over=len(unused))
    assert Deck(SameAgain(), 1).overlap(part_draw) == 1


class OtherAnswers(SameAgain):
    """A model that is asked the same in each draw, and answers otherwise."""

    def rows(self, part: Part, seed: int = 0) -> Iterator[Row]:
        yield Row(question="How many apples are left of the twelve?", answer=f"{seed}")


def test_draws_in_which_the_same_was_asked_overlap_whatever_was_answered():
    (row,) = OtherAnswers().rows("calibrate", 1)
    assert Deck(OtherAnswers(), 1).overlap(PartDraw(rows=[row])) == 1


def test_the_fingerprint_is_that_of_the_bytes(corpus: Path, letters: PreTrainedTokenizerBase):
    ids, mask = (
        np.array([[1, 2, 0], [70_000, 4, 5]]),
        np.array([[True, True, False], [True, True, True]]),
    )
    weights = np.array([[1, 1, 0], [0.5, 0.5, 0.5]])
    expected = (
        b"2 3\n"
        + struct.pack("<6i", 1, 2, 0, 70_000, 4, 5)
        + bytes([0b11011100])
        + struct.pack("<6f", 1, 1, 0, 0.5, 0.5, 0.5)
    )
    assert fingerprint(ids, mask, weights) == "sha256:" + hashlib.sha256(expected).hexdigest()
    assert fingerprint(ids, mask, weights * 2) != fingerprint(ids, mask, weights)
    assert fingerprint(ids, ~mask, weights) != fingerprint(ids, mask, weights)
    batch, other = (
        CalibrationSet(f"{corpus}@one", samples=3, length=32, seed=seed).tokens(letters)
        for seed in (0, 1)
    )
    assert (
        batch.fingerprint
        == fingerprint(batch.ids.numpy(), batch.mask.numpy(), batch.weights.numpy())
        != other.fingerprint
    )


def test_the_digest_is_of_the_content_and_not_of_its_order(
    corpus: Path, letters: PreTrainedTokenizerBase
):
    def digest() -> str:
        return (
            CalibrationSet(str(corpus), samples=3, length=32)
            .tokens(letters)
            .facts["parts"][0]["digest"]
        )

    before, lines = digest(), corpus.read_text().splitlines()
    corpus.write_text("\n".join(reversed([*lines, lines[0]])) + "\n")
    assert digest() == before
    corpus.write_text("\n".join(lines).replace("aaa", "aba") + "\n")
    assert digest() != before


@pytest.mark.parametrize(
    ("name", "value"), [("samples", 0), ("samples", -3), ("length", 0), ("tokens", 0), ("seed", -1)]
)
def test_impossible_budgets_are_refused(name: str, value: int):
    with pytest.raises(DataError, match=f" {value};") as caught:
        CalibrationSet("wikitext", **{name: value})
    assert caught.value.subject == name


def test_windows_and_tokens_together_are_refused():
    said = "samples is 4 and tokens is 64, and a budget is a number of windows or of real tokens"
    with pytest.raises(DataError, match=f"{said}; leave one out") as caught:
        CalibrationSet("wikitext", samples=4, tokens=64)
    assert caught.value.subject == "samples"
    with pytest.raises(DataError, match=said):
        as_set(["a text", "another"], samples=4, tokens=64)


@pytest.mark.parametrize(
    ("name", "value"),
    [("samples", 2.0), ("length", 64.0), ("tokens", 1e3), ("seed", 0.0), ("seed", True)],
)
def test_a_budget_is_a_whole_number(name: str, value: Any):
    with pytest.raises((DataError, TypeCheckError)) as caught:
        CalibrationSet("wikitext", **{name: value})
    if isinstance(caught.value, DataError):
        assert (caught.value.subject, "whole number" in str(caught.value)) == (name, True)


def test_a_whole_number_of_numpy_is_a_plain_one():
    found = check_budget(np.int64(4), np.int32(32), np.uint8(200), np.int64(1))
    assert found == (4, 32, 200, 1)
    assert {type(number) for number in found} == {int}


def test_a_source_that_holds_too_little_says_how_much_it_holds(
    corpus: Path, letters: PreTrainedTokenizerBase
):
    texts = calibrating(corpus)
    whole = len("\n\n".join(texts))
    assert (
        CalibrationSet(str(corpus), tokens=whole, length=64).tokens(letters).facts["tokens"]
        == whole
    )
    one, longest = {"samples": 500, "length": 64}, max(map(len, texts))
    for packing, budget, said in (
        (
            "many",
            {"tokens": whole + 1, "length": 64},
            f"; lower length, or tokens to at most {whole}$",
        ),
        ("one", one, f"; lower length, or samples to at most {len(texts)}$"),
        # The advice is in what was given: windows, not tokens.
        ("many", one, f"or samples to at most {whole // 64}, or ask for {whole} tokens"),
        ("crop", {"samples": 1, "length": 100}, f"\\b{longest}\\b.*; lower length, or samples$"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            CalibrationSet(f"{corpus}@{packing}", **budget).tokens(letters)
        assert caught.value.subject == str(corpus)


def test_a_window_needs_room_beside_the_start_token_and_a_part_needs_tokens(
    corpus: Path, started: PreTrainedTokenizerBase
):
    with pytest.raises(DataError) as caught:
        CalibrationSet(str(corpus), samples=1, length=1).tokens(started)
    assert caught.value.subject == "length"
    with pytest.raises(DataError) as caught:
        CalibrationSet(f"0.99*{corpus} + 0.01*random_tokens", tokens=10, length=8).tokens(started)
    assert caught.value.subject == "random_tokens"
    for data, tokens in ((str(corpus), 1), (f"0.99*{corpus} + 0.01*random_tokens", 100)):
        with pytest.raises(DataError, match=r"gets 1 token of .* its start token alone"):
            CalibrationSet(data, tokens=tokens, length=8).tokens(started)


def test_two_paths_to_one_file_read_the_same(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(corpus.parent)
    (corpus.parent / "link.jsonl").symlink_to(corpus)
    paths = (str(corpus), "corpus.jsonl", "./corpus.jsonl", "link.jsonl")
    for expr in ("{}", "0.5*{} + 0.5*gsm8k", "mix({}=0.5, gsm8k=0.5)"):
        assert len({CalibrationSet(expr.format(path)).content_key for path in paths}) == 1
    (corpus.parent / "link.txt").symlink_to(corpus)  # read as lines
    others = ("link.txt", "corpus.jsonl@crop", "corpus.jsonl(text='text')", "gsm8k", "gsm8k:cot")
    assert len({CalibrationSet(expr).content_key for expr in ("corpus.jsonl", *others)}) == 6


def test_a_set_is_a_value():
    one, other = (
        CalibrationSet("gsm8k:qa@many", samples=4),
        CalibrationSet("gsm8k:icl", samples=4),
    )
    assert one == other != CalibrationSet("gsm8k:icl", samples=5)
    assert hash(one) == hash(other)
    assert repr(one) == "CalibrationSet('gsm8k:icl', samples=4, length=2048, seed=0)"
