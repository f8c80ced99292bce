"""How float32 products are computed: faster, but of float32 numbers."""

import pytest
import torch

from calibrant.system import products
from calibrant.system.products import full_speed, rounding_factors


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


@pytest.mark.parametrize(
    "capabilities", [{"amx_bf16": True, "avx512_f": True}, {}], ids=["tiles", "short vectors"]
)
def test_where_factors_would_be_rounded_the_setting_stays(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    products.has_tiles.cache_clear()
    products._onednn_is_exact.cache_clear()
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        with full_speed():
            assert torch.backends.mkldnn.matmul.fp32_precision == before
    finally:
        products.has_tiles.cache_clear()
        products._onednn_is_exact.cache_clear()


def test_the_setting_is_put_back_when_the_last_thread_leaves() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    first, second = rounding_factors(), rounding_factors()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    second.__exit__(None, None, None)
    assert torch.backends.mkldnn.matmul.fp32_precision == before
