"""Windows as texts: what of them is shown to the one who asks, and what of them may be shown to everybody."""

import re
from typing import Final

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from calibrant.data.calibration import TokenBatch

LETTERS: Final = 400
"""How much of a window is quoted."""

_OPEN: Final = re.compile(r"(MIT|Apache-2\.0|PSF-2\.0|AFL-3\.0|CC0 1\.0$|CC BY(-SA)? \d)|none needed$")
"""How a licence begins that lets anybody show the texts themselves. One for a collection alone (ODC-By) says nothing of its texts."""


def may_be_quoted(licence: str) -> bool:
    """Whether a source's licence allows its rows on a page that others will read; where that isn't plain, it doesn't."""
    return _OPEN.match(licence) is not None


def real(batch: TokenBatch) -> Tensor:
    """True on tokens of texts: not on padding, nor on pads that count."""
    return batch.mask if batch.pads is None else batch.mask & ~batch.pads


def quoted(batch: TokenBatch, sequence: int, tokenizer: PreTrainedTokenizerBase, letters: int = LETTERS) -> str:
    """The beginning of a sequence with its special tokens; pads that count are counted, not written out."""
    shown = real(batch)[sequence]
    text = str(tokenizer.decode(batch.ids[sequence][shown].tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False))
    pads = int((batch.mask[sequence] & ~shown).sum())
    return (f"⟨{pads:,} pads⟩" if pads else "") + (text if len(text) <= letters else text[:letters] + "…")
