"""The easiest first."""

import math

import pytest
import torch

from calibrant.errors import DataError, SpecError
from calibrant.testing import tiny_tokenizer

from tests.select.contexts import TROUBLE, built, check_order, context, opened, pieces

POOL = [*pieces("python_docs", 12), "a", *pieces("arithmetic", 6), "qzxj kvwq zzqx jjkq " * 6]


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


def test_the_note_tells_the_perplexities() -> None:
    note = built("least_perplexity(source=python_docs)").order(POOL, context(length=64))[1]
    losses = sorted(slow_loss(text) for text in POOL if len(text) > 1)
    least, most = (math.exp(loss) for loss in (losses[0], losses[-1]))
    assert note == f"perplexity {least:.3g} to {most:.3g}, {math.exp(losses[len(losses) // 2]):.3g} in the middle"


@pytest.mark.parametrize("trouble", TROUBLE)
def test_odd_candidates(trouble: str) -> None:
    check_order(built("least_perplexity(source=python_docs)"), TROUBLE[trouble], context())


def test_what_can_t_be_is_refused() -> None:
    with pytest.raises(SpecError, match=r"least_perplexity\(candidates=0\)"):
        built("least_perplexity(source=python_docs, candidates=0)")
    with pytest.raises(DataError, match=r"least_perplexity\(source='python_docs'\) needs the model"):
        built("least_perplexity(source=python_docs)").order(POOL, context(model=False))
