"""What a job would take, said before anything is loaded: numbers and disk to the byte, memory
within a quarter, time within a factor of two, and nothing of the weights is read.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaConfig, LlamaForCausalLM

import calibrant
from calibrant.compress import planning
from calibrant.compress.checkpoint import Checkpoint
from calibrant.compress.costs import peak_memory
from calibrant.errors import ModelError, SpecError, TargetError
from calibrant.models import open_model, opening, outline_of, view
from calibrant.models.shape import BlockShape, MatrixShape
from calibrant.testing import FAMILIES, tiny_folder, tiny_gguf, tiny_model, tiny_tokenizer
from calibrant.testing.device import pretended_device

from tests.refusing import refused
from tests.usual import two_hundred_lines, usually

WORDS = "python_docs"


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tiny_folder(tmp_path / "model", "llama"))


def shapes_in(path: str) -> tuple[int, Counter[tuple[int, int]]]:
    """How many numbers an open model has, and the shapes of its matrices."""
    opened = open_model(path, "float32", "cpu")
    numbers = sum(parameter.numel() for parameter in opened.model.parameters())
    return numbers, Counter(weight.shape for weight in view(opened.model).weights)


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_numbers_and_matrices_are_those_of_the_open_model(family: str, tmp_path: Path):
    path = str(tiny_folder(tmp_path / "model", family))
    outline = outline_of(path, "float32", "cpu")
    assert outline is not None
    matrices = Counter((matrix.outputs, matrix.inputs) for matrix in outline.shape.matrices)
    assert (outline.shape.numbers, matrices) == shapes_in(path)


def test_so_are_those_of_a_gguf_file(tmp_path: Path):
    path = str(tiny_gguf(tmp_path / "tiny.gguf"))
    outline = outline_of(path, "float32", "cpu")
    assert outline is not None
    matrices = Counter((matrix.outputs, matrix.inputs) for matrix in outline.shape.matrices)
    assert (outline.shape.numbers, matrices) == shapes_in(path)
    assert not outline.divisible


def test_only_headers_are_read(tmp_path: Path):
    """The weights of this model are a hole of nine gigabytes in a file."""
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=4096,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_key_value_heads=8,
    )
    config.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with torch.device("meta"):
        tensors = LlamaForCausalLM(config).state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    assert end > 9e9
    held = peak_memory()
    planned = calibrant.plan(calibrant.prune, str(tmp_path), data=WORDS, dtype="bfloat16")
    assert planned.numbers == end // 2
    assert planned.memory > end
    assert peak_memory() - held < 500e6


def bytes_of_weights(place: Path) -> int:
    return sum(file.stat().st_size for file in place.glob("*.safetensors"))


def test_the_files_are_as_large_as_planned(tmp_path: Path):
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    path = str(tiny_folder(tmp_path / "model", "llama", **sizes))
    asked: dict[str, Any] = {"dtype": "bfloat16", "out": tmp_path / "out", "export": ["sparse"]}
    text = two_hundred_lines(tmp_path)
    planned = calibrant.plan(calibrant.prune, path, data=text, tokens=512, length=64, **asked)
    assert not asked["out"].exists()
    calibrant.prune(path, data=text, tokens=512, length=64, **asked)
    saved = asked["out"] / "model.safetensors"
    with safe_open(saved, framework="pt") as file:
        numbers = sum(prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    assert planned.numbers == numbers
    assert planned.disk["hf"] == pytest.approx(saved.stat().st_size, rel=0.02)
    sparse = bytes_of_weights(asked["out"] / "sparse")
    assert planned.disk["sparse"] == pytest.approx(sparse, rel=0.05)


def test_codes_take_as_much_as_planned(tmp_path: Path):
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    path = str(tiny_folder(tmp_path / "model", "llama", **sizes))
    out = tmp_path / "out"
    asked: dict[str, Any] = {"target": "w4g64", "dtype": "bfloat16", "export": "compressed_tensors"}
    planned = calibrant.plan(calibrant.quantize, path, out=out, **asked)
    calibrant.quantize(path, out=out, **asked)
    packed = bytes_of_weights(out / "compressed_tensors")
    assert planned.disk["compressed_tensors"] == pytest.approx(packed, rel=0.05)


@pytest.mark.parametrize(
    ("verb", "method", "target"),
    [
        ("prune", "wanda", "0.5"),
        ("prune", "sparsegpt", "0.5"),
        ("quantize", "gptq", "w4g64"),
    ],
)
def test_a_checkpoint_is_as_large_as_planned(
    verb: str, method: str, target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    path = str(tiny_folder(tmp_path / "model", "llama", **sizes))
    # It is there until the job is done.
    monkeypatch.setattr(Checkpoint, "remove", lambda _: None)
    asked: dict[str, Any] = {
        "data": two_hundred_lines(tmp_path),
        "method": method,
        "target": target,
        "tokens": 512,
        "length": 64,
        "dtype": "bfloat16",
        "out": tmp_path / "out",
    }
    compress = getattr(calibrant, verb)
    planned = calibrant.plan(compress, path, **asked)
    compress(path, **asked)
    (place,) = tmp_path.glob(".out.*")
    expected = planned.disk[planning.CHECKPOINT]
    assert expected == pytest.approx(bytes_of_weights(place), rel=0.1)


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets a machine have so many bytes free."""

    def free(count: int) -> None:
        monkeypatch.setattr(planning, "free_on", lambda _: count)

    return free


def test_what_does_not_fit_says_what_does(
    folder: str, tmp_path: Path, little_memory: Callable[[int], None]
):
    many: dict[str, Any] = {"data": WORDS, "dtype": "float32", "tokens": 2**22, "length": 64}
    little_memory(100_000_000)
    on_arrival = calibrant.plan(calibrant.prune, folder, **many)
    assert any("reference" in note for note in on_arrival.notes)
    little_memory(500_000_000)
    many["tokens"] = 2**24
    planned = calibrant.plan(calibrant.prune, folder, **many)
    assert not planned.fits
    fewer = planned.problems[0].partition("--tokens ")[2].split()[0]
    many["tokens"] = int(fewer)
    assert calibrant.plan(calibrant.prune, folder, **many).fits
    many["tokens"] *= 2
    assert not calibrant.plan(calibrant.prune, folder, **many).fits


def test_blocks_stay_on_disk_where_memory_is_promised(tmp_path: Path):
    large = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    path = str(tiny_folder(tmp_path / "model", "llama", **large))
    asked: dict[str, Any] = {"data": WORDS, "dtype": "float32", "tokens": 512, "length": 64}
    whole = calibrant.plan(calibrant.prune, path, out=tmp_path / "out", **asked)
    promised = (whole.memory - 60_000_000) / 1e9
    parted = calibrant.plan(calibrant.prune, path, out=tmp_path / "out", memory=promised, **asked)
    assert parted.fits
    assert parted.memory < promised * 1e9 < whole.memory


def test_a_model_that_is_open_is_planned_and_stays_as_it_was():
    model = tiny_model("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    planned = calibrant.plan(calibrant.prune, model, tiny_tokenizer(), data=WORDS, tokens=512)
    assert planned.numbers == model.num_parameters()
    assert planned.seconds["open"] == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_copy_counts_and_what_is_promised_beside_an_object_is_for_activations(tmp_path: Path):
    model = tiny_model("llama", hidden_size=512, intermediate_size=2048, num_hidden_layers=12)
    asked: dict[str, Any] = {"data": WORDS, "tokens": 512, "length": 64}
    calibrant.plan(calibrant.prune, model, tiny_tokenizer(), **asked)  # imports take memory too
    alone = calibrant.plan(calibrant.prune, model, tiny_tokenizer(), **asked)
    copied = calibrant.plan(calibrant.prune, model, tiny_tokenizer(), copy=True, **asked)
    numbers = sum(tensor.nbytes for tensor in model.parameters())
    assert copied.memory - alone.memory == pytest.approx(numbers, rel=0.2)
    # Less than the process holds, with the model in it.
    given: dict[str, Any] = {"out": tmp_path / "out", "memory": 0.01}
    assert calibrant.plan(calibrant.prune, model, tiny_tokenizer(), **asked, **given).fits


def test_a_promise_is_kept_as_the_job_keeps_it(
    tmp_path: Path, little_memory: Callable[[int], None]
):
    path = str(tiny_gguf(tmp_path / "tiny.gguf"))
    asked: dict[str, Any] = {"data": WORDS, "tokens": 2**22, "length": 64, "dtype": "float32"}
    asked["out"] = tmp_path / "out"
    whole = calibrant.plan(calibrant.prune, path, **asked)
    promised = whole.memory / 1e9 - 0.2
    parted = calibrant.plan(calibrant.prune, path, memory=promised, **asked)
    assert parted.fits
    assert parted.memory < promised * 1e9
    assert any("reference" in note for note in parted.notes)
    # More is promised than the machine has.
    little_memory(1_000_000)
    assert not calibrant.plan(calibrant.prune, path, memory=1000.0, **asked).fits


def test_a_promise_that_is_too_small_says_how_much_is_enough(folder: str):
    asked: dict[str, Any] = {"tasks": ["loss(tokens=4096, length=64)"], "device": "cpu"}
    too_small = calibrant.plan(calibrant.evaluate, folder, memory=0.01, **asked)
    enough = float(too_small.problems[0].rpartition("--memory ")[2])
    assert calibrant.plan(calibrant.evaluate, folder, memory=enough + 0.1, **asked).fits


def test_a_configuration_without_numbers_is_refused(folder: str):
    """It asks for more than any machine has, and the file holds no tensor."""
    (Path(folder) / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    config = json.loads((Path(folder) / "config.json").read_text())
    config.update(hidden_size=2**14, intermediate_size=2**16, vocab_size=10**6)
    (Path(folder) / "config.json").write_text(json.dumps(config))
    with refused(ModelError, "model.embed_tokens.weight"):
        calibrant.plan(calibrant.quantize, folder)
    with refused(ModelError, "model.embed_tokens.weight"):
        open_model(folder)


@pytest.mark.parametrize("here", [[], ["model-00001-of-00002.safetensors"]])
def test_of_a_model_on_the_hub_the_configuration_alone_is_downloaded(
    here: list[str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_bytes((Path(folder) / "config.json").read_bytes())
    # A download that was stopped leaves some of the weights.
    for name in here:
        (snapshot / name).write_bytes((Path(folder) / "model.safetensors").read_bytes())
    wanted: list[str] = []

    def download(_: str, allow_patterns: list[str], **__: Any) -> str:
        wanted.extend(allow_patterns)
        return str(snapshot)

    monkeypatch.setattr(opening, "snapshot_download", download)
    planned = calibrant.plan(calibrant.quantize, "some/model")
    assert wanted == ["config.json"]
    assert planned.numbers == shapes_in(folder)[0]
    outline = outline_of("some/model")
    assert outline is not None
    assert outline.divisible
    config = json.loads((snapshot / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors"}
    (snapshot / "config.json").write_text(json.dumps(config))
    packed = outline_of("some/model")
    assert packed is not None
    assert not packed.divisible


def test_measuring_counts_what_is_read_and_both_models(folder: str):
    alone = calibrant.plan(calibrant.evaluate, folder, tasks=["loss(tokens=4096, length=64)"])
    asked = ["agreement(tokens=4096, length=64)"]
    both = calibrant.plan(calibrant.evaluate, folder, tasks=asked, reference=folder)
    assert alone.tokens == both.tokens == 4096
    assert sum(both.seconds.values()) > sum(alone.seconds.values())
    assert both.memory > alone.memory
    with refused(SpecError, folder):
        calibrant.plan(calibrant.evaluate, folder, tasks=asked)


def test_what_is_written_counts_with_the_most_that_it_may_be(folder: str):
    short, long = (
        calibrant.plan(
            calibrant.evaluate,
            folder,
            tasks=[f"generation(name='arithmetic', limit=10, max_tokens={most})"],
        )
        for most in (10, 1_000)
    )
    assert long.tokens - short.tokens == 10 * 990
    assert sum(long.seconds.values()) > sum(short.seconds.values())


def test_a_recommendation_takes_its_minutes(folder: str, tmp_path: Path):
    planned = calibrant.plan(
        calibrant.recommend, folder, goal="gsm8k", minutes=3.0, folder=tmp_path / "advice"
    )
    assert sum(planned.seconds.values()) == 180
    assert planned.disk["statistics"] > 0
    assert not (tmp_path / "advice").exists()


def test_what_cannot_be_planned_is_refused(folder: str, tmp_path: Path):
    with refused(SpecError, "mix"):
        calibrant.plan(calibrant.mix, folder, sources=["c4", "pile"])
    with refused(TargetError, "w4g64"):
        calibrant.plan(calibrant.prune, folder, data=WORDS, target="w4g64")
    with refused(SpecError, "wanda"):
        calibrant.plan(calibrant.prune, folder)
    with refused(ModelError, tmp_path / "nothing"):
        calibrant.plan(calibrant.prune, str(tmp_path / "nothing"), data=WORDS)


def test_pinned_parameters_are_rounded_up_to_a_power_of_two(folder: str):
    outline = outline_of(folder, "bfloat16", "cpu")
    assert outline is not None
    assert planning.added_by_pinning(outline) == 0
    dense = (MatrixShape(3, 100, "mlp.up"), MatrixShape(4, 128, "mlp.down"))
    experts = tuple(MatrixShape(3, 100, f"mlp.experts[{expert}]", 0.5) for expert in range(2))
    shape = replace(outline.shape, blocks=(BlockShape(1412, (*dense, *experts)),))
    on_gpu = replace(outline, shape=shape, device=torch.device("cuda"))
    assert planning.added_by_pinning(on_gpu) == (1024 - 600) + 0 + (2048 - 1200)


def test_what_is_held_beside_a_device_is_planned(tmp_path: Path):
    large = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}
    path = str(tiny_folder(tmp_path / "model", "llama", **large))
    asked: dict[str, Any] = {"data": WORDS, "tokens": 512, "length": 64, "out": tmp_path / "out"}
    with pretended_device() as device:
        asked |= {"device": device.name, "dtype": "float32"}
        # What planning itself keeps in memory is there from the second plan on.
        calibrant.plan(calibrant.prune, path, **asked)
        whole = calibrant.plan(calibrant.prune, path, **asked)
        promised = (whole.host - 60_000_000) / 1e9
        parted = calibrant.plan(calibrant.prune, path, memory=promised, **asked)
        small = calibrant.plan(calibrant.prune, path, device_memory=0.001, **asked)
        tasks = ["loss(tokens=4096, length=64)"]
        measured = calibrant.plan(calibrant.evaluate, path, tasks=tasks, device=device.name)
    assert whole.fits
    assert parted.fits
    assert any("on disk" in note for note in parted.notes)
    assert parted.host < promised * 1e9 < whole.host
    assert parted.memory < whole.memory
    assert "--device-memory" in small.problems[0]
    assert measured.host > 2 * measured.numbers


ONE_RUN = """
import json, sys, time
import calibrant
verb, model, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
planned = calibrant.plan(getattr(calibrant, verb), model, **options)
began = time.process_time()
done = getattr(calibrant, verb)(model, **options)
taken = time.process_time() - began
peak = done.record.provenance["peak_memory_bytes"]
print(json.dumps([planned.memory, peak, sum(planned.seconds.values()), taken]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("verb", "model", "options"),
    [
        ("prune", "smollm2", {"method": "wanda"}),
        ("prune", "smollm2", {"method": "sparsegpt"}),
        ("quantize", "smollm2", {"method": "rtn"}),
        ("prune", "gemma3-270m", {"method": "wanda"}),
        ("quantize", "gemma3-270m", {"method": "gptq", "target": "w4g64"}),
        ("quantize", "smollm2", {"method": "llama_cpp", "target": "gguf 90MB"}),
    ],
)
def test_memory_and_time_of_real_models(verb: str, model: str, options: dict[str, Any]):
    options = {**options, "data": WORDS, "tokens": 4096, "length": 512}
    # One thread, whose processor time is what it would take alone. What else runs may slow it, so
    # it has three tries.
    ratios: list[float] = []
    for _ in range(3):
        finished = subprocess.run(
            [sys.executable, "-c", ONE_RUN, verb, model, json.dumps(options)],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert finished.returncode == 0, finished.stderr
        memory, peak, planned, taken = json.loads(finished.stdout.splitlines()[-1])
        assert memory == pytest.approx(peak, rel=0.25)
        ratios.append(planned / taken)
        if 0.5 < ratios[-1] < 2:
            return
    pytest.fail(f"planned by taken: {ratios}")
