"""What counts as a model's weights: plain safetensors files of its folder, every one of them,
and nothing that an index fetches from elsewhere.
"""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from calibrant.models import folder as folders
from calibrant.models import open_model, open_tokenizer

from tests.models.refused import edit, refusal_of

INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
SECOND = "model-00002-of-00002.safetensors"
Damage = Callable[[Path], object]


def in_shards(folder: Path, second: str = SECOND) -> None:
    """The same model in two files, the second wherever it is to be."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {FIRST: names[::2], second: names[1::2]}
    for file, of_it in parts.items():
        (folder / file).parent.mkdir(exist_ok=True)
        save_file({name: tensors[name] for name in of_it}, folder / file, metadata={"format": "pt"})
    write_index(folder, {name: file for file, of_it in parts.items() for name in of_it})


def write_index(folder: Path, places: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def with_pickle(folder: Path) -> None:
    (folder / "evil.bin").write_bytes(pickle.dumps(Evil()))
    write_index(folder, {"model.norm.weight": "evil.bin"})
    (folder / "model.safetensors").rename(folder / "other.safetensors")


def with_the_first_as(folder: Path, name: str) -> None:
    in_shards(folder)
    shutil.copy(folder / FIRST, folder / name)


def linked_out(folder: Path, name: str = "model.safetensors") -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def with_a_template_of_another(folder: Path) -> None:
    outside = folder.parent / "outside.jinja"
    outside.write_text("{{ messages }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "plain.jinja").symlink_to(outside)


def linked_to(folder: Path, name: str, target: str) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(target)


def twice(folder: Path) -> None:
    in_shards(folder)
    first, second = (load_file(folder / name) for name in (FIRST, SECOND))
    save_file(
        {**second, "lm_head.weight": first["lm_head.weight"]},
        folder / SECOND,
        metadata={"format": "pt"},
    )


def piped(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def a_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def test_shards_that_an_index_names_are_the_model(folder: Path):
    whole = open_model(str(folder), "float32", "cpu")
    write_index(folder, {"model.norm.weight": "model.safetensors"})
    assert open_model(str(folder), "float32", "cpu").digest == whole.digest, (
        "an index of one file changes nothing"
    )
    in_shards(folder)
    opened = open_model(str(folder), "float32", "cpu")
    assert all(
        (a == b).all()
        for a, b in zip(
            whole.model.state_dict().values(), opened.model.state_dict().values(), strict=True
        )
    )
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:-4] + b"\0\0\0\x3f")
    assert open_model(str(folder), "float32", "cpu").digest != opened.digest


@pytest.mark.parametrize(
    ("damage", "subject"),
    [
        (lambda f: in_shards(f, "../outside.safetensors"), "../outside.safetensors"),
        (with_a_template_of_another, "plain.jinja"),
        (lambda f: in_shards(f, str(f.parent / "far.safetensors")), "{above}/far.safetensors"),
        (lambda f: in_shards(f, "below/part.safetensors"), "below/part.safetensors"),
        (with_pickle, "evil.bin"),
        (lambda f: write_index(f, {"a": 7}), "7"),
        (lambda f: write_index(f, {"a": "gone.safetensors"}), "gone.safetensors"),
        (lambda f: (f / INDEX).write_text("[" * 100_000), "{folder}/" + INDEX),
        (lambda f: with_the_first_as(f, "model.safetensors"), "model.safetensors"),
        (lambda f: with_the_first_as(f, "more.safetensors"), "more.safetensors"),
        (
            lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
            "weights.safetensors",
        ),
        (twice, "lm_head.weight"),
        (linked_out, "model.safetensors"),
        (lambda f: linked_out(f, "config.json"), "config.json"),
        (lambda f: linked_to(f, "tokenizer.json", "nothing"), "tokenizer.json"),
        (lambda f: edit(f, transformers_weights="other.safetensors"), "transformers_weights"),
        (lambda f: edit(f, configuration_files=["config.4.0.0.json"]), "configuration_files"),
        (
            lambda f: (f / "adapter_config.json").write_text(
                '{"base_model_name_or_path": "other"}'
            ),
            "{folder}",
        ),
        (lambda f: piped(f, "model.safetensors"), "model.safetensors"),
        (lambda f: a_folder(f, "config.json"), "config.json"),
        (lambda f: linked_to(f, "config.json", "/dev/zero"), "config.json"),
    ],
)
def test_a_folder_that_is_not_all_there_is_to_its_model(
    folder: Path, damage: Damage, subject: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder.parent)
    damage(folder)
    assert refusal_of(open_model, str(folder), "float32", "cpu").subject == subject.format(
        folder=folder, above=folder.parent
    )
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_is_read_from_plain_files_too(folder: Path, name: str):
    piped(folder, name)
    assert refusal_of(open_tokenizer, str(folder)).subject == name
    assert refusal_of(open_model, str(folder), "float32", "cpu").subject == name


@pytest.mark.parametrize("shared", [False, True])
def test_the_cache_of_the_hub_links_into_its_own_blobs(sound: Path, tmp_path: Path, shared: bool):
    repository = tmp_path / "hub" / "models--some--model"
    snapshot, blobs = repository / "snapshots" / "0123", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(sound.iterdir())):
        place = tmp_path / "hub" / "blobs" / "ab" / str(number) if shared else blobs / str(number)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
        if shared:
            (blobs / str(number)).symlink_to(place)
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert (
        open_model(str(snapshot), "float32", "cpu").digest
        == open_model(str(sound), "float32", "cpu").digest
    )


def test_what_is_too_large_or_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as within:
        within.setattr(folders, "LARGEST", 100)
        assert refusal_of(open_model, str(folder), "float32", "cpu").subject == str(
            folder / "config.json"
        )
    monkeypatch.setattr(Path, "iterdir", refuse)
    said = refusal_of(open_model, str(folder), "float32", "cpu")
    assert said.subject == str(folder)
    assert "Permission denied" in str(said)
