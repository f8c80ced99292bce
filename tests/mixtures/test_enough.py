"""Halves of a batch: how they are gathered, and whether they say that there are enough tokens."""

from pathlib import Path

import pytest
import torch

from calibrant.activations import FeatureNorms, Gram, Seen
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.lab.mixtures import CurvePoint, Sample, TokenMeter, read_curve
from calibrant.lab.mixtures.statistics import (
    GramPieces,
    NormPieces,
    Pieces,
    StoredPieces,
    gather_with_pieces,
)
from calibrant.methods.pruning.sparsegpt import SparseGPT
from calibrant.methods.pruning.wanda import Wanda
from calibrant.models import Opened, view
from calibrant.targets import parse_target
from calibrant.testing import tiny_model, tiny_tokenizer
from calibrant.walk.statistics import Statistics, gather, statistics_id

SAMPLED = [0, 2]


def opened_of(family: str = "llama") -> Opened:
    return Opened(
        tiny_model(family, num_hidden_layers=3),
        tiny_tokenizer(),
        family,
        f"sha256:{family}",
        "",
        torch.float32,
    )


def batch_of(tokens: int = 3000, length: int = 64) -> TokenBatch:
    return CalibrationSet("python_docs", tokens=tokens, length=length).tokens(tiny_tokenizer())


def places(root: Path, opened: Opened, batch: TokenBatch, kind) -> tuple[Statistics, StoredPieces]:
    kept = Statistics(root, statistics_id(opened, batch))
    return kept, StoredPieces(root, kept.name, kind)


@pytest.mark.parametrize("kind", [FeatureNorms, Gram])
def test_the_whole_is_what_is_gathered_without_pieces_to_the_bit_and_the_pieces_are_the_whole(
    kind, tmp_path: Path
) -> None:
    opened, batch = opened_of(), batch_of()
    seen_by = view(opened.model)
    plain, _ = places(tmp_path / "plain", opened, batch, kind)
    kept, pieces = places(tmp_path / "pieces", opened, batch, kind)
    gather(seen_by, batch, (kind,), plain)
    gather_with_pieces(seen_by, batch, kind, kept, pieces, SAMPLED)
    for block in seen_by.blocks:
        whole, same = (one.read([kind], block)[1] for one in (kept, plain))
        assert all(
            torch.equal(whole[w][kind].norms(), same[w][kind].norms()) for w in block.weights
        )
        assert pieces.holds(block) == (block.index in SAMPLED)
        if block.index in SAMPLED:
            parts = pieces.read(block)
            assert len(parts) == 6, "three micro-batches, two pieces of each"
            for weight in block.weights:
                total = sum(there[weight][kind].norms().double() for _, there in parts)
                torch.testing.assert_close(
                    total, whole[weight][kind].norms().double(), rtol=1e-5, atol=1e-6
                )
                assert (
                    sum(there[weight].tokens for _, there in parts) == whole[weight].tokens == 3000
                )


def test_nothing_is_walked_for_twice_and_what_was_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, batch = opened_of(), batch_of(500)
    seen_by = view(opened.model)
    kept, pieces = places(tmp_path, opened, batch, FeatureNorms)

    def killed(_: str, done: int, __: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather_with_pieces(seen_by, batch, FeatureNorms, kept, pieces, SAMPLED, killed)
    assert [
        kept.stored_blocks(FeatureNorms, seen_by.blocks),
        pieces.holds(seen_by.blocks[0]),
        pieces.holds(seen_by.blocks[2]),
    ] == [2, True, False]
    seen: list[int] = []
    gather_with_pieces(
        seen_by, batch, FeatureNorms, kept, pieces, SAMPLED, lambda _, done, __: seen.append(done)
    )
    assert seen == [3]
    monkeypatch.setattr(
        "calibrant.lab.mixtures.statistics.walk", lambda *_, **__: pytest.fail("another forward")
    )
    monkeypatch.setattr(
        "calibrant.walk.statistics.walk", lambda *_, **__: pytest.fail("another forward")
    )
    gather_with_pieces(seen_by, batch, FeatureNorms, kept, pieces, SAMPLED)


@pytest.mark.parametrize("method", [Wanda(), SparseGPT()], ids=str)
def test_agreement_grows_with_the_tokens(method) -> None:
    block = view(tiny_model("llama")).blocks[0]
    generator = torch.Generator().manual_seed(3)
    kind = method.observes[0]
    sizes = {w: torch.randn(w.shape[1], generator=generator).exp() for w in block.weights}

    def piece(shift: float):
        return block, {
            w: Seen(
                {kind: kind.of(torch.randn(64, w.shape[1], generator=generator) * size * shift)}
            )
            for w, size in sizes.items()
        }

    sources = [
        [piece(1.0) for _ in range(16)],
        [piece(3.0) for _ in range(16)],
        [piece(1.0), piece(1.0)],
    ]
    meter = TokenMeter(
        method,
        parse_target("0.5"),
        Sample(1, 16),
        [("one", (1.0, 0.0, 0.0)), ("both", (0.5, 0.5, 0.0)), ("few", (0.0, 0.0, 1.0))],
    )
    meter.add(block, sources)
    one, both, few = meter.curves()
    assert [point.tokens for point in one.points] == [64, 128, 256, 512]
    assert [point.tokens for point in both.points] == [128, 256, 512, 1024]
    for curve in (one, both):
        agreements = [point.agreement for point in curve.points]
        assert agreements == sorted(agreements)
        assert 0.5 < agreements[0] < agreements[-1] < 1
    assert (few.points, few.enough, few.gain, few.needed) == ((), None, None, None), (
        "both pieces are of one micro-batch"
    )


def test_the_rule_of_the_plateau() -> None:
    alike = read_curve("one", [CurvePoint(8, 1.0), CurvePoint(16, 1.0), CurvePoint(32, 1.0)])
    assert alike.enough
    reached = read_curve(
        "c4",
        [
            CurvePoint(512, 0.90),
            CurvePoint(1024, 0.95),
            CurvePoint(2048, 0.954),
            CurvePoint(4096, 0.957),
        ],
    )
    assert (reached.enough, reached.needed) == (True, 2048)
    # Disagreement halves each time: 0.08, 0.04, 0.02, then 0.01 (gain 0.01), then 0.005 (gain
    # 0.005), then 0.0025.
    going_on = read_curve(
        "c4", [CurvePoint(512, 0.92), CurvePoint(1024, 0.96), CurvePoint(2048, 0.98)]
    )
    assert (going_on.enough, going_on.needed, going_on.gain) == (False, 16384, pytest.approx(0.02))
    fallen_back = read_curve(
        "c4", [CurvePoint(512, 0.95), CurvePoint(1024, 0.953), CurvePoint(2048, 0.99)]
    )
    assert fallen_back.enough is False, "a gain that came later than a small one counts"
    assert read_curve("c4", [CurvePoint(512, 0.95)]).enough is None


@pytest.mark.parametrize("kind", [NormPieces, GramPieces])
def test_there_are_never_more_pieces_than_the_most(kind: type[Pieces]) -> None:
    x = torch.randn(400, 4, dtype=torch.float64)
    weights = torch.rand(400, dtype=torch.float64)
    parts = [kind.of(x[at : at + 20], weights[at : at + 20]) for at in range(0, 400, 20)]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    whole = kind.kind().of(x, weights)
    assert len(total.parts) == kind.most
    assert (total.tokens, total.mass) == (400, pytest.approx(whole.mass))
    torch.testing.assert_close(total.norms(), whole.norms(), rtol=1e-9, atol=0)
    torch.testing.assert_close((total * 0.5).norms(), whole.norms() / 2, rtol=1e-9, atol=0)
    assert max(part.tokens for part in total.parts) <= 2 * min(part.tokens for part in total.parts)


@pytest.mark.parametrize("kind", [NormPieces, GramPieces])
def test_both_pieces_of_a_micro_batch_go_into_one_half_after_a_single_token(
    kind: type[Pieces],
) -> None:
    x = torch.randn(9, 4)
    total = kind.of(x[:1]) + kind.of(x[1:5]) + kind.of(x[5:])
    assert [part.tokens for part in total.parts] == [1, 0, 2, 2, 2, 2]
