"""GGUF files that we write open again as what was measured, bit for bit where codes fit its
blocks; metadata and tokenizer are the template's.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from calibrant.compress import prune, quantize
from calibrant.errors import OutputError, SpecError
from calibrant.models import manifest_folder, open_model, view
from calibrant.models.gguf_writing import (
    SHARED_GATE,
    check_template,
    parts_of,
    plain,
    q4_0,
    q8_0,
    write_gguf,
)
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_gguf

from tests.models.mixtures_of_experts import tiny_mixture
from tests.models.refused import refusal_of
from tests.usual import usually

SMALL = {"samples": 3, "length": 16, "dtype": "float32"}
IDS = torch.arange(3, 35).reshape(2, 16)
NOT_COPIED = {"model.gguf", "compressed_tensors", "calibrant.json", "README.md"}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "F32")


@pytest.fixture(scope="module")
def made(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders that are made once and only read."""

    @cache
    def make(target: str) -> Path:
        out = tmp_path_factory.mktemp("made") / "out"
        quantize(str(template), target=target, out=out, dtype="bfloat16", export="gguf")
        return out

    return make


def assert_same_logits(out: Path) -> None:
    one, other = (
        open_model(str(place), "bfloat16", "cpu").model(IDS).logits
        for place in (out, out / "model.gguf")
    )
    assert torch.equal(one, other)


def weights(ref: Path, dtype: str) -> dict[str, torch.Tensor]:
    return {
        weight.name: weight.get().clone()
        for weight in view(open_model(str(ref), dtype, "cpu").model).weights
    }


def test_blocks_by_hand_and_by_the_packages_own_reader() -> None:
    codes = torch.randint(
        -8, 8, (3, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int8
    )
    scales = torch.tensor([[0.5, 0.25], [1.0, 2.0], [0.125, 3.0]])
    blocks = q4_0(codes, scales)
    assert blocks.shape == (3, 36)
    assert blocks[0, :2].tobytes() == np.float16(0.5).tobytes()
    assert [blocks[0, 2] & 15, blocks[0, 2] >> 4] == [int(codes[0, 0]) + 8, int(codes[0, 16]) + 8]
    dense = (codes.float().unflatten(1, (2, 32)) * scales[:, :, None]).flatten(1).numpy()
    np.testing.assert_array_equal(gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0), dense)
    np.testing.assert_array_equal(
        gguf.dequantize(q8_0(codes, scales), gguf.GGMLQuantizationType.Q8_0), dense
    )


KINDS = {
    "w4g32": "Q4_0",
    "w4": "Q4_0",
    "w3g32": "Q4_0",
    "w8g32": "Q8_0",
    "w6": "Q8_0",
    "w4g16": "BF16",
    "w4g32a": "BF16",
}
"""What no block holds is plain numbers."""


@pytest.mark.parametrize("target", usually(KINDS, {"w4g32", "w6", "w4g32a"}))
def test_codes_are_stored_as_they_are(made: Callable[[str], Path], target: str) -> None:
    out = made(target)
    types = {str(t.name): t.tensor_type.name for t in gguf.GGUFReader(out / "model.gguf").tensors}
    assert {types[name] for name in types if name.startswith("blk.") and "norm" not in name} == {
        KINDS[target]
    }
    assert types["token_embd.weight"] == "BF16"
    assert types["output_norm.weight"] == "F32"
    dense, back = weights(out, "bfloat16"), weights(out / "model.gguf", "bfloat16")
    assert all(torch.equal(dense[name], back[name]) for name in dense)
    assert_same_logits(out)


def test_a_pruned_model_too_and_half_precision_is_near(template: Path, tmp_path: Path) -> None:
    prune(
        str(template),
        data="python_docs",
        method="magnitude",
        target=0.5,
        out=tmp_path / "out",
        dtype="float32",
        export="gguf(plain=f16)",
    )
    one, other = (
        weights(tmp_path / "out", "float32"),
        weights(tmp_path / "out" / "model.gguf", "float32"),
    )
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-6)
        assert torch.equal(one[name] == 0, other[name] == 0)


def test_metadata_and_tokenizer_are_the_templates_and_the_manifest_stands_beside(
    template: Path, made: Callable[[str], Path]
) -> None:
    file = made("w4g32") / "model.gguf"
    before, after = gguf.GGUFReader(template), gguf.GGUFReader(file)
    for name, field in before.fields.items():
        if not name.startswith("GGUF.") and name != "general.file_type":
            assert after.fields[name].types == field.types, name
            assert after.fields[name].contents() == field.contents(), name
    assert after.fields["calibrant.target"].contents() == "w4g32"
    assert after.fields["calibrant.method"].contents().startswith("rtn")
    assert manifest_folder(file) == file.parent


def test_the_form_of_vllm_beside_it_has_no_copy_of_it(template: Path, tmp_path: Path) -> None:
    forms = ("gguf", "compressed_tensors")
    out = tmp_path / "out"
    quantize(str(template), target="w4g32", out=out, dtype="bfloat16", export=forms)
    assert (out / "model.gguf").is_file()
    beside = {path.name for path in (out / "compressed_tensors").iterdir()}
    assert beside == {path.name for path in out.iterdir()} - NOT_COPIED


def test_a_folder_needs_a_file_of_the_same_model(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_folder(tmp_path / "folder")
    small, qwen = (
        tiny_folder(tmp_path / "small", intermediate_size=32),
        tiny_folder(tmp_path / "qwen", "qwen2"),
    )
    olmo = tiny_folder(tmp_path / "olmo", "olmo2")
    like, how = f"gguf(like='{template}')", {"target": "w4g32", "dtype": "bfloat16"}
    quantize(str(folder), **how, out=tmp_path / "out", export=like)
    assert_same_logits(tmp_path / "out")
    for model, export, subject in (
        (folder, "gguf", str(folder)),
        (folder, "gguf(like='nowhere.gguf')", "nowhere.gguf"),
        (small, like, "blk.0.ffn_gate.weight"),
        (qwen, like, str(template)),
        (olmo, like, "olmo2"),
        (folder, "gguf(plain=q4)", "q4"),
    ):
        assert (
            refusal_of(
                quantize, str(model), kind=OutputError, **how, out=tmp_path / "other", export=export
            ).subject
            == subject
        )
    assert (
        refusal_of(
            quantize,
            str(folder),
            kind=SpecError,
            **how,
            out=tmp_path / "other",
            export="gguf(unlike=x)",
        ).subject
        == "unlike"
    )
    wide = {"target": "w4g32", "dtype": "float64", "out": tmp_path / "other", "export": "gguf"}
    assert refusal_of(quantize, str(template), kind=OutputError, **wide).subject == str(template)
    opened = open_model(str(template), "float32", "cpu").tokenizer
    other = type("Other", (), {"get_vocab": lambda self: {**opened.get_vocab(), "a": 0}})
    monkeypatch.setattr("calibrant.models.gguf_writing.gguf_tokenizer", lambda path: other())
    assert refusal_of(
        quantize, str(template), kind=OutputError, **how, out=tmp_path / "other", export="gguf"
    ).subject == str(template)
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("row", [False, True])
def test_the_gate_of_a_shared_expert_is_a_vector(tmp_path: Path, row: bool) -> None:
    model_view = view(tiny_mixture("qwen2_moe"))
    writer = gguf.GGUFWriter(tmp_path / "like.gguf", "qwen2moe")
    writer.add_custom_alignment(64)
    writer.add_string("quantize.imatrix.file", "of the file before")
    for part in parts_of(model_view):
        is_gate = part.name.endswith(SHARED_GATE)
        numbers = part.numbers()
        writer.add_tensor(part.name, numbers[None] if is_gate and row else numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_template(model_view, tmp_path / "like.gguf")
    written = tmp_path / "written.gguf"
    kind = gguf.GGMLQuantizationType.BF16
    write_gguf(model_view, tmp_path / "like.gguf", written, lambda part: plain(part, kind), {})
    reader = gguf.GGUFReader(written)
    gates = [tensor for tensor in reader.tensors if tensor.name.endswith(SHARED_GATE)]
    assert [tensor.data.shape for tensor in gates] == [(32,), (32,)]
    gate = model_view.model.get_parameter("model.layers.0.mlp.shared_expert_gate.weight")
    assert torch.equal(torch.tensor(gates[0].data), gate[0].detach())
    # What is said of the file that it is like doesn't hold for it.
    assert reader.get_field("general.alignment") is None
    assert reader.get_field("quantize.imatrix.file") is None


DROPPING = {
    "short_gpt": "0.4",
    "greedy": "blocks 0.4",
    "evop": "0.4",
    "evopress(apart=True)": "0.7",
    "mc_suite": 0.5,
    "cd_moe": 0.5,
}


@pytest.mark.parametrize(
    "method", usually(DROPPING, {"short_gpt", "evop", "evopress(apart=True)", "mc_suite"})
)
def test_what_drops_blocks_or_experts_is_refused_before_any_work(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def untouchable(*job: object, **options: object) -> None:
        pytest.fail("work was begun")

    monkeypatch.setattr("calibrant.compress.prune_quantize.compress", untouchable)
    model = (
        tiny_folder(tmp_path / "mixture", "qwen3_moe")
        if method in ("mc_suite", "cd_moe")
        else template
    )
    job: tuple[Any, ...] = (
        str(model),
        None,
        "python_docs",
        method,
        DROPPING[method],
        tmp_path / "out",
    )
    assert refusal_of(prune, *job, kind=OutputError, export="gguf", **SMALL).subject == method
    assert not (tmp_path / "out").exists()


def test_blocks_that_nobody_knew_would_go_are_refused_with_advice_that_helps(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method of another package may drop blocks without saying so; without the export the same
    job goes on from what it did.
    """
    dropping = "calibrant.methods.blocks.short_gpt.ShortGPT.drops_parts"
    monkeypatch.setattr(dropping, lambda self, blocks, target: False)
    job = (str(template), None, "python_docs", "short_gpt", "0.4", tmp_path / "out")
    assert (
        refusal_of(prune, *job, kind=OutputError, export="gguf", **SMALL).subject == "drop_blocks"
    )
    assert not (tmp_path / "out").exists()
    assert prune(*job, **SMALL).continued_from == 1
