"""Tokenizers that are none, or another model's, are one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from calibrant.errors import ModelError
from calibrant.models import open_model, open_tokenizer


def edit(folder: Path, name: str, **entries: Any) -> None:
    held = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**held, **entries}))


@pytest.mark.parametrize(
    "text",
    ["null", "[]", "{}", '{"version": "1.0"}', '{"model": {}}', '{"version": "1.0", "added_tokens": [], "model": {"type": "None"}}', "[" * 100_000],
)
def test_a_tokenizer_of_another_shape(folder: Path, text: str):
    (folder / "tokenizer.json").write_text(text)
    for opening in (open_model, open_tokenizer):
        with pytest.raises(ModelError, match="copy has no tokenizer that can be opened") as caught:
            opening(str(folder))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "entries", [{"model": None}, {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}, {"pre_tokenizer": {"type": "Nonsense"}}]
)
def test_a_tokenizer_with_a_part_of_another_shape(folder: Path, entries: dict[str, Any]):
    edit(folder, "tokenizer.json", **entries)
    with pytest.raises(ModelError, match="copy has no tokenizer that can be opened"):
        open_tokenizer(str(folder))


@pytest.mark.parametrize(
    ("text", "said"), [("[]", r"tokenizer_config.json holds \[\]"), ("{x", "tokenizer_config.json is no JSON"), ("[" * 100_000, "is no JSON")]
)
def test_settings_of_another_shape(folder: Path, text: str, said: str):
    (folder / "tokenizer_config.json").write_text(text)
    with pytest.raises(ModelError, match=said):
        open_tokenizer(str(folder))


@pytest.mark.parametrize("template", [5, {"a": 1}, [[]]])
def test_a_chat_template_that_is_no_text(folder: Path, template: object):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder, "tokenizer_config.json", chat_template=template)
    with pytest.raises(ModelError, match=r"chat template is|no tokenizer that can be opened"):
        open_tokenizer(str(folder))


def test_tokens_beyond_the_embedding(folder: Path):
    edit(folder, "tokenizer.json", model={"type": "BPE", "vocab": {"a": 0, "zebra": 70_000}, "merges": []})
    with pytest.raises(ModelError, match="its tokenizer gives 'zebra' the id 70000, but the embedding has 259 rows"):
        open_model(str(folder), "float32", "cpu")


@pytest.mark.parametrize(("role", "refused"), [(None, False), ("pad_token", True)])
def test_an_added_token_may_lie_beyond_it_unless_every_batch_has_it(folder: Path, role: str | None, refused: bool):
    tokenizer = open_tokenizer(str(folder))[0]
    tokenizer.add_tokens(["<image>"])
    if role:
        tokenizer.add_special_tokens({role: "<image>"})
    tokenizer.save_pretrained(folder)
    if not refused:
        assert open_model(str(folder), "float32", "cpu").tokenizer("<image>", add_special_tokens=False).input_ids == [259]
        return
    with pytest.raises(ModelError, match="gives '<image>' the id 259"):
        open_model(str(folder), "float32", "cpu")
