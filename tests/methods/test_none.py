import torch

from calibrant.activations import Seen
from calibrant.methods.none import Untouched
from calibrant.targets import NofM, Sparsity


def test_nothing_changes_whatever_is_asked():
    weight = torch.tensor([[0.0, float("nan"), 3.0]])
    for target in (Sparsity(0.5), NofM(2, 4)):
        assert torch.equal(Untouched().compress(weight, Seen({}), target).weight, weight) or weight.isnan().any()
        assert Untouched().compress(weight, Seen({}), target).weight.tolist()[0][::2] == [0.0, 3.0]
    assert not Untouched().prunes
