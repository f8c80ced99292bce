"""Every causal language model that transformers lists is walked exactly, or refused by a sentence
that names it.

The list is the library's own, so a new version of it shows here what it brought. What a walk hands
out is held against a plain forward, in which the products are seen one layer further down, as the
operators that torch dispatches to. On arrival a matrix sees what everything before it, already
compressed, gives it: which is what a plain forward of the compressed model shows at the end, all at
once.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from calibrant.activations import FeatureNorms
from calibrant.data import TokenBatch
from calibrant.models import ModelView, view
from calibrant.testing import check_architecture
from calibrant.walk import walk
from calibrant.walk.rehearsal import rehearse

from tests.models.families import FAMILIES, small_model
from tests.models.refused import refusal_of
from tests.test_walk import halved
from tests.usual import usually

IDS: Final = torch.randint(3, 100, (3, 8), generator=torch.Generator().manual_seed(0))
CALLS: Final = (IDS[:2], IDS[2:])
"""As `walk` cuts them into micro-batches of 16 tokens."""

REFUSED: Final[Mapping[str, str]] = {
    "blt": "BltForCausalLM",
    "dory": "DoryForCausalLM",
    "hrm_text": "HrmTextForCausalLM",
    "xlm": "XLMWithLMHeadModel",
}
"""Families that can't be walked, and whom the refusal names."""
NOT_RUN: Final[Mapping[str, type[Exception]]] = {
    **({} if find_spec("timm") else {"gemma3n": ImportError}),
    **dict.fromkeys(("musicgen", "musicgen_melody"), AttributeError),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), ValueError),
}
"""Families that transformers itself can't make from a configuration alone, or run on token ids
alone.
"""
LEFT: Final[Mapping[str, str]] = {
    "deepseek_v4": "read by bmm, not by a product with it alone",
    "ergo": "read by __getitem__, not by a product with it alone",
    "gemma3n_text": "used 2 times in one forward",
    "inkling2_loop_text": "its block runs 2 times in one forward",
    "inkling_text": "read by float, not by a product with it alone",
    "longcat_flash": "read by type, not by a product with it alone",
    "prophetnet": "used 2 times in one forward",
    "zamba": "shared with block 3",
    "zamba2": "shared with block 3",
    "zaya": "used 2 times in one forward",
}
"""Families of which some matrices are left as they are on arrival, and what is said of the
first. Of all others, every matrix is walked.
"""
UNPADDED: Final = ("cpmant", "ergo", "jetmoe", "prophetnet", "reformer", "xlstm", "zaya")
"""Families that take no attention mask, or whose rows can't be traced to their tokens: padding
is refused.
"""
LENGTHS: Final = (8, 5, 8, 7)
USUAL: Final = (
    "llama",
    "gpt2",
    "qwen3_moe",
    "mamba",
    "bart",
    "blt",
    "jetmoe",
    "dory",
    "xlm",
    "gemma3n_text",
    "inkling_text",
    "zamba",
)
"""What people use, and one of every way to be refused or left; the others are slow."""
EACH: Final = usually(FAMILIES, USUAL)
EACH_PADDED: Final = usually(
    FAMILIES, ("llama", "gpt2", "gemma3_text", "mamba2", "bloom", "cpmant", "jetmoe")
)


class Operators(TorchDispatchMode):
    """Squared lengths of the features that each matrix in memory is multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.squares: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv"):
            a, b = args[-2:]
            for left, right in zip(a, b, strict=True) if a.dim() == 3 else [(a, b)]:
                self._add(right, left)
                self._add(left, right.mT if right.dim() == 2 else right)
        return func(*args, **(kwargs or {}))

    def _add(self, matrix: Tensor, rows: Tensor) -> None:
        squares = rows.reshape(-1, rows.shape[-1]).double().square().sum(0)
        key = matrix.data_ptr()
        self.squares[key] = (
            self.squares[key] + squares
            if key in self.squares and len(squares) == len(self.squares[key])
            else squares
        )


def plainly(model: PreTrainedModel) -> tuple[dict[int, Tensor], list[Tensor]]:
    """What the operators saw in a plain forward, by address, and its logits."""
    with torch.no_grad(), Operators() as operators:
        logits = [model(input_ids=ids, use_cache=False).logits for ids in CALLS]
    return operators.squares, logits


def full() -> TokenBatch:
    """Windows without padding."""
    ones = torch.ones(IDS.shape)
    return TokenBatch(ids=IDS, mask=ones.bool(), weights=ones, fingerprint="sha256:test", facts={})


def padded(left: bool) -> TokenBatch:
    """Windows of several lengths, padded on one side, in which every token has a weight of its
    own.
    """
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 100, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    weights = torch.rand(ids.shape, generator=generator) * mask
    tensors = ids.masked_fill(~mask, 0), mask, weights
    if left:
        tensors = tuple(
            torch.stack([row.roll(max(LENGTHS) - n) for row, n in zip(t, LENGTHS, strict=True)])
            for t in tensors
        )
    return TokenBatch(*tensors, fingerprint="sha256:test", facts={})


def walked(
    seen_by: ModelView,
    propagate: str,
    batch: TokenBatch,
    prune: bool = False,
    tokens_per_pass: int = 16,
) -> Iterator[tuple[str, Tensor]]:
    """Names of the matrices that a walk hands out, and the squared lengths of what they saw."""
    for weight, seen in walk(
        seen_by, batch, (FeatureNorms,), propagate, tokens_per_pass=tokens_per_pass
    ):
        squares = seen[FeatureNorms].norms().double()
        if prune:
            weight.set(halved(weight.get().clone(), squares.to(weight.get().dtype)))
        yield weight.name, squares


def assert_same(
    found: Mapping[str, Tensor],
    seen: Mapping[int, Tensor],
    seen_by: ModelView,
    left: Mapping[str, str],
) -> None:
    """All that a plain forward multiplies with was handed out, but for what was left for a
    reason, and with the same numbers.
    """
    for weight in seen_by.weights:
        there = seen.get(weight.address)
        if weight.name in left or there is None or not there.any():
            assert weight.name not in found or not found[weight.name].any(), weight.name
            continue
        assert weight.name in found, f"{weight.name} was passed by"
        tolerance = 1e-9 if weight.stored.dtype == torch.float64 else 1e-4
        torch.testing.assert_close(
            found[weight.name], there, rtol=tolerance, atol=tolerance, msg=weight.name
        )


def walkable(family: str) -> bool:
    """Whether the family is one that runs and isn't refused; if it is not, that it isn't is
    checked.
    """
    if family in NOT_RUN:
        with pytest.raises(NOT_RUN[family]):
            plainly(small_model(family))
        return False
    if family in REFUSED:
        assert (
            refusal_of(lambda: list(walked(view(small_model(family)), "arrival", full()))).subject
            == REFUSED[family]
        )
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", EACH)
def test_every_family_is_walked_exactly_or_refused_by_name(family: str) -> None:
    if not walkable(family):
        return
    model = small_model(family)
    seen_by = view(model)
    check_architecture(model, IDS)
    left = rehearse(seen_by).left("arrival")
    assert next(iter(left.values()), None) == LEFT.get(family)
    untouched, logits = plainly(model)
    dense = dict(walked(seen_by, "dense", full()))
    assert dense
    assert_same(dense, untouched, seen_by, rehearse(seen_by).left("dense"))
    reference = dict(walked(seen_by, "reference", full()))
    assert reference.keys() == dense.keys()
    assert all(torch.equal(reference[name], dense[name]) for name in dense)
    with torch.no_grad():
        assert all(
            torch.equal(model(input_ids=ids, use_cache=False).logits, before)
            for ids, before in zip(CALLS, logits, strict=True)
        )
    arrived = dict(walked(seen_by, "arrival", full(), prune=True))
    assert_same(arrived, plainly(model)[0], seen_by, left)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", EACH_PADDED)
def test_padding_does_not_matter_or_is_refused(family: str) -> None:
    if family in NOT_RUN or family in REFUSED:
        return
    seen_by = view(small_model(family))
    if family in UNPADDED:
        assert "padding" in str(
            refusal_of(lambda: dict(walked(seen_by, "dense", padded(left=False))))
        )
        return
    alone = dict(
        walked(seen_by, "dense", padded(left=False), tokens_per_pass=1)
    )  # every window on its own: nothing is padded
    for left in (False, True):
        together = dict(walked(seen_by, "dense", padded(left)))
        assert together.keys() == alone.keys()
        for name, squares in together.items():
            torch.testing.assert_close(
                squares, alone[name], rtol=1e-4, atol=1e-4 * float(alone[name].max()), msg=name
            )
