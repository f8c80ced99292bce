"""Opening folders and hub ids; what comes out is compared with what went in, and every refusal
is one sentence.
"""

import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibrant import export
from calibrant.models import open_as_saved, open_model, opening
from calibrant.testing.tiny import FAMILIES, tiny_folder, tiny_model, tiny_tokenizer

from tests.models.refused import edit, refusal_of
from tests.usual import usually

IDS = torch.arange(3, 35).reshape(2, 16)
WEIGHTS = "model.safetensors"
Tensors = dict[str, torch.Tensor]


def test_a_folder_gives_the_model_that_was_saved(sound: Path):
    opened = open_model(str(sound), "float32", "cpu")
    assert torch.equal(opened.model(IDS).logits, tiny_model("llama")(IDS).logits)
    assert not opened.model.training
    assert opened.tokenizer("hé").input_ids == tiny_tokenizer()("hé").input_ids
    assert (opened.name, opened.note, opened.dtype) == (str(sound), "", torch.float32)


@pytest.mark.parametrize("family", usually(FAMILIES))
@pytest.mark.parametrize(("stored", "asked"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_numbers_of_another_type_are_what_transformers_makes_of_them(
    tmp_path: Path, family: str, stored: str, asked: str
):
    path = tiny_folder(tmp_path / "model", family, dtype=getattr(torch, stored))
    opened, plain = (
        open_model(str(path), asked, "cpu").model,
        AutoModelForCausalLM.from_pretrained(path, dtype=asked),
    )
    ours, theirs = opened.state_dict(), plain.state_dict()
    assert {tensor.dtype for tensor in load_file(path / WEIGHTS).values()} == {
        getattr(torch, stored)
    }
    assert type(opened) is type(plain)
    assert {name: tensor.dtype for name, tensor in ours.items()} == {
        name: tensor.dtype for name, tensor in theirs.items()
    }
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert opened.config.to_dict() == plain.config.to_dict()


def test_the_digest_covers_weights_and_configuration(folder: Path):
    digest = open_model(str(folder), "float32", "cpu").digest
    total = hashlib.sha256()
    for name in ("config.json", WEIGHTS):
        total.update(
            f"{name} sha256:{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode()
        )
    assert digest == f"sha256:{total.hexdigest()}"
    (folder / "README.md").write_text("changes nothing")
    assert open_model(str(folder), "float32", "cpu").digest == digest
    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert open_model(str(folder), "float32", "cpu").digest != digest


def test_threads_that_open_models_leave_no_switch_set(sound: Path):
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: open_model(str(sound), "float32"), range(8)))
    made = tiny_model("llama", seed=1)
    assert all(0 < float(p.detach().std()) < 1 for p in made.parameters() if p.dim() == 2), (
        "new models get numbers"
    )
    first = dict(opened[0].model.named_parameters())
    assert all(
        torch.equal(p, first[name])
        for one in opened[1:]
        for name, p in one.model.named_parameters()
    )


def unlink(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def renamed(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def written(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def cut_short(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10])


def half_of_the_shards(folder: Path) -> None:
    renamed("model-00001-of-00002.safetensors")(folder)
    where = {
        "lm_head.weight": "model-00002-of-00002.safetensors",
        "model.norm.weight": "model-00001-of-00002.safetensors",
    }
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )


@pytest.mark.parametrize(
    ("damage", "subject", "value"),
    [
        (lambda f: [p.unlink() for p in f.iterdir()], "", "empty"),
        (renamed("pytorch_model.bin"), "", "pytorch_model.bin"),
        (unlink(WEIGHTS), "", "*.safetensors"),
        (cut_short, WEIGHTS, ""),
        (written("config.json", b"{x"), "config.json", "JSON"),
        (lambda f: edit(f, model_type="foo"), "", "'foo'"),
        (lambda f: edit(f, hidden_size=64), "lm_head.weight", "[259, 64]"),
        (half_of_the_shards, "model-00002-of-00002.safetensors", ""),
        (
            lambda f: edit(f, model_type="bert", architectures=["BertForMaskedLM"]),
            "",
            "BertForMaskedLM",
        ),
        (lambda f: edit(f, quantization_config={"quant_method": "gptq", "bits": 4}), "", "gptq"),
        (unlink("tokenizer.json", "tokenizer_config.json"), "", "tokenizer"),
    ],
)
def test_a_damaged_folder_is_refused(
    folder: Path, damage: Callable[[Path], object], subject: str, value: str
):
    damage(folder)
    said = refusal_of(open_model, str(folder), "float32", "cpu")
    assert said.subject in (subject, str(folder / subject))
    assert value in str(said)
    assert str(folder) in str(said)


def changed(folder: Path, change: Callable[[Tensors], object]) -> str:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return str(folder)


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("stranger", torch.float32, ""),
        ("model.layers.1.mlp.up_proj.weight", torch.int8, "I8"),
        ("model.norm.weight", torch.int64, "I64"),
        ("lm_head.weight", torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_a_tensor_that_does_not_belong_or_is_no_float_is_named(
    folder: Path, name: str, kind: torch.dtype, value: str
):
    def change(tensors: Tensors) -> None:
        tensors[name] = tensors.get(name, torch.zeros(3)).mul(100).to(kind)

    said = refusal_of(open_model, changed(folder, change), "float32", "cpu")
    assert said.subject == name
    assert value in str(said)


def test_a_tensor_that_is_missing_is_named(folder: Path):
    ref = changed(folder, lambda tensors: tensors.pop("lm_head.weight"))
    assert refusal_of(open_model, ref, "float32", "cpu").subject == "lm_head.weight"


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.float32])
def test_the_masks_and_angles_of_old_files_are_passed_over(
    folder: Path, tmp_path: Path, kind: torch.dtype
):
    gpt2 = tiny_folder(tmp_path / "gpt2", "gpt2")
    ref = changed(
        gpt2,
        lambda tensors: tensors.update(
            {"transformer.h.0.attn.bias": torch.ones(1, 1, 8, 8).tril().to(kind)}
        ),
    )
    assert open_model(ref, "float32", "cpu").model.config.model_type == "gpt2"
    ref = changed(
        folder,
        lambda tensors: tensors.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        ),
    )
    assert open_model(ref, "float32", "cpu").model.config.model_type == "llama"


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("nowhere.gguf", ""),
        ("", "empty"),
        ("smolm2", "perhaps you mean 'smollm2'"),
        ("HuggingFaceTB/SmolLM2-360M", "perhaps you mean 'smollm2'"),
    ],
)
def test_an_unknown_name_is_refused(
    given: str, value: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.chdir(tmp_path)
    said = refusal_of(open_model, given, "float32", "cpu")
    assert said.subject == given
    assert value in str(said)


@pytest.mark.parametrize(
    ("name", "value"), [("model.pt", "pickle"), ("model.safetensors", "config.json")]
)
def test_a_single_file_that_is_no_gguf_is_refused(tmp_path: Path, name: str, value: str):
    (tmp_path / name).write_bytes(b"something")
    said = refusal_of(open_model, str(tmp_path / name))
    assert said.subject == str(tmp_path / name)
    assert value in str(said)


def answer(kind, status: int):
    return kind("no", response=SimpleNamespace(headers={}, request=None, status_code=status))


@pytest.mark.parametrize(
    ("raised", "value"),
    [
        (answer(RepositoryNotFoundError, 404), "no public model"),
        (answer(GatedRepoError, 403), "terms"),
        (answer(HfHubHTTPError, 500), "(no)"),
        (HTTPError("the read timed out"), "the read timed out"),
        (ConnectionResetError(104, "reset by peer"), "reset by peer"),
    ],
)
def test_what_the_hub_refuses_is_refused(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, value: str
):
    def refuse(*_, **__):
        raise raised

    monkeypatch.setattr(opening, "snapshot_download", refuse)
    said = refusal_of(open_model, "some/model")
    assert said.subject == "some/model"
    assert value in str(said)


def test_a_hub_id_is_opened_from_its_snapshot_without_pickles_or_code(
    monkeypatch: pytest.MonkeyPatch, sound: Path
):
    asked = {}

    def snapshot(name, allow_patterns=(), ignore_patterns=(), local_files_only=False):
        asked.update(name=name, allowed=allow_patterns, here=local_files_only)
        return str(sound)

    monkeypatch.setattr(opening, "snapshot_download", snapshot)
    assert open_model("some/model", "float32", "cpu").name == "some/model"
    assert (asked["name"], asked["here"]) == ("some/model", False)
    assert not any(
        Path(name).match(pattern)
        for name in ("pytorch_model.bin", "modeling_x.py")
        for pattern in asked["allowed"]
    )
    assert opening.located("other/model") == sound
    assert (asked["name"], asked["here"]) == ("other/model", True), (
        "what must be here is not downloaded"
    )
    assert opening.located(str(sound)) == sound


def test_no_number_is_rounded_where_a_folder_is_exported_as_it_was_saved(tmp_path: Path):
    folder = tiny_folder(tmp_path / "model", dtype=torch.bfloat16)
    tensors = load_file(folder / WEIGHTS)
    assert open_as_saved(str(folder), "cpu").dtype == torch.bfloat16
    # What the model has no place for, as old folders have it, decides nothing.
    spare = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4)}
    save_file({**tensors, **spare}, folder / WEIGHTS, metadata={"format": "pt"})
    assert open_as_saved(str(folder), "cpu").dtype == torch.bfloat16
    # One tensor of another type than the configuration names.
    name = "model.norm.weight"
    tensors[name] = torch.rand(tensors[name].shape)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    export(folder, tmp_path / "out")
    written = load_file(tmp_path / "out" / WEIGHTS)
    assert torch.equal(written[name], tensors[name])
    for other, tensor in tensors.items():
        assert torch.equal(written[other], tensor.float()), other
