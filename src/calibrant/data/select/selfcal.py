"""Self-calibration: the dense model writes from its start token alone (Williams, Chrysostomou,
Aletras 2025, arXiv 2410.17170).
"""

from dataclasses import dataclass
from functools import partial

from calibrant.data import Source
from calibrant.data.select._base import MOST, Context, Selection, Selector, check_between
from calibrant.data.select._generating import (
    LEAST,
    GenerationRequest,
    Sampling,
    filter_texts,
    selection,
)
from calibrant.data.select._reading import check_outputs
from calibrant.errors import DataError


@dataclass(frozen=True, repr=False)
class SelfCal(Selector):
    """The dense model writes texts from nothing; a temperature that falls over the first tokens
    makes their openings differ.

    The temperature goes from `t_initial` at the first token to `t_final` at the token `steps` after
    it in a straight line, and stays there. No prefix, no data, and no filter: loops and texts of
    low likelihood stay, and the note counts the loops. Of the paper only the abstract was at hand,
    with second-hand word of the start token and of the schedule: that it is linear, and the three
    numbers here, are not verified.

    A tokenizer without a start token gives its end token instead, which parted documents when such
    models were trained. A text ends at an end token or has `max_tokens` tokens (by default the
    length of a window). `top_k`, `top_p` and `repetition_penalty` are as in `selfgen`, and off.
    Rounds of at most `batch` texts are written until they have the wanted tokens and a twentieth
    more. A draw differs from another by chance alone, of which there is no end.
    """

    after = "Williams et al. 2025 (abstract)"
    t_initial: float = 2.0
    t_final: float = 1.0
    steps: int = 10
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    batch: int = 32

    kind = "corpus"
    licence = "none of its own: what a model writes; see that of the model"
    homepage = "https://arxiv.org/abs/2410.17170"
    fields = ("text",)

    def __post_init__(self) -> None:
        check_between(
            self,
            t_initial=(LEAST, MOST),
            t_final=(LEAST, MOST),
            steps=(0, MOST),
            top_k=(0, MOST),
            top_p=(LEAST, 1),
            repetition_penalty=(LEAST, MOST),
            batch=(1, MOST),
            max_tokens=(1, MOST),
        )

    def temperature(self, step: int) -> float:
        """Return the temperature at which the token `step`, the first being 0, is drawn."""
        if step >= self.steps:
            return self.t_final
        return self.t_initial + (self.t_final - self.t_initial) * step / self.steps

    def measured(self) -> Source:
        """Raise `DataError`: there is none."""
        raise DataError(
            "selfcal has no source of which a part could be measured; name one, as in "
            "loss(source=wikitext)",
            subject="selfcal",
        )

    def disjoint(self) -> int | None:
        """Return None: there is no end."""
        return None

    def select(self, context: Context) -> Selection:
        """Return texts until they suffice. `DataError` if there is neither a start nor an end
        token.
        """
        start = context.tokenizer.bos_token_id
        if not isinstance(start, int):
            start = context.tokenizer.eos_token_id
        if not isinstance(start, int):
            raise DataError(
                f"{self} begins with the start token, and this tokenizer has neither a start nor "
                "an end token; use selfgen",
                subject=str(self),
            )
        check_outputs(context.model(self), [[start]])
        length = context.length if self.max_tokens is None else self.max_tokens
        request = GenerationRequest(
            prefixes=((start,),),
            starts=1,
            length=length,
            sampling=Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty),
            batch=self.batch,
            filter_texts=partial(filter_texts, loops="keep"),
        )
        return selection(self, context, request)
