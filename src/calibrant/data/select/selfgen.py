"""Self-generated calibration data: the dense model continues short prefixes (Ji et al. 2024,
arXiv 2410.17711).
"""

from dataclasses import dataclass
from functools import partial
from typing import Final

from calibrant.data import Source, start_tokens
from calibrant.data.expression import Term
from calibrant.data.select._base import (
    MOST,
    Context,
    Selection,
    Selector,
    calibrate_rows,
    check_between,
    dealt_rows,
    parsed_terms,
    rendered_rows,
)
from calibrant.data.select._generating import (
    LEAST,
    GenerationRequest,
    Sampling,
    filter_texts,
    selection,
)
from calibrant.data.select._reading import check_outputs
from calibrant.errors import DataError, SpecError


@dataclass(frozen=True, repr=False)
class SelfGen(Selector):
    """The dense model continues the first `prefix_tokens` tokens of rows of `prefix`; texts that it
    finds unlikely itself are dropped.

    The defaults are those of the paper's committed script. The next token is drawn after
    `repetition_penalty`, `temperature`, `top_k` (0: all) and `top_p`, until an end token or
    `max_tokens` tokens, prefix included (by default the length of a window). Perplexity is exp of
    the mean nats per token under the dense model, prefix included; exactly ceil(drop · n) of n
    texts go. The paper's script drops what is at or above the 80th percentile, which is the same
    but for ties.

    Texts come in rounds of at most `batch` (more are faster and take more memory) until those that
    are left have the wanted tokens and a twentieth more, encoded again; the paper writes 5,000 and
    draws from them. Draw d takes the next `candidates` rows of the prefix source's calibrate part
    in their fixed order, round and round; where more texts are needed than it has rows, a prefix is
    continued several times, each time by other chance. So draws whose prefixes are the same still
    have texts of their own; `disjoint` counts prefixes all the same.

    Ours, not the paper's: loops are counted, and dropped unless `loops="keep"` (a small model falls
    into them, and perplexity doesn't see them: a loop is likely); texts that have nothing but their
    prefix, and copies, go too. A start token stands before the prefix if the tokenizer puts one
    there by itself, and isn't counted as one of its tokens; whether the script's two tokens include
    it is not known. Special tokens within a text are left out of it. The paper joins texts by
    spaces and cuts windows across their borders: `selfgen@many(separator=' ')`.
    """

    after = "Ji et al. 2024"
    prefix: str = "wikipedia"
    prefix_tokens: int = 2
    top_k: int = 50
    top_p: float = 0.95
    temperature: float = 0.6
    repetition_penalty: float = 1.2
    drop: float = 0.2
    loops: str = "drop"
    max_tokens: int | None = None
    candidates: int = 64
    batch: int = 32

    kind = "corpus"
    licence = (
        "none of its own: what a model writes; see those of the model and of the source of its "
        "prefixes"
    )
    homepage = "https://arxiv.org/abs/2410.17711"
    fields = ("text",)

    def __post_init__(self) -> None:
        check_between(
            self,
            prefix_tokens=(1, MOST),
            candidates=(1, MOST),
            batch=(1, MOST),
            top_k=(0, MOST),
            top_p=(LEAST, 1),
            temperature=(LEAST, MOST),
            repetition_penalty=(LEAST, MOST),
            drop=(0, 0.999),
            max_tokens=(1, MOST),
        )
        if self.max_tokens is not None and self.max_tokens <= self.prefix_tokens:
            raise SpecError(
                f"selfgen(max_tokens={self.max_tokens}): a text must have room behind its prefix "
                f"of {self.prefix_tokens} tokens",
                subject="max_tokens",
            )
        if self.loops not in ("drop", "keep"):
            raise SpecError(
                f"selfgen(loops={self.loops!r}): choose one of 'drop', 'keep'", subject="loops"
            )
        if self._term.source.kind == "control" or isinstance(self._term.source, Selector):
            raise SpecError(
                f"selfgen(prefix={self.prefix!r}): prefixes come from rows with a text; name a "
                "corpus or a question set",
                subject=self.prefix,
            )

    @property
    def origins(self) -> tuple[Source, ...]:
        """The source of the prefixes."""
        return (self._term.source,)

    def measured(self) -> Source:
        """Return the source of the prefixes: the closest to what is written that has a measured
        part.
        """
        return self._term.source

    def disjoint(self) -> int | None:
        """Return how often the rows that prefixes come from suffice for as many as a draw takes."""
        return max(1, len(calibrate_rows(self._term.source)) // self.candidates)

    def select(self, context: Context) -> Selection:
        """Return texts until they suffice. `DataError` if no row is as long as a prefix, or if
        too little is left of what is written.
        """
        starts = start_tokens(context.tokenizer)
        length = context.length if self.max_tokens is None else self.max_tokens
        if length <= self.prefix_tokens:
            raise DataError(
                f"{self} with windows of {length} tokens leaves no room behind a prefix of "
                f"{self.prefix_tokens}; raise length",
                subject="length",
            )
        prefixes = tuple((*starts, *ids) for ids in self._prefixes(context))
        check_outputs(context.model(self), prefixes)

        def temperature(step: int) -> float:
            del step
            return self.temperature

        request = GenerationRequest(
            prefixes=prefixes,
            starts=len(starts),
            length=length,
            sampling=Sampling(temperature, self.top_k, self.top_p, self.repetition_penalty),
            batch=self.batch,
            filter_texts=partial(filter_texts, drop=self.drop, loops=self.loops),
            keeps=1 - self.drop,
        )
        return selection(self, context, request)

    def _prefixes(self, context: Context) -> list[list[int]]:
        """Return the first tokens of the draw's rows; rows that are shorter are passed over."""
        rows = dealt_rows(self._term.source, context.draw, self.candidates)
        prefixes: list[list[int]] = []
        # Cut behind more letters than the tokens can have: long articles take long to encode.
        letters = _LONGEST * (self.prefix_tokens + 1)
        for _, text in rendered_rows(rows, self._term.format, context.tokenizer).rows:
            encoded = context.tokenizer(text[:letters], add_special_tokens=False, verbose=False)
            ids = encoded["input_ids"][: self.prefix_tokens]
            if len(ids) == self.prefix_tokens:
                prefixes.append(ids)
        if not prefixes:
            raise DataError(
                f"{self}: none of the {len(rows)} rows of this draw has {self.prefix_tokens} "
                "tokens; lower prefix_tokens",
                subject=self.prefix,
            )
        return prefixes

    @property
    def _term(self) -> Term:
        first, *others = parsed_terms(self.prefix)
        if others:
            raise SpecError(
                f"selfgen(prefix={self.prefix!r}): prefixes come from one source, such as "
                "wikipedia",
                subject=self.prefix,
            )
        return first


_LONGEST: Final = 128
"""Letters of a token at most."""
