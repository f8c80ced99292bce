"""`explain`: what a compressed model forgot, as words; the neurons behind them, where they are,
and passages in which they were needed.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast, final

import torch
from transformers import PreTrainedTokenizerBase

from calibrant.data.inspect.profiling import rows_may_be_quoted
from calibrant.errors import SpecError
from calibrant.evaluators._base import Subject
from calibrant.evaluators._forgotten import Forgotten
from calibrant.evaluators._measured_run import check_label
from calibrant.evaluators._measuring import (
    completed,
    evaluators,
    reference_of,
    refuse_leaks,
    run_in_store,
)
from calibrant.evaluators.words import Words
from calibrant.models import only_looks, opened_of
from calibrant.options import ExplainCommand, declaration, with_fields_of
from calibrant.system.process import freed_memory_kept

STRONGEST: Final = 3
"""Neurons that are shown of a word, those whose responses carry most of it."""
PASSAGES: Final = 2
"""Passages that are quoted of a word."""
BEFORE: Final = 16
"""Tokens of a passage before a word."""
BEHIND: Final = 6
"""Tokens of a passage behind a word."""
SOURCE: Final = "wikitext"
"""Whose words are read where nothing is said."""


@final
@dataclass(frozen=True)
class Explanation:
    """What a model kept of the dense one's responses to words. `words` begin with those that lost
    most; a notebook shows a table of them.

    Each of `words` has the columns of the measurement (`Words`), the damage, its `strongest`
    neurons with what they respond in both models, in standard deviations, and `passages` where the
    licence of the text lets everybody show it; `unquoted` says why there are none.
    """

    model: str
    reference: str
    task: str
    score: Mapping[str, Any]
    words: Sequence[Mapping[str, Any]]
    unquoted: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        facts = {key: value for key, value in self.score["facts"].items() if key != "words"}
        return {
            "model": self.model,
            "reference": self.reference,
            "task": self.task,
            "score": {**self.score, "facts": facts},
            "words": [dict(word) for word in self.words],
            "unquoted": self.unquoted,
        }


@final
@declaration
class ExplainOptions(ExplainCommand):
    """The options of `explain`."""

    task: str | Words | None = None


@with_fields_of(ExplainOptions)
@only_looks
def explain(options: ExplainOptions) -> Explanation:
    """Say which words' responses `model` lost, as `words(source=…, groups=…)` measures them, and
    which neurons and blocks lost them.

    Both are names, paths, or models of transformers, which share the `tokenizer`. `against` is the
    dense model; of a model that Calibrant compressed it is known. Instead of `source` and `groups`
    a whole `task` may be given: `words(source='gsm8k', tokens=65536)`. Raises the errors of
    `evaluate`, and `SpecError` for a task that isn't one of words, or one beside a source. The
    measurement goes into `store`, as `evaluate` puts it there.
    """
    check_label(options.label, options.store)
    task = _task(options)
    task.check()
    (leak_count,), manifest = refuse_leaks(options.model, [task], options.allow_leak)
    opened = opened_of(options.model, options.tokenizer, options.dtype, options.device)
    dense = reference_of(options.against, manifest, opened, options.device, "--against")
    with run_in_store(options, options.against, opened, manifest, dense) as run:
        began = time.perf_counter()
        with freed_memory_kept():
            subject = Subject(opened.model, opened.tokenizer, dense.model, options.progress)
            forgotten = task.read(subject, whole=True)
            measurement = forgotten.measurement()
        seconds = time.perf_counter() - began
        if run is not None:
            run.once(task, partial(completed, task, opened, measurement, seconds, leak_count.count))
    score = measurement.score
    source, _ = task.held_out()
    tokenizer = None
    unquoted = f"{forgotten.measured} isn't quoted: {source.licence or 'its licence is not known'}"
    if rows_may_be_quoted(source):
        tokenizer = opened.tokenizer
        unquoted = ""
    words = _words(forgotten, tokenizer)
    score_fields = ("measured", "metric", "value", "stderr", "n", "unit", "facts")
    score_values = {name: getattr(score, name) for name in score_fields}
    return Explanation(opened.name, dense.name, str(task), score_values, words, unquoted)


def _task(options: ExplainOptions) -> Words:
    """Return the task that is given, or the one of a source and groups."""
    tokens = options.tokens
    if options.task is None:
        if tokens is None:
            tokens = Words.tokens
        return Words(
            source=options.source or SOURCE, groups=options.groups or "words", tokens=tokens
        )
    task = evaluators.build(options.task)
    if not isinstance(task, Words):
        raise SpecError(
            f"{task} isn't about words; give words(source=…), or --source alone",
            subject=str(options.task),
        )
    for name, given in (("source", options.source), ("groups", options.groups)):
        if given is not None:
            raise SpecError(
                f"{task} names its own {name}, and {given!r} was given beside it; give one of both",
                subject=given,
            )
    if tokens is None:
        return task
    return cast(Words, task.limited(tokens))


def _words(forgotten: Forgotten, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, Any]]:
    """Return what is known of each group, the one that lost most first; with a `tokenizer`
    passages are quoted.
    """
    table = forgotten.table()
    rows: list[dict[str, Any]] = []
    for number, group in enumerate(forgotten.dense.known):
        row = {name: column[number] for name, column in table.items()}
        row["damage"] = round(1 - row["kept"], 5)
        row["strongest"] = _strongest(forgotten, group)
        row["passages"] = []
        if tokenizer is not None:
            row["passages"] = _passages(forgotten, group, tokenizer)
        rows.append(row)

    def order(row: dict[str, Any]) -> tuple[float, str]:
        return -row["damage"], row["word"]

    return sorted(rows, key=order)


def _strongest(forgotten: Forgotten, group: int) -> list[dict[str, Any]]:
    """Return the neurons that carry most of a group's pattern, and what they respond in both
    models.
    """
    pattern = forgotten.dense.pattern.responses
    strengths: list[tuple[float, int, int]] = []
    for block, responses in enumerate(pattern):
        sizes, neurons = responses[group].abs().topk(min(STRONGEST, responses.shape[1]))
        for size, neuron in zip(sizes.tolist(), neurons.tolist(), strict=True):
            if size > 0:
                # Negative, so that the strongest come first and of equals the first in the model.
                strengths.append((-size, block, neuron))
    strongest: list[dict[str, Any]] = []
    for _, block, neuron in sorted(strengths)[:STRONGEST]:
        dense = float(pattern[block][group, neuron])
        compressed = float(forgotten.shown.responses[block][group, neuron])
        strongest.append(
            {
                "block": block,
                "neuron": neuron,
                "dense": round(dense, 3),
                "now": round(compressed, 3),
            }
        )
    return strongest


def _passages(forgotten: Forgotten, group: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return passages where most of a group was lost: the surroundings of its first word in each
    of those windows.
    """
    lost = (forgotten.dense.shown.by_window - forgotten.shown.by_window)[:, group]
    passages: list[str] = []
    # Stable, so that of windows that lost as much the first is quoted.
    order = torch.argsort(lost, descending=True, stable=True).tolist()
    for number in order[:PASSAGES]:
        words, labels = forgotten.dense.readings[number]
        words_of_group = (labels == group).nonzero().flatten().tolist()
        if lost[number] > 0 and words_of_group:
            place = words.places[words_of_group[0]]
            begin = max(0, place - BEFORE)
            ids = words.window.ids[begin : place + 1 + BEHIND]
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            # In one line, with single spaces.
            passages.append(" ".join(text.split()))
    return passages
