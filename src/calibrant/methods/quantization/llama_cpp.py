"""llama-quantize: a whole file by one of llama.cpp's recipes, or within a budget of bytes, weighted
with an imatrix of the calibration data.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final

import numpy as np
from gguf import GGMLQuantizationType

from calibrant.activations import FeatureNorms, Propagation, Seen, Statistic
from calibrant.data import divided
from calibrant.edits import Edit, Replace, ReplaceParameters
from calibrant.errors import TargetError
from calibrant.job import Job
from calibrant.methods._base import StandIn, check_choice, finite
from calibrant.methods._model_method import ModelMethod, check_blocks_together
from calibrant.methods.quantization._gguf_file import (
    DenseFile,
    FileTensor,
    compressed_of,
    in_own_order,
    packed_of,
)
from calibrant.methods.quantization._gguf_kinds import (
    RECIPE,
    ChosenKinds,
    KindCosts,
    chosen_within,
    costs_of_kinds,
    smallest_kinds,
)
from calibrant.methods.quantization._stand_ins import BudgetByMatrix, RecipeByMatrix
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
from calibrant.numerics import finite_number
from calibrant.packed import Packed
from calibrant.spec.spec import later
from calibrant.system.clock import spent_on
from calibrant.system.products import exact
from calibrant.targets import GgmlKind, GgufBudget, GgufRecipe, Target
from calibrant.walk.statistics import untouched
from calibrant.walk.variants import divergences_alone

TRIED: Final = 256
"""About how many calibration tokens show what the model loses by one tensor alone."""
TENSORS: Final = 7
"""Tensors of most blocks, for plans: four of attention, three of the feed-forward network."""


@dataclass(frozen=True, repr=False)
class LlamaQuantize(ModelMethod):
    """Has the real llama.cpp quantize the model by a recipe, embedding and head too; the export
    `gguf` writes the file that llama-quantize would.

    For a budget such as `gguf 90MB` each tensor gets a kind of its own, so that what all of them
    cost is least. By `error` a tensor costs the relative error of its outputs. By `kl` it costs
    what the model's predictions lose by it alone, which takes a forward for each tensor. Take `kl`
    where the model fits in memory: by `error` a large tensor counts no more than a small one, and
    on the one model tried that was no better than a recipe.

    The model was opened from a GGUF file, or has one to be `like`. With `importance=false` it looks
    at no data, as llama-quantize without an imatrix. Needs the package llama-cpp-py-sync: `pip
    install 'calibrant[ggml]'`.
    """

    accepts: ClassVar[tuple[type[Target], ...]] = (GgufRecipe, GgufBudget)
    propagate: ClassVar[Propagation] = "dense"
    # The whole file is made at once: no matrix gets inputs from one that is rounded already.
    propagations: ClassVar[tuple[Propagation, ...]] = ("dense",)

    like: str = ""
    importance: bool = True
    by: str = later("error")

    def __post_init__(self) -> None:
        check_choice(self, by=("error", "kl"))

    @property
    def tries(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return self.by == "kl"

    @property
    def observes(self) -> tuple[type[Statistic], ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  # a parameter decides
        return (FeatureNorms,) if self.importance else ()

    def aim(self, target: Target) -> Target:
        if isinstance(target, GgmlKind):
            target = GgufRecipe.of(target)
        self.check(target)
        return target

    def check(self, target: Target) -> None:
        super().check(target)
        if self.by == "kl" and not isinstance(target, GgufBudget):
            problem = f"{target} says which kinds tensors get, so there is nothing to choose"
            raise TargetError(f"{problem}; leave by=kl out", subject=str(target))

    def check_model(self, view: ModelView, target: Target, targets: Mapping[str, Target]) -> None:
        super().check_model(view, target, targets)
        if isinstance(target, GgufBudget):
            too_little = target.too_little_for(weight.shape for weight in view.weights)
            if too_little:
                raise TargetError(too_little, subject=str(target))

    def heeds(self, target: Target) -> bool:
        full_target = self.aim(target)
        if isinstance(full_target, GgufBudget):
            return self.looks
        return self.importance and isinstance(full_target, GgufRecipe) and full_target.weighted

    def tried(self, blocks: int, target: Target) -> int:
        # A forward for each tensor, and one of the model as it is.
        return TRIED * (TENSORS * blocks + 2) if self.tries else 0

    def stand_in(self, target: Target) -> StandIn | None:
        full_target = self.aim(target)
        if isinstance(full_target, GgufBudget) and self.importance:
            differs = "every matrix gets equally many bits, and the text decides no kind"
            return StandIn(BudgetByMatrix(), full_target, differs)
        if not isinstance(full_target, GgufRecipe) or full_target.kind is None:
            return None
        differs = "every matrix gets the kind that most of the recipe's get"
        return StandIn(RecipeByMatrix(), full_target, differs)

    def edits(self, job: Job) -> Iterator[Edit]:
        if self.tries:
            check_blocks_together(self, job)
        if any(isinstance(edit, ReplaceParameters) for edit in job.done):
            return
        template = self._template(job)
        replaced = {edit.weight.name for edit in job.done if isinstance(edit, Replace)}
        seen = self._seen(job)
        made, notes = self._quantized(job, template, seen)
        quantized = dict(in_own_order(job.view, made))
        dtype = job.opened.dtype
        for weight in job.view.weights:
            tensor = quantized.pop(weight.name)
            if weight.name not in replaced:
                compressed = compressed_of(tensor, weight.get(), dtype)
                yield Replace(weight, compressed, seen.get(weight, Seen({})))
        # What is left are parameters that are no matrices of blocks. Those that became plain
        # numbers stay as they are.
        device = job.view.device
        others: dict[str, Packed] = {}
        for name, tensor in quantized.items():
            packed = packed_of(tensor, device, dtype)
            if packed is not None:
                others[name] = packed
        yield ReplaceParameters(others, notes)

    def _seen(self, job: Job) -> dict[Weight, Seen]:
        """What the matrices of the untouched model see; nothing where no data is looked at."""
        if not self.observes or job.batch is None:
            return {}
        arrivals = untouched(
            job.opened,
            job.view,
            job.batch,
            self.observes,
            root=job.statistics,
            progress=job.progress,
            ranks=job.ranks,
        )
        return dict(arrivals)

    def _quantized(
        self, job: Job, template: Path, seen: Mapping[Weight, Seen]
    ) -> tuple[Mapping[str, FileTensor], Mapping[str, Any]]:
        """Return the tensors that llama.cpp makes of the model, and the notes on their kinds."""
        chosen = ChosenKinds({}, {})
        with TemporaryDirectory(prefix="calibrant-") as folder:
            with spent_on("method"):
                file = self._dense_file(job, template, Path(folder), seen)
            full_target = self.aim(job.target)
            recipe = str(full_target)
            if isinstance(full_target, GgufBudget):
                chosen = self._chosen(job, full_target, file)
                recipe = RECIPE
            with spent_on("method"):
                made = file.quantized(recipe, chosen.kinds)
        return made, chosen.notes

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

    def _dense_file(
        self, job: Job, template: Path, folder: Path, seen: Mapping[Weight, Seen]
    ) -> DenseFile:
        """Write the untouched model to `folder`, as float32, so that llama.cpp rounds once."""
        path = folder / "dense.gguf"
        names = tensor_names(job.view)
        write_gguf(job.view, template, path, _as_float32, {})
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
                mean = (exact(norms) / statistic.mass).float().cpu().numpy()
                means |= dict.fromkeys(names[weight.name], mean)
        return DenseFile(path, means)

    def _chosen(self, job: Job, target: GgufBudget, file: DenseFile) -> ChosenKinds:
        with spent_on("costs of kinds"):
            costs, plain_bytes = costs_of_kinds(target, file, job.progress)
        nats = None
        if self.by == "kl":
            with spent_on("method"):
                smallest = file.quantized(RECIPE, smallest_kinds(costs))
            nats = _nats_alone(job, costs, smallest)
        return chosen_within(target, costs, nats, plain_bytes)


def _nats_alone(
    job: Job, costs: Sequence[KindCosts], smallest: Mapping[str, FileTensor]
) -> list[float]:
    """What the model's predictions lose, in nats a token, where the tensors of each group alone are
    as they are in the file `smallest`.
    """
    tensors = dict(in_own_order(job.view, smallest))
    group_of: dict[str, int] = {}
    for number, group in enumerate(costs):
        group_of |= dict.fromkeys(group.names, number)
    changed: list[dict[str, FileTensor]] = [{} for _ in costs]
    for part in parts_of(job.view):
        if part.name in group_of:
            names = part.experts
            if not names:
                names = (part.matrix or part.parameter,)
            # Gate and up of experts have the same names here.
            for name in names:
                changed[group_of[part.name]][name] = tensors[name]
    changes: list[partial[AbstractContextManager[None]]] = []
    for number, of_group in enumerate(changed, 1):
        noted = partial(job.progress, "what each tensor alone loses", number, len(changed))
        changes.append(partial(_changed, job, of_group, noted))
    judged_on, _ = divided(job.tokens(), TRIED)
    nats = divergences_alone(job.view, judged_on, changes, job.ranks)
    for group, lost in zip(costs, nats, strict=True):
        name = group.names[0]
        finite_number(lost, f"what the predictions lose by {name} alone", name)
    return nats


@contextmanager
def _changed(
    job: Job, tensors: Mapping[str, FileTensor], noted: Callable[[], None]
) -> Iterator[None]:
    """While it lasts, matrices and parameters are what these tensors of a file are; `noted` is
    called at its end.
    """
    dtype = job.opened.dtype
    device = job.view.device
    with ExitStack() as stack:
        for name, tensor in tensors.items():
            weight = job.view.named.get(name)
            if weight is not None:
                edit = Replace(weight, compressed_of(tensor, weight.get(), dtype))
                stack.enter_context(job.trying(edit))
                continue
            packed = packed_of(tensor, device, dtype)
            if packed is not None:
                stack.enter_context(job.trying(ReplaceParameters({name: packed})))
        yield
    noted()


def _as_float32(part: GgufPart) -> Any:
    return plain(part, GGMLQuantizationType.F32)
