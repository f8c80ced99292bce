"""llama-quantize: a whole file by one of llama.cpp's recipes, weighted with an imatrix of the
calibration data.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType

from calibrant.activations import FeatureNorms, Seen, Statistic
from calibrant.edits import Edit, Replace, ReplaceParameters
from calibrant.errors import TargetError
from calibrant.job import Job
from calibrant.llama_cpp import quantize_file
from calibrant.methods._base import Compressed, Method, StandIn, finite
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
from calibrant.packed import GgmlBlocks
from calibrant.system.clock import spent_on
from calibrant.targets import GgmlKind, GgufRecipe, Target
from calibrant.walk import Propagation
from calibrant.walk.statistics import untouched

NUMBERS: Final = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)

Made = Mapping[str, tuple[GGMLQuantizationType, np.ndarray]]
"""Every tensor of a file: its type and its rows, of experts those of each."""


@dataclass(frozen=True, repr=False)
class LlamaQuantize(Method):
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
        return GgufRecipe(target.name.upper()) if isinstance(target, GgmlKind) else target

    def heeds(self, target: Target) -> bool:
        aim = self.aim(target)
        return self.importance and isinstance(aim, GgufRecipe) and aim.weighted

    def stand_in(self, target: Target) -> StandIn | None:
        aim = self.aim(target)
        known = isinstance(aim, GgufRecipe) and aim.kind is not None
        return (
            StandIn(
                RecipeByMatrix(), aim, "every matrix gets the kind that most of the recipe's get"
            )
            if known
            else None
        )

    def edits(self, job: Job) -> Iterator[Edit]:
        if job.propagate != "dense":
            raise TargetError(
                f"{self} looks at the dense model alone, and propagate={job.propagate} was asked for; leave it out",
                subject=job.propagate,
            )
        if any(isinstance(edit, ReplaceParameters) for edit in job.done):
            return
        template, done = (
            self._template(job),
            {edit.weight.name for edit in job.done if isinstance(edit, Replace)},
        )
        how = {"root": job.statistics, "progress": job.progress, "ranks": job.ranks}
        seen = (
            dict(untouched(job.opened, job.view, job.batch, self.observes, **how))
            if self.observes and job.batch is not None
            else {}
        )
        with spent_on("method"), TemporaryDirectory() as folder:
            made = self._quantized(job, template, Path(folder), seen)
        rows, device = dict(_in_own_order(job.view, made)), next(job.view.model.parameters()).device
        for weight in job.view.weights:
            kind, content = rows.pop(weight.name)
            if weight.name not in done:
                yield Replace(
                    weight,
                    _compressed(kind, content, weight.get(), job.opened.dtype),
                    seen.get(weight, Seen({})),
                )
        others = {
            name: _packed(kind, content.to(device), job.opened.dtype)
            for name, (kind, content) in rows.items()
        }
        yield ReplaceParameters(
            {name: packed for name, packed in others.items() if packed is not None}
        )

    def _template(self, job: Job) -> Path:
        found = gguf_of(self.like or job.opened.name)
        if found is None:
            message = f"{self.like or job.opened.name} is no GGUF file, whose metadata {self.spec_name()} needs"
            raise TargetError(
                f"{message}; name one of the same model, {self.spec_name()}(like='FILE.gguf')",
                subject=self.like,
            )
        check_template(job.view, found)
        if self.like:
            check_vocabulary(job.opened, found)
        return found

    def _quantized(
        self, job: Job, template: Path, folder: Path, seen: Mapping[Weight, Seen]
    ) -> Made:
        """Every tensor of the file that llama.cpp makes, its type and its rows."""
        source, target, names = (
            folder / "dense.gguf",
            folder / "quantized.gguf",
            tensor_names(job.view),
        )
        write_gguf(
            job.view, template, source, lambda part: plain(part, GGMLQuantizationType.F32), {}
        )
        # All experts of a layer are one entry, as in an imatrix; of other matrices the means aren't
        # rounded to an imatrix's sums first.
        means = {
            name: entry.importance.ravel()
            for name, entry in importance_of(job.view, seen, names).items()
        }
        for weight, there in seen.items():
            norms = there[FeatureNorms]
            mean = (
                (
                    finite(norms.norms(), f"the norms of the inputs of {weight.name}").double()
                    / norms.mass
                )
                .float()
                .cpu()
                .numpy()
            )
            means |= {} if weight.expert is not None else dict.fromkeys(names[weight.name], mean)
        quantize_file(source, target, str(self.aim(job.target)), means, torch.get_num_threads())
        return {
            str(t.name): (t.tensor_type, np.array(t.data)) for t in gguf.GGUFReader(target).tensors
        }


def _in_own_order(
    view: ModelView, made: Made
) -> Iterator[tuple[str, tuple[GGMLQuantizationType, torch.Tensor]]]:
    """What became of each matrix of the view, and of every other parameter: its type, and its rows
    in the model's own order.

    Raises `TargetError` where gate and up of experts, which are one matrix here, became of two
    types.
    """
    experts = dict[str, list[GgufPart]]()
    for part in parts_of(view):
        if part.rows is not None:
            experts.setdefault(part.parameter, []).append(part)
            continue
        kind, content = made[part.name]
        rows = torch.from_numpy(content)
        yield (
            part.matrix or part.parameter,
            (
                kind,
                rows
                if part.order is None
                else torch.empty_like(rows).index_copy_(0, part.order, rows),
            ),
        )
    for parts in experts.values():
        kinds = [made[part.name][0] for part in parts]
        if len(set(kinds)) > 1:
            names = " and ".join(
                f"{part.name} {kind.name}" for part, kind in zip(parts, kinds, strict=True)
            )
            raise TargetError(
                f"llama.cpp made {names}, and they are one matrix here; use calibrant imatrix and llama-quantize",
                subject=parts[0].name,
            )
        together = torch.from_numpy(np.concatenate([made[part.name][1] for part in parts], axis=1))
        yield from (
            (name, (kinds[0], rows)) for name, rows in zip(parts[0].experts, together, strict=True)
        )


def _compressed(
    kind: GGMLQuantizationType, rows: torch.Tensor, before: torch.Tensor, dtype: torch.dtype
) -> Compressed:
    """The matrix that its rows are, with its packed form, which what is plain numbers there
    doesn't have.
    """
    packed = _packed(kind, rows.to(before.device), dtype)
    if packed is not None:
        return Compressed(packed.dense(), packed=packed)
    return Compressed(torch.from_numpy(gguf.dequantize(rows.numpy(), kind)).to(before))


def _packed(
    kind: GGMLQuantizationType, rows: torch.Tensor, dtype: torch.dtype
) -> GgmlBlocks | None:
    return None if kind in NUMBERS else GgmlBlocks(kind.name.lower(), rows, dtype)
