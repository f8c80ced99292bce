"""The longest first."""

from calibrant.testing import tiny_tokenizer

from tests.select.contexts import built, check_order, context


def test_by_tokens_and_not_by_letters() -> None:
    texts = ["abc", "é" * 4, "a" * 7, "", "é" * 4, "a" * 1000]
    order = check_order(
        built("longest(source=python_docs)"), texts, context(length=16, model=False)
    )
    lengths = [len(tiny_tokenizer()(text)["input_ids"]) for text in texts]
    assert order == sorted(range(len(texts)), key=lambda i: (-lengths[i], i)) == [5, 1, 4, 2, 0, 3]
