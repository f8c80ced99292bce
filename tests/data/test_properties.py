"""What must hold for any rows, any format and any packing."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from calibrant.data import CalibrationSet, Row, formats
from calibrant.data._draw import Deck
from calibrant.errors import DataError
from calibrant.testing.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
ANY = settings(max_examples=8, suppress_health_check=list(HealthCheck))
OFTEN = pytest.mark.parametrize(
    "once", [1, *(pytest.param(number, marks=pytest.mark.slow) for number in (2, 3))]
)
"""Every property is looked at in a few examples, and in others where there is time."""

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda t: bool(t.strip())
)
rows = st.lists(
    st.tuples(texts, texts, texts),
    min_size=12,
    max_size=60,
    unique_by=lambda row: " ".join(row[0].casefold().split()),
)
filled = [
    "many",
    "many(separator='')",
    "many(shots=2)",
    "many(isolate=true)",
    "many(isolate=true, shots=3)",
    "many(bos='document')",
]
packings = st.sampled_from([*filled, "one", "one(bos='window')"])
kinds = st.sampled_from(["question", "qa", "cot", "chat"])
number = iter(range(10**9))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@contextmanager
def enough() -> Iterator[None]:
    """Pass over what asks for more than the rows hold."""
    try:
        yield
    except DataError as error:
        if "too little for" not in str(error):
            raise
        assume(False)


def written(folder: Path, given: list[tuple[str, str, str]]) -> Path:
    path = folder / f"{next(number)}.jsonl"
    names = ("question", "answer", "rationale")
    path.write_text(
        "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in given),
        encoding="utf-8",
    )
    return path


@OFTEN
@ANY
@given(rows, kinds, packings, st.integers(8, 64), st.integers(1, 400))
def test_real_tokens_in_are_real_tokens_out(
    folder: Path, once: int, rows, kind: str, packing: str, length: int, tokens: int
):
    with enough():
        batch = CalibrationSet(
            f"'{written(folder, rows)}':{kind}@{packing}", tokens=tokens, length=length
        ).tokens(TOKENIZER)
    assert int(batch.mask.sum()) == batch.facts["tokens"] == tokens
    # Real tokens come first in every sequence, and nothing is where the mask is false.
    assert all(mask.tolist() == sorted(mask.tolist(), reverse=True) for mask in batch.mask)
    assert not batch.ids[~batch.mask].any()
    assert not batch.weights[~batch.mask].any()
    assert (batch.weights[batch.mask] == 1).all()
    # Tokens come from the rows' own texts, the separators and start tokens; none is made up.
    texts = [
        formats.build(kind).render(Row(question=q, answer=a, rationale=r), TOKENIZER)
        for q, a, r in rows
    ]
    known = Counter(
        i
        for text in [*texts, "\n\n"]
        for i in TOKENIZER(text, add_special_tokens=False)["input_ids"]
    )
    assert set(batch.ids[batch.mask].tolist()) <= {*known, TOKENIZER.bos_token_id}


@OFTEN
@ANY
@given(rows, kinds, st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.9]), packings, st.integers(60, 300))
def test_shares_are_exact_to_the_correction(
    folder: Path, once: int, rows, kind: str, share: float, packing: str, tokens: int
):
    first, second = written(folder, rows), written(folder, [(q + "!", a, r) for q, a, r in rows])
    with enough():
        batch = CalibrationSet(
            f"{share}*'{first}':{kind}@{packing} + {1 - share}*'{second}':{kind}",
            tokens=tokens,
            length=32,
        ).tokens(TOKENIZER)
    begin = 0
    for part in batch.facts["parts"]:
        here = slice(begin, begin + part["sequences"])
        got = float(batch.weights[here].double().sum())
        assert got == pytest.approx(part["share"] * tokens, rel=1e-6)
        assert int(batch.mask[here].sum()) == part["tokens"]
        assert abs(part["tokens"] - Fraction(part["share"]) * tokens) < 1
        begin += part["sequences"]
    assert begin == len(batch.ids)


@OFTEN
@ANY
@given(rows, kinds, packings, st.integers(20, 60))
def test_adding_a_source_never_changes_the_rows_drawn_from_another(
    folder: Path, once: int, rows, kind: str, packing: str, tokens: int
):
    mine, other = written(folder, rows), written(folder, [(q + "?", a, r) for q, a, r in rows])
    alone = CalibrationSet(f"'{mine}':{kind}@{packing}", tokens=tokens, length=32)
    both = CalibrationSet(
        f"0.5*'{mine}':{kind}@{packing} + 0.5*'{other}':qa", tokens=2 * tokens, length=32
    )
    with enough():
        first, second = alone.rows(TOKENIZER), both.rows(TOKENIZER)
    assert first[0] == second[0]


@OFTEN
@ANY
@given(rows, kinds, packings, st.integers(5, 60), st.randoms())
def test_draws_share_no_row_until_the_set_is_used_up_and_order_does_not_matter(
    folder: Path, once: int, rows, kind: str, packing: str, tokens: int, random
):
    expression = f"'{written(folder, rows)}':{kind}@{packing}"
    draws = [CalibrationSet(expression, tokens=tokens, length=32, seed=seed) for seed in range(3)]
    with enough():
        drawn = [{row.key for row in draw.rows(TOKENIZER)[0]} for draw in draws]
    held = len(Deck(draws[0].parts[0].source, 0).content.rows)
    disjoint = draws[0].disjoint_draws(TOKENIZER)
    assert disjoint is not None
    for number, keys in enumerate(drawn):
        earlier = set().union(*drawn[:number])
        share = draws[number].tokens(TOKENIZER).facts["overlap"]
        assert share == pytest.approx(len(keys & earlier) / len(keys))
        assert (number < disjoint) <= (share == 0)
    assert len(set().union(*drawn)) <= held
    shuffled = list(rows)
    random.shuffle(shuffled)
    again = CalibrationSet(
        f"'{written(folder, shuffled)}':{kind}@{packing}", tokens=tokens, length=32
    )
    assert again.tokens(TOKENIZER).fingerprint == draws[0].tokens(TOKENIZER).fingerprint


FINGERPRINTS = {
    ("many", 16): "sha256:396537535e4fb483",
    ("one", 16): "sha256:1fc7f59d0042edb7",
    ("crop", 16): "sha256:03915f7ca9c6bd6b",
    # Several texts are in a window of this length.
    ("many", 64): "sha256:f6b0788866996d82",
    ("many(isolate=true)", 64): "sha256:df7496df",
    ("legacy", 16): "sha256:3ff605e5b445bbfa",
    ("legacy(of='one')", 16): "sha256:a3626e1a675edfae",
}
"""Found by another process, on another day: they depend on the bytes and the tokenizer alone."""


def test_the_same_bytes_give_the_same_fingerprint_in_any_process(folder: Path):
    path = written(folder, [(f"{i} и {i}?", str(2 * i), f"{i}+{i}\n={2 * i}") for i in range(60)])
    for (packing, length), expected in FINGERPRINTS.items():
        data = CalibrationSet(f"{path}:cot@{packing}", samples=3, length=length, seed=1)
        assert data.tokens(TOKENIZER).fingerprint.startswith(expected), packing


def test_rows_that_a_format_does_not_take_are_passed_over_and_counted(
    jsonl: Callable[..., Path], letters: PreTrainedTokenizerBase
):
    path = jsonl(
        {"question": f"{i}?", "answer": "a", "rationale": "\n".join(["step"] * (1 + i % 3))}
        for i in range(100)
    )
    chosen = CalibrationSet(f"{path}:cot(steps=2)@one", samples=9, length=64)
    (drawn,), facts = chosen.rows(letters), chosen.tokens(letters).facts["parts"][0]
    assert [row.rationale for row in drawn] == ["step\nstep"] * 9
    order = list(chosen.parts[0].source.rows("calibrate"))
    assert facts["passed_over"] == order.index(drawn[-1]) + 1 - 9 > 0
    whole = (
        CalibrationSet(f"{path}:cot@one", samples=9, length=64).tokens(letters).facts["parts"][0]
    )
    assert (whole["rows"], whole["passed_over"]) == (9, 0)
