"""What llama.cpp calls a model's tensors: `model.layers.0.self_attn.q_proj` is
`blk.0.attn_q.weight` in a GGUF file.

The gguf package has a table for each architecture. What it lacks is said here: which architecture a
model of transformers is, and the tensors in which transformers keeps all experts of a layer.
"""

import re
from typing import Any, Final

import gguf

from calibrant.errors import ModelError
from calibrant.models.viewing import ModelView, Weight

ALIASES: Final = {
    "mistral": "llama",
    "mixtral": "llama",
    "cohere": "command-r",
    "starcoder2": "starcoder2",
    "gpt_oss": "gpt-oss",
    "phi": "phi2",
}
"""What GGUF calls an architecture, where it isn't the model type of transformers with its joints
left out.
"""

EXPERTS: Final = {"gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"), "down_proj": ("ffn_down_exps",)}
"""Tensors of all experts by the last part of their name. Gate and up are one tensor in
transformers and two in GGUF, and read the same inputs.
"""

_ARCHITECTURES: Final = {name: architecture for architecture, name in gguf.MODEL_ARCH_NAMES.items()}
_EXPERT: Final = re.compile(r"\[\d+\]$")


def architecture_of(model: Any) -> str:
    """Return the name of a model's architecture in GGUF. Raises `ModelError` for one that
    llama.cpp has no name for.
    """
    kind = str(model.config.get_text_config(decoder=True).model_type)
    plain = kind.removesuffix("_text")
    found = next(
        (
            name
            for name in (
                ALIASES.get(plain, ""),
                plain,
                plain.replace("_", ""),
                plain.replace("_", "-"),
            )
            if name in _ARCHITECTURES
        ),
        None,
    )
    if found is None:
        raise ModelError(
            f"llama.cpp has no names for the tensors of {kind}; give a model of another architecture",
            subject=kind,
        )
    return found


def tensor_names(view: ModelView) -> dict[str, tuple[str, ...]]:
    """Return the GGUF tensors that each matrix of a model is (a part of), by the matrix's name; of
    one expert they are those of all.

    Raises `ModelError` for an architecture without names, and for a matrix that it has no name for.
    """
    architecture = architecture_of(view.model)
    names = gguf.get_tensor_name_map(_ARCHITECTURES[architecture], len(view.blocks))
    return {weight.name: _names(names, weight, architecture) for weight in view.weights}


def tensor_name(model: Any, parameter: str) -> str | None:
    """Return the GGUF tensor that one parameter (`model.norm.weight`) is; None for one without a
    name of its own, such as a tied head.
    """
    config = model.config.get_text_config(decoder=True)
    names = gguf.get_tensor_name_map(
        _ARCHITECTURES[architecture_of(model)], config.num_hidden_layers
    )
    return names.get_name(parameter, try_suffixes=(".weight", ".bias"))


def _names(names: gguf.TensorNameMap, weight: Weight, architecture: str) -> tuple[str, ...]:
    path = _EXPERT.sub("", weight.name)
    last = path.rpartition(".")[2]
    if weight.expert is not None and last in EXPERTS:
        return tuple(f"blk.{weight.block}.{part}.weight" for part in EXPERTS[last])
    name = names.get_name(path, try_suffixes=(".weight",))
    if name is None:
        raise ModelError(
            f"llama.cpp's {architecture} has no name for {weight.name}; give a model of another architecture",
            subject=weight.name,
        )
    return (f"{name.removesuffix('.weight')}.weight",)
