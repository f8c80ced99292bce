"""What is said of a calibration set that is too small for the model: nothing is refused, since
studies compare small sets on purpose.
"""

from typing import Final

from calibrant.data import TokenBatch
from calibrant.models import ModelView

FEW_TOKENS: Final = "few_tokens"
"""The entry of a record's provenance that says so, which is outside every identity."""


def shortage_of(seen_by: ModelView, batch: TokenBatch | None) -> str:
    """Return, in a sentence, that a batch has fewer tokens than the widest matrix has inputs;
    empty for one with enough, and for none.
    """
    if batch is None or not seen_by.weights:
        return ""
    count = int(batch.mask.sum())
    widest = max(seen_by.weights, key=lambda weight: weight.shape[1])
    inputs = widest.shape[1]
    if count >= inputs:
        return ""
    tokens = "1 token" if count == 1 else f"{count:,} tokens"
    # A Gram of fewer tokens than inputs is singular.
    why = f"{tokens} of calibration data can't tell the {inputs:,} inputs of {widest.name} apart"
    advice = f"raise samples, length or tokens: {inputs:,} are the least, many more are better"
    return f"{why}; {advice}"
