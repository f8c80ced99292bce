"""What a model's forward takes: not every family has every argument."""

import inspect
from typing import Any

from transformers import PreTrainedModel


def accepted(model: PreTrainedModel, **given: Any) -> dict[str, Any]:
    """Those of the arguments that the model's forward names."""
    known = inspect.signature(model.forward).parameters
    return {name: value for name, value in given.items() if name in known}
