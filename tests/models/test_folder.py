"""What counts as a model's weights: plain safetensors files of its folder, every one of them, and nothing that an index fetches from elsewhere."""

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from calibrant.errors import ModelError
from calibrant.models import folder as folders
from calibrant.models import open_model, open_tokenizer

INDEX = "model.safetensors.index.json"
Damage = Callable[[Path], object]


def in_shards(folder: Path, second: str = "model-00002-of-00002.safetensors") -> None:
    """The same model in two files, the second wherever it is to be."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    first = "model-00001-of-00002.safetensors"
    names = sorted(tensors)
    parts = {first: names[::2], second: names[1::2]}
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


def beside(folder: Path, name: str) -> None:
    shutil.copy(folder / "model.safetensors", folder / name)


def linked_out(folder: Path, name: str = "model.safetensors") -> None:
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)


def twice(folder: Path) -> None:
    in_shards(folder)
    names = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    first, second = (load_file(folder / name) for name in names)
    save_file({**second, "lm_head.weight": first["lm_head.weight"]}, folder / names[1], metadata={"format": "pt"})


def edit(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


def piped(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)


def a_folder(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).mkdir()


def test_shards_that_an_index_names_are_the_model(folder: Path):
    whole = open_model(str(folder), "float32", "cpu")
    in_shards(folder)
    opened = open_model(str(folder), "float32", "cpu")
    assert all((a == b).all() for a, b in zip(whole.model.state_dict().values(), opened.model.state_dict().values(), strict=True))
    (folder / "model-00002-of-00002.safetensors").write_bytes((folder / "model-00002-of-00002.safetensors").read_bytes()[:-4] + b"\0\0\0\x3f")
    assert open_model(str(folder), "float32", "cpu").digest != opened.digest


def test_an_index_that_names_the_one_file_changes_nothing(folder: Path):
    digest = open_model(str(folder), "float32", "cpu").digest
    write_index(folder, {"model.norm.weight": "model.safetensors"})
    assert open_model(str(folder), "float32", "cpu").digest == digest


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda f: in_shards(f, "../outside.safetensors"),
            r"index.json says that .* is in '../outside.safetensors', but weights are read from .* this",
        ),
        (lambda f: in_shards(f, str(f.parent / "far.safetensors")), "is in '/.*far.safetensors', but weights are read from"),
        (lambda f: in_shards(f, "below/part.safetensors"), "is in 'below/part.safetensors', but weights are read from"),
        (with_pickle, "is in 'evil.bin', but weights are read from safetensors files"),
        (lambda f: write_index(f, {"a": 7}), "'a' is in 7, but weights are read from"),
        (lambda f: write_index(f, {"a": "gone.safetensors"}), "index.json names 'gone.safetensors', which isn't there"),
        (lambda f: write_index(f, []), r"has no weight_map .*\(\[\]\)"),
        (lambda f: (f / INDEX).write_text("[" * 100_000), "index.json is no JSON"),
        (lambda f: (f / INDEX).write_text("[1]"), r"index.json holds \[1\], and no object"),
        (lambda f: [in_shards(f), shutil.copy(f / "model-00001-of-00002.safetensors", f / "model.safetensors")], "and both say what its weights are"),
        (lambda f: beside(f, "consolidated.safetensors"), r"'consolidated.safetensors', which is no part of model.safetensors; move it"),
        (
            lambda f: [in_shards(f), shutil.copy(f / "model-00001-of-00002.safetensors", f / "more.safetensors")],
            "'more.safetensors', which is no part of",
        ),
        (
            lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
            "holds weights.safetensors, but neither .*; call a single file model",
        ),
        (twice, "00002.safetensors holds 'lm_head.weight', and so does model-00001"),
        (linked_out, "model.safetensors is a link that leads out of"),
        (lambda f: linked_out(f, "config.json"), "config.json is a link that leads out of"),
        (lambda f: [(f / "tokenizer.json").unlink(), (f / "tokenizer.json").symlink_to("nothing")], "tokenizer.json is a link to nothing"),
        (
            lambda f: edit(f, transformers_weights="other.safetensors"),
            r"names other files to be opened \(transformers_weights: 'other.safetensors'\)",
        ),
        (lambda f: edit(f, configuration_files=["config.4.0.0.json"]), "names other files to be opened"),
        (lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "other"}'), "is an adapter of another model"),
        (lambda f: piped(f, "config.json"), "config.json is no plain file but a folder, pipe or device"),
        (lambda f: piped(f, "tokenizer_config.json"), "tokenizer_config.json is no plain file"),
        (lambda f: piped(f, "model.safetensors"), "model.safetensors is no plain file"),
        (lambda f: a_folder(f, "config.json"), "config.json is no plain file"),
        (lambda f: [(f / "config.json").unlink(), (f / "config.json").symlink_to("/dev/zero")], "config.json is no plain file"),
    ],
)
def test_a_folder_that_is_not_all_there_is_to_its_model(folder: Path, damage: Damage, said: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent)
    damage(folder)
    with pytest.raises(ModelError, match=said) as caught:
        open_model(str(folder), "float32", "cpu")
    assert "\n" not in str(caught.value)
    assert not (folder.parent / "ran").exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_is_read_from_plain_files_too(folder: Path, name: str):
    piped(folder, name)
    with pytest.raises(ModelError, match=f"{name} is no plain file"):
        open_tokenizer(str(folder))


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
    assert open_model(str(snapshot), "float32", "cpu").digest == open_model(str(sound), "float32", "cpu").digest


def test_a_file_larger_than_any_configuration_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(folders, "LARGEST", 100)
    with pytest.raises(ModelError, match=r"config.json has [\d,]+ bytes, and at most 100 are read"):
        open_model(str(folder), "float32", "cpu")


def test_a_folder_that_may_not_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ModelError, match=r"copy can't be read .*Permission denied.*is it yours to read\?"):
        open_model(str(folder), "float32", "cpu")
