import pytest
import torch

from calibrant.models import devices, resolve_device, resolve_dtype
from calibrant.models.devices import device_name, dtype_name, wait_for

from tests.models.refused import refusal_of


@pytest.mark.parametrize(
    ("able", "gain", "wanted"),
    [
        ({"avx512_bf16": True}, 2.0, torch.bfloat16),
        ({"amx_bf16": True}, 1.3, torch.bfloat16),
        ({"bf16": True, "neon": True}, 2.0, torch.bfloat16),
        ({"avx512_f": True, "avx512_bf16": False, "avx2": True}, 2.0, torch.float32),
        ({}, 2.0, torch.float32),
        ({"avx512_bf16": True}, 1.1, torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_the_processor_multiplies_in_it_and_is_faster(
    monkeypatch, able, gain, wanted
):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(devices, "bfloat16_gain", lambda: gain)
    assert resolve_dtype("auto", "cpu") is wanted


@pytest.mark.parametrize(
    ("capability", "wanted"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)]
)
def test_auto_on_cuda_asks_for_its_capability_and_on_mps_is_float32(
    monkeypatch, capability, wanted
):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_dtype("auto", torch.device("cuda")) is wanted
    assert resolve_dtype("auto", torch.device("mps")) is torch.float32


def test_it_waits_for_the_device_that_was_named_and_not_for_another(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    for name in ("cuda:1", "mps", "cpu"):
        wait_for(torch.device(name))
    assert waited == [torch.device("cuda:1"), "mps"]


def test_an_unknown_dtype_is_refused_with_the_nearest_one():
    said = refusal_of(resolve_dtype, "bf16", "cpu")
    assert said.subject == "bf16"
    assert "perhaps you mean 'bfloat16'" in str(said)


def test_objects_of_torch_are_what_their_texts_are():
    assert resolve_dtype(torch.bfloat16) is torch.bfloat16
    assert resolve_device(torch.device("cpu")).type == "cpu"
    assert (dtype_name(torch.float16), device_name(torch.device("cuda", 1))) == (
        "float16",
        "cuda:1",
    )
    assert "dtype is torch.int8; give" in str(refusal_of(dtype_name, torch.int8))
    assert "dtype is 16; give" in str(refusal_of(dtype_name, 16))
    assert "device is 0; give" in str(refusal_of(device_name, 0))


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"), [(True, True, "cuda"), (False, True, "cpu"), (False, False, "cpu")]
)
def test_the_device_auto_is_cuda_or_the_processor(monkeypatch, cuda, mps, wanted):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device("auto").type == wanted


@pytest.mark.parametrize("given", ["cuda:3", "cpu:1", "cdua", "meta", "cuda:x", ""])
def test_a_device_that_this_machine_lacks_or_none_has_is_refused(monkeypatch, given):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert refusal_of(resolve_device, given).subject == given
    assert resolve_device("cuda:1").index == 1
