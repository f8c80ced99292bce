"""Saved folders are opened with plain transformers; failures are made to happen, and leave
nothing.
"""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from calibrant.errors import OutputError
from calibrant.models import Opened, check_output, open_model, read_manifest, save, view
from calibrant.system.durable import locked_folder
from calibrant.testing.tiny import FAMILIES, TEMPLATE, tiny_model, tiny_tokenizer

from tests.models.refused import refusal_of
from tests.usual import usually

IDS = torch.arange(3, 35).reshape(2, 16)
RUN = {
    "model_name": "smollm2",
    "method": {"spec": "wanda", "revision": 1},
    "target": "0.5",
    "data": "c4:text@many",
}


def opened(family: str = "llama", dtype: torch.dtype = torch.float32, note: str = "") -> Opened:
    return Opened(tiny_model(family, dtype), tiny_tokenizer(), family, "sha256:0", note, dtype)


def halve(model) -> dict[str, torch.Tensor]:
    """Zero every second number of each matrix; gives the patterns."""
    patterns = {}
    for weight in view(model).weights:
        keep = torch.arange(weight.shape[0] * weight.shape[1]).reshape(weight.shape) % 2 == 0
        weight.set(weight.get() * keep)
        patterns[weight.name] = weight.get() == 0
    return patterns


@pytest.mark.parametrize("family", usually(FAMILIES))
def test_plain_transformers_opens_it_with_the_same_logits_and_zeros(family, tmp_path, capfd):
    made = opened(family)
    patterns = halve(made.model)
    save(made, tmp_path / "out", {})
    assert capfd.readouterr() == ("", "")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    seen = view(again)
    assert torch.equal(again(IDS).logits, made.model(IDS).logits)
    assert {w.name for w in seen.weights} == set(patterns)
    assert all(torch.equal(w.get() == 0, patterns[w.name]) for w in seen.weights)
    assert all(abs(pattern.float().mean() - 0.5) < 0.01 for pattern in patterns.values())


def test_the_folder_holds_what_a_hugging_face_folder_holds_and_the_manifest(tmp_path):
    (tmp_path / "out").mkdir()
    made, usual = opened(dtype=torch.bfloat16, note="dequantized from Q4_1"), os.umask(0o077)
    try:
        save(made, tmp_path / "out", {"id": "sha256:1", "ü": [1, 2]})
    finally:
        os.umask(usual)
    assert os.listdir(tmp_path) == ["out"]
    wanted = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    rights = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()}
    assert rights == dict.fromkeys(wanted | {"calibrant.json"}, 0o600)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert set(manifest.pop("files")) == wanted
    assert manifest == {"note": "dequantized from Q4_1", "id": "sha256:1", "ü": [1, 2]}
    assert open_model(str(tmp_path / "out"), "float32", "cpu").note == "dequantized from Q4_1"
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert again.dtype == torch.bfloat16, "the working type is the one saved"
    assert torch.equal(again(IDS).logits, made.model(IDS).logits)


def test_a_model_from_gguf_saves_and_its_tokenizer_comes_back(gguf_file, tmp_path):
    made = open_model(str(gguf_file), "float32", "cpu")
    save(made, tmp_path / "out", {})
    again, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tmp_path / "out"),
        AutoTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert torch.equal(again(IDS).logits, made.model(IDS).logits)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())
    text = "def f():\n  héé <eos>"
    assert tokenizer(text).input_ids == made.tokenizer(text).input_ids
    assert tokenizer.get_vocab() == made.tokenizer.get_vocab()
    assert tokenizer.special_tokens_map == made.tokenizer.special_tokens_map
    assert tokenizer.chat_template == made.tokenizer.chat_template == TEMPLATE


@pytest.mark.parametrize(
    ("manifest", "value"),
    [
        (
            json.dumps({"calibrant": "0.2.0", "id": "x", "record": {"run": RUN}}),
            "of smollm2, by wanda, at 0.5, calibrated on c4:text@many",
        ),
        ('{"calibrant": "0.2.0"}', "compressed model"),
        ("{cut", "damaged"),
    ],
)
def test_a_folder_of_ours_is_refused_with_what_it_holds(tmp_path, manifest, value):
    (tmp_path / "calibrant.json").write_text(manifest)
    said = refusal_of(save, opened(), tmp_path, {}, kind=OutputError)
    assert said.subject == str(tmp_path)
    assert value in str(said)
    assert (tmp_path / "calibrant.json").read_text() == manifest


def test_a_folder_of_the_user_is_saved_into(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)
    save(opened(), "~/out", {})
    assert (tmp_path / "home/out/config.json").is_file()
    assert os.listdir(tmp_path) == ["home"]


def test_a_folder_that_is_not_ours_is_refused_and_left_alone(tmp_path):
    assert read_manifest(tmp_path) is None
    (tmp_path / "out").mkdir()
    (tmp_path / "out/diary.txt").write_text("mine")
    assert refusal_of(save, opened(), tmp_path / "out", {}, kind=OutputError).subject == str(
        tmp_path / "out"
    )
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["diary.txt"]


def test_a_place_that_can_not_be_a_folder_is_refused_and_checking_changes_nothing(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "file/out", "link", "pipe"):
        assert refusal_of(check_output, tmp_path / name, kind=OutputError).subject == str(
            tmp_path / name
        )
    check_output(tmp_path / "a/b/out")
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert refusal_of(check_output, tmp_path / "out", kind=OutputError).subject == str(
        tmp_path / "out"
    )
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "pipe"]


def fail_with(error: BaseException):
    def write(self, *_, **__):
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "value"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (SafetensorError("something odd"), "something odd"),
    ],
)
def test_what_fails_while_writing_leaves_nothing(tmp_path, monkeypatch, error, value):
    made = opened()
    for writer, name in ((type(made.model), "save_pretrained"), (Path, "write_text")):
        with monkeypatch.context() as within:
            within.setattr(writer, name, fail_with(error))
            said = refusal_of(save, made, tmp_path / "a/b/out", {}, kind=OutputError)
        assert said.subject == str(tmp_path / "a/b/out")
        assert value in str(said)
        assert os.listdir(tmp_path) == []
    monkeypatch.setattr(type(made.tokenizer), "save_pretrained", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save(made, tmp_path / "out", {})
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_cleared(tmp_path):
    (tmp_path / ".out.unfinished").mkdir()
    (tmp_path / ".out.unfinished/half.safetensors").write_bytes(b"half")
    save(opened(), tmp_path / "out", {})
    assert os.listdir(tmp_path) == ["out"]
    assert not (tmp_path / "out/half.safetensors").exists()


def test_a_folder_that_another_is_saving_is_refused_and_left_alone(tmp_path):
    pytest.importorskip("fcntl", reason="Windows has none")
    half = tmp_path / ".out.unfinished"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"theirs")
    with locked_folder(half):
        said = refusal_of(save, opened(), tmp_path / "out", {}, kind=OutputError)
        assert said.subject == str(tmp_path / "out")
        assert "is being made by another process; wait for it" in str(said)
        assert os.listdir(tmp_path) == [half.name]
        assert os.listdir(half) == ["model.safetensors"]


def test_a_folder_filled_in_the_meantime_is_left_alone(tmp_path, monkeypatch):
    made = opened()

    def and_meanwhile(*_, **__):
        (tmp_path / "out").mkdir()
        (tmp_path / "out/diary.txt").write_text("mine")

    monkeypatch.setattr(type(made.tokenizer), "save_pretrained", and_meanwhile)
    assert refusal_of(save, made, tmp_path / "out", {}, kind=OutputError).subject == str(
        tmp_path / "out"
    )
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["diary.txt"]


def test_a_damaged_manifest_is_refused_and_not_taken_for_none(tmp_path):
    save(opened(), tmp_path / "out", {"id": "sha256:1"})
    path = tmp_path / "out" / "calibrant.json"
    whole = path.read_bytes()
    config = (tmp_path / "out" / "config.json").read_bytes()
    for damaged in (
        b"\0" * len(whole),
        whole[:-20],
        whole.replace(b"sha256:1", b"sha256:2"),
        b"[]",
        config,
        b"[" * 100_000,
        b'{"files": {"/etc/hosts": "sha256:1"}}',
        b'{"files": {"../config.json": "sha256:1"}}',
    ):
        path.write_bytes(damaged)
        assert refusal_of(open_model, str(tmp_path / "out"), "float32", "cpu").subject == str(path)


@pytest.mark.parametrize(
    "name",
    usually(
        ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"],
        {"model.safetensors", "tokenizer.json"},
    ),
)
def test_a_file_of_another_run_beside_a_manifest_is_refused(tmp_path, name):
    save(opened(), tmp_path / "out", {"id": "sha256:1"})
    place = tmp_path / "out" / name
    place.write_bytes(
        place.read_bytes().replace(b"{", b"{ ", 1)
        if name != "model.safetensors"
        else _flipped(place.read_bytes())
    )
    assert refusal_of(open_model, str(tmp_path / "out"), "float32", "cpu").subject == str(place)
    (tmp_path / "out" / "calibrant.json").unlink()
    open_model(
        str(tmp_path / "out"), "float32", "cpu"
    )  # without the manifest it is a folder as any other


def _flipped(content: bytes) -> bytes:
    """With one bit of its last number changed."""
    return content[:-2] + bytes([content[-2] ^ 1]) + content[-1:]
