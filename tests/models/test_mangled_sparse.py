"""A folder of the export `sparse` whose files are damaged, or made to do harm, is refused in a sentence, or opens as what it was."""

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
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.compress import export, quantize
from calibrant.errors import ModelError
from calibrant.models import load, open_model
from calibrant.models.compact import same
from calibrant.testing import tiny_folder

from tests.effort import quick
from tests.models.test_mangled_models import mangled_json, of_header, opens_or_is_refused

NUMBERS = "sparse-00001.safetensors"
UP = "model.layers.1.mlp.up_proj.weight"
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
    (place / "sparse" / "calibrant.json").unlink()  # whose hashes would refuse every change before the sheet is read
    return place / "sparse"


@pytest.fixture(scope="module")
def rounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes with zero points."""
    place = tmp_path_factory.mktemp("rounded")
    quantize(str(tiny_folder(place / "model")), target="w4g16a", out=place / "out", dtype="float32", export="sparse")
    return place / "out" / "sparse"


def changed(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    sheet = json.loads((folder / "sparse.json").read_text())
    change(sheet)
    (folder / "sparse.json").write_text(json.dumps(sheet))


def numbers_changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / NUMBERS)
    change(tensors)
    save_file(tensors, folder / NUMBERS)


def test_it_has_what_it_is_to_be_mangled_in(pruned: Path, rounded: Path) -> None:
    tensors = json.loads((pruned / "sparse.json").read_text())["tensors"]
    assert {entry["layout"] for entry in tensors.values()} == {"whole", "zeros", "bits", "n_of_m"}
    entry = json.loads((rounded / "sparse.json").read_text())["tensors"][UP]
    assert (entry["form"], entry["tensors"]["codes"]["width"]) == ({"grid": "w4g16a", "form": "codes", "around_zeros": True}, 4)


HUGE: dict[str, Any] = {"layout": "zeros", "shape": [10**6, 10**6], "dtype": "float32", "parts": {}, "sha256": ""}
SHEETS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a later version": (lambda s: s.update(version=2), r"is of version 2, and 1 can be read; upgrade calibrant"),
    "another format": (lambda s: s.update(format="dense"), r"but neither model.safetensors nor model.safetensors.index.json"),
    "no tensors": (lambda s: s.update(tensors={}), r"doesn't say how its tensors are stored \({}\)"),
    "tensors that are none": (lambda s: s["tensors"].update({UP: 5}), r"doesn't say how its tensors are stored"),
    "no files": (lambda s: s.update(files=[]), r"holds \['sparse-00001.safetensors'\], but its sparse.json lists \[\]"),
    "a file elsewhere": (lambda s: s.update(files=["../sparse-00001.safetensors"]), r"lists \['../sparse-00001.safetensors'\]"),
    "a file twice": (lambda s: s.update(files=[NUMBERS, NUMBERS]), r"but its sparse.json lists"),
    "a file that is none": (lambda s: s.update(files=[None]), r"but its sparse.json lists \[None\]"),
    "parts that are none": (lambda s: s["tensors"][PLAIN].update(parts=[1]), rf"says of '{PLAIN}' what can't be \(its parts are no names\)"),
    "parts that lack": (lambda s: s["tensors"][PLAIN].pop("parts"), rf"says of '{PLAIN}' what can't be"),
    "a part that isn't there": (lambda s: s["tensors"][PLAIN]["parts"].update(values="x"), r"lacks 'x', which its sparse.json names"),
    "a tensor that lacks": (lambda s: s["tensors"].pop(PLAIN), rf"holds '{PLAIN}:values', which its sparse.json doesn't name"),
    "a tensor of another name": (lambda s: s["tensors"].update(x=s["tensors"].pop(PLAIN)), r"has no numbers for model.layers.1.self_attn.q_proj"),
    "a tensor of another shape": (lambda s: s["tensors"][PLAIN].update(shape=[4, 8]), rf"'{PLAIN}' isn't stored as sparse.json says \(the shape of"),
    "more than there is room for": (lambda s: s["tensors"].update(x=HUGE), r"asks for 1,000,000,\d{3},\d{3} numbers, and its files have room for"),
    "more dimensions than can be": (lambda s: s["tensors"].update(x={**HUGE, "shape": [1] * 9}), r"says of 'x' what can't be \(shape and dtype"),
    "a size that is no number": (lambda s: s["tensors"].update(x={**HUGE, "shape": [1.5]}), r"says of 'x' what can't be \(shape and dtype"),
    "numbers of no type": (lambda s: s["tensors"].update(x={**HUGE, "dtype": "float7"}), r"says of 'x' what can't be \(shape and dtype"),
    "another hash": (lambda s: s["tensors"][UP].update(sha256="0" * 64), rf"'{UP}' isn't what it was when it was saved \(its SHA-256 differs\)"),
    "no hash": (lambda s: s["tensors"][UP].pop("sha256"), rf"'{UP}' isn't what it was when it was saved"),
    "another part's numbers": (
        lambda s: s["tensors"][UP].update(parts=s["tensors"][UP.replace("1", "2")]["parts"]),
        rf"holds '{UP}:places', which its sparse.json doesn't name",
    ),
    "numbers exchanged": (
        lambda s: s["tensors"].update({UP: s["tensors"][UP.replace("1", "2")], UP.replace("1", "2"): s["tensors"][UP]}),
        "",  # each is what it says, so the folder is another sound one
    ),
}


@pytest.mark.parametrize("what", SHEETS)
def test_a_sheet_that_is_wrong_is_named(pruned: Path, tmp_path: Path, what: str) -> None:
    change, said = SHEETS[what]
    folder = Path(shutil.copytree(pruned, tmp_path / "folder"))
    changed(folder, change)
    if not said:
        assert load(folder).model.layers[1].mlp.up_proj.weight.equal(load(pruned).model.layers[2].mlp.up_proj.weight)
        return
    with quick(), pytest.raises(ModelError, match=said) as found:
        load(folder)
    assert "\n" not in str(found.value)


FORMS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an unknown form": (lambda e: e["form"].update(form="runes"), r"isn't stored as sparse.json says \('runes'\)"),
    "no grid": (lambda e: e["form"].update(grid="0.5"), r"'0.5' is no grid"),
    "a form that is none": (lambda e: e.update(form=7), r"isn't stored as sparse.json says"),
    "no zero points": (lambda e: e["tensors"].update(zeros=e["tensors"]["scales"]), r"doesn't name"),
    "scales of another shape": (lambda e: e["tensors"]["scales"].update(shape=[2, 64]), r"the shape of its numbers are"),
    "another grid": (lambda e: e["form"].update(grid="w3g16a"), r"isn't what it was when it was saved"),
    "not around zero points": (lambda e: e["form"].pop("around_zeros"), r"isn't what it was when it was saved"),
    "transposed": (lambda e: e.update(transposed=True), r"its packed form is a torch.float32 of \[32, 64\]"),
    "another type": (lambda e: e.update(dtype="float16"), r"its packed form is a torch.float32 of \[64, 32\]"),
    "more numbers": (lambda e: e.update(shape=[64, 64]), r"its packed form has 2,048 numbers"),
}


@pytest.mark.parametrize("what", FORMS)
def test_a_packed_form_that_is_wrong_is_named(rounded: Path, tmp_path: Path, what: str) -> None:
    change, said = FORMS[what]
    folder = Path(shutil.copytree(rounded, tmp_path / "folder"))
    changed(folder, lambda sheet: change(sheet["tensors"][UP]))
    with quick(), pytest.raises(ModelError, match=said):
        load(folder)


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "numbers cut short": (lambda f: (f / NUMBERS).write_bytes((f / NUMBERS).read_bytes()[:-9]), "is no sound safetensors file"),
    "no numbers": (lambda f: (f / NUMBERS).unlink(), r"holds \[\], but its sparse.json lists"),
    "numbers of elsewhere": (
        lambda f: (f / NUMBERS).rename(f.parent / NUMBERS) and (f / NUMBERS).symlink_to(f.parent / NUMBERS),
        "is a link that leads out of",
    ),
    "a sheet cut short": (lambda f: (f / "sparse.json").write_text((f / "sparse.json").read_text()[:-9]), "is no JSON"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "numbers besides": (lambda f: shutil.copy(f / NUMBERS, f / "more.safetensors"), r"holds \['more.safetensors', 'sparse-00001.safetensors'\], but"),
    "one bit of a mask": (
        lambda f: numbers_changed(f, lambda t: t[UP.replace("up", "gate") + ":bits"].__setitem__(0, t[UP.replace("up", "gate") + ":bits"][0] ^ 1)),
        r"the shape of its numbers are",
    ),
    "one number": (lambda f: numbers_changed(f, lambda t: t[f"{UP}:values"].__setitem__(7, 3.0)), r"isn't what it was when it was saved"),
    "places as numbers": (lambda f: numbers_changed(f, lambda t: t.update({f"{UP}:places": t[f"{UP}:places"].float()})), r"the type of packed bits"),
    "a place beyond the others": (lambda f: numbers_changed(f, lambda t: t[f"{UP}:places"].__setitem__(0, 0)), r"aren't in order"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_that_are_wrong_are_named(pruned: Path, tmp_path: Path, what: str) -> None:
    act, said = FILES[what]
    folder = Path(shutil.copytree(pruned, tmp_path / "folder"))
    act(folder)
    with quick(), pytest.raises(ModelError, match=said):
        load(folder)
    found = CliRunner().invoke(app, ["export", str(folder), "--out", str(tmp_path / "out")])
    assert (found.exit_code, found.stdout, len(found.stderr.splitlines())) == (2, "", 1)
    assert not (tmp_path / "out").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"folder", NUMBERS}


@pytest.mark.parametrize("kind", ["pruned", "rounded"])
def test_mangled_at_random_it_opens_as_it_was_or_is_refused(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    sound: Path = request.getfixturevalue(kind)
    refused, as_it_was = 0, load(sound).state_dict()
    for seed in range(40):
        folder, chance = Path(shutil.copytree(sound, tmp_path / str(seed))), random.Random(f"{kind} {seed}")
        if seed % 2:
            (folder / "sparse.json").write_text(mangled_json((folder / "sparse.json").read_text(), chance))
        else:
            (folder / NUMBERS).rename(folder / "model.safetensors")
            of_header(folder, chance)
            (folder / "model.safetensors").rename(folder / NUMBERS)
        if not opens_or_is_refused(lambda ref: open_model(ref, "float32", "cpu"), folder):
            refused += 1
            continue
        again = load(folder).state_dict()
        assert all(same(again[name], tensor) for name, tensor in as_it_was.items()), seed
    assert refused > 10


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no folder '.*nothing'; give one that prune, quantize or export wrote"):
        load(tmp_path / "nothing")
