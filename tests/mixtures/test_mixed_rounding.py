"""What rounding under a mixture is predicted to do, against literal float64 code of its own; and
the importance matrix of a mixture.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from calibrant.compress.importance import imatrix, read_imatrix
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.errors import SpecError
from calibrant.lab.mixtures import Effort, Sample, aim_of, mix, rounded, stand_in_of
from calibrant.lab.mixtures.aims import fitted_to
from calibrant.methods import methods
from calibrant.methods.quantization._stand_ins import RecipeByMatrix
from calibrant.models import open_model
from calibrant.targets import GgmlKind
from calibrant.testing.tiny import tiny_gguf

from tests.mixtures.made import World, both, world
from tests.trained import trained_folder

SOURCES = ("python_docs", "python_code", "arithmetic")
EFFORT = Effort(Sample(2, 16), 12, Sample(2, 16), Sample(2, 16))
WIDTH = 4
"""Inputs that share a scale in `w4g4`."""

Quantizer = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A weight [out, in] and Σ w·x xᵀ / Σ w of its inputs, to what becomes of it."""


def nearest(weight: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Symmetric 4-bit codes times a scale for each of `WIDTH` inputs of a row; half way between
    two codes the even one.
    """
    each = np.repeat(scales, WIDTH, axis=1)
    return np.clip(np.round(weight / each), -8, 7) * each


def by_importance(weight: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Scales by the least Σ x²·|w - ŵ|³ of twenty reaches, group by group."""
    result = np.empty_like(weight)
    for row, begin in np.ndindex(len(weight), weight.shape[1] // WIDTH):
        at = slice(begin * WIDTH, (begin + 1) * WIDTH)
        group, least = weight[row : row + 1, at], np.inf
        for step in range(20):
            found = nearest(group, np.array([[np.abs(group).max() * (1 - 0.95 * step / 20) / 7.5]]))
            error = float((np.diag(second)[at] * np.abs(group - found)[0] ** 3).sum())
            if error < least:
                least, result[row, at] = error, found[0]
    return result


def one_column_at_a_time(weight: np.ndarray, second: np.ndarray) -> np.ndarray:
    """GPTQ as its paper writes it: round a column, spread its error over the rest by a row of
    the inverse, take the column out of the inverse.
    """
    weight, rounded_to = weight.copy(), np.empty_like(weight)
    inverse = np.linalg.inv(second + 0.01 * np.diag(second).mean() * np.eye(len(second)))
    scales = np.abs(weight).reshape(len(weight), -1, WIDTH).max(2) / 7.5
    for column in range(weight.shape[1]):
        here = scales[:, column // WIDTH]
        rounded_to[:, column] = np.clip(np.round(weight[:, column] / here), -8, 7) * here
        error = (weight[:, column] - rounded_to[:, column]) / inverse[column, column]
        weight[:, column:] -= np.outer(error, inverse[column, column:])
        inverse -= np.outer(inverse[:, column], inverse[column]) / inverse[column, column]
    return rounded_to


def reaching_both_ends(weight: np.ndarray) -> np.ndarray:
    """The nearest of sixteen values that reach from the least to the largest weight of each
    group, zero among them.
    """
    grouped = weight.reshape(len(weight), -1, WIDTH)
    least, most = (
        np.minimum(grouped.min(2, keepdims=True), 0),
        np.maximum(grouped.max(2, keepdims=True), 0),
    )
    scales = (most - least) / 15
    zeros = np.round(np.clip(-8 - least / scales, -8, 7))
    return ((np.clip(np.round(grouped / scales + zeros), -8, 7) - zeros) * scales).reshape(
        weight.shape
    )


def scaled_alone(weight: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Columns times the best of twenty powers of their inputs' root mean squares, rounded, and
    divided again.

    On a symmetric grid the largest weight lies half way between two codes, so that the last bit of
    a power would decide; on this one none does.
    """
    sizes, best, least = np.sqrt(np.diag(second)), weight, np.inf
    for step in range(20):
        raw = np.maximum(sizes ** (step / 20), 1e-4)
        scales = raw / np.sqrt(raw.max() * raw.min()) if step else np.ones_like(raw)
        scaled = weight * scales
        found = reaching_both_ends(scaled) / scales
        error = float(np.trace((found - weight) @ second @ (found - weight).T))
        if error < least:
            best, least = found, error
    return best


def literally(made: World, shares: Sequence[float], quantizer: Quantizer) -> list[float]:
    """‖(W − Ŵ)X‖² / ‖WX‖² under each judge, mean over matrices, where each token of a source
    counts share / tokens.
    """
    found = []
    for judge in made.held_out:
        each = []
        for place, weight in enumerate(made.weights):
            which = int(place == 2)
            parts = [
                share / len(x[which]) * x[which].T @ x[which]
                for share, x in zip(shares, made.own, strict=True)
            ]
            second = np.sum([part.numpy() for part in parts], axis=0) / sum(shares)
            changed = torch.from_numpy(weight.numpy() - quantizer(weight.numpy(), second))
            each.append(
                float(
                    (judge[which] @ changed.T).square().sum()
                    / (judge[which] @ weight.T).square().sum()
                )
            )
        found.append(sum(each) / len(each))
    return found


@pytest.mark.parametrize(
    "shares", [(0.2, 0.3, 0.5), pytest.param((1, 0, 0), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    ("method", "target", "quantizer"),
    [
        ("rtn(scales=importance)", "w4g4", by_importance),
        ("gptq", "w4g4", one_column_at_a_time),
        ("rsq", "w4g4", one_column_at_a_time),  # predicted with all tokens alike
        ("awq(clip=false)", "w4g4a", scaled_alone),
    ],
)
def test_predicted_errors_are_those_of_literal_code_on_the_mixed_tokens(
    method: str, target: str, quantizer: Quantizer, shares: tuple[float, ...]
) -> None:
    made, standing = world(), stand_in_of(*aim_of(method, target))
    found = made.errors(standing.method, target)([rounded(np.array(shares, dtype=np.float64))])
    assert found[0] == pytest.approx(literally(made, shares, quantizer), rel=1e-9)


def test_a_recipe_is_predicted_by_the_kind_that_fits() -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    generator = torch.Generator().manual_seed(0)
    standing = stand_in_of(*aim_of(None, "Q4_K_M"))
    assert isinstance(standing.method, RecipeByMatrix)
    for columns, kind in ((256, "q4_k"), (64, "q5_0"), (40, None)):
        weight, x = (torch.randn(rows, columns, generator=generator) for rows in (8, 100))
        found = standing.method.compress(weight, both(x), standing.target).weight
        expected = (
            weight
            if kind is None
            else methods.build("ggml").compress(weight, both(x), GgmlKind(kind)).weight
        )
        assert torch.equal(found, expected)


def test_a_budget_is_predicted_by_the_largest_kind_that_it_has_room_for() -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    generator = torch.Generator().manual_seed(0)
    standing = stand_in_of(*aim_of(None, "gguf 1MB"))
    for bits, columns, kind in (
        (5.0, 256, "q4_1"),
        (4.9, 256, "q4_k"),
        (4.9, 64, "q4_0"),
        (6.6, 256, "q6_k"),
        (6.6, 64, "q5_1"),
        (2.0, 256, "q2_k"),
        (4.9, 40, None),
    ):
        fitted = fitted_to(standing, int(8_000_000 / bits))
        weight, x = (torch.randn(rows, columns, generator=generator) for rows in (8, 100))
        found = fitted.method.compress(weight, both(x), fitted.target).weight
        expected = weight
        if kind is not None:
            expected = methods.build("ggml").compress(weight, both(x), GgmlKind(kind)).weight
        assert torch.equal(found, expected)
        # How many numbers there are is no part of its name.
        assert str(fitted.target) == "gguf 1MB"


def test_a_budget_without_anything_to_choose_is_refused() -> None:
    standing = stand_in_of(*aim_of("llama_cpp(by=kl)", "gguf 1.0625MB"))
    fitted_to(standing, 1_000_001)
    with pytest.raises(SpecError, match=r"gguf 1\.0625MB has room .* ask for less than 1\.0625MB"):
        fitted_to(standing, 1_000_000)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_k", "iq4_nl"])
def test_which_kinds_heed_the_importance_is_what_llama_cpp_does(kind: str) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 256, generator=generator)
    blocks = []
    for _ in range(2):
        x = torch.randn(50, 256, generator=generator) * torch.randn(256, generator=generator).exp()
        packed = methods.build("ggml").compress(weight, both(x), GgmlKind(kind)).packed
        assert packed is not None
        blocks.append(packed.stored()[1]["blocks"])
    assert methods.build("ggml").heeds(GgmlKind(kind)) == (not torch.equal(*blocks))


@pytest.mark.parametrize(
    ("method", "target", "built", "aimed"),
    [
        (None, None, "wanda", "0.6"),
        (None, "2:4+w4g64", "sparsegpt", "2:4+w4g64"),
        (None, "Q4_K_M", "llama_cpp", "Q4_K_M"),
        (None, "gguf 90MB", "llama_cpp", "gguf 90MB"),
        ("awq", None, "awq", "w4g64"),
        ("llama_cpp", "q4_0", "llama_cpp", "Q4_0"),
    ],
)
def test_the_usual_method_of_a_target_and_the_usual_target_of_a_method(
    method: str | None, target: str | None, built: str, aimed: str
) -> None:
    assert tuple(map(str, aim_of(method, target))) == (built, aimed)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where statistics are kept that several tests share."""
    return tmp_path_factory.mktemp("kept")


def mean_squares(model: torch.nn.Module, batch: TokenBatch) -> dict[str, Tensor]:
    """Mean x² of what each linear layer is multiplied with, in float64, by hooks."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            real = args[0].double()[batch.mask]
            sums[name] = sums.get(
                name, torch.zeros(real.shape[1], dtype=torch.float64)
            ) + real.square().sum(0)

        return add

    handles = [
        part.register_forward_pre_hook(hook(name))
        for name, part in model.named_modules()
        if isinstance(part, torch.nn.Linear)
    ]
    with torch.no_grad():
        model(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: total / int(batch.mask.sum()) for name, total in sums.items()}


@pytest.mark.parametrize(
    "method", ["rtn(scales=importance)", pytest.param("gptq", marks=pytest.mark.slow)]
)
def test_the_imatrix_of_a_mixture_is_that_of_its_tokens(
    place: Path, tmp_path: Path, method: str
) -> None:
    budget = {"tokens": 1024, "length": 128, "dtype": "float32"}
    path = tmp_path / "mixed.gguf"
    found = mix(
        str(trained_folder()),
        sources=SOURCES,
        method=method,
        target="w3g32",
        folder=place,
        effort=EFFORT,
        imatrix=path,
        **budget,
    )
    made, opened = read_imatrix(path), open_model(str(trained_folder()), "float32", "cpu")
    each = [
        mean_squares(
            opened.model, CalibrationSet(source, tokens=1024, length=128).tokens(opened.tokenizer)
        )
        for source in SOURCES
    ]
    shares = [Fraction(weight).limit_denominator(100) for weight in found.weights.values()]
    for block in range(4):
        for gguf_name, name in (
            ("attn_q", "self_attn.q_proj"),
            ("attn_output", "self_attn.o_proj"),
            ("ffn_down", "mlp.down_proj"),
        ):
            whole = sum(
                float(share) * part[f"model.layers.{block}.{name}"]
                for share, part in zip(shares, each, strict=True)
            )
            assert isinstance(whole, Tensor)
            np.testing.assert_allclose(
                made.entries[f"blk.{block}.{gguf_name}.weight"].importance[0],
                whole.numpy(),
                rtol=2e-5,
            )
    assert found.expr in made.datasets[0]
    walked = imatrix(str(trained_folder()), data=found.expr, **budget)
    assert walked.entries.keys() == made.entries.keys()
    for name, entry in walked.entries.items():
        np.testing.assert_allclose(made.entries[name].importance, entry.importance, rtol=1e-5)


def test_a_recipe_is_mixed_for(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    model = str(tiny_gguf(tmp_path / "tiny.gguf", "F32"))
    budget = {"tokens": 256, "length": 32, "dtype": "float32", "effort": EFFORT}
    found = mix(
        model,
        sources=SOURCES[:2],
        target="Q4_K_M",
        folder=tmp_path,
        imatrix=tmp_path / "mixed.gguf",
        **budget,
    )
    assert (found.method, found.target) == ("llama_cpp", "Q4_K_M")
    assert "llama_cpp" in found.notes[0]
    assert 0 < found.value < 1
    assert read_imatrix(tmp_path / "mixed.gguf").entries
