"""A mix of two sets: what is read and written back, and the batch that it makes of its parts'
own.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet
from calibrant.data.calibration import KINDS
from calibrant.data.inspect import inspect_tokens
from calibrant.errors import SpecError


@pytest.fixture
def folder(tmp_path: Path, jsonl: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    jsonl(
        ({"text": f"{i:03d}".ljust(10 + i % 50, chr(ord("a") + i % 26))} for i in range(100)),
        "corpus.jsonl",
    )
    jsonl(
        (
            {"question": f"{i}+1?", "answer": i + 1, "rationale": f"{i} and one."}
            for i in range(100)
        ),
        "problems.jsonl",
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (
            "mix(domain=gsm8k:cot, general=wikitext, weight=0.5)",
            "mix(domain=gsm8k:cot, general=wikitext, weight=0.5)",
        ),
        (
            "mix(weight=1e-1, a=wikitext@many(separator=', '), b=gsm8k)",
            "mix(a=wikitext@many(separator=', '), b=gsm8k:icl, weight=0.1)",
        ),
        (
            "mix(a='corpus.jsonl', b=\"problems.jsonl:cot\", weight=0.5)",
            "mix(a=corpus.jsonl, b=problems.jsonl:cot, weight=0.5)",
        ),
        (
            "mix(a=\"'a, b=c+d.jsonl'\", b=problems.jsonl, weight=0.5)",
            "mix(a='a, b=c+d.jsonl'(), b=problems.jsonl:icl, weight=0.5)",
        ),
        ("mix(a=wikitext, b=gsm8k)", "mix(a=wikitext, b=gsm8k:icl, weight=0.5)"),
        (
            "mix(a=wikitext, b=gsm8k, c=python_docs, weights=[2, 2, 2])",
            "mix(a=wikitext, b=gsm8k:icl, c=python_docs)",
        ),
        (
            "mix(a=wikitext, b=gsm8k, c=python_docs, weights=[1, 2, 3])",
            "mix(a=wikitext, b=gsm8k:icl, c=python_docs, weights=[1, 2, 3])",
        ),
        (
            "mix(a=wikitext, b=gsm8k, c=python_docs, weights=[1, 0, 3])",
            "mix(a=wikitext, c=python_docs, weight=0.25)",
        ),
        (
            "mix(a=wikitext, b=gsm8k, c=python_docs, weights=[1, 0, 2])",
            "mix(a=wikitext, c=python_docs, weight=0.3333333333333333)",
        ),
        ("mix(wikitext=0.5, gsm8k=0.5)", "mix(wikitext=wikitext, gsm8k=gsm8k:icl, weight=0.5)"),
        (
            "mix(wikitext=30%, gsm8k:cot=70%)",
            "mix(wikitext=wikitext, gsm8k_cot=gsm8k:cot, weight=0.3)",
        ),
        (
            "mix(wikitext=1, gsm8k=2, python_docs=3)",
            "mix(wikitext=wikitext, gsm8k=gsm8k:icl, python_docs=python_docs, weights=[1, 2, 3])",
        ),
        (
            "mix('a, b=c+d.jsonl'=1, corpus.jsonl=3)",
            "mix(a_b_c_d_jsonl='a, b=c+d.jsonl'(), corpus_jsonl=corpus.jsonl, weight=0.25)",
        ),
        ("mix('0.5'=0.5, ./0.5=0.5)", "mix(_0_5='0.5', _0_5_2=./0.5, weight=0.5)"),
    ],
)
def test_the_canonical_text_reads_back_as_the_same(folder: Path, text: str, canonical: str) -> None:
    (folder / "a, b=c+d.jsonl").write_bytes((folder / "corpus.jsonl").read_bytes())
    (folder / "0.5").mkdir()
    (folder / "0.5" / "corpus.jsonl").write_bytes((folder / "corpus.jsonl").read_bytes())
    chosen = CalibrationSet(text, samples=3, length=20, seed=2)
    assert str(chosen) == canonical
    assert CalibrationSet(canonical, samples=3, length=20, seed=2) == chosen
    assert hash(CalibrationSet(canonical, samples=3, length=20, seed=2)) == hash(chosen)
    assert repr(chosen) == f"CalibrationSet({canonical!r}, samples=3, length=20, seed=2)"
    assert [(part.samples, part.length, part.budget, part.seed) for part in chosen.mixed] == [
        (3, 20, None, 2)
    ] * len(chosen.mixed)
    assert sum(term.share for term in chosen.parts) == 1


def test_sources_with_their_weights_are_what_they_are_with_names() -> None:
    named = CalibrationSet("mix(wikitext=wikitext, gsm8k=gsm8k, weight=0.5)", tokens=64, length=32)
    assert CalibrationSet("mix(wikitext=0.5, gsm8k=0.5)", tokens=64, length=32) == named
    with pytest.raises(SpecError) as caught:
        CalibrationSet("mix(wikitxt=0.5, gsm8k=0.5)")
    assert caught.value.subject == "wikitxt"


@pytest.mark.parametrize(
    ("text", "alone"),
    [
        ("mix(a=gsm8k, b=wikitext, weight=0)", "wikitext"),
        ("mix(a=gsm8k, b=wikitext, weight=1.0)", "gsm8k:icl"),
        ("mix(a=gsm8k, b=wikitext, c=python_docs, weights=[0, 0, 7])", "python_docs"),
    ],
)
def test_a_mix_of_one_set_is_that_set(text: str, alone: str) -> None:
    assert CalibrationSet(text, tokens=64, length=32, seed=1) == CalibrationSet(
        alone, tokens=64, length=32, seed=1
    )


def test_its_parts_are_drawn_as_they_are_alone_and_weights_are_shares_of_the_statistics(
    folder: Path, letters: PreTrainedTokenizerBase
) -> None:
    batch = CalibrationSet(
        "mix(a=corpus.jsonl@one, b=problems.jsonl, weight=0.3)", samples=5, length=32, seed=1
    ).tokens(letters)
    alone = [
        CalibrationSet(text, samples=5, length=32, seed=1).tokens(letters)
        for text in ("corpus.jsonl@one", "problems.jsonl")
    ]
    assert [part.fingerprint for _, part in batch.mixed] == [part.fingerprint for part in alone]
    assert torch.equal(batch.ids, torch.cat([part.ids for part in alone]))
    assert torch.equal(batch.mask, torch.cat([part.mask for part in alone]))
    assert batch.examples == tuple(sorted({*alone[0].examples, *alone[1].examples}))
    assert batch.pads is None
    tokens = batch.facts["tokens"]
    for rows, share, (factor, part) in zip(
        (slice(5), slice(5, None)), (0.3, 0.7), batch.mixed, strict=True
    ):
        assert batch.weights[rows].double().sum().item() / tokens == pytest.approx(share, rel=1e-6)
        assert factor * part.weights.double().sum().item() / tokens == pytest.approx(share)
    assert (batch.weights[~batch.mask] == 0).all()


def test_with_the_shares_of_the_tokens_it_is_the_pooled_set(
    folder: Path, letters: PreTrainedTokenizerBase
) -> None:
    batch = CalibrationSet(
        "mix(a=corpus.jsonl, b=problems.jsonl, weight=0.5)", tokens=96, length=32
    ).tokens(letters)
    assert torch.equal(batch.weights, batch.mask.float())
    kinds = CalibrationSet(
        "mix(a=corpus.jsonl, b=problems.jsonl, weight=0.5)", tokens=96, length=32
    ).kinds(letters)
    assert kinds.shape == batch.ids.shape
    assert int(kinds.max()) < len(KINDS)


def test_the_fingerprint_covers_the_parts_and_the_weight(
    folder: Path, letters: PreTrainedTokenizerBase
) -> None:
    def made(text: str, seed: int = 0) -> str:
        return CalibrationSet(text, samples=3, length=32, seed=seed).tokens(letters).fingerprint

    plain = made("mix(a=corpus.jsonl, b=problems.jsonl, weight=0.25)")
    others = [
        made("mix(a=corpus.jsonl, b=problems.jsonl, weight=0.75)"),
        made("mix(a=problems.jsonl, b=corpus.jsonl, weight=0.25)"),
        made("mix(a=corpus.jsonl, b=problems.jsonl:cot, weight=0.25)"),
        made("mix(a=corpus.jsonl, b=problems.jsonl, weight=0.25)", seed=1),
        made("corpus.jsonl + problems.jsonl"),
    ]
    assert len({plain, *others}) == 6
    assert made("mix(c=corpus.jsonl, d=problems.jsonl, weight=0.25)") == plain, "names are labels"
    assert made("mix(corpus.jsonl=0.25, problems.jsonl=0.75)") == plain
    parts = [
        CalibrationSet(text, samples=3, length=32).tokens(letters).fingerprint
        for text in ("corpus.jsonl", "problems.jsonl")
    ]
    assert (
        plain
        == "sha256:" + hashlib.sha256(f"mix\n1/4 {parts[0]}\n3/4 {parts[1]}\n".encode()).hexdigest()
    )


def test_it_has_as_many_draws_as_the_part_that_has_the_fewest(
    folder: Path, letters: PreTrainedTokenizerBase
) -> None:
    few, many = (
        CalibrationSet(text, samples=4, length=64).disjoint_draws(letters)
        for text in ("problems.jsonl:cot", "corpus.jsonl@one")
    )
    assert few is not None
    assert many is not None
    assert few < many
    for text in (
        "mix(a=problems.jsonl:cot, b=corpus.jsonl@one, weight=0.5)",
        "mix(a=random_tokens, b=problems.jsonl:cot, weight=0.5)",
    ):
        assert CalibrationSet(text, samples=4, length=64).disjoint_draws(letters) == few
    assert (
        CalibrationSet(
            "mix(a=random_tokens, b=full_stops, weight=0.5)", samples=4, length=64
        ).disjoint_draws(letters)
        is None
    )


def test_inspect_shows_both_parts(folder: Path, letters: PreTrainedTokenizerBase) -> None:
    found = inspect_tokens(
        CalibrationSet("mix(a=corpus.jsonl, b=problems.jsonl, weight=0.25)", samples=2, length=64),
        letters,
    )
    assert [(part["data"], part["share"]) for part in found.parts] == [
        ("corpus.jsonl", 0.25),
        ("problems.jsonl:icl", 0.75),
    ]
    assert all(part["texts"] for part in found.parts)
    assert found.windows == 4
