"""What methods say when they are asked for what they can't do: the sentences that a user most
likely meets, each in one place.
"""

import math

import pytest
import torch

from calibrant.activations import Gram, Seen
from calibrant.compress import Recipe
from calibrant.errors import InputError, NumericsError
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.targets import Sparsity

from tests.methods.matrices import seen_of, spoilt


@pytest.mark.parametrize(
    ("method", "target", "sentence"),
    [
        (
            "admm(iterations=10)",
            0.5,
            "admm(iterations=10, ramp=15): the ramp has at least 1 of the iterations and at most "
            "all",
        ),
        (
            "dsnot(start=sparsegpt)",
            0.5,
            "it starts from a mask that needs no more than the sizes of inputs; write wanda, ria "
            "or magnitude",
        ),
        (
            "evop(generation=3)",
            0.5,
            "evop has no parameter 'generation', perhaps you mean 'generations'",
        ),
        (
            "evop(tokens=[2048, 512])",
            0.5,
            "write numbers of tokens that grow, from 2, as in tokens=[512, 2048]",
        ),
        (
            "mc_suite(criterion=eam)",
            0.5,
            "there is no such criterion, perhaps you mean 'eas'; choose one of ews, rwn, wsr, ewn, "
            "euf",
        ),
        (
            "refined(start=rtn)",
            0.5,
            "refined(start=rtn): start is a method that removes weights matrix by matrix; write "
            "wanda,",
        ),
        (
            "sparsegpt(damp=0.0)",
            0.5,
            "sparsegpt(damp=0.0): damp must be above 0; 0.01 is the paper's",
        ),
        ("gptq", 0.5, "gptq can't be asked for 0.5: it accepts a grid of 2 to 8 bits"),
        ("sparsegpt", "w4g64", "or a sparsity or N:M with a grid, such as 2:4+w4g64"),
        ("llama_cpp", "Q9_X", "'Q9_X' is no target"),
        ("rtn", "gguf 90MB", "; for whole GGUF files take the method llama_cpp"),
        (
            "llama_cpp",
            "gguf 90",
            "'gguf 90' is no budget of bytes; write gguf, a number above 0, and MB, GB, MiB or GiB",
        ),
        (
            "llama_cpp(by=kl)",
            "Q4_K_M",
            "Q4_K_M says which kinds tensors get, so there is nothing to choose; leave by=kl out",
        ),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(method: str, target: float | str, sentence: str):
    with pytest.raises(InputError) as refused:
        Recipe.parse(method, target)
    assert sentence in str(refused.value)


def test_numbers_that_no_method_can_work_with_are_one_sentence():
    weight, x = torch.randn(4, 8), torch.randn(20, 8)
    indefinite = Gram(torch.tensor([[1.0, 20.0], [20.0, 1.0]]), tokens=1, mass=1.0)
    cases = [
        (
            spoilt(weight, math.nan),
            seen_of(x),
            "the weight holds NaN or infinity (1 of 32 numbers); look at the model's file and at "
            "its dtype",
        ),
        (
            weight,
            seen_of(spoilt(x, math.inf)),
            "the squared norms of the inputs holds NaN or infinity (1 of 8 numbers)",
        ),
        (
            weight,
            seen_of(torch.ones(0, 8)),
            "no token reached the matrix (0 tokens, weight 0), so nothing says which inputs "
            "matter; leave it dense",
        ),
        (
            torch.randn(4, 2),
            Seen({Gram: indefinite}),
            "isn't positive definite, not even in float64 with damp=10",
        ),
    ]
    for matrix, seen, sentence in cases:
        with pytest.raises(NumericsError) as refused:
            SparseGPT().compress(matrix, seen, Sparsity(0.5))
        assert sentence in str(refused.value)
