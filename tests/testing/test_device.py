"""What runs on a GPU runs on a pretended one: the same masks as on the processor, and no operation
with tensors of both. What the device refuses, as a GPU does, and what it counts.
"""

import copy
import gc
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibrant.activations import Seen
from calibrant.compress import prune, quantize
from calibrant.compress.checkpoint import Checkpoint
from calibrant.compress.room import looks_at_grams
from calibrant.errors import CalibrantError
from calibrant.evaluators import evaluate
from calibrant.lab.study import Study
from calibrant.methods import MatrixMethod, methods
from calibrant.models import load, resolve_device
from calibrant.targets import keep_highest, parse_target
from calibrant.testing import PretendedDevice, pretended_device, tiny_folder, tiny_gguf, tiny_model

from tests.killed import killed_after
from tests.models.refused import refusal_of
from tests.usual import two_hundred_lines, usually

# Gradients find only devices that were there at the first backward pass of the process.
with suppress(CalibrantError), pretended_device():
    pass

SMALL: Final[dict[str, Any]] = {"samples": 8, "length": 24, "dtype": "float32"}
EXACT: Final[dict[str, Any]] = {**SMALL, "dtype": "float64"}
"""What is compiled for the processor adds in another order than torch on a device. Here that
decides no near tie.
"""
FAMILIES: Final[dict[str, dict[str, int]]] = {
    "llama": {},
    "gpt2": {},
    "gemma3": {},
    "opt": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4},
}
"""Each with what is smaller than usual: every expert is three more matrices."""
OF_EXPERTS: Final = ("cd_moe", "mc_suite")


@pytest.fixture
def device() -> Iterator[PretendedDevice]:
    try:
        with pretended_device() as pretended:
            yield pretended
    except CalibrantError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


def there(device: PretendedDevice, *size: int) -> Tensor:
    return torch.arange(1.0, torch.Size(size).numel() + 1).reshape(size).to(device.name)


MIXTURES: Final[dict[str, Callable[[Tensor], Any]]] = {
    "a sum": lambda x: x + torch.ones(4),
    "a sum the other way round": lambda x: torch.ones(4) + x,
    "a product": lambda x: functional.linear(x, torch.ones(2, 4)),
    "ids on the processor": lambda x: functional.embedding(torch.tensor([1]), x),
    "a mask on the processor": lambda x: x.masked_fill(torch.ones(3, 4).bool(), 0),
    "rows in a list": lambda x: torch.cat([x, torch.ones(3, 4)]),
    "an index of the device's into the processor's": lambda x: torch.ones(4)[x.long()],
    "a value that is put": lambda x: x.index_put_((torch.tensor([0]),), torch.ones(1, 4)),
    "a total on the processor": lambda x: torch.zeros(()).add_(x.sum()),
    "a result on the processor": lambda x: torch.mm(x, x.T, out=torch.empty(3, 3)),
    "a generator of the processor's": lambda x: x.normal_(generator=torch.Generator()),
}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_tensors_of_several_devices_are_refused(device: PretendedDevice, mixture: str) -> None:
    with pytest.raises(RuntimeError):
        MIXTURES[mixture](there(device, 3, 4))


def test_a_number_and_an_index_may_be_on_the_processor(device: PretendedDevice) -> None:
    numbers = there(device, 3, 4)
    assert ((numbers + torch.tensor(1.0)).cpu() == there(device, 3, 4).cpu() + 1).all()
    assert numbers[torch.tensor([2, 0])].tolist() == [[9, 10, 11, 12], [1, 2, 3, 4]]
    numbers[torch.tensor([True, False, False])] = 0
    assert numbers.sum().item() == 78 - 10


def test_its_numbers_go_to_numpy_by_way_of_the_processor(device: PretendedDevice) -> None:
    numbers = there(device, 3, 4)
    with pytest.raises(TypeError):
        numbers.numpy()
    assert numbers.cpu().numpy().sum() == 78
    assert numbers.cpu().device.type == "cpu"
    assert torch.eye(2, device=device.name).tolist() == [[1, 0], [0, 1]]


def test_bytes_are_counted_once_as_long_as_a_view_holds_them(device: PretendedDevice) -> None:
    numbers = there(device, 3, 4)
    row = numbers[1]
    assert (device.alive, device.peak) == (48, 48)
    del numbers
    assert device.alive == 48
    row = row.double()
    assert (device.alive, device.peak) == (32, 80)
    del row
    assert device.alive == 0


def test_what_crosses_the_limit_raises_and_leaves_the_rest() -> None:
    with pretended_device(limit=100) as device:
        numbers = there(device, 20)
        with pytest.raises(torch.OutOfMemoryError):
            numbers.double()
        assert (device.alive, device.peak) == (80, 80)
        assert numbers.sum().item() == 210


def test_it_is_there_as_long_as_its_context(device: PretendedDevice) -> None:
    assert str(resolve_device(device.name)) == device.name
    assert refusal_of(resolve_device, "pretended:1").subject == "pretended:1"
    with pytest.raises(CalibrantError), pretended_device():
        pass


def test_a_model_that_moves_keeps_what_is_tied_and_computes_the_same(
    device: PretendedDevice,
) -> None:
    here = tiny_model("llama", tie_word_embeddings=True)
    moved: Any = copy.deepcopy(here).to(device.name)
    embedding = moved.get_input_embeddings().weight
    assert embedding is moved.get_output_embeddings().weight
    assert isinstance(embedding, nn.Parameter)
    ids = torch.arange(3, 35).reshape(2, 16)
    torch.testing.assert_close(moved(ids.to(device.name)).logits.cpu(), here(ids).logits)
    moved(ids.to(device.name)).logits.square().mean().backward()
    assert embedding.grad.device.type == "pretended"
    moved.to("cpu")
    assert type(moved.get_input_embeddings().weight) is nn.Parameter
    del moved, embedding
    gc.collect()
    assert device.alive == 0


def same_on_both(
    device: PretendedDevice,
    verb: Callable[..., Any],
    folder: Path,
    out: Path,
    **job: Any,
) -> None:
    """The same job on the processor and on the device makes the same model and saves it."""
    here = verb(str(folder), device="cpu", out=out / "here", **job)
    moved = verb(str(folder), device=device.name, out=out / "moved", **job)
    assert moved.record.run.id == here.record.run.id
    assert moved.model.device.type == "pretended"
    tensors = load(out / "here", device="cpu").state_dict()
    found = load(out / "moved", device="cpu").state_dict()
    check_masks(found, tensors)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-4, atol=1e-5, msg=name)


def check_masks(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Two models have their zeros in the same places."""
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        other = int(((tensor == 0) != (expected[name] == 0)).sum())
        assert not other, f"{other} of {tensor.numel()} in {name}"


def test_a_model_is_pruned_as_on_the_processor(
    device: PretendedDevice, texts: str, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "model")
    job = {"data": texts, "method": "wanda", "target": "2:4"}
    same_on_both(device, prune, folder, tmp_path, **job, **SMALL)
    assert device.peak > 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}
    for family, sizes in FAMILIES.items():
        made[family] = tiny_folder(tmp_path_factory.mktemp(family) / "model", family, **sizes)
    return made


SMALLER: Final = {
    "basis_sharing": "basis_sharing(group=3)",
    "cd_moe": "cd_moe(experts=2)",
    "fips": "fips(group=3)",
}
"""What has to be smaller in models of three blocks, whose mixtures have four experts."""
OF_FILES: Final = "llama_cpp"
"""A method that starts from a GGUF file, and has a test of its own."""
OF_FAMILIES: Final = ("awq", "greedy", "short_gpt", "wanda")
"""Methods that read what families differ in: norms, heads and streams, choices among blocks, what a
block is given, and its matrices.
"""


def pairs() -> Iterator[tuple[str, str]]:
    """Yield every method with a family that it can do, and some with all families."""
    for name in methods.names():
        if name in OF_EXPERTS:
            yield name, "qwen3_moe"
        elif name != OF_FILES:
            yield name, "llama"
    for family in FAMILIES:
        if family != "llama":
            for name in OF_FAMILIES:
                yield name, family


def target_for(name: str) -> str:
    method: Any = methods.build(name)
    for text in ("0.5", "w4g16", "q4_0"):
        if isinstance(parse_target(text), method.accepts):
            return text
    raise AssertionError(f"none of the targets is for {name}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "family"), list(pairs()))
def test_every_method_compresses_as_on_the_processor(
    device: PretendedDevice,
    folders: dict[str, Path],
    texts: str,
    tmp_path: Path,
    name: str,
    family: str,
) -> None:
    target = target_for(name)
    verb = prune if target == "0.5" else quantize
    method = SMALLER.get(name, name)
    job = {"data": texts, "method": method, "target": target}
    same_on_both(device, verb, folders[family], tmp_path, **job, **EXACT)


SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "reference": {"method": "sparsegpt", "target": "2:4", "propagate": "reference"},
    "dense": {"method": "wanda", "target": "0.5", "propagate": "dense"},
    "mix": {"method": "wanda", "target": "0.5", "propagate": "dense"},
    "zero points": {"method": "rtn", "target": "w4g16a"},
    # Longer than any text.
    "padded": {"method": "rsq", "target": "w4g16", "length": 96},
    "permute": {"method": "wanda", "target": "2:4", "transform": "permute"},
    "rotate": {"method": "sparsegpt", "target": "0.5", "transform": "rotate"},
    "owl": {"method": "wanda", "target": "0.5", "allocation": "owl"},
    "least_error": {"method": "wanda", "target": "0.5", "allocation": "least_error"},
    "evolved": {"method": "wanda", "target": "0.5", "allocation": "evolved"},
    "sparse": {"method": "wanda", "target": "0.5", "export": "sparse"},
    "FP8": {"method": "gptq", "target": "FP8(range=mse)", "dtype": "float64"},
    "NVFP4": {"method": "awq", "target": "NVFP4", "dtype": "float64"},
    "smoothed": {"method": "rtn", "target": "W8A8", "transform": "smooth"},
}


def rounds(target: str) -> bool:
    return target.startswith(("w4", "W8", "FP8", "NVFP4"))


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_whatever_goes_with_a_method_runs_on_it(
    device: PretendedDevice, folders: dict[str, Path], texts: str, tmp_path: Path, setting: str
) -> None:
    job = {**SMALL, **SETTINGS[setting], "data": texts}
    if setting == "padded":
        job["data"] = f"{texts!r}:text@one"
    if setting == "mix":
        job["data"] = f"mix(one={texts!r}, other=random_tokens, weight=0.5)"
    verb = quantize if rounds(job["target"]) else prune
    same_on_both(device, verb, folders["llama"], tmp_path, **job)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    ["mc_suite(steps=4, rate=0.001)", "cd_moe(experts=2, steps=2, rate=0.001)"],
)
def test_what_follows_gradients_runs_on_it(
    device: PretendedDevice, folders: dict[str, Path], texts: str, tmp_path: Path, method: str
) -> None:
    folder = folders["qwen3_moe"]
    job = {"data": texts, "method": method, "target": "0.5"}
    same_on_both(device, prune, folder, tmp_path, **job, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "target"), [("gptq", "w4g16"), ("sparsegpt", "2:4+w4g16")])
def test_a_rounded_model_is_written_from_it(
    device: PretendedDevice,
    folders: dict[str, Path],
    texts: str,
    tmp_path: Path,
    method: str,
    target: str,
) -> None:
    job = {"data": texts, "method": method, "target": target, "export": "compressed_tensors"}
    same_on_both(device, quantize, folders["llama"], tmp_path, **job, **SMALL)


@pytest.mark.slow
def test_a_file_of_llama_cpp_is_quantized_from_it(
    device: PretendedDevice, texts: str, tmp_path: Path
) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    template = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    job = {"data": texts, "method": "llama_cpp", "target": "Q4_K_M"}
    same_on_both(device, quantize, template, tmp_path, **job, **SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "fips(group=3)", "greedy"])
def test_a_job_that_was_killed_goes_on_there_and_on_the_processor(
    device: PretendedDevice, folders: dict[str, Path], texts: str, tmp_path: Path, method: str
) -> None:
    job: dict[str, Any] = {"data": texts, "method": method, "target": "0.5", **SMALL}
    folder = str(folders["llama"])
    whole = tmp_path / "whole"
    prune(folder, out=whole, device=device.name, **job)
    for place in (device.name, "cpu"):
        out = tmp_path / place.partition(":")[0]
        with pytest.raises(KeyboardInterrupt), killed_at_first_checkpoint():
            prune(folder, out=out, device=device.name, **job)
        prune(folder, out=out, device=place, **job)
        check_masks(load(out, "cpu").state_dict(), load(whole, "cpu").state_dict())
        if place == device.name:
            weights = (out / "model.safetensors").read_bytes()
            assert weights == (whole / "model.safetensors").read_bytes()


@contextmanager
def killed_at_first_checkpoint() -> Iterator[None]:
    """The process ends behind what a checkpoint or a search has just kept."""
    add = Checkpoint.add

    def deadly(checkpoint: Checkpoint, *kept: Any) -> None:
        add(checkpoint, *kept)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, killed_after(1):
        patch.setattr(Checkpoint, "add", deadly)
        yield


@pytest.mark.slow
def test_every_measure_gives_the_scores_of_the_processor(
    device: PretendedDevice, folders: dict[str, Path], texts: str, tmp_path: Path
) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = [json.dumps({"question": f"{i} and 7?", "answer": str(i + 7)}) for i in range(60)]
    questions.write_text("\n".join(rows))
    tasks = [
        f"loss(source={texts!r}, tokens=400, length=64)",
        f"perplexity(source={texts!r}, tokens=400, length=64)",
        f"agreement(source={texts!r}, tokens=200, length=32)",
        f"task(name='{questions}', limit=4)",
        f"generation(name='{questions}', shots=1, limit=2, max_tokens=3)",
        f"influence(name='{questions}', limit=1)",
        f"words(source={texts!r}, length=64, least=4)",
    ]
    pruned = tmp_path / "pruned"
    folder = str(folders["llama"])
    prune(folder, data=texts, method="wanda", target="0.5", out=pruned, **SMALL)
    for task in tasks:
        here = evaluate(str(pruned), tasks=task, dtype="float32", device="cpu")
        moved = evaluate(str(pruned), tasks=task, dtype="float32", device=device.name)
        expected = pytest.approx(here[0].score.value, rel=1e-4, abs=1e-6)
        assert moved[0].score.value == expected, task


@pytest.mark.slow
def test_a_study_and_a_selector_run_on_it(
    device: PretendedDevice, folders: dict[str, Path], texts: str, tmp_path: Path
) -> None:
    study = Study(
        models=str(folders["llama"]),
        data=[texts, "random_tokens", f"cluster(source={texts!r})"],
        methods=["wanda", "sparsegpt", "short_gpt"],
        targets=["0.5"],
        evaluate=[f"loss(source={texts!r}, tokens=200, length=64)"],
        device=device.name,
        **SMALL,
    )
    result = study.run(tmp_path / "store")
    assert not result.failures
    assert result.computed > 0


MATRIX_METHODS: Final = (
    *(name for name in methods.names() if isinstance(methods.build(name), MatrixMethod)),
    "rtn(scales=mse)",
)


@pytest.mark.parametrize("name", usually(MATRIX_METHODS, {"dsnot", "refined", "wanda"}))
def test_a_method_takes_no_more_of_it_than_is_planned(device: PretendedDevice, name: str) -> None:
    method: Any = methods.build(name)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1024, 192, generator=generator).to(device.name)
    inputs = torch.randn(256, 192, generator=generator).to(device.name)
    seen = Seen({kind: kind.of(inputs, None) for kind in method.observes})
    gc.collect()
    before = device.alive
    device.peak = before
    method.compress(weight, seen, parse_target(target_for(name)))
    planned = method.copies_on(torch.device(device.name)) * weight.nbytes
    if looks_at_grams(method):
        planned += method.squares(1) * 192**2 * 4
    assert device.peak - before <= planned


@pytest.fixture
def lacking() -> Iterator[PretendedDevice]:
    try:
        with pretended_device(lacking=True) as pretended:
            yield pretended
    except CalibrantError as error:
        pytest.skip(str(error))


def test_it_may_lack_what_gpus_of_apple_lack(lacking: PretendedDevice) -> None:
    numbers = there(lacking, 3, 3)
    with pytest.raises(TypeError, match="float64"):
        numbers.double()
    for lacked in (torch.frexp, torch.linalg.eigh, torch.linalg.svd):
        with pytest.raises(NotImplementedError):
            lacked(numbers)


GRIDS: Final = (("rtn", "MXFP4"), ("rtn", "FP8"), ("gptq", "FP8"))


@pytest.mark.parametrize(
    ("name", "target"), [*((name, target_for(name)) for name in MATRIX_METHODS), *GRIDS]
)
def test_a_method_needs_nothing_that_gpus_of_apple_lack(
    lacking: PretendedDevice, name: str, target: str
) -> None:
    method: Any = methods.build(name)
    # Fewer tokens than inputs, so the Gram is singular.
    inputs = there(lacking, 40, 64) / 2560
    seen = Seen({kind: kind.of(inputs, inputs[:, 0]) for kind in method.observes})
    result = method.compress(there(lacking, 16, 64), seen, parse_target(target).weights)
    assert result.weight.device.type == "pretended"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, family in pairs() if family == "llama"])
def test_a_job_needs_nothing_that_gpus_of_apple_lack(
    lacking: PretendedDevice, folders: dict[str, Path], texts: str, name: str
) -> None:
    target = target_for(name)
    verb = prune if target == "0.5" else quantize
    method = SMALLER.get(name, name)
    job = {"data": texts, "method": method, "target": target, **SMALL}
    assert verb(str(folders["llama"]), device=lacking.name, **job).record.run.id


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_goes_with_a_method_needs_nothing_that_gpus_of_apple_lack(
    lacking: PretendedDevice, folders: dict[str, Path], texts: str, setting: str
) -> None:
    job = {"data": texts, **SETTINGS[setting], **SMALL}
    if setting == "mix":
        job["data"] = f"mix(one={texts!r}, other=random_tokens, weight=0.5)"
    verb = quantize if rounds(job["target"]) else prune
    assert verb(str(folders["llama"]), device=lacking.name, **job).record.run.id


def test_of_one_long_row_the_same_scores_stay_as_on_the_processor(device: PretendedDevice) -> None:
    scores = torch.randint(0, 9, (1, 500), generator=torch.Generator().manual_seed(0)).float()
    for remove in (1, 250, 500):
        keep = keep_highest(scores.to(device.name), remove)
        assert keep.tolist() == keep_highest(scores, remove).tolist()
