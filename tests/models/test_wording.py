"""The sentences that a user of models most likely meets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from calibrant.errors import InputError
from calibrant.models import (
    check_output,
    open_model,
    open_tokenizer,
    opened_of,
    resolve_device,
    resolve_dtype,
)
from calibrant.testing import tiny_model, tiny_tokenizer

from tests.models.refused import edit, refusal_of

Ask = Callable[[Path], object]


def opened(folder: Path) -> object:
    return open_model(str(folder), "float32", "cpu")


def without(name: str) -> Ask:
    def ask(folder: Path) -> object:
        (folder / name).unlink()
        return opened(folder)

    return ask


def renamed(name: str) -> Ask:
    def ask(folder: Path) -> object:
        (folder / "model.safetensors").rename(folder / name)
        return opened(folder)

    return ask


def edited(**entries: object) -> Ask:
    def ask(folder: Path) -> object:
        edit(folder, **entries)
        return opened(folder)

    return ask


def damaged_by_hand(folder: Path) -> object:
    (folder / "config.json").write_text("{x")
    return opened(folder)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (
            lambda _: open_model("smolm2"),
            "there is no file or folder 'smolm2', perhaps you mean 'smollm2' (the hub can't be "
            "reached; a folder, a",
        ),
        (lambda f: open_tokenizer(str(f.parent)), "has no tokenizer that can be opened"),
        (
            without("config.json"),
            "holds no config.json; a model's folder holds config.json, *.safetensors and its "
            "tokenizer",
        ),
        (
            renamed("pytorch_model.bin"),
            "holds its weights only as pickle (pytorch_model.bin), which can run code when "
            "opened; convert them to safetensors",
        ),
        (renamed("tiny.gguf"), "holds no safetensors but GGUF; name the file itself"),
        (
            damaged_by_hand,
            "config.json is no JSON (Expecting property name enclosed in double quotes",
        ),
        (edited(model_type="foo"), "is of model type 'foo', which transformers"),
        (
            edited(num_hidden_layers=4),
            "has no numbers for model.layers.3.input_layernorm.weight, which would be random; "
            "give a complete model",
        ),
        (
            edited(num_hidden_layers=10**9),
            "says that num_hidden_layers is 1000000000, but the files have room for 1,024 at most",
        ),
        (
            edited(quantization_config={"quant_method": "gptq"}),
            "is quantized already (gptq); give the model before its quantization",
        ),
        (
            edited(model_type="foo", auto_map={"AutoConfig": "x.Y"}),
            "works only with code of its own, which is never run here unless you say",
        ),
        (
            lambda f: check_output(f),
            "exists, isn't empty and isn't ours; name a folder that doesn't exist yet",
        ),
        (
            lambda _: resolve_dtype("bf16", "cpu"),
            "there is no dtype 'bf16', perhaps you mean 'bfloat16'; use auto, bfloat16, float32, "
            "float16, float64",
        ),
        (
            lambda _: resolve_dtype("BFloat16", "cpu"),
            "there is no dtype 'BFloat16', perhaps you mean 'bfloat16'; use auto",
        ),
        (
            lambda _: resolve_device("cdua"),
            "there is no device 'cdua', perhaps you mean 'cuda'; use auto, cpu, cuda, cuda:0 or "
            "mps",
        ),
    ],
)
def test_what_is_said(folder: Path, ask: Ask, sentence: str) -> None:
    assert sentence in str(refusal_of(ask, folder, kind=InputError))


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (
            lambda: opened_of(tiny_model("llama")),
            "LlamaForCausalLM was given without its tokenizer; give tokenizer= too",
        ),
        (
            lambda: opened_of(["one", "two"], tiny_tokenizer()),
            "an object of type list is no model; give a name, a folder, a .gguf file, or a model "
            "of transformers with its tokenizer",
        ),
        (
            lambda: opened_of(tiny_model("llama"), "smollm2"),
            "'smollm2' is of type str and no tokenizer; give that of LlamaForCausalLM",
        ),
        (
            lambda: opened_of(tiny_model("llama"), tiny_tokenizer(), dtype="bfloat16"),
            "the model is float32, and dtype is 'bfloat16'; leave dtype out, or give "
            "model.to(torch.bfloat16)",
        ),
    ],
)
def test_an_object(ask: Callable[[], object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        ask()
    assert sentence in str(caught.value)
