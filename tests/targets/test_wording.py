"""What the errors of targets say: the sentences that a user most likely meets."""

import pytest

from calibrant.errors import TargetError
from calibrant.targets import parse_target

READ = [
    ("half", "'half' is no target; write a sparsity from 0 up to (not including) 1, such as 0.5, N:M with N kept of every M inputs, such as 2:4"),
    (1.2, "1.2 is no sparsity; write a sparsity from 0 up to"),
    (50, "did you mean 0.5?"),
    ("4:4", "4:4 is no pattern: N of N:M are kept, so 1 <= N < M"),
    ("w1", "w1 has codes of 1 bits, and 2 to 8 are possible"),
    ("w4g1", "w4g1 has groups of 1 inputs, and a group has at least 2"),
    ("blocks 1", "is no share of a model's parts; write blocks, experts or numbers and a share from 0 up to"),
]
FITTED = [
    ("2:4", "layers.0.up has 30 inputs, and 2:4 needs a multiple of 4"),
    ("w4g64", "layers.0.up has 30 inputs, which groups of 64 don't divide; choose w4g15, or w4 with a scale for each row"),
]


@pytest.mark.parametrize(("given", "said"), READ)
def test_what_can_t_be_read(given: str | float, said: str):
    with pytest.raises(TargetError) as caught:
        parse_target(given)
    assert said in str(caught.value)


@pytest.mark.parametrize(("text", "said"), FITTED)
def test_what_does_not_fit_a_matrix(text: str, said: str):
    with pytest.raises(TargetError) as caught:
        parse_target(text).check((8, 30), "layers.0.up")
    assert said in str(caught.value)
