"""llama-quantize: a whole file by one of llama.cpp's recipes, weighted with an imatrix of the
calibration data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

from calibrant.activations import FeatureNorms, Propagation, Seen, Statistic
from calibrant.edits import Edit, Replace, ReplaceParameters
from calibrant.errors import TargetError
from calibrant.job import Job
from calibrant.llama_cpp import quantize_file
from calibrant.methods._base import Compressed, StandIn, finite
from calibrant.methods._model_method import ModelMethod
from calibrant.methods.quantization._stand_ins import RecipeByMatrix
from calibrant.models import ModelView, Weight, gguf_of
from calibrant.models.gguf_writing import (
    GgufPart,
    check_template,
    check_vocabulary,
    parts_of,
    plain,
    tensor_names,
    write_gguf,
)
from calibrant.models.imatrix import importance_of
from calibrant.packed import GgmlBlocks, Packed
from calibrant.system.clock import spent_on
from calibrant.targets import GgmlKind, GgufRecipe, Target
from calibrant.walk.statistics import untouched

NUMBERS: Final = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)
"""Types whose tensors aren't quantized: they are plain numbers."""


class FileTensor(NamedTuple):
    """A tensor of a file: its type, and its rows as that type has them."""

    kind: GGMLQuantizationType
    numbers: torch.Tensor


@dataclass(frozen=True, repr=False)
class LlamaQuantize(ModelMethod):
    """Has the real llama.cpp quantize the model by a recipe, embedding and head too; the export
    `gguf` writes the file that llama-quantize would.

    The model was opened from a GGUF file, or has one to be `like`. With `importance=false` it looks
    at no data, as llama-quantize without an imatrix. Needs the package llama-cpp-py-sync: `pip
    install 'calibrant[ggml]'`.
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
        if isinstance(target, GgmlKind):
            return GgufRecipe(target.name.upper())
        return target

    def heeds(self, target: Target) -> bool:
        aim = self.aim(target)
        return self.importance and isinstance(aim, GgufRecipe) and aim.weighted

    def stand_in(self, target: Target) -> StandIn | None:
        aim = self.aim(target)
        if not isinstance(aim, GgufRecipe) or aim.kind is None:
            return None
        differs = "every matrix gets the kind that most of the recipe's get"
        return StandIn(RecipeByMatrix(), aim, differs)

    def edits(self, job: Job) -> Iterator[Edit]:
        # The whole file is made at once: no matrix gets inputs from one that is rounded already.
        if job.propagate != "dense":
            problem = f"{self} looks at the dense model alone"
            message = f"{problem}, and propagate={job.propagate} was asked for; leave it out"
            raise TargetError(message, subject=job.propagate)
        if any(isinstance(edit, ReplaceParameters) for edit in job.done):
            return
        template = self._template(job)
        replaced = {edit.weight.name for edit in job.done if isinstance(edit, Replace)}
        seen: dict[Weight, Seen] = {}
        if self.observes and job.batch is not None:
            seen = dict(
                untouched(
                    job.opened,
                    job.view,
                    job.batch,
                    self.observes,
                    root=job.statistics,
                    progress=job.progress,
                    ranks=job.ranks,
                )
            )
        with spent_on("method"), TemporaryDirectory() as folder:
            quantized = self._quantized(job, template, Path(folder), seen)
        quantized = dict(_in_own_order(job.view, quantized))
        dtype = job.opened.dtype
        for weight in job.view.weights:
            tensor = quantized.pop(weight.name)
            if weight.name not in replaced:
                compressed = _compressed(tensor, weight.get(), dtype)
                yield Replace(weight, compressed, seen.get(weight, Seen({})))
        # What is left are parameters that are no matrices of blocks. Those that became plain
        # numbers stay as they are.
        device = next(job.view.model.parameters()).device
        others: dict[str, Packed] = {}
        for name, tensor in quantized.items():
            packed = _packed(tensor, device, dtype)
            if packed is not None:
                others[name] = packed
        yield ReplaceParameters(others)

    def _template(self, job: Job) -> Path:
        """Return the GGUF file whose metadata the quantized one gets. `TargetError` without one."""
        name = self.like or job.opened.name
        template = gguf_of(name)
        if template is None:
            problem = f"{name} is no GGUF file, whose metadata {self.spec_name()} needs"
            advice = f"name one of the same model, {self.spec_name()}(like='FILE.gguf')"
            raise TargetError(f"{problem}; {advice}", subject=name)
        check_template(job.view, template)
        if self.like:
            check_vocabulary(job.opened, template)
        return template

    def _quantized(
        self, job: Job, template: Path, folder: Path, seen: Mapping[Weight, Seen]
    ) -> dict[str, FileTensor]:
        """Return every tensor of the file that llama.cpp makes in `folder`, by its name there; one
        tensor has all experts of a layer.
        """
        source = folder / "dense.gguf"
        target = folder / "quantized.gguf"
        names = tensor_names(job.view)
        # As float32, so that llama.cpp rounds once.
        write_gguf(job.view, template, source, _as_float32, {})
        means: dict[str, np.ndarray] = {}
        # All experts of a layer are one entry, as in an imatrix.
        for name, entry in importance_of(job.view, seen, names).items():
            means[name] = entry.importance.ravel()
        # Means of other matrices replace those of the imatrix, whose sums are rounded to float32.
        for weight, statistics in seen.items():
            statistic = statistics[FeatureNorms]
            norms = finite(statistic.norms(), f"the norms of the inputs of {weight.name}")
            # What no token reached has no mean.
            if weight.expert is None and statistic.mass > 0:
                mean = (norms.double() / statistic.mass).float().cpu().numpy()
                means |= dict.fromkeys(names[weight.name], mean)
        quantize_file(source, target, str(self.aim(job.target)), means, torch.get_num_threads())
        quantized: dict[str, FileTensor] = {}
        for tensor in gguf.GGUFReader(target).tensors:
            rows = torch.from_numpy(np.array(tensor.data))
            quantized[str(tensor.name)] = FileTensor(tensor.tensor_type, rows)
        return quantized


def _as_float32(part: GgufPart) -> Any:
    return plain(part, GGMLQuantizationType.F32)


def _in_own_order(
    view: ModelView, quantized: Mapping[str, FileTensor]
) -> Iterator[tuple[str, FileTensor]]:
    """Yield what became of each matrix of the view, and of every other parameter, with its name:
    rows in the model's own order.

    Raises `TargetError` where gate and up of experts, which are one matrix here, got different
    types.
    """
    experts: dict[str, list[GgufPart]] = {}
    for part in parts_of(view):
        if part.rows is not None:
            experts.setdefault(part.parameter, []).append(part)
            continue
        kind, numbers = quantized[part.name]
        if part.order is not None:
            numbers = torch.empty_like(numbers).index_copy_(0, part.order, numbers)
        yield part.matrix or part.parameter, FileTensor(kind, numbers)
    for parts in experts.values():
        kinds = [quantized[part.name].kind for part in parts]
        if len(set(kinds)) > 1:
            became = [f"{part.name} {kind.name}" for part, kind in zip(parts, kinds, strict=True)]
            problem = f"llama.cpp made {' and '.join(became)}, and they are one matrix here"
            advice = "use calibrant imatrix and llama-quantize"
            raise TargetError(f"{problem}; {advice}", subject=parts[0].name)
        of_all_experts = torch.cat([quantized[part.name].numbers for part in parts], dim=1)
        for name, numbers in zip(parts[0].experts, of_all_experts, strict=True):
            yield name, FileTensor(kinds[0], numbers)


def _compressed(tensor: FileTensor, before: torch.Tensor, dtype: torch.dtype) -> Compressed:
    """Return the matrix that a tensor of the file is, with its packed form unless it has plain
    numbers.
    """
    packed = _packed(tensor, before.device, dtype)
    if packed is not None:
        return Compressed(packed.dense(), packed=packed)
    numbers = gguf.dequantize(tensor.numbers.numpy(), tensor.kind)
    return Compressed(torch.from_numpy(numbers).to(before))


def _packed(tensor: FileTensor, device: torch.device, dtype: torch.dtype) -> Packed | None:
    """Return the packed form of a tensor of the file; None for plain numbers."""
    if tensor.kind in NUMBERS:
        return None
    return GgmlBlocks(tensor.kind.name.lower(), tensor.numbers.to(device), dtype)
