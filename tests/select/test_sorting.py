"""Selectors that sort their candidates: the longest first, and the easiest first."""

import math

import torch

from calibrant.testing import tiny_tokenizer

from tests.select.contexts import built, check_order, context, opened, pieces

POOL = [*pieces("python_docs", 12), "a", *pieces("python_code", 6), "qzxj kvwq zzqx jjkq " * 6]


def slow_loss(text: str) -> float:
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"][:64]])
    if ids.shape[1] < 2:
        return math.inf
    with torch.no_grad():
        return opened().model(input_ids=ids, labels=ids).loss.item()


def test_the_longest_is_so_by_tokens_and_not_by_letters() -> None:
    texts = ["abc", "é" * 4, "a" * 7, "", "é" * 4, "a" * 1000]
    order = check_order(
        built("longest(source=python_docs)"), texts, context(length=16, model=False)
    )
    lengths = [len(tiny_tokenizer()(text)["input_ids"]) for text in texts]
    assert order == sorted(range(len(texts)), key=lambda i: (-lengths[i], i)) == [5, 1, 4, 2, 0, 3]


def test_the_easiest_is_so_by_the_model_s_own_loss() -> None:
    order = check_order(built("least_perplexity(source=python_docs)"), POOL, context(length=64))
    losses = [slow_loss(POOL[one]) for one in order]
    assert losses == sorted(losses)
    assert order[-1] == POOL.index("a"), "what can't be judged comes last"
    assert order[-2] == len(POOL) - 1
