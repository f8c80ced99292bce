"""Verbs with a model object: the same numbers and ids as with its folder, changed in place or left
as it was.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from calibrant.compress import prune, quantize
from calibrant.compress.importance import imatrix
from calibrant.data.inspect import inspect
from calibrant.errors import DataError, InputError, ModelError, OutputError, SpecError
from calibrant.evaluators import evaluate, explain
from calibrant.lab.mixtures import mix
from calibrant.models import open_model, view
from calibrant.models.objects import opened_of
from calibrant.testing import tiny_folder, tiny_model

from tests.models.test_objects import numbers
from tests.usual import two_hundred_lines

SMALL: dict[str, Any] = {"samples": 4, "length": 16}
LOSS = "loss(source=python_docs, tokens=256, length=64)"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("models") / "model", "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    return two_hundred_lines(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def same(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    ours = numbers(first)
    theirs = numbers(second)
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


JOBS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "wanda": (prune, {"method": "wanda", "target": 0.5}),
    "permuted": (prune, {"method": "wanda", "target": "2:4", "transform": "permute"}),
    "blocks": (prune, {"method": "short_gpt", "target": "blocks 0.34"}),
    "gptq": (quantize, {"method": "gptq", "target": "w4g16"}),
}


@pytest.mark.parametrize("job", list(JOBS))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_in_memory_and_file_jobs_give_the_same(
    folder: Path, texts: str, tokenizer: Any, job: str, dtype: str
) -> None:
    verb, settings = JOBS[job]
    by_name = verb(str(folder), data=texts, dtype=dtype, **settings, **SMALL)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    by_object = verb(model, tokenizer, data=texts, **settings, **SMALL)
    assert by_object.record.run == by_name.record.run
    assert by_object.record.run.id == by_name.record.run.id
    assert by_object.opened.digest == by_name.opened.digest
    assert by_object.opened.model is model
    assert same(model, by_name.opened.model)
    assert by_object.record.weights == by_name.record.weights


def test_a_copy_is_compressed_where_that_is_asked(
    model: PreTrainedModel, tokenizer: Any, texts: str
) -> None:
    before = numbers(model)
    done = prune(model, tokenizer, data=texts, copy=True, **SMALL)
    assert done.opened.model is not model
    assert all(torch.equal(before[name], tensor) for name, tensor in numbers(model).items())
    assert not same(model, done.opened.model)


def test_modes_gradients_and_experts(tokenizer: Any, texts: str) -> None:
    model = tiny_model("mixtral")
    model.set_experts_implementation("batched_mm")
    model.train()
    model.get_input_embeddings().requires_grad_(False)
    required = [parameter.requires_grad for parameter in model.parameters()]
    evaluate(model, tokenizer, tasks=LOSS)
    inspect(texts, model, tokenizer, **SMALL)
    imatrix(model, tokenizer, data=texts, samples=4, length=16)
    assert model.training
    assert model.config._experts_implementation == "batched_mm"
    prune(model, tokenizer, data=texts, **SMALL)
    assert not any(module.training for module in model.modules())
    assert model.config._experts_implementation == "batched_mm"
    assert required == [parameter.requires_grad for parameter in model.parameters()]


def test_what_is_refused_changes_nothing(
    model: PreTrainedModel, tokenizer: Any, texts: str, tmp_path: Path
) -> None:
    before = numbers(model)
    model.train()
    bad: list[dict[str, Any]] = [
        {"target": "16:16"},
        {"export": "gguf(like='nothing.gguf')", "out": tmp_path / "out"},
        {"dtype": "bfloat16"},
    ]
    for settings in bad:
        with pytest.raises(InputError):
            prune(model, tokenizer, data=texts, **{**SMALL, **settings})
    with pytest.raises(InputError):
        prune(model, data=texts, **SMALL)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in numbers(model).items())
    assert not list(tmp_path.iterdir())


def test_an_object_is_changed_and_saved_and_found_again(
    folder: Path, tokenizer: Any, texts: str, tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    done = prune(model, tokenizer, data=texts, out=tmp_path / "out", **SMALL)
    by_name = prune(str(folder), data=texts, out=tmp_path / "named", dtype="float32", **SMALL)
    assert done.record.run.id == by_name.record.run.id
    written = (tmp_path / "out/model.safetensors").read_bytes()
    assert written == (tmp_path / "named/model.safetensors").read_bytes()
    # The same cell of a notebook again, from the beginning.
    again = AutoModelForCausalLM.from_pretrained(folder)
    found = prune(again, tokenizer, data=texts, out=tmp_path / "out", **SMALL)
    assert found.already_done
    assert found.opened.model is again
    assert same(again, model)


def test_an_object_that_was_interrupted_is_loaded_again_and_goes_on(
    folder: Path, tokenizer: Any, texts: str, tmp_path: Path
) -> None:
    whole = AutoModelForCausalLM.from_pretrained(folder)
    prune(whole, tokenizer, data=texts, **SMALL)

    def interrupting(doing: str, done: int, total: int) -> None:
        if doing.startswith("wanda") and done == 2:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"data": texts, "out": tmp_path / "out", **SMALL}
    model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(KeyboardInterrupt):
        prune(model, tokenizer, progress=interrupting, **settings)
    model = AutoModelForCausalLM.from_pretrained(folder)
    done = prune(model, tokenizer, **settings)
    assert done.continued_from > 0
    assert same(model, whole)


def test_in_inference_mode_it_gives_the_same(
    folder: Path, model: PreTrainedModel, tokenizer: Any, texts: str
) -> None:
    asked: dict[str, Any] = {"data": texts, **SMALL}
    expected = AutoModelForCausalLM.from_pretrained(folder)
    importance = imatrix(expected, tokenizer, **asked)
    prune(expected, tokenizer, method="sparsegpt", **asked)
    with torch.inference_mode():
        found = imatrix(model, tokenizer, **asked)
        prune(model, tokenizer, method="sparsegpt", **asked)
    assert found.entries.keys() == importance.entries.keys()
    for name, entry in importance.entries.items():
        assert (found.entries[name].sums == entry.sums).all()
    assert same(model, expected)


def test_a_folder_with_other_parts_is_no_answer(
    folder: Path, tokenizer: Any, texts: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"method": "short_gpt", "target": "blocks 0.34", "data": texts}
    model = AutoModelForCausalLM.from_pretrained(folder)
    prune(model, tokenizer, out=tmp_path / "out", **settings, **SMALL)
    again = AutoModelForCausalLM.from_pretrained(folder)
    before = numbers(again)
    with pytest.raises(OutputError):
        prune(again, tokenizer, out=tmp_path / "out", **settings, **SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in numbers(again).items())


def test_a_second_job_is_about_the_changed_numbers(
    model: PreTrainedModel, tokenizer: Any, folder: Path, texts: str
) -> None:
    opened = open_model(str(folder), "float32")
    first = prune(opened, data=texts, **SMALL)
    second = quantize(opened, target="w4g16")
    by_object = prune(model, tokenizer, data=texts, **SMALL)
    after = quantize(by_object.opened.model, tokenizer, target="w4g16")
    assert second.record.run.model not in (first.record.run.model, open_model(str(folder)).digest)
    assert after.record.run.model == second.record.run.model
    assert after.record.run.model_name == str(folder)


def test_a_fine_tuned_object_has_ids_of_its_own(
    model: PreTrainedModel, tokenizer: Any, texts: str
) -> None:
    before = prune(model, tokenizer, data=texts, copy=True, **SMALL)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    after = prune(model, tokenizer, data=texts, copy=True, **SMALL)
    assert before.record.run.id != after.record.run.id


def test_objects_are_measured_as_their_folders(
    folder: Path, model: PreTrainedModel, tokenizer: Any, texts: str
) -> None:
    (by_name,) = evaluate(str(folder), tasks=LOSS, dtype="float32")
    (by_object,) = evaluate(model, tokenizer, tasks=LOSS)
    assert by_object.score == by_name.score
    assert by_object.provenance["model"] == str(folder)
    gathered = imatrix(model, tokenizer, data=texts, **SMALL)
    expected = imatrix(str(folder), data=texts, dtype="float32", **SMALL)
    for name, entry in expected.entries.items():
        assert (gathered.entries[name].sums == entry.sums).all()
    seen = inspect(texts, model, tokenizer, **SMALL)
    assert seen.model == inspect(texts, str(folder), dtype="float32", **SMALL).model


def test_a_model_that_was_changed_since_is_not_measured_as_the_compressed_one(
    model: PreTrainedModel, tokenizer: Any, texts: str, tmp_path: Path
) -> None:
    prune(model, tokenizer, data=texts, **SMALL)
    settings: dict[str, Any] = {"tasks": LOSS, "store": tmp_path / "results"}
    (before,) = evaluate(model, tokenizer, **settings)
    untouched_copy = opened_of(model, tokenizer, copy=True)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    for given in (model, opened_of(model, tokenizer, copy=True)):
        with pytest.raises(SpecError):
            evaluate(given, tokenizer, **settings)
    (after,) = evaluate(model, tokenizer, label="mine", **settings)
    assert after.score.value != before.score.value
    assert evaluate(untouched_copy, **settings)[0].score.value == before.score.value


def test_an_open_model_that_was_changed_is_not_measured_as_its_file(
    folder: Path, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"tasks": LOSS, "store": tmp_path / "results"}
    opened = open_model(str(folder), "float32")
    (before,) = evaluate(opened, **settings)
    for weight in view(opened.model).weights:
        weight.set(torch.zeros_like(weight.get()))
    with pytest.raises(SpecError):
        evaluate(opened, **settings)
    (after,) = evaluate(opened, label="mine", **settings)
    assert after.score.value != before.score.value


def test_a_model_whose_blocks_are_on_disk_is_measured_and_pruned(
    folder: Path, texts: str, tmp_path: Path
) -> None:
    on_disk = open_model(str(folder), "float32", on_disk=True)
    digest = on_disk.digest
    (expected,) = evaluate(str(folder), tasks=LOSS, dtype="float32")
    for _ in range(2):
        assert evaluate(on_disk, tasks=LOSS)[0].score == expected.score
    with pytest.raises(SpecError):
        prune(on_disk, data=texts, **SMALL)
    assert on_disk.digest == digest
    prune(on_disk, data=texts, out=tmp_path / "out", **SMALL)
    prune(str(folder), data=texts, out=tmp_path / "named", dtype="float32", **SMALL)
    written = (tmp_path / "out/model.safetensors").read_bytes()
    assert written == (tmp_path / "named/model.safetensors").read_bytes()
    # Its numbers are in no folder of its name any more.
    with pytest.raises(ModelError):
        evaluate(on_disk, tasks=LOSS)


def test_a_dense_object_is_compared_with(
    folder: Path, model: PreTrainedModel, tokenizer: Any, texts: str
) -> None:
    done = prune(model, tokenizer, data=texts, copy=True, **SMALL)
    task = "agreement(source=python_docs, tokens=256, length=64)"
    (with_object,) = evaluate(done.opened.model, tokenizer, tasks=task, reference=model)
    # What it was made from is known, and found by its name.
    (known,) = evaluate(done.opened.model, tokenizer, tasks=task)
    assert with_object.score.value == known.score.value > 0
    words: dict[str, Any] = {"source": "python_docs", "tokens": 2048, "against": model}
    assert explain(done.opened.model, tokenizer, **words).words
    with pytest.raises(SpecError):
        evaluate(model, tokenizer, tasks=task, reference=model)


def test_numbers_that_are_in_no_file_need_a_reference(tokenizer: Any, texts: str) -> None:
    done = prune(tiny_model("llama", seed=3), tokenizer, data=texts, **SMALL)
    with pytest.raises(SpecError):
        evaluate(done.opened.model, tokenizer, tasks="agreement(source=python_docs, tokens=64)")


def test_leaks_are_known_in_memory_too(tokenizer: Any, tmp_path: Path) -> None:
    calibrated = tmp_path / "calibrated.jsonl"
    lines = [f'{{"text": "Line {row} of a file, {row * 7} words from home."}}' for row in range(60)]
    calibrated.write_text("\n".join(lines))
    measured = tmp_path / "measured"
    measured.mkdir()
    (measured / "train.jsonl").write_text('{"text": "what trains"}')
    (measured / "test.jsonl").write_text("\n".join(lines))
    task = f"loss(source={str(measured)!r}, tokens=256, length=64)"
    model = tiny_model("llama")
    done = prune(model, tokenizer, data=str(calibrated), samples=8, length=48)
    for given in (model, done.opened, opened_of(model, tokenizer, copy=True)):
        with pytest.raises(DataError):
            evaluate(given, tokenizer, tasks=task)
    (allowed,) = evaluate(model, tokenizer, tasks=task, allow_leak=True)
    assert allowed.provenance["leaked"] > 0


def test_mixtures_of_an_object(
    folder: Path, model: PreTrainedModel, tokenizer: Any, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"sources": ["python_docs", "python_code"], "tokens": 512}
    settings |= {"length": 64, "folder": tmp_path}
    by_object = mix(model, tokenizer, **settings)
    by_name = mix(str(folder), dtype="float32", **settings)
    assert by_object.weights == by_name.weights
    # The statistics are those of the same model.
    assert by_name.reused == by_name.gathered > 0


def test_llama_cpp_runs_files_alone(model: PreTrainedModel, tokenizer: Any) -> None:
    with pytest.raises(InputError):
        evaluate(model, tokenizer, tasks=LOSS, engine="llama_cpp")
    with pytest.raises(SpecError):
        evaluate(model, tokenizer, tasks=LOSS, memory=1.0)
