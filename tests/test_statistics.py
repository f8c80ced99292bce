"""Statistics on disk: every bit comes back, what is there isn't made again, and what is cut or
strange isn't believed.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from calibrant.activations import BlockChange, FeatureNorms, Gram, Routing, Seen
from calibrant.compress import Recipe, compress
from calibrant.data import TokenBatch
from calibrant.errors import OutputError, SpecError
from calibrant.models import ModelView, Opened, view
from calibrant.system.shards import Shard
from calibrant.testing import tiny_model
from calibrant.walk import walk, walk_blocks
from calibrant.walk.block_statistics import ExpertOutputs, TokenKinds
from calibrant.walk.ranks import ALONE
from calibrant.walk.statistics import (
    BLOCK_KINDS,
    KINDS,
    Statistics,
    blocks_seen,
    gather,
    packed_bytes,
    statistics_id,
    statistics_ids,
    untouched,
)

from tests.usual import usually

FAMILIES = ("llama", "gpt2", "gemma3", "mixtral", "phi3")
BOTH = (FeatureNorms, Gram)


def batch_of(
    seed: int = 0, weighted: bool = True, samples: int = 6, length: int = 24
) -> TokenBatch:
    """Random tokens: padded, some of them counting more than others."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 200, (samples, length), generator=generator)
    mask = torch.arange(length)[None] < torch.randint(
        length // 2, length + 1, (samples, 1), generator=generator
    )
    weights = (
        torch.rand(ids.shape, generator=generator) + 0.5 if weighted else torch.ones(ids.shape)
    )
    return TokenBatch(
        ids * mask, mask, weights * mask, f"sha256:{seed:064d}", {"tokens": int(mask.sum())}
    )


def opened_of(family: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Opened:
    return Opened(
        tiny_model(family, dtype, seed), None, family, f"sha256:{family}{seed}", "", dtype
    )


def stored_in(root: Path, opened: Opened, batch: TokenBatch) -> Statistics:
    return Statistics(root, statistics_id(opened, batch))


def walked(seen_by: ModelView, batch: TokenBatch) -> dict[str, Seen]:
    with torch.no_grad():
        return {weight.name: seen for weight, seen in walk(seen_by, batch, BOTH, "dense")}


def brought_back(
    kept: Statistics, seen_by: ModelView, kinds: Sequence[Any] = BOTH
) -> dict[str, Seen]:
    return {
        weight.name: seen
        for block in seen_by.blocks
        for weight, seen in kept.read(kinds, block)[1].items()
    }


def numbers(seen_by: ModelView) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in seen_by.snapshot().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def sharing(seen: dict[str, Seen]) -> set[frozenset[str]]:
    """Which matrices have the same object."""
    return {frozenset(name for name in seen if seen[name] is one) for one in seen.values()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", usually(FAMILIES, ("llama", "mixtral")))
def test_every_bit_comes_back(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    opened, batch = opened_of(family, dtype=dtype), batch_of()
    seen_by, kept = view(opened.model), stored_in(tmp_path, opened, batch)
    made = walked(seen_by, batch)
    gather(seen_by, batch, BOTH, kept)
    found = brought_back(kept, seen_by)
    assert list(found) == list(made), "the order in which matrices were used is part of a record"
    assert (len(found) < len(seen_by.weights)) == (family == "mixtral"), (
        "a matrix that no token reached is absent"
    )
    assert sharing(found) == sharing(made)
    for name, seen in found.items():
        norms, gram = seen[FeatureNorms], seen[Gram]
        assert norms.squares.dtype == torch.float64
        assert gram.matrix.dtype == dtype
        assert torch.equal(norms.squares, made[name][FeatureNorms].squares)
        assert torch.equal(gram.matrix.triu(), made[name][Gram].matrix.triu())
        assert torch.equal(gram.matrix, gram.matrix.T)
        assert torch.equal(gram.matrix, made[name][Gram].symmetric())
        assert [(s.tokens, s.mass) for s in seen.values()] == [
            (s.tokens, s.mass) for s in made[name].values()
        ]


EACH = [f"{family} {method}" for family in FAMILIES for method in ("wanda", "sparsegpt")]


@pytest.mark.parametrize(
    "asked", usually(EACH, ("llama wanda", "llama sparsegpt", "mixtral wanda"))
)
def test_from_disk_or_from_a_walk_it_is_the_same_to_the_bit(asked: str, tmp_path: Path) -> None:
    family, method = asked.split()
    batch, results = batch_of(), []
    for folder in (None, tmp_path, tmp_path):
        opened = opened_of(family)
        seen_by = view(opened.model)
        record = compress(
            opened,
            seen_by,
            batch,
            Recipe.parse(method, 0.5, "dense"),
            statistics=folder,
            kinds=BOTH,
        )
        results.append((record, numbers(seen_by)))
    assert results[0][0] == results[1][0] == results[2][0]
    assert same(results[0][1], results[1][1])
    assert same(results[0][1], results[2][1])


def test_what_is_there_is_not_walked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, batch = opened_of("llama"), batch_of()
    seen_by = view(opened.model)
    pristine = seen_by.snapshot()
    compress(
        opened, seen_by, batch, Recipe.parse("wanda", 0.5, "dense"), statistics=tmp_path, kinds=BOTH
    )
    monkeypatch.setattr(
        "calibrant.walk.statistics.walk", lambda *_, **__: pytest.fail("another forward")
    )
    for method, target in (("wanda", "2:4"), ("wanda", 0.6), ("sparsegpt", 0.5)):
        seen_by.restore(pristine)
        compress(opened, seen_by, batch, Recipe.parse(method, target, "dense"), statistics=tmp_path)


def test_only_the_lacking_kind_is_gathered_and_a_record_does_not_tell_what_else_was(
    tmp_path: Path,
) -> None:
    found, stamps = [], []
    for kinds in ((), BOTH):
        opened = opened_of("llama")
        found.append(
            compress(
                opened,
                view(opened.model),
                batch_of(),
                Recipe.parse("wanda", 0.5, "dense"),
                statistics=tmp_path,
                kinds=kinds,
            )
        )
        stamps.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("norms/*")})
    assert found[0] == found[1]
    assert stamps[0] == stamps[1] != {}
    assert {path.name for path in tmp_path.glob("*/*")} == {"norms", "gram"}


def test_a_killed_pass_goes_on_from_its_last_whole_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, batch = opened_of("llama"), batch_of()
    seen_by, kept = view(opened.model), stored_in(tmp_path, opened, batch)

    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gather(seen_by, batch, BOTH, kept, killed)
    assert kept.stored_blocks(Gram, seen_by.blocks) == 2
    begun: list[int] = []
    monkeypatch.setattr(
        "calibrant.walk.statistics.walk",
        lambda *a, start, **k: begun.append(start) or walk(*a, start=start, **k),
    )
    gather(seen_by, batch, BOTH, kept)
    gather(seen_by, batch, BOTH, kept)
    assert begun == [2]
    whole = walked(seen_by, batch)
    assert all(
        torch.equal(seen[Gram].matrix, whole[name][Gram].symmetric())
        for name, seen in brought_back(kept, seen_by).items()
    )


@pytest.mark.parametrize("harm", ["cut", "empty", "another's", "another block's", "not ours"])
def test_what_is_not_whole_or_not_asked_for_is_made_anew(tmp_path: Path, harm: str) -> None:
    opened, batch, other = opened_of("llama"), batch_of(), batch_of(1)
    seen_by, kept, others = (
        view(opened.model),
        stored_in(tmp_path, opened, batch),
        stored_in(tmp_path, opened, other),
    )
    gather(seen_by, batch, BOTH, kept)
    sound = {path.name: path.read_bytes() for path in (kept.folder / "gram").iterdir()}
    victim = kept.folder / "gram" / "block-00001.safetensors"
    if harm == "another's":
        gather(seen_by, other, BOTH, others)
        victim.write_bytes((others.folder / "gram" / victim.name).read_bytes())
    else:
        harmed = {
            "cut": sound[victim.name][:-100],
            "empty": b"",
            "another block's": sound["block-00000.safetensors"],
            "not ours": save({"0": torch.ones(3)}),
        }
        victim.write_bytes(harmed[harm])
    assert kept.stored_blocks(Gram, seen_by.blocks) == 1
    with pytest.raises(OutputError) as refused:
        kept.read(BOTH, seen_by.blocks[1])
    assert refused.value.subject == str(victim)
    gather(seen_by, batch, BOTH, kept)
    assert {p.name: p.read_bytes() for p in (kept.folder / "gram").iterdir()} == sound


def test_another_model_another_type_other_tokens_have_another_identity() -> None:
    opened, batch = opened_of("llama"), batch_of()
    asked = [
        (opened, batch),
        (opened_of("llama", seed=1), batch),
        (replace(opened, dtype=torch.bfloat16), batch),
        (opened, batch_of(1)),
    ]
    assert len({statistics_id(*one) for one in asked}) == 4
    assert statistics_ids(opened, batch) == (statistics_id(opened, batch),)
    mixture = replace(batch, fingerprint="sha256:mix", mixed=((0.5, batch), (0.5, batch_of(1))))
    assert statistics_ids(opened, mixture) == (
        statistics_id(opened, batch),
        statistics_id(opened, batch_of(1)),
    )


def test_a_folder_of_statistics_is_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, batch = opened_of("llama"), batch_of()
    monkeypatch.setattr(type(ALONE), "size", 2)
    with pytest.raises(SpecError, match="one process") as refused:
        next(untouched(opened, view(opened.model), batch, (Gram,), root=tmp_path))
    assert refused.value.subject == str(tmp_path)


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    opened, batch = opened_of("llama"), batch_of()
    kept = stored_in(tmp_path, opened, batch)
    with monkeypatch.context() as patched:
        patched.setattr(Shard, "write", full)
        with pytest.raises(OutputError) as refused:
            gather(view(opened.model), batch, (Gram,), kept)
    assert refused.value.subject == str(kept.folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    (tmp_path / "statistics").write_text("a file")
    other = stored_in(tmp_path / "statistics", opened, batch)
    with pytest.raises(OutputError) as refused:
        gather(view(opened.model), batch, (Gram,), other)
    assert refused.value.subject == str(other.folder)


def test_sizes_are_known_before(tmp_path: Path) -> None:
    dtype = torch.float64
    opened, batch = opened_of("llama", dtype=dtype), batch_of()
    seen_by, kept = view(opened.model), stored_in(tmp_path, opened, batch)
    assert kept.bytes() == 0
    gather(seen_by, batch, BOTH, kept)
    widths = [
        32,
        32,
        32,
        64,
    ]  # what reads the block's input, the attention's output, the MLP's input, the MLP's middle
    told = len(seen_by.blocks) * sum(
        packed_bytes(width, kind, dtype) for width in widths for kind in KINDS
    )
    described = 2 * len(seen_by.blocks) * 1500
    assert told < kept.bytes() < told + described
    kept.remove()
    assert kept.bytes() == 0
    assert not kept.folder.exists()


def test_what_is_being_read_is_not_removed(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="Windows has none")
    opened, batch = opened_of("llama"), batch_of()
    seen_by, kept = view(opened.model), stored_in(tmp_path, opened, batch)
    with kept.held() as held:
        assert not held, "it isn't there"
    gather(seen_by, batch, (FeatureNorms,), kept)
    assert kept.has((FeatureNorms,), len(seen_by.blocks))
    assert not kept.has(BOTH, len(seen_by.blocks))
    with kept.held() as first, kept.held() as second:
        assert first
        assert second
        kept.remove()
        assert kept.has((FeatureNorms,), len(seen_by.blocks))
    kept.remove()
    assert not kept.folder.exists()


def test_a_file_that_another_process_finishes_meanwhile_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    kept = Statistics(tmp_path, "sha256:0123")
    (kept.folder / "gram").mkdir(parents=True)
    (kept.folder / "gram" / "block-00000.safetensors").write_bytes(b"12345")
    half = kept.folder / "gram" / ".unfinished-block-00001.safetensors"
    half.write_bytes(b"1")
    stat = os.stat

    def gone(path: Any, **options: Any) -> os.stat_result:
        if str(path) == str(half):
            half.unlink(missing_ok=True)
        return stat(path, **options)

    monkeypatch.setattr("calibrant.walk.statistics.os.stat", gone)
    assert kept.bytes() == 5


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_what_blocks_and_routers_did_comes_back_to_the_bit(tmp_path: Path, family: str) -> None:
    opened, batch = opened_of(family), batch_of()
    seen_by, kept = view(opened.model), stored_in(tmp_path, opened, batch)
    kinds = (BlockChange, Routing, TokenKinds, ExpertOutputs)
    with torch.no_grad():
        walked_blocks = list(walk_blocks(seen_by, batch, kinds))
    for block, seen in walked_blocks[:2]:
        for kind in BLOCK_KINDS:
            kept.add_block(kind, block, seen)
    assert [kept.stored_blocks(kind, seen_by.blocks) for kind in BLOCK_KINDS] == [2, 2, 2, 2]
    for block, seen in walked_blocks[:2]:
        back = kept.read_block(kinds, block)
        assert list(back) == list(seen) == list(kinds if family == "mixtral" else kinds[:1])
        for kind in seen:
            want, got = vars(seen[kind]), vars(back[kind])
            assert want.keys() == got.keys()
            assert all(
                torch.equal(v, got[n]) and v.dtype == got[n].dtype
                if isinstance(v, Tensor)
                else v == got[n]
                for n, v in want.items()
            )
    with pytest.raises(OutputError) as refused:
        kept.read_block((Routing,), seen_by.blocks[2])
    assert Path(refused.value.subject).name == "block-00002.safetensors"
    path = next(tmp_path.rglob("routing/block-00000.safetensors"))
    path.write_bytes(path.read_bytes()[:20])
    assert kept.stored_blocks(Routing, seen_by.blocks) == 0


@pytest.mark.parametrize("on_disk", [False, True])
def test_parts_of_a_mix_count_by_their_weights_in_what_blocks_and_routers_did(
    tmp_path: Path, on_disk: bool
) -> None:
    opened = opened_of("mixtral")
    seen_by = view(opened.model)
    parts = ((0.25, batch_of(1)), (3.0, batch_of(2)))
    # The same tokens in one batch, the weight of each times that of its part.
    together = TokenBatch(
        torch.cat([part.ids for _, part in parts]),
        torch.cat([part.mask for _, part in parts]),
        torch.cat([part.weights * factor for factor, part in parts]),
        "sha256:together",
        {},
    )
    root = tmp_path if on_disk else None
    kinds = (BlockChange, Routing)
    with torch.no_grad():
        expected = list(walk_blocks(seen_by, together, kinds))
        found = list(blocks_seen(opened, seen_by, replace(together, mixed=parts), kinds, root=root))
    for (_, seen), (_, whole) in zip(found, expected, strict=True):
        for kind in kinds:
            assert seen[kind].mass == pytest.approx(whole[kind].mass, rel=1e-6)
        assert seen[BlockChange].total == pytest.approx(whole[BlockChange].total, rel=1e-5)
        for name in ("counts", "gates", "together"):
            torch.testing.assert_close(
                getattr(seen[Routing], name), getattr(whole[Routing], name), rtol=1e-5, atol=1e-7
            )
