"""How float32 products are computed: faster, but of float32 numbers."""

import pytest
import torch
from torch import nn

from calibrant.system.products import full_speed, packed_weights, rounding_factors


def test_at_full_speed_float32_numbers_are_multiplied_as_they_are() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(300, 500, generator=generator)
    right = torch.randn(500, 200, generator=generator)
    with full_speed():
        product = left @ right
        added = torch.ones(300, 200).addmm_(left, right)
    exact = left.double() @ right.double()
    # Rounded to bfloat16, factors would be a thousand times as far away.
    assert float((product - exact).abs().max() / exact.abs().max()) < 2e-6
    assert float((added - 1 - exact).abs().max() / exact.abs().max()) < 2e-6
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_the_setting_is_put_back_when_the_last_thread_leaves() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    first, second = rounding_factors(), rounding_factors()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    assert torch.backends.mkldnn.matmul.fp32_precision == before


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("rows", [1, 5, 64, 300])
def test_packed_weights_multiply_as_the_weights_do(
    dtype: torch.dtype, bound: float, rows: int
) -> None:
    """They are packed for 64 rows at once."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(70, 150), nn.Linear(150, 40, bias=False)).to(dtype)
    inputs = torch.randn(rows, 2, 70).to(dtype)
    exact = inputs.double()
    with torch.no_grad():
        for layer in layers:
            assert isinstance(layer, nn.Linear)
            exact = exact @ layer.weight.double().T
            if layer.bias is not None:
                exact += layer.bias.double()
        with full_speed(), packed_weights(layers, 64):
            product = layers(inputs)
    assert product.dtype == dtype
    assert product.shape == exact.shape
    assert (product.double() - exact).abs().max() <= bound * exact.abs().max()


class Coded(torch.Tensor):
    """What another tool that quantizes puts into a layer."""


def test_weights_of_another_kind_stay_as_they_are() -> None:
    layer = nn.Linear(8, 8)
    coded = layer.weight.detach().as_subclass(Coded)
    layer.weight = nn.Parameter(coded, requires_grad=False)
    assert type(layer.weight) is Coded
    with packed_weights(layer, 4):
        assert "forward" not in vars(layer)


def test_a_layer_with_a_forward_of_its_own_keeps_it() -> None:
    layer = nn.Linear(8, 8)
    layer.forward = torch.zeros_like
    with torch.no_grad(), packed_weights(layer, 4):
        assert not layer(torch.ones(4, 8)).any()
    assert layer.forward is torch.zeros_like
