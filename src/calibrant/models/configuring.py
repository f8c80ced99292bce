"""A model's configuration and tokenizer, checked before transformers acts on them: they may ask for
no more layers than the files can hold, and for no code to be run.

Known architectures are opened with transformers' own classes, whatever an `auto_map` says. What
would run other code (that beside a model, kernels from a hub) is refused, unless the user asked for
it: `--trust-remote-code`, or `CALIBRANT_TRUST_REMOTE_CODE`, which reaches the processes of a study
too.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers import __version__ as transformers_version

from calibrant.errors import ModelError
from calibrant.models.folder import CONFIG, check_plain, entries, leaves, read_object
from calibrant.models.quiet import Refusal
from calibrant.spec.foreign import TRUST_REMOTE_CODE, brief, switched_on

SETTINGS: Final = "tokenizer_config.json"
FLAG: Final = "--trust-remote-code before the command"
CHOICES: Final[Mapping[str, tuple[str, ...]]] = {
    "attn_implementation": ("eager", "sdpa", "flex_attention"),
    "experts_implementation": ("eager", "batched_mm", "grouped_mm"),
}
"""The implementations that a configuration may choose: those of torch and transformers
themselves.
"""
KERNELS: Final = ("use_kernels", "kernel_config")
OTHER_FILES: Final = ("transformers_weights", "configuration_files")
"""Entries with which a configuration has other files opened in place of the usual ones."""

LAYERS: Final = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
EXPERTS: Final = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "n_shared_experts",
    "moe_num_experts",
)
SIZES: Final = ("num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads")
"""Sizes that are at least 1 in every model."""
FEW: Final = 1024
"""How many layers or experts a configuration may ask for, however little the files hold. Building
so many takes a second, and then what the files lack is named.
"""


def trusted(requested: bool | None) -> bool:
    """Return whether code that comes with a model may be run: as `requested`, or as the
    environment says.
    """
    if requested is not None:
        return requested
    return switched_on(TRUST_REMOTE_CODE)


@final
@dataclass(frozen=True)
class Room:
    """How many layers and experts some files can hold: a layer has a tensor at least, an expert a
    row of one. These are limited since they are built one by one.
    """

    layers: int = FEW
    experts: int = FEW

    @classmethod
    def of(cls, shapes: Collection[tuple[int, ...]]) -> "Room":
        """Return the room in files that hold tensors of these shapes."""
        rows = [max(shape, default=0) for shape in shapes]
        return cls(max(FEW, len(shapes)), max([FEW, *rows]))


def read_config(folder: Path, ref: str, room: Room, trust: bool) -> PreTrainedConfig:
    """Return the configuration of a causal language model.

    Raises `ModelError` for everything that `check_raw` refuses, and for a model that doesn't
    predict the next token.
    """
    check_raw(folder, ref, room, trust)
    with opening_by_transformers(ref):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    # `packed_folder` reads what was quantized; transformers must not.
    vars(config).pop("quantization_config", None)
    check_sizes(config, ref)
    check_outputs(config, ref)
    if type(config).__module__.startswith("transformers."):
        _check_causal(config, ref)
    return config


def opening_by_transformers(ref: str) -> Refusal:
    """Return the context for every call that has transformers read a folder's configuration or
    weights: whatever it raises becomes a `ModelError`.
    """
    return Refusal(
        f"{ref} can't be opened by transformers",
        "; check its config.json and that all files are there",
        ref,
    )


def check_raw(folder: Path, ref: str, room: Room, trust: bool) -> None:
    """Raise `ModelError` for a `config.json` that is damaged or of an unknown architecture, and for
    one that chooses code, names other files, or asks for too many layers or experts.
    """
    # The file itself is read, since transformers acts on some entries as soon as it sees them.
    raw = read_object(folder / CONFIG)
    for name in OTHER_FILES:
        if raw.get(name):
            raise ModelError(
                f"{folder / CONFIG} names other files to be opened ({name}: {brief(raw[name])}); "
                "delete that entry",
                subject=name,
            )
    if not trust:
        _refuse_code(raw, folder)
    check_code_is_here(raw, folder / CONFIG)
    _check_type(raw, ref, trust)
    check_counts(raw, str(folder / CONFIG), room)


def check_code_is_here(raw: Mapping[str, Any], path: Path) -> None:
    """Raise `ModelError` for an `auto_map` that names another repository's code. No digest covers
    that code, so it isn't run even for a user who trusts the model's own.
    """
    for name in leaves(raw.get("auto_map")):
        # transformers writes REPOSITORY--FILE.CLASS for code from elsewhere.
        if isinstance(name, str) and "--" in name:
            raise ModelError(
                f"{path} wants code from elsewhere run (auto_map: {brief(name)}); copy that code "
                "beside it",
                subject=name,
            )


def check_counts(raw: Mapping[str, Any], where: str, room: Room) -> None:
    """Raise `ModelError` where a configuration asks for more layers or experts than there is room
    for, before anything is built. `where` is the file that messages name.
    """
    for key, value in entries(raw):
        if key in LAYERS:
            most = room.layers
        elif key in EXPERTS:
            most = room.experts
        else:
            continue
        if isinstance(value, int) and value > most:
            raise ModelError(
                f"{where} says that {key} is {brief(value)}, but the files have room for {most:,} "
                "at most; check it",
                subject=key,
            )


def check_sizes(config: PreTrainedConfig, ref: str) -> None:
    """Raise `ModelError` for a size below one, and for a `dtype` that is no type of torch."""
    with opening_by_transformers(ref):
        text = config.get_text_config()
    for name in SIZES:
        size = getattr(text, name, None)
        if isinstance(size, int) and size < 1:
            raise ModelError(
                f"{ref}: {name} is {brief(size)}, but must be at least 1; check its config.json",
                subject=name,
            )
    if not isinstance(config.dtype, torch.dtype | None):
        raise ModelError(
            f"{ref}: dtype is {brief(config.dtype)}, which is no type of numbers; check its "
            "config.json",
            subject="dtype",
        )


def _refuse_code(raw: Mapping[str, Any], folder: Path) -> None:
    """Raise `ModelError` for an entry that chooses an implementation other than the allowed
    ones.
    """
    for key, value in entries(raw):
        # transformers reads `_attn_implementation_internal` as it reads `attn_implementation`.
        name = key.strip("_").removesuffix("_internal")
        allowed = CHOICES.get(name, ())
        wrong: list[Any] = []
        instead = "delete that entry"
        if allowed:
            wrong = [leaf for leaf in leaves(value) if leaf is not None and leaf not in allowed]
            instead = f"allowed is {', '.join(allowed)}"
        elif name in KERNELS and value:
            wrong = [value]
        if wrong:
            raise ModelError(
                f"{folder / CONFIG} chooses what the model is computed with ({key}: "
                f"{brief(wrong[0])}), which may run code from a hub; {instead}, or say "
                f"{FLAG} if you trust it",
                subject=key,
            )


def _check_type(raw: Mapping[str, Any], ref: str, trust: bool) -> None:
    """Raise `ModelError` unless transformers has the architecture itself, or the model comes with
    code that may be run.
    """
    kind = raw.get("model_type")
    if isinstance(kind, str) and kind in CONFIG_MAPPING:
        return
    if not raw.get("auto_map"):
        raise ModelError(
            f"{ref} is of model type {brief(kind)}, which transformers {transformers_version} "
            "doesn't know; check its config.json, or upgrade",
            subject=ref,
        )
    if not trust:
        named = brief(kind).strip("'")
        raise ModelError(
            f"{ref} ({named}) works only with code of its own, which is never run here unless you "
            f"say {FLAG}; give an architecture that transformers has",
            subject=ref,
        )


def causal_classes(config: PreTrainedConfig) -> set[str]:
    """Return the names of the classes of transformers that predict the next token with a model of
    this configuration.
    """
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), ())
    if not isinstance(known, list | tuple):
        known = (known,)
    return {kind.__name__ for kind in known}


def _check_causal(config: PreTrainedConfig, ref: str) -> None:
    """Raise `ModelError` for a model that doesn't predict the next token."""
    classes = causal_classes(config)
    # A configuration that names no class is opened as the first that fits it.
    names = config.architectures or sorted(classes)[:1]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(
            f"{ref}: architectures is {brief(names)}, and no list of names; check its config.json",
            subject="architectures",
        )
    if not classes.intersection(names):
        kind = ", ".join(names) or config.model_type
        raise ModelError(
            f"{ref} is no causal language model ({kind}); give one that predicts the next token, "
            "such as smollm2",
            subject=ref,
        )


def folder_tokenizer(folder: Path, ref: str, trust: bool) -> Any:
    """Return a folder's tokenizer. Raises `ModelError` if it can't be opened, or its chat template
    is no text.
    """
    names = check_plain(folder, ref)
    if CONFIG in names:
        check_raw(folder, ref, Room(), trust)
    if SETTINGS in names:
        check_code_is_here(read_object(folder / SETTINGS), folder / SETTINGS)
    with Refusal(
        f"{ref} has no tokenizer that can be opened",
        "; put the model's tokenizer files beside it",
        ref,
    ):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
        try_out(tokenizer)
    check_template(tokenizer, ref)
    return tokenizer


def try_out(tokenizer: Any) -> None:
    """Encode and decode a letter, since a tokenizer looks at some of its files only then."""
    ids = tokenizer("a")["input_ids"]
    tokenizer.decode(ids)
    len(tokenizer)


def check_outputs(config: PreTrainedConfig, ref: str) -> None:
    """Raise `ModelError` for a model that returns tuples, whose parts have no names."""
    for part in (config, config.get_text_config()):
        if not getattr(part, "return_dict", True):
            raise ModelError(
                f"{ref}: its configuration says return_dict=false, so the outputs of the model "
                "have no names; set return_dict to true there",
                subject="return_dict",
            )


def check_ids(tokenizer: Any, model: nn.Module, ref: str) -> None:
    """Raise `ModelError` for a token whose id has no row in the embedding.

    Added tokens may lie beyond the embedding, as one for pictures does in a model of text only.
    Those that are in every batch (begin, end, padding) may not.
    """
    rows = model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportCallIssue]
    in_batches = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    added = set(tokenizer.added_tokens_decoder) - in_batches
    beyond: dict[int, str] = {}
    for token, number in tokenizer.get_vocab().items():
        if number >= rows and number not in added:
            beyond[number] = token
    if beyond:
        number = min(beyond)
        raise ModelError(
            f"{ref}: its tokenizer gives {brief(beyond[number])} the id {number}, but the "
            f"embedding has {rows} rows; give the tokenizer of this model",
            subject=ref,
        )


def check_template(tokenizer: Any, ref: str) -> None:
    """Raise `ModelError` for a chat template that is no text."""
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        templates = {"default": templates}
    for template in templates.values():
        if not isinstance(template, str | None):
            raise ModelError(
                f"{ref}: its chat template is {brief(template)} and no text; check its {SETTINGS}",
                subject="chat_template",
            )
