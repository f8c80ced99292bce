"""`explain`: what a compressed model forgot, as words; the neurons behind them, where they are,
and passages in which they were needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import torch
from transformers import PreTrainedTokenizerBase

from calibrant.data.inspect.profiling import may_be_quoted
from calibrant.errors import SpecError
from calibrant.evaluators._base import Subject
from calibrant.evaluators._forgotten import Forgotten
from calibrant.evaluators._measuring import evaluators, reference_of, refuse_leaks
from calibrant.evaluators.words import Words
from calibrant.models import Opened, open_model
from calibrant.options import ExplainCommand, declaration, with_fields_of
from calibrant.system.process import freed_memory_kept

STRONGEST: Final = 3
"""Neurons that are shown of a word, those whose responses carry most of it."""
PASSAGES: Final = 2
"""Passages that are quoted of a word."""
BEFORE, BEHIND = 16, 6
"""Tokens of a passage before a word, and behind it."""
SOURCE: Final = "wikitext"


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
        head = {
            "model": self.model,
            "reference": self.reference,
            "task": self.task,
            "score": {**self.score, "facts": facts},
        }
        return {**head, "words": [dict(word) for word in self.words], "unquoted": self.unquoted}


@final
@declaration
class ExplainOptions(ExplainCommand):
    """The options of `explain`."""

    task: str | Words | None = None


@with_fields_of(ExplainOptions)
def explain(options: ExplainOptions) -> Explanation:
    """Say which words' responses `model` lost, as `words(source=…, groups=…)` measures them, and
    which neurons and blocks lost them.

    `against` is the dense model; of a model that Calibrant compressed it is known. Instead of
    `source` and `groups` a whole `task` may be given: `words(source='gsm8k', tokens=65536)`. Raises
    the errors of `evaluate`, and `SpecError` for a task that isn't one of words, or one beside a
    source.
    """
    asked = _asked(options.task, options.source, options.groups, options.tokens)
    asked.check()
    _, manifest = refuse_leaks(options.model, [asked], options.allow_leak)
    opened = options.model
    if not isinstance(opened, Opened):
        opened = open_model(opened, options.dtype, options.device)
    dense = reference_of(options.against, manifest, opened, options.device, "--against")
    with freed_memory_kept():
        forgotten = asked.read(
            Subject(opened.model, opened.tokenizer, dense.model, options.progress), whole=True
        )
        score = forgotten.measurement().score
    licence = asked.held_out()[0].licence
    quotes = may_be_quoted(licence)
    words = _words(forgotten, opened.tokenizer if quotes else None)
    unquoted = (
        ""
        if quotes
        else f"{forgotten.measured} isn't quoted: {licence or 'its licence is not known'}"
    )
    return Explanation(opened.name, dense.name, str(asked), _plain(score), words, unquoted)


def _asked(
    task: str | Words | None, source: str | None, groups: str | None, tokens: int | None
) -> Words:
    if task is None:
        return Words(
            source=source or SOURCE,
            groups=groups or "words",
            tokens=Words.tokens if tokens is None else tokens,
        )
    built = evaluators.build(task)
    if not isinstance(built, Words):
        raise SpecError(
            f"{built} isn't about words; give words(source=…), or --source alone", subject=str(task)
        )
    for name, beside in (("source", source), ("groups", groups)):
        if beside is not None:
            raise SpecError(
                f"{built} names its own {name}, and {beside!r} was given beside it; give one of both",
                subject=beside,
            )
    return built if tokens is None else built.limited(tokens)  # pyright: ignore[reportReturnType]  # the same class


def _plain(score: Any) -> dict[str, Any]:
    return {
        name: getattr(score, name)
        for name in ("measured", "metric", "value", "stderr", "n", "unit", "facts")
    }


def _words(forgotten: Forgotten, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, Any]]:
    """What is known of each group, the one that lost most first; with a `tokenizer` passages are
    quoted.
    """
    table = forgotten.table()
    rows: list[dict[str, Any]] = []
    for at, group in enumerate(forgotten.dense.known):
        row = {name: column[at] for name, column in table.items()}
        damage = 1 - row["kept"]
        passages = [] if tokenizer is None else _passages(forgotten, group, tokenizer)
        rows.append(
            {
                **row,
                "damage": round(damage, 5),
                "strongest": _strongest(forgotten, group),
                "passages": passages,
            }
        )
    return sorted(rows, key=lambda row: (-row["damage"], row["word"]))


def _strongest(forgotten: Forgotten, group: int) -> list[dict[str, Any]]:
    """The neurons that carry most of a group's pattern, and what they respond in both models."""
    found: list[tuple[float, int, int]] = []
    for block, responses in enumerate(forgotten.dense.pattern.responses):
        sizes, neurons = responses[group].abs().topk(min(STRONGEST, responses.shape[1]))
        found += [
            (float(size), block, int(neuron))
            for size, neuron in zip(sizes, neurons, strict=True)
            if size > 0
        ]
    strongest = sorted(found, key=lambda one: (-one[0], one[1:]))[:STRONGEST]
    return [
        {
            "block": block,
            "neuron": neuron,
            "dense": round(float(forgotten.dense.pattern.responses[block][group, neuron]), 3),
            "now": round(float(forgotten.shown.responses[block][group, neuron]), 3),
        }
        for _, block, neuron in strongest
    ]


def _passages(forgotten: Forgotten, group: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Where most of a group was lost: the surroundings of its first word in each of those
    windows.
    """
    lost = (forgotten.dense.shown.by_window - forgotten.shown.by_window)[:, group]
    passages: list[str] = []
    most = [at for at in torch.argsort(lost, descending=True, stable=True).tolist() if lost[at] > 0]
    for at in most[:PASSAGES]:
        words, labels = forgotten.dense.readings[at]
        here = (labels == group).nonzero().flatten().tolist()
        if here:
            place = words.places[here[0]]
            ids = words.window.ids[max(0, place - BEFORE) : place + 1 + BEHIND]
            passages.append(" ".join(str(tokenizer.decode(ids, skip_special_tokens=True)).split()))
    return passages
