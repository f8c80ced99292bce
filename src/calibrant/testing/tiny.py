"""Tiny random models of every family that is tested, and a tokenizer to go with them; nothing is
downloaded.
"""

from pathlib import Path
from typing import Any, Final

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from calibrant.errors import ModelError
from calibrant.spec.foreign import did_you_mean

SPECIAL: Final = ("<pad>", "<bos>", "<eos>")
VOCABULARY: Final = len(SPECIAL) + 256
TEMPLATE: Final = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + eos_token }}{% "
    "endfor %}"
)

_TOKENS: Final = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN: Final = {
    **_TOKENS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.1,
}
_GROUPED: Final = {**_PLAIN, "num_key_value_heads": 2}
_ROUTED: Final = {**_GROUPED, "num_experts": 32, "num_experts_per_tok": 2}
_KINDS: Final = ["sliding_attention", "full_attention", "sliding_attention"]
_FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "phi3": _GROUPED,
    "gemma2": {**_GROUPED, "head_dim": 8},
    "gemma3": {**_GROUPED, "head_dim": 8, "sliding_window": 4, "layer_types": _KINDS},
    "olmo2": _GROUPED,
    "gpt2": {**_TOKENS, "n_embd": 32, "n_layer": 3, "n_head": 4, "initializer_range": 0.1},
    "gpt_neox": _PLAIN,
    "opt": {**_PLAIN, "ffn_dim": 64, "word_embed_proj_dim": 32, "init_std": 0.1},
    "mixtral": {**_GROUPED, "num_local_experts": 32},
    "qwen3_moe": {**_ROUTED, "head_dim": 8, "moe_intermediate_size": 16},
    "olmoe": _ROUTED,
}
_MODEL_TYPES: Final = {"gemma3": "gemma3_text"}

FAMILIES: Final = tuple(_FAMILIES)
"""The architectures whose tiny models every part is tested on."""


def tiny_model(
    family: str, dtype: torch.dtype = torch.float32, seed: int = 0, **overrides: Any
) -> PreTrainedModel:
    """Return a random model of `family`: three blocks, 32 features, 32 experts where there are any,
    in evaluation mode, experts run one by one.

    `overrides` are entries of its configuration. The same seed gives the same numbers, and the
    global generator is left alone. Raises `ModelError` for an unknown family.
    """
    if family not in _FAMILIES:
        hint = did_you_mean(family, FAMILIES)
        known = ", ".join(FAMILIES)
        message = f"there is no tiny model of {family!r}{hint} (known: {known})"
        raise ModelError(message, subject=family)
    settings = {**_FAMILIES[family], **overrides}
    config = AutoConfig.for_model(_MODEL_TYPES.get(family, family), **settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
    # Buffers, such as rotary frequencies, stay in float32: so does a model that is opened from a
    # file.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    # Experts lie in one tensor of three dimensions. Run one by one, each is a product of its own.
    if any(parameter.dim() == 3 for parameter in model.parameters()):
        model.set_experts_implementation("eager")
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes: any text goes in and comes out, one token a byte after
    `<pad>`, `<bos>` and `<eos>`; with a chat template.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    pad, bos, eos = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=bos,
        eos_token=eos,
        chat_template=TEMPLATE,
    )


def tiny_folder(path: str | Path, family: str = "llama", **overrides: Any) -> Path:
    """Save a tiny model and its tokenizer as a Hugging Face folder at `path`, and return the
    path.
    """
    tiny_model(family, **overrides).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return Path(path)


def tiny_gguf(path: str | Path, packed: str = "Q8_0") -> Path:
    """Write a tiny llama with its tokenizer as a GGUF file at `path`, and return the path.

    Its matrices are `packed`, a type of gguf.
    """
    model = tiny_model("llama")
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(VOCABULARY)
    _write_tokenizer(writer)
    for name, tensor in model.state_dict().items():
        _write_tensor(writer, name, tensor, config, gguf.GGMLQuantizationType[packed])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(list(range(VOCABULARY)))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * len(SPECIAL) + [gguf.TokenType.NORMAL] * 256)
    # A reader that finds no merges derives them from the scores: single bytes give none.
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_pad_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)


def _write_tensor(
    writer: gguf.GGUFWriter,
    name: str,
    tensor: torch.Tensor,
    config: Any,
    packed: gguf.GGMLQuantizationType,
) -> None:
    """One tensor under llama.cpp's name; queries and keys have their rotary halves interleaved
    there.
    """
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    rotated = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for projection, heads in rotated.items():
        if f"{projection}.weight" in name:
            halves = tensor.reshape(heads, 2, -1, tensor.shape[1])
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
    # Norms stay as they are: only matrices are packed.
    kind = packed if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
    numbers = gguf.quantize(tensor.numpy(), kind)
    llama_name = names.get_name(name.removesuffix(".weight"))
    writer.add_tensor(f"{llama_name}.weight", numbers, raw_dtype=kind)
