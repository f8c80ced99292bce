"""Models of half a billion numbers and of more: they open as they are known, and pruning them takes
the memory that a plan says. `make big` brings them and runs these tests.
"""

import json
import math
import subprocess
import sys
from typing import Final

import gguf
import numpy as np
import pytest
import torch

from calibrant.data import CalibrationSet, as_source
from calibrant.evaluators import evaluate
from calibrant.models import located, open_model, open_tokenizer, view
from calibrant.models.gguf_decoding import decoded
from calibrant.spec.named import NAMED

from tests.data.conversations import Conversation, conversations

pytestmark = pytest.mark.big

SHAPES: Final = {"qwen2.5-coder-0.5b": (24, 896), "qwen2.5-coder-1.5b": (28, 1536)}
"""How many blocks each has, and how wide they are."""
PERPLEXITY: Final = {"qwen2.5-coder-0.5b": 12.87, "qwen2.5-coder-1.5b": 6.75}
"""Of 1,024 tokens of Python's documentation, in bfloat16."""


@pytest.mark.parametrize("name", SHAPES)
def test_it_opens_as_it_is_known(name: str) -> None:
    opened = open_model(name, "bfloat16", "cpu")
    assert opened.digest == NAMED[name].digest
    assert opened.note == "dequantized from Q4_K_M"
    blocks, width = SHAPES[name]
    assert len(view(opened.model).weights) == 7 * blocks
    assert opened.model.config.hidden_size == width
    ids = opened.tokenizer("def fibonacci(n):\n    if n < 2:\n        return", return_tensors="pt")
    with torch.no_grad():
        answer = opened.model(**ids).logits[0, -1].argmax()
    assert opened.tokenizer.decode(answer) == " n"
    loss = evaluate(opened, tasks="loss(source=python_docs, tokens=1024, length=256)")
    perplexity = math.exp(loss[0].score.value)
    assert perplexity == pytest.approx(PERPLEXITY[name], rel=0.02)


@pytest.mark.parametrize("name", SHAPES)
def test_each_kind_of_its_tensors_is_decoded_as_gguf_does_it(name: str) -> None:
    path = located(name)
    smallest: dict[gguf.GGMLQuantizationType, gguf.ReaderTensor] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        least = smallest.setdefault(tensor.tensor_type, tensor)
        if tensor.n_elements < least.n_elements:
            smallest[tensor.tensor_type] = tensor
    assert len(smallest) > 2
    for kind, tensor in smallest.items():
        expected = gguf.dequantize(np.array(tensor.data), kind)
        found = decoded(path, tensor, torch.bfloat16)
        assert torch.equal(found, torch.from_numpy(expected).to(torch.bfloat16))


@pytest.mark.parametrize("name", SHAPES)
def test_its_conversations_are_those_of_its_own_template(name: str) -> None:
    tokenizer, _ = open_tokenizer(name)
    spoken = conversations(60)
    wanted: dict[str, Conversation] = {}
    for conversation in spoken:
        (row,) = as_source([conversation]).rows("calibrate")
        wanted[row.key] = conversation
    data = CalibrationSet(f"{as_source(spoken)}:chat@one(bos='none')", samples=60, length=4096)
    batch = data.tokens(tokenizer)
    assert {row.key for row in batch.rows} == wanted.keys()
    assert any(row.tools for row in batch.rows)
    for row, ids, mask in zip(batch.rows, batch.ids, batch.mask, strict=True):
        conversation = wanted[row.key]
        encoded = tokenizer.apply_chat_template(
            conversation["messages"], tools=conversation.get("tools"), return_dict=True
        )
        assert ids[mask].tolist() == encoded["input_ids"]
    (facts,) = batch.facts["parts"]
    assert facts["unclear"] == 0
    assert not facts["refused"]


ONE_RUN: Final = """
import json, sys
import calibrant
options = {"data": "python_docs", "samples": 2, "length": 256, "method": "wanda", "target": 0.5}
planned = calibrant.plan(calibrant.prune, sys.argv[1], **options)
record = calibrant.prune(sys.argv[1], **options).record
sparsity = record.sparsity
print(json.dumps([planned.memory, record.provenance["peak_memory_bytes"], sparsity]))
"""


@pytest.mark.parametrize("name", SHAPES)
def test_pruning_it_takes_the_memory_that_its_plan_says(name: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", ONE_RUN, name], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    memory, peak, sparsity = json.loads(finished.stdout.splitlines()[-1])
    assert memory == pytest.approx(peak, rel=0.25)
    zeros = 0
    total = 0
    for weight in view(open_model(name, "bfloat16", "cpu").model).weights:
        numbers = weight.get()
        # A row may have more zeros than are removed: eight of the smaller model have.
        zeros += int((numbers == 0).sum(1).clamp_min(numbers.shape[1] // 2).sum())
        total += numbers.numel()
    assert sparsity == pytest.approx(zeros / total, rel=1e-12)
