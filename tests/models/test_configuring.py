"""A configuration chooses sizes that its files have, and no code; everything else about it is a
sentence.
"""

from pathlib import Path

import pytest
import torch
from transformers import GPTJConfig, GPTJForCausalLM

from calibrant.models import open_model, open_tokenizer
from calibrant.models.configuring import trusted
from calibrant.spec.foreign import TRUST_REMOTE_CODE
from calibrant.testing import tiny_model

from tests.models.refused import edit, refusal_of

TRAP = (
    "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nraise SystemExit('ran')\n"
)
MAP = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("entries", "subject", "value"),
    [
        ({"model_type": ["llama"]}, "", "['llama']"),
        ({"num_hidden_layers": 0}, "num_hidden_layers", "0"),
        ({"vocab_size": -5}, "vocab_size", "-5"),
        ({"hidden_size": float("nan")}, "config.json", "NaN"),
        ({"extra": nested(100)}, "config.json", "64"),
        ({"num_hidden_layers": 2}, "model.layers.2.input_layernorm.weight", ""),
    ],
)
def test_nonsense_is_refused(folder: Path, entries: dict[str, object], subject: str, value: str):
    edit(folder, **entries)
    said = refusal_of(open_model, str(folder), "float32", "cpu")
    assert said.subject in (subject, str(folder / subject))
    assert value in str(said)


@pytest.mark.parametrize(
    "text", ['{"a":' * 100_000, '{"hidden_size": ' + "9" * 5000 + "}", "\xff\xfe", "", '"llama"']
)
def test_what_is_no_configuration_is_refused(folder: Path, text: str):
    (folder / "config.json").write_text(text, encoding="latin-1")
    for opening in (open_model, open_tokenizer):
        assert refusal_of(opening, str(folder)).subject == str(folder / "config.json")


@pytest.mark.parametrize(
    ("entries", "subject"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"hidden_size": 10**9}, "model.embed_tokens.weight"),
        ({"intermediate_size": 10**9}, "model.layers.0.mlp.gate_proj.weight"),
        ({"vocab_size": 10**30}, ""),
    ],
)
def test_more_than_the_files_hold_is_refused_before_it_is_made(
    folder: Path, entries: dict[str, object], subject: str, monkeypatch: pytest.MonkeyPatch
):
    def made(*_: object, **__: object) -> None:
        pytest.fail("the model was made")

    monkeypatch.setattr("calibrant.models.opening.AutoModelForCausalLM.from_pretrained", made)
    edit(folder, **entries)
    assert refusal_of(open_model, str(folder), "float32", "cpu").subject == (subject or str(folder))
    if subject == "num_hidden_layers":
        assert refusal_of(open_tokenizer, str(folder)).subject == subject


def test_buffers_are_counted_too(tmp_path: Path):
    """GPT-J's table of positions is in no file: only the configuration says how long it is."""
    sizes = {"vocab_size": 259, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}
    GPTJForCausalLM(GPTJConfig(**sizes)).save_pretrained(tmp_path)
    edit(tmp_path, n_positions=10**12)
    assert (
        refusal_of(open_model, str(tmp_path), "float32", "cpu").subject
        == "transformer.rotary_emb.embed_positions"
    )


@pytest.mark.parametrize(
    ("entries", "subject", "value"),
    [
        (
            {"_attn_implementation": "flash_attention_2"},
            "_attn_implementation",
            "flash_attention_2",
        ),
        (
            {"attn_implementation": "kernels-community/flash-attn"},
            "attn_implementation",
            "kernels-community/flash-attn",
        ),
        (
            {"attn_implementation": {"": "sdpa", "text_config": "someone/kernel"}},
            "attn_implementation",
            "someone/kernel",
        ),
        (
            {"text_config": {"_attn_implementation": "someone/kernel"}},
            "_attn_implementation",
            "someone/kernel",
        ),
        (
            {"attn_implementation": ["sdpa"], "experts_implementation": "deepgemm"},
            "experts_implementation",
            "deepgemm",
        ),
        ({"use_kernels": True}, "use_kernels", "True"),
    ],
)
def test_code_that_a_configuration_chooses_is_refused(
    folder: Path, entries: dict[str, object], subject: str, value: str
):
    edit(folder, **entries)
    said = refusal_of(open_model, str(folder), "float32", "cpu")
    assert said.subject == subject
    assert value in str(said)


def test_code_beside_a_known_model_is_never_run(folder: Path):
    """Many published models carry an `auto_map` from before transformers had their class."""
    (folder / "evil.py").write_text(TRAP)
    edit(folder, auto_map=MAP)
    ids = torch.arange(3, 35).reshape(2, 16)
    opened = open_model(str(folder), "float32", "cpu")
    assert torch.equal(opened.model(ids).logits, tiny_model("llama")(ids).logits)
    edit(folder, model_type="foo")
    assert "--trust-remote-code before the command" in str(
        refusal_of(open_model, str(folder), "float32", "cpu")
    )
    assert not (folder / "ran").exists()


OWN = """
from transformers import LlamaConfig, LlamaForCausalLM

class Config(LlamaConfig):
    model_type = "foo"

class Model(LlamaForCausalLM):
    config_class = Config
"""


def test_code_is_run_when_it_is_trusted_and_is_in_the_digest_then(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    plain = open_model(str(folder), "float32", "cpu").digest
    assert open_model(str(folder), "float32", "cpu", trust_remote_code=True).digest == plain, (
        "there is no code yet"
    )
    (folder / "evil.py").write_text(OWN)
    assert open_model(str(folder), "float32", "cpu", trust_remote_code=False).digest == plain
    edit(folder, model_type="foo", auto_map=MAP)
    monkeypatch.setenv(TRUST_REMOTE_CODE, "1")
    opened = open_model(str(folder), "float32", "cpu")
    assert type(opened.model).__name__ == "Model"
    assert type(opened.model).__module__.startswith("transformers_modules")
    assert opened.digest != plain
    (folder / "evil.py").write_text(OWN + "\n# changed\n")
    assert open_model(str(folder), "float32", "cpu", trust_remote_code=True).digest != opened.digest
    assert refusal_of(
        open_model, str(folder), "float32", "cpu", trust_remote_code=False
    ).subject == str(folder)


def test_code_from_elsewhere_is_nobodys_to_trust(folder: Path):
    edit(folder, model_type="foo", auto_map={"AutoConfig": "someone/else--evil.Config"})
    assert (
        refusal_of(open_model, str(folder), "float32", "cpu", trust_remote_code=True).subject
        == "someone/else--evil.Config"
    )


@pytest.mark.parametrize(
    ("value", "on"), [("1", True), ("true", True), ("0", False), ("", False), ("false", False)]
)
def test_the_variable_is_read_as_the_flag_is(monkeypatch: pytest.MonkeyPatch, value: str, on: bool):
    monkeypatch.setenv(TRUST_REMOTE_CODE, value)
    assert trusted(None) is on
    assert trusted(False) is False
    assert trusted(True) is True
