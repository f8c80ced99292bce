"""A folder of the export `sparse` whose files are damaged, or made to do harm, is refused in a
sentence, or opens as what it was.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from calibrant.compress import export, quantize
from calibrant.models import load, open_model
from calibrant.models.compact import same
from calibrant.testing import tiny_folder

from tests.effort import quick
from tests.models.refused import refusal_of
from tests.models.test_mangled_models import mangled_json, of_header, opens_or_is_refused, seeds

NUMBERS = "sparse-00001.safetensors"
SHEET = "sparse.json"
UP = "model.layers.1.mlp.up_proj.weight"
NEXT = "model.layers.2.mlp.up_proj.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"
PLAIN = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layouts: N of M, bits, zeros and whole."""
    place = tmp_path_factory.mktemp("pruned")
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(place / "model"))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight.view(64, 8, 4)[torch.rand(64, 8, 4).argsort(2) < 2] = 0
            layer.mlp.gate_proj.weight[torch.rand(64, 32) < 0.5] = 0
            layer.mlp.down_proj.weight.zero_()
    model.save_pretrained(place / "model")
    export(place / "model", place / "sparse", "sparse")
    (
        place / "sparse" / "calibrant.json"
    ).unlink()  # whose hashes would refuse every change before the sheet is read
    return place / "sparse"


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes with zero points."""
    place = tmp_path_factory.mktemp("rounded")
    quantize(
        str(tiny_folder(place / "model")),
        target="w4g16a",
        out=place / "out",
        dtype="float32",
        export="sparse",
    )
    return place / "out" / "sparse"


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    sheet = json.loads((folder / "sparse.json").read_text())
    change(sheet)
    (folder / "sparse.json").write_text(json.dumps(sheet))


def numbers_changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / NUMBERS)
    change(tensors)
    save_file(tensors, folder / NUMBERS)


HUGE: dict[str, Any] = {
    "layout": "zeros",
    "shape": [10**6, 10**6],
    "dtype": "float32",
    "parts": {},
    "sha256": "",
}
SHEETS: dict[str, tuple[Callable[[dict[str, Any]], Any], str, str]] = {
    "a later version": (lambda s: s.update(version=2), SHEET, "version 2"),
    "another format": (lambda s: s.update(format="dense"), NUMBERS, ""),
    "no tensors": (lambda s: s.update(tensors={}), SHEET, "{}"),
    "a file elsewhere": (
        lambda s: s.update(files=["../sparse-00001.safetensors"]),
        SHEET,
        "../sparse-00001.safetensors",
    ),
    "parts that are none": (lambda s: s["tensors"][PLAIN].update(parts=[1]), PLAIN, ""),
    "a part that isn't there": (lambda s: s["tensors"][PLAIN]["parts"].update(values="x"), "x", ""),
    "a tensor that lacks": (lambda s: s["tensors"].pop(PLAIN), f"{PLAIN}:values", ""),
    "a tensor of another shape": (lambda s: s["tensors"][PLAIN].update(shape=[4, 8]), PLAIN, ""),
    "more than there is room for": (lambda s: s["tensors"].update(x=HUGE), SHEET, "1,000,000,0"),
    "another part's numbers": (
        lambda s: s["tensors"][UP].update(parts=s["tensors"][NEXT]["parts"]),
        f"{UP}:places",
        "",
    ),
}


@pytest.mark.parametrize("what", SHEETS)
def test_a_sheet_that_is_wrong_is_named(pruned: Path, tmp_path: Path, what: str) -> None:
    change, subject, value = SHEETS[what]
    folder = Path(shutil.copytree(pruned, tmp_path / "folder"))
    changed(folder, change)
    with quick():
        said = refusal_of(load, folder)
    assert said.subject == subject
    assert value in str(said)


FORMS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an unknown form": (lambda e: e["form"].update(form="runes"), "'runes'"),
    "a form that is none": (lambda e: e.update(form=7), "up_proj"),
    "scales of another shape": (lambda e: e["tensors"]["scales"].update(shape=[2, 64]), "(2, 64)"),
    "transposed": (lambda e: e.update(transposed=True), "[32, 64]"),
    "another type": (lambda e: e.update(dtype="float16"), "torch.float32"),
    "more numbers": (lambda e: e.update(shape=[64, 64]), "2,048"),
}


@pytest.mark.parametrize("what", FORMS)
def test_a_packed_form_that_is_wrong_is_named(rounded: Path, tmp_path: Path, what: str) -> None:
    change, value = FORMS[what]
    folder = Path(shutil.copytree(rounded, tmp_path / "folder"))
    changed(folder, lambda sheet: change(sheet["tensors"][UP]))
    with quick():
        said = refusal_of(load, folder)
    assert said.subject.startswith(UP)
    assert value in str(said)


def numbers_elsewhere(folder: Path) -> None:
    (folder / NUMBERS).rename(folder.parent / NUMBERS)
    (folder / NUMBERS).symlink_to(folder.parent / NUMBERS)


def one_bit_flipped(tensors: dict[str, torch.Tensor]) -> None:
    tensors[f"{GATE}:bits"][0] ^= 1


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "numbers cut short": (
        lambda f: (f / NUMBERS).write_bytes((f / NUMBERS).read_bytes()[:-9]),
        "{folder}/" + NUMBERS,
    ),
    "numbers of elsewhere": (numbers_elsewhere, NUMBERS),
    "a sheet cut short": (
        lambda f: (f / SHEET).write_text((f / SHEET).read_text()[:-9]),
        "{folder}/" + SHEET,
    ),
    "no configuration": (lambda f: (f / "config.json").unlink(), "config.json"),
    "one bit of a mask": (lambda f: numbers_changed(f, one_bit_flipped), GATE),
    "one number": (
        lambda f: numbers_changed(f, lambda t: t[f"{UP}:values"].__setitem__(7, 3.0)),
        UP,
    ),
    "a place beyond the others": (
        lambda f: numbers_changed(f, lambda t: t[f"{UP}:places"].__setitem__(0, 0)),
        UP,
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_wrong_are_named(pruned: Path, tmp_path: Path, what: str) -> None:
    act, subject = FILES[what]
    folder = Path(shutil.copytree(pruned, tmp_path / "folder"))
    act(folder)
    with quick():
        assert refusal_of(load, folder).subject == subject.format(folder=folder)


@pytest.mark.parametrize("tried", seeds(16, 40))
@pytest.mark.parametrize("kind", ["pruned", "rounded"])
def test_mangled_at_random_it_opens_as_it_was_or_is_refused(
    kind: str, tried: range, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sound: Path = request.getfixturevalue(kind)
    gone, as_it_was = 0, load(sound).state_dict()
    for seed in tried:
        folder, chance = (
            Path(shutil.copytree(sound, tmp_path / str(seed))),
            random.Random(f"{kind} {seed}"),
        )
        if seed % 2:
            (folder / "sparse.json").write_text(
                mangled_json((folder / "sparse.json").read_text(), chance)
            )
        else:
            (folder / NUMBERS).rename(folder / "model.safetensors")
            of_header(folder, chance)
            (folder / "model.safetensors").rename(folder / NUMBERS)
        if not opens_or_is_refused(lambda ref: open_model(ref, "float32", "cpu"), folder):
            gone += 1
            continue
        again = load(folder).state_dict()
        assert all(same(again[name], tensor) for name, tensor in as_it_was.items()), seed
    assert gone > len(tried) // 4


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    assert refusal_of(load, tmp_path / "nothing").subject == str(tmp_path / "nothing")
