"""A model's tokenizer without its weights: the one that comes with them, from wherever it is;
what is none, or another model's, is a sentence.
"""

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from calibrant import CalibrationSet
from calibrant.models import open_model, open_tokenizer, opening
from calibrant.testing import tiny_tokenizer

from tests.models.refused import edit, refusal_of

TEXT = "héllo <eos> wörld\n\n\U0001f600"


@pytest.fixture
def weightless(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder without weights, and nobody who asks for a model gets one."""
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(
        opening.AutoModelForCausalLM,
        "from_pretrained",
        lambda *_, **__: pytest.fail("weights were asked for"),
    )
    return folder


def test_it_is_the_one_that_comes_with_the_model(sound: Path, capfd: pytest.CaptureFixture[str]):
    capfd.readouterr()
    tokenizer, name = open_tokenizer(str(sound))
    assert capfd.readouterr() == ("", "")
    data = CalibrationSet("python_docs", samples=2, length=64)
    assert name == str(sound)
    assert (
        data.tokens(tokenizer).fingerprint
        == data.tokens(open_model(str(sound)).tokenizer).fingerprint
    )
    assert tokenizer.chat_template == tiny_tokenizer().chat_template


def test_a_folder_needs_no_weights(weightless: Path):
    assert open_tokenizer(str(weightless))[0](TEXT).input_ids == tiny_tokenizer()(TEXT).input_ids


def test_a_gguf_file_is_not_read_for_its_weights(gguf_file: Path, monkeypatch: pytest.MonkeyPatch):
    with_weights = open_model(str(gguf_file)).tokenizer
    monkeypatch.setattr(opening, "open_gguf", lambda *_: pytest.fail("weights were asked for"))
    tokenizer, name = open_tokenizer(str(gguf_file))
    assert name == str(gguf_file)
    assert tokenizer(TEXT).input_ids == with_weights(TEXT).input_ids
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    assert tokenizer.chat_template == with_weights.chat_template


def test_of_a_hub_id_everything_but_the_weights_is_downloaded(
    weightless: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: dict[str, list[str]] = {}

    def snapshot(
        name: str, allow_patterns: list[str], ignore_patterns: list[str], local_files_only: bool
    ) -> str:
        assert not local_files_only
        asked[name] = allow_patterns
        return str(weightless)

    def refuse(*_: object, **__: object) -> None:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(opening, "snapshot_download", snapshot)
    tokenizer, name = open_tokenizer("some/model")
    assert (name, len(tokenizer)) == ("some/model", len(tiny_tokenizer()))
    assert asked == {"some/model": ["*.json", "*.txt", "*.model", "*.jinja"]}
    monkeypatch.setattr(opening, "snapshot_download", refuse)
    assert refusal_of(open_tokenizer, "some/model").subject == "some/model"


def test_a_folder_without_a_tokenizer(folder: Path, tmp_path: Path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (tmp_path / "empty").mkdir()
    for place in (folder, tmp_path / "empty"):
        assert refusal_of(open_tokenizer, str(place)).subject == str(place)


def test_code_beside_a_model_is_never_run(folder: Path):
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    edit(
        folder,
        "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Evil", None]},
        tokenizer_class="Evil",
    )
    said = refusal_of(open_tokenizer, str(folder))
    assert said.subject == str(folder)
    assert "custom code" in str(said)


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "{}",
        '{"version": "1.0", "added_tokens": [], "model": {"type": "None"}}',
        "[" * 100_000,
    ],
)
def test_a_tokenizer_of_another_shape(folder: Path, text: str):
    (folder / "tokenizer.json").write_text(text)
    for act in (open_model, open_tokenizer):
        assert refusal_of(act, str(folder)).subject == str(folder)


@pytest.mark.parametrize(
    ("name", "entries", "subject"),
    [
        (
            "tokenizer.json",
            {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
            "{folder}",
        ),
        ("tokenizer_config.json", "[]", "{folder}/tokenizer_config.json"),
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template"),
        ("tokenizer_config.json", {"chat_template": [[]]}, "{folder}"),
    ],
)
def test_a_part_or_settings_or_a_template_of_another_shape(
    folder: Path, name: str, entries: dict[str, Any] | str, subject: str
):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if isinstance(entries, str):
        (folder / name).write_text(entries)
    else:
        edit(folder, name, **entries)
    assert refusal_of(open_tokenizer, str(folder)).subject == subject.format(folder=folder)


def test_tokens_beyond_the_embedding(folder: Path):
    edit(
        folder,
        "tokenizer.json",
        model={"type": "BPE", "vocab": {"a": 0, "zebra": 70_000}, "merges": []},
    )
    said = refusal_of(open_model, str(folder), "float32", "cpu")
    assert said.subject == str(folder)
    assert "70000" in str(said)


def test_an_added_token_may_lie_beyond_it_unless_every_batch_has_it(folder: Path):
    tokenizer = open_tokenizer(str(folder))[0]
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    assert open_model(str(folder), "float32", "cpu").tokenizer(
        "<image>", add_special_tokens=False
    ).input_ids == [259]
    tokenizer.add_special_tokens({"pad_token": "<image>"})
    tokenizer.save_pretrained(folder)
    assert "'<image>' the id 259" in str(refusal_of(open_model, str(folder), "float32", "cpu"))
