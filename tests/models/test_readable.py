"""Texts that a model can't read are refused in a sentence, before any work: windows longer than its
table of positions, and tokens without a row in the embedding.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import calibrant
from calibrant.data.inspect import inspect
from calibrant.decoding import Decoder
from calibrant.errors import DataError, ModelError
from calibrant.evaluators._base import Evaluator
from calibrant.evaluators._scoring import Request, score
from calibrant.evaluators._windows import ScoredWindow, summed_nats
from calibrant.evaluators.agreement import Agreement
from calibrant.evaluators.loss import Loss
from calibrant.lab.mixtures import mix
from calibrant.models.readable import longest_window
from calibrant.testing import tiny_folder, tiny_gguf, tiny_model, tiny_tokenizer

from tests.models.families import small_model
from tests.refusing import refused

FEW: dict[str, Any] = {"data": "python_docs", "samples": 2, "length": 33}
"""Windows of one token more than the models here have positions."""
WITH_TABLE = {"gpt2": {"n_positions": 32}, "opt": {"max_position_embeddings": 32}}


def with_table(family: str) -> PreTrainedModel:
    return tiny_model(family, **WITH_TABLE[family])


@pytest.mark.parametrize("family", WITH_TABLE)
def test_windows_longer_than_the_table_of_positions_are_refused_before_any_work(family: str):
    model = with_table(family)
    before = [parameter.clone() for parameter in model.parameters()]
    with refused(DataError, 33):
        calibrant.prune(model, tiny_tokenizer(), **FEW)
    with refused(DataError, 33):
        calibrant.quantize(model, tiny_tokenizer(), method="gptq", target="w4g32", **FEW)
    assert all(map(torch.equal, before, model.parameters()))
    calibrant.prune(model, tiny_tokenizer(), **FEW | {"length": 32})


def test_so_are_those_that_are_mixed_or_inspected(tmp_path: Path):
    model = with_table("gpt2")
    with refused(DataError, 33):
        inspect(model=model, tokenizer=tiny_tokenizer(), **FEW)
    sources = ["python_docs", "full_stops"]
    budget = {"tokens": 66, "length": 33}
    with refused(DataError, 33):
        mix(model, tiny_tokenizer(), sources=sources, folder=tmp_path, **budget)


@pytest.mark.parametrize(
    "task", [Loss("python_docs", length=33), Agreement("python_docs", length=33)]
)
def test_so_are_those_of_what_is_measured(task: Evaluator):
    model = with_table("gpt2")
    dense = with_table("gpt2") if task.compares else None
    with refused(DataError, 33):
        calibrant.evaluate(model, tiny_tokenizer(), tasks=task, limit=2, reference=dense)


LONG = """
from dataclasses import dataclass

from calibrant.data import Packing
from calibrant.data.packings._base import Window

@dataclass(frozen=True, repr=False)
class Long(Packing):
    bos: str = "none"

    def windows(self, texts, sizes, frame):
        for size, text in zip(sizes, texts):
            yield Window(text.ids)

    def supply(self, lengths, frame):
        return f"{len(lengths)} texts"
"""


def test_a_packing_of_another_package_gives_no_longer_windows_than_it_is_asked_for(
    plugged: Callable[..., None],
):
    plugged({"calibrant.data.packings": {"long": "long_windows:Long"}}, long_windows=LONG)
    model = tiny_model("llama")
    tokenizer = tiny_tokenizer()
    few = {"data": "python_docs@long", "samples": 2, "length": 16}
    said = r"^long gives a window of \d+ tokens where there is room for 16; mend long_windows:Long$"
    with pytest.raises(DataError, match=said):
        calibrant.prune(model, tokenizer, **few)
    with pytest.raises(DataError, match=said):
        calibrant.quantize(model, tokenizer, method="gptq", target="w4g32", **few)


def test_the_sentence_says_both_numbers_and_what_to_do():
    with pytest.raises(DataError) as caught:
        calibrant.prune(with_table("gpt2"), tiny_tokenizer(), **FEW)
    assert str(caught.value) == (
        "windows of 33 tokens don't fit into the model's 32 positions; give a length of at most 32"
    )


def test_a_plan_says_it_too(tmp_path: Path):
    folder = str(tiny_folder(tmp_path / "model", "gpt2", n_positions=32))
    tasks = "loss(source=python_docs, tokens=99, length=33)"
    for model, tokenizer in ((folder, None), (with_table("gpt2"), tiny_tokenizer())):
        pruning = calibrant.plan(calibrant.prune, model, tokenizer, **FEW)
        measuring = calibrant.plan(calibrant.evaluate, model, tokenizer, tasks=tasks)
        for plan in (pruning, measuring):
            said = [note for note in plan.notes if "windows may have 33 tokens" in note]
            assert len(said) == 1
            assert plan.fits, "texts may all turn out shorter"
        fitting = calibrant.plan(calibrant.prune, model, tokenizer, **FEW | {"length": 32})
        assert not any("windows may have" in note for note in fitting.notes)


def test_a_plan_reads_positions_in_a_gguf_file(tmp_path: Path):
    path = str(tiny_gguf(tmp_path / "tiny.gguf"))
    positions = tiny_model("llama").config.max_position_embeddings
    for length, count in ((positions, 0), (positions + 1, 1)):
        plan = calibrant.plan(calibrant.prune, path, **FEW | {"length": length})
        said = [note for note in plan.notes if f"the model was made for {positions:,}" in note]
        assert len(said) == count


def test_a_table_of_positions_in_a_gguf_file_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    positions = tiny_model("llama").config.max_position_embeddings
    write = gguf.GGUFWriter.write_header_to_file

    def write_with_table(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor("position_embd.weight", np.ones((positions, 32), dtype=np.float32))
        write(writer)

    monkeypatch.setattr(gguf.GGUFWriter, "write_header_to_file", write_with_table)
    path = str(tiny_gguf(tmp_path / "tiny.gguf"))
    plan = calibrant.plan(calibrant.prune, path, **FEW | {"length": positions + 1})
    assert any("longer windows are refused" in note for note in plan.notes)


def test_rotary_positions_go_on_and_a_plan_says_what_the_model_was_made_for(tmp_path: Path):
    sizes = {"max_position_embeddings": 32}
    folder = str(tiny_folder(tmp_path / "model", "llama", **sizes))
    tasks = "loss(source=python_docs, tokens=99, length=33)"
    for model, tokenizer in ((folder, None), (tiny_model("llama", **sizes), tiny_tokenizer())):
        pruning = calibrant.plan(calibrant.prune, model, tokenizer, **FEW)
        measuring = calibrant.plan(calibrant.evaluate, model, tokenizer, tasks=tasks)
        for plan in (pruning, measuring):
            (said,) = (note for note in plan.notes if "33 tokens" in note)
            assert "the model was made for 32: what it says of longer ones may mean little" in said
            assert plan.fits
        fitting = calibrant.plan(calibrant.prune, model, tokenizer, **FEW | {"length": 32})
        assert not any("windows may have" in note for note in fitting.notes)
    calibrant.prune(tiny_model("llama", **sizes), tiny_tokenizer(), **FEW)


@pytest.mark.parametrize(
    ("family", "longest"),
    [
        ("roberta", 63),
        ("bart", 64),
        ("gpt_neo", 64),
        ("gptj", 64),
        ("mpt", 64),
        ("whisper", 64),
        ("xglm", None),
    ],
)
def test_a_window_may_be_as_long_as_the_model_can_read(family: str, longest: int | None):
    model = small_model(family)
    assert longest_window(model) == longest
    ids = torch.full((1, longest or 99), 5)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
        if longest is not None:
            with pytest.raises((IndexError, RuntimeError)):
                model(input_ids=torch.full((1, longest + 1), 5), use_cache=False)


def test_tokens_beyond_the_embedding_are_refused_wherever_texts_are_read():
    model = tiny_model("llama")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["the"])
    with refused(DataError, 259):
        calibrant.prune(model, tokenizer, **FEW | {"length": 512})
    with refused(DataError, 259):
        summed_nats(model, [ScoredWindow("", 0, [5, 259], 1, 0)])
    with refused(DataError, 259):
        Decoder(model, [[5], [5, 259]], 1, lambda ids: True, "a test")
    for request in (Request((5, 259), (6,)), Request((5,), (259,))):
        with refused(DataError, 259):
            score(model, [request])


def test_a_model_that_returns_tuples_is_refused(tmp_path: Path):
    folder = tiny_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "return_dict": False}))
    with refused(ModelError, "return_dict"):
        calibrant.open_model(str(folder))
    with refused(ModelError, "return_dict"):
        calibrant.prune(tiny_model("llama", return_dict=False), tiny_tokenizer(), **FEW)
