"""The longest first."""

import pytest

from calibrant.errors import SpecError
from calibrant.testing import tiny_tokenizer

from tests.select.contexts import TROUBLE, built, check_order, context


def test_by_tokens_and_not_by_letters() -> None:
    texts = ["abc", "é" * 4, "a" * 7, "", "é" * 4, "a" * 1000]
    order = check_order(built("longest(source=python_docs)"), texts, context(length=16, model=False))
    lengths = [len(tiny_tokenizer()(text)["input_ids"]) for text in texts]
    assert order == sorted(range(len(texts)), key=lambda i: (-lengths[i], i)) == [5, 1, 4, 2, 0, 3]


def test_the_note_tells_the_lengths() -> None:
    selector = built("longest(source=python_docs)")
    assert selector.order(["a", "abcd", "ab"], context(model=False))[1] == "4 to 1 tokens, 2 in the middle"
    assert not selector.needs_model


@pytest.mark.parametrize("trouble", TROUBLE)
def test_odd_candidates(trouble: str) -> None:
    check_order(built("longest(source=python_docs)"), TROUBLE[trouble], context(model=False))


def test_what_can_t_be_is_refused() -> None:
    with pytest.raises(SpecError, match=r"longest\(candidates=-1\)"):
        built("longest(source=python_docs, candidates=-1)")
