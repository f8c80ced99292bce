"""What is most like a target, and that only what may be read of the target is read."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibrant.data import Row, StoredSource
from calibrant.data.select._embedding import tfidf
from calibrant.data.select._reading import beginnings, pooled
from calibrant.errors import DataError

from tests.select.contexts import built, check_order, context, opened, pieces

POOL = [*pieces("python_docs", 24), *pieces("python_code", 8)]


@pytest.fixture
def ships(tmp_path: Path) -> str:
    path = tmp_path / "ships.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"text": f"ship {i} sails over the sea with {i} sailors"}) for i in range(60)
        )
    )
    return str(path)


def targets(ships: str) -> list[str]:
    return [
        row.text or ""
        for row in built(f"longest(source='{ships}')")._terms[0].source.rows("calibrate")
    ]


def test_cosine_to_the_mean_of_the_target(ships: str) -> None:
    texts = ["rain on hills", "sailors sail a ship", "", "over the sea sails a ship", "one ship"]
    order = check_order(
        built(f"similar(source=python_docs, to='{ships}')"), texts, context(model=False)
    )
    points = np.asarray(tfidf([*texts, *targets(ships)]).todense())
    middle = points[len(texts) :].mean(0)
    cosines = [
        float(np.dot(one, middle) / max(np.linalg.norm(one) * np.linalg.norm(middle), 1e-300))
        for one in points[: len(texts)]
    ]
    assert order == sorted(range(len(texts)), key=lambda i: (-cosines[i], i))
    assert order[0] == 3
    assert set(order[-2:]) == {0, 2}


def test_by_the_model_it_is_the_cosine_from_the_middle_of_the_pool() -> None:
    selector = built("similar(source=python_docs, to=python_code, candidates=20, embed=model)")
    order = check_order(selector, POOL, context())
    asked = selector._target(context())  # type: ignore[attr-defined]
    assert len(asked) == 20
    candidates, target = (
        pooled(opened(), beginnings(several, context().tokenizer, 128)).double()
        for several in (POOL, asked)
    )
    candidates, target = (
        candidates / candidates.norm(dim=1, keepdim=True),
        target / target.norm(dim=1, keepdim=True),
    )
    middle = target.mean(0) - candidates.mean(0)
    away = candidates - candidates.mean(0)
    cosines = (away @ middle) / (away.norm(dim=1) * middle.norm())
    assert [round(cosines[i].item(), 6) for i in order] == sorted(
        (round(c.item(), 6) for c in cosines), reverse=True
    )


def test_only_the_calibrate_part_is_read_and_no_more_rows_than_candidates(
    ships: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()
    real = StoredSource.rows

    def spying(self: StoredSource, part: Any, seed: int = 0) -> Iterator[Row]:
        for row in real(self, part, seed):
            asked[part] += 1
            yield row

    monkeypatch.setattr(StoredSource, "rows", spying)
    note = built(
        f"similar(source=python_docs, to='0.75*{ships} + 0.25*python_code', candidates=8)"
    ).order(POOL, context(model=False))[1]
    assert asked == {"calibrate": 8}
    assert note.startswith("compared with 8 texts of 0.75*")


@pytest.fixture
def sums(tmp_path: Path) -> str:
    path = tmp_path / "sums.jsonl"
    path.write_text(
        "\n".join(
            json.dumps({"question": f"{i} + 1?", "rationale": "One more.", "answer": str(i + 1)})
            for i in range(40)
        )
    )
    return str(path)


def test_the_target_is_rendered_in_its_format(sums: str) -> None:
    question, worked = (
        built(f"similar(source=python_docs, to='{sums}:{form}', candidates=3)")
        for form in ("question", "cot")
    )
    for short, long in zip(question._target(context()), worked._target(context()), strict=True):  # type: ignore[attr-defined]
        assert len(short) < len(long)


def test_a_target_without_text_is_refused(sums: str) -> None:
    with pytest.raises(DataError) as caught:
        built(f"similar(source=python_docs, to='{sums}:cot(steps=99)')").order(
            POOL, context(model=False)
        )
    assert caught.value.subject == f"{sums}:cot(steps=99)"
