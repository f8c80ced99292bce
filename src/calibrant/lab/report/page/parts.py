"""What parts of the page show: every run with the command that repeats it, the page of a
calibration set, and what each set kept of words. All from facts in the store. No torch here.
"""

import json
import math
import shlex
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from calibrant.lab.report.facts import StudyFacts
from calibrant.lab.report.page.contents import Contents
from calibrant.lab.report.plots.theme import STEPS
from calibrant.lab.report.sentences import rise, short
from calibrant.lab.stats import (
    MEASURES,
    KeptWords,
    Ranking,
    RankingEntry,
    SetSummary,
    bits_of,
    describe_target,
    is_rounded,
    join_names,
    target_noun,
)
from calibrant.numerics import HOLE, between, percent, signed
from calibrant.results import Cell, Record
from calibrant.results.records import MEASURED, UNTOUCHED
from calibrant.results.store import UNKNOWN_ORIGIN
from calibrant.spec import written_form
from calibrant.spec.families import WORDS

BUDGET: Final = {"samples": 128, "length": 2048, "tokens": None}
"""The budget of a study that doesn't name one."""


@dataclass(frozen=True)
class RunRow:
    """A run in the table: its place in the study's grid, its target and what that is sorted by,
    its scores (None where there is none). `stale` says that the run is of an older revision,
    `stale_values` which of the measurements are.
    """

    cell: Cell
    target: str
    order: float | None
    values: tuple[float | None, ...]
    stale: bool
    stale_values: tuple[bool, ...]
    command: str


@dataclass(frozen=True)
class RunTable:
    """The runs, the kind of their targets, the names of what was measured, and the settings that
    they share.
    """

    rows: tuple[RunRow, ...]
    kind: str
    measured: tuple[str, ...]
    settings: Mapping[str, str]


def run_table(contents: Contents) -> RunTable:
    """Return the runs that have a record, in the order of the study's grid."""
    reading = contents.reading
    facts = contents.facts
    cells = [cell for cell in reading.cells if cell.run in reading.records]
    asked: list[str] = []
    for cell in cells:
        asked.extend(cell.measures)
    evaluators = list(dict.fromkeys(asked))
    budget = budget_of(facts)
    rows: list[RunRow] = []
    measured: dict[str, str] = {}
    for cell in cells:
        record = reading.records[cell.run]
        scores = reading.scores.get(cell.run, {})
        values: list[float | None] = []
        stale_values: list[bool] = []
        for evaluator in evaluators:
            measure_id = cell.measures.get(evaluator, "")
            stale_values.append(measure_id in reading.stale)
            value: float | None = None
            if measure_id in scores:
                score = scores[measure_id].score
                value = score.value
                measured.setdefault(evaluator, score.measured)
            values.append(value)
        stored_bits = reading.bits.get((cell.model, cell.method, cell.target))
        target, order = _shown_target(cell, record, stored_bits)
        row = RunRow(
            cell,
            target,
            order,
            tuple(values),
            stale=cell.run in reading.stale,
            stale_values=tuple(stale_values),
            command=command(cell, record, budget),
        )
        rows.append(row)
    names = [measured.get(evaluator, evaluator) for evaluator in evaluators]
    heads = tuple(_heads(evaluators, names))
    targets: list[str] = []
    for cell in cells:
        if cell.target and cell.method != UNTOUCHED:
            targets.append(cell.target)
    return RunTable(tuple(rows), target_noun(targets), heads, _settings(facts))


def _heads(evaluators: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """The head of each evaluator's scores: the name of what it measured, in short."""
    for evaluator, name in zip(evaluators, names, strict=True):
        head = short(name, names)
        if names.count(name) > 1:
            # Two that measured the same thing are named by their texts too, as in rankings.
            head = f"{head} [{evaluator}]"
        yield head


def _settings(facts: StudyFacts) -> dict[str, str]:
    """What all runs share."""
    settings = {**facts.settings, **facts.machine}
    settings.pop("versions", None)
    return {key: value for key, value in settings.items() if value}


def _shown_target(
    cell: Cell, record: Record, stored_bits: float | None
) -> tuple[str, float | None]:
    """How the table shows a run's target, and what it is sorted by."""
    if cell.method in (UNTOUCHED, MEASURED):
        return HOLE, None
    bits: float | None = bits_of(cell.target)
    if bits is None:
        bits = stored_bits
    if bits is None:
        return describe_target(cell.target).removesuffix(" sparsity"), record.sparsity
    # Behind every sparsity, those of the fewest bits last.
    return cell.target, 2 - bits / 16


def budget_of(facts: StudyFacts) -> dict[str, Any]:
    """Return the budget of a draw, read from the study's own text, in which each line is a key
    and a JSON value; nothing without that text.
    """
    if not facts.study:
        return {}
    budget: dict[str, Any] = dict(BUDGET)
    for line in facts.study.splitlines():
        key, _, value = line.partition(": ")
        if key in budget:
            try:
                budget[key] = json.loads(value)
            except ValueError:
                continue
    return budget


def command(cell: Cell, record: Record, budget: Mapping[str, Any]) -> str:
    """Return what makes this model again and measures it: two commands, or one for the dense
    model.
    """
    run = record.run
    tasks: list[str] = []
    for evaluator in cell.measures:
        tasks += ["--task", evaluator]
    if cell.method == UNTOUCHED:
        return shlex.join(["calibrant", "evaluate", cell.model, "--dtype", run.dtype, *tasks])
    if cell.method == MEASURED:
        # What made it, and where it lies, isn't known.
        words = ["calibrant", "evaluate", "MODEL", "--dtype", run.dtype, *tasks]
        if cell.model != UNKNOWN_ORIGIN:
            words += ["--reference", cell.model]
        return shlex.join([*words, "--store", "results", "--label", cell.data])
    verb = "prune"
    out = "pruned"
    if is_rounded(cell.target):
        verb = "quantize"
        out = "quantized"
    options = _compressing(cell, record, budget)
    making = ["calibrant", verb, cell.model, *options, "--dtype", run.dtype, "--out", out]
    measuring = ["calibrant", "evaluate", out, "--dtype", run.dtype, *tasks]
    return f"{shlex.join(making)}\n{shlex.join(measuring)}"


def _compressing(cell: Cell, record: Record, budget: Mapping[str, Any]) -> list[str]:
    """Return how a model was compressed, as a command says it."""
    run = record.run
    words: list[str] = []
    if run.data:
        words += ["--data", run.data]
    equal = run.allocation.get("spec") == "uniform"
    # A method's name in a report has the allocation behind it where that isn't equal.
    method = cell.method if equal else written_form(run.method)
    words += ["--method", method, "--target", cell.target]
    if cell.data:
        words += _amount(record, budget)
        words += ["--seed", str(cell.seed)]
    if not equal:
        words += ["--allocation", written_form(run.allocation)]
    for transform in run.transforms:
        words += ["--transform", written_form(transform)]
    if run.propagate:
        words += ["--propagate", run.propagate]
    return words


def _amount(record: Record, budget: Mapping[str, Any]) -> list[str]:
    """Return how much was drawn, as a command says it.

    The record says it: the run may be of another study than the store's last. Only that the budget
    was a number of tokens stands in the study's text alone.
    """
    facts = record.data_facts
    length = facts.get("length") or budget.get("length") or BUDGET["length"]
    words = ["--length", str(length)]
    # Each set of a mix has the whole budget.
    sets = len(facts.get("mix", ())) or 1
    tokens = facts.get("tokens", 0) // sets
    if tokens and tokens == budget.get("tokens"):
        return ["--tokens", str(tokens), *words]
    samples = facts.get("windows", 0) // sets or budget.get("samples") or BUDGET["samples"]
    # Each part of a sum may end in a window that isn't full. Then there are more windows than were
    # asked for, and as many tokens.
    full, rest = divmod(tokens, length)
    if full and not rest and samples - full < len(facts.get("parts", ())):
        samples = full
    return ["--samples", str(samples), *words]


NUMBERS: Final = {
    "numbers": "numbers for a hundred words",
    "word_length": "letters of a word",
    "distinct": "different words of a draw",
    "even": "equally frequent words that would be as varied",
}
"""The numbers of a profile that are no shares, in words."""


def rows_of(facts: Mapping[str, Any]) -> int:
    """Return how many rows a draw has, over all its parts."""
    return sum(part.get("rows", 0) for part in facts.get("parts", ()))


def licence(summary: SetSummary) -> str:
    """Return the licences of all parts of a set."""
    licences: list[str] = []
    for draw in summary.draws:
        for part in draw.facts.get("parts", ()):
            if part.get("licence"):
                licences.append(str(part["licence"]))
    return join_names(list(dict.fromkeys(licences)))


def in_words(contents: Contents, summary: SetSummary) -> str:
    """Return a paragraph made of the set's facts, its first result, and its nearest neighbours."""
    facts = summary.draws[0].facts
    windows = facts.get("windows")
    length = facts.get("length")
    size = "of unknown size"
    if windows and length:
        real = f"{facts.get('tokens', 0):,} of them real"
        size = f"{windows:,} windows of up to {length:,} tokens, {real}"
    count = len(summary.draws)
    drawn = "once" if count == 1 else f"{count} times"
    sentences = [f"{summary.name} is {WORDS[summary.family]}: {size}, drawn {drawn}."]
    if summary.terms:
        own_words = [word for word, _ in summary.terms[:6]]
        sentences.append(f"Its own words: {', '.join(own_words)}.")
    for ranking, entry in contents.places.get(summary.name, ())[:1]:
        sentences.append(_placed(ranking, entry))
    nearest: list[str] = []
    for measure, words in MEASURES.items():
        for name, _ in contents.nearest(summary.name, measure, 1):
            nearest.append(f"by {words}: {name}")
    if nearest:
        sentences.append(f"Most like it {'; '.join(nearest)}.")
    return " ".join(sentences)


def _placed(ranking: Ranking, entry: RankingEntry) -> str:
    """Where a set stands in a ranking, in a sentence."""
    lead = f"With {ranking.method} at {describe_target(ranking.target)} it"
    if math.isnan(entry.mean.value):
        return f"{lead} lacks measurements, so it has no place."
    low, high = entry.ranks
    place = f"is in place {low}" if low == high else f"shares places {low} to {high}"
    change = f"{signed(entry.mean.value)} {ranking.unit}"
    if entry.increases:
        change += f" {rise(ranking).removeprefix('increase ')}"
    interval = entry.mean.interval(ranking.level)
    if interval is not None:
        change += f", {percent(ranking.level)} interval {between(interval)}"
    return f"{lead} {place} of {len(ranking.entries)} ({change})."


def origin(part: Mapping[str, Any]) -> str:
    """Return where a part of a set comes from: its origin, its address on the hub, and what
    there is to note.
    """
    parts = [str(part.get("origin") or "")]
    hub = part.get("hub") or {}
    if hub:
        name = f"{hub.get('id')}"
        if hub.get("config"):
            name += f" ({hub['config']})"
        parts.append(f"on the hub: {name}, revision {hub.get('revision')}")
    parts.append(str(part.get("note") or ""))
    return "; ".join(part for part in parts if part)


def scripts_of(profile: Mapping[str, Any]) -> str:
    """Return the four commonest scripts of a profile's letters with their shares."""
    commonest = list(profile["scripts"].items())[:4]
    shares = [f"{script} {share:.1%}" for script, share in commonest if share >= 0.001]
    return ", ".join(shares) or "none"


def profile_rows(
    profile: Mapping[str, Any], medians: Mapping[str, float]
) -> Iterator[tuple[str, str, str]]:
    """Yield what a set's text is like, in words, its number, and the median of all sets."""
    for kind, share in profile["characters"].items():
        median = medians.get(kind, 0.0)
        yield f"{kind} among all characters", f"{share:.1%}", f"{median:.1%}"
    for key, words in NUMBERS.items():
        number = profile[key]
        median = medians.get(key, 0.0)
        yield words, f"{number:,.1f}", f"{median:,.1f}"


def plain(number: object) -> str:
    """Return a number as people write it, and nothing for None.

    >>> plain(8192), plain(2.5), plain(None)
    ('8,192', '2.500', '')
    """
    if isinstance(number, float):
        return f"{number:,.3f}"
    if isinstance(number, int):
        return f"{number:,}"
    return "" if number is None else str(number)


MOST: Final = 200
"""Words of a table, those of which least is kept: a page of twenty sets stays small."""


@dataclass(frozen=True)
class WordRow:
    """A group of words, how often it stands in the text, the set that kept most of it, and each
    set's share with its colour; None for a hole.
    """

    word: str
    count: int
    best: str
    cells: tuple[tuple[float, int] | None, ...]


@dataclass(frozen=True)
class WordMap:
    """A table: its title, what was measured, its sets with their draws, its rows, how many words
    there are in all, and where colours change.
    """

    title: str
    measured: str
    sets: tuple[str, ...]
    draws: tuple[int, ...]
    rows: tuple[WordRow, ...]
    words: int
    steps: tuple[float, ...]


def word_maps(contents: Contents) -> Mapping[str, WordMap]:
    """Return a table for each setting and measurement of words, by the key that a chooser has
    for it.
    """
    maps: dict[str, WordMap] = {}
    for number, words in enumerate(contents.kept_words):
        maps[f"words-{number}"] = _map(words, f"words of {words.measured}")
    return maps


def language_maps(contents: Contents) -> Mapping[str, WordMap]:
    """Return a table for each setting in which the neurons of languages were measured, by the
    key that a chooser has for it.
    """
    maps: dict[str, WordMap] = {}
    for number, languages in enumerate(contents.kept_languages):
        maps[f"languages-{number}"] = _map(languages, languages.measured)
    return maps


def _map(words: KeptWords, measured: str) -> WordMap:
    shown: list[float] = []
    for shares in words.kept:
        shown.extend(share for share in shares[:MOST] if not math.isnan(share))
    steps = _steps(shown)
    best = words.best
    rows: list[WordRow] = []
    for place, word in enumerate(words.words[:MOST]):
        cells = tuple(_cell(shares[place], steps) for shares in words.kept)
        rows.append(WordRow(word, words.counts[place], best[place], cells))
    way = f", {words.propagate}" if words.propagate else ""
    target = describe_target(words.target)
    title = f"{words.model}, {words.method} at {target}{way}: {measured}"
    every = len(words.words)
    return WordMap(title, words.measured, words.sets, words.draws, tuple(rows), every, steps)


def _cell(value: float, steps: Sequence[float]) -> tuple[float, int] | None:
    if math.isnan(value):
        return None
    return value, bisect_right(steps, value)


def _steps(values: Sequence[float]) -> tuple[float, ...]:
    """Return where the colour changes: so that each colour has about as many cells; a single
    outlier would take most of an even scale.
    """
    ordered = sorted(values)
    if not ordered:
        return ()
    places = [len(ordered) * step // STEPS for step in range(1, STEPS)]
    return tuple(ordered[place] for place in places)
