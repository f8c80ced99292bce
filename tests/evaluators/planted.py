"""A small model in which one neuron was written for one word, a tokenizer of whole words, and
texts in a made-up language of twenty words.
"""

import json
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from calibrant.testing import tiny_model

WORDS = [f"{a}{b}" for a in ("ba", "do", "ki", "mu", "ze") for b in ("la", "no", "ri", "tus")]
WORD = "kiri"
BLOCK, NEURON = 2, 5
"""Where it is: in the last block, so that nothing comes after it."""
AXIS = 7
"""The direction of the stream that says that the word is there."""


def tokenizer() -> PreTrainedTokenizerFast:
    """A token is a word, and nothing stands before a text."""
    fast = Tokenizer(
        models.WordLevel(
            {"<unk>": 0, **{word: at for at, word in enumerate(WORDS, 1)}}, unk_token="<unk>"
        )
    )
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="<unk>", pad_token="<unk>", eos_token="<unk>"
    )


def planted(dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """Only the word's embedding has anything in the direction, and the neuron reads nothing
    else.
    """
    model = tiny_model("llama", dtype)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table[:, AXIS] = 0
        table[1 + WORDS.index(WORD), AXIS] = 3
        mlp = model.model.layers[BLOCK].mlp
        for matrix in (mlp.gate_proj.weight, mlp.up_proj.weight):
            matrix[NEURON] = 0
            matrix[NEURON, AXIS] = 2
    return model


def texts(path: Path, documents: int = 60, words: int = 60) -> Path:
    """Words one after another by chance, all equally often."""
    chance = np.random.default_rng(5)
    path.write_text(
        "\n".join(
            json.dumps({"text": " ".join(chance.choice(WORDS, words))}) for _ in range(documents)
        )
    )
    return path
