from calibrant.allocations import Allocation, allocations
from calibrant.allocations.uniform import Uniform
from calibrant.targets import NofM, Sparsity


def test_every_block_gets_the_request():
    assert Uniform().share(3, Sparsity(0.5)) == [Sparsity(0.5)] * 3
    assert Uniform().share(2, NofM(2, 4), seen=[]) == [NofM(2, 4)] * 2


def test_it_is_known_by_its_name():
    assert "uniform" in allocations.names()
    assert isinstance(allocations.build("uniform"), Allocation)
