import re
from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.activations import Seen
from calibrant.allocations import allocations
from calibrant.compress import prune
from calibrant.errors import TargetError
from calibrant.models import view
from calibrant.targets import NofM, Sparsity
from calibrant.testing import tiny_folder, tiny_model


def test_every_matrix_gets_the_request():
    weights = view(tiny_model("llama")).weights
    for target in (Sparsity(0.5), NofM(2, 4)):
        assert allocations.build("uniform").share(
            {weight: Seen({}) for weight in weights}, target
        ) == {weight.name: target for weight in weights}


UNEVEN = """
from dataclasses import dataclass
from calibrant.allocations import Allocation
from calibrant.targets import Sparsity


@dataclass(frozen=True, repr=False)
class Uneven(Allocation):
    lack: bool = False

    def share(self, matrices, target):
        shares = {}
        for weight in matrices:
            shares[weight.name] = Sparsity(target.fraction / (1 + weight.block))
        return dict(list(shares.items())[1:]) if self.lack else shares
"""


@pytest.mark.parametrize(
    ("allocation", "given"),
    [("uneven", "0.305556"), ("uneven(lack=true)", "model.layers.0.self_attn.q_proj")],
)
def test_an_allocation_that_asks_something_else_is_refused(
    allocation: str, given: str, plugged: Callable[..., None], tmp_path: Path
):
    plugged({"calibrant.allocations": {"uneven": "uneven:Uneven"}}, uneven=UNEVEN)
    model = tiny_folder(tmp_path / "model")
    with pytest.raises(TargetError, match=re.escape(given)):
        prune(
            str(model),
            data="random_tokens",
            method="magnitude",
            target=0.5,
            out=tmp_path / "out",
            allocation=allocation,
            samples=2,
            length=16,
        )
    assert list(tmp_path.iterdir()) == [model]
