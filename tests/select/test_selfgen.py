"""The dense model continues prefixes, and its calibration data is closest to what it would
itself write.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from calibrant.data import CalibrationSet, Row
from calibrant.data.select import resolved
from calibrant.data.select._generating import FilterResult, GeneratedText, filter_texts
from calibrant.data.select._reading import nats
from calibrant.data.select.selfgen import SelfGen
from calibrant.errors import DataError
from calibrant.testing import tiny_tokenizer

from tests.select.contexts import context, opened

PLAIN = SelfGen(prefix="python_docs")


def encoded(rows: Sequence[Row | GeneratedText]) -> list[list[int]]:
    return [tiny_tokenizer()(str(row.text), add_special_tokens=False)["input_ids"] for row in rows]


def test_the_worst_fifth_by_its_own_perplexity_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[GeneratedText] = []

    def recorded(texts: Sequence[GeneratedText], drop: float, loops: str) -> FilterResult:
        seen[:] = texts
        return filter_texts(texts, drop, loops)

    monkeypatch.setattr("calibrant.data.select.selfgen.filter_texts", recorded)
    found = replace(PLAIN, loops="keep", batch=15).select(replace(context(), tokens=600))
    assert len(seen) - len(found.rows) == math.ceil(len(seen) * 2 / 10)
    # What another reader makes of them, which begins with the start token as well.
    again = dict(
        zip(
            (text.text for text in seen),
            nats(opened(), [[1, *ids] for ids in encoded(seen)]),
            strict=True,
        )
    )
    kept = {row.text for row in found.rows}
    assert max(again[text] for text in kept) < min(
        nat for text, nat in again.items() if text not in kept
    )
    assert mean(math.exp(again[text]) for text in kept) < mean(map(math.exp, again.values()))


def test_the_same_draw_has_the_same_texts_and_another_has_others() -> None:
    asked = replace(PLAIN, candidates=20)
    given = replace(context(), tokens=128)
    one, again, other = (asked.select(replace(given, draw=draw)) for draw in (0, 0, 1))
    assert one == again
    beginnings = [{row.text[:2] for row in found.rows} for found in (one, other)]
    assert not {row.key for row in one.rows} & {row.key for row in other.rows}
    assert beginnings[0] != beginnings[1]
    for row, ids in zip(one.rows, encoded(one.rows), strict=True):
        assert tiny_tokenizer().decode(ids) == row.text
        assert row.present == ("text",)
        assert len(ids) <= 128


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's file of forty texts, of which every one begins with its own number."""
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "\n".join(json.dumps({"text": f"{i:02d} bottles stand on the wall"}) for i in range(40))
    )
    return path


def test_each_draw_has_prefixes_of_its_own(mine: Path) -> None:
    asked = SelfGen(prefix=str(mine), candidates=4)
    ends = asked.disjoint()
    assert ends is not None
    assert ends >= 5
    drawn = [
        {row.text[:2] for row in asked.select(context(draw, length=32)).rows} for draw in range(3)
    ]
    assert all(len(found) <= 4 for found in drawn)
    assert not drawn[0] & drawn[1] | drawn[1] & drawn[2] | drawn[0] & drawn[2]
    assert all(prefix.isdigit() for found in drawn for prefix in found)


def test_it_stands_where_a_source_stands() -> None:
    asked = CalibrationSet(
        "0.5*selfgen(prefix=python_docs, max_tokens=40)@many(separator=' ') + 0.5*python_code",
        tokens=200,
        length=64,
    )
    batch = resolved(asked, opened()).tokens(tiny_tokenizer())
    part, other = batch.facts["parts"]
    assert part["tokens"] == other["tokens"] == 100
    assert part["origin"] == "chosen by selfgen(prefix='python_docs', max_tokens=40)"
    assert batch.fingerprint == resolved(asked, opened()).tokens(tiny_tokenizer()).fingerprint
    assert [str(source) for source in asked.parts[0].source.origins] == ["python_docs"]
    assert str(asked.parts[0].source.measured()) == "python_docs"


def test_rows_that_are_too_short_are_passed_over_and_windows_as_short_as_a_prefix_refused(
    mine: Path,
) -> None:
    with pytest.raises(DataError) as caught:
        SelfGen(prefix=str(mine), prefix_tokens=100, candidates=3).select(context())
    assert caught.value.subject == str(mine)
    with pytest.raises(DataError) as caught:
        replace(PLAIN, prefix_tokens=8).select(context(length=8))
    assert caught.value.subject == "length"
