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
from calibrant.evaluators._base import MOST_SHOTS, Evaluator, Subject, check_least, ratio
from calibrant.evaluators._language_model import Answering
from calibrant.models.quiet import quiet, quoted
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most, identity
from calibrant.spec.foreign import did_you_mean, user_path

NAME: Final = "calibrant"
"""What the model is called in the harness's registry."""

SEEDS: Final = {"random": 0, "numpy": 1234, "torch": 1234, "fewshot": 1234}
"""The seeds that the harness's command line sets before a run: a task may draw from any of them, so
its items are the same here and there.
"""

ACCURACIES: Final = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Metrics for which guessing has a level."""
UNITS: Final = {"bits_per_byte": "bits/byte"}
"""The units of metrics that have one."""
WORDS: Final = 5
"""A field of a document with fewer words than this could be anybody's."""

Summands = list[tuple[float, float]]
"""Of each document the value and the weight with which it goes into a mean."""


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
        check_least(self, num_fewshot=0, limit=1)

    def rows(self) -> Iterator[Row]:
        """Yield the task's documents: each of their texts that is long enough to be known again."""
        texts: dict[str, None] = {}
        with _undisturbed():
            task = self._task()
            for document in task.eval_docs:
                for text in (*document.values(), task.doc_to_text(document)):
                    if isinstance(text, str):
                        texts[text] = None
        return (Row(question=text) for text in texts if len(text.split()) >= WORDS)

    def digest(self) -> str:
        """Return what the user's folder of tasks holds."""
        if not self.include_path:
            return ""
        return digest_of_folder(self.include_path)

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

        def progress(doing: str, done: int, total: int) -> None:
            subject.progress(f"{doing} {self}", done, total)

        answering = language_model()(
            subject.model,
            subject.tokenizer,
            progress=progress,
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
        """Return the task as the harness's command line would set it up. `SpecError` for a name
        that is none, `DataError` if its data can't be had.
        """
        manager = self._manager()
        # The harness brings this package.
        from datasets.exceptions import DatasetsError

        mistakes = (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError)
        try:
            loaded = manager.load([self.task])
        except (*mistakes, DatasetsError, YAMLError) as error:
            raise DataError(
                f"the harness's task {self.task!r} can't be loaded ({quoted(error)}); "
                f"its data is read from the hub, or from the files that its YAML names",
                subject=self.task,
            ) from error
        if loaded.get("groups") or set(loaded["tasks"]) != {self.task}:
            names = ", ".join(sorted(loaded["tasks"])[:8])
            raise SpecError(
                f"{self.task!r} is a group of {len(loaded['tasks'])} tasks; "
                f"name one of them ({names}, …)",
                subject=self.task,
            )
        task = loaded["tasks"][self.task]
        self._check_kind(task, "UNSAFE_CODE", "runs code that a model has written")
        self._check_kind(task, "MULTIMODAL", "shows pictures or sound")
        self._set_exemplars(task)
        return task

    def _check_kind(self, task: Any, mark: str, reason: str) -> None:
        if getattr(task, mark, False):
            raise SpecError(
                f"the harness's task {self.task!r} {reason}, which isn't done here; choose another",
                subject=self.task,
            )

    def _set_exemplars(self, task: Any) -> None:
        """Let the task have as many exemplars as are asked for, drawn as the harness draws them."""
        usual = task.get_config("num_fewshot")
        if usual == 0 and self.num_fewshot:
            raise SpecError(
                f"harness(task={self.task!r}, num_fewshot={self.num_fewshot}): "
                f"the task is always put without exemplars",
                subject=self.task,
            )
        shots = self.num_fewshot
        if shots is None:
            shots = usual or 0
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])

    def _manager(self) -> Any:
        """Return the list of tasks that holds this one: that of the folder given, or the harness's
        own, which takes seconds to read.
        """
        if self.include_path:
            folder = _tasks(self.include_path, False)
            if self.task in folder.all_tasks:
                return folder
        manager = _tasks(self.include_path, True)
        if self.task not in manager.all_tasks:
            hint = did_you_mean(self.task, manager.all_tasks)
            raise SpecError(
                f"the harness has no task {self.task!r}{hint}; lm_eval ls tasks lists its "
                f"{len(manager.all_tasks)}, and include_path adds a folder of yours",
                subject=self.task,
            )
        return manager


class _HarnessResults:
    """The results of the harness, as one of our measurements."""

    def __init__(self, evaluator: Harness, task: Any, results: Mapping[str, Any]) -> None:
        self._evaluator = evaluator
        self._name = evaluator.task
        self._task = task
        self._results = results
        self._values: dict[str, float] = {}
        for metric, value in results["results"][self._name].items():
            if "," in metric and "_stderr," not in metric and _is_number(value):
                self._values[metric] = float(value)
        self._samples: dict[str, list[dict[str, Any]]] = {}
        for sample in self._part("samples"):
            self._samples.setdefault(sample["filter"], []).append(sample)
        self._summands = {metric: self._find_summands(metric) for metric in self._values}

    def measurement(self) -> Measurement:
        """Return the measurement. `SpecError` for a metric that there isn't, or that is no mean
        over items, `NumericsError` for one that isn't finite.
        """
        primary = self._primary()
        primary_samples = self._samples[primary.partition(",")[2]]
        names = _distinct([sample["doc_hash"] for sample in primary_samples])
        facts = self._facts(len(primary_samples))
        outcomes: list[Outcome] = []
        summands = self._summands[primary] or ()
        for number, (name, summand) in enumerate(zip(names, summands, strict=True)):
            document_facts = {key: values[number] for key, values in facts.items()}
            outcomes.append(Outcome(name, *summand, facts=document_facts))
        shared_facts = self._shared_facts(names)
        scores: dict[str, Score] = {}
        for metric in self._values:
            scores[metric] = self._score(metric, len(primary_samples), shared_facts)
        primary_score = scores.pop(primary)
        if not math.isfinite(primary_score.value):
            raise NumericsError(
                f"{primary} of {self._name} is {primary_score.value}", subject=self._name
            )
        return Measurement(primary_score, tuple(outcomes), beside=tuple(scores.values()))

    def _part(self, key: str) -> Any:
        return self._results[key][self._name]

    def _shared_facts(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the facts that all scores have."""
        config = dict(self._part("configs"))
        # Where the files lie on this machine is left out: the items say what they hold.
        config.pop("dataset_kwargs", None)
        shared_facts = {
            "version": self._part("versions"),
            "shots": self._part("n-shot"),
            "harness": _harness("lm_eval").__version__,
            "config": identity(config),
            "items": identity(names),
        }
        documents = self._task.eval_docs
        if isinstance(documents, Sized):
            shared_facts["rows_of"] = len(documents)
        return shared_facts

    def _primary(self) -> str:
        """Return the metric asked for; else the first one that is a mean over items."""
        means = [metric for metric, summands in self._summands.items() if summands]
        requested = self._evaluator.metric
        chosen = means[0] if means else ""
        if requested is not None:
            chosen = self._full_name(requested)
        if chosen not in means:
            refused = requested or ", ".join(self._values)
            raise SpecError(
                f"{refused} of {self._name} is no mean over items; "
                f"choose one that is ({', '.join(means) or 'the task has none'})",
                subject=refused,
            )
        return chosen

    def _full_name(self, requested: str) -> str:
        """Return the name of a metric with its filter; without one the first filter's."""
        full_names: dict[str, str] = {}
        for metric in self._values:
            full_names.setdefault(metric.partition(",")[0], metric)
        for metric in self._values:
            full_names[metric] = metric
        if requested not in full_names:
            raise SpecError(
                f"{self._name} has no metric {requested!r}{did_you_mean(requested, full_names)} "
                f"(known: {', '.join(sorted(self._values))})",
                subject=requested,
            )
        return full_names[requested]

    def _find_summands(self, name: str) -> Summands | None:
        """Return what each document gives to a metric, so that Σ value / Σ weight is the metric
        itself; None if it isn't made like that.
        """
        metric, _, filter_name = name.partition(",")
        samples = self._samples[filter_name]
        values = [sample[metric] for sample in samples if metric in sample]
        if not values or len(values) < len(samples):
            return None
        if all(_is_number(value) for value in values):
            summands = [(float(value), 1.0) for value in values]
        elif all(_is_likelihood(value) for value in values):
            # Bits per byte: the log likelihood of each text, and its bytes.
            summands = [(_bits(likelihood), float(size)) for likelihood, size in values]
        else:
            return None
        # The harness may add up in another order, so the last digits may differ.
        mean, _ = _ratio(summands)
        if not math.isclose(mean, self._values[name], rel_tol=1e-9, abs_tol=1e-12):
            return None
        return summands

    def _score(self, name: str, count: int, shared_facts: Mapping[str, Any]) -> Score:
        metric, _, filter_name = name.partition(",")
        shown_name = metric
        if filter_name != "none":
            shown_name = f"{metric} ({filter_name})"
        summands = self._summands[name]
        error = None
        if summands:
            _, error = _ratio(summands)
        higher_is_better = self._part("higher_is_better").get(metric)
        # Where a task doesn't say, more is better.
        better: Literal["lower", "higher"] = "higher"
        if higher_is_better is False:
            better = "lower"
        chance = None
        if metric in ACCURACIES:
            chance = self._chance()
        return Score(
            measured=f"{self._name}, {shared_facts['shots']}-shot (harness)",
            metric=shown_name,
            value=self._values[name],
            stderr=error,
            n=count,
            unit=UNITS.get(metric, ""),
            better=better,
            chance=chance,
            facts={**shared_facts, "filter": filter_name},
        )

    def _chance(self) -> float | None:
        """Return what guessing gets: the mean share of right choices."""
        if self._task.OUTPUT_TYPE != "multiple_choice":
            return None
        shares = [len(right) / count for right, count in self._right_choices]
        return math.fsum(shares) / len(shares)

    def _facts(self, count: int) -> dict[str, list[Any]]:
        """Return what else is known of each document: its place, its other metrics, and of
        choices their nats and the right one.
        """
        samples = self._first_samples
        facts: dict[str, list[Any]] = {"document": [sample["doc_id"] for sample in samples]}
        for name, summands in self._summands.items():
            if not summands or len(summands) != count:
                continue
            if all(weight == 1 for _, weight in summands):
                metric = name.removesuffix(",none").replace(",", " ")
                facts[metric] = [value for value, _ in summands]
        if self._task.OUTPUT_TYPE == "multiple_choice":
            facts["nats"] = [_nats(sample["resps"]) for sample in samples]
            if all(len(right) == 1 for right, _ in self._right_choices):
                facts["gold"] = [min(right) for right, _ in self._right_choices]
        return facts

    @property
    def _first_samples(self) -> list[dict[str, Any]]:
        """The samples of the first filter."""
        first, *_ = self._samples.values()
        return first

    @cached_property
    def _right_choices(self) -> list[tuple[set[int], int]]:
        """Of each document the right choices and how many there are; the harness lets a task
        name them by number or by text.
        """
        right_choices: list[tuple[set[int], int]] = []
        for sample in self._first_samples:
            choices = self._task.doc_to_choice(sample["doc"])
            right_choices.append((self._right(sample, choices), len(choices)))
        return right_choices

    def _right(self, sample: Mapping[str, Any], choices: Sequence[str]) -> set[int]:
        answer = sample["target"]
        # A task with several inputs has its answer where others have their question.
        if getattr(self._task, "multiple_input", 0):
            answer = self._task.doc_to_text(sample["doc"])
        answers = answer if isinstance(answer, list) else [answer]
        right: set[int] = set()
        for choice in answers:
            if not isinstance(choice, str):
                right.add(int(choice))
            elif choice in choices:
                right.add(choices.index(choice))
        return right


@cache
def language_model() -> type[Any]:
    """Return the harness's `LM` over Calibrant's engine, registered with it as `calibrant`;
    `Answering` says what it takes.

    `SpecError` if the harness isn't installed.
    """
    # First: the harness fills an empty registry only, and so would miss its own models.
    _harness("lm_eval.models")
    about = {"__module__": __name__, "__qualname__": "CalibrantLM", "__doc__": Answering.__doc__}
    bases = (Answering, _harness("lm_eval.api.model").LM)
    model = type("CalibrantLM", bases, about)
    register = _harness("lm_eval.api.registry").register_model(NAME)
    return register(model)


def main() -> None:
    """Run the harness's own command line, with `calibrant` among its models."""
    try:
        language_model()
        _harness("lm_eval.__main__").cli_evaluate()
    except CalibrantError as error:
        sys.stderr.write(f"calibrant-lm-eval: {error}\n")
        raise SystemExit(2) from error


def _harness(name: str) -> Any:
    """Return a module of the harness. `SpecError` if it isn't installed."""
    try:
        with quiet():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise SpecError(
            f"tasks of lm-evaluation-harness need the package lm_eval ({quoted(error)}); "
            f"bring it with: pip install 'calibrant[harness]'",
            subject="lm_eval",
        ) from error


def _tasks(include_path: str | None, defaults: bool) -> Any:
    """Return the harness's list of tasks; read once in a process, and whenever files of a user's
    folder changed.
    """
    content = ""
    if include_path is not None:
        content = digest_of_folder(include_path)
    return _tasks_of(include_path, content, defaults)


@cache
def _tasks_of(include_path: str | None, content: str, defaults: bool) -> Any:
    return _harness("lm_eval.tasks").TaskManager(
        include_path=include_path, include_defaults=defaults
    )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Set, while it lasts, the random numbers that a run of the harness starts from, and be
    silent. Everything is as it was afterwards.
    """
    logger = logging.getLogger("lm_eval")
    building_module = _harness("lm_eval.api.task")
    templates = _harness("lm_eval.utils").env
    datasets = _harness("datasets")
    level = logger.level
    bars = not datasets.are_progress_bars_disabled()
    progress_bar = building_module.tqdm
    python_state = random.getstate()
    # `manual_seed` sets the generators of all GPUs too.
    devices = range(torch.cuda.device_count())
    numpy_state = np.random.get_state()  # noqa: NPY002  # the state that tasks draw from
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    # The progress bar of building prompts can't be switched off.
    building_module.tqdm = _without_bar
    # A task's few templates are compiled anew for every text of every document.
    templates.from_string = cache(templates.from_string)
    try:
        with quiet(), torch.random.fork_rng(devices):
            random.seed(SEEDS["random"])
            np.random.seed(SEEDS["numpy"])  # noqa: NPY002
            torch.manual_seed(SEEDS["torch"])
            yield
    finally:
        logger.setLevel(level)
        building_module.tqdm = progress_bar
        del templates.from_string
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        if bars:
            datasets.enable_progress_bars()


def _without_bar(items: Any, **_: Any) -> Any:
    """Stand in for `tqdm`: return what is gone through, without a progress bar."""
    return items


def digest_of_folder(path: str) -> str:
    """Return the tagged SHA-256 of the names and contents of all files in a user's folder,
    hidden ones aside. `DataError` for an unreadable one.
    """
    folder = user_path(path, DataError)
    visible: list[str] = []
    try:
        for file in folder.rglob("*"):
            name = file.relative_to(folder)
            hidden = any(step.startswith((".", "__pycache__")) for step in name.parts)
            if not hidden and file.is_file():
                visible.append(name.as_posix())
        return identity([[name, _sha256(folder / name)] for name in sorted(visible)])
    except OSError as error:
        raise DataError(
            f"{str(folder)!r} can't be read ({error.strerror}); "
            f"its files are part of what is measured",
            subject=path,
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ratio(summands: Summands) -> tuple[float, float | None]:
    values = [value for value, _ in summands]
    weights = [weight for _, weight in summands]
    return ratio(values, weights)


def _nats(responses: Sequence[Any]) -> list[float]:
    """Return the nats of each choice: a response is the log likelihood, and whether it is the
    model's own.
    """
    return [-float(likelihood) for ((likelihood, _),) in responses]


def _bits(likelihood: float) -> float:
    """Return a log likelihood, which is in nats, as bits of loss."""
    return -float(likelihood) / math.log(2)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_)


def _is_likelihood(value: Any) -> bool:
    """Return whether a document's value is a log likelihood and a number of bytes."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        return False
    likelihood, size = value
    return _is_number(likelihood) and _is_number(size) and bool(size > 0)


def _distinct(hashes: Sequence[str]) -> list[str]:
    """Return names of documents: their hashes, and a number behind those that have come before."""
    counts: dict[str, int] = {}
    names: list[str] = []
    for name in hashes:
        count = counts.get(name, 0) + 1
        counts[name] = count
        if count == 1:
            names.append(name)
        else:
            names.append(f"{name}-{count}")
    return names


if __name__ == "__main__":
    # Not this copy of the module but the one that others import: a class is registered once.
    importlib.import_module("calibrant.evaluators.harness").main()
