"""A model as an object: what is taken as it is, what is refused with nothing changed, and its
digest.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    PreTrainedModel,
)

from calibrant.errors import ModelError
from calibrant.models import hashing, open_model, view
from calibrant.models.objects import evaluating, opened_of
from calibrant.models.opening import load
from calibrant.testing import tiny_folder, tiny_model, tiny_tokenizer


def loaded(folder: Path, **settings: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, **settings)


def numbers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_the_object_itself_is_opened(folder: Path) -> None:
    model = loaded(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    opened = opened_of(model, tokenizer)
    assert opened.model is model
    assert opened.tokenizer is tokenizer
    assert opened.name == str(folder)
    assert opened.dtype == torch.float32
    assert opened_of(opened) is opened


def test_a_copy_leaves_the_object(folder: Path) -> None:
    model = loaded(folder)
    before = numbers(model)
    opened = opened_of(model, tiny_tokenizer(), copy=True)
    with torch.no_grad():
        for parameter in opened.model.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in numbers(model).items())
    # The copy's digest is that of the copy.
    assert opened.digest != opened_of(model, tiny_tokenizer()).digest


def test_a_name_and_a_path_are_opened(folder: Path) -> None:
    by_name = opened_of(str(folder), dtype="float32")
    by_path = opened_of(folder, dtype="float32")
    assert by_name.digest == by_path.digest == open_model(str(folder), "float32").digest


def test_a_folder_that_is_called_like_a_named_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_folder("smollm2")
    for model in (load("./smollm2"), load(Path("smollm2")), opened_of(Path("smollm2")).model):
        assert model.config.hidden_size == 32


def test_an_open_model_that_was_changed_has_not_the_digest_of_its_file(folder: Path) -> None:
    opened = open_model(str(folder), "float32")
    before = opened.digest
    assert opened_of(opened).digest == before
    for weight in view(opened.model).weights[:2]:
        weight.set(torch.zeros_like(weight.get()))
        changed = opened_of(opened).digest
        assert changed.startswith(hashing.OF_TENSORS)
        assert changed != before
        before = changed


def test_a_model_without_a_name_is_called_by_its_class() -> None:
    assert opened_of(tiny_model("llama"), tiny_tokenizer()).name == "LlamaForCausalLM"


def test_a_file_that_transformers_dequantized_is_taken(gguf_file: Path) -> None:
    model = loaded(gguf_file.parent, gguf_file=gguf_file.name)
    assert opened_of(model, tiny_tokenizer()).digest.startswith(hashing.OF_TENSORS)


def test_a_saved_note_is_repeated(folder: Path, gguf_file: Path) -> None:
    opened = open_model(str(gguf_file))
    assert opened_of(opened.model, opened.tokenizer).note == opened.note
    assert opened_of(opened.model, opened.tokenizer).name == str(gguf_file)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_object_has_the_digest_of_its_file(tmp_path: Path, family: str, dtype: str) -> None:
    folder = tiny_folder(tmp_path / "model", family)
    model = loaded(folder, dtype=getattr(torch, dtype))
    expected = open_model(str(folder), dtype).digest
    assert opened_of(model, tiny_tokenizer()).digest == expected
    # Neither a mode nor a view is a change of its numbers.
    model.train()
    view(model)
    assert opened_of(model, tiny_tokenizer()).digest == expected


def zero_one_number(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.lm_head.weight[3, 3] = 0


def turn_a_sign(model: PreTrainedModel) -> None:
    """Of a zero: equal as a number, and not as bits."""
    with torch.no_grad():
        model.lm_head.weight[0, 0].neg_()


def widen_the_rope(model: PreTrainedModel) -> None:
    model.config.rope_parameters["rope_theta"] = 5e5


def round_buffers(model: PreTrainedModel) -> None:
    model.model.rotary_emb.to(torch.bfloat16)


def other_attention(model: PreTrainedModel) -> None:
    model.set_attn_implementation("eager")


@pytest.mark.parametrize(
    "change",
    [zero_one_number, turn_a_sign, widen_the_rope, round_buffers, other_attention],
)
def test_what_changes_the_result_changes_the_digest(
    folder: Path, change: Callable[[PreTrainedModel], None]
) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 0
    model.save_pretrained(folder)
    model = loaded(folder)
    before = opened_of(model, tiny_tokenizer()).digest
    assert before == open_model(str(folder)).digest
    change(model)
    after = opened_of(model, tiny_tokenizer()).digest
    assert after != before
    # The same change of another object gives the same digest.
    other = loaded(folder)
    change(other)
    assert opened_of(other, tiny_tokenizer()).digest == after


def test_the_layout_in_memory_changes_no_digest() -> None:
    model = tiny_model("llama")
    expected = opened_of(model, tiny_tokenizer()).digest
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.data = parameter.data.T.contiguous().T
    assert opened_of(model, tiny_tokenizer()).digest == expected


def test_the_digest_is_found_when_it_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[PreTrainedModel] = []
    whole = hashing.digest_of

    def counted(model: PreTrainedModel) -> str:
        calls.append(model)
        return whole(model)

    monkeypatch.setattr("calibrant.models.objects.digest_of", counted)
    opened = opened_of(loaded(folder), tiny_tokenizer())
    assert not calls
    assert opened.digest == opened.digest
    assert len(calls) == 1


def test_modes_and_experts_are_put_back() -> None:
    model = tiny_model("mixtral")
    model.set_experts_implementation("batched_mm")
    model.train()
    model.lm_head.eval()
    with evaluating(model):
        view(model)
        assert not any(module.training for module in model.modules())
    assert model.training
    assert not model.lm_head.training
    assert model.config._experts_implementation == "batched_mm"


def compiled() -> Any:
    return torch.compile(tiny_model("llama"), backend="eager")


def compiled_in_place() -> PreTrainedModel:
    model = tiny_model("llama")
    model.compile(backend="eager")
    return model


def on_meta() -> PreTrainedModel:
    return tiny_model("llama").to("meta")  # pyright: ignore[reportArgumentType]


def offloaded() -> Any:
    from accelerate import cpu_offload

    return cpu_offload(tiny_model("llama"))


def said_to_be_quantized() -> PreTrainedModel:
    model = tiny_model("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    return model


def of_integers() -> PreTrainedModel:
    model = tiny_model("llama")
    linear = model.model.layers[1].mlp.up_proj
    linear.weight = nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    return model


def of_peft() -> Any:
    class PeftModelForCausalLM(nn.Module):
        __module__ = "peft.peft_model"

    return PeftModelForCausalLM()


def with_adapter() -> PreTrainedModel:
    class Linear(nn.Module):
        __module__ = "peft.tuners.lora.layer"

    model = tiny_model("llama")
    model.model.layers[0].mlp.up_proj = Linear()
    return model


def masked() -> PreTrainedModel:
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertForMaskedLM(BertConfig(**sizes, intermediate_size=16, vocab_size=300))


def without_head() -> PreTrainedModel:
    return tiny_model("llama").model


def pipeline() -> Any:
    return SimpleNamespace(model=tiny_model("llama"))


def texts() -> list[str]:
    return ["one", "two"]


MODELS = [
    compiled,
    compiled_in_place,
    on_meta,
    offloaded,
    said_to_be_quantized,
    of_integers,
    of_peft,
    with_adapter,
    masked,
    without_head,
    pipeline,
    texts,
]


@pytest.mark.parametrize("make", MODELS)
def test_a_model_that_cannot_be_used_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(ModelError):
        opened_of(make(), tiny_tokenizer())


def other_ends() -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = "<pad>"
    return tokenizer


@pytest.mark.parametrize("tokenizer", [None, "smollm2", other_ends()])
def test_a_tokenizer_that_is_another_models_is_refused(tokenizer: Any) -> None:
    model = tiny_model("llama")
    before = numbers(model)
    model.train()
    with pytest.raises(ModelError):
        opened_of(model, tokenizer)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in numbers(model).items())


def test_ids_beyond_the_embedding_are_refused() -> None:
    with pytest.raises(ModelError):
        opened_of(tiny_model("llama", vocab_size=200), tiny_tokenizer())


def test_a_padded_vocabulary_and_one_other_end_are_sound() -> None:
    tokenizer = tiny_tokenizer()
    # A chat model ends its turns with another token than the base model its texts.
    tokenizer.eos_token = "<pad>"
    opened = opened_of(tiny_model("llama", vocab_size=320), tokenizer)
    assert opened.tokenizer is tokenizer


def test_a_tokenizer_beside_a_name_has_its_vocabulary(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages }}"
    assert opened_of(folder, tokenizer).tokenizer is tokenizer
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["calibration"])
    with pytest.raises(ModelError):
        opened_of(folder, other)


@pytest.mark.parametrize(("option", "value"), [("dtype", "bfloat16"), ("device", "mps")])
def test_an_object_has_its_type_and_device(option: str, value: str) -> None:
    opened = opened_of(tiny_model("llama"), tiny_tokenizer(), dtype="float32", device="cpu")
    asked: dict[str, Any] = {option: value}
    for given in (opened, opened.model):
        with pytest.raises(ModelError):
            opened_of(given, tiny_tokenizer(), **asked)
