"""The noise floor of KL against two computations of the same numbers, by hand; where there is no second one, nothing is claimed."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from calibrant.cli import app
from calibrant.errors import ModelError
from calibrant.evaluators import Subject, evaluate
from calibrant.evaluators.agreement import Agreement
from calibrant.models import Opened, open_model
from calibrant.testing import tiny_folder

TASK = Agreement(source="python_docs", tokens=96, length=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "llama")


def by_hand(exact: list[np.ndarray], run: list[np.ndarray]) -> float:
    """The mean of KL(exact ‖ run) over all rows of logits, in float64."""
    nats = []
    for old, new in zip(exact, run, strict=True):
        p, q = (np.exp(one - one.max(-1, keepdims=True)) for one in (old.astype(np.float64), new.astype(np.float64)))
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        nats.append((p * np.log(p / q)).sum(-1))
    return float(np.concatenate(nats).mean())


def windows_of(opened: Opened) -> list[list[int]]:
    """The ids of what is measured; every token but the first of a window is scored."""
    windows = TASK.windows(opened.tokenizer)
    assert {w.unscored for w in windows} == {1}
    return [w.ids for w in windows]


def logits(model: torch.nn.Module, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, :-1].double().numpy()


@pytest.mark.parametrize(
    ("dtype", "wider", "low", "high"),
    [("bfloat16", "float32", 1e-6, 1e-2), ("float16", "float32", 1e-8, 1e-4), ("float32", "float64", 1e-17, 1e-10)],
)
def test_in_torch_it_is_the_dense_model_in_a_type_twice_as_wide(folder: Path, dtype: str, wider: str, low: float, high: float) -> None:
    opened, dense = (open_model(str(folder), dtype, "cpu") for _ in range(2))
    measured = TASK.measure(Subject(opened.model, opened.tokenizer, dense.model))
    facts = measured.score.facts
    exact = copy.deepcopy(opened.model).to(getattr(torch, wider))
    known = by_hand(*([logits(model, ids) for ids in windows_of(opened)] for model in (exact, opened.model)))
    assert facts["floor"] == pytest.approx(known, rel=0.05)
    assert low < facts["floor"] < high
    assert facts["floor_tokens"] == facts["tokens"]
    assert dtype in facts["floor_between"]
    assert wider in facts["floor_between"]
    assert all("floor" not in score.facts for score in measured.beside)
    assert measured.score.value == 0


def test_of_one_dense_model_it_is_measured_once_until_its_numbers_change(folder: Path) -> None:
    opened, dense = (open_model(str(folder), "bfloat16", "cpu") for _ in range(2))
    calls, counts, floors = list[int](), list[int](), list[float]()
    dense.model.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        floors.append(TASK.measure(Subject(opened.model, opened.tokenizer, dense.model)).score.facts["floor"])
        counts.append(len(calls))
    assert floors[0] == floors[1]
    assert counts[0] > counts[1] - counts[0], "the first of them ran the floor's windows too"
    with torch.no_grad():
        dense.model.model.norm.weight.mul_(3)
    assert TASK.measure(Subject(opened.model, opened.tokenizer, dense.model)).score.facts["floor"] != floors[0]


def test_where_there_is_no_second_computation_nothing_is_claimed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = open_model(str(folder), "float64", "cpu")
    assert "floor" not in TASK.measure(Subject(wide.model, wide.tokenizer, wide.model)).score.facts
    opened = open_model(str(folder), "bfloat16", "cpu")
    with monkeypatch.context() as patched:
        patched.setattr("calibrant.evaluators._floor.room", lambda device: 1000)
        dense = open_model(str(folder), "bfloat16", "cpu")
        assert "floor" not in TASK.measure(Subject(opened.model, opened.tokenizer, dense.model)).score.facts
    stubborn = open_model(str(folder), "bfloat16", "cpu")

    def insists(module: torch.nn.Module, given: object) -> None:
        if next(module.parameters()).dtype != torch.bfloat16:
            raise RuntimeError("expected scalar type BFloat16 but found Float")

    stubborn.model.register_forward_pre_hook(insists)
    assert "floor" not in TASK.measure(Subject(opened.model, opened.tokenizer, stubborn.model)).score.facts


def test_in_llama_cpp_it_is_the_files_own_numbers_in_torch(bare: dict[str, Path], folder: Path) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")
    from calibrant.llama_cpp import LlamaModel

    floors = dict[str, float]()
    for kind, path in bare.items():
        measured = evaluate(str(path), TASK, reference=str(folder), engine="llama_cpp")[0]
        exact = open_model(str(path), "float32", "cpu")
        with LlamaModel(path, 32) as theirs:
            known = by_hand(
                [logits(exact.model, ids) for ids in windows_of(exact)], [theirs.logits(ids)[:-1].astype(np.float64) for ids in windows_of(exact)]
            )
        floors[kind] = measured.score.facts["floor"]
        assert floors[kind] == pytest.approx(known, rel=0.05)
        assert measured.score.facts["floor_between"] == "llama.cpp and torch in float32"
    assert floors["F32"] < 1e-5
    assert min(floors["Q8_0"], floors["Q4_0"]) > 3 * floors["F32"]  # activations are rounded to 8 bits there


def test_a_file_that_torch_cannot_open_has_none(bare: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp_py_sync", reason="llama-cpp-py-sync isn't installed")

    def refused(*given: object) -> None:
        raise ModelError("a file that transformers can't open")

    monkeypatch.setattr("calibrant.evaluators._engines.open_model", refused)
    assert "floor" not in evaluate(str(bare["Q8_0"]), TASK, reference=str(folder), engine="llama_cpp")[0].score.facts


def test_the_command_shows_it_and_gives_it_to_programs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibrant.screen.results.DIGIT", 1e-7)  # so small a model rounds little
    words = ["evaluate", str(folder), "--reference", str(folder), "--task", str(TASK), "--dtype", "bfloat16"]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.stderr
    assert "noise floor" in " ".join(shown.stdout.split())
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    floor = found[0]["facts"]["floor"]
    assert floor > 1e-6
    assert f"KL below {floor:.1e}" in " ".join(shown.stdout.split()), "where it matters, it is told in words"
