"""Gathering: the sums of what each matrix was multiplied with, under llama.cpp's names, experts
included.
"""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import calibrant
from calibrant.cli import app
from calibrant.compress import importance, room
from calibrant.compress.importance import read_imatrix
from calibrant.data import CalibrationSet
from calibrant.errors import OutputError, SpecError
from calibrant.models import ModelView, open_model, outline_of, view
from calibrant.models.gguf_writing import architecture_of, tensor_names
from calibrant.testing import FAMILIES, tiny_folder, tiny_model
from calibrant.testing.tiny import tiny_gguf

from tests.models.refused import refusal_of
from tests.usual import two_hundred_lines, usually

SMALL = {"samples": 3, "length": 16, "dtype": "float32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "llama")


def inputs_of(folder: Path, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each linear of the model is multiplied with, by hooks."""
    model, seen = open_model(str(folder), "float32", "cpu").model, {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(
                lambda _, args, name=name: seen.__setitem__(name, args[0].detach().flatten(0, -2))
            )
    with torch.no_grad():
        model(ids)
    return seen


def test_the_sums_are_those_of_what_each_linear_was_given(folder: Path, tmp_path: Path):
    made = calibrant.imatrix(
        str(folder), data="python_docs@imatrix", out=tmp_path / "a.gguf", **SMALL
    )
    tokenizer = open_model(str(folder), "float32", "cpu").tokenizer
    ids = CalibrationSet("python_docs@imatrix", samples=3, length=16).tokens(tokenizer).ids
    seen = inputs_of(folder, ids)
    for ours, theirs in (
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ):
        entry = made.entries[f"blk.1.{theirs}.weight"]
        np.testing.assert_allclose(
            entry.sums[0], seen[f"model.layers.1.{ours}"].double().square().sum(0), rtol=1e-5
        )
        assert entry.counts.tolist() == [48]
    assert len(made.entries) == 21
    assert read_imatrix(tmp_path / "a.gguf").datasets == ("python_docs@imatrix; 3×16; draw 0",)
    assert (made.chunks, made.chunk_size, made.left_out) == (3, 16, {})


def test_experts_count_the_tokens_that_were_sent_to_them(tmp_path: Path):
    made = calibrant.imatrix(
        str(tiny_folder(tmp_path / "moe", "qwen3_moe")), data="python_docs", **SMALL
    )
    for name in ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"):
        counts = made.entries[f"blk.0.{name}.weight"].counts
        assert len(counts) == 32
        assert counts.sum() == 48 * 2  # two experts a token
        assert (counts == 0).any()
    gate, up = (
        made.entries[f"blk.2.{name}.weight"].sums for name in ("ffn_gate_exps", "ffn_up_exps")
    )
    np.testing.assert_array_equal(gate, up)
    unseen = [
        name for name in made.left_out if name.startswith("model.layers.0.mlp.experts.down_proj")
    ]
    assert len(unseen) == int((made.entries["blk.0.ffn_down_exps.weight"].counts == 0).sum())


def test_the_names_are_those_of_a_files_own_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tiny_gguf(tmp_path / "tiny.gguf", "F32")
    entries = calibrant.imatrix(str(path), data="python_docs", **SMALL).entries
    assert entries.keys() <= {tensor.name for tensor in gguf.GGUFReader(path).tensors}
    assert len(entries) == 21
    monkeypatch.setattr(
        "calibrant.compress.importance.tensor_names",
        lambda view: {w.name: ("blk.0.other.weight",) for w in view.weights},
    )
    said = refusal_of(calibrant.imatrix, str(path), data="python_docs", **SMALL)
    assert said.subject == "model.layers.0.self_attn.q_proj"
    assert "blk.0.other.weight" in str(said)


@pytest.mark.parametrize(
    "family", usually(FAMILIES, {"llama", "gpt2", "gemma3", "opt", "qwen3_moe", "phi3"})
)
def test_every_family_has_its_names_or_is_refused_by_name(family: str):
    model = tiny_model(family)
    if family == "opt":
        assert refusal_of(architecture_of, model).subject == "opt"
        return
    names = tensor_names(view(model))
    assert all(
        name.startswith("blk.") and name.endswith(".weight")
        for several in names.values()
        for name in several
    )
    by_tensor = {
        (weight.block, weight.expert, name)
        for weight in view(model).weights
        for name in names[weight.name]
    }
    assert len(by_tensor) == sum(map(len, names.values()))


def test_the_command_writes_and_inspect_compares(folder: Path, tmp_path: Path):
    one, other = str(tmp_path / "a.gguf"), str(tmp_path / "b.dat")
    for out, data in ((one, "python_docs@imatrix"), (other, "random_tokens")):
        words = [
            "imatrix",
            str(folder),
            "--data",
            data,
            "--out",
            out,
            "--samples",
            "3",
            "--length",
            "16",
            "--dtype",
            "float32",
        ]
        found = CliRunner().invoke(app, words)
        assert found.exit_code == 0, found.stderr
    found = CliRunner().invoke(app, ["inspect", one, "--against", other])
    assert found.exit_code == 0, found.stderr
    assert "correlation" in found.stdout
    assert (
        CliRunner().invoke(app, ["inspect", one, "--against", other, "--against", other]).exit_code
        == 2
    )


def test_what_cannot_be_is_refused_before_any_work(folder: Path, tmp_path: Path):
    place = tmp_path / "a.txt"
    assert refusal_of(
        calibrant.imatrix, str(folder), data="python_docs", out=place, kind=OutputError
    ).subject == str(place)
    opened = open_model(str(folder), "float32", "cpu")
    assert (
        refusal_of(
            calibrant.imatrix, opened, data="python_docs", kind=SpecError, memory=1.0, **SMALL
        ).subject
        == "memory"
    )


MANY = {"samples": 64, "length": 32, "dtype": "float32", "device": "cpu"}


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, room.Needs]:
    """A model of several blocks, texts, and what it needs while nothing else is held."""
    monkeypatch.setattr(room, "held_now", lambda: 0)
    folder, texts = (
        str(tiny_folder(tmp_path / "model", "llama", num_hidden_layers=8)),
        two_hundred_lines(tmp_path),
    )
    outline = outline_of(folder, "float32", "cpu")
    assert outline is not None
    work = 16 * sum(matrix.inputs for matrix in outline.shape.matrices)
    tokens = MANY["samples"] * MANY["length"]
    needs = room.Needs.of(outline.shape, tokens, outline.dtype)
    return folder, texts, replace(needs, work=work)


def test_with_blocks_and_activations_on_disk_the_file_is_the_same(
    deep: tuple[str, str, room.Needs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder, texts, needs = deep
    calibrant.imatrix(folder, data=texts, out=tmp_path / "whole.gguf", **MANY)
    went = list[ModelView]()
    monkeypatch.setattr(importance, "view", lambda *given: went.append(view(*given)) or went[-1])
    for name, memory, on_disk, offloads in (
        ("plenty", needs.in_memory("dense"), False, False),
        ("parted", needs.on_disk("dense"), True, False),
        ("offloaded", needs.on_disk("dense", offload=True), True, True),
    ):
        made = calibrant.imatrix(
            folder, data=texts, out=tmp_path / f"{name}.gguf", memory=memory * 1.001 / 1e9, **MANY
        )
        assert bool(made.note) == on_disk
        assert went[-1].residence.on_disk is on_disk
        assert went[-1].offload == (tmp_path if offloads else None)
        assert (tmp_path / f"{name}.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    less = refusal_of(
        calibrant.imatrix,
        folder,
        data=texts,
        out=tmp_path / "less.gguf",
        kind=SpecError,
        memory=needs.block / 1e9,
        **MANY,
    )
    assert less.subject == folder
    assert not (tmp_path / "less.gguf").exists()


def test_a_selector_that_runs_the_model_needs_all_of_it_and_without_a_file_nothing_goes_to_disk(
    deep: tuple[str, str, room.Needs], tmp_path: Path
):
    folder, texts, needs = deep
    said = refusal_of(
        calibrant.imatrix,
        folder,
        data="cluster(source=python_docs)",
        out=tmp_path / "out.gguf",
        kind=SpecError,
        memory=1e-6,
        **SMALL,
    )
    assert said.subject == folder
    assert "cluster" in str(said)
    little = needs.on_disk("dense", offload=True) * 1.001 / 1e9
    assert (
        refusal_of(
            calibrant.imatrix, folder, data=texts, kind=SpecError, memory=little, **MANY
        ).subject
        == "imatrix"
    )
