"""The easiest first."""

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


def test_they_are_sorted_by_the_model_s_own_loss() -> None:
    order = check_order(built("least_perplexity(source=python_docs)"), POOL, context(length=64))
    losses = [slow_loss(POOL[one]) for one in order]
    assert losses == sorted(losses)
    assert order[-1] == POOL.index("a"), "what can't be judged comes last"
    assert order[-2] == len(POOL) - 1
