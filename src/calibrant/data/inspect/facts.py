"""Tells what a calibration set holds, before it is used: everything that can be known of it without
running a model.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import floor, log10
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrant.data._base import Format, Row
from calibrant.data._draw import TooFew
from calibrant.data._encoding import IdEncoder
from calibrant.data._written import any_of
from calibrant.data.calibration import CalibrationSet, TokenBatch
from calibrant.data.expression import Term
from calibrant.data.formats import formats
from calibrant.data.formats.chat import Chat, unused_messages
from calibrant.data.given import OwnData
from calibrant.data.inspect.conversing import conversation_facts
from calibrant.data.inspect.overlap import measurable, overlaps, repeats, row_content
from calibrant.data.inspect.profiling import quoted, text_tokens
from calibrant.data.inspect.verdict import ENOUGH_DRAWS, verdict
from calibrant.data.packings.many import Many
from calibrant.data.packings.whole import Whole
from calibrant.system.notebook import card, listing

_BARS: Final = 12
"""How many bars a histogram has at most."""

_SHOWN: Final = 3
"""How many windows are shown."""


@dataclass(frozen=True)
class Inspection:
    """Plain data about one set.

    `tokenizer` names whose tokenizer read it. `budget` is a flag, its amount, and `instead`, what
    was to be drawn where there is less. `padding` is the share of the windows' positions that hold
    no real token; `pads` counts those that count as tokens all the same. `repeated_windows` counts
    sequences equal to an earlier one, `double_starts` those in which two start tokens stand
    together. `disjoint_draws` is how many draws of this size the sources hold, counted up to 64,
    none meaning that there is no end; where they are few, `enough` is the amount that gives five.
    `vocabulary` says how many ids occur and how evenly: `even` is how many equally frequent ones
    would be as varied.

    Each of `parts` has the facts of its batch (rows, tokens, duplicates and overlapping rows that
    were left out, licence, digest, …) and more: `histogram`, the lengths of its rows in tokens as
    [least, most, rows]; `empty`, rows that came to no token; `special_texts`, in how many rows each
    special token stands as text; `unused`, what of conversations a format leaves out that shows
    only their first exchange; `conversations`, in the format `chat` alone, what they hold and
    what the model's template makes of them; `texts`, the beginnings of its first windows as a model
    is shown them, none where `unshown` says why.

    `near_duplicates` are rows that are almost alike. `overlap_checks` compare each part with what
    is measured: how many of its rows are the `same` example as a measured one, hold `half` of one
    or more, or have fewer words in common (`slight`), and how many measured rows are so
    `given_away`. Rows are numbered in the order in which their part uses them, from 1, and known by
    their `Row.example`. `model` is what a model made of the set: none if none was run.
    """

    data: str
    tokenizer: str
    windows: int
    length: int
    budget: Mapping[str, Any]
    rows: int
    tokens: int
    pads: int
    padding: float
    repeated_windows: int
    double_starts: int
    overlap: float
    disjoint_draws: int | None
    enough: int | None
    vocabulary: Mapping[str, Any]
    fingerprint: str
    parts: tuple[Mapping[str, Any], ...]
    near_duplicates: Mapping[str, Any]
    overlap_checks: tuple[Mapping[str, Any], ...]
    model: Mapping[str, Any] | None = None

    @property
    def verdict(self) -> tuple[str, ...]:
        """What to fix and how, a sentence each; nothing if there is nothing to fix."""
        return verdict(_plain(self))

    def _repr_html_(self) -> str:
        facts = {
            "windows": f"{self.windows:,} of {self.length:,} tokens",
            "real tokens": f"{self.tokens:,}",
            "rows": f"{self.rows:,}",
            "disjoint draws": self.disjoint_draws,
            "tokenizer": self.tokenizer,
            "fingerprint": self.fingerprint,
        }
        title = f"Calibration set {self.data}"
        fixes = [(sentence,) for sentence in self.verdict]
        if not fixes:
            return card(title, facts, "Nothing to fix.", "")
        return card(title, facts, "", listing(("what to fix",), fixes))

    def to_json(self) -> dict[str, Any]:
        """Return the same as dictionaries and lists, ready for `json.dumps`, and the verdict
        with it.
        """
        return {**_plain(self), "verdict": list(self.verdict)}


def inspect_tokens(
    data: CalibrationSet,
    tokenizer: PreTrainedTokenizerBase,
    against: Sequence[str] = (),
) -> Inspection:
    """Draw the set and say what is in it.

    `against` are sources, as `name[:format]`, that the rows are compared with beside what their own
    sources measure on. The first windows are shown, at least one of each part. Raises an
    `InputError` for what can't be read.
    """
    measured_sources = measurable(against)
    batch = data.tokens(tokenizer)
    rows = data.rows(tokenizer)
    ids = [row[mask] for row, mask in zip(batch.ids, text_tokens(batch), strict=True)]
    budget = {"flag": "--samples", "amount": data.samples}
    if data.budget is not None:
        budget = {"flag": "--tokens", "amount": data.budget}
    encoder = IdEncoder(tokenizer)
    draws = data.disjoint_draws(tokenizer, encoder=encoder)
    distinct_windows = {tuple(window.tolist()) for window in ids}
    return Inspection(
        data=str(data),
        tokenizer="",
        windows=batch.facts["windows"],
        length=data.length,
        budget=budget,
        rows=sum(map(len, rows)),
        tokens=batch.facts["tokens"],
        pads=batch.facts["pads"],
        padding=_padding(batch.facts, data.length),
        repeated_windows=len(ids) - len(distinct_windows),
        double_starts=_double_starts(batch, tokenizer.bos_token_id),
        overlap=batch.facts["overlap"],
        disjoint_draws=draws,
        enough=_budget_for_enough_draws(data, encoder, draws, batch.facts["parts"]),
        vocabulary=_vocabulary(torch.cat(ids), tokenizer),
        fingerprint=batch.fingerprint,
        parts=tuple(_parts(data, batch, rows, tokenizer)),
        near_duplicates=repeats(data.parts, rows),
        overlap_checks=tuple(overlaps(data.parts, rows, measured_sources)),
    )


def _double_starts(batch: TokenBatch, start: Any) -> int:
    """Return how many sequences have two start tokens in a row: texts may bring one of their own,
    beside the one that the packing puts there.
    """
    if not isinstance(start, int):
        return 0
    starts = (batch.ids == start) & text_tokens(batch)
    return int((starts[:, 1:] & starts[:, :-1]).any(1).sum())


def _plain(inspection: Inspection) -> dict[str, Any]:
    """Return the fields as dictionaries and lists; what others call tuples JSON calls lists."""
    return _as_lists(asdict(inspection))


def _as_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _as_lists(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_lists(entry) for entry in value]
    return value


def _padding(facts: Mapping[str, Any], length: int) -> float:
    # Texts that can't see each other are sequences of their own, with nothing behind them: what is
    # padded is the window.
    if not facts["windows"]:
        return 0.0
    return 1 - facts["tokens"] / (facts["windows"] * length)


def _vocabulary(ids: Tensor, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return how much of the vocabulary occurs, and how evenly: by the entropy of single tokens."""
    counts = ids.bincount()
    # In float64: shares of rare tokens are tiny, and there are tens of thousands of them.
    shares = counts[counts > 0].double() / max(1, len(ids))
    entropy = float(-(shares * shares.log2()).sum())
    return {
        "size": len(tokenizer),
        "distinct": len(shares),
        "share": len(shares) / len(tokenizer),
        "entropy": entropy,
        "even": 2**entropy,
    }


def _budget_for_enough_draws(
    data: CalibrationSet,
    encoder: IdEncoder,
    draws: int | None,
    part_facts: Sequence[Mapping[str, Any]],
) -> int | None:
    """Return the budget, rounded down, at which five draws share no row; None if there are as many
    already, or no budget helps.

    It is found by trying: rows are used whole, so the number of draws can't be computed.
    """
    if draws is None or draws >= ENOUGH_DRAWS or data.per_draw:
        return None
    if any(term.packing.replacement for term in data.parts):
        return None
    # Each draw takes a row of every part; of a control, which has no end, no count is held.
    for facts in part_facts:
        rows_held = facts["rows_held"]
        if rows_held is not None and rows_held < ENOUGH_DRAWS:
            return None
    unit = "samples" if data.budget is None else "tokens"
    amount = data.samples if data.budget is None else data.budget
    amount = _rounded(amount * draws / ENOUGH_DRAWS)
    # Every part needs one sample or token.
    while amount >= len(data.parts):
        smaller = CalibrationSet(data.expr, length=data.length, **{unit: amount})
        try:
            count = smaller.disjoint_draws(encoder.tokenizer, ENOUGH_DRAWS, encoder)
        except TooFew:  # a set of a mix may hold far less than the others
            count = 0
        if count is not None and count >= ENOUGH_DRAWS:
            return amount
        amount = _rounded(min(amount * 0.8, amount - 1.0))
    return None


def _rounded(amount: float) -> int:
    """Return an amount rounded down to two digits that count."""
    unit = 1
    if amount >= 1:
        unit = 10 ** max(0, floor(log10(amount)) - 1)
    return int(amount // unit * unit)


def _parts(
    data: CalibrationSet,
    batch: TokenBatch,
    drawn: Sequence[Sequence[Row]],
    tokenizer: PreTrainedTokenizerBase,
) -> Iterator[dict[str, Any]]:
    encoder = IdEncoder(tokenizer)
    special = _special_names(encoder)
    # The windows that are shown are divided among the parts; the first parts show one more.
    shown_each, left_over = divmod(_SHOWN, len(data.parts))
    begin = 0  # the part's first sequence in the batch
    parts = zip(data.parts, batch.facts["parts"], drawn, strict=True)
    for number, (term, facts, rows) in enumerate(parts):
        lengths = [len(encoder.row(row, term.format)) for row in rows]
        text_start, window_start = encoder.starts(term.packing, term.format)
        starts = len(text_start) + len(window_start)
        shown = range(0)
        unshown = f"the licence ({term.source.licence}) doesn't let its rows be quoted"
        if term.source.shown:
            unshown = ""
            count = max(1, shown_each + (number < left_over))
            shown = range(begin, begin + min(count, facts["sequences"]))
        begin += facts["sequences"]
        conversing = ""
        if getattr(tokenizer, "chat_template", None):
            conversing = str(replace(term, format=Chat(), packing=Whole()))
        unused = unused_messages(rows, term.format)
        yield {
            **facts,
            # What isn't used is said with what helps, under what to fix.
            "note": facts["note"].removesuffix(unused).removesuffix("; "),
            **_expressions(term),
            "padding": _padding(facts, data.length),
            "histogram": histogram(lengths),
            "fitting_length": _fitting_length(lengths, starts, data.length),
            "empty": lengths.count(0),
            "special_texts": _special_texts(term, rows, special),
            "unused": unused,
            "conversing": conversing,
            "conversations": conversation_facts(term, facts, rows, tokenizer),
            "texts": [quoted(batch, place, tokenizer) for place in shown],
            "unshown": unshown,
        }


def _fitting_length(lengths: Sequence[int], starts: int, length: int) -> int:
    """Return how long windows must be that nearly all texts fit, with `starts` start tokens; all of
    them where nearly all fit windows of `length`. 0 where there are none.
    """
    if not lengths:
        return 0
    fits_most = int(np.quantile(lengths, 0.95, method="higher")) + starts
    # The few longest may be all that is cut.
    if fits_most <= length:
        return max(lengths) + starts
    return fits_most


def _special_names(encoder: IdEncoder) -> re.Pattern[str]:
    """Return an expression for special tokens that are written out in a text: a tokenizer takes
    them for the tokens themselves.
    """
    names = {str(encoder.tokenizer.convert_ids_to_tokens(token)) for token in encoder.special}
    return any_of(tuple(sorted(names - {""})))


def _special_texts(term: Term, rows: Sequence[Row], special: re.Pattern[str]) -> dict[str, int]:
    """Return in how many rows each special token stands as text."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in sorted(set(special.findall(row_content(row, term.format)))):
            counts[name] = counts.get(name, 0) + 1
    return counts


def _expressions(term: Term) -> dict[str, Any]:
    """Return what the part is made of, and the expressions that a verdict may propose in its
    place; empty where there is none.
    """
    answered_format = term.format
    if answered_format.spec_name() == "question" and "answer" in term.source.fields:
        answered_format = formats.build("qa")
    packing: Any = term.packing  # a dataclass, which its abstract class is not
    startless = ""
    if packing.bos != "none" and "bos" in {field.name for field in fields(packing)}:
        startless = str(replace(term, packing=replace(packing, bos="none")))
    return {
        "source": str(term.source),
        "own": isinstance(term.source, OwnData),
        "kind": term.source.kind,
        "format": str(term.format),
        "leaner": [str(replace(term, format=form)) for form in _leaner_formats(term)],
        "packing": str(packing),
        "fills": packing.fills,
        "replacement": packing.replacement,
        "filled": str(replace(term, format=answered_format, packing=Many())),
        "startless": startless,
    }


def _leaner_formats(term: Term) -> Iterator[Format]:
    """Yield other formats that the rows can have, with more of their own text for each word of the
    format's.
    """
    if term.format.spec_name() == "text":
        return
    present = {*term.source.fields, *term.source.sometimes}
    for name in ("text", "cot"):
        form = formats.build(name)
        if name != term.format.spec_name() and present.issuperset(form.needs):
            yield form


def histogram(lengths: Sequence[int]) -> list[list[int]]:
    """Return lengths counted in at most twelve ranges of a round width, as [least, most, count];
    the last range holds the few that are much longer.
    """
    if not lengths:
        return []
    least = min(lengths)
    # With the longest two percent in the range, the bars of all others would be thin.
    most = int(np.quantile(lengths, 0.98, method="higher"))
    width = _bar_width(least, most)
    first_range = least // width
    last_range = most // width
    places = np.minimum(np.array(lengths) // width, last_range) - first_range
    counts = np.bincount(places, minlength=last_range - first_range + 1).tolist()
    ranges: list[list[int]] = []
    for number, count in enumerate(counts, first_range):
        ranges.append([number * width, (number + 1) * width - 1, count])
    ranges[-1][1] = max(ranges[-1][1], max(lengths))
    return ranges


def _bar_width(least: int, most: int) -> int:
    """Return the smallest of 1, 2, 5, 10, … with which few bars suffice."""
    power = 1
    while True:
        for width in (power, 2 * power, 5 * power):
            if most // width - least // width < _BARS:
                return width
        power *= 10
