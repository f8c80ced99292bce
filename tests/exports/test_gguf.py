"""GGUF files that we write open again as what was measured, bit for bit where codes fit its blocks; metadata and tokenizer are the template's."""

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.compress import prune, quantize
from calibrant.errors import OutputError, SpecError
from calibrant.models import manifest_folder, open_model, view
from calibrant.models.gguf_writing import q4_0, q8_0
from calibrant.testing import tiny_folder
from calibrant.testing.tiny import tiny_gguf

SMALL = {"samples": 3, "length": 16, "dtype": "float32"}
IDS = torch.arange(3, 35).reshape(2, 16)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "F32")


def untouchable(*job: object, **options: object) -> None:
    pytest.fail("work was begun")


def weights(ref: Path, dtype: str) -> dict[str, torch.Tensor]:
    return {weight.name: weight.get().clone() for weight in view(open_model(str(ref), dtype, "cpu").model).weights}


def test_blocks_by_hand_and_by_the_packages_own_reader() -> None:
    codes = torch.randint(-8, 8, (3, 64), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    scales = torch.tensor([[0.5, 0.25], [1.0, 2.0], [0.125, 3.0]])
    blocks = q4_0(codes, scales)
    assert blocks.shape == (3, 36)
    assert blocks[0, :2].tobytes() == np.float16(0.5).tobytes()
    assert [blocks[0, 2] & 15, blocks[0, 2] >> 4] == [int(codes[0, 0]) + 8, int(codes[0, 16]) + 8]
    dense = (codes.float().unflatten(1, (2, 32)) * scales[:, :, None]).flatten(1).numpy()
    np.testing.assert_array_equal(gguf.dequantize(blocks, gguf.GGMLQuantizationType.Q4_0), dense)
    np.testing.assert_array_equal(gguf.dequantize(q8_0(codes, scales), gguf.GGMLQuantizationType.Q8_0), dense)


@pytest.mark.parametrize(("target", "kind"), [("w4g32", "Q4_0"), ("w4", "Q4_0"), ("w3g32", "Q4_0"), ("w8g32", "Q8_0"), ("w6", "Q8_0")])
def test_codes_are_stored_as_they_are(template: Path, tmp_path: Path, target: str, kind: str) -> None:
    quantize(str(template), target=target, out=tmp_path / "out", dtype="bfloat16", export="gguf")
    types = {str(t.name): t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert {types[name] for name in types if name.startswith("blk.") and "norm" not in name} == {kind}
    assert types["token_embd.weight"] == "BF16"
    assert types["output_norm.weight"] == "F32"
    dense, back = weights(tmp_path / "out", "bfloat16"), weights(tmp_path / "out" / "model.gguf", "bfloat16")
    assert all(torch.equal(dense[name], back[name]) for name in dense)
    assert torch.equal(
        *(open_model(str(place), "bfloat16", "cpu").model(IDS).logits for place in (tmp_path / "out", tmp_path / "out" / "model.gguf"))
    )


@pytest.mark.parametrize("target", ["w4g16", "w4g32a"])
def test_what_no_block_holds_is_plain_numbers(template: Path, tmp_path: Path, target: str) -> None:
    quantize(str(template), target=target, out=tmp_path / "out", dtype="float32", export="gguf")
    assert {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors} == {"F32"}
    assert torch.equal(*(open_model(str(place), "float32", "cpu").model(IDS).logits for place in (tmp_path / "out", tmp_path / "out" / "model.gguf")))


def test_a_pruned_model_too_and_half_precision_is_near(template: Path, tmp_path: Path) -> None:
    prune(str(template), "python_docs", "magnitude", 0.5, tmp_path / "out", dtype="float32", export="gguf(plain=f16)")
    one, other = weights(tmp_path / "out", "float32"), weights(tmp_path / "out" / "model.gguf", "float32")
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-3, atol=1e-6)
        assert torch.equal(one[name] == 0, other[name] == 0)


def test_metadata_and_tokenizer_are_the_templates_and_the_manifest_stands_beside(template: Path, tmp_path: Path) -> None:
    quantize(str(template), target="w4g32", out=tmp_path / "out", dtype="bfloat16", export="gguf")
    before, after = gguf.GGUFReader(template), gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    for name, field in before.fields.items():
        if not name.startswith("GGUF.") and name != "general.file_type":
            assert after.fields[name].types == field.types, name
            assert after.fields[name].contents() == field.contents(), name
    assert after.fields["calibrant.target"].contents() == "w4g32"
    assert after.fields["calibrant.method"].contents().startswith("rtn")
    assert manifest_folder(tmp_path / "out" / "model.gguf") == tmp_path / "out"


def test_a_folder_needs_a_file_of_the_same_model(template: Path, tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "folder")
    how = {"target": "w4g32", "out": tmp_path / "out", "dtype": "bfloat16"}
    quantize(str(folder), **how, export=f"gguf(like='{template}')")
    assert torch.equal(
        *(open_model(str(place), "bfloat16", "cpu").model(IDS).logits for place in (tmp_path / "out", tmp_path / "out" / "model.gguf"))
    )
    other = {**how, "out": tmp_path / "other"}
    with pytest.raises(OutputError, match=r"folder wasn't opened from GGUF, .*; name a GGUF file of the same model, gguf\(like='FILE.gguf'\)"):
        quantize(str(folder), **other, export="gguf")
    with pytest.raises(OutputError, match=r"'nowhere.gguf' is no GGUF file"):
        quantize(str(folder), **other, export="gguf(like='nowhere.gguf')")
    small = tiny_folder(tmp_path / "small", intermediate_size=32)
    with pytest.raises(OutputError, match=r"ffn_gate.weight is \[32, 32\] in the model and \[64, 32\] in .*tiny.gguf; name a file of the same model"):
        quantize(str(small), **other, export=f"gguf(like='{template}')")
    with pytest.raises(OutputError, match=r"is of the architecture llama, and the model is qwen2"):
        quantize(str(tiny_folder(tmp_path / "qwen", "qwen2")), **other, export=f"gguf(like='{template}')")
    with pytest.raises(OutputError, match=r"olmo2 isn't written as GGUF here \(gemma2, .*; use llama.cpp's own converter"):
        quantize(str(tiny_folder(tmp_path / "olmo", "olmo2")), **other, export=f"gguf(like='{template}')")
    with pytest.raises(OutputError, match=r"plain='q4' is no type of numbers for GGUF; choose one of own, f32, f16, bf16"):
        quantize(str(folder), **other, export="gguf(plain=q4)")
    assert not (tmp_path / "other").exists()


def test_another_vocabulary_is_refused(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_model(str(template), "float32", "cpu").tokenizer
    monkeypatch.setattr(
        "calibrant.models.gguf_writing.gguf_tokenizer", lambda path: type("Other", (), {"get_vocab": lambda self: {**opened.get_vocab(), "a": 0}})()
    )
    with pytest.raises(OutputError, match=r"has another vocabulary than"):
        quantize(str(template), target="w4g32", out=tmp_path / "out", dtype="bfloat16", export="gguf")


def test_an_unknown_argument_is_named(template: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="unlike"):
        quantize(str(template), target="w4g32", out=tmp_path / "out", export="gguf(unlike=x)")


@pytest.mark.parametrize(
    ("method", "target"),
    [("short_gpt", "0.4"), ("greedy", "blocks 0.4"), ("evop", "0.4"), ("evopress(apart=True)", "0.7")],
)
def test_what_drops_blocks_is_refused_before_any_work(
    template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, target: str
) -> None:
    monkeypatch.setattr("calibrant.compress.prune_quantize.compress", untouchable)
    with pytest.raises(OutputError, match="leave --export gguf out") as refused:
        prune(str(template), "python_docs", method, target, tmp_path / "out", export="gguf", **SMALL)
    assert refused.value.subject == method
    assert not list(tmp_path.iterdir())


def test_what_drops_experts_is_refused_before_any_work(tmp_path: Path) -> None:
    model = tiny_folder(tmp_path / "mixture", "qwen3_moe")
    for method in ("mc_suite", "cd_moe"):
        with pytest.raises(OutputError) as refused:
            prune(str(model), "python_docs", method, 0.5, tmp_path / "out", export="gguf", **SMALL)
        assert refused.value.subject == method
    assert list(tmp_path.iterdir()) == [model]


def test_the_refusal_on_the_command_line(template: Path, tmp_path: Path) -> None:
    words = ["prune", str(template), "--data", "python_docs", "--method", "short_gpt", "--target", "0.4"]
    budget = ["--samples", "3", "--length", "16", "--dtype", "float32", "--json"]
    found = CliRunner().invoke(app, [*words, *budget, "--out", str(tmp_path / "out"), "--export", "gguf"])
    assert found.exit_code == 2
    assert json.loads(found.stdout)["error"]["subject"] == "short_gpt"
    assert not list(tmp_path.iterdir())


def test_where_no_block_goes_the_file_is_written(template: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prune(str(template), "python_docs", "short_gpt", "blocks 0", out, export="gguf", **SMALL)
    before, after = weights(template, "float32"), weights(out / "model.gguf", "float32")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_blocks_that_nobody_knew_would_go_are_refused_with_advice_that_helps(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method of another package may drop blocks without saying so; without the export the same job goes on from what it did."""
    dropping = "calibrant.methods.short_gpt.ShortGPT.drops_parts"
    monkeypatch.setattr(dropping, lambda self, view, target: False)
    job = (str(template), "python_docs", "short_gpt", "0.4", tmp_path / "out")
    with pytest.raises(OutputError, match="leave --export gguf out"):
        prune(*job, export="gguf", **SMALL)
    assert not (tmp_path / "out").exists()
    assert prune(*job, **SMALL).continued_from == 1
