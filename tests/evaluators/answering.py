"""What a model writes, put into its mouth."""

from collections.abc import Callable, Sequence

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from calibrant.decoding import Decoder, Generated


def says(
    patch: pytest.MonkeyPatch,
    tokenizer: PreTrainedTokenizerBase,
    answer: Callable[[PreTrainedModel, str], str],
) -> list[str]:
    """Models write what a function of the model and its prompt gives, token by token, until the
    reader says that it is enough. The prompts that they are given are returned.
    """
    prompts: list[str] = []

    def run(self: Decoder, batch: Sequence[int]) -> list[Generated]:
        return [written(self, number) for number in batch]

    def written(decoder: Decoder, number: int) -> Generated:
        prompts.append(str(tokenizer.decode(decoder.prompts[number])))
        text = answer(decoder.model, prompts[-1])
        ids: list[int] = []
        for token in tokenizer(text, add_special_tokens=False).input_ids:
            ids.append(token)
            if len(ids) >= decoder.most or decoder.ended(ids):
                break
        return Generated(tuple(ids), cut=not decoder.ended(ids))

    patch.setattr(Decoder, "run", run)
    # Nothing is read by these models, so templates may write tokens that they don't know.
    patch.setattr("calibrant.decoding.check_tokens", lambda model, largest: None)
    return prompts
