"""Perplexity as the papers on pruning and quantization measure it, and strided, as the documentation of transformers does.

`perplexity(source=wikitext, length=2048, tokens=65536)` makes one running text of a source's measured part, cuts its tokens into windows of `length`
without regard to where a document ends, and scores each window by itself but for its first token, which has nothing to be predicted from. What is
left at the end and doesn't fill a window isn't measured. The tokens are those that the tokenizer gives for the whole text: one start token at
the head of it, where it puts one, and none at the head of other windows. For the papers' number ask for more tokens than there are.

What is joined: of `wikitext` the lines of the test file in its order, empty ones too, by "\\n\\n", exactly as the papers' code does; of any other
source its documents, as they are rendered, in the source's order, by "\\n\\n". Perplexities compare only where the joining, the length, the stride,
the budget and the tokenizer are the same. With `joined=false` each document is cut for itself, first windows before second ones, and its short end is
scored too.

With a `stride` below the length, windows overlap: each begins `stride` tokens after the one before it, and only what that one didn't score is scored.
So every token but the first of all is scored exactly once, most of them with at least `length - stride` tokens before them, and the short window at
the end is scored too. The documentation of transformers weights its windows a token too low each; here the sum runs over tokens.

The score is the loss, in nats per token, because losses can be added up and compared item by item; the perplexity, its exponential, is a fact of it.
The standard error is over windows where the text is joined. Neighbouring windows are of one article and overlapping ones share text, so they are
not independent and the error is, if anything, too small; over documents, with `joined=false`, it isn't.
"""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice
from typing import Final

from transformers import PreTrainedTokenizerBase

from calibrant.data import Format, Row, Source, held_out, start_tokens
from calibrant.data.hub import records
from calibrant.data.sources.wikitext import HUB, WikiText
from calibrant.errors import NumericsError, SpecError
from calibrant.evaluators._base import LONGEST_WINDOW, MOST_TOKENS, SourceEvaluator, Subject
from calibrant.evaluators._estimates import ratio
from calibrant.evaluators._windows import (
    ScoredWindow,
    by_document,
    check_limit,
    in_turn,
    score_windows,
    summed_nats,
    within,
)
from calibrant.results.outcomes import MOST, Measurement, Outcome, Score
from calibrant.spec import check_most, identity, later

TOKENS_PER_BATCH: Final = 2048
"""Tokens whose logits are held at once; the result doesn't depend on it beyond rounding."""
JOINT: Final = "\n\n"
LETTERS_PER_TOKEN: Final = 8
"""How much text is tokenised at first for each token that is wanted; if that gives too few,
twice as much is.
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
        check_limit("perplexity", self.limit)
        if self.tokens < 1 or self.length < 2:
            raise SpecError(
                f"perplexity(tokens={self.tokens}, length={self.length}): tokens must be at least 1 and length at least 2",
                subject="perplexity",
            )
        if self.stride is not None and not 1 <= self.stride <= self.length:
            raise SpecError(
                f"perplexity(length={self.length}, stride={self.stride}): a stride is between 1 and the length, or tokens would be left out",
                subject="stride",
            )

    def held_out(self) -> tuple[Source, Format]:
        return held_out(self.source)

    def limited(self, limit: int) -> "Perplexity":
        """Return the same with a budget of `limit` tokens."""
        return replace(self, tokens=limit)

    def measure(self, subject: Subject) -> Measurement:
        """Return the loss, one outcome per window, or per document if these aren't joined:
        `value` its summed nats, `weight` its scored tokens.
        """
        source, format = self.held_out()
        tokenizer, pieces = subject.tokenizer, list[str]()
        if self.joined:
            needed = self.tokens + self.tokens // (self.length - 1) + 2 * self.length
            pieces = joined_rows(source, self.rows(), format, tokenizer, needed)
            cut = self._cut(JOINT.join(pieces), tokenizer)
        else:
            cut = in_turn(
                self._cut(format.render(row, tokenizer), tokenizer, row.name)
                for row in islice(self.rows(), self.limit)
            )
        windows = within(source, islice(cut, self.limit) if self.joined else cut, self.tokens)
        nats = score_windows(
            windows,
            TOKENS_PER_BATCH,
            lambda batch: summed_nats(subject.model, batch),
            subject,
            str(self),
        )
        items = (
            {f"{w.begin:09d} {w.document}": [w] for w in windows}
            if self.joined
            else by_document(windows)
        )
        outcomes = tuple(
            Outcome(item, sum(nats[w.name] for w in own), float(sum(w.scored for w in own)))
            for item, own in items.items()
        )
        measured = (
            f"{source}:{format.spec_name()}, {'joined' if self.joined else 'document by document'}"
        )
        score = self._score(outcomes, windows, measured)
        return Measurement(
            replace(score, facts={**score.facts, **_rows(source, pieces, windows)})
            if self.joined
            else score,
            outcomes,
        )

    def _score(
        self, outcomes: tuple[Outcome, ...], windows: list[ScoredWindow], measured: str
    ) -> Score:
        loss, stderr = ratio([o.value for o in outcomes], [o.weight for o in outcomes])
        if not math.isfinite(loss):
            raise NumericsError(
                f"the perplexity on {measured} comes from a loss of {loss}: the model's outputs aren't finite",
                subject=measured,
            )
        size = sum(w.size for w in windows)
        facts = {
            "perplexity": math.exp(loss) if loss < 700 else math.inf,
            "bits_per_byte": sum(o.value for o in outcomes) / math.log(2) / size
            if size
            else math.nan,
            "tokens": sum(w.scored for w in windows),
            "bytes": size,
            "windows": len(windows),
            "length": self.length,
            "stride": self.stride or self.length,
            "error_over": "windows" if self.joined else "documents",
            "items": identity([[o.item, o.weight] for o in outcomes]),
        }
        return Score(
            measured, "loss", loss, stderr, len(outcomes), "nats/token", "lower", facts=facts
        )

    def _cut(
        self, text: str, tokenizer: PreTrainedTokenizerBase, document: str = ""
    ) -> Iterator[ScoredWindow]:
        """The windows of a text, which is a document's or, if that has no name, the joined one."""
        start = start_tokens(tokenizer)
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = [*start, *encoded["input_ids"]], encoded["offset_mapping"]
        for begin, first, end in stretches(
            len(ids), self.length, self.stride, short=bool(document) or self.stride is not None
        ):
            size = len(
                text[offsets[first - len(start)][0] : offsets[end - 1 - len(start)][1]].encode()
            )
            stretch = ids[begin:end]
            name = (
                document or hashlib.sha256(",".join(map(str, stretch)).encode()).hexdigest()[:16]
            )  # one of the joined text is called by what it shows
            yield ScoredWindow(
                name, begin, stretch, first - begin, size, offsets[end - 1 - len(start)][1]
            )


def stretches(
    count: int, length: int, stride: int | None, short: bool
) -> Iterator[tuple[int, int, int]]:
    """Where windows of `length` lie in a text of `count` tokens: the first that is shown, the first
    that is scored, the one behind the last.

    One that is cut short by the end of the text is left out unless it is to be scored too, or is
    the only one.
    """
    behind = 0
    for begin in range(0, count, stride or length):
        end = min(begin + length, count)
        if begin and end - begin < length and not short:
            return
        first = max(behind, begin + 1)
        if first < end:
            yield begin, first, end
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
    pieces = (
        iter(wikitext_lines())
        if isinstance(source, WikiText)
        else (format.render(row, tokenizer) for row in rows)
    )
    pieces_taken, letters = [next(pieces, "")], LETTERS_PER_TOKEN * tokens
    size = len(pieces_taken[0])
    while True:
        before = len(pieces_taken)
        for piece in pieces:
            pieces_taken.append(piece)
            size += len(JOINT) + len(piece)
            if size >= letters:
                break
        if (
            len(pieces_taken) == before
            or len(
                tokenizer(JOINT.join(pieces_taken), add_special_tokens=False, verbose=False)[
                    "input_ids"
                ]
            )
            >= tokens
        ):
            return pieces_taken
        letters *= 2


def _rows(source: Source, pieces: Sequence[str], windows: Sequence[ScoredWindow]) -> dict[str, int]:
    """How many of the joined rows are measured, a part of the last one perhaps. Of `wikitext`
    they are the lines of its file, not its articles.
    """
    until = max(window.until for window in windows)
    begins = accumulate((len(piece) + len(JOINT) for piece in pieces), initial=0)
    lines = {"rows_of": sum(1 for _ in wikitext_lines())} if isinstance(source, WikiText) else {}
    return {"rows": sum(begin < until for begin in islice(begins, len(pieces))), **lines}


def wikitext_lines() -> Iterator[str]:
    """Yield the lines of WikiText-2's raw test file in its order, empty ones too, as the hub has
    them and the papers join them.
    """
    lines, _ = records(HUB, "test", [("wikitext2_raw", "test")])
    return (record["text"] for record in lines)
