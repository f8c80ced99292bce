"""Products of matrices of 16 bits in float32, where a processor can't multiply them as they are."""

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import calibrant
from calibrant.compress.costs import peak
from calibrant.system import wide_products as module
from calibrant.system.wide_products import wide_products
from calibrant.testing import tiny_folder

NARROW = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def old_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without instructions for 16 bits, and slices of a few columns."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(module, "_SLICE", 1000)


def drawn(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype)


def is_rounded_once(product: Tensor, exact: Tensor) -> bool:
    """Whether a product is the exact one, rounded to its type: half a step away at the most, but
    for the error of the sums.
    """
    step = torch.finfo(product.dtype).eps
    error = (product.double() - exact).abs()
    return bool((error <= exact.abs() * step * 0.5 + 1e-4).all())


@pytest.mark.parametrize("dtype", NARROW)
def test_each_kind_of_product_is_the_exact_one_rounded_once(dtype: torch.dtype) -> None:
    rows, inputs, outputs = 40, 96, 33
    x = drawn(rows, inputs, dtype=dtype)
    weight = drawn(outputs, inputs, dtype=dtype, seed=1)
    bias = drawn(outputs, dtype=dtype, seed=2)
    batch = drawn(3, rows, inputs, dtype=dtype, seed=3)
    batch_of_weights = drawn(3, inputs, outputs, dtype=dtype, seed=4)
    exact = x.double() @ weight.double().T
    exact_batch = batch.double() @ batch_of_weights.double()
    with wide_products():
        assert is_rounded_once(torch.nn.functional.linear(x, weight), exact)
        assert is_rounded_once(torch.nn.functional.linear(x, weight, bias), exact + bias.double())
        scaled = torch.addmm(bias, x, weight.T, beta=0.5, alpha=2)
        assert is_rounded_once(scaled, 0.5 * bias.double() + 2 * exact)
        assert is_rounded_once(torch.bmm(batch, batch_of_weights), exact_batch)
        added = torch.baddbmm(bias, batch, batch_of_weights)
        assert is_rounded_once(added, exact_batch + bias.double())


def test_a_result_is_written_where_it_was_asked_for() -> None:
    x = drawn(40, 96, dtype=torch.bfloat16)
    weight = drawn(96, 33, dtype=torch.bfloat16, seed=1)
    out = torch.empty(40, 33, dtype=torch.bfloat16)
    with wide_products():
        product = torch.mm(x, weight, out=out)
    assert product is out
    assert is_rounded_once(out, x.double() @ weight.double())


@pytest.mark.parametrize("shape", [(96, 0), (3, 96, 0)])
def test_a_matrix_without_columns_gives_none(shape: tuple[int, ...]) -> None:
    x = torch.ones(*shape[:-2], 40, 96, dtype=torch.bfloat16)
    with wide_products():
        product = x @ torch.ones(shape, dtype=torch.bfloat16)
    assert product.shape == (*shape[:-2], 40, 0)


def test_without_inputs_a_product_is_zero() -> None:
    with wide_products():
        product = torch.ones(40, 0, dtype=torch.bfloat16) @ torch.ones(0, 8, dtype=torch.bfloat16)
    assert torch.equal(product, torch.zeros(40, 8, dtype=torch.bfloat16))


def test_what_does_not_fit_together_is_refused_as_everywhere() -> None:
    x = torch.ones(40, 96, dtype=torch.bfloat16)
    weight = torch.ones(96, 8, dtype=torch.bfloat16)
    with wide_products():
        for refused in (
            lambda: torch.mm(x.float(), weight),
            lambda: torch.addmm(torch.ones(8), x, weight),
            lambda: torch.mm(x, weight[1:]),
            lambda: torch.bmm(x[None], weight.expand(2, 96, 8)),
            lambda: torch.mm(x, weight, out=torch.empty(40, 8)),
        ):
            with pytest.raises(RuntimeError):
                refused()


def test_sparse_matrices_are_multiplied_as_everywhere() -> None:
    x = torch.ones(40, 96, dtype=torch.bfloat16)
    with wide_products():
        product = torch.mm(x.to_sparse(), x.T)
    assert torch.equal(product, torch.full((40, 40), 96, dtype=torch.bfloat16))


def test_gradients_are_those_of_the_product() -> None:
    x = drawn(40, 96, dtype=torch.bfloat16).requires_grad_()
    weight = drawn(64, 96, dtype=torch.bfloat16, seed=1).requires_grad_()
    above = drawn(40, 64, dtype=torch.bfloat16, seed=2)
    with wide_products():
        torch.nn.functional.linear(x, weight).backward(above)
    assert x.grad is not None
    assert weight.grad is not None
    assert is_rounded_once(x.grad, above.double() @ weight.detach().double())
    assert is_rounded_once(weight.grad, above.double().T @ x.detach().double())


class Multiplied(TorchDispatchMode):
    """Notes in which types matrices are multiplied at last, and with how many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: list[torch.dtype] = []
        self.rows: list[int] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            self.dtypes.append(args[-1].dtype)
            self.rows.append(len(args[-2]))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "rows", "able"),
    [
        (torch.float32, 40, {}),
        (torch.float64, 40, {}),
        (torch.bfloat16, 31, {}),
        (torch.bfloat16, 40, {"amx_bf16": True}),
        (torch.bfloat16, 40, {"avx512_bf16": True}),
        (torch.float16, 40, {"avx512_fp16": True}),
    ],
)
def test_other_types_few_rows_and_processors_that_can_are_left_as_they_are(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rows: int, able: dict[str, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    x = drawn(rows, 96, dtype=dtype)
    weight = drawn(33, 96, dtype=dtype, seed=1)
    with Multiplied() as multiplied, wide_products():
        torch.nn.functional.linear(x, weight)
    assert multiplied.dtypes == [dtype]


def test_processors_of_other_kinds_are_left_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    x = drawn(40, 96, dtype=torch.bfloat16)
    with Multiplied() as multiplied, wide_products():
        torch.nn.functional.linear(x, x)
    assert multiplied.dtypes == [torch.bfloat16]


def test_a_large_matrix_is_widened_slice_by_slice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SLICE", 96 * 20)
    x = drawn(40, 96, dtype=torch.bfloat16)
    with Multiplied() as multiplied, wide_products():
        torch.nn.functional.linear(x, x)
    # Two slices: of 20 columns each.
    assert multiplied.dtypes == [torch.float32, torch.float32]


def test_in_inference_mode_products_are_wide_too() -> None:
    x = drawn(40, 8, dtype=torch.bfloat16)
    with torch.inference_mode(), Multiplied() as multiplied, wide_products():
        product = torch.nn.functional.linear(x, x)
    assert multiplied.dtypes == [torch.float32]
    assert is_rounded_once(product, x.double() @ x.double().T)


def compressed(folder: str) -> None:
    calibrant.prune(folder, data="python_docs", samples=2, length=64, dtype="bfloat16")


def measured(folder: str) -> None:
    calibrant.evaluate(
        folder, tasks=["loss(source=python_docs, tokens=256, length=64)"], dtype="bfloat16"
    )


def studied(folder: str) -> None:
    study = calibrant.Study(
        folder,
        data=["python_docs"],
        method="wanda",
        samples=2,
        length=64,
        dtype="bfloat16",
        evaluate=["loss(source=python_docs, tokens=256, length=64)"],
    )
    study.run(f"{folder}-results")


def test_plans_time_products_that_are_wide() -> None:
    with Multiplied() as multiplied:
        peak((64, 64), torch.bfloat16, seconds=0.01)
    assert set(multiplied.dtypes) == {torch.float32}


@pytest.mark.parametrize("verb", [compressed, measured, studied])
def test_verbs_multiply_so(verb: Callable[[str], None], tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "model"))
    with Multiplied() as multiplied:
        verb(folder)
    assert torch.float32 in multiplied.dtypes
    for dtype, rows in zip(multiplied.dtypes, multiplied.rows, strict=True):
        # A walk's rehearsal has a few rows.
        assert dtype == torch.float32 or rows < 32
