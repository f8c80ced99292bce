"""Writing a compressed model to a folder in every form that is asked for, and a finished one in
another form: from `sparse` to an ordinary Hugging Face folder, and back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calibrant.data.inspect.leaks import RUNS_FILE, RowFingerprints
from calibrant.errors import ModelError, OutputError
from calibrant.exports import CARD, CompressedModel, Export, exports
from calibrant.exports import card as card_of
from calibrant.exports.hf import HuggingFace
from calibrant.models import (
    check_output,
    check_savable,
    is_object,
    located,
    manifest_folder,
    open_as_saved,
    read_manifest,
    saved,
)
from calibrant.models.rounded_inputs import rounded_parts
from calibrant.spec.foreign import user_path
from calibrant.system.notebook import card


@dataclass(frozen=True)
class Exported:
    """What `export` gives back: the folder, its form, and how many bytes the files of `model`
    took and those of `out` take.
    """

    model: str
    out: Path
    form: str
    before: int
    after: int

    def _repr_html_(self) -> str:
        facts = {
            "saved in": self.out,
            "bytes before": f"{self.before:,}",
            "bytes after": f"{self.after:,}",
        }
        return card(f"{self.model} as {self.form}", facts)


def export(model: str | Path, out: str | Path, to: str | Export = "hf") -> Exported:
    """Write `model` into the folder `out` in the form `to`: `hf`, an ordinary Hugging Face folder,
    or `sparse`, which leaves out zeros.

    Its numbers stay the same, bit for bit, in the type that they were saved in; in float32 where a
    folder mixes types. Those of a GGUF file are dequantized, in float32. What Calibrant knows of
    the model (`calibrant.json`, the card, the rows that it was calibrated on) goes along. Codes
    aren't found again in dense numbers: `--export sparse` of the `quantize` that makes them keeps
    them. Raises an `InputError` for a model that can't be opened or is open already, a folder that
    isn't empty, and a form that needs more than numbers.
    """
    if is_object(model):
        raise ModelError(
            f"export takes a folder, a file or a name, and was given a {type(model).__name__}; "
            "save it first, or give the folder that it is saved in",
            subject=type(model).__name__,
        )
    form: Export = exports.build(to)
    folder = user_path(out, OutputError)
    check_output(folder)
    place = located(str(model))
    # Nothing is computed, so no accelerator needs room for it.
    opened = open_as_saved(str(model), "cpu")
    check_savable(opened)
    home = manifest_folder(place)
    old_manifest = read_manifest(home)
    files_beside: dict[str, bytes] = {}
    manifest: dict[str, Any] = {"calibrant": version("calibrant")}
    if old_manifest:
        manifest = dict(old_manifest)
        for name in (CARD, RUNS_FILE):
            if (home / name).is_file():
                files_beside[name] = (home / name).read_bytes()
    # These are the sizes of the files that the model had before.
    manifest.pop("sizes", None)
    manifest["exports"] = [str(form)]
    with saved(opened, folder, manifest, files_beside) as temporary:
        form.convert(opened, temporary)
    return Exported(str(model), folder, str(form), file_bytes(place), file_bytes(folder))


def forms_of(named: str | Export | Sequence[str | Export]) -> tuple[Export, ...]:
    """Return the forms that are written, each once, the dense folder first."""
    if isinstance(named, str | Export):
        named = (named,)
    forms: dict[str, Export] = {"hf": HuggingFace()}
    for name in named:
        form: Export = exports.build(name)
        forms[str(form)] = form
    return tuple(forms.values())


def write_forms(
    compressed: CompressedModel,
    forms: Sequence[Export],
    rows: RowFingerprints,
    folder: Path,
) -> dict[str, int]:
    """Write a model into `folder` in every form, with its manifest, its card and what tells the
    `rows` that it was calibrated on; or nothing of it. Return how many bytes each form takes.
    """
    record = compressed.record
    sizes: dict[str, int] = {}
    manifest = {
        "calibrant": version("calibrant"),
        "id": record.run.id,
        "record": record.plain(),
        **rows.entries,
        "exports": [str(form) for form in forms],
        # Filled below: `saved` writes the manifest last, when they are known.
        "sizes": sizes,
    }
    opened = compressed.opened
    with saved(opened, folder, manifest, rows.files) as temporary:
        for form in forms:
            form.write(compressed, temporary)
            before = sum(sizes.values())
            sizes[str(form)] = file_bytes(temporary, inside=True) - before
        text = card_of(record, opened.note, rounded_parts(opened.model))
        (temporary / CARD).write_text(text, encoding="utf-8")
    return sizes


def file_bytes(place: Path, inside: bool = False) -> int:
    """Return how many bytes the files of a folder take, with `inside` those in its folders too; of
    a file, how many it has.
    """
    if place.is_file():
        return place.stat().st_size
    files = place.rglob("*") if inside else place.iterdir()
    return sum(file.stat().st_size for file in files if file.is_file())
