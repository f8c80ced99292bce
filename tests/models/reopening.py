"""What plain transformers makes of a model that was saved."""

from pathlib import Path

from transformers import AutoModelForCausalLM, PreTrainedModel

from calibrant.models import Opened, save, view
from calibrant.testing.tiny import tiny_tokenizer


def reopened(model: PreTrainedModel, place: Path) -> PreTrainedModel:
    """The same model opened anew, its experts one by one as in `model`."""
    save(Opened(model, tiny_tokenizer(), "", "", "", model.dtype), place, {})
    again = AutoModelForCausalLM.from_pretrained(place)
    view(again)
    return again
