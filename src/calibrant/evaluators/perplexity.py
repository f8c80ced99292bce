"""Perplexity as the papers on pruning and quantization measure it, and strided, as the
documentation of transformers does.

`perplexity(source=wikitext, length=2048, tokens=65536)` makes one running text of a source's
measured part. It cuts the text's tokens into windows of `length` without regard to where a document
ends, and scores each window by itself but for its first token, which has nothing to be predicted
from. What is left at the end and doesn't fill a window isn't measured. The tokens are those that
the tokenizer gives for the whole text: one start token at its head, where it puts one, and none at
the head of other windows. For the papers' number ask for more tokens than there are.

What is joined: of `wikitext` the lines of the test file in its order, empty ones too, by "\\n\\n",
exactly as the papers' code does; of any other source its rendered documents, in the source's order,
by "\\n\\n". Perplexities compare only where the joining, the length, the stride, the budget and the
tokenizer are the same. With `joined=false` each document is cut for itself, first windows before
second ones, and its short end is scored too.

With a `stride` below the length, windows overlap: each begins `stride` tokens after the one before
it, and only what that one didn't score is scored. So every token but the first of all is scored
exactly once, most of them with at least `length - stride` tokens before them. The short window at
the end is scored too. The documentation of transformers weights its windows a token too low each;
here the sum runs over tokens.

The score is the loss, in nats per token, because losses can be added up and compared item by item;
the perplexity, its exponential, is a fact of it. The standard error is over windows where the text
is joined. Neighbouring windows are of one article, and overlapping ones share text, so they are not
independent and the error is, if anything, too small. Over documents, with `joined=false`, it isn't.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

from transformers import PreTrainedTokenizerBase

from calibrant.data import Format, Row, Source, held_out, start_tokens
from calibrant.data._encoding import token_offsets
from calibrant.data.hub import records
from calibrant.data.sources.wikitext import HUB, WikiText
from calibrant.errors import SpecError
from calibrant.evaluators._base import (
    LONGEST_WINDOW,
    MOST_TOKENS,
    SourceEvaluator,
    Subject,
    check_least,
)
from calibrant.evaluators._windows import (
    ScoredWindow,
    by_document,
    bytes_of,
    in_turn,
    token_ids,
    within,
)
from calibrant.evaluators.loss import measure_loss
from calibrant.results.outcomes import MOST, Measurement
from calibrant.spec import check_most, later

JOINT: Final = "\n\n"
LETTERS_PER_TOKEN: Final = 8
"""Letters of text that are tokenised at first for each token that is wanted; if they give too few
tokens, twice as many are.
"""


@dataclass(frozen=True, repr=False)
class Perplexity(SourceEvaluator):
    """Mean negative log likelihood of one running text, cut into windows of equal length, in
    nats per token; perplexity beside it.
    """

    source: str = "wikitext"
    length: int = 2048
    stride: int | None = None
    tokens: int = 65_536
    joined: bool = True
    limit: int | None = later(None)

    def __post_init__(self) -> None:
        check_most(self, tokens=MOST_TOKENS, length=LONGEST_WINDOW, limit=MOST)
        check_least(self, tokens=1, length=2, limit=1)
        if self.stride is not None and not 1 <= self.stride <= self.length:
            raise SpecError(
                f"perplexity(length={self.length}, stride={self.stride}): "
                f"a stride is between 1 and the length, or tokens would be left out",
                subject="stride",
            )

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.source)

    def limited(self, limit: int) -> "Perplexity":
        """Return the same with a budget of `limit` tokens."""
        return replace(self, tokens=limit)

    def measure(self, subject: Subject) -> Measurement:
        """Return the loss, with one outcome per window, or per document if these aren't joined:
        `value` its summed nats, `weight` its scored tokens.
        """
        if self.joined:
            return self._measure_joined(subject)
        source, format = self.held_out()
        documents = self._documents(format, subject.tokenizer)
        windows = within(source, in_turn(documents), self.tokens)
        measured = f"{source}:{format.spec_name()}, document by document"
        facts = self._facts(windows)
        return measure_loss(self, subject, windows, by_document(windows), measured, facts)

    def _measure_joined(self, subject: Subject) -> Measurement:
        """Measure all documents as one text."""
        source, format = self.held_out()
        # Each window leaves its first token out, and the last one may fall away.
        needed = self.tokens + self.tokens // (self.length - 1) + 2 * self.length
        pieces = joined_rows(source, self.rows(), format, subject.tokenizer, needed)
        cut_windows = islice(self._cut(JOINT.join(pieces), subject.tokenizer), self.limit)
        windows = within(source, cut_windows, self.tokens)
        items = {f"{window.begin:09d} {window.document}": [window] for window in windows}
        measured = f"{source}:{format.spec_name()}, joined"
        whole = measure_loss(self, subject, windows, items, measured, self._facts(windows))
        rows = _row_facts(source, pieces, windows)
        score = replace(whole.score, facts={**whole.score.facts, **rows})
        return replace(whole, score=score)

    def _facts(self, windows: Sequence[ScoredWindow]) -> dict[str, Any]:
        return {
            "windows": len(windows),
            "length": self.length,
            "stride": self.stride or self.length,
            "error_over": "windows" if self.joined else "documents",
        }

    def _documents(
        self, format: Format, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[Iterator[ScoredWindow]]:
        """Yield the windows of each of the first `limit` documents."""
        for row in islice(self.rows(), self.limit):
            yield self._cut(format.render(row, tokenizer), tokenizer, row.name)

    def _cut(
        self, text: str, tokenizer: PreTrainedTokenizerBase, document: str = ""
    ) -> Iterator[ScoredWindow]:
        """Yield the windows of a document's text or, without a name, of the joined one."""
        start = start_tokens(tokenizer)
        tokens, offsets = token_offsets(tokenizer, text)
        ids = [*start, *tokens]
        # Of the joined text without a stride the short end is left out, as the papers do.
        short = bool(document) or self.stride is not None
        for begin, first, end in stretches(len(ids), self.length, self.stride, short):
            shown = ids[begin:end]
            last = end - 1 - len(start)
            size = bytes_of(text, offsets, first - len(start), last)
            # A window of the joined text is named after what it shows.
            name = document or _hash_of(shown)
            yield ScoredWindow(name, begin, shown, first - begin, size, offsets[last][1])


def _hash_of(ids: Sequence[int]) -> str:
    return hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()[:16]


def stretches(
    count: int, length: int, stride: int | None, short: bool
) -> Iterator[tuple[int, int, int]]:
    """Yield where windows of `length` lie in a text of `count` tokens: the first that is shown, the
    first that is scored, the one behind the last.

    A window that the text's end cuts short is left out, unless `short` or it is the only one.
    """
    behind = 0
    for begin in range(0, count, stride or length):
        end = min(begin + length, count)
        if begin and end - begin < length and not short:
            return
        # The first token of a window has nothing to be predicted from.
        first = max(behind, begin + 1)
        if first < end:
            yield begin, first, end
        # What begins later would show nothing that isn't scored already.
        if end == count:
            return
        behind = end


def joined_rows(
    source: Source,
    rows: Iterable[Row],
    format: Format,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
) -> list[str]:
    """Return the measured part as the pieces of one text; of a long one as many of the first
    ones as give at least `tokens` of them.
    """
    pieces = (format.render(row, tokenizer) for row in rows)
    if isinstance(source, WikiText):
        pieces = wikitext_lines()
    # The first piece has no joint before it.
    taken = [next(pieces, "")]
    size = len(taken[0])
    letters = LETTERS_PER_TOKEN * tokens
    while True:
        before = len(taken)
        for piece in pieces:
            taken.append(piece)
            size += len(JOINT) + len(piece)
            if size >= letters:
                break
        is_all = len(taken) == before
        if is_all or len(token_ids(tokenizer, JOINT.join(taken))) >= tokens:
            return taken
        letters *= 2


def _row_facts(
    source: Source, pieces: Sequence[str], windows: Sequence[ScoredWindow]
) -> dict[str, int]:
    """Return how many of the joined rows are measured, a part of the last one perhaps. Of
    `wikitext` rows are the lines of its file, not its articles.
    """
    until = max(window.until for window in windows)
    rows = 0
    # Where the next piece begins in the joined text.
    begin = 0
    for piece in pieces:
        if begin < until:
            rows += 1
        begin += len(piece) + len(JOINT)
    facts = {"rows": rows}
    if isinstance(source, WikiText):
        facts["rows_of"] = sum(1 for _ in wikitext_lines())
    return facts


def wikitext_lines() -> Iterator[str]:
    """Yield the lines of WikiText-2's raw test file in its order, empty ones too, as the hub has
    them and the papers join them.
    """
    lines, _ = records(HUB, "test", [("wikitext2_raw", "test")])
    return (record["text"] for record in lines)
