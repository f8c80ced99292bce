"""What a calibration set holds, as a given model would see it."""

from calibrant.data import CalibrationSet, Inspection
from calibrant.data import inspect as inspect_tokens
from calibrant.models import Opened, open_model


def inspect(
    data: str | CalibrationSet, model: str | Opened = "smollm2", *, samples: int = 128, tokens: int | None = None, length: int = 2048, seed: int = 0
) -> Inspection:
    """Draw `data` with the tokenizer of `model` and say what is in it, part by part, with the beginnings of a few windows.

    The budget is that of `prune`; of a `CalibrationSet` it is the set's own. Raises an `InputError` for a set or a model that can't be used.
    """
    chosen = data if isinstance(data, CalibrationSet) else CalibrationSet(data, samples, length, tokens, seed)
    return inspect_tokens(chosen, (model if isinstance(model, Opened) else open_model(model)).tokenizer)
