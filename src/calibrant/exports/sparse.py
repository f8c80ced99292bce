"""The `sparse` folder: matrices without their zeros, codes and factors as they are;
`calibrant.load` makes the same model of it, bit for bit.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, final

import torch
from safetensors import safe_open
from torch import Tensor

from calibrant.errors import OutputError
from calibrant.exports._base import CompressedModel, Export, packed_now
from calibrant.methods import Method
from calibrant.models import ModelView, Opened
from calibrant.models.compact import same
from calibrant.models.folder import INDEX, READ
from calibrant.models.saving import write_model
from calibrant.models.sparse_folder import SparseWriter
from calibrant.packed import Codes, FloatCodes, GgmlBlocks, Packed
from calibrant.targets import Target

FOLDER: Final = "sparse"


@dataclass(frozen=True, repr=False)
class Sparse(Export):
    """Writes the folder `sparse`: of each matrix the numbers that aren't zero and their places, or
    its codes or factors. `calibrant.load` opens it.

    A matrix is stored in what takes least: as it is; without its zeros, with a bit for each number
    that says which are left; of N of every 4, 8 or 16 inputs, with the place of each; in its packed
    form, whose codes and factors are stored in the same ways; a matrix of nothing but zeros not at
    all. `sparse.json` says which it is. Loaded, it is the same model as that of the dense folder,
    and takes as much memory and time.
    """

    def check(self, method: Method, target: Target, opened: Opened, view: ModelView) -> None:
        self.check_inputs(opened, target)
        _check(self, opened)

    def write(self, compressed: CompressedModel, folder: Path) -> None:
        _without_zeros(folder, folder / FOLDER, packed_now(compressed))

    def convert(self, opened: Opened, folder: Path) -> None:
        self.check_inputs(opened)
        _check(self, opened)
        # Written whole first: only there the tensors have the names and shapes of a checkpoint.
        dense = folder / ".dense"
        write_model(opened, dense)
        _without_zeros(dense, folder, {})
        shutil.rmtree(dense)


def _check(form: Export, opened: Opened) -> None:
    """Raise `OutputError` for a model whose class isn't one of transformers."""
    if not type(opened.model).__module__.startswith("transformers."):
        raise OutputError(
            f"{form} holds models of architectures that transformers has, and {opened.name} is a "
            f"{type(opened.model).__name__} of its own code; leave the form {form} out",
            subject=opened.name,
        )


def _without_zeros(dense: Path, sparse: Path, packed: Mapping[str, Packed]) -> None:
    """Write the model in the folder `dense` without its zeros into the folder `sparse`, which is
    made if it isn't there.
    """
    sparse.mkdir(exist_ok=True)
    files = sorted(dense.glob("*.safetensors"))
    forms = _Forms(files, packed)
    writer = SparseWriter(sparse, packed.values())
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                tensor = tensors.get_tensor(name)
                form, transposed = forms.find(name, tensor)
                writer.add(name, tensor, form, transposed)
    writer.finish()
    for file in dense.iterdir():
        # Only what a tokenizer or a configuration is read from: other forms have files there too.
        numbers = file.suffix == ".safetensors" or file.name == INDEX
        if file.is_file() and file.name.endswith(READ) and not numbers:
            shutil.copy(file, sparse / file.name)


@final
class _Forms:
    """Finds the packed form of a tensor of the checkpoint: by name, or by content where the
    checkpoint cuts a matrix of experts into tensors that have other names.
    """

    def __init__(self, files: list[Path], packed: Mapping[str, Packed]) -> None:
        names: set[str] = set()
        for file in files:
            with safe_open(file, framework="pt") as tensors:
                names.update(tensors.keys())
        self._named: dict[str, Packed] = {}
        self._unnamed: dict[str, Packed] = {}
        for name, form in packed.items():
            if name in names or f"{name}.weight" in names:
                self._named[name] = form
            else:
                self._unnamed[name] = form
        self._first_rows: dict[tuple[int, int], dict[bytes, list[tuple[str, int]]]] = {}

    def find(self, name: str, tensor: Tensor) -> tuple[Packed | None, bool]:
        """Return a packed form that is this tensor bit for bit, and whether it is transposed
        there; None if there is none.
        """
        form = self._named.get(name.removesuffix(".weight"), self._named.get(name))
        if form is not None:
            # The name alone proves nothing: a later edit may have changed the numbers.
            dense = form.dense()
            if same(dense, tensor):
                return form, False
            if same(dense.T, tensor):
                return form, True
            return None, False
        if tensor.dim() == 2 and self._unnamed and tensor.numel():
            for other, row in self._rows_like(tensor):
                form = _rows_of(self._unnamed[other], row, len(tensor))
                # Like first rows are a hint; now all of it is compared.
                if form is not None and same(form.dense(), tensor):
                    return form, False
        return None, False

    def _rows_like(self, tensor: Tensor) -> list[tuple[str, int]]:
        """Return the forms that weren't found by name, each with the row at which a tensor may
        begin in it: one that is like its first row. A tensor begins at a multiple of its rows.
        """
        rows, columns = tensor.shape
        if (rows, columns) not in self._first_rows:
            places_of: dict[bytes, list[tuple[str, int]]] = {}
            for name, form in self._unnamed.items():
                dense = form.dense()
                if dense.shape[1] != columns:
                    continue
                for row in range(0, len(dense) - rows + 1, rows):
                    places_of.setdefault(_bytes(dense[row]), []).append((name, row))
            self._first_rows[rows, columns] = places_of
        return self._first_rows[rows, columns].get(_bytes(tensor[0]), [])


def _bytes(row: Tensor) -> bytes:
    return row.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _rows_of(form: Packed, row: int, count: int) -> Packed | None:
    """Return `count` rows of a packed form from `row` on; None where they can't be taken apart."""
    rows = slice(row, row + count)
    if isinstance(form, Codes):
        zeros = None if form.zeros is None else form.zeros[rows]
        return replace(form, codes=form.codes[rows], scales=form.scales[rows], zeros=zeros)
    if isinstance(form, GgmlBlocks):
        return replace(form, blocks=form.blocks[rows])
    # Scales that rows share aren't those of some rows alone.
    if isinstance(form, FloatCodes) and len(form.scales.stored) == len(form.codes):
        scales = replace(form.scales, stored=form.scales.stored[rows])
        return FloatCodes(scales, form.codes[rows])
    return form if form.dense().shape[0] == count else None
