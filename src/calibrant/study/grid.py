"""What a study asks: models × calibration sets × methods × sparsities × draws, and what is measured on every run."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from calibrant.compress import Asked
from calibrant.data import CalibrationSet
from calibrant.errors import SpecError
from calibrant.evaluators import Evaluator, evaluators, leaks, refuse
from calibrant.methods import Method, methods
from calibrant.progress import Progress, silent
from calibrant.store import Store
from calibrant.study.local import Finished, Job, Question


@dataclass(frozen=True)
class Study:
    """Every model × calibration set × method × sparsity × draw, and the evaluators to measure each with.

    A single value stands for a list of one. `seeds` are calibration draws. The dense model is always among the runs; methods that look at no
    data (magnitude) are asked once for each sparsity, whatever the sets. `propagate=None` means `dense` for methods that only score and
    `arrival` for methods that update the weights they keep. With `masks`, a bit for each weight is kept in the store, so that a later
    measurement needs no new pruning. Rows of a user's file that are also measured stop the study, unless `allow_leak`; records then keep their
    number.

    Raises an `InputError` for anything that can't be read, when the study is built.
    """

    models: Sequence[str] | str
    data: Sequence[str] | str
    methods: Sequence[str] | str = ("wanda", "magnitude")
    sparsities: Sequence[float | str] | float | str = (0.5,)
    seeds: Sequence[int] | int = (0,)
    evaluate: Sequence[str] | str = ("loss(source=wikitext)",)
    samples: int = 128
    length: int = 2048
    tokens: int | None = None
    propagate: str | None = None
    allocation: str = "uniform"
    dtype: str = "auto"
    device: str = "auto"
    masks: bool = True
    allow_leak: bool = False

    def __post_init__(self) -> None:
        for axis in ("models", "data", "methods", "sparsities", "seeds", "evaluate"):
            object.__setattr__(self, axis, _listed(getattr(self, axis)))
            if not getattr(self, axis):
                raise SpecError(f"a study needs at least one of {axis}, and the list is empty", subject=axis)
        self.evaluators()
        self.questions()

    def propagation(self, method: str | Method) -> str:
        """What a matrix sees while this study prunes with `method`: each method's own default unless `propagate` says otherwise."""
        return self.propagate or ("arrival" if methods.build(method).updates else "dense")

    def evaluators(self) -> dict[str, Evaluator]:
        """What measures every run, by its text."""
        return {str(e): e for e in (evaluators.build(text) for text in _listed(self.evaluate))}

    def questions(self) -> list[Question]:
        """The cells of the grid in the order in which they are answered: model by model, what looks at no data first, then draw by draw."""
        return [question for model in _listed(self.models) for question in self._of(model)]

    def as_yaml(self) -> str:
        """The study as a YAML file: one key a line, its value in YAML's JSON subset."""
        singular = {"models": "model", "methods": "method", "sparsities": "sparsity"}
        asked = {singular.get(f.name, f.name): getattr(self, f.name) for f in fields(self)}
        return "# a study of calibrant, as asked\n" + "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in asked.items())

    def run(self, folder: str | Path, progress: Progress = silent) -> Finished:
        """Compute what the store in `folder` lacks. Interrupted, it loses at most the step it was at; asked again, it goes on from there.

        Raises `OutputError` for a folder that isn't ours or a full disk, and a lone model's own error if it can't be opened. Whatever else
        fails is recorded in the store's `failures/`, and the rest goes on.
        """
        with Store(folder) as store:
            leaked = self._leaked()
            store.write_text("study.yaml", self.as_yaml())
            job = Job(store, self.questions(), self.evaluators(), self.dtype, self.device, self.masks, leaked, progress)
            return job.run()

    def _leaked(self) -> dict[str, dict[str, int]]:
        found = leaks((q.calibration for q in self.questions() if q.calibration), list(self.evaluators().values()))
        if not self.allow_leak:
            refuse(found)
        return found

    def _of(self, model: str) -> Iterator[Question]:
        looking = [m for m in _listed(self.methods) if methods.build(m).observes]
        for text in dict.fromkeys(["none", *(m for m in _listed(self.methods) if m not in looking)]):
            for sparsity in (0.0,) if text == "none" else _listed(self.sparsities):
                yield Question(model, None, self._asked(text, sparsity))
        for seed in _listed(self.seeds):
            for expression in _listed(self.data):
                calibration = CalibrationSet(expression, samples=self.samples, length=self.length, tokens=self.tokens, seed=seed)
                for text in looking:
                    for sparsity in _listed(self.sparsities):
                        yield Question(model, calibration, self._asked(text, sparsity))

    def _asked(self, method: str, sparsity: float | str) -> Asked:
        return Asked.parse(method, sparsity, self.propagation(method), self.allocation)


def _listed(value: Any) -> tuple[Any, ...]:
    return (value,) if isinstance(value, str | int | float) else tuple(value)
