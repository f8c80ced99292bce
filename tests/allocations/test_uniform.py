from calibrant.activations import Seen
from calibrant.allocations import Allocation, allocations
from calibrant.allocations.uniform import Uniform
from calibrant.models import view
from calibrant.targets import NofM, Sparsity
from calibrant.testing import tiny_model


def test_every_matrix_gets_the_request():
    weights = view(tiny_model("llama")).weights
    for target in (Sparsity(0.5), NofM(2, 4)):
        assert Uniform().share({weight: Seen({}) for weight in weights}, target) == {weight.name: target for weight in weights}


def test_it_is_known_by_its_name():
    assert "uniform" in allocations.names()
    assert isinstance(allocations.build("uniform"), Allocation)
