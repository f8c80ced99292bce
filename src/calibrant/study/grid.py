"""What a study asks: models × calibration sets × methods × sparsities × draws, and what is measured on every run."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from calibrant.compress import Asked, Progress, silent
from calibrant.data import CalibrationSet
from calibrant.errors import SpecError
from calibrant.evaluate import Evaluator, evaluators
from calibrant.methods import Method, methods
from calibrant.store import Store
from calibrant.study.local import Finished, Job, Question


@dataclass(frozen=True)
class Study:
    """Every model × calibration set × method × sparsity × draw, and the evaluators to measure each with.

    A single value stands for a list of one. `seeds` are calibration draws. `baselines` look at no data: `none` is the dense model, the others
    are asked at every sparsity. `propagate=None` means `dense` for methods that only score and `arrival` for methods that update the weights
    they keep. With `masks`, a bit for each weight is kept in the store, so that a later measurement needs no new pruning.

    Raises an `InputError` for anything that can't be read, when the study is built.
    """

    models: Sequence[str] | str
    data: Sequence[str] | str
    methods: Sequence[str] | str = ("wanda",)
    sparsities: Sequence[float | str] | float | str = (0.5,)
    seeds: Sequence[int] | int = (0,)
    evaluate: Sequence[str] | str = ("loss(source=wikitext)",)
    baselines: Sequence[str] | str = ("none", "magnitude")
    samples: int = 128
    length: int = 2048
    tokens: int | None = None
    propagate: str | None = None
    allocation: str = "uniform"
    dtype: str = "auto"
    device: str = "auto"
    masks: bool = True

    def __post_init__(self) -> None:
        for axis in ("models", "data", "methods", "sparsities", "seeds", "evaluate", "baselines"):
            object.__setattr__(self, axis, _listed(getattr(self, axis)))
            if not getattr(self, axis) and axis != "baselines":
                raise SpecError(f"a study needs at least one of {axis}, and the list is empty", subject=axis)
        for text in _listed(self.baselines):
            if _method(text).observes:
                raise SpecError(f"{text!r} looks at calibration data, so it is no baseline; list it under methods", subject=text)
        self.evaluators()
        self.questions()

    def propagation(self, method: str | Method) -> str:
        """What a matrix sees while this study prunes with `method`: each method's own default unless `propagate` says otherwise."""
        return self.propagate or ("arrival" if _method(method).updates else "dense")

    def evaluators(self) -> dict[str, Evaluator]:
        """What measures every run, by its text."""
        return {str(e): e for e in (evaluators.build(text) for text in _listed(self.evaluate))}

    def questions(self) -> list[Question]:
        """The cells of the grid in the order in which they are answered: model by model, baselines first, then draw by draw."""
        return [question for model in _listed(self.models) for question in self._of(model)]

    def as_yaml(self) -> str:
        """The study as a YAML file: one key a line, its value in YAML's JSON subset."""
        asked = {f.name: getattr(self, f.name) for f in fields(self)}
        return "# a study of calibrant, as asked\n" + "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in asked.items())

    def run(self, folder: str | Path, progress: Progress = silent) -> Finished:
        """Compute what the store in `folder` lacks. Interrupted, it loses at most the step it was at; asked again, it goes on from there.

        Raises `OutputError` for a folder that isn't ours or a full disk, and a lone model's own error if it can't be opened. Whatever else
        fails is recorded in the store's `failures/`, and the rest goes on.
        """
        with Store(folder) as store:
            store.write_text("study.yaml", self.as_yaml())
            job = Job(store, self.questions(), self.evaluators(), self.dtype, self.device, self.masks, progress)
            return job.run()

    def _of(self, model: str) -> Iterator[Question]:
        looking = [m for m in _listed(self.methods) if _method(m).observes]
        for text in dict.fromkeys([*_listed(self.baselines), *(m for m in _listed(self.methods) if m not in looking)]):
            for sparsity in (0.0,) if text == "none" else _listed(self.sparsities):
                yield Question(model, None, self._asked(text, sparsity))
        for seed in _listed(self.seeds):
            for expression in _listed(self.data):
                calibration = CalibrationSet(expression, samples=self.samples, length=self.length, tokens=self.tokens, seed=seed)
                for text in looking:
                    for sparsity in _listed(self.sparsities):
                        yield Question(model, calibration, self._asked(text, sparsity))

    def _asked(self, method: str, sparsity: float | str) -> Asked:
        return Asked.parse(_method(method), sparsity, self.propagation(method), self.allocation)


def _method(spec: str | Method) -> Method:
    """A method by its text. Alone, the word `none` would be read as the literal that it is inside a spec."""
    return methods.build("none()" if spec == "none" else spec)


def _listed(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | int | float) else tuple(value)
