"""Blocks beside a device that is smaller than the model: the same files as where all of it fits,
within a limit that is held.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import calibrant
from calibrant.compress import prune, prune_quantize, quantize
from calibrant.compress.on_device import room_on_device
from calibrant.errors import ModelError, SpecError
from calibrant.evaluators import evaluate
from calibrant.evaluators._dense import room
from calibrant.models import ModelView, Snapshot, open_model, view
from calibrant.models.beside import BesideDevice
from calibrant.models.stream import Stream
from calibrant.testing import FAMILIES, tiny_folder
from calibrant.testing.device import pretended_device
from calibrant.walk.rehearsal import rehearse

from tests.usual import two_hundred_lines, usually

# Gradients find only devices that were there at the first backward pass of the process.
with pretended_device():
    pass

SHARE = 0.65
"""How much of the model's bytes the device may hold: three of its 16 blocks, activations, and what
the methods work with.
"""
MORE = {"reconstructed": 0.85, "smooth": 0.75, "W8A8": 0.75, "permute": 0.68}
"""The share for a job that needs more: an optimizer holds a block's numbers several times. The
largest inputs of all matrices are large beside matrices as small as these, and so are the
activations that are held until a stream is traced to its end.
"""
LEARNS = 0.85
"""The share for autoround, which holds a block's numbers several times."""
FEW: dict[str, Any] = {"samples": 2, "length": 16, "dtype": "float32"}
JOBS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "wanda": (prune, {"method": "wanda"}),
    "reference": (prune, {"method": "wanda", "propagate": "reference"}),
    "sparse": (prune, {"method": "wanda", "target": "2:4", "export": ["sparse"]}),
    "sparsegpt": (prune, {"method": "sparsegpt"}),
    "refined": (prune, {"method": "refined(swaps=2, steps=1, rounds=1)"}),
    "alps": (prune, {"method": "alps(iterations=4)"}),
    "short_gpt": (prune, {"method": "short_gpt", "target": 0.25}),
    # A search holds the logits of several candidates, which are large beside these blocks.
    "evopress": (
        prune,
        {"method": "evopress(generations=1, offspring=4)", "target": 0.25, "length": 4},
    ),
    "permute": (prune, {"target": "2:4", "transform": ["permute(n=2, m=4)"]}),
    "evolved": (
        prune,
        {"method": "wanda", "allocation": "evolved(generations=1, offspring=4)", "length": 4},
    ),
    "rotate": (prune, {"method": "wanda", "transform": ["rotate"]}),
    "smooth": (quantize, {"target": "w4g32", "transform": ["smooth(sites=all)"]}),
    "reconstructed": (prune, {"method": "reconstructed(steps=2)"}),
    "svd": (prune, {"method": "svd", "target": "numbers 0.2"}),
    "basis_sharing": (prune, {"method": "basis_sharing", "target": "numbers 0.2"}),
    "gptq": (
        quantize,
        {"method": "gptq", "target": "w4g32", "export": ["compressed_tensors"]},
    ),
    "awq": (quantize, {"method": "awq(steps=2)", "target": "w4g32"}),
    "W8A8": (quantize, {"target": "W8A8", "transform": ["smooth"]}),
    "FP8": (quantize, {"method": "gptq", "target": "FP8", "export": ["compressed_tensors"]}),
    "NVFP4": (quantize, {"target": "NVFP4"}),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose blocks are nearly all of it."""
    place = tmp_path_factory.mktemp("large") / "model"
    sizes = {"num_hidden_layers": 16, "hidden_size": 32, "intermediate_size": 32}
    return str(tiny_folder(place, "llama", **sizes))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small model whose blocks are large beside what a batch of `evaluate` takes in them."""
    place = tmp_path_factory.mktemp("wide") / "model"
    sizes = {"num_hidden_layers": 16, "hidden_size": 384, "intermediate_size": 384}
    return str(tiny_folder(place, "llama", **sizes))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


def numbers_in(folder: Path) -> dict[str, bytes]:
    """The content of all files of numbers in a folder, and in the folders in it."""
    files = sorted(folder.rglob("*.safetensors"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def bytes_of(model: str) -> int:
    return (Path(model) / "model.safetensors").stat().st_size


MARKS = {"wanda": (), **dict.fromkeys(("gptq", "awq", "reconstructed", "FP8"), pytest.mark.slow)}
"""One job of each kind of work with a block; `make big` has the others."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, pytest.mark.big)) for name in JOBS]
)
def test_a_model_larger_than_the_device_is_compressed_as_if_it_fitted(
    name: str, large: str, texts: str, tmp_path: Path
) -> None:
    verb, options = JOBS[name]
    given = {"data": texts, **FEW, **options}
    # On a device methods compute in other ways than on the processor, with other last bits.
    with pretended_device() as device:
        verb(large, out=tmp_path / "here", device=device.name, **given)
    limit = int(MORE.get(name, SHARE) * bytes_of(large))
    with pretended_device(limit) as device:
        done = verb(
            large,
            out=tmp_path / "there",
            device=device.name,
            device_memory=limit / 1e9,
            **given,
        )
    assert "in turn" in done.record.provenance["note"]
    assert numbers_in(tmp_path / "there") == numbers_in(tmp_path / "here")


LEARNED = """
import sys
from calibrant import quantize
from calibrant.testing.device import pretended_device

model, texts, out, limit = sys.argv[1:]
given = {"data": texts, "method": "autoround(steps=3)", "target": "w4g32"}
given |= {"samples": 2, "length": 16, "dtype": "float32"}
with pretended_device() as device:
    quantize(model, out=out + "/here", device=device.name, **given)
with pretended_device(int(limit)) as device:
    given["device_memory"] = int(limit) / 1e9
    done = quantize(model, out=out + "/there", device=device.name, **given)
print(done.record.provenance["note"])
"""


@pytest.mark.slow
def test_rounding_is_learned_beside_the_device(wide: str, texts: str, tmp_path: Path) -> None:
    """In a process of its own: where a backward pass goes over the limit, torch ends the process,
    since the guard of a pretended device is written in Python. It did so with narrow blocks, beside
    which a backward pass is large.
    """
    limit = int(LEARNS * bytes_of(wide))
    command = [sys.executable, "-c", LEARNED, wide, texts, str(tmp_path), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4_000:]
    assert "in turn" in done.stdout
    assert numbers_in(tmp_path / "there") == numbers_in(tmp_path / "here")


@pytest.mark.slow
@pytest.mark.parametrize("propagate", ["arrival", "reference"])
def test_blocks_may_stay_on_disk_and_go_to_the_device_from_there(
    propagate: str, large: str, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"data": texts, "method": "wanda", "propagate": propagate, **FEW}
    prune(large, out=tmp_path / "here", device="cpu", **given)
    limit = int(SHARE * bytes_of(large))
    monkeypatch.setattr(prune_quantize, "left_on_disk", lambda *_: "its blocks stayed on disk")
    with pretended_device(limit) as device:
        done = prune(
            large,
            out=tmp_path / "there",
            device=device.name,
            memory=1000.0,
            device_memory=limit / 1e9,
            **given,
        )
    assert done.opened.residence.on_disk
    assert "machine's memory" not in done.record.provenance["note"]
    assert numbers_in(tmp_path / "there") == numbers_in(tmp_path / "here")


@pytest.mark.slow
def test_losses_are_those_of_the_whole_model(wide: str) -> None:
    task = "loss(source=python_docs, tokens=256, length=32)"
    (here,) = evaluate(wide, tasks=task, dtype="float32", device="cpu")
    limit = int(SHARE * bytes_of(wide))
    with pretended_device(limit) as device:
        (there,) = evaluate(
            wide,
            tasks=task,
            dtype="float32",
            device=device.name,
            device_memory=limit / 1e9,
        )
    assert there.provenance["blocks"] == "beside the device"
    assert there.score.value == pytest.approx(here.score.value, rel=1e-6)


@pytest.mark.slow
def test_a_measure_that_looks_into_the_whole_model_is_refused(wide: str, texts: str) -> None:
    limit = SHARE * bytes_of(wide) / 1e9
    task = f"words(source={texts!r}, length=32)"
    with pretended_device() as device, pytest.raises(SpecError, match="words"):
        evaluate(wide, tasks=task, dtype="float32", device=device.name, device_memory=limit)


@pytest.mark.parametrize("method", ["cd_moe(experts=2)", "mc_suite(steps=1)"])
def test_a_method_that_needs_all_blocks_at_once_is_refused(
    method: str, texts: str, tmp_path: Path
) -> None:
    folder = str(tiny_folder(tmp_path / "model", "qwen3_moe"))
    opened = open_model(folder, "float32", "cpu", beside=True)
    with pytest.raises(SpecError) as error:
        prune(opened, data=texts, method=method, samples=2, length=16)
    assert error.value.subject.startswith(method.partition("(")[0])


@pytest.mark.slow
def test_what_a_job_leaves_in_memory_is_measured_and_saved(
    large: str, texts: str, tmp_path: Path
) -> None:
    given = {"data": texts, "target": "w4g32", **FEW}
    task = "loss(source=python_docs, tokens=32, length=16)"
    quantize(large, out=tmp_path / "here", device="cpu", **given)
    (here,) = evaluate(str(tmp_path / "here"), tasks=task, dtype="float32", device="cpu")
    limit = int(SHARE * bytes_of(large))
    with pretended_device(limit) as device:
        done = quantize(large, device=device.name, device_memory=limit / 1e9, **given)
        (there,) = evaluate(done.model, tokenizer=done.tokenizer, tasks=task)
        done.save(tmp_path / "there")
    assert there.score.value == pytest.approx(here.score.value, rel=1e-6)
    assert numbers_in(tmp_path / "there") == numbers_in(tmp_path / "here")


@pytest.fixture
def beside(tmp_path: Path) -> ModelView:
    """A model whose blocks are copied within the processor's memory, the next one ahead."""
    opened = open_model(str(tiny_folder(tmp_path / "model")), "float32", "cpu")
    residence = BesideDevice(opened.model, torch.device("cpu"))
    residence.ahead = True
    return view(opened.model, residence)


def test_what_is_written_to_a_held_block_is_kept(beside: ModelView) -> None:
    block = beside.blocks[0]
    weight = block.weights[0]
    own = weight.owner.get_parameter(weight.key)
    before = weight.get().clone()
    snapshot = Snapshot.of(beside)
    with beside.held(block):
        assert weight.owner.get_parameter(weight.key) is not own
        weight.set(before + 1)
    assert weight.owner.get_parameter(weight.key) is own
    assert torch.equal(weight.get(), before + 1)
    snapshot.restore()
    assert torch.equal(weight.get(), before)


@pytest.mark.parametrize("by", ["write", "data"])
def test_a_block_that_was_fetched_ahead_is_fetched_again_once_it_changed(
    beside: ModelView, by: str
) -> None:
    first, second, *_ = beside.blocks
    weight = second.weights[0]
    ones = torch.ones(weight.shape)
    with beside.held(first):
        if by == "write":
            weight.set(ones)
        else:
            weight.owner.get_parameter(weight.key).data = ones
    with beside.held(second):
        assert torch.equal(weight.get(), ones)


def test_blocks_that_share_a_matrix_are_refused(tmp_path: Path) -> None:
    opened = open_model(str(tiny_folder(tmp_path / "model")), "float32", "cpu")
    first, second, *_ = (block.weights[0] for block in view(opened.model).blocks)
    shared = first.owner.get_parameter(first.key)
    second.owner.register_parameter(second.key, shared)
    with pytest.raises(ModelError):
        BesideDevice(opened.model, torch.device("cpu"))


def test_parameters_that_a_held_block_gets_stay_with_it(beside: ModelView) -> None:
    block = beside.blocks[0]
    weight = block.weights[0]
    new = nn.Parameter(torch.ones(weight.shape))
    with beside.held(block):
        weight.owner.register_parameter(weight.key, new)
    assert torch.equal(weight.get(), new)


@pytest.mark.parametrize("family", usually(FAMILIES, {"llama", "mixtral"}))
def test_what_is_found_out_of_a_model_is_the_same(family: str, tmp_path: Path) -> None:
    folder = str(tiny_folder(tmp_path / "model", family))
    whole = open_model(folder, "float32", "cpu")
    parted = open_model(folder, "float32", "cpu")
    here = view(whole.model)
    there = view(parted.model, BesideDevice(parted.model, torch.device("cpu")))
    assert rehearse(there) == rehearse(here)
    assert _readers(there) == _readers(here)
    ids = torch.arange(12)[None]
    assert torch.equal(parted.model(ids).logits, whole.model(ids).logits)


def _readers(model_view: ModelView) -> list[str] | None:
    """The matrices that read the stream; None where it isn't understood."""
    try:
        stream = Stream.of(model_view)
    except calibrant.ModelError:
        return None
    return [f"{reader.weight.name} {reader.norm and reader.norm.name}" for reader in stream.readers]


def test_room_that_is_too_small_is_refused_before_anything_is_read(large: str, texts: str) -> None:
    with pretended_device() as device, pytest.raises(SpecError, match="device_memory"):
        prune(large, data=texts, device=device.name, device_memory=1e-4, **FEW)


def test_device_memory_is_for_no_processor(large: str, texts: str) -> None:
    with pytest.raises(SpecError, match="processor"):
        prune(large, data=texts, device="cpu", device_memory=1.0, **FEW)


@pytest.mark.parametrize("memory", [0.0, -1.0, float("nan"), 1e9])
def test_room_that_is_none_is_refused_by_its_own_name(memory: float) -> None:
    with pytest.raises(SpecError, match="device_memory=") as refused:
        room_on_device(memory, torch.device("cuda"))
    assert refused.value.subject == str(memory)


def test_activations_that_are_too_many_for_a_device_ask_for_room_there(
    large: str, texts: str
) -> None:
    with pretended_device() as device:
        opened = open_model(large, "float32", device.name)
        with pytest.raises(SpecError, match="device_memory"):
            prune(opened, data=texts, device_memory=bytes_of(large) / 1e9, samples=2, length=32)


def test_most_of_what_is_free_on_a_gpu_is_room_and_so_is_what_torch_keeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 30)
    assert room_on_device(None, torch.device("cuda")) == 114
    assert room("cuda") == 60


def test_what_looks_into_a_whole_model_takes_none_whose_blocks_are_elsewhere(
    tmp_path: Path,
) -> None:
    opened = open_model(str(tiny_folder(tmp_path / "model")), "float32", "cpu", beside=True)
    with pytest.raises(SpecError, match="looks into"):
        evaluate(opened, reference=opened, tasks="words(source=python_docs)")


def test_room_on_a_device_is_for_a_model_that_is_opened(tmp_path: Path) -> None:
    opened = open_model(str(tiny_folder(tmp_path / "model")), "float32", "cpu")
    with pytest.raises(SpecError, match="device_memory"):
        evaluate(opened, tasks="loss(source=python_docs)", device_memory=1.0)


KILLED = """
import os, signal, sys
from calibrant import prune
from calibrant.compress.checkpoint import Checkpoint
from calibrant.testing.device import pretended_device

model, texts, out, limit = sys.argv[1:]
add = Checkpoint.add

def add_and_die(self, index, edits, reports):
    add(self, index, edits, reports)
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoint.add = add_and_die
with pretended_device(int(limit)) as device:
    prune(model, data=texts, samples=2, length=16, dtype="float32", out=out, device=device.name,
          device_memory=int(limit) / 1e9)
"""


@pytest.mark.slow
def test_a_job_that_was_killed_goes_on(large: str, texts: str, tmp_path: Path) -> None:
    limit = int(SHARE * bytes_of(large))
    out = tmp_path / "there"
    command = [sys.executable, "-c", KILLED, large, texts, str(out), str(limit)]
    killed = subprocess.run(command, env=dict(os.environ), check=False)
    assert killed.returncode == -signal.SIGKILL
    given = {"data": texts, **FEW}
    with pretended_device(limit) as device:
        done = prune(large, out=out, device=device.name, device_memory=limit / 1e9, **given)
    assert done.continued_from == 4
    with pretended_device() as device:
        prune(large, out=tmp_path / "here", device=device.name, **given)
    assert numbers_in(out) == numbers_in(tmp_path / "here")
