import pytest
import torch
from torch import nn

from calibrant.errors import ModelError
from calibrant.models import view
from calibrant.testing.tiny import tiny_model


class Packed(nn.Module):
    """Keeps integers in place of a weight, as GPTQ's linears do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))


class Wrapped(torch.Tensor):
    """A tensor that only looks like plain numbers, as torchao's do."""


def test_a_compiled_block_is_refused():
    model = tiny_model("llama")
    model.model.layers[1].compile(backend="eager")
    with pytest.raises(ModelError, match=r"model.layers.1 is compiled"):
        view(model)


def test_a_block_wrapped_by_compile_is_refused():
    model = tiny_model("llama")
    OptimizedModule = type("OptimizedModule", (nn.Module,), {})
    model.model.layers[2] = OptimizedModule()
    with pytest.raises(ModelError, match=r"model.layers.2 is compiled"):
        view(model)


def test_weights_on_the_meta_device_are_refused():
    with torch.device("meta"):
        model = type(tiny_model("llama"))(tiny_model("llama").config)
    with pytest.raises(ModelError, match=r"model.embed_tokens.weight is on the meta device"):
        view(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_that_are_not_plain_floats_are_refused(dtype):
    model = tiny_model("llama")
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(ModelError, match=rf"model.layers.0.mlp.up_proj.weight is quantized \({dtype}\)"):
        view(model)


def test_weights_packed_into_buffers_are_refused():
    model = tiny_model("llama")
    model.model.layers[0].mlp.down_proj = Packed()
    with pytest.raises(ModelError, match=r"model.layers.0.mlp.down_proj is quantized \(Packed\)"):
        view(model)


def test_a_quantized_module_of_torch_is_refused():
    model = tiny_model("llama")
    module = type("Linear", (nn.Module,), {"__module__": "torch.ao.nn.quantized.dynamic.modules.linear"})
    model.model.layers[0].mlp.down_proj = module()
    with pytest.raises(ModelError, match=r"model.layers.0.mlp.down_proj is quantized \(Linear\)"):
        view(model)


def test_a_tensor_of_a_class_of_its_own_is_refused():
    model = tiny_model("llama")
    linear = model.model.layers[0].mlp.up_proj
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Wrapped))
    with pytest.raises(ModelError, match=r"model.layers.0.mlp.up_proj.weight is a Wrapped"):
        view(model)
