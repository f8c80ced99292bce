"""What runs on a GPU runs on a pretended one: the same masks as on the processor, and no operation
with tensors of both. What the device refuses, as a GPU does, and what it counts.
"""

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibrant.compress import prune, quantize
from calibrant.errors import CalibrantError
from calibrant.methods import methods
from calibrant.models import resolve_device
from calibrant.targets import parse_target
from calibrant.testing import PretendedDevice, pretended_device, tiny_folder, tiny_model

from tests.models.refused import refusal_of
from tests.usual import two_hundred_lines

# Gradients find only devices that were there at the first backward pass of the process.
with suppress(CalibrantError), pretended_device():
    pass

SMALL: Final[dict[str, Any]] = {"samples": 8, "length": 24, "dtype": "float32"}
FAMILIES: Final[dict[str, dict[str, int]]] = {
    "llama": {},
    "gpt2": {},
    "gemma3": {},
    "opt": {},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4},
}
"""Each with what is smaller than usual: every expert is three more matrices."""
EXPERTS: Final = ("mixtral", "qwen3_moe")


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
    device: PretendedDevice, verb: Callable[..., Any], folder: Path, **job: Any
) -> None:
    """The same job on the processor and on the device makes the same model."""
    here = verb(str(folder), device="cpu", **job, **SMALL)
    moved = verb(str(folder), device=device.name, **job, **SMALL)
    assert moved.record.run.id == here.record.run.id
    tensors = here.model.state_dict()
    found = moved.model.state_dict()
    assert found.keys() == tensors.keys()
    for name, tensor in found.items():
        assert tensor.device.type == "pretended", name
        assert torch.equal(tensor.cpu() == 0, tensors[name] == 0), name
        torch.testing.assert_close(tensor.cpu(), tensors[name], msg=name)


def test_a_model_is_pruned_as_on_the_processor(
    device: PretendedDevice, texts: str, tmp_path: Path
) -> None:
    folder = tiny_folder(tmp_path / "model")
    same_on_both(device, prune, folder, data=texts, method="wanda", target="2:4")
    assert device.peak > 0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made: dict[str, Path] = {}
    for family, sizes in FAMILIES.items():
        made[family] = tiny_folder(tmp_path_factory.mktemp(family) / "model", family, **sizes)
    return made


def target_for(method: Any) -> str:
    for text in ("0.5", "w4g16", "q4_0"):
        if isinstance(parse_target(text), method.accepts):
            return text
    raise AssertionError(f"no target for {method}")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", methods.names())
def test_every_method_compresses_as_on_the_processor(
    device: PretendedDevice, folders: dict[str, Path], texts: str, family: str, name: str
) -> None:
    method: Any = methods.build(name)
    target = target_for(method)
    verb = prune if target == "0.5" else quantize
    same_on_both(device, verb, folders[family], data=texts, method=name, target=target)
