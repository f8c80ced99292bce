"""llama-quantize: a whole file by one of llama.cpp's recipes, weighted with an imatrix of the calibration data."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

from calibrant.activations import FeatureNorms, Seen, Statistic
from calibrant.clock import spent_on
from calibrant.edits import Edit, Replace, ReplaceParameters
from calibrant.errors import TargetError
from calibrant.job import Job
from calibrant.llama_cpp import quantize_file
from calibrant.methods._base import Compressed, Method, finite
from calibrant.models import ModelView, Weight, expert_layers, gguf_of
from calibrant.models.gguf_names import tensor_names
from calibrant.models.gguf_writing import GgufPart, check_template, parts_of, plain, write_gguf
from calibrant.packed import GgmlBlocks
from calibrant.targets import GgmlKind, GgufRecipe, Target
from calibrant.walk import Propagation
from calibrant.walk.observing import untouched

NUMBERS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True, repr=False)
class LlamaQuantize(Method):
    """Has the real llama.cpp quantize the model by a recipe, embedding and head too; the export `gguf` writes the file that llama-quantize would.

    The model was opened from a GGUF file, or has one to be `like`. With `importance=false` it looks at no data, as llama-quantize without an
    imatrix. Needs the package llama-cpp-py-sync: `pip install 'calibrant[ggml]'`.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (GgufRecipe, GgmlKind)
    propagate: ClassVar[Propagation] = "dense"

    like: str = ""
    importance: bool = True

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return (FeatureNorms,) if self.importance else ()

    def aim(self, target: Target) -> Target:
        self.check(target)
        return GgufRecipe(target.name.upper()) if isinstance(target, GgmlKind) else target

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        if expert_layers(view):
            raise TargetError(f"{self} can't take models with experts yet; use calibrant imatrix and llama-quantize", subject=str(self))

    def edits(self, job: Job) -> Iterator[Edit]:
        if job.propagate != "dense":
            raise TargetError(
                f"{self} looks at the dense model alone, and propagate={job.propagate} was asked for; leave it out", subject=job.propagate
            )
        if any(isinstance(edit, ReplaceParameters) for edit in job.done):
            return
        template, done = self._template(job), {edit.weight.name for edit in job.done if isinstance(edit, Replace)}
        how = {"root": job.statistics, "progress": job.progress, "ranks": job.ranks}
        seen = dict(untouched(job.opened, job.view, job.batch, self.observes, **how)) if self.observes and job.batch is not None else {}
        with spent_on("method"), TemporaryDirectory() as folder:
            made = self._quantized(job, template, Path(folder), seen)
        matrices = {part.matrix: part for part in parts_of(job.view) if part.matrix}
        for weight in job.view.weights:
            if weight.name not in done:
                dense, packed = _numbers(matrices[weight.name], made, job.opened.dtype)
                yield Replace(weight, Compressed(dense, packed=packed), seen.get(weight, Seen({})))
        others = {part.parameter: _numbers(part, made, job.opened.dtype)[1] for part in parts_of(job.view) if not part.matrix}
        yield ReplaceParameters({name: packed for name, packed in others.items() if packed is not None})

    def _template(self, job: Job) -> Path:
        found = gguf_of(self.like or job.opened.name)
        if found is None:
            message = f"{self.like or job.opened.name} is no GGUF file, whose metadata {self.spec_name()} needs"
            raise TargetError(f"{message}; name one of the same model, {self.spec_name()}(like='FILE.gguf')", subject=self.like)
        check_template(job.view, found)
        return found

    def _quantized(self, job: Job, template: Path, folder: Path, seen: Mapping[Weight, Seen]) -> dict[str, tuple[GGMLQuantizationType, np.ndarray]]:
        """Every tensor of the file that llama.cpp makes, its type and its rows."""
        source, target, names = folder / "dense.gguf", folder / "quantized.gguf", tensor_names(job.view)
        write_gguf(job.view, template, source, lambda part: plain(part, GGMLQuantizationType.F32), {})
        means = dict[str, np.ndarray]()
        for weight, there in seen.items():
            norms = there[FeatureNorms]
            mean = (finite(norms.norms(), f"the norms of the inputs of {weight.name}").double() / norms.mass).float().cpu().numpy()
            means |= dict.fromkeys(names[weight.name], mean)
        quantize_file(source, target, str(self.aim(job.target)), means, torch.get_num_threads())
        return {str(t.name): (t.tensor_type, np.array(t.data)) for t in gguf.GGUFReader(target).tensors}


def _numbers(
    part: GgufPart, made: Mapping[str, tuple[GGMLQuantizationType, np.ndarray]], dtype: torch.dtype
) -> tuple[torch.Tensor, GgmlBlocks | None]:
    """What a tensor became, its rows in the model's own order, and its packed form, which what is plain numbers there doesn't have."""
    kind, content = made[part.name]
    rows = torch.from_numpy(content)
    if part.order is not None:
        rows = torch.empty_like(rows).index_copy_(0, part.order, rows)
    if kind in NUMBERS:
        return torch.from_numpy(gguf.dequantize(rows.numpy(), kind)).reshape(part.tensor.shape).to(part.tensor), None
    packed = GgmlBlocks(kind.name.lower(), rows.to(part.tensor.device), dtype)
    return packed.dense(), packed
