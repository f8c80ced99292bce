"""Pruning and quantizing with the blocks on disk: the same files as in memory, also after a kill at any block; what can't be done so is refused."""

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
from calibrant.compress.checkpoint import Checkpoint
from calibrant.compress.room import BLOCKS_HELD, Needs, left_on_disk, needs_all_of_it
from calibrant.data import CalibrationSet
from calibrant.errors import SpecError
from calibrant.exports.hf import HuggingFace
from calibrant.exports.sparse import Sparse
from calibrant.methods import MatrixMethod, methods
from calibrant.models import open_model, outlined, view
from calibrant.models.on_disk import Parts
from calibrant.targets import parse_target
from calibrant.testing import FAMILIES, tiny_folder, tiny_gguf
from calibrant.walk.ranks import ALONE
from calibrant.walk.rehearsal import rehearse

from tests.usual import two_hundred_lines

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
    found: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    manifest = json.loads(found.pop("calibrant.json"))
    manifest["record"].pop("provenance")
    manifest.pop("seal")  # which is of the provenance too
    return {**found, "calibrant.json": manifest}


def asked(done: Any) -> str:
    return done.record.provenance["note"]


def both(run: Callable[..., Any], folder: Path, texts: str, tmp_path: Path, *how: str, **options: Any) -> tuple[Any, Any]:
    """The same job in memory and with its blocks on disk."""
    whole = run(str(folder), texts, *how, tmp_path / "whole", **SMALL, **options)
    with blocks_on_disk():
        parted = run(str(folder), texts, *how, tmp_path / "parted", **SMALL, **options)
    assert asked(parted) == "its blocks stayed on disk"
    absent = {name for names in parted.opened.residence.absent().values() for name in names}
    assert absent
    assert all(parted.opened.model.get_parameter(name).is_meta for name in absent)
    return whole, parted


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_pruned_to_the_same_files(family: str, texts: str, tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "model", family)
    both(prune, model, texts, tmp_path, "wanda", "2:4")
    assert files(tmp_path / "parted") == files(tmp_path / "whole")


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
@pytest.mark.parametrize(("run", "method", "target"), [(prune, "sparsegpt", "0.5"), (quantize, "gptq", "w4g16")])
def test_every_propagation_gives_the_same_files(
    run: Callable[..., Any], method: str, target: str, propagate: str, folder: Path, texts: str, tmp_path: Path
) -> None:
    both(run, folder, texts, tmp_path, method, target, propagate=propagate)
    assert files(tmp_path / "parted") == files(tmp_path / "whole")


def test_what_looks_at_no_data_gives_the_same_files(folder: Path, texts: str, tmp_path: Path) -> None:
    both(quantize, folder, texts, tmp_path, "rtn", "w4g16a")
    assert files(tmp_path / "parted") == files(tmp_path / "whole")


def test_a_mix_gives_the_same_files(folder: Path, texts: str, tmp_path: Path) -> None:
    mix = f"mix(one='{texts}', other=random_tokens, weight=0.5)"
    both(prune, folder, mix, tmp_path, "wanda", "0.5", propagate="dense")
    assert files(tmp_path / "parted") == files(tmp_path / "whole")


@pytest.mark.parametrize("propagate", ["arrival", "reference", "dense"])
@pytest.mark.parametrize("kept", [1, 2, 3])
def test_killed_at_any_block_it_goes_on_and_computes_nothing_twice(
    kept: int, propagate: str, folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {**SMALL, "propagate": propagate}
    prune(str(folder), texts, "sparsegpt", "0.5", tmp_path / "whole", **options)
    add = Checkpoint.add

    def deadly(self: Checkpoint, index: int, *rest: Any) -> None:
        add(self, index, *rest)
        if index + 1 == kept:
            raise KeyboardInterrupt

    with blocks_on_disk():
        monkeypatch.setattr(Checkpoint, "add", deadly)
        with pytest.raises(KeyboardInterrupt):
            prune(str(folder), texts, "sparsegpt", "0.5", tmp_path / "parted", **options)
        monkeypatch.setattr(Checkpoint, "add", add)
        assert not (tmp_path / "parted").exists()
        compressed = list[int]()
        method = methods.get("sparsegpt")
        own = method.compress

        def counted(self: Any, *rest: Any) -> Any:
            compressed.append(1)
            return own(self, *rest)

        monkeypatch.setattr(method, "compress", counted)
        done = prune(str(folder), texts, "sparsegpt", "0.5", tmp_path / "parted", **options)
    assert done.continued_from == kept
    assert len(compressed) == 7 * (3 - kept)
    assert files(tmp_path / "parted") == files(tmp_path / "whole")
    assert not list(tmp_path.glob(".parted*")), "nothing is left to continue"


def test_a_job_of_blocks_on_disk_goes_on_in_memory_and_the_other_way_round(
    folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune(str(folder), texts, "wanda", "0.5", tmp_path / "whole", **SMALL)
    add = Checkpoint.add

    def deadly(self: Checkpoint, index: int, *rest: Any) -> None:
        add(self, index, *rest)
        raise KeyboardInterrupt

    for first, then in ((True, False), (False, True)):
        out = tmp_path / f"{first}"
        for on_disk, dies in ((first, True), (then, False)):
            with monkeypatch.context() as patch:
                patch.setattr(prune_quantize, "left_on_disk", lambda *_, on_disk=on_disk: "its blocks stayed on disk" if on_disk else "")
                if dies:
                    patch.setattr(Checkpoint, "add", deadly)
                    with pytest.raises(KeyboardInterrupt):
                        prune(str(folder), texts, "wanda", "0.5", out, **SMALL)
                else:
                    assert prune(str(folder), texts, "wanda", "0.5", out, **SMALL).continued_from == 1
        assert files(out) == files(tmp_path / "whole")


def test_one_block_is_in_memory_at_a_time(folder: Path, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, there = Parts.load, list[int]()

    def watched(self: Parts, model: Any, index: int, wanted: Any) -> None:
        load(self, model, index, wanted)
        there.append(sum(not all(p.is_meta for p in block.parameters()) for block in model.model.layers))

    monkeypatch.setattr(Parts, "load", watched)
    with blocks_on_disk():
        prune(str(folder), texts, "wanda", "0.5", tmp_path / "parted", **SMALL)
    assert len(there) == 4 * 3, "read to check them, to rehearse, to compress and to save"
    assert set(there) == {1}


def test_asked_again_it_is_done(folder: Path, texts: str, tmp_path: Path) -> None:
    with blocks_on_disk():
        prune(str(folder), texts, "wanda", "0.5", tmp_path / "parted", **SMALL)
        again = prune(str(folder), texts, "wanda", "0.5", tmp_path / "parted", **SMALL)
    assert again.already_done
    assert again.opened.residence.on_disk


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rehearsal_sees_the_same_with_blocks_on_disk(family: str, tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "model", family))
    parted = open_model(folder, "bfloat16", on_disk=True)
    assert rehearse(view(parted.model, parted.residence)) == rehearse(view(open_model(folder, "bfloat16").model))


def test_numbers_are_kept_somewhere(folder: Path, texts: str) -> None:
    opened = open_model(str(folder), "bfloat16", on_disk=True)
    batch = CalibrationSet(texts, samples=4, length=16).tokens(opened.tokenizer)
    with pytest.raises(SpecError, match=r"blocks of .* are on disk, and what becomes of them has to be kept there too"):
        compress(opened, view(opened.model, opened.residence), batch, Recipe.parse("wanda", 0.5))


# What decides


def needs(folder: Path, tokens: int = 64) -> Needs:
    found, kind = outlined(str(folder), "bfloat16", "cpu")
    assert found is not None
    return Needs.of(found, tokens, kind, methods.build("wanda"))


def test_needs_are_those_of_the_shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 1000)
    found = needs(tiny_folder(tmp_path / "model", "llama", num_hidden_layers=5))
    block = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 64 + 2 * 32)
    assert (found.block, found.outside, found.model) == (block, 2 * (2 * 259 * 32 + 32), 5 * block + 2 * (2 * 259 * 32 + 32))
    assert found.arrival == 64 * 2 * (3 * 32 + 64 + 64)
    assert (found.between, found.in_a_pass) == (64 * 2 * 2 * 32, found.arrival)
    assert found.work == 4 * (4 * 32 * 64 + 64 * 64)
    many, kind = outlined(str(tmp_path / "model"), "bfloat16", "cpu")
    assert many is not None
    assert Needs.of(many, 64, kind, methods.build("alps")).work == 4 * (7 * 32 * 64 + 7 * 64 * 64 + 64 * 64)
    assert Needs.of(many, 64, kind, methods.build("robust"), sources=3).work == 4 * (4 * 32 * 64 + 15 * 64 * 64 + 64 * 64)
    inside = found.arrival + found.in_a_pass
    assert found.in_memory("arrival") == 1000 + found.model + inside + found.work
    assert found.on_disk("arrival") == 1000 + found.outside + BLOCKS_HELD * block + inside + found.work


def test_the_promise_decides_where_blocks_are(texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 0)
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=12)
    found, job = needs(folder), {"samples": 4, "length": 16, "dtype": "bfloat16", "device": "cpu"}
    assert found.on_disk("arrival") < found.in_memory("arrival")
    plenty = prune(str(folder), texts, "wanda", "0.5", tmp_path / "plenty", memory=found.in_memory("arrival") * 1.001 / 1e9, **job)
    assert not plenty.opened.residence.on_disk
    assert asked(plenty) == ""
    little = prune(str(folder), texts, "wanda", "0.5", tmp_path / "little", memory=found.on_disk("arrival") * 1.001 / 1e9, **job)
    assert little.opened.residence.on_disk
    assert "its blocks stayed on disk" in asked(little)
    assert little.record.run.propagate == "arrival"
    assert files(tmp_path / "little") == files(tmp_path / "plenty")
    with pytest.raises(SpecError, match=r"with its blocks on disk it needs about .* GB; allow so much, or calibrate on fewer tokens"):
        prune(str(folder), texts, "wanda", "0.5", tmp_path / "less", memory=found.block / 1e9, **job)
    assert not (tmp_path / "less").exists()


def test_where_activations_are_too_many_it_goes_on_with_reference(texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "held_now", lambda: 0)
    folder = tiny_folder(tmp_path / "model", "llama", num_hidden_layers=12)
    found = needs(folder, 128 * 64)
    between = (found.on_disk("reference") + found.on_disk("arrival")) / 2
    done = prune(str(folder), texts, "wanda", "0.5", tmp_path / "out", samples=128, length=64, dtype="bfloat16", device="cpu", memory=between / 1e9)
    assert "its blocks stayed on disk; arrival would hold about" in asked(done)
    assert done.record.run.propagate == "reference"


def test_activations_that_no_propagation_has_room_for_are_refused(texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GGUF file is opened whole, so it is only known then what is left for activations; robust knows one propagation."""
    monkeypatch.setattr(room, "held_now", lambda: 0)
    file = str(tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(SpecError, match=r"robust with arrival holds about .* GB of activations, and .* GB are left for them; allow more memory"):
        prune(file, texts, "robust", "0.5", tmp_path / "out", samples=64, length=64, dtype="float32", device="cpu", memory=0.0005)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_opened_whole_and_too_large_is_refused(texts: str, tmp_path: Path) -> None:
    file = str(tiny_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(SpecError, match=r"tiny\.gguf open .* GB are held, and memory is 0\.0; only blocks of a folder of safetensors"):
        prune(file, texts, "wanda", "0.5", tmp_path / "out", samples=4, length=16, device="cpu", memory=0.001)
    assert not (tmp_path / "out").exists()


def test_what_needs_the_whole_model_is_refused_by_name(folder: Path, texts: str) -> None:
    data, wanda = CalibrationSet(texts, samples=4, length=16), Recipe.parse("wanda", 0.5)
    whole = (HuggingFace(),)
    assert needs_all_of_it(wanda, data, whole, ALONE) == ""
    assert "transforms" in needs_all_of_it(Recipe.parse("wanda", 0.5, transform=("rotate",)), data, whole, ALONE)
    assert "greedy measures" in needs_all_of_it(Recipe.parse("greedy", 0.34), data, whole, ALONE)
    assert "reconstructed does more" in needs_all_of_it(Recipe.parse("reconstructed", 0.5), data, whole, ALONE)
    assert "short_gpt" in needs_all_of_it(Recipe.parse("short_gpt", 0.34), data, whole, ALONE)
    assert "the export sparse" in needs_all_of_it(wanda, data, (*whole, Sparse()), ALONE)
    assert "cluster" in needs_all_of_it(wanda, CalibrationSet("cluster(source=python_docs)", samples=4, length=16), whole, ALONE)
    assert "the allocation owl compares" in needs_all_of_it(Recipe.parse("wanda", 0.5, allocation="owl"), data, whole, ALONE)
    assert "starved=dense" in needs_all_of_it(replace(wanda, starved="dense"), data, whole, ALONE)
    with pytest.raises(SpecError, match="its blocks can't be left on disk, since the export sparse is made of the whole model; allow more memory"):
        left_on_disk(str(folder), wanda, data, (*whole, Sparse()), "bfloat16", "cpu", 1000, ALONE)


@pytest.mark.parametrize("name", [n for n in methods.names() if issubclass(methods.get(n), MatrixMethod)])
def test_every_method_gives_the_same_files_or_is_refused(name: str, folder: Path, texts: str, tmp_path: Path) -> None:
    built: Any = methods.build(name)
    target = next((text for text in ("0.5", "w4g16", "q4_0") if isinstance(parse_target(text), built.accepts)), None)
    recipe = None if target is None else Recipe.parse(built, target)
    if recipe is None or needs_all_of_it(recipe, None, (HuggingFace(),), ALONE):
        pytest.skip("it is refused by name, which other tests look at")
    both(prune if target == "0.5" else quantize, folder, texts, tmp_path, name, target or "")
    assert files(tmp_path / "parted") == files(tmp_path / "whole")


# A limit that the system holds a process to

CHILD = """
import json, resource, sys
from pathlib import Path
import torch
from calibrant.compress import prune
from calibrant.compress.room import held_now
model, out, texts, promised, room = sys.argv[1:]
words = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData")).split()
limit = int(words[1]) * 1024 + int(room)
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
torch.set_num_threads(1)
memory = (held_now() + int(room)) / 1e9 if promised == "promised" else None
try:
    done = prune(model, texts, "wanda", "2:4", out, samples=2, length=64, dtype="bfloat16", device="cpu", memory=memory)
    print(json.dumps([done.record.provenance["note"], done.record.sparsity]))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)[:300]]))
    sys.exit(3)
"""
"""Prunes with so many more bytes of private memory than the libraries take; a model in memory takes more."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_model_is_pruned_under_a_limit_that_it_cannot_be_opened_under(texts: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "num_key_value_heads": 4, "num_hidden_layers": 48}
    folder = tiny_folder(tmp_path / "model", "llama", dtype=torch.bfloat16, **sizes)
    size = (folder / "model.safetensors").stat().st_size
    assert size > 290e6
    limit = size * 3 // 4
    env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

    def run(out: str, promised: str) -> tuple[int, Any]:
        child = [sys.executable, "-c", CHILD, str(folder), str(tmp_path / out), texts, promised, str(limit)]
        done = subprocess.run(child, capture_output=True, text=True, env=env)
        return done.returncode, json.loads(done.stdout.splitlines()[-1]) if done.stdout else done.stderr[-500:]

    code, said = run("whole", "")
    assert code != 0, said
    assert "memory" in str(said)
    code, said = run("parted", "promised")
    assert code == 0, said
    assert "its blocks stayed on disk" in said[0]
    assert said[1] == pytest.approx(0.5, abs=1e-6)
