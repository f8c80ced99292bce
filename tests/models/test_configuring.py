"""A configuration chooses sizes that its files have, and no code; everything else about it is a sentence."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from calibrant.errors import ModelError
from calibrant.foreign import TRUST_REMOTE_CODE
from calibrant.models import open_model, open_tokenizer
from calibrant.models.configuring import trusted
from calibrant.testing import tiny_model

TRAP = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nraise SystemExit('ran')\n"
MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


def edit(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"model_type": ["llama"]}, r"model type \['llama'\], which transformers .* doesn't know"),
        ({"model_type": {"a": 1}}, "model type {'a': 1}, which"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0|can't be opened by transformers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, but must be at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1, but must be at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0, but must be at least 1"),
        ({"vocab_size": -5}, "vocab_size is -5, but must be at least 1"),
        ({"hidden_size": float("nan")}, r"config.json is no JSON \(NaN is no number\)"),
        ({"dtype": "float7"}, "can't be opened by transformers .*float7"),
        ({"dtype": "nn"}, "dtype is <module.*, which is no type of numbers|can't be opened by transformers"),
        ({"architectures": 5}, "architectures is 5, and no list of names"),
        ({"rope_parameters": 5}, "can't be opened by transformers"),
        ({"extra": nested(100)}, "config.json is nested more than 64 levels deep"),
        ({"num_hidden_layers": 2}, r"holds 'model.layers.2.\S+', which a model of this configuration has no place for"),
    ],
)
def test_nonsense_is_refused(folder: Path, entries: dict[str, object], said: str):
    edit(folder, **entries)
    with pytest.raises(ModelError, match=said) as caught:
        open_model(str(folder), "float32", "cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ['{"a":' * 100_000, '{"hidden_size": ' + "9" * 5000 + "}", "\xff\xfe", "", '"llama"'])
def test_what_is_no_configuration_is_refused(folder: Path, text: str):
    (folder / "config.json").write_text(text, encoding="latin-1")
    for opening in (open_model, open_tokenizer):
        with pytest.raises(ModelError, match=r"config.json (is no JSON|holds 'llama', and no object)"):
            opening(str(folder))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, but the files have room for 1,024"),
        ({"num_experts": 10**9}, "num_experts is 1000000000, but the files have room for"),
        ({"hidden_size": 10**9}, r"holds [\d,]+ numbers, but its configuration asks for [\d,]+, [\d,]+ of them in \S+; check it"),
        ({"intermediate_size": 10**9}, "asks for .* of them in model.layers"),
        ({"vocab_size": 10**12}, "asks for .* of them in (model.embed_tokens|lm_head).weight"),
        ({"vocab_size": 10**30}, "can't be opened by transformers"),
    ],
)
def test_more_than_the_files_hold_is_refused_before_it_is_made(folder: Path, entries: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch):
    def made(*_: object, **__: object) -> None:
        pytest.fail("the model was made")

    monkeypatch.setattr("calibrant.models.opening.AutoModelForCausalLM.from_pretrained", made)
    edit(folder, **entries)
    with pytest.raises(ModelError, match=said):
        open_model(str(folder), "float32", "cpu")


def test_a_tokenizer_does_not_ask_for_the_layers_either(folder: Path):
    edit(folder, num_hidden_layers=10**9)
    with pytest.raises(ModelError, match="num_hidden_layers is 1000000000"):
        open_tokenizer(str(folder))


def test_buffers_are_counted_too(tmp_path: Path):
    """GPT-J's table of positions is in no file: only the configuration says how long it is."""
    sizes = {"vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    GPTJForCausalLM(GPTJConfig(**sizes)).save_pretrained(tmp_path)
    edit(tmp_path, n_positions=10**12)
    with pytest.raises(ModelError, match=r"asks for .* of them in transformer.rotary_emb.embed_positions"):
        open_model(str(tmp_path), "float32", "cpu")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"_attn_implementation": "flash_attention_2"}, "_attn_implementation: 'flash_attention_2'"),
        ({"attn_implementation": "kernels-community/flash-attn"}, "attn_implementation: 'kernels-community/flash-attn'"),
        ({"_attn_implementation_internal": "someone/kernel"}, "someone/kernel"),
        ({"attn_implementation": {"": "sdpa", "text_config": "someone/kernel"}}, "someone/kernel"),
        ({"text_config": {"_attn_implementation": "someone/kernel"}}, "someone/kernel"),
        ({"attn_implementation": ["sdpa"], "experts_implementation": "deepgemm"}, "experts_implementation: 'deepgemm'"),
        ({"use_kernels": True}, "use_kernels: True"),
        ({"kernel_config": {"a": "someone/kernel"}}, "kernel_config"),
    ],
)
def test_code_that_a_configuration_chooses_is_refused(folder: Path, entries: dict[str, object], said: str):
    edit(folder, **entries)
    with pytest.raises(ModelError, match=rf"config.json chooses what the model is computed with .*{said}.*--trust-remote-code"):
        open_model(str(folder), "float32", "cpu")


@pytest.mark.parametrize("kind", [None, "eager", "sdpa"])
def test_what_torch_has_itself_may_be_chosen(folder: Path, kind: str | None):
    edit(folder, attn_implementation=kind)
    assert open_model(str(folder), "float32", "cpu").model.config._attn_implementation == (kind or "sdpa")


def test_code_beside_a_known_model_is_never_run(folder: Path):
    """Many published models carry an `auto_map` from before transformers had their class."""
    (folder / "evil.py").write_text(TRAP)
    edit(folder, auto_map=MAP)
    ids = torch.arange(3, 35).reshape(2, 16)
    opened = open_model(str(folder), "float32", "cpu")
    assert torch.equal(opened.model(ids).logits, tiny_model("llama")(ids).logits)
    assert not (folder / "ran").exists()


def test_a_model_of_code_names_the_flag(folder: Path):
    (folder / "evil.py").write_text(TRAP)
    edit(folder, model_type="foo", auto_map=MAP)
    with pytest.raises(ModelError, match=r"\(foo\) works only with code of its own, which is never run here unless you say --trust-remote-code"):
        open_model(str(folder), "float32", "cpu")
    assert not (folder / "ran").exists()


OWN = """
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "foo"

class Model(LlamaForCausalLM):
    config_class = Config
"""


def test_code_is_run_when_it_is_trusted_and_is_in_the_digest_then(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "evil.py").write_text(OWN)
    plain = open_model(str(folder), "float32", "cpu").digest
    edit(folder, model_type="foo", auto_map=MAP)
    monkeypatch.setenv(TRUST_REMOTE_CODE, "1")
    opened = open_model(str(folder), "float32", "cpu")
    assert type(opened.model).__name__ == "Model"
    assert type(opened.model).__module__.startswith("transformers_modules")
    assert opened.digest != plain
    (folder / "evil.py").write_text(OWN + "\n# changed\n")
    assert open_model(str(folder), "float32", "cpu", trust_remote_code=True).digest != opened.digest
    with pytest.raises(ModelError, match="--trust-remote-code"):
        open_model(str(folder), "float32", "cpu", trust_remote_code=False)


def test_trust_changes_no_digest_where_there_is_no_code(folder: Path):
    digest = open_model(str(folder), "float32", "cpu").digest
    assert open_model(str(folder), "float32", "cpu", trust_remote_code=True).digest == digest
    (folder / "unused.py").write_text(TRAP)
    assert open_model(str(folder), "float32", "cpu", trust_remote_code=False).digest == digest


def test_code_from_elsewhere_is_nobodys_to_trust(folder: Path):
    edit(folder, model_type="foo", auto_map={"AutoConfig": "someone/else--evil.Config"})
    with pytest.raises(ModelError, match=r"wants code from elsewhere run .*someone/else--evil.Config"):
        open_model(str(folder), "float32", "cpu", trust_remote_code=True)


@pytest.mark.parametrize(("value", "on"), [("1", True), ("true", True), ("0", False), ("", False), ("false", False)])
def test_the_variable_is_read_as_the_flag_is(monkeypatch: pytest.MonkeyPatch, value: str, on: bool):
    monkeypatch.setenv(TRUST_REMOTE_CODE, value)
    assert trusted(None) is on
    assert trusted(False) is False
    assert trusted(True) is True
