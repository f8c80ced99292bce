"""lm-evaluation-harness, both ways: its tasks through Calibrant's engine, and the engine as one of
its models.

`harness(task=arc_easy, num_fewshot=5)` runs a task of the harness by name and scores it as the
harness does, with its version. What the harness asks of the model is answered by the engine, so
what requests share is computed once: an item's question always, and the exemplars where all items
have the same ones, which a task says with `fewshot_config: {sampler: first_n}`; by default the
harness draws others for each item. `include_path` is a folder of the user's own YAML tasks; Python
that such a file names is run, as the harness always does.

The other way round, `calibrant-lm-eval --model calibrant --model_args
pretrained=smollm2,dtype=float32 --tasks arc_easy` is the harness's own command line with one model
more; `python -m calibrant.evaluators.harness` is the same. The harness (0.4.13) looks for plug-ins
nowhere: plain `lm_eval` learns of no model that isn't in its own list, so the command must be ours.
In Python, `language_model()` registers it and gives the class.

This is the only file that imports `lm_eval`, and only when it is asked for something.
"""

import contextlib
import hashlib
import importlib
import logging
import math
import random
import sys
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from yaml import YAMLError

from calibrant.data import Row
from calibrant.errors import CalibrantError, DataError, NumericsError, SpecError
from calibrant.evaluators._base import MOST_SHOTS, Evaluator, Subject
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._language_model import Answering
from calibrant.models.quiet import quiet, quoted
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most, identity
from calibrant.spec.foreign import did_you_mean, user_path

NAME: Final = "calibrant"
"""What the model is called in the harness's registry."""

SEEDS: Final = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""What the harness's command line sets before a run: a task may draw from any of them, so its
items are the same here and there.
"""

ACCURACIES: Final = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
UNITS: Final = {"bits_per_byte": "bits/byte"}
WORDS: Final = 5
"""A field of a document with fewer words than this could be anybody's."""


@dataclass(frozen=True, repr=False)
class Harness(Evaluator):
    """A task of lm-evaluation-harness by its name, with the harness's own prompts, metrics and
    version.
    """

    task: str
    num_fewshot: int | None = None
    limit: int | None = None
    include_path: str | None = None
    metric: str | None = None

    def __post_init__(self) -> None:
        check_most(self, num_fewshot=MOST_SHOTS, limit=MOST)
        if self.limit is not None and self.limit < 1:
            raise SpecError(
                f"harness(limit={self.limit}): limit must be at least 1", subject="limit"
            )
        if self.num_fewshot is not None and self.num_fewshot < 0:
            raise SpecError(
                f"harness(num_fewshot={self.num_fewshot}): num_fewshot can't be negative",
                subject="num_fewshot",
            )

    def rows(self) -> Iterator[Row]:
        """Yield the task's documents: each of their texts that is long enough to be known again."""
        with _undisturbed():
            task = self._task()
            texts = dict.fromkeys(
                text
                for doc in task.eval_docs
                for text in (*doc.values(), task.doc_to_text(doc))
                if isinstance(text, str)
            )
        return (Row(question=text) for text in texts if len(text.split()) >= WORDS)

    def digest(self) -> str:
        """Return what the user's folder of tasks holds."""
        return digest_of_folder(self.include_path) if self.include_path else ""

    def limited(self, limit: int) -> "Harness":
        """Return the same with the first `limit` documents."""
        return replace(self, limit=limit)

    def measure(self, subject: Subject) -> Measurement:
        """Return the task's metric with one outcome per document, its other metrics beside it. An
        item is named by the hash of its document.

        `metric` names another one to be the score, and a filter if need be
        (`'exact_match,flexible-extract'`); it must be a mean over documents, or bits per byte: what
        can't be told item by item stands beside only.
        """

        def told(what: str, done: int, total: int) -> None:
            subject.progress(f"{what} {self}", done, total)

        answering = language_model()(
            subject.model,
            subject.tokenizer,
            progress=told,
            journal=subject.journal,
            measured=str(self),
        )
        with _undisturbed():
            task = self._task()
            results = _harness("lm_eval").evaluate(
                answering, {"tasks": {self.task: task}}, limit=self.limit, bootstrap_iters=0
            )
        return _HarnessResults(self, task, results).measurement()

    def _task(self) -> Any:
        """The task as the harness's command line would set it up. `SpecError` for a name that is
        none, `DataError` if its data can't be had.
        """
        manager = self._manager()
        from datasets.exceptions import (
            DatasetsError,
        )  # an optional package, which the harness brings

        try:
            loaded = manager.load([self.task])
        except (
            OSError,
            ValueError,
            KeyError,
            TypeError,
            AttributeError,
            ImportError,
            DatasetsError,
            YAMLError,
        ) as error:
            raise DataError(
                f"the harness's task {self.task!r} can't be loaded ({quoted(error)}); "
                f"its data is read from the hub, or from the files that its YAML names",
                subject=self.task,
            ) from error
        if loaded.get("groups") or set(loaded["tasks"]) != {self.task}:
            named = ", ".join(sorted(loaded["tasks"])[:8])
            raise SpecError(
                f"{self.task!r} is a group of {len(loaded['tasks'])} tasks; name one of them ({named}, …)",
                subject=self.task,
            )
        task = loaded["tasks"][self.task]
        for word, why in (
            ("UNSAFE_CODE", "runs code that a model has written"),
            ("MULTIMODAL", "shows pictures or sound"),
        ):
            if getattr(task, word, False):
                raise SpecError(
                    f"the harness's task {self.task!r} {why}, which isn't done here; choose another",
                    subject=self.task,
                )
        return self._with_exemplars(task)

    def _with_exemplars(self, task: Any) -> Any:
        """The task with as many exemplars as are asked for, drawn as the harness draws them."""
        usual = task.get_config("num_fewshot")
        if usual == 0 and self.num_fewshot:
            raise SpecError(
                f"harness(task={self.task!r}, num_fewshot={self.num_fewshot}): the task is always put without exemplars",
                subject=self.task,
            )
        task.set_config(
            key="num_fewshot", value=(usual or 0) if self.num_fewshot is None else self.num_fewshot
        )
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
        return task

    def _manager(self) -> Any:
        """The list of tasks that holds this one: that of the folder given, or the harness's own,
        which takes seconds to read.
        """
        own = _tasks(self.include_path, False) if self.include_path else None
        if own is not None and self.task in own.all_tasks:
            return own
        manager = _tasks(self.include_path, True)
        if self.task not in manager.all_tasks:
            raise SpecError(
                f"the harness has no task {self.task!r}{did_you_mean(self.task, manager.all_tasks)}; "
                f"lm_eval ls tasks lists its {len(manager.all_tasks)}, and include_path adds a folder of yours",
                subject=self.task,
            )
        return manager


class _HarnessResults:
    """What the harness found, as one of our measurements."""

    def __init__(self, evaluator: Harness, task: Any, results: Mapping[str, Any]) -> None:
        self._evaluator, self._task, self._results = evaluator, task, results
        self._values: dict[str, float] = {
            name: float(value)
            for name, value in results["results"][evaluator.task].items()
            if "," in name and "_stderr," not in name and _number(value)
        }
        self._samples = {
            f: [s for s in self._of("samples") if s["filter"] == f]
            for f in dict.fromkeys(s["filter"] for s in self._of("samples"))
        }
        self._parts = {name: self._summands(name) for name in self._values}

    def measurement(self) -> Measurement:
        primary = self._primary()
        first = self._samples[primary.partition(",")[2]]
        names = _distinct([sample["doc_hash"] for sample in first])
        facts = self._facts(len(first))
        outcomes = tuple(
            Outcome(name, *part, facts={key: values[at] for key, values in facts.items()})
            for at, (name, part) in enumerate(zip(names, self._parts[primary] or (), strict=True))
        )
        about = {
            "version": self._of("versions"),
            "shots": self._of("n-shot"),
            "harness": _harness("lm_eval").__version__,
            # Where the files lie on this machine is left out: what they hold is said by the items.
            "config": identity(
                {
                    key: value
                    for key, value in self._of("configs").items()
                    if key != "dataset_kwargs"
                }
            ),
            "items": identity(names),
            **(
                {"rows_of": len(documents)}
                if isinstance(documents := self._task.eval_docs, Sized)
                else {}
            ),
        }
        scores = {name: self._score(name, len(first), about) for name in self._values}
        if not math.isfinite(scores[primary].value):
            raise NumericsError(
                f"{primary} of {self._evaluator.task} is {scores[primary].value}",
                subject=self._evaluator.task,
            )
        return Measurement(scores.pop(primary), outcomes, beside=tuple(scores.values()))

    def _of(self, key: str) -> Any:
        return self._results[key][self._evaluator.task]

    def _primary(self) -> str:
        """The metric asked for; else the first one that can be told item by item."""
        requested, fit = (
            self._evaluator.metric,
            [name for name, parts in self._parts.items() if parts],
        )
        known = {
            **{name.partition(",")[0]: name for name in reversed(self._values)},
            **{name: name for name in self._values},
        }
        if requested is not None and requested not in known:
            listed = ", ".join(sorted(self._values))
            raise SpecError(
                f"{self._evaluator.task} has no metric {requested!r}{did_you_mean(requested, known)} (known: {listed})",
                subject=requested,
            )
        chosen = known[requested] if requested is not None else next(iter(fit), "")
        if chosen not in fit:
            named = requested or ", ".join(self._values)
            raise SpecError(
                f"{named} of {self._evaluator.task} is no mean over items; choose one that is ({', '.join(fit) or 'the task has none'})",
                subject=named,
            )
        return chosen

    def _summands(self, name: str) -> list[tuple[float, float]] | None:
        """What each document gives to a metric, as (value, weight) with Σ value / Σ weight the
        metric itself; None if it isn't made like that.
        """
        metric, _, chosen = name.partition(",")
        values = [sample[metric] for sample in self._samples[chosen] if metric in sample]
        ways: list[list[tuple[float, float]]] = []
        if all(_number(value) for value in values):
            ways.append([(float(value), 1.0) for value in values])
        elif all(
            isinstance(v, tuple | list) and len(v) == 2 and all(map(_number, v)) and v[1] > 0
            for v in values
        ):
            ways.append([(-float(nats) / math.log(2), float(size)) for nats, size in values])
        for parts in ways:
            if not parts or len(parts) != len(self._samples[chosen]):
                continue
            if math.isclose(
                ratio(*zip(*parts, strict=True))[0], self._values[name], rel_tol=1e-9, abs_tol=1e-12
            ):
                return parts
        return None

    def _score(self, name: str, n: int, about: Mapping[str, Any]) -> Score:
        metric, _, chosen = name.partition(",")
        parts = self._parts[name]
        stderr = ratio(*zip(*parts, strict=True))[1] if parts else None
        rises = self._of("higher_is_better").get(metric)
        better: Literal["lower", "higher"] = "lower" if rises is False else "higher"
        label = metric if chosen == "none" else f"{metric} ({chosen})"
        measured = f"{self._evaluator.task}, {about['shots']}-shot (harness)"
        chance = self._chance() if metric in ACCURACIES else None
        return Score(
            measured,
            label,
            self._values[name],
            stderr,
            n,
            UNITS.get(metric, ""),
            better,
            chance,
            facts={**about, "filter": chosen},
        )

    def _chance(self) -> float | None:
        """What guessing gets: the mean share of right choices."""
        if self._task.OUTPUT_TYPE != "multiple_choice":
            return None
        shares = [len(right) / count for right, count in self._keys]
        return math.fsum(shares) / len(shares)

    def _facts(self, n: int) -> dict[str, list[Any]]:
        """What else is known of each document: its place, its other metrics, and of choices
        their nats and the right one.
        """
        first = next(iter(self._samples.values()))
        facts: dict[str, list[Any]] = {"document": [sample["doc_id"] for sample in first]}
        for name, parts in self._parts.items():
            if parts and all(weight == 1 for _, weight in parts) and len(parts) == n:
                facts[name.removesuffix(",none").replace(",", " ")] = [value for value, _ in parts]
        if self._task.OUTPUT_TYPE == "multiple_choice":
            facts["nats"] = [[-float(nats) for ((nats, _),) in sample["resps"]] for sample in first]
            if all(len(right) == 1 for right, _ in self._keys):
                facts["gold"] = [next(iter(right)) for right, _ in self._keys]
        return facts

    @cached_property
    def _keys(self) -> list[tuple[set[int], int]]:
        """Of each document the right choices and how many there are; the harness lets a task
        name them by number or by text.
        """
        keys: list[tuple[set[int], int]] = []
        for sample in next(iter(self._samples.values())):
            doc = sample["doc"]
            choices = self._task.doc_to_choice(doc)
            answer = (
                self._task.doc_to_text(doc)
                if getattr(self._task, "multiple_input", 0)
                else sample["target"]
            )
            each = answer if isinstance(answer, list) else [answer]
            right = {
                choices.index(one) if isinstance(one, str) else int(one)
                for one in each
                if not isinstance(one, str) or one in choices
            }
            keys.append((right, len(choices)))
        return keys


@cache
def language_model() -> type[Any]:
    """Return the harness's `LM` over Calibrant's engine, registered with it as `calibrant`; what it
    takes is said at `Answering`.

    `SpecError` if the harness isn't installed.
    """
    _harness(
        "lm_eval.models"
    )  # first: the harness fills an empty registry only, and so would miss its own
    about = {"__module__": __name__, "__qualname__": "CalibrantLM", "__doc__": Answering.__doc__}
    model = type("CalibrantLM", (Answering, _harness("lm_eval.api.model").LM), about)
    return _harness("lm_eval.api.registry").register_model(NAME)(model)


def main() -> None:
    """The harness's own command line, with `calibrant` among its models."""
    try:
        language_model()
        _harness("lm_eval.__main__").cli_evaluate()
    except CalibrantError as error:
        sys.stderr.write(f"calibrant-lm-eval: {error}\n")
        raise SystemExit(2) from error


def _harness(name: str) -> Any:
    """A module of the harness. `SpecError` if it isn't installed."""
    try:
        with quiet():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SpecError(
            f"tasks of lm-evaluation-harness need the package lm_eval ({quoted(error)}); bring it with: pip install 'calibrant[harness]'",
            subject="lm_eval",
        ) from error


@cache
def _tasks(include_path: str | None, defaults: bool) -> Any:
    """The harness's list of tasks; read once in a process."""
    return _harness("lm_eval.tasks").TaskManager(
        include_path=include_path, include_defaults=defaults
    )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Silence, the random numbers that a run of the harness starts from, and everything as it
    was afterwards.
    """
    log, building, templates = (
        logging.getLogger("lm_eval"),
        _harness("lm_eval.api.task"),
        _harness("lm_eval.utils").env,
    )
    datasets = _harness("datasets")
    level, bars = log.level, not datasets.are_progress_bars_disabled()
    states, tqdm = (random.getstate(), np.random.get_state()), building.tqdm  # noqa: NPY002  # the state that tasks draw from
    log.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    building.tqdm = lambda items, **_: items  # the bar of building prompts can't be switched off
    templates.from_string = cache(
        templates.from_string
    )  # a task's few templates are compiled anew for every text of every document
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            random.seed(SEEDS["random"])
            np.random.seed(SEEDS["numpy"])  # noqa: NPY002
            torch.manual_seed(SEEDS["torch"])
            yield
    finally:
        log.setLevel(level)
        building.tqdm = tqdm
        del templates.from_string
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        if bars:
            datasets.enable_progress_bars()


def digest_of_folder(path: str) -> str:
    """Return the tagged SHA-256 of the names and contents of all files in a user's folder,
    hidden ones aside. `DataError` for an unreadable one.
    """
    folder = user_path(path, DataError)
    names = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    try:
        visible = sorted(
            name.as_posix()
            for name in names
            if not any(step.startswith((".", "__pycache__")) for step in name.parts)
        )
        return identity([[name, _sha256(folder / name)] for name in visible])
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} can't be read ({error.strerror}); its files are part of what is measured",
            subject=path,
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_)


def _distinct(hashes: Sequence[str]) -> list[str]:
    """Names of documents: their hashes, and a number behind those that have come before."""
    seen: dict[str, int] = {}
    names: list[str] = []
    for one in hashes:
        seen[one] = seen.get(one, 0) + 1
        names.append(one if seen[one] == 1 else f"{one}-{seen[one]}")
    return names


if __name__ == "__main__":
    # Not this copy of the module but the one that others import: a class is registered once.
    importlib.import_module("calibrant.evaluators.harness").main()
