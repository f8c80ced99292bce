"""Pruning and quantizing with the blocks on disk: the same files as in memory, also after a kill
at any block; what can't be done so is refused.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibrant.compress import Recipe, compress, prune, prune_quantize, quantize, room
from calibrant.compress.room import (
    BLOCKS_HELD,
    Needs,
    gathered_on_disk,
    left_on_disk,
    needs_whole_model,
)
from calibrant.data import CalibrationSet
from calibrant.errors import OutputError, SpecError
from calibrant.exports.hf import HuggingFace
from calibrant.exports.sparse import Sparse
from calibrant.methods import MatrixMethod, methods
from calibrant.models import open_model, outline_of, view
from calibrant.models.on_disk import Parts
from calibrant.targets import parse_target
from calibrant.testing import FAMILIES, tiny_folder, tiny_gguf
from calibrant.walk.ranks import ALONE
from calibrant.walk.rehearsal import rehearse

from tests.killed import killed_behind
from tests.refusing import refused
from tests.usual import two_hundred_lines, usually

SMALL: dict[str, Any] = {"samples": 4, "length": 16, "dtype": "bfloat16", "memory": 1000.0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "model", "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


@contextmanager
def blocks_on_disk() -> Iterator[None]:
    """Let jobs leave blocks on disk, whatever memory there is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prune_quantize, "left_on_disk", lambda *_: "its blocks stayed on disk")
        yield


def files(folder: Path) -> dict[str, Any]:
    """All files of a folder; of the manifest what doesn't say how it came about."""
    found: dict[str, Any] = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    manifest = json.loads(found.pop("calibrant.json"))
    manifest["record"].pop("provenance")
    manifest.pop("seal")  # which is of the provenance too
    return {**found, "calibrant.json": manifest}


def asked(done: Any) -> str:
    return done.record.provenance["note"]


def same_both_ways(
    run: Callable[..., Any], folder: Path, texts: str, tmp_path: Path, *how: str, **options: Any
) -> None:
    """The same job in memory and with its blocks on disk writes the same files."""
    run(str(folder), None, texts, *how, tmp_path / "whole", **SMALL, **options)
    with blocks_on_disk():
        parted = run(str(folder), None, texts, *how, tmp_path / "parted", **SMALL, **options)
    absent = [name for names in parted.opened.residence.absent().values() for name in names]
    assert absent
    assert all(parted.opened.model.get_parameter(name).is_meta for name in absent)
    assert files(tmp_path / "parted") == files(tmp_path / "whole")


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_every_family_is_pruned_to_the_same_files(family: str, texts: str, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model", family)
    same_both_ways(prune, folder, texts, tmp_path, "wanda", "2:4")
    parted = open_model(str(folder), "bfloat16", on_disk=True)
    assert rehearse(view(parted.model, parted.residence)) == rehearse(
        view(open_model(str(folder), "bfloat16").model)
    )


def test_a_mix_and_what_looks_at_no_data_give_the_same_files(
    folder: Path, texts: str, tmp_path: Path
) -> None:
    mix = f"mix(one='{texts}', other=random_tokens, weight=0.5)"
    same_both_ways(prune, folder, mix, tmp_path / "mix", "wanda", "0.5", propagate="dense")
    same_both_ways(quantize, folder, texts, tmp_path / "none", "rtn", "w4g16a")


def test_rounding_that_is_learned_block_by_block_gives_the_same_files_and_goes_on(
    folder: Path, texts: str, tmp_path: Path
) -> None:
    how = ("autoround(steps=3)", "w3g16a")
    same_both_ways(quantize, folder, texts, tmp_path, *how)
    with blocks_on_disk():
        with killed_behind(1):
            quantize(str(folder), None, texts, *how, tmp_path / "killed", **SMALL)
        done = quantize(str(folder), None, texts, *how, tmp_path / "killed", **SMALL)
    assert done.continued_from == 2
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_result_with_its_blocks_on_disk_is_not_saved_again(
    folder: Path, texts: str, tmp_path: Path
) -> None:
    with blocks_on_disk():
        done = prune(str(folder), data=texts, target="2:4", out=tmp_path / "out", **SMALL)
    with pytest.raises(OutputError):
        done.save(tmp_path / "again")
    assert not (tmp_path / "again").exists()


KEPT = [
    pytest.param(
        kept,
        propagate,
        marks=()
        if (kept, propagate) in {(1, "arrival"), (2, "reference"), (3, "dense")}
        else pytest.mark.slow,
    )
    for kept in (1, 2, 3)
    for propagate in ("arrival", "reference", "dense")
]


@pytest.mark.parametrize(("kept", "propagate"), KEPT)
def test_killed_at_any_block_it_goes_on_and_computes_nothing_twice(
    kept: int,
    propagate: str,
    folder: Path,
    texts: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how: dict[str, Any] = {**SMALL, "propagate": propagate}
    prune(str(folder), data=texts, method="sparsegpt", target="0.5", out=tmp_path / "whole", **how)
    compressed: list[int] = []
    method = methods.get("sparsegpt")
    own = method.compress

    def counted(self: Any, *rest: Any) -> Any:
        compressed.append(1)
        return own(self, *rest)

    with blocks_on_disk():
        with killed_behind(kept - 1):
            prune(
                str(folder),
                data=texts,
                method="sparsegpt",
                target="0.5",
                out=tmp_path / "parted",
                **how,
            )
        assert not (tmp_path / "parted").exists()
        monkeypatch.setattr(method, "compress", counted)
        done = prune(
            str(folder),
            data=texts,
            method="sparsegpt",
            target="0.5",
            out=tmp_path / "parted",
            **how,
        )
    assert done.continued_from == kept
    assert len(compressed) == 7 * (3 - kept)
    assert files(tmp_path / "parted") == files(tmp_path / "whole")
    assert not list(tmp_path.glob(".parted*")), "nothing is left to continue"


@pytest.mark.parametrize("family", usually(FAMILIES, {"gemma2", "mixtral"}))
def test_a_smoothed_model_gives_the_same_files_also_after_a_kill(
    family: str, texts: str, tmp_path: Path
) -> None:
    if family == "olmo2":
        return  # it has no norm before its matrices
    folder = tiny_folder(tmp_path / "model", family)
    job = (str(folder), None, texts, "gptq", "w4g16")
    how: dict[str, Any] = {**SMALL, "transform": ("smooth",)}
    quantize(*job, tmp_path / "whole", **how)
    with killed_behind(1):
        quantize(*job, tmp_path / "in memory", **how)
    assert quantize(*job, tmp_path / "in memory", **how).continued_from == 2
    with blocks_on_disk():
        with killed_behind(0):
            quantize(*job, tmp_path / "parted", **how)
        done = quantize(*job, tmp_path / "parted", **how)
    assert done.continued_from == 1
    assert done.opened.residence.on_disk
    assert files(tmp_path / "in memory") == files(tmp_path / "whole")
    assert files(tmp_path / "parted") == files(tmp_path / "whole")


def test_a_job_of_blocks_on_disk_goes_on_in_memory_and_the_other_way_round(
    folder: Path, texts: str, tmp_path: Path
) -> None:
    job = (str(folder), None, texts, "wanda", "0.5")
    prune(*job, tmp_path / "whole", **SMALL)
    with blocks_on_disk(), killed_behind(0):
        prune(*job, tmp_path / "one", **SMALL)
    assert prune(*job, tmp_path / "one", **SMALL).continued_from == 1
    with killed_behind(0):
        prune(*job, tmp_path / "other", **SMALL)
    with blocks_on_disk():
        assert prune(*job, tmp_path / "other", **SMALL).continued_from == 1
    assert files(tmp_path / "one") == files(tmp_path / "other") == files(tmp_path / "whole")


def test_one_block_is_in_memory_at_a_time_and_asked_again_it_is_done(
    folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, there = Parts.load, list[int]()

    def watched(self: Parts, model: Any, index: int, wanted: Any) -> None:
        load(self, model, index, wanted)
        there.append(
            sum(not all(p.is_meta for p in block.parameters()) for block in model.model.layers)
        )

    monkeypatch.setattr(Parts, "load", watched)
    with blocks_on_disk():
        prune(
            str(folder), data=texts, method="wanda", target="0.5", out=tmp_path / "parted", **SMALL
        )
        assert set(there) == {1}
        again = prune(
            str(folder), data=texts, method="wanda", target="0.5", out=tmp_path / "parted", **SMALL
        )
    assert again.already_done
    assert again.opened.residence.on_disk


# What decides


def needs(folder: Path, tokens: int = 64, method: str = "wanda", sources: int = 1) -> Needs:
    outline = outline_of(str(folder), "bfloat16", "cpu")
    assert outline is not None
    return Needs.of(outline.shape, tokens, outline.dtype, methods.build(method), sources)


def test_needs_are_those_of_the_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 1000)
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=5)
    found, alps, robust = (
        needs(folder),
        needs(folder, method="alps"),
        needs(folder, method="robust", sources=3),
    )
    block, outside = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32), 2 * (2 * 259 * 32 + 32)
    inside = 2 * 64 * 2 * (3 * 32 + 64 + 64)
    assert found.work == 4 * (2 * 32 * 64 + 64 * 64)
    assert alps.work == 4 * (7 * 32 * 64 + (5 + 4) * 64 * 64 + 64 * 64)
    for method in ("sparsegpt", "gptq"):
        assert needs(folder, method=method).work == 4 * (4 * 32 * 64 + (3 + 4) * 64 * 64 + 64 * 64)
    assert robust.work == 4 * (4 * 32 * 64 + (15 + 4) * 64 * 64 + 64 * 64)
    assert found.in_memory("arrival") == 1000 + 5 * block + outside + inside + found.work
    assert found.on_disk("arrival") == 1000 + BLOCKS_HELD * block + outside + inside + found.work


def test_a_device_needs_copies_that_a_compiled_kernel_does_not_make(tmp_path: Path) -> None:
    outline = outline_of(str(tiny_folder(tmp_path / "model", "llama")), "bfloat16", "cpu")
    assert outline is not None
    settings = (outline.shape, 64, outline.dtype, methods.build("wanda"))
    here = Needs.of(*settings, device=torch.device("cpu"))
    there = Needs.of(*settings, device=torch.device("cuda"))
    assert there.work == here.work + 4 * 2 * 32 * 64


def test_the_promise_decides_where_blocks_are_and_how_it_goes_on(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 0)
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=12)

    def pruned(out: str, size: float, samples: int = 4, length: int = 16) -> Any:
        """With so many bytes of memory."""
        options: dict[str, Any] = {
            "samples": samples,
            "length": length,
            "dtype": "bfloat16",
            "device": "cpu",
        }
        return prune(
            str(folder),
            data=texts,
            method="wanda",
            target="0.5",
            out=tmp_path / out,
            memory=size / 1e9,
            **options,
        )

    found, more = needs(folder), needs(folder, 128 * 64)
    plenty = pruned("plenty", found.in_memory("arrival") * 1.001)
    assert not plenty.opened.residence.on_disk
    assert asked(plenty) == ""
    little = pruned("little", found.on_disk("arrival") * 1.001)
    assert little.opened.residence.on_disk
    assert "on disk" in asked(little)
    assert little.record.run.propagate == "arrival"
    assert files(tmp_path / "little") == files(tmp_path / "plenty")
    many = pruned("many", (more.on_disk("reference") + more.on_disk("arrival")) / 2, 128, 64)
    assert many.opened.residence.on_disk
    assert many.record.run.propagate == "reference", "activations are too many for arrival"
    with refused(SpecError, str(folder)):
        pruned("less", found.block)
    assert not (tmp_path / "less").exists()


def test_a_model_that_is_opened_whole_is_refused_where_it_or_its_activations_are_too_large(
    texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GGUF file is opened whole, so it is only known then what is left for activations; robust
    knows one propagation.
    """
    file = tiny_gguf(tmp_path / "tiny.gguf")
    options: dict[str, Any] = {"samples": 64, "length": 64, "dtype": "float32", "device": "cpu"}
    with pytest.raises(SpecError) as caught:
        prune(
            str(file),
            data=texts,
            method="wanda",
            target="0.5",
            out=tmp_path / "out",
            memory=0.001,
            **options,
        )
    assert Path(caught.value.subject).name == "tiny.gguf"
    monkeypatch.setattr(room, "held_now", lambda: 0)
    with refused(SpecError, "robust"):
        prune(
            str(file),
            data=texts,
            method="robust",
            target="0.5",
            out=tmp_path / "out",
            memory=0.0005,
            **options,
        )
    assert not (tmp_path / "out").exists()


def test_what_needs_the_whole_model_is_refused_by_name(folder: Path, texts: str) -> None:
    data, wanda = CalibrationSet(texts, samples=4, length=16), Recipe.parse("wanda", 0.5)
    selected = CalibrationSet("cluster(source=python_docs)", samples=4, length=16)
    whole, both = (HuggingFace(),), (HuggingFace(), Sparse())
    assert needs_whole_model(wanda, data, whole, ALONE) == ""
    smoothed = Recipe.parse("wanda", 0.5, transform=("smooth",))
    assert needs_whole_model(smoothed, data, whole, ALONE) == ""
    asked_of = {
        "rotate": (Recipe.parse("wanda", 0.5, transform=("rotate",)), data, whole),
        "smooth": (Recipe.parse("rtn", "w4", transform="smooth(sites=all)"), data, whole),
        "greedy": (Recipe.parse("greedy", 0.34), data, whole),
        "reconstructed": (Recipe.parse("reconstructed", 0.5), data, whole),
        "short_gpt": (Recipe.parse("short_gpt", 0.34), data, whole),
        "sparse": (wanda, data, both),
        "cluster": (wanda, selected, whole),
        "owl": (Recipe.parse("wanda", 0.5, allocation="owl"), data, whole),
        "starved=dense": (replace(wanda, starved="dense"), data, whole),
    }
    for named, job in asked_of.items():
        assert named in needs_whole_model(*job, ALONE)
    with refused(SpecError, str(folder)):
        left_on_disk(str(folder), wanda, data, both, "bfloat16", "cpu", 1000, ALONE)
    opened = open_model(str(folder), "bfloat16", on_disk=True)
    with refused(SpecError, opened.name):  # numbers have to be kept somewhere
        compress(opened, view(opened.model, opened.residence), data.tokens(opened.tokenizer), wanda)


OF_WHOLE_MODELS = {"awq"}
OF_MATRICES = [name for name in methods.names() if issubclass(methods.get(name), MatrixMethod)]


@pytest.mark.parametrize("name", usually(OF_MATRICES, {"alps", "dsnot", "ggml", "gptq", "robust"}))
def test_every_method_gives_the_same_files_or_is_refused(
    name: str, folder: Path, texts: str, tmp_path: Path
) -> None:
    built: Any = methods.build(name)
    target = next(
        text for text in ("0.5", "w4g16", "q4_0") if isinstance(parse_target(text), built.accepts)
    )
    if name in OF_WHOLE_MODELS:
        recipe = Recipe.parse(built, target)
        assert name in needs_whole_model(recipe, None, (HuggingFace(),), ALONE)
        return
    same_both_ways(prune if target == "0.5" else quantize, folder, texts, tmp_path, name, target)


# A limit that the system holds a process to

CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from calibrant.compress import prune
from calibrant.compress.room import held_now
model, out, texts, promised, room = sys.argv[1:]
lines = Path("/proc/self/status").read_text().splitlines()
words = next(line for line in lines if line.startswith("VmData")).split()
limit = int(words[1]) * 1024 + int(room)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
torch.set_num_threads(1)
memory = (held_now() + int(room)) / 1e9 if promised == "promised" else None
try:
    done = prune(
        model, data=texts, method="wanda", target="2:4", out=out, samples=2, length=64,
        dtype="bfloat16", device="cpu", memory=memory,
    )
    print(json.dumps([done.record.provenance["note"], done.record.sparsity]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)[:300]]))
    sys.exit(3)
"""
"""Prunes with so many more bytes of private memory than the libraries take; a model in memory
takes more.
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_model_is_pruned_under_a_limit_that_it_cannot_be_opened_under(
    texts: str, tmp_path: Path
) -> None:
    sizes = {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "num_hidden_layers": 48,
    }
    folder = tiny_folder(tmp_path / "model", "llama", dtype=torch.bfloat16, **sizes)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 290e6
    limit = size * 3 // 4
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

    def run(out: str, promised: str) -> tuple[int, Any]:
        child = [
            sys.executable,
            "-c",
            CHILD,
            str(folder),
            str(tmp_path / out),
            texts,
            promised,
            str(limit),
        ]
        done = subprocess.run(child, capture_output=True, text=True, env=env)
        return done.returncode, json.loads(
            done.stdout.splitlines()[-1]
        ) if done.stdout else done.stderr[-500:]

    code, said = run("whole", "")
    assert code != 0, said
    assert "memory" in str(said)
    code, said = run("parted", "promised")
    assert code == 0, said
    assert "its blocks stayed on disk" in said[0]
    assert said[1] == pytest.approx(0.5, abs=1e-6)


def test_pinned_memory_counts_where_blocks_stay_beside_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(tiny_folder(tmp_path / "model", "llama", hidden_size=48, num_hidden_layers=12))
    outline = outline_of(folder, "float32", "cpu")
    assert outline is not None
    on_a_gpu = replace(outline, device=torch.device("cuda"))
    monkeypatch.setattr(room, "held_now", lambda: 0)
    monkeypatch.setattr(room, "outline_of", lambda *_: on_a_gpu)
    # Of each block two matrices [48, 48], two [24, 48] and three of 48 · 64 numbers.
    rounded = 2 * (16_384 - 9216) + 2 * (8192 - 4608) + 3 * (16_384 - 12_288)
    needed = 4 * outline.shape.numbers
    data = CalibrationSet("python_docs", samples=4, length=16)
    dense = (HuggingFace(),)
    wanda = Recipe.parse("wanda", 0.5)

    def why_pruned(promised: int, beside: bool) -> str:
        return left_on_disk(folder, wanda, data, dense, "float32", "cuda", promised, ALONE, beside)

    def why_gathered(promised: int, beside: bool) -> str:
        return gathered_on_disk(folder, data, "float32", "cuda", promised, beside)

    assert not why_pruned(needed, False)
    assert "on disk" in why_pruned(needed, True)
    assert "on disk" in why_pruned(needed + 12 * rounded - 1, True)
    assert not why_pruned(needed + 12 * rounded, True)
    sums = 16 * sum(matrix.inputs for matrix in outline.shape.matrices)
    assert not why_gathered(needed + sums, False)
    assert "on disk" in why_gathered(needed + sums + 12 * rounded - 1, True)
    assert not why_gathered(needed + sums + 12 * rounded, True)
