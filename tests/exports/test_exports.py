"""A form of another package stands beside the Hugging Face folder, all or nothing; one that
can't hold what is made is refused before any work. And what `export` makes of a finished model,
wherever it runs.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.compress import export, quantize
from calibrant.errors import ModelError, OutputError
from calibrant.models import devices, load, open_model
from calibrant.testing import tiny_folder, tiny_model
from calibrant.testing.tiny import tiny_gguf

from tests.models.refused import refusal_of

CODE = '''
from dataclasses import dataclass
from pathlib import Path
from calibrant.edits import Replace
from calibrant.errors import OutputError
from calibrant.exports import Export, CompressedModel
from calibrant.targets import Grid


@dataclass(frozen=True, repr=False)
class CodesOnly(Export):
    """Writes how many codes there are of each matrix."""

    full: bool = False

    def check(self, method, target, opened, view):
        if not isinstance(target, Grid):
            raise OutputError(
                f"codes_only holds what is rounded to a grid, and {target} is none; "
                "leave --export codes_only out"
            )

    def write(self, made: CompressedModel, folder: Path) -> None:
        lines = []
        for edit in made.edits:
            if isinstance(edit, Replace):
                lines.append(f"{edit.weight.name} {edit.compressed.packed.codes.numel()}")
        (folder / "codes.txt").write_text("\\n".join(lines))
        if self.full:
            raise OSError(28, "No space left on device")
'''


@pytest.fixture
def folder(tmp_path: Path, plugged: Callable[..., None]) -> Path:
    plugged({"calibrant.exports": {"codes_only": "codes_only:CodesOnly"}}, codes_only=CODE)
    return tiny_folder(tmp_path / "model")


def test_another_form_stands_beside_the_folder(folder: Path, tmp_path: Path) -> None:
    quantize(
        str(folder),
        target="w4g16",
        out=tmp_path / "out",
        dtype="float32",
        export=("codes_only", "hf"),
    )
    assert len((tmp_path / "out" / "codes.txt").read_text().splitlines()) == 21
    assert json.loads((tmp_path / "out" / "calibrant.json").read_text())["exports"] == [
        "hf",
        "codes_only",
    ]
    assert quantize(
        str(folder), target="w4g16", out=tmp_path / "out", dtype="float32", export="codes_only"
    ).already_done
    quantize(str(folder), target="w4g16", out=tmp_path / "plain", dtype="float32")
    again = {
        "target": "w4g16",
        "out": tmp_path / "plain",
        "dtype": "float32",
        "export": "codes_only",
    }
    assert refusal_of(quantize, str(folder), kind=OutputError, **again).subject == str(
        tmp_path / "plain"
    )


def test_what_a_form_cannot_hold_is_refused_before_any_work(folder: Path, tmp_path: Path) -> None:
    words = [
        "prune",
        str(folder),
        "--data",
        "python_docs",
        "--out",
        str(tmp_path / "out"),
        "--export",
        "codes_only",
    ]
    found = CliRunner().invoke(app, [*words, "--samples", "4", "--length", "16"])
    assert found.exit_code == 2
    assert "codes_only" in found.stderr
    assert list(tmp_path.iterdir()) == [folder]


def test_a_form_that_breaks_off_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a" / "out"
    said = refusal_of(
        quantize,
        str(folder),
        kind=OutputError,
        target="w4g16",
        out=out,
        dtype="float32",
        export="codes_only(full=true)",
    )
    assert said.subject == str(out)
    assert not out.exists()


def test_a_gguf_file_keeps_its_numbers_where_bfloat16_is_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "_native_bfloat16", lambda device: True)
    file = tiny_gguf(tmp_path / "tiny.gguf")
    export(file, tmp_path / "plain")
    expected = open_model(str(file), "float32", "cpu").model.state_dict()
    found = load(tmp_path / "plain", "cpu").state_dict()
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        assert torch.equal(found[name], numbers), name


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tiny_folder(tmp_path / "model")
    done = export(folder, "~/small", "sparse")
    assert done.out == tmp_path / "small"
    assert (tmp_path / "small" / "calibrant.json").is_file()


def test_an_open_model_is_refused_in_words(tmp_path: Path) -> None:
    model: Any = tiny_model("llama")
    with pytest.raises((ModelError, TypeCheckError)) as caught:
        export(model, tmp_path / "out")
    if isinstance(caught.value, ModelError):
        assert caught.value.subject == "LlamaForCausalLM"
