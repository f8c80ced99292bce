"""The whole job on tiny models: what is asked is done, saved, described, and survives being killed."""

import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.activations import BlockChange, FeatureNorms, Gram, Seen
from calibrant.compress import Recipe, compress, fitting, prune, quantize
from calibrant.compress.checkpoint import Checkpoint
from calibrant.data import CalibrationSet
from calibrant.edits import DropBlocks, Edit, Replace
from calibrant.errors import NumericsError, OutputError, SpecError, TargetError
from calibrant.job import Job
from calibrant.methods import BlockMethod, Compressed, MatrixMethod
from calibrant.methods.rtn import RoundToNearest
from calibrant.models import ModelView, Weight, open_model, save, view
from calibrant.targets import Grid, Sparsity, Target, parse_target
from calibrant.testing import tiny_folder
from calibrant.walk import Propagation

SMALL = {"samples": 4, "length": 16, "dtype": "float32"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model", "llama")


@pytest.fixture
def texts(tmp_path: Path) -> str:
    lines = [json.dumps({"text": f"line {i} says that {i} and {i + 1} make {2 * i + 1}, and then some more words follow"}) for i in range(200)]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("method", ["wanda", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("sparsity", ["0.5", "2:4"])
def test_what_is_saved_is_what_was_asked(folder: Path, texts: str, tmp_path: Path, method: str, sparsity: str) -> None:
    done = prune(str(folder), texts, method, sparsity, tmp_path / "out", **SMALL)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, done.opened.model(ids).logits)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("line 3").input_ids == done.opened.tokenizer("line 3").input_ids
    manifest = json.loads((tmp_path / "out" / "calibrant.json").read_text())["record"]
    state = dict(model.named_parameters())
    for told in manifest["weights"]:
        zeros = (state[told["name"] + ".weight"] == 0).sum().item()
        assert zeros == told["zeros"]
        assert zeros / state[told["name"] + ".weight"].numel() == pytest.approx(0.5, abs=0.02)
    assert manifest["run"]["target"] == sparsity
    assert (manifest["run"]["tokens"] == "") == (method == "magnitude")
    assert {d["name"]: d["reason"] for d in manifest["dense"]}["model.embed_tokens.weight"].startswith("embedding")
    named = {w["name"] + ".weight" for w in manifest["weights"]} | {d["name"] for d in manifest["dense"]}
    assert named >= set(state), "a matrix is not accounted for"


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
def test_killed_and_asked_again_it_continues(folder: Path, texts: str, tmp_path: Path, propagate: str) -> None:
    asked = {"method": "sparsegpt", "sparsity": 0.5, "propagate": propagate, **SMALL}
    whole = prune(str(folder), texts, out=tmp_path / "whole", **asked)

    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(str(folder), texts, out=tmp_path / "resumed", progress=killed, **asked)
    assert not (tmp_path / "resumed").exists()
    resumed = prune(str(folder), texts, out=tmp_path / "resumed", **asked)
    assert resumed.continued_from == 2
    assert resumed.record == whole.record
    saved = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert saved[0] == saved[1]
    assert {p.name for p in tmp_path.iterdir()} == {"model", "mine.jsonl", "whole", "resumed"}, "something was left behind"


def test_asked_for_something_else_it_starts_anew(folder: Path, texts: str, tmp_path: Path) -> None:
    def killed(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(str(folder), texts, "wanda", 0.5, tmp_path / "out", progress=killed, **SMALL)
    done = prune(str(folder), texts, "wanda", 0.6, tmp_path / "out", **SMALL)
    assert done.continued_from == 0
    assert done.record == prune(str(folder), texts, "wanda", 0.6, **SMALL).record


def test_asked_again_when_done_it_says_so(folder: Path, texts: str, tmp_path: Path) -> None:
    first = prune(str(folder), texts, out=tmp_path / "out", **SMALL)
    again = prune(str(folder), texts, out=tmp_path / "out", **SMALL)
    assert again.already_done
    assert again.record == first.record
    with pytest.raises(OutputError, match="out"):
        prune(str(folder), texts, sparsity=0.7, out=tmp_path / "out", **SMALL)


def test_a_pruned_model_is_not_pruned_into_a_folder_of_someone_elses(folder: Path, texts: str, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("precious")
    with pytest.raises(OutputError, match="theirs"):
        prune(str(folder), texts, out=tmp_path / "theirs", **SMALL)
    assert [p.name for p in (tmp_path / "theirs").iterdir()] == ["thesis.txt"]


def test_the_same_question_has_the_same_identity(folder: Path, texts: str) -> None:
    one, two = (prune(str(folder), texts, **SMALL).record for _ in range(2))
    assert one == two
    assert one.run.id == two.run.id
    others = [
        prune(str(folder), texts, **{**SMALL, **change}).record.run.id
        for change in ({"seed": 1}, {"propagate": "dense"}, {"sparsity": 0.6}, {"dtype": "float64"})
    ]
    assert len({one.run.id, *others}) == 5


def test_a_method_that_looks_at_nothing_has_one_identity_for_all_data(folder: Path, texts: str) -> None:
    runs = [prune(str(folder), texts, "magnitude", **{**SMALL, **change}).record.run for change in ({}, {"seed": 1}, {"propagate": "dense"})]
    assert len({run.id for run in runs}) == 1
    assert (runs[0].data, runs[0].tokens, runs[0].propagate) == ("", "", "")


def test_nan_in_a_weight_is_refused_by_name(folder: Path, texts: str, tmp_path: Path) -> None:
    opened = open_model(str(folder), "float32")
    with torch.no_grad():
        opened.model.model.layers[1].mlp.up_proj.weight[2, 3] = float("nan")
    save(opened, tmp_path / "broken", {})
    with pytest.raises(NumericsError, match=r"model\.layers\.1\.mlp\.up_proj"):
        prune(str(tmp_path / "broken"), texts, **SMALL)


@pytest.mark.parametrize("broken", [0, 2])
def test_finished_blocks_stay_where_numbers_overflow(
    folder: Path,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    broken: int,
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
            prune(str(folder), texts, "wanda", out=out, **SMALL)
    assert caught.value.subject == "up_proj"
    assert ("the same command goes on" in str(caught.value)) == bool(broken)
    left = list(tmp_path.glob("a/*"))
    assert [path.name for path in left] == ([".out.calibrant-partial"] if broken else [])
    assert str(out.parent) in str(caught.value) or not broken
    done = prune(str(folder), texts, "wanda", out=out, **SMALL)
    assert done.continued_from == broken
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_cannot_be_asked_is_refused_before_the_model_is_opened(texts: str) -> None:
    with pytest.raises(TargetError, match=r"1.5"):
        prune("no/such/model", texts, sparsity=1.5)
    with pytest.raises(SpecError, match="'wnda', did you mean 'wanda'"):
        prune("no/such/model", texts, method="wnda")
    with pytest.raises(SpecError, match=r"'sideways'.*arrival, reference, dense"):
        prune("no/such/model", texts, propagate="sideways")


def test_a_pattern_that_does_not_fit_is_refused_by_name_and_nothing_is_touched(folder: Path, texts: str) -> None:
    opened = open_model(str(folder), "float32")
    before = {n: p.clone() for n, p in opened.model.named_parameters()}
    batch = CalibrationSet(texts, samples=2, length=16).tokens(opened.tokenizer)
    with pytest.raises(TargetError, match="q_proj"):
        compress(opened, view(opened.model), batch, Recipe.parse("wanda", "2:7"))
    assert all(torch.equal(p, before[n]) for n, p in opened.model.named_parameters())


def test_looking_without_data_is_refused(folder: Path) -> None:
    opened = open_model(str(folder), "float32")
    with pytest.raises(SpecError, match="wanda looks at activations and needs calibration data"):
        compress(opened, view(opened.model), None, Recipe.parse("wanda", 0.5))


def test_arrival_gives_way_when_memory_is_short(folder: Path, texts: str) -> None:
    opened = open_model(str(folder), "float32")
    batch = CalibrationSet(texts, samples=4, length=16).tokens(opened.tokenizer)
    seen_by = view(opened.model)
    assert fitting("arrival", seen_by, batch, opened.dtype) == ("arrival", "")
    chosen, why = fitting("arrival", seen_by, batch, opened.dtype, limit=1000)
    assert chosen == "reference"
    assert "went on with reference" in why
    assert fitting("dense", seen_by, batch, opened.dtype, limit=1000) == ("dense", "")
    assert fitting("arrival", seen_by, batch, opened.dtype, limit=1000, possible=("arrival",)) == ("arrival", "")


def test_the_room_for_activations_can_be_given(folder: Path, texts: str) -> None:
    data = CalibrationSet(texts, samples=4, length=16)
    tight = prune(str(folder), data, memory=1e-6).record
    assert tight.run.propagate == "reference"
    assert "may hold 0.0 GB; went on with reference" in tight.provenance["note"]
    assert prune(str(folder), data, memory=1.0).record.run.propagate == "arrival"
    with pytest.raises(SpecError, match="memory=-1 is no room to work in"):
        prune(str(folder), data, memory=-1.0)


def as_it_is(weight: Weight) -> Replace:
    return Replace(weight, Compressed(weight.get()))


def test_a_checkpoint_that_broke_off_is_not_believed(folder: Path, tmp_path: Path) -> None:
    seen_by = view(open_model(str(folder), "float32").model)
    kept = Checkpoint(tmp_path / "out", "sha256:1")
    for block in seen_by.blocks:
        kept.add(block.index, [as_it_is(w).stored() for w in block.weights], [{"name": w.name} for w in block.weights])
    assert [len(step.reports) for step in kept.load()] == [7, 7, 7]
    path = kept.folder / "edits-00001.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert len(kept.load()) == 1
    assert Checkpoint(tmp_path / "out", "sha256:2").load() == []
    kept.remove()
    assert list(tmp_path.glob(".out*")) == []


def test_a_full_disk_is_one_sentence(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("calibrant.sealed_tensors.save_file", full)
    block = view(open_model(str(folder), "float32").model).blocks[0]
    with pytest.raises(OutputError, match=r"can't keep step 0 .*the disk is full"):
        Checkpoint(tmp_path / "a/b/out", "sha256:1").add(0, [as_it_is(block.weights[0]).stored()], [])
    assert not (tmp_path / "a").exists()


def test_a_finished_block_has_the_rights_that_the_umask_gives(folder: Path, tmp_path: Path) -> None:
    block = view(open_model(str(folder), "float32").model).blocks[0]
    usual = os.umask(0o022)
    try:
        Checkpoint(tmp_path / "out", "sha256:1").add(0, [as_it_is(block.weights[0]).stored()], [])
    finally:
        os.umask(usual)
    assert [p.stat().st_mode & 0o777 for p in (tmp_path / ".out.calibrant-partial").iterdir()] == [0o644]


def test_what_stays_when_a_model_cannot_be_saved_is_said(folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as within:
        within.setattr("transformers.PreTrainedModel.save_pretrained", full)
        with pytest.raises(OutputError, match=r"nothing of it was left behind.*; the finished blocks stay in .*calibrant-partial"):
            prune(str(folder), texts, "magnitude", out=tmp_path / "a/out", **SMALL)
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".out.calibrant-partial"]
    assert prune(str(folder), texts, "magnitude", out=tmp_path / "a/out", **SMALL).continued_from == 3


@pytest.fixture
def mixture(texts: str, tmp_path: Path) -> str:
    lines = [json.dumps({"question": f"{i} + {i}", "answer": f"{2 * i}, that is twice {i}"}) for i in range(200)]
    (tmp_path / "sums.jsonl").write_text("\n".join(lines))
    return f"mix(domain={tmp_path / 'sums.jsonl'}:single, general={texts}, weight=0.2)"


def restored(folder: Path, dtype: str = "float32") -> tuple[Any, ModelView]:
    opened = open_model(str(folder), dtype)
    return opened, view(opened.model)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_mix_in_dense_is_the_sum_of_its_parts(folder: Path, mixture: str, method: str) -> None:
    opened, seen_by = restored(folder, "float64")
    pristine, chosen, found = seen_by.snapshot(), CalibrationSet(mixture, samples=6, length=24), []
    batch = chosen.tokens(opened.tokenizer)
    assert len({part.ids.shape for _, part in batch.mixed}) == 1
    for asked in (batch, replace(batch, mixed=())):  # as two passes that are added, and as one over weighted tokens
        seen_by.restore(pristine)
        record = compress(opened, seen_by, asked, Recipe.parse(method, 0.5, "dense"))
        found.append((record, {w.name: w.get().clone() for w in seen_by.weights}))
    for name, matrix in found[0][1].items():
        assert torch.equal(matrix == 0, found[1][1][name] == 0)
        assert torch.allclose(matrix, found[1][1][name], rtol=1e-6)
    assert [w["error"] for w in found[0][0].weights] == pytest.approx([w["error"] for w in found[1][0].weights], rel=1e-4)


def test_a_mix_reads_what_the_sets_alone_left(folder: Path, mixture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, seen_by = restored(folder)
    pristine, chosen, kept = seen_by.snapshot(), CalibrationSet(mixture, samples=4, length=24), tmp_path / "statistics"
    batch, found = chosen.tokens(opened.tokenizer), []
    asked = Recipe.parse("sparsegpt", "2:4", "dense")
    for part in chosen.mixed:
        compress(opened, seen_by, part.tokens(opened.tokenizer), asked, statistics=kept)
        seen_by.restore(pristine)
    found.append((compress(opened, seen_by, batch, asked), {w.name: w.get().clone() for w in seen_by.weights}))
    seen_by.restore(pristine)
    monkeypatch.setattr("calibrant.walk.observing.walk", lambda *_, **__: pytest.fail("another forward"))
    found.append((compress(opened, seen_by, batch, asked, statistics=kept), {w.name: w.get().clone() for w in seen_by.weights}))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(matrix, found[1][1][name]) for name, matrix in found[0][1].items())
    assert len(list(kept.iterdir())) == 2


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
def test_a_mix_is_pruned_with_like_any_other_set(folder: Path, mixture: str, tmp_path: Path, propagate: str) -> None:
    done = prune(str(folder), mixture, "wanda", 0.5, tmp_path / "out", propagate=propagate, **SMALL)
    assert done.record.run.data == str(CalibrationSet(mixture))
    assert done.record.sparsity == 0.5
    assert [part["name"] for part in done.record.data_facts["mix"]] == ["domain", "general"]
    alone = prune(str(folder), str(CalibrationSet(mixture).mixed[1]), "wanda", 0.5, propagate=propagate, **SMALL)
    assert [w["bits"] for w in alone.record.weights] != [w["bits"] for w in done.record.weights]


def test_every_matrix_has_its_error_and_bits_in_the_record(folder: Path, texts: str) -> None:
    for method, told in (("wanda", "norms"), ("sparsegpt", "gram"), ("magnitude", None)):
        record = prune(str(folder), texts, method, 0.5, **SMALL).record
        assert {w.get("error_from") for w in record.weights} == {told}
        assert all(0 < w["error"] < 1 for w in record.weights) if told else all("error" not in w for w in record.weights)
        for weight in record.weights:
            assert 96 <= int(weight["bits"], 16).bit_count() <= 160, "half of 256 places, within four standard deviations"


@dataclass(frozen=True, repr=False)
class RoundLoudly(MatrixMethod):
    """Rounds to a grid and says what it saw: a quantizer that observes."""

    accepts: ClassVar = (Grid,)
    observes: ClassVar = (FeatureNorms,)

    def compress(self, weight: torch.Tensor, seen: Seen, target: Target) -> Compressed:
        return replace(RoundToNearest().compress(weight, seen, target), notes={"mean_norm": float(seen[FeatureNorms].norms().mean())})


@dataclass(frozen=True, repr=False)
class DropStill(BlockMethod):
    """Removes the block that changes its input least."""

    observes: ClassVar = (BlockChange,)

    def edits(self, job: Job) -> Iterator[Edit]:
        turned = {block.index: seen[BlockChange].total / seen[BlockChange].mass for block, seen in job.blocks(self.observes)}
        assert self.left_to_drop(job) == 1
        yield DropBlocks((min(turned, key=turned.__getitem__),))


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
def test_a_quantizer_may_look(folder: Path, texts: str, propagate: str) -> None:
    opened = open_model(str(folder), "float32")
    batch = CalibrationSet(texts, samples=4, length=16).tokens(opened.tokenizer)
    record = compress(opened, view(opened.model), batch, Recipe.parse(RoundLoudly(), "w4", propagate))
    for weight in view(opened.model).weights:
        assert all(len(row.unique()) <= 16 for row in weight.get())
    assert record.run.target == "w4"
    assert record.run.tokens
    assert all(w["notes"]["mean_norm"] > 0 and 0 < w["error"] < 1 for w in record.weights)
    assert all("bits" not in w and 4 < w["bits_a_weight"] <= 5 for w in record.weights)


def test_what_a_method_does_not_accept_is_refused_before_the_model_is_opened(texts: str) -> None:
    for asked in (("wanda", "w4g64"), ("rtn", "0.5"), ("rtn", "2:4")):
        with pytest.raises(TargetError, match=f"{asked[0]} can't be asked for {asked[1]}: it accepts (a sparsity|a grid)"):
            Recipe.parse(*asked)
    with pytest.raises(TargetError, match=r"rtn is no method for calibrant prune, which has .*magnitude, .*wanda; use calibrant quantize"):
        prune("no/such/model", texts, "rtn", "w4g64")
    with pytest.raises(
        TargetError, match=r"w4g64 is no target for calibrant prune, which takes .*, or a share .* blocks 0\.25; use calibrant quantize"
    ):
        prune("no/such/model", texts, "wanda", "w4g64")
    with pytest.raises(TargetError, match=r"wanda is no method for calibrant quantize, which has .*gptq, .*rtn, .*; use calibrant prune"):
        quantize("no/such/model", texts, "wanda", "w4g64")
    with pytest.raises(
        TargetError, match=r"0\.5 is no target for calibrant quantize, which takes .*a grid .* w4g64, .* 2:4\+w4g64; use calibrant prune"
    ):
        quantize("no/such/model", texts, target="0.5")
    with pytest.raises(TargetError, match=r"target=0\.5 and sparsity=0\.6 are two words for one thing"):
        prune("no/such/model", texts, target=0.5, sparsity=0.6)
    with pytest.raises(SpecError, match="RoundLoudly looks at activations and needs calibration data; give --data"):
        quantize("no/such/model", method=RoundLoudly(), target="w4")


@pytest.mark.parametrize("target", ["w4g16", "w8", "w3g8a"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_quantized_is_saved_as_it_was_measured(folder: Path, tmp_path: Path, target: str, dtype: str) -> None:
    done = quantize(str(folder), target=target, out=tmp_path / "out", dtype=dtype)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype))
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, done.opened.model(ids).logits)
        assert not torch.equal(model(ids).logits, open_model(str(folder), dtype).model(ids).logits)
    manifest = json.loads((tmp_path / "out" / "calibrant.json").read_text())["record"]
    bits, state, grid = torch.finfo(getattr(torch, dtype)).bits, dict(model.named_parameters()), parse_target(target)
    assert isinstance(grid, Grid)
    assert (manifest["run"]["target"], manifest["run"]["data"], manifest["run"]["seed"]) == (target, "", 0)
    for told in manifest["weights"]:
        (rows, columns), width = told["shape"], grid.width(told["shape"][1])
        each = grid.bits + (bits + (0 if grid.symmetric else grid.bits)) / width
        assert told["bits_a_weight"] == pytest.approx(each, rel=1e-5)
        assert told["bytes"] == math.ceil(rows * columns * each / 8)
        assert "bits" not in told
        assert told["zeros"] == int((state[told["name"] + ".weight"] == 0).sum())
        assert all(len(group.unique()) <= 2**grid.bits for group in state[told["name"] + ".weight"].reshape(-1, width))
    again = quantize(str(folder), target=target, out=tmp_path / "out", dtype=dtype)
    assert again.already_done
    assert again.record == done.record


def test_a_quantizer_that_was_killed_continues(folder: Path, tmp_path: Path) -> None:
    whole = quantize(str(folder), target="w4g16", out=tmp_path / "whole", dtype="float32")

    def killed(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(str(folder), target="w4g16", out=tmp_path / "resumed", dtype="float32", progress=killed)
    resumed = quantize(str(folder), target="w4g16", out=tmp_path / "resumed", dtype="float32")
    assert (resumed.continued_from, resumed.record) == (2, whole.record)
    assert (tmp_path / "whole/model.safetensors").read_bytes() == (tmp_path / "resumed/model.safetensors").read_bytes()


def test_groups_that_do_not_fit_are_refused_by_name(folder: Path) -> None:
    with pytest.raises(TargetError, match=r"q_proj has 32 inputs, which groups of 24 don't divide; choose w4g16, or w4 with a scale for each row"):
        quantize(str(folder), target="w4g24", dtype="float32")


def test_a_target_may_be_called_a_sparsity(folder: Path, texts: str) -> None:
    found = [prune(str(folder), texts, "magnitude", **asked, **SMALL).record for asked in ({}, {"target": 0.5}, {"sparsity": "0.5"})]
    assert found[0] == found[1] == found[2]


def test_the_seam_for_dropping_blocks(folder: Path, texts: str, tmp_path: Path) -> None:
    opened = open_model(str(folder), "float32")
    batch = CalibrationSet(texts, samples=4, length=16).tokens(opened.tokenizer)
    seen_by = view(opened.model)
    with torch.no_grad():  # block 1 is made to do nothing
        seen_by.blocks[1].module.self_attn.o_proj.weight.zero_()
        seen_by.blocks[1].module.mlp.down_proj.weight.zero_()
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        before = opened.model(ids).logits
        record = compress(opened, seen_by, batch, Recipe.parse(DropStill(), Sparsity(0.34)))
        assert torch.equal(opened.model(ids).logits, before)
    assert [(edit["blocks"], edit["of"]) for edit in record.edits] == [([1], 3)]
    assert record.weights == ()
    assert record.sparsity == pytest.approx(1 / 3)
    save(opened, tmp_path / "shorter", {})
    reopened = AutoModelForCausalLM.from_pretrained(tmp_path / "shorter", dtype=torch.float32)
    assert reopened.config.num_hidden_layers == 2
    with torch.no_grad():
        assert torch.equal(reopened(ids).logits, before)


@pytest.mark.parametrize(("propagate", "alive"), [("arrival", [0, 0, 0, 0]), ("reference", [0, 1, 2, 3]), ("dense", [0, 1, 2, 3])])
@pytest.mark.parametrize("method", ["sparsegpt", "gptq"])
def test_a_gram_is_let_go_of_before_the_next_block_is_looked_at(
    folder: Path, texts: str, monkeypatch: pytest.MonkeyPatch, method: str, propagate: Propagation, alive: list[int]
) -> None:
    """Those of a large model take hundreds of megabytes each: in `arrival` one is there at a time, else those of one block."""
    made: list[weakref.ref[Gram]] = []
    counts: list[int] = []
    whole = Gram.of.__func__

    def of(cls: type[Gram], *args: Any) -> Gram:
        counts.append(sum(one() is not None for one in made))
        gram = whole(cls, *args)
        made.append(weakref.ref(gram))
        return gram

    monkeypatch.setattr(Gram, "of", classmethod(of))
    opened = open_model(str(folder), "float32")
    batch = CalibrationSet(texts, samples=4, length=16).tokens(opened.tokenizer)
    target = {"sparsegpt": 0.5, "gptq": "w4g16"}[method]
    compress(opened, view(opened.model), batch, Recipe.parse(method, target, propagate))
    assert counts == alive * len(view(opened.model).blocks), "four inputs a block: of attention, of its output, of the feed-forward, of its output"
