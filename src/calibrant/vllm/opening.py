"""A model that is open here, in vLLM too."""

from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, final

import torch

from calibrant.errors import ModelError
from calibrant.models import Opened, located, opened_of, save
from calibrant.models.digests import file_digests, folder_digest
from calibrant.models.folder import weight_files
from calibrant.models.rounded_inputs import rounding_facts
from calibrant.numerics import type_name
from calibrant.vllm.process import engine_in, interpreter
from calibrant.vllm.running import RunByVllm

SHARE: Final = 0.9
"""How much of what is free on a GPU vLLM may take: by default it takes so much of the whole."""


@final
class OpenInVllm:
    """Gives vLLM a model that is open: the folder that it was opened from, if the model has that
    folder's numbers. Else it is written into a temporary folder.

    It is a context manager: at the end vLLM's process ends, and the temporary folder goes. Raises
    `MissingPackageError` without vLLM.
    """

    def __init__(self, opened: Opened) -> None:
        python = interpreter()
        self.engine = engine_in(python)
        self._python = python
        self._opened = opened_of(opened)
        self._stack = ExitStack()
        self._run: RunByVllm | None = None

    def __enter__(self) -> "OpenInVllm":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, least_room: int) -> RunByVllm:
        """Return the model in vLLM, which is given it when this is first called, with room for so
        many tokens. Raises `ModelError` for a model that rounds its inputs, and `OutputError` where
        it can't be written.
        """
        if self._run is None:
            opened = self._opened
            folder = _folder_of(opened)
            if folder is None:
                folder = self._written()
            run = RunByVllm(
                opened.name,
                folder,
                type_name(opened.dtype),
                self._python,
                least_room,
                _settings(opened),
                str(opened.model.device),
            )
            self._stack.callback(run.close)
            self._run = run
        return self._run

    def _written(self) -> Path:
        opened = self._opened
        if rounding_facts(opened.model):
            raise ModelError(
                f"{opened.name} rounds its inputs or its KV cache, which vLLM does for an export "
                "alone; take the engine torch, or open the export compressed_tensors",
                subject=opened.name,
            )
        folder = Path(self._stack.enter_context(TemporaryDirectory())) / "model"
        save(opened, folder, {})
        return folder


def _folder_of(opened: Opened) -> Path | None:
    """Return the folder that a model was opened from, if it has that folder's numbers."""
    try:
        folder = located(opened.name)
        if not folder.is_dir():
            return None
        digests = file_digests(folder, weight_files(folder, opened.name))
    except ModelError:
        return None
    if folder_digest(digests) != opened.digest:
        return None
    return folder


def _settings(opened: Opened) -> dict[str, Any]:
    """Return what vLLM must know of the device, on which the model has memory too."""
    device = opened.model.device
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"gpu_memory_utilization": SHARE * free / total}
