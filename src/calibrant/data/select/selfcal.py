"""Self-calibration: the dense model writes from its start token alone (Williams, Chrysostomou,
Aletras 2025, arXiv 2410.17170).
"""

import math
from dataclasses import dataclass

from calibrant.data import Source
from calibrant.data.select._base import MOST, Context, Selection, Selector
from calibrant.data.select._generating import (
    GenerationRequest,
    Sampling,
    check_between,
    filter_texts,
    selection,
)
from calibrant.data.select._reading import check_outputs
from calibrant.errors import DataError, SpecError
from calibrant.spec import check_most


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
        check_most(self, max_tokens=MOST)
        none, whole, tiny = 0.0, math.inf, 1e-3
        check_between(
            self,
            t_initial=(tiny, whole),
            t_final=(tiny, whole),
            steps=(none, whole),
            top_k=(none, whole),
            top_p=(tiny, 1.0),
        )
        check_between(self, repetition_penalty=(tiny, whole), batch=(1.0, whole))
        if self.max_tokens is not None and self.max_tokens < 1:
            raise SpecError(
                f"selfcal(max_tokens={self.max_tokens}): a text has at least 1 token",
                subject="max_tokens",
            )

    def temperature(self, step: int) -> float:
        """Return the temperature at which the token `step`, the first being 0, is drawn."""
        return (
            self.t_final
            if step >= self.steps
            else self.t_initial + (self.t_final - self.t_initial) * step / self.steps
        )

    def measured(self) -> Source:
        """There is none."""
        raise DataError(
            "selfcal has no source of which a part could be measured; name one, as in "
            "loss(source=wikitext)",
            subject="selfcal",
        )

    def disjoint(self) -> int | None:
        """Without end."""
        return None

    def select(self, context: Context) -> Selection:
        """Return texts until they suffice. `DataError` if there is neither a start nor an end
        token.
        """
        bos, eos = context.tokenizer.bos_token_id, context.tokenizer.eos_token_id
        start = bos if isinstance(bos, int) else eos
        if not isinstance(start, int):
            raise DataError(
                f"{self} begins with the start token, and this tokenizer has neither a start nor "
                "an end token; use selfgen",
                subject=str(self),
            )
        check_outputs(context.model(self), [[start]])
        length = context.length if self.max_tokens is None else self.max_tokens
        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty)
        return selection(
            self,
            context,
            GenerationRequest(
                ((start,),),
                1,
                length,
                sampling,
                self.batch,
                lambda texts: filter_texts(texts, loops="keep"),
            ),
        )
