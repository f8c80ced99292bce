"""The whole job on tiny models: what is asked is done, saved, described, and survives being
killed.
"""

import json
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.activations import FeatureNorms, Gram, Propagation, Seen
from calibrant.compress import Recipe, compress, fitting, prune, prune_quantize, quantize, room
from calibrant.compress.checkpoint import Checkpoint, StepWriter
from calibrant.data import CalibrationSet, TokenBatch
from calibrant.edits import Edit, Replace
from calibrant.errors import InputError, NumericsError, OutputError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods import Compressed, MatrixMethod, Method, ModelMethod
from calibrant.methods.pruning.reconstructed import Refit
from calibrant.models import ModelView, Opened, Weight, open_model, read_manifest, save, view
from calibrant.system.shards import Shard
from calibrant.targets import Grid, Target, parse_target
from calibrant.testing import tiny_folder

from tests.refusing import refused
from tests.usual import two_hundred_lines

SMALL = {"samples": 4, "length": 16, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "model", "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


def opened_view(folder: Path, dtype: str = "float32") -> tuple[Opened, ModelView]:
    opened = open_model(str(folder), dtype)
    return opened, view(opened.model)


def batch_of(opened: Opened, texts: str) -> TokenBatch:
    return CalibrationSet(texts, samples=4, length=16).tokens(opened.tokenizer)


def saved_model(out: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(out, dtype=dtype)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(3, 20)[None]).logits


def full_disk(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("method", "sparsity"), [("wanda", "0.5"), ("magnitude", "2:4"), ("sparsegpt", "2:4")]
)
def test_what_is_saved_is_what_was_asked(
    folder: Path, texts: str, tmp_path: Path, method: str, sparsity: str
) -> None:
    done = prune(
        str(folder), data=texts, method=method, target=sparsity, out=tmp_path / "out", **SMALL
    )
    model = saved_model(tmp_path / "out")
    assert torch.equal(logits(model), logits(done.opened.model))
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "out")("line 3").input_ids
        == done.opened.tokenizer("line 3").input_ids
    )
    manifest = json.loads((tmp_path / "out" / "calibrant.json").read_text())["record"]
    state = dict(model.named_parameters())
    for told in manifest["weights"]:
        zeros = (state[told["name"] + ".weight"] == 0).sum().item()
        assert zeros == told["zeros"]
        assert zeros / state[told["name"] + ".weight"].numel() == pytest.approx(0.5, abs=0.02)
        assert (
            told.get("error_from")
            == {"wanda": "norms", "sparsegpt": "gram", "magnitude": None}[method]
        )
        assert ("error" in told) == (method != "magnitude")
        assert 0 < told.get("error", 0.5) < 1
        assert 96 <= int(told["bits"], 16).bit_count() <= 160, (
            "half of 256 places, within four standard deviations"
        )
    assert manifest["run"]["target"] == sparsity
    assert (manifest["run"]["tokens"] == "") == (method == "magnitude")
    named = {w["name"] + ".weight" for w in manifest["weights"]} | {
        d["name"] for d in manifest["dense"]
    }
    assert named >= set(state), "a matrix is not accounted for"
    again = prune(
        str(folder), data=texts, method=method, target=sparsity, out=tmp_path / "out", **SMALL
    )
    assert again.already_done
    assert again.record == done.record
    with refused(OutputError, str(tmp_path / "out")):
        prune(str(folder), data=texts, method=method, target="0.7", out=tmp_path / "out", **SMALL)


def test_a_tilde_in_out_is_the_home_folder(
    folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    done = prune(str(folder), data=texts, method="wanda", target="0.5", out="~/out", **SMALL)
    assert done.out == tmp_path / "home" / "out"
    assert read_manifest(tmp_path / "home" / "out") is not None
    assert not Path("~").exists()


def test_what_was_left_when_the_model_was_saved_already_is_removed(
    folder: Path, texts: str, tmp_path: Path
) -> None:
    done = prune(
        str(folder), data=texts, method="wanda", target="0.5", out=tmp_path / "out", **SMALL
    )
    left = Checkpoint(tmp_path / "out", done.record.run.id)
    left.add(0, [], [])
    assert prune(
        str(folder), data=texts, method="wanda", target="0.5", out=tmp_path / "out", **SMALL
    ).already_done
    assert not left.folder.exists()


@pytest.mark.parametrize("record", [None, {}, {"run": 3}])
def test_a_saved_model_without_its_record_is_refused(
    folder: Path,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: dict[str, Any] | None,
) -> None:
    prune(str(folder), data=texts, method="wanda", target="0.5", out=tmp_path / "out", **SMALL)

    def manifest_of(place: Path) -> dict[str, Any]:
        kept = dict(read_manifest(place) or {})
        del kept["record"]
        return kept if record is None else kept | {"record": record}

    monkeypatch.setattr(prune_quantize, "read_manifest", manifest_of)
    with refused(OutputError, tmp_path / "out"):
        prune(str(folder), data=texts, method="wanda", target="0.5", out=tmp_path / "out", **SMALL)


def test_a_folder_that_vanishes_meanwhile_is_not_taken_for_the_result(
    folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def manifest_of(place: Path) -> dict[str, Any]:
        return {"id": "another", "record": {}, "place": str(place)}

    monkeypatch.setattr(prune_quantize, "read_manifest", manifest_of)
    with refused(OutputError, tmp_path / "out"):
        prune(str(folder), data=texts, method="wanda", target="0.5", out=tmp_path / "out", **SMALL)


JOBS = [(prune, "sparsegpt", "0.5", propagate) for propagate in ("arrival", "reference", "dense")]
# Of a method that changes no number, masks are kept.
JOBS += [(prune, "wanda", "2:4", propagate) for propagate in ("arrival", "dense")]


@pytest.mark.parametrize(
    ("run", "method", "target", "propagate"), [*JOBS, (quantize, "rtn", "w4g16", "arrival")]
)
def test_killed_and_asked_again_it_continues(
    folder: Path,
    texts: str,
    tmp_path: Path,
    run: Callable[..., Any],
    method: str,
    target: str,
    propagate: str,
) -> None:
    job: dict[str, Any] = {"method": method, "target": target, "propagate": propagate, **SMALL}
    whole = run(str(folder), data=texts, out=tmp_path / "whole", **job)

    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(str(folder), data=texts, out=tmp_path / "resumed", progress=killed, **job)
    assert not (tmp_path / "resumed").exists()
    resumed = run(str(folder), data=texts, out=tmp_path / "resumed", **job)
    assert resumed.continued_from == 2
    assert resumed.record == whole.record
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert saved[0] == saved[1]
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "resumed"}, "something was left behind"


def test_the_same_question_has_the_same_identity_and_another_has_another(
    folder: Path, texts: str
) -> None:
    def record(method: str, **change: Any) -> Any:
        return prune(str(folder), data=texts, method=method, **{**SMALL, **change}).record

    one = record("wanda")
    assert record("wanda") == record("wanda", target="0.5") == record("wanda", target=0.5) == one
    changes: list[dict[str, Any]] = [
        {"seed": 1},
        {"propagate": "dense"},
        {"target": 0.6},
        {"dtype": "float64"},
    ]
    assert len({one.run.id, *(record("wanda", **change).run.id for change in changes)}) == 5
    blind = [record("magnitude", **change).run for change in ({}, *changes[:2])]
    assert len({run.id for run in blind}) == 1, (
        "a method that looks at nothing has one identity for all data"
    )
    assert (blind[0].data, blind[0].tokens, blind[0].propagate) == ("", "", "")


def test_nan_in_a_weight_is_refused_by_name(folder: Path, texts: str, tmp_path: Path) -> None:
    opened = open_model(str(folder), "float32")
    with torch.no_grad():
        opened.model.model.layers[1].mlp.up_proj.weight[2, 3] = float("nan")
    save(opened, tmp_path / "broken", {})
    with refused(NumericsError, "model.layers.1.mlp.up_proj"):
        prune(str(tmp_path / "broken"), data=texts, **SMALL)


@dataclass(frozen=True, repr=False)
class Breaking(MatrixMethod):
    """Makes NaN of what was sound, whatever it observes."""

    def compress(self, weight: torch.Tensor, seen: Seen, target: Target) -> Compressed:
        return Compressed(weight * math.nan)


class Looking(Breaking):
    observes = (FeatureNorms,)


@dataclass(frozen=True, repr=False)
class Melting(ModelMethod):
    """Makes infinity of one matrix, by an edit that isn't that of a matrix."""

    def edits(self, job: Job) -> Iterator[Edit]:
        weight = job.view.weights[0]
        yield Refit(0, {weight: weight.get() / 0.0})


@pytest.mark.parametrize("method", [Breaking(), Looking(), Melting()])
def test_a_method_that_makes_nan_of_sound_numbers_is_named_and_nothing_is_saved(
    method: Method, folder: Path, texts: str, tmp_path: Path
) -> None:
    with pytest.raises(NumericsError, match=f"{type(method).__name__} made") as caught:
        prune(str(folder), data=texts, method=method, out=tmp_path / "out", **SMALL)
    assert caught.value.subject == "model.layers.0.self_attn.q_proj"
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("broken", [0, 2])
def test_finished_blocks_stay_where_numbers_overflow(
    folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """On another device they may be finite, and the same command goes on."""

    def overflows(weight: torch.Tensor, *_: object) -> Mapping[str, Any]:
        if len(counted) == 7 * broken:
            raise NumericsError("the outputs overflow", subject="up_proj")
        counted.append(weight)
        return {}

    counted: list[torch.Tensor] = []
    out = tmp_path / "a" / "out"
    with monkeypatch.context() as within:
        within.setattr("calibrant.edits.kinds.output_error", overflows)
        with pytest.raises(NumericsError) as caught:
            prune(str(folder), data=texts, method="wanda", out=out, **SMALL)
    assert caught.value.subject == "up_proj"
    left = list(tmp_path.glob("a/*"))
    assert [path.name for path in left] == ([".out.calibrant-partial"] if broken else [])
    assert (str(out.parent) in str(caught.value)) == bool(broken)
    done = prune(str(folder), data=texts, method="wanda", out=out, **SMALL)
    assert done.continued_from == broken
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("run", "asked", "error", "subject"),
    [
        (prune, {"target": 1.5}, TargetError, "1.5"),
        (prune, {"method": "wnda"}, SpecError, "wnda"),
        (prune, {"propagate": "sideways"}, SpecError, "sideways"),
        (prune, {"memory": -1.0}, SpecError, "-1.0"),
        (prune, {"method": "rtn", "target": "w4g64"}, TargetError, "rtn"),
        (prune, {"method": "wanda", "target": "w4g64"}, TargetError, "w4g64"),
        (quantize, {"method": "wanda", "target": "w4g64"}, TargetError, "wanda"),
        (quantize, {"target": "0.5"}, TargetError, "0.5"),
        (quantize, {"method": "gptq", "target": "w4", "data": None}, SpecError, "gptq"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_model_is_opened(
    texts: str,
    run: Callable[..., Any],
    asked: dict[str, Any],
    error: type[InputError],
    subject: str,
) -> None:
    with refused(error, subject):
        run("no/such/model", **{"data": texts, **asked})


def test_what_does_not_fit_the_model_is_refused_by_name_and_nothing_is_touched(
    folder: Path, texts: str
) -> None:
    opened, seen_by = opened_view(folder)
    before = {n: p.clone() for n, p in opened.model.named_parameters()}
    for asked in (Recipe.parse("wanda", "2:7"), Recipe.parse("rtn", "w4g24")):
        with refused(TargetError, "model.layers.0.self_attn.q_proj"):
            compress(opened, seen_by, batch_of(opened, texts), asked)
    with refused(SpecError, "wanda"):
        compress(opened, seen_by, None, Recipe.parse("wanda", 0.5))
    assert all(torch.equal(p, before[n]) for n, p in opened.model.named_parameters())


def test_arrival_gives_way_when_memory_is_short(folder: Path, texts: str) -> None:
    data = CalibrationSet(texts, samples=4, length=16)
    tight = prune(str(folder), data=data, memory=1e-6).record
    assert tight.run.propagate == "reference"
    assert tight.provenance["note"]
    assert prune(str(folder), data=data, memory=1.0).record.run.propagate == "arrival"
    opened, seen_by = opened_view(folder)
    batch = batch_of(opened, texts)
    assert fitting("arrival", seen_by, batch, opened.dtype) == ("arrival", "")
    assert fitting("arrival", seen_by, batch, opened.dtype, limit=1000, possible=("arrival",)) == (
        "arrival",
        "",
    )


@pytest.mark.parametrize(
    ("share_at_first", "share_later", "propagate"),
    [(0.8, 1e-12, "arrival"), (1e-12, 0.8, "reference")],
)
def test_a_job_goes_on_as_it_was_begun_whatever_memory_is_free_by_then(
    folder: Path,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    share_at_first: float,
    share_later: float,
    propagate: str,
) -> None:
    job: dict[str, Any] = {"data": texts, "method": "wanda", "out": tmp_path / "out", **SMALL}

    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(room, "ACTIVATIONS_SHARE", share_at_first)
    with pytest.raises(KeyboardInterrupt):
        prune(str(folder), progress=killed, **job)
    monkeypatch.setattr(room, "ACTIVATIONS_SHARE", share_later)
    done = prune(str(folder), **job)
    assert (done.continued_from, done.record.run.propagate) == (2, propagate)
    assert ("as it was begun" in done.record.provenance["note"]) == (propagate == "reference")
    assert prune(str(folder), **job).already_done


def test_two_jobs_do_not_make_one_folder_at_once(folder: Path, texts: str, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    job: dict[str, Any] = {"data": texts, "method": "magnitude", "out": out, **SMALL}
    with Checkpoint(out, "sha256:another").locked():
        with refused(OutputError, out):
            prune(str(folder), **job)
        assert [path.name for path in out.parent.iterdir()] == [".out.calibrant-partial"]
    prune(str(folder), **job)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_link_in_the_place_of_a_lock_empties_nothing(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "out", "sha256:1")
    checkpoint.folder.mkdir()
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (checkpoint.folder / "lock").symlink_to(mine)
    with refused(OutputError, tmp_path / "out"), checkpoint.locked():
        pass
    assert mine.read_text() == "mine"


def as_it_is(weight: Weight) -> Replace:
    return Replace(weight, Compressed(weight.get()))


def test_a_checkpoint_that_broke_off_is_not_believed(folder: Path, tmp_path: Path) -> None:
    _, seen_by = opened_view(folder)
    kept = Checkpoint(tmp_path / "out", "sha256:1")
    for block in seen_by.blocks:
        kept.add(
            block.index,
            [as_it_is(w).stored() for w in block.weights],
            [{"name": w.name} for w in block.weights],
        )
    assert [len(step.reports) for step in kept.load()] == [7, 7, 7]
    path = kept.folder / "edits-00001.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert len(kept.load()) == 1
    assert Checkpoint(tmp_path / "out", "sha256:2").load() == []
    kept.remove()
    assert list(tmp_path.glob(".out*")) == []


def test_a_full_disk_leaves_nothing_half_written(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shard, "write", full_disk)
    block = opened_view(folder)[1].blocks[0]
    kept = Checkpoint(tmp_path / "a/b/out", "sha256:1")
    with refused(OutputError, str(kept.folder)):
        kept.add(0, [as_it_is(block.weights[0]).stored()], [])
    assert not (tmp_path / "a").exists()


def test_numbers_that_are_being_written_are_waited_for(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, seen_by = opened_view(folder)
    first, second = seen_by.blocks[0].weights[:2]
    before = first.get().clone()
    kept = Checkpoint(tmp_path / "out", "sha256:1")
    add, may_write = kept.add, threading.Event()

    def late(*step: Any) -> None:
        may_write.wait()
        add(*step)

    monkeypatch.setattr(kept, "add", late)
    with StepWriter() as writer:
        writer.add(kept, 0, [as_it_is(first).stored()], [])
        second.set(second.get() * 2)
        assert kept.load() == [], "other numbers may change meanwhile"
        threading.Timer(0.2, may_write.set).start()
        first.set(first.get() * 2)
        (step,) = kept.load()
    assert torch.equal(step.edits[0].tensors["weight"], before)


def test_a_step_that_could_not_be_written_is_told_by_what_comes_next(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shard, "write", full_disk)
    block = opened_view(folder)[1].blocks[0]
    kept = Checkpoint(tmp_path / "out", "sha256:1")
    edits = [as_it_is(block.weights[0]).stored()]
    with StepWriter() as writer:
        writer.add(kept, 0, edits, [])
        with refused(OutputError, str(kept.folder)):
            writer.add(kept, 1, edits, [])
    with refused(OutputError, str(kept.folder)), StepWriter() as writer:
        writer.add(kept, 0, edits, [])
    # Another error comes first.
    with suppress(KeyboardInterrupt), StepWriter() as writer:
        writer.add(kept, 0, edits, [])
        raise KeyboardInterrupt


def test_a_finished_block_has_the_rights_that_the_umask_gives(folder: Path, tmp_path: Path) -> None:
    block = opened_view(folder)[1].blocks[0]
    usual = os.umask(0o022)
    try:
        Checkpoint(tmp_path / "out", "sha256:1").add(0, [as_it_is(block.weights[0]).stored()], [])
    finally:
        os.umask(usual)
    assert [p.stat().st_mode & 0o777 for p in (tmp_path / ".out.calibrant-partial").iterdir()] == [
        0o644
    ]


def test_finished_blocks_stay_when_a_model_cannot_be_saved(
    folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as within:
        within.setattr("transformers.PreTrainedModel.save_pretrained", full_disk)
        with pytest.raises(OutputError) as caught:
            prune(str(folder), data=texts, method="magnitude", out=tmp_path / "a/out", **SMALL)
    assert ".out.calibrant-partial" in str(caught.value)
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".out.calibrant-partial"]
    assert (
        prune(
            str(folder), data=texts, method="magnitude", out=tmp_path / "a/out", **SMALL
        ).continued_from
        == 3
    )


@pytest.fixture
def mixture(texts: str, tmp_path: Path) -> str:
    lines = [
        json.dumps({"question": f"{i} + {i}", "answer": f"{2 * i}, that is twice {i}"})
        for i in range(200)
    ]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    return f"mix(domain={tmp_path / 'sums.jsonl'}:single, general={texts}, weight=0.2)"


def matrices(seen_by: ModelView) -> dict[str, torch.Tensor]:
    return {weight.name: weight.get().clone() for weight in seen_by.weights}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_mix_in_dense_is_the_sum_of_its_parts(folder: Path, mixture: str, method: str) -> None:
    """As two passes that are added, and as one over weighted tokens."""
    opened, seen_by = opened_view(folder, "float64")
    pristine, recipe = seen_by.snapshot(), Recipe.parse(method, 0.5, "dense")
    batch = CalibrationSet(mixture, samples=6, length=24).tokens(opened.tokenizer)
    assert len({part.ids.shape for _, part in batch.mixed}) == 1
    two = compress(opened, seen_by, batch, recipe)
    added = matrices(seen_by)
    seen_by.restore(pristine)
    one = compress(opened, seen_by, replace(batch, mixed=()), recipe)
    for name, matrix in matrices(seen_by).items():
        assert torch.equal(matrix == 0, added[name] == 0)
        assert torch.allclose(matrix, added[name], rtol=1e-6)
    assert [w["error"] for w in one.weights] == pytest.approx(
        [w["error"] for w in two.weights], rel=1e-4
    )


def test_a_mix_reads_what_the_sets_alone_left(
    folder: Path, mixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, seen_by = opened_view(folder)
    pristine, chosen, kept = (
        seen_by.snapshot(),
        CalibrationSet(mixture, samples=4, length=24),
        tmp_path / "statistics",
    )
    batch, recipe = chosen.tokens(opened.tokenizer), Recipe.parse("sparsegpt", "2:4", "dense")
    for part in chosen.mixed:
        compress(opened, seen_by, part.tokens(opened.tokenizer), recipe, statistics=kept)
        seen_by.restore(pristine)
    walked = compress(opened, seen_by, batch, recipe)
    whole = matrices(seen_by)
    seen_by.restore(pristine)
    monkeypatch.setattr(
        "calibrant.walk.statistics.walk", lambda *_, **__: pytest.fail("another forward")
    )
    assert compress(opened, seen_by, batch, recipe, statistics=kept) == walked
    assert all(torch.equal(matrix, whole[name]) for name, matrix in matrices(seen_by).items())


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
def test_a_mix_is_pruned_with_like_any_other_set(
    folder: Path, mixture: str, tmp_path: Path, propagate: str
) -> None:
    done = prune(
        str(folder),
        data=mixture,
        method="wanda",
        target=0.5,
        out=tmp_path / "out",
        propagate=propagate,
        **SMALL,
    )
    assert done.record.run.data == str(CalibrationSet(mixture))
    assert done.record.sparsity == 0.5
    assert [part["name"] for part in done.record.data_facts["mix"]] == ["domain", "general"]
    alone = prune(
        str(folder),
        data=str(CalibrationSet(mixture).mixed[1]),
        method="wanda",
        target=0.5,
        propagate=propagate,
        **SMALL,
    )
    assert [w["bits"] for w in alone.record.weights] != [w["bits"] for w in done.record.weights]


@pytest.mark.parametrize(
    ("target", "dtype"), [("w4g16", "float32"), ("w8", "bfloat16"), ("w3g8a", "bfloat16")]
)
def test_what_is_quantized_is_saved_as_it_was_measured(
    folder: Path, tmp_path: Path, target: str, dtype: str
) -> None:
    done = quantize(str(folder), target=target, out=tmp_path / "out", dtype=dtype)
    model = saved_model(tmp_path / "out", getattr(torch, dtype))
    assert torch.equal(logits(model), logits(done.opened.model))
    assert not torch.equal(logits(model), logits(open_model(str(folder), dtype).model))
    manifest = json.loads((tmp_path / "out" / "calibrant.json").read_text())["record"]
    bits, state, grid = (
        torch.finfo(getattr(torch, dtype)).bits,
        dict(model.named_parameters()),
        parse_target(target),
    )
    assert isinstance(grid, Grid)
    assert (manifest["run"]["target"], manifest["run"]["data"], manifest["run"]["seed"]) == (
        target,
        "",
        0,
    )
    for told in manifest["weights"]:
        (rows, columns), width = told["shape"], grid.width(told["shape"][1])
        each = grid.bits + (bits + (0 if grid.symmetric else grid.bits)) / width
        assert told["bits_a_weight"] == pytest.approx(each, rel=1e-5)
        assert told["bytes"] == math.ceil(rows * columns * each / 8)
        assert "bits" not in told
        assert told["zeros"] == int((state[told["name"] + ".weight"] == 0).sum())
        assert all(
            len(group.unique()) <= 2**grid.bits
            for group in state[told["name"] + ".weight"].reshape(-1, width)
        )


@pytest.mark.parametrize(
    ("propagate", "alive"),
    [("arrival", [0, 0, 0, 0]), ("reference", [0, 1, 2, 3]), ("dense", [0, 1, 2, 3])],
)
def test_a_gram_is_let_go_of_before_the_next_block_is_looked_at(
    folder: Path,
    texts: str,
    monkeypatch: pytest.MonkeyPatch,
    propagate: Propagation,
    alive: list[int],
) -> None:
    """Those of a large model take hundreds of megabytes each: in `arrival` one is there at a
    time, else those of one block.
    """
    made: list[weakref.ref[Gram]] = []
    counts: list[int] = []
    whole = Gram.of.__func__

    def of(cls: type[Gram], *args: Any) -> Gram:
        counts.append(sum(one() is not None for one in made))
        gram = whole(cls, *args)
        made.append(weakref.ref(gram))
        return gram

    monkeypatch.setattr(Gram, "of", classmethod(of))
    opened, seen_by = opened_view(folder)
    compress(opened, seen_by, batch_of(opened, texts), Recipe.parse("sparsegpt", 0.5, propagate))
    assert counts == alive * len(seen_by.blocks), (
        "four inputs a block: of attention, of its output, of the feed-forward, of its output"
    )
